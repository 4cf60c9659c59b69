//! Plans one request: sizes, noise levels, kept parts and trims, or the reason why it is refused. Nothing is computed
//! here.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::request::is_clip;
use super::{
    Conditioning, Continuation, GenerateError, Parts, Request, Settings, Stage, Stages, Start,
};
use crate::sampling::guidance::Guidances;
use crate::sampling::latents::{AudioGrid, VideoGrid};
use crate::sampling::schedule::{Scheduler, StepsError};

/// The factor from the first stage's rows and columns to those of the second stage.
const SCALE: i64 = 2;

#[derive(Debug)]
pub(super) struct Plan {
    /// The stages in order.
    pub(super) stages: Vec<StagePlan>,
    pub(super) audio: AudioGrid,
    pub(super) guidance: Guidances,
    pub(super) fps: f64,
    /// The time in seconds by which the sound begins before the picture.
    pub(super) video_offset: f64,
    /// The number of frames of the clip, those included that belong to the segment before.
    pub(super) clip_frames: i64,
    /// The number of audio latents that are given.
    pub(super) kept_audio: i64,
    /// The number of frames at the start that belong to the segment before.
    pub(super) trimmed_frames: i64,
    /// The number of samples at the start that belong to the segment before.
    pub(super) trimmed_samples: i64,
    /// The number of samples that play as long as the frames that are passed out.
    pub(super) samples: i64,
    /// The frames of the clip that the next segment begins with.
    pub(super) next_frames: Range<i64>,
    /// The number of audio latents behind the cut, which the next segment does not begin with.
    pub(super) cut_audio: i64,
    pub(super) next_audio_num_frames: i64,
    pub(super) next_video_offset: f64,
}

#[derive(Debug)]
pub(super) struct StagePlan {
    pub(super) stage: Stage,
    pub(super) grid: VideoGrid,
    /// The height and width of the stage's picture in pixels.
    pub(super) height: i64,
    pub(super) width: i64,
    /// The noise levels, down to 0.
    pub(super) sigmas: Vec<f32>,
}

/// The conditioning that is taken over from the segment before.
struct Kept {
    frames: i64,
    /// The length of the taken-over sound in frames.
    sound: i64,
    audio_latents: i64,
    /// The length in frames of the sound before the picture.
    extra: i64,
    video_offset: f64,
}

impl Plan {
    pub(super) fn new(
        request: &Request<'_>,
        parts: &Parts,
        settings: &Settings,
    ) -> Result<Self, GenerateError> {
        check_rate(request)?;
        let stages = stages(request, parts, settings)?;
        let guidance = guidance(request, parts)?;
        let pace = Pace::new(request, parts);
        let kept = kept(request, parts, &pace)?;
        let latents = pace.audio_latents(request.num_frames + kept.extra);
        let (audio, sampling_rate) = (
            parts.audio_vae.config(),
            parts.vocoder.config().output_sampling_rate,
        );
        let samples = |frames: i64| whole((frames * sampling_rate) as f64 / request.fps);
        let audio_frames = latents.max(kept.audio_latents + 1);
        let audio_values = audio.latent_channels * audio.latent_mel_bins();
        check_resume(request, &stages, [1, audio_frames, audio_values])?;
        let next = settings.conditioning;
        let next_frames = next_frames(request, parts, next)?;
        let cut = request.num_frames - request.cut_frames;
        let before_cut = pace.audio_latents(cut + kept.extra);
        let next_num_frames = next_frames.end - next_frames.start;
        let next_audio_num_frames = match next.audio_num_frames <= cut {
            true => next.audio_num_frames,
            false => next_num_frames,
        };
        let next_extra = (next_audio_num_frames - next_num_frames).max(0);
        Ok(Self {
            stages,
            audio: AudioGrid {
                channels: audio.latent_channels,
                // At least one latent must be left to generate.
                frames: audio_frames,
                bins: audio.latent_mel_bins(),
            },
            guidance,
            fps: request.fps,
            video_offset: kept.video_offset,
            clip_frames: request.num_frames,
            kept_audio: kept.audio_latents,
            trimmed_frames: kept.frames,
            trimmed_samples: samples(kept.sound),
            samples: samples(request.num_frames - kept.frames),
            next_frames,
            cut_audio: audio_frames - before_cut.max(kept.audio_latents + 1),
            next_audio_num_frames,
            next_video_offset: next_extra as f64 / request.fps,
        })
    }
}

