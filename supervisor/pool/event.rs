//! The events of workers, their jobs and the sessions' assignments.
//!
//! The code that makes a change emits its event, once. The status, the metrics and the log are readers of these
//! events. A further reader belongs beside them in [`WorkerEvents::emit`] and [`PoolEvent::emit`].
//! Steps, step snapshots and media of a job are not events: they only pass through.

use std::collections::BTreeSet;
use std::time::Duration;

use fastvideo_link::SharedMemory;
use fastvideo_proto::adapter::HeldAdapter;
use fastvideo_proto::ids::{GpuId, JobId, SessionId, WorkerId};
use fastvideo_proto::job::{JobFailure, VideoFormat};
use fastvideo_proto::link::ReadyReport;
use fastvideo_proto::step_snapshot::{SnapshotHeader, StepPoint};
use tokio::sync::watch;
use tokio::time::Instant;

use super::adapters::{self, WorkerAdapter, WorkerAdapterState};
use super::exit::{ExitKind, ExitReport};
use super::lifecycle::{InvalidTransition, Transition, WorkerState};
use super::metrics::{HandoffReason, PoolMetrics, WorkerMeter};
use super::restart::RestartDecision;
use super::status::WorkerStatus;
use super::step_snapshot::StepSnapshot;

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

/// A state before and after an event.
type StateChange = (WorkerState, WorkerState);

/// The readers of one GPU's worker events.
#[derive(Clone, Debug)]
pub(super) struct WorkerEvents {
    status: watch::Sender<WorkerStatus>,
    meter: WorkerMeter,
}

impl WorkerEvents {
    pub(super) fn new(status: watch::Sender<WorkerStatus>, meter: WorkerMeter) -> Self {
        Self { status, meter }
    }

    /// Updates the worker's status, counts the event and writes the log.
    pub(super) fn emit(&self, event: WorkerEvent) {
        self.meter.read(&event);
        let mut change = Ok(None);
        self.status
            .send_modify(|status| change = status.record(&event));
        let status = self.status.borrow();
        event.log(&status);
        log_change(&status, change, event.is_routine());
    }

    /// Returns the resident memory of the process, from its latest heartbeat.
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        self.status.borrow().resident_bytes
    }

    /// Returns the size of all step snapshots that are held.
    #[cfg(test)]
    pub(super) fn held_snapshot_bytes(&self) -> u64 {
        self.meter.held_snapshot_bytes()
    }

    /// Takes a step snapshot that the process has left, and counts it.
    pub(super) fn take_snapshot(
        &self,
        header: SnapshotHeader,
        latents: SharedMemory,
    ) -> StepSnapshot {
        self.meter.take_snapshot(header, latents)
    }

    pub(super) fn state(&self) -> WorkerState {
        self.status.borrow().state
    }

    /// Returns the names of the adapters that the process has loaded.
    pub(super) fn loaded_adapters(&self) -> BTreeSet<String> {
        adapters::loaded(&self.status.borrow().adapters)
    }
}

