//! Which session is bound to which worker, which moves, and which waits: admission control, scheduling and load
//! balancing.
//!
//! Sessions without a worker wait in one queue, in which tenants take turns. A session that lost its worker goes back to the
//! front, so that a fault never costs it its turn. A session changes its worker only at a boundary: when no worker has a job of it in hand.
//! Segments of video jobs are bound to no worker and wait in a list of their own: see `videos`.
//! Nothing here waits or talks to a process; the pool holds the lock for short sections only.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::{GpuId, JobId, SessionId, WorkerId};
use fastvideo_proto::link::JobSpec;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::event::{HandoffReason, PoolEvent};
use super::exit::Blame;
use super::job::{JobEnd, JobEvent, QueuedJob};
use super::metrics::PoolMetrics;
use super::queue::Queue;
use super::rolling_median::RollingMedian;
use super::status::{Room, Seats};
use crate::tenant::Tenant;
use videos::{VideoPaces, Videos};

mod videos;

/// The number of generation times that a worker's pace is computed from.
const PACE_SAMPLES: usize = 15;

/// A session's place in the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The session waits for a worker. Position 0 is served next.
    Waiting { position: usize, queue_depth: usize },
    /// The session is bound to a worker.
    Bound(Assignment),
    /// The session waits, and no worker can take it until an operator intervenes or a quarantine ends.
    NoWorker,
}

/// A session's binding to one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub gpu: GpuId,
    pub worker: WorkerId,
    pub model_id: String,
    /// The name of the GPU, or `CPU`.
    pub device: String,
    /// Whether the worker generates sound.
    pub audio: bool,
}

/// Why a session cannot be moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    #[error("no session {0} is open")]
    UnknownSession(SessionId),
    #[error("the session waits for a worker; it goes to the first that has room")]
    Waiting,
    #[error("there is no GPU {0}")]
    UnknownGpu(GpuId),
    #[error("the worker of GPU {0} does not serve")]
    NotServing(GpuId),
    #[error("the worker of GPU {0} has no room for another session")]
    NoRoom(GpuId),
    #[error("no other worker has room for another session")]
    NoOtherRoom,
}

/// How many sessions may share one worker, and how video jobs share the workers with them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sharing {
    /// The limit for each worker, at least 1.
    pub(super) max_sessions: usize,
    /// The playing time of a segment when admission control is on: a worker then takes only as many sessions as it can
    /// generate video for in real time.
    pub(super) keep_up: Option<Duration>,
    /// The number of workers, the last ones, on which video jobs come first.
    pub(super) reserved_gpus: usize,
    /// How long a worker begins no segment of a video job after a viewer's segment has pre-empted one.
    pub(super) yield_pause: Duration,
}

/// The reason why a worker takes no sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// A process boots, or will be started.
    Starting,
    /// An operator has drained the worker.
    Drained,
    /// The worker cannot serve until an operator intervenes or a quarantine ends.
    Lost,
}

/// All sessions, all workers, and the queue between them.
#[derive(Debug)]
pub(super) struct Assignments {
    sharing: Sharing,
    metrics: PoolMetrics,
    slots: Vec<WorkerSlot>,
    queue: Queue,
    sessions: HashMap<SessionId, PoolSession>,
    videos: Videos,
    /// Since when sessions whose clients are there have waited in the queue.
    demand: watch::Sender<Option<Instant>>,
    /// The number of the next hold.
    next_hold: u64,
    /// Numbers of sessions that wait at routers for a place here or elsewhere, by the number of who says so.
    elsewhere: BTreeMap<u64, usize>,
    /// The number of the next one who says so.
    next_elsewhere: u64,
}

/// A session in the pool.
#[derive(Debug)]
struct PoolSession {
    placement: watch::Sender<Placement>,
    tenant: Tenant,
    /// The worker that the session is bound to.
    slot: Option<usize>,
    /// Whether the session was bound to a worker before.
    served: bool,
    /// Why the session has left its worker, while it waits for another one.
    left: Option<HandoffReason>,
    /// The job that was submitted and has not ended.
    job: Option<JobId>,
    /// The names of the adapters that act on the session's latest segment.
    adapters: Vec<String>,
    /// The slot that the session is bound to at its next boundary. Room is reserved for it there.
    pending_move: Option<usize>,
    /// The number of the hold when the client is gone and the session's place is kept.
    hold: Option<u64>,
    /// Whether the session leaves for one that waits.
    gives_up: bool,
    /// The latest segment that ran when a worker exited.
    suspect: Option<SuspectSegment>,
    /// When the viewer runs out of video.
    viewer_lasts_until: Option<Instant>,
}

