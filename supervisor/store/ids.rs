//! Identities in a store, each with the text form that the backends use.

use std::fmt;

use fastvideo_proto::ids::{SessionId, VideoId};
use serde::{Deserialize, Serialize};

use super::chunks::Chunks;
use crate::tenant::Tenant;

/// The prefixes of the text forms of all records but sessions. No session id begins with one of them.
const LOAN_PREFIX: &str = "loan-";
const VIDEO_PREFIX: &str = "video-";
const CLAIM_PREFIX: &str = "claim-";

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
    /// A video job. The text forms of a tenant's videos lie together, in the order of their ids: no name of a tenant has
    /// the `/` that ends it there.
    Video { tenant: Tenant, id: VideoId },
    /// The claim of an idempotency key by a video job, by a hash of the key.
    VideoClaim([u8; 32]),
}

impl RecordKey {
    /// Parses what [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(hash) = text.strip_prefix(LOAN_PREFIX) {
            BlobId::parse(hash).map(Self::Loan)
        } else if let Some(name) = text.strip_prefix(VIDEO_PREFIX) {
            let (tenant, digits) = name.rsplit_once('/')?;
            let (tenant, id) = (Tenant::new(tenant), VideoId::parse_digits(digits)?);
            Some(Self::Video { tenant, id })
        } else if let Some(hash) = text.strip_prefix(CLAIM_PREFIX) {
            BlobId::parse(hash).map(|hash| Self::VideoClaim(hash.0))
        } else {
            SessionId::parse(text).map(Self::Session)
        }
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(session) => f.write_str(session.as_str()),
            Self::Loan(blob) => write!(f, "{LOAN_PREFIX}{blob}"),
            Self::Video { tenant, id } => write!(f, "{VIDEO_PREFIX}{tenant}/{}", id.digits()),
            Self::VideoClaim(hash) => write!(f, "{CLAIM_PREFIX}{}", BlobId(*hash)),
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

    fn video(tenant: &str, unix_ms: u64) -> RecordKey {
        RecordKey::Video {
            tenant: Tenant::new(tenant),
            id: VideoId::after(None, unix_ms, 0),
        }
    }

    #[test]
    fn keys_of_records_survive_their_text() {
        for key in [
            RecordKey::Session(SessionId::random()),
            RecordKey::Loan(BlobId::of(b"lent")),
            RecordKey::VideoClaim([7; 32]),
            video("none", 1),
            video("loan-1", 1),
            video("claim-", 1),
            video("video-a.b_c", u64::MAX >> 16),
            video("a/b é\n", 1),
            video("", 1),
        ] {
            assert_eq!(RecordKey::parse(&key.to_string()), Some(key));
        }
        let digits = "0123456789abcdef0123456789abcdef";
        assert!(RecordKey::parse(&format!("video-a/{digits}")).is_some());
        for text in [
            "",
            "loan-",
            "loan-12",
            "nonsense",
            "video-",
            "video-a",
            "video-a/12",
            &format!("video-{digits}"),
            &format!("video-a/video_{digits}"),
            "claim-",
            &format!("claim-{digits}"),
        ] {
            assert_eq!(RecordKey::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_texts_of_a_tenants_videos_lie_together_in_the_order_of_their_ids() {
        let tenants = ["a", "a-b", "a.b", "a0", "ab", "A"];
        let keys = tenants.iter().flat_map(|tenant| {
            let times = [1, 9, 10, 1 << 40];
            times.map(|unix_ms| (*tenant, video(tenant, unix_ms).to_string()))
        });
        let mut sorted: Vec<_> = keys.clone().collect();
        sorted.sort_by(|(_, a), (_, b)| a.cmp(b));
        let mut blocks: Vec<_> = sorted.iter().map(|(tenant, _)| *tenant).collect();
        blocks.dedup();
        assert_eq!(blocks.len(), tenants.len(), "{sorted:?}");
        // Sorting is stable, and leaves the order of creation within a tenant.
        let mut by_tenant: Vec<_> = keys.collect();
        by_tenant.sort_by_key(|(tenant, _)| blocks.iter().position(|block| block == tenant));
        assert_eq!(sorted, by_tenant);
    }
}
