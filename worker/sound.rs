//! PCM sound, as both the engines and the encoder see it: its format, and what it would be after its end.
//!
//! `extrapolate` is the linear prediction.

mod extrapolate;

use extrapolate::extrapolate;

/// Samples per channel that the end of one segment hands to the beginning of the next. Two AAC blocks: the next
/// segment's encoder is primed with them.
pub(crate) const SOUND_TAIL_SAMPLES: usize = 2048;

/// The format of the PCM samples that an engine makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AudioFormat {
    /// Samples per second and channel.
    pub(crate) sample_rate: u32,
    /// 1 or 2.
    pub(crate) channels: u32,
}

impl AudioFormat {
    /// The sample at which this frame begins on a time line that starts with frame 0, rounded down.
    pub(crate) fn sample_at(&self, frame: u64, fps: u32) -> u64 {
        frame * u64::from(self.sample_rate) / u64::from(fps)
    }
}

/// Predicts the `count` samples per channel that would come after `tail`. Both are interleaved.
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
