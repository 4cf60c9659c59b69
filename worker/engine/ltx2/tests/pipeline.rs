//! Whole requests against the reference.

use std::path::Path;

use fastvideo_ltx2::audio_vae;
use fastvideo_ltx2::checkpoint::Checkpoint;
use fastvideo_ltx2::load;
use fastvideo_ltx2::nn::Precision;
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pipeline::{
    Conditioning, Continuation, GenerateError, Latents, Output, OutputError, Parts, Pipeline,
    Request, Resume, Settings, Stage, Stages, Start, Step,
};
use fastvideo_ltx2::sampling::latents::{self, AudioGrid, VideoGrid};
use fastvideo_ltx2::sampling::noise::{DrawOrder, Noise};
use fastvideo_ltx2::sampling::schedule::Scheduler;
use serde_json::{Value, json};
use tch::{Device, IndexOp, Kind, Tensor};

use crate::reference::{Golden, Reference, check, grids_of, tiny_model};
use crate::video_vae::check_rgb8;

/// The parts of a checkpoint, on the CPU.
pub(crate) fn parts(checkpoint: &Path, precision: Precision) -> Parts {
    let options = load::Options {
        check_values: true,
        ..load::Options::new(Device::Cpu, precision, Kernels::Plain)
    };
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    load::load(&checkpoint, &options, |_| {}).unwrap()
}

/// Keeps all that comes.
#[derive(Default)]
pub(crate) struct Recorder {
    /// Of each step, in order.
    steps: Vec<(Stage, usize, usize, Latents)>,
    pub(crate) sound: Vec<f32>,
    frames: Vec<Tensor>,
    /// Cancels when so many steps are done.
    cancel_after: Option<usize>,
}

impl Output for Recorder {
    fn cancelled(&self) -> bool {
        self.cancel_after
            .is_some_and(|steps| self.steps.len() >= steps)
    }

    fn step(&mut self, step: &Step<'_>) {
        let latents = Latents {
            video: step.latents.video.copy(),
            audio: step.latents.audio.copy(),
        };
        self.steps
            .push((step.stage, step.step, step.total_steps, latents));
    }

    fn sound(&mut self, samples: &[f32]) -> Result<(), OutputError> {
        assert!(self.sound.is_empty() && self.frames.is_empty());
        self.sound = samples.to_vec();
        Ok(())
    }

    fn frames(&mut self, rgb8: &Tensor) -> Result<(), OutputError> {
        assert!(!self.sound.is_empty());
        self.frames.push(rgb8.copy());
        Ok(())
    }
}

impl Recorder {
    pub(crate) fn frames(&self) -> Tensor {
        Tensor::cat(&self.frames, 0)
    }

    /// `[1, channels, samples]`.
    pub(crate) fn waveform(&self, channels: i64) -> Tensor {
        let samples = Tensor::from_slice(&self.sound).view([1, -1, channels]);
        samples.transpose(1, 2)
    }

    /// After a stage's last step.
    pub(crate) fn last(&self, stage: Stage) -> &Latents {
        let of_stage = |step: &&(Stage, usize, usize, Latents)| step.0 == stage;
        &self.steps.iter().rfind(of_stage).unwrap().3
    }

    /// Checks each step's latents against those that go into the next one.
    pub(crate) fn check_steps(&self, golden: &Golden, name: &str, stage: Stage, calls: usize) {
        for (_, step, total, latents) in self.steps.iter().filter(|step| step.0 == stage) {
            if step < total {
                let next = format!("{name}.step{:02}", step * calls);
                let expected = |stream| golden.get(&format!("{next}.{stream}_latents")).i(..1);
                check(&next, &latents.video, &expected("video"), 1e-5);
                check(&next, &latents.audio, &expected("audio"), 1e-5);
            }
        }
    }
}

fn number(settings: &Value, key: &str) -> i64 {
    settings[key].as_i64().unwrap()
}

/// As the goldens' settings say, at the size of the first stage.
pub(crate) struct Case {
    pub(crate) reference: Reference,
    settings: Value,
}

impl Case {
    fn open() -> Self {
        Self::of(Reference::open())
    }

