//! The handle of a store, which all its operations share: the backends, this server's identity and what it holds.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastvideo_proto::ids::{SessionId, VideoId};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use super::blobs::BlobStore;
use super::error::StoreError;
use super::film::Recording;
use super::health::{Health, StoreStatus};
use super::ids::ServerId;
use super::leased_session::LeasedSession;
use super::leased_video::LeasedVideo;
use super::leases::Leases;
use super::losses::{Removed, Restoring};
use super::metrics::{MeasuredRecords, StoreMetrics};
use super::pending_cleanup::PendingCleanup;
use super::records::Records;
use super::records::memory::MemoryRecords;
use super::unwritten::UnwrittenTotal;
use crate::tenant::{Scope, Tenant};

/// The configurable behaviour of the store.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long the state of a session that no server runs is kept.
    pub resume_ttl: Duration,
    /// A server that is silent for this long loses its leases: its sessions count as sessions that no server runs.
    pub lease: Duration,
    /// How long one read, or one write with all its steps, may take.
    pub timeout: Duration,
    /// Whether a server whose store does not work is not ready.
    pub required_for_readiness: bool,
    /// `None` where no films are kept.
    pub recording: Option<Recording>,
}

impl Config {
    /// Returns how long a film is kept after its session has ended: no shorter than the state.
    pub fn film_ttl(&self) -> Duration {
        let recording = self.recording.map(|recording| recording.ttl);
        recording.unwrap_or_default().max(self.resume_ttl)
    }
}

/// The sessions of all servers that share a store, as somebody sees them. Cheap to clone.
#[derive(Clone)]
pub struct SessionStore(pub(super) Arc<Shared>, pub(super) View);

/// Who sees a store.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Whose sessions and lent blobs are there; those of others are as unknown.
    pub(super) scope: Scope,
    /// Whose is what is made.
    pub(super) tenant: Tenant,
}

pub(super) struct Shared {
    pub(super) config: Mutex<Config>,
    /// The store's own name.
    pub(super) name: String,
    pub(super) records: Arc<dyn Records>,
    pub(super) blobs: BlobStore,
    pub(super) server: ServerId,
    pub(super) leased: Leases<SessionId, LeasedSession>,
    /// The video jobs that this server runs.
    pub(super) videos: Leases<VideoId, LeasedVideo>,
    /// The number of the next reservation.
    pub(super) reservations: AtomicU64,
    /// Tracks the puts of blobs, which go on when their callers no longer wait.
    pub(super) puts: TaskTracker,
    pub(super) cleanup: PendingCleanup,
    /// The media of this server's sessions that are not stored yet.
    pub(super) unwritten: UnwrittenTotal,
    /// Number of segments whose media were dropped although their clients may not have had them.
    pub(super) lost_segments: AtomicU64,
    pub(super) health: Health,
    pub(super) metrics: StoreMetrics,
    pub(super) removed: Removed,
    pub(super) restoring: Restoring,
}

/// The moment by which an operation, with all its steps, has to be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Instant,
    /// The time that the operation has in all.
    limit: Duration,
}

/// The store has not answered in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} ms", .0.as_millis())]
struct NoAnswer(Duration);

impl Deadline {
    /// Waits for a step of the operation until the deadline.
    ///
    /// # Errors
    /// Returns the errors of the step, and [`StoreError::Unavailable`] when the deadline passes.
    pub(super) async fn limit<T>(
        self,
        step: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match timeout_at(self.at, step).await {
            Ok(done) => done,
            Err(_) => Err(StoreError::unavailable(NoAnswer(self.limit))),
        }
    }
}

impl SessionStore {
    pub(super) fn new(
        config: Config,
        name: String,
        records: Arc<dyn Records>,
        blobs: BlobStore,
    ) -> Self {
        let metrics = StoreMetrics::default();
        let records = Arc::new(MeasuredRecords {
            records,
            metrics: metrics.clone(),
        });
        let shared = Arc::new(Shared {
            config: Mutex::new(config),
            name,
            records,
            blobs: blobs.measured(metrics.clone()),
            metrics,
            server: ServerId::random(),
            leased: Leases::default(),
            videos: Leases::default(),
            reservations: AtomicU64::new(0),
            puts: TaskTracker::new(),
            cleanup: PendingCleanup::default(),
            unwritten: UnwrittenTotal::default(),
            lost_segments: AtomicU64::new(0),
            health: Health::default(),
            removed: Removed::default(),
            restoring: Restoring::default(),
        });
        let view = View {
            scope: Scope::All,
            tenant: Tenant::default(),
        };
        Self(shared, view)
    }

    /// Returns the same store as somebody else sees it, whose `tenant` is that of what is made.
    pub fn seen_by(&self, scope: Scope, tenant: Tenant) -> Self {
        Self(self.0.clone(), View { scope, tenant })
    }

    /// Returns whose is what is made.
    pub fn tenant(&self) -> &Tenant {
        &self.1.tenant
    }

    /// Returns what holds now.
    pub fn config(&self) -> Config {
        *self.lock_config()
    }

    /// Changes how long the states of sessions are kept that no server runs.
    pub(crate) fn set_resume_ttl(&self, ttl: Duration) {
        self.lock_config().resume_ttl = ttl;
    }

    fn lock_config(&self) -> MutexGuard<'_, Config> {
        (self.0.config.lock()).expect("no holder of this lock panics")
    }

    /// Returns the id of this run of this server, under which it owns records.
    pub fn server(&self) -> &ServerId {
        &self.0.server
    }

    /// Returns the store's own name: servers with the same one have the same sessions.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns whether the store outlives the server's process.
    pub fn outlives_server(&self) -> bool {
        !MemoryRecords::is_name(&self.0.name)
    }

    /// Returns how many segments lost their media for lack of room although their clients may not have had them.
    pub fn lost_segments(&self) -> u64 {
        self.0.lost_segments.load(Ordering::Relaxed)
    }

    /// Returns whether the store works.
    pub fn status(&self) -> StoreStatus {
        self.0.health.status()
    }

    /// Returns the deadline of an operation that begins now. A store that does not answer must not hold a session up.
    pub(super) fn deadline(&self) -> Deadline {
        let limit = self.config().timeout;
        Deadline {
            at: Instant::now() + limit,
            limit,
        }
    }

    /// Runs an operation of one step within its deadline.
    pub(super) async fn within<T>(
        &self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let outcome = self.deadline().limit(operation).await;
        self.0.restoring.observe(&outcome);
        outcome
    }
}

impl fmt::Debug for SessionStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionStore")
            .field("server", &self.0.server)
            .field("records", &self.0.records)
            .finish_non_exhaustive()
    }
}
