//! The parameters of an encoder, and their ranges.

use fastvideo_proto::job::{MediaMode, VideoFormat};
use fastvideo_proto::link::EncoderSpec;

use super::error::EncodeError;
use crate::sound::AudioFormat;

/// The parameters that an encoder is opened with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EncodeParams {
    pub(crate) format: VideoFormat,
    pub(crate) mode: MediaMode,
    /// The format of the sound that comes with the frames, or `None` for a silent stream. A JPEG stream carries no
    /// sound, but the end of the sound is still kept for the next segment.
    pub(crate) audio: Option<AudioFormat>,
    pub(crate) spec: EncoderSpec,
}

impl EncodeParams {
    /// Returns whether an encoder that was opened with these parameters serves a segment with the others, which it does
    /// whatever the number of frames is.
    pub(crate) fn serve(&self, other: &Self) -> bool {
        let Self {
            format,
            mode,
            audio,
            spec,
        } = self;
        let format = VideoFormat {
            num_frames: other.format.num_frames,
            ..*format
        };
        (format, *mode, *audio, spec) == (other.format, other.mode, other.audio, &other.spec)
    }

    /// Checks that every parameter is in its range.
    ///
    /// # Errors
    /// Returns an error that names the first parameter that is out of its range, with that range.
    pub(super) fn check(&self) -> Result<(), EncodeError> {
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
        check_num_frames(num_frames)?;
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

/// Returns an error when a segment would have no frames.
///
/// # Errors
/// Returns [`EncodeError::Parameter`] for 0.
pub(super) fn check_num_frames(num_frames: u32) -> Result<(), EncodeError> {
    check_that(num_frames >= 1, "num_frames", num_frames, "at least 1")
}

/// Returns the error that names the parameter, unless the condition holds.
///
/// # Errors
/// Returns [`EncodeError::Parameter`] when `holds` is false.
pub(super) fn check_that(
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
