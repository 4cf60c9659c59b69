//! The rules of the records, on tables in this process's memory: what `memory` and `file` have in common.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use fastvideo_proto::ids::SessionId;
use serde::{Deserialize, Serialize};

use super::memory::Limits;
use super::{
    BlobId, BlobKey, Change, Outcome, Record, ReservationId, Revision, ServerId, Survey, Written,
};
use crate::store::StoreError;

/// All records of a store, with what belongs to them. Every method is one step; one that fails has changed nothing.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) records: Table<SessionId, Written>,
    pub(super) blobs: Table<BlobId, Counted>,
    pub(super) condemned: Table<BlobKey, ()>,
    pub(super) reservations: Table<(ServerId, ReservationId), Vec<BlobKey>>,
    /// The last revision or edition that was given out.
    pub(super) sequence: u64,
    limits: Option<Limits>,
    beats: HashMap<ServerId, u64>,
    /// Sessions that nobody runs, by their last write.
    idle: BTreeMap<Revision, SessionId>,
    /// Of bodies and blobs, a blob counted for each record that names it.
    bytes: u64,
}

/// A blob that records or reservations refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) edition: u64,
    pub(super) count: u64,
}

/// A map that can remember which of its keys have changed.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    rows: HashMap<K, V>,
    changed: Option<HashSet<K>>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            rows: HashMap::new(),
            changed: None,
        }
    }
}

impl<K: Clone + Eq + Hash, V> Table<K, V> {
    /// A table that remembers what changes from now on.
    pub(super) fn remembering(rows: HashMap<K, V>) -> Self {
        Self {
            rows,
            changed: Some(HashSet::new()),
        }
    }

    /// The keys that have changed since this was last asked, each with its value now.
    pub(super) fn take_changes(&mut self) -> impl Iterator<Item = (K, Option<&V>)> {
        let changed = self.changed.as_mut().map(std::mem::take);
        let rows = &self.rows;
        let keys = changed.into_iter().flatten();
        keys.map(|key| {
            let value = rows.get(&key);
            (key, value)
        })
    }

    pub(super) fn is_changed(&self) -> bool {
        self.changed.as_ref().is_some_and(|keys| !keys.is_empty())
    }

    fn insert(&mut self, key: K, value: V) {
        self.touch(&key);
        self.rows.insert(key, value);
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let removed = self.rows.remove(key);
        if removed.is_some() {
            self.touch(key);
        }
        removed
    }

    fn touch(&mut self, key: &K) {
        if let Some(changed) = &mut self.changed {
            changed.insert(key.clone());
        }
    }
}

impl Ledger {
    pub(super) fn limited(limits: Limits) -> Self {
        Self {
            limits: Some(limits),
            ..Self::default()
        }
    }

    /// What was kept of a ledger: all but the beats, for no server lives on.
    pub(super) fn kept(
        records: HashMap<SessionId, Written>,
        blobs: HashMap<BlobId, Counted>,
        condemned: HashMap<BlobKey, ()>,
        reservations: HashMap<(ServerId, ReservationId), Vec<BlobKey>>,
        sequence: u64,
    ) -> Self {
        Self {
            records: Table::remembering(records),
            blobs: Table::remembering(blobs),
            condemned: Table::remembering(condemned),
            reservations: Table::remembering(reservations),
            sequence,
            ..Self::default()
        }
    }

    pub(super) fn is_changed(&self) -> bool {
        self.records.is_changed()
            || self.blobs.is_changed()
            || self.condemned.is_changed()
            || self.reservations.is_changed()
    }

    pub(super) fn read(&self, session: &SessionId) -> Option<Written> {
        self.records.rows.get(session).cloned()
    }

    pub(super) fn write(&mut self, change: Change<'_>) -> Result<Outcome, StoreError> {
        let old = self.records.rows.get(change.session);
        if old.map(|old| old.revision) != change.expected {
            return Err(StoreError::Stale);
        }
        let reservation = change.reservation.map(|id| (change.server.clone(), id));
        if let Some(reservation) = &reservation
            && !self.reservations.rows.contains_key(reservation)
        {
            return Err(StoreError::Unreserved);
        }
        let leaving = match (self.limits, change.record) {
            (Some(limits), Some(record)) => self.victims(limits, change.session, record)?,
            _ => Vec::new(),
        };
        let mut freed = Vec::new();
        for session in leaving {
            tracing::info!(session_id = %session, "stored state dropped: the store is full");
            self.remove(&session, &mut freed);
        }
        self.remove(change.session, &mut freed);
        let revision = Revision(self.next());
        if let Some(record) = change.record {
            self.add(change.session, revision, record);
        }
        if let Some(reservation) = reservation {
            freed.extend(self.reservations.remove(&reservation).unwrap_or_default());
        }
        Ok(Outcome {
            revision,
            condemned: self.discount(freed),
        })
    }

