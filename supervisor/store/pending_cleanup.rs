//! Cleanup that must happen but cannot wait for the store: releasing and ending leases, dropping sessions, deleting
//! blobs.
//!
//! A cleanup task is idempotent: doing it twice does no harm. `upkeep` executes the tasks, and retries those that the
//! store did not answer. Their number is bounded by the numbers of sessions, video jobs, blobs and concurrent writes, however long
//! the store is unavailable: a blob is deleted by one task, and a reservation that the store did not answer is given
//! back by the next writer before it makes another one, see [`PendingCleanup::take_unanswered`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use fastvideo_proto::ids::SessionId;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use super::ids::{BlobKey, ReservationId};
use super::leased_session::LeasedSession;
use super::leased_video::LeasedVideo;

/// A task that must be done, whether or not the store answers now.
#[derive(Clone, Debug)]
pub(super) enum CleanupTask {
    /// Gives a lease back: this server no longer runs the session, and its state is kept for a while.
    Release(Arc<LeasedSession>),
    /// Gives the lease of a video job back: any server may go on with it.
    ReleaseVideo(Arc<LeasedVideo>),
    /// Removes the record of a session that its lease has ended.
    End(Arc<LeasedSession>),
    /// Removes the record of a session that an operator has ended, whichever server runs it by now.
    Drop(SessionId),
    /// Gives back a reservation that no write has used, and the blobs that may have been put under it. They are missing
    /// when the store did not answer: then nothing was put.
    Unreserve(ReservationId, Option<Vec<BlobKey>>),
    /// Deletes a condemned blob, then forgets it.
    Delete(BlobKey),
}

/// The cleanup tasks that are left to do.
#[derive(Debug, Default)]
pub(super) struct PendingCleanup {
    tasks: Mutex<Tasks>,
    added: Notify,
    /// Locked while tasks are executed, so that only one caller executes them.
    pub(super) executing: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct Tasks {
    /// Number of tasks that were ever added.
    added: u64,
    pending: BTreeMap<TaskKey, PendingTask>,
}

/// Tasks with the same key are the same task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TaskKey {
    Numbered(u64),
    Reservation(ReservationId),
    Blob(BlobKey),
}

/// A task, and the number of tasks that were added up to it: one that is added again while it is executed stays
/// pending.
#[derive(Clone, Debug)]
pub(super) struct PendingTask {
    key: TaskKey,
    number: u64,
    pub(super) task: CleanupTask,
}

impl PendingCleanup {
    pub(super) fn add(&self, task: CleanupTask) {
        let mut tasks = self.lock();
        tasks.added += 1;
        let number = tasks.added;
        let key = match &task {
            CleanupTask::Unreserve(id, _) => TaskKey::Reservation(*id),
            CleanupTask::Delete(blob) => TaskKey::Blob(*blob),
            _ => TaskKey::Numbered(number),
        };
        tasks.pending.insert(key, PendingTask { key, number, task });
        drop(tasks);
        self.added.notify_one();
    }

    pub(super) fn delete(&self, condemned: impl IntoIterator<Item = BlobKey>) {
        for blob in condemned {
            self.add(CleanupTask::Delete(blob));
        }
    }

    /// Waits until a task was added since this last returned.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    /// Returns a copy of the tasks, each of which stays pending until it is [`Self::done`].
    pub(super) fn pending(&self) -> Vec<PendingTask> {
        self.lock().pending.values().cloned().collect()
    }

    pub(super) fn done(&self, done: &PendingTask) {
        let mut tasks = self.lock();
        let current = tasks.pending.get(&done.key);
        if current.is_some_and(|current| current.number == done.number) {
            tasks.pending.remove(&done.key);
        }
    }

    /// Drops the tasks that concern blobs.
    pub(super) fn forget_blobs(&self) {
        self.lock()
            .pending
            .retain(|key, _| matches!(key, TaskKey::Numbered(_)));
    }

    /// Takes out a reservation that the store did not answer.
    pub(super) fn take_unanswered(&self) -> Option<ReservationId> {
        let mut tasks = self.lock();
        let unanswered = tasks
            .pending
            .values()
            .find_map(|pending| match pending.task {
                CleanupTask::Unreserve(id, None) => Some((pending.key, id)),
                _ => None,
            });
        let (key, id) = unanswered?;
        tasks.pending.remove(&key);
        Some(id)
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::super::ids::BlobId;
    use super::*;

    #[test]
    fn a_task_that_is_added_while_it_is_executed_stays_pending() {
        let cleanup = PendingCleanup::default();
        let blob = BlobKey {
            id: BlobId::of(b"late"),
            edition: 1,
        };
        cleanup.delete([blob, blob]);
        let executing = cleanup.pending();
        assert_eq!(executing.len(), 1);
        // The blob's put was late.
        cleanup.delete([blob]);
        cleanup.done(&executing[0]);
        let left = cleanup.pending();
        assert_eq!(left.len(), 1);
        cleanup.done(&left[0]);
        assert!(cleanup.pending().is_empty());
    }
}
