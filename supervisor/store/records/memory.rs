//! Records in this process: bounded, and gone when it ends.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use fastvideo_proto::ids::SessionId;

use super::{BlobId, Change, Outcome, Record, Records, Revision, ServerId, Survey, Written};
use crate::store::StoreError;

/// What fits. When it is reached, sessions that nobody runs leave, the one that has waited longest first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_sessions: usize,
    /// Of the records' bodies and blobs.
    pub max_bytes: u64,
}

#[derive(Debug)]
pub struct MemoryRecords {
    limits: Limits,
    name: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    records: HashMap<SessionId, Written>,
    /// Sessions that nobody runs, by their last write.
    idle: BTreeMap<Revision, SessionId>,
    /// Of bodies and blobs, a blob counted for each record that names it.
    bytes: u64,
    sequence: u64,
    counts: HashMap<BlobId, u64>,
    condemned: HashSet<BlobId>,
    reserved: HashMap<ServerId, HashMap<BlobId, u64>>,
    beats: HashMap<ServerId, u64>,
}

impl MemoryRecords {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            name: format!("memory-{:032x}", rand::random::<u128>()),
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }
}

#[async_trait]
impl Records for MemoryRecords {
    async fn name(&self) -> Result<String, StoreError> {
        Ok(self.name.clone())
    }

    async fn read(&self, session: &SessionId) -> Result<Option<Written>, StoreError> {
        Ok(self.lock().records.get(session).cloned())
    }

    async fn write(&self, change: Change<'_>) -> Result<Outcome, StoreError> {
        let mut inner = self.lock();
        let old = inner.records.get(change.session);
        if old.map(|old| old.revision) != change.expected {
            return Err(StoreError::Stale);
        }
        let reserved = inner.reserved.get(change.server);
        let is_reserved = |id| reserved.is_some_and(|reserved| reserved.contains_key(id));
        if !change.reserved.iter().all(is_reserved) {
            return Err(StoreError::Condemned);
        }
        let mut leaving = Vec::new();
        if let Some(record) = change.record {
            let less = old.map_or(0, |old| size(&old.record));
            let more = usize::from(old.is_none());
            leaving = inner.victims(self.limits, change.session, more, size(record), less)?;
        }
        let mut freed = Vec::new();
        for session in leaving {
            tracing::info!(session_id = %session, "stored state dropped: the store is full");
            inner.remove(&session, &mut freed);
        }
        inner.remove(change.session, &mut freed);
        let revision = inner.next_revision();
        if let Some(record) = change.record {
            for blob in &record.blobs {
                inner.count(blob.id);
            }
            inner.bytes += size(record);
            if record.owner.is_none() {
                inner.idle.insert(revision, change.session.clone());
            }
            let record = record.clone();
            inner
                .records
                .insert(change.session.clone(), Written { revision, record });
        }
        inner.take_back(change.server, change.reserved);
        let condemned = inner.condemn(freed.into_iter().chain(change.reserved.iter().copied()));
        Ok(Outcome {
            revision,
            condemned,
        })
    }

    async fn reserve(&self, server: &ServerId, blobs: &[BlobId]) -> Result<(), StoreError> {
        let mut inner = self.lock();
        if blobs.iter().any(|id| inner.condemned.contains(id)) {
            return Err(StoreError::Condemned);
        }
        for &id in blobs {
            inner.count(id);
            let reserved = inner.reserved.entry(server.clone()).or_default();
            *reserved.entry(id).or_default() += 1;
        }
        Ok(())
    }

    async fn release(
        &self,
        server: &ServerId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobId>, StoreError> {
        let mut inner = self.lock();
        inner.take_back(server, blobs);
        Ok(inner.condemn(blobs.iter().copied()))
    }

    async fn forget(&self, blobs: &[BlobId]) -> Result<(), StoreError> {
        let mut inner = self.lock();
        for id in blobs {
            inner.condemned.remove(id);
        }
        Ok(())
    }

    async fn condemn_unknown(&self, blobs: &[BlobId]) -> Result<Vec<BlobId>, StoreError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let unknown = blobs.iter().filter(|id| !inner.counts.contains_key(id));
        let unknown: Vec<_> = unknown.copied().collect();
        inner.condemned.extend(&unknown);
        Ok(unknown)
    }

