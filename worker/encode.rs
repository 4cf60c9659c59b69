//! Frames and sound to media: each segment becomes an init segment and fragments, or one JPEG per frame.
//!
//! The job loop opens an [`Encoder`] ahead of time, begins a segment with it, hands in frames with their sound, and
//! gets each piece of media as soon as it is complete. A segment's bytes depend on its frames, its sound and its place
//! on the time line alone, so that a replay gives the same ones.
//!
//! - `fmp4`: one segment as fragmented MP4, H.264 and AAC.
//!   - `video`: which encoder, with which options, and the colours.
//!   - `sound`: AAC on a grid that goes on across segments, so that nothing clicks at a seam.
//!   - `extrapolate`: what the sound would be after its end.
//! - `jpeg`: one segment as pictures.
//! - `av`: libav as safe types; the only unsafe code here.
//! - `bench`: what encoding costs on this machine.
//!
//! It knows nothing of links or clients.

use std::fmt;

use fastvideo_proto::job::MediaMode;
use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::EncoderSpec;

use crate::engine::AudioFormat;

mod av;
pub(crate) mod bench;
mod extrapolate;
mod fmp4;
mod jpeg;
mod sound;
#[cfg(test)]
mod tests;
mod video;

use fmp4::Fmp4;
use jpeg::Jpeg;
#[cfg(feature = "torch")]
pub(crate) use sound::predict;

/// Samples per channel that the end of one segment hands to the beginning of the next.
pub(crate) const SOUND_TAIL_SAMPLES: usize = 2048;

/// Places on the time line end here, 290 years into a session at 120 frames per second, so that no unit overflows.
const MAX_START_FRAME: u64 = 1 << 40;

/// All that an encoder must know before it is opened. One with equal parameters serves any segment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EncodeParams {
    pub(crate) format: VideoFormat,
    pub(crate) mode: MediaMode,
    /// The sound that comes with the frames; none for a silent stream. JPEG streams carry none, but its end is kept.
    pub(crate) audio: Option<AudioFormat>,
    pub(crate) spec: EncoderSpec,
}

/// A message of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Media {
    /// `ftyp` + `moov`. The first message of a segment; JPEG has none.
    Init {
        bytes: Vec<u8>,
        /// With the codecs that are really in the stream.
        mime: String,
    },
    /// One `moof` + `mdat`, or one JPEG picture.
    Fragment { bytes: Vec<u8> },
}

/// Where media go.
pub(crate) type Out<'a> = dyn FnMut(Media) + 'a;

/// Where packets go, on their way from an encoder to the muxer.
type Emit<'a> = dyn FnMut(&mut av::Packet) -> Result<(), EncodeError> + 'a;

