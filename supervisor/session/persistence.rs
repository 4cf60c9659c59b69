//! Stores a session's state in the background.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout};
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

use crate::causes::with_causes;
use crate::store::{Lease, LeaseWriter, Progress, RecordedSegment, State, StoreError};

/// Pause before a failed write of a state is repeated.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The session's side of a gate in its outbox. Dropping it opens the gate: what was put in behind it is sent.
#[derive(Debug)]
pub(super) struct Gate {
    /// Notified when everything before the gate was taken; closed without a message when that will never happen.
    pub(super) reached: oneshot::Receiver<()>,
    pub(super) opened: DropGuard,
}

/// A finished segment that has become part of its session.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) progress: Progress,
    /// The state that the next segment continues from.
    pub(super) state: State,
    /// Present where films are kept.
    pub(super) recorded: Option<RecordedSegment>,
}

/// Stores the latest state. A store that does not answer delays the session only for a short time: the session goes on,
/// and the state is stored as soon as the store answers again.
#[derive(Debug)]
pub(super) struct Persistence {
    /// How long the gates wait for the store, from the moment when it last worked.
    patience: Duration,
    /// Whether a segment is committed only when the client has its media, recorded or not.
    after_delivery: bool,
    /// Whether a gate has waited in vain, or a write has failed, and none has succeeded since.
    is_late: Arc<AtomicBool>,
    task: Option<JoinHandle<Result<(), StoreError>>>,
    retry_at: Option<Instant>,
    /// When the latest write began.
    began: Option<Instant>,
}

impl Persistence {
    /// Creates the persistence of a session. A gate opens when the state is stored, and after `patience` at the latest.
    /// While the store is late, gates open at once: an outage delays the session by `patience` in all.
    ///
    /// With `after_delivery`, no segment is committed before its media are delivered, so that a router knows that the
    /// client has all media of what is stored.
    pub(super) fn new(patience: Duration, after_delivery: bool) -> Self {
        Self {
            patience,
            after_delivery,
            is_late: Arc::default(),
            task: None,
            retry_at: None,
            began: None,
        }
    }

    /// Starts to store a finished segment. What is behind the gate is sent once the segment is stored, or the store is
    /// late.
    ///
    /// A segment whose media are recorded is committed at once: whoever resumes the session without them gets them.
    /// Another one is committed when the consumer has taken its media. So as long as the store answers in time, the
    /// client and the store agree on which segments are finished.
    pub(super) fn begin_behind(
        &mut self,
        gate: Gate,
        committed: Committed,
        lease: &Lease,
        writes: &TaskTracker,
    ) {
        self.retry_at = None;
        self.began = Some(Instant::now());
        let (writer, is_late, patience) = (lease.writer(), self.is_late.clone(), self.patience);
        let Committed {
            progress,
            state,
            recorded,
        } = committed;
        let Gate { reached, opened } = gate;
        let is_recorded = recorded.is_some();
        if let Some(recorded) = recorded {
            writer.record(recorded);
        }
        self.task = Some(if is_recorded && !self.after_delivery {
            writer.commit(progress, state);
            writes.spawn(async move {
                let late = writer.clone();
                let storing = write(writer, is_late.clone());
                let late = move || late.saved_late();
                store_before(opened, patience, is_late, storing, late).await
            })
        } else {
            writes.spawn(async move {
                if reached.await.is_err() {
                    // The client is gone without the segment: the session goes on from the one before.
                    return Ok(());
                }
                writer.commit(progress, state);
                let late = writer.clone();
                let storing = write(writer, is_late.clone());
                let late = move || late.saved_late();
                store_before(opened, patience, is_late, storing, late).await
            })
        });
    }

    /// Starts to store what was committed last.
    pub(super) fn begin(&mut self, lease: &Lease, writes: &TaskTracker) {
        self.retry_at = None;
        self.began = Some(Instant::now());
        let storing = write(lease.writer(), self.is_late.clone());
        self.task = Some(writes.spawn(storing));
    }

    /// Waits until the latest write has ended. The outcome has to be passed to [`Self::finish`].
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn ended(&mut self) -> Result<Result<(), StoreError>, JoinError> {
        match &mut self.task {
            Some(task) => task.await,
            None => pending().await,
        }
    }

