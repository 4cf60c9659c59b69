//! The rules of the records, on tables in this process's memory. The backends `memory` and `file` are built on it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::ops::Bound;

use fastvideo_proto::ids::VideoId;
use serde::{Deserialize, Serialize};

use super::{
    BlobKind, MemoryUse, Order, Record, RecordWrite, StoredRecord, Survey, SurveyedRecord,
    VideoPage, WriteOutcome,
};
use crate::store::error::StoreError;
use crate::store::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};
use crate::tenant::Tenant;

/// The limits of a store in memory.
///
/// When a limit is reached, sessions that no server runs and loans are evicted, least recently written first: loans before
/// sessions. A loan evicts only other loans. Where there is no room for media, such records lose theirs, and stay. Videos
/// and claims are never evicted and lose nothing.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_sessions: usize,
    /// Limit on the sizes of the records' bodies and states, in sum.
    pub max_bytes: u64,
    /// Limit on the sizes of media, in sum.
    pub max_media_bytes: u64,
}

/// All records of a store, with their blobs and reservations. Every method is one step; one that fails has changed
/// nothing.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) records: Table<RecordKey, StoredRecord>,
    pub(super) blobs: Table<BlobId, CountedBlob>,
    pub(super) condemned: Table<BlobKey, ()>,
    pub(super) reservations: Table<(ServerId, ReservationId), Vec<BlobKey>>,
    /// The last revision or edition that was given out.
    pub(super) sequence: u64,
    /// For each record that was restored or removed after a loss: its version before the loss, or a later one.
    origins: HashMap<RecordKey, Revision>,
    limits: Option<Limits>,
    beats: HashMap<ServerId, u64>,
    /// Records that may be evicted, since no server runs them, in the order in which they are.
    idle: BTreeMap<EvictionOrder, RecordKey>,
    /// The videos of each tenant that has some.
    videos: HashMap<Tenant, BTreeSet<VideoId>>,
    /// Number of records that are sessions.
    sessions: usize,
    /// Bytes of all bodies and states; a blob counts for each record that names it.
    bytes: u64,
    /// Bytes of all media, counted in the same way.
    media_bytes: u64,
}

/// The order of eviction: loans before sessions, each ordered by the last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct EvictionOrder {
    is_session: bool,
    revision: Revision,
}

impl EvictionOrder {
    fn new(key: &RecordKey, revision: Revision) -> Self {
        Self {
            is_session: is_session(key),
            revision,
        }
    }
}

/// The reference count of a blob that records or reservations refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CountedBlob {
    pub(super) edition: u64,
    pub(super) count: u64,
}

