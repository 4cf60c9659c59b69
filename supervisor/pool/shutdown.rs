//! Ends a process: it is asked to exit, then signalled, then killed, and always waited for.

use std::future::pending;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use fastvideo_proto::link::Command;
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::time::timeout;

use super::control::StopSignal;
use super::link::Link;
use super::process::WorkerProcess;

/// How long a process may take to exit after the command, and again after SIGTERM.
pub(super) const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks a process to exit by a command, then by SIGTERM, and then kills it. The process is gone when this returns.
///
/// # Errors
/// Returns an error when the process cannot be waited for.
pub(super) async fn shut_down(
    link: &mut Link,
    process: &mut WorkerProcess,
    mut stop: watch::Receiver<StopSignal>,
) -> io::Result<ExitStatus> {
    link.send(Command::Shutdown, Vec::new());
    let hurried = async {
        if stop
            .wait_for(|stop| *stop == StopSignal::Kill)
            .await
            .is_err()
        {
            pending::<()>().await;
        }
    };
    // The events are read and dropped: a worker whose events are not read blocks on them, and then does not read the
    // command.
    let events = &mut link.events;
    let read_events = async {
        while events.recv().await.is_some() {}
        pending::<()>().await;
    };
    let asked = async {
        if let Ok(status) = timeout(EXIT_TIMEOUT, process.wait()).await {
            return Some(status);
        }
        process.signal(Signal::SIGTERM);
        timeout(EXIT_TIMEOUT, process.wait()).await.ok()
    };
    let left = tokio::select! {
        left = asked => left,
        () = hurried => None,
        () = read_events => None,
    };
    match left {
        Some(left) => left,
        None => process.kill().await,
    }
}

/// Kills a process and waits for it. After that, its link yields only events that were sent before.
pub(super) async fn kill(link: &Link, process: &mut WorkerProcess) {
    if let Err(error) = process.kill().await {
        tracing::error!(%error, "cannot wait for a killed worker");
    }
    link.give_up();
}
