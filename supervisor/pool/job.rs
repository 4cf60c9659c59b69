//! A job between the session that asked for it and the worker that runs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fastvideo_proto::ids::{JobId, WorkerId};
use fastvideo_proto::job::Stage;
use fastvideo_proto::job::{JobFailure, JobTiming, MediaKind};
use fastvideo_proto::link::JobSpec;
use ipc_channel::ipc::IpcSharedMemory;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// Events that may wait for a session: a full window of media ([`fastvideo_proto::link::media_cost`] allows 1024
/// messages of 16 MiB) and the steps between.
const EVENT_BUFFER: usize = 2048;

/// What a session hears of its job, in order. [`JobEvent::Ended`] is the last.
#[derive(Debug)]
pub enum JobEvent {
    /// A worker was given the job.
    Started,
    Step {
        stage: Stage,
        /// 1..=`total_steps`.
        step: u32,
        total_steps: u32,
    },
    Media(Media),
    Ended(JobEnd),
}

/// One binary message for the client.
#[derive(Debug)]
pub struct Media {
    pub kind: MediaKind,
    pub bytes: Bytes,
    /// CLOCK_MONOTONIC when the worker handed it to the link, in microseconds.
    pub sent_at_us: u64,
    pub credit: Credit,
}

/// How a job ended.
#[derive(Debug)]
pub enum JobEnd {
    Finished {
        /// Encoded header of the new state and its blob, as the worker sent them.
        state: (Vec<u8>, IpcSharedMemory),
        generation: Duration,
        timing: JobTiming,
        frames: u32,
    },
    Failed {
        failure: JobFailure,
        message: String,
    },
    /// The session has to go elsewhere, and nothing is wrong with its job: it runs again there.
    TakenBack {
        /// It was running, and had used up the time that it was given to end.
        started: bool,
    },
    /// The worker is gone; the job may run again elsewhere.
    WorkerLost {
        worker: WorkerId,
        /// The job had been sent to it, so the job may be what killed it.
        started: bool,
        reason: String,
    },
}

/// The session's side of a job. Dropping it cancels the job.
#[derive(Debug)]
pub struct JobHandle {
    pub id: JobId,
    pub events: mpsc::Receiver<JobEvent>,
    signals: Arc<Signals>,
}

impl JobHandle {
    /// Asks the worker to stop at its next step or frame. [`JobEvent::Ended`] still comes.
    pub fn cancel(&self) {
        self.signals.cancel();
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The committed state that a job continues from, as a session hands it to the pool.
#[derive(Debug)]
pub struct StartState {
    /// By [`fastvideo_proto::state::StateHeader::encode`].
    pub header: Vec<u8>,
    pub blob: IpcSharedMemory,
    /// The job that made it, when a worker of this pool did: that worker may still hold it.
    pub made_by: Option<JobId>,
}

/// What a worker's task holds of a job.
#[derive(Debug)]
pub(super) struct QueuedJob {
    /// Its `state` is chosen when the job is sent.
    pub(super) spec: JobSpec,
    pub(super) start: Option<StartState>,
    /// When its viewer runs out of video.
    pub(super) due: Instant,
    pub(super) events: mpsc::Sender<JobEvent>,
    pub(super) signals: Arc<Signals>,
}

impl QueuedJob {
    /// Tells the session. One that is gone, or that does not listen, has no use for the job.
    pub(super) fn tell(&self, event: JobEvent) {
        if let Err(TrySendError::Full(_)) = self.events.try_send(event) {
            tracing::error!(job_id = %self.spec.job, session_id = %self.spec.session, "session does not take its job's events");
            self.signals.cancel();
        }
    }
}

/// Both sides of a new job. `notify` wakes the task of the worker that will run it.
pub(super) fn pair(
    spec: JobSpec,
    start: Option<StartState>,
    due: Instant,
    notify: Arc<Notify>,
) -> (JobHandle, QueuedJob) {
    let (event_tx, events) = mpsc::channel(EVENT_BUFFER);
    let signals = Arc::new(Signals {
        cancelled: AtomicBool::new(false),
        earned: AtomicU64::new(0),
        notify,
    });
    let handle = JobHandle {
        id: spec.job,
        events,
        signals: signals.clone(),
    };
    let job = QueuedJob {
        spec,
        start,
        due,
        events: event_tx,
        signals,
    };
    (handle, job)
}

/// What a session tells its job's worker. Flags and not a channel, so that nothing is ever lost and any number of
/// messages becomes one command.
#[derive(Debug)]
pub(super) struct Signals {
    cancelled: AtomicBool,
    /// Credit that the worker has not been told of yet.
    earned: AtomicU64,
    notify: Arc<Notify>,
}

impl Signals {
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }

    pub(super) fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(super) fn take_credit(&self) -> u64 {
        self.earned.swap(0, Ordering::Relaxed)
    }
}

/// Worth [`fastvideo_proto::link::media_cost`] to the job when it is dropped: when the client has taken the message,
/// or nobody wants it any more.
#[derive(Debug)]
pub struct Credit {
    cost: u64,
    to: Arc<Signals>,
}

impl Credit {
    pub(super) fn new(cost: u64, to: Arc<Signals>) -> Self {
        Self { cost, to }
    }

    pub fn cost(&self) -> u64 {
        self.cost
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.to.earned.fetch_add(self.cost, Ordering::Relaxed);
        self.to.notify.notify_one();
    }
}
