//! The life of one GPU's worker: start, serve, rest, again. One task per GPU, which alone holds the process that serves.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::assignments::{Absence, Assignments};
use super::lifecycle::{RestartDecision, RestartPolicy, Transition, WorkerState};
use super::serving::ServingWorker;
use super::standby::BootPlan;
use super::{Config, Directive, ExitKind, ExitReport, Gpu, Stop, WorkerStatus};

/// How long a worker that was asked to leave may take before it gets SIGTERM, and then SIGKILL.
pub(super) const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a worker's task needs of the pool.
#[derive(Debug)]
pub(super) struct WorkerTask {
    pub(super) slot: usize,
    pub(super) gpu: Gpu,
    pub(super) config: Arc<Config>,
    pub(super) assignments: Arc<Mutex<Assignments>>,
    pub(super) all_lost: watch::Sender<bool>,
    pub(super) status: watch::Sender<WorkerStatus>,
    /// Rings when a job was queued, cancelled or given credit, and when a session has left.
    pub(super) notify: Arc<Notify>,
    pub(super) directive: watch::Receiver<Directive>,
    pub(super) stop: watch::Receiver<Stop>,
    pub(super) tracker: TaskTracker,
    /// Processes of this GPU that were started so far.
    pub(super) incarnations: u32,
    /// When the latest was.
    pub(super) started: Instant,
}

/// How a life ended.
#[derive(Debug)]
pub(super) struct WorkerExit {
    pub(super) kind: ExitKind,
    pub(super) reason: String,
    /// It ran a job that had cost another worker before: the job is the suspect, and not the GPU.
    pub(super) by_suspect_job: bool,
    /// The next process would not become ready either.
    pub(super) permanent: bool,
}

impl WorkerExit {
    pub(super) fn new(kind: ExitKind, reason: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
            by_suspect_job: false,
            permanent: false,
        }
    }
}

impl WorkerTask {
    /// Runs until the pool stops. The process is gone when this returns.
    pub(super) async fn run(mut self) {
        let mut policy = RestartPolicy::new(
            self.config.min_backoff,
            self.config.max_backoff,
            self.config.quarantine_after,
        );
        loop {
            let exit = self.run_process(&mut policy).await;
            let decision = match exit.kind {
                ExitKind::Asked => None,
                _ if exit.permanent => Some(RestartDecision::QuarantineForGood),
                _ if exit.by_suspect_job => Some(policy.exited_blameless(rand::random())),
                _ => Some(policy.exited(rand::random())),
            };
            if decision.is_some_and(RestartDecision::quarantines) {
                // Once it is over the worker has all its tries again.
                policy.lifted();
            }
            self.record_exit(exit, decision);
            if !self.wait_to_restart(decision).await {
                return;
            }
            self.apply(Transition::Restarted);
            self.with_assignments(|assignments, slot| assignments.mark_starting(slot));
        }
    }

    /// A process that serves, and those that follow it without a gap, from the start of the first to the reaping of the
    /// last.
    async fn run_process(&mut self, policy: &mut RestartPolicy) -> WorkerExit {
        let plan = self.plan();
        self.started = Instant::now();
        self.status
            .send_modify(|s| s.worker_id = Some(plan.worker_id()));
        let (link, process) = match plan.start() {
            Ok(started) => started,
            Err(reason) => return WorkerExit::new(ExitKind::Boot, reason),
        };
        self.status.send_modify(|s| s.pid = Some(process.pid()));
        self.apply(Transition::Spawned);
        ServingWorker::new(self, policy, &plan, link, process)
            .run()
            .await
    }

    /// The next process of this GPU.
    pub(super) fn plan(&mut self) -> BootPlan {
        self.incarnations += 1;
        BootPlan {
            config: self.config.clone(),
            gpu: self.gpu.clone(),
            incarnation: self.incarnations,
            tracker: self.tracker.clone(),
        }
    }

    /// Waits until the next process may be started: as long as the restart policy says, or until an operator wants it,
    /// one way or the other. False when the pool stops meanwhile.
    async fn wait_to_restart(&mut self, decision: Option<RestartDecision>) -> bool {
        if self.status.borrow().state == WorkerState::Exited {
            return false;
        }
        let ordered = self.directive.has_changed().unwrap_or(false);
        if self.directive.borrow_and_update().drained {
            return self.stay_drained().await;
        }
        let gpu = self.gpu.id;
        let all_lost = self.all_lost.subscribe();
        let lift = self.config.quarantine_lift;
        let pause = async move {
            match decision {
                _ if ordered => {}
                None => {}
                Some(RestartDecision::RestartAfter(pause)) => {
                    tracing::info!(%gpu, pause_ms = pause.as_millis(), "worker will be started again");
                    sleep(pause).await;
                }
                Some(RestartDecision::QuarantineForGood) => {
                    tracing::error!(%gpu, "worker is quarantined: it cannot become ready until an operator has mended what it says");
                    pending().await
                }
                Some(RestartDecision::Quarantine) => {
                    tracing::error!(%gpu, "worker is quarantined: it keeps exiting before it finishes a job");
                    quarantine_over(all_lost, lift).await;
                    tracing::info!(%gpu, "quarantine lifted: no worker was left");
                }
            }
        };
        let ordered = tokio::select! {
            () = pause => return true,
            directive = next_directive(&mut self.directive) => directive,
            () = stopped(&mut self.stop) => return self.leave_for_good(),
        };
        match ordered.drained {
            true => self.stay_drained().await,
            false => true,
        }
    }

