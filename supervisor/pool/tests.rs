//! Video jobs and sessions in a pool whose workers the test plays.

use fastvideo_proto::job::JobFailure;

use super::*;
use crate::pool::fixtures::{video_id, video_spec};
use crate::pool::testing::TestWorkers;

fn submit(asker: &VideoAsker) -> JobHandle {
    asker.submit(video_spec(0, video_id(0)), None, None)
}

/// How a job ended.
async fn ended(job: &mut JobHandle) -> JobEnd {
    loop {
        match job.events.recv().await {
            Some(JobEvent::Ended(end)) => return end,
            Some(_) => {}
            None => panic!("a job without an end"),
        }
    }
}

fn is_cancelled(end: &JobEnd) -> bool {
    let cancelled = JobFailure::Cancelled;
    matches!(end, JobEnd::Failed { failure, .. } if *failure == cancelled)
}

#[tokio::test(start_paused = true)]
async fn a_segment_has_the_name_of_its_video_job() {
    let mut workers = TestWorkers::new(1, 1);
    workers.serve(0);
    let id = video_id(7);
    let asker = workers.pool().video_asker(id);
    let mut segment = submit(&asker);
    let job = workers.next_job(0).await;
    assert_eq!(job.spec().session, id.as_session());
    assert_eq!(job.spec().job, segment.id);
    job.finish();
    assert!(matches!(ended(&mut segment).await, JobEnd::Finished { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_segment_is_cancelled_at_once_although_no_worker_is_left() {
    let workers = TestWorkers::new(2, 1);
    workers.lose_for_good(0);
    workers.lose_for_good(1);
    let asker = workers.pool().video_asker(video_id(1));
    let mut segment = submit(&asker);
    assert!(segment.events.try_recv().is_err(), "it waits");
    segment.cancel();
    match segment.events.try_recv() {
        Ok(JobEvent::Ended(end)) => assert!(is_cancelled(&end)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_segment_whose_handle_is_dropped_does_not_run() {
    let mut workers = TestWorkers::new(1, 1);
    let asker = workers.pool().video_asker(video_id(1));
    drop(submit(&asker));
    let second = submit(&asker);
    workers.serve(0);
    let job = workers.next_job(0).await;
    assert_eq!(job.spec().job, second.id);
    drop(second);
    assert!(job.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_loses_its_worker_goes_to_another_one() {
    let mut workers = TestWorkers::new(2, 1);
    workers.serve(0);
    workers.serve(1);
    let asker = workers.pool().video_asker(video_id(1));
    for slot in [0, 1] {
        let mut segment = submit(&asker);
        workers.next_job(slot).await.lose_worker();
        let end = ended(&mut segment).await;
        assert!(matches!(end, JobEnd::WorkerLost { started: true, .. }));
    }
    // None serves: the segment waits for the first that does again.
    let mut segment = submit(&asker);
    workers.serve(0);
    workers.next_job(0).await.finish();
    assert!(matches!(ended(&mut segment).await, JobEnd::Finished { .. }));
}

#[tokio::test(start_paused = true)]
async fn the_status_counts_sessions_only() {
    let mut workers = TestWorkers::new(2, 2);
    workers.serve(0);
    workers.serve(1);
    let pool = workers.pool().clone();
    let before = pool.status().room;
    let askers = [1, 2, 3].map(|n| pool.video_asker(video_id(n)));
    let _segments = askers.each_ref().map(submit);
    let _jobs = [workers.next_job(0).await, workers.next_job(1).await];
    let status = pool.status();
    assert_eq!((status.room, status.queue_depth), (before, 0));
    for worker in &status.workers {
        assert_eq!((worker.sessions, worker.available), (0, true));
    }
}

#[tokio::test(start_paused = true)]
async fn workers_are_reserved_and_released_while_the_server_runs() {
    let mut workers = TestWorkers::new(1, 2);
    workers.serve(0);
    let pool = workers.pool().clone();
    let _asker = pool.video_asker(video_id(1));
    let config = (*pool.shared.config.get()).clone();
    for (reserved_gpus, available) in [(1, false), (0, true)] {
        pool.reconfigure(Config {
            reserved_gpus,
            ..config.clone()
        });
        assert_eq!(pool.status().workers[0].available, available);
    }
}

#[tokio::test(start_paused = true)]
async fn a_viewer_with_little_video_left_keeps_a_segment_away() {
    let mut workers = TestWorkers::new(1, 1);
    workers.serve(0);
    let pool = workers.pool();
    let binding = pool.join(SessionId::random(), Tenant::default());
    let asker = pool.video_asker(video_id(1));
    let second = Duration::from_secs(1);
    workers.record_video_time(0, 5 * second);
    let begun = Instant::now();
    binding.viewer_lasts_until(Some(begun + 3 * second));
    let _segment = submit(&asker);
    let _job = workers.next_job(0).await;
    // It has run out of video, and asks for no more.
    assert_eq!(begun.elapsed(), 3 * second);
}
