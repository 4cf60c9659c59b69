//! Segments of video jobs: what is encoded of them, their pictures, and the states that they leave.

use fastvideo_proto::link::{VideoPart, tile_size};
use image::RgbImage;

use super::*;
use crate::encode::{Encoder, Media};
use crate::engine::synthetic::Synthetic;
use crate::engine::{LoadProgress, Loaded, ModelCheck, NewState, Sink, StepLatents};

/// The format that the engine is asked for.
const MADE: VideoFormat = VideoFormat {
    width: 128,
    height: 96,
    num_frames: 7,
    fps: 24,
};
/// The size that is encoded, and its first column and row in what is made.
const SHOWN: (u32, u32) = (102, 70);
const AT: (usize, usize) = (12, 12);

fn part(frames: u32) -> VideoPart {
    let mut tiles = vec![0, frames - 1];
    tiles.dedup();
    VideoPart {
        width: SHOWN.0,
        height: SHOWN.1,
        frames,
        tiles,
        thumbnail: Some(frames / 2),
        sheet_after: None,
    }
}

fn part_job(id: u64, part: VideoPart) -> JobSpec {
    JobSpec {
        format: MADE,
        video: Some(Box::new(part)),
        ..job(id, &SessionId::random(), None)
    }
}

fn report(events: &[Event]) -> &JobReport {
    match events.last() {
        Some(Event::Finished(report)) => report,
        other => panic!("{other:?}"),
    }
}

fn media(events: &[Event]) -> Vec<&[u8]> {
    let bytes = events.iter().filter_map(|event| match event {
        Event::Media { bytes, .. } => Some(&bytes[..]),
        _ => None,
    });
    bytes.collect()
}

fn options() -> synthetic::Options {
    serde_json::from_str(&load_spec(json!([])).engine.options).unwrap()
}

/// An engine that generates what is behind the cut, too, as a model does. Only its state ends at the cut.
struct Whole(Synthetic);

impl Whole {
    fn new() -> Self {
        Self(Synthetic::new(options(), MADE))
    }
}

impl Engine for Whole {
    fn load(&mut self, progress: LoadProgress) -> Result<Loaded, EngineError> {
        self.0.load(progress)
    }

    fn check(&self) -> Result<ModelCheck, EngineError> {
        self.0.check()
    }

    fn generate(
        &mut self,
        request: &GenerateRequest<'_>,
        sink: &mut dyn Sink,
    ) -> Result<NewState, EngineError> {
        let whole = GenerateRequest {
            cut_frames: 0,
            ..request.clone()
        };
        self.0.generate(&whole, sink)?;
        self.0.generate(request, &mut Recorder::default())
    }
}

/// Keeps frames and their sound.
#[derive(Default)]
struct Recorder(Vec<(Arc<Vec<u8>>, Vec<f32>)>);

impl Sink for Recorder {
    fn cancelled(&self) -> bool {
        false
    }

    fn step(&mut self, _: Stage, _: u32, _: u32, _: Option<&dyn StepLatents>) {}

    fn blank_frame(&mut self) -> Vec<u8> {
        vec![0; MADE.frame_bytes()]
    }

    fn frame(&mut self, rgb: Arc<Vec<u8>>, sound: &[f32]) -> Result<(), EngineError> {
        self.0.push((rgb, sound.to_vec()));
        Ok(())
    }
}

/// What the engine makes of a job's request, with so many frames.
fn record(spec: &JobSpec, num_frames: u32) -> Recorder {
    let request = GenerateRequest {
        segment_idx: spec.segment_idx,
        prompt: &spec.prompt,
        negative_prompt: None,
        seed: spec.seed,
        num_inference_steps: 1,
        guidance_scale: spec.guidance_scale,
        adapters: &[],
        format: VideoFormat { num_frames, ..MADE },
        cut_frames: 0,
        initial_image: None,
        state: None,
        snapshot: None,
    };
    let mut recorder = Recorder::default();
    let mut engine = Synthetic::new(options(), MADE);
    engine.generate(&request, &mut recorder).unwrap();
    recorder
}

/// The pixels of the middle.
fn middle(rgb: &[u8]) -> Vec<u8> {
    let rows = rgb.chunks_exact(3 * MADE.width as usize);
    let rows = rows.skip(AT.1).take(SHOWN.1 as usize);
    let columns = 3 * AT.0..3 * (AT.0 + SHOWN.0 as usize);
    rows.flat_map(|row| row[columns.clone()].to_vec()).collect()
}

