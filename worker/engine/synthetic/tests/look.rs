//! For a person who works on the pictures: shows some and says what they cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastvideo_proto::job::Stage;

use super::{SMALL, format, request, run, spec};
use crate::engine::synthetic::Synthetic;
use crate::engine::{Engine, EngineError, NewState, Sink, State, StepLatents};

/// `LOOK=folder LOOK_PROMPTS='one|two' LOOK_SIZE=768x512 cargo test … -- --ignored look`; each prompt continues the
/// one before.
#[test]
#[ignore = "writes pictures for a person to look at"]
fn look() {
    let folder = std::env::var("LOOK").unwrap_or_else(|_| ".".to_owned());
    let prompts = std::env::var("LOOK_PROMPTS").unwrap_or_else(|_| "a red fox".to_owned());
    let size = std::env::var("LOOK_SIZE").unwrap_or_else(|_| "768x512".to_owned());
    let (width, height) = size.split_once('x').unwrap();
    let format = format(width.parse().unwrap(), height.parse().unwrap(), 24);
    let mut last: Option<NewState> = None;
    for (i, prompt) in prompts.split('|').enumerate() {
        let mut request = request(prompt);
        request.format = format;
        request.segment_idx = u32::try_from(i).unwrap();
        request.state = last.as_ref().map(|state| State {
            header: &state.header,
            blob: &state.blob,
        });
        let (take, state) = run(&request);
        for n in [0, 12, 23] {
            let path = format!("{folder}/{i}-{n}.png");
            let (width, height) = (format.width, format.height);
            image::save_buffer(path, &take.frames[n], width, height, image::ColorType::Rgb8)
                .unwrap();
        }
        last = Some(state);
    }
}

/// Gives every frame back as the next blank one, as the encoder does.
#[derive(Default)]
struct Recycle(Vec<u8>);

impl Sink for Recycle {
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
        std::mem::take(&mut self.0)
    }

    fn frame(&mut self, rgb: Arc<Vec<u8>>, _sound: &[f32]) -> Result<(), EngineError> {
        self.0 = Arc::unwrap_or_clone(rgb);
        Ok(())
    }
}

/// Time of whole segments without pacing: `cargo test --release … -- --ignored --nocapture speed`.
#[test]
#[ignore = "a measurement, not a fact"]
fn speed() {
    let prompts = [
        "a red fox running through snow at night",
        "golden sunrise over the ocean, drone shot",
        "neon city in the rain",
        "a quiet forest",
    ];
    for (width, height, num_frames) in [(256, 256, 24), (768, 512, 24), (1920, 1088, 24)] {
        for prompt in prompts {
            let mut request = request(prompt);
            request.format = format(width, height, num_frames);
            let mut best = Duration::MAX;
            let mut sink = Recycle(vec![0; request.format.frame_bytes()]);
            for _ in 0..9 {
                let begun = Instant::now();
                let state = Synthetic::new(spec(), SMALL).generate(&request, &mut sink);
                assert!(state.is_ok());
                best = best.min(begun.elapsed());
            }
            println!("{width}x{height}x{num_frames} {prompt}: {best:?}");
        }
    }
}