/// Returns the frames of the clip that the next segment begins with. Where fewer are before the cut than the settings say,
/// it is as many of them as the VAE accepts, and at least the first frame.
fn next_frames(
    request: &Request<'_>,
    parts: &Parts,
    next: Conditioning,
) -> Result<Range<i64>, GenerateError> {
    if !(0..request.num_frames).contains(&request.cut_frames) {
        let expected = format!("0 to {}", request.num_frames - 1);
        return Err(refused("cut_frames", expected, request.cut_frames));
    }
    let least = next.num_frames + next.end_offset;
    if next.num_frames > 0 && request.num_frames < least {
        let expected = format!("at least {least}");
        return Err(refused("num_frames", expected, request.num_frames));
    }
    let end = (request.num_frames - request.cut_frames - next.end_offset).max(1);
    let ratio = parts.video_vae.config().temporal_ratio();
    let most = (end - 1) / ratio * ratio + 1;
    let count = next.num_frames.min(most);
    Ok(end - count..end)
}

/// Checks that the step to go on from is one of this request's.
fn check_resume(
    request: &Request<'_>,
    stages: &[StagePlan],
    audio: [i64; 3],
) -> Result<(), GenerateError> {
    let Some(resume) = request.resume else {
        return Ok(());
    };
    let stage = stages.iter().find(|stage| stage.stage == resume.stage);
    let Some(stage) = stage else {
        let given = format!("{:?}", resume.stage);
        return Err(refused(
            "step to go on from",
            "a stage of the model".to_owned(),
            given,
        ));
    };
    let steps = stage.sigmas.len() - 1;
    if !(1..=steps).contains(&resume.step) {
        return Err(refused(
            "step to go on from",
            format!("1 to {steps}"),
            resume.step,
        ));
    }
    let video = [1, stage.grid.tokens(), stage.grid.channels];
    for (expected, given) in [
        (video, &resume.latents.video),
        (audio, &resume.latents.audio),
    ] {
        if given.size() != expected || given.kind() != Kind::Float {
            let expected = format!("latents {expected:?} in Float");
            let given = format!("{:?} in {:?}", given.size(), given.kind());
            return Err(refused("step to go on from", expected, given));
        }
    }
    Ok(())
}

/// The ratios between the lengths of sound and frames.
struct Pace {
    fps: f64,
    audio_latents_per_second: f64,
}

impl Pace {
    fn new(request: &Request<'_>, parts: &Parts) -> Self {
        let audio = parts.audio_vae.config();
        let (rate, hop) = (audio.sample_rate as f64, audio.mel_hop_length as f64);
        Self {
            fps: request.fps,
            audio_latents_per_second: rate / hop / audio.compression_ratio() as f64,
        }
    }

    fn audio_latents(&self, frames: i64) -> i64 {
        let seconds = frames as f64 / self.fps;
        // Python rounds half to even, and so does this.
        whole((seconds * self.audio_latents_per_second).round_ties_even())
    }
}

fn check_rate(request: &Request<'_>) -> Result<(), GenerateError> {
    if request.fps.is_finite() && request.fps > 0.0 {
        return Ok(());
    }
    Err(refused("fps", "more than 0".to_owned(), request.fps))
}

fn stages(
    request: &Request<'_>,
    parts: &Parts,
    settings: &Settings,
) -> Result<Vec<StagePlan>, GenerateError> {
    let two = match settings.stages {
        Stages::Automatic => parts.upsampler.is_some(),
        Stages::One => false,
        Stages::Two => true,
    };
    let vae = parts.video_vae.config();
    let (cell, ratio) = (vae.spatial_ratio(), vae.temporal_ratio());
    let multiple = if two { SCALE * cell } else { cell };
    let least = (vae.least_cells() * cell).max(multiple);
    for (field, pixels) in [("height", request.height), ("width", request.width)] {
        if pixels < least || pixels % multiple != 0 {
            let expected = format!("a multiple of {multiple} pixels, at least {least}");
            return Err(refused(field, expected, pixels));
        }
    }
    if !is_clip(request.num_frames, ratio) {
        let expected = format!("{ratio}k + 1 frames");
        return Err(refused("num_frames", expected, request.num_frames));
    }
    let plan = |stage, scale: i64| -> Result<StagePlan, GenerateError> {
        let (height, width) = (request.height / scale, request.width / scale);
        let grid = VideoGrid {
            channels: vae.latent_channels,
            frames: (request.num_frames - 1) / ratio + 1,
            height: height / cell,
            width: width / cell,
        };
        let steps = request.num_inference_steps;
        let sigmas = match stage {
            Stage::Denoise => parts.scheduler.sigmas(steps, grid.tokens()),
            Stage::Refine => Scheduler::refine(settings.refine_steps),
        };
        let field = match stage {
            Stage::Denoise => "num_inference_steps",
            Stage::Refine => "refine_steps",
        };
        Ok(StagePlan {
            stage,
            grid,
            height,
            width,
            sigmas: sigmas.map_err(|error| no_schedule(field, &error))?,
        })
    };
    if two {
        return Ok(vec![plan(Stage::Denoise, SCALE)?, plan(Stage::Refine, 1)?]);
    }
    Ok(vec![plan(Stage::Denoise, 1)?])
}

