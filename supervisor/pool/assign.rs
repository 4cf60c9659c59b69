//! Which session belongs to which worker, who moves, and who waits.
//!
//! Sessions that have no worker wait in one FIFO queue. A session that lost its worker goes back to the front, so that
//! a fault never costs it its turn. A session changes its worker only at a boundary: when no worker has a job of it in
//! hand. Nothing here waits or talks to a process: the pool locks it for a moment.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::{GpuId, JobId, SessionId, WorkerId};
use tokio::sync::{Notify, watch};

use super::job::{JobEnd, JobEvent, QueuedJob};
use super::latest::LatestTimes;

/// Generation times that a worker's pace is taken of.
const PACE_SAMPLES: usize = 15;

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Waits for a worker. Position 0 is next.
    Waiting {
        position: usize,
        queue_depth: usize,
    },
    Bound(Assignment),
    /// Waits, and no worker is left that could ever take it before an operator or time helps.
    NoWorker,
}

/// A session's binding to one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub gpu: GpuId,
    pub worker: WorkerId,
    pub model_id: String,
    /// The worker makes sound.
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

/// How many sessions may share one worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sharing {
    /// At least 1.
    pub(super) max_sessions: usize,
    /// How long a segment plays, when a worker takes only as many sessions as it makes video for in time.
    pub(super) keep_up: Option<Duration>,
}

/// Why a worker has no place to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// It starts, or will be started.
    Starting,
    /// An operator wants it away.
    Drained,
    /// It cannot serve before an operator or time helps.
    Lost,
}

/// All assignments.
#[derive(Debug)]
pub(super) struct Board {
    sharing: Sharing,
    seats: Vec<Seat>,
    queue: VecDeque<SessionId>,
    places: HashMap<SessionId, Entry>,
}

/// One session's side of the board.
#[derive(Debug)]
struct Entry {
    placement: watch::Sender<Placement>,
    seat: Option<usize>,
    /// Has had a worker.
    served: bool,
    /// Submitted and not ended.
    job: Option<JobId>,
    /// The seat that it goes to at its next boundary; its place there is kept.
    wanted: Option<usize>,
}

/// One worker's side of the board.
#[derive(Debug)]
struct Seat {
    gpu: GpuId,
    wake: Arc<Notify>,
    duty: Duty,
    sessions: Vec<SessionId>,
    /// Sessions that come at their next boundary.
    coming: Vec<SessionId>,
    jobs: VecDeque<QueuedJob>,
    /// Sessions that have gone elsewhere and that the worker has not been told of.
    left: Vec<SessionId>,
    /// Generation times, over all processes of the GPU.
    pace: LatestTimes,
}

#[derive(Debug)]
enum Duty {
    Absent(Absence),
    Serving(Assignment),
    /// Takes no session and no job. Sessions whose job it has in hand stay until that has ended.
    Leaving,
}

impl Seat {
    fn serving(&self) -> Option<&Assignment> {
        match &self.duty {
            Duty::Serving(assignment) => Some(assignment),
            Duty::Leaving | Duty::Absent(_) => None,
        }
    }

    /// Sessions that it has or will have.
    fn load(&self) -> usize {
        self.sessions.len() + self.coming.len()
    }
}

impl Board {
    /// `seats`: the GPU of each, and what wakes its worker's task.
    pub(super) fn new(
        seats: impl IntoIterator<Item = (GpuId, Arc<Notify>)>,
        sharing: Sharing,
    ) -> Self {
        let seat = |(gpu, wake)| Seat {
            gpu,
            wake,
            duty: Duty::Absent(Absence::Starting),
            sessions: Vec::new(),
            coming: Vec::new(),
            jobs: VecDeque::new(),
            left: Vec::new(),
            pace: LatestTimes::new(PACE_SAMPLES),
        };
        Self {
            sharing,
            seats: seats.into_iter().map(seat).collect(),
            queue: VecDeque::new(),
            places: HashMap::new(),
        }
    }

    /// Puts a session at the end of the queue, or on a worker that has room.
    pub(super) fn join(&mut self, session: SessionId) -> watch::Receiver<Placement> {
        let (placement, seen) = watch::channel(Placement::NoWorker);
        let entry = Entry {
            placement,
            seat: None,
            served: false,
            job: None,
            wanted: None,
        };
        self.places.insert(session.clone(), entry);
        self.queue.push_back(session);
        self.settle();
        seen
    }

