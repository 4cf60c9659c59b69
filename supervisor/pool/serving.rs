//! One worker process while it serves, and the change to the next one.

use std::collections::HashMap;
use std::future::pending;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

use fastvideo_proto::ids::{JobId, SessionId, WorkerId};
use fastvideo_proto::job::JobFailure;
use fastvideo_proto::link::{Command, Event, JobSpec, JobState, ReadyReport, media_cost};
use ipc_channel::ipc::IpcSharedMemory;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::assignments::{Absence, Assignment};
use super::job::{Credit, JobEnd, JobEvent, Media, QueuedJob};
use super::lifecycle::{RestartPolicy, Transition, WorkerState};
use super::link::{Link, LinkEnd, LinkInput};
use super::process::{WorkerProcess, describe};
use super::rolling_median::RollingMedian;
use super::standby::{BootPlan, Standby, shut_down};
use super::worker::{LEAVE_TIMEOUT, WorkerExit, WorkerTask, next_directive, stopped};
use super::{Directive, ExitKind, ExitReport};

/// How long the events of a dead worker are read on: they are all in the socket already.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a worker that is to be renewed waits, without a job, for a client to take the last media of another.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(1);
/// Step times that the median is taken of.
const STEP_SAMPLES: usize = 63;

/// Why a worker counts as stuck.
#[derive(Debug, thiserror::Error)]
enum Stall {
    #[error("no heartbeat for {0:?}")]
    NoHeartbeat(Duration),
    #[error("not ready within {0:?}")]
    NotReady(Duration),
    #[error("no denoise step or frame for {0:?}")]
    NoProgress(Duration),
}

/// A process and what is known of it.
pub(super) struct ServingWorker<'a> {
    task: &'a mut WorkerTask,
    policy: &'a mut RestartPolicy,
    id: WorkerId,
    link: Link,
    process: WorkerProcess,
    running: Option<QueuedJob>,
    /// Jobs whose media still wait for credit in the worker.
    finishing: HashMap<JobId, QueuedJob>,
    /// The last state that each session got from this process, by the job that made it. The process holds it.
    held: HashMap<SessionId, JobId>,
    /// Jobs that this process has finished.
    finished: u32,
    /// What the process is told once it has connected.
    load: Option<Command>,
    /// Until the worker is ready.
    boot_deadline: Option<Instant>,
    last_heard: Instant,
    /// Of the running job.
    last_progress: Instant,
    steps: RollingMedian,
    boot_failure: Option<BootFailure>,
    leaving: Option<Leaving>,
    renewal: Renewal,
    /// While the next process is ready: until when no job is begun, so that it can take over.
    hold_back: Option<Instant>,
    /// After the last try to renew it, which failed.
    renewal_pause: Option<Duration>,
    /// No other try before then.
    renew_after: Option<Instant>,
}

/// Why the process cannot become ready, as it said itself.
#[derive(Debug)]
struct BootFailure {
    message: String,
    permanent: bool,
}

/// The worker takes no more jobs and is asked to leave when the last has ended.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    /// Jobs that still run then are taken back.
    cut_at: Option<Instant>,
}

/// The process that will follow without a gap.
enum Renewal {
    No,
    Preparing {
        next: Pin<Box<dyn Future<Output = Result<Box<Standby>, String>> + Send>>,
        give_up: CancellationToken,
    },
    /// It serves from the next moment on at which no job is in hand.
    Ready(Box<Standby>),
}

impl<'a> ServingWorker<'a> {
    pub(super) fn new(
        task: &'a mut WorkerTask,
        policy: &'a mut RestartPolicy,
        plan: &BootPlan,
        link: Link,
        process: WorkerProcess,
    ) -> Self {
        let now = Instant::now();
        Self {
            id: plan.worker_id(),
            link,
            process,
            policy,
            running: None,
            finishing: HashMap::new(),
            held: HashMap::new(),
            finished: 0,
            load: Some(plan.load()),
            boot_deadline: Some(now + task.config.boot_timeout),
            last_heard: now,
            last_progress: now,
            steps: RollingMedian::new(STEP_SAMPLES),
            boot_failure: None,
            leaving: None,
            renewal: Renewal::No,
            hold_back: None,
            renewal_pause: None,
            renew_after: None,
            task,
        }
    }

