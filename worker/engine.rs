//! The model that a worker runs, behind one trait.
//!
//! The job loop drives it; the sink takes what comes out. An engine knows nothing of links, media or clients.

use std::path::Path;
use std::sync::Arc;

use fastvideo_proto::job::Stage;
use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::DeviceReport;
use fastvideo_proto::state::StateHeader;

use crate::state::StateBuffer;

#[cfg(feature = "torch")]
pub(crate) mod ltx2;
#[cfg(feature = "torch")]
pub(crate) mod ltx2_options;
#[cfg(feature = "torch")]
mod ltx2_state;
mod picture;
pub(crate) mod synthetic;

/// A model that makes one segment at a time.
pub(crate) trait Engine {
    /// Reads the weights. Called once, before anything else; may take minutes.
    ///
    /// # Errors
    /// When this worker cannot serve the model; the message is for the operator. [`EngineError::Unusable`] where no other
    /// process could either.
    fn load(&mut self, progress: LoadProgress) -> Result<Loaded, EngineError>;

    /// How many frames a segment will have: fewer than the format says where it begins with some of the segment before.
    fn frames(&self, request: &GenerateRequest<'_>) -> u32 {
        request.format.num_frames
    }

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

/// Takes how far loading is, 0 to 1, and what is being loaded.
pub(crate) type LoadProgress = Box<dyn FnMut(f32, &str)>;

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
    /// Something broke that only another process can do without.
    #[cfg_attr(
        not(feature = "torch"),
        expect(dead_code, reason = "nothing else can break like that")
    )]
    #[error("{0}")]
    Broken(String),
    /// No process can serve this model on this machine, until an operator has mended what the text says.
    #[error("{0}")]
    Unusable(String),
}
