//! The protocol between the supervisor and one worker: its messages and their version.
//!
//! Commands travel from the supervisor to the worker, events the other way. Blobs of continuation states and of step
//! snapshots travel beside [`Command::Generate`], [`Event::StepSnapshot`] and [`Event::Finished`] as one piece of sealed
//! shared memory each. The first message in each direction carries [`LINK_VERSION`].

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::adapter::{Adapter, AdapterSpec, HeldAdapter};
use crate::ids::{GpuId, JobId, SessionId};
use crate::job::{JobFailure, JobTiming, MediaKind, MediaMode, PhaseSpan, Stage, VideoFormat};
use crate::step_snapshot::SnapshotHeader;
use crate::trace::TraceContext;

/// The protocol version. It is raised with every change to a type of this module, of [`crate::state`] or of
/// [`crate::step_snapshot`]. Supervisor and worker are built together, so a mismatch means that one of the binaries is
/// from an older build.
pub const LINK_VERSION: u32 = 14;

/// The size limit of a thumbnail in bytes: 64 KiB. At 320 x 320 pixels only noise takes more.
pub const MAX_THUMBNAIL_BYTES: usize = 64 * 1024;

/// The size limit of a preview in bytes: 256 KiB. At 640 x 640 pixels only noise takes more.
pub const MAX_PREVIEW_BYTES: usize = 256 * 1024;

/// The most previews of a job.
pub const MAX_PREVIEWS: u32 = 32;

/// The worker's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub pid: u32,
}

/// A message from the supervisor to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// The first command: load the model and become ready to generate.
    Load(Box<LoadSpec>),
    /// Generate a segment. The worker accepts this only after [`Event::Ready`], and then only once [`Event::Generated`]
    /// was sent for the job before. Beside it travel the blob of the state, if that is sent, and then the blob of the step
    /// snapshot, if there is one.
    Generate(Box<JobSpec>),
    /// Stop the job at its next denoise step or frame. Unknown jobs are ignored: the job may just have ended.
    Cancel { job: JobId },
    /// Flow control: the client has taken media of the job with this cost; see [`media_cost`].
    Credit { job: JobId, cost: u64 },
    /// The session has left this worker, so the state that the worker holds for it is no longer needed.
    Forget { session: SessionId },
    /// Load an adapter, after the jobs that were sent before. [`Event::AdapterLoaded`] or [`Event::AdapterFailed`] answers.
    LoadAdapter(Box<AdapterSpec>),
    /// Drop an adapter that was loaded by order. Unknown ones are ignored.
    UnloadAdapter { name: String },
    /// Exit with status 0, without finishing the running job.
    Shutdown,
}

/// The parameters with which a worker becomes ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadSpec {
    pub version: u32,
    pub gpu: GpuId,
    /// The number of this process among the processes of the GPU, counted from 1.
    pub incarnation: u32,
    pub engine: EngineSpec,
    /// The format of the operator's default request; warm-up uses it when no smaller one is asked for.
    pub format: VideoFormat,
    pub encoder: EncoderSpec,
    pub warmup: Option<WarmupSpec>,
    pub heartbeat_interval: Duration,
}

/// Two segments that a worker generates before it is ready, the second one from the state of the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WarmupSpec {
    pub prompt: String,
    pub format: VideoFormat,
    pub num_inference_steps: u32,
}

/// The engine that a worker runs.
///
/// Only the engine's configuration in the supervisor and the engine itself know its options; see the supervisor's `engines`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSpec {
    /// The engine's name, `synthetic` or `ltx2`.
    pub name: String,
    /// The engine's options as a JSON object.
    pub options: String,
}

/// How frames and sound are encoded; fixed for the lifetime of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EncoderSpec {
    /// The name of the video encoder in libavcodec, `libx264` or `h264_nvenc`.
    pub video_codec: String,
    /// Constant rate factor, 0 (lossless) to 51.
    pub crf: u32,
    /// The length of a fragment, which is a whole number of frames: see [`Self::frames_per_fragment`].
    pub fragment: Duration,
    pub audio_bit_rate: u32,
    /// The quality of `legacy_jpeg` frames, 1 to 100.
    pub jpeg_quality: u8,
}

impl EncoderSpec {
    /// Returns the number of frames of a fragment, which is at least 1. The first fragment of a segment has one frame, and
    /// the last one may have fewer than the others.
    pub fn frames_per_fragment(&self, fps: u32) -> u32 {
        let frames = self.fragment.as_secs_f64() * f64::from(fps);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float that does not fit becomes the nearest number that does"
        )]
        let frames = frames.round() as u32;
        frames.max(1)
    }
}

