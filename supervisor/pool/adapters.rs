//! The adapters of the workers that an operator has ordered since the server's start, beside those of the configuration.
//!
//! [`OrderedAdapters`] is what all workers are to hold, [`ToldAdapters`] what one process was told. A process loads and
//! drops adapters between two jobs until both agree, so that one that was started later holds them too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastvideo_proto::adapter::{Adapter, AdapterSpec, HeldAdapter};
use fastvideo_proto::ids::GpuId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::engines::ltx2::BadOrder;

/// The reason why an adapter was not loaded. No worker holds it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadRefused {
    #[error(transparent)]
    Invalid(#[from] BadOrder),
    #[error("`generator.ltx2.loras_folder` names no folder to load adapters from")]
    NoFolder,
    #[error("there is an adapter `{0}` already")]
    NameTaken(String),
    #[error(
        "sessions ({sessions}) have chosen another adapter `{name}`, which was unloaded, until their next segments; take another name"
    )]
    StillChosen { name: String, sessions: usize },
    #[error("no serving worker can load it")]
    NoWorker,
    #[error("the worker of GPU {gpu}: {message}")]
    Failed { gpu: GpuId, message: String },
    #[error("not all workers have loaded it within {0:?}")]
    TooSlow(Duration),
    /// Another order has dropped it in the meantime.
    #[error("it was unloaded before all workers had loaded it")]
    Unloaded,
}

/// The reason why an adapter was not unloaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnloadRefused {
    #[error("there is no adapter `{0}`")]
    Unknown(String),
    #[error(
        "the configuration names the adapter `{0}`; it stays until the server is started with another one"
    )]
    Configured(String),
    #[error(
        "the adapter `{name}` is in use (sessions whose latest segment asked for it: {sessions}); `force=true` unloads it, and their next segments are made without it"
    )]
    InUse { name: String, sessions: usize },
}

/// An adapter that clients can choose from, or that is being loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterStatus {
    pub adapter: Adapter,
    /// Whether it is one of the configuration.
    pub configured: bool,
    /// Whether clients can choose it.
    pub offered: bool,
    /// The number of sessions whose last segment asked for it.
    pub sessions: usize,
}

/// An adapter on one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerAdapter {
    /// The order's serial number; `None` for an adapter of the configuration.
    pub(super) serial: Option<u64>,
    pub state: WorkerAdapterState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerAdapterState {
    Loading,
    Loaded(HeldAdapter),
    Failed(String),
}

impl WorkerAdapterState {
    pub(super) fn has_failed(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// The adapters that were ordered, in the order of their names.
#[derive(Debug, Default)]
pub(super) struct OrderedAdapters(Mutex<Orders>);

#[derive(Debug, Default)]
struct Orders {
    orders: BTreeMap<String, Order>,
    last_serial: u64,
}

#[derive(Debug)]
struct Order {
    spec: AdapterSpec,
    strength: f64,
    /// Whether clients can choose it: all workers have loaded it.
    is_offered: bool,
    /// The hash of its file, once a worker has loaded it.
    file_hash: Option<[u8; 32]>,
    /// Is cancelled when the order is removed.
    gone: CancellationToken,
}

/// An order that was added.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) serial: u64,
    /// Is cancelled when the order is removed.
    pub(super) gone: CancellationToken,
}

impl OrderedAdapters {
    /// Adds an adapter with the engine's options for it, a JSON object. Clients cannot choose it yet. Returns `None` where
    /// the name is taken.
    pub(super) fn add(&self, adapter: Adapter, options: String) -> Option<Added> {
        let mut orders = self.lock();
        let Adapter { name, strength } = adapter;
        if orders.orders.contains_key(&name) {
            return None;
        }
        orders.last_serial += 1;
        let serial = orders.last_serial;
        let spec = AdapterSpec {
            name: name.clone(),
            serial,
            options,
        };
        let order = Order {
            spec,
            strength,
            is_offered: false,
            file_hash: None,
            gone: CancellationToken::new(),
        };
        let gone = order.gone.clone();
        orders.orders.insert(name, order);
        Some(Added { serial, gone })
    }

