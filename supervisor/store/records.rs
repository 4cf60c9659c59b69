//! Records: small entries, each changed in one atomic step. A record has an owner, a body, and the blobs that it names.
//!
//! A backend compares revisions, counts references to blobs and keeps bytes. It does not know what a body means.
//!
//! **Compare-and-swap.** Every write names the revision that it replaces, and fails when the record has another one.
//! Revisions are never used twice, so they are fencing tokens: a writer that was overtaken can no longer write.
//!
//! **Reference counts.** A blob is counted once for each record that names it and once for each reservation. The writer
//! of a blob reserves it first, then puts it, then writes the record that names it; the write ends the reservation. A
//! blob whose count falls to zero is *condemned* in the same step (a tombstone): it is to be deleted, then forgotten.
//! Garbage that a crash leaves (a reservation, a condemned blob) is found in [`Records::survey`].
//!
//! **Editions.** A blob that is reserved while its reference count is zero gets a new edition, a number that is never
//! used again, and is kept under a name of its own. So a condemned edition never comes back: deleting it is idempotent
//! and harmless at any later time and from any server, and no writer has to wait for it.
//!
//! **Lost data.** A store that several servers share may lose data behind their backs: it restarts empty, or as it was
//! some time ago. That differs from a record that was removed: the store has begun another *epoch* then. After such a
//! loss a server restores the records whose leases it holds, each by its last revision: the latest version wins,
//! whatever the order in which servers restore theirs, and a version of this epoch wins over all that were lost.
//!
//! **Time.** No backend looks at a clock. A server proves that it lives by incrementing its beat (a heartbeat counter);
//! the others watch the beats with their own monotonic clocks, so a clock that jumps expires nothing.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;
use fastvideo_proto::ids::VideoId;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::ids::{BlobId, BlobKey, Epoch, RecordKey, ReservationId, Revision, ServerId};
use crate::tenant::Tenant;

pub mod ledger;

pub mod file;
pub mod memory;
pub mod redis;

/// A backend that keeps records. Every method is one atomic step. Any of them returns [`StoreError::Forgotten`], and has
/// done nothing, when the store is found to have lost data.
#[async_trait]
pub trait Records: fmt::Debug + Send + Sync {
    /// Returns the name of this store, chosen at its first use. It keeps the blobs of two stores in one bucket apart.
    async fn name(&self) -> Result<String, StoreError>;

    /// Returns how often [`Self::adopt`] was called after a loss.
    fn epoch(&self) -> Epoch {
        Epoch::default()
    }

    /// Returns what a store in memory holds; `None` for all others.
    fn memory_use(&self) -> Option<MemoryUse> {
        None
    }

