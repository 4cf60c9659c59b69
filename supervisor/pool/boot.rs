//! Boots a worker process: spawn, connect, load, warm up.
//!
//! [`boot`] is the only way to a [`ReadyProcess`], for the first process of a GPU and for the standby of a renewal.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use fastvideo_link::is_shortage;
use fastvideo_proto::ids::WorkerId;
use fastvideo_proto::link::{Command, Event, LINK_VERSION, LoadSpec, ReadyReport};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use super::attendance::Attendance;
use super::config::{Config, Gpu};
use super::event::WorkerEvent;
use super::exit::{ExitKind, WorkerExit};
use super::link::{Link, LinkEnd, LinkInput};
use super::process::{WorkerProcess, describe};
use super::shutdown::{EXIT_TIMEOUT, kill};
use super::stall::Stall;

/// How long the link of a dead process is still read. All that the process had sent is in the socket already.
pub(super) const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// The parameters of a process to start.
#[derive(Debug)]
pub(super) struct BootPlan {
    pub(super) config: Arc<Config>,
    pub(super) gpu: Gpu,
    /// The number of the process among those of the GPU, counted from 1.
    pub(super) incarnation: u32,
    /// Tracks the task that reads the process's stderr.
    pub(super) tracker: TaskTracker,
}

/// A process that is ready to serve.
#[derive(Debug)]
pub(super) struct ReadyProcess {
    pub(super) worker: WorkerId,
    pub(super) link: Link,
    pub(super) process: WorkerProcess,
    pub(super) report: ReadyReport,
}

/// A process that is not ready yet.
#[derive(Debug)]
pub(super) struct BootingProcess {
    pub(super) link: Link,
    pub(super) process: WorkerProcess,
}

/// How [`boot`] ended.
#[derive(Debug)]
pub(super) enum BootOutcome<T> {
    Ready(Box<ReadyProcess>),
    /// The boot failed, and no process is left.
    Failed(BootError),
    /// The boot was interrupted, and the process is still there.
    Interrupted(T, Box<BootingProcess>),
}

