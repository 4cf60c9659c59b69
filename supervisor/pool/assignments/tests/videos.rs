//! Video jobs among sessions.

use fastvideo_proto::ids::VideoId;
use fastvideo_proto::job::VideoFormat;

use super::*;
use crate::pool::fixtures::{FORMAT, video_id, video_spec};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A video job that has joined.
struct TestVideo {
    id: VideoId,
    name: SessionId,
}

impl TestVideo {
    /// The `n`th one.
    fn join(assignments: &mut Assignments, n: u128) -> Self {
        let id = video_id(n);
        let name = id.as_session();
        assignments.add_video(name.clone());
        Self { id, name }
    }

    fn submit(&self, assignments: &mut Assignments, job: u64) -> JobHandle {
        let (handle, job) = pair(video_spec(job, self.id), None, None, None);
        assignments.submit_video_job(job);
        handle
    }

    /// Submits a segment that this worker begins.
    fn run(&self, assignments: &mut Assignments, job: u64, slot: usize) -> JobHandle {
        let handle = self.submit(assignments, job);
        assert_eq!(next(assignments, slot), Some(job));
        handle
    }
}

/// The job that a worker begins now.
fn next(assignments: &mut Assignments, slot: usize) -> Option<u64> {
    let job = assignments.next_job(slot, Instant::now())?;
    Some(job.spec.job.0)
}

/// Workers that serve, of which so many are reserved for video jobs.
fn reserving(workers: u32, max_sessions: usize, reserved_gpus: usize) -> Assignments {
    let mut assignments = serving(workers, max_sessions);
    assignments.set_sharing(Sharing {
        reserved_gpus,
        ..sharing(max_sessions)
    });
    assignments
}

#[tokio::test(start_paused = true)]
async fn segments_go_to_any_worker_those_of_older_jobs_first() {
    let mut assignments = serving(2, 1);
    let videos = [3, 1, 2].map(|n| TestVideo::join(&mut assignments, n));
    let _handles: Vec<_> = (videos.iter().zip(1..))
        .map(|(video, job)| video.submit(&mut assignments, job))
        .collect();
    assert_eq!(next(&mut assignments, 1), Some(2));
    assert_eq!(next(&mut assignments, 0), Some(3));
    assert_eq!(next(&mut assignments, 0), Some(1));
    assert_eq!(next(&mut assignments, 0), None);
}

