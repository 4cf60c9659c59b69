//! The life of one worker: start, serve, back off, again. One task per GPU, which alone holds the process.

use std::collections::HashMap;
use std::future::pending;
use std::ops::ControlFlow;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fastvideo_proto::ids::{JobId, SessionId, WorkerId};
use fastvideo_proto::link::{
    Command, Event, JobFailure, JobSpec, JobState, LINK_VERSION, LoadSpec, ReadyReport, media_cost,
};
use ipc_channel::ipc::IpcSharedMemory;
use nix::sys::signal::Signal;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use super::assign::{Assignment, Board};
use super::job::{Credit, JobEnd, JobEvent, Media, QueuedJob};
use super::lifecycle::{Change, RestartPolicy, Verdict, WorkerState};
use super::link::{Link, LinkEnd, Up};
use super::process::{WorkerProcess, describe};
use super::{Config, ExitKind, ExitReport, Gpu, Stop, WorkerStatus};

/// How long a worker that was asked to leave may take before it gets SIGTERM, and then SIGKILL.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the events of a dead worker are read on: they are all in the socket already.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(1);
/// Step times that the median is taken of.
const STEP_SAMPLES: usize = 63;

/// What a worker's task needs of the pool.
#[derive(Debug)]
pub(super) struct WorkerTask {
    pub(super) seat: usize,
    pub(super) gpu: Gpu,
    pub(super) config: Arc<Config>,
    pub(super) board: Arc<Mutex<Board>>,
    pub(super) all_lost: watch::Sender<bool>,
    pub(super) status: watch::Sender<WorkerStatus>,
    /// Rings when a job was queued, cancelled or given credit.
    pub(super) wake: Arc<Notify>,
    pub(super) stop: watch::Receiver<Stop>,
    pub(super) tracker: TaskTracker,
}

/// How a life ended.
#[derive(Debug)]
struct Exit {
    kind: ExitKind,
    reason: String,
}

impl WorkerTask {
    /// Runs until the pool stops. The process is gone when this returns.
    pub(super) async fn run(mut self) {
        let mut policy = RestartPolicy::new(
            self.config.min_backoff,
            self.config.max_backoff,
            self.config.quarantine_after,
        );
        for incarnation in 1.. {
            let started = Instant::now();
            let exit = self.live(incarnation, &mut policy).await;
            let verdict = match exit.kind {
                ExitKind::Asked => None,
                _ => Some(policy.exited(rand::random())),
            };
            self.note_exit(exit, started.elapsed(), verdict);
            let wanted = match verdict {
                None => false,
                Some(Verdict::RestartAfter(pause)) => self.back_off(pause).await,
                Some(Verdict::Quarantine) => {
                    policy.lifted();
                    self.quarantine().await
                }
            };
            if !wanted {
                return;
            }
            self.change(Change::Restarted);
        }
    }

    /// One process, from its start to its reaping.
    async fn live(&mut self, incarnation: u32, policy: &mut RestartPolicy) -> Exit {
        let id = WorkerId::new(self.gpu.id, incarnation);
        self.status.send_modify(|s| s.worker_id = Some(id.clone()));
        let failed = |what: &str, error: std::io::Error| Exit {
            kind: ExitKind::Boot,
            reason: format!("{what}: {error}"),
        };
        let link = match Link::open(self.config.realtime) {
            Ok(link) => link,
            Err(error) => return failed("cannot open a link", error),
        };
        let process = WorkerProcess::spawn(
            &self.config.worker_bin,
            &id,
            &self.gpu.visible_device,
            link.name(),
            &self.tracker,
        );
        let process = match process {
            Ok(process) => process,
            Err(error) => {
                let what = format!("cannot start {}", self.config.worker_bin.display());
                return failed(&what, error);
            }
        };
        self.status.send_modify(|s| s.pid = Some(process.pid()));
        self.change(Change::Spawned);
        let now = Instant::now();
        let mut life = Life {
            id,
            incarnation,
            link,
            process,
            policy,
            running: None,
            finishing: HashMap::new(),
            held: HashMap::new(),
            boot_deadline: Some(now + self.config.boot_timeout),
            last_heard: now,
            last_progress: now,
            steps: StepTimes::default(),
            boot_failure: None,
            task: self,
        };
        let exit = life.serve().await;
        life.end(exit).await
    }

