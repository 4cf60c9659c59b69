//! A request within the operator's limits, with every value filled in: by the operator's defaults, or by the video that the new one
//! is made of.

use std::time::Duration;

use fastvideo_proto::stored_video::{StoredVideo, VideoStatus};

use super::ask::{Ask, Length, Named};
use super::error::VideoError;
use crate::video::NewVideo;

/// How long a video is if its request does not tell and the operator permits as much, in milliseconds.
const DEFAULT_MS: u64 = 4000;

/// The operator's limits and defaults.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::http) struct Rules {
    /// The name of the served model.
    pub(in crate::http) model: String,
    /// Further names by which clients may ask for it.
    pub(in crate::http) model_aliases: Vec<String>,
    /// Width and height in pixels.
    pub(in crate::http) size: (u32, u32),
    pub(in crate::http) fps: u32,
    pub(in crate::http) num_inference_steps: u32,
    pub(in crate::http) guidance_scale: f64,
    pub(in crate::http) negative_prompt: Option<String>,
    /// The longest video, and the most that is added to one at a time.
    pub(in crate::http) max_length: Duration,
    /// The longest video with all that was added to it.
    pub(in crate::http) max_total_length: Duration,
    /// The limit on width times height.
    pub(in crate::http) max_pixels: u64,
    /// The sizes that there are; all, if empty.
    pub(in crate::http) sizes: Vec<(u32, u32)>,
    /// The limit on a prompt, in Unicode characters.
    pub(in crate::http) max_prompt_chars: usize,
    pub(in crate::http) max_inference_steps: u32,
}

/// What a request has for the fields that it leaves out.
struct Defaults<'a> {
    negative_prompt: Option<&'a str>,
    seed: Option<u64>,
    num_inference_steps: u32,
    guidance_scale: f64,
    size: (u32, u32),
    fps: u32,
    /// Number of frames, at the rate that the request asks for if it does.
    frames: u64,
}

/// Checks a request for a video that is made of nothing else.
///
/// # Errors
/// Returns a refusal when the request is beyond a limit.
pub(in crate::http) fn create(ask: Ask, rules: &Rules) -> Result<NewVideo, VideoError> {
    let fps = ask.fps.as_ref().map_or(rules.fps, |fps| fps.value);
    if ask.size.is_none() {
        check_size("size", rules.size, rules)?;
    }
    let defaults = Defaults {
        negative_prompt: rules.negative_prompt.as_deref(),
        seed: None,
        num_inference_steps: rules.num_inference_steps,
        guidance_scale: rules.guidance_scale,
        size: rules.size,
        fps,
        frames: frames_of(default_ms(rules), fps).max(1),
    };
    complete(ask, rules, &defaults)
}

/// Checks a request for a video like another one: all that it leaves out is as it was there.
///
/// # Errors
/// Returns a refusal when the other video is not completed, or the request is beyond a limit.
pub(in crate::http) fn remix(
    ask: Ask,
    rules: &Rules,
    source: &StoredVideo,
) -> Result<NewVideo, VideoError> {
    check_completed(source)?;
    let mut defaults = Defaults::of(source);
    // A new rate alone leaves the length as it is.
    if let Some(fps) = &ask.fps {
        defaults.frames = rescaled(defaults.frames, defaults.fps, fps.value);
    }
    complete(ask, rules, &defaults)
}

