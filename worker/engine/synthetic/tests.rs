//! Facts about what comes out: `state` has those about continuing, `look` measures and shows.

mod look;
mod state;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastvideo_proto::job::Stage;
use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::state::TensorLayout;
use fastvideo_proto::step_snapshot::StepPoint;

use super::{AUDIO, Options, Synthetic};
use crate::engine::{
    Engine, EngineError, GenerateRequest, NewState, Preview, Sink, State, StepLatents, StepSnapshot,
};

const CONDITIONING_FRAMES: u32 = 4;

/// Keeps all that comes out, and is cancelled once so many steps and frames have.
#[derive(Default)]
struct Take {
    frame_bytes: usize,
    frames: Vec<Vec<u8>>,
    sound: Vec<f32>,
    steps: Vec<(Stage, u32, u32)>,
    latents: Vec<(Vec<TensorLayout>, Vec<u8>)>,
    cancel_after: Option<usize>,
    takes_previews: bool,
    previews: Vec<Preview>,
}

impl Sink for Take {
    fn cancelled(&self) -> bool {
        let seen = self.steps.len() + self.frames.len();
        self.cancel_after.is_some_and(|after| seen >= after)
    }

    fn step(
        &mut self,
        stage: Stage,
        step: u32,
        total_steps: u32,
        latents: Option<&dyn StepLatents>,
    ) {
        let latents = latents.expect("this engine has some");
        let layout = latents.layout();
        let bytes: u64 = layout.iter().map(|tensor| tensor.bytes()).sum();
        let mut copy = vec![0xa5; bytes.try_into().unwrap()];
        latents.write(&mut copy).unwrap();
        self.latents.push((layout, copy));
        self.steps.push((stage, step, total_steps));
    }

    fn takes_previews(&self) -> bool {
        self.takes_previews
    }

    fn previews(&mut self, previews: Vec<Preview>) {
        assert!(self.frames.is_empty());
        self.previews = previews;
    }

    fn blank_frame(&mut self) -> Vec<u8> {
        // As a recycled frame: of the right size, but not clean.
        vec![0xa5; self.frame_bytes]
    }

    fn frame(&mut self, rgb: Arc<Vec<u8>>, sound: &[f32]) -> Result<(), EngineError> {
        assert_eq!(rgb.len(), self.frame_bytes);
        self.frames.push(rgb.to_vec());
        self.sound.extend(sound);
        Ok(())
    }
}

fn spec() -> Options {
    Options {
        step: Duration::ZERO,
        frame: Duration::ZERO,
        load: Duration::ZERO,
        conditioning_num_frames: CONDITIONING_FRAMES,
        audio_latent_frames: 3,
        latent_bytes: 22,
        prerender: false,
        preview: false,
        faults: Vec::new(),
    }
}

fn format(width: u32, height: u32, num_frames: u32) -> VideoFormat {
    VideoFormat {
        width,
        height,
        num_frames,
        fps: 24,
    }
}

const SMALL: VideoFormat = VideoFormat {
    width: 192,
    height: 128,
    num_frames: 8,
    fps: 24,
};

fn request(prompt: &str) -> GenerateRequest<'_> {
    GenerateRequest {
        segment_idx: 0,
        prompt,
        negative_prompt: None,
        seed: 42,
        num_inference_steps: 2,
        guidance_scale: 3.0,
        adapters: &[],
        format: SMALL,
        cut_frames: 0,
        initial_image: None,
        state: None,
        snapshot: None,
    }
}

fn run(request: &GenerateRequest<'_>) -> (Take, NewState) {
    let mut take = Take {
        frame_bytes: request.format.frame_bytes(),
        ..Take::default()
    };
    let state = Synthetic::new(spec(), SMALL)
        .generate(request, &mut take)
        .unwrap();
    (take, state)
}

#[test]
fn previews_show_the_middle_and_the_last_frame_and_change_nothing() {
    let (plain, state) = first("a red fox in the snow");
    assert!(plain.previews.is_empty());
    for (makes, takes) in [(true, true), (true, false), (false, true)] {
        let options = Options {
            preview: makes,
            ..spec()
        };
        let mut take = Take {
            frame_bytes: SMALL.frame_bytes(),
            takes_previews: takes,
            ..Take::default()
        };
        let made = Synthetic::new(options, SMALL)
            .generate(&request("a red fox in the snow"), &mut take)
            .unwrap();
        assert!(take.frames == plain.frames && take.sound == plain.sound);
        assert!(made.blob[..] == state.blob[..]);
        let shown: Vec<u32> = take.previews.iter().map(|preview| preview.frame).collect();
        assert_eq!(shown, if makes && takes { vec![4, 7] } else { vec![] });
        for preview in &take.previews {
            let size = (preview.width, preview.height, preview.num_frames);
            assert_eq!(size, (SMALL.width, SMALL.height, SMALL.num_frames));
            assert!(preview.rgb == plain.frames[preview.frame as usize]);
        }
    }
}

