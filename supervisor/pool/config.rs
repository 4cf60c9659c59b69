//! What the pool is configured with.

use std::path::PathBuf;
use std::time::Duration;

use fastvideo_proto::ids::GpuId;
use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::{EncoderSpec, EngineSpec, WarmupSpec};

/// The workers to run and how to look after them.
#[derive(Clone, Debug)]
pub struct Config {
    /// The worker's executable.
    pub worker_bin: PathBuf,
    /// One worker is run for each.
    pub gpus: Vec<Gpu>,
    pub engine: EngineSpec,
    /// The format of every segment.
    pub format: VideoFormat,
    /// The frames that a segment adds to the one before: fewer than it has where it begins with some of those.
    pub new_frames: u32,
    pub encoder: EncoderSpec,
    /// The segments that a worker generates before it is ready; `None` for no warm-up.
    pub warmup: Option<WarmupSpec>,
    /// Warm-up generates segments like those of the default request, so its timing predicts the generation time.
    pub warmup_is_typical: bool,
    /// The number of sessions that may share one worker, at least 1.
    pub sessions_per_gpu: usize,
    /// Admission control: a worker takes another session only while it generates faster than all its sessions play.
    pub keep_up: bool,
    pub recycle: Recycle,
    /// The longest time from the start of a process to its readiness.
    pub boot_timeout: Duration,
    /// The interval at which a worker sends heartbeats.
    pub heartbeat_interval: Duration,
    /// A worker without a heartbeat for this long is stuck.
    pub heartbeat_timeout: Duration,
    /// The lower bound of the progress timeout. The timeout grows with the median step time and with what warm-up took.
    pub min_step_timeout: Duration,
    /// The first pause of the exponential backoff between an exit and the next start.
    pub min_backoff: Duration,
    /// The longest pause of the exponential backoff.
    pub max_backoff: Duration,
    /// The number of exits in a row, without a finished job between them, that quarantines a worker.
    pub quarantine_after: u32,
    /// All quarantines are lifted when no worker has served for this long.
    pub quarantine_lift: Duration,
    /// The threads that read the workers' events ask for real-time scheduling; see [`crate::thread_priority`].
    pub realtime: bool,
}

/// When a worker's process is replaced by a fresh one although it works. A process is replaced only between two jobs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recycle {
    /// The process has finished this many jobs, at least 1.
    pub after_segments: Option<u32>,
    /// The resident memory of the process exceeds this many bytes.
    pub above_bytes: Option<u64>,
    /// The next process boots as a standby while the old one still serves. The GPU holds both for a while.
    pub overlap: bool,
}

/// One GPU as the operator named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub id: GpuId,
    /// The worker's `CUDA_VISIBLE_DEVICES`: an ordinal, a UUID or a MIG id.
    pub visible_device: String,
}
