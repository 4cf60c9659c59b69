//! The signals that the server heeds.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::reload::Reloads;

/// The signals that ask the server to stop: SIGTERM and SIGINT.
#[derive(Debug)]
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

/// SIGHUP, which asks the program to read its configuration again.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl StopSignals {
    /// Handles both signals from now on; they no longer end the process.
    ///
    /// # Errors
    /// When the operating system does not let a signal be handled.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl Hangups {
    /// Handles SIGHUP from now on; it no longer ends the process.
    ///
    /// # Errors
    /// When the operating system does not let a signal be handled.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Reads everything again at every SIGHUP. The log is told how that goes.
    pub(crate) async fn reload(mut self, reloads: Reloads) {
        while self.0.recv().await.is_some() {
            let _ = reloads.run().await;
        }
    }
}
