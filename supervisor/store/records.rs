//! Session records: who owns a session, how far it is, which blobs its state has. Small, and changed in one step each.
//!
//! A backend knows nothing of states: it compares revisions, counts references to blobs and keeps bytes. What the bytes
//! mean is in `sessions`.
//!
//! **References.** A blob is counted once for each record that names it and once for each reservation. Whoever wants to
//! put a blob reserves it first, then puts it, then writes the record that names it; the write turns the reservation
//! into the record's reference. A blob whose count falls to zero is *condemned* in the same step: nobody can reserve it
//! until the one who condemned it has deleted it and [`Records::forget`] was called. So no blob is deleted that is in
//! use, and whatever a crash leaves (a reservation, a condemned blob) is found in [`Records::survey`].
//!
//! **Time.** No backend looks at a clock. A server proves that it lives by counting up its beat; the others watch the
//! beats with their own monotonic clocks, so a clock that jumps expires nothing.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;
use fastvideo_proto::ids::SessionId;
use serde::{Deserialize, Serialize};

use super::StoreError;

pub mod memory;

/// Where session records are kept. Every method is one atomic step.
#[async_trait]
pub trait Records: fmt::Debug + Send + Sync {
    /// The name of this store, chosen at its first use: keeps the blobs of two stores in one bucket apart.
    async fn name(&self) -> Result<String, StoreError>;

    async fn read(&self, session: &SessionId) -> Result<Option<Written>, StoreError>;

    /// Writes, replaces or removes a record, see [`Change`].
    ///
    /// # Errors
    /// [`StoreError::Stale`] when the record's revision is not the expected one, [`StoreError::Condemned`] when a
    /// reservation is not there any more (the server was taken for dead), [`StoreError::Full`] when there is no room. Then
    /// nothing has changed, and reservations are as they were.
    async fn write(&self, change: Change<'_>) -> Result<Outcome, StoreError>;

    /// Counts each blob once more on behalf of the server. One that is condemned is refused with
    /// [`StoreError::Condemned`], and none is counted: try again soon.
    async fn reserve(&self, server: &ServerId, blobs: &[BlobId]) -> Result<(), StoreError>;

    /// Takes reservations back. Returns the blobs that are condemned by this.
    async fn release(&self, server: &ServerId, blobs: &[BlobId])
    -> Result<Vec<BlobId>, StoreError>;

    /// Condemned blobs have been deleted.
    async fn forget(&self, blobs: &[BlobId]) -> Result<(), StoreError>;

    /// Condemns those of the blobs that are counted nowhere, and returns them with those that are condemned already.
    async fn condemn_unknown(&self, blobs: &[BlobId]) -> Result<Vec<BlobId>, StoreError>;

    /// The server lives.
    async fn beat(&self, server: &ServerId) -> Result<(), StoreError>;

    /// The server lives no longer: its beat and its reservations go. Returns the blobs that are condemned by this.
    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobId>, StoreError>;

    /// Those of the sessions whose revision is not the given one any more.
    async fn stale(&self, held: &[(SessionId, Revision)]) -> Result<Vec<SessionId>, StoreError>;

    /// All there is, without the records' bodies.
    async fn survey(&self) -> Result<Survey, StoreError>;
}

/// A place in the order of all writes of a store; never used twice, not even after a record was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(pub u64);

/// One run of one server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerId(String);

impl ServerId {
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// An id that was written by [`Self::as_str`].
    pub fn from_stored(id: String) -> Self {
        Self(id)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The BLAKE3 hash of a blob's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobId([u8; 32]);

impl BlobId {
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads what [`fmt::Display`] wrote: 64 lower-case hexadecimal digits.
    pub fn parse(hex: &str) -> Option<Self> {
        let lower = hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let hash = blake3::Hash::from_hex(hex).ok().filter(|_| lower)?;
        Some(Self(*hash.as_bytes()))
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A blob that a record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    pub id: BlobId,
    /// Its size.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The server that runs the session; none while nobody does.
    pub owner: Option<ServerId>,
    /// Each at most once.
    pub blobs: Vec<BlobRef>,
    pub body: Vec<u8>,
}

/// A record as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub revision: Revision,
    pub record: Record,
}

/// One step from one record to the next.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub session: &'a SessionId,
    /// Of the record that is there; none when there must not be one.
    pub expected: Option<Revision>,
    /// None removes the record.
    pub record: Option<&'a Record>,
    /// The one who writes.
    pub server: &'a ServerId,
    /// Its reservations for those of the record's blobs that the record before does not name: they become the record's
    /// references.
    pub reserved: &'a [BlobId],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of the new record; of the removal when it was removed.
    pub revision: Revision,
    /// Blobs that nobody refers to any more: to be deleted, then forgotten.
    pub condemned: Vec<BlobId>,
}

/// All that a store keeps, without the records' bodies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    pub sessions: Vec<(SessionId, Revision, Option<ServerId>)>,
    /// Each server's beat, and servers that have nothing but reservations with a beat of 0.
    pub servers: HashMap<ServerId, u64>,
    pub condemned: Vec<BlobId>,
    /// Blobs that are counted.
    pub blobs: usize,
}