impl Default for EncoderSpec {
    fn default() -> Self {
        Self {
            video_codec: "libx264".to_owned(),
            crf: 23,
            fragment: Duration::from_millis(250),
            audio_bit_rate: 128_000,
            jpeg_quality: 85,
        }
    }
}

/// One attempt at one segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    pub job: JobId,
    pub session: SessionId,
    pub segment_idx: u32,
    /// The number of the attempt, counted from 1.
    pub attempt: u32,
    pub prompt: String,
    pub negative_prompt: Option<String>,
    pub seed: u64,
    pub num_inference_steps: u32,
    pub guidance_scale: f64,
    /// The adapters that act on the segment.
    pub adapters: Vec<Adapter>,
    pub format: VideoFormat,
    pub media_mode: MediaMode,
    /// Where the segment starts on the session's time line, in frames.
    pub start_frame: u64,
    /// A private PNG file with the pixels of the session's initial image, for the first segment only.
    pub initial_image: Option<PathBuf>,
    /// The state that the segment continues from.
    pub state: Option<JobState>,
    /// The step snapshot of an earlier attempt, which this one goes on from.
    pub snapshot: Option<Box<SnapshotHeader>>,
    /// A denoise step that took at least this long leaves a step snapshot; `None`: no step does.
    pub snapshot_min_step: Option<Duration>,
    /// Whether the worker sends previews, where its engine makes some.
    pub previews: bool,
    /// What of the segment is kept, and the pictures that are made of it, where it is a part of a video job.
    pub video: Option<Box<VideoPart>>,
    /// The send window: the cost of media that may be in flight before the client has taken any; see [`media_cost`].
    pub window: u64,
    /// The span of the session, where it is traced.
    pub trace: Option<TraceContext>,
}

/// A segment of a video job. The worker refuses the job ([`JobFailure::Refused`]) where this does not fit the format or what
/// the engine gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VideoPart {
    /// The size of the pictures that are encoded, in pixels: even numbers from 64 to those of the format. The pictures are the
    /// middle of the format's, from the column `(format.width - width) / 2` and the row `(format.height - height) / 2` on, both
    /// rounded down to even numbers. The state has the whole ones.
    pub width: u32,
    pub height: u32,
    /// The number of frames that are encoded, from the first one on: from 1 to what the engine gives. The state is taken so
    /// that it ends with the last of them, sound included.
    pub frames: u32,
    /// The frames of which there is a tile in the video's sheet, as positions among those that are encoded, each larger than
    /// the one before. With those of [`Self::sheet_after`] there are at most [`MAX_TILES`].
    pub tiles: Vec<u32>,
    /// The frame that the video's thumbnail shows, as a position among those that are encoded, if it is one of this
    /// segment's.
    pub thumbnail: Option<u32>,
    /// The tiles of the segments before, RGB uint8 `[count, height, width, 3]` of the size that [`tile_size`] gives for
    /// the pictures that are encoded, where the worker is to make the sheet: of these and then of its own. Those of a video of
    /// one segment are empty.
    pub sheet_after: Option<Bytes>,
}

/// The columns of a video's sheet.
pub const SHEET_COLUMNS: u32 = 5;
/// The most tiles of a video's sheet.
pub const MAX_TILES: u32 = 25;
/// The width of a tile in pixels.
pub const TILE_WIDTH: u32 = 160;

/// Returns the width and the height of a tile of pictures of that size: 160 pixels wide, and of the same proportions in even
/// numbers, at least 2 and at most 640 pixels high.
pub fn tile_size(width: u32, height: u32) -> (u32, u32) {
    let height = (u64::from(height) * u64::from(TILE_WIDTH) + u64::from(width))
        / (2 * u64::from(width).max(1));
    let height = u32::try_from(2 * height).unwrap_or(u32::MAX);
    (TILE_WIDTH, height.clamp(2, 640))
}

/// The pictures of a segment of a video job. Those that were not asked for or could not be made are missing, which costs the
/// segment nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VideoPictures {
    /// The segment's own tiles, as in [`VideoPart::sheet_after`]: all that were asked for, or none.
    pub tiles: Bytes,
    /// A JPEG picture, at most 640 pixels on its longer side and not larger than the frame.
    pub thumbnail: Option<Bytes>,
    /// The sheet, a JPEG picture of [`SHEET_COLUMNS`] columns of tiles and as many rows as they need. The rest of the last row
    /// is black.
    pub sheet: Option<Bytes>,
}

/// The size limit of a video's thumbnail and of its sheet in bytes: 2 MiB each.
pub const MAX_PICTURE_BYTES: usize = 2 << 20;

/// Where a worker finds the state that a job continues from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// The state is sent: its header, encoded by [`crate::state::StateHeader::encode`], is here, and its blob travels
    /// beside the command.
    Sent(Vec<u8>),
    /// The worker holds the state: it comes from this job of the same session.
    Held(JobId),
}