/// A first segment of a prompt.
fn first(prompt: &str) -> (Take, NewState) {
    run(&request(prompt))
}

/// The segment after one.
fn next(prompt: &str, state: &NewState) -> (Take, NewState) {
    let mut request = request(prompt);
    request.segment_idx = 1;
    request.state = Some(State {
        header: &state.header,
        blob: &state.blob,
    });
    run(&request)
}

/// Mean difference of two frames' bytes, without the lower part, where the caption counts.
fn difference(a: &[u8], b: &[u8]) -> f64 {
    let upper = a.len() * 2 / 3;
    let sum: u64 = a[..upper]
        .iter()
        .zip(&b[..upper])
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    sum as f64 / upper as f64
}

fn is_marked_lost(frame: &[u8]) -> bool {
    let red = frame
        .chunks_exact(3)
        .filter(|p| p[0] > 220 && p[1] < 70 && p[2] < 70)
        .count();
    red * 100 > frame.len() / 3
}

#[test]
fn result_follows_from_the_request_alone() {
    let prompt = "a red fox in the snow, aurora, petals, fog, rain";
    let (take, state) = first(prompt);
    let mut again = request(prompt);
    again.num_inference_steps = 7;
    let (take_again, state_again) = run(&again);
    assert!(take.frames == take_again.frames);
    assert!(take.sound == take_again.sound);
    assert!(*state.blob == *state_again.blob);
    assert_eq!(state.header, state_again.header);
}

#[test]
fn other_prompts_and_seeds_give_other_pictures() {
    let prompts = [
        "a red fox running through snow at night",
        "golden sunrise over the ocean, drone shot",
        "neon city in the rain",
        "a quiet forest",
        "the annual report",
        "quarterly numbers",
    ];
    let frames: Vec<_> = prompts
        .map(|p| first(p).0.frames.swap_remove(0))
        .into_iter()
        .collect();
    for (i, a) in frames.iter().enumerate() {
        for (j, b) in frames.iter().enumerate().skip(i + 1) {
            let difference = difference(a, b);
            assert!(
                difference > 8.0,
                "{:?} and {:?}: {difference}",
                prompts[i],
                prompts[j]
            );
        }
    }
    let mut other_seed = request(prompts[0]);
    other_seed.seed = 43;
    assert!(difference(&frames[0], &run(&other_seed).0.frames[0]) > 1.0);
}

#[test]
fn negative_prompt_removes_things() {
    let mut request = request("a city in the rain");
    let rainy = run(&request).0;
    request.negative_prompt = Some("rain");
    assert!(rainy.frames[0] != run(&request).0.frames[0]);
}

#[test]
fn motion_goes_on_across_segments() {
    let prompt = "a calm walk through hills";
    let (one, state) = first(prompt);
    let (two, _) = next(prompt, &state);
    let usual = difference(&one.frames[6], &one.frames[7]);
    let seam = difference(&one.frames[7], &two.frames[0]);
    let anew = difference(&one.frames[7], &one.frames[0]);
    assert!(usual > 0.0, "the picture moves");
    assert!(seam < usual * 1.5, "seam {seam}, usual {usual}");
    assert!(seam * 2.0 < anew, "seam {seam}, anew {anew}");
    assert!(!is_marked_lost(&two.frames[0]));
}

#[test]
fn a_new_prompt_fades_in_and_is_there_at_the_end() {
    let (one, state) = first("golden sunrise over the mountains");
    let prompt = "neon city at night";
    let (two, state) = next(prompt, &state);
    let (three, _) = next(prompt, &state);
    let seam = difference(&one.frames[7], &two.frames[0]);
    let whole = difference(&one.frames[7], &two.frames[7]);
    assert!(seam * 4.0 < whole, "seam {seam}, whole {whole}");
    assert!(difference(&two.frames[7], &three.frames[0]) < whole / 10.0);
}

