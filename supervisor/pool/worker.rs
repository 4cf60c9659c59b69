//! The task that manages one GPU in a loop: boot a process, let it serve, wait for the next start. It alone owns the
//! serving process.

use std::future::pending;
use std::time::Duration;

use fastvideo_proto::link::ReadyReport;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

use super::assignments::{Absence, Assignment};
use super::boot::{BootOutcome, ReadyProcess, boot};
use super::context::WorkerContext;
use super::control::{Control, Controls};
use super::event::{LeaveReason, WorkerEvent};
use super::exit::{ExitKind, WorkerExit};
use super::lifecycle::{RestartDecision, RestartPolicy, WorkerState};
use super::link::Link;
use super::process::{WorkerProcess, describe};
use super::serving::{ServeEnd, ServingWorker};
use super::shutdown::{EXIT_TIMEOUT, kill, shut_down};

/// The task of one GPU.
#[derive(Debug)]
pub(super) struct WorkerTask {
    context: WorkerContext,
    controls: Controls,
    /// When the latest process was started.
    started: Instant,
}

impl WorkerTask {
    pub(super) fn new(context: WorkerContext, controls: Controls) -> Self {
        Self {
            context,
            controls,
            started: Instant::now(),
        }
    }

    /// Runs until the pool stops. No process is left when this returns.
    pub(super) async fn run(mut self) {
        let config = &self.context.config;
        let mut policy = RestartPolicy::new(
            config.min_backoff,
            config.max_backoff,
            config.quarantine_after,
        );
        loop {
            let exit = self.run_processes(&mut policy).await;
            let decision = policy.decide(&exit);
            self.record_exit(exit, decision);
            if !self.wait_to_restart(decision).await {
                return;
            }
            self.context.emit(WorkerEvent::Restarting);
            self.context
                .with_assignments(|assignments, slot| assignments.mark_starting(slot));
        }
    }

    /// Boots a process and lets it serve, followed by the standbys that replace it without a gap. No process is left
    /// when this returns.
    async fn run_processes(&mut self, policy: &mut RestartPolicy) -> WorkerExit {
        let ready = match self.boot_first().await {
            Ok(ready) => ready,
            Err(exit) => return exit,
        };
        self.context.emit(WorkerEvent::Ready {
            report: ready.report.clone(),
        });
        self.start_serving(&ready);
        let ReadyProcess {
            mut worker,
            mut link,
            mut process,
            mut report,
        } = *ready;
        loop {
            let mut serving =
                ServingWorker::new(&self.context, policy, worker, link, &report.warmup);
            let end = serving.serve(process.wait(), &mut self.controls).await;
            let next: Box<ReadyProcess> = match end {
                ServeEnd::Failed(exit) => return end_failed(serving, process, exit).await,
                ServeEnd::Leave => return self.leave(serving, process).await,
                ServeEnd::Replaced(next) => next,
            };
            let link_before = serving.into_link().await;
            self.take_over(&next, link_before, process);
            ReadyProcess {
                worker,
                link,
                process,
                report,
            } = *next;
        }
    }

    /// Boots a process for a GPU that has none.
    ///
    /// # Errors
    /// Returns an error when the process does not become ready or is not wanted any more. No process is left then.
    async fn boot_first(&mut self) -> Result<Box<ReadyProcess>, WorkerExit> {
        self.started = Instant::now();
        let context = &self.context;
        let plan = context.next_boot();
        context.emit(WorkerEvent::Starting {
            worker: plan.worker_id(),
        });
        let outcome = boot(plan, self.controls.next(), |event| context.emit(event)).await;
        match outcome {
            BootOutcome::Ready(ready) => Ok(ready),
            BootOutcome::Failed(error) => Err(error.into()),
            BootOutcome::Interrupted(control, mut booting) => {
                let why = match control {
                    Control::Stop => LeaveReason::Stop,
                    Control::Directive(directive) => LeaveReason::Directive {
                        drained: directive.drained,
                    },
                };
                context.emit(WorkerEvent::Leaving { why });
                let stop = self.controls.stop_signal();
                let left = shut_down(&mut booting.link, &mut booting.process, stop).await;
                booting.process.read_last_lines().await;
                Err(asked(left))
            }
        }
    }

    /// Opens the GPU's slot to sessions.
    fn start_serving(&self, ready: &ReadyProcess) {
        let assignment = self.assignment(ready);
        let typical = self.context.config.warmup_is_typical;
        let estimate = ready.report.warmup.last().filter(|_| typical);
        self.context.with_assignments(|assignments, slot| {
            if let Some(&estimate) = estimate {
                assignments.estimate_generation_time(slot, estimate);
            }
            assignments.serve(slot, assignment);
        });
    }

    /// Lets a standby serve in place of the previous process, which is shut down.
    fn take_over(&mut self, next: &ReadyProcess, mut link: Link, mut process: WorkerProcess) {
        let started = std::mem::replace(&mut self.started, Instant::now());
        self.context.emit(WorkerEvent::Renewed {
            worker: next.worker.clone(),
            pid: next.process.pid(),
            report: next.report.clone(),
        });
        let assignment = self.assignment(next);
        self.context
            .with_assignments(|assignments, slot| assignments.renew(slot, assignment));
        let events = self.context.events.clone();
        let stop = self.controls.stop_signal();
        let leave = async move {
            let left = shut_down(&mut link, &mut process, stop).await;
            process.read_last_lines().await;
            let exit = asked(left).report(started.elapsed());
            events.emit(WorkerEvent::Retired { exit });
        };
        self.context.tracker.spawn(leave.in_current_span());
    }

