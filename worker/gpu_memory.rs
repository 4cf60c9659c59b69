//! The use of the GPU's memory, for the heartbeat.
//!
//! The heartbeat's thread must not ask the driver, which a GPU that hangs would keep waiting. So the main thread asks it
//! between jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was seen last. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct GpuMemory(Arc<AtomicU64>);

impl GpuMemory {
    /// Takes note of how many bytes are in use.
    pub(crate) fn set(&self, bytes: Option<u64>) {
        self.0.store(bytes.unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns how many bytes were in use; `None` where there is no GPU.
    pub(crate) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}