#[test]
fn sound_is_whole_quiet_and_does_not_click_at_the_seam() {
    let (one, state) = first("calm sea");
    let (two, _) = next("calm sea", &state);
    let samples = AUDIO.sample_at(u64::from(SMALL.num_frames), SMALL.fps);
    assert_eq!(one.sound.len() as u64, samples * 2);
    let jump = |a: &[f32], b: &[f32]| (a[0] - b[0]).abs().max((a[1] - b[1]).abs());
    let mut stereo = one.sound.chunks_exact(2).chain(two.sound.chunks_exact(2));
    let mut last = stereo.next().unwrap();
    let mut largest = 0.0_f32;
    for sample in stereo {
        assert!(sample.iter().all(|s| s.abs() <= 0.25));
        largest = largest.max(jump(last, sample));
        last = sample;
    }
    let seam = jump(&one.sound[one.sound.len() - 2..], &two.sound);
    assert!(largest < 0.06, "largest {largest}");
    assert!(seam < 0.06, "seam {seam}");
    // Without the state the fade-in would begin again.
    let loudness = |s: &[f32]| s.iter().map(|s| s.abs()).sum::<f32>();
    assert!(loudness(&two.sound[..200]) > 3.0 * loudness(&one.sound[..200]));
}

#[test]
fn every_frame_brings_its_own_samples() {
    let mut request = request("sea");
    request.format.fps = 7;
    let (take, _) = run(&request);
    assert_eq!(take.sound.len() as u64, AUDIO.sample_at(8, 7) * 2);
}

#[test]
fn cancelling_is_obeyed_at_steps_and_frames() {
    for after in [0, 1, 2, 3, 9] {
        let mut take = Take {
            frame_bytes: SMALL.frame_bytes(),
            cancel_after: Some(after),
            ..Take::default()
        };
        let result = Synthetic::new(spec(), SMALL).generate(&request("x"), &mut take);
        assert!(
            matches!(result, Err(EngineError::Cancelled)),
            "after {after}"
        );
        assert_eq!(take.steps.len() + take.frames.len(), after);
    }
}

#[test]
fn steps_and_frames_take_their_time() {
    let mut spec = spec();
    spec.step = Duration::from_millis(10);
    spec.frame = Duration::from_millis(3);
    let mut take = Take {
        frame_bytes: SMALL.frame_bytes(),
        ..Take::default()
    };
    let begun = Instant::now();
    Synthetic::new(spec, SMALL)
        .generate(&request("x"), &mut take)
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(2 * 10 + 8 * 3));
    assert_eq!(take.steps, [(Stage::Denoise, 1, 2), (Stage::Denoise, 2, 2)]);
}

/// A snapshot after the second of five steps, changed before the engine is given it.
fn resumed_with(
    change: impl FnOnce(&mut StepPoint, &mut Vec<TensorLayout>, &mut Vec<u8>),
) -> Result<Take, EngineError> {
    let mut request = request("a red fox");
    request.num_inference_steps = 5;
    let (whole, _) = run(&request);
    let (mut layout, mut latents) = whole.latents[1].clone();
    let mut at = StepPoint {
        stage: Stage::Denoise,
        step: 2,
        steps_done: 2,
    };
    change(&mut at, &mut layout, &mut latents);
    request.snapshot = Some(StepSnapshot {
        at,
        total_steps: 5,
        layout: &layout,
        latents: &latents,
    });
    let mut take = Take {
        frame_bytes: SMALL.frame_bytes(),
        ..Take::default()
    };
    Synthetic::new(spec(), SMALL).generate(&request, &mut take)?;
    assert!(take.frames == whole.frames && take.sound == whole.sound);
    Ok(take)
}

#[test]
fn a_segment_goes_on_after_the_step_of_its_snapshot() {
    let take = resumed_with(|_, _, _| {}).unwrap();
    let steps: Vec<u32> = take.steps.iter().map(|(_, step, _)| *step).collect();
    assert_eq!(steps, [3, 4, 5]);
}

#[test]
fn a_snapshot_that_is_another_one_by_a_bit_is_refused() {
    let check = |refused: Result<Take, EngineError>, expected: &str| match refused {
        Err(EngineError::SnapshotRefused(message)) => assert!(message.contains(expected)),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{expected}: not refused"),
    };
    for byte in [0, 21] {
        let damaged = resumed_with(|_, _, latents| latents[byte] ^= 1);
        check(damaged, "other latents");
    }
    check(resumed_with(|at, _, _| at.step = 3), "other latents");
    check(resumed_with(|at, _, _| at.step = 6), "other steps");
    check(
        resumed_with(|at, _, _| at.stage = Stage::Refine),
        "other steps",
    );
    check(
        resumed_with(|_, layout, _| layout[0].shape[1] = 10),
        "another size",
    );
}

