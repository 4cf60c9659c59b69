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
use super::event::{LeaveReason, LiftReason, WorkerEvent};
use super::exit::{ExitKind, WorkerExit};
use super::lifecycle::WorkerState;
use super::link::Link;
use super::process::{WorkerProcess, describe};
use super::restart::{RestartDecision, RestartLimits, RestartPolicy};
use super::serving::{ServeEnd, ServingWorker};
use super::shutdown::{EXIT_TIMEOUT, kill, shut_down};

/// Why the next process is started, if it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    /// The pool stops.
    Never,
    /// The pause after an exit is over.
    Due,
    /// An operator asked for it.
    Ordered,
    /// The quarantine has ended by itself.
    Lifted(LiftReason),
    /// So many exits, which had made the pause longer, were the fault of jobs.
    Forgiven(u32),
}

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
        let mut policy = RestartPolicy::new(RestartLimits::of(&self.context.config()));
        loop {
            let exit = self.run_processes(&mut policy).await;
            policy.set_limits(RestartLimits::of(&self.context.config()));
            policy.forgive(self.take_exits_to_forgive());
            let decision = policy.decide(&exit);
            self.record_exit(exit, decision);
            match self.wait_to_restart(decision).await {
                Restart::Never => return,
                Restart::Due => {}
                Restart::Ordered => policy.forgive_all(),
                Restart::Lifted(why) => {
                    match why {
                        LiftReason::NoWorkerLeft => policy.forgive_all(),
                        LiftReason::Trial => policy.begin_trial(),
                        LiftReason::JobsToBlame(exits) => policy.forgive(exits),
                    }
                    self.context.emit(WorkerEvent::QuarantineLifted { why });
                }
                Restart::Forgiven(exits) => policy.forgive(exits),
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
        policy.became_ready();
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
        let typical = self.context.config().warmup_is_typical;
        let estimate = ready.report.warmup.last().filter(|_| typical);
        self.warn_of_slowness(estimate.copied());
        self.context.with_assignments(|assignments, slot| {
            if let Some(&estimate) = estimate {
                assignments.estimate_generation_time(slot, estimate);
            }
            assignments.set_adapters(slot, self.context.events.loaded_adapters());
            assignments.serve(slot, assignment);
        });
    }

    /// Tells the operator when the worker takes longer to generate segments of the configured size than these play.
    fn warn_of_slowness(&self, estimate: Option<Duration>) {
        let config = self.context.config();
        if let Some(generation) = estimate
            && config.real_time_factor(generation) > 1.0
        {
            self.context.emit(WorkerEvent::SlowerThanPlayback {
                generation,
                plays: config.segment_plays(),
                format: config.format,
            });
        }
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
        self.context.with_assignments(|assignments, slot| {
            assignments.set_adapters(slot, self.context.events.loaded_adapters());
            assignments.renew(slot, assignment);
        });
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
            device,
            audio_sample_rate,
            ..
        } = &ready.report;
        Assignment {
            gpu: self.context.gpu.id,
            worker: ready.worker.clone(),
            model_id: model_id.clone(),
            device: device.name.clone(),
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

    /// Waits until the next process may be started, as the restart policy decides or an operator asks for it.
    async fn wait_to_restart(&mut self, decision: Option<RestartDecision>) -> Restart {
        if self.controls.is_stopping() {
            if self.context.events.state() != WorkerState::Exited {
                self.context.emit(WorkerEvent::Stopped);
            }
            return Restart::Never;
        }
        let (directive, is_new) = self.controls.latest_directive();
        if directive.drained {
            return self.stay_drained().await;
        }
        if is_new {
            return Restart::Ordered;
        }
        let control = tokio::select! {
            restart = self.context.restart_due(decision) => return restart,
            control = self.controls.next() => control,
        };
        match control {
            Control::Directive(directive) if directive.drained => self.stay_drained().await,
            Control::Directive(_) => Restart::Ordered,
            Control::Stop => {
                self.context.emit(WorkerEvent::Stopped);
                Restart::Never
            }
        }
    }

    /// Waits until an operator asks for the worker, or the pool stops.
    async fn stay_drained(&mut self) -> Restart {
        self.context.emit(WorkerEvent::Drained);
        self.context
            .with_assignments(|assignments, slot| assignments.vacate(slot, Absence::Drained));
        if self.controls.wanted_back().await {
            Restart::Ordered
        } else {
            self.context.emit(WorkerEvent::Stopped);
            Restart::Never
        }
    }

    fn take_exits_to_forgive(&self) -> u32 {
        self.context
            .with_assignments(|assignments, slot| assignments.take_exits_to_forgive(slot))
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
    if exit.kind != ExitKind::Shortage {
        exit.blame = serving.blame();
    }
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

impl WorkerContext {
    /// Waits until the next process is due by itself.
    async fn restart_due(&self, decision: Option<RestartDecision>) -> Restart {
        let pause = match decision {
            None => return Restart::Due,
            Some(RestartDecision::QuarantineForGood) => return pending().await,
            Some(RestartDecision::WaitForHost { pause, .. }) => {
                sleep(pause).await;
                return Restart::Due;
            }
            Some(RestartDecision::Quarantine { trial }) => {
                let trial = async {
                    match trial {
                        Some(pause) => sleep(pause).await,
                        None => pending().await,
                    }
                };
                let lift = self.config().quarantine_lift;
                let none_left = quarantine_over(self.all_lost.subscribe(), lift);
                return Restart::Lifted(tokio::select! {
                    () = none_left => LiftReason::NoWorkerLeft,
                    () = trial => LiftReason::Trial,
                    exits = self.exits_forgiven() => LiftReason::JobsToBlame(exits),
                });
            }
            Some(RestartDecision::RestartAfter(pause)) => pause,
        };
        tokio::select! {
            () = sleep(pause) => Restart::Due,
            exits = self.exits_forgiven() => Restart::Forgiven(exits),
        }
    }

    /// Waits until exits of this GPU's workers turn out to be the fault of jobs; returns their number.
    async fn exits_forgiven(&self) -> u32 {
        loop {
            let exits =
                self.with_assignments(|assignments, slot| assignments.take_exits_to_forgive(slot));
            if exits > 0 {
                return exits;
            }
            self.notify.notified().await;
        }
    }
}

/// Waits until no worker of the pool has served for as long as `lift`; then all quarantines end together.
async fn quarantine_over(mut all_lost: watch::Receiver<bool>, lift: Duration) {
    // An error means that the pool is gone, and this task will soon end too.
    let _ = all_lost.wait_for(|lost| *lost).await;
    // The wait ends early only when another worker's quarantine was lifted: no other worker comes back by itself.
    let lifted_elsewhere = all_lost.wait_for(|lost| !*lost);
    let _ = timeout(lift, lifted_elsewhere).await;
}
