use std::sync::Arc;

use fastvideo_proto::ids::JobId;
use tokio::time::Instant;

use super::*;
use crate::pool::fixtures::{assignment, job_spec, sharing};
use crate::pool::job::{JobHandle, pair};

mod videos;

/// So many workers that do not serve yet, with so many sessions on each at most.
fn assignments(workers: u32, max_sessions: usize) -> Assignments {
    let slots = (0..workers).map(|gpu| (GpuId(gpu), Arc::default()));
    Assignments::new(slots, sharing(max_sessions), PoolMetrics::default())
}

/// As many workers that serve.
fn serving(workers: u32, max_sessions: usize) -> Assignments {
    let mut assignments = assignments(workers, max_sessions);
    for slot in 0..workers {
        assignments.serve(slot as usize, assignment(slot, 1));
    }
    assignments
}

/// A session with its view of the assignments.
struct TestSession {
    id: SessionId,
    placement: watch::Receiver<Placement>,
}

impl TestSession {
    fn join(assignments: &mut Assignments) -> Self {
        let id = SessionId::random();
        let placement = assignments.join(id.clone(), Tenant::default());
        Self { id, placement }
    }

    /// The GPU that it is bound to; its position when it waits.
    fn at(&self) -> Result<u32, usize> {
        match &*self.placement.borrow() {
            Placement::Bound(assignment) => Ok(assignment.gpu.0),
            Placement::Waiting { position, .. } => Err(*position),
            Placement::NoWorker => Err(usize::MAX),
        }
    }

    /// Submits a job to the worker that it is bound to; due so many milliseconds after `start`.
    fn submit(
        &self,
        assignments: &mut Assignments,
        job: u64,
        start: Instant,
        due_ms: u64,
    ) -> JobHandle {
        let slot = self.at().unwrap() as usize;
        let due = start + Duration::from_millis(due_ms);
        let (handle, job) = pair(job_spec(job, self.id.clone()), None, None, Some(due));
        assignments.submit(slot, job);
        handle
    }

    /// Submits a job that its worker begins.
    fn run(&self, assignments: &mut Assignments, job: u64) -> JobHandle {
        let handle = self.submit(assignments, job, Instant::now(), 0);
        let begun = assignments
            .next_live_job(self.at().unwrap() as usize)
            .unwrap();
        assert_eq!(begun.spec.job, JobId(job));
        handle
    }
}

fn join_sessions<const N: usize>(assignments: &mut Assignments) -> [TestSession; N] {
    std::array::from_fn(|_| TestSession::join(assignments))
}

/// Whether the job was given back without having run.
fn is_taken_back(job: &mut JobHandle) -> bool {
    matches!(
        job.events.try_recv(),
        Ok(JobEvent::Ended(JobEnd::TakenBack { started: false }))
    )
}

fn waiting(position: usize, queue_depth: usize) -> Placement {
    Placement::Waiting {
        position,
        queue_depth,
    }
}

#[test]
fn sessions_are_bound_in_order_of_arrival_to_the_emptiest_worker() {
    let mut assignments = assignments(2, 2);
    let ids: Vec<_> = (0..5).map(|_| SessionId::random()).collect();
    let placements: Vec<_> = ids
        .iter()
        .map(|id| assignments.join(id.clone(), Tenant::default()))
        .collect();
    assert_eq!(*placements[4].borrow(), waiting(4, 5));
    assignments.serve(0, assignment(0, 1));
    assignments.serve(1, assignment(1, 1));
    let gpus: Vec<_> = placements
        .iter()
        .map(|p| match &*p.borrow() {
            Placement::Bound(a) => Some(a.gpu.0),
            _ => None,
        })
        .collect();
    assert_eq!(gpus, [Some(0), Some(0), Some(1), Some(1), None]);
    assert_eq!(*placements[4].borrow(), waiting(0, 1));
    assignments.leave(&ids[2]);
    assert_eq!(*placements[4].borrow(), Placement::Bound(assignment(1, 1)));
}