    /// Serves until there is a reason to end, and ends. No process is left.
    pub(super) async fn run(mut self) -> WorkerExit {
        let exit = self.serve().await;
        self.end(exit).await
    }

    /// The process may still live when this returns.
    async fn serve(&mut self) -> WorkerExit {
        loop {
            if self.leaving.is_some() && self.has_no_job() {
                return self.leave().await;
            }
            let deadline = self.deadline();
            let cut_at = self.leaving.and_then(|leaving| leaving.cut_at);
            let next = async {
                match &mut self.renewal {
                    Renewal::Preparing { next, .. } => next.await,
                    Renewal::No | Renewal::Ready(_) => pending().await,
                }
            };
            let flow = tokio::select! {
                status = self.process.wait() => ControlFlow::Break(exited(status)),
                up = self.link.events.recv() => {
                    self.take(up.unwrap_or(LinkInput::Closed(LinkEnd::Disconnected)))
                }
                () = self.task.notify.notified() => {
                    self.pass_signals();
                    ControlFlow::Continue(())
                }
                directive = next_directive(&mut self.task.directive) => {
                    self.take_directive(directive);
                    ControlFlow::Continue(())
                }
                next = next => {
                    self.take_next(next);
                    ControlFlow::Continue(())
                }
                () = sleep_until(deadline.0) => {
                    ControlFlow::Break(WorkerExit::new(ExitKind::Stuck, deadline.1.to_string()))
                }
                () = alarm(cut_at) => {
                    self.cut_jobs();
                    ControlFlow::Continue(())
                }
                () = alarm(self.hold_back.filter(|&until| until > Instant::now())) => {
                    ControlFlow::Continue(())
                }
                () = alarm(self.renew_after) => {
                    self.renew_after = None;
                    ControlFlow::Continue(())
                }
                () = stopped(&mut self.task.stop) => return self.leave().await,
            };
            if let ControlFlow::Break(exit) = flow {
                return exit;
            }
            self.renew();
            if let ControlFlow::Break(exit) = self.start_next_job() {
                return exit;
            }
        }
    }

    fn has_no_job(&self) -> bool {
        self.running.is_none() && self.finishing.is_empty()
    }

    /// The first moment at which this worker counts as stuck, and why it would.
    fn deadline(&self) -> (Instant, Stall) {
        let config = &self.task.config;
        let heartbeat = (
            self.last_heard + config.heartbeat_timeout,
            Stall::NoHeartbeat(config.heartbeat_timeout),
        );
        if let Some(deadline) = self.boot_deadline {
            let boot = (deadline, Stall::NotReady(config.boot_timeout));
            // The link opens before the first heartbeat.
            if self.task.status.borrow().state == WorkerState::Connecting || boot.0 < heartbeat.0 {
                return boot;
            }
            return heartbeat;
        }
        if self.running.is_some() {
            let limit = step_timeout(&self.steps, config.min_step_timeout);
            if self.last_progress + limit < heartbeat.0 {
                return (self.last_progress + limit, Stall::NoProgress(limit));
            }
        }
        heartbeat
    }

    fn take(&mut self, up: LinkInput) -> ControlFlow<WorkerExit> {
        self.last_heard = Instant::now();
        match up {
            LinkInput::Connected => {
                self.task.apply(Transition::Connected);
                match self.load.take() {
                    Some(load) => self.send(load, None),
                    None => ControlFlow::Continue(()),
                }
            }
            LinkInput::Event(event, blob) => self.take_event(event, blob),
            LinkInput::Closed(LinkEnd::Disconnected) => ControlFlow::Break(WorkerExit::new(
                ExitKind::Crashed,
                LinkEnd::Disconnected.to_string(),
            )),
            LinkInput::Closed(end) => {
                ControlFlow::Break(WorkerExit::new(ExitKind::BadLink, end.to_string()))
            }
        }
    }

