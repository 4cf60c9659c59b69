//! Records in this process: bounded, and gone when it ends.

use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use fastvideo_proto::ids::SessionId;

use super::ledger::Ledger;
use super::{
    BlobId, BlobKey, Change, Outcome, Records, ReservationId, Revision, ServerId, Survey, Written,
};
use crate::store::StoreError;

const NAME_PREFIX: &str = "memory-";

/// What fits. When it is reached, sessions that nobody runs leave, the one that has waited longest first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_sessions: usize,
    /// Of the records' bodies and blobs.
    pub max_bytes: u64,
}

#[derive(Debug)]
pub struct MemoryRecords {
    name: String,
    ledger: Mutex<Ledger>,
}

impl MemoryRecords {
    pub fn new(limits: Limits) -> Self {
        Self {
            name: format!("{NAME_PREFIX}{:032x}", rand::random::<u128>()),
            ledger: Mutex::new(Ledger::limited(limits)),
        }
    }

    /// Whether a store of this kind may have had that name.
    pub fn is_name(name: &str) -> bool {
        name.strip_prefix(NAME_PREFIX).is_some_and(|rest| {
            rest.len() == 32 && rest.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no holder of this lock panics")
    }
}

#[async_trait]
impl Records for MemoryRecords {
    async fn name(&self) -> Result<String, StoreError> {
        Ok(self.name.clone())
    }

    async fn read(&self, session: &SessionId) -> Result<Option<Written>, StoreError> {
        Ok(self.lock().read(session))
    }

    async fn write(&self, change: Change<'_>) -> Result<Outcome, StoreError> {
        self.lock().write(change)
    }

    async fn reserve(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobKey>, StoreError> {
        Ok(self.lock().reserve(server, reservation, blobs))
    }

    async fn release(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Result<Vec<BlobKey>, StoreError> {
        Ok(self.lock().release(server, reservation, blobs))
    }

    async fn locate(&self, blob: BlobId) -> Result<Option<BlobKey>, StoreError> {
        Ok(self.lock().locate(blob))
    }

    async fn forget(&self, blobs: &[BlobKey]) -> Result<(), StoreError> {
        self.lock().forget(blobs);
        Ok(())
    }

    async fn condemn_unknown(&self, blobs: &[BlobKey]) -> Result<Vec<BlobKey>, StoreError> {
        Ok(self.lock().condemn_unknown(blobs))
    }

    async fn beat(&self, server: &ServerId) -> Result<(), StoreError> {
        self.lock().beat(server);
        Ok(())
    }

    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobKey>, StoreError> {
        Ok(self.lock().retire(server))
    }

    async fn stale(&self, held: &[(SessionId, Revision)]) -> Result<Vec<SessionId>, StoreError> {
        Ok(self.lock().stale(held))
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        Ok(self.lock().survey())
    }
}