#[test]
fn a_session_that_lost_its_worker_is_next() {
    let mut assignments = assignments(2, 1);
    assignments.serve(0, assignment(0, 1));
    let first = assignments.join(SessionId::random(), Tenant::default());
    let second = assignments.join(SessionId::random(), Tenant::default());
    assignments.vacate(0, Absence::Starting);
    assert_eq!(*first.borrow(), waiting(0, 2));
    assert_eq!(*second.borrow(), waiting(1, 2));
    assignments.serve(1, assignment(1, 1));
    assert_eq!(*first.borrow(), Placement::Bound(assignment(1, 1)));
    assert_eq!(*second.borrow(), waiting(0, 1));
}

#[test]
fn a_session_that_lost_its_worker_takes_the_place_of_one_whose_client_is_gone() {
    let mut assignments = serving(2, 1);
    let [gone, present] = join_sessions(&mut assignments);
    let [waiting] = join_sessions(&mut assignments);
    let job = gone.run(&mut assignments, 1);
    let hold = assignments.hold(&gone.id).unwrap();
    assignments.vacate(1, Absence::Starting);
    // A job of the one that is gone is in its worker's hands, and a client that was not served yet has no claim.
    assert_eq!(
        (present.at(), waiting.at(), gone.at()),
        (Err(0), Err(1), Ok(0))
    );
    drop(job);
    assignments.job_ended(&gone.id, JobId(1));
    assert_eq!(
        (present.at(), gone.at(), waiting.at()),
        (Ok(0), Err(0), Err(1))
    );

    let back = assignments.join(gone.id.clone(), Tenant::default());
    assert_eq!(*back.borrow(), self::waiting(0, 2));
    assignments.end_hold(&gone.id, hold);
    assignments.serve(1, assignment(1, 2));
    assert_eq!((gone.at(), waiting.at()), (Ok(1), Err(0)));
}

#[test]
fn a_place_that_is_held_later_goes_to_a_session_that_waits_for_a_worker_again() {
    let mut assignments = serving(2, 1);
    let [first, second] = join_sessions(&mut assignments);
    assignments.vacate(1, Absence::Starting);
    assert_eq!((first.at(), second.at()), (Ok(0), Err(0)));
    let hold = assignments.hold(&first.id).unwrap();
    assert_eq!((first.at(), second.at()), (Err(0), Ok(0)));
    assignments.end_hold(&first.id, hold);
    assert_eq!(assignments.queue_depth(), 0);
}

#[test]
fn a_changed_depth_alone_wakes_nobody() {
    let mut assignments = assignments(1, 1);
    let mut first = assignments.join(SessionId::random(), Tenant::default());
    first.borrow_and_update();
    let second = SessionId::random();
    assignments.join(second.clone(), Tenant::default());
    assignments.leave(&second);
    assert!(!first.has_changed().unwrap());
}

#[test]
fn with_every_worker_lost_those_who_wait_are_told() {
    let mut assignments = assignments(2, 1);
    let placement = assignments.join(SessionId::random(), Tenant::default());
    assignments.vacate(0, Absence::Lost);
    assert_eq!(*placement.borrow(), waiting(0, 1));
    assert_eq!(assignments.capacity(), 1);
    assignments.vacate(1, Absence::Lost);
    assert_eq!(*placement.borrow(), Placement::NoWorker);
    assignments.mark_starting(0);
    assert_eq!(*placement.borrow(), waiting(0, 1));
}

#[test]
fn cancelled_jobs_do_not_wait_for_their_turn() {
    let mut assignments = assignments(1, 3);
    assignments.serve(0, assignment(0, 1));
    let handles: Vec<_> = (1..=3)
        .map(|n| {
            let session = SessionId::random();
            assignments.join(session.clone(), Tenant::default());
            let (handle, job) = pair(job_spec(n, session), None, None, Some(Instant::now()));
            assignments.submit(0, job);
            handle
        })
        .collect();
    assert!(assignments.take_cancelled(0).is_empty());
    handles[1].cancel();
    let cancelled: Vec<_> = assignments
        .take_cancelled(0)
        .iter()
        .map(|j| j.spec.job)
        .collect();
    assert_eq!(cancelled, [JobId(2)]);
    let rest: Vec<_> = std::iter::from_fn(|| assignments.next_live_job(0)).collect();
    let rest: Vec<_> = rest.iter().map(|job| job.spec.job).collect();
    assert_eq!(rest, [JobId(1), JobId(3)]);
}

