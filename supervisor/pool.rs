//! Worker processes: one per GPU, started, watched, restarted; and which session each of them serves.
//!
//! `process` owns a child process, `link` speaks to it, `lifecycle` says what state it is in and when it is started
//! again. `worker` looks after one GPU: `serving` is a process that serves, `standby` the one that follows it. `assignments` binds
//! sessions to workers, `job` is one piece of work between the two, `rolling_median` the median of how long such things take.
//! Only this module creates processes. It knows nothing of clients, and states are bytes to it.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fastvideo_proto::ids::{GpuId, JobId, SessionId, WorkerId};
use fastvideo_proto::job::{VideoFormat, frames_to_time};
use fastvideo_proto::link::{EncoderSpec, EngineSpec, JobSpec, ReadyReport, WarmupSpec};
use futures_util::FutureExt;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

pub use assignments::{Assignment, MoveError, Placement};
pub use job::{Credit, JobEnd, JobEvent, JobHandle, Media, StartState};
pub use lifecycle::WorkerState;

use assignments::{Absence, Assignments, Sharing};
use worker::WorkerTask;

mod assignments;
pub mod config;
mod job;
mod lifecycle;
mod link;
mod process;
mod rolling_median;
mod serving;
mod standby;
mod worker;

/// The workers to run and how to look after them.
#[derive(Clone, Debug)]
pub struct Config {
    pub worker_bin: PathBuf,
    pub gpus: Vec<Gpu>,
    pub engine: EngineSpec,
    pub format: VideoFormat,
    /// Frames that a segment adds to the one before: fewer than it has where it begins with some of those.
    pub new_frames: u32,
    pub encoder: EncoderSpec,
    pub warmup: Option<WarmupSpec>,
    /// Warm-up makes segments like those of the default request, so that its timing says how long one takes.
    pub warmup_is_typical: bool,
    /// Sessions that may share one worker, at least 1.
    pub sessions_per_gpu: usize,
    /// A worker takes another session only when it makes video for all of them in time.
    pub keep_up: bool,
    pub recycle: Recycle,
    /// From the start of a process to its readiness.
    pub boot_timeout: Duration,
    pub heartbeat_interval: Duration,
    /// A worker without a heartbeat for this long is stuck.
    pub heartbeat_timeout: Duration,
    /// The least time that a denoise step may take before its worker is stuck; ten times the median step when more.
    pub min_step_timeout: Duration,
    /// Pause before a worker is started again; doubles with each exit in a row, up to `max_backoff`.
    pub min_backoff: Duration,
    pub max_backoff: Duration,
    /// Exits in a row, without a finished job between, after which a worker is not started again by itself.
    pub quarantine_after: u32,
    /// After this long without any worker left, quarantines lift themselves.
    pub quarantine_lift: Duration,
    /// The threads that read the workers' events ask the kernel to run them at once; see [`crate::thread_priority`].
    pub realtime: bool,
}

/// When a worker's process is replaced though nothing is wrong with it. Always between two segments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recycle {
    /// Once it has finished so many, at least 1.
    pub after_segments: Option<u32>,
    /// Once its resident memory is larger.
    pub above_bytes: Option<u64>,
    /// The next process is made ready before the old one leaves; the GPU holds both for a while.
    pub overlap: bool,
}

/// One GPU as the operator named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub id: GpuId,
    /// The worker's `CUDA_VISIBLE_DEVICES`: an ordinal, a UUID or a MIG id.
    pub visible_device: String,
}

/// The running workers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    assignments: Arc<Mutex<Assignments>>,
    slots: Vec<SlotHandle>,
    next_job: AtomicU64,
    stop: watch::Sender<Stop>,
    all_lost: watch::Sender<bool>,
    tracker: TaskTracker,
}

#[derive(Debug)]
struct SlotHandle {
    gpu: GpuId,
    status: watch::Receiver<WorkerStatus>,
    wake: Arc<Notify>,
    orders: watch::Sender<Orders>,
}

/// What an operator wants of a worker: each is an order to leave, and says what comes after.
#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    /// It stays away; else it is started again.
    drained: bool,
    /// Jobs that still run then are taken back.
    cut_at: Option<Instant>,
}

/// There is no such GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no GPU {0}")]
pub struct UnknownGpu(pub GpuId);

/// How far the pool has been stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Run,
    /// Workers are asked to leave.
    Ask,
    /// Workers are killed.
    Now,
}

/// What is known of one worker.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    pub gpu: Gpu,
    pub state: WorkerState,
    /// Of the latest process.
    pub worker_id: Option<WorkerId>,
    /// Of the running process.
    pub pid: Option<u32>,
    /// Exits that nobody asked for.
    pub restarts: u32,
    pub last_exit: Option<ExitReport>,
    /// While loading: 0 to 1, and what is being loaded.
    pub load_progress: Option<(f32, String)>,
    /// A process of this GPU has become ready.
    pub warmed_up: bool,
    /// While the process serves.
    pub ready: Option<ReadyReport>,
    pub resident_bytes: Option<u64>,
    pub jobs_finished: u64,
}