    /// Handles the outcome of the latest write. A failed write has to be repeated at [`Self::retry_at`].
    ///
    /// # Errors
    /// Returns [`StoreError::Stale`] when the session must not go on here.
    pub(super) fn finish(
        &mut self,
        outcome: Result<Result<(), StoreError>, JoinError>,
    ) -> Result<(), StoreError> {
        self.task = None;
        let error = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(StoreError::Stale)) => return Err(StoreError::Stale),
            Ok(Err(error)) => with_causes(&error),
            Err(panic) => panic.to_string(),
        };
        tracing::debug!(error, "state not stored yet; the session goes on");
        self.retry_at = Some(Instant::now() + RETRY_PAUSE);
        Ok(())
    }

    /// Returns whether everything that was committed is stored.
    pub(super) fn is_done(&self) -> bool {
        self.task.is_none() && self.retry_at.is_none()
    }

    /// Returns when the latest write began.
    pub(super) fn began(&self) -> Option<Instant> {
        self.began
    }

    /// Returns when a failed write has to be repeated.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

/// Writes what was committed last, and takes note of whether the store works.
async fn write(writer: LeaseWriter, is_late: Arc<AtomicBool>) -> Result<(), StoreError> {
    let stored = writer.write().await;
    is_late.store(stored.is_err(), Ordering::Relaxed);
    stored
}

/// Stores a segment, and opens its gate when it is stored or `patience` has passed; at once when the store is late
/// already. `late` is called when the gate opens before the segment is stored.
async fn store_before(
    opened: DropGuard,
    patience: Duration,
    is_late: Arc<AtomicBool>,
    storing: impl Future<Output = Result<(), StoreError>>,
    late: impl FnOnce(),
) -> Result<(), StoreError> {
    let mut storing = pin!(storing);
    // The gate also holds back the media of the next segment, whose own gate would wait after it.
    let patience = match is_late.load(Ordering::Relaxed) {
        true => Duration::ZERO,
        false => patience,
    };
    let in_time = timeout(patience, &mut storing).await;
    if in_time.is_err() {
        is_late.store(true, Ordering::Relaxed);
    }
    if !matches!(in_time, Ok(Ok(()))) {
        late();
    }
    drop(opened);
    match in_time {
        Ok(stored) => stored,
        Err(_) => storing.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::outbox::Outbox;
    use crate::session::{SessionEvent, SessionState};

    /// An event behind a gate.
    fn gated() -> (Outbox, Gate) {
        let outbox = Outbox::new(1 << 20);
        let gate = outbox.gate();
        outbox.push(SessionEvent::StateChanged {
            from: SessionState::Queued,
            to: SessionState::GpuBinding,
        });
        (outbox, gate)
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_opens_in_time_however_long_the_store_takes() {
        let patience = Duration::from_secs(2);
        for (takes, expected) in [(1, 1), (2, 2), (7, 2), (u64::MAX, 2)] {
            let (outbox, gate) = gated();
            let begun = Instant::now();
            let storing = async {
                tokio::time::sleep(Duration::from_secs(takes)).await;
                Ok(())
            };
            let stored = store_before(gate.opened, patience, Arc::default(), storing, || ());
            let mut stored = pin!(stored);
            tokio::select! {
                biased;
                (event, _) = outbox.next() => {
                    assert!(matches!(event, SessionEvent::StateChanged { .. }));
                }
                // The write goes on when the gate is open.
                never = async { (&mut stored).await.unwrap(); pending::<()>().await } => never,
            }
            assert_eq!(begun.elapsed(), Duration::from_secs(expected), "{takes}");
            if takes == 7 {
                stored.await.unwrap();
                assert_eq!(begun.elapsed(), Duration::from_secs(takes));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_delays_segments_that_follow_each_other_by_the_patience_in_all() {
        let patience = Duration::from_secs(2);
        let is_late: Arc<AtomicBool> = Arc::default();
        let begun = Instant::now();
        // The segments are finished before the first gate opens.
        let outbox = Outbox::new(1 << 20);
        let mut writes = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let gate = outbox.gate();
            outbox.push(SessionEvent::StateChanged {
                from: SessionState::Queued,
                to: SessionState::GpuBinding,
            });
            let hangs = pending::<Result<(), StoreError>>();
            writes.spawn(store_before(
                gate.opened,
                patience,
                is_late.clone(),
                hangs,
                || (),
            ));
        }
        for _ in 0..5 {
            outbox.next().await;
        }
        assert_eq!(begun.elapsed(), patience);
    }
}