    /// Waits out the pause; false when the pool stops meanwhile.
    async fn back_off(&mut self, pause: Duration) -> bool {
        tracing::info!(gpu = %self.gpu.id, pause_ms = pause.as_millis(), "worker will be started again");
        tokio::select! {
            () = sleep(pause) => true,
            () = stopped(&mut self.stop) => self.leave_for_good(),
        }
    }

    /// Waits for the quarantine's end: when no worker has been left for a while, all quarantines end together. False when
    /// the pool stops meanwhile.
    async fn quarantine(&mut self) -> bool {
        tracing::error!(gpu = %self.gpu.id, "worker is quarantined: it keeps exiting before it finishes a job");
        let mut all_lost = self.all_lost.subscribe();
        let lifted = async {
            // The sender lives in this task.
            let _ = all_lost.wait_for(|lost| *lost).await;
            // It ends early only when the quarantine of another is lifted, since nothing else brings a worker back.
            let lifted_elsewhere = all_lost.wait_for(|lost| !*lost);
            let _ = timeout(self.config.quarantine_lift, lifted_elsewhere).await;
        };
        tokio::select! {
            () = lifted => {
                tracing::info!(gpu = %self.gpu.id, "quarantine lifted: no worker was left");
                self.with_board(|board, seat| board.hope(seat));
                true
            }
            () = stopped(&mut self.stop) => self.leave_for_good(),
        }
    }

    fn leave_for_good(&self) -> bool {
        self.change(Change::ExitedAsked);
        false
    }