/// How a worker's last process ended.
#[derive(Clone, Debug)]
pub struct ExitReport {
    pub kind: ExitKind,
    pub reason: String,
    /// The next process would not become ready either.
    pub permanent: bool,
    pub uptime: Duration,
    pub at: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitKind {
    /// It was asked to leave.
    Asked,
    /// It exited by itself, or was killed by somebody else.
    Crashed,
    /// It made no progress and was killed.
    Stuck,
    /// It said that it cannot become ready, or could not be started.
    Boot,
    /// It sent what it must not, and was killed.
    BadLink,
}

/// All workers, and the queue before them.
#[derive(Clone, Debug)]
pub struct PoolStatus {
    pub workers: Vec<SlotStatus>,
    /// Sessions that wait for a worker.
    pub queue_depth: usize,
    pub warmup_enabled: bool,
}

#[derive(Clone, Debug)]
pub struct SlotStatus {
    pub status: WorkerStatus,
    /// Sessions bound to it.
    pub sessions: usize,
    /// It serves and could take another session.
    pub available: bool,
}

impl Pool {
    /// Starts all workers. Returns at once; [`Self::status`] tells how far they are.
    ///
    /// Must be called on a runtime thread that lives as long as the pool: workers die with the thread that started
    /// them, so that none outlives the supervisor.
    pub fn start(config: Config) -> Self {
        let config = Arc::new(config);
        let wakes: Vec<_> = config
            .gpus
            .iter()
            .map(|_| Arc::<Notify>::default())
            .collect();
        let sharing = Sharing {
            max_sessions: config.sessions_per_gpu,
            keep_up: (config.keep_up)
                .then(|| frames_to_time(config.new_frames.into(), config.format.fps)),
        };
        let ids = config.gpus.iter().map(|gpu| gpu.id);
        let assignments = Assignments::new(ids.zip(wakes.iter().cloned()), sharing);
        let assignments = Arc::new(Mutex::new(assignments));
        let (stop, stop_seen) = watch::channel(Stop::Run);
        let (all_lost, _) = watch::channel(false);
        let tracker = TaskTracker::new();
        let mut slots = Vec::new();
        for (slot, (gpu, wake)) in config.gpus.iter().zip(wakes).enumerate() {
            let (status, status_seen) = watch::channel(WorkerStatus::new(gpu.clone()));
            let (orders, orders_seen) = watch::channel(Orders::default());
            let lost = {
                let (assignments, status) = (assignments.clone(), status.clone());
                move || {
                    tracing::error!(
                        "worker's task panicked: its GPU is lost until the supervisor is started again"
                    );
                    status.send_modify(WorkerStatus::lose);
                    assignments
                        .lock()
                        .expect("no holder of this lock panics")
                        .vacate(slot, Absence::Lost);
                }
            };
            let task = WorkerTask {
                slot,
                gpu: gpu.clone(),
                config: config.clone(),
                assignments: assignments.clone(),
                all_lost: all_lost.clone(),
                status,
                wake: wake.clone(),
                orders: orders_seen,
                stop: stop_seen.clone(),
                tracker: tracker.clone(),
                incarnations: 0,
                started: Instant::now(),
            };
            let span = tracing::info_span!("gpu", gpu = %gpu.id);
            let watched = async move {
                if AssertUnwindSafe(task.run()).catch_unwind().await.is_err() {
                    lost();
                }
            };
            tracker.spawn(watched.instrument(span));
            slots.push(SlotHandle {
                gpu: gpu.id,
                orders,
                status: status_seen,
                wake,
            });
        }
        Self {
            shared: Arc::new(Shared {
                config,
                assignments,
                slots,
                next_job: AtomicU64::new(1),
                stop,
                all_lost,
                tracker,
            }),
        }
    }

    /// Takes a session in: it gets a worker or a place in the queue, until the place is dropped.
    pub fn join(&self, session: SessionId) -> Binding {
        let placement = self.assignments().join(session.clone());
        Binding {
            session,
            placement,
            pool: self.clone(),
        }
    }

    pub fn status(&self) -> PoolStatus {
        let assignments = self.assignments();
        let workers = self
            .shared
            .slots
            .iter()
            .enumerate()
            .map(|(i, slot)| SlotStatus {
                status: slot.status.borrow().clone(),
                sessions: assignments.sessions_on(i),
                available: assignments.has_room(i),
            });
        PoolStatus {
            workers: workers.collect(),
            queue_depth: assignments.queue_depth(),
            warmup_enabled: self.shared.config.warmup.is_some(),
        }
    }

    /// Sessions that the workers can serve at once, those that still start included.
    pub fn capacity(&self) -> usize {
        self.assignments().capacity()
    }

