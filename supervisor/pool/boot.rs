//! From nothing to a process that is ready to serve: spawn, connect, load, warm up.
//!
//! [`boot`] is the only way to a [`ReadyProcess`], for the first process of a GPU and for the standby of a renewal.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::WorkerId;
use fastvideo_proto::link::{Command, Event, LINK_VERSION, LoadSpec, ReadyReport};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use super::config::{Config, Gpu};
use super::event::WorkerEvent;
use super::exit::{ExitKind, WorkerExit};
use super::link::{Link, LinkEnd, LinkInput};
use super::process::{WorkerProcess, describe};
use super::shutdown::{EXIT_TIMEOUT, kill};
use super::stall::Stall;

/// How long the link of a dead process is read on: all that it had sent is in the socket already.
pub(super) const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// What to start.
#[derive(Debug)]
pub(super) struct BootPlan {
    pub(super) config: Arc<Config>,
    pub(super) gpu: Gpu,
    /// Counts the processes of the GPU from 1.
    pub(super) incarnation: u32,
    /// Owns the task that reads the process's stderr.
    pub(super) tracker: TaskTracker,
}

/// A process that is ready.
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
    /// No process is left.
    Failed(BootError),
    /// The boot was interrupted, and the process is still there.
    Interrupted(T, Box<BootingProcess>),
}

/// Why a process did not become ready.
#[derive(Debug)]
pub(super) struct BootError {
    cause: BootErrorCause,
    /// The last line that the process printed, when it did not explain itself by its link.
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
    #[error(transparent)]
    Stalled(#[from] Stall),
    /// The process said so itself.
    #[error("{message}")]
    Refused { message: String, permanent: bool },
}

impl BootPlan {
    pub(super) fn worker_id(&self) -> WorkerId {
        WorkerId::new(self.gpu.id, self.incarnation)
    }

    fn spawn(&self) -> Result<BootingProcess, BootErrorCause> {
        let link = Link::open(self.config.realtime).map_err(BootErrorCause::Link)?;
        let binary = &self.config.worker_bin;
        let process = WorkerProcess::spawn(
            binary,
            &self.worker_id(),
            &self.gpu.visible_device,
            link.name(),
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

    /// A standby that had become ready has exited.
    pub(super) fn exited(status: ExitStatus) -> Self {
        Self::new(BootErrorCause::Exited(status))
    }

    /// The next process would fail in the same way.
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
        match self.cause {
            BootErrorCause::Link(_)
            | BootErrorCause::Spawn { .. }
            | BootErrorCause::Refused { .. } => ExitKind::Boot,
            BootErrorCause::Exited(_)
            | BootErrorCause::Wait(_)
            | BootErrorCause::BadLink(LinkEnd::Disconnected) => ExitKind::Crashed,
            BootErrorCause::BadLink(_) => ExitKind::BadLink,
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

/// Starts a process and waits until it is ready, or until `interrupt` is. `observe` is told how far it is.
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
        ready = wait_until_ready(link, process.wait(), plan.load_spec(), &plan.config, observe) => ready,
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
    // The link of a process that dies often closes first.
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

/// Waits until the process at the other end of the link is ready. `exited` is its end.
async fn wait_until_ready(
    link: &mut Link,
    exited: impl Future<Output = io::Result<ExitStatus>>,
    load: LoadSpec,
    config: &Config,
    mut observe: impl FnMut(WorkerEvent),
) -> Result<ReadyReport, BootErrorCause> {
    let mut exited = pin!(exited);
    let mut load = Some(load);
    let boot_deadline = Instant::now() + config.boot_timeout;
    let mut deadline = (boot_deadline, Stall::NotReady(config.boot_timeout));
    loop {
        let input = tokio::select! {
            status = &mut exited => return Err(last_words(link, status).await),
            () = sleep_until(deadline.0) => return Err(deadline.1.into()),
            input = link.events.recv() => input,
        };
        let heartbeat_deadline = Instant::now() + config.heartbeat_timeout;
        if heartbeat_deadline < boot_deadline {
            deadline = (
                heartbeat_deadline,
                Stall::NoHeartbeat(config.heartbeat_timeout),
            );
        } else {
            deadline = (boot_deadline, Stall::NotReady(config.boot_timeout));
        }
        match input.unwrap_or(LinkInput::Closed(LinkEnd::Disconnected)) {
            LinkInput::Connected => {
                observe(WorkerEvent::Connected);
                if let Some(load) = load.take()
                    && !link.send(Command::Load(Box::new(load)), None)
                {
                    return Err(Stall::UnreadCommands.into());
                }
            }
            LinkInput::Closed(end) => return Err(BootErrorCause::BadLink(end)),
            LinkInput::Event(event, _) => match event {
                Event::Ready(report) => return Ok(*report),
                Event::BootFailed { message, permanent } => {
                    // It exits by itself, and may say more on stderr before it does.
                    let _ = timeout(EXIT_TIMEOUT, exited).await;
                    return Err(BootErrorCause::Refused { message, permanent });
                }
                Event::LoadProgress { fraction, what } => {
                    observe(WorkerEvent::LoadProgress { fraction, what });
                }
                Event::WarmingUp => observe(WorkerEvent::WarmingUp),
                Event::Heartbeat { resident_bytes } => {
                    observe(WorkerEvent::Heartbeat { resident_bytes });
                }
                // No job was sent to it.
                Event::Step { .. }
                | Event::Media { .. }
                | Event::Generated { .. }
                | Event::Finished(_)
                | Event::Failed { .. } => {}
            },
        }
    }
}

/// Why a process has exited: as it said itself by its link, else by its exit status.
async fn last_words(link: &mut Link, status: io::Result<ExitStatus>) -> BootErrorCause {
    link.give_up();
    let refused = async {
        while let Some(input) = link.events.recv().await {
            if let LinkInput::Event(Event::BootFailed { message, permanent }, _) = input {
                return Some(BootErrorCause::Refused { message, permanent });
            }
        }
        None
    };
    match timeout(LAST_EVENTS_TIMEOUT, refused).await {
        Ok(Some(refused)) => refused,
        Ok(None) | Err(_) => status.map_or_else(BootErrorCause::Wait, BootErrorCause::Exited),
    }
}
