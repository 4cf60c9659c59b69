//! A segment over its attempts, by the events of its jobs alone.

use std::convert::Infallible;

use bytes::Bytes;
use fastvideo_link::SharedMemory;
use fastvideo_proto::ids::VideoId;
use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::JobSpec;

use super::*;
use crate::pool::VideoAsker;
use crate::pool::testing::{TestWorkers, video_spec};

const MAX_ATTEMPTS: u32 = 2;

fn run() -> SegmentRun {
    SegmentRun::new(7, MAX_ATTEMPTS)
}

fn worker() -> WorkerId {
    WorkerId::new(fastvideo_proto::ids::GpuId(0), 1)
}

fn media() -> JobEvent {
    let kind = MediaKind::Fragment;
    JobEvent::Media(crate::pool::testing::media(
        kind,
        Bytes::from_static(b"abc"),
    ))
}

fn lost(started: bool) -> JobEvent {
    JobEvent::Ended(JobEnd::WorkerLost {
        worker: worker(),
        started,
        reason: "killed".to_owned(),
    })
}

fn failed(failure: JobFailure) -> JobEvent {
    let message = "why".to_owned();
    JobEvent::Ended(JobEnd::Failed {
        failure,
        message,
        phases: Vec::new(),
    })
}

/// How it goes on after a worker was lost.
#[track_caller]
fn lose(run: &mut SegmentRun, started: bool) -> AfterLoss {
    match run.observe(Some(lost(started))) {
        RunEvent::WorkerLost { then, .. } => then,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn steps_are_timed_from_the_one_before() {
    let mut run = run();
    tokio::time::advance(Duration::from_millis(30)).await;
    let started = run.observe(Some(JobEvent::Started {
        worker: worker(),
        after: None,
    }));
    assert!(
        matches!(started, RunEvent::Started { queued_for, after: None, .. } if queued_for == Duration::from_millis(30))
    );
    tokio::time::advance(Duration::from_millis(40)).await;
    let step = run.observe(Some(JobEvent::Step {
        stage: Stage::Denoise,
        step: 1,
        total_steps: 8,
    }));
    assert!(matches!(step, RunEvent::Step { took, .. } if took == Duration::from_millis(40)));
}

#[test]
fn only_an_attempt_that_was_started_counts() {
    let mut run = run();
    assert_eq!(lose(&mut run, false), AfterLoss::RunsAgain);
    assert_eq!(run.at().attempt, 1);
    assert!(!run.may_submit_to(&worker()), "it is gone");
    assert_eq!(lose(&mut run, true), AfterLoss::RunsAgain);
    assert_eq!(run.at().attempt, 2);
    let given_up = AfterLoss::GivenUp { deaths: 2 };
    assert_eq!(lose(&mut run, true), given_up);
}

#[test]
fn media_are_handed_out_once_over_all_attempts() {
    let mut run = run();
    for first in [true, false] {
        let RunEvent::Media { first: given, .. } = run.observe(Some(media())) else {
            panic!("no media");
        };
        assert_eq!(given, first);
    }
    assert_eq!(lose(&mut run, true), AfterLoss::RunsAgain);
    let repeated = run.observe(Some(media()));
    assert!(matches!(repeated, RunEvent::Repeated(_)), "{repeated:?}");
    let back = run.observe(Some(JobEvent::Ended(JobEnd::TakenBack { started: true })));
    assert!(
        matches!(back, RunEvent::TakenBack { started: true }),
        "{back:?}"
    );
    assert_eq!(run.at().attempt, 3);
    for _ in 0..2 {
        let repeated = run.observe(Some(media()));
        assert!(matches!(repeated, RunEvent::Repeated(_)), "{repeated:?}");
    }
    let new = run.observe(Some(media()));
    assert!(
        matches!(new, RunEvent::Media { first: false, .. }),
        "{new:?}"
    );
    assert_eq!(run.media.chunks, 3);
}

#[test]
fn a_worker_that_took_a_job_back_may_have_it_again() {
    let mut run = run();
    let _ = run.observe(Some(JobEvent::Ended(JobEnd::TakenBack { started: false })));
    assert_eq!(run.at().attempt, 1);
    assert!(run.may_submit_to(&worker()));
}

#[test]
fn a_cancelled_segment_is_over_however_its_attempt_ends() {
    assert!(run().cancel(), "nothing runs");
    for end in [
        failed(JobFailure::Cancelled),
        JobEvent::Ended(JobEnd::TakenBack { started: true }),
    ] {
        let mut run = run();
        let _ = run.cancel();
        let event = run.observe(Some(end));
        assert!(matches!(event, RunEvent::Cancelled), "{event:?}");
    }
    let mut run = run();
    let _ = run.cancel();
    assert_eq!(lose(&mut run, true), AfterLoss::Cancelled);
}

#[test]
fn a_finished_segment_has_the_thumbnail_of_its_worker() {
    let format = VideoFormat {
        width: 64,
        height: 64,
        num_frames: 8,
        fps: 24,
    };
    for thumbnail in [None, Some(Bytes::from_static(b"a picture"))] {
        let end = crate::pool::testing::finished(7, format, thumbnail.clone());
        let RunEvent::Finished(finished) = run().observe(Some(JobEvent::Ended(end))) else {
            panic!("not finished");
        };
        assert_eq!(finished.frames, 8);
        assert_eq!(finished.thumbnail, thumbnail);
    }
}

#[test]
fn every_failure_says_whether_trying_again_may_help() {
    for (failure, expected) in [
        (JobFailure::Refused, RunFailure::Refused("why".to_owned())),
        (
            JobFailure::StateIncompatible,
            RunFailure::StateIncompatible("why".to_owned()),
        ),
        (JobFailure::StateNotHeld, RunFailure::Failed),
        (JobFailure::SnapshotRefused, RunFailure::Failed),
        (JobFailure::Failed, RunFailure::Failed),
    ] {
        let RunEvent::Failed(given) = run().observe(Some(failed(failure))) else {
            panic!("{failure:?} is no failure");
        };
        assert_eq!(given, expected);
    }
    let bad = JobEvent::Ended(JobEnd::Finished {
        state: (vec![1, 2, 3], SharedMemory::from_bytes(&[0]).unwrap()),
        generation: Duration::ZERO,
        timing: JobTiming::default(),
        frames: 8,
        thumbnail: None,
        video: None,
    });
    let bad = run().observe(Some(bad));
    assert!(matches!(bad, RunEvent::Failed(RunFailure::BadState)));
    let dropped = run().observe(None);
    assert!(matches!(dropped, RunEvent::Failed(RunFailure::Dropped)));
}

/// Submits the next attempt of a segment of a video job.
fn submit(run: &mut SegmentRun, asker: &VideoAsker) {
    let spec = JobSpec {
        attempt: run.at().attempt,
        ..video_spec()
    };
    let Ok(()) = run.submit(|snapshot| Ok::<_, Infallible>(asker.submit(spec, None, snapshot)));
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_was_preempted_goes_on_from_its_snapshot_in_the_same_attempt() {
    let mut workers = TestWorkers::new(1, 1);
    workers.serve(0);
    let asker = workers.pool().video_asker(VideoId::after(None, 0, 1));
    let mut run = run();
    for step in 1..20 {
        submit(&mut run, &asker);
        let job = workers.next_job(0).await;
        let before = step - 1;
        assert_eq!(job.goes_on_after(), (before > 0).then_some(before));
        assert_eq!(job.spec().attempt, 1);
        job.snapshot(step);
        job.preempt();
        loop {
            let event = run.next_event().await;
            match run.observe(event) {
                RunEvent::Started { .. } => {}
                RunEvent::TakenBack { started: true } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((run.at().attempt, run.deaths()), (1, 0));
    }
    // It is no death, and a death still counts.
    submit(&mut run, &asker);
    workers.next_job(0).await.lose_worker();
    let _started = run.next_event().await;
    let lost = run.next_event().await;
    let lost = run.observe(lost);
    let again = AfterLoss::RunsAgain;
    assert!(matches!(lost, RunEvent::WorkerLost { then, .. } if then == again));
    assert_eq!((run.at().attempt, run.deaths()), (2, 1));
}

#[test]
fn a_cancelled_segment_that_is_preempted_is_over() {
    let mut run = run();
    let _ = run.cancel();
    let event = run.observe(Some(JobEvent::Ended(JobEnd::Preempted)));
    assert!(matches!(event, RunEvent::Cancelled), "{event:?}");
}