fn no_schedule(field: &'static str, error: &StepsError) -> GenerateError {
    refused(field, format!("1 to {}", error.most), error.steps)
}

fn guidance(request: &Request<'_>, parts: &Parts) -> Result<Guidances, GenerateError> {
    let scale = request.guidance_scale;
    if !scale.is_finite() || scale < 1.0 {
        return Err(refused("guidance_scale", "1 or more".to_owned(), scale));
    }
    if parts.scheduler == Scheduler::Distilled && scale != 1.0 {
        let expected = "1, as these weights are distilled".to_owned();
        return Err(refused("guidance_scale", expected, scale));
    }
    let generation = parts.transformer_config.generation;
    Ok(Guidances::of_scale(scale, generation))
}

fn kept(request: &Request<'_>, parts: &Parts, pace: &Pace) -> Result<Kept, GenerateError> {
    if let Some(frames) = request.start.frames() {
        check_frames(request, frames, parts)?;
    }
    let Start::Segment(before) = request.start else {
        return Ok(Kept {
            frames: 0,
            sound: 0,
            audio_latents: 0,
            extra: 0,
            video_offset: 0.0,
        });
    };
    let ours = parts.transformer_config.generation;
    if let Some(theirs) = before.generation
        && theirs != ours
        && before.audio_latents.is_some()
    {
        // Frames alone could go on, but not the sound.
        let expected = format!("{ours}, whose sound has other latents");
        return Err(state("model", expected, theirs));
    }
    let frames = before.frames.as_ref().map_or(0, |frames| frames.size()[0]);
    let extra = extra(request, before)?;
    // A segment that is shorter than the sound takes over as much sound as picture.
    let is_short = before.audio_num_frames > request.num_frames;
    let (sound, extra, video_offset) = match is_short {
        true => (frames, 0, 0.0),
        false => (
            before.audio_num_frames,
            extra,
            before.video_position_offset_sec,
        ),
    };
    let audio_latents = match &before.audio_latents {
        Some(cached) => {
            check_audio(cached, parts)?;
            pace.audio_latents(sound).clamp(1, cached.size()[2])
        }
        None => 0,
    };
    Ok(Kept {
        frames,
        sound: frames + extra,
        audio_latents,
        extra,
        video_offset,
    })
}

/// Returns the length in frames of the sound before the picture.
fn extra(request: &Request<'_>, before: &Continuation) -> Result<i64, GenerateError> {
    let offset = before.video_position_offset_sec;
    let sound = before.audio_num_frames;
    if sound < 0 {
        let expected = "0 or more".to_owned();
        return Err(state("audio_conditioning_num_frames", expected, sound));
    }
    let longest = request.num_frames.max(sound) as f64 / request.fps;
    if !(0.0..=longest).contains(&offset) {
        let expected = format!("0 to {longest} seconds");
        return Err(state("video_position_offset_sec", expected, offset));
    }
    Ok(whole((offset * request.fps).round_ties_even()))
}

fn check_frames(
    request: &Request<'_>,
    frames: &Tensor,
    parts: &Parts,
) -> Result<(), GenerateError> {
    let wrong = match request.start {
        Start::Segment(_) => state::<String>,
        Start::Image(_) | Start::Noise => refused::<String>,
    };
    let shape = frames.size();
    let count = match shape[..] {
        [n, height, width, 3] if height > 0 && width > 0 && frames.kind() == Kind::Uint8 => n,
        _ => {
            let given = format!("{:?} {shape:?}", frames.kind());
            let expected = "Uint8 [n, height, width, 3]".to_owned();
            return Err(wrong("frames", expected, given));
        }
    };
    let ratio = parts.video_vae.config().temporal_ratio();
    if !is_clip(count, ratio) || count >= request.num_frames {
        let expected = format!("{ratio}k + 1 of them, less than {}", request.num_frames);
        return Err(wrong("frames", expected, count.to_string()));
    }
    Ok(())
}

fn check_audio(cached: &Tensor, parts: &Parts) -> Result<(), GenerateError> {
    let audio = parts.audio_vae.config();
    let (channels, bins) = (audio.latent_channels, audio.latent_mel_bins());
    match cached.size()[..] {
        [1, c, t, m] if c == channels && t > 0 && m == bins => Ok(()),
        _ => Err(state(
            "audio latents",
            format!("[1, {channels}, T, {bins}]"),
            format!("{:?}", cached.size()),
        )),
    }
}

fn refused<T: ToString>(field: &'static str, expected: String, given: T) -> GenerateError {
    GenerateError::Refused {
        field,
        expected,
        given: given.to_string(),
    }
}

fn state<T: ToString>(field: &'static str, expected: String, given: T) -> GenerateError {
    GenerateError::State {
        field,
        expected,
        given: given.to_string(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounded down on purpose; frames and samples of a segment are far below the limits"
)]
fn whole(x: f64) -> i64 {
    x as i64
}