#[test]
fn a_session_moves_at_once_when_no_job_of_it_runs() {
    let mut assignments = serving(3, 1);
    let [session] = join_sessions(&mut assignments);
    assert_eq!(session.at(), Ok(0));
    assignments
        .move_session(&session.id, Some(GpuId(2)))
        .unwrap();
    assert_eq!(session.at(), Ok(2));
    assert_eq!(
        assignments.take_sessions_to_forget(0),
        std::slice::from_ref(&session.id)
    );
    assignments.move_session(&session.id, None).unwrap();
    assert_eq!(session.at(), Ok(0));
    // One that waits has not been begun.
    let mut job = session.submit(&mut assignments, 1, Instant::now(), 0);
    assignments
        .move_session(&session.id, Some(GpuId(1)))
        .unwrap();
    assert_eq!(session.at(), Ok(1));
    assert!(is_taken_back(&mut job));
    assert!(assignments.next_live_job(0).is_none() && assignments.next_live_job(1).is_none());
}

#[test]
fn a_session_whose_job_runs_moves_when_that_has_ended_and_has_its_place() {
    let mut assignments = serving(2, 1);
    let [session] = join_sessions(&mut assignments);
    let _job = session.run(&mut assignments, 1);
    assignments
        .move_session(&session.id, Some(GpuId(1)))
        .unwrap();
    let [late] = join_sessions(&mut assignments);
    assert_eq!((session.at(), late.at()), (Ok(0), Err(0)));
    assignments.job_ended(&session.id, JobId(99));
    assert_eq!(session.at(), Ok(0));
    assignments.job_ended(&session.id, JobId(1));
    assert_eq!((session.at(), late.at()), (Ok(1), Ok(0)));
}

#[test]
fn a_move_is_given_up_when_its_place_is_gone_or_it_is_not_wanted_any_more() {
    let mut assignments = serving(3, 1);
    let [session] = join_sessions(&mut assignments);
    let _job = session.run(&mut assignments, 1);
    assignments
        .move_session(&session.id, Some(GpuId(1)))
        .unwrap();
    assignments.drain(1);
    assignments.job_ended(&session.id, JobId(1));
    assert_eq!(session.at(), Ok(0));

    let _job = session.run(&mut assignments, 2);
    assignments
        .move_session(&session.id, Some(GpuId(2)))
        .unwrap();
    assert!(!assignments.has_room(2));
    // Of three workers, one has the session, one is drained, and one is promised to the session.
    let room = assignments.room();
    assert_eq!(room.free, 0, "{room:?}");
    assignments
        .move_session(&session.id, Some(GpuId(0)))
        .unwrap();
    assert!(assignments.has_room(2));
    assignments.job_ended(&session.id, JobId(2));
    assert_eq!(session.at(), Ok(0));

    let _job = session.run(&mut assignments, 3);
    assignments
        .move_session(&session.id, Some(GpuId(2)))
        .unwrap();
    assignments.leave(&session.id);
    assert!(assignments.has_room(2));
}

#[test]
fn a_move_that_leads_nowhere_is_refused() {
    let mut assignments = assignments(3, 1);
    assignments.serve(0, assignment(0, 1));
    assignments.serve(1, assignment(1, 1));
    let [one, _two, waits] = join_sessions(&mut assignments);
    let mut check = |session: &SessionId, to: Option<u32>, expected: Result<(), MoveError>| {
        assert_eq!(assignments.move_session(session, to.map(GpuId)), expected);
    };
    let nobody = SessionId::random();
    check(&one.id, Some(0), Ok(()));
    check(&one.id, Some(1), Err(MoveError::NoRoom(GpuId(1))));
    check(&one.id, Some(2), Err(MoveError::NotServing(GpuId(2))));
    check(&one.id, Some(3), Err(MoveError::UnknownGpu(GpuId(3))));
    check(&one.id, None, Err(MoveError::NoOtherRoom));
    check(&waits.id, None, Err(MoveError::Waiting));
    check(
        &nobody,
        None,
        Err(MoveError::UnknownSession(nobody.clone())),
    );
    assert_eq!((one.at(), waits.at()), (Ok(0), Err(0)));
}