    fn take_event(
        &mut self,
        event: Event,
        blob: Option<IpcSharedMemory>,
    ) -> ControlFlow<WorkerExit> {
        match (event, blob) {
            (Event::LoadProgress { fraction, what }, _) => {
                (self.task.status).send_modify(|s| s.load_progress = Some((fraction, what)));
            }
            (Event::WarmingUp, _) => self.task.apply(Transition::Loaded),
            (Event::Ready(report), _) => return self.ready(*report),
            (Event::BootFailed { message, permanent }, _) => {
                self.boot_failure = Some(BootFailure { message, permanent });
            }
            (Event::Heartbeat { resident_bytes }, _) => {
                (self.task.status).send_modify(|s| s.resident_bytes = Some(resident_bytes));
            }
            (
                Event::Step {
                    job,
                    stage,
                    step,
                    total_steps,
                },
                _,
            ) => {
                if self.running.as_ref().is_some_and(|r| r.spec.job == job) {
                    self.steps.add(self.last_progress.elapsed());
                }
                self.tell(
                    job,
                    JobEvent::Step {
                        stage,
                        step,
                        total_steps,
                    },
                );
            }
            (
                Event::Media {
                    job,
                    kind,
                    bytes,
                    sent_at_us,
                },
                _,
            ) => {
                if let Some(held) = self.job(job) {
                    let credit = Credit::new(media_cost(bytes.len()), held.signals.clone());
                    let media = Media {
                        kind,
                        bytes,
                        sent_at_us,
                        credit,
                    };
                    self.tell(job, JobEvent::Media(media));
                }
            }
            (Event::Generated { job }, _) => self.generated(job),
            (Event::Finished(report), Some(blob)) => {
                self.holds_state_of(report.job);
                self.policy.job_finished();
                self.finished += 1;
                self.task.status.send_modify(|s| s.jobs_finished += 1);
                let end = JobEnd::Finished {
                    state: (report.state, blob),
                    generation: report.generation,
                    timing: report.timing,
                    frames: report.frames,
                };
                self.end_job(report.job, end);
                (self.task).with_assignments(|assignments, slot| {
                    assignments.record_generation_time(slot, report.generation)
                });
            }
            (
                Event::Failed {
                    job,
                    failure: JobFailure::StateNotHeld,
                    ..
                },
                _,
            ) => return self.send_again(job),
            (
                Event::Failed {
                    job,
                    failure,
                    message,
                },
                _,
            ) => {
                if failure == JobFailure::Failed {
                    tracing::warn!(worker_id = %self.id, job_id = %job, message, "job failed");
                }
                self.end_job(job, JobEnd::Failed { failure, message });
            }
            (Event::Finished(_), None) => {
                let reason = "worker finished a job without its state";
                return ControlFlow::Break(WorkerExit::new(ExitKind::BadLink, reason));
            }
        }
        ControlFlow::Continue(())
    }

    fn ready(&mut self, report: ReadyReport) -> ControlFlow<WorkerExit> {
        if self.boot_deadline.take().is_none() {
            let reason = "worker became ready twice";
            return ControlFlow::Break(WorkerExit::new(ExitKind::BadLink, reason));
        }
        self.task.apply(Transition::WarmedUp);
        let assignment = self.assignment(&report);
        let guess = match self.task.config.warmup_is_typical {
            true => report.warmup.last().copied(),
            false => None,
        };
        self.task.status.send_modify(|status| {
            status.load_progress = None;
            status.warmed_up = true;
            status.ready = Some(report);
        });
        self.task.with_assignments(|assignments, slot| {
            if let Some(guess) = guess {
                assignments.estimate_generation_time(slot, guess);
            }
            assignments.serve(slot, assignment);
        });
        ControlFlow::Continue(())
    }

