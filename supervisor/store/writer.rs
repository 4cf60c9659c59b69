//! Writes one record together with its blobs: reserve, put, then compare-and-swap.
//!
//! A blob that is new to the record is reserved first, so that garbage collection does not delete it while it is on its
//! way; then it is put; the write of the record that names it ends the reservation. This module does not know what a
//! record is about.

use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::chunks::Chunks;
use super::error::StoreError;
use super::handle::{Deadline, SessionStore};
use super::health::Operation;
use super::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};
use super::pending_cleanup::CleanupTask;
use super::records::{BlobKind, BlobRef, Record, RecordWrite, StoredRecord};

/// Number of attempts at a write whose reservation is taken back each time.
const MAX_RESERVATIONS: u32 = 3;

/// What the write of a record replaces.
#[derive(Clone, Copy, Debug)]
pub(super) enum Replaces<'a> {
    /// There must be no record.
    Nothing,
    /// This record, whose blobs are in the store already.
    Record(&'a StoredRecord),
    /// The record with this revision, which the store may have lost, or any earlier version of it.
    Lost(Revision),
}

impl Replaces<'_> {
    fn revision(self) -> Option<Revision> {
        match self {
            Self::Nothing => None,
            Self::Record(stored) => Some(stored.revision),
            Self::Lost(revision) => Some(revision),
        }
    }
}

/// A record to be written, with its blobs, each at most once.
pub(super) struct RecordDraft {
    pub(super) owner: Option<ServerId>,
    pub(super) body: Vec<u8>,
    pub(super) blobs: Vec<DraftBlob>,
}

impl RecordDraft {
    /// Returns whether this is what the store has.
    pub(super) fn is(&self, stored: &StoredRecord) -> bool {
        (&self.owner, &self.body) == (&stored.record.owner, &stored.record.body)
    }
}

/// A blob of a record that is to be written.
pub(super) struct DraftBlob {
    pub(super) id: BlobId,
    pub(super) kind: BlobKind,
    /// Where the blob's bytes are. Without them, the blob is left out of the record unless the record that is replaced
    /// names it.
    pub(super) content: Option<BlobContent>,
}

/// Where the bytes of a blob are.
#[derive(Clone, Debug)]
pub(super) enum BlobContent {
    /// In this process.
    Bytes(Chunks),
    /// In the store, as that edition, which another record has named.
    Stored(BlobRef),
}

impl BlobContent {
    /// Returns the number of bytes.
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Stored(blob) => blob.bytes,
        }
    }
}

/// A reservation of blobs. Dropping it gives them back, unless a write has used it.
#[derive(Debug)]
struct Reservation {
    store: SessionStore,
    id: ReservationId,
    /// The reserved editions; `None` until the store has answered.
    blobs: Option<Vec<BlobKey>>,
    ended: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.ended {
            let unreserve = CleanupTask::Unreserve(self.id, self.blobs.take());
            self.store.0.cleanup.add(unreserve);
        }
    }
}

impl SessionStore {
    /// Writes a record in place of another one. Returns the record as it is kept.
    ///
    /// # Errors
    /// Returns [`StoreError::Stale`] when the store has something else than what is to be replaced. After any error
    /// nothing has changed, unless the store's answer was lost.
    pub(super) async fn write_record(
        &self,
        key: &RecordKey,
        replaces: Replaces<'_>,
        draft: &RecordDraft,
        deadline: Deadline,
    ) -> Result<StoredRecord, StoreError> {
        let written = self.try_write(key, replaces, draft, deadline).await;
        self.0.health.observe(Operation::Write, &written);
        self.0.restoring.observe(&written);
        written
    }

