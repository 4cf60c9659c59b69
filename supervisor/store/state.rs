//! A committed continuation state in this process's memory.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use fastvideo_link::SharedMemory;
use fastvideo_proto::ids::JobId;
use fastvideo_proto::state::{StateError, StateHeader};

use super::ids::BlobId;

/// A committed continuation state. It is immutable, and a clone shares everything.
///
/// The blob stays in the shared memory in which it came, so that it travels on to another worker without a copy.
#[derive(Clone)]
pub struct State {
    shared: Arc<SharedState>,
    made_by: Option<JobId>,
}

struct SharedState {
    header: StateHeader,
    header_bytes: Vec<u8>,
    blob: SharedMemory,
}

impl State {
    /// Takes the state that a worker has made.
    ///
    /// Only the size of the blob is checked: reading it would make tens of megabytes resident in this process, and the
    /// next worker checks its hash anyway.
    ///
    /// # Errors
    /// Returns an error when the header is damaged or of another version, or the blob has another size than the header
    /// says.
    pub fn from_worker(header_bytes: Vec<u8>, blob: SharedMemory) -> Result<Self, StateError> {
        let header = StateHeader::decode(&header_bytes)?;
        header.check_blob_size(blob.len())?;
        Ok(Self::new(header, header_bytes, blob))
    }

    /// Takes a state out of a store. Copies the blob, whose hash was compared with its name, into memory that can
    /// travel to a worker.
    ///
    /// # Panics
    /// Panics when the system has no memory or no file descriptor left.
    pub(super) fn from_stored(
        header_bytes: Vec<u8>,
        name: BlobId,
        blob: &[u8],
    ) -> Result<Self, StateError> {
        let header = StateHeader::decode(&header_bytes)?;
        header.check_blob_size(blob.len())?;
        if header.blob_hash != *name.as_bytes() {
            return Err(StateError::Hash);
        }
        let blob = SharedMemory::from_bytes(blob).expect("a descriptor and memory are left");
        Ok(Self::new(header, header_bytes, blob))
    }

    pub(super) fn new(header: StateHeader, header_bytes: Vec<u8>, blob: SharedMemory) -> Self {
        Self {
            shared: Arc::new(SharedState {
                header,
                header_bytes,
                blob,
            }),
            made_by: None,
        }
    }

    /// Records which job of this supervisor made the state: the worker that ran it may still hold a copy.
    pub fn made_by(self, job: JobId) -> Self {
        Self {
            made_by: Some(job),
            ..self
        }
    }

    /// Returns the job of this supervisor that made the state; `None` when the state came from elsewhere.
    pub fn maker(&self) -> Option<JobId> {
        self.made_by
    }

    pub fn header(&self) -> &StateHeader {
        &self.shared.header
    }

    /// Returns the header as [`StateHeader::encode`] writes it, ready to be sent.
    pub fn header_bytes(&self) -> &[u8] {
        &self.shared.header_bytes
    }

    /// Returns the blob: the frames, then the audio latents. It is as long as the header says; its hash is not checked.
    pub fn blob(&self) -> &SharedMemory {
        &self.shared.blob
    }

    /// Returns the blob's name in a store. The worker that made the state has computed the hash; readers of the blob
    /// check it.
    pub(super) fn blob_id(&self) -> BlobId {
        BlobId::from_bytes(self.header().blob_hash)
    }

    /// Returns the blob as bytes that share this state's memory.
    pub(super) fn blob_bytes(&self) -> Bytes {
        struct BlobOf(State);
        impl AsRef<[u8]> for BlobOf {
            fn as_ref(&self) -> &[u8] {
                self.0.blob()
            }
        }
        Bytes::from_owner(BlobOf(self.clone()))
    }
}

// Not derived: the `Debug` of shared memory prints every byte that it holds.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("header", &self.shared.header)
            .field("blob_bytes", &self.shared.blob.len())
            .finish_non_exhaustive()
    }
}
