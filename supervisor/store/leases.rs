//! What this server runs: sessions, or video jobs, each under at most one lease.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

/// What this server runs of one kind, by its id.
#[derive(Debug)]
pub(super) struct Leases<K, T>(Mutex<HashMap<K, Arc<T>>>);

impl<K, T> Default for Leases<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, T> Leases<K, T> {
    pub(super) fn get(&self, id: &K) -> Option<Arc<T>> {
        self.lock().get(id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.lock().values().cloned().collect()
    }

    /// Returns whether this server still runs what has that id under this very lease.
    pub(super) fn holds(&self, id: &K, leased: &Arc<T>) -> bool {
        let all = self.lock();
        (all.get(id)).is_some_and(|current| Arc::ptr_eq(current, leased))
    }

    /// Inserts a lease, and returns the one that it replaces.
    pub(super) fn insert(&self, id: &K, leased: Arc<T>) -> Option<Arc<T>> {
        self.lock().insert(id.clone(), leased)
    }

    /// Removes what has that id, whichever lease holds it, and returns it.
    pub(super) fn take(&self, id: &K) -> Option<Arc<T>> {
        self.lock().remove(id)
    }

    /// Removes this lease, unless another one has replaced it.
    pub(super) fn remove(&self, id: &K, leased: &Arc<T>) {
        let mut all = self.lock();
        if (all.get(id)).is_some_and(|current| Arc::ptr_eq(current, leased)) {
            all.remove(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<T>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}