    pub(crate) fn of(reference: Reference) -> Self {
        let settings = reference.settings();
        Self {
            reference,
            settings,
        }
    }

    pub(crate) fn request(&self) -> Request<'_> {
        Request {
            prompt: self.settings["prompt"].as_str().unwrap(),
            negative_prompt: self.settings["negative"].as_str(),
            seed: self.settings["seed"].as_u64().unwrap(),
            num_inference_steps: 8,
            guidance_scale: 1.0,
            height: number(&self.settings, "height"),
            width: number(&self.settings, "width"),
            num_frames: number(&self.settings, "num_frames"),
            cut_frames: 0,
            fps: self.settings["fps"].as_f64().unwrap(),
            start: Start::Noise,
            adapters: &[],
            resume: None,
        }
    }

    pub(crate) fn pipeline(&self, settings: Settings) -> Pipeline {
        Pipeline::new(
            parts(&self.reference.checkpoint(), Precision::Float32),
            settings,
        )
        .unwrap()
    }
}

pub(crate) fn one_stage() -> Settings {
    Settings {
        stages: Stages::One,
        ..Settings::default()
    }
}

/// Un-normalized latents of a stage, as the library returns them.
fn grids(parts: &Parts, latents: &Latents, video: &VideoGrid, audio: &AudioGrid) -> [Tensor; 2] {
    let video = latents::unpack_video(&latents.video, video);
    let audio = latents::unpack_audio(&latents.audio, audio);
    [
        parts.video_vae.unnormalize(&video),
        parts.audio_vae.unnormalize(&audio),
    ]
}

/// Checks a stage's result against un-normalized golden latents.
pub(crate) fn check_result(case: &Case, latents: &Latents, video: &Tensor, audio: &Tensor) {
    let (video_grid, audio_grid) = grids_of(video, audio);
    let parts = parts(&case.reference.checkpoint(), Precision::Float32);
    let [v, a] = grids(&parts, latents, &video_grid, &audio_grid);
    check("video", &v, video, 1e-5);
    check("audio", &a, audio, 1e-5);
}

/// What comes of the settings' request at twice the size.
fn segment(pipeline: &mut Pipeline) -> (Tensor, Vec<f32>) {
    let case = Case::open();
    let mut request = case.request();
    request.height *= 2;
    request.width *= 2;
    let mut output = Recorder::default();
    pipeline.generate(&request, &mut output).unwrap();
    (output.frames(), output.sound)
}

#[test]
fn both_layouts_give_the_same_segment() {
    let reference = Reference::open();
    let [library, original] =
        [reference.checkpoint(), reference.original_checkpoint()].map(|root| {
            let parts = parts(&root, Precision::Float32);
            segment(&mut Pipeline::new(parts, Settings::default()).unwrap())
        });
    assert_eq!(library, original);
}

#[test]
fn two_stages_equal_the_reference() {
    let case = Case::open();
    let golden = case.reference.golden("generate");
    let mut request = case.request();
    request.height *= 2;
    request.width *= 2;
    let mut pipeline = case.pipeline(Settings {
        refine_steps: 3,
        ..Settings::default()
    });
    let mut output = Recorder::default();
    let continuation = pipeline.generate(&request, &mut output).unwrap();

    output.check_steps(&golden, "stage1", Stage::Denoise, 1);
    let (video, audio) = (golden.get("stage1.video"), golden.get("stage1.audio"));
    check_result(&case, output.last(Stage::Denoise), video, audio);
    output.check_steps(&golden, "stage2", Stage::Refine, 1);
    check_rgb8(&output.frames(), golden.get("stage2.rgb8"));
    let waveform = golden.get("stage2.waveform");
    let [_, channels, samples] = waveform.size()[..] else {
        panic!()
    };
    let sound = output.waveform(channels);
    check("waveform", &sound, waveform, 1e-5);
    // Whole, and not longer than the picture.
    assert_eq!(sound.size(), waveform.size());
    let seconds = samples as f64 / pipeline.sample_rate() as f64;
    assert!(seconds <= request.num_frames as f64 / request.fps);

    let kept = continuation.frames.unwrap();
    let count = request.num_frames;
    assert_eq!(kept, output.frames().narrow(0, count - 9, 9));
    assert_eq!(
        continuation.audio_num_frames,
        if count < 49 { 9 } else { 49 }
    );
}

