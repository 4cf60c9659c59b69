//! The events of workers, their jobs and the sessions' assignments.
//!
//! The code that makes a change emits its event, once; [`super::event_readers`] has its readers.
//! Steps, step snapshots and media of a job are not events: they only pass through.

use std::time::Duration;

use fastvideo_proto::adapter::HeldAdapter;
use fastvideo_proto::ids::{GpuId, JobId, SessionId, WorkerId};
use fastvideo_proto::job::{JobFailure, VideoFormat};
use fastvideo_proto::link::ReadyReport;
use fastvideo_proto::step_snapshot::StepPoint;

use super::exit::ExitReport;
use super::lifecycle::Transition;
use super::restart::RestartDecision;

/// Something that happened to the worker of one GPU, or to a job there.
#[derive(Debug)]
pub(super) enum WorkerEvent {
    /// The next process of the GPU is about to be started.
    Starting { worker: WorkerId },
    /// The process was spawned.
    Spawned { pid: u32 },
    /// The process has opened its link.
    Connected,
    /// The process has loaded another part of its model.
    LoadProgress { fraction: f32, what: String },
    /// The process has loaded its model and generates the warm-up segments.
    WarmingUp,
    /// The process is ready.
    Ready { report: ReadyReport },
    /// Warm-up has shown that segments of the configured size take longer to generate than they play.
    SlowerThanPlayback {
        generation: Duration,
        plays: Duration,
        format: VideoFormat,
    },
    /// The process is alive.
    Heartbeat {
        resident_bytes: u64,
        /// Memory that is in use on the GPU; `None` where there is none.
        gpu_bytes: Option<u64>,
    },
    /// A job was sent to the process.
    JobSent {
        job: JobId,
        session: SessionId,
        /// Whether the process holds the state that the job starts from, so that the state was not sent along.
        state_held: bool,
        /// Whether the job had been sent before, without the state or with a step snapshot.
        again: bool,
    },
    /// The process does not hold the state that a job starts from, although it should.
    StateNotHeld { job: JobId, session: SessionId },
    /// A job has made progress that went on from the step snapshot of an earlier attempt.
    JobWentOn { job: JobId, after: StepPoint },
    /// The process has refused the step snapshot that a job was to go on from. The job begins with the first step.
    SnapshotRefused {
        job: JobId,
        session: SessionId,
        reason: String,
    },
    /// The engine has finished a job. Media of the job may still wait in the process for flow credit.
    EngineFree,
    JobFinished {
        job: JobId,
        generation: Duration,
        frames: u32,
    },
    JobFailed {
        job: JobId,
        failure: JobFailure,
        message: String,
    },
    /// A job is taken back from a process that has to exit.
    JobTakenBack { job: JobId, session: SessionId },
    /// A segment of a video job was stopped for one that a viewer waits for.
    JobPreempted { job: JobId, session: SessionId },
    /// A job was lost with its process.
    JobLost { job: JobId, started: bool },
    /// The process reported the end of a job that it was not given.
    StrayJobEnd { job: JobId },
    /// The process was told to load an adapter that an operator has ordered.
    AdapterLoading { name: String, serial: u64 },
    AdapterLoaded {
        name: String,
        serial: u64,
        adapter: HeldAdapter,
    },
    AdapterFailed {
        name: String,
        serial: u64,
        message: String,
    },
    /// The process was told to drop an adapter.
    AdapterUnloaded { name: String },
    /// The process takes no more jobs, and is asked to exit when it runs none.
    Leaving { why: LeaveReason },
    /// The next process boots as a standby.
    RenewalStarted { next: WorkerId },
    /// The standby did not become ready. The serving process continues.
    RenewalFailed { reason: String, pause: Duration },
    /// The standby has taken over.
    Renewed {
        worker: WorkerId,
        pid: u32,
        report: ReadyReport,
    },
    /// A replaced process has exited.
    Retired { exit: ExitReport },
    /// The process has exited. `decision` is `None` for an exit that was requested.
    Exited {
        exit: ExitReport,
        decision: Option<RestartDecision>,
        /// Whether the pool stops, so that no process follows.
        for_good: bool,
    },
    /// No process is started until an operator wants one.
    Drained,
    /// The quarantine has ended by itself.
    QuarantineLifted { why: LiftReason },
    /// A process may be started again.
    Restarting,
    /// The supervisor itself stood still for so long, so that it did not hear the process.
    SupervisorAbsent { absence: Duration },
    /// The pool stops while the GPU has no process.
    Stopped,
    /// The task that manages the GPU has panicked.
    TaskPanicked,
}