    fn assignment(&self, report: &ReadyReport) -> Assignment {
        Assignment {
            gpu: self.task.gpu.id,
            worker: self.id.clone(),
            model_id: report.model_id.clone(),
            audio: report.audio_sample_rate.is_some(),
        }
    }

    /// The job's state is made, which replaces the one before in the process whether it is committed or not.
    fn holds_state_of(&mut self, job: JobId) {
        if let Some(session) = self.job(job).map(|held| held.spec.session.clone()) {
            self.held.insert(session, job);
        }
    }

    fn generated(&mut self, job: JobId) {
        self.holds_state_of(job);
        if let Some(running) = self.running.take_if(|r| r.spec.job == job) {
            self.finishing.insert(job, running);
            self.task.apply(Transition::JobEnded);
        }
    }

    fn end_job(&mut self, job: JobId, end: JobEnd) {
        let held = match self.running.take_if(|r| r.spec.job == job) {
            Some(running) => {
                self.task.apply(Transition::JobEnded);
                Some(running)
            }
            None => self.finishing.remove(&job),
        };
        if let Some(held) = held {
            self.tell_end(&held, end);
        }
    }

    /// Both at once, so that the session hears of its job before it hears of a move, and submits the next one after.
    fn tell_end(&self, job: &QueuedJob, end: JobEnd) {
        self.task.with_assignments(|assignments, _| {
            job.tell(JobEvent::Ended(end));
            assignments.job_ended(&job.spec.session, job.spec.job);
        });
    }

    fn job(&self, job: JobId) -> Option<&QueuedJob> {
        match &self.running {
            Some(running) if running.spec.job == job => Some(running),
            _ => self.finishing.get(&job),
        }
    }

    /// Tells a session of its job. Events of jobs that nobody knows any more come from just before a cancellation.
    fn tell(&mut self, job: JobId, event: JobEvent) {
        if let Some(held) = self.job(job) {
            held.tell(event);
        }
        // Media of a job that is generated already say nothing of the one that runs.
        if self.running.as_ref().is_some_and(|r| r.spec.job == job) {
            self.last_progress = Instant::now();
        }
    }

    /// Passes cancellations and credit on, ends cancelled jobs that had not been started, and lets the process forget
    /// whom it does not serve any more.
    fn pass_signals(&mut self) {
        for job in self
            .task
            .with_assignments(|assignments, slot| assignments.take_cancelled(slot))
        {
            self.tell_end(&job, cancelled());
        }
        for session in self
            .task
            .with_assignments(|assignments, slot| assignments.take_sessions_to_forget(slot))
        {
            self.held.remove(&session);
            self.link.send(Command::Forget { session }, None);
        }
        for held in self.running.iter().chain(self.finishing.values()) {
            let job = held.spec.job;
            let cost = held.signals.take_credit();
            if held.signals.cancelled() {
                self.link.send(Command::Cancel { job }, None);
            } else if cost > 0 {
                self.link.send(Command::Credit { job, cost }, None);
            }
        }
    }

    fn start_next_job(&mut self) -> ControlFlow<WorkerExit> {
        while self.running.is_none()
            && !self.holds_back()
            && self.task.status.borrow().state == WorkerState::Ready
        {
            let Some(job) = self
                .task
                .with_assignments(|assignments, slot| assignments.next_job(slot))
            else {
                break;
            };
            if job.signals.cancelled() {
                self.tell_end(&job, cancelled());
                continue;
            }
            self.hold_back = None;
            self.task.apply(Transition::JobStarted);
            job.tell(JobEvent::Started);
            let sent = self.send_job(&job);
            self.running = Some(job);
            sent?;
        }
        ControlFlow::Continue(())
    }