    /// Takes a session off the board, with the jobs that it still had waiting.
    pub(super) fn leave(&mut self, session: &SessionId) {
        self.forget_wish(session);
        self.stand_up(session);
        self.queue.retain(|s| s != session);
        self.places.remove(session);
        self.settle();
    }

    /// Moves a session at its next boundary, which may be now: to a GPU, or to the emptiest other one.
    ///
    /// # Errors
    /// When it has nowhere to go; it stays where it is.
    pub(super) fn move_session(
        &mut self,
        session: &SessionId,
        to: Option<GpuId>,
    ) -> Result<(), MoveError> {
        let unknown = || MoveError::UnknownSession(session.clone());
        let entry = self.places.get(session).ok_or_else(unknown)?;
        let (from, wanted) = (entry.seat.ok_or(MoveError::Waiting)?, entry.wanted);
        let to = match to {
            None if wanted.is_some() => return Ok(()),
            None => self.emptiest(Some(from)).ok_or(MoveError::NoOtherRoom)?,
            Some(gpu) => {
                let to = self.seats.iter().position(|seat| seat.gpu == gpu);
                let to = to.ok_or(MoveError::UnknownGpu(gpu))?;
                if self.seats[to].serving().is_none() {
                    return Err(MoveError::NotServing(gpu));
                }
                if to != from && wanted != Some(to) && !self.has_room(to) {
                    return Err(MoveError::NoRoom(gpu));
                }
                to
            }
        };
        self.forget_wish(session);
        if to == from {
            self.settle();
            return Ok(());
        }
        self.seats[to].coming.push(session.clone());
        self.places
            .get_mut(session)
            .expect("looked up above")
            .wanted = Some(to);
        if self.at_boundary(session) {
            self.go(session);
        }
        self.settle();
        Ok(())
    }

    /// A worker serves.
    pub(super) fn serve(&mut self, seat: usize, assignment: Assignment) {
        self.seats[seat].duty = Duty::Serving(assignment);
        self.settle();
    }

    /// A worker's next process serves in place of the one before; no job is in hand. Its sessions and the jobs that
    /// wait stay.
    pub(super) fn renew(&mut self, seat: usize, assignment: Assignment) {
        for session in &self.seats[seat].sessions {
            if let Some(entry) = self.places.get(session) {
                publish(&entry.placement, Placement::Bound(assignment.clone()));
            }
        }
        self.seats[seat].left.clear();
        self.serve(seat, assignment);
    }

    /// A worker is to leave: its sessions move or wait, each at its next boundary.
    pub(super) fn drain(&mut self, seat: usize) {
        if self.seats[seat].serving().is_none() {
            return;
        }
        self.seats[seat].duty = Duty::Leaving;
        self.turn_away(seat);
        for session in self.seats[seat].sessions.clone() {
            if self.at_boundary(&session) {
                self.go(&session);
            }
        }
        self.settle();
    }

    /// A worker does not serve any more. Its sessions move or wait; its waiting jobs are handed back.
    pub(super) fn vacate(&mut self, seat: usize, absence: Absence) -> VecDeque<QueuedJob> {
        self.seats[seat].duty = Duty::Absent(absence);
        self.turn_away(seat);
        let jobs = std::mem::take(&mut self.seats[seat].jobs);
        for session in self.seats[seat].sessions.clone() {
            if let Some(entry) = self.places.get_mut(&session) {
                entry.job = None;
            }
            self.go(&session);
        }
        self.seats[seat].left.clear();
        self.settle();
        jobs
    }

    /// A worker that was away comes back.
    pub(super) fn expect(&mut self, seat: usize) {
        self.seats[seat].duty = Duty::Absent(Absence::Starting);
        self.settle();
    }

    /// The seat of a worker, when the session is bound to it.
    pub(super) fn seat_of(&self, worker: &WorkerId, session: &SessionId) -> Option<usize> {
        let seat = self.places.get(session)?.seat?;
        let serving = self.seats[seat].serving()?;
        (&serving.worker == worker).then_some(seat)
    }