#[test]
fn every_size_and_every_prompt_is_drawn() {
    let long = "drifting lanterns over a frozen lake ".repeat(60);
    let prompts = [
        "",
        " \n\t ",
        "🦊🌨️ лиса \u{200d}\u{301} 狐狸がはしる",
        &long,
        &"x".repeat(2000),
        "no",
        "left left left fast fast fast drone up down storm",
        "mountain lake whale boat balloon birds fireflies petals aurora fog",
        "horse deer cat person car in the desert",
    ];
    for (width, height) in [(64, 64), (66, 130), (4096, 64), (64, 2176)] {
        for prompt in prompts {
            let mut request = request(prompt);
            request.format = format(width, height, 2);
            request.seed = u64::MAX;
            request.segment_idx = u32::MAX;
            request.guidance_scale = f64::NAN;
            run(&request);
        }
    }
    let mut request = request(prompts[7]);
    request.format = format(4096, 2176, 1);
    run(&request);
}

#[test]
fn segment_can_be_continued_many_times() {
    let prompts = ["fox, drone", "calm sea, boat", "neon city, left"];
    let (_, mut state) = first(prompts[0]);
    for i in 0..12 {
        let (take, new) = next(prompts[i % 3], &state);
        assert!(!is_marked_lost(&take.frames[0]), "segment {i}");
        state = new;
    }
    assert_eq!(state.header.segment_index, 12);
}

#[test]
fn initial_image_is_seen_first_and_makes_room() {
    let file = tempfile::Builder::new().suffix(".bin").tempfile().unwrap();
    image::RgbImage::from_pixel(50, 300, image::Rgb([250, 10, 200]))
        .save_with_format(file.path(), image::ImageFormat::Png)
        .unwrap();
    let mut request = request("forest");
    let plain = run(&request).0;
    request.initial_image = Some(file.path());
    let take = run(&request).0;
    assert_eq!(take.frames[0][..3], [250, 10, 200]);
    assert!(take.frames[7] == plain.frames[7]);
}

#[test]
fn thin_initial_images_cost_no_more_than_others() {
    for (width, height) in [(1, 16_000), (16_000, 1)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        image::RgbImage::from_pixel(width, height, image::Rgb([250, 10, 200]))
            .save_with_format(file.path(), image::ImageFormat::Png)
            .unwrap();
        let mut request = request("forest");
        request.initial_image = Some(file.path());
        // Scaled before it is cropped, it would have 256 times as many pixels as the larger of these has.
        request.format = format(512, 512, 1);
        let begun = std::time::Instant::now();
        let take = run(&request).0;
        assert_eq!(take.frames[0][..3], [250, 10, 200]);
        assert!(begun.elapsed().as_secs() < 5);
    }
}

#[test]
fn initial_image_that_is_none_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"not a picture").unwrap();
    for path in [file.path(), Path::new("/nowhere")] {
        let mut request = request("forest");
        request.initial_image = Some(path);
        let result = Synthetic::new(spec(), SMALL).generate(&request, &mut Take::default());
        assert!(matches!(result, Err(EngineError::Refused(_))));
    }
}

#[test]
fn prerendered_frames_are_handed_out_and_remembered() {
    let mut spec = spec();
    spec.prerender = true;
    let mut engine = Synthetic::new(spec, format(192, 128, 3));
    let (told, last) = std::sync::mpsc::channel();
    let progress = move |fraction, _: &str| told.send(fraction).unwrap();
    engine.load(Box::new(progress)).unwrap();
    assert_eq!(last.iter().last(), Some(1.0));
    let mut request = request("sea");
    let mut take = Take {
        frame_bytes: SMALL.frame_bytes(),
        ..Take::default()
    };
    let state = engine.generate(&request, &mut take).unwrap();
    assert!(take.frames[0] == take.frames[3] && take.frames[0] != take.frames[1]);
    request.state = Some(State {
        header: &state.header,
        blob: &state.blob,
    });
    assert!(!is_marked_lost(&run(&request).0.frames[0]));
}
