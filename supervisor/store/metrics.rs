//! The metrics of the store: each operation on a backend, and what a store in memory holds.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use fastvideo_proto::ids::VideoId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::error::StoreError;
use super::handle::SessionStore;
use super::ids::{BlobId, BlobKey, Epoch, RecordKey, ReservationId, Revision, ServerId};
use super::records::{
    MemoryUse, RecordWrite, Records, StoredRecord, Survey, VideoPage, WriteOutcome,
};
use crate::metrics::{Bounds, Gauges, Histograms, LATENCY, create, number, seconds};
use crate::tenant::Tenant;

/// The operations, with the part of the store that does them.
const OPERATIONS: [(&str, &str); 8] = [
    ("records", "read"),
    ("records", "write"),
    ("records", "reserve"),
    ("records", "survey"),
    ("records", "beat"),
    ("blobs", "put"),
    ("blobs", "get"),
    ("blobs", "delete"),
];
const OUTCOMES: [&str; 5] = ["ok", "stale", "full", "timeout", "error"];

/// The metrics of a store. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct StoreMetrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    operations: Family<OutcomeLabels, Counter>,
    took: Histograms<OperationLabels>,
    late_saves: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    part: &'static str,
    op: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    part: &'static str,
    op: &'static str,
    outcome: &'static str,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self(Arc::new(Families {
            operations: Family::default(),
            took: Family::new_with_constructor(Bounds(&LATENCY)),
            late_saves: Counter::default(),
        }))
    }
}

impl SessionStore {
    /// Registers the store's metrics, with all their series.
    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        let all = &self.0.metrics.0;
        registry.register(
            "store_operations",
            "Operations on the store's records and blobs, by how they ended; `timeout` means that nobody waited any longer",
            all.operations.clone(),
        );
        registry.register(
            "store_operation_seconds",
            "Time that an operation on the store took",
            all.took.clone(),
        );
        registry.register(
            "store_late_saves",
            "Finished segments that clients were told of before they were stored, since the store did not answer in time",
            all.late_saves.clone(),
        );
        for (part, op) in OPERATIONS {
            create(&all.took, &OperationLabels { part, op });
            for outcome in OUTCOMES {
                let labels = OutcomeLabels { part, op, outcome };
                create(&all.operations, &labels);
            }
        }
        registry.register_collector(Box::new(MemoryGauges(self.clone())));
    }
}

impl StoreMetrics {
    /// Counts a segment that a client was told of before it was stored.
    pub(super) fn saved_late(&self) {
        self.0.late_saves.inc();
    }

    /// Measures an operation. One that is dropped before it has ended has taken too long for whoever waited for it.
    pub(super) async fn measure<T>(
        &self,
        part: &'static str,
        op: &'static str,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut measured = Measured {
            metrics: self,
            labels: OperationLabels { part, op },
            began: Instant::now(),
            outcome: "timeout",
        };
        let result = operation.await;
        measured.outcome = match &result {
            Ok(_) => "ok",
            Err(StoreError::Stale | StoreError::Unreserved | StoreError::Forgotten) => "stale",
            Err(StoreError::Full { .. } | StoreError::MediaFull { .. }) => "full",
            Err(StoreError::Lost(_) | StoreError::Newer(_) | StoreError::Unavailable(_)) => "error",
        };
        result
    }
}

/// A running operation. Dropping it counts it.
struct Measured<'a> {
    metrics: &'a StoreMetrics,
    labels: OperationLabels,
    began: Instant,
    outcome: &'static str,
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        let all = &self.metrics.0;
        let took = all.took.get_or_create(&self.labels);
        took.observe(seconds(self.began.elapsed()));
        let OperationLabels { part, op } = self.labels;
        let outcome = self.outcome;
        let labels = OutcomeLabels { part, op, outcome };
        all.operations.get_or_create(&labels).inc();
    }
}

/// Records whose operations are measured.
#[derive(Debug)]
pub(super) struct MeasuredRecords {
    pub(super) records: Arc<dyn Records>,
    pub(super) metrics: StoreMetrics,
}

impl MeasuredRecords {
    async fn measure<T>(
        &self,
        op: &'static str,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.metrics.measure("records", op, operation).await
    }
}

#[async_trait]
impl Records for MeasuredRecords {
    async fn name(&self) -> Result<String, StoreError> {
        self.records.name().await
    }

    fn epoch(&self) -> Epoch {
        self.records.epoch()
    }

    fn memory_use(&self) -> Option<MemoryUse> {
        self.records.memory_use()
    }

    async fn adopt(&self) -> Result<(), StoreError> {
        self.records.adopt().await
    }

    async fn read(&self, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError> {
        self.measure("read", self.records.read(key)).await
    }

    async fn write(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        self.measure("write", self.records.write(write)).await
    }

    async fn restore(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        self.measure("write", self.records.restore(write)).await
    }

    async fn reserve(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let reserving = self.records.reserve(server, reservation, blobs);
        self.measure("reserve", reserving).await
    }

    async fn release(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let releasing = self.records.release(server, reservation, blobs);
        self.measure("reserve", releasing).await
    }

    async fn locate(&self, blob: BlobId) -> Result<Option<BlobKey>, StoreError> {
        self.measure("read", self.records.locate(blob)).await
    }

    async fn forget(&self, blobs: &[BlobKey]) -> Result<(), StoreError> {
        self.measure("reserve", self.records.forget(blobs)).await
    }

    async fn condemn_unknown(&self, blobs: &[BlobKey]) -> Result<Vec<BlobKey>, StoreError> {
        let condemning = self.records.condemn_unknown(blobs);
        self.measure("survey", condemning).await
    }

    async fn beat(&self, server: &ServerId) -> Result<(), StoreError> {
        self.measure("beat", self.records.beat(server)).await
    }

    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobKey>, StoreError> {
        self.measure("survey", self.records.retire(server)).await
    }

    async fn stale(&self, known: &[(RecordKey, Revision)]) -> Result<Vec<RecordKey>, StoreError> {
        self.measure("survey", self.records.stale(known)).await
    }

    async fn list(
        &self,
        tenant: &Tenant,
        page: VideoPage,
    ) -> Result<Vec<(VideoId, StoredRecord)>, StoreError> {
        self.measure("read", self.records.list(tenant, page)).await
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        self.measure("survey", self.records.survey()).await
    }
}

/// Reads what a store in memory holds when it is scraped.
#[derive(Debug)]
struct MemoryGauges(SessionStore);

impl Collector for MemoryGauges {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(MemoryUse { sessions, bytes }) = self.0.0.records.memory_use() else {
            return Ok(());
        };
        let mut gauges = Gauges(encoder);
        gauges.one(
            "store_sessions",
            "Sessions in a store in memory",
            number(sessions),
        )?;
        gauges.one(
            "store_bytes",
            "Bytes of states, films and videos in a store in memory",
            number(bytes),
        )
    }
}