    /// Queues a job with a worker.
    pub(super) fn submit(&mut self, seat: usize, job: QueuedJob) {
        if let Some(entry) = self.places.get_mut(&job.spec.session) {
            entry.job = Some(job.spec.job);
        }
        self.seats[seat].jobs.push_back(job);
    }

    /// The next job of a worker: the one whose viewer runs out of video first, ties in order of request.
    pub(super) fn next_job(&mut self, seat: usize) -> Option<QueuedJob> {
        let jobs = &mut self.seats[seat].jobs;
        let (next, _) = jobs.iter().enumerate().min_by_key(|(_, job)| job.due)?;
        jobs.remove(next)
    }

    /// A job has ended, and its session was told. The session is at a boundary: it goes where it is wanted, away from a
    /// worker that leaves, or from one where others wait to one that has less to do.
    pub(super) fn job_ended(&mut self, session: &SessionId, job: JobId) {
        let Some(entry) = self.places.get_mut(session) else {
            return;
        };
        let Some(from) = entry.seat.filter(|_| entry.job == Some(job)) else {
            return;
        };
        entry.job = None;
        let wanted = entry.wanted.is_some();
        let leaving = matches!(self.seats[from].duty, Duty::Leaving);
        if wanted || leaving {
            self.go(session);
            self.settle();
        } else if !self.seats[from].jobs.is_empty()
            && let Some(to) = self.emptiest(Some(from))
            && self.seats[to].load() + 2 <= self.seats[from].load()
        {
            tracing::debug!(session_id = %session, from = %self.seats[from].gpu, to = %self.seats[to].gpu, "session moves to a worker that has less to do");
            self.bind(session, to);
            self.settle();
        }
    }

    /// How long a worker took for a segment.
    pub(super) fn took(&mut self, seat: usize, generation: Duration) {
        self.seats[seat].pace.add(generation);
        self.settle();
    }

    /// How long a worker will take for a segment, before it has made one: from its warm-up.
    pub(super) fn guess(&mut self, seat: usize, generation: Duration) {
        if self.seats[seat].pace.median().is_none() {
            self.took(seat, generation);
        }
    }

    /// Takes a worker's waiting jobs out that nobody wants any more.
    pub(super) fn take_cancelled(&mut self, seat: usize) -> VecDeque<QueuedJob> {
        let jobs = &mut self.seats[seat].jobs;
        let all = std::mem::take(jobs).into_iter();
        let (cancelled, wanted) = all.partition(|job| job.signals.cancelled());
        *jobs = wanted;
        cancelled
    }

    /// The sessions that have left a worker since the last call.
    pub(super) fn take_left(&mut self, seat: usize) -> Vec<SessionId> {
        std::mem::take(&mut self.seats[seat].left)
    }

    pub(super) fn sessions_on(&self, seat: usize) -> usize {
        self.seats[seat].sessions.len()
    }

    pub(super) fn has_room(&self, seat: usize) -> bool {
        let seat = &self.seats[seat];
        seat.serving().is_some() && seat.load() < self.limit(seat).unwrap_or(1)
    }

    pub(super) fn queue_depth(&self) -> usize {
        self.queue.len()
    }

    /// Sessions that the workers can serve at once, those that still start included, as far as is known.
    pub(super) fn capacity(&self) -> usize {
        let there = self.seats.iter().filter(|seat| {
            !matches!(
                seat.duty,
                Duty::Absent(Absence::Drained | Absence::Lost) | Duty::Leaving
            )
        });
        there
            .map(|seat| self.limit(seat).unwrap_or(self.sharing.max_sessions))
            .sum()
    }

    /// No worker serves or will without an operator's help or a pause, and not because an operator wanted it so.
    pub(super) fn all_lost(&self) -> bool {
        let is = |seat: &Seat, absence| matches!(seat.duty, Duty::Absent(a) if a == absence);
        self.seats.iter().any(|seat| is(seat, Absence::Lost))
            && (self.seats.iter()).all(|seat| is(seat, Absence::Lost) || is(seat, Absence::Drained))
    }

