//! The keys of video jobs: `streaming.videos.*`, and the model's name for their clients.

use std::time::Duration;

use fastvideo_proto::job::VideoFormat;

use super::plan::Model;
use super::webhook::{self, Webhook};
use crate::engines::default_request;
use crate::pool;
use crate::pool::config::{RESERVED_GPUS, YIELD_PAUSE};
use crate::prompt::config::MAX_PROMPT_CHARS;
use crate::session::config::{MAX_IMAGE_PIXELS, MAX_INFERENCE_STEPS, OPENING_TIMEOUT};
use crate::settings::{Key, KeySpec, Reader, Reload};

/// The largest width and height of a video in pixels.
pub(crate) const MAX_SIZE: (u32, u32) = (4096, 2176);
/// The smallest width and height of a video in pixels.
pub(crate) const MIN_SIDE: u32 = 64;

/// The keys of `streaming.videos`, some of which `pool` reads.
pub static KEYS: &[&KeySpec] = &[
    &ENABLED.spec,
    &MAX_SECONDS.spec,
    &MAX_TOTAL_SECONDS.spec,
    &MAX_PIXELS.spec,
    &SIZES.spec,
    &MAX_PARALLEL.spec,
    &RESERVED_GPUS.spec,
    &YIELD_PAUSE.spec,
    &MAX_QUEUED.spec,
    &MAX_QUEUED_PER_TENANT.spec,
    &RETENTION_HOURS.spec,
    &KEEP_STATE.spec,
    &MAX_STORED_GIB.spec,
    &webhook::config::URL.spec,
    &webhook::config::SECRET_ENV.spec,
];

/// The keys of `server` that say how clients name the model.
pub static MODEL_KEYS: &[&KeySpec] = &[&SERVED_MODEL_NAME.spec, &MODEL_ALIASES.spec];

static ENABLED: Key<bool> = Key::switch("streaming.videos.enabled")
    .help("Whether clients may have whole videos made (`/v1/videos`)")
    .default(true);

static MAX_SECONDS: Key<f64> = Key::f64("streaming.videos.max_seconds", 0.001, 86_400.0)
    .unit("seconds")
    .reload(Reload::AtOnce)
    .help("Longest video that may be asked for, and the most that may be added to one at once")
    .default(60.0);

static MAX_TOTAL_SECONDS: Key<f64> =
    Key::f64("streaming.videos.max_total_seconds", 0.001, 86_400.0)
        .unit("seconds")
        .reload(Reload::AtOnce)
        .help("Longest video that may come of extensions")
        .default(600.0);

static MAX_PIXELS: Key<u64> = Key::u64("streaming.videos.max_pixels", 4096, 1 << 24)
    .unit("pixels")
    .reload(Reload::AtOnce)
    .help("Largest picture of a video, width times height")
    .default(2_088_960);

static SIZES: Key<Option<String>> = Key::items(
    "streaming.videos.sizes",
    "WxH,...",
    "sizes such as 1280x720, each of two even numbers",
)
.reload(Reload::AtOnce)
.help("The only sizes that videos may have [default: any even size within the limits]");

static MAX_PARALLEL: Key<usize> = Key::usize("streaming.videos.max_parallel", 0, 1_000_000)
    .unit("jobs")
    .reload(Reload::AtOnce)
    .help("Video jobs that run at once; 0: as many as there are GPUs")
    .default(0);

static MAX_QUEUED: Key<usize> = Key::usize("streaming.videos.max_queued", 1, 1_000_000)
    .unit("jobs")
    .reload(Reload::AtOnce)
    .help("Video jobs that may wait")
    .default(1000);

static MAX_QUEUED_PER_TENANT: Key<usize> =
    Key::usize("streaming.videos.max_queued_per_tenant", 1, 1_000_000)
        .unit("jobs")
        .reload(Reload::AtOnce)
        .help("Video jobs of one tenant that may wait")
        .default(1000);

static RETENTION_HOURS: Key<f64> = Key::f64("streaming.videos.retention_hours", 0.0, 876_000.0)
    .unit("hours")
    .reload(Reload::Later)
    .help("How long a video, or the record of a failed job, is kept after its end; 0: until it is deleted")
    .default(24.0);

static KEEP_STATE: Key<bool> = Key::switch("streaming.videos.keep_state")
    .reload(Reload::Later)
    .help("Whether a finished video can be extended, which takes the state of its last segment")
    .default(true);

static MAX_STORED_GIB: Key<f64> = Key::f64("streaming.videos.max_stored_gib", 0.0, 1e6)
    .unit("GiB")
    .reload(Reload::AtOnce)
    .help("Size of all stored videos at which no further job is taken; 0 is no limit")
    .default(0.0);

static SERVED_MODEL_NAME: Key<Option<String>> = Key::text("server.served_model_name").help(
    "What clients of `/v1/videos` call the model [default: the model's repository or folder, or the engine]",
);

static MODEL_ALIASES: Key<Option<String>> = Key::items(
    "server.model_aliases",
    "NAME,...",
    "names separated by commas",
)
.reload(Reload::AtOnce)
.help("Other names that clients may give for the model, such as sora-2 [default: none]");

