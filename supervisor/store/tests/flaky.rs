//! Records that fail, answer late, or never answer again.

use std::collections::HashSet;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use fastvideo_proto::ids::VideoId;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::backends::LIMITS;
use crate::store::error::StoreError;
use crate::store::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};
use crate::store::records::memory::MemoryRecords;
use crate::store::records::{RecordWrite, Records, StoredRecord, Survey, VideoPage, WriteOutcome};
use crate::tenant::Tenant;

/// Records whose answers get lost.
#[derive(Debug)]
pub(crate) struct Flaky {
    inner: Arc<dyn Records>,
    down: Mutex<bool>,
    /// How long each call takes.
    delay: Mutex<Duration>,
    /// Methods whose next call fails, after it was done or before.
    losing: Mutex<(HashSet<&'static str>, bool)>,
    /// The next writer is taken for dead just before.
    pub(super) retire_before_write: Mutex<bool>,
    life: Mutex<Life>,
    /// Notified when the server dies.
    died: Notify,
}

/// How long a server lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Unlimited,
    /// So many writes are answered before the last one.
    Writes(usize, LastWrite),
    Dead,
}

/// What becomes of the write at which a server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastWrite {
    /// It is not done.
    Undone,
    /// It is done, and its answer is lost.
    Done,
}

impl Default for Flaky {
    fn default() -> Self {
        Self::of(Arc::new(MemoryRecords::new(LIMITS)))
    }
}

impl Flaky {
    /// The way of one server to records that others may use, too.
    pub(crate) fn of(inner: Arc<dyn Records>) -> Self {
        Self {
            inner,
            down: Mutex::default(),
            delay: Mutex::default(),
            losing: Mutex::default(),
            retire_before_write: Mutex::default(),
            life: Mutex::default(),
            died: Notify::new(),
        }
    }

    /// The server dies at the write after so many others: no call is answered from then on.
    pub(crate) fn die_after(&self, writes: usize, last: LastWrite) {
        *self.life.lock().unwrap() = Life::Writes(writes, last);
    }

    /// Waits until the server is dead.
    pub(crate) async fn died(&self) {
        self.died.notified().await;
    }

    pub(super) fn down(&self, down: bool) {
        *self.down.lock().unwrap() = down;
    }

    /// Each call takes so long from now on.
    pub(super) fn delay(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    /// The next call of that method fails. `undone`: nothing is done.
    pub(super) fn lose(&self, method: &'static str, undone: bool) {
        *self.losing.lock().unwrap() = (HashSet::from([method]), undone);
    }

    async fn call<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let (lost, undone) = {
            let mut losing = self.losing.lock().unwrap();
            (losing.0.remove(method), losing.1)
        };
        let down = *self.down.lock().unwrap();
        let failure = Err(StoreError::unavailable("lost"));
        match self.last_write(method) {
            Some(LastWrite::Undone) => return pending().await,
            Some(LastWrite::Done) => {
                let _ = call.await;
                return pending().await;
            }
            None => {}
        }
        if down || lost && undone {
            return failure;
        }
        let delay = *self.delay.lock().unwrap();
        sleep(delay).await;
        let done = call.await;
        if lost { failure } else { done }
    }

    /// Returns what becomes of a call of a server that dies with it, or is dead.
    fn last_write(&self, method: &'static str) -> Option<LastWrite> {
        let mut life = self.life.lock().unwrap();
        match *life {
            Life::Writes(0, last) if method == "write" => {
                *life = Life::Dead;
                self.died.notify_one();
                Some(last)
            }
            Life::Writes(writes, last) if method == "write" => {
                *life = Life::Writes(writes - 1, last);
                None
            }
            Life::Dead => Some(LastWrite::Undone),
            Life::Unlimited | Life::Writes(..) => None,
        }
    }
}

#[async_trait]
impl Records for Flaky {
    async fn name(&self) -> Result<String, StoreError> {
        self.inner.name().await
    }

    async fn read(&self, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError> {
        self.call("read", self.inner.read(key)).await
    }

    async fn write(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        let retire = std::mem::take(&mut *self.retire_before_write.lock().unwrap());
        if retire {
            self.inner.retire(write.server).await?;
        }
        self.call("write", self.inner.write(write)).await
    }

    async fn restore(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        self.call("write", self.inner.restore(write)).await
    }

    async fn reserve(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let call = self.inner.reserve(server, reservation, blobs);
        self.call("reserve", call).await
    }

    async fn release(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let call = self.inner.release(server, reservation, blobs);
        self.call("release", call).await
    }

    async fn locate(&self, blob: BlobId) -> Result<Option<BlobKey>, StoreError> {
        self.call("locate", self.inner.locate(blob)).await
    }

    async fn forget(&self, blobs: &[BlobKey]) -> Result<(), StoreError> {
        self.call("forget", self.inner.forget(blobs)).await
    }

    async fn condemn_unknown(&self, blobs: &[BlobKey]) -> Result<Vec<BlobKey>, StoreError> {
        let call = self.inner.condemn_unknown(blobs);
        self.call("condemn_unknown", call).await
    }

    async fn beat(&self, server: &ServerId) -> Result<(), StoreError> {
        self.call("beat", self.inner.beat(server)).await
    }

    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobKey>, StoreError> {
        self.call("retire", self.inner.retire(server)).await
    }

    async fn stale(&self, known: &[(RecordKey, Revision)]) -> Result<Vec<RecordKey>, StoreError> {
        self.call("stale", self.inner.stale(known)).await
    }

    async fn list(
        &self,
        tenant: &Tenant,
        page: VideoPage,
    ) -> Result<Vec<(VideoId, StoredRecord)>, StoreError> {
        self.call("list", self.inner.list(tenant, page)).await
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        self.call("survey", self.inner.survey()).await
    }
}