    async fn try_write(
        &self,
        key: &RecordKey,
        replaces: Replaces<'_>,
        draft: &RecordDraft,
        deadline: Deadline,
    ) -> Result<StoredRecord, StoreError> {
        let mut tries = 0;
        loop {
            let known = match replaces {
                Replaces::Record(stored) => stored.record.blobs.as_slice(),
                Replaces::Nothing | Replaces::Lost(_) => &[],
            };
            let (mut blobs, mut new) = (Vec::new(), Vec::new());
            for blob in &draft.blobs {
                if let Some(known) = known.iter().find(|known| known.key.id == blob.id) {
                    blobs.push(*known);
                } else if let Some(content) = &blob.content {
                    new.push((blob, content.clone()));
                }
            }
            let mut reservation = None;
            if !new.is_empty() {
                let ids: Vec<BlobId> = new.iter().map(|(blob, _)| blob.id).collect();
                let (reserved, keys) = self.reserve(&ids, deadline).await?;
                let mut puts = Vec::new();
                for ((blob, content), key) in new.into_iter().zip(keys) {
                    let (bytes, kind) = (content.len(), blob.kind);
                    blobs.push(BlobRef { key, bytes, kind });
                    puts.push((key, content));
                }
                reservation = Some(self.put(reserved, puts, deadline).await?);
            }
            let record = Record {
                owner: draft.owner.clone(),
                blobs,
                body: draft.body.clone(),
            };
            let write = RecordWrite {
                key,
                expected: replaces.revision(),
                record: Some(&record),
                server: &self.0.server,
                reservation: reservation.as_ref().map(|reservation| reservation.id),
            };
            tries += 1;
            let writing = match replaces {
                Replaces::Lost(_) => self.0.records.restore(write),
                Replaces::Nothing | Replaces::Record(_) => self.0.records.write(write),
            };
            match deadline.limit(writing).await {
                Ok(outcome) => {
                    if let Some(reservation) = &mut reservation {
                        reservation.ended = true;
                    }
                    self.0.cleanup.delete(outcome.condemned);
                    let revision = outcome.revision;
                    return Ok(StoredRecord { revision, record });
                }
                // This server was stopped for a while and taken for dead.
                Err(StoreError::Unreserved) if tries < MAX_RESERVATIONS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Replaces or removes a record whose blobs are in the store already.
    ///
    /// # Errors
    /// Returns [`StoreError::Stale`] when the record's revision is no longer `expected`.
    pub(super) async fn swap_record(
        &self,
        key: &RecordKey,
        expected: Revision,
        record: Option<&Record>,
        deadline: Deadline,
    ) -> Result<Revision, StoreError> {
        let write = RecordWrite {
            key,
            expected: Some(expected),
            record,
            server: &self.0.server,
            reservation: None,
        };
        let outcome = deadline.limit(self.0.records.write(write)).await?;
        self.0.cleanup.delete(outcome.condemned);
        if record.is_none() {
            self.0.removed.add(key, outcome.revision);
        }
        Ok(outcome.revision)
    }

    /// Removes a record, regardless of its revision. Returns false when there is none.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub(super) async fn remove_record(&self, key: &RecordKey) -> Result<bool, StoreError> {
        loop {
            let Some(stored) = self.within(self.0.records.read(key)).await? else {
                return Ok(false);
            };
            let removed = self.swap_record(key, stored.revision, None, self.deadline());
            match removed.await {
                Ok(_) => return Ok(true),
                Err(StoreError::Stale) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn reserve(
        &self,
        blobs: &[BlobId],
        deadline: Deadline,
    ) -> Result<(Reservation, Vec<BlobKey>), StoreError> {
        let reservation = |id| Reservation {
            store: self.clone(),
            id,
            blobs: None,
            ended: false,
        };
        // While a reservation is unanswered, no other one is made, so that an outage does not pile them up.
        while let Some(id) = self.0.cleanup.take_unanswered() {
            let mut unanswered = reservation(id);
            let released = self.0.records.release(&self.0.server, id, &[]);
            self.0.cleanup.delete(deadline.limit(released).await?);
            unanswered.ended = true;
        }
        let id = ReservationId(self.0.reservations.fetch_add(1, Ordering::Relaxed));
        let mut reservation = reservation(id);
        let reserving = self.0.records.reserve(&self.0.server, id, blobs);
        let keys = deadline.limit(reserving).await?;
        if keys.len() != blobs.len() {
            return Err(StoreError::unavailable("not all blobs were reserved"));
        }
        reservation.blobs = Some(keys.clone());
        Ok((reservation, keys))
    }

    /// Puts reserved blobs. The reservation outlives the caller's wait: a blob that is still on its way when its
    /// reservation ends would be deleted before it is there.
    async fn put(
        &self,
        reservation: Reservation,
        puts: Vec<(BlobKey, BlobContent)>,
        deadline: Deadline,
    ) -> Result<Reservation, StoreError> {
        let (done, is_done) = oneshot::channel();
        let blobs = self.0.blobs.clone();
        let putting = async move {
            let puts = puts.into_iter().map(|(key, content)| {
                let blobs = &blobs;
                async move {
                    match content {
                        BlobContent::Bytes(bytes) => blobs.put(key, bytes).await,
                        // A record named this edition, and it has been counted ever since.
                        BlobContent::Stored(blob) if blob.key == key => Ok(()),
                        BlobContent::Stored(blob) => blobs.copy(blob.key, key).await,
                    }
                }
            });
            // Waits for all of them, also when one fails.
            let outcome: Result<Vec<()>, _> = join_all(puts).await.into_iter().collect();
            // When the caller no longer waits, this drops the reservation.
            let _ = done.send((reservation, outcome));
        };
        self.0.puts.spawn(putting.in_current_span());
        let waited = async { is_done.await.map_err(StoreError::unavailable) };
        let (reservation, outcome) = deadline.limit(waited).await?;
        outcome.map(|_| reservation)
    }
}