#[test]
fn guided_request_equals_the_reference() {
    let case = Case::open();
    let golden = case.reference.golden("guided");
    let mut scheduler = case.reference.scheduler();
    scheduler["use_dynamic_shifting"] = json!(true);
    scheduler["shift_terminal"] = json!(0.1);
    let mut parts = parts(&case.reference.checkpoint(), Precision::Float32);
    parts.scheduler = Scheduler::library(&scheduler).unwrap();
    let mut pipeline = Pipeline::new(parts, one_stage()).unwrap();
    let mut request = case.request();
    request.num_inference_steps = 3;
    request.guidance_scale = 3.0;
    let mut output = Recorder::default();
    pipeline.generate(&request, &mut output).unwrap();
    output.check_steps(&golden, "call", Stage::Denoise, 2);
    let latents = output.last(Stage::Denoise);
    check_result(&case, latents, golden.get("video"), golden.get("audio"));
}

#[test]
fn given_frames_equal_the_reference() {
    let case = Case::open();
    let golden = case.reference.golden("condition");
    let mut pipeline = case.pipeline(Settings {
        draw_order: DrawOrder::Tokens,
        ..one_stage()
    });
    let before = Continuation {
        frames: Some(golden.get("rgb8").copy()),
        audio_latents: None,
        audio_num_frames: 0,
        video_position_offset_sec: 0.0,
        generation: None,
    };
    let mut request = case.request();
    request.start = Start::Segment(&before);
    let mut output = Recorder::default();
    pipeline.generate(&request, &mut output).unwrap();
    output.check_steps(&golden, "call", Stage::Denoise, 1);
    let latents = output.last(Stage::Denoise);
    check_result(&case, latents, golden.get("video"), golden.get("audio"));
    let count = golden.get("rgb8").size()[0];
    assert_eq!(output.frames().size()[0], request.num_frames - count);
}

#[test]
#[expect(
    clippy::cast_possible_truncation,
    reason = "frames and frames per second of a reference are small"
)]
fn continued_segment_equals_the_reference() {
    let case = Case::open();
    let golden = case.reference.golden("continuation");
    let clip = golden.get("in.rgb8");
    let frames = clip.size()[0];
    let offset = golden.get("video_offset_seconds").double_value(&[]);
    let mut request = case.request();
    request.height *= 2;
    request.width *= 2;
    request.num_inference_steps = 5;
    let extra = (offset * request.fps).round() as i64;
    let before = Continuation {
        frames: Some(clip.copy()),
        audio_latents: Some(golden.get("in.audio_latents").copy()),
        audio_num_frames: frames + extra,
        video_position_offset_sec: offset,
        generation: None,
    };
    request.start = Start::Segment(&before);
    let noise = [1, 2].map(|stage| Noise {
        video: golden.get(&format!("stage{stage}.noise.0")).copy(),
        audio: golden.get(&format!("stage{stage}.noise.1")).copy(),
    });
    let mut pipeline = case.pipeline(Settings {
        conditioning: Conditioning {
            num_frames: frames,
            audio_num_frames: frames + extra,
            end_offset: 0,
        },
        ..Settings::default()
    });
    let mut output = Recorder::default();
    let next = pipeline
        .generate_from(&request, &noise, &mut output)
        .unwrap();
    for (stage, name) in [(Stage::Denoise, "stage1"), (Stage::Refine, "stage2")] {
        let latents = output.last(stage);
        check(
            name,
            &latents.video,
            golden.get(&format!("{name}.video")),
            1e-5,
        );
        check(
            name,
            &latents.audio,
            golden.get(&format!("{name}.audio")),
            1e-5,
        );
    }
    let rgb8 = golden.get("rgb8");
    check_rgb8(&output.frames(), &rgb8.i(frames..));
    let waveform = golden.get("waveform");
    let [_, channels, samples] = waveform.size()[..] else {
        panic!()
    };
    let trimmed = (frames + extra) * pipeline.sample_rate() / request.fps as i64;
    let expected = waveform.narrow(2, trimmed, samples - trimmed);
    let sound = output.waveform(channels);
    let sound = sound.narrow(2, 0, (samples - trimmed).min(sound.size()[2]));
    check(
        "waveform",
        &sound,
        &expected.narrow(2, 0, sound.size()[2]),
        1e-5,
    );

    assert!((next.video_position_offset_sec - offset).abs() < 1e-6);
    assert_eq!(next.audio_num_frames, frames + extra);
    let last = rgb8.narrow(0, request.num_frames - frames, frames);
    check_rgb8(&next.frames.unwrap(), &last);
    let audio = latents::pack_audio(&next.audio_latents.unwrap());
    check("next audio", &audio, golden.get("stage2.audio"), 1e-5);
}

