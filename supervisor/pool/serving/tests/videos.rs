//! Segments of video jobs on a process that serves sessions, too.

use std::cell::Cell;

use fastvideo_proto::ids::VideoId;

use super::*;
use crate::pool::fixtures::{FORMAT, video_id, video_spec};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A video job.
struct TestVideo {
    id: VideoId,
}

impl Outside {
    fn join_video(&self, n: u128) -> TestVideo {
        let id = video_id(n);
        self.assignments.lock().add_video(id.as_session());
        TestVideo { id }
    }

    fn submit_video(&self, video: &TestVideo) -> JobHandle {
        self.submit_video_after(video, None)
    }

    fn submit_video_after(&self, video: &TestVideo, snapshot: Option<StepSnapshot>) -> JobHandle {
        let id = self.next_job.fetch_add(1, Ordering::Relaxed);
        let spec = video_spec(id.into(), video.id);
        let (mut handle, job) = pair(spec, None, snapshot, None);
        handle.wait_in(self.assignments.clone());
        self.assignments.lock().submit_video_job(job);
        handle
    }

    /// A session that has been there for a while.
    async fn joined(&self) -> TestSession {
        let session = self.join();
        sleep(ms(60)).await;
        session
    }

    async fn fail(&self, job: JobId, failure: JobFailure) {
        let message = String::new();
        self.send(Event::Failed {
            job,
            failure,
            message,
            phases: Vec::new(),
        })
        .await;
    }

    fn set_pace(&self, video: &TestVideo, pace: Duration) {
        let spec = video_spec(0, video.id);
        self.assignments.lock().record_video_time(0, &spec, pace);
    }

    fn set_viewer_lasts_until(&self, session: &TestSession, until: Option<Instant>) {
        let mut assignments = self.assignments.lock();
        assignments.set_viewer_lasts_until(&session.id, until);
    }

    async fn check_cancel(&self, job: &JobHandle) {
        assert_eq!(self.command().await, Command::Cancel { job: job.id });
        self.no_command().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_viewers_segment_stops_one_of_a_video_job_which_goes_on_after_a_pause() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let (session, video) = (outside.joined().await, outside.join_video(1));
        let mut segment = outside.submit_video(&video);
        outside.generate(&segment).await;
        outside.step(&segment).await;
        outside.snapshot(&segment, 1).await;
        outside.no_command().await;
        let mut live = outside.submit(&session);
        outside.check_cancel(&segment).await;
        // It stops at its next step.
        outside.fail(segment.id, JobFailure::Cancelled).await;
        assert!(matches!(ended(&mut segment).await, JobEnd::Preempted));
        outside.generate(&live).await;
        outside.finish(&live).await;
        ended(&mut live).await;

        let snapshot = segment.take_snapshot();
        assert_eq!(
            snapshot.as_ref().map(|snapshot| snapshot.at().step),
            Some(1)
        );
        let again = outside.submit_video_after(&video, snapshot);
        sleep(ms(199)).await;
        outside.no_command().await;
        sleep(ms(2)).await;
        assert_eq!(sent_after(outside, &again).await, (Some(1), 1));
    })
    .await;
    assert!(end.is_none());
}

