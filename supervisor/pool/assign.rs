//! Which session belongs to which worker, and who waits.
//!
//! Sessions that have no worker wait in one FIFO queue. A session that lost its worker goes back to the front, so that
//! a fault never costs it its turn. Nothing here waits or talks to a process: the pool locks it for a moment.

use std::collections::{HashMap, VecDeque};

use fastvideo_proto::ids::{GpuId, SessionId, WorkerId};
use tokio::sync::watch;

use super::job::QueuedJob;

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

/// All assignments.
#[derive(Debug)]
pub(super) struct Board {
    sessions_per_gpu: usize,
    seats: Vec<Seat>,
    queue: VecDeque<SessionId>,
    places: HashMap<SessionId, watch::Sender<Placement>>,
}

/// One worker's side of the board.
#[derive(Debug, Default)]
struct Seat {
    /// Set while the worker serves.
    serving: Option<Assignment>,
    /// Cannot serve before an operator or time helps.
    lost: bool,
    sessions: Vec<SessionId>,
    jobs: VecDeque<QueuedJob>,
}

impl Board {
    pub(super) fn new(workers: usize, sessions_per_gpu: usize) -> Self {
        Self {
            sessions_per_gpu,
            seats: (0..workers).map(|_| Seat::default()).collect(),
            queue: VecDeque::new(),
            places: HashMap::new(),
        }
    }

    /// Puts a session at the end of the queue, or on a worker that has room.
    pub(super) fn join(&mut self, session: SessionId) -> watch::Receiver<Placement> {
        let (placement, seen) = watch::channel(Placement::NoWorker);
        self.places.insert(session.clone(), placement);
        self.queue.push_back(session);
        self.settle();
        seen
    }

    /// Takes a session off the board, with the jobs that it still had waiting.
    pub(super) fn leave(&mut self, session: &SessionId) {
        self.places.remove(session);
        self.queue.retain(|s| s != session);
        for seat in &mut self.seats {
            seat.sessions.retain(|s| s != session);
            seat.jobs.retain(|job| &job.spec.session != session);
        }
        self.settle();
    }

    /// A worker serves.
    pub(super) fn serve(&mut self, seat: usize, assignment: Assignment) {
        self.seats[seat].serving = Some(assignment);
        self.seats[seat].lost = false;
        self.settle();
    }

    /// A worker does not serve any more. Its sessions move or wait; its waiting jobs are handed back.
    pub(super) fn vacate(&mut self, seat: usize, lost: bool) -> VecDeque<QueuedJob> {
        let seat = &mut self.seats[seat];
        seat.serving = None;
        seat.lost = lost;
        let jobs = std::mem::take(&mut seat.jobs);
        for session in std::mem::take(&mut seat.sessions).into_iter().rev() {
            self.queue.push_front(session);
        }
        self.settle();
        jobs
    }

    /// A worker that was lost may come back.
    pub(super) fn hope(&mut self, seat: usize) {
        self.seats[seat].lost = false;
        self.settle();
    }

    /// The seat of a worker, when the session is bound to it.
    pub(super) fn seat_of(&self, worker: &WorkerId, session: &SessionId) -> Option<usize> {
        self.seats.iter().position(|seat| {
            seat.serving.as_ref().is_some_and(|a| &a.worker == worker)
                && seat.sessions.contains(session)
        })
    }

    /// Queues a job with a worker.
    pub(super) fn submit(&mut self, seat: usize, job: QueuedJob) {
        self.seats[seat].jobs.push_back(job);
    }

    /// The next job of a worker, in order of request.
    pub(super) fn next_job(&mut self, seat: usize) -> Option<QueuedJob> {
        self.seats[seat].jobs.pop_front()
    }

    /// Takes a worker's waiting jobs out that nobody wants any more.
    pub(super) fn take_cancelled(&mut self, seat: usize) -> VecDeque<QueuedJob> {
        let jobs = &mut self.seats[seat].jobs;
        let all = std::mem::take(jobs).into_iter();
        let (cancelled, wanted) = all.partition(|job| job.signals.cancelled());
        *jobs = wanted;
        cancelled
    }

    pub(super) fn sessions_on(&self, seat: usize) -> usize {
        self.seats[seat].sessions.len()
    }

    pub(super) fn has_room(&self, seat: usize) -> bool {
        let seat = &self.seats[seat];
        seat.serving.is_some() && seat.sessions.len() < self.sessions_per_gpu
    }

    pub(super) fn queue_depth(&self) -> usize {
        self.queue.len()
    }

    /// Sessions that the workers can serve at once, those that still start included.
    pub(super) fn capacity(&self) -> usize {
        self.seats.iter().filter(|seat| !seat.lost).count() * self.sessions_per_gpu
    }

    pub(super) fn all_lost(&self) -> bool {
        self.seats.iter().all(|seat| seat.lost)
    }