/// Checks a request for more of a video. Its size, rate and steps are those of the video.
///
/// # Errors
/// Returns a refusal when the video is not completed or there is no state to go on from, when the request asks for another format,
/// and when it is beyond a limit.
pub(in crate::http) fn extend(
    mut ask: Ask,
    rules: &Rules,
    source: &StoredVideo,
) -> Result<NewVideo, VideoError> {
    refuse_other_format(&ask)?;
    check_completed(source)?;
    if source.model != rules.model {
        return Err(VideoError::not_extendable(
            "another model has made the video",
        ));
    }
    if source.state.is_none() {
        let why = "the state in which the video ends was not kept";
        return Err(VideoError::not_extendable(why));
    }
    let length = ask.length.get_or_insert(Named {
        param: "seconds",
        value: Length::Milliseconds(default_ms(rules)),
    });
    let param = length.param;
    let defaults = Defaults::of(source);
    let new = complete(ask, rules, &defaults)?;
    let limit = frames_of(milliseconds(rules.max_total_length), new.fps);
    let total = defaults.frames.saturating_add(new.frames);
    if total > limit {
        let expected = format!(
            "at most {} seconds with those that are extended, which are {limit} frames",
            rules.max_total_length.as_secs_f64()
        );
        return Err(VideoError::invalid_value(
            param,
            expected,
            format!("{total} frames"),
        ));
    }
    Ok(new)
}

impl<'a> Defaults<'a> {
    /// Those of a video that is made of another one.
    fn of(source: &'a StoredVideo) -> Self {
        let request = &source.request;
        Self {
            negative_prompt: request.negative_prompt.as_deref(),
            seed: Some(request.seed),
            num_inference_steps: request.num_inference_steps,
            guidance_scale: request.guidance_scale,
            size: source.plan.shown,
            fps: source.plan.fps,
            frames: source.plan.frames(),
        }
    }
}

fn check_completed(source: &StoredVideo) -> Result<(), VideoError> {
    match source.status {
        VideoStatus::Completed => Ok(()),
        VideoStatus::Failed { .. } => Err(VideoError::source_failed("video")),
        VideoStatus::Queued | VideoStatus::InProgress => Err(VideoError::source_not_ready("video")),
    }
}

/// Refuses what an extension has from its video.
fn refuse_other_format(ask: &Ask) -> Result<(), VideoError> {
    let given = [
        ask.size.as_ref().map(|size| size.param),
        ask.fps.as_ref().map(|fps| fps.param),
        ask.num_inference_steps.map(|_| "num_inference_steps"),
        ask.image.as_ref().map(|image| image.param),
    ];
    match given.into_iter().flatten().next() {
        Some(param) => {
            let why = "an extension goes on as the video is";
            Err(VideoError::unsupported_parameter(param, why))
        }
        None => Ok(()),
    }
}

fn complete(ask: Ask, rules: &Rules, defaults: &Defaults<'_>) -> Result<NewVideo, VideoError> {
    check_model(&ask, rules)?;
    check_chars("prompt", &ask.prompt, rules)?;
    if let Some(negative) = &ask.negative_prompt {
        check_chars("negative_prompt", negative, rules)?;
    }
    if let Some(size) = &ask.size {
        check_size(size.param, size.value, rules)?;
    }
    check_steps(ask.num_inference_steps, rules)?;
    let fps = ask.fps.as_ref().map_or(defaults.fps, |fps| fps.value);
    let frames = match &ask.length {
        Some(length) => frames(length, fps, rules)?,
        // Whatever a video already has, another one may have.
        None => defaults.frames,
    };
    Ok(NewVideo {
        prompt: ask.prompt,
        negative_prompt: ask
            .negative_prompt
            .or_else(|| defaults.negative_prompt.map(str::to_owned)),
        seed: ask.seed.or(defaults.seed),
        num_inference_steps: ask
            .num_inference_steps
            .unwrap_or(defaults.num_inference_steps),
        guidance_scale: ask.guidance_scale.unwrap_or(defaults.guidance_scale),
        enhance_prompt: ask.enhance_prompt.unwrap_or(false),
        size: ask.size.map_or(defaults.size, |size| size.value),
        fps,
        frames,
        image: ask.image.map(|image| image.value),
        metadata: ask.metadata.unwrap_or_default(),
    })
}