/// A map that can track which keys have changed.
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
    /// Creates a table that tracks changes from now on.
    pub(super) fn remembering(rows: HashMap<K, V>) -> Self {
        Self {
            rows,
            changed: Some(HashSet::new()),
        }
    }

    /// Returns the keys that have changed since the last call, each with its value now.
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

    /// Creates a ledger from tables that were kept elsewhere. It has no beats, since no other server has lived on.
    pub(super) fn kept(
        records: HashMap<RecordKey, StoredRecord>,
        blobs: HashMap<BlobId, CountedBlob>,
        condemned: HashMap<BlobKey, ()>,
        reservations: HashMap<(ServerId, ReservationId), Vec<BlobKey>>,
        sequence: u64,
    ) -> Self {
        let mut videos: HashMap<Tenant, BTreeSet<VideoId>> = HashMap::new();
        for key in records.keys() {
            if let RecordKey::Video { tenant, id } = key {
                videos.entry(tenant.clone()).or_default().insert(*id);
            }
        }
        Self {
            videos,
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

    pub(super) fn read(&self, key: &RecordKey) -> Option<StoredRecord> {
        self.records.rows.get(key).cloned()
    }

    pub(super) fn write(&mut self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        let old = self.records.rows.get(write.key);
        if old.map(|old| old.revision) != write.expected {
            return Err(StoreError::Stale);
        }
        let stays = match (old, write.record) {
            (Some(old), Some(record)) => old.record.owner == record.owner,
            _ => false,
        };
        let outcome = self.replace(write)?;
        if let Some(origin) = self.origins.get_mut(write.key)
            && !stays
        {
            *origin = outcome.revision;
        }
        Ok(outcome)
    }

    pub(super) fn restore(&mut self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        let lost = write.expected.unwrap_or(Revision(0));
        let current = self.records.rows.get(write.key);
        let version = self.origins.get(write.key).copied();
        let version = version.or(current.map(|current| current.revision));
        let is_ours = current.is_some_and(|c| c.record.owner.as_ref() == Some(write.server));
        if version.is_some_and(|version| version > lost || (version == lost && !is_ours)) {
            return Err(StoreError::Stale);
        }
        let outcome = self.replace(write)?;
        self.origins.insert(write.key.clone(), lost);
        Ok(outcome)
    }

    /// Writes or removes a record, whatever its revision is.
    fn replace(&mut self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        let reservation = write.reservation.map(|id| (write.server.clone(), id));
        if let Some(reservation) = &reservation
            && !self.reservations.rows.contains_key(reservation)
        {
            return Err(StoreError::Unreserved);
        }
        let (evicted, stripped) = match (self.limits, write.record) {
            (Some(limits), Some(record)) => (
                self.evictions(limits, write.key, record)?,
                self.strippings(limits, write.key, record)?,
            ),
            _ => Default::default(),
        };
        let mut freed = Vec::new();
        for key in stripped {
            tracing::info!(record = %key, "stored film dropped: there is no room for more media");
            self.strip(&key, &mut freed);
        }
        for key in evicted {
            tracing::info!(record = %key, "stored record evicted: the store is full");
            self.remove(&key, &mut freed);
        }
        self.remove(write.key, &mut freed);
        let revision = Revision(self.next());
        if let Some(record) = write.record {
            self.add(write.key, revision, record);
        }
        if let Some(reservation) = reservation {
            freed.extend(self.reservations.remove(&reservation).unwrap_or_default());
        }
        Ok(WriteOutcome {
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
        let CountedBlob { edition, .. } = *self.blobs.rows.get(&id)?;
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

    pub(super) fn stale(&self, known: &[(RecordKey, Revision)]) -> Vec<RecordKey> {
        let stale = known.iter().filter(|(key, revision)| {
            self.records.rows.get(key).map(|stored| stored.revision) != Some(*revision)
        });
        stale.map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn list(&self, tenant: &Tenant, page: VideoPage) -> Vec<(VideoId, StoredRecord)> {
        let VideoPage {
            after,
            limit,
            order,
        } = page;
        let Some(videos) = self.videos.get(tenant) else {
            return Vec::new();
        };
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ids: Vec<VideoId> = match order {
            Order::Ascending => {
                let ids = videos.range((after, Bound::Unbounded));
                ids.take(limit).copied().collect()
            }
            Order::Descending => {
                let ids = videos.range((Bound::Unbounded, after)).rev();
                ids.take(limit).copied().collect()
            }
        };
        let records = ids.into_iter().map(|id| {
            let tenant = tenant.clone();
            let stored = self.read(&RecordKey::Video { tenant, id });
            (id, stored.expect("the index has the videos that are there"))
        });
        records.collect()
    }

    pub(super) fn survey(&self) -> Survey {
        let mut servers = self.beats.clone();
        for (server, _) in self.reservations.rows.keys() {
            servers.entry(server.clone()).or_default();
        }
        let records = self.records.rows.iter();
        Survey {
            records: records
                .map(|(key, StoredRecord { revision, record })| {
                    let owner = record.owner.clone();
                    SurveyedRecord::new(key.clone(), *revision, owner, &record.blobs)
                })
                .collect(),
            servers,
            condemned: self.condemned.rows.keys().copied().collect(),
            blobs: self.blobs.rows.len(),
        }
    }

    pub(super) fn memory_use(&self) -> MemoryUse {
        MemoryUse {
            sessions: self.sessions,
            bytes: self.bytes + self.media_bytes,
        }
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Returns the records to evict so that this one fits in place of what is there now. The record that is written is
    /// never evicted.
    fn evictions(
        &self,
        limits: Limits,
        writing: &RecordKey,
        record: &Record,
    ) -> Result<Vec<RecordKey>, StoreError> {
        let old = self.records.rows.get(writing);
        let (less, more) = (old.map_or(0, |old| size(&old.record)), size(record));
        // A record that does not grow is never refused.
        if old.is_some() && more <= less {
            return Ok(Vec::new());
        }
        let mut sessions = self.sessions + usize::from(old.is_none() && is_session(writing));
        let mut bytes = (self.bytes - less).saturating_add(more);
        let mut evicted = Vec::new();
        let mut idle = self.idle.values().filter(|key| *key != writing);
        while sessions > limits.max_sessions || bytes > limits.max_bytes {
            let is_loan = matches!(writing, RecordKey::Loan(_));
            let evictable = |key: &&RecordKey| !is_loan || !is_session(key);
            let Some(key) = idle.next().filter(evictable) else {
                return Err(StoreError::Full {
                    max_sessions: limits.max_sessions,
                    max_bytes: limits.max_bytes,
                });
            };
            if !is_session(key) && bytes <= limits.max_bytes {
                // The limit on sessions is exceeded, and evicting a loan would not change that.
                continue;
            }
            sessions -= usize::from(is_session(key));
            bytes -= (self.records.rows.get(key)).map_or(0, |stored| size(&stored.record));
            evicted.push(key.clone());
        }
        Ok(evicted)
    }

    /// Returns the records that lose their media so that those of this one fit in place of what is there now.
    fn strippings(
        &self,
        limits: Limits,
        writing: &RecordKey,
        record: &Record,
    ) -> Result<Vec<RecordKey>, StoreError> {
        let media_of = |key| {
            let stored = self.records.rows.get(key);
            stored.map_or(0, |stored| media_size(&stored.record))
        };
        let (less, more) = (media_of(writing), media_size(record));
        if more <= less {
            return Ok(Vec::new());
        }
        let mut bytes = (self.media_bytes - less).saturating_add(more);
        let mut stripped = Vec::new();
        let mut idle = self.idle.values().filter(|key| *key != writing);
        while bytes > limits.max_media_bytes {
            let Some(key) = idle.next() else {
                let max_bytes = limits.max_media_bytes;
                return Err(StoreError::MediaFull { max_bytes });
            };
            let media = media_of(key);
            if media > 0 {
                bytes -= media;
                stripped.push(key.clone());
            }
        }
        Ok(stripped)
    }

    /// Takes the media from a record, and adds the blobs that it named to `freed`, still counted.
    fn strip(&mut self, key: &RecordKey, freed: &mut Vec<BlobKey>) {
        // It may have been evicted meanwhile.
        let Some(mut record) = self.read(key).map(|stored| stored.record) else {
            return;
        };
        record.blobs.retain(|blob| blob.kind == BlobKind::State);
        self.remove(key, freed);
        let revision = Revision(self.next());
        self.add(key, revision, &record);
    }

    fn add(&mut self, key: &RecordKey, revision: Revision, record: &Record) {
        for blob in &record.blobs {
            self.count(blob.key.id);
        }
        self.bytes += size(record);
        self.media_bytes += media_size(record);
        self.sessions += usize::from(is_session(key));
        if record.owner.is_none() && is_evictable(key) {
            let order = EvictionOrder::new(key, revision);
            self.idle.insert(order, key.clone());
        }
        if let RecordKey::Video { tenant, id } = key {
            self.videos.entry(tenant.clone()).or_default().insert(*id);
        }
        let record = record.clone();
        self.records
            .insert(key.clone(), StoredRecord { revision, record });
    }

    /// Removes a record, if there is one, and adds the blobs that it named to `freed`, still counted.
    fn remove(&mut self, key: &RecordKey, freed: &mut Vec<BlobKey>) {
        let Some(old) = self.records.remove(key) else {
            return;
        };
        self.idle.remove(&EvictionOrder::new(key, old.revision));
        if let RecordKey::Video { tenant, id } = key
            && let Some(videos) = self.videos.get_mut(tenant)
        {
            videos.remove(id);
            if videos.is_empty() {
                self.videos.remove(tenant);
            }
        }
        self.bytes = self.bytes.saturating_sub(size(&old.record));
        self.media_bytes = self.media_bytes.saturating_sub(media_size(&old.record));
        self.sessions = self.sessions.saturating_sub(usize::from(is_session(key)));
        freed.extend(old.record.blobs.iter().map(|blob| blob.key));
    }

    fn count(&mut self, id: BlobId) -> BlobKey {
        let mut counted = match self.blobs.rows.get(&id) {
            Some(counted) => *counted,
            None => CountedBlob {
                edition: self.next(),
                count: 0,
            },
        };
        counted.count += 1;
        self.blobs.insert(id, counted);
        let edition = counted.edition;
        BlobKey { id, edition }
    }

    /// Decrements the reference count of each blob. Returns those that are condemned by this, because their count is
    /// zero.
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
                self.blobs.insert(key.id, CountedBlob { count, ..counted });
            }
        }
        condemned
    }
}

fn is_session(key: &RecordKey) -> bool {
    matches!(key, RecordKey::Session(_))
}

/// Returns whether a record goes when there is no room and no server runs it.
fn is_evictable(key: &RecordKey) -> bool {
    match key {
        RecordKey::Session(_) | RecordKey::Loan(_) => true,
        RecordKey::Video { .. } | RecordKey::VideoClaim(_) => false,
    }
}

fn size(record: &Record) -> u64 {
    record.body.len() as u64 + blob_size(record, BlobKind::State)
}

fn media_size(record: &Record) -> u64 {
    blob_size(record, BlobKind::Media)
}

fn blob_size(record: &Record, kind: BlobKind) -> u64 {
    let blobs = record.blobs.iter().filter(|blob| blob.kind == kind);
    blobs.map(|blob| blob.bytes).sum()
}
