//! The model that a worker runs, behind one trait.
//!
//! The job loop drives it; the sink takes what comes out. An engine knows nothing of links, media or clients.

use std::path::Path;
use std::sync::Arc;

use fastvideo_proto::client::Stage;
use fastvideo_proto::link::{DeviceReport, VideoFormat};
use fastvideo_proto::state::StateHeader;

use crate::state::StateBuffer;

pub(crate) mod synthetic;

/// A model that makes one segment at a time.
pub(crate) trait Engine: Send {
    /// Reads the weights. Called once, before anything else; may take minutes.
    ///
    /// # Errors
    /// When this worker can never serve the model; the message is for the operator.
    fn load(&mut self, progress: &mut dyn FnMut(f32, &str)) -> Result<Loaded, EngineError>;

    /// Makes one segment: reports steps, hands out frames in order and the sound that goes with them, and returns the
    /// state that the next segment continues from. The result depends on the request alone.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] as soon as the sink says so; everything else is a failure of this segment only.
    fn generate(
        &mut self,
        request: &GenerateRequest<'_>,
        sink: &mut dyn Sink,
    ) -> Result<NewState, EngineError>;
}

/// What an engine says of itself once it is loaded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Loaded {
    pub(crate) model_id: String,
    pub(crate) device: DeviceReport,
    /// The sound that goes with the frames; none when the model makes none.
    pub(crate) audio: Option<AudioFormat>,
}

/// PCM as an engine makes it.
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

/// One segment to make.
#[derive(Clone, Debug)]
pub(crate) struct GenerateRequest<'a> {
    pub(crate) segment_idx: u32,
    pub(crate) prompt: &'a str,
    pub(crate) negative_prompt: Option<&'a str>,
    pub(crate) seed: u64,
    pub(crate) num_inference_steps: u32,
    pub(crate) guidance_scale: f64,
    pub(crate) format: VideoFormat,
    /// PNG, JPEG or WebP, checked by the supervisor.
    pub(crate) initial_image: Option<&'a Path>,
    /// The state to continue from; its blob has been checked against its header.
    pub(crate) state: Option<State<'a>>,
}

/// A continuation state to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State<'a> {
    pub(crate) header: &'a StateHeader,
    /// Frames `[count, height, width, 3]` RGB uint8, then the audio latents, as the header lays them out.
    pub(crate) blob: &'a [u8],
}

/// A continuation state as an engine hands it on. The job loop fills in the blob's hash.
#[derive(Debug)]
pub(crate) struct NewState {
    pub(crate) header: StateHeader,
    pub(crate) blob: StateBuffer,
}

/// Where a segment goes while it is made.
pub(crate) trait Sink {
    /// True once nobody wants the segment any more.
    fn cancelled(&self) -> bool;

    /// A step is done; `step` counts from 1.
    fn step(&mut self, stage: Stage, step: u32, total_steps: u32);

    /// An empty frame to draw into, `height * width * 3` bytes of an earlier frame.
    fn blank_frame(&mut self) -> Vec<u8>;

    /// The next frame, RGB uint8 `[height, width, 3]`, and the sound since the one before, interleaved, -1 to 1.
    /// Frame `n` comes with the samples up to [`AudioFormat::sample_at`]`(n + 1)` at least, counted from the segment's
    /// start. Sound may run ahead, up to the segment's end, and should by a few thousand samples: the sound's encoder
    /// looks ahead, and players want the first fragment to have both. A frame that nobody else holds is drawn into again.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] when the segment is not wanted any more, [`EngineError::Failed`] when the encoder
    /// failed.
    fn frame(&mut self, rgb: Arc<Vec<u8>>, sound: &[f32]) -> Result<(), EngineError>;
}

/// Why an engine did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("cancelled")]
    Cancelled,
    /// The request cannot be served by this model.
    #[error("{0}")]
    Refused(String),
    /// The state does not fit this model or this request.
    #[error("{0}")]
    StateIncompatible(String),
    /// Something broke; the worker can go on.
    #[error("{0}")]
    Failed(String),
}
