//! The answer of `GET /status`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::prompts::{PromptStatus, SafetyStatus};
use super::reload::LastReload;
use super::workers::AdapterOnWorker;
use crate::ids::{GpuId, WorkerId};

/// The state of all workers, and the latency that the supervisor adds to media.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    pub total_gpus: usize,
    /// Workers that could take another session.
    pub available_gpus: usize,
    /// Sessions that wait for a worker.
    pub queue_size: usize,
    pub warmup_enabled: bool,
    pub warmup_successful_gpus: usize,
    pub warmup_failed_gpus: usize,
    /// The state of each GPU's worker, by `gpu_id`.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<u32, GpuStatus>))]
    pub gpu_status: BTreeMap<GpuId, GpuStatus>,
    /// Open sessions, including those that wait for a worker.
    pub sessions: usize,
    /// The number of spectators of all sessions.
    #[serde(default)]
    pub spectators: usize,
    /// Whether the server is shutting down and takes no further session.
    pub draining: bool,
    /// The supervisor's version.
    pub version: String,
    /// How long media took from a worker's link to the client's socket in the last one to two minutes.
    pub relay_latency: LatencySummary,
    pub safety: SafetyStatus,
    /// The prompt enhancer; absent where nothing enhances prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptStatus>,
    pub store: StoreStatus,
    /// The video jobs; absent where none are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub videos: Option<VideosStatus>,
    /// The session log; null where none is kept.
    pub session_log: Option<SessionLogStatus>,
    /// How the last reload of the configuration went; absent before the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reload: Option<LastReload>,
}

/// The video jobs, as far as this server knows; several servers may share them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VideosStatus {
    /// Whether they outlive the server's process.
    pub durable: bool,
    /// Jobs that wait for their turn.
    pub queued: usize,
    pub running: usize,
    pub completed: usize,
    pub failed: usize,
    /// The size of all that is stored of them.
    pub stored_bytes: u64,
    /// How often this server has stopped a segment of a job for one that a viewer waited for.
    pub preemptions: u64,
}

/// The store of sessions and of their states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StoreStatus {
    /// `ok`, `failing`, or `full` when the store answers but has no room.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub state: StoreState,
    /// Since when the store has not worked, RFC 3339; null while it works.
    pub since: Option<String>,
    /// The last failure since the supervisor's start.
    pub last_failure: Option<StoreFailure>,
    /// How many segments lost their media for lack of room, although their clients may not have had them.
    #[serde(default)]
    pub lost_segments: u64,
}

/// A failure of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StoreFailure {
    pub reason: String,
    /// When it happened, RFC 3339.
    pub at: String,
}

/// Whether the store works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreState {
    Ok,
    Failing,
    Full,
}

/// The worker of one GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GpuStatus {
    /// Whether the worker serves.
    pub ready: bool,
    /// Whether the worker could take another session.
    pub available: bool,
    /// Sessions that are bound to the worker.
    pub client_count: usize,
    pub current_model_id: Option<String>,
    pub process_alive: bool,
    pub warmup_enabled: bool,
    /// Whether any process of this GPU has become ready.
    pub warmup_success: bool,
    /// The reason why the latest attempt to become ready failed; absent once a process has become ready.
    pub warmup_error: Option<String>,
    pub warmup_timings: WarmupTimings,
    /// The id of the latest process.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub worker_id: Option<WorkerId>,
    /// The process id of the running process.
    pub pid: Option<u32>,
    /// `spawning`, `connecting`, `loading`, `warming_up`, `ready`, `busy`, `draining`, `drained`, `exited`,
    /// `backing_off` or `quarantined`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub state: WorkerState,
    /// The number of unrequested exits.
    pub restarts: u32,
    pub last_exit: Option<LastExit>,
    /// How far loading is, while the worker loads.
    pub load_progress: Option<LoadProgress>,
    /// The worker's `CUDA_VISIBLE_DEVICES`.
    pub visible_device: String,
    pub device: Option<Device>,
    /// Resident memory of the worker's process.
    pub resident_bytes: Option<u64>,
    /// Segments finished since the supervisor's start.
    pub segments_finished: u64,
    /// How long segments take to generate, by how long they play: at most 1 in real time. The median of the latest ones, or
    /// what warm-up predicts; null while neither is known.
    #[serde(default)]
    pub real_time_factor: Option<f64>,
    /// The adapters that the worker holds or loads, by name.
    #[serde(default)]
    pub adapters: BTreeMap<String, AdapterOnWorker>,
}

/// How long the start of the running process took, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WarmupTimings {
    pub load_ms: Option<f64>,
    pub first_segment_ms: Option<f64>,
    pub second_segment_ms: Option<f64>,
}

/// The state of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// The process is being started.
    Spawning,
    /// The process runs and has not opened its link yet.
    Connecting,
    Loading,
    WarmingUp,
    /// The worker serves sessions; no job runs.
    Ready,
    /// The worker serves sessions; a job runs.
    Busy,
    /// The worker takes no further job and will be asked to exit.
    Draining,
    /// The worker has left because an operator wants it away.
    Drained,
    /// The process was asked to exit, and has.
    Exited,
    /// The process exited unasked; it is started again after a backoff.
    BackingOff,
    /// The process exited unasked too often, or cannot become ready; it is not started again by itself.
    Quarantined,
}

/// How a worker's last process ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastExit {
    /// The kind of the exit: `asked`, `crashed`, `stuck`, `boot`, `bad_link` or `shortage`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kind: ExitKind,
    pub reason: String,
    /// Whether the next process would fail in the same way, so that an operator has to fix what the reason says.
    pub permanent: bool,
    /// Seconds from the process's start to its end.
    pub uptime_seconds: f64,
    /// When the process ended, RFC 3339.
    pub ts: String,
}

/// The kind of a worker process's exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitKind {
    /// The process was asked to exit.
    Asked,
    /// The process exited by itself, or something other than the supervisor killed it.
    Crashed,
    /// The process made no progress and was killed.
    Stuck,
    /// The process reported that it cannot become ready, or it could not be started.
    Boot,
    /// The process violated the link's protocol and was killed.
    BadLink,
    /// The host had no descriptor, process, thread or memory left for the worker, which is not to blame.
    Shortage,
}

/// How far a worker has loaded its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LoadProgress {
    /// The fraction that is loaded, from 0 to 1.
    pub fraction: f32,
    /// What is being loaded.
    pub what: String,
}

/// The device that a worker runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Device {
    pub name: String,
    pub memory_bytes: Option<u64>,
}

/// Quantiles over the media of the last one to two minutes, each the upper bound of its histogram bucket.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LatencySummary {
    /// The number of binary messages within that time.
    pub count: u64,
    /// The median, in milliseconds; 0 without messages.
    pub p50_ms: f64,
    /// The 99th percentile, in milliseconds; 0 without messages.
    pub p99_ms: f64,
}

/// The session log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionLogStatus {
    /// The number of events that could not be written since the server started.
    pub events_lost: u64,
}