#[test]
fn sessions_of_a_worker_that_is_drained_move_or_wait_in_front_each_at_its_boundary() {
    let mut assignments = serving(2, 2);
    let [a, b, c, d] = join_sessions(&mut assignments);
    let on_first = [&a, &c];
    assert_eq!(
        [a.at(), b.at(), c.at(), d.at()],
        [Ok(0), Ok(1), Ok(0), Ok(1)]
    );
    let [waits] = join_sessions(&mut assignments);
    let _running = on_first[0].run(&mut assignments, 1);
    let mut queued = on_first[1].submit(&mut assignments, 2, Instant::now(), 0);
    assignments.leave(&d.id);
    assert_eq!(waits.at(), Ok(1));
    assignments.drain(0);
    assert!(is_taken_back(&mut queued));
    let [late] = join_sessions(&mut assignments);
    assert_eq!([a.at(), c.at(), late.at()], [Ok(0), Err(0), Err(1)]);
    assert_eq!(assignments.capacity(), 2);
    // Behind the one that lost its worker before, and before those that never had one.
    assignments.job_ended(&a.id, JobId(1));
    assert_eq!([c.at(), a.at(), late.at()], [Err(0), Err(1), Err(2)]);
    assignments.leave(&b.id);
    assert_eq!([c.at(), a.at(), late.at()], [Ok(1), Err(0), Err(1)]);
    assert!(assignments.vacate(0, Absence::Drained).is_empty());
    assert!(!assignments.all_lost());
    assignments.mark_starting(0);
    assignments.serve(0, assignment(0, 2));
    assert_eq!([a.at(), late.at()], [Ok(0), Ok(0)]);
}

#[test]
fn drained_workers_leave_hope_only_when_no_other_is_lost() {
    let mut assignments = serving(2, 1);
    assignments.vacate(0, Absence::Drained);
    assignments.vacate(1, Absence::Drained);
    let [session] = join_sessions(&mut assignments);
    assert_eq!(session.at(), Err(0));
    assignments.vacate(1, Absence::Lost);
    assert!(assignments.all_lost());
    assert_eq!(session.at(), Err(usize::MAX));
    assignments.mark_starting(0);
    assert_eq!(session.at(), Err(0));
}

#[test]
fn a_renewed_worker_keeps_its_sessions_and_their_jobs() {
    let mut assignments = serving(1, 2);
    let [one, two] = join_sessions(&mut assignments);
    let mut job = one.submit(&mut assignments, 1, Instant::now(), 0);
    assignments.renew(0, assignment(0, 2));
    for session in [&one, &two] {
        assert_eq!(
            *session.placement.borrow(),
            Placement::Bound(assignment(0, 2))
        );
    }
    assert!(!is_taken_back(&mut job));
    assert_eq!(assignments.next_live_job(0).unwrap().spec.job, JobId(1));
}

#[test]
fn the_job_whose_viewer_runs_out_first_is_next_and_ties_go_by_arrival() {
    let mut assignments = serving(1, 5);
    let all: [TestSession; 5] = join_sessions(&mut assignments);
    let start = Instant::now();
    let due = [300, 100, 200, 100, 0];
    let _jobs: Vec<_> = (all.iter().zip(due).zip(1..))
        .map(|((session, due), job)| session.submit(&mut assignments, job, start, due))
        .collect();
    let order: Vec<_> = std::iter::from_fn(|| assignments.next_live_job(0)).collect();
    let order: Vec<_> = order.iter().map(|job| job.spec.job.0).collect();
    assert_eq!(order, [5, 2, 4, 3, 1]);
}

