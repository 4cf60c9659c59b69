//! The next process of a GPU, made ready while the one before it still serves; and the way out of the one before.

use std::process::ExitStatus;
use std::sync::Arc;

use fastvideo_proto::ids::WorkerId;
use fastvideo_proto::link::{Command, Event, LINK_VERSION, LoadSpec, ReadyReport};
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::link::{Link, LinkInput};
use super::process::{WorkerProcess, describe};
use super::worker::LEAVE_TIMEOUT;
use super::{Config, Gpu, Stop};

/// A process that is ready and serves nobody yet.
#[derive(Debug)]
pub(super) struct Standby {
    pub(super) id: WorkerId,
    pub(super) link: Link,
    pub(super) process: WorkerProcess,
    pub(super) report: ReadyReport,
}

/// What to start.
#[derive(Debug)]
pub(super) struct BootPlan {
    pub(super) config: Arc<Config>,
    pub(super) gpu: Gpu,
    /// Counts the processes of the GPU from 1.
    pub(super) incarnation: u32,
    pub(super) tracker: TaskTracker,
}

impl BootPlan {
    pub(super) fn worker_id(&self) -> WorkerId {
        WorkerId::new(self.gpu.id, self.incarnation)
    }

    /// Starts the process.
    ///
    /// # Errors
    /// The reason why there is none.
    pub(super) fn start(&self) -> Result<(Link, WorkerProcess), String> {
        let link =
            Link::open(self.config.realtime).map_err(|e| format!("cannot open a link: {e}"))?;
        let binary = &self.config.worker_bin;
        let process = WorkerProcess::spawn(
            binary,
            &self.worker_id(),
            &self.gpu.visible_device,
            link.name(),
            &self.tracker,
        );
        let process = process.map_err(|e| format!("cannot start {}: {e}", binary.display()))?;
        Ok((link, process))
    }

    /// What the process is told once it has connected.
    pub(super) fn load(&self) -> Command {
        let config = &self.config;
        Command::Load(Box::new(LoadSpec {
            version: LINK_VERSION,
            gpu: self.gpu.id,
            incarnation: self.incarnation,
            engine: config.engine.clone(),
            format: config.format,
            encoder: config.encoder.clone(),
            warmup: config.warmup.clone(),
            heartbeat_interval: config.heartbeat_interval,
        }))
    }

    /// Starts the process and waits until it is ready. Nothing is left of it when it fails or is given up.
    ///
    /// # Errors
    /// The reason why it is not ready.
    pub(super) async fn make_ready(
        self,
        give_up: CancellationToken,
    ) -> Result<Box<Standby>, String> {
        let (mut link, mut process) = self.start()?;
        let ready = tokio::select! {
            ready = self.watch(&mut link, &mut process) => ready,
            () = give_up.cancelled() => Err("it is not needed any more".to_owned()),
        };
        match ready {
            Ok(report) => Ok(Box::new(Standby {
                id: self.worker_id(),
                link,
                process,
                report,
            })),
            Err(reason) => {
                if let Err(error) = process.kill().await {
                    tracing::error!(%error, "cannot wait for a killed worker");
                }
                link.give_up();
                process.read_last_lines().await;
                Err(reason)
            }
        }
    }

    async fn watch(
        &self,
        link: &mut Link,
        process: &mut WorkerProcess,
    ) -> Result<ReadyReport, String> {
        let boot = Instant::now() + self.config.boot_timeout;
        let mut silence = boot;
        loop {
            let up = tokio::select! {
                status = process.wait() => return Err(status.map_or_else(|e| e.to_string(), describe)),
                () = sleep_until(silence.min(boot)) => return Err("it hangs, or takes too long to become ready".to_owned()),
                up = link.events.recv() => up,
            };
            silence = Instant::now() + self.config.heartbeat_timeout;
            match up {
                Some(LinkInput::Connected) => {
                    if !link.send(self.load(), None) {
                        return Err("it does not read its commands".to_owned());
                    }
                }
                Some(LinkInput::Event(Event::Ready(report), _)) => return Ok(*report),
                Some(LinkInput::Event(Event::BootFailed { message, .. }, _)) => {
                    return Err(message);
                }
                Some(LinkInput::Event(..)) => {}
                Some(LinkInput::Closed(end)) => return Err(end.to_string()),
                None => return Err("its link has ended".to_owned()),
            }
        }
    }
}

/// Asks a process to leave, then tells it to, then makes it. It is gone when this returns.
///
/// # Errors
/// When it cannot be waited for.
pub(super) async fn shut_down(
    link: &mut Link,
    process: &mut WorkerProcess,
    mut stop: watch::Receiver<Stop>,
) -> std::io::Result<ExitStatus> {
    link.send(Command::Shutdown, None);
    let now = async {
        if stop.wait_for(|stop| *stop == Stop::Now).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    // A worker that cannot send does not hear either.
    let events = &mut link.events;
    let unheard = async {
        while events.recv().await.is_some() {}
        std::future::pending::<()>().await;
    };
    let asked = async {
        for signal in [Some(Signal::SIGTERM), None] {
            if let Ok(status) = timeout(LEAVE_TIMEOUT, process.wait()).await {
                return status;
            }
            if let Some(signal) = signal {
                process.signal(signal);
            }
        }
        process.kill().await
    };
    let left = tokio::select! {
        left = asked => Some(left),
        () = now => None,
        () = unheard => None,
    };
    match left {
        Some(left) => left,
        None => process.kill().await,
    }
}
