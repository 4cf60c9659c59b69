//! Identities in a store, each with the text form that the backends use.

use std::fmt;

use fastvideo_proto::ids::SessionId;
use serde::{Deserialize, Serialize};

use super::chunks::Chunks;

/// The prefix of the text form of [`RecordKey::Loan`]. No session id begins with it.
const LOAN_PREFIX: &str = "loan-";

/// What the names of blobs that are lent to tenants are derived for (a context string of BLAKE3).
const LENT_CONTEXT: &str = "fastvideo-supervisor 2026-12-01 blob lent to a tenant";

/// The subject of a record, which is also its key in every backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKey {
    /// A session and its continuation state.
    Session(SessionId),
    /// A blob that is kept for a while because an export refers to it, by the name that its tenant knows. There is one
    /// record for each such blob and tenant, so lending is idempotent.
    Loan(BlobId),
}

impl RecordKey {
    /// Parses what [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix(LOAN_PREFIX) {
            Some(hash) => BlobId::parse(hash).map(Self::Loan),
            None => SessionId::parse(text).map(Self::Session),
        }
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(session) => f.write_str(session.as_str()),
            Self::Loan(blob) => write!(f, "{LOAN_PREFIX}{blob}"),
        }
    }
}

impl From<SessionId> for RecordKey {
    fn from(session: SessionId) -> Self {
        Self::Session(session)
    }
}

/// The revision of a record: a number in the order of all writes of a store. It is never used twice, not even after a
/// record was removed. Every write is a compare-and-swap on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(pub u64);

/// How often a server has found that the store had lost data, since it opened the store. A revision that was read or
/// written in an earlier epoch may be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// The id of one run of one server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerId(String);

impl ServerId {
    /// Generates an id with 128 random bits.
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// Takes an id that was written by [`Self::as_str`].
    pub fn from_stored(id: String) -> Self {
        Self(id)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The number of one reservation of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReservationId(pub u64);

/// The BLAKE3 hash of a blob's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId([u8; 32]);

impl BlobId {
    /// Hashes the bytes, which takes about 10 ms for 50 MB.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    pub(super) fn of_chunks(chunks: &Chunks) -> Self {
        let mut hasher = blake3::Hasher::new();
        for chunk in chunks.iter() {
            hasher.update(chunk);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Takes a hash that was computed elsewhere. It is compared with the bytes when the blob is read.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the name by which a tenant knows the blob.
    pub(super) fn lent_to(self, tenant: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(LENT_CONTEXT);
        hasher.update(&self.0);
        hasher.update(tenant.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// Parses what [`fmt::Display`] wrote: 64 lower-case hexadecimal digits.
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

/// One edition of a blob, which is the unit that is put and deleted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BlobKey {
    pub id: BlobId,
    /// The number of the edition. A blob that comes back after its reference count was zero gets another one.
    pub edition: u64,
}

impl BlobKey {
    /// Parses what [`fmt::Display`] wrote.
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

/// A text that is not the name of a blob's edition.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} names no blob")]
pub struct NotABlobKey(String);

impl TryFrom<String> for BlobKey {
    type Error = NotABlobKey;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or(NotABlobKey(text))
    }
}

impl fmt::Debug for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_records_survive_their_text() {
        for key in [
            RecordKey::Session(SessionId::random()),
            RecordKey::Loan(BlobId::of(b"lent")),
        ] {
            assert_eq!(RecordKey::parse(&key.to_string()), Some(key));
        }
        for text in ["", "loan-", "loan-12", "nonsense"] {
            assert_eq!(RecordKey::parse(text), None, "{text}");
        }
    }
}
