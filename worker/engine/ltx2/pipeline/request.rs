//! Requests, settings, and the results of a generation.

use tch::Tensor;

use super::{Parts, PipelineError};
use crate::adapters::{AdapterError, Choice};
use crate::generation::Generation;
use crate::sampling::noise::DrawOrder;
use crate::sampling::schedule::Scheduler;
use crate::text::TextError;
use crate::transformer::{CrossModalLevels, Positions};
use crate::video_vae::{Tiling, TilingError};

/// How a model is run: the same for all requests.
#[derive(Clone, Debug)]
pub struct Settings {
    pub draw_order: DrawOrder,
    pub positions: Positions,
    /// The tiling with which the picture is decoded.
    pub tiling: Tiling,
    pub stages: Stages,
    /// The number of steps of the second stage, 1 to 3.
    pub refine_steps: usize,
    pub conditioning: Conditioning,
    /// Whether the next segment continues from the sound as it was played, encoded again, instead of from the latents.
    pub audio_reencode: bool,
    /// The noise levels that the attention between the streams is modulated by; `None` is what the model's authors use:
    /// [`CrossModalLevels::Lightricks`] for LTX-2.3, and for LTX-2.0 [`CrossModalLevels::FastVideo`], as it was released.
    pub cross_modal_levels: Option<CrossModalLevels>,
    /// The blocks whose self-attention is perturbed for the guidance of base weights of LTX-2.3.
    pub perturbed_blocks: Vec<usize>,
    /// The number of frames that are shown of the first stage's result, where there is a preview decoder: at least 1.
    pub preview_frames: i64,
}

/// The number of stages of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    /// Two stages if the checkpoint has an upsampler, else one.
    Automatic,
    One,
    /// Two stages, the first one at half the size.
    Two,
}

/// The conditioning that a segment takes over from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditioning {
    /// The number of frames: 0, or 1 more than a multiple of the number of frames of a latent. It is less where fewer are
    /// before the cut.
    pub num_frames: i64,
    /// The length of the sound in frames. It is limited to the number of frames in a segment that is shorter than this, be it
    /// the one that hands it on or the one that takes it over.
    pub audio_num_frames: i64,
    /// The number of frames at the segment's end, after those that are taken over.
    pub end_offset: i64,
}

impl Default for Settings {
    /// The settings with which the service runs the model.
    fn default() -> Self {
        Self {
            draw_order: DrawOrder::Channels,
            positions: Positions::Float32,
            tiling: Tiling::Grouped { frames: 8 },
            stages: Stages::Automatic,
            refine_steps: 2,
            conditioning: Conditioning {
                num_frames: 9,
                audio_num_frames: 49,
                end_offset: 0,
            },
            audio_reencode: false,
            cross_modal_levels: None,
            perturbed_blocks: vec![28],
            preview_frames: 8,
        }
    }
}

impl Settings {
    /// Returns the noise levels that the attention between the streams is modulated by.
    pub(super) fn cross_modal_levels(&self, generation: Generation) -> CrossModalLevels {
        self.cross_modal_levels.unwrap_or(match generation {
            Generation::V2_0 => CrossModalLevels::FastVideo,
            Generation::V2_3 => CrossModalLevels::Lightricks,
        })
    }

    pub(super) fn check(&self, parts: &Parts) -> Result<(), PipelineError> {
        let wrong = |what, expected: String, given: i64| {
            let given = given.to_string();
            Err(PipelineError {
                what,
                expected,
                given,
            })
        };
        if self.stages == Stages::Two && parts.upsampler.is_none() {
            return Err(PipelineError {
                what: "two stages",
                expected: "a checkpoint with a latent upsampler".to_owned(),
                given: "one without".to_owned(),
            });
        }
        let layers = parts.transformer_config.num_layers;
        let is_perturbed = parts.scheduler != Scheduler::Distilled
            && parts.transformer_config.generation == Generation::V2_3;
        let beyond = |block: &&usize| i64::try_from(**block).is_ok_and(|block| block >= layers);
        if is_perturbed && let Some(block) = self.perturbed_blocks.iter().find(beyond) {
            return Err(PipelineError {
                what: "perturbed_blocks",
                expected: format!("blocks below {layers}"),
                given: block.to_string(),
            });
        }
        let ratio = parts.video_vae.config().temporal_ratio();
        let Conditioning {
            num_frames,
            audio_num_frames,
            end_offset,
        } = self.conditioning;
        if num_frames != 0 && !is_clip(num_frames, ratio) {
            let expected = format!("0 or {ratio}k + 1 frames");
            return wrong("conditioning_num_frames", expected, num_frames);
        }
        if self.preview_frames < 1 {
            return wrong(
                "preview_frames",
                "1 or more".to_owned(),
                self.preview_frames,
            );
        }
        for (what, value) in [
            ("audio conditioning frames", audio_num_frames),
            ("conditioning_end_offset", end_offset),
        ] {
            if value < 0 {
                return wrong(what, "0 or more".to_owned(), value);
            }
        }
        Ok(())
    }
}

/// Returns whether the VAE accepts that number of frames.
pub(super) fn is_clip(frames: i64, ratio: i64) -> bool {
    frames >= 1 && (frames - 1) % ratio == 0
}