/// A segment that ran when a worker exited, so that it may be the cause.
#[derive(Debug)]
struct SuspectSegment {
    segment_idx: u32,
    /// The worker whose exit counts against it.
    counted_on: Option<usize>,
}

/// A worker in the pool.
#[derive(Debug)]
struct WorkerSlot {
    gpu: GpuId,
    /// Wakes the worker's task.
    notify: Arc<Notify>,
    availability: Availability,
    /// The sessions that are bound to the worker.
    sessions: Vec<SessionId>,
    /// The sessions that will be bound to the worker at their next boundary.
    reserved: Vec<SessionId>,
    /// The jobs that were not sent to the process yet.
    jobs: VecDeque<QueuedJob>,
    /// The names of the adapters that the process has loaded.
    adapters: BTreeSet<String>,
    /// The sessions that were unbound, and the video jobs that went elsewhere, whose states the process was not told to forget
    /// yet.
    to_forget: Vec<SessionId>,
    /// The latest generation times of sessions' segments, over all processes of the GPU.
    pace: RollingMedian,
    /// The same of segments of video jobs.
    video_paces: VideoPaces,
    /// The time before which no segment of a video job is begun, since a viewer's may come.
    videos_from: Option<Instant>,
    /// The exits that counted against the worker, turned out to be the fault of jobs, and were not taken back yet.
    exits_to_forgive: u32,
}

/// Whether a worker takes sessions.
#[derive(Debug)]
enum Availability {
    Absent(Absence),
    Serving(Assignment),
    /// The worker takes no session and no job. Sessions that have a job on the process stay until that job has ended.
    Leaving,
}

impl WorkerSlot {
    fn serving(&self) -> Option<&Assignment> {
        match &self.availability {
            Availability::Serving(assignment) => Some(assignment),
            Availability::Leaving | Availability::Absent(_) => None,
        }
    }

    /// Returns the number of sessions that are bound to the worker or will be.
    fn load(&self) -> usize {
        self.sessions.len() + self.reserved.len()
    }

    /// Returns how many of a session's adapters the worker does not hold.
    fn missing_adapters(&self, wanted: &[String]) -> usize {
        let is_missing = |name: &&String| !self.adapters.contains(*name);
        wanted.iter().filter(is_missing).count()
    }
}

impl Assignments {
    /// Creates the assignments for the GPUs in `slots`, each with the [`Notify`] that wakes its worker's task.
    pub(super) fn new(
        slots: impl IntoIterator<Item = (GpuId, Arc<Notify>)>,
        sharing: Sharing,
        metrics: PoolMetrics,
    ) -> Self {
        let slot = |(gpu, notify)| WorkerSlot {
            gpu,
            notify,
            availability: Availability::Absent(Absence::Starting),
            sessions: Vec::new(),
            reserved: Vec::new(),
            jobs: VecDeque::new(),
            adapters: BTreeSet::new(),
            to_forget: Vec::new(),
            pace: RollingMedian::new(PACE_SAMPLES),
            video_paces: VideoPaces::default(),
            videos_from: None,
            exits_to_forgive: 0,
        };
        Self {
            sharing,
            metrics,
            slots: slots.into_iter().map(slot).collect(),
            queue: Queue::default(),
            sessions: HashMap::new(),
            videos: Videos::default(),
            demand: watch::Sender::new(None),
            next_hold: 0,
            elsewhere: BTreeMap::new(),
            next_elsewhere: 0,
        }
    }

    /// Changes how sessions and video jobs share the GPUs. Where there are more sessions than may be, they stay until they
    /// leave.
    pub(super) fn set_sharing(&mut self, sharing: Sharing) {
        self.sharing = sharing;
        self.assign_waiting();
    }

