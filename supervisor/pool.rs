//! Worker processes.

use std::path::PathBuf;
use std::time::Duration;

use fastvideo_proto::ids::GpuId;
use fastvideo_proto::link::{EncoderSpec, EngineSpec, VideoFormat, WarmupSpec};

/// The workers to run and how to look after them.
#[derive(Clone, Debug)]
pub struct Config {
    pub worker_bin: PathBuf,
    pub gpus: Vec<Gpu>,
    pub engine: EngineSpec,
    pub format: VideoFormat,
    pub encoder: EncoderSpec,
    pub warmup: Option<WarmupSpec>,
    /// Sessions that may share one worker, at least 1.
    pub sessions_per_gpu: usize,
    /// From the start of a process to its readiness.
    pub boot_timeout: Duration,
    pub heartbeat_interval: Duration,
    /// A worker without a heartbeat for this long is stuck.
    pub heartbeat_timeout: Duration,
    /// The least time that a denoise step may take before its worker is stuck; ten times the median step when more.
    pub min_step_timeout: Duration,
    /// Pause before a worker is started again; doubles with each exit in a row, up to `max_backoff`.
    pub min_backoff: Duration,
    pub max_backoff: Duration,
    /// Exits in a row, without a finished job between, after which a worker is not started again by itself.
    pub quarantine_after: u32,
    /// After this long without any worker left, quarantines lift themselves.
    pub quarantine_lift: Duration,
}

/// One GPU as the operator named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub id: GpuId,
    /// The worker's `CUDA_VISIBLE_DEVICES`: an ordinal, a UUID or a MIG id.
    pub visible_device: String,
}
