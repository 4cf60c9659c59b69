//! PCM sound, which the engines and the encoder share: its format, and its prediction beyond its end.
//!
//! `extrapolate` has the linear prediction.

mod extrapolate;

use extrapolate::extrapolate;

/// The number of samples per channel at the end of one segment that prime the encoder of the next one: two AAC blocks.
pub(crate) const SOUND_TAIL_SAMPLES: usize = 2048;

/// The format of an engine's PCM samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AudioFormat {
    /// The sample rate in Hz.
    pub(crate) sample_rate: u32,
    /// The number of channels, 1 or 2.
    pub(crate) channels: u32,
}

impl AudioFormat {
    /// Returns the sample at which a frame begins on a time line that starts with frame 0, rounded down.
    pub(crate) fn sample_at(&self, frame: u64, fps: u32) -> u64 {
        frame * u64::from(self.sample_rate) / u64::from(fps)
    }
}

/// Predicts the `count` samples per channel that follow `tail`. Both are interleaved.
pub(crate) fn predict(tail: &[f32], channels: usize, count: usize) -> Vec<f32> {
    let mut predicted = vec![0.0; count * channels];
    for channel in 0..channels {
        let known: Vec<f32> = tail
            .iter()
            .skip(channel)
            .step_by(channels)
            .copied()
            .collect();
        let continuation = extrapolate(&known, count);
        for (sample, from) in predicted
            .iter_mut()
            .skip(channel)
            .step_by(channels)
            .zip(continuation)
        {
            *sample = from;
        }
    }
    predicted
}