    /// Puts a tenant's session into the queue, or on a worker that has room. A session whose place is held takes that place.
    pub(super) fn join(
        &mut self,
        session: SessionId,
        tenant: Tenant,
    ) -> watch::Receiver<Placement> {
        if let Some(entry) = self.sessions.get_mut(&session)
            && entry.hold.take().is_some()
        {
            let seen = entry.placement.subscribe();
            self.publish_demand();
            return seen;
        }
        let (placement, seen) = watch::channel(Placement::NoWorker);
        let entry = PoolSession {
            placement,
            tenant: tenant.clone(),
            slot: None,
            served: false,
            left: None,
            job: None,
            adapters: Vec::new(),
            pending_move: None,
            suspect: None,
            viewer_lasts_until: None,
            hold: None,
            gives_up: false,
        };
        self.sessions.insert(session.clone(), entry);
        self.queue.join(session, tenant);
        self.assign_waiting();
        seen
    }

    /// Returns whether a session that joins now is bound at once: its place is held, or there is room and nobody waits.
    pub(super) fn has_place_for(&self, session: &SessionId) -> bool {
        let is_held = |entry: &PoolSession| entry.hold.is_some() && entry.slot.is_some();
        let has_held_place = self.sessions.get(session).is_some_and(is_held);
        has_held_place || self.queue.is_empty() && self.room().free > 0
    }

    /// Removes a session and takes its waiting job back.
    pub(super) fn leave(&mut self, session: &SessionId) {
        self.clear_pending_move(session);
        self.unbind(session);
        self.queue.remove(session);
        self.sessions.remove(session);
        self.assign_waiting();
    }

    /// Keeps the place of a session whose client is gone. Returns the number of the hold, for [`Self::end_hold`].
    pub(super) fn hold(&mut self, session: &SessionId) -> Option<u64> {
        let entry = self.sessions.get_mut(session)?;
        self.next_hold += 1;
        entry.hold = Some(self.next_hold);
        self.assign_waiting();
        Some(self.next_hold)
    }

    /// Removes a session whose place was held, unless it has joined again.
    pub(super) fn end_hold(&mut self, session: &SessionId, hold: u64) {
        let entry = self.sessions.get(session);
        if entry.is_some_and(|entry| entry.hold == Some(hold)) {
            self.leave(session);
        }
    }

    /// Marks a session as leaving for one that waits. Returns false when as many others as wait do so already.
    pub(super) fn give_up(&mut self, session: &SessionId) -> bool {
        let leaving = self.sessions.values().filter(|s| s.gives_up).count();
        let is_needed = leaving < self.waiting();
        if let Some(entry) = self.sessions.get_mut(session) {
            entry.gives_up = is_needed;
        }
        is_needed
    }

    /// Gives whoever knows of sessions that wait at a router a number, for [`Self::set_waiting_elsewhere`].
    pub(super) fn begin_elsewhere(&mut self) -> u64 {
        self.next_elsewhere += 1;
        self.next_elsewhere
    }

    /// Takes note of how many sessions wait at a router.
    pub(super) fn set_waiting_elsewhere(&mut self, who: u64, sessions: usize) {
        match sessions {
            0 => self.elsewhere.remove(&who),
            sessions => self.elsewhere.insert(who, sessions),
        };
        self.publish_demand();
    }

    /// Returns the number of sessions that wait for a place and whose clients are there. Routers may have one line, and so
    /// speak of the same ones.
    fn waiting(&self) -> usize {
        let is_held = |session| self.sessions.get(session).is_some_and(|s| s.hold.is_some());
        (self.queue.iter())
            .filter(|session| !is_held(session))
            .count()
            + self.elsewhere.values().max().copied().unwrap_or(0)
    }

    /// Returns since when sessions have waited in the queue.
    pub(super) fn demand(&self) -> watch::Receiver<Option<Instant>> {
        self.demand.subscribe()
    }

    fn publish_demand(&self) {
        let waits = self.waiting() > 0;
        self.demand.send_if_modified(|since| {
            let changed = since.is_some() != waits;
            if changed {
                *since = waits.then(Instant::now);
            }
            changed
        });
    }