#[test]
fn initial_image_becomes_the_first_frame() {
    let case = Case::open();
    let golden = case.reference.golden("video_vae");
    let image = golden.get("encode.rgb8").i(..1);
    let mut pipeline = case.pipeline(one_stage());
    let mut request = case.request();
    request.start = Start::Image(&image);
    let mut output = Recorder::default();
    pipeline.generate(&request, &mut output).unwrap();
    let expected = golden.get("encode.single_frame");
    let clean = parts(&case.reference.checkpoint(), Precision::Float32)
        .video_vae
        .normalize(expected);
    let tokens = latents::pack_video(&clean);
    let kept = output
        .last(Stage::Denoise)
        .video
        .narrow(1, 0, tokens.size()[1]);
    check("first latent frame", &kept, &tokens, 2e-6);
    assert_eq!(output.frames().size()[0], request.num_frames);
}

#[test]
fn sound_is_heard_again_where_that_is_asked_for() {
    let case = Case::open();
    let mut continuations = [false, true].map(|audio_reencode| {
        let mut pipeline = case.pipeline(Settings {
            audio_reencode,
            ..one_stage()
        });
        let mut output = Recorder::default();
        pipeline.generate(&case.request(), &mut output).unwrap()
    });
    let [kept, heard] = continuations
        .each_mut()
        .map(|c| c.audio_latents.take().unwrap());
    let (kept_size, heard_size) = (kept.size(), heard.size());
    assert_eq!((kept_size[1], kept_size[3]), (heard_size[1], heard_size[3]));
    assert!((kept_size[2] - heard_size[2]).abs() <= 1, "{heard_size:?}");
    assert!(bool::try_from(heard.isfinite().all()).unwrap());
    assert!(kept != heard);
}

#[test]
fn sound_that_is_heard_again_ends_at_the_cut_too() {
    let case = Case::open();
    let handed_on = |audio_reencode, cut_frames| {
        let mut pipeline = case.pipeline(Settings {
            audio_reencode,
            ..one_stage()
        });
        let request = Request {
            cut_frames,
            num_inference_steps: 1,
            ..case.request()
        };
        let next = pipeline.generate(&request, &mut Recorder::default());
        next.unwrap().audio_latents.unwrap()
    };
    let [kept, heard] = [false, true].map(|reencode| handed_on(reencode, 0));
    let [cut_kept, cut_heard] = [false, true].map(|reencode| handed_on(reencode, 8));
    let cut_off = kept.size()[2] - cut_kept.size()[2];
    assert!(cut_off > 0);
    assert_eq!(cut_heard, heard.narrow(2, 0, heard.size()[2] - cut_off));
}

#[test]
fn the_same_request_gives_the_same_segment() {
    let case = Case::open();
    let mut pipeline = case.pipeline(Settings::default());
    let mut request = case.request();
    request.height *= 2;
    request.width *= 2;
    request.num_inference_steps = 2;
    let mut make = |request: &Request<'_>| {
        let mut output = Recorder::default();
        let next = pipeline.generate(request, &mut output).unwrap();
        (output.frames(), output.sound, next)
    };
    let (frames, sound, next) = make(&request);
    let second = Request {
        start: Start::Segment(&next),
        ..request
    };
    let (continued, _, _) = make(&second);
    let (frames_again, sound_again, next_again) = make(&request);
    let second = Request {
        start: Start::Segment(&next_again),
        ..request
    };
    assert_eq!(frames, frames_again);
    assert_eq!(sound, sound_again);
    assert_eq!(continued, make(&second).0);
}