fn check_model(ask: &Ask, rules: &Rules) -> Result<(), VideoError> {
    let Some(model) = &ask.model else {
        return Ok(());
    };
    match *model == rules.model || rules.model_aliases.contains(model) {
        true => Ok(()),
        false => Err(VideoError::other_model(model, &rules.model)),
    }
}

fn check_chars(param: &'static str, text: &str, rules: &Rules) -> Result<(), VideoError> {
    let (limit, given) = (rules.max_prompt_chars, text.chars().count());
    if given > limit {
        let expected = format!("at most {limit} characters");
        return Err(VideoError::invalid_value(
            param,
            expected,
            given.to_string(),
        ));
    }
    Ok(())
}

fn check_size(param: &'static str, size: (u32, u32), rules: &Rules) -> Result<(), VideoError> {
    let (width, height) = size;
    let given = format!("{width}x{height}");
    if !rules.sizes.is_empty() && !rules.sizes.contains(&size) {
        let sizes = rules.sizes.iter().map(|(w, h)| format!("`{w}x{h}`"));
        let expected = format!("one of {}", sizes.collect::<Vec<_>>().join(", "));
        return Err(VideoError::invalid_value(param, expected, given));
    }
    if u64::from(width) * u64::from(height) > rules.max_pixels {
        let expected = format!("at most {} pixels", rules.max_pixels);
        return Err(VideoError::invalid_value(param, expected, given));
    }
    Ok(())
}

fn check_steps(steps: Option<u32>, rules: &Rules) -> Result<(), VideoError> {
    let limit = rules.max_inference_steps;
    match steps {
        Some(steps) if !(1..=limit).contains(&steps) => {
            let expected = format!("from 1 to {limit}");
            let given = steps.to_string();
            Err(VideoError::invalid_value(
                "num_inference_steps",
                expected,
                given,
            ))
        }
        _ => Ok(()),
    }
}

/// Returns the number of frames of a length that a request asks for.
fn frames(length: &Named<Length>, fps: u32, rules: &Rules) -> Result<u64, VideoError> {
    let max_ms = milliseconds(rules.max_length);
    let limit = frames_of(max_ms, fps);
    let refused = |expected: String, given: String| {
        Err(VideoError::invalid_value(length.param, expected, given))
    };
    match length.value {
        Length::Frames(frames) if !(1..=limit).contains(&frames) => {
            let seconds = rules.max_length.as_secs_f64();
            let expected = format!("from 1 to {limit} frames, which are {seconds} seconds");
            refused(expected, frames.to_string())
        }
        Length::Frames(frames) => Ok(frames),
        Length::Milliseconds(ms) if ms > max_ms => {
            let expected = format!("at most {}", rules.max_length.as_secs_f64());
            refused(expected, in_seconds(ms))
        }
        Length::Milliseconds(ms) => match frames_of(ms, fps) {
            0 => {
                let expected = format!("at least half of a frame at {fps} frames per second");
                refused(expected, in_seconds(ms))
            }
            frames => Ok(frames),
        },
    }
}

/// Returns how long a video is if its request does not tell, in milliseconds.
fn default_ms(rules: &Rules) -> u64 {
    DEFAULT_MS.min(milliseconds(rules.max_length))
}

/// Returns the number of frames that is nearest to a time.
fn frames_of(ms: u64, fps: u32) -> u64 {
    let frames = (u128::from(ms) * u128::from(fps) + 500) / 1000;
    u64::try_from(frames).unwrap_or(u64::MAX)
}

/// Returns the number of frames of the same length at another rate, at least 1.
fn rescaled(frames: u64, fps: u32, new_fps: u32) -> u64 {
    let fps = u128::from(fps.max(1));
    let frames = (u128::from(frames) * u128::from(new_fps) + fps / 2) / fps;
    u64::try_from(frames).unwrap_or(u64::MAX).max(1)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn in_seconds(ms: u64) -> String {
    let text = format!("{}.{:03}", ms / 1000, ms % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