    fn assignment(&self, ready: &ReadyProcess) -> Assignment {
        let ReadyReport {
            model_id,
            audio_sample_rate,
            ..
        } = &ready.report;
        Assignment {
            gpu: self.context.gpu.id,
            worker: ready.worker.clone(),
            model_id: model_id.clone(),
            audio: audio_sample_rate.is_some(),
        }
    }

    /// Asks a process that serves to exit, and hands its sessions and jobs back.
    async fn leave(
        &self,
        mut serving: ServingWorker<'_, Box<ReadyProcess>>,
        mut process: WorkerProcess,
    ) -> WorkerExit {
        self.context.emit(WorkerEvent::Leaving {
            why: LeaveReason::Stop,
        });
        serving.hand_back_waiting("the server stops");
        let stop = self.controls.stop_signal();
        let left = shut_down(serving.link(), &mut process, stop).await;
        let exit = asked(left);
        serving.hand_back(&exit.reason);
        serving.into_link().await;
        process.read_last_lines().await;
        exit
    }

    /// Waits until the next process may be started, as the restart policy decides or an operator asks for it. Returns
    /// false when the pool stops in the meantime.
    async fn wait_to_restart(&mut self, decision: Option<RestartDecision>) -> bool {
        if self.controls.is_stopping() {
            if self.context.events.state() != WorkerState::Exited {
                self.context.emit(WorkerEvent::Stopped);
            }
            return false;
        }
        let (directive, is_new) = self.controls.latest_directive();
        if directive.drained {
            return self.stay_drained().await;
        }
        let all_lost = self.context.all_lost.subscribe();
        let lift = self.context.config.quarantine_lift;
        let events = &self.context.events;
        let pause = async move {
            match decision {
                _ if is_new => {}
                None => {}
                Some(RestartDecision::RestartAfter(pause)) => sleep(pause).await,
                Some(RestartDecision::QuarantineForGood) => pending().await,
                Some(RestartDecision::Quarantine) => {
                    quarantine_over(all_lost, lift).await;
                    events.emit(WorkerEvent::QuarantineLifted);
                }
            }
        };
        let control = tokio::select! {
            () = pause => return true,
            control = self.controls.next() => control,
        };
        match control {
            Control::Directive(directive) if directive.drained => self.stay_drained().await,
            Control::Directive(_) => true,
            Control::Stop => {
                self.context.emit(WorkerEvent::Stopped);
                false
            }
        }
    }

    /// Waits until an operator asks for the worker; returns false when the pool stops in the meantime.
    async fn stay_drained(&mut self) -> bool {
        self.context.emit(WorkerEvent::Drained);
        self.context
            .with_assignments(|assignments, slot| assignments.vacate(slot, Absence::Drained));
        let wanted = self.controls.wanted_back().await;
        if !wanted {
            self.context.emit(WorkerEvent::Stopped);
        }
        wanted
    }

    fn record_exit(&self, exit: WorkerExit, decision: Option<RestartDecision>) {
        self.context.emit(WorkerEvent::Exited {
            exit: exit.report(self.started.elapsed()),
            decision,
            for_good: self.controls.is_stopping(),
        });
        if decision.is_some_and(RestartDecision::quarantines) {
            self.context
                .with_assignments(|assignments, slot| assignments.vacate(slot, Absence::Lost));
        }
    }
}

/// Kills a failed process and waits for it, reads the events that it had still sent, and hands back its sessions and
/// jobs.
async fn end_failed(
    mut serving: ServingWorker<'_, Box<ReadyProcess>>,
    mut process: WorkerProcess,
    mut exit: WorkerExit,
) -> WorkerExit {
    // When a process dies, its link often closes before the process can be waited for.
    if exit.kind == ExitKind::Crashed
        && let Ok(Ok(status)) = timeout(EXIT_TIMEOUT, process.wait()).await
    {
        exit.reason = describe(status);
    }
    kill(serving.link(), &mut process).await;
    // A dead worker may have finished a job. A stuck worker, or one with a bad link, is not trusted to have done so.
    if exit.kind == ExitKind::Crashed {
        serving.read_last_events().await;
    }
    exit.by_suspect_job = serving.runs_suspect_job();
    serving.hand_back(&exit.reason);
    serving.into_link().await;
    process.read_last_lines().await;
    exit
}

/// Describes the exit of a process that was asked to exit.
fn asked(left: std::io::Result<std::process::ExitStatus>) -> WorkerExit {
    let reason = left.map_or_else(|error| error.to_string(), describe);
    WorkerExit::new(ExitKind::Asked, reason)
}

/// Waits until no worker of the pool has served for as long as `lift`; then all quarantines end together.
async fn quarantine_over(mut all_lost: watch::Receiver<bool>, lift: Duration) {
    // An error means that the pool is gone, and this task will soon end too.
    let _ = all_lost.wait_for(|lost| *lost).await;
    // The wait ends early only when another worker's quarantine was lifted: no other worker comes back by itself.
    let lifted_elsewhere = all_lost.wait_for(|lost| !*lost);
    let _ = timeout(lift, lifted_elsewhere).await;
}