/// The reason why a process did not become ready.
#[derive(Debug)]
pub(super) struct BootError {
    cause: BootErrorCause,
    /// The last line that the process printed, unless the process reported a reason over its link.
    last_line: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum BootErrorCause {
    #[error("cannot open a link: {0}")]
    Link(io::Error),
    #[error("cannot start {}: {source}", binary.display())]
    Spawn { binary: PathBuf, source: io::Error },
    #[error("{}", describe(*.0))]
    Exited(ExitStatus),
    #[error("cannot wait: {0}")]
    Wait(io::Error),
    #[error(transparent)]
    BadLink(LinkEnd),
    #[error("process {theirs} has connected in place of the worker {ours}")]
    ForeignProcess { ours: u32, theirs: u32 },
    #[error(transparent)]
    Stalled(#[from] Stall),
    /// The process reported the reason itself.
    #[error("{message}")]
    Refused { message: String, permanent: bool },
}

impl BootPlan {
    pub(super) fn worker_id(&self) -> WorkerId {
        WorkerId::new(self.gpu.id, self.incarnation)
    }

    fn spawn(&self) -> Result<BootingProcess, BootErrorCause> {
        let (link, invitation) = Link::open(self.config.realtime).map_err(BootErrorCause::Link)?;
        let binary = &self.config.worker_bin;
        let process = WorkerProcess::spawn(
            binary,
            &self.worker_id(),
            &self.gpu.visible_device,
            invitation,
            &self.tracker,
        );
        let process = process.map_err(|source| BootErrorCause::Spawn {
            binary: binary.clone(),
            source,
        })?;
        Ok(BootingProcess { link, process })
    }

    fn load_spec(&self) -> LoadSpec {
        let config = &self.config;
        LoadSpec {
            version: LINK_VERSION,
            gpu: self.gpu.id,
            incarnation: self.incarnation,
            engine: config.engine.clone(),
            format: config.format,
            encoder: config.encoder.clone(),
            warmup: config.warmup.clone(),
            heartbeat_interval: config.heartbeat_interval,
        }
    }
}

impl BootError {
    fn new(cause: BootErrorCause) -> Self {
        Self {
            cause,
            last_line: None,
        }
    }

    /// Describes the exit of a standby that had become ready.
    pub(super) fn exited(status: ExitStatus) -> Self {
        Self::new(BootErrorCause::Exited(status))
    }

    /// Returns whether the next process would fail in the same way.
    pub(super) fn is_permanent(&self) -> bool {
        matches!(
            self.cause,
            BootErrorCause::Refused {
                permanent: true,
                ..
            }
        )
    }

    pub(super) fn kind(&self) -> ExitKind {
        match &self.cause {
            BootErrorCause::Link(error) | BootErrorCause::Spawn { source: error, .. }
                if is_shortage(error) =>
            {
                ExitKind::Shortage
            }
            BootErrorCause::Link(_)
            | BootErrorCause::Spawn { .. }
            | BootErrorCause::Refused { .. } => ExitKind::Boot,
            BootErrorCause::Exited(_) | BootErrorCause::Wait(_) => ExitKind::Crashed,
            BootErrorCause::BadLink(end) => end.exit_kind(),
            BootErrorCause::ForeignProcess { .. } => ExitKind::BadLink,
            BootErrorCause::Stalled(_) => ExitKind::Stuck,
        }
    }
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)?;
        match &self.last_line {
            Some(line) => write!(f, ": {line}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for BootError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.source()
    }
}

impl From<BootError> for WorkerExit {
    fn from(error: BootError) -> Self {
        Self {
            permanent: error.is_permanent(),
            ..Self::new(error.kind(), error.to_string())
        }
    }
}

/// Starts a process and waits until it is ready or `interrupt` completes. `observe` is told of its progress.
pub(super) async fn boot<T>(
    plan: BootPlan,
    interrupt: impl Future<Output = T>,
    mut observe: impl FnMut(WorkerEvent),
) -> BootOutcome<T> {
    let mut booting = match plan.spawn() {
        Ok(booting) => booting,
        Err(cause) => return BootOutcome::Failed(BootError::new(cause)),
    };
    let BootingProcess { link, process } = &mut booting;
    let pid = process.pid();
    observe(WorkerEvent::Spawned { pid });
    let ready = tokio::select! {
        ready = wait_until_ready(link, pid, process.wait(), plan.load_spec(), &plan.config, observe) => ready,
        interrupted = interrupt => return BootOutcome::Interrupted(interrupted, Box::new(booting)),
    };
    let mut cause = match ready {
        Ok(report) => {
            return BootOutcome::Ready(Box::new(ReadyProcess {
                worker: plan.worker_id(),
                link: booting.link,
                process: booting.process,
                report,
            }));
        }
        Err(cause) => cause,
    };
    // When a process dies, its link often closes before its exit is noticed.
    if let BootErrorCause::BadLink(LinkEnd::Disconnected) = cause
        && let Ok(Ok(status)) = timeout(EXIT_TIMEOUT, process.wait()).await
    {
        cause = BootErrorCause::Exited(status);
    }
    kill(link, process).await;
    process.read_last_lines().await;
    let last_line = match cause {
        BootErrorCause::Refused { .. } => None,
        _ => process.last_lines().pop(),
    };
    BootOutcome::Failed(BootError { cause, last_line })
}

/// Waits until the process `pid` at the other end of the link is ready. `exited` completes when the process ends.
async fn wait_until_ready(
    link: &mut Link,
    pid: u32,
    exited: impl Future<Output = io::Result<ExitStatus>>,
    load: LoadSpec,
    config: &Config,
    mut observe: impl FnMut(WorkerEvent),
) -> Result<ReadyReport, BootErrorCause> {
    let mut exited = pin!(exited);
    let mut load = Some(load);
    let mut deadlines = BootDeadlines::new(config);
    loop {
        if let Some(absence) = deadlines.attendance.turn() {
            observe(WorkerEvent::SupervisorAbsent { absence });
            deadlines.start_afresh(absence);
        }
        let (deadline, stall) = deadlines.next();
        let input = if deadline > Instant::now() {
            tokio::select! {
                status = &mut exited => return Err(last_words(link, status).await),
                () = sleep_until(deadline.min(deadlines.attendance.next_turn())) => continue,
                input = link.events.recv() => input,
            }
        } else {
            // What the process has said, and was not read yet, goes before the judgement.
            match link.events.try_recv() {
                Ok(input) => Some(input),
                Err(_) => return Err(stall.into()),
            }
        };
        deadlines.heard();
        match input.unwrap_or(LinkInput::Closed(LinkEnd::Disconnected)) {
            LinkInput::Connected { pid: theirs } if theirs != pid => {
                return Err(BootErrorCause::ForeignProcess { ours: pid, theirs });
            }
            LinkInput::Connected { .. } => {
                observe(WorkerEvent::Connected);
                if let Some(load) = load.take()
                    && !link.send(Command::Load(Box::new(load)), Vec::new())
                {
                    return Err(Stall::UnreadCommands.into());
                }
            }
            LinkInput::Closed(end) => return Err(BootErrorCause::BadLink(end)),
            LinkInput::Event(event, _) => match event {
                Event::Ready(report) => return Ok(*report),
                Event::BootFailed { message, permanent } => {
                    // The process exits by itself, and may print more on stderr before that.
                    let _ = timeout(EXIT_TIMEOUT, exited).await;
                    return Err(BootErrorCause::Refused { message, permanent });
                }
                Event::LoadProgress { fraction, what } => {
                    observe(WorkerEvent::LoadProgress { fraction, what });
                }
                Event::WarmingUp => observe(WorkerEvent::WarmingUp),
                Event::Heartbeat {
                    resident_bytes,
                    gpu_bytes,
                } => observe(WorkerEvent::Heartbeat {
                    resident_bytes,
                    gpu_bytes,
                }),
                // These events belong to a job, and no job was sent.
                Event::Step { .. }
                | Event::StepSnapshot { .. }
                | Event::Preview { .. }
                | Event::Media { .. }
                | Event::Generated { .. }
                | Event::AdapterLoaded { .. }
                | Event::AdapterFailed { .. }
                | Event::Finished(_)
                | Event::Failed { .. } => {}
            },
        }
    }
}

/// The deadlines of a process that boots.
#[derive(Debug)]
struct BootDeadlines<'a> {
    config: &'a Config,
    /// When the process has to be ready.
    ready: Instant,
    /// When the process has to have said something, and the reason why it is stuck if it has not.
    word: (Instant, Stall),
    attendance: Attendance,
}

impl<'a> BootDeadlines<'a> {
    fn new(config: &'a Config) -> Self {
        let now = Instant::now();
        let limit = config.connect_timeout;
        let shortest = config.heartbeat_timeout.min(config.boot_timeout).min(limit);
        Self {
            config,
            ready: now + config.boot_timeout,
            word: (now + limit, Stall::NotConnected(limit)),
            attendance: Attendance::new(shortest),
        }
    }