/// Encodes the middle of the first frames, with sound that ends with the last of them. Returns the media and the end of the
/// sound.
fn encode(recorded: &Recorder, frames: u32) -> (Vec<Vec<u8>>, SoundTail) {
    let params = EncodeParams {
        format: VideoFormat {
            width: SHOWN.0,
            height: SHOWN.1,
            num_frames: frames,
            fps: MADE.fps,
        },
        mode: MediaMode::AvFmp4,
        audio: Some(synthetic::AUDIO),
        spec: EncoderSpec::default(),
    };
    let mut encoder = Encoder::open(&params).unwrap();
    let mut media = Vec::new();
    let mut out = |piece: Media| match piece {
        Media::Init { bytes, .. } | Media::Fragment { bytes } => media.push(bytes),
    };
    encoder.begin(0, &[], &mut out).unwrap();
    let end = synthetic::AUDIO.sample_at(frames.into(), MADE.fps);
    let mut left = usize::try_from(end).unwrap() * 2;
    for (rgb, sound) in &recorded.0[..frames as usize] {
        let sound = &sound[..sound.len().min(left)];
        left -= sound.len();
        encoder.frame(&middle(rgb), sound, &mut out).unwrap();
    }
    assert_eq!(left, 0);
    let tail = SoundTail(encoder.finish(&mut out).unwrap());
    (media, tail)
}

fn state_header(report: &JobReport) -> StateHeader {
    StateHeader::decode(&report.state).unwrap()
}

#[test]
fn middle_of_the_frames_before_the_cut_is_encoded_and_the_sound_ends_there() {
    for frames in [1, 2, 5, 6, MADE.num_frames] {
        let mut harness = Harness::new(json!([]));
        harness.jobs.engine = Box::new(Whole::new());
        let spec = part_job(1, part(frames));
        let (expected, tail) = encode(&record(&spec, MADE.num_frames), frames);
        let events = harness.run(vec![generate(spec)]);
        assert!(media(&events) == expected, "{frames} frames");
        let report = report(&events);
        assert_eq!(report.frames, frames);
        assert_eq!(SoundTail::read(&state_header(report)), tail);
    }
}

#[test]
fn engine_that_stops_at_the_cut_makes_a_whole_segment() {
    let spec = part_job(1, part(5));
    let (expected, _) = encode(&record(&spec, 5), 5);
    let events = Harness::new(json!([])).run(vec![generate(spec)]);
    assert!(media(&events) == expected);
    // No frame behind the cut was drawn, and the ones before it are in the report.
    assert_eq!(report(&events).frames, 5);
}

#[test]
fn state_has_the_whole_pictures_and_is_that_of_a_segment_that_ended_at_the_cut() {
    let cut = part_job(1, part(5));
    let ended_there = JobSpec {
        format: VideoFormat {
            num_frames: 5,
            ..MADE
        },
        video: None,
        ..part_job(2, part(5))
    };
    let [cut, ended_there] = [cut, ended_there].map(|spec| {
        let events = Harness::new(json!([])).run(vec![generate(spec)]);
        state_header(report(&events))
    });
    let frames = cut.frames.unwrap();
    assert_eq!((frames.width, frames.height), (MADE.width, MADE.height));
    // The header has the hash of the blob and the end of the sound.
    assert_eq!(cut, ended_there);
}

#[test]
fn pictures_are_made_of_what_is_encoded() {
    let tile = |frame: &[u8]| {
        let (width, height) = tile_size(SHOWN.0, SHOWN.1);
        let frame = middle(frame);
        let pixel = |x: u32, y: u32| {
            let (x, y) = (x * SHOWN.0 / width, y * SHOWN.1 / height);
            let at = 3 * (y * SHOWN.0 + x) as usize;
            [frame[at], frame[at + 1], frame[at + 2]]
        };
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y)));
        pixels.collect::<Vec<u8>>()
    };
    let spec = part_job(1, part(5));
    let recorded = record(&spec, 5);
    let expected = [tile(&recorded.0[0].0), tile(&recorded.0[4].0)].concat();
    let events = Harness::new(json!([])).run(vec![generate(spec)]);
    let report = report(&events);
    let video = report.video.as_ref().unwrap();
    assert!(video.tiles == expected);
    assert_eq!(video.sheet, None);
    let shown = |jpeg: &Bytes| -> RgbImage { image::load_from_memory(jpeg).unwrap().to_rgb8() };
    // Both thumbnails show the middle frame here.
    for thumbnail in [&video.thumbnail, &report.thumbnail] {
        let thumbnail = shown(thumbnail.as_ref().unwrap());
        assert_eq!(thumbnail.dimensions(), SHOWN);
        let source = middle(&recorded.0[2].0);
        let off = thumbnail.iter().zip(&source).map(|(a, b)| a.abs_diff(*b));
        let mean = off.map(f64::from).sum::<f64>() / source.len() as f64;
        assert!(mean < 6.0, "{mean}");
    }
}