/// After each step of both stages, in both generations, from a continued segment too.
#[test]
fn segments_that_go_on_from_a_step_are_the_same() {
    for reference in [Reference::open(), Reference::v2_3()] {
        let case = Case::of(reference);
        let mut pipeline = case.pipeline(Settings::default());
        let mut request = case.request();
        request.height *= 2;
        request.width *= 2;
        request.num_inference_steps = 2;
        let mut first = Recorder::default();
        let before = pipeline.generate(&request, &mut first).unwrap();
        let continued = Request {
            start: Start::Segment(&before),
            ..request
        };
        for request in [request, continued] {
            let mut whole = Recorder::default();
            pipeline.generate(&request, &mut whole).unwrap();
            for (done, (stage, step, _, latents)) in whole.steps.iter().enumerate() {
                let resumed = Request {
                    resume: Some(Resume {
                        stage: *stage,
                        step: *step,
                        latents,
                    }),
                    ..request
                };
                let mut rest = Recorder::default();
                pipeline.generate(&resumed, &mut rest).unwrap();
                assert_eq!(rest.steps.len(), whole.steps.len() - done - 1);
                assert!(rest.frames() == whole.frames() && rest.sound == whole.sound);
            }
        }
    }
}

/// The number of audio latents that the same segment has when it has so many frames.
fn audio_latents_of(pipeline: &mut Pipeline, request: &Request<'_>, num_frames: i64) -> i64 {
    let shorter = Request {
        num_frames,
        cut_frames: 0,
        ..*request
    };
    let made = pipeline.generate(&shorter, &mut Recorder::default());
    made.unwrap().audio_latents.unwrap().size()[2]
}

/// In both generations, from a continued segment too.
#[test]
fn cut_segment_hands_on_what_comes_before_the_cut() {
    for reference in [Reference::open(), Reference::v2_3()] {
        let case = Case::of(reference);
        let mut pipeline = case.pipeline(one_stage());
        let mut request = case.request();
        request.num_inference_steps = 1;
        assert_eq!(request.num_frames, 25);
        let mut first = Recorder::default();
        let before = pipeline.generate(&request, &mut first).unwrap();
        let continued = Request {
            start: Start::Segment(&before),
            ..request
        };
        for request in [request, continued] {
            let mut whole = Recorder::default();
            let whole_next = pipeline.generate(&request, &mut whole).unwrap();
            let whole_audio = whole_next.audio_latents.unwrap();
            let latents_of_17 = audio_latents_of(&mut pipeline, &request, 17);
            for (cut_frames, latents) in [(0, None), (3, None), (8, Some(latents_of_17))] {
                let cut = Request {
                    cut_frames,
                    ..request
                };
                let mut output = Recorder::default();
                let next = pipeline.generate(&cut, &mut output).unwrap();
                // What is passed out is the same.
                assert!(output.frames() == whole.frames() && output.sound == whole.sound);
                let frames = next.frames.unwrap();
                assert_eq!(frames.size()[0], 9);
                // The first of them may be one that this segment began with, and that is not passed out again.
                let shown = whole.frames().size()[0] - cut_frames;
                let count = shown.min(9);
                let expected = whole.frames().narrow(0, shown - count, count);
                let last = frames.narrow(0, 9 - count, count);
                assert_eq!(last, expected, "cut {cut_frames}");
                let audio = next.audio_latents.unwrap();
                let kept = audio.size()[2];
                assert_eq!(audio, whole_audio.narrow(2, 0, kept));
                let all = whole_audio.size()[2];
                assert_eq!(kept == all, cut_frames == 0);
                assert!(latents.is_none_or(|latents| latents == kept), "{kept}");
                assert_eq!(
                    (next.audio_num_frames, next.video_position_offset_sec),
                    (9, 0.0)
                );
            }
        }
    }
}