#[tokio::test(start_paused = true)]
async fn a_worker_begins_a_segment_of_a_video_job_only_when_no_live_one_waits() {
    let mut assignments = serving(1, 2);
    let [one, two] = join_sessions(&mut assignments);
    tokio::time::advance(ms(100)).await;
    let video = TestVideo::join(&mut assignments, 1);
    let _segment = video.submit(&mut assignments, 1);
    let now = Instant::now();
    let _live = [
        one.submit(&mut assignments, 2, now, 9000),
        two.submit(&mut assignments, 3, now, 1000),
    ];
    let order = std::iter::from_fn(|| next(&mut assignments, 0));
    assert_eq!(Vec::from_iter(order), [3, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_serve_begins_no_segment() {
    let mut assignments = serving(1, 1);
    let video = TestVideo::join(&mut assignments, 1);
    let _segment = video.submit(&mut assignments, 1);
    assignments.drain(0);
    assert_eq!(next(&mut assignments, 0), None);
    assignments.vacate(0, Absence::Lost);
    assert!(assignments.all_lost());
    assert_eq!(next(&mut assignments, 0), None);
    // It has waited all the time.
    assignments.mark_starting(0);
    assignments.serve(0, assignment(0, 2));
    assert_eq!(next(&mut assignments, 0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn only_sessions_count_for_room_queue_and_demand() {
    let mut assignments = serving(2, 2);
    let before = (assignments.room(), assignments.capacity());
    let demand = assignments.demand();
    let videos = [1, 2, 3].map(|n| TestVideo::join(&mut assignments, n));
    let _running = videos[0].run(&mut assignments, 1, 0);
    let _waiting = [
        videos[1].submit(&mut assignments, 2),
        videos[2].submit(&mut assignments, 3),
    ];
    assert_eq!((assignments.room(), assignments.capacity()), before);
    assert_eq!(
        (assignments.queue_depth(), assignments.sessions_on(0)),
        (0, 0)
    );
    assert_eq!(*demand.borrow(), None);
    assert!(assignments.has_place_for(&SessionId::random()));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_bound_where_a_segment_of_a_video_job_runs_if_no_other_worker_is_free() {
    let mut assignments = serving(2, 1);
    let video = TestVideo::join(&mut assignments, 1);
    let _segment = video.run(&mut assignments, 1, 0);
    let [one, two] = join_sessions(&mut assignments);
    assert_eq!((one.at(), two.at()), (Ok(1), Ok(0)));
    assert!(!assignments.live_job_preempts(0));
    let mut live = two.submit(&mut assignments, 2, Instant::now(), 0);
    assert!(assignments.live_job_preempts(0) && !assignments.live_job_preempts(1));
    live.cancel();
    assert!(!assignments.live_job_preempts(0));
    assert!(live.events.try_recv().is_err());
}

/// Whether a worker begins a segment now that takes this long by its pace, beside sessions whose viewers run out of video so
/// many milliseconds from now; or else after how many milliseconds it does.
#[track_caller]
fn check_deadlines(pace_ms: Option<u64>, last_ms: &[Option<i64>], held_off_ms: Option<u64>) {
    let mut assignments = serving(1, 4);
    let video = TestVideo::join(&mut assignments, 1);
    const START_MS: i64 = 10_000;
    let start = Instant::now();
    let now = start + ms(START_MS.unsigned_abs());
    for last in last_ms {
        let [session] = join_sessions(&mut assignments);
        let at = last.map(|last| start + Duration::from_millis((START_MS + last).unsigned_abs()));
        assignments.set_viewer_lasts_until(&session.id, at);
    }
    if let Some(pace) = pace_ms {
        assignments.record_video_time(0, &video_spec(0, video.id), ms(pace));
    }
    let _segment = video.submit(&mut assignments, 1);
    let held_off = assignments.videos_held_off_until(0, now);
    assert_eq!(held_off, held_off_ms.map(|held_off| now + ms(held_off)));
    let begun = assignments.next_job(0, now);
    assert_eq!(begun.is_some(), held_off_ms.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_segment_is_begun_only_if_it_is_done_before_a_viewer_runs_out_of_video() {
    check_deadlines(Some(400), &[], None);
    check_deadlines(Some(400), &[Some(400)], None);
    check_deadlines(Some(400), &[Some(399)], Some(399));
    check_deadlines(Some(400), &[Some(1)], Some(1));
    check_deadlines(Some(400), &[Some(100), Some(300), Some(500)], Some(300));
    // How long the segment takes is not known.
    check_deadlines(None, &[Some(1)], None);
    // Who has run out of video does not ask for more, and whose end is not known does not count.
    check_deadlines(Some(400), &[Some(0), Some(-100), None], None);
    check_deadlines(Some(400), &[Some(-100), Some(200)], Some(200));
}

#[tokio::test(start_paused = true)]
async fn viewers_that_are_served_or_gone_do_not_keep_segments_away() {
    let mut assignments = serving(1, 3);
    let [served, gone] = join_sessions(&mut assignments);
    tokio::time::advance(ms(100)).await;
    let now = Instant::now();
    let video = TestVideo::join(&mut assignments, 1);
    assignments.record_video_time(0, &video_spec(0, video.id), ms(400));
    let _segment = video.submit(&mut assignments, 1);
    for session in [&served, &gone] {
        assignments.set_viewer_lasts_until(&session.id, Some(now + ms(200)));
    }
    assert_eq!(next(&mut assignments, 0), None);
    assignments.hold(&gone.id);
    assert_eq!(next(&mut assignments, 0), None);
    // Its segment is generated, and the engine is free.
    let _live = served.run(&mut assignments, 2);
    assert_eq!(next(&mut assignments, 0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_younger_job_whose_segment_takes_less_time_may_go_first() {
    let mut assignments = serving(1, 1);
    let [session] = join_sessions(&mut assignments);
    tokio::time::advance(ms(100)).await;
    let [long, short] = [1, 2].map(|n| TestVideo::join(&mut assignments, n));
    let spec = JobSpec {
        num_inference_steps: 50,
        ..video_spec(1, long.id)
    };
    assignments.record_video_time(0, &spec, ms(5000));
    assignments.record_video_time(0, &video_spec(2, short.id), ms(400));
    let until = Instant::now() + ms(1000);
    assignments.set_viewer_lasts_until(&session.id, Some(until));
    let (_long, job) = pair(spec, None, None, None);
    assignments.submit_video_job(job);
    let _short = short.submit(&mut assignments, 2);
    assert_eq!(next(&mut assignments, 0), Some(2));
    assert_eq!(next(&mut assignments, 0), None);
    tokio::time::advance(ms(1000)).await;
    assert_eq!(next(&mut assignments, 0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn after_a_preemption_the_worker_is_left_to_its_viewers_for_a_while() {
    let mut assignments = serving(2, 1);
    let video = TestVideo::join(&mut assignments, 1);
    let _segment = video.submit(&mut assignments, 1);
    assignments.yield_to_viewers(0);
    let now = Instant::now();
    assert_eq!(next(&mut assignments, 0), None);
    assert_eq!(
        assignments.videos_held_off_until(0, now),
        Some(now + ms(200))
    );
    tokio::time::advance(ms(199)).await;
    assert_eq!(next(&mut assignments, 0), None);
    tokio::time::advance(ms(1)).await;
    assert_eq!(next(&mut assignments, 0), Some(1));

    // It counts for this worker only, and its length may change.
    assignments.set_sharing(Sharing {
        yield_pause: ms(1000),
        ..sharing(1)
    });
    assignments.yield_to_viewers(0);
    assignments.job_ended(&video.name, JobId(1));
    let _segment = video.submit(&mut assignments, 2);
    tokio::time::advance(ms(999)).await;
    assert_eq!(next(&mut assignments, 0), None);
    assert_eq!(next(&mut assignments, 1), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_just_bound_or_served_may_ask_before_a_segment_is_begun() {
    let mut assignments = serving(1, 1);
    let [session] = join_sessions(&mut assignments);
    let video = TestVideo::join(&mut assignments, 1);
    let _segment = video.submit(&mut assignments, 1);
    assert_eq!(next(&mut assignments, 0), None);
    let _live = session.run(&mut assignments, 2);
    tokio::time::advance(ms(400)).await;
    assignments.job_ended(&session.id, JobId(2));
    tokio::time::advance(ms(49)).await;
    assert_eq!(next(&mut assignments, 0), None);
    tokio::time::advance(ms(1)).await;
    assert_eq!(next(&mut assignments, 0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn on_a_reserved_worker_video_jobs_come_first_and_are_not_preempted() {
    let mut assignments = reserving(1, 1, 1);
    let [session] = join_sessions(&mut assignments);
    assert_eq!(session.at(), Ok(0), "no job is there");
    let video = TestVideo::join(&mut assignments, 1);
    assert_eq!(session.at(), Ok(0), "it stays");
    assignments.record_video_time(0, &video_spec(0, video.id), ms(400));
    assignments.set_viewer_lasts_until(&session.id, Some(Instant::now() + ms(10)));
    let _live = session.submit(&mut assignments, 1, Instant::now(), 0);
    let _segment = video.submit(&mut assignments, 2);
    assert_eq!(next(&mut assignments, 0), Some(2));
    assert!(!assignments.live_job_preempts(0));
    assignments.job_ended(&video.name, JobId(2));
    // Between two segments of the job.
    assert_eq!(next(&mut assignments, 0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_reserved_worker_takes_no_session_while_there_are_video_jobs() {
    let mut assignments = reserving(2, 2, 1);
    let [one, two] = join_sessions(&mut assignments);
    assert_eq!(
        (one.at(), two.at()),
        (Ok(0), Ok(0)),
        "the other one is the last resort"
    );
    let video = TestVideo::join(&mut assignments, 1);
    let _segment = video.run(&mut assignments, 1, 1);
    let [three] = join_sessions(&mut assignments);
    assert_eq!(three.at(), Err(0));
    assert!(!assignments.has_room(1));
    assert_eq!(assignments.room(), Room { places: 2, free: 0 });
    let refused = assignments.move_session(&one.id, Some(GpuId(1)));
    assert_eq!(refused, Err(MoveError::NoRoom(GpuId(1))));
    // The job goes on to its next segment.
    assignments.job_ended(&video.name, JobId(1));
    assert_eq!(three.at(), Err(0));
    assignments.remove_video(&video.name);
    assert_eq!(three.at(), Ok(1));
    assert_eq!(assignments.room(), Room { places: 4, free: 1 });

    // No more than before are bound there while the next job is there.
    let _video = TestVideo::join(&mut assignments, 2);
    assert_eq!(three.at(), Ok(1));
    assert!(!assignments.has_room(1));
    assignments.set_sharing(sharing(2));
    assert!(assignments.has_room(1));
}

#[tokio::test(start_paused = true)]
async fn a_video_job_that_goes_takes_its_segment_with_it() {
    let mut assignments = serving(1, 1);
    let video = TestVideo::join(&mut assignments, 1);
    let mut waiting = video.submit(&mut assignments, 1);
    assignments.remove_video(&video.name);
    assert!(is_taken_back(&mut waiting));
    assert_eq!(next(&mut assignments, 0), None);
    assert_eq!(assignments.take_sessions_to_forget(0), []);

    let video = TestVideo::join(&mut assignments, 2);
    let _running = video.submit(&mut assignments, 2);
    let job = assignments.next_job(0, Instant::now()).unwrap();
    assignments.remove_video(&video.name);
    assert!(job.signals.cancelled());
    assert_eq!(
        assignments.take_sessions_to_forget(0),
        std::slice::from_ref(&video.name)
    );
    assignments.job_ended(&video.name, JobId(2));
    assert!(!assignments.videos.run_on(0));
}

#[tokio::test(start_paused = true)]
async fn a_worker_forgets_a_video_job_that_goes_on_elsewhere_unless_it_is_back() {
    let mut assignments = serving(2, 1);
    let video = TestVideo::join(&mut assignments, 1);
    let run = |assignments: &mut Assignments, job, slot| {
        let _segment = video.run(assignments, job, slot);
        assignments.job_ended(&video.name, JobId(job));
    };
    run(&mut assignments, 1, 0);
    run(&mut assignments, 2, 0);
    assert_eq!(assignments.take_sessions_to_forget(0), []);
    run(&mut assignments, 3, 1);
    assert_eq!(
        assignments.take_sessions_to_forget(0),
        std::slice::from_ref(&video.name)
    );
    run(&mut assignments, 4, 0);
    run(&mut assignments, 5, 1);
    assert_eq!(assignments.take_sessions_to_forget(1), []);
    // The process that has it is gone.
    assignments.renew(1, assignment(1, 2));
    run(&mut assignments, 6, 0);
    assert_eq!(assignments.take_sessions_to_forget(1), []);
}

#[tokio::test(start_paused = true)]
async fn one_segment_of_a_video_job_runs_at_a_time() {
    let mut assignments = serving(2, 1);
    let video = TestVideo::join(&mut assignments, 1);
    // Its handle is dropped, and it does not stop at once.
    drop(video.run(&mut assignments, 1, 0));
    let mut second = video.submit(&mut assignments, 2);
    assert_eq!(next(&mut assignments, 1), None);
    // Another one in its place.
    let _third = video.submit(&mut assignments, 3);
    assert!(is_taken_back(&mut second));
    assignments.job_ended(&video.name, JobId(1));
    assert_eq!(next(&mut assignments, 1), Some(3));

    let _fourth = video.submit(&mut assignments, 4);
    assert_eq!(next(&mut assignments, 0), None);
    assignments.vacate(1, Absence::Starting);
    assert_eq!(next(&mut assignments, 0), Some(4));
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_ends_several_workers_is_to_blame_for_it() {
    let mut assignments = serving(3, 1);
    let video = TestVideo::join(&mut assignments, 1);
    let job = |attempt| JobSpec {
        attempt,
        ..video_spec(1, video.id)
    };
    let mut check = |slot, attempt, blame, forgiven: [u32; 3]| {
        assert_eq!(assignments.blame(slot, &job(attempt)), blame);
        let taken = [0, 1, 2].map(|slot| assignments.take_exits_to_forgive(slot));
        assert_eq!(taken, forgiven);
    };
    check(0, 1, Blame::WorkerOrJob, [0, 0, 0]);
    check(0, 2, Blame::Job, [0, 0, 0]);
    check(1, 3, Blame::Job, [1, 0, 0]);
    assignments.remove_video(&video.name);
    assert_eq!(assignments.blame(2, &job(4)), Blame::WorkerOrJob);
}

#[tokio::test(start_paused = true)]
async fn the_pace_of_few_kinds_of_segments_is_kept_and_of_each_its_own() {
    let mut assignments = serving(1, 1);
    let of_width = |width| JobSpec {
        format: VideoFormat { width, ..FORMAT },
        ..video_spec(1, video_id(1))
    };
    for width in 0..9 {
        for took in [900, u64::from(width), u64::from(width)] {
            assignments.record_video_time(0, &of_width(width), ms(took));
        }
    }
    let pace = |width| assignments.video_pace(0, &of_width(width));
    assert_eq!(
        (pace(0), pace(1), pace(8)),
        (None, Some(ms(1)), Some(ms(8)))
    );
    assert_eq!(assignments.pace(0), None);
    let more_steps = JobSpec {
        num_inference_steps: 50,
        ..of_width(8)
    };
    assert_eq!(assignments.video_pace(0, &more_steps), None);

    // Whatever a worker reports.
    let [session] = join_sessions(&mut assignments);
    tokio::time::advance(ms(100)).await;
    let now = Instant::now();
    assignments.set_viewer_lasts_until(&session.id, Some(now + ms(1)));
    assignments.record_video_time(0, &more_steps, Duration::MAX);
    let _video = TestVideo::join(&mut assignments, 1);
    let (_segment, job) = pair(more_steps, None, None, None);
    assignments.submit_video_job(job);
    assert_eq!(next(&mut assignments, 0), Some(1));
}
