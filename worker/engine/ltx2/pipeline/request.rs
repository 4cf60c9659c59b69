//! Requests, settings, and the results of a generation.

use tch::Tensor;

use super::{Parts, PipelineError};
use crate::sampling::noise::DrawOrder;
use crate::text::TextError;
use crate::transformer::Positions;
use crate::video_vae::{Tiling, TilingError};

/// How a model is run: the same for all requests.
#[derive(Clone, Debug)]
pub struct Settings {
    pub draw_order: DrawOrder,
    pub positions: Positions,
    /// How the picture is decoded.
    pub tiling: Tiling,
    pub stages: Stages,
    /// Steps of the second stage, 1 to 3.
    pub refine_steps: usize,
    pub conditioning: Conditioning,
    /// Whether the next segment continues from the sound as it was played, encoded again, instead of from the latents.
    pub audio_reencode: bool,
}

/// How many stages a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    /// Two where the checkpoint has an upsampler.
    Automatic,
    One,
    /// The first one at half the size.
    Two,
}

/// The conditioning that a segment takes over from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditioning {
    /// Frames: 0, or 1 more than a multiple of the frames that a latent holds.
    pub num_frames: i64,
    /// How many frames' worth of sound. Where a segment is shorter than that, as many as `num_frames`.
    pub audio_num_frames: i64,
    /// Frames at the segment's end, behind those that are taken over.
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
        }
    }
}

impl Settings {
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

/// Whether the VAE takes that many frames.
pub(super) fn is_clip(frames: i64, ratio: i64) -> bool {
    frames >= 1 && (frames - 1) % ratio == 0
}

/// One segment to make.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub prompt: &'a str,
    /// Base weights only; has no effect at scale 1.
    pub negative_prompt: Option<&'a str>,
    pub seed: u64,
    /// The number of denoise steps of the first stage.
    pub num_inference_steps: usize,
    /// 1 is none; distilled weights take no other.
    pub guidance_scale: f64,
    /// Height and width of the finished picture in pixels.
    pub height: i64,
    pub width: i64,
    /// The number of frames, including those that a continued segment begins with and does not hand out.
    pub num_frames: i64,
    /// Frames per second.
    pub fps: f64,
    pub start: Start<'a>,
}

/// The start of a segment.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    Noise,
    /// rgb8 `[1, H, W, 3]`, of any size: becomes the first frame.
    Image(&'a Tensor),
    Segment(&'a Continuation),
}

impl Start<'_> {
    /// rgb8 `[n, H, W, 3]`.
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
    /// The frames that the next segment begins with, rgb8 `[n, H, W, 3]`; none if it takes over none.
    pub frames: Option<Tensor>,
    /// All of the segment's audio latents, normalized, `[1, C, T, M]`, float32; the next segment begins with the last ones.
    pub audio_latents: Option<Tensor>,
    /// How many frames' worth of the sound the next segment begins with.
    pub audio_num_frames: i64,
    /// Seconds by which the next segment's sound begins before its picture.
    pub video_position_offset_sec: f64,
}

/// Normalized latents of both streams as tokens, float32.
#[derive(Debug)]
pub struct Latents {
    /// `[1, N, C]`.
    pub video: Tensor,
    /// `[1, L, D]`.
    pub audio: Tensor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The stage starts from pure noise.
    Denoise,
    /// The stage starts from the first stage's latents at twice their size.
    Refine,
}

/// A denoise step that is done.
#[derive(Debug)]
pub struct Step<'a> {
    pub stage: Stage,
    /// The number of the step, from 1.
    pub step: usize,
    pub total_steps: usize,
    /// The latents after the step.
    pub latents: &'a Latents,
}

/// The receiver of a segment's sound and frames while it is generated.
pub trait Output {
    /// True once nobody wants the segment any more.
    fn cancelled(&self) -> bool;

    fn step(&mut self, step: &Step<'_>);

    /// All of the segment's sound, interleaved, −1 to 1. Comes once, before the first frame. It may end a few hundredths of
    /// a second before the frames do, as audio latents are longer than frames.
    ///
    /// # Errors
    /// When the segment cannot be taken.
    fn sound(&mut self, samples: &[f32]) -> Result<(), OutputError>;

    /// The next frames, rgb8 `[n, H, W, 3]`, on the model's device.
    ///
    /// # Errors
    /// When the segment cannot be taken.
    fn frames(&mut self, rgb8: &Tensor) -> Result<(), OutputError>;
}

/// Why an output takes no more.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("cancelled")]
    Cancelled,
    #[error("{0}")]
    Failed(String),
}

/// Why there is no segment.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("cancelled")]
    Cancelled,
    /// The model cannot do that.
    #[error("{field}: expected {expected}, given {given}")]
    Refused {
        field: &'static str,
        expected: String,
        given: String,
    },
    /// The segment cannot be continued by this model.
    #[error("state's {field}: expected {expected}, given {given}")]
    State {
        field: &'static str,
        expected: String,
        given: String,
    },
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
