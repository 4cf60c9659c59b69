//! Requests of operators and of the server's shutdown to a worker's task.

use std::future::pending;

use tokio::sync::watch;
use tokio::time::Instant;

/// An operator's request to a worker. Every directive makes the running process exit, and says what follows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Directive {
    /// Whether no process is started until another directive. Otherwise the next process is started at once.
    pub(super) drained: bool,
    /// The deadline after which jobs that still run are taken back.
    pub(super) cut_at: Option<Instant>,
}

/// The phase of the pool's shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopSignal {
    Run,
    /// Workers are asked to exit.
    Ask,
    /// Workers are killed.
    Kill,
}

/// One request to a worker's task.
#[derive(Clone, Copy, Debug)]
pub(super) enum Control {
    Stop,
    Directive(Directive),
}

/// The receiving ends of all requests to one worker's task.
#[derive(Debug)]
pub(super) struct Controls {
    directive: watch::Receiver<Directive>,
    stop: watch::Receiver<StopSignal>,
}

impl Controls {
    pub(super) fn new(
        directive: watch::Receiver<Directive>,
        stop: watch::Receiver<StopSignal>,
    ) -> Self {
        Self { directive, stop }
    }

    /// Waits for a directive or for the pool's shutdown. A shutdown is returned again by every later call.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Control {
        // A pool that has been dropped counts as stopped.
        let stopped = self.stop.wait_for(|stop| *stop != StopSignal::Run);
        tokio::select! {
            _ = stopped => Control::Stop,
            changed = self.directive.changed() => match changed {
                Ok(()) => Control::Directive(*self.directive.borrow_and_update()),
                Err(_) => Control::Stop,
            }
        }
    }

    /// Returns the latest directive, and whether [`Self::next`] has not returned it yet. It counts as returned from now
    /// on.
    pub(super) fn latest_directive(&mut self) -> (Directive, bool) {
        let is_new = self.directive.has_changed().unwrap_or(false);
        (*self.directive.borrow_and_update(), is_new)
    }

    /// Waits for a directive that wants the worker started again; returns false when the pool stops instead.
    pub(super) async fn wanted_back(&mut self) -> bool {
        let stopped = self.stop.wait_for(|stop| *stop != StopSignal::Run);
        let wanted = async {
            if self.directive.wait_for(|d| !d.drained).await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            _ = stopped => false,
            () = wanted => true,
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stop.borrow() != StopSignal::Run
    }

    pub(super) fn stop_signal(&self) -> watch::Receiver<StopSignal> {
        self.stop.clone()
    }
}
