//! Session records: who owns a session, how far it is, which blobs its state has. Small, and changed in one step each.
//!
//! A backend knows nothing of states: it compares revisions, counts references to blobs and keeps bytes. What the bytes
//! mean is in `sessions`.
//!
//! **References.** A blob is counted once for each record that names it and once for each reservation. Whoever wants to
//! put a blob reserves it first, then puts it, then writes the record that names it; the write ends the reservation. A
//! blob whose count falls to zero is *condemned* in the same step: it is to be deleted, then forgotten. Whatever a crash
//! leaves (a reservation, a condemned blob) is found in [`Records::survey`].
//!
//! **Editions.** A blob that is reserved while nothing counts it gets a new edition, a number that is never used again,
//! and is kept under a name of its own. So a condemned edition never comes back: deleting it is harmless, however often,
//! however late and by whomever it is done, and nobody has to wait for it.
//!
//! **Time.** No backend looks at a clock. A server proves that it lives by counting up its beat; the others watch the
//! beats with their own monotonic clocks, so a clock that jumps expires nothing.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;
use fastvideo_proto::ids::SessionId;
use serde::{Deserialize, Serialize};

use super::StoreError;

mod ledger;

pub mod file;
pub mod memory;
pub mod redis;

/// Where session records are kept. Every method is one atomic step.
#[async_trait]
pub trait Records: fmt::Debug + Send + Sync {
    /// The name of this store, chosen at its first use: keeps the blobs of two stores in one bucket apart.
    async fn name(&self) -> Result<String, StoreError>;

    async fn read(&self, session: &SessionId) -> Result<Option<Written>, StoreError>;

    /// Writes, replaces or removes a record, see [`Change`].
    ///
    /// # Errors
    /// [`StoreError::Stale`] when the record's revision is not the expected one, [`StoreError::Unreserved`] when the
    /// reservation is not there any more (the server was taken for dead), [`StoreError::Full`] when there is no room. Then
    /// nothing has changed, and the reservation is as it was.
    async fn write(&self, change: Change<'_>) -> Result<Outcome, StoreError>;

    /// Counts each of the blobs once more on behalf of the server, under a number that it has not used before. Returns
    /// the editions to put.
    async fn reserve(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobKey>, StoreError>;

    /// Ends a reservation, if it is there. Returns those of its blobs, and of the blobs given, that are counted nowhere:
    /// they are condemned, whether or not they were before.
    async fn release(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Result<Vec<BlobKey>, StoreError>;

    /// The edition of a blob that is counted; none when no record and no reservation has it.
    async fn locate(&self, blob: BlobId) -> Result<Option<BlobKey>, StoreError>;

    /// Condemned blobs have been deleted.
    async fn forget(&self, blobs: &[BlobKey]) -> Result<(), StoreError>;

    /// Condemns those of the blobs that are counted nowhere, and returns them.
    async fn condemn_unknown(&self, blobs: &[BlobKey]) -> Result<Vec<BlobKey>, StoreError>;

    /// The server lives.
    async fn beat(&self, server: &ServerId) -> Result<(), StoreError>;

    /// The server lives no longer: its beat and its reservations go. Returns the blobs that are condemned by this.
    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobKey>, StoreError>;

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
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId([u8; 32]);

impl BlobId {
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Of a state's blob, by the word of the worker that made it; whoever reads the blob finds out whether it is true.
    pub fn of_state(state: &super::State) -> Self {
        Self(state.header().blob_hash)
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

/// One edition of a blob: what is put and deleted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BlobKey {
    pub id: BlobId,
    /// Another one whenever the blob comes back after nothing has counted it.
    pub edition: u64,
}

impl BlobKey {
    /// Reads what [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, edition) = text.split_once('-')?;
        let key = Self {
            id: BlobId::parse(id)?,
            edition: edition.parse().ok()?,
        };
        (key.to_string() == text).then_some(key)
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.id, self.edition)
    }
}

impl From<BlobKey> for String {
    fn from(key: BlobKey) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for BlobKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} names no blob"))
    }
}

impl fmt::Debug for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One reservation of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReservationId(pub u64);

/// A blob that a record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    pub key: BlobKey,
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
    /// Its reservation of those of the record's blobs that the record before does not name. It ends with the write.
    pub reservation: Option<ReservationId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of the new record; of the removal when it was removed.
    pub revision: Revision,
    /// Blobs that nobody refers to any more: to be deleted, then forgotten.
    pub condemned: Vec<BlobKey>,
}

/// All that a store keeps, without the records' bodies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Each with its owner.
    pub sessions: Vec<(SessionId, Revision, Option<ServerId>)>,
    /// Each server's beat, and servers that have nothing but reservations with a beat of 0.
    pub servers: HashMap<ServerId, u64>,
    pub condemned: Vec<BlobKey>,
    /// Blobs that are counted.
    pub blobs: usize,
}