    /// Waits until an operator wants the worker back; false when the pool stops meanwhile.
    async fn stay_drained(&mut self) -> bool {
        self.apply(Transition::DrainAsked);
        self.with_assignments(|assignments, slot| assignments.vacate(slot, Absence::Drained));
        let wanted = async {
            if self.directive.wait_for(|o| !o.drained).await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = wanted => true,
            () = stopped(&mut self.stop) => self.leave_for_good(),
        }
    }

    fn leave_for_good(&self) -> bool {
        self.apply(Transition::ExitedAsked);
        false
    }

    pub(super) fn apply(&self, transition: Transition) {
        let mut invalid = None;
        self.status
            .send_modify(|status| match status.state.transition(transition) {
                Ok(to) if to == status.state => {}
                Ok(to) => {
                    let from = std::mem::replace(&mut status.state, to);
                    let worker_id = status.worker_id.as_ref().map(tracing::field::display);
                    // Every segment goes through these two; all other changes are rare.
                    match transition {
                        Transition::JobStarted | Transition::JobEnded => {
                            tracing::debug!(worker_id, ?from, ?to, "worker changed state")
                        }
                        _ => tracing::info!(worker_id, ?from, ?to, "worker changed state"),
                    }
                }
                Err(error) => invalid = Some(error),
            });
        if let Some(error) = invalid {
            tracing::error!(gpu = %self.gpu.id, %error, "worker state left as it is");
        }
    }

    pub(super) fn with_assignments<T>(&self, f: impl FnOnce(&mut Assignments, usize) -> T) -> T {
        let mut assignments = self
            .assignments
            .lock()
            .expect("no holder of this lock panics");
        let out = f(&mut assignments, self.slot);
        let lost = assignments.all_lost();
        drop(assignments);
        self.all_lost
            .send_if_modified(|old| std::mem::replace(old, lost) != lost);
        out
    }

    fn record_exit(&self, exit: WorkerExit, decision: Option<RestartDecision>) {
        let uptime = self.started.elapsed();
        match exit.kind {
            ExitKind::Asked => {}
            kind => {
                tracing::warn!(gpu = %self.gpu.id, ?kind, reason = exit.reason, uptime_ms = uptime.as_millis(), "worker exited");
            }
        }
        self.status.send_modify(|status| {
            status.pid = None;
            status.ready = None;
            status.load_progress = None;
            status.resident_bytes = None;
            if exit.kind != ExitKind::Asked {
                status.restarts += 1;
            }
            status.last_exit = Some(ExitReport {
                kind: exit.kind,
                reason: exit.reason,
                permanent: exit.permanent,
                uptime,
                at: SystemTime::now(),
            });
        });
        self.apply(match decision {
            None if *self.stop.borrow() == Stop::Run => Transition::ExitedDrained,
            None => Transition::ExitedAsked,
            Some(RestartDecision::RestartAfter(_)) => Transition::ExitedToRestart,
            Some(RestartDecision::Quarantine | RestartDecision::QuarantineForGood) => {
                Transition::ExitedToQuarantine
            }
        });
        if decision.is_some_and(RestartDecision::quarantines) {
            self.with_assignments(|assignments, slot| assignments.vacate(slot, Absence::Lost));
        }
    }
}

/// When no worker has been left for a while, all quarantines end together.
async fn quarantine_over(mut all_lost: watch::Receiver<bool>, lift: Duration) {
    // Err: the pool is gone, and whoever waits for this is about to be.
    let _ = all_lost.wait_for(|lost| *lost).await;
    // It ends early only when the quarantine of another is lifted, since nothing else brings a worker back by itself.
    let lifted_elsewhere = all_lost.wait_for(|lost| !*lost);
    let _ = timeout(lift, lifted_elsewhere).await;
}

/// The next thing that an operator wants.
///
/// # Cancel safety
/// Cancel safe.
pub(super) async fn next_directive(directive: &mut watch::Receiver<Directive>) -> Directive {
    match directive.changed().await {
        Ok(()) => *directive.borrow_and_update(),
        // The pool is gone.
        Err(_) => pending().await,
    }
}

pub(super) async fn stopped(stop: &mut watch::Receiver<Stop>) {
    // A pool that is gone has stopped too.
    let _ = stop.wait_for(|stop| *stop != Stop::Run).await;
}