    /// The next process is to take over as soon as the media of the last jobs are out. A client that does not read must
    /// not keep the GPU idle: after a while the next job runs here, and the change waits for its end.
    fn holds_back(&mut self) -> bool {
        if !matches!(self.renewal, Renewal::Ready(_)) {
            return false;
        }
        let now = Instant::now();
        *self.hold_back.get_or_insert(now + HAND_OVER_PATIENCE) > now
    }

    /// Sends a job, with the state that it starts from unless the process holds that.
    fn send_job(&mut self, job: &QueuedJob) -> ControlFlow<WorkerExit> {
        self.last_progress = Instant::now();
        let held = self.held.get(&job.spec.session).copied();
        let (state, blob) = match &job.start {
            None => (None, None),
            Some(start) => match start.made_by.filter(|&maker| held == Some(maker)) {
                Some(maker) => (Some(JobState::Held(maker)), None),
                None => (
                    Some(JobState::Sent(start.header.clone())),
                    Some(start.blob.clone()),
                ),
            },
        };
        let state_held = matches!(state, Some(JobState::Held(_)));
        tracing::debug!(worker_id = %self.id, job_id = %job.spec.job, session_id = %job.spec.session, state_held, "job sent");
        let spec = JobSpec {
            state,
            ..job.spec.clone()
        };
        self.send(Command::Generate(Box::new(spec)), blob)
    }

    /// The process does not hold the state of the running job after all.
    fn send_again(&mut self, job: JobId) -> ControlFlow<WorkerExit> {
        let Some(running) = self.running.take_if(|r| r.spec.job == job) else {
            return ControlFlow::Continue(());
        };
        tracing::warn!(worker_id = %self.id, job_id = %job, session_id = %running.spec.session, "worker does not hold the session's state: it is sent along");
        if self.held.remove(&running.spec.session).is_none() {
            let reason = "worker misses a state that was sent to it";
            return ControlFlow::Break(WorkerExit::new(ExitKind::BadLink, reason));
        }
        let sent = self.send_job(&running);
        self.running = Some(running);
        sent
    }

    fn send(&mut self, command: Command, blob: Option<IpcSharedMemory>) -> ControlFlow<WorkerExit> {
        if self.link.send(command, blob) {
            ControlFlow::Continue(())
        } else {
            let reason = "worker does not read its commands";
            ControlFlow::Break(WorkerExit::new(ExitKind::Stuck, reason))
        }
    }

    /// Has the worker leave: at once, or when its last job has ended.
    fn take_directive(&mut self, directive: Directive) {
        let first = self.leaving.replace(Leaving {
            cut_at: directive.cut_at,
        });
        if first.is_none() {
            tracing::info!(worker_id = %self.id, drained = directive.drained, "worker is to leave");
            self.begin_to_leave();
        }
    }

    fn begin_to_leave(&mut self) {
        self.task.apply(Transition::DrainAsked);
        self.task
            .with_assignments(|assignments, slot| assignments.drain(slot));
    }

    /// The jobs in hand have had their time: they run again elsewhere.
    fn cut_jobs(&mut self) {
        let running = self.running.take();
        let finishing = std::mem::take(&mut self.finishing);
        for job in running.iter().chain(finishing.values()) {
            tracing::info!(worker_id = %self.id, job_id = %job.spec.job, session_id = %job.spec.session, "job is taken back from a worker that has to leave");
            self.tell_end(job, JobEnd::TakenBack { started: true });
        }
    }

    /// Renews a process that has served long enough or has grown too large: it leaves first, or the next one is made
    /// ready beside it and takes over between two jobs.
    fn renew(&mut self) {
        if self.leaving.is_some() {
            return;
        }
        if let Renewal::Ready(_) = self.renewal {
            if self.has_no_job() {
                self.hand_over();
            }
            return;
        }
        let under_way = matches!(self.renewal, Renewal::Preparing { .. });
        if under_way || self.renew_after.is_some() || !self.is_due_for_renewal() {
            return;
        }
        if self.task.config.recycle.overlap {
            let plan = self.task.plan();
            tracing::info!(worker_id = %self.id, next_worker_id = %plan.worker_id(), "worker will be renewed: the next one is made ready");
            let give_up = CancellationToken::new();
            let next = Box::pin(plan.make_ready(give_up.clone()));
            self.renewal = Renewal::Preparing { next, give_up };
        } else {
            tracing::info!(worker_id = %self.id, "worker is renewed: it leaves after its job");
            self.leaving = Some(Leaving { cut_at: None });
            self.begin_to_leave();
        }
    }

