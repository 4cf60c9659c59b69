mod video;

use std::sync::mpsc::channel;

use fastvideo_proto::ids::GpuId;
use fastvideo_proto::job::Stage;
use fastvideo_proto::link::{
    EngineSpec, Event, JobState, LINK_VERSION, LoadSpec, MAX_THUMBNAIL_BYTES,
};
use fastvideo_proto::state::{StateError, StateHeader};
use fastvideo_proto::step_snapshot::{SnapshotHeader, StepPoint};

use super::*;
use serde_json::{Value, json};

use crate::engine::synthetic;
use crate::link::SentEvents;
use crate::load::load;

const FORMAT: VideoFormat = VideoFormat {
    width: 64,
    height: 64,
    num_frames: 4,
    fps: 24,
};

fn load_spec(faults: Value) -> LoadSpec {
    let options = json!({
        "step_ms": 0, "frame_ms": 0, "load_ms": 0, "conditioning_num_frames": 2, "audio_latent_frames": 3,
        "latent_bytes": 1000, "prerender": false, "preview": false, "faults": faults,
    });
    LoadSpec {
        version: LINK_VERSION,
        gpu: GpuId(0),
        incarnation: 1,
        engine: EngineSpec {
            name: synthetic::NAME.to_owned(),
            options: options.to_string(),
        },
        format: FORMAT,
        encoder: EncoderSpec::default(),
        warmup: None,
        heartbeat_interval: Duration::from_secs(1),
    }
}

fn job(job: u64, session: &SessionId, state: Option<JobState>) -> JobSpec {
    JobSpec {
        job: JobId(job),
        session: session.clone(),
        segment_idx: u32::from(state.is_some()),
        attempt: 1,
        prompt: "a red fox".to_owned(),
        negative_prompt: None,
        seed: 1,
        num_inference_steps: 1,
        guidance_scale: 1.0,
        adapters: Vec::new(),
        format: FORMAT,
        media_mode: MediaMode::AvFmp4,
        start_frame: 0,
        initial_image: None,
        state,
        snapshot: None,
        snapshot_min_step: None,
        previews: false,
        video: None,
        window: u64::MAX,
        trace: None,
    }
}

/// A job loop and the outboxes of the jobs that it is given.
struct Harness {
    jobs: JobLoop,
    outboxes: JobOutboxes,
    sent: SentEvents,
}

impl Harness {
    fn new(faults: Value) -> Self {
        let (events, sent) = EventSender::to_nobody();
        let jobs = load(&load_spec(faults), &events, GpuMemory::default()).unwrap();
        sent.take();
        Self {
            jobs,
            outboxes: JobOutboxes::default(),
            sent,
        }
    }

    /// Runs these items and returns the jobs' events.
    fn run(&mut self, items: Vec<WorkItem>) -> Vec<Event> {
        let (sender, work) = channel();
        for item in items {
            if let WorkItem::Generate(spec, _) = &item {
                self.outbox(spec);
            }
            sender.send(item).unwrap();
        }
        drop(sender);
        let end = self.jobs.run(&work, &self.outboxes);
        assert!(matches!(end, Err(JobLoopError::NoCommands)), "{end:?}");
        self.sent.take()
    }

    fn outbox(&self, spec: &JobSpec) -> Arc<JobOutbox> {
        let events = self.jobs.events.clone();
        let mut outboxes = self.outboxes.lock().unwrap();
        let new = || JobOutbox::new(spec.job, spec.window, events);
        outboxes.entry(spec.job).or_insert_with(new).clone()
    }
}

fn generate(spec: JobSpec) -> WorkItem {
    WorkItem::Generate(Box::new(spec), JobBlobs::default())
}

/// How each job ended: `Ok` when it finished.
fn ends(events: &[Event]) -> Vec<(u64, Result<(), JobFailure>)> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Finished(report) => Some((report.job.0, Ok(()))),
            Event::Failed { job, failure, .. } => Some((job.0, Err(*failure))),
            _ => None,
        })
        .collect()
}