    /// Accepts that the store has lost data: begins another epoch, or joins one that another server has begun. The
    /// store's name may be another one then.
    async fn adopt(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Reads a record. Returns `None` when there is no record with that key.
    async fn read(&self, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError>;

    /// Writes, replaces or removes a record: a compare-and-swap, see [`RecordWrite`].
    ///
    /// # Errors
    /// Returns [`StoreError::Stale`] when the record's revision is not the expected one, [`StoreError::Unreserved`]
    /// when the reservation is no longer there (the server was taken for dead), and [`StoreError::Full`] or
    /// [`StoreError::MediaFull`] when there is no room. In these cases nothing has changed, and the reservation is as it was.
    async fn write(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError>;

    /// Writes or removes a record that the store may have lost since it had the revision `write.expected`: in place of
    /// an earlier version, of that very version if it has the same owner, or of none.
    ///
    /// # Errors
    /// Returns the errors of [`Self::write`], [`StoreError::Stale`] when the store has a later version.
    async fn restore(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError>;

    /// Increments the reference count of each of the blobs on behalf of the server, under a reservation number that the
    /// server has not used before. Returns the editions to put.
    async fn reserve(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobKey>, StoreError>;

    /// Ends a reservation, if it is there. Returns those of its blobs, and of the given blobs, whose reference count is
    /// zero: they are condemned, whether or not they were before.
    async fn release(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Result<Vec<BlobKey>, StoreError>;

    /// Returns the edition of a blob that is counted; `None` when no record and no reservation has it.
    async fn locate(&self, blob: BlobId) -> Result<Option<BlobKey>, StoreError>;

    /// Forgets condemned blobs that have been deleted.
    async fn forget(&self, blobs: &[BlobKey]) -> Result<(), StoreError>;

    /// Condemns those of the blobs whose reference count is zero, and returns them.
    async fn condemn_unknown(&self, blobs: &[BlobKey]) -> Result<Vec<BlobKey>, StoreError>;

    /// Increments the beat of a server, which proves that it lives.
    async fn beat(&self, server: &ServerId) -> Result<(), StoreError>;

    /// Removes the beat and the reservations of a server that no longer lives. Returns the blobs that are condemned by
    /// this.
    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobKey>, StoreError>;

    /// Returns those of the records whose revision is no longer the given one.
    async fn stale(&self, known: &[(RecordKey, Revision)]) -> Result<Vec<RecordKey>, StoreError>;

    /// Returns a page of a tenant's videos, in order.
    async fn list(
        &self,
        tenant: &Tenant,
        page: VideoPage,
    ) -> Result<Vec<(VideoId, StoredRecord)>, StoreError>;

    /// Returns everything that the store keeps, without the records' bodies.
    async fn survey(&self) -> Result<Survey, StoreError>;
}

/// Which of a tenant's videos are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VideoPage {
    /// The videos wanted follow this one in the order of the page, whether or not it still exists; `None` for the first
    /// page.
    pub after: Option<VideoId>,
    /// The most videos.
    pub limit: usize,
    pub order: Order,
}

/// An order of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// What a store in memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Number of sessions; videos are none.
    pub sessions: usize,
    /// The size of the records and of the blobs that they name.
    pub bytes: u64,
}

/// A blob that a record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    pub key: BlobKey,
    /// The blob's size.
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "BlobKind::is_state")]
    pub kind: BlobKind,
}

/// What a record needs a blob for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobKind {
    /// The record is worth nothing without it.
    #[default]
    State,
    /// A part of a film. A store that has limits drops those of sessions when there is no room.
    Media,
}

impl BlobKind {
    fn is_state(&self) -> bool {
        *self == Self::State
    }
}

/// The content of a record, as it is written under a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The server that holds the lease; `None` while no server runs the session.
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
    /// The revision that the record must have; `None` when there must not be a record.
    pub expected: Option<Revision>,
    /// The new record; `None` removes the record.
    pub record: Option<&'a Record>,
    /// The server that writes.
    pub server: &'a ServerId,
    /// The server's reservation of the blobs that the new record names and the old one does not. The write ends it.
    pub reservation: Option<ReservationId>,
}

/// The result of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteOutcome {
    /// The revision of the new record, or of the removal.
    pub revision: Revision,
    /// Blobs whose reference count fell to zero: to be deleted, then forgotten.
    pub condemned: Vec<BlobKey>,
}

/// A record without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedRecord {
    pub key: RecordKey,
    pub revision: Revision,
    pub owner: Option<ServerId>,
    /// Whether the record names a blob of that kind.
    pub has_state: bool,
    pub has_media: bool,
}

impl SurveyedRecord {
    fn new(key: RecordKey, revision: Revision, owner: Option<ServerId>, blobs: &[BlobRef]) -> Self {
        let has = |kind| blobs.iter().any(|blob| blob.kind == kind);
        Self {
            key,
            revision,
            owner,
            has_state: has(BlobKind::State),
            has_media: has(BlobKind::Media),
        }
    }
}

/// Everything that a store keeps, without the records' bodies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    pub records: Vec<SurveyedRecord>,
    /// Each server's beat. Servers that only have reservations have a beat of 0.
    pub servers: HashMap<ServerId, u64>,
    pub condemned: Vec<BlobKey>,
    /// Number of blobs with references.
    pub blobs: usize,
}