    /// Only after real work: a limit that a fresh process exceeds must not keep it from serving.
    fn is_due_for_renewal(&self) -> bool {
        let recycle = &self.task.config.recycle;
        let resident = self.task.status.borrow().resident_bytes;
        let old = recycle.after_segments.is_some_and(|n| self.finished >= n);
        let large = (recycle.above_bytes)
            .zip(resident)
            .is_some_and(|(limit, resident)| resident > limit);
        self.boot_deadline.is_none() && self.finished > 0 && (old || large)
    }

    fn take_next(&mut self, next: Result<Box<Standby>, String>) {
        self.renewal = match next {
            Ok(standby) => Renewal::Ready(standby),
            Err(reason) => {
                let config = &self.task.config;
                let pause = match self.renewal_pause {
                    Some(pause) => (pause * 2).min(config.max_backoff),
                    None => config.min_backoff,
                };
                tracing::warn!(worker_id = %self.id, reason, pause_ms = pause.as_millis(), "the next worker did not become ready; this one goes on");
                self.renewal_pause = Some(pause);
                self.renew_after = Some(Instant::now() + pause);
                Renewal::No
            }
        };
    }

    /// The next process serves from here on; this one leaves.
    fn hand_over(&mut self) {
        let Renewal::Ready(mut standby) = std::mem::replace(&mut self.renewal, Renewal::No) else {
            return;
        };
        if let Some(status) = standby.process.exited() {
            return self.take_next(Err(describe(status)));
        }
        let now = Instant::now();
        let started = std::mem::replace(&mut self.task.started, now);
        tracing::info!(worker_id = %self.id, next_worker_id = %standby.id, "worker is renewed");
        let Standby {
            id,
            link,
            process,
            report,
        } = *standby;
        self.id = id;
        let mut link = std::mem::replace(&mut self.link, link);
        let mut process = std::mem::replace(&mut self.process, process);
        self.held.clear();
        self.finished = 0;
        self.hold_back = None;
        self.steps = RollingMedian::new(STEP_SAMPLES);
        self.renewal_pause = None;
        self.last_heard = now;
        let assignment = self.assignment(&report);
        self.task.status.send_modify(|status| {
            status.worker_id = Some(self.id.clone());
            status.pid = Some(self.process.pid());
            status.resident_bytes = None;
            status.ready = Some(report);
        });
        (self.task).with_assignments(|assignments, slot| assignments.renew(slot, assignment));
        let (status, stop) = (self.task.status.clone(), self.task.stop.clone());
        let leave = async move {
            let left = shut_down(&mut link, &mut process, stop).await;
            let exit = ExitReport {
                kind: ExitKind::Asked,
                reason: left.map_or_else(|error| error.to_string(), describe),
                permanent: false,
                uptime: started.elapsed(),
                at: SystemTime::now(),
            };
            status.send_modify(|status| status.last_exit = Some(exit));
        };
        self.task.tracker.spawn(leave.in_current_span());
    }

    /// The worker is asked, then told, then made to leave.
    async fn leave(&mut self) -> WorkerExit {
        self.task.apply(Transition::DrainAsked);
        let waiting = self
            .task
            .with_assignments(|assignments, slot| assignments.vacate(slot, Absence::Starting));
        for job in waiting {
            self.tell_lost(&job, false, "the server stops");
        }
        let stop = self.task.stop.clone();
        let left = shut_down(&mut self.link, &mut self.process, stop).await;
        WorkerExit::new(
            ExitKind::Asked,
            left.map_or_else(|error| error.to_string(), describe),
        )
    }