#[test]
fn a_session_leaves_a_worker_where_others_wait_for_one_that_has_less_to_do() {
    /// Sessions on the first of two workers and on the second; one of the first ends a job, and another waits or not.
    #[track_caller]
    fn check(on_first: usize, on_second: usize, another_waits: bool, moves: bool) {
        // Only one worker serves at first: the assignments itself would spread the sessions.
        let mut assignments = assignments(2, 4);
        assignments.serve(0, assignment(0, 1));
        let first: Vec<_> = (0..on_first + on_second)
            .map(|_| TestSession::join(&mut assignments))
            .collect();
        assignments.serve(1, assignment(1, 1));
        for session in first.iter().take(on_second) {
            assignments
                .move_session(&session.id, Some(GpuId(1)))
                .unwrap();
        }
        let rest = &first[on_second..];
        let _job = rest[0].run(&mut assignments, 1);
        let waits = another_waits.then(|| rest[1].submit(&mut assignments, 2, Instant::now(), 0));
        assignments.job_ended(&rest[0].id, JobId(1));
        assert_eq!(rest[0].at(), Ok(u32::from(moves)));
        drop(waits);
    }
    check(3, 1, true, true);
    check(4, 0, true, true);
    check(2, 0, true, true);
    check(3, 1, false, false);
    check(2, 1, true, false);
}

#[test]
fn a_worker_takes_as_many_sessions_as_it_makes_video_for_in_time() {
    /// Sessions of one worker, at most 4, whose segments of a second took so many milliseconds each.
    #[track_caller]
    fn check(took: &[u64], sessions: usize) {
        let slots = [(GpuId(0), Arc::default())];
        let sharing = Sharing {
            keep_up: Some(Duration::from_secs(1)),
            ..sharing(4)
        };
        let mut assignments = Assignments::new(slots, sharing, PoolMetrics::default());
        assert_eq!(assignments.capacity(), 4);
        assignments.serve(0, assignment(0, 1));
        let placements: [TestSession; 6] = join_sessions(&mut assignments);
        assert_eq!(assignments.sessions_on(0), 1);
        for &ms in took {
            assignments.record_generation_time(0, Duration::from_millis(ms));
        }
        assert_eq!(assignments.sessions_on(0), sessions, "{took:?}");
        assert_eq!(placements[sessions].at(), Err(0));
        if !took.is_empty() {
            assert_eq!(assignments.capacity(), sessions);
        }
    }
    check(&[], 1);
    check(&[2000], 1);
    check(&[501], 1);
    check(&[500], 2);
    check(&[300], 3);
    check(&[10], 4);
    check(&[0], 4);
    // The first of a fresh process may take its time.
    check(&[900, 300, 300], 3);
}

#[test]
fn who_waits_comes_in_when_a_worker_may_take_more_and_nobody_goes_when_it_may_take_fewer() {
    let slots = [(GpuId(0), Arc::default())];
    let mut assignments = Assignments::new(slots, sharing(1), PoolMetrics::default());
    assignments.serve(0, assignment(0, 1));
    let [one, two, three] = join_sessions(&mut assignments);
    assert_eq!([one.at(), two.at(), three.at()], [Ok(0), Err(0), Err(1)]);
    assignments.set_sharing(sharing(2));
    assert_eq!([one.at(), two.at(), three.at()], [Ok(0), Ok(0), Err(0)]);
    assignments.set_sharing(sharing(1));
    assert_eq!([one.at(), two.at(), three.at()], [Ok(0), Ok(0), Err(0)]);
    assert_eq!(assignments.room().free, 0);
}

#[test]
fn a_worker_that_slows_down_keeps_the_sessions_that_it_has() {
    let sharing = Sharing {
        keep_up: Some(Duration::from_secs(1)),
        ..sharing(2)
    };
    let mut assignments = Assignments::new(
        [(GpuId(0), Arc::default())],
        sharing,
        PoolMetrics::default(),
    );
    assignments.estimate_generation_time(0, Duration::from_millis(100));
    assignments.estimate_generation_time(0, Duration::from_secs(100));
    assignments.serve(0, assignment(0, 1));
    let [one, two] = join_sessions(&mut assignments);
    for _ in 0..5 {
        assignments.record_generation_time(0, Duration::from_secs(2));
    }
    assert_eq!([one.at(), two.at()], [Ok(0), Ok(0)]);
    assignments.leave(&two.id);
    let [three] = join_sessions(&mut assignments);
    assert_eq!(three.at(), Err(0));
}