    /// Moves a session at its next boundary, which may be now: to a GPU, or to the least loaded other one.
    ///
    /// # Errors
    /// Returns an error when the session cannot go there; it then stays where it is.
    pub(super) fn move_session(
        &mut self,
        session: &SessionId,
        to: Option<GpuId>,
    ) -> Result<(), MoveError> {
        let unknown = || MoveError::UnknownSession(session.clone());
        let entry = self.sessions.get(session).ok_or_else(unknown)?;
        let (from, wanted) = (entry.slot.ok_or(MoveError::Waiting)?, entry.pending_move);
        let to = match to {
            None if wanted.is_some() => return Ok(()),
            None => self
                .least_loaded_for(session, from)
                .ok_or(MoveError::NoOtherRoom)?,
            Some(gpu) => {
                let to = self.slots.iter().position(|slot| slot.gpu == gpu);
                let to = to.ok_or(MoveError::UnknownGpu(gpu))?;
                if self.slots[to].serving().is_none() {
                    return Err(MoveError::NotServing(gpu));
                }
                if to != from && wanted != Some(to) && !self.has_room(to) {
                    return Err(MoveError::NoRoom(gpu));
                }
                to
            }
        };
        self.clear_pending_move(session);
        if to == from {
            self.assign_waiting();
            return Ok(());
        }
        self.slots[to].reserved.push(session.clone());
        self.sessions
            .get_mut(session)
            .expect("looked up above")
            .pending_move = Some(to);
        if self.at_boundary(session) {
            self.rebind_or_requeue(session, HandoffReason::Order);
        }
        self.assign_waiting();
        Ok(())
    }

    /// Opens a worker, which has become ready, to sessions.
    pub(super) fn serve(&mut self, slot: usize, assignment: Assignment) {
        self.slots[slot].availability = Availability::Serving(assignment);
        self.assign_waiting();
    }

    /// Lets a worker's next process take over from the previous one, which runs no job. The worker keeps its sessions
    /// and its waiting jobs.
    pub(super) fn renew(&mut self, slot: usize, assignment: Assignment) {
        for session in &self.slots[slot].sessions {
            if let Some(entry) = self.sessions.get(session) {
                publish(&entry.placement, Placement::Bound(assignment.clone()));
            }
        }
        self.slots[slot].to_forget.clear();
        self.process_of_videos_ended(slot);
        self.serve(slot, assignment);
    }

    /// Closes a worker that is to exit: its sessions move or wait, each from its next boundary on.
    pub(super) fn drain(&mut self, slot: usize) {
        if self.slots[slot].serving().is_none() {
            return;
        }
        self.slots[slot].availability = Availability::Leaving;
        self.cancel_reservations(slot);
        for session in self.slots[slot].sessions.clone() {
            if self.at_boundary(&session) {
                self.rebind_or_requeue(&session, HandoffReason::Drain);
            }
        }
        self.assign_waiting();
    }

    /// Closes a worker that has no process any more. Its sessions move or wait; its waiting jobs are handed back.
    pub(super) fn vacate(&mut self, slot: usize, absence: Absence) -> VecDeque<QueuedJob> {
        let reason = match self.slots[slot].availability {
            Availability::Leaving => HandoffReason::Drain,
            Availability::Serving(_) | Availability::Absent(_) => HandoffReason::WorkerLost,
        };
        self.slots[slot].availability = Availability::Absent(absence);
        self.slots[slot].adapters.clear();
        self.cancel_reservations(slot);
        let jobs = std::mem::take(&mut self.slots[slot].jobs);
        for session in self.slots[slot].sessions.clone() {
            if let Some(entry) = self.sessions.get_mut(&session) {
                entry.job = None;
            }
            self.rebind_or_requeue(&session, reason);
        }
        self.slots[slot].to_forget.clear();
        self.process_of_videos_ended(slot);
        self.assign_waiting();
        jobs
    }

    /// Marks a worker that was drained or lost as starting again.
    pub(super) fn mark_starting(&mut self, slot: usize) {
        self.slots[slot].availability = Availability::Absent(Absence::Starting);
        self.assign_waiting();
    }

    /// Returns the slot of the worker if the session is bound to it.
    pub(super) fn slot_of(&self, worker: &WorkerId, session: &SessionId) -> Option<usize> {
        let slot = self.sessions.get(session)?.slot?;
        let serving = self.slots[slot].serving()?;
        (&serving.worker == worker).then_some(slot)
    }

    /// Takes note of the adapters that a worker has loaded.
    pub(super) fn set_adapters(&mut self, slot: usize, loaded: BTreeSet<String>) {
        self.slots[slot].adapters = loaded;
    }

    /// Returns the number of sessions whose latest segment asked for an adapter.
    pub(super) fn sessions_with_adapter(&self, name: &str) -> usize {
        let has = |session: &&PoolSession| session.adapters.iter().any(|it| it == name);
        self.sessions.values().filter(has).count()
    }

