//! Writes one record together with its blobs: reserve, put, then compare-and-swap.
//!
//! A blob that is new to the record is reserved first, so that garbage collection does not delete it while it is on its
//! way; then it is put; the write of the record that names it ends the reservation. This module does not know what a
//! record is about.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::error::StoreError;
use super::handle::{Deadline, SessionStore};
use super::health::Operation;
use super::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};
use super::pending_cleanup::CleanupTask;
use super::records::{BlobRef, Record, RecordWrite, StoredRecord};

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

/// A record to be written, with the bytes of its blobs.
pub(super) struct RecordDraft {
    pub(super) owner: Option<ServerId>,
    pub(super) body: Vec<u8>,
    pub(super) blob: Option<(BlobId, Bytes)>,
}

/// A reservation of a blob. Dropping it gives it back, unless a write has used it.
#[derive(Debug)]
struct Reservation {
    store: SessionStore,
    id: ReservationId,
    /// The reserved edition; `None` until the store has answered.
    blob: Option<BlobKey>,
    ended: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.ended {
            let unreserve = CleanupTask::Unreserve(self.id, self.blob);
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
            let mut reservation = None;
            let mut blobs = Vec::new();
            if let Some((id, bytes)) = &draft.blob {
                let known = match replaces {
                    Replaces::Record(stored) => stored.record.blobs.as_slice(),
                    Replaces::Nothing | Replaces::Lost(_) => &[],
                };
                let key = match known.iter().find(|blob| blob.key.id == *id) {
                    Some(blob) => blob.key,
                    None => {
                        let (reserved, key) = self.reserve(*id, deadline).await?;
                        let put = self.put(reserved, key, bytes.clone(), deadline);
                        reservation = Some(put.await?);
                        key
                    }
                };
                let bytes = bytes.len() as u64;
                blobs.push(BlobRef { key, bytes });
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
        blob: BlobId,
        deadline: Deadline,
    ) -> Result<(Reservation, BlobKey), StoreError> {
        let reservation = |id| Reservation {
            store: self.clone(),
            id,
            blob: None,
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
        let blobs = [blob];
        let reserving = self.0.records.reserve(&self.0.server, id, &blobs);
        let keys = deadline.limit(reserving).await?;
        let key = keys.first().copied();
        let key = key.ok_or_else(|| StoreError::unavailable("no blob was reserved"))?;
        reservation.blob = Some(key);
        Ok((reservation, key))
    }

    /// Puts a reserved blob. The reservation outlives the caller's wait: a blob that is still on its way when its
    /// reservation ends would be deleted before it is there.
    async fn put(
        &self,
        reservation: Reservation,
        key: BlobKey,
        bytes: Bytes,
        deadline: Deadline,
    ) -> Result<Reservation, StoreError> {
        let (done, is_done) = oneshot::channel();
        let blobs = self.0.blobs.clone();
        let putting = async move {
            let outcome = blobs.put(key, bytes).await;
            // When the caller no longer waits, this drops the reservation.
            let _ = done.send((reservation, outcome));
        };
        self.0.puts.spawn(putting.in_current_span());
        let waited = async { is_done.await.map_err(StoreError::unavailable) };
        let (reservation, outcome) = deadline.limit(waited).await?;
        outcome.map(|()| reservation)
    }
}