/// Limits and defaults of video jobs.
#[derive(Clone, Debug)]
pub struct Config {
    pub enabled: bool,
    /// How clients call the model.
    pub model: String,
    pub model_aliases: Vec<String>,
    pub max_seconds: f64,
    pub max_total_seconds: f64,
    /// Limit on width times height.
    pub max_pixels: u64,
    /// The only sizes that videos may have, width and height; empty where any may be.
    pub sizes: Vec<(u32, u32)>,
    /// The size, the frame rate and the segments of the operator's default request.
    pub format: VideoFormat,
    pub num_inference_steps: u32,
    pub guidance_scale: f64,
    pub negative_prompt: Option<String>,
    pub max_prompt_chars: usize,
    pub max_inference_steps: u32,
    /// Limit on the pixels of an initial image.
    pub max_image_pixels: u64,
    /// How long an initial image may wait until others are decoded.
    pub image_patience: Duration,
    /// The number of jobs that run at once, at least 1.
    pub max_parallel: usize,
    pub max_queued: usize,
    pub max_queued_per_tenant: usize,
    /// How long a job is kept after its end; `None`: until it is deleted.
    pub retention: Option<Duration>,
    pub keep_state: bool,
    /// The size of all videos at which no further job is taken.
    pub max_stored_bytes: Option<u64>,
    /// Whom to tell when a job has ended.
    pub webhook: Option<Webhook>,
    /// Number of workers that may die with one segment before its job is given up.
    pub max_attempts: u32,
    /// The number of steps that follow the denoise steps of a request, as far as it is known.
    pub refine_steps: u32,
    pub(crate) segments: Model,
}

/// Builds the configuration of video jobs on the workers of `pool`.
pub(crate) fn read(reader: &mut Reader<'_>, pool: &pool::Config) -> Config {
    reader.refuse_reversed(&MAX_SECONDS, &MAX_TOTAL_SECONDS);
    let format = default_request::format(reader);
    let retention = reader.get(&RETENTION_HOURS);
    let max_stored_gib = reader.get(&MAX_STORED_GIB);
    Config {
        enabled: reader.get(&ENABLED),
        model: reader
            .non_empty(&SERVED_MODEL_NAME)
            .unwrap_or_else(|| pool.model_name.clone()),
        model_aliases: items(reader.get(&MODEL_ALIASES)),
        max_seconds: reader.get(&MAX_SECONDS),
        max_total_seconds: reader.get(&MAX_TOTAL_SECONDS),
        max_pixels: reader.get(&MAX_PIXELS),
        sizes: sizes(reader),
        format,
        num_inference_steps: reader.get(&default_request::NUM_INFERENCE_STEPS),
        guidance_scale: reader.get(&default_request::GUIDANCE_SCALE),
        negative_prompt: reader.non_empty(&default_request::NEGATIVE_PROMPT),
        max_prompt_chars: reader.get(&MAX_PROMPT_CHARS),
        max_inference_steps: reader.get(&MAX_INFERENCE_STEPS),
        max_image_pixels: reader.get(&MAX_IMAGE_PIXELS),
        image_patience: reader.get(&OPENING_TIMEOUT),
        max_parallel: match reader.get(&MAX_PARALLEL) {
            0 => pool.gpus.len(),
            jobs => jobs,
        },
        max_queued: reader.get(&MAX_QUEUED),
        max_queued_per_tenant: reader.get(&MAX_QUEUED_PER_TENANT),
        retention: (retention > 0.0).then(|| Duration::from_secs_f64(retention * 3600.0)),
        keep_state: reader.get(&KEEP_STATE),
        max_stored_bytes: (max_stored_gib > 0.0).then(|| gib(max_stored_gib)),
        webhook: webhook::config::read(reader),
        max_attempts: reader.get(&pool::config::MAX_ATTEMPTS),
        refine_steps: pool.refine_steps,
        segments: Model {
            segment_frames: format.num_frames,
            repeated_frames: format.num_frames - pool.new_frames,
            shapes: pool.shapes,
        },
    }
}

fn items(list: Option<String>) -> Vec<String> {
    let list = list.unwrap_or_default();
    let items = list.split(',').map(str::trim);
    items
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

fn sizes(reader: &mut Reader<'_>) -> Vec<(u32, u32)> {
    let sizes: Option<Vec<_>> = items(reader.get(&SIZES))
        .iter()
        .map(|item| parse_size(item))
        .collect();
    sizes.unwrap_or_else(|| {
        let expected = format!(
            "sizes such as 1280x720, each of two even numbers from {MIN_SIDE}x{MIN_SIDE} to {}x{}",
            MAX_SIZE.0, MAX_SIZE.1
        );
        reader.refuse(&SIZES.spec, expected);
        Vec::new()
    })
}

/// Parses a size such as `1280x720`; `None` unless both sides are even and within the limits of all models.
pub(crate) fn parse_size(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once('x')?;
    let side = |text: &str, max: u32| {
        let is_plain = text.bytes().all(|c| c.is_ascii_digit());
        let side: u32 = text.parse().ok().filter(|_| is_plain)?;
        ((MIN_SIDE..=max).contains(&side) && side.is_multiple_of(2)).then_some(side)
    };
    Some((side(width, MAX_SIZE.0)?, side(height, MAX_SIZE.1)?))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the key's limits are far below what a u64 holds"
)]
fn gib(gib: f64) -> u64 {
    (gib * f64::from(1_u32 << 30)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_two_even_numbers_within_the_limits() {
        assert_eq!(parse_size("1280x720"), Some((1280, 720)));
        assert_eq!(parse_size("64x64"), Some((64, 64)));
        assert_eq!(parse_size("4096x2176"), Some((4096, 2176)));
        for text in [
            "", "x", "1280", "1280x", "1280x721", "62x64", "4098x64", "64x2178", "+64x64",
            "64 x 64", "64X64", "64x64x64",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
