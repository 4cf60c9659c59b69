//! One segment as JPEG pictures, for clients that cannot play a stream.

use fastvideo_proto::job::VideoFormat;
use jpeg_encoder::ColorType;

use super::{EncodeError, EncodeParams, Media, Out};

/// Turns each frame into a JPEG picture (BT.601, full range, as JFIF wants it).
#[derive(Debug)]
pub(super) struct Jpeg {
    width: u16,
    height: u16,
    quality: u8,
    /// Of the last picture, as a first guess for the next.
    bytes: usize,
}

impl Jpeg {
    /// # Errors
    /// When the size is above what JPEG can hold.
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
            bytes: 0,
        })
    }

    /// # Errors
    /// When the picture cannot be compressed.
    pub(super) fn frame(&mut self, rgb: &[u8], out: &mut Out<'_>) -> Result<(), EncodeError> {
        let mut bytes = Vec::with_capacity(self.bytes);
        jpeg_encoder::Encoder::new(&mut bytes, self.quality).encode(
            rgb,
            self.width,
            self.height,
            ColorType::Rgb,
        )?;
        self.bytes = bytes.len();
        out(Media::Fragment { bytes });
        Ok(())
    }
}