#[test]
fn offset_of_the_settings_is_added_to_the_cut() {
    let case = Case::open();
    let mut pipeline = case.pipeline(Settings {
        conditioning: Conditioning {
            num_frames: 9,
            audio_num_frames: 9,
            end_offset: 2,
        },
        ..one_stage()
    });
    let mut request = case.request();
    request.num_inference_steps = 1;
    for cut_frames in [0, 3] {
        request.cut_frames = cut_frames;
        let mut output = Recorder::default();
        let next = pipeline.generate(&request, &mut output).unwrap();
        let expected = output.frames().narrow(0, 25 - cut_frames - 2 - 9, 9);
        assert_eq!(next.frames.unwrap(), expected);
    }
}

#[test]
fn cut_near_the_start_hands_on_as_many_frames_as_there_are() {
    let case = Case::open();
    let mut pipeline = case.pipeline(one_stage());
    let mut request = case.request();
    request.num_inference_steps = 1;
    for (shown, kept) in [(1, 1), (2, 1), (8, 1), (9, 9), (10, 9)] {
        request.cut_frames = request.num_frames - shown;
        let mut output = Recorder::default();
        let next = pipeline.generate(&request, &mut output).unwrap();
        let expected = output.frames().narrow(0, shown - kept, kept);
        assert_eq!(next.frames.as_ref().unwrap(), &expected, "{shown} shown");
        assert_eq!(next.audio_num_frames, kept);
        let continued = Request {
            cut_frames: 0,
            start: Start::Segment(&next),
            ..request
        };
        let mut output = Recorder::default();
        pipeline.generate(&continued, &mut output).unwrap();
        assert_eq!(output.frames().size()[0], request.num_frames - kept);
    }
}

/// The last segment of a video may be shorter than the sound that the one before it handed on.
#[test]
fn segment_that_is_shorter_than_the_sound_before_takes_over_as_much_sound_as_picture() {
    let case = Case::open();
    let mut pipeline = case.pipeline(Settings {
        conditioning: Conditioning {
            num_frames: 9,
            audio_num_frames: 25,
            end_offset: 0,
        },
        ..one_stage()
    });
    let mut request = case.request();
    request.num_inference_steps = 1;
    let mut before = pipeline
        .generate(&request, &mut Recorder::default())
        .unwrap();
    assert_eq!(before.audio_num_frames, 25);
    assert!((before.video_position_offset_sec - 16.0 / request.fps).abs() < 1e-9);
    let mut make = |before: &Continuation| {
        let short = Request {
            num_frames: 17,
            start: Start::Segment(before),
            ..request
        };
        let mut output = Recorder::default();
        pipeline.generate(&short, &mut output).unwrap();
        (output.frames(), output.sound)
    };
    let (frames, sound) = make(&before);
    assert_eq!(frames.size()[0], 8);
    before.audio_num_frames = 9;
    before.video_position_offset_sec = 0.0;
    assert!((frames, sound) == make(&before));
}

#[test]
fn steps_of_other_requests_are_refused() {
    let case = Case::open();
    let mut pipeline = case.pipeline(one_stage());
    let mut output = Recorder::default();
    pipeline.generate(&case.request(), &mut output).unwrap();
    let latents = output.last(Stage::Denoise);
    let resume = |stage, step| Resume {
        stage,
        step,
        latents,
    };
    let larger = Request {
        width: 2 * case.request().width,
        ..case.request()
    };
    for (request, resume, told) in [
        (
            case.request(),
            resume(Stage::Denoise, 9),
            "expected 1 to 8, given 9",
        ),
        (
            case.request(),
            resume(Stage::Denoise, 0),
            "expected 1 to 8, given 0",
        ),
        (
            case.request(),
            resume(Stage::Refine, 1),
            "expected a stage of the model, given Refine",
        ),
        (larger, resume(Stage::Denoise, 1), "expected latents [1, "),
    ] {
        let request = Request {
            resume: Some(resume),
            ..request
        };
        let refused = pipeline.check(&request).unwrap_err().to_string();
        assert!(
            refused.starts_with("step to go on from: ") && refused.contains(told),
            "{refused}"
        );
    }
}