#[test]
fn job_reports_its_steps_then_its_media_then_its_end() {
    let mut harness = Harness::new(json!([]));
    let session = SessionId::random();
    let events = harness.run(vec![generate(job(1, &session, None))]);
    let names: Vec<&str> = events
        .iter()
        .map(|event| match event {
            Event::Step { step: 1, .. } => "step",
            Event::Media { .. } => "media",
            Event::Finished(report) => {
                assert_eq!(report.frames, FORMAT.num_frames);
                let thumbnail = report.thumbnail.as_ref().unwrap();
                assert!(thumbnail.len() <= MAX_THUMBNAIL_BYTES);
                let picture = image::load_from_memory(thumbnail).unwrap();
                assert_eq!((picture.width(), picture.height()), (64, 64));
                "finished"
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let (steps, rest) = names.split_first().unwrap();
    assert_eq!(*steps, "step");
    let (end, media) = rest.split_last().unwrap();
    assert_eq!(*end, "finished");
    // An init segment and at least one fragment.
    assert!(media.len() >= 2 && media.iter().all(|name| *name == "media"));
}

#[test]
fn state_is_held_until_the_session_makes_another_or_leaves() {
    let mut harness = Harness::new(json!([]));
    let (session, other) = (SessionId::random(), SessionId::random());
    let from = |id, maker, session| generate(job(id, session, Some(JobState::Held(JobId(maker)))));
    let events = harness.run(vec![
        generate(job(1, &session, None)),
        from(2, 1, &other),
        from(3, 1, &session),
        from(4, 1, &session),
        from(5, 3, &session),
        WorkItem::Forget(session.clone()),
        from(6, 5, &session),
    ]);
    let not_held = Err(JobFailure::StateNotHeld);
    assert_eq!(
        ends(&events),
        [
            (1, Ok(())),
            (2, not_held),
            (3, Ok(())),
            (4, not_held),
            (5, Ok(())),
            (6, not_held),
        ]
    );
}

#[test]
fn job_that_fails_leaves_the_loop_and_the_held_state_as_they_were() {
    let fault = json!({"kind": "error", "at": {"frame": 1}, "segment": 1});
    let mut harness = Harness::new(json!([fault]));
    let session = SessionId::random();
    let next = |id| generate(job(id, &session, Some(JobState::Held(JobId(1)))));
    let events = harness.run(vec![generate(job(1, &session, None)), next(2), next(3)]);
    let failed = Err(JobFailure::Failed);
    assert_eq!(ends(&events), [(1, Ok(())), (2, failed), (3, Ok(()))]);
}

#[test]
fn cancelled_job_ends_as_cancelled_without_media() {
    let mut harness = Harness::new(json!([]));
    let spec = job(1, &SessionId::random(), None);
    harness.outbox(&spec).cancel();
    let events = harness.run(vec![generate(spec)]);
    assert_eq!(ends(&events), [(1, Err(JobFailure::Cancelled))]);
    assert!(!events.iter().any(|e| matches!(e, Event::Media { .. })));
}

#[test]
fn loop_ends_for_a_job_without_an_outbox() {
    let mut harness = Harness::new(json!([]));
    let (sender, work) = channel();
    sender
        .send(generate(job(7, &SessionId::random(), None)))
        .unwrap();
    let end = harness.jobs.run(&work, &harness.outboxes);
    assert!(matches!(end, Err(JobLoopError::NoOutbox(JobId(7)))));
}

#[test]
fn held_state_continues_as_the_sent_one_does_and_a_damaged_one_is_refused() {
    let mut jobs = Harness::new(json!([])).jobs;
    let session = SessionId::random();
    let discard = MediaTarget::Discard;
    let made = jobs.generate(
        &job(1, &session, None),
        &SegmentStart::default(),
        SnapshotMaker::none(),
        &discard,
    );
    let GeneratedSegment { header, blob, .. } = made.unwrap();
    let encoded = header.encode();
    let state = SharedState {
        header,
        blob: Some(blob.clone()),
    };
    jobs.held_states.hold(session.clone(), JobId(1), state);

    let sent = job(2, &session, Some(JobState::Sent(encoded)));
    let held = job(3, &session, Some(JobState::Held(JobId(1))));
    let mut next = |spec: &JobSpec, blob| -> Result<(StateHeader, Vec<u8>), StartStateError> {
        let start = SegmentStart {
            state: jobs.held_states.start_state(spec, blob)?,
            snapshot: None,
        };
        let made = jobs.generate(spec, &start, SnapshotMaker::none(), &discard);
        let made = made.unwrap();
        Ok((made.header, made.blob.to_vec()))
    };
    let of_sent = next(&sent, Some(blob.clone())).unwrap();
    assert!(next(&held, None).unwrap() == of_sent);

    let mut damaged = blob.to_vec();
    damaged[0] ^= 1;
    let damaged = SharedMemory::from_bytes(&damaged).unwrap();
    assert!(matches!(
        next(&sent, Some(damaged)),
        Err(StartStateError::Invalid(StateError::Hash))
    ));
}

/// A job of four steps, each of which leaves a snapshot.
fn with_snapshots(id: u64) -> JobSpec {
    JobSpec {
        num_inference_steps: 4,
        snapshot_min_step: Some(Duration::ZERO),
        ..job(id, &SessionId::random(), None)
    }
}

/// The events of a job that goes on from a snapshot.
fn resume(
    harness: &mut Harness,
    spec: JobSpec,
    header: SnapshotHeader,
    latents: Option<SharedMemory>,
) -> Vec<Event> {
    let spec = JobSpec {
        snapshot: Some(Box::new(header)),
        ..spec
    };
    let blobs = JobBlobs {
        state: None,
        snapshot: latents,
    };
    harness.run(vec![WorkItem::Generate(Box::new(spec), blobs)])
}

/// The snapshots that a job leaves.
fn snapshots(spec: JobSpec) -> Vec<(SnapshotHeader, SharedMemory)> {
    let mut harness = Harness::new(json!([]));
    let outbox = harness.outbox(&spec);
    (harness.jobs)
        .serve(&spec, JobBlobs::default(), &outbox)
        .unwrap();
    harness.sent.take_snapshots()
}

#[test]
fn every_step_that_takes_long_enough_leaves_a_snapshot() {
    let steps: Vec<StepPoint> = snapshots(with_snapshots(1))
        .iter()
        .map(|(header, latents)| {
            header.check(latents).unwrap();
            header.check_hash(latents).unwrap();
            assert_eq!(latents.len(), 1000);
            header.at
        })
        .collect();
    let expected = [1, 2, 3, 4].map(|step| StepPoint {
        stage: Stage::Denoise,
        step,
        steps_done: step,
    });
    assert_eq!(steps, expected);
    for min_step in [None, Some(Duration::from_secs(60))] {
        let spec = JobSpec {
            snapshot_min_step: min_step,
            ..with_snapshots(1)
        };
        assert!(snapshots(spec).is_empty());
    }
}

#[test]
fn another_process_goes_on_from_a_snapshot_and_gives_the_same_media() {
    let media = |events: &[Event]| -> Vec<Bytes> {
        let media = events.iter().filter_map(|event| match event {
            Event::Media { bytes, .. } => Some(bytes.clone()),
            _ => None,
        });
        media.collect()
    };
    let whole = Harness::new(json!([])).run(vec![generate(with_snapshots(1))]);
    for (header, latents) in snapshots(with_snapshots(1)) {
        let done = header.at.step;
        let mut harness = Harness::new(json!([]));
        let events = resume(&mut harness, with_snapshots(2), header, Some(latents));
        assert_eq!(ends(&events), [(2, Ok(()))]);
        assert!(media(&events) == media(&whole));
        let steps = events.iter().filter_map(|event| match event {
            Event::Step { step, .. } => Some(*step),
            _ => None,
        });
        assert_eq!(steps.collect::<Vec<_>>(), Vec::from_iter(done + 1..=4));
        // Snapshots that follow count the steps of both attempts.
        let left = events.iter().filter_map(|event| match event {
            Event::StepSnapshot { header, .. } => Some(header.at.steps_done),
            _ => None,
        });
        assert_eq!(left.collect::<Vec<_>>(), Vec::from_iter(done + 1..=4));
    }
}

#[test]
fn a_snapshot_of_another_request_or_with_other_bytes_is_refused() {
    let (header, latents) = snapshots(with_snapshots(1)).remove(1);
    let mut harness = Harness::new(json!([]));
    let mut check = |spec: JobSpec, header: &SnapshotHeader, latents: Option<SharedMemory>| {
        let events = resume(&mut harness, spec, header.clone(), latents);
        assert_eq!(ends(&events), [(2, Err(JobFailure::SnapshotRefused))]);
        assert_eq!(events.len(), 1, "{events:?}");
    };
    let changes: [fn(&mut JobSpec); 8] = [
        |spec| spec.prompt = "another".to_owned(),
        |spec| spec.negative_prompt = Some(String::new()),
        |spec| spec.seed += 1,
        |spec| spec.num_inference_steps += 1,
        |spec| spec.guidance_scale += 0.5,
        |spec| spec.segment_idx += 1,
        |spec| spec.format.num_frames += 1,
        |spec| spec.initial_image = Some("/nowhere".into()),
    ];
    for change in changes {
        let mut spec = with_snapshots(2);
        change(&mut spec);
        check(spec, &header, Some(latents.clone()));
    }
    check(with_snapshots(2), &header, None);
    let mut damaged = latents.to_vec();
    damaged[999] ^= 1;
    let damaged = SharedMemory::from_bytes(&damaged).unwrap();
    check(with_snapshots(2), &header, Some(damaged));
    let short = SharedMemory::from_bytes(&latents[2..]).unwrap();
    check(with_snapshots(2), &header, Some(short));
    let mut other = header.clone();
    other.at.step = 3;
    other.at.steps_done = 3;
    // Its bytes are whole, and its origin is right: only the engine sees that they are those of another step.
    check(with_snapshots(2), &other, Some(latents.clone()));

    // The same request with another model.
    harness.jobs.model = ModelIdentity::new(&load_spec(json!([])).engine, "another", &[]);
    let events = resume(&mut harness, with_snapshots(2), header, Some(latents));
    assert_eq!(ends(&events), [(2, Err(JobFailure::SnapshotRefused))]);
}

#[test]
fn a_spoilt_snapshot_is_refused() {
    let mut harness = Harness::new(json!([{"kind": "spoil", "at": {"step": 2}}]));
    let spec = with_snapshots(1);
    let outbox = harness.outbox(&spec);
    (harness.jobs)
        .serve(&spec, JobBlobs::default(), &outbox)
        .unwrap();
    let is_whole =
        |(header, latents): &(SnapshotHeader, SharedMemory)| header.check_hash(latents).is_ok();
    let whole: Vec<bool> = harness.sent.take_snapshots().iter().map(is_whole).collect();
    assert_eq!(whole, [true, false, true, true]);
}

#[test]
fn warm_up_makes_two_segments_and_sends_nothing_of_them() {
    let mut spec = load_spec(json!([]));
    spec.warmup = Some(fastvideo_proto::link::WarmupSpec {
        prompt: "a red fox".to_owned(),
        format: FORMAT,
        num_inference_steps: 1,
    });
    let (events, sent) = EventSender::to_nobody();
    load(&spec, &events, GpuMemory::default()).unwrap();
    let sent = sent.take();
    let told: Vec<&Event> = sent
        .iter()
        .filter(|event| !matches!(event, Event::LoadProgress { .. }))
        .collect();
    match told[..] {
        [Event::WarmingUp, Event::Ready(report)] => assert_eq!(report.warmup.len(), 2),
        _ => panic!("{told:?}"),
    }
}