    /// Lets clients choose an adapter. Returns false when it is not there any more.
    pub(super) fn offer(&self, serial: u64) -> bool {
        let mut orders = self.lock();
        let order = orders.orders.values_mut().find(|o| o.spec.serial == serial);
        order.map(|order| order.is_offered = true).is_some()
    }

    /// Takes note of the file that a worker has loaded for an order. Returns false when other workers have loaded another
    /// one.
    pub(super) fn is_same_file(&self, serial: u64, file_hash: [u8; 32]) -> bool {
        let mut orders = self.lock();
        let order = orders.orders.values_mut().find(|o| o.spec.serial == serial);
        order.is_none_or(|order| *order.file_hash.get_or_insert(file_hash) == file_hash)
    }

    /// Removes an adapter that was not offered in the end.
    pub(super) fn withdraw(&self, serial: u64) {
        let is_other = |_: &String, order: &mut Order| order.spec.serial != serial;
        self.lock().orders.retain(is_other);
    }

    /// Removes an adapter. Returns whether it was there.
    pub(super) fn remove(&self, name: &str) -> bool {
        let removed = self.lock().orders.remove(name);
        removed.map(|order| order.gone.cancel()).is_some()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.lock().orders.contains_key(name)
    }

    /// Returns each adapter with its serial number, and whether clients can choose it where a worker holds it.
    pub(super) fn list(&self) -> Vec<(Adapter, u64, bool)> {
        let orders = self.lock();
        let entry = |order: &Order| {
            let adapter = Adapter {
                name: order.spec.name.clone(),
                strength: order.strength,
            };
            (adapter, order.spec.serial, order.is_offered)
        };
        orders.orders.values().map(entry).collect()
    }

    /// A panic under the lock leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a process is to be told next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextAdapter {
    Unload(String),
    Load(AdapterSpec),
}

/// The ordered adapters that one process was told to hold.
#[derive(Debug, Default)]
pub(super) struct ToldAdapters {
    /// Their serial numbers.
    told: BTreeMap<String, u64>,
    /// The one that the process loads now, and since when.
    loading: Option<(AdapterSpec, Instant)>,
}

impl ToldAdapters {
    /// Returns what the process has to be told so that it holds what was ordered, and takes note that it was. One
    /// adapter is loaded at a time.
    pub(super) fn next(&mut self, ordered: &OrderedAdapters) -> Option<NextAdapter> {
        if self.loading.is_some() {
            return None;
        }
        let ordered = ordered.lock();
        let is_stale = |(name, serial): &(&String, &u64)| {
            let order = ordered.orders.get(*name);
            order.is_none_or(|order| order.spec.serial != **serial)
        };
        let stale = self.told.iter().find(is_stale).map(|(name, _)| name);
        if let Some(name) = stale.cloned() {
            self.told.remove(&name);
            return Some(NextAdapter::Unload(name));
        }
        let is_new = |order: &&Order| !self.told.contains_key(&order.spec.name);
        let spec = ordered.orders.values().find(is_new)?.spec.clone();
        self.told.insert(spec.name.clone(), spec.serial);
        self.loading = Some((spec.clone(), Instant::now()));
        Some(NextAdapter::Load(spec))
    }

    /// Ends the loading of an adapter about which the process has reported; `None` when it loads another one or none.
    pub(super) fn ended(&mut self, serial: u64) -> Option<AdapterSpec> {
        let ended = self.loading.take_if(|(spec, _)| spec.serial == serial);
        ended.map(|(spec, _)| spec)
    }

    /// Returns since when the process has been loading one.
    pub(super) fn loading_since(&self) -> Option<Instant> {
        self.loading.as_ref().map(|(_, since)| *since)
    }

