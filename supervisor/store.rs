//! Continuation states of the sessions: what the next segment of each needs from its last one.
//!
//! `sessions` is what sessions and operators use; it is built of `records` (small, one atomic step each) and `blobs`
//! (large, by the hash of their content), for each of which there are several backends. `export` turns a state into the
//! form that clients see and back; nothing else here looks into frames or latents. `open` opens what an operator names.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use fastvideo_proto::ids::JobId;
use fastvideo_proto::state::{StateError, StateHeader};
use ipc_channel::ipc::IpcSharedMemory;

use self::records::BlobId;

pub mod blobs;
pub mod config;
mod exchange;
pub mod export;
pub mod open;
pub mod records;
pub mod sessions;
#[cfg(test)]
mod tests;

pub use exchange::{ExportFailed, ImportFailed, export_by_reference, export_inline, import};
pub use sessions::{Lease, Progress, ResumeError, ResumeToken, SessionStore, Snapshot, Upkeep};

/// Why a store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has written the session meanwhile: it was resumed elsewhere, or dropped.
    #[error("session was resumed elsewhere or dropped")]
    Stale,
    #[error(
        "the store is full of running sessions: it holds at most {max_sessions} sessions and {max_bytes} bytes"
    )]
    Full { max_sessions: usize, max_bytes: u64 },
    /// The server was silent for so long that its reservation of a blob was taken back.
    #[error("this server was taken for dead")]
    Unreserved,
    #[error("blob {0} is not in the store")]
    Missing(BlobId),
    #[error("what the store has is damaged: {0}")]
    Corrupt(String),
    #[error("the store cannot be used now: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(error.into())
    }
}

/// A committed continuation state. Immutable; a clone shares everything.
///
/// The blob stays in the shared memory in which it came, so that it travels on to another worker without a copy.
#[derive(Clone)]
pub struct State {
    inner: Arc<Inner>,
    made_by: Option<JobId>,
}

struct Inner {
    header: StateHeader,
    header_bytes: Vec<u8>,
    blob: IpcSharedMemory,
}

impl State {
    /// Takes the state that a worker has made.
    ///
    /// Of the blob only the size is checked: reading it would make tens of megabytes resident in this process, and the
    /// next worker checks its hash anyway.
    ///
    /// # Errors
    /// When the header is damaged or of another version, or the blob has another size than the header says.
    pub fn from_worker(header_bytes: Vec<u8>, blob: IpcSharedMemory) -> Result<Self, StateError> {
        let header = StateHeader::decode(&header_bytes)?;
        header.check_blob_size(blob.len())?;
        Ok(Self::new(header, header_bytes, blob))
    }

    /// Takes a state out of a store: copies the blob, whose hash was compared with its name, into memory that can travel
    /// to a worker.
    fn from_stored(header_bytes: Vec<u8>, name: BlobId, blob: &[u8]) -> Result<Self, StateError> {
        let header = StateHeader::decode(&header_bytes)?;
        header.check_blob_size(blob.len())?;
        if header.blob_hash != *name.as_bytes() {
            return Err(StateError::Hash);
        }
        let blob = IpcSharedMemory::from_bytes(blob);
        Ok(Self::new(header, header_bytes, blob))
    }

    fn new(header: StateHeader, header_bytes: Vec<u8>, blob: IpcSharedMemory) -> Self {
        Self {
            inner: Arc::new(Inner {
                header,
                header_bytes,
                blob,
            }),
            made_by: None,
        }
    }

    /// Names the job of this supervisor that made the state: the worker that ran it may still hold a copy.
    pub fn made_by(self, job: JobId) -> Self {
        Self {
            made_by: Some(job),
            ..self
        }
    }

    /// The job of this supervisor that made the state; none when it came from elsewhere.
    pub fn maker(&self) -> Option<JobId> {
        self.made_by
    }

    pub fn header(&self) -> &StateHeader {
        &self.inner.header
    }

    /// The header as [`StateHeader::encode`] writes it, ready to be sent.
    pub fn header_bytes(&self) -> &[u8] {
        &self.inner.header_bytes
    }

    /// Frames, then audio latents; as long as the header says, its hash unchecked.
    pub fn blob(&self) -> &IpcSharedMemory {
        &self.inner.blob
    }

    /// The blob as bytes that share this state's memory.
    fn blob_bytes(&self) -> Bytes {
        struct Shared(State);
        impl AsRef<[u8]> for Shared {
            fn as_ref(&self) -> &[u8] {
                self.0.blob()
            }
        }
        Bytes::from_owner(Shared(self.clone()))
    }
}

// Not derived: shared memory prints every byte that it holds.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("header", &self.inner.header)
            .field("blob_bytes", &self.inner.blob.len())
            .finish_non_exhaustive()
    }
}