/// Returns how much of a job's window a media message uses: its size, but at least 16 KiB, so that a window of 16 MiB
/// is also at most 1024 messages.
pub fn media_cost(bytes: usize) -> u64 {
    (bytes as u64).max(16 * 1024)
}

/// A message from a worker to the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    LoadProgress {
        /// The fraction that is loaded, from 0 to 1.
        fraction: f32,
        what: String,
    },
    /// Loading has finished; the first of two warm-up segments begins.
    WarmingUp,
    Ready(Box<ReadyReport>),
    /// The worker cannot become ready, for the reason given; it exits after this event.
    BootFailed {
        message: String,
        /// Whether the next process will fail in the same way until an operator fixes the cause.
        permanent: bool,
    },
    Heartbeat {
        resident_bytes: u64,
        /// Memory that is in use on the GPU, by whatever process; `None` where there is no GPU.
        gpu_bytes: Option<u64>,
    },
    /// A step of the job is complete.
    Step {
        job: JobId,
        stage: Stage,
        /// The number of the step, 1..=`total_steps`.
        step: u32,
        total_steps: u32,
    },
    /// The latents after the step of the job that was reported last, which travel beside this. They take the place of
    /// those of earlier steps.
    StepSnapshot {
        job: JobId,
        header: Box<SnapshotHeader>,
    },
    /// A picture of the running job's segment, before its first media. The supervisor kills a worker that sends one that was
    /// not asked for, one of more than [`MAX_PREVIEW_BYTES`], or more than [`MAX_PREVIEWS`] of them.
    Preview {
        job: JobId,
        preview: Preview,
    },
    /// One binary message for the client: first the init segment (none for JPEG), then fragments or pictures.
    ///
    /// The bytes are part of the event rather than a second message, because a reader that waits for a second message
    /// may lose its CPU core in between on a busy machine.
    Media {
        job: JobId,
        kind: MediaKind,
        bytes: Bytes,
        /// The CLOCK_MONOTONIC time in microseconds at which the bytes were handed to the link.
        sent_at_us: u64,
    },
    /// The engine has finished the job and may take the next one; media may still wait for flow credit.
    Generated {
        job: JobId,
    },
    /// The adapter of [`Command::LoadAdapter`] with this serial number can be chosen from now on.
    AdapterLoaded {
        serial: u64,
        adapter: Box<HeldAdapter>,
    },
    /// The adapter of [`Command::LoadAdapter`] with this serial number does not fit the model, or cannot be read. The
    /// worker is as it was before.
    AdapterFailed {
        serial: u64,
        message: String,
    },
    /// The last event of a successful job, after all of its media. The state's blob travels beside it.
    Finished(Box<JobReport>),
    /// The last event of a failed job.
    Failed {
        job: JobId,
        failure: JobFailure,
        message: String,
        /// The phases, the one included in which it ended.
        phases: Vec<PhaseSpan>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadyReport {
    pub model_id: String,
    pub device: DeviceReport,
    /// The sample rate in Hz; `None` when the engine makes no sound.
    pub audio_sample_rate: Option<u32>,
    pub load: Duration,
    /// The generation times of the two warm-up segments; empty without warm-up.
    pub warmup: Vec<Duration>,
    /// The adapters of the configuration that can be chosen.
    pub adapters: Vec<HeldAdapter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// The name of the GPU, or `CPU`.
    pub name: String,
    pub memory_bytes: Option<u64>,
    /// The GPU's name for monitoring, as `nvidia-smi -L` prints it: `GPU-` and a UUID.
    pub uuid: Option<String>,
}

/// A small picture of a frame that is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// The frame's position among the frames of the segment's media.
    pub frame: u32,
    /// The number of those frames.
    pub num_frames: u32,
    /// The picture's size in pixels, at most 640 on the longer side.
    pub width: u32,
    pub height: u32,
    pub jpeg: Bytes,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    pub job: JobId,
    /// The header of the new state, encoded by [`crate::state::StateHeader::encode`].
    pub state: Vec<u8>,
    /// The time from the command until the last frame was encoded.
    pub generation: Duration,
    pub timing: JobTiming,
    /// The number of frames in the segment's media, which is its length on the time line.
    pub frames: u32,
    /// The middle frame of the segment as a JPEG picture, at most 320 pixels on its longer side. The supervisor drops one
    /// of more than [`MAX_THUMBNAIL_BYTES`].
    pub thumbnail: Option<Bytes>,
    /// The pictures of a segment of a video job, and of no other segment.
    pub video: Option<Box<VideoPictures>>,
}