    /// Gives the process more time, since it could not be heard.
    pub(super) fn start_afresh(&mut self) {
        if let Some((_, since)) = &mut self.loading {
            *since = Instant::now();
        }
    }
}

/// Returns the names of the adapters that a worker has loaded.
pub(super) fn loaded(adapters: &BTreeMap<String, WorkerAdapter>) -> BTreeSet<String> {
    let is_loaded = |(_, adapter): &(&String, &WorkerAdapter)| {
        matches!(adapter.state, WorkerAdapterState::Loaded(_))
    };
    let loaded = adapters.iter().filter(is_loaded);
    loaded.map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(ordered: &OrderedAdapters, name: &str) -> Option<u64> {
        let adapter = Adapter {
            name: name.to_owned(),
            strength: 1.0,
        };
        ordered
            .add(adapter, options(name))
            .map(|added| added.serial)
    }

    fn options(name: &str) -> String {
        format!("{{\"name\":\"{name}\"}}")
    }

    fn load(name: &str, serial: u64) -> Option<NextAdapter> {
        Some(NextAdapter::Load(AdapterSpec {
            name: name.to_owned(),
            serial,
            options: options(name),
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_is_told_what_was_ordered_one_after_the_other() {
        let ordered = OrderedAdapters::default();
        let mut told = ToldAdapters::default();
        assert_eq!(told.next(&ordered), None);
        assert_eq!(add(&ordered, "toon"), Some(1));
        assert_eq!(add(&ordered, "fade"), Some(2));
        assert_eq!(add(&ordered, "toon"), None);
        assert_eq!(told.next(&ordered), load("fade", 2));
        assert_eq!(told.next(&ordered), None, "one is being loaded");
        assert_eq!(told.ended(1), None);
        assert!(told.ended(2).is_some() && told.loading_since().is_none());
        assert_eq!(told.next(&ordered), load("toon", 1));
        assert!(told.ended(1).is_some());
        assert_eq!(told.next(&ordered), None);

        // Another one of the same name takes the place of the first.
        assert!(ordered.remove("toon") && !ordered.remove("toon"));
        assert_eq!(add(&ordered, "toon"), Some(3));
        let unload = Some(NextAdapter::Unload("toon".to_owned()));
        assert_eq!(told.next(&ordered), unload);
        assert_eq!(told.next(&ordered), load("toon", 3));

        // A process that is started later is told the same.
        let mut later = ToldAdapters::default();
        assert_eq!(later.next(&ordered), load("fade", 2));
    }

    #[test]
    fn who_waits_for_an_order_learns_that_it_is_gone() {
        let ordered = OrderedAdapters::default();
        let adapter = Adapter {
            name: "toon".to_owned(),
            strength: 1.0,
        };
        let added = ordered.add(adapter, options("toon")).unwrap();
        assert!(!added.gone.is_cancelled());
        ordered.remove("toon");
        assert!(added.gone.is_cancelled());
    }

    #[test]
    fn an_order_stands_for_one_file() {
        let ordered = OrderedAdapters::default();
        let (first, second) = ([1; 32], [2; 32]);
        let toon = add(&ordered, "toon").unwrap();
        let fade = add(&ordered, "fade").unwrap();
        assert!(ordered.is_same_file(toon, first) && ordered.is_same_file(toon, first));
        assert!(!ordered.is_same_file(toon, second));
        assert!(ordered.is_same_file(fade, second));
        ordered.remove("toon");
        let again = add(&ordered, "toon").unwrap();
        assert!(ordered.is_same_file(again, second));
    }

    #[test]
    fn what_was_withdrawn_is_not_offered() {
        let ordered = OrderedAdapters::default();
        let first = add(&ordered, "toon").unwrap();
        ordered.withdraw(first);
        let second = add(&ordered, "toon").unwrap();
        ordered.withdraw(first);
        assert!(!ordered.offer(first));
        let offered = |ordered: &OrderedAdapters| ordered.list()[0].2;
        assert!(!offered(&ordered));
        assert!(ordered.offer(second) && offered(&ordered));
    }
}
