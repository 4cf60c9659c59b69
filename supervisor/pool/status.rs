//! The status of the workers, for probes and operators.

use std::collections::BTreeMap;
use std::time::Duration;

use fastvideo_proto::ids::WorkerId;
use fastvideo_proto::link::ReadyReport;
use tokio::time::Instant;

use super::adapters::{WorkerAdapter, WorkerAdapterState};
use super::config::Gpu;
use super::event::WorkerEvent;
use super::exit::{ExitKind, ExitReport};
use super::lifecycle::{InvalidTransition, WorkerState};

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
    busy_since: Option<Instant>,
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

    fn end_busy_time(&mut self, now: Instant) {
        self.busy = self.busy_time(now);
        self.busy_since = None;
    }

    /// Updates the status with an event.
    ///
    /// # Errors
    /// Returns an error when the event cannot occur in this state; the state is then unchanged.
    pub(super) fn record(
        &mut self,
        event: &WorkerEvent,
    ) -> Result<Option<StateChange>, InvalidTransition> {
        match event {
            WorkerEvent::Starting { worker } => self.worker_id = Some(worker.clone()),
            WorkerEvent::Spawned { pid } => self.pid = Some(*pid),
            WorkerEvent::LoadProgress { fraction, what } => {
                self.load_progress = Some((*fraction, what.clone()));
            }
            WorkerEvent::Ready { report } => {
                self.load_progress = None;
                self.warmed_up = true;
                self.became_ready(report);
            }
            WorkerEvent::Heartbeat {
                resident_bytes,
                gpu_bytes,
            } => {
                self.resident_bytes = Some(*resident_bytes);
                self.gpu_bytes = *gpu_bytes;
                self.heartbeat = Some(Instant::now());
            }
            WorkerEvent::JobSent { .. } => {
                self.busy_since.get_or_insert_with(Instant::now);
            }
            WorkerEvent::EngineFree | WorkerEvent::JobLost { started: true, .. } => {
                self.end_busy_time(Instant::now());
            }
            WorkerEvent::JobFinished { .. } => self.jobs_finished += 1,
            WorkerEvent::Renewed {
                worker,
                pid,
                report,
            } => {
                self.worker_id = Some(worker.clone());
                self.pid = Some(*pid);
                self.forget_process();
                self.became_ready(report);
            }
            WorkerEvent::AdapterLoading { name, serial } => {
                self.set_adapter(name, *serial, WorkerAdapterState::Loading);
            }
            WorkerEvent::AdapterLoaded {
                name,
                serial,
                adapter,
            } => self.set_adapter(name, *serial, WorkerAdapterState::Loaded(adapter.clone())),
            WorkerEvent::AdapterFailed {
                name,
                serial,
                message,
            } => self.set_adapter(name, *serial, WorkerAdapterState::Failed(message.clone())),
            WorkerEvent::AdapterUnloaded { name } => {
                self.adapters.remove(name);
            }
            WorkerEvent::Retired { exit } => self.last_exit = Some(exit.clone()),
            WorkerEvent::Exited { exit, .. } => {
                self.pid = None;
                self.ready = None;
                self.load_progress = None;
                self.forget_process();
                if !matches!(exit.kind, ExitKind::Asked | ExitKind::Shortage) {
                    self.restarts += 1;
                }
                self.last_exit = Some(exit.clone());
            }
            WorkerEvent::TaskPanicked => {
                self.state = WorkerState::Quarantined;
                self.pid = None;
                self.ready = None;
                self.adapters.clear();
            }
            WorkerEvent::Connected
            | WorkerEvent::SlowerThanPlayback { .. }
            | WorkerEvent::WarmingUp
            | WorkerEvent::StateNotHeld { .. }
            | WorkerEvent::JobWentOn { .. }
            | WorkerEvent::SnapshotRefused { .. }
            | WorkerEvent::JobFailed { .. }
            | WorkerEvent::JobTakenBack { .. }
            | WorkerEvent::JobPreempted { .. }
            | WorkerEvent::JobLost { started: false, .. }
            | WorkerEvent::StrayJobEnd { .. }
            | WorkerEvent::Leaving { .. }
            | WorkerEvent::RenewalStarted { .. }
            | WorkerEvent::RenewalFailed { .. }
            | WorkerEvent::Drained
            | WorkerEvent::QuarantineLifted { .. }
            | WorkerEvent::SupervisorAbsent { .. }
            | WorkerEvent::Restarting
            | WorkerEvent::Stopped => {}
        }
        let Some(transition) = event.transition() else {
            return Ok(None);
        };
        let to = self.state.transition(transition)?;
        let from = std::mem::replace(&mut self.state, to);
        Ok((from != to).then_some((from, to)))
    }

    fn became_ready(&mut self, report: &ReadyReport) {
        let held = report.adapters.iter().map(|adapter| {
            let configured = WorkerAdapter {
                serial: None,
                state: WorkerAdapterState::Loaded(adapter.clone()),
            };
            (adapter.name.clone(), configured)
        });
        self.adapters = held.collect();
        self.ready = Some(report.clone());
    }

    fn set_adapter(&mut self, name: &str, serial: u64, state: WorkerAdapterState) {
        let serial = Some(serial);
        let adapter = WorkerAdapter { serial, state };
        self.adapters.insert(name.to_owned(), adapter);
    }

    /// Forgets what was known of a process that has ended.
    fn forget_process(&mut self) {
        self.end_busy_time(Instant::now());
        self.resident_bytes = None;
        self.gpu_bytes = None;
        self.heartbeat = None;
        self.adapters.clear();
    }
}

/// A state before and after an event.
pub(super) type StateChange = (WorkerState, WorkerState);

/// The room of all workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Sessions that they can serve at once.
    pub places: usize,
    /// Sessions that they could take now.
    pub free: usize,
}

/// What somebody who wants a place is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seats {
    pub gpus: usize,
    /// Number of GPUs that serve and take another session.
    pub available: usize,
    /// Number of sessions that wait.
    pub queue_depth: usize,
}

/// The status of all workers, and of the queue of sessions that wait for one.
#[derive(Clone, Debug)]
pub struct PoolStatus {
    pub workers: Vec<SlotStatus>,
    /// The number of sessions that wait for a worker.
    pub queue_depth: usize,
    pub room: Room,
    /// The number of segments of video jobs that were stopped for one that a viewer waited for.
    pub preemptions: u64,
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