    /// Kills and reaps the process, reads what it had still sent, and hands its sessions and jobs back.
    async fn end(mut self, mut exit: WorkerExit) -> WorkerExit {
        if exit.kind == ExitKind::Crashed
            && let Ok(Ok(status)) = timeout(LEAVE_TIMEOUT, self.process.wait()).await
        {
            exit.reason = describe(status);
        }
        if let Err(error) = self.process.kill().await {
            tracing::error!(worker_id = %self.id, %error, "cannot wait for a killed worker");
        }
        self.link.give_up();
        // A dead worker may have finished a job; a stuck one, or one that talks nonsense, is not listened to.
        if exit.kind == ExitKind::Crashed {
            let last = async {
                while let Some(LinkInput::Event(event, blob)) = self.link.events.recv().await {
                    let _ = self.take_event(event, blob);
                }
            };
            let _ = timeout(LAST_EVENTS_TIMEOUT, last).await;
        }
        if let Renewal::Preparing { next, give_up } = &mut self.renewal {
            give_up.cancel();
            // It is killed, or has just become ready.
            if let Ok(standby) = next.await {
                self.renewal = Renewal::Ready(standby);
            }
        }
        if let Renewal::Ready(standby) = &mut self.renewal
            && let Err(error) = standby.process.kill().await
        {
            tracing::error!(worker_id = %standby.id, %error, "cannot wait for a killed worker");
        }
        exit.by_suspect_job = self.running.as_ref().is_some_and(|r| r.spec.attempt > 1);
        // First the jobs, then the moves: a client hears what became of its segment before where it goes on.
        for job in self.running.iter().chain(self.finishing.values()) {
            self.tell_lost(job, true, &exit.reason);
        }
        let waiting = self
            .task
            .with_assignments(|assignments, slot| assignments.vacate(slot, Absence::Starting));
        for job in &waiting {
            self.tell_lost(job, false, &exit.reason);
        }
        self.process.read_last_lines().await;
        if self.boot_deadline.is_some() && exit.kind != ExitKind::Asked {
            match self.boot_failure.take() {
                Some(failure) => {
                    exit.kind = ExitKind::Boot;
                    exit.reason = failure.message;
                    exit.permanent = failure.permanent;
                }
                None => {
                    if let Some(line) = self.process.last_lines().last() {
                        exit.reason = format!("{}: {line}", exit.reason);
                    }
                }
            }
        }
        exit
    }

    fn tell_lost(&self, job: &QueuedJob, started: bool, reason: &str) {
        let end = JobEnd::WorkerLost {
            worker: self.id.clone(),
            started,
            reason: reason.to_owned(),
        };
        job.tell(JobEvent::Ended(end));
    }
}

fn exited(status: std::io::Result<ExitStatus>) -> WorkerExit {
    WorkerExit::new(
        ExitKind::Crashed,
        status.map_or_else(|error| format!("cannot wait: {error}"), describe),
    )
}

fn cancelled() -> JobEnd {
    JobEnd::Failed {
        failure: JobFailure::Cancelled,
        message: String::new(),
    }
}

async fn alarm(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// Ten times the median step, at least `min`.
fn step_timeout(steps: &RollingMedian, min: Duration) -> Duration {
    steps.median().map_or(min, |median| (median * 10).max(min))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_timeout_is_ten_times_the_median_of_the_latest_steps() {
        let ms = Duration::from_millis;
        let mut steps = RollingMedian::new(STEP_SAMPLES);
        assert_eq!(step_timeout(&steps, ms(50)), ms(50));
        for time in [10, 1000, 10] {
            steps.add(ms(time));
        }
        assert_eq!(step_timeout(&steps, ms(50)), ms(100));
        assert_eq!(step_timeout(&steps, ms(200)), ms(200));
    }
}
