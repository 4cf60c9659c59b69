//! Shared memory for the blob of a new continuation state. The engine writes it once; from then on only the handle
//! travels.

use std::ops::{Deref, DerefMut};

use ipc_channel::ipc::IpcSharedMemory;

/// Shared memory that no other process or thread can see yet.
#[derive(Debug)]
pub(crate) struct StateBuffer(IpcSharedMemory);

impl StateBuffer {
    /// Allocates zeroed memory.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self(IpcSharedMemory::from_byte(0, bytes))
    }

    /// Returns the memory, which may be shared from here on and is no longer written.
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
        // SAFETY: requires that no other code reads or writes the memory. `self` is the only handle: it is created
        // here, is not `Clone`, and gives its memory away only by `into_shared`, which consumes it.
        unsafe { self.0.deref_mut() }
    }
}
