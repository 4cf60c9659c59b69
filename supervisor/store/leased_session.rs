//! A session that this server runs. Its lease, its writer and the pending cleanup share it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use fastvideo_proto::ids::SessionId;
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;

use super::ids::{Epoch, RecordKey};
use super::records::StoredRecord;
use super::saved_session::SavedSession;

/// A session that this server runs.
#[derive(Debug)]
pub(super) struct LeasedSession {
    pub(super) session: SessionId,
    /// The record's key, which is the session's id.
    pub(super) key: RecordKey,
    pub(super) token_hash: [u8; 32],
    /// Cancelled when the lease is lost: the session was resumed elsewhere or dropped.
    pub(super) lost: CancellationToken,
    /// The latest version that was handed to the writer. It may not be durable yet.
    latest: Mutex<SavedSession>,
    /// The record as this server last wrote or read it, whose revision the next write names. Locked while the session
    /// is written, so that writes of one session follow each other.
    pub(super) record: AsyncMutex<StoredRecord>,
    /// The store's epoch in which `record` was last written or read. In a later one it may be lost.
    epoch: AtomicU64,
}

impl LeasedSession {
    pub(super) fn new(
        session: &SessionId,
        token_hash: [u8; 32],
        latest: SavedSession,
        record: StoredRecord,
        epoch: Epoch,
    ) -> Arc<Self> {
        Arc::new(Self {
            session: session.clone(),
            key: session.clone().into(),
            token_hash,
            lost: CancellationToken::new(),
            latest: Mutex::new(latest),
            record: AsyncMutex::new(record),
            epoch: AtomicU64::new(epoch.0),
        })
    }

    pub(super) fn latest(&self) -> SavedSession {
        self.lock_latest().clone()
    }

    pub(super) fn set_latest(&self, latest: SavedSession) {
        *self.lock_latest() = latest;
    }

    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Relaxed))
    }

    /// Takes note that the record was written or read in that epoch. The caller holds the lock of `record`.
    pub(super) fn set_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Relaxed);
    }

    fn lock_latest(&self) -> MutexGuard<'_, SavedSession> {
        self.latest.lock().expect("no holder of this lock panics")
    }
}

/// The sessions that this server runs.
#[derive(Debug, Default)]
pub(super) struct LeasedSessions(Mutex<HashMap<SessionId, Arc<LeasedSession>>>);

impl LeasedSessions {
    pub(super) fn get(&self, session: &SessionId) -> Option<Arc<LeasedSession>> {
        self.lock().get(session).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<LeasedSession>> {
        self.lock().values().cloned().collect()
    }

    /// Returns whether this server still runs the session under this very lease.
    pub(super) fn holds(&self, leased: &Arc<LeasedSession>) -> bool {
        let all = self.lock();
        (all.get(&leased.session)).is_some_and(|current| Arc::ptr_eq(current, leased))
    }

    /// Inserts a lease, and returns the one that it replaces.
    pub(super) fn insert(&self, leased: Arc<LeasedSession>) -> Option<Arc<LeasedSession>> {
        self.lock().insert(leased.session.clone(), leased)
    }

    /// Removes the session, whichever lease holds it, and returns it.
    pub(super) fn take(&self, session: &SessionId) -> Option<Arc<LeasedSession>> {
        self.lock().remove(session)
    }

    /// Removes this lease, unless another one has replaced it.
    pub(super) fn remove(&self, leased: &Arc<LeasedSession>) {
        let mut all = self.lock();
        if (all.get(&leased.session)).is_some_and(|current| Arc::ptr_eq(current, leased)) {
            all.remove(&leased.session);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<LeasedSession>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}
