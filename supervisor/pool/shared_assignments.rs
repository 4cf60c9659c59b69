//! The assignments of sessions to workers, behind a lock.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::assignments::Assignments;

/// The assignments, shared by the sessions and the workers' tasks. The lock is held for short sections only.
///
/// A panic while the lock is held may leave the assignments inconsistent. It does not spread to the other holders as a
/// poisoned mutex would: [`Self::failed`] resolves instead, and the server has to end.
#[derive(Debug)]
pub(super) struct SharedAssignments {
    assignments: Mutex<Assignments>,
    failed: CancellationToken,
    /// Told when a holder of the lock may have changed something.
    changed: watch::Sender<()>,
}

/// The locked assignments.
#[derive(Debug)]
pub(super) struct AssignmentsGuard<'a> {
    assignments: MutexGuard<'a, Assignments>,
    failed: &'a CancellationToken,
    changed: &'a watch::Sender<()>,
    may_have_changed: bool,
    /// Whether the thread was already unwinding from another panic when it took the lock.
    was_panicking: bool,
}

impl SharedAssignments {
    pub(super) fn new(assignments: Assignments) -> Self {
        Self {
            assignments: Mutex::new(assignments),
            failed: CancellationToken::new(),
            changed: watch::Sender::default(),
        }
    }

    /// Returns a receiver that is told when the assignments may have changed.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn lock(&self) -> AssignmentsGuard<'_> {
        AssignmentsGuard {
            assignments: (self.assignments.lock()).unwrap_or_else(PoisonError::into_inner),
            failed: &self.failed,
            changed: &self.changed,
            may_have_changed: false,
            was_panicking: thread::panicking(),
        }
    }

    /// Waits until a holder of the lock panics, which is a programming error.
    pub(super) async fn failed(&self) {
        self.failed.cancelled().await;
    }
}

impl Deref for AssignmentsGuard<'_> {
    type Target = Assignments;

    fn deref(&self) -> &Assignments {
        &self.assignments
    }
}

impl DerefMut for AssignmentsGuard<'_> {
    fn deref_mut(&mut self) -> &mut Assignments {
        self.may_have_changed = true;
        &mut self.assignments
    }
}

impl Drop for AssignmentsGuard<'_> {
    fn drop(&mut self) {
        if thread::panicking() && !self.was_panicking {
            tracing::error!("a holder of the assignments' lock panicked: the server has to end");
            self.failed.cancel();
        }
        if self.may_have_changed {
            self.changed.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fastvideo_proto::ids::SessionId;
    use futures_util::FutureExt;

    use super::*;
    use crate::pool::fixtures;
    use crate::pool::metrics::PoolMetrics;

    #[test]
    fn a_panic_under_the_lock_is_told_and_does_not_spread() {
        let sharing = fixtures::sharing(1);
        let shared = Arc::new(SharedAssignments::new(Assignments::new(
            [],
            sharing,
            PoolMetrics::default(),
        )));
        assert!(shared.failed().now_or_never().is_none());
        let other = shared.clone();
        let panicked = thread::spawn(move || {
            let _guard = other.lock();
            panic!("a panic under the lock");
        });
        assert!(panicked.join().is_err());
        assert!(shared.failed().now_or_never().is_some());
        shared.lock().leave(&SessionId::random());
    }

    #[test]
    fn changes_are_told_and_looks_are_not() {
        let sharing = fixtures::sharing(1);
        let shared = SharedAssignments::new(Assignments::new([], sharing, PoolMetrics::default()));
        let changes = shared.changes();
        assert_eq!(shared.lock().queue_depth(), 0);
        assert!(!changes.has_changed().unwrap());
        shared.lock().leave(&SessionId::random());
        assert!(changes.has_changed().unwrap());
    }

    #[test]
    fn a_panic_beside_the_lock_is_none_under_it() {
        struct LocksOnDrop(Arc<SharedAssignments>);
        impl Drop for LocksOnDrop {
            fn drop(&mut self) {
                self.0.lock().leave(&SessionId::random());
            }
        }
        let sharing = fixtures::sharing(1);
        let shared = Arc::new(SharedAssignments::new(Assignments::new(
            [],
            sharing,
            PoolMetrics::default(),
        )));
        let session = LocksOnDrop(shared.clone());
        let panicked = thread::spawn(move || {
            let _session = session;
            panic!("a panic beside the lock");
        });
        assert!(panicked.join().is_err());
        assert!(shared.failed().now_or_never().is_none());
    }
}
