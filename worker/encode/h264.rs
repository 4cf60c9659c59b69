//! The H.264 track: the choice of the encoder and its options, and the colour conversion.
//!
//! The colours are BT.709 in video range, and the stream is tagged accordingly: for an untagged stream, a player
//! guesses BT.601 or BT.709 from the picture size.

use std::ffi::c_int;

use fastvideo_proto::job::VideoFormat;
use yuv::{
    BufferStoreMut, YuvConversionMode, YuvPlanarImageMut, YuvRange, YuvStandardMatrix,
    rgb_to_yuv420,
};

use super::av::{Codec, Options, PacketSink, PictureFrame, Plane, VideoSettings};
use super::error::EncodeError;
use super::params::EncodeParams;

/// Encodes RGB frames as H.264: an IDR picture, then only P pictures, without reordering or lookahead.
#[derive(Debug)]
pub(super) struct H264Track {
    codec: Codec,
    frame: PictureFrame,
    format: VideoFormat,
    /// The place of the next packet on the time line, in frames.
    next_out: i64,
    /// The number of frames so far.
    sent: i64,
}

impl H264Track {
    /// Opens the encoder that the parameters name.
    ///
    /// # Errors
    /// Returns an error when libavcodec lacks the encoder or cannot open it.
    pub(super) fn open(params: &EncodeParams) -> Result<Self, EncodeError> {
        let format = params.format;
        let settings = VideoSettings {
            width: number(format.width),
            height: number(format.height),
            fps: number(format.fps),
        };
        let codec = Codec::open_video(&params.spec.video_codec, settings, options(params)?)?;
        let frame = PictureFrame::new(settings.width, settings.height)?;
        Ok(Self {
            codec,
            frame,
            format,
            next_out: 0,
            sent: 0,
        })
    }

    /// Sets the place of the first frame on the time line.
    pub(super) fn begin(&mut self, start_frame: u64) {
        self.next_out = i64::try_from(start_frame).expect("places are checked and small");
    }

    /// Encodes a frame of the right size and passes on the packets that are ready.
    ///
    /// # Errors
    /// Returns an error when the encoder or `emit` fails.
    pub(super) fn frame(
        &mut self,
        rgb: &[u8],
        emit: &mut PacketSink<'_, EncodeError>,
    ) -> Result<(), EncodeError> {
        self.convert(rgb)?;
        self.frame.set_time(self.sent);
        self.sent += 1;
        self.codec.send_picture(&self.frame)?;
        self.drain(emit)
    }

    /// Passes on the packets that the encoder still has.
    ///
    /// # Errors
    /// Returns an error when the encoder or `emit` fails.
    pub(super) fn end(
        &mut self,
        emit: &mut PacketSink<'_, EncodeError>,
    ) -> Result<(), EncodeError> {
        self.codec.send_end()?;
        self.drain(emit)
    }

    pub(super) fn codec(&self) -> &Codec {
        &self.codec
    }

    /// Passes on the packets that are ready.
    fn drain(&mut self, emit: &mut PacketSink<'_, EncodeError>) -> Result<(), EncodeError> {
        while let Some(packet) = self.codec.receive()? {
            packet.set_time(self.next_out, 1);
            self.next_out += 1;
            emit(packet)?;
        }
        Ok(())
    }

    /// Converts a frame to I420 in BT.709 video range, in the encoder's own buffer.
    fn convert(&mut self, rgb: &[u8]) -> Result<(), EncodeError> {
        let VideoFormat { width, height, .. } = self.format;
        let [y, u, v] = self.frame.planes()?;
        let stride = |plane: &Plane<'_>| {
            u32::try_from(plane.stride).expect("a row is not much longer than a picture is wide")
        };
        let mut image = YuvPlanarImageMut {
            y_stride: stride(&y),
            u_stride: stride(&u),
            v_stride: stride(&v),
            y_plane: BufferStoreMut::Borrowed(y.bytes),
            u_plane: BufferStoreMut::Borrowed(u.bytes),
            v_plane: BufferStoreMut::Borrowed(v.bytes),
            width,
            height,
        };
        rgb_to_yuv420(
            &mut image,
            rgb,
            width * 3,
            YuvRange::Limited,
            YuvStandardMatrix::Bt709,
            YuvConversionMode::Balanced,
        )?;
        Ok(())
    }
}

/// Returns `avc1.PPCCLL` from the sequence parameter set that the encoder wrote, or `None` when it wrote none.
pub(super) fn codec_string(extradata: &[u8]) -> Option<String> {
    const SEQUENCE_PARAMETER_SET: u8 = 7;
    // An avcC record begins with its version, 1, and the three bytes; otherwise there are NAL units with start codes.
    let profile = match extradata {
        [1, profile, compatibility, level, ..] => [*profile, *compatibility, *level],
        _ => extradata.windows(7).find_map(|bytes| match bytes {
            [0, 0, 1, nal, profile, compatibility, level]
                if nal & 0x1f == SEQUENCE_PARAMETER_SET =>
            {
                Some([*profile, *compatibility, *level])
            }
            _ => None,
        })?,
    };
    let [profile, compatibility, level] = profile;
    Some(format!("avc1.{profile:02x}{compatibility:02x}{level:02x}"))
}

/// Returns the options of the encoder that the parameters name.
fn options(params: &EncodeParams) -> Result<Options, EncodeError> {
    let crf = params.spec.crf;
    let mut options = Options::new([
        (c"flags", "+global_header+bitexact"),
        (c"bf", "0"),
        (c"color_range", "tv"),
        (c"colorspace", "bt709"),
        (c"color_primaries", "bt709"),
        (c"color_trc", "bt709"),
    ])?;
    match params.spec.video_codec.as_str() {
        "libx264" => {
            options.extend([
                (c"preset", "ultrafast"),
                (c"tune", "zerolatency"),
                (c"thread_type", "slice"),
                // The choice of algorithms must not depend on the processor.
                (
                    c"x264-params",
                    "keyint=infinite:scenecut=0:cpu-independent=1",
                ),
            ])?;
            options.extend([(c"threads", slices(params.format)), (c"crf", number(crf))])?;
        }
        "h264_nvenc" => {
            options.extend([
                (c"preset", "p3"),
                (c"tune", "ull"),
                (c"rc", "vbr"),
                (c"b", "0"),
                (c"zerolatency", "1"),
                (c"delay", "0"),
                (c"forced-idr", "1"),
            ])?;
            options.extend([(c"g", c_int::MAX), (c"cq", number(crf))])?;
        }
        // Any other H.264 encoder gets a long GOP and keeps its own default quality.
        _ => options.extend([(c"g", c_int::MAX)])?,
    }
    Ok(options)
}

/// Returns the number of slices of a picture. Each slice is encoded by a thread of its own.
///
/// Slices change the bytes, so their number must not depend on the machine. One slice costs least. At 1920x1088 two
/// slices cost 4 % more processor time and 3 % more bytes, and took 10 % less time on two busy cores; below that size
/// they gain nothing.
fn slices(format: VideoFormat) -> c_int {
    const PIXELS_PER_SLICE: u32 = 1_000_000;
    number((format.width * format.height / PIXELS_PER_SLICE).clamp(1, 4))
}

fn number(value: u32) -> c_int {
    c_int::try_from(value).expect("parameters are checked and small")
}
