//! Checks that a segment's sound keeps pace with its frames, and keeps the end of the sound for the next segment.

use super::error::EncodeError;
use crate::sound::{AudioFormat, SOUND_TAIL_SAMPLES};

/// Counts the samples of one segment against its frames, and keeps the last of them.
#[derive(Debug)]
pub(super) struct SoundMeter {
    format: Option<AudioFormat>,
    fps: u32,
    /// The number of samples per channel since the segment's start.
    samples: u64,
    /// The last [`SOUND_TAIL_SAMPLES`] samples per channel, interleaved.
    tail: Vec<f32>,
}

impl SoundMeter {
    pub(super) fn new(format: Option<AudioFormat>, fps: u32) -> Self {
        Self {
            format,
            fps,
            samples: 0,
            tail: Vec::new(),
        }
    }

    /// Returns the last [`SOUND_TAIL_SAMPLES`] samples per channel, interleaved; fewer when there were fewer.
    pub(super) fn tail(&self) -> &[f32] {
        &self.tail
    }

    /// Takes the sound that comes before the segment. It counts towards the tail only.
    ///
    /// # Errors
    /// Returns an error when the sound ends within a sample.
    pub(super) fn prime(&mut self, sound: &[f32]) -> Result<(), EncodeError> {
        self.keep(sound).map(drop)
    }

    /// Counts the sound that came with a frame, the last of `frames`.
    ///
    /// # Errors
    /// Returns an error when the sound ends within a sample, or when all the sound so far is shorter than the frames.
    pub(super) fn push(&mut self, sound: &[f32], frames: u32) -> Result<(), EncodeError> {
        self.samples += self.keep(sound)?;
        let expected = self.expected(frames);
        if self.samples < expected {
            return Err(self.size_error(frames, expected));
        }
        Ok(())
    }

    /// Checks the sound of the whole segment.
    ///
    /// # Errors
    /// Returns an error when the sound is longer or shorter than `frames` frames.
    pub(super) fn end(&self, frames: u32) -> Result<(), EncodeError> {
        let expected = self.expected(frames);
        if self.samples != expected {
            return Err(self.size_error(frames, expected));
        }
        Ok(())
    }

    /// Appends to the tail, and returns the number of samples per channel.
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

    /// Returns the number of samples per channel that `frames` frames last.
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
