//! A session that this server runs. Its lease, its writer and the pending cleanup share it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use fastvideo_proto::ids::SessionId;
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;

use super::chunks::Chunks;
use super::ids::{BlobId, Epoch, RecordKey, ServerId};
use super::records::{BlobRef, StoredRecord};
use super::saved_session::SavedSession;
use super::unwritten::Unwritten;
use super::writer::RecordDraft;

/// A session that this server runs.
#[derive(Debug)]
pub(super) struct LeasedSession {
    pub(super) session: SessionId,
    /// The record's key, which is the session's id.
    pub(super) key: RecordKey,
    pub(super) token_hash: [u8; 32],
    /// Cancelled when the lease is lost: the session was resumed elsewhere or dropped.
    pub(super) lost: CancellationToken,
    /// The latest version that was committed. It may not be durable yet.
    latest: Mutex<SavedSession>,
    /// Number of segments that the client has said it has, from the first one on.
    received: AtomicU32,
    /// The media of the latest version that are not in the store yet.
    unwritten: Mutex<HashMap<BlobId, Unwritten>>,
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
            received: AtomicU32::new(0),
            unwritten: Mutex::default(),
            record: AsyncMutex::new(record),
            epoch: AtomicU64::new(epoch.0),
        })
    }

    pub(super) fn latest(&self) -> SavedSession {
        self.lock_latest().clone()
    }

    /// Changes the latest version.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut SavedSession) -> T) -> T {
        change(&mut self.lock_latest())
    }

    /// Takes note that the client has this many segments, from the first one on.
    pub(super) fn set_received(&self, segments: u32) {
        self.received.fetch_max(segments, Ordering::Relaxed);
    }

    pub(super) fn received(&self) -> u32 {
        self.received.load(Ordering::Relaxed)
    }

    /// Returns media that are not in the store yet.
    pub(super) fn unwritten(&self, blob: BlobId) -> Option<Chunks> {
        let unwritten = self.lock_unwritten();
        Some(unwritten.get(&blob)?.content.clone())
    }

    pub(super) fn add_unwritten(&self, blob: BlobId, media: Unwritten) {
        self.lock_unwritten().insert(blob, media);
    }

    /// Forgets the media that are in the store now, and those that no film names any more.
    pub(super) fn written(&self, stored: &[BlobRef]) {
        let film = self.latest().film;
        let is_needed = |id| {
            film.blobs().any(|blob| blob == id) && !stored.iter().any(|blob| blob.key.id == id)
        };
        self.lock_unwritten().retain(|id, _| is_needed(*id));
    }

    /// Returns the latest version as a record that replaces one with the blobs `known`. Media that are neither there nor
    /// in this process are forgotten: the store has dropped or lost them.
    pub(super) fn draft(
        &self,
        owner: Option<ServerId>,
        released: Option<SystemTime>,
        known: &[BlobRef],
    ) -> RecordDraft {
        let mut latest = self.lock_latest();
        let is_known = |id| known.iter().any(|blob| blob.key.id == id);
        (latest.film).keep_media(|id| is_known(id) || self.unwritten(id).is_some());
        latest.draft(self.token_hash, owner, released, |id| self.unwritten(id))
    }

    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Relaxed))
    }

    /// Takes note that the record was written or read in that epoch. The caller holds the lock of `record`.
    pub(super) fn set_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Relaxed);
    }

    fn lock_unwritten(&self) -> MutexGuard<'_, HashMap<BlobId, Unwritten>> {
        (self.unwritten.lock()).expect("no holder of this lock panics")
    }

    fn lock_latest(&self) -> MutexGuard<'_, SavedSession> {
        self.latest.lock().expect("no holder of this lock panics")
    }
}