/// Why a segment could not be encoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    #[error("{what} is {given}, expected {expected}")]
    Parameter {
        what: &'static str,
        given: String,
        expected: &'static str,
    },
    #[error("a frame is {actual} bytes, expected {expected}")]
    FrameSize { expected: usize, actual: usize },
    /// Samples are counted per channel, from the segment's start.
    #[error("{given} samples of sound came with {frames} frames, expected {expected}")]
    SoundSize {
        frames: u32,
        expected: u64,
        given: u64,
    },
    #[error("sound comes in pieces of {channels} samples, one for each channel; {given} came")]
    SoundPieces { channels: usize, given: usize },
    #[error("a frame came after the last of {num_frames}")]
    TooManyFrames { num_frames: u32 },
    #[error("a frame came before the segment was begun")]
    NotBegun,
    #[error("the segment was begun twice")]
    BegunTwice,
    #[error("the colours of a frame cannot be converted")]
    Colours(#[from] yuv::YuvError),
    #[error("a frame cannot be compressed")]
    Jpeg(#[from] jpeg_encoder::EncodingError),
    #[error("encoder {name:?} tells no profile: it has no sequence parameter set")]
    NoParameterSet { name: String },
    #[error(transparent)]
    Av(#[from] av::AvError),
}

/// Encodes one segment.
///
/// Dropping it at any point frees all it holds and ends its threads.
pub(crate) struct Encoder {
    format: VideoFormat,
    stream: Stream,
    sound: SoundCount,
    /// Frames handed in; none before the segment is begun.
    frames: Option<u32>,
    complete: bool,
}

enum Stream {
    Fmp4(Box<Fmp4>),
    Jpeg(Jpeg),
}

impl Encoder {
    /// Opens codecs and muxer. Takes some milliseconds; nothing in it depends on the segment.
    ///
    /// # Errors
    /// When a parameter is out of its range, or libavcodec lacks the encoder or cannot open it on this machine; the
    /// message names the encoder.
    pub(crate) fn open(params: &EncodeParams) -> Result<Self, EncodeError> {
        params.check()?;
        let stream = match params.mode {
            MediaMode::AvFmp4 => Stream::Fmp4(Box::new(Fmp4::open(params)?)),
            MediaMode::LegacyJpeg => Stream::Jpeg(Jpeg::new(params)?),
        };
        Ok(Self {
            format: params.format,
            stream,
            sound: SoundCount::new(params.audio, params.format.fps),
            frames: None,
            complete: false,
        })
    }

    /// Places the segment and emits the init segment.
    ///
    /// `start_frame` counts frames on the session's time line. `sound_before` are up to [`SOUND_TAIL_SAMPLES`] samples
    /// per channel, interleaved, that come directly before the segment's; fewer or none at the session's start.
    ///
    /// # Errors
    /// When the segment was begun before, `start_frame` is absurd, `sound_before` ends within a sample, or the encoder
    /// fails.
    pub(crate) fn begin(
        &mut self,
        start_frame: u64,
        sound_before: &[f32],
        out: &mut Out<'_>,
    ) -> Result<(), EncodeError> {
        if self.frames.is_some() {
            return Err(EncodeError::BegunTwice);
        }
        check_that(
            start_frame <= MAX_START_FRAME,
            "start_frame",
            start_frame,
            "at most 2^40",
        )?;
        self.sound.keep(sound_before)?;
        if let Stream::Fmp4(stream) = &mut self.stream {
            stream.begin(start_frame, &self.sound.tail, out)?;
        }
        self.frames = Some(0);
        Ok(())
    }

    /// Encodes the next frame, RGB uint8 `[height, width, 3]`, with its sound, interleaved. Sound may run ahead of the
    /// frames, up to the segment's end, but not behind: frame `n` comes with the samples up to
    /// [`AudioFormat::sample_at`]`(n + 1)` at least, counted from the segment's start.
    ///
    /// # Errors
    /// When the frame has another size, sound lags or ends within a sample, the segment already has all its frames, or
    /// the encoder fails.
    pub(crate) fn frame(
        &mut self,
        rgb: &[u8],
        sound: &[f32],
        out: &mut Out<'_>,
    ) -> Result<(), EncodeError> {
        let frames = self.frames.ok_or(EncodeError::NotBegun)? + 1;
        let num_frames = self.format.num_frames;
        if frames > num_frames {
            return Err(EncodeError::TooManyFrames { num_frames });
        }
        let expected = self.format.frame_bytes();
        if rgb.len() != expected {
            let actual = rgb.len();
            return Err(EncodeError::FrameSize { expected, actual });
        }
        self.sound.push(sound, frames)?;
        self.frames = Some(frames);
        match &mut self.stream {
            Stream::Fmp4(stream) => stream.frame(rgb, sound, out)?,
            Stream::Jpeg(stream) => stream.frame(rgb, out)?,
        }
        if frames == num_frames {
            self.complete(out)?;
        }
        Ok(())
    }

    /// Ends the segment and returns the `sound_before` of the next: the last [`SOUND_TAIL_SAMPLES`] samples per
    /// channel, interleaved, reaching back before this segment when it is shorter; fewer only when there were none.
    ///
    /// All media of a segment with all its frames are out before this; a shorter one is ended here.
    ///
    /// # Errors
    /// When there is more sound than the frames last, or the encoder fails.
    pub(crate) fn finish(mut self, out: &mut Out<'_>) -> Result<Vec<f32>, EncodeError> {
        self.complete(out)?;
        Ok(self.sound.tail)
    }

    fn complete(&mut self, out: &mut Out<'_>) -> Result<(), EncodeError> {
        if std::mem::replace(&mut self.complete, true) {
            return Ok(());
        }
        self.sound.end(self.frames.unwrap_or(0))?;
        match &mut self.stream {
            Stream::Fmp4(stream) => stream.end(&self.sound.tail, out),
            Stream::Jpeg(_) => Ok(()),
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("format", &self.format)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl EncodeParams {
    fn check(&self) -> Result<(), EncodeError> {
        let VideoFormat {
            width,
            height,
            num_frames,
            fps,
        } = self.format;
        let even = |n: u32, range: std::ops::RangeInclusive<u32>| {
            n.is_multiple_of(2) && range.contains(&n)
        };
        check_that(
            even(width, 64..=4096),
            "width",
            width,
            "an even number from 64 to 4096",
        )?;
        check_that(
            even(height, 64..=2176),
            "height",
            height,
            "an even number from 64 to 2176",
        )?;
        check_that(num_frames >= 1, "num_frames", num_frames, "at least 1")?;
        check_that((1..=120).contains(&fps), "fps", fps, "1 to 120")?;
        if let Some(audio) = self.audio {
            let AudioFormat {
                sample_rate,
                channels,
            } = audio;
            check_that(
                matches!(channels, 1 | 2),
                "audio channels",
                channels,
                "1 or 2",
            )?;
            check_that(
                (1..=96_000).contains(&sample_rate),
                "audio sample rate",
                sample_rate,
                "1 to 96000",
            )?;
        }
        let EncoderSpec {
            crf,
            audio_bit_rate,
            jpeg_quality,
            ..
        } = self.spec;
        check_that(crf <= 51, "crf", crf, "0 to 51")?;
        check_that(
            (8_000..=1_000_000).contains(&audio_bit_rate),
            "audio_bit_rate",
            audio_bit_rate,
            "8000 to 1000000",
        )?;
        check_that(
            (1..=100).contains(&jpeg_quality),
            "jpeg_quality",
            jpeg_quality,
            "1 to 100",
        )
    }
}

fn check_that(
    holds: bool,
    what: &'static str,
    given: impl ToString,
    expected: &'static str,
) -> Result<(), EncodeError> {
    if holds {
        return Ok(());
    }
    Err(EncodeError::Parameter {
        what,
        given: given.to_string(),
        expected,
    })
}

/// Checks that sound keeps pace with the frames, and keeps its end.
#[derive(Debug)]
struct SoundCount {
    format: Option<AudioFormat>,
    fps: u32,
    /// Samples per channel since the segment's start.
    samples: u64,
    /// The last [`SOUND_TAIL_SAMPLES`] samples per channel, interleaved.
    tail: Vec<f32>,
}

impl SoundCount {
    fn new(format: Option<AudioFormat>, fps: u32) -> Self {
        Self {
            format,
            fps,
            samples: 0,
            tail: Vec::new(),
        }
    }

    fn push(&mut self, sound: &[f32], frames: u32) -> Result<(), EncodeError> {
        self.samples += self.keep(sound)?;
        let expected = self.expected(frames);
        if self.samples < expected {
            return Err(self.size_error(frames, expected));
        }
        Ok(())
    }

    fn end(&self, frames: u32) -> Result<(), EncodeError> {
        let expected = self.expected(frames);
        if self.samples != expected {
            return Err(self.size_error(frames, expected));
        }
        Ok(())
    }

    /// Returns the samples per channel.
    fn keep(&mut self, sound: &[f32]) -> Result<u64, EncodeError> {
        let channels = self.format.map_or(0, |format| format.channels as usize);
        let whole = sound.is_empty() || (channels > 0 && sound.len().is_multiple_of(channels));
        if !whole {
            let given = sound.len();
            return Err(EncodeError::SoundPieces { channels, given });
        }
        let limit = SOUND_TAIL_SAMPLES * channels;
        let new = &sound[sound.len().saturating_sub(limit)..];
        let excess = (self.tail.len() + new.len()).saturating_sub(limit);
        self.tail.drain(..excess);
        self.tail.extend_from_slice(new);
        Ok(sound.len().checked_div(channels).unwrap_or(0) as u64)
    }

    fn expected(&self, frames: u32) -> u64 {
        self.format
            .map_or(0, |format| format.sample_at(u64::from(frames), self.fps))
    }

    fn size_error(&self, frames: u32, expected: u64) -> EncodeError {
        EncodeError::SoundSize {
            frames,
            expected,
            given: self.samples,
        }
    }
}