    /// Takes note of the adapters that act on the segment for which a session is about to submit a job. Moves the session
    /// when another worker with room holds more of them, and returns whether it did.
    pub(super) fn choose_adapters(&mut self, session: &SessionId, wanted: Vec<String>) -> bool {
        let Some(entry) = self.sessions.get_mut(session) else {
            return false;
        };
        entry.adapters = wanted;
        let wanted = entry.adapters.clone();
        let Some(from) = entry.slot else {
            return false;
        };
        let missing = self.slots[from].missing_adapters(&wanted);
        if missing == 0 || !self.at_boundary(session) {
            return false;
        }
        let better = self.least_loaded_for(session, from);
        let better = better.filter(|&to| self.slots[to].missing_adapters(&wanted) < missing);
        let Some(to) = better else {
            return false;
        };
        self.clear_pending_move(session);
        self.bind(session, to, Some(HandoffReason::Adapters));
        self.assign_waiting();
        true
    }

    /// Queues a session's job with a worker, and wakes the worker's task.
    pub(super) fn submit(&mut self, slot: usize, job: QueuedJob) {
        if let Some(entry) = self.sessions.get_mut(&job.spec.session) {
            entry.job = Some(job.spec.job);
        }
        let slot = &mut self.slots[slot];
        // What it makes takes the place of what was to be forgotten.
        slot.to_forget.retain(|s| *s != job.spec.session);
        job.signals.go_to(&slot.notify);
        slot.jobs.push_back(job);
        slot.notify.notify_one();
    }

    /// Takes the next job of a worker among those of its sessions: the earliest deadline first, ties in order of submission.
    fn next_live_job(&mut self, slot: usize) -> Option<QueuedJob> {
        let jobs = &mut self.slots[slot].jobs;
        let (next, _) = jobs.iter().enumerate().min_by_key(|(_, job)| job.due)?;
        jobs.remove(next)
    }

    /// Records that a job has ended, after its session was told. The session is then at a boundary: a pending move is
    /// made, a worker that is leaving is left, and a session on a worker with waiting jobs is moved to a less loaded
    /// one.
    pub(super) fn job_ended(&mut self, session: &SessionId, job: JobId) {
        let Some(entry) = self.sessions.get_mut(session) else {
            return self.video_job_ended(session, job);
        };
        let Some(from) = entry.slot.filter(|_| entry.job == Some(job)) else {
            return;
        };
        entry.job = None;
        let wanted = entry.pending_move.is_some();
        let leaving = matches!(self.slots[from].availability, Availability::Leaving);
        let held = entry.hold.is_some();
        self.slots[from].expect_live_job();
        if wanted || leaving {
            let reason = match leaving {
                true => HandoffReason::Drain,
                false => HandoffReason::Order,
            };
            self.rebind_or_requeue(session, reason);
            self.assign_waiting();
        } else if held {
            self.assign_waiting();
        } else if !self.slots[from].jobs.is_empty()
            && let Some(to) = self.least_loaded_for(session, from)
            && self.slots[to].load() + 2 <= self.slots[from].load()
            && self.holds_as_many_adapters(session, to, from)
        {
            self.bind(session, to, Some(HandoffReason::Balance));
            self.assign_waiting();
        }
    }

    /// Finds out who is to blame for the exit of a worker that ran this job. When the job had ended the worker of another
    /// GPU before, that one's exit is to be forgiven.
    pub(super) fn blame(&mut self, slot: usize, job: &JobSpec) -> Blame {
        let entry = self.sessions.get_mut(&job.session);
        let latest = match entry {
            Some(entry) => &mut entry.suspect,
            None => match self.videos.suspect_mut(&job.session) {
                Some(latest) => latest,
                None => return Blame::WorkerOrJob,
            },
        };
        // After a segment was given up, the session begins another with the same index and the first attempt.
        let again = (latest.as_mut())
            .filter(|suspect| job.attempt > 1 && suspect.segment_idx == job.segment_idx);
        let Some(suspect) = again else {
            *latest = Some(SuspectSegment {
                segment_idx: job.segment_idx,
                counted_on: Some(slot),
            });
            return Blame::WorkerOrJob;
        };
        if let Some(acquitted) = suspect.counted_on.take_if(|first| *first != slot) {
            self.slots[acquitted].exits_to_forgive += 1;
            self.slots[acquitted].notify.notify_one();
        }
        Blame::Job
    }