    async fn beat(&self, server: &ServerId) -> Result<(), StoreError> {
        *self.lock().beats.entry(server.clone()).or_default() += 1;
        Ok(())
    }

    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobId>, StoreError> {
        let mut inner = self.lock();
        inner.beats.remove(server);
        let reserved = inner.reserved.remove(server).unwrap_or_default();
        for (&id, &n) in &reserved {
            for _ in 0..n {
                inner.discount(id);
            }
        }
        Ok(inner.condemn(reserved.into_keys()))
    }

    async fn stale(&self, held: &[(SessionId, Revision)]) -> Result<Vec<SessionId>, StoreError> {
        let inner = self.lock();
        let stale = held.iter().filter(|(session, revision)| {
            inner.records.get(session).map(|written| written.revision) != Some(*revision)
        });
        Ok(stale.map(|(session, _)| session.clone()).collect())
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        let inner = self.lock();
        let mut servers = inner.beats.clone();
        for server in inner.reserved.keys() {
            servers.entry(server.clone()).or_default();
        }
        let sessions = inner.records.iter();
        Ok(Survey {
            sessions: sessions
                .map(|(id, w)| (id.clone(), w.revision, w.record.owner.clone()))
                .collect(),
            servers,
            condemned: inner.condemned.iter().copied().collect(),
            blobs: inner.counts.len(),
        })
    }
}

impl Inner {
    fn next_revision(&mut self) -> Revision {
        self.sequence += 1;
        Revision(self.sequence)
    }

    /// The sessions that nobody runs which have to leave, so that `records` more records fit and `more` bytes in place of
    /// `less`. Never the session that is written.
    fn victims(
        &self,
        limits: Limits,
        writing: &SessionId,
        records: usize,
        more: u64,
        less: u64,
    ) -> Result<Vec<SessionId>, StoreError> {
        let mut count = self.records.len() + records;
        let mut bytes = (self.bytes - less).saturating_add(more);
        let mut leaving = Vec::new();
        let mut idle = self.idle.values().filter(|id| *id != writing);
        while count > limits.max_sessions || bytes > limits.max_bytes {
            // A record that does not grow is no reason to refuse.
            if records == 0 && more <= less {
                break;
            }
            let Some(oldest) = idle.next() else {
                return Err(StoreError::Full {
                    max_sessions: limits.max_sessions,
                    max_bytes: limits.max_bytes,
                });
            };
            count -= 1;
            bytes -= self.records.get(oldest).map_or(0, |w| size(&w.record));
            leaving.push(oldest.clone());
        }
        Ok(leaving)
    }

    /// Removes a record, if there is one, and adds the blobs that it named to `freed`.
    fn remove(&mut self, session: &SessionId, freed: &mut Vec<BlobId>) {
        let Some(old) = self.records.remove(session) else {
            return;
        };
        self.idle.remove(&old.revision);
        self.bytes -= size(&old.record);
        for blob in &old.record.blobs {
            self.discount(blob.id);
            freed.push(blob.id);
        }
    }

    fn count(&mut self, id: BlobId) {
        *self.counts.entry(id).or_default() += 1;
    }

    fn discount(&mut self, id: BlobId) {
        if let Some(count) = self.counts.get_mut(&id) {
            *count -= 1;
        }
    }

    fn take_back(&mut self, server: &ServerId, blobs: &[BlobId]) {
        let mut given_back = Vec::new();
        if let Some(reserved) = self.reserved.get_mut(server) {
            for id in blobs {
                if let Some(n) = reserved.get_mut(id) {
                    *n -= 1;
                    given_back.push(*id);
                    if *n == 0 {
                        reserved.remove(id);
                    }
                }
            }
            if reserved.is_empty() {
                self.reserved.remove(server);
            }
        }
        for id in given_back {
            self.discount(id);
        }
    }

    /// Those of the blobs that are counted no more.
    fn condemn(&mut self, blobs: impl IntoIterator<Item = BlobId>) -> Vec<BlobId> {
        let mut condemned = Vec::new();
        for id in blobs {
            if self.counts.get(&id) == Some(&0) {
                self.counts.remove(&id);
                self.condemned.insert(id);
                condemned.push(id);
            }
        }
        condemned
    }
}

fn size(record: &Record) -> u64 {
    record.body.len() as u64 + record.blobs.iter().map(|blob| blob.bytes).sum::<u64>()
}
