//! Values that stand for the latents after a denoise step. They follow from the request and the step, so whoever goes on
//! from a step snapshot can tell whether every byte of it has arrived.

use fastvideo_proto::job::Stage;
use fastvideo_proto::state::{Dtype, TensorLayout};

use super::wave;
use crate::engine::{EngineError, GenerateRequest, StepLatents, StepSnapshot};

/// The latents of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latents {
    bytes: u32,
    seed: u64,
}

/// The latents after one step: bf16 `[1, bytes / 2]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct AfterStep {
    of: Latents,
    step: u32,
}

impl Latents {
    /// Returns the latents of a request, of this size in bytes, which is even.
    pub(super) fn new(bytes: u32, request: &GenerateRequest<'_>) -> Self {
        let state = request.state.map(|state| state.header.encode());
        let texts = [
            request.prompt.as_bytes(),
            request.negative_prompt.unwrap_or_default().as_bytes(),
            &state.unwrap_or_default(),
        ];
        let numbers = [
            request.seed,
            request.guidance_scale.to_bits(),
            request.segment_idx.into(),
            request.num_inference_steps.into(),
        ];
        let fields = texts.map(wave::hash_bytes).into_iter().chain(numbers);
        let seed = fields.fold(0, |seed, field| wave::scramble(seed ^ field));
        Self { bytes, seed }
    }

    pub(super) fn after(self, step: u32) -> AfterStep {
        AfterStep { of: self, step }
    }

    /// Returns the step after which a snapshot was taken, of which every byte has been compared.
    ///
    /// # Errors
    /// Returns [`EngineError::SnapshotRefused`] when a segment of these steps cannot go on from it.
    pub(super) fn resume(
        self,
        snapshot: &StepSnapshot<'_>,
        steps: u32,
    ) -> Result<u32, EngineError> {
        let refused = |what: &str| {
            let message = format!("it has {what}");
            Err(EngineError::SnapshotRefused(message))
        };
        let step = snapshot.at.step;
        if snapshot.at.stage != Stage::Denoise || snapshot.total_steps != steps || step > steps {
            return refused("other steps than the request");
        }
        let latents = self.after(step);
        if snapshot.layout != latents.layout() || snapshot.latents.len() != self.bytes as usize {
            return refused("latents of another size");
        }
        let words = snapshot.latents.chunks(size_of::<u64>());
        let is_same = words.zip(latents.words()).all(|(given, word)| {
            let expected = word.to_le_bytes();
            *given == expected[..given.len()]
        });
        match is_same {
            true => Ok(step),
            false => refused("other latents than this step has"),
        }
    }
}

impl AfterStep {
    fn words(self) -> impl Iterator<Item = u64> {
        let seed = wave::scramble(self.of.seed ^ u64::from(self.step));
        (0..).map(move |n: u64| wave::scramble(seed.wrapping_add(n)))
    }
}

impl StepLatents for AfterStep {
    fn layout(&self) -> Vec<TensorLayout> {
        vec![TensorLayout {
            dtype: Dtype::Bf16,
            shape: vec![1, u64::from(self.of.bytes / 2)],
        }]
    }

    fn write(&self, to: &mut [u8]) -> Result<(), EngineError> {
        for (chunk, word) in to.chunks_mut(size_of::<u64>()).zip(self.words()) {
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}