    /// Removes and returns the number of exits of a worker that turned out to be the fault of jobs.
    pub(super) fn take_exits_to_forgive(&mut self, slot: usize) -> u32 {
        std::mem::take(&mut self.slots[slot].exits_to_forgive)
    }

    /// Records how long a worker took to generate a session's segment.
    pub(super) fn record_generation_time(&mut self, slot: usize, generation: Duration) {
        self.slots[slot].pace.add(generation);
        self.assign_waiting();
    }

    /// Returns how long the latest segments of a worker's sessions took to generate, or what warm-up predicts.
    pub(super) fn pace(&self, slot: usize) -> Option<Duration> {
        self.slots[slot].pace.median()
    }

    /// Records the generation time that warm-up predicts for a worker, unless the worker has generated a segment
    /// already.
    pub(super) fn estimate_generation_time(&mut self, slot: usize, generation: Duration) {
        if self.slots[slot].pace.median().is_none() {
            self.record_generation_time(slot, generation);
        }
    }

    /// Removes and returns the cancelled jobs among a worker's waiting ones.
    pub(super) fn take_cancelled(&mut self, slot: usize) -> VecDeque<QueuedJob> {
        let jobs = &mut self.slots[slot].jobs;
        if !jobs.iter().any(|job| job.signals.cancelled()) {
            return VecDeque::new();
        }
        let all = std::mem::take(jobs).into_iter();
        let (cancelled, wanted) = all.partition(|job| job.signals.cancelled());
        *jobs = wanted;
        cancelled
    }

    /// Removes and returns the sessions whose states a worker is to forget: those that were unbound since the last
    /// call, and the video jobs that went elsewhere.
    pub(super) fn take_sessions_to_forget(&mut self, slot: usize) -> Vec<SessionId> {
        std::mem::take(&mut self.slots[slot].to_forget)
    }

    /// Returns the number of sessions that are bound to a worker.
    pub(super) fn sessions_on(&self, slot: usize) -> usize {
        self.slots[slot].sessions.len()
    }

    /// Returns whether a worker serves and takes another session.
    pub(super) fn has_room(&self, slot: usize) -> bool {
        let is_kept_free = self.is_kept_for_videos(slot);
        let slot = &self.slots[slot];
        slot.serving().is_some() && !is_kept_free && slot.load() < self.limit(slot).unwrap_or(1)
    }

