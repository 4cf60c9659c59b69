//! The model that a worker runs, behind the trait [`Engine`].
//!
//! The job loop drives the engine, and a [`Sink`] takes its frames and sound. An engine does not know about links,
//! media or clients.
//!
//! - `synthetic`: needs no model and no GPU.
//! - `ltx2`, `ltx2_options`, `ltx2_loras`, `ltx2_snapshot`, `ltx2_state`: LTX-2.0 and LTX-2.3 on libtorch.
//! - `initial_image`: reads a session's initial image.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use fastvideo_link::MemoryBuffer;
use fastvideo_proto::adapter::{Adapter, HeldAdapter};
use fastvideo_proto::job::{Stage, VideoFormat};
use fastvideo_proto::link::DeviceReport;
use fastvideo_proto::state::{StateHeader, TensorLayout};
use fastvideo_proto::step_snapshot::StepPoint;

use crate::sound::AudioFormat;

mod initial_image;
#[cfg(feature = "torch")]
pub(crate) mod ltx2;
#[cfg(feature = "torch")]
mod ltx2_loras;
#[cfg(feature = "torch")]
pub(crate) mod ltx2_options;
#[cfg(feature = "torch")]
mod ltx2_snapshot;
#[cfg(feature = "torch")]
mod ltx2_state;
pub(crate) mod synthetic;

/// A model that generates one segment at a time.
pub(crate) trait Engine {
    /// Reads the weights. It is called once, before anything else, and may take minutes.
    ///
    /// # Errors
    /// Returns an error when this worker cannot serve the model; the message is for the operator. The error is
    /// [`EngineError::Unusable`] when no other process could serve it either.
    fn load(&mut self, progress: LoadProgress) -> Result<Loaded, EngineError>;

    /// Looks at the model without loading or downloading anything.
    ///
    /// # Errors
    /// Returns an error when [`Self::load`] would fail because of the model.
    fn check(&self) -> Result<ModelCheck, EngineError>;

    /// Returns the number of frames that the segment will have, those behind the cut included. It is smaller than the
    /// format's when the segment begins with frames of the one before.
    fn frames(&self, request: &GenerateRequest<'_>) -> u32 {
        request.format.num_frames
    }

    /// Returns how many bytes of the GPU's memory are in use, by whatever process; `None` where there is no GPU.
    fn gpu_bytes(&self) -> Option<u64> {
        None
    }

    /// Loads an adapter beside those of the configuration; `options` is the engine's JSON for one.
    ///
    /// # Errors
    /// Returns an error when the adapter cannot be read, does not fit the model or finds no memory. Everything is as before
    /// then, except for [`EngineError::Broken`].
    fn load_adapter(&mut self, _options: &str) -> Result<HeldAdapter, EngineError> {
        Err(EngineError::Refused(
            "this engine takes no adapters".to_owned(),
        ))
    }

    /// Drops an adapter that [`Self::load_adapter`] has loaded. Unknown names are ignored.
    fn unload_adapter(&mut self, _name: &str) {}

    /// Generates one segment: reports steps, passes out frames in order with their sound, and returns the state that
    /// the next segment continues from. The result depends on the request alone.
    ///
    /// The last [`GenerateRequest::cut_frames`] frames may be left out. The state ends at the cut in any case: it is the one of
    /// a segment that ended there.
    ///
    /// A request with a step snapshot gives the same frames, sound and state as one without; only the steps up to the
    /// snapshot's are left out.
    ///
    /// # Errors
    /// Returns [`EngineError::Cancelled`] as soon as the sink is cancelled, and [`EngineError::SnapshotRefused`] before
    /// the first step and the first frame. Any other error is a failure of this segment only, except for
    /// [`EngineError::Broken`].
    fn generate(
        &mut self,
        request: &GenerateRequest<'_>,
        sink: &mut dyn Sink,
    ) -> Result<NewState, EngineError>;
}

/// What a look at a model has found; each with a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelCheck {
    Usable(String),
    /// The model is not on this machine, and would be downloaded.
    #[cfg_attr(
        not(feature = "torch"),
        expect(dead_code, reason = "the synthetic engine has no model")
    )]
    NotHere(String),
}

/// Takes the progress of loading: a fraction from 0 to 1, and what is being loaded.
pub(crate) type LoadProgress = Box<dyn FnMut(f32, &str)>;

/// An engine's report once it is loaded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Loaded {
    pub(crate) model_id: String,
    pub(crate) device: DeviceReport,
    /// The format of the sound; `None` when the model generates none.
    pub(crate) audio: Option<AudioFormat>,
    /// The adapters of the configuration that can be chosen.
    pub(crate) adapters: Vec<HeldAdapter>,
}

/// The request for one segment.
#[derive(Clone, Debug)]
pub(crate) struct GenerateRequest<'a> {
    pub(crate) segment_idx: u32,
    pub(crate) prompt: &'a str,
    pub(crate) negative_prompt: Option<&'a str>,
    pub(crate) seed: u64,
    pub(crate) num_inference_steps: u32,
    pub(crate) guidance_scale: f64,
    /// The adapters that act on the segment.
    pub(crate) adapters: &'a [Adapter],
    pub(crate) format: VideoFormat,
    /// The number of frames behind the cut, at the segment's end, that nobody will see; at least one frame is before it.
    pub(crate) cut_frames: u32,
    /// The image that the first segment starts from: a PNG file that the supervisor wrote from decoded pixels.
    pub(crate) initial_image: Option<&'a Path>,
    /// The state to continue from; its blob has been checked against its header.
    pub(crate) state: Option<State<'a>>,
    /// The latents of an earlier attempt at the same request, to go on from.
    pub(crate) snapshot: Option<StepSnapshot<'a>>,
}

