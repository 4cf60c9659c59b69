//! The step snapshots that the pool holds: the newest of each job, from which the next attempt at its segment goes on.
//!
//! A snapshot goes from the worker's task into the [`NewestSnapshot`] of its job, where it takes the place of the one
//! before, and no session is woken for it. Whoever submitted the job takes it out when the job has ended.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastvideo_link::SharedMemory;
use fastvideo_proto::step_snapshot::{SnapshotHeader, StepPoint};
use tokio::runtime::Handle;

/// The latents after a step of a segment, as a worker left them. The pool does not read them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StepSnapshot(Arc<Held>);

#[derive(Debug)]
struct Held {
    header: SnapshotHeader,
    /// It is `None` only while this is dropped.
    latents: Option<SharedMemory>,
    counted: HeldBytes,
}

/// The number of bytes of all step snapshots that are held. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldBytes(Arc<AtomicU64>);

/// The newest step snapshot of a job. At first it is the one that the job goes on from, if any.
#[derive(Debug, Default)]
pub(super) struct NewestSnapshot(Mutex<Slot>);

#[derive(Debug)]
enum Slot {
    /// The job may still need a snapshot, or leave one.
    Open(Option<StepSnapshot>),
    /// The job has ended, or its outcome is of no interest any more: nothing is kept.
    Closed,
}

impl StepSnapshot {
    /// Takes a snapshot whose header fits its latents.
    pub(super) fn new(header: SnapshotHeader, latents: SharedMemory, counted: HeldBytes) -> Self {
        (counted.0).fetch_add(latents.len() as u64, Ordering::Relaxed);
        Self(Arc::new(Held {
            header,
            latents: Some(latents),
            counted,
        }))
    }

    /// Returns the step after which the segment goes on.
    pub fn at(&self) -> StepPoint {
        self.0.header.at
    }

    pub(super) fn header(&self) -> &SnapshotHeader {
        &self.0.header
    }

    pub(super) fn latents(&self) -> Option<&SharedMemory> {
        self.0.latents.as_ref()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(latents) = self.latents.take() else {
            return;
        };
        (self.counted.0).fetch_sub(latents.len() as u64, Ordering::Relaxed);
        // The kernel takes milliseconds to free megabytes of shared memory, and no thread of the runtime has them.
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(latents)));
        }
    }
}

impl HeldBytes {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl NewestSnapshot {
    /// Begins with the snapshot that the job goes on from.
    pub(super) fn new(first: Option<StepSnapshot>) -> Self {
        Self(Mutex::new(Slot::Open(first)))
    }

    /// Returns the newest snapshot.
    pub(super) fn get(&self) -> Option<StepSnapshot> {
        match &*self.slot() {
            Slot::Open(newest) => newest.clone(),
            Slot::Closed => None,
        }
    }

    /// Keeps a snapshot in place of the one before, which is dropped at once.
    pub(super) fn replace(&self, newest: Option<StepSnapshot>) {
        if let Slot::Open(before) = &mut *self.slot() {
            *before = newest;
        }
    }

    /// Takes the newest snapshot out. Nothing is kept from now on.
    pub(super) fn close(&self) -> Option<StepSnapshot> {
        match std::mem::replace(&mut *self.slot(), Slot::Closed) {
            Slot::Open(newest) => newest,
            Slot::Closed => None,
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::Open(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::testing::step_snapshot;

    #[test]
    fn only_the_newest_snapshot_is_held() {
        let held = HeldBytes::default();
        let newest = NewestSnapshot::new(Some(step_snapshot(1, &held)));
        let one = held.get();
        assert!(one > 0);
        for step in 2..5 {
            newest.replace(Some(step_snapshot(step, &held)));
            assert_eq!(held.get(), one);
        }
        assert_eq!(newest.get().unwrap().at().step, 4);
        assert_eq!(newest.close().unwrap().at().step, 4);
        newest.replace(Some(step_snapshot(5, &held)));
        assert!(newest.get().is_none() && newest.close().is_none());
        assert_eq!(held.get(), 0);
    }
}
