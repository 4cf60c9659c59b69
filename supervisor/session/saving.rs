//! What is on its way to the store.

use std::future::pending;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::segment::Segment;
use crate::store::{Lease, Progress, State, StoreError};

/// Pause before a state is stored again that could not be stored.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A segment that is whole, of which the client hears once its state is stored: what a client has been told is finished
/// must not be lost with this server.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) segment: Segment,
    pub(super) start_frame: u64,
    pub(super) frames: u32,
    pub(super) generation: Duration,
}

/// The latest state's way to the store. A store that does not answer holds nobody up for long: the session goes on, and
/// the state is stored as soon as the store answers again.
#[derive(Debug, Default)]
pub(super) struct Saving {
    task: Option<JoinHandle<Result<(), StoreError>>>,
    finished: Option<Box<Finished>>,
    again: Option<Instant>,
}

impl Saving {
    /// Begins to store; `finished` is handed out by [`Self::saved`].
    pub(super) fn begin(
        &mut self,
        lease: &Lease,
        progress: Progress,
        state: State,
        finished: Option<Finished>,
        writes: &TaskTracker,
    ) {
        self.again = None;
        self.task = Some(writes.spawn(lease.store(progress, state)));
        if let Some(finished) = finished {
            self.finished = Some(Box::new(finished));
        }
    }

    /// The client has not been told yet of a segment that is finished.
    pub(super) fn holds_back(&self) -> bool {
        self.finished.is_some()
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

    /// Takes note of how it ended. Returns the segment that the client may be told of now.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when the session must not go on here.
    pub(super) fn saved(
        &mut self,
        outcome: Result<Result<(), StoreError>, JoinError>,
    ) -> Result<Option<Box<Finished>>, StoreError> {
        self.task = None;
        let failed = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(StoreError::Stale)) => return Err(StoreError::Stale),
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic.to_string()),
        };
        if let Some(error) = failed {
            tracing::warn!(error, "state not stored yet; the session goes on");
            self.again = Some(Instant::now() + RETRY_PAUSE);
        }
        Ok(self.finished.take())
    }

    /// When to store again what could not be stored.
    pub(super) fn again(&self) -> Option<Instant> {
        self.again
    }
}
