//! The supervisor's codec, from its own files (`store/` is a link to them), without all that the supervisor links for
//! other purposes: that would take minutes to build.

use fastvideo_link::SharedMemory;
use fastvideo_proto::state::StateHeader;

#[allow(unused_imports, reason = "what it offers to others")]
pub mod export;

/// What the codec needs of the supervisor's `State`.
#[derive(Debug)]
pub struct State {
    header: StateHeader,
    header_bytes: Vec<u8>,
    blob: SharedMemory,
}

impl State {
    pub fn new(header: StateHeader, header_bytes: Vec<u8>, blob: SharedMemory) -> Self {
        Self {
            header,
            header_bytes,
            blob,
        }
    }

    pub fn header(&self) -> &StateHeader {
        &self.header
    }

    pub fn header_bytes(&self) -> &[u8] {
        &self.header_bytes
    }

    pub fn blob(&self) -> &SharedMemory {
        &self.blob
    }
}