impl WorkerEvent {
    /// Returns the transition of the worker's state that the event causes.
    fn transition(&self) -> Option<Transition> {
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
    fn is_routine(&self) -> bool {
        matches!(self, Self::JobSent { .. } | Self::EngineFree)
    }

    fn log(&self, status: &WorkerStatus) {
        let gpu = status.gpu.id;
        let worker_id = status.worker_id.as_ref().map(tracing::field::display);
        match self {
            Self::SlowerThanPlayback {
                generation,
                plays,
                format,
            } => {
                let VideoFormat { width, height, .. } = format;
                tracing::warn!(
                    worker_id,
                    generation_ms = generation.as_millis(),
                    plays_ms = plays.as_millis(),
                    "segments of {width}x{height} take longer to generate than they play: viewers will wait; a smaller picture or fewer steps may help"
                );
            }
            Self::JobSent {
                job,
                session,
                state_held,
                ..
            } => {
                tracing::debug!(worker_id, job_id = %job, session_id = %session, state_held, "job sent");
            }
            Self::StateNotHeld { job, session } => {
                tracing::warn!(worker_id, job_id = %job, session_id = %session, "worker does not hold the session's state: it is sent along");
            }
            Self::JobWentOn { job, after } => {
                let StepPoint {
                    stage,
                    step,
                    steps_done,
                } = after;
                tracing::info!(worker_id, job_id = %job, ?stage, step, steps_done, "job goes on from a step snapshot");
            }
            Self::SnapshotRefused {
                job,
                session,
                reason,
            } => {
                tracing::warn!(worker_id, job_id = %job, session_id = %session, reason, "worker refuses the step snapshot: the job begins with the first step");
            }
            Self::JobFinished {
                job, generation, ..
            } => {
                tracing::debug!(worker_id, job_id = %job, generation_ms = generation.as_millis(), "job finished");
            }
            Self::JobFailed {
                job,
                failure: JobFailure::Failed,
                message,
            } => tracing::warn!(worker_id, job_id = %job, message, "job failed"),
            Self::JobFailed { job, failure, .. } => {
                tracing::debug!(worker_id, job_id = %job, ?failure, "job failed");
            }
            Self::JobTakenBack { job, session } => {
                tracing::info!(worker_id, job_id = %job, session_id = %session, "job is taken back from a worker that has to leave");
            }
            Self::JobLost { job, started } => {
                tracing::debug!(worker_id, job_id = %job, started, "job has lost its worker");
            }
            Self::StrayJobEnd { job } => {
                tracing::warn!(worker_id, job_id = %job, "worker reports the end of a job that it does not have");
            }
            Self::AdapterLoading { name, .. } => {
                tracing::debug!(worker_id, adapter = name, "adapter is to be loaded");
            }
            Self::AdapterLoaded { name, adapter, .. } => {
                tracing::info!(
                    worker_id,
                    adapter = name,
                    bytes = adapter.bytes,
                    "adapter loaded"
                );
            }
            Self::AdapterFailed { name, message, .. } => {
                tracing::warn!(worker_id, adapter = name, message, "adapter not loaded");
            }
            Self::AdapterUnloaded { name } => {
                tracing::info!(worker_id, adapter = name, "adapter unloaded");
            }
            Self::Leaving {
                why: LeaveReason::Directive { drained },
            } => tracing::info!(worker_id, drained, "worker is to leave"),
            Self::Leaving {
                why: LeaveReason::Renewal,
            } => tracing::info!(worker_id, "worker is renewed: it leaves after its job"),
            Self::RenewalStarted { next } => {
                tracing::info!(worker_id, next_worker_id = %next, "worker will be renewed: the next one boots as a standby");
            }
            Self::RenewalFailed { reason, pause } => {
                tracing::warn!(
                    worker_id,
                    reason,
                    pause_ms = pause.as_millis(),
                    "the next worker did not become ready; this one goes on"
                );
            }
            Self::Renewed { .. } => tracing::info!(worker_id, "worker is renewed"),
            Self::Exited { exit, decision, .. } => log_exit(gpu, exit, *decision),
            Self::QuarantineLifted { why } => {
                let why = match why {
                    LiftReason::NoWorkerLeft => "no worker was left",
                    LiftReason::Trial => "the worker is tried again",
                    LiftReason::JobsToBlame(_) => "its last job ended another worker too",
                };
                tracing::info!(%gpu, "quarantine lifted: {why}");
            }
            Self::SupervisorAbsent { absence } => {
                tracing::warn!(
                    worker_id,
                    absence_ms = absence.as_millis(),
                    "the supervisor itself stood still: the worker's time limits start afresh"
                );
            }
            Self::TaskPanicked => {
                tracing::error!(%gpu, "worker's task panicked: its GPU is lost until the supervisor is started again");
            }
            Self::Starting { .. }
            | Self::Spawned { .. }
            | Self::Connected
            | Self::LoadProgress { .. }
            | Self::WarmingUp
            | Self::Ready { .. }
            | Self::Heartbeat { .. }
            | Self::EngineFree
            | Self::Leaving {
                why: LeaveReason::Stop,
            }
            | Self::Retired { .. }
            | Self::Drained
            | Self::Restarting
            | Self::Stopped => {}
        }
    }
}

/// Writes one line for an exit that somebody has to know of.
fn log_exit(gpu: GpuId, exit: &ExitReport, decision: Option<RestartDecision>) {
    let ExitReport {
        kind,
        reason,
        uptime,
        ..
    } = exit;
    let uptime_ms = uptime.as_millis();
    match decision {
        // An exit that was asked for.
        None => {}
        Some(RestartDecision::RestartAfter(pause)) => {
            tracing::warn!(%gpu, ?kind, reason, uptime_ms, "worker exited");
            tracing::info!(%gpu, pause_ms = pause.as_millis(), "worker will be started again");
        }
        Some(RestartDecision::WaitForHost { again: true, .. }) => {
            tracing::debug!(%gpu, reason, "the host still has no room for a worker");
        }
        Some(RestartDecision::WaitForHost { again: false, .. }) => {
            tracing::error!(%gpu, reason, "the host has no room for a worker, which is tried again until it has");
        }
        Some(RestartDecision::Quarantine { trial: None }) => {
            tracing::error!(%gpu, ?kind, reason, uptime_ms, "worker exited and is quarantined: it keeps exiting before it finishes a job");
        }
        Some(RestartDecision::Quarantine { trial: Some(trial) }) => {
            tracing::error!(%gpu, ?kind, reason, uptime_ms, trial_s = trial.as_secs_f64(), "worker exited and is quarantined until it is tried again: it keeps exiting during jobs");
        }
        Some(RestartDecision::QuarantineForGood) => {
            tracing::error!(%gpu, reason, "worker cannot become ready and is quarantined until it is restarted by order");
        }
    }
}

fn log_change(
    status: &WorkerStatus,
    change: Result<Option<StateChange>, InvalidTransition>,
    routine: bool,
) {
    let worker_id = status.worker_id.as_ref().map(tracing::field::display);
    match change {
        Ok(None) => {}
        Ok(Some((from, to))) if routine => {
            tracing::debug!(worker_id, ?from, ?to, "worker changed state");
        }
        Ok(Some((from, to))) => tracing::info!(worker_id, ?from, ?to, "worker changed state"),
        Err(error) => {
            tracing::error!(gpu = %status.gpu.id, %error, "worker state left as it is");
        }
    }
}

impl WorkerStatus {
    /// Updates the status with an event.
    ///
    /// # Errors
    /// Returns an error when the event cannot occur in this state; the state is then unchanged.
    fn record(&mut self, event: &WorkerEvent) -> Result<Option<StateChange>, InvalidTransition> {
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

impl PoolEvent<'_> {
    /// Counts the event and writes the log.
    pub(super) fn emit(self, metrics: &PoolMetrics) {
        match self {
            Self::SessionBound {
                session,
                gpu,
                from,
                handoff,
            } => {
                if let Some(reason) = handoff {
                    metrics.handed_off(reason);
                }
                let from = from.map(tracing::field::display);
                tracing::debug!(session_id = %session, %gpu, from, "session is bound to a worker");
            }
            Self::SessionRequeued { session, position } => {
                tracing::debug!(session_id = %session, position, "session waits for a worker again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::config::Gpu;
    use crate::pool::exit::WorkerExit;

    fn events() -> (WorkerEvents, watch::Receiver<WorkerStatus>) {
        let gpu = Gpu {
            id: GpuId(0),
            visible_device: "0".to_owned(),
        };
        let (status, seen) = watch::channel(WorkerStatus::new(gpu));
        let meter = PoolMetrics::default().meter(GpuId(0));
        (WorkerEvents::new(status, meter), seen)
    }

    #[test]
    fn the_status_follows_the_events() {
        let (events, status) = events();
        events.emit(WorkerEvent::Starting {
            worker: WorkerId::new(GpuId(0), 1),
        });
        events.emit(WorkerEvent::Spawned { pid: 7 });
        let what = "the transformer".to_owned();
        events.emit(WorkerEvent::Connected);
        events.emit(WorkerEvent::LoadProgress {
            fraction: 0.5,
            what: what.clone(),
        });
        {
            let status = status.borrow();
            assert_eq!(status.state, WorkerState::Loading);
            assert_eq!(
                (status.pid, &status.load_progress),
                (Some(7), &Some((0.5, what)))
            );
        }
        let exit = WorkerExit::new(ExitKind::Crashed, "signal SIGKILL").report(Duration::ZERO);
        events.emit(WorkerEvent::Exited {
            exit,
            decision: Some(RestartDecision::Quarantine { trial: None }),
            for_good: false,
        });
        let status = status.borrow();
        assert_eq!(status.state, WorkerState::Quarantined);
        assert_eq!((status.pid, status.restarts), (None, 1));
        assert_eq!(status.load_progress, None);
    }

    #[test]
    fn an_event_that_cannot_happen_leaves_the_state_as_it_is() {
        let (events, status) = events();
        events.emit(WorkerEvent::EngineFree);
        assert_eq!(status.borrow().state, WorkerState::Spawning);
    }
}
