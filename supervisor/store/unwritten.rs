//! Media that are in this server's memory and not in the store yet, and their limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::chunks::Chunks;

/// The size of all media that are not stored yet. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct UnwrittenTotal(Arc<AtomicU64>);

/// Media that are not stored yet. They count until this is dropped.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub(super) content: Chunks,
    bytes: u64,
    total: UnwrittenTotal,
}

impl UnwrittenTotal {
    /// Takes media in; `None` when there are more than the limit then.
    pub(super) fn take(&self, content: Chunks, max_bytes: u64) -> Option<Unwritten> {
        let bytes = content.len();
        let more = |total: u64| Some(total.saturating_add(bytes)).filter(|sum| *sum <= max_bytes);
        let taken = (self.0).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        let total = self.clone();
        taken.is_ok().then(|| Unwritten {
            content,
            bytes,
            total,
        })
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.total.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn media_count_until_they_are_dropped() {
        let total = UnwrittenTotal::default();
        let take = || total.take(Bytes::from_static(b"1234").into(), 10);
        let taken = [take(), take()];
        assert!(taken.iter().all(Option::is_some));
        assert!(take().is_none());
        drop(taken);
        assert!(take().is_some());
    }
}
