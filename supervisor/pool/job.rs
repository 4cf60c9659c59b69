//! A job between the session or the video job that submitted it and the worker that runs it: events go to who submitted it;
//! cancellation and flow credit go to the worker.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use fastvideo_link::SharedMemory;
use fastvideo_proto::ids::{JobId, WorkerId};
use fastvideo_proto::job::{JobFailure, JobTiming, MediaKind, PhaseSpan, Stage};
use fastvideo_proto::link::{JobSpec, Preview, VideoPictures, media_cost};
use fastvideo_proto::step_snapshot::StepPoint;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tracing::Span;

use super::shared_assignments::SharedAssignments;
use super::step_snapshot::{NewestSnapshot, StepSnapshot};

/// The number of events that may wait for a session. It suffices for a full window of media, which
/// [`fastvideo_proto::link::media_cost`] limits to 1024 messages of a window of 16 MiB, and for the steps between them.
const EVENT_BUFFER: usize = 2048;

/// A job's events for its session, in order. [`JobEvent::Ended`] is the last event.
#[derive(Debug)]
pub enum JobEvent {
    /// The job is sent to a worker.
    Started {
        worker: WorkerId,
        /// The step of an earlier attempt that the job goes on from.
        after: Option<StepPoint>,
    },
    /// The worker has refused the step snapshot that the job was to go on from: the job begins with the first step.
    SnapshotRefused {
        /// The worker's reason; it is not for clients.
        reason: String,
    },
    /// The worker has completed a step of the job.
    Step {
        stage: Stage,
        /// The number of the step, 1..=`total_steps`.
        step: u32,
        total_steps: u32,
    },
    /// A picture of the segment before its media. It may be dropped.
    Preview(Box<Preview>),
    Media(Media),
    Ended(JobEnd),
}

/// One binary message for the client.
#[derive(Debug)]
pub struct Media {
    pub kind: MediaKind,
    pub bytes: Bytes,
    /// The CLOCK_MONOTONIC time in microseconds at which the worker handed the bytes to the link; `None` for bytes that
    /// were stored.
    pub sent_at_us: Option<u64>,
    /// The flow credit that the message is worth once the client has taken it.
    pub credit: Credit,
}

impl Media {
    /// Returns a message that was stored, and comes from no job.
    pub(crate) fn stored(kind: MediaKind, bytes: Bytes) -> Self {
        Self {
            kind,
            sent_at_us: None,
            credit: Credit::new(media_cost(bytes.len()), Arc::default()),
            bytes,
        }
    }

    /// Gives the flow credit back to the job before the client has taken the message.
    pub(crate) fn give_credit_back(self) -> Self {
        let cost = self.credit.cost();
        Self {
            credit: Credit::new(cost, Arc::default()),
            ..self
        }
    }
}

/// How a job ended.
#[derive(Debug)]
pub enum JobEnd {
    Finished {
        /// The encoded header of the new continuation state and its blob, as the worker sent them.
        state: (Vec<u8>, SharedMemory),
        /// The time from the command until the last frame was encoded.
        generation: Duration,
        timing: JobTiming,
        /// The length of the segment, in frames.
        frames: u32,
        /// A JPEG picture as the worker made it, of at most 64 KiB.
        thumbnail: Option<Bytes>,
        /// The pictures of a segment of a video job.
        video: Option<Box<VideoPictures>>,
    },
    Failed {
        failure: JobFailure,
        message: String,
        /// What the worker did until then.
        phases: Vec<PhaseSpan>,
    },
    /// The session is bound to another worker or waits for one, or a segment of a video job has left a worker that is drained.
    /// The job is not at fault and may be submitted again.
    TakenBack {
        /// Whether the job was running and did not end before the deadline of a drain.
        started: bool,
    },
    /// The worker has stopped a segment of a video job for one that a viewer waits for. It may be submitted again, and goes on
    /// from its newest step snapshot.
    Preempted,
    /// The worker is gone. The job may be submitted again.
    WorkerLost {
        worker: WorkerId,
        /// Whether the job had been sent to the worker, so that it may be the cause of the loss.
        started: bool,
        reason: String,
    },
}

impl JobEnd {
    /// Returns the end of a job that was cancelled before it was sent.
    pub(super) fn cancelled() -> Self {
        Self::Failed {
            failure: JobFailure::Cancelled,
            message: String::new(),
            phases: Vec::new(),
        }
    }
}

/// The side of a job that submitted it. Dropping it cancels the job.
#[derive(Debug)]
pub struct JobHandle {
    pub id: JobId,
    pub events: mpsc::Receiver<JobEvent>,
    signals: Arc<Signals>,
    snapshot: Arc<NewestSnapshot>,
    /// Where the job waits that no worker has yet: a segment of a video job.
    waits_in: Option<Arc<SharedAssignments>>,
}