    /// Returns the room that the workers have which serve.
    pub(super) fn room(&self) -> Room {
        let mut room = Room::default();
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.serving().is_none() {
                continue;
            }
            let places = match self.is_kept_for_videos(index) {
                true => slot.load(),
                false => self.limit(slot).unwrap_or(1),
            };
            room.places += places;
            room.free += places.saturating_sub(slot.load());
        }
        room
    }

    /// Has the worker of a session forget the state that it holds for it.
    pub(super) fn forget_state(&mut self, session: &SessionId) {
        if let Some(slot) = self.sessions.get(session).and_then(|entry| entry.slot) {
            let slot = &mut self.slots[slot];
            slot.to_forget.push(session.clone());
            slot.notify.notify_one();
        }
    }

    /// Returns how many workers there are, and who waits for one.
    pub(super) fn seats(&self) -> Seats {
        let slots = 0..self.slots.len();
        Seats {
            gpus: slots.len(),
            available: slots.filter(|slot| self.has_room(*slot)).count(),
            queue_depth: self.queue_depth(),
        }
    }

    /// Returns the number of sessions that wait for a worker.
    pub(super) fn queue_depth(&self) -> usize {
        self.queue.len()
    }

    /// Returns the number of sessions that the workers can serve at once, as far as it is known, including workers that
    /// still boot.
    pub(super) fn capacity(&self) -> usize {
        let there = self.slots.iter().filter(|slot| {
            !matches!(
                slot.availability,
                Availability::Absent(Absence::Drained | Absence::Lost) | Availability::Leaving
            )
        });
        there
            .map(|slot| self.limit(slot).unwrap_or(self.sharing.max_sessions))
            .sum()
    }

    /// Returns whether no worker serves, and none will until an operator intervenes or a quarantine ends. False when
    /// all of them are drained.
    pub(super) fn all_lost(&self) -> bool {
        let is = |slot: &WorkerSlot, absence| matches!(slot.availability, Availability::Absent(a) if a == absence);
        self.slots.iter().any(|slot| is(slot, Absence::Lost))
            && (self.slots.iter()).all(|slot| is(slot, Absence::Lost) || is(slot, Absence::Drained))
    }

    /// Returns the number of sessions that a worker may have; `None` when that depends on its pace and the pace is not
    /// known.
    fn limit(&self, slot: &WorkerSlot) -> Option<usize> {
        let Sharing {
            max_sessions,
            keep_up,
            ..
        } = self.sharing;
        match keep_up {
            Some(plays) if max_sessions > 1 => {
                let took = slot.pace.median()?;
                let viewers = plays.as_nanos() / took.as_nanos().max(1);
                Some(usize::try_from(viewers).map_or(max_sessions, |n| n.clamp(1, max_sessions)))
            }
            _ => Some(max_sessions),
        }
    }

    /// Returns the worker with the fewest sessions among those that have room: rather one that is not reserved for video jobs,
    /// and rather one that runs no segment of them.
    fn least_loaded(&self) -> Option<usize> {
        (0..self.slots.len())
            .filter(|&slot| self.has_room(slot))
            .min_by_key(|&slot| {
                let load = self.slots[slot].load();
                (self.is_reserved(slot), load, self.videos.run_on(slot))
            })
    }

    /// Returns the worker for a session to move to: among the others that have room, one that holds most of the session's
    /// adapters, and of these the one with the fewest sessions.
    fn least_loaded_for(&self, session: &SessionId, from: usize) -> Option<usize> {
        let wanted = self.adapters_of(session);
        (0..self.slots.len())
            .filter(|&slot| slot != from && self.has_room(slot))
            .min_by_key(|&slot| {
                let (is_reserved, slot) = (self.is_reserved(slot), &self.slots[slot]);
                (slot.missing_adapters(wanted), is_reserved, slot.load())
            })
    }

    fn holds_as_many_adapters(&self, session: &SessionId, to: usize, from: usize) -> bool {
        let wanted = self.adapters_of(session);
        self.slots[to].missing_adapters(wanted) <= self.slots[from].missing_adapters(wanted)
    }

    fn adapters_of(&self, session: &SessionId) -> &[String] {
        let entry = self.sessions.get(session);
        entry.map_or(&[], |entry| &entry.adapters)
    }

    /// Returns whether no worker has a job of the session in hand.
    fn at_boundary(&self, session: &SessionId) -> bool {
        let Some(entry) = self.sessions.get(session) else {
            return true;
        };
        let waits = |job, slot: usize| self.slots[slot].jobs.iter().any(|j| j.spec.job == job);
        match (entry.job, entry.slot) {
            (Some(job), Some(slot)) => waits(job, slot),
            _ => true,
        }
    }

    /// Unbinds a session that is at a boundary: makes its pending move, or puts it at the front of the queue, behind those
    /// that lost their worker before.
    fn rebind_or_requeue(&mut self, session: &SessionId, reason: HandoffReason) {
        if let Some(to) = self
            .sessions
            .get(session)
            .and_then(|entry| entry.pending_move)
        {
            self.clear_pending_move(session);
            return self.bind(session, to, Some(reason));
        }
        self.unbind(session);
        if let Some(entry) = self.sessions.get_mut(session) {
            entry.left = Some(reason);
        }
        let entry = self.sessions.get(session);
        let tenant = entry.map(|entry| entry.tenant.clone()).unwrap_or_default();
        let position = self.queue.rejoin(session.clone(), tenant);
        PoolEvent::SessionRequeued { session, position }.emit(&self.metrics);
    }

    /// Binds a session that is at a boundary to a worker that serves. `reason` is why it leaves the one that it has, if any.
    fn bind(&mut self, session: &SessionId, to: usize, reason: Option<HandoffReason>) {
        let Some(assignment) = self.slots[to].serving().cloned() else {
            return;
        };
        let from = self.unbind(session).map(|from| self.slots[from].gpu);
        let Some(entry) = self.sessions.get_mut(session) else {
            return;
        };
        entry.slot = Some(to);
        entry.served = true;
        let handoff = reason.or(entry.left.take());
        let slot = &mut self.slots[to];
        let gpu = slot.gpu;
        let bound = PoolEvent::SessionBound {
            session,
            gpu,
            from,
            handoff,
        };
        bound.emit(&self.metrics);
        slot.sessions.push(session.clone());
        // The session is back before the process was told to forget it.
        slot.to_forget.retain(|s| s != session);
        slot.expect_live_job();
        publish(&entry.placement, Placement::Bound(assignment));
    }

    /// Unbinds a session from its worker, if it has one, and takes its waiting job back. Returns the worker's slot.
    fn unbind(&mut self, session: &SessionId) -> Option<usize> {
        let entry = self.sessions.get_mut(session)?;
        entry.job = None;
        let from = entry.slot.take()?;
        let slot = &mut self.slots[from];
        slot.sessions.retain(|s| s != session);
        slot.to_forget.push(session.clone());
        slot.notify.notify_one();
        slot.jobs.retain(|job| {
            let stays = &job.spec.session != session;
            if !stays {
                job.tell(JobEvent::Ended(JobEnd::TakenBack { started: false }));
            }
            stays
        });
        Some(from)
    }

    /// Cancels the pending move of a session and the reservation for it.
    fn clear_pending_move(&mut self, session: &SessionId) {
        let wanted = self
            .sessions
            .get_mut(session)
            .and_then(|e| e.pending_move.take());
        if let Some(wanted) = wanted {
            self.slots[wanted].reserved.retain(|s| s != session);
        }
    }

    /// Cancels the pending moves to a worker.
    fn cancel_reservations(&mut self, slot: usize) {
        for session in std::mem::take(&mut self.slots[slot].reserved) {
            if let Some(entry) = self.sessions.get_mut(&session) {
                entry.pending_move = None;
            }
        }
    }

    /// Gives held places to sessions that lost their workers and whose clients wait. The sessions whose places were held
    /// are the next in the queue.
    fn claim_held_places(&mut self) {
        let sessions = &self.sessions;
        let is_waiting_client = |id: &&SessionId| {
            (sessions.get(*id)).is_some_and(|session| session.served && session.hold.is_none())
        };
        let claiming: Vec<_> = (self.queue.iter())
            .filter(is_waiting_client)
            .cloned()
            .collect();
        for session in claiming {
            let Some((held, slot)) = self.held_place() else {
                return;
            };
            self.clear_pending_move(&held);
            self.rebind_or_requeue(&held, HandoffReason::WorkerLost);
            self.queue.remove(&session);
            self.bind(&session, slot, None);
        }
    }

    /// Returns the session whose place on a worker that serves has been held the longest, and the worker's slot.
    fn held_place(&self) -> Option<(SessionId, usize)> {
        let places = self.sessions.iter().filter_map(|(id, session)| {
            let slot = session.slot?;
            let hold = session.hold?;
            let may_go = self.slots[slot].serving().is_some() && self.at_boundary(id);
            may_go.then_some((hold, id, slot))
        });
        let (_, id, slot) = places.min_by_key(|(hold, ..)| *hold)?;
        Some((id.clone(), slot))
    }

    /// Binds the waiting sessions for which there is room, and tells the others their placement.
    fn assign_waiting(&mut self) {
        while let Some(slot) = self.least_loaded()
            && let Some(session) = self.queue.pop()
        {
            self.bind(&session, slot, None);
        }
        self.claim_held_places();
        self.publish_demand();
        let all_lost = self.all_lost();
        let queue_depth = self.queue.len();
        for (position, session) in self.queue.iter().enumerate() {
            if let Some(entry) = self.sessions.get(session) {
                publish(
                    &entry.placement,
                    match all_lost {
                        true => Placement::NoWorker,
                        false => Placement::Waiting {
                            position,
                            queue_depth,
                        },
                    },
                );
            }
        }
    }
}

/// Publishes a session's placement. A changed queue depth alone does not wake the session.
fn publish(placement: &watch::Sender<Placement>, new: Placement) {
    placement.send_if_modified(|old| {
        let moved = match (&*old, &new) {
            (Placement::Waiting { position: a, .. }, Placement::Waiting { position: b, .. }) => {
                a != b
            }
            (old, new) => old != new,
        };
        *old = new;
        moved
    });
}

#[cfg(test)]
mod tests;