    fn change(&self, change: Change) {
        let mut invalid = None;
        self.status
            .send_modify(|status| match status.state.transition(change) {
                Ok(to) if to == status.state => {}
                Ok(to) => {
                    let from = std::mem::replace(&mut status.state, to);
                    let worker_id = status.worker_id.as_ref().map(tracing::field::display);
                    // Every segment goes through these two; all other changes are rare.
                    match change {
                        Change::JobStarted | Change::JobEnded => {
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

    fn with_board<T>(&self, f: impl FnOnce(&mut Board, usize) -> T) -> T {
        let mut board = self.board.lock().expect("no holder of this lock panics");
        let out = f(&mut board, self.seat);
        let lost = board.all_lost();
        drop(board);
        self.all_lost
            .send_if_modified(|old| std::mem::replace(old, lost) != lost);
        out
    }

    fn note_exit(&self, exit: Exit, uptime: Duration, verdict: Option<Verdict>) {
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
                uptime,
                at: SystemTime::now(),
            });
        });
        self.change(match verdict {
            None => Change::ExitedAsked,
            Some(Verdict::RestartAfter(_)) => Change::ExitedToRestart,
            Some(Verdict::Quarantine) => Change::ExitedToQuarantine,
        });
        if verdict == Some(Verdict::Quarantine) {
            self.with_board(|board, seat| board.vacate(seat, true));
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<Stop>) {
    // A pool that is gone has stopped too.
    let _ = stop.wait_for(|stop| *stop != Stop::Run).await;
}

/// Why a worker counts as stuck.
#[derive(Debug, thiserror::Error)]
enum Stuck {
    #[error("no heartbeat for {0:?}")]
    NoHeartbeat(Duration),
    #[error("not ready within {0:?}")]
    NotReady(Duration),
    #[error("no denoise step or frame for {0:?}")]
    NoProgress(Duration),
}

/// A process and what is known of it.
struct Life<'a> {
    id: WorkerId,
    incarnation: u32,
    link: Link,
    process: WorkerProcess,
    policy: &'a mut RestartPolicy,
    running: Option<QueuedJob>,
    /// Jobs whose media still wait for credit in the worker.
    finishing: HashMap<JobId, QueuedJob>,
    /// The last state that each session got from this process, by the job that made it. The process holds it.
    held: HashMap<SessionId, JobId>,
    /// Until the worker is ready.
    boot_deadline: Option<Instant>,
    last_heard: Instant,
    /// Of the running job.
    last_progress: Instant,
    steps: StepTimes,
    boot_failure: Option<String>,
    task: &'a mut WorkerTask,
}

impl Life<'_> {
    /// Serves until there is a reason to end. The process may still live.
    async fn serve(&mut self) -> Exit {
        loop {
            let deadline = self.deadline();
            tokio::select! {
                status = self.process.wait() => return self.exited(status),
                up = self.link.events.recv() => {
                    if let ControlFlow::Break(exit) = self.take(up.unwrap_or(Up::Closed(LinkEnd::Disconnected))) {
                        return exit;
                    }
                }
                () = self.task.wake.notified() => self.pass_signals(),
                () = sleep_until(deadline.0) => {
                    return Exit { kind: ExitKind::Stuck, reason: deadline.1.to_string() };
                }
                () = stopped(&mut self.task.stop) => return self.leave().await,
            }
            if let ControlFlow::Break(exit) = self.start_next_job() {
                return exit;
            }
        }
    }

    /// The first moment at which this worker counts as stuck, and why it would.
    fn deadline(&self) -> (Instant, Stuck) {
        let config = &self.task.config;
        let heartbeat = (
            self.last_heard + config.heartbeat_timeout,
            Stuck::NoHeartbeat(config.heartbeat_timeout),
        );
        if let Some(deadline) = self.boot_deadline {
            let boot = (deadline, Stuck::NotReady(config.boot_timeout));
            // The link opens before the first heartbeat.
            if self.task.status.borrow().state == WorkerState::Connecting || boot.0 < heartbeat.0 {
                return boot;
            }
            return heartbeat;
        }
        if self.running.is_some() {
            let limit = self.steps.timeout(config.min_step_timeout);
            if self.last_progress + limit < heartbeat.0 {
                return (self.last_progress + limit, Stuck::NoProgress(limit));
            }
        }
        heartbeat
    }

    fn take(&mut self, up: Up) -> ControlFlow<Exit> {
        self.last_heard = Instant::now();
        match up {
            Up::Connected => {
                self.task.change(Change::Connected);
                let config = &self.task.config;
                let load = LoadSpec {
                    version: LINK_VERSION,
                    gpu: self.task.gpu.id,
                    incarnation: self.incarnation,
                    engine: config.engine.clone(),
                    format: config.format,
                    encoder: config.encoder.clone(),
                    warmup: config.warmup.clone(),
                    heartbeat_interval: config.heartbeat_interval,
                };
                self.send(Command::Load(Box::new(load)), None)
            }
            Up::Event(event, blob) => self.take_event(event, blob),
            Up::Closed(LinkEnd::Disconnected) => ControlFlow::Break(Exit {
                kind: ExitKind::Crashed,
                reason: LinkEnd::Disconnected.to_string(),
            }),
            Up::Closed(end) => ControlFlow::Break(Exit {
                kind: ExitKind::BadLink,
                reason: end.to_string(),
            }),
        }
    }

    fn take_event(&mut self, event: Event, blob: Option<IpcSharedMemory>) -> ControlFlow<Exit> {
        match (event, blob) {
            (Event::LoadProgress { fraction, what }, _) => {
                (self.task.status).send_modify(|s| s.load_progress = Some((fraction, what)));
            }
            (Event::WarmingUp, _) => self.task.change(Change::Loaded),
            (Event::Ready(report), _) => return self.ready(*report),
            (Event::BootFailed { message }, _) => self.boot_failure = Some(message),
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
                self.task.status.send_modify(|s| s.jobs_finished += 1);
                let end = JobEnd::Finished {
                    state: (report.state, blob),
                    generation: report.generation,
                    frames: report.frames,
                };
                self.end_job(report.job, end);
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
                return ControlFlow::Break(Exit {
                    kind: ExitKind::BadLink,
                    reason: "worker finished a job without its state".to_owned(),
                });
            }
        }
        ControlFlow::Continue(())
    }

    fn ready(&mut self, report: ReadyReport) -> ControlFlow<Exit> {
        if self.boot_deadline.take().is_none() {
            return ControlFlow::Break(Exit {
                kind: ExitKind::BadLink,
                reason: "worker became ready twice".to_owned(),
            });
        }
        self.task.change(Change::WarmedUp);
        let assignment = Assignment {
            gpu: self.task.gpu.id,
            worker: self.id.clone(),
            model_id: report.model_id.clone(),
            audio: report.audio_sample_rate.is_some(),
        };
        self.task.status.send_modify(|status| {
            status.load_progress = None;
            status.warmed_up = true;
            status.ready = Some(report);
        });
        self.task
            .with_board(|board, seat| board.serve(seat, assignment));
        ControlFlow::Continue(())
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
            self.task.change(Change::JobEnded);
        }
    }

