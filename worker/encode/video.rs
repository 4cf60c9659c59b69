//! Pictures to H.264: which encoder with which options, and the colours.
//!
//! The colours are BT.709 in video range, and the stream says so: players take an untagged stream for BT.601 or BT.709
//! by its size, and guess wrong.

use std::ffi::c_int;

use fastvideo_proto::job::VideoFormat;
use yuv::{
    BufferStoreMut, YuvConversionMode, YuvPlanarImageMut, YuvRange, YuvStandardMatrix,
    rgb_to_yuv420,
};

use super::av::{Codec, Options, PictureFrame, Plane, VideoSettings};
use super::{Emit, EncodeError, EncodeParams};

/// RGB frames to H.264: an IDR picture and then only pictures that refer back, each out as soon as it is in.
#[derive(Debug)]
pub(super) struct Video {
    codec: Codec,
    frame: PictureFrame,
    format: VideoFormat,
    /// Place of the next packet, in frames.
    next_out: i64,
    /// Frames handed in.
    sent: i64,
}

impl Video {
    /// # Errors
    /// When libavcodec lacks the encoder or cannot open it.
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

    /// Encodes a frame of the right size and hands on the packets that are ready.
    ///
    /// # Errors
    /// When the encoder or `emit` fails.
    pub(super) fn frame(&mut self, rgb: &[u8], emit: &mut Emit<'_>) -> Result<(), EncodeError> {
        self.convert(rgb)?;
        self.frame.set_time(self.sent);
        self.sent += 1;
        self.codec.send_picture(&self.frame)?;
        self.drain(emit)
    }

    /// Hands on the packets that the encoder still has.
    ///
    /// # Errors
    /// When the encoder or `emit` fails.
    pub(super) fn end(&mut self, emit: &mut Emit<'_>) -> Result<(), EncodeError> {
        self.codec.send_end()?;
        self.drain(emit)
    }

    pub(super) fn codec(&self) -> &Codec {
        &self.codec
    }

    fn drain(&mut self, emit: &mut Emit<'_>) -> Result<(), EncodeError> {
        while let Some(packet) = self.codec.receive()? {
            packet.set_time(self.next_out, 1);
            self.next_out += 1;
            emit(packet)?;
        }
        Ok(())
    }

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

/// `avc1.PPCCLL`, from the sequence parameter set that the encoder wrote; none when it wrote none.
pub(super) fn codec_string(extradata: &[u8]) -> Option<String> {
    const SEQUENCE_PARAMETER_SET: u8 = 7;
    // avcC begins with its version, 1, and repeats the three bytes; otherwise there are NAL units with start codes.
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
        // Whatever else makes H.264: a long GOP, and its own idea of quality.
        _ => options.extend([(c"g", c_int::MAX)])?,
    }
    Ok(options)
}

/// Slices of a picture, each with a thread of its own. They are part of the bytes, so their number must not depend on
/// the machine. One costs least. Two cost 4 % more processor time and 3 % more bytes at 1920x1088, and took 10 % less
/// time on two cores that others used too; below that size they gain nothing.
fn slices(format: VideoFormat) -> c_int {
    const PIXELS_PER_SLICE: u32 = 1_000_000;
    number((format.width * format.height / PIXELS_PER_SLICE).clamp(1, 4))
}

fn number(value: u32) -> c_int {
    c_int::try_from(value).expect("parameters are checked and small")
}