#[test]
fn a_worker_is_not_told_to_forget_a_session_that_is_back() {
    let mut assignments = serving(2, 1);
    let [session] = join_sessions(&mut assignments);
    assignments.move_session(&session.id, None).unwrap();
    assignments.move_session(&session.id, None).unwrap();
    assert_eq!(session.at(), Ok(0));
    assert_eq!(assignments.take_sessions_to_forget(0), []);
    assert_eq!(
        assignments.take_sessions_to_forget(1),
        std::slice::from_ref(&session.id)
    );
    assignments.leave(&session.id);
    assert_eq!(assignments.take_sessions_to_forget(0), [session.id]);
}

#[test]
fn an_exit_is_forgiven_when_its_job_ends_the_worker_of_another_gpu_too() {
    let mut assignments = serving(3, 1);
    let session = TestSession::join(&mut assignments);
    let job = |segment_idx, attempt| JobSpec {
        segment_idx,
        attempt,
        ..job_spec(1, session.id.clone())
    };
    let mut check = |slot, job: JobSpec, blame, forgiven: [u32; 3]| {
        assert_eq!(assignments.blame(slot, &job), blame);
        let taken = [0, 1, 2].map(|slot| assignments.take_exits_to_forgive(slot));
        assert_eq!(taken, forgiven);
    };
    check(0, job(0, 1), Blame::WorkerOrJob, [0, 0, 0]);
    // The same GPU again does not tell the two apart.
    check(0, job(0, 2), Blame::Job, [0, 0, 0]);
    check(1, job(0, 3), Blame::Job, [1, 0, 0]);
    check(2, job(0, 4), Blame::Job, [0, 0, 0]);
    // The segment was given up, and another has its index.
    check(1, job(0, 1), Blame::WorkerOrJob, [0, 0, 0]);
    // The attempt before was taken back, and ended no worker.
    check(2, job(1, 2), Blame::WorkerOrJob, [0, 0, 0]);
    check(0, job(1, 3), Blame::Job, [0, 0, 1]);
}

#[test]
fn the_job_of_a_session_that_has_left_is_a_suspect_too() {
    let mut assignments = serving(1, 1);
    let job = job_spec(1, SessionId::random());
    assert_eq!(assignments.blame(0, &job), Blame::WorkerOrJob);
}

#[test]
fn a_session_goes_to_a_worker_that_holds_its_adapters() {
    let mut assignments = serving(3, 2);
    let held = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let wanted = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    assignments.set_adapters(1, held(&["toon"]));
    assignments.set_adapters(2, held(&["toon", "fade"]));
    let session = TestSession::join(&mut assignments);
    assert_eq!(session.at(), Ok(0));
    assert!(!assignments.choose_adapters(&session.id, wanted(&[])));
    assert!(assignments.choose_adapters(&session.id, wanted(&["fade", "toon"])));
    assert_eq!(session.at(), Ok(2));
    assert!(!assignments.choose_adapters(&session.id, wanted(&["toon"])));
    assert_eq!(assignments.sessions_with_adapter("toon"), 1);
    assert_eq!(assignments.sessions_with_adapter("fade"), 0);

    // No other one holds more of them.
    assert!(!assignments.choose_adapters(&session.id, wanted(&["other"])));
    assert_eq!(session.at(), Ok(2));

    // A worker that was lost holds none.
    assignments.vacate(2, Absence::Starting);
    assignments.serve(2, assignment(2, 2));
    assert!(!matches!(session.at(), Ok(2)));
    assert!(!assignments.choose_adapters(&session.id, wanted(&["fade"])));
}

#[test]
fn a_session_is_not_moved_for_balance_to_a_worker_without_its_adapters() {
    for (holds, expected) in [(false, 0), (true, 1)] {
        let mut assignments = assignments(2, 4);
        assignments.serve(0, assignment(0, 1));
        let sessions: [TestSession; 3] = join_sessions(&mut assignments);
        assignments.serve(1, assignment(1, 1));
        let toon = || [String::from("toon")];
        assignments.set_adapters(0, toon().into());
        if holds {
            assignments.set_adapters(1, toon().into());
        }
        assert!(!assignments.choose_adapters(&sessions[0].id, toon().into()));
        let job = sessions[0].run(&mut assignments, 1);
        sessions[1].submit(&mut assignments, 2, Instant::now(), 0);
        assignments.job_ended(&sessions[0].id, job.id);
        assert_eq!(sessions[0].at(), Ok(expected));
    }
}