    fn end_job(&mut self, job: JobId, end: JobEnd) {
        let held = match self.running.take_if(|r| r.spec.job == job) {
            Some(running) => {
                self.task.change(Change::JobEnded);
                Some(running)
            }
            None => self.finishing.remove(&job),
        };
        if let Some(held) = held {
            notify(&held, JobEvent::Ended(end));
        }
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
            notify(held, event);
        }
        // Media of a job that is generated already say nothing of the one that runs.
        if self.running.as_ref().is_some_and(|r| r.spec.job == job) {
            self.last_progress = Instant::now();
        }
    }

    /// Passes cancellations and credit on, and ends cancelled jobs that had not been started.
    fn pass_signals(&mut self) {
        for job in self
            .task
            .with_board(|board, seat| board.take_cancelled(seat))
        {
            notify_cancelled(&job);
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

    fn start_next_job(&mut self) -> ControlFlow<Exit> {
        while self.running.is_none() && self.task.status.borrow().state == WorkerState::Ready {
            let Some(job) = self.task.with_board(|board, seat| board.next_job(seat)) else {
                break;
            };
            if job.signals.cancelled() {
                notify_cancelled(&job);
                continue;
            }
            self.task.change(Change::JobStarted);
            let sent = self.send_job(&job);
            self.running = Some(job);
            sent?;
        }
        ControlFlow::Continue(())
    }

    /// Sends a job, with the state that it starts from unless the process holds that.
    fn send_job(&mut self, job: &QueuedJob) -> ControlFlow<Exit> {
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
        let spec = JobSpec {
            state,
            ..job.spec.clone()
        };
        self.send(Command::Generate(Box::new(spec)), blob)
    }

    /// The process does not hold the state of the running job after all.
    fn send_again(&mut self, job: JobId) -> ControlFlow<Exit> {
        let Some(running) = self.running.take_if(|r| r.spec.job == job) else {
            return ControlFlow::Continue(());
        };
        tracing::warn!(worker_id = %self.id, job_id = %job, session_id = %running.spec.session, "worker does not hold the session's state: it is sent along");
        if self.held.remove(&running.spec.session).is_none() {
            return ControlFlow::Break(Exit {
                kind: ExitKind::BadLink,
                reason: "worker misses a state that was sent to it".to_owned(),
            });
        }
        let sent = self.send_job(&running);
        self.running = Some(running);
        sent
    }

    fn send(&mut self, command: Command, blob: Option<IpcSharedMemory>) -> ControlFlow<Exit> {
        if self.link.send(command, blob) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(Exit {
                kind: ExitKind::Stuck,
                reason: "worker does not read its commands".to_owned(),
            })
        }
    }

    /// The pool stops: the worker is asked, then told, then made to leave.
    async fn leave(&mut self) -> Exit {
        self.task.change(Change::DrainAsked);
        let waiting = self
            .task
            .with_board(|board, seat| board.vacate(seat, false));
        for job in waiting {
            self.notify_lost(&job, false, "the server stops");
        }
        self.link.send(Command::Shutdown, None);
        let mut stop = self.task.stop.clone();
        let now = async move {
            let _ = stop.wait_for(|stop| *stop == Stop::Now).await;
        };
        // A worker that cannot send does not hear either.
        let events = &mut self.link.events;
        let unheard = async {
            while events.recv().await.is_some() {}
            pending::<()>().await;
        };
        let asked = async {
            for signal in [Some(Signal::SIGTERM), None] {
                if let Ok(status) = timeout(LEAVE_TIMEOUT, self.process.wait()).await {
                    return status;
                }
                if let Some(signal) = signal {
                    self.process.signal(signal);
                }
            }
            self.process.kill().await
        };
        let left = tokio::select! {
            left = asked => Some(left),
            () = now => None,
            () = unheard => None,
        };
        let left = match left {
            Some(left) => left,
            None => self.process.kill().await,
        };
        Exit {
            kind: ExitKind::Asked,
            reason: left.map_or_else(|error| error.to_string(), describe),
        }
    }

    fn exited(&mut self, status: std::io::Result<ExitStatus>) -> Exit {
        Exit {
            kind: ExitKind::Crashed,
            reason: status.map_or_else(|error| format!("cannot wait: {error}"), describe),
        }
    }

    /// Kills and reaps the process, reads what it had still sent, and hands its sessions and jobs back.
    async fn end(mut self, mut exit: Exit) -> Exit {
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
                while let Some(Up::Event(event, blob)) = self.link.events.recv().await {
                    let _ = self.take_event(event, blob);
                }
            };
            let _ = timeout(LAST_EVENTS_TIMEOUT, last).await;
        }
        // First the jobs, then the moves: a client hears what became of its segment before where it goes on.
        for job in self.running.iter().chain(self.finishing.values()) {
            self.notify_lost(job, true, &exit.reason);
        }
        let waiting = self
            .task
            .with_board(|board, seat| board.vacate(seat, false));
        for job in &waiting {
            self.notify_lost(job, false, &exit.reason);
        }
        self.process.read_last_lines().await;
        if self.boot_deadline.is_some() && exit.kind != ExitKind::Asked {
            let failure = self.boot_failure.take();
            if failure.is_some() {
                exit.kind = ExitKind::Boot;
            }
            let reason = failure.unwrap_or_else(|| {
                let lines = self.process.last_lines();
                lines
                    .last()
                    .map_or_else(|| exit.reason.clone(), |l| format!("{}: {l}", exit.reason))
            });
            exit.reason = reason;
        }
        exit
    }

    fn notify_lost(&self, job: &QueuedJob, started: bool, reason: &str) {
        let end = JobEnd::WorkerLost {
            worker: self.id.clone(),
            started,
            reason: reason.to_owned(),
        };
        notify(job, JobEvent::Ended(end));
    }
}