    pub(super) fn reserve(
        &mut self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Vec<BlobKey> {
        let keys: Vec<BlobKey> = blobs.iter().map(|id| self.count(*id)).collect();
        let reservation = (server.clone(), reservation);
        self.reservations.insert(reservation, keys.clone());
        keys
    }

    pub(super) fn release(
        &mut self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Vec<BlobKey> {
        let reserved = self.reservations.remove(&(server.clone(), reservation));
        let mut condemned = self.discount(reserved.unwrap_or_default());
        let unknown = self.condemn_unknown(blobs);
        condemned.extend(unknown);
        condemned.sort_unstable();
        condemned.dedup();
        condemned
    }

    pub(super) fn locate(&self, id: BlobId) -> Option<BlobKey> {
        let Counted { edition, .. } = *self.blobs.rows.get(&id)?;
        Some(BlobKey { id, edition })
    }

    pub(super) fn forget(&mut self, blobs: &[BlobKey]) {
        for key in blobs {
            self.condemned.remove(key);
        }
    }

    pub(super) fn condemn_unknown(&mut self, blobs: &[BlobKey]) -> Vec<BlobKey> {
        let mut unknown = Vec::new();
        for key in blobs {
            if self.locate(key.id) != Some(*key) {
                self.condemned.insert(*key, ());
                unknown.push(*key);
            }
        }
        unknown
    }

    pub(super) fn beat(&mut self, server: &ServerId) {
        *self.beats.entry(server.clone()).or_default() += 1;
    }

    pub(super) fn retire(&mut self, server: &ServerId) -> Vec<BlobKey> {
        self.beats.remove(server);
        let reservations = self.reservations.rows.keys();
        let its: Vec<_> = reservations
            .filter(|(owner, _)| owner == server)
            .cloned()
            .collect();
        let mut freed = Vec::new();
        for reservation in its {
            freed.extend(self.reservations.remove(&reservation).unwrap_or_default());
        }
        self.discount(freed)
    }

    pub(super) fn stale(&self, held: &[(SessionId, Revision)]) -> Vec<SessionId> {
        let stale = held.iter().filter(|(session, revision)| {
            self.records.rows.get(session).map(|w| w.revision) != Some(*revision)
        });
        stale.map(|(session, _)| session.clone()).collect()
    }

    pub(super) fn survey(&self) -> Survey {
        let mut servers = self.beats.clone();
        for (server, _) in self.reservations.rows.keys() {
            servers.entry(server.clone()).or_default();
        }
        let records = self.records.rows.iter();
        Survey {
            sessions: records
                .map(|(id, w)| (id.clone(), w.revision, w.record.owner.clone()))
                .collect(),
            servers,
            condemned: self.condemned.rows.keys().copied().collect(),
            blobs: self.blobs.rows.len(),
        }
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// The sessions that nobody runs which have to leave, so that the record fits in place of what is there now. Never
    /// the session that is written.
    fn victims(
        &self,
        limits: Limits,
        writing: &SessionId,
        record: &Record,
    ) -> Result<Vec<SessionId>, StoreError> {
        let old = self.records.rows.get(writing);
        let (less, more) = (old.map_or(0, |old| size(&old.record)), size(record));
        // A record that does not grow is no reason to refuse.
        if old.is_some() && more <= less {
            return Ok(Vec::new());
        }
        let mut count = self.records.rows.len() + usize::from(old.is_none());
        let mut bytes = (self.bytes - less).saturating_add(more);
        let mut leaving = Vec::new();
        let mut idle = self.idle.values().filter(|id| *id != writing);
        while count > limits.max_sessions || bytes > limits.max_bytes {
            let Some(oldest) = idle.next() else {
                return Err(StoreError::Full {
                    max_sessions: limits.max_sessions,
                    max_bytes: limits.max_bytes,
                });
            };
            count -= 1;
            bytes -= self.records.rows.get(oldest).map_or(0, |w| size(&w.record));
            leaving.push(oldest.clone());
        }
        Ok(leaving)
    }

    fn add(&mut self, session: &SessionId, revision: Revision, record: &Record) {
        for blob in &record.blobs {
            self.count(blob.key.id);
        }
        self.bytes += size(record);
        if record.owner.is_none() {
            self.idle.insert(revision, session.clone());
        }
        let record = record.clone();
        self.records
            .insert(session.clone(), Written { revision, record });
    }

    /// Removes a record, if there is one, and adds the blobs that it named to `freed`, still counted.
    fn remove(&mut self, session: &SessionId, freed: &mut Vec<BlobKey>) {
        let Some(old) = self.records.remove(session) else {
            return;
        };
        self.idle.remove(&old.revision);
        self.bytes = self.bytes.saturating_sub(size(&old.record));
        freed.extend(old.record.blobs.iter().map(|blob| blob.key));
    }

    fn count(&mut self, id: BlobId) -> BlobKey {
        let mut counted = match self.blobs.rows.get(&id) {
            Some(counted) => *counted,
            None => Counted {
                edition: self.next(),
                count: 0,
            },
        };
        counted.count += 1;
        self.blobs.insert(id, counted);
        let edition = counted.edition;
        BlobKey { id, edition }
    }

    /// Counts each blob once less. Returns those that are condemned by this.
    fn discount(&mut self, blobs: Vec<BlobKey>) -> Vec<BlobKey> {
        let mut condemned = Vec::new();
        for key in blobs {
            let Some(counted) = self.blobs.rows.get(&key.id).copied() else {
                continue;
            };
            if counted.edition != key.edition {
                continue;
            }
            let count = counted.count - 1;
            if count == 0 {
                self.blobs.remove(&key.id);
                self.condemned.insert(key, ());
                condemned.push(key);
            } else {
                self.blobs.insert(key.id, Counted { count, ..counted });
            }
        }
        condemned
    }
}

fn size(record: &Record) -> u64 {
    record.body.len() as u64 + record.blobs.iter().map(|blob| blob.bytes).sum::<u64>()
}