#[test]
fn cancelled_request_ends_after_the_step() {
    let case = Case::open();
    let mut pipeline = case.pipeline(one_stage());
    let mut output = Recorder {
        cancel_after: Some(3),
        ..Recorder::default()
    };
    let ended = pipeline.generate(&case.request(), &mut output).unwrap_err();
    assert!(matches!(ended, GenerateError::Cancelled));
    assert_eq!(output.steps.len(), 3);
    assert!(output.frames.is_empty());
}

#[test]
fn what_the_model_cannot_do_is_refused_by_name() {
    let case = Case::open();
    let pipeline = case.pipeline(Settings::default());
    let fine = Request {
        height: 128,
        width: 192,
        ..case.request()
    };
    pipeline.check(&fine).unwrap();
    for (request, refused) in [
        (
            Request { height: 96, ..fine },
            "height: expected a multiple of 64 pixels, at least 64, given 96",
        ),
        (
            Request { width: 0, ..fine },
            "width: expected a multiple of 64 pixels, at least 64, given 0",
        ),
        (
            Request {
                num_frames: 24,
                ..fine
            },
            "num_frames: expected 8k + 1 frames, given 24",
        ),
        (
            Request { fps: 0.0, ..fine },
            "fps: expected more than 0, given 0",
        ),
        (
            Request {
                num_inference_steps: 9,
                ..fine
            },
            "num_inference_steps: expected 1 to 8, given 9",
        ),
        (
            Request {
                guidance_scale: 3.0,
                ..fine
            },
            "guidance_scale: expected 1, as these weights are distilled, given 3",
        ),
        (
            Request {
                num_frames: 1,
                ..fine
            },
            "num_frames: expected at least 9, given 1",
        ),
        (
            Request {
                cut_frames: 25,
                ..fine
            },
            "cut_frames: expected 0 to 24, given 25",
        ),
    ] {
        assert_eq!(pipeline.check(&request).unwrap_err().to_string(), refused);
    }
}

#[test]
fn states_of_other_models_are_refused_by_name() {
    let case = Case::open();
    let pipeline = case.pipeline(one_stage());
    let frames = |count| {
        Some(Tensor::zeros(
            [count, 64, 96, 3],
            (Kind::Uint8, Device::Cpu),
        ))
    };
    let state = |count, latents: [i64; 4], offset| Continuation {
        frames: frames(count),
        audio_latents: Some(Tensor::zeros(latents, (Kind::Float, Device::Cpu))),
        audio_num_frames: 9,
        video_position_offset_sec: offset,
        generation: None,
    };
    let [_, channels, _, bins] = case.reference.golden("audio").get("decode.latents").size()[..]
    else {
        panic!()
    };
    let latents = [1, channels, 20, bins];
    for (before, refused) in [
        (
            state(8, latents, 0.0),
            "state's frames: expected 8k + 1 of them",
        ),
        (
            state(25, latents, 0.0),
            "state's frames: expected 8k + 1 of them, less than 25, given 25",
        ),
        (
            state(9, latents, -1.0),
            "state's video_position_offset_sec: expected 0 to",
        ),
        (
            state(9, latents, 1e9),
            "state's video_position_offset_sec: expected 0 to",
        ),
        (
            state(9, [1, channels + 1, 20, bins], 0.0),
            "state's audio latents: expected [1, ",
        ),
    ] {
        let request = Request {
            start: Start::Segment(&before),
            ..case.request()
        };
        let given = pipeline.check(&request).unwrap_err();
        assert!(matches!(given, GenerateError::State { .. }));
        assert!(given.to_string().starts_with(refused), "{given}");
    }
}

#[test]
fn two_stages_without_an_upsampler_are_refused() {
    let case = Case::open();
    let mut parts = parts(&case.reference.checkpoint(), Precision::Float32);
    parts.upsampler = None;
    let settings = Settings {
        stages: Stages::Two,
        ..Settings::default()
    };
    let refused = Pipeline::new(parts, settings).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "two stages: expected a checkpoint with a latent upsampler, given one without"
    );
}

