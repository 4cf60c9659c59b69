//! The readers of the pool's events: the status, the metrics and the log. A further reader belongs beside them in
//! [`WorkerEvents::emit`] and [`PoolEvent::emit`].

use std::collections::BTreeSet;

use fastvideo_link::SharedMemory;
use fastvideo_proto::adapter::Adapter;
use fastvideo_proto::ids::GpuId;
use fastvideo_proto::job::{JobFailure, VideoFormat};
use fastvideo_proto::step_snapshot::{SnapshotHeader, StepPoint};
use tokio::sync::watch;

use super::adapters::{self, WorkerAdapterState};
use super::event::{LeaveReason, LiftReason, PoolEvent, WorkerEvent};
use super::exit::ExitReport;
use super::lifecycle::{InvalidTransition, WorkerState};
use super::metrics::{PoolMetrics, WorkerMeter};
use super::restart::RestartDecision;
use super::status::{StateChange, WorkerStatus};
use super::step_snapshot::StepSnapshot;

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

    /// Returns whether the process has loaded all of these adapters.
    pub(super) fn has_loaded(&self, wanted: &[Adapter]) -> bool {
        let status = self.status.borrow();
        wanted.iter().all(|adapter| {
            let held = status.adapters.get(&adapter.name);
            held.is_some_and(|held| matches!(held.state, WorkerAdapterState::Loaded(_)))
        })
    }

    /// Returns the names of the adapters that the process has loaded.
    pub(super) fn loaded_adapters(&self) -> BTreeSet<String> {
        adapters::loaded(&self.status.borrow().adapters)
    }
}

impl WorkerEvent {
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
                failure: JobFailure::Failed | JobFailure::OutOfMemory,
                message,
            } => tracing::warn!(worker_id, job_id = %job, message, "job failed"),
            Self::JobFailed { job, failure, .. } => {
                tracing::debug!(worker_id, job_id = %job, ?failure, "job failed");
            }
            Self::JobTakenBack { job, session } => {
                tracing::info!(worker_id, job_id = %job, session_id = %session, "job is taken back from a worker that has to leave");
            }
            Self::JobPreempted { job, session } => {
                tracing::debug!(worker_id, job_id = %job, session_id = %session, "segment of a video job makes way for a viewer's");
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
    use std::time::Duration;

    use fastvideo_proto::ids::WorkerId;

    use super::*;
    use crate::pool::config::Gpu;
    use crate::pool::exit::{ExitKind, WorkerExit};

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
