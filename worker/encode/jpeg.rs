//! The container `legacy_jpeg`: one segment as JPEG pictures, for clients that cannot play a stream.

use fastvideo_proto::job::VideoFormat;
use jpeg_encoder::ColorType;

use super::error::EncodeError;
use super::media::{Media, MediaSink};
use super::params::EncodeParams;

/// Turns each frame into a JPEG picture, with BT.601 in full range as JFIF requires.
#[derive(Debug)]
pub(super) struct Jpeg {
    width: u16,
    height: u16,
    quality: u8,
    /// The size of the last picture, used as the initial capacity for the next one.
    last_bytes: usize,
}

impl Jpeg {
    /// Prepares for pictures of the format's size.
    ///
    /// # Errors
    /// Returns an error when a side is longer than JPEG can hold.
    pub(super) fn new(params: &EncodeParams) -> Result<Self, EncodeError> {
        let VideoFormat { width, height, .. } = params.format;
        let side = |what, length: u32| {
            u16::try_from(length).map_err(|_| EncodeError::Parameter {
                what,
                given: length.to_string(),
                expected: "at most 65535",
            })
        };
        Ok(Self {
            width: side("width", width)?,
            height: side("height", height)?,
            quality: params.spec.jpeg_quality,
            last_bytes: 0,
        })
    }

    /// Compresses a frame of the right size.
    ///
    /// # Errors
    /// Returns an error when the frame cannot be compressed.
    pub(super) fn frame(&mut self, rgb: &[u8], out: &mut MediaSink<'_>) -> Result<(), EncodeError> {
        let mut bytes = Vec::with_capacity(self.last_bytes);
        jpeg_encoder::Encoder::new(&mut bytes, self.quality).encode(
            rgb,
            self.width,
            self.height,
            ColorType::Rgb,
        )?;
        self.last_bytes = bytes.len();
        out(Media::Fragment { bytes });
        Ok(())
    }
}
