//! What travels between the supervisor and one worker.
//!
//! Commands go down, events go up. Blobs of continuation states travel beside [`Command::Generate`] and
//! [`Event::Finished`] as one shared memory region each. The first message in each direction carries [`LINK_VERSION`].

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{GpuId, JobId, SessionId};
use crate::job::{JobFailure, JobTiming, MediaKind, MediaMode, Stage, VideoFormat};

/// Raised with every change to a type of this module or to [`crate::state`]. Supervisor and worker are built together;
/// a mismatch means that an old binary lies beside a new one.
pub const LINK_VERSION: u32 = 6;

/// The worker's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub pid: u32,
}

/// Supervisor to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// The first command: become ready to generate.
    Load(Box<LoadSpec>),
    /// Accepted only between [`Event::Ready`] and the next, or after [`Event::Generated`] of the one before.
    Generate(Box<JobSpec>),
    /// Stop the job at its next denoise step or frame. Unknown jobs are ignored: the job may just have ended.
    Cancel { job: JobId },
    /// The client has taken this much of the job's media; see [`media_cost`].
    Credit { job: JobId, cost: u64 },
    /// The session has left this worker: the state that the worker holds of it is not needed any more.
    Forget { session: SessionId },
    /// Finish nothing, exit with status 0.
    Shutdown,
}

/// What a worker needs to become ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadSpec {
    pub version: u32,
    pub gpu: GpuId,
    /// Which process of this GPU it is, counted from 1.
    pub incarnation: u32,
    pub engine: EngineSpec,
    /// The format of the operator's default request; warm-up uses it when no smaller one is asked for.
    pub format: VideoFormat,
    pub encoder: EncoderSpec,
    pub warmup: Option<WarmupSpec>,
    pub heartbeat_interval: Duration,
}

/// Two segments that are generated before a worker is ready, the second from the first one's state.
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
    /// The engine's options, an object in JSON.
    pub options: String,
}

/// How frames and sound become media; fixed for the life of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EncoderSpec {
    /// libavcodec's name of the video encoder, `libx264` or `h264_nvenc`.
    pub video_codec: String,
    /// Constant rate factor, 0 (lossless) to 51.
    pub crf: u32,
    pub fragment: Duration,
    pub audio_bit_rate: u32,
    /// Quality of `legacy_jpeg` frames, 1 to 100.
    pub jpeg_quality: u8,
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
    /// Counts from 1.
    pub attempt: u32,
    pub prompt: String,
    pub negative_prompt: Option<String>,
    pub seed: u64,
    pub num_inference_steps: u32,
    pub guidance_scale: f64,
    pub format: VideoFormat,
    pub media_mode: MediaMode,
    /// Where the segment starts on the session's time line, in frames.
    pub start_frame: u64,
    /// A private PNG file with the pixels of the session's initial image, for the first segment only.
    pub initial_image: Option<PathBuf>,
    /// The state that the segment continues from.
    pub state: Option<JobState>,
    /// Media that may be under way before the client has taken any; see [`media_cost`].
    pub window: u64,
}

/// Where a worker finds the state that a job continues from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// Its header, by [`crate::state::StateHeader::encode`]; its blob travels beside the command.
    Sent(Vec<u8>),
    /// The worker holds it: this job of the same session made it there.
    Held(JobId),
}

/// What a media message costs of a job's window: its size, but never less than 16 KiB, so that a window of 16 MiB is
/// also at most 1024 messages.
pub fn media_cost(bytes: usize) -> u64 {
    (bytes as u64).max(16 * 1024)
}

/// Worker to supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    LoadProgress {
        /// 0 to 1.
        fraction: f32,
        what: String,
    },
    /// Loading is over; the first of two warm-up segments begins.
    WarmingUp,
    Ready(Box<ReadyReport>),
    /// The worker cannot become ready and says why; it exits after this.
    BootFailed {
        message: String,
        /// Whether the next process will fail in the same way: nothing but an operator can mend it.
        permanent: bool,
    },
    Heartbeat {
        resident_bytes: u64,
    },
    /// A step of the job is done.
    Step {
        job: JobId,
        stage: Stage,
        /// 1..=`total_steps`.
        step: u32,
        total_steps: u32,
    },
    /// First the init segment (none for JPEG), then fragments or pictures.
    ///
    /// The bytes are in the event and not beside it: a reader that has to wait for a second message loses its core
    /// between the two when others want it.
    Media {
        job: JobId,
        kind: MediaKind,
        bytes: Bytes,
        /// CLOCK_MONOTONIC when the bytes were handed to the link, in microseconds.
        sent_at_us: u64,
    },
    /// The engine is done with the job and may take the next; media may still wait for credit.
    Generated {
        job: JobId,
    },
    /// The last event of a job that went well; all media were sent before it. The state's blob travels beside it.
    Finished(Box<JobReport>),
    /// The last event of a job that did not.
    Failed {
        job: JobId,
        failure: JobFailure,
        message: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadyReport {
    pub model_id: String,
    pub device: DeviceReport,
    /// Samples per second, when the engine makes sound.
    pub audio_sample_rate: Option<u32>,
    pub load: Duration,
    /// The two warm-up segments; empty without warm-up.
    pub warmup: Vec<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// `CPU` or the GPU's name.
    pub name: String,
    pub memory_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    pub job: JobId,
    /// Header of the new state, by [`crate::state::StateHeader::encode`].
    pub state: Vec<u8>,
    /// From the command to the last frame's encoding.
    pub generation: Duration,
    pub timing: JobTiming,
    /// Frames in the segment's media, and so its length on the time line.
    pub frames: u32,
}
