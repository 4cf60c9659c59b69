//! The engines that workers run, as far as the supervisor has to know them: their configuration keys and what follows
//! from these.
//!
//! An engine's options travel to its workers as one JSON value, which nothing in between reads. So an option of an
//! engine is a key in that engine's file here and a field of the options that its engine in the worker reads.
//!
//! - `config`: the choice of an engine;
//! - `ltx2`, `synthetic`: one engine each, its keys and its rules;
//! - `conditioning`, `default_request`, `warmup`: keys that several engines have in common.

use std::path::PathBuf;

use fastvideo_proto::adapter::Adapter;
use fastvideo_proto::link::EngineSpec;

pub mod conditioning;
pub mod config;
pub mod default_request;
pub mod ltx2;
pub mod synthetic;
pub mod warmup;

/// The engine that the operator has chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// The specification that is sent to each worker.
    pub spec: EngineSpec,
    /// Whether each worker must have a GPU. Otherwise GPUs only number the workers.
    pub needs_gpu: bool,
    /// Frames at the start of a segment that repeat the end of the segment before. They are not encoded again.
    pub repeated_frames: u32,
    /// Whether warm-up generates segments of the default request's size unless the operator says otherwise. A model
    /// needs that: small segments would leave its kernels untried.
    pub warms_up_at_full_size: bool,
    /// The adapters that clients can choose from, each with the strength that it has by default.
    pub adapters: Vec<Adapter>,
    /// The folder of the adapters that an operator may load while workers serve; `None` where none may be.
    pub adapters_folder: Option<PathBuf>,
    /// Whether workers make previews for sessions that ask.
    pub previews: bool,
    /// What pictures and segments the model makes.
    pub shapes: Shapes,
    /// The number of steps that follow the denoise steps of a request, as far as it is known before a model is loaded.
    pub refine_steps: u32,
    /// What clients of video jobs call the model where the operator gives it no name; never a path of this machine.
    pub model_name: String,
}

/// The pictures and segments that a model makes. Those of other sizes are cut out of larger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// The number of pixels that widths and heights are multiples of, an even number.
    pub cell: u32,
    /// A segment has one frame more than a multiple of this.
    pub frame_step: u32,
    /// The least frames of a segment.
    pub min_frames: u32,
}

impl Shapes {
    /// Those of a model that makes pictures of any even size, and segments of any length.
    pub const ANY: Self = Self {
        cell: 2,
        frame_step: 1,
        min_frames: 1,
    };

    /// Returns the smallest size that the model makes and that this one fits into.
    pub fn made_size(&self, (width, height): (u32, u32)) -> (u32, u32) {
        let cell = self.cell.max(1);
        (width.next_multiple_of(cell), height.next_multiple_of(cell))
    }

    /// Returns the smallest number of frames, at least `frames`, that a segment may have.
    pub fn made_frames(&self, frames: u32) -> u32 {
        let frames = frames.max(self.min_frames).max(1);
        1 + (frames - 1).next_multiple_of(self.frame_step.max(1))
    }
}

impl Engine {
    /// Returns the number of frames that a segment of `num_frames` frames adds to the one before, at least 1.
    pub fn new_frames(&self, num_frames: u32) -> u32 {
        num_frames.saturating_sub(self.repeated_frames).max(1)
    }
}
