//! Why a store did not do what it was asked to.

use fastvideo_proto::state::StateError;
use fastvideo_proto::state::envelope::EnvelopeError;

use super::ids::{BlobId, BlobKey, RecordKey};

/// Why a store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The compare-and-swap failed, because another writer has changed the record. A session was resumed elsewhere, or
    /// dropped.
    #[error("session was resumed elsewhere or dropped")]
    Stale,
    #[error(
        "the store is full of running sessions and videos: it holds at most {max_sessions} sessions and {max_bytes} bytes"
    )]
    Full { max_sessions: usize, max_bytes: u64 },
    #[error(
        "the store is full of the films of running sessions and of videos: it holds at most {max_bytes} bytes of media"
    )]
    MediaFull { max_bytes: u64 },
    /// This server was silent for so long that its reservation of a blob was taken back.
    #[error("this server was taken for dead")]
    Unreserved,
    /// The store has lost data since this server last heard from it. The servers restore what they hold; trying again
    /// helps.
    #[error("the store has lost data, which is being restored")]
    Forgotten,
    /// The store answers, but what was asked for is gone for good. Trying again does not help.
    #[error(transparent)]
    Lost(#[from] DataLoss),
    /// A later build has written the record: a server that is as new can read it.
    #[error("the record {0} was written by a newer server")]
    Newer(RecordKey),
    /// The store does not answer, or not in time. Trying again may help.
    #[error("the store cannot be used now: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    pub(super) fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(error.into())
    }
}

/// A permanent loss: what the store has is missing or damaged.
#[derive(Debug, thiserror::Error)]
pub enum DataLoss {
    #[error("blob {0} is not in the store")]
    MissingBlob(BlobId),
    #[error("blob {0} is damaged: it has other bytes than its name says")]
    DamagedBlob(BlobKey),
    #[error("the record {record} cannot be read: {source}")]
    Record {
        record: RecordKey,
        source: EnvelopeError,
    },
    #[error("the state of record {record} cannot be read: {source}")]
    State {
        record: RecordKey,
        source: StateError,
    },
    #[error("the record {0} has a state and no blob")]
    StateWithoutBlob(RecordKey),
    #[error("the media of the segment are not kept any more")]
    MediaNotKept,
    /// A value in the backend's own tables is invalid.
    #[error("what the store has is damaged: {given} is no {expected}")]
    Row {
        expected: &'static str,
        given: String,
    },
}
