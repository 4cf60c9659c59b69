//! The context that all tasks of one GPU share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use super::adapters::OrderedAdapters;
use super::assignments::Assignments;
use super::boot::BootPlan;
use super::config::{Config, Gpu};
use super::event::WorkerEvent;
use super::event_readers::WorkerEvents;
use super::shared_assignments::SharedAssignments;
use crate::current::Current;

/// One GPU, with the state that its task shares with the rest of the pool.
#[derive(Debug)]
pub(super) struct WorkerContext {
    /// The GPU's index in the assignments.
    pub(super) slot: usize,
    pub(super) gpu: Gpu,
    pub(super) config: Current<Config>,
    pub(super) assignments: Arc<SharedAssignments>,
    /// The adapters that were ordered for all workers.
    pub(super) ordered_adapters: Arc<OrderedAdapters>,
    /// Whether no worker of the pool serves or will serve by itself.
    pub(super) all_lost: watch::Sender<bool>,
    pub(super) events: WorkerEvents,
    /// Notified when a job was queued, cancelled or given flow credit, when a session was unbound, and when other adapters
    /// were ordered.
    pub(super) notify: Arc<Notify>,
    /// Tracks the tasks that outlive a process.
    pub(super) tracker: TaskTracker,
    /// The number of processes that were started so far.
    pub(super) incarnations: AtomicU32,
}

impl WorkerContext {
    /// Returns the configuration as it is now.
    pub(super) fn config(&self) -> Arc<Config> {
        self.config.get()
    }

    pub(super) fn emit(&self, event: WorkerEvent) {
        self.events.emit(event);
    }

    /// Runs `f` on the assignments and this GPU's slot under the lock, and publishes whether all workers are lost.
    pub(super) fn with_assignments<T>(&self, f: impl FnOnce(&mut Assignments, usize) -> T) -> T {
        let mut assignments = self.assignments.lock();
        let out = f(&mut assignments, self.slot);
        let lost = assignments.all_lost();
        drop(assignments);
        self.all_lost
            .send_if_modified(|old| std::mem::replace(old, lost) != lost);
        out
    }

    /// Creates the plan for the GPU's next process.
    pub(super) fn next_boot(&self) -> BootPlan {
        BootPlan {
            config: self.config(),
            gpu: self.gpu.clone(),
            incarnation: self.incarnations.fetch_add(1, Ordering::Relaxed) + 1,
            tracker: self.tracker.clone(),
        }
    }
}
