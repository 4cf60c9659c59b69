//! The status of the workers, for probes and operators.

use std::collections::BTreeMap;
use std::time::Duration;

use fastvideo_proto::ids::WorkerId;
use fastvideo_proto::link::ReadyReport;
use tokio::time::Instant;

use super::adapters::WorkerAdapter;
use super::assignments::Room;
use super::config::Gpu;
use super::exit::ExitReport;
use super::lifecycle::WorkerState;

/// The status of one worker.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    pub gpu: Gpu,
    pub state: WorkerState,
    /// The id of the latest process.
    pub worker_id: Option<WorkerId>,
    /// The process id while a process runs.
    pub pid: Option<u32>,
    /// The number of unrequested exits.
    pub restarts: u32,
    /// The exit of the latest process that has ended.
    pub last_exit: Option<ExitReport>,
    /// The progress of loading: the fraction that is loaded, 0 to 1, and what is being loaded. `None` unless a process
    /// loads.
    pub load_progress: Option<(f32, String)>,
    /// Whether any process of this GPU has become ready.
    pub warmed_up: bool,
    /// The report of the process when it became ready; `None` when no process serves.
    pub ready: Option<ReadyReport>,
    /// The adapters that the process holds or was told to load, by name.
    pub adapters: BTreeMap<String, WorkerAdapter>,
    /// The resident memory of the process, from its latest heartbeat.
    pub resident_bytes: Option<u64>,
    /// Memory that is in use on the GPU, from the latest heartbeat.
    pub gpu_bytes: Option<u64>,
    /// When the latest heartbeat of the process came.
    pub heartbeat: Option<Instant>,
    /// The number of jobs that this GPU's processes have finished.
    pub jobs_finished: u64,
    /// Since when the process has had a job.
    pub(super) busy_since: Option<Instant>,
    /// Time in which earlier jobs ran.
    busy: Duration,
}

impl WorkerStatus {
    pub(super) fn new(gpu: Gpu) -> Self {
        Self {
            gpu,
            state: WorkerState::Spawning,
            worker_id: None,
            pid: None,
            restarts: 0,
            last_exit: None,
            load_progress: None,
            warmed_up: false,
            ready: None,
            adapters: BTreeMap::new(),
            resident_bytes: None,
            gpu_bytes: None,
            heartbeat: None,
            jobs_finished: 0,
            busy_since: None,
            busy: Duration::ZERO,
        }
    }

    /// Returns the time in which the GPU's worker had a job.
    pub fn busy_time(&self, now: Instant) -> Duration {
        let running = self
            .busy_since
            .map(|since| now.saturating_duration_since(since));
        self.busy + running.unwrap_or_default()
    }

    pub(super) fn end_busy_time(&mut self, now: Instant) {
        self.busy = self.busy_time(now);
        self.busy_since = None;
    }

    /// Forgets what was known of a process that has ended.
    pub(super) fn forget_process(&mut self) {
        self.end_busy_time(Instant::now());
        self.resident_bytes = None;
        self.gpu_bytes = None;
        self.heartbeat = None;
        self.adapters.clear();
    }
}

/// The status of all workers, and of the queue of sessions that wait for one.
#[derive(Clone, Debug)]
pub struct PoolStatus {
    pub workers: Vec<SlotStatus>,
    /// The number of sessions that wait for a worker.
    pub queue_depth: usize,
    pub room: Room,
    pub warmup_enabled: bool,
}

/// One worker with its sessions.
#[derive(Clone, Debug)]
pub struct SlotStatus {
    pub status: WorkerStatus,
    /// The number of sessions that are bound to the worker.
    pub sessions: usize,
    /// Whether the worker serves and has room for another session.
    pub available: bool,
    /// How long the worker's segments take to generate, by how long they play; `None` when that is not known yet.
    pub real_time_factor: Option<f64>,
}