/// A continuation state as an engine reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State<'a> {
    pub(crate) header: &'a StateHeader,
    /// The bytes of the frames, RGB uint8 `[count, height, width, 3]`, followed by those of the audio latents, as the
    /// header describes.
    pub(crate) blob: &'a [u8],
}

/// A step snapshot as an engine reads it. It was left by this engine for the same request in a process of the same build,
/// and its latents have been checked against their hash and their layout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSnapshot<'a> {
    /// The step after which the latents were taken.
    pub(crate) at: StepPoint,
    /// The number of steps of that stage.
    pub(crate) total_steps: u32,
    /// The tensors, as [`StepLatents::layout`] told them.
    pub(crate) layout: &'a [TensorLayout],
    /// Their bytes, one tensor after the other.
    pub(crate) latents: &'a [u8],
}

/// The latents after a step, which a sink may copy.
pub(crate) trait StepLatents {
    /// Returns the type and the shape of each tensor.
    fn layout(&self) -> Vec<TensorLayout>;

    /// Copies the tensors' bytes to `to`, which has exactly their size, one tensor after the other.
    ///
    /// # Errors
    /// Returns an error when the latents cannot be read. The segment goes on without a snapshot of this step.
    fn write(&self, to: &mut [u8]) -> Result<(), EngineError>;
}

/// A continuation state that an engine has generated. The job loop fills in the blob's hash.
#[derive(Debug)]
pub(crate) struct NewState {
    pub(crate) header: StateHeader,
    /// The memory that the blob was written to; it is not shared yet.
    pub(crate) blob: MemoryBuffer,
}

/// Allocates zeroed memory for the blob of a new state.
///
/// # Errors
/// Returns [`EngineError::OutOfMemory`] when the host has no memory left, and [`EngineError::Failed`] when it has no
/// descriptor left.
fn state_memory(bytes: usize) -> Result<MemoryBuffer, EngineError> {
    MemoryBuffer::zeroed(bytes).map_err(|error| {
        let message = format!("no memory for a state of {bytes} bytes: {error}");
        match error.kind() {
            ErrorKind::OutOfMemory => EngineError::OutOfMemory(message),
            _ => EngineError::Failed(message),
        }
    })
}

/// A picture of a frame that is not ready.
#[derive(Debug)]
pub(crate) struct Preview {
    /// The frame's position among those that the segment will have.
    pub(crate) frame: u32,
    /// The number of those frames.
    pub(crate) num_frames: u32,
    /// The picture's size in pixels, which are even numbers.
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// RGB uint8 `[height, width, 3]`.
    pub(crate) rgb: Vec<u8>,
}

/// Receives a segment while it is generated.
pub(crate) trait Sink {
    /// Returns whether the segment is cancelled.
    fn cancelled(&self) -> bool;

    /// Reports that the first step of a stage begins. Before the first stage the prompt is encoded.
    fn begin(&mut self, _stage: Stage) {}

    /// Reports that a step is done; `step` counts from 1. The sink may copy the latents, if there are some, so that
    /// another attempt goes on from them; `None`: the engine leaves no step snapshots.
    fn step(
        &mut self,
        stage: Stage,
        step: u32,
        total_steps: u32,
        latents: Option<&dyn StepLatents>,
    );

    /// Returns whether [`Self::previews`] does something.
    fn takes_previews(&self) -> bool {
        false
    }

    /// Takes pictures of the segment before its first frame. The segment does not depend on them.
    fn previews(&mut self, _previews: Vec<Preview>) {}

    /// Returns a buffer to draw the next frame into: `height * width * 3` bytes of any content.
    fn blank_frame(&mut self) -> Vec<u8>;

    /// Takes the next frame, RGB uint8 `[height, width, 3]`, and the sound since the one before, interleaved, -1 to 1.
    ///
    /// Frames behind the request's cut, and sound behind it, are dropped.
    ///
    /// Frame `n` comes with the samples up to [`AudioFormat::sample_at`]`(n + 1)` at least, counted from the segment's
    /// start. Sound may run ahead, up to the segment's end, and should by a few thousand samples: the AAC encoder looks
    /// ahead, and players want the first fragment to have both tracks. The buffer of a frame is reused once its last
    /// reference is dropped.
    ///
    /// # Errors
    /// Returns [`EngineError::Cancelled`] when the segment is cancelled, and [`EngineError::Failed`] when the encoder's
    /// thread has ended.
    fn frame(&mut self, rgb: Arc<Vec<u8>>, sound: &[f32]) -> Result<(), EngineError>;
}

/// The reason why an engine did not load or did not generate a segment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("cancelled")]
    Cancelled,
    /// The model cannot serve the request.
    #[error("{0}")]
    Refused(String),
    /// The state does not fit the model or the request.
    #[error("{0}")]
    StateIncompatible(String),
    /// The engine cannot go on from the step snapshot; without it the request may succeed.
    #[error("{0}")]
    SnapshotRefused(String),
    /// The segment takes more memory than the device or the host has; the worker can continue.
    #[error("{0}")]
    OutOfMemory(String),
    /// The segment failed; the worker can continue.
    #[error("{0}")]
    Failed(String),
    /// The device failed in a way that only another process can recover from.
    #[cfg_attr(
        not(feature = "torch"),
        expect(dead_code, reason = "only a GPU can fail in this way")
    )]
    #[error("{0}")]
    Broken(String),
    /// No process can serve this model on this machine until an operator has fixed the cause that the text describes.
    #[error("{0}")]
    Unusable(String),
}
