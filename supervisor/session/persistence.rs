//! What is on its way to the store.

use std::future::pending;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

use crate::store::{Lease, Progress, State, StoreError};

/// Pause before a state is stored again that could not be stored.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The session's side of a gate in its outbox: what was put in behind it is sent when this is dropped.
#[derive(Debug)]
pub(super) struct Gate {
    /// Rings when all before it was handed to the socket; ends without ringing when that will never be.
    pub(super) reached: oneshot::Receiver<()>,
    pub(super) opened: DropGuard,
}

/// The latest state's way to the store. A store that does not answer holds nobody up for long: the session goes on, and
/// the state is stored as soon as the store answers again.
#[derive(Debug, Default)]
pub(super) struct Persistence {
    task: Option<JoinHandle<Result<(), StoreError>>>,
    again: Option<Instant>,
}

impl Persistence {
    /// Begins to store. With a gate: once the segment's media were handed to the socket, and what is behind the gate is
    /// sent when the state is stored, so that neither is ever without the other.
    pub(super) fn begin(
        &mut self,
        lease: &Lease,
        progress: Progress,
        state: State,
        gate: Option<Gate>,
        writes: &TaskTracker,
    ) {
        self.again = None;
        let lease = lease.writer();
        self.task = Some(writes.spawn(async move {
            let Some(gate) = gate else {
                return lease.store(progress, state).await;
            };
            if gate.reached.await.is_err() {
                // The client is gone without the segment: the session goes on from the one before.
                return Ok(());
            }
            let stored = lease.store(progress, state).await;
            drop(gate.opened);
            stored
        }));
    }

    /// Waits for the end of what was begun.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn ended(&mut self) -> Result<Result<(), StoreError>, JoinError> {
        match &mut self.task {
            Some(task) => task.await,
            None => pending().await,
        }
    }

    /// Takes note of how it ended.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when the session must not go on here.
    pub(super) fn saved(
        &mut self,
        outcome: Result<Result<(), StoreError>, JoinError>,
    ) -> Result<(), StoreError> {
        self.task = None;
        let failed = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(StoreError::Stale)) => return Err(StoreError::Stale),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        tracing::warn!(error = failed, "state not stored yet; the session goes on");
        self.again = Some(Instant::now() + RETRY_PAUSE);
        Ok(())
    }

    /// When to store again what could not be stored.
    pub(super) fn again(&self) -> Option<Instant> {
        self.again
    }
}