/// One segment to make.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub prompt: &'a str,
    /// The negative prompt, for base weights only; it has no effect at scale 1.
    pub negative_prompt: Option<&'a str>,
    pub seed: u64,
    /// The number of denoise steps of the first stage.
    pub num_inference_steps: usize,
    /// The guidance scale; 1 is no guidance. Distilled weights accept no other value.
    pub guidance_scale: f64,
    /// The height and width of the finished picture in pixels.
    pub height: i64,
    pub width: i64,
    /// The number of frames, including those that a continued segment begins with and does not pass out.
    pub num_frames: i64,
    /// The number of frames behind the cut, at the clip's end, which the next segment does not continue from: for it the
    /// segment ends at the cut, and so does its sound. They are passed out all the same.
    pub cut_frames: i64,
    /// Frames per second.
    pub fps: f64,
    pub start: Start<'a>,
    /// The adapters that act on this segment.
    pub adapters: &'a [Choice],
    /// The step to go on from, of an earlier attempt at the same request.
    pub resume: Option<Resume<'a>>,
}

/// The latents after a step that was made before. The steps behind it give the same segment as if all had been made at
/// once.
#[derive(Clone, Copy, Debug)]
pub struct Resume<'a> {
    pub stage: Stage,
    /// The number of the step, counted from 1.
    pub step: usize,
    /// The latents after the step, as [`Step::latents`] had them, on any device.
    pub latents: &'a Latents,
}

/// The start of a segment.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    Noise,
    /// The image that becomes the first frame: rgb8 `[1, H, W, 3]`, of any size.
    Image(&'a Tensor),
    Segment(&'a Continuation),
}

impl Start<'_> {
    /// Returns the frames, rgb8 `[n, H, W, 3]`.
    pub(super) fn frames(&self) -> Option<&Tensor> {
        match self {
            Self::Noise => None,
            Self::Image(image) => Some(image),
            Self::Segment(before) => before.frames.as_ref(),
        }
    }

    pub(super) fn audio_latents(&self) -> Option<&Tensor> {
        match self {
            Self::Segment(before) => before.audio_latents.as_ref(),
            Self::Noise | Self::Image(_) => None,
        }
    }
}

/// The continuation state that a segment leaves for the next one, on the CPU.
#[derive(Debug)]
pub struct Continuation {
    /// The frames that the next segment begins with, rgb8 `[n, H, W, 3]`; `None` if it takes over none.
    pub frames: Option<Tensor>,
    /// The segment's audio latents up to the cut, normalized, `[1, C, T, M]`, float32; the next segment begins with the last
    /// ones.
    pub audio_latents: Option<Tensor>,
    /// The length in frames of the sound that the next segment begins with.
    pub audio_num_frames: i64,
    /// The time in seconds by which the next segment's sound begins before its picture.
    pub video_position_offset_sec: f64,
    /// The generation of the model that made the audio latents, whose scale is its own; `None` if it is not known.
    pub generation: Option<Generation>,
}

/// The normalized latents of both streams as tokens, float32.
#[derive(Debug)]
pub struct Latents {
    /// The video tokens, `[1, N, C]`.
    pub video: Tensor,
    /// The audio tokens, `[1, L, D]`.
    pub audio: Tensor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The stage starts from pure noise.
    Denoise,
    /// The stage starts from the first stage's latents at twice their size.
    Refine,
}

/// A finished denoise step.
#[derive(Debug)]
pub struct Step<'a> {
    pub stage: Stage,
    /// The number of the step, counted from 1.
    pub step: usize,
    pub total_steps: usize,
    /// The latents after the step.
    pub latents: &'a Latents,
}

/// Pictures of a segment before its last stage.
#[derive(Debug)]
pub struct Previews<'a> {
    /// The pictures, `[n, H, W, 3]` in the size of the stage before, on the model's device.
    pub rgb8: &'a Tensor,
    /// The position of each among the frames that the segment will pass out.
    pub positions: &'a [i64],
    /// The number of those frames.
    pub num_frames: i64,
}

/// The receiver of a segment's sound and frames while it is generated.
pub trait Output {
    /// Returns whether the segment is cancelled. Once true, it stays true.
    fn cancelled(&self) -> bool;

    /// Reports that the first step of a stage begins. Before the first one the prompts are encoded.
    fn begin(&mut self, _stage: Stage) {}

    /// Reports that decoding begins.
    fn begin_decoding(&mut self) {}

    fn step(&mut self, step: &Step<'_>);

    /// Returns whether [`Self::previews`] does something.
    fn takes_previews(&self) -> bool {
        false
    }

    /// Takes previews, between the two stages of a segment, where the model has a preview decoder. The last frame is among
    /// them.
    fn previews(&mut self, _previews: &Previews<'_>) {}

    /// Takes all of the segment's sound, interleaved, −1 to 1. It is called once, before the first frame. The sound may
    /// end a few hundredths of a second before the frames do, because audio latents are longer than frames.
    ///
    /// # Errors
    /// Returns an error when the segment cannot be taken.
    fn sound(&mut self, samples: &[f32]) -> Result<(), OutputError>;

    /// Takes the next frames, rgb8 `[n, H, W, 3]`, on the model's device.
    ///
    /// # Errors
    /// Returns an error when the segment cannot be taken.
    fn frames(&mut self, rgb8: &Tensor) -> Result<(), OutputError>;
}

/// The reason why an output takes no more.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("cancelled")]
    Cancelled,
    #[error("{0}")]
    Failed(String),
}

/// The reason why no segment was generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("cancelled")]
    Cancelled,
    /// The model cannot serve the request.
    #[error("{field}: expected {expected}, given {given}")]
    Refused {
        field: &'static str,
        expected: String,
        given: String,
    },
    /// The model cannot continue from the state.
    #[error("state's {field}: expected {expected}, given {given}")]
    State {
        field: &'static str,
        expected: String,
        given: String,
    },
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Decode(#[from] TilingError),
    #[error("{0}")]
    Output(String),
}

impl From<OutputError> for GenerateError {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::Cancelled => Self::Cancelled,
            OutputError::Failed(reason) => Self::Output(reason),
        }
    }
}