    /// Sessions that a worker may have; none when its pace would tell and is not known.
    fn limit(&self, seat: &Seat) -> Option<usize> {
        let Sharing {
            max_sessions,
            keep_up,
        } = self.sharing;
        match keep_up {
            Some(plays) if max_sessions > 1 => {
                let took = seat.pace.median()?;
                let viewers = plays.as_nanos() / took.as_nanos().max(1);
                Some(usize::try_from(viewers).map_or(max_sessions, |n| n.clamp(1, max_sessions)))
            }
            _ => Some(max_sessions),
        }
    }

    /// The worker with the fewest sessions of those that have room.
    fn emptiest(&self, except: Option<usize>) -> Option<usize> {
        (0..self.seats.len())
            .filter(|&seat| Some(seat) != except && self.has_room(seat))
            .min_by_key(|&seat| self.seats[seat].load())
    }

    /// No worker has a job of the session in hand.
    fn at_boundary(&self, session: &SessionId) -> bool {
        let Some(entry) = self.places.get(session) else {
            return true;
        };
        let waits = |job, seat: usize| self.seats[seat].jobs.iter().any(|j| j.spec.job == job);
        match (entry.job, entry.seat) {
            (Some(job), Some(seat)) => waits(job, seat),
            _ => true,
        }
    }

    /// Takes a session that is at a boundary from its worker: to where it is wanted, or to the front of the queue,
    /// behind those that lost their worker before.
    fn go(&mut self, session: &SessionId) {
        if let Some(to) = self.places.get(session).and_then(|entry| entry.wanted) {
            self.forget_wish(session);
            return self.bind(session, to);
        }
        self.stand_up(session);
        let places = &self.places;
        let served = |s: &&SessionId| places.get(*s).is_some_and(|entry| entry.served);
        let position = self.queue.iter().take_while(served).count();
        self.queue.insert(position, session.clone());
    }

    /// Binds a session that is at a boundary to a worker that serves.
    fn bind(&mut self, session: &SessionId, to: usize) {
        let Some(assignment) = self.seats[to].serving().cloned() else {
            return;
        };
        self.stand_up(session);
        let Some(entry) = self.places.get_mut(session) else {
            return;
        };
        entry.seat = Some(to);
        entry.served = true;
        let seat = &mut self.seats[to];
        seat.sessions.push(session.clone());
        // It is back before the worker was told that it had gone.
        seat.left.retain(|s| s != session);
        publish(&entry.placement, Placement::Bound(assignment));
    }

    /// Takes a session from its seat, if it has one, and takes its waiting job back.
    fn stand_up(&mut self, session: &SessionId) {
        let Some(entry) = self.places.get_mut(session) else {
            return;
        };
        entry.job = None;
        let Some(from) = entry.seat.take() else {
            return;
        };
        let seat = &mut self.seats[from];
        seat.sessions.retain(|s| s != session);
        seat.left.push(session.clone());
        seat.wake.notify_one();
        seat.jobs.retain(|job| {
            let stays = &job.spec.session != session;
            if !stays {
                job.tell(JobEvent::Ended(JobEnd::TakenBack { started: false }));
            }
            stays
        });
    }

    /// A session goes nowhere; the place that was kept for it is free.
    fn forget_wish(&mut self, session: &SessionId) {
        let wanted = self.places.get_mut(session).and_then(|e| e.wanted.take());
        if let Some(wanted) = wanted {
            self.seats[wanted].coming.retain(|s| s != session);
        }
    }

    /// Nobody comes to this worker any more.
    fn turn_away(&mut self, seat: usize) {
        for session in std::mem::take(&mut self.seats[seat].coming) {
            if let Some(entry) = self.places.get_mut(&session) {
                entry.wanted = None;
            }
        }
    }

    /// Binds whom it can and tells everybody who waits where they stand.
    fn settle(&mut self) {
        while let Some(seat) = self.emptiest(None)
            && let Some(session) = self.queue.pop_front()
        {
            self.bind(&session, seat);
        }
        let all_lost = self.all_lost();
        let queue_depth = self.queue.len();
        for (position, session) in self.queue.iter().enumerate() {
            if let Some(entry) = self.places.get(session) {
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

/// Wakes the session only when it moved: a changed depth alone is no news to it.
fn publish(place: &watch::Sender<Placement>, new: Placement) {
    place.send_if_modified(|old| {
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