#[test]
fn last_segment_brings_the_sheet() {
    let mut harness = Harness::new(json!([]));
    let first = harness.run(vec![generate(part_job(1, part(5)))]);
    let before = report(&first).video.clone().unwrap().tiles;
    let last = VideoPart {
        sheet_after: Some(before),
        ..part(3)
    };
    let events = harness.run(vec![generate(part_job(2, last))]);
    let sheet = report(&events).video.clone().unwrap().sheet.unwrap();
    let sheet = image::load_from_memory(&sheet).unwrap();
    let (width, height) = tile_size(SHOWN.0, SHOWN.1);
    assert_eq!((sheet.width(), sheet.height()), (5 * width, height));
}

#[test]
fn segment_of_a_session_has_no_pictures_of_a_video() {
    let mut harness = Harness::new(json!([]));
    let events = harness.run(vec![generate(job(1, &SessionId::random(), None))]);
    assert_eq!(report(&events).video, None);
}

#[test]
fn media_and_state_depend_neither_on_the_pictures_nor_on_the_time() {
    let made = |part: VideoPart| {
        let events = Harness::new(json!([])).run(vec![generate(part_job(1, part))]);
        let media: Vec<Vec<u8>> = media(&events).into_iter().map(<[u8]>::to_vec).collect();
        let report = report(&events);
        (media, report.state.clone(), report.video.clone().unwrap())
    };
    let (media, state, video) = made(part(5));
    assert!(made(part(5)) == (media.clone(), state.clone(), video.clone()));
    let (width, height) = tile_size(SHOWN.0, SHOWN.1);
    let before = vec![9; (3 * width * height) as usize];
    let others = made(VideoPart {
        tiles: vec![3],
        thumbnail: None,
        sheet_after: Some(before.into()),
        ..part(5)
    });
    assert!((others.0, others.1) == (media, state));
}

#[test]
fn part_that_does_not_fit_is_refused_before_anything_is_generated() {
    let changes: [fn(&mut VideoPart); 8] = [
        |part| part.width = MADE.width + 2,
        |part| part.height = MADE.height + 2,
        |part| part.width = 101,
        |part| part.frames = 0,
        |part| part.frames = MADE.num_frames + 1,
        |part| part.tiles = vec![5],
        |part| part.thumbnail = Some(5),
        |part| part.sheet_after = Some(vec![0; 100].into()),
    ];
    let mut harness = Harness::new(json!([]));
    for change in changes {
        let mut part = part(5);
        change(&mut part);
        let events = harness.run(vec![generate(part_job(1, part))]);
        assert_eq!(ends(&events), [(1, Err(JobFailure::Refused))]);
        assert_eq!(events.len(), 1, "{events:?}");
    }
    let events = harness.run(vec![generate(part_job(2, part(5)))]);
    assert_eq!(ends(&events), [(2, Ok(()))]);
}

#[test]
fn snapshot_fits_the_same_request_whatever_is_kept_of_it() {
    let spec = |id, part| JobSpec {
        num_inference_steps: 4,
        snapshot_min_step: Some(Duration::ZERO),
        ..part_job(id, part)
    };
    let expected = Harness::new(json!([])).run(vec![generate(spec(1, part(4)))]);
    let (header, latents) = snapshots(spec(1, part(6))).remove(1);
    let mut harness = Harness::new(json!([]));
    let events = resume(&mut harness, spec(1, part(4)), header, Some(latents));
    assert!(media(&events) == media(&expected));
    assert_eq!(report(&events).video, report(&expected).video);
}

#[test]
fn job_that_finds_no_memory_fails_as_such_and_the_next_one_is_fine() {
    let fault = json!({"kind": "oom", "at": {"step": 1}});
    let mut harness = Harness::new(json!([fault]));
    let events = harness.run(vec![
        generate(part_job(1, part(5))),
        generate(part_job(2, part(5))),
    ]);
    let failed = Err(JobFailure::OutOfMemory);
    assert_eq!(ends(&events), [(1, failed), (2, Ok(()))]);
}