    /// Binds whom it can and tells everybody where they stand.
    fn settle(&mut self) {
        while let Some(session) = self.queue.front() {
            let emptiest = (self.seats.iter_mut())
                .filter(|seat| {
                    seat.serving.is_some() && seat.sessions.len() < self.sessions_per_gpu
                })
                .min_by_key(|seat| seat.sessions.len());
            let Some(seat) = emptiest else { break };
            let assignment = seat.serving.clone().expect("filtered above");
            if let Some(place) = self.places.get(session) {
                publish(place, Placement::Bound(assignment));
                seat.sessions.push(session.clone());
            }
            self.queue.pop_front();
        }
        let all_lost = self.all_lost();
        let queue_depth = self.queue.len();
        for (position, session) in self.queue.iter().enumerate() {
            if let Some(place) = self.places.get(session) {
                publish(
                    place,
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
mod tests {
    use std::sync::Arc;

    use fastvideo_proto::client::StreamMode;
    use fastvideo_proto::ids::JobId;
    use fastvideo_proto::link::{JobSpec, VideoFormat};

    use super::*;
    use crate::pool::job::pair;

    fn assignment(seat: u32, incarnation: u32) -> Assignment {
        Assignment {
            gpu: GpuId(seat),
            worker: WorkerId::new(GpuId(seat), incarnation),
            model_id: "m".to_owned(),
            audio: true,
        }
    }

    fn waiting(position: usize, queue_depth: usize) -> Placement {
        Placement::Waiting {
            position,
            queue_depth,
        }
    }

    #[test]
    fn sessions_are_bound_in_order_of_arrival_to_the_emptiest_worker() {
        let mut board = Board::new(2, 2);
        let ids: Vec<_> = (0..5).map(|_| SessionId::random()).collect();
        let places: Vec<_> = ids.iter().map(|id| board.join(id.clone())).collect();
        assert_eq!(*places[4].borrow(), waiting(4, 5));
        board.serve(0, assignment(0, 1));
        board.serve(1, assignment(1, 1));
        let gpus: Vec<_> = places
            .iter()
            .map(|p| match &*p.borrow() {
                Placement::Bound(a) => Some(a.gpu.0),
                _ => None,
            })
            .collect();
        assert_eq!(gpus, [Some(0), Some(0), Some(1), Some(1), None]);
        assert_eq!(*places[4].borrow(), waiting(0, 1));
        board.leave(&ids[2]);
        assert_eq!(*places[4].borrow(), Placement::Bound(assignment(1, 1)));
    }

    #[test]
    fn a_session_that_lost_its_worker_is_next() {
        let mut board = Board::new(2, 1);
        board.serve(0, assignment(0, 1));
        let first = board.join(SessionId::random());
        let second = board.join(SessionId::random());
        board.vacate(0, false);
        assert_eq!(*first.borrow(), waiting(0, 2));
        assert_eq!(*second.borrow(), waiting(1, 2));
        board.serve(1, assignment(1, 1));
        assert_eq!(*first.borrow(), Placement::Bound(assignment(1, 1)));
        assert_eq!(*second.borrow(), waiting(0, 1));
    }

    #[test]
    fn a_changed_depth_alone_wakes_nobody() {
        let mut board = Board::new(1, 1);
        let mut first = board.join(SessionId::random());
        first.borrow_and_update();
        let second = SessionId::random();
        board.join(second.clone());
        board.leave(&second);
        assert!(!first.has_changed().unwrap());
    }

    #[test]
    fn with_every_worker_lost_those_who_wait_are_told() {
        let mut board = Board::new(2, 1);
        let place = board.join(SessionId::random());
        board.vacate(0, true);
        assert_eq!(*place.borrow(), waiting(0, 1));
        assert_eq!(board.capacity(), 1);
        board.vacate(1, true);
        assert_eq!(*place.borrow(), Placement::NoWorker);
        board.hope(0);
        assert_eq!(*place.borrow(), waiting(0, 1));
    }

    #[test]
    fn cancelled_jobs_do_not_wait_for_their_turn() {
        let mut board = Board::new(1, 3);
        board.serve(0, assignment(0, 1));
        let handles: Vec<_> = (1..=3)
            .map(|n| {
                let session = SessionId::random();
                board.join(session.clone());
                let (handle, job) = pair(spec(n, session), None, Arc::default());
                board.submit(0, job);
                handle
            })
            .collect();
        assert!(board.take_cancelled(0).is_empty());
        handles[1].cancel();
        let cancelled: Vec<_> = board.take_cancelled(0).iter().map(|j| j.spec.job).collect();
        assert_eq!(cancelled, [JobId(2)]);
        let rest: Vec<_> = std::iter::from_fn(|| board.next_job(0)).collect();
        let rest: Vec<_> = rest.iter().map(|job| job.spec.job).collect();
        assert_eq!(rest, [JobId(1), JobId(3)]);
    }

    fn spec(job: u64, session: SessionId) -> JobSpec {
        JobSpec {
            job: JobId(job),
            session,
            segment_idx: 0,
            attempt: 1,
            prompt: "a red fox".to_owned(),
            negative_prompt: None,
            seed: 0,
            num_inference_steps: 1,
            guidance_scale: 1.0,
            format: VideoFormat {
                width: 64,
                height: 64,
                num_frames: 1,
                fps: 24,
            },
            stream_mode: StreamMode::AvFmp4,
            start_frame: 0,
            initial_image: None,
            state: None,
            window: 0,
        }
    }
}
