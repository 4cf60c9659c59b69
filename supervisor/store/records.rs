//! Records: small, and changed in one atomic step each. A record has an owner, a body, and the blobs that it names.
//!
//! A backend compares revisions, counts references to blobs and keeps bytes. It does not know what a body means.
//!
//! **Compare-and-swap.** Every write names the revision that it replaces, and fails when the record has another one.
//! Revisions are never used twice, so they are fencing tokens: a writer that was overtaken cannot write any more.
//!
//! **Reference counts.** A blob is counted once for each record that names it and once for each reservation. Whoever wants
//! to put a blob reserves it first, then puts it, then writes the record that names it; the write ends the reservation. A
//! blob whose count falls to zero is *condemned* in the same step (a tombstone): it is to be deleted, then forgotten.
//! Garbage that a crash leaves (a reservation, a condemned blob) is found in [`Records::survey`].
//!
//! **Editions.** A blob that is reserved while nothing counts it gets a new edition, a number that is never used again,
//! and is kept under a name of its own. So a condemned edition never comes back: deleting it is idempotent and harmless,
//! however often, however late and by whomever it is done, and nobody has to wait for it.
//!
//! **Time.** No backend looks at a clock. A server proves that it lives by counting up its beat (heartbeat); the others
//! watch the beats with their own monotonic clocks, so a clock that jumps expires nothing.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};

pub mod ledger;

pub mod file;
pub mod memory;
pub mod redis;

/// A backend that keeps records. Every method is one atomic step.
#[async_trait]
pub trait Records: fmt::Debug + Send + Sync {
    /// The name of this store, chosen at its first use. It keeps the blobs of two stores in one bucket apart.
    async fn name(&self) -> Result<String, StoreError>;

    /// A record; none when there is no record with that key.
    async fn read(&self, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError>;

    /// Writes, replaces or removes a record: a compare-and-swap, see [`RecordWrite`].
    ///
    /// # Errors
    /// [`StoreError::Stale`] when the record's revision is not the expected one, [`StoreError::Unreserved`] when the
    /// reservation is not there any more (the server was taken for dead), [`StoreError::Full`] when there is no room. Then
    /// nothing has changed, and the reservation is as it was.
    async fn write(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError>;

    /// Counts each of the blobs once more on behalf of the server, under a number that it has not used before. Returns
    /// the editions to put.
    async fn reserve(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobKey>, StoreError>;

    /// Ends a reservation, if it is there. Returns those of its blobs, and of the given blobs, that nothing counts any
    /// more: they are condemned, whether or not they were before.
    async fn release(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Result<Vec<BlobKey>, StoreError>;

    /// The edition of a blob that is counted; none when no record and no reservation has it.
    async fn locate(&self, blob: BlobId) -> Result<Option<BlobKey>, StoreError>;

    /// Forgets condemned blobs, which have been deleted.
    async fn forget(&self, blobs: &[BlobKey]) -> Result<(), StoreError>;

    /// Condemns those of the blobs that nothing counts, and returns them.
    async fn condemn_unknown(&self, blobs: &[BlobKey]) -> Result<Vec<BlobKey>, StoreError>;

    /// Counts up the beat of a server, which proves that it lives.
    async fn beat(&self, server: &ServerId) -> Result<(), StoreError>;

    /// Removes the beat and the reservations of a server that lives no longer. Returns the blobs that are condemned by
    /// this.
    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobKey>, StoreError>;

    /// Those of the records whose revision is not the given one any more.
    async fn stale(&self, known: &[(RecordKey, Revision)]) -> Result<Vec<RecordKey>, StoreError>;

    /// Everything that the store keeps, without the records' bodies.
    async fn survey(&self) -> Result<Survey, StoreError>;
}

/// A blob that a record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    pub key: BlobKey,
    /// The blob's size.
    pub bytes: u64,
}

/// What is written under a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The server that holds the lease; none while nobody runs the session.
    pub owner: Option<ServerId>,
    /// The blobs that the record refers to, each at most once.
    pub blobs: Vec<BlobRef>,
    pub body: Vec<u8>,
}

/// A record as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    pub revision: Revision,
    pub record: Record,
}

/// A compare-and-swap of one record.
#[derive(Clone, Copy, Debug)]
pub struct RecordWrite<'a> {
    pub key: &'a RecordKey,
    /// The revision of the record that is there; none when there must not be one.
    pub expected: Option<Revision>,
    /// The new record; none removes the record.
    pub record: Option<&'a Record>,
    /// The server that writes.
    pub server: &'a ServerId,
    /// The server's reservation of those of the record's blobs that the record before does not name. The write ends it.
    pub reservation: Option<ReservationId>,
}

/// What a write has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteOutcome {
    /// The revision of the new record, or of the removal.
    pub revision: Revision,
    /// Blobs that nothing refers to any more: to be deleted, then forgotten.
    pub condemned: Vec<BlobKey>,
}

/// Everything that a store keeps, without the records' bodies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Each record's key, revision and owner.
    pub records: Vec<(RecordKey, Revision, Option<ServerId>)>,
    /// Each server's beat. Servers that have nothing but reservations have a beat of 0.
    pub servers: HashMap<ServerId, u64>,
    pub condemned: Vec<BlobKey>,
    /// Number of blobs that are counted.
    pub blobs: usize,
}