impl JobHandle {
    /// Asks the worker to stop at its next step or frame. [`JobEvent::Ended`] still comes; at once where no worker has the job.
    ///
    /// For a segment of a video job it takes the lock of the assignments.
    pub fn cancel(&self) {
        self.snapshot.close();
        // From then on the job is over, or a worker has it that sees the signal.
        if let Some(assignments) = &self.waits_in {
            let mut assignments = assignments.lock();
            if assignments.has_waiting_video_job(self.id) {
                assignments.cancel_video_job(self.id);
            }
        }
        self.signals.cancel();
    }

    /// Says where the job waits for any worker.
    pub(super) fn wait_in(&mut self, assignments: Arc<SharedAssignments>) {
        self.waits_in = Some(assignments);
    }

    /// Takes the newest step snapshot of a job that has ended: one that its worker left, or else the one that the job was
    /// to go on from.
    pub fn take_snapshot(&self) -> Option<StepSnapshot> {
        self.snapshot.close()
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
    /// The header, encoded by [`fastvideo_proto::state::StateHeader::encode`].
    pub header: Vec<u8>,
    pub blob: SharedMemory,
    /// The job that generated the state, if a worker of this pool ran it: that worker may still hold the state.
    pub made_by: Option<JobId>,
}

/// The worker's side of a job.
#[derive(Debug)]
pub(super) struct QueuedJob {
    /// The segment to generate. Its `state` is chosen when the job is sent.
    pub(super) spec: JobSpec,
    pub(super) start: Option<StartState>,
    pub(super) snapshot: Arc<NewestSnapshot>,
    /// The deadline: the time when the viewer runs out of video; `None` for a segment of a video job, which has no viewer.
    pub(super) due: Option<Instant>,
    pub(super) events: mpsc::Sender<JobEvent>,
    pub(super) signals: Arc<Signals>,
    /// The span of the code that submitted the job. Events of the job are logged in it.
    pub(super) span: Span,
}

impl QueuedJob {
    /// Returns whether this is a segment of a video job.
    pub(super) fn is_of_video(&self) -> bool {
        self.due.is_none()
    }

    /// Sends the session an event. The job is cancelled if its session does not take its events.
    pub(super) fn tell(&self, event: JobEvent) {
        if let Err(TrySendError::Full(_)) = self.events.try_send(event) {
            self.span.in_scope(|| {
                tracing::error!(job_id = %self.spec.job, session_id = %self.spec.session, "session does not take its job's events");
            });
            self.signals.cancel();
        }
    }

    /// Sends the session a preview, which is dropped if the session does not take its events.
    pub(super) fn show(&self, preview: Preview) {
        let _ = self.events.try_send(JobEvent::Preview(Box::new(preview)));
    }
}

/// Creates both sides of a job, which belongs to the current span. The job goes on from `snapshot`, if there is one. `due` is
/// `None` for a segment of a video job.
pub(super) fn pair(
    spec: JobSpec,
    start: Option<StartState>,
    snapshot: Option<StepSnapshot>,
    due: Option<Instant>,
) -> (JobHandle, QueuedJob) {
    let (event_tx, events) = mpsc::channel(EVENT_BUFFER);
    let signals = Arc::<Signals>::default();
    let snapshot = Arc::new(NewestSnapshot::new(snapshot));
    let handle = JobHandle {
        id: spec.job,
        events,
        signals: signals.clone(),
        snapshot: snapshot.clone(),
        waits_in: None,
    };
    let job = QueuedJob {
        spec,
        start,
        snapshot,
        due,
        events: event_tx,
        signals,
        span: Span::current(),
    };
    (handle, job)
}

/// Signals of a session to the worker of its job. They are flags and not a channel, so that no signal is lost and any
/// number of signals becomes one command.
#[derive(Debug, Default)]
pub(super) struct Signals {
    cancelled: AtomicBool,
    /// The flow credit that has not been passed to the worker yet.
    earned: AtomicU64,
    /// Wakes the task of the worker that has the job, once one has it.
    worker: OnceLock<Arc<Notify>>,
}

impl Signals {
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.wake_worker();
    }

    /// Names the worker that has the job from now on, by what wakes its task.
    pub(super) fn go_to(&self, worker: &Arc<Notify>) {
        let _ = self.worker.set(worker.clone());
    }

    fn wake_worker(&self) {
        if let Some(worker) = self.worker.get() {
            worker.notify_one();
        }
    }

    pub(super) fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(super) fn take_credit(&self) -> u64 {
        self.earned.swap(0, Ordering::Relaxed)
    }
}

/// The flow credit of one media message. Dropping it returns the message's [`fastvideo_proto::link::media_cost`] to the
/// job: either the client has taken the message, or it is no longer needed.
#[derive(Debug)]
pub struct Credit {
    cost: u64,
    to: Arc<Signals>,
}

impl Credit {
    pub(super) fn new(cost: u64, to: Arc<Signals>) -> Self {
        Self { cost, to }
    }

    /// Returns the message's share of the job's window, in bytes.
    pub fn cost(&self) -> u64 {
        self.cost
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.to.earned.fetch_add(self.cost, Ordering::Relaxed);
        self.to.wake_worker();
    }
}
