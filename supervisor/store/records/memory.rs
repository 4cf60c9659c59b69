//! Records in this process's memory: bounded by limits, and gone when the process ends.

use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use fastvideo_proto::ids::VideoId;

use super::ledger::{Ledger, Limits};
use super::{MemoryUse, RecordWrite, Records, StoredRecord, Survey, VideoPage, WriteOutcome};
use crate::store::error::StoreError;
use crate::store::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};
use crate::tenant::Tenant;

const NAME_PREFIX: &str = "memory-";

/// Records in this process.
#[derive(Debug)]
pub struct MemoryRecords {
    name: String,
    ledger: Mutex<Ledger>,
}

impl MemoryRecords {
    /// Creates an empty store with a name of its own.
    pub fn new(limits: Limits) -> Self {
        Self {
            name: format!("{NAME_PREFIX}{:032x}", rand::random::<u128>()),
            ledger: Mutex::new(Ledger::limited(limits)),
        }
    }

    /// Returns whether a store of this kind may have had that name: its blobs are garbage once its process is gone.
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

    fn memory_use(&self) -> Option<MemoryUse> {
        Some(self.lock().memory_use())
    }

    async fn read(&self, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError> {
        Ok(self.lock().read(key))
    }

    async fn write(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        self.lock().write(write)
    }

    async fn restore(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        self.lock().restore(write)
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

    async fn stale(&self, known: &[(RecordKey, Revision)]) -> Result<Vec<RecordKey>, StoreError> {
        Ok(self.lock().stale(known))
    }

    async fn list(
        &self,
        tenant: &Tenant,
        page: VideoPage,
    ) -> Result<Vec<(VideoId, StoredRecord)>, StoreError> {
        Ok(self.lock().list(tenant, page))
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        Ok(self.lock().survey())
    }
}