    /// Moves a session at the end of its running segment, or now when none runs: to a GPU, or to any other one. The
    /// session learns of it by its [`Placement`]. It is nothing when the session is there already.
    ///
    /// # Errors
    /// When the session cannot go there; it stays where it is.
    pub fn move_session(&self, session: &SessionId, to: Option<GpuId>) -> Result<(), MoveError> {
        self.assignments().move_session(session, to)
    }

    /// Has a worker leave and stay away until it is started again. It takes no new sessions; its sessions go on
    /// elsewhere, or wait, each at the end of its running segment. Segments that still run after `patience` are begun
    /// again elsewhere.
    ///
    /// # Errors
    /// When there is no such GPU.
    pub fn drain_worker(&self, gpu: GpuId, patience: Option<Duration>) -> Result<(), UnknownGpu> {
        self.order(gpu, true, patience)
    }

    /// Starts a worker: one that serves leaves first, as for [`Self::drain_worker`]; one that was drained, waits for
    /// its next try or is quarantined starts now.
    ///
    /// # Errors
    /// When there is no such GPU.
    pub fn restart_worker(&self, gpu: GpuId, patience: Option<Duration>) -> Result<(), UnknownGpu> {
        self.order(gpu, false, patience)
    }

    fn order(
        &self,
        gpu: GpuId,
        drained: bool,
        patience: Option<Duration>,
    ) -> Result<(), UnknownGpu> {
        let mut slots = self.shared.slots.iter();
        let slot = slots.find(|slot| slot.gpu == gpu).ok_or(UnknownGpu(gpu))?;
        let cut_at = patience.and_then(|patience| Instant::now().checked_add(patience));
        slot.orders.send_replace(Orders { drained, cut_at });
        Ok(())
    }

    /// No worker serves or will without an operator's help or a pause.
    pub fn all_lost(&self) -> bool {
        *self.shared.all_lost.borrow()
    }

    /// Asks all workers to leave, and waits until all processes are gone.
    pub async fn stop(&self) {
        self.shared.stop.send_if_modified(|stop| {
            let running = *stop == Stop::Run;
            if running {
                *stop = Stop::Ask;
            }
            running
        });
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
    }

    /// Makes a running or future [`Self::stop`] kill the workers at once.
    pub fn stop_now(&self) {
        self.shared.stop.send_replace(Stop::Now);
    }

    fn assignments(&self) -> std::sync::MutexGuard<'_, Assignments> {
        self.shared
            .assignments
            .lock()
            .expect("no holder of this lock panics")
    }
}

impl WorkerStatus {
    fn new(gpu: Gpu) -> Self {
        Self {
            gpu,
            state: WorkerState::Spawning,
            worker_id: None,
            pid: None,
            restarts: 0,
            last_exit: None,
            load_progress: None,
            warmed_up: false,
            ready: None,
            resident_bytes: None,
            jobs_finished: 0,
        }
    }

    /// Nobody looks after the GPU any more.
    fn lose(&mut self) {
        self.state = WorkerState::Quarantined;
        self.pid = None;
        self.ready = None;
    }
}

/// A session's place with the workers or in the queue before them. Dropping it frees the place at once.
#[derive(Debug)]
pub struct Binding {
    session: SessionId,
    placement: watch::Receiver<Placement>,
    pool: Pool,
}

/// The session is not bound to that worker any more.
#[derive(Debug, thiserror::Error)]
#[error("the session has left worker {0}")]
pub struct Moved(WorkerId);

impl Binding {
    /// Where the session stands now; the next [`Self::changed`] waits for news after this.
    pub fn look(&mut self) -> Placement {
        self.placement.borrow_and_update().clone()
    }

    /// Waits until the session stands elsewhere than at the last [`Self::look`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn changed(&mut self) {
        // The assignments holds the sender for as long as this place lives.
        let _ = self.placement.changed().await;
    }

    /// Sends a job to the worker that the session is bound to. Of several sessions the worker serves the one that is
    /// due first, which is when its viewer runs out of video. The job's id is chosen here, and whether the state that
    /// it starts from is sent along or held by the worker already.
    ///
    /// # Errors
    /// When the session was moved meanwhile: look again.
    pub fn submit(
        &self,
        worker: &WorkerId,
        mut spec: JobSpec,
        start: Option<StartState>,
        due: Instant,
    ) -> Result<JobHandle, Moved> {
        spec.job = self.pool.next_job_id();
        let mut assignments = self.pool.assignments();
        let Some(slot) = assignments.slot_of(worker, &self.session) else {
            return Err(Moved(worker.clone()));
        };
        let wake = self.pool.shared.slots[slot].wake.clone();
        let (handle, job) = job::pair(spec, start, due, wake.clone());
        assignments.submit(slot, job);
        drop(assignments);
        wake.notify_one();
        Ok(handle)
    }
}

impl Pool {
    fn next_job_id(&self) -> JobId {
        JobId(self.shared.next_job.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.pool.assignments().leave(&self.session);
    }
}
