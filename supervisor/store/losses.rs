//! What a server knows of the store's losses, and of what it has removed itself.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::error::StoreError;
use super::ids::{Epoch, RecordKey, Revision};

/// Number of removals that a server remembers.
const MAX_REMOVED: usize = 1024;

/// The last sessions and video jobs whose records this server has removed. In a store that has lost data, a server that has
/// not learnt of a removal would bring what it runs back.
#[derive(Debug, Default)]
pub(super) struct Removed(Mutex<VecDeque<(RecordKey, Revision)>>);

impl Removed {
    /// Remembers a removal by its revision.
    pub(super) fn add(&self, key: &RecordKey, revision: Revision) {
        if let RecordKey::Loan(_) | RecordKey::VideoClaim(_) = key {
            return;
        }
        let mut removed = self.lock();
        if removed.len() == MAX_REMOVED {
            removed.pop_front();
        }
        removed.push_back((key.clone(), revision));
    }

    /// Returns all removals that are remembered.
    pub(super) fn all(&self) -> Vec<(RecordKey, Revision)> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(RecordKey, Revision)>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// Which of the store's losses this server has noticed.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    noticed: Mutex<Noticed>,
    /// Notified when an operation has found that the store has lost data.
    found: Notify,
    /// Notified when there is something to restore.
    needed: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Noticed {
    pub(super) epoch: Epoch,
    /// When this server has noticed the last loss.
    pub(super) at: Option<Instant>,
    /// The epoch in which the removals were repeated.
    pub(super) removed_in: Epoch,
}

impl Restoring {
    /// Waits until an operation has found that the store has lost data.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn found(&self) {
        self.found.notified().await;
    }

    /// Takes note of an operation's outcome.
    pub(super) fn observe<T>(&self, outcome: &Result<T, StoreError>) {
        if let Err(StoreError::Forgotten) = outcome {
            self.found.notify_one();
        }
    }

    /// Wakes who waits for something to restore.
    pub(super) fn is_needed(&self) {
        self.needed.notify_one();
    }

    /// Waits until there is something to restore.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn needed(&self) {
        self.needed.notified().await;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Noticed> {
        self.noticed.lock().expect("no holder of this lock panics")
    }
}