/// The reason why a worker leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaveReason {
    /// An operator asked for it.
    Directive { drained: bool },
    /// The worker is renewed without a standby.
    Renewal,
    /// The pool stops.
    Stop,
}

/// The reason why a quarantine has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LiftReason {
    /// No worker of the pool had served for a while.
    NoWorkerLeft,
    /// It is time to try the worker with a job again.
    Trial,
    /// So many exits were the fault of jobs.
    JobsToBlame(u32),
}

/// Something that happened to the assignments of sessions to workers.
#[derive(Debug)]
pub(super) enum PoolEvent<'a> {
    /// A session was bound to a worker.
    SessionBound {
        session: &'a SessionId,
        gpu: GpuId,
        /// The GPU whose worker the session was bound to before.
        from: Option<GpuId>,
        /// Why the session goes on with another worker than before.
        handoff: Option<HandoffReason>,
    },
    /// A session that had a worker waits for one again.
    SessionRequeued {
        session: &'a SessionId,
        position: usize,
    },
}

/// Why a session goes on with another worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandoffReason {
    WorkerLost,
    /// The worker was asked to leave.
    Drain,
    /// The other worker has fewer sessions.
    Balance,
    /// An operator wanted it.
    Order,
    /// The other worker holds adapters that the session has chosen.
    Adapters,
}

impl HandoffReason {
    pub(super) const ALL: [Self; 5] = [
        Self::WorkerLost,
        Self::Drain,
        Self::Balance,
        Self::Order,
        Self::Adapters,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::WorkerLost => "worker_lost",
            Self::Drain => "drain",
            Self::Balance => "balance",
            Self::Order => "order",
            Self::Adapters => "adapters",
        }
    }
}

impl WorkerEvent {
    /// Returns the transition of the worker's state that the event causes.
    pub(super) fn transition(&self) -> Option<Transition> {
        Some(match self {
            Self::Spawned { .. } => Transition::Spawned,
            Self::Connected => Transition::Connected,
            Self::WarmingUp => Transition::Loaded,
            Self::Ready { .. } => Transition::WarmedUp,
            Self::JobSent { again: false, .. } => Transition::JobStarted,
            Self::EngineFree => Transition::JobEnded,
            Self::Leaving { .. } | Self::Drained => Transition::DrainAsked,
            Self::Exited {
                decision, for_good, ..
            } => match decision {
                None if *for_good => Transition::ExitedAsked,
                None => Transition::ExitedDrained,
                Some(decision) if decision.quarantines() => Transition::ExitedToQuarantine,
                Some(_) => Transition::ExitedToRestart,
            },
            Self::Restarting => Transition::Restarted,
            Self::Stopped => Transition::ExitedAsked,
            Self::Starting { .. }
            | Self::LoadProgress { .. }
            | Self::SlowerThanPlayback { .. }
            | Self::Heartbeat { .. }
            | Self::JobSent { again: true, .. }
            | Self::StateNotHeld { .. }
            | Self::JobWentOn { .. }
            | Self::SnapshotRefused { .. }
            | Self::JobFinished { .. }
            | Self::JobFailed { .. }
            | Self::JobTakenBack { .. }
            | Self::JobPreempted { .. }
            | Self::JobLost { .. }
            | Self::StrayJobEnd { .. }
            | Self::AdapterLoading { .. }
            | Self::AdapterLoaded { .. }
            | Self::AdapterFailed { .. }
            | Self::AdapterUnloaded { .. }
            | Self::RenewalStarted { .. }
            | Self::RenewalFailed { .. }
            | Self::Renewed { .. }
            | Self::Retired { .. }
            | Self::QuarantineLifted { .. }
            | Self::SupervisorAbsent { .. }
            | Self::TaskPanicked => return None,
        })
    }

    /// Returns whether the event occurs with every job.
    pub(super) fn is_routine(&self) -> bool {
        matches!(self, Self::JobSent { .. } | Self::EngineFree)
    }
}
