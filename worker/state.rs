//! Shared memory for the blob of a new continuation state: the engine writes it once, and from then on the handle
//! travels and the bytes stay.

use std::ops::{Deref, DerefMut};

use ipc_channel::ipc::IpcSharedMemory;

/// Zeroed shared memory that nobody else has seen yet.
#[derive(Debug)]
pub(crate) struct StateBuffer(IpcSharedMemory);

impl StateBuffer {
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self(IpcSharedMemory::from_byte(0, bytes))
    }

    /// Ends writing; from here on the memory may be shared.
    pub(crate) fn into_shared(self) -> IpcSharedMemory {
        self.0
    }
}

impl Deref for StateBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for StateBuffer {
    #[expect(
        unsafe_code,
        reason = "ipc-channel offers no safe way to fill shared memory in place"
    )]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: requires that nobody else reads or writes the memory. `self` is the only handle: it is created here,
        // is not `Clone`, and gives its memory away only by `into_shared`, which consumes it.
        unsafe { self.0.deref_mut() }
    }
}
