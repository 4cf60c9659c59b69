//! The encoder of one segment: it checks its input and passes it to the container.

use std::fmt;

use fastvideo_proto::job::{MediaMode, VideoFormat};

use super::error::EncodeError;
use super::fmp4::Fmp4;
use super::jpeg::Jpeg;
use super::media::MediaSink;
use super::params::{EncodeParams, check_num_frames, check_that};
use super::sound_meter::SoundMeter;
#[cfg(doc)]
use crate::sound::SOUND_TAIL_SAMPLES;

/// The last allowed start of a segment, in frames: 290 years into a session at 120 frames per second, so that no unit
/// of time overflows.
const MAX_START_FRAME: u64 = 1 << 40;

/// Encodes one segment. Dropping it at any point frees all that it holds and ends its threads.
pub(crate) struct Encoder {
    format: VideoFormat,
    container: Container,
    sound: SoundMeter,
    /// The number of frames so far; `None` before the segment is begun.
    frames: Option<u32>,
    /// Whether all media of the segment have been emitted.
    complete: bool,
}

/// The container that the frames and their sound are written to.
enum Container {
    Fmp4(Box<Fmp4>),
    Jpeg(Jpeg),
}

impl Encoder {
    /// Opens the codecs and the muxer. This takes some milliseconds, and nothing in it depends on the segment, so that
    /// an encoder can be opened before its segment is known.
    ///
    /// # Errors
    /// Returns an error when a parameter is out of its range, or when libavcodec lacks the encoder or cannot open it on
    /// this machine; the message names the encoder.
    pub(crate) fn open(params: &EncodeParams) -> Result<Self, EncodeError> {
        params.check()?;
        let container = match params.mode {
            MediaMode::AvFmp4 => Container::Fmp4(Box::new(Fmp4::open(params)?)),
            MediaMode::LegacyJpeg => Container::Jpeg(Jpeg::new(params)?),
        };
        Ok(Self {
            format: params.format,
            container,
            sound: SoundMeter::new(params.audio, params.format.fps),
            frames: None,
            complete: false,
        })
    }

    /// Sets the number of frames of the segment, which is that of the parameters otherwise. It has no effect on a segment
    /// that was begun.
    pub(crate) fn set_num_frames(&mut self, num_frames: u32) {
        if self.frames.is_none() {
            self.format.num_frames = num_frames;
        }
    }

    /// Places the segment and emits the init segment.
    ///
    /// `start_frame` is the segment's place on the session's time line, in frames. `sound_before` holds up to
    /// [`SOUND_TAIL_SAMPLES`] samples per channel, interleaved, that come directly before the segment's own; at the
    /// session's start there are fewer or none.
    ///
    /// # Errors
    /// Returns an error when the segment was begun before or has no frames, when `start_frame` is above 2^40, when
    /// `sound_before` ends within a sample, or when the encoder fails.
    pub(crate) fn begin(
        &mut self,
        start_frame: u64,
        sound_before: &[f32],
        out: &mut MediaSink<'_>,
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
        check_num_frames(self.format.num_frames)?;
        self.sound.prime(sound_before)?;
        if let Container::Fmp4(stream) = &mut self.container {
            let num_frames = self.format.num_frames;
            stream.begin(start_frame, num_frames, self.sound.tail(), out)?;
        }
        self.frames = Some(0);
        Ok(())
    }

    /// Encodes the next frame, RGB uint8 `[height, width, 3]`, with its sound, interleaved.
    ///
    /// Sound may run ahead of the frames, up to the segment's end, but must not lag: frame `n` comes with the samples
    /// up to [`AudioFormat::sample_at`](crate::sound::AudioFormat::sample_at)`(n + 1)` at least, counted from the
    /// segment's start.
    ///
    /// # Errors
    /// Returns an error when the frame has another size, when sound lags or ends within a sample, when the segment
    /// already has all its frames, or when the encoder fails.
    pub(crate) fn frame(
        &mut self,
        rgb: &[u8],
        sound: &[f32],
        out: &mut MediaSink<'_>,
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
        match &mut self.container {
            Container::Fmp4(stream) => stream.frame(rgb, sound, out)?,
            Container::Jpeg(stream) => stream.frame(rgb, out)?,
        }
        if frames == num_frames {
            self.complete(out)?;
        }
        Ok(())
    }

    /// Ends the segment and returns the `sound_before` of the next one: the last [`SOUND_TAIL_SAMPLES`] samples per
    /// channel, interleaved. They reach back before this segment where it is shorter than that.
    ///
    /// When the segment has all its frames, all its media were emitted before this call; a shorter segment is ended
    /// here.
    ///
    /// # Errors
    /// Returns an error when there is more sound than the frames last, or when the encoder fails.
    pub(crate) fn finish(mut self, out: &mut MediaSink<'_>) -> Result<Vec<f32>, EncodeError> {
        self.complete(out)?;
        Ok(self.sound.tail().to_vec())
    }

    /// Ends both tracks, unless they have ended already.
    fn complete(&mut self, out: &mut MediaSink<'_>) -> Result<(), EncodeError> {
        if std::mem::replace(&mut self.complete, true) {
            return Ok(());
        }
        self.sound.end(self.frames.unwrap_or(0))?;
        match &mut self.container {
            Container::Fmp4(stream) => stream.end(self.sound.tail(), out),
            Container::Jpeg(_) => Ok(()),
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
