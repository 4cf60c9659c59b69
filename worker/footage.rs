//! Records a segment of the synthetic engine, so that the encoder can be measured alone with the same input as in a
//! worker.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::job::{Stage, VideoFormat};

use crate::encode::bench::Footage;
use crate::engine::synthetic::{Options, Synthetic};
use crate::engine::{Engine, EngineError, GenerateRequest, Sink, StepLatents};

/// Records the segment that a worker generates when its frames are rendered ahead of time.
///
/// # Errors
/// Returns an error when the engine refuses the format.
pub(crate) fn record(format: VideoFormat) -> Result<Footage, EngineError> {
    let options = Options {
        step: Duration::ZERO,
        frame: Duration::ZERO,
        load: Duration::ZERO,
        conditioning_num_frames: 1,
        audio_latent_frames: 1,
        latent_bytes: 2,
        prerender: true,
        preview: false,
        faults: Vec::new(),
    };
    let mut engine = Synthetic::new(options, format);
    engine.load(Box::new(|_, _| {}))?;
    let request = GenerateRequest {
        segment_idx: 0,
        prompt: "a lighthouse over a stormy sea",
        negative_prompt: None,
        seed: 0,
        num_inference_steps: 1,
        guidance_scale: 1.0,
        adapters: &[],
        format,
        cut_frames: 0,
        initial_image: None,
        state: None,
        snapshot: None,
    };
    let mut recorder = Recorder {
        footage: Footage::default(),
        frame_bytes: format.frame_bytes(),
    };
    engine.generate(&request, &mut recorder)?;
    Ok(recorder.footage)
}

/// Keeps all frames and their sound.
struct Recorder {
    footage: Footage,
    frame_bytes: usize,
}

impl Sink for Recorder {
    fn cancelled(&self) -> bool {
        false
    }

    fn step(
        &mut self,
        _stage: Stage,
        _step: u32,
        _total_steps: u32,
        _latents: Option<&dyn StepLatents>,
    ) {
    }

    fn blank_frame(&mut self) -> Vec<u8> {
        vec![0; self.frame_bytes]
    }

    fn frame(&mut self, rgb: Arc<Vec<u8>>, sound: &[f32]) -> Result<(), EngineError> {
        self.footage.frames.push((rgb, sound.to_vec()));
        Ok(())
    }
}