/// When a segment with steps of 300 ms, of a kind that takes a second, is told to stop if a viewer's comes after so many
/// milliseconds.
async fn check_stop(comes_ms: u64, stops_ms: u64) {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let (session, video) = (outside.joined().await, outside.join_video(1));
        outside.set_pace(&video, seconds(1));
        let segment = outside.submit_video(&video);
        outside.generate(&segment).await;
        let begun = Instant::now();
        let mut step_at = begun + ms(300);
        while step_at < begun + ms(comes_ms) {
            tokio::time::sleep_until(step_at).await;
            outside.step(&segment).await;
            step_at += ms(300);
        }
        tokio::time::sleep_until(begun + ms(comes_ms)).await;
        let _live = outside.submit(&session);
        if comes_ms < stops_ms {
            tokio::time::sleep_until(begun + ms(stops_ms - 1)).await;
            outside.no_command().await;
            sleep(ms(2)).await;
        }
        outside.check_cancel(&segment).await;
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_segment_of_which_less_than_a_step_is_left_may_end() {
    // No step has ended.
    check_stop(200, 200).await;
    check_stop(650, 650).await;
    check_stop(700, 700).await;
    check_stop(701, 1000).await;
    check_stop(950, 1000).await;
    // It is late.
    check_stop(1050, 1050).await;
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_is_done_although_it_was_told_to_stop_is_finished() {
    let (end, scene) = serve(fixtures::config(), async |outside| {
        let (session, video) = (outside.joined().await, outside.join_video(1));
        let mut segment = outside.submit_video(&video);
        outside.generate(&segment).await;
        let live = outside.submit(&session);
        outside.check_cancel(&segment).await;
        outside.finish(&segment).await;
        assert!(matches!(ended(&mut segment).await, JobEnd::Finished { .. }));
        outside.generate(&live).await;
        outside.finish(&live).await;
        // There was no pre-emption, and so there is no pause.
        let next = outside.submit_video(&video);
        outside.no_command().await;
        sleep(ms(51)).await;
        outside.generate(&next).await;
    })
    .await;
    assert!(end.is_none());
    assert_eq!(scene.outside.status.borrow().jobs_finished, 2);
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_is_cancelled_or_fails_while_it_makes_way_is_not_preempted() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let (session, video) = (outside.joined().await, outside.join_video(1));
        for failure in [JobFailure::Cancelled, JobFailure::OutOfMemory] {
            let mut segment = outside.submit_video(&video);
            outside.generate(&segment).await;
            let live = outside.submit(&session);
            outside.check_cancel(&segment).await;
            if failure == JobFailure::Cancelled {
                segment.cancel();
                outside.no_command().await;
            }
            outside.fail(segment.id, failure).await;
            match ended(&mut segment).await {
                JobEnd::Failed { failure: told, .. } => assert_eq!(told, failure),
                other => panic!("{other:?}"),
            }
            outside.generate(&live).await;
            outside.finish(&live).await;
            sleep(ms(51)).await;
        }
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_is_sent_again_makes_way_again() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let (session, video) = (outside.joined().await, outside.join_video(1));
        let snapshot = step_snapshot(7, &Default::default());
        let segment = outside.submit_video_after(&video, Some(snapshot));
        assert_eq!(sent_after(outside, &segment).await, (Some(7), 1));
        let _live = outside.submit(&session);
        outside.check_cancel(&segment).await;
        outside.fail(segment.id, JobFailure::SnapshotRefused).await;
        assert_eq!(sent_after(outside, &segment).await, (None, 0));
        outside.check_cancel(&segment).await;
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_segment_ends_at_once_where_it_waits_and_else_at_its_next_step() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let (one, two) = (outside.join_video(1), outside.join_video(2));
        let mut running = outside.submit_video(&one);
        outside.generate(&running).await;
        let mut waiting = outside.submit_video(&two);
        for job in [&waiting, &running] {
            job.cancel();
            job.cancel();
        }
        let cancelled = |end: JobEnd| {
            matches!(
                end,
                JobEnd::Failed {
                    failure: JobFailure::Cancelled,
                    ..
                }
            )
        };
        match waiting.events.try_recv() {
            Ok(JobEvent::Ended(end)) => assert!(cancelled(end)),
            other => panic!("{other:?}"),
        }
        outside.check_cancel(&running).await;
        outside.fail(running.id, JobFailure::Cancelled).await;
        assert!(cancelled(ended(&mut running).await));
        // The next one begins at once.
        let next = outside.submit_video(&two);
        outside.generate(&next).await;
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_worker_forgets_a_video_job_that_goes_and_stops_its_segment() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let video = outside.join_video(1);
        let segment = outside.submit_video(&video);
        outside.generate(&segment).await;
        let name = video.id.as_session();
        outside.assignments.lock().remove_video(&name);
        assert_eq!(outside.command().await, Command::Forget { session: name });
        outside.check_cancel(&segment).await;
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_segment_begins_as_soon_as_no_viewer_would_wait_for_it() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let (session, video) = (outside.joined().await, outside.join_video(1));
        outside.set_pace(&video, ms(400));
        let run = async |let_begin: &dyn Fn() -> Duration| {
            outside.set_viewer_lasts_until(&session, Some(Instant::now() + ms(300)));
            let segment = outside.submit_video(&video);
            outside.no_command().await;
            sleep(let_begin()).await;
            outside.generate(&segment).await;
            outside.fail(segment.id, JobFailure::Cancelled).await;
            outside.no_command().await;
        };
        // By the passing of time.
        run(&|| ms(301)).await;
        // The viewer has paused, has more video, or is gone.
        let at_once = Duration::ZERO;
        run(&|| {
            outside.set_viewer_lasts_until(&session, None);
            at_once
        })
        .await;
        run(&|| {
            outside.set_viewer_lasts_until(&session, Some(Instant::now() + ms(400)));
            at_once
        })
        .await;
        outside.set_viewer_lasts_until(&session, Some(Instant::now() + ms(300)));
        let segment = outside.submit_video(&video);
        outside.no_command().await;
        outside.assignments.lock().leave(&session.id);
        assert!(matches!(outside.command().await, Command::Forget { .. }));
        outside.generate(&segment).await;
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn only_sessions_segments_tell_how_many_sessions_a_worker_serves() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let video = outside.join_video(1);
        let pace = |outside: &Outside| {
            let assignments = outside.assignments.lock();
            let of_videos = assignments.video_pace(0, &video_spec(0, video.id));
            (assignments.pace(0), of_videos)
        };
        // One that goes on from a snapshot takes less than a whole one.
        let snapshot = step_snapshot(7, &Default::default());
        let rest = outside.submit_video_after(&video, Some(snapshot));
        assert_eq!(sent_after(outside, &rest).await, (Some(7), 1));
        outside.finish(&rest).await;
        let whole = outside.submit_video(&video);
        outside.generate(&whole).await;
        assert_eq!(pace(outside), (None, None));
        outside.finish(&whole).await;
        // A session that came before the end is seen would stop the segment.
        outside.no_command().await;
        let session = outside.join();
        let live = outside.submit(&session);
        outside.generate(&live).await;
        assert_eq!(pace(outside), (None, Some(seconds(1))));
        outside.finish(&live).await;
        outside.no_command().await;
        assert_eq!(pace(outside), (Some(seconds(1)), Some(seconds(1))));
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn on_a_reserved_worker_a_video_job_is_not_interrupted() {
    let config = Config {
        reserved_gpus: 1,
        ..fixtures::config()
    };
    let (end, _) = serve(config, async |outside| {
        let session = outside.join();
        let video = outside.join_video(1);
        let segment = outside.submit_video(&video);
        outside.generate(&segment).await;
        let live = outside.submit(&session);
        outside.no_command().await;
        outside.finish(&segment).await;
        outside.generate(&live).await;
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn no_segment_begins_while_an_adapter_is_loaded() {
    let ordered = Arc::<OrderedAdapters>::default();
    let serial = (ordered.add(adapter("toon"), "{}".to_owned()))
        .unwrap()
        .serial;
    let (end, _) = serve_with(fixtures::config(), ordered, async |outside| {
        assert!(matches!(outside.command().await, Command::LoadAdapter(_)));
        let video = outside.join_video(1);
        let segment = outside.submit_video(&video);
        outside.no_command().await;
        let message = "it does not fit".to_owned();
        outside.send(Event::AdapterFailed { serial, message }).await;
        outside.generate(&segment).await;
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_between_two_segments_of_a_video_job() {
    let (end, _) = serve(recycling(true), async |outside| {
        let video = outside.join_video(1);
        let first = outside.submit_video(&video);
        outside.generate(&first).await;
        outside.finish(&first).await;
        let second = outside.submit_video(&video);
        outside.generate(&second).await;
        sleep(STANDBY_BOOT + seconds(1)).await;
        let _waits = outside.submit_video(&outside.join_video(2));
        outside.finish(&second).await;
        pending().await
    })
    .await;
    assert!(matches!(end, Some(ServeEnd::Replaced(_))));
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_hangs_makes_its_process_stuck_and_is_lost_with_it() {
    let mut lost = None;
    let (end, scene) = serve(fixtures::config(), async |outside| {
        let video = outside.join_video(1);
        let segment = outside.submit_video(&video);
        outside.generate(&segment).await;
        lost = Some(segment);
        loop {
            sleep(seconds(1)).await;
            outside.heartbeat().await;
        }
    })
    .await;
    check_failed(end, ExitKind::Stuck, "no denoise step or frame for 30s");
    let end = ended(&mut lost.unwrap()).await;
    assert!(matches!(end, JobEnd::WorkerLost { started: true, .. }));
    // Nothing is left of it: it may be submitted again.
    let mut assignments = scene.outside.assignments.lock();
    assignments.serve(0, assignment(0, 2));
    let (_again, job) = pair(video_spec(9, video_id(1)), None, None, None);
    assignments.submit_video_job(job);
    assert!(assignments.next_job(0, Instant::now()).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_drained_ends_its_segment_or_gives_it_back_at_the_deadline() {
    for is_done in [true, false] {
        let mut segments = Vec::new();
        let begun = Instant::now();
        let (end, _) = serve(fixtures::config(), async |outside| {
            let video = outside.join_video(1);
            let segment = outside.submit_video(&video);
            outside.generate(&segment).await;
            outside.directive.send_replace(Directive {
                drained: true,
                cut_at: Some(Instant::now() + seconds(3)),
            });
            // It waits for another worker.
            let waiting = outside.submit_video(&outside.join_video(2));
            sleep(seconds(1)).await;
            outside.no_command().await;
            if is_done {
                outside.finish(&segment).await;
            }
            segments = vec![segment, waiting];
            pending().await
        })
        .await;
        assert!(matches!(end, Some(ServeEnd::Leave)));
        assert_eq!(begun.elapsed(), seconds(if is_done { 1 } else { 3 }));
        match ended(&mut segments[0]).await {
            JobEnd::Finished { .. } => assert!(is_done),
            JobEnd::TakenBack { started: true } => assert!(!is_done),
            other => panic!("{other:?}"),
        }
        assert!(segments[1].events.try_recv().is_err());
    }
}

#[test]
fn a_report_has_the_frames_and_no_more_pictures_than_were_asked_for() {
    #[track_caller]
    fn check(part: Option<VideoPart>, frames: u32, video: Option<VideoPictures>, fits: bool) {
        let spec = JobSpec {
            video: part.map(Box::new),
            ..fixtures::job_spec(1, SessionId::random())
        };
        let report = JobReport {
            frames,
            video: video.map(Box::new),
            ..report(JobId(1))
        };
        assert_eq!(check_report(&report, &spec).is_ok(), fits);
    }
    let part = || VideoPart {
        width: 64,
        height: 64,
        frames: 9,
        tiles: vec![2, 5],
        thumbnail: Some(4),
        sheet_after: Some(Bytes::new()),
    };
    let jpeg = |bytes: usize| Some(Bytes::from(vec![0; bytes]));
    let tiles = |count: usize| Bytes::from(vec![0; count * 160 * 160 * 3]);
    let pictures = |tiles: Bytes, thumbnail, sheet| {
        Some(VideoPictures {
            tiles,
            thumbnail,
            sheet,
        })
    };
    let most = MAX_PICTURE_BYTES;
    let full = || pictures(tiles(2), jpeg(most), jpeg(most));
    check(Some(part()), 9, full(), true);
    check(Some(part()), 9, pictures(tiles(1), None, None), true);
    check(Some(part()), 9, None, true);
    for frames in [0, 8, 10, FORMAT.num_frames] {
        check(Some(part()), frames, full(), false);
    }
    check(Some(part()), 9, pictures(tiles(3), None, None), false);
    let cut = tiles(1).slice(1..);
    check(Some(part()), 9, pictures(cut, None, None), false);
    let larger = || jpeg(most + 1);
    check(Some(part()), 9, pictures(tiles(2), larger(), None), false);
    check(Some(part()), 9, pictures(tiles(2), None, larger()), false);
    let unasked = || VideoPart {
        thumbnail: None,
        sheet_after: None,
        ..part()
    };
    check(Some(unasked()), 9, pictures(tiles(2), None, None), true);
    check(Some(unasked()), 9, pictures(tiles(2), jpeg(1), None), false);
    check(Some(unasked()), 9, pictures(tiles(2), None, jpeg(1)), false);
    // A session's segment.
    check(None, FORMAT.num_frames, None, true);
    check(
        None,
        FORMAT.num_frames,
        pictures(Bytes::new(), None, None),
        false,
    );
}

#[tokio::test(start_paused = true)]
async fn a_report_that_does_not_fit_the_video_job_is_a_bad_link() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let segment = outside.submit_video(&outside.join_video(1));
        outside.generate(&segment).await;
        let report = JobReport {
            frames: FORMAT.num_frames - 1,
            ..report(segment.id)
        };
        outside.send(Event::Finished(Box::new(report))).await;
        pending().await
    })
    .await;
    let reason = "worker reports a number of frames that does not fit the job's format";
    check_failed(end, ExitKind::BadLink, reason);
}

/// The time of a step of [`work`].
const STEP: Duration = ms(100);

/// Plays a process that takes 400 ms for each segment, in four steps, and leaves no snapshots.
async fn work(outside: &Outside) {
    loop {
        let Ok((command, _)) = outside.worker.commands.try_recv() else {
            sleep(ms(1)).await;
            continue;
        };
        outside.heartbeat().await;
        let Command::Generate(spec) = command else {
            continue;
        };
        let is_cancelled = async {
            for _ in 0..4 {
                sleep(STEP).await;
                while let Ok((command, _)) = outside.worker.commands.try_recv() {
                    if command == (Command::Cancel { job: spec.job }) {
                        return true;
                    }
                }
                let step = Event::Step {
                    job: spec.job,
                    stage: Stage::Denoise,
                    step: 1,
                    total_steps: 4,
                };
                outside.send(step).await;
            }
            false
        };
        if is_cancelled.await {
            outside.fail(spec.job, JobFailure::Cancelled).await;
        } else {
            let report = JobReport {
                generation: 4 * STEP,
                ..report(spec.job)
            };
            outside.send(Event::Finished(Box::new(report))).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn viewers_that_ask_every_one_or_two_seconds_do_not_starve_a_video_job() {
    let (done, stopped) = (Cell::new(0), Cell::new(0));
    let longest_wait = Cell::new(Duration::ZERO);
    let (end, _) = serve(fixtures::config(), async |outside| {
        let outside = &*outside;
        // It asks with these pauses from one time to the next, for segments that play for a second.
        let view = async |pauses_ms: [u64; 3]| {
            let session = outside.join();
            for pause in pauses_ms.into_iter().cycle() {
                let asked = Instant::now();
                let mut live = outside.submit(&session);
                live.events.recv().await;
                longest_wait.set(longest_wait.get().max(asked.elapsed()));
                ended(&mut live).await;
                outside.set_viewer_lasts_until(&session, Some(Instant::now() + seconds(1)));
                tokio::time::sleep_until(asked + ms(pause)).await;
            }
        };
        let make_video = async {
            let video = outside.join_video(1);
            loop {
                match ended(&mut outside.submit_video(&video)).await {
                    JobEnd::Finished { .. } => done.set(done.get() + 1),
                    JobEnd::Preempted => stopped.set(stopped.get() + 1),
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::select! {
            () = work(outside) => {}
            () = view([1000, 1700, 1300]) => {}
            () = view([2000, 1100, 1500]) => {}
            () = make_video => {}
            () = sleep(seconds(60)) => {}
        }
    })
    .await;
    assert!(end.is_none());
    // Half of the time is left, and each segment that is stopped begins with its first step again.
    assert!(
        done.get() >= 20,
        "{} done, {} stopped",
        done.get(),
        stopped.get()
    );
    assert!(stopped.get() > 0);
    // The other viewer's segment, and one step.
    assert!(
        longest_wait.get() <= 5 * STEP + ms(5),
        "{:?}",
        longest_wait.get()
    );
}