fn notify_cancelled(job: &QueuedJob) {
    let end = JobEnd::Failed {
        failure: JobFailure::Cancelled,
        message: String::new(),
    };
    notify(job, JobEvent::Ended(end));
}

fn notify(job: &QueuedJob, event: JobEvent) {
    if let Err(TrySendError::Full(_)) = job.events.try_send(event) {
        tracing::error!(job_id = %job.spec.job, session_id = %job.spec.session, "session does not take its job's events");
        job.signals.cancel();
    }
}

/// The latest step times of a worker.
#[derive(Debug, Default)]
struct StepTimes {
    times: Vec<Duration>,
    next: usize,
}

impl StepTimes {
    fn add(&mut self, time: Duration) {
        if self.times.len() < STEP_SAMPLES {
            self.times.push(time);
        } else {
            self.times[self.next] = time;
            self.next = (self.next + 1) % STEP_SAMPLES;
        }
    }

    /// Ten times the median step, at least `min`.
    fn timeout(&self, min: Duration) -> Duration {
        let mut times = self.times.clone();
        let middle = times.len() / 2;
        match times.is_empty() {
            true => min,
            false => (*times.select_nth_unstable(middle).1 * 10).max(min),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_timeout_is_ten_times_the_median_of_the_latest_steps() {
        let ms = Duration::from_millis;
        let mut steps = StepTimes::default();
        assert_eq!(steps.timeout(ms(50)), ms(50));
        for time in [10, 1000, 10] {
            steps.add(ms(time));
        }
        assert_eq!(steps.timeout(ms(50)), ms(100));
        assert_eq!(steps.timeout(ms(200)), ms(200));
        for _ in 0..STEP_SAMPLES {
            steps.add(ms(20));
        }
        assert_eq!(steps.timeout(ms(50)), ms(200));
    }
}