#[test]
fn bfloat16_makes_a_segment_near_the_reference() {
    let case = Case::open();
    let golden = case.reference.golden("generate");
    let half = parts(&case.reference.checkpoint(), Precision::Bfloat16);
    let mut pipeline = Pipeline::new(half, one_stage()).unwrap();
    let mut output = Recorder::default();
    pipeline.generate(&case.request(), &mut output).unwrap();
    let latents = output.last(Stage::Denoise);
    let (video, audio) = (golden.get("stage1.video"), golden.get("stage1.audio"));
    let (video_grid, audio_grid) = grids_of(video, audio);
    let whole = parts(&case.reference.checkpoint(), Precision::Float32);
    let [v, a] = grids(&whole, latents, &video_grid, &audio_grid);
    check("video", &v, video, 5e-2);
    check("audio", &a, audio, 5e-2);
}

/// The small trained model's first segments and continuations.
#[test]
fn segments_of_the_small_trained_model_equal_the_reference() {
    let Some((tiny, goldens)) = tiny_model() else {
        return;
    };
    let parts = parts(&tiny.checkpoint(), Precision::Float32);
    let mut pipeline = Pipeline::new(parts, Settings::default()).unwrap();
    for (clip, prompt) in [
        (0, "a big red circle moving right on a blue background"),
        (
            1,
            "a yellow star moving down and left on a black background",
        ),
    ] {
        let request = Request {
            prompt,
            negative_prompt: None,
            seed: 10,
            num_inference_steps: 8,
            guidance_scale: 1.0,
            height: 96,
            width: 128,
            num_frames: 33,
            cut_frames: 0,
            fps: 24.0,
            start: Start::Noise,
            adapters: &[],
            resume: None,
        };
        let mut output = Recorder::default();
        let next = pipeline.generate(&request, &mut output).unwrap();
        check_tiny(&goldens, &format!("{clip}.start"), &output, 0);
        let waveform = goldens.get(&format!("{clip}.start.waveform"));
        let sound = output.waveform(waveform.size()[1]);
        let sound = sound.narrow(2, 0, waveform.size()[2]);
        check("waveform", &sound, waveform, 1e-5);

        let kept = goldens.get(&format!("{clip}.continue.kept.rgb8"));
        check_rgb8(next.frames.as_ref().unwrap(), kept);
        assert_eq!(next.audio_num_frames, 9);
        assert_eq!(next.video_position_offset_sec, 0.0);
        // From the reference's frames and sound: what differs by one here and there would add up.
        let audio = goldens.get(&format!("{clip}.start.final.audio"));
        let next = Continuation {
            frames: Some(kept.copy()),
            audio_latents: Some(latents::unpack_audio(audio, &audio_grid(&tiny, audio))),
            ..next
        };
        let request = Request {
            start: Start::Segment(&next),
            ..request
        };
        let mut output = Recorder::default();
        pipeline.generate(&request, &mut output).unwrap();
        check_tiny(&goldens, &format!("{clip}.continue"), &output, 9);
    }
}

/// Of audio tokens.
fn audio_grid(reference: &Reference, audio: &Tensor) -> AudioGrid {
    let config = audio_vae::Config::library(&reference.config("audio_vae")).unwrap();
    AudioGrid {
        channels: config.latent_channels,
        frames: audio.size()[1],
        bins: config.latent_mel_bins(),
    }
}

fn check_tiny(goldens: &Golden, name: &str, output: &Recorder, trimmed: i64) {
    for (_, step, total, latents) in &output.steps {
        let next = match step < total {
            true => format!("{name}.step{step}"),
            false => format!("{name}.final"),
        };
        check(
            &next,
            &latents.video,
            goldens.get(&format!("{next}.video")),
            1e-5,
        );
        check(
            &next,
            &latents.audio,
            goldens.get(&format!("{next}.audio")),
            1e-5,
        );
    }
    // Frames 0, 16 and 32 of the clip.
    let shown = goldens.get(&format!("{name}.rgb8"));
    let frames = output.frames();
    for (i, frame) in [0, 16, 32].into_iter().enumerate() {
        if frame >= trimmed {
            let i = i as i64;
            check_rgb8(
                &frames.i(frame - trimmed..=frame - trimmed),
                &shown.i(i..=i),
            );
        }
    }
}