    /// Records that the process has said something: it sends heartbeats from then on.
    fn heard(&mut self) {
        let limit = self.config.heartbeat_timeout;
        self.word = (Instant::now() + limit, Stall::NoHeartbeat(limit));
    }

    /// Gives the process the time back in which the supervisor did not hear it.
    fn start_afresh(&mut self, absence: Duration) {
        self.ready += absence;
        let (deadline, stall) = &mut self.word;
        *deadline = match *stall {
            Stall::NoHeartbeat(limit) => Instant::now() + limit,
            _ => *deadline + absence,
        };
    }

    /// Returns the earliest deadline, and the reason why the process is stuck when it has passed.
    fn next(&self) -> (Instant, Stall) {
        match self.word.0 < self.ready {
            true => self.word,
            false => (self.ready, Stall::NotReady(self.config.boot_timeout)),
        }
    }
}

/// Returns why a process has exited: the reason that it reported over its link or for which its link was closed, else its
/// exit status.
async fn last_words(link: &mut Link, status: io::Result<ExitStatus>) -> BootErrorCause {
    link.give_up();
    let reason = async {
        while let Some(input) = link.events.recv().await {
            match input {
                LinkInput::Event(Event::BootFailed { message, permanent }, _) => {
                    return Some(BootErrorCause::Refused { message, permanent });
                }
                // A worker exits when its link closes.
                LinkInput::Closed(end @ LinkEnd::Shortage(_)) => {
                    return Some(BootErrorCause::BadLink(end));
                }
                _ => {}
            }
        }
        None
    };
    match timeout(LAST_EVENTS_TIMEOUT, reason).await {
        Ok(Some(reason)) => reason,
        Ok(None) | Err(_) => status.map_or_else(BootErrorCause::Wait, BootErrorCause::Exited),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::pool::fixtures;
    use crate::pool::link::TestWorker;

    const PID: u32 = 7;

    /// How the boot of a process ends that sends these inputs, one each second, and then exits, if it does.
    async fn boot_of(
        inputs: impl IntoIterator<Item = LinkInput>,
        exit: Option<ExitStatus>,
    ) -> Result<ReadyReport, (ExitKind, String)> {
        boot_with(config(), inputs, exit).await
    }

    fn config() -> Config {
        Config {
            heartbeat_timeout: Duration::from_secs(50),
            ..fixtures::config()
        }
    }

    async fn boot_with(
        config: Config,
        inputs: impl IntoIterator<Item = LinkInput>,
        exit: Option<ExitStatus>,
    ) -> Result<ReadyReport, (ExitKind, String)> {
        let (mut link, TestWorker { events, commands }) = Link::to_test_worker();
        let plan = BootPlan {
            config: Arc::new(config.clone()),
            gpu: config.gpus[0].clone(),
            incarnation: 1,
            tracker: TaskTracker::new(),
        };
        let exited = async {
            for input in inputs {
                events.send(input).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            match exit {
                Some(status) => Ok(status),
                None => pending().await,
            }
        };
        let ready =
            wait_until_ready(&mut link, PID, exited, plan.load_spec(), &config, |_| ()).await;
        drop(commands);
        ready.map_err(|cause| {
            let error = BootError::new(cause);
            (error.kind(), error.to_string())
        })
    }

    fn said(event: Event) -> LinkInput {
        LinkInput::Event(event, None)
    }

    fn heartbeat() -> LinkInput {
        said(Event::Heartbeat {
            resident_bytes: 1,
            gpu_bytes: None,
        })
    }

    #[track_caller]
    fn check(
        ended: Result<ReadyReport, (ExitKind, String)>,
        expected: Result<(), (ExitKind, &str)>,
    ) {
        let expected = expected.map_err(|(kind, reason)| (kind, reason.to_owned()));
        assert_eq!(ended.map(|_| ()), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_connects_and_loads_is_ready() {
        let ready = Box::new(fixtures::ready_report(&[]));
        let inputs = [
            LinkInput::Connected { pid: PID },
            said(Event::WarmingUp),
            said(Event::Ready(ready)),
        ];
        check(boot_of(inputs, None).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_takes_too_long_or_is_silent_is_stuck() {
        let late = (ExitKind::Stuck, "not ready within 60s");
        check(boot_of([], None).await, Err(late));
        let connected = LinkInput::Connected { pid: PID };
        let beats = std::iter::once(connected).chain((0..100).map(|_| heartbeat()));
        check(boot_of(beats, None).await, Err(late));
        let silent = (ExitKind::Stuck, "no heartbeat for 50s");
        let connected = LinkInput::Connected { pid: PID };
        check(boot_of([connected], None).await, Err(silent));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_does_not_connect_in_time_is_stuck() {
        let mut config = config();
        config.connect_timeout = Duration::from_secs(10);
        let begun = Instant::now();
        let silent = (ExitKind::Stuck, "not connected within 10s");
        check(boot_with(config.clone(), [], None).await, Err(silent));
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        let connected = LinkInput::Connected { pid: PID };
        let silent = (ExitKind::Stuck, "no heartbeat for 50s");
        check(boot_with(config, [connected], None).await, Err(silent));
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_supervisor_stood_still_counts_for_nothing() {
        let begun = Instant::now();
        let standing_still = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                tokio::time::advance(Duration::from_secs(1000)).await;
            }
            pending::<()>().await;
        };
        let connected = LinkInput::Connected { pid: PID };
        let ended = tokio::select! {
            ended = boot_of([connected], None) => ended,
            () = standing_still => unreachable!(),
        };
        check(ended, Err((ExitKind::Stuck, "no heartbeat for 50s")));
        assert_eq!(begun.elapsed(), Duration::from_secs(3 * 1001 + 50));
    }

    #[tokio::test(start_paused = true)]
    async fn another_process_on_the_link_is_a_bad_link() {
        let inputs = [LinkInput::Connected { pid: 8 }];
        let foreign = "process 8 has connected in place of the worker 7";
        check(
            boot_of(inputs, None).await,
            Err((ExitKind::BadLink, foreign)),
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_exits_since_the_host_had_no_room_for_its_link_is_not_to_blame() {
        let (mut link, TestWorker { events, .. }) = Link::to_test_worker();
        let shortage = io::Error::from_raw_os_error(libc::EMFILE);
        let closed = LinkInput::Closed(LinkEnd::Shortage(shortage));
        events.send(closed).await.unwrap();
        drop(events);
        let exited = Ok(ExitStatus::from_raw(0));
        let error = BootError::new(last_words(&mut link, exited).await);
        assert_eq!(error.kind(), ExitKind::Shortage);
    }

    #[test]
    fn a_process_for_which_the_host_has_no_room_is_not_to_blame() {
        let kind = |errno| {
            let spawn = BootErrorCause::Spawn {
                binary: "fastvideo-worker".into(),
                source: io::Error::from_raw_os_error(errno),
            };
            let link = BootErrorCause::Link(io::Error::from_raw_os_error(errno));
            [spawn, link].map(|cause| BootError::new(cause).kind())
        };
        // No process or thread, no memory, no descriptor.
        for errno in [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE] {
            assert_eq!(kind(errno), [ExitKind::Shortage; 2], "{errno}");
        }
        for errno in [libc::ENOENT, libc::EACCES] {
            assert_eq!(kind(errno), [ExitKind::Boot; 2], "{errno}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_process_says_of_its_failure_goes_before_its_exit_status() {
        let killed = Some(ExitStatus::from_raw(9));
        let crashed = (ExitKind::Crashed, "signal SIGKILL");
        check(boot_of([heartbeat()], killed).await, Err(crashed));
        let failed = said(Event::BootFailed {
            message: "no such model".to_owned(),
            permanent: true,
        });
        let refused = (ExitKind::Boot, "no such model");
        check(boot_of([failed], killed).await, Err(refused));
    }
}
