//! Warm-up, in which a worker generates two segments before it counts as ready: the keys `streaming.warmup.*`.

use std::time::Duration;

use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::WarmupSpec;

use super::default_request::{self, MAX_STEPS};
use crate::settings::{DAY, Key, KeySpec, Reader};

/// The keys of `streaming.warmup`.
pub static KEYS: &[&KeySpec] = &[
    &ENABLED.spec,
    &PROMPT.spec,
    &TIMEOUT.spec,
    &WIDTH.spec,
    &HEIGHT.spec,
    &NUM_FRAMES.spec,
    &NUM_INFERENCE_STEPS.spec,
];

static ENABLED: Key<bool> = Key::switch("streaming.warmup.enabled")
    .help("Generate two segments before a worker counts as ready: small ones, or for a model such as the default request asks for")
    .default(true);

static PROMPT: Key<String> = Key::text("streaming.warmup.prompt")
    .help("Prompt of the warm-up segments")
    .default("A paper lantern drifts over a quiet lake at dusk, slow camera, soft light");

/// The time limit on a worker's start: the pool ends a worker that is not ready by then.
pub static TIMEOUT: Key<Duration> = Key::seconds("streaming.warmup.timeout_seconds", 0.1, DAY)
    .help("Time that a worker has from its start to its readiness, loading and warm-up together")
    .default(2400.0);

pub static WIDTH: Key<u32> = Key::u32("streaming.warmup.width", 64, 4096)
    .even()
    .unit("pixels")
    .help("Width of the warm-up segments")
    .default(256);

pub static HEIGHT: Key<u32> = Key::u32("streaming.warmup.height", 64, 2176)
    .even()
    .unit("pixels")
    .help("Height of the warm-up segments")
    .default(256);

pub static NUM_FRAMES: Key<u32> = Key::u32("streaming.warmup.num_frames", 1, 1000)
    .unit("frames")
    .help("Frames of each warm-up segment")
    .default(8);

pub static NUM_INFERENCE_STEPS: Key<u32> =
    Key::u32("streaming.warmup.num_inference_steps", 1, MAX_STEPS)
        .unit("steps")
        .help("Denoise steps of each warm-up segment")
        .default(1);

/// Returns what warm-up generates, or `None` when it is disabled. `at_full_size` says whether the engine needs warm-up
/// at full size.
pub fn read(reader: &mut Reader<'_>, at_full_size: bool) -> Option<WarmupSpec> {
    if !reader.get(&ENABLED) {
        return None;
    }
    reader.refuse_blank(&PROMPT, "a text that is not empty");
    let reader = &*reader;
    Some(WarmupSpec {
        prompt: reader.get(&PROMPT),
        format: VideoFormat {
            width: size(reader, at_full_size, &WIDTH, &default_request::WIDTH),
            height: size(reader, at_full_size, &HEIGHT, &default_request::HEIGHT),
            num_frames: size(
                reader,
                at_full_size,
                &NUM_FRAMES,
                &default_request::NUM_FRAMES,
            ),
            fps: reader.get(&default_request::FPS),
        },
        num_inference_steps: size(
            reader,
            at_full_size,
            &NUM_INFERENCE_STEPS,
            &default_request::NUM_INFERENCE_STEPS,
        ),
    })
}

/// Returns whether warm-up generates segments like those of the default request, so that its timing says how long one
/// takes.
pub fn is_typical(reader: &Reader<'_>, at_full_size: bool) -> bool {
    let pairs = [
        (&WIDTH, &default_request::WIDTH),
        (&HEIGHT, &default_request::HEIGHT),
        (&NUM_FRAMES, &default_request::NUM_FRAMES),
        (&NUM_INFERENCE_STEPS, &default_request::NUM_INFERENCE_STEPS),
    ];
    pairs
        .iter()
        .all(|(own, usual)| size(reader, at_full_size, own, usual) == reader.get(usual))
}

/// Returns the value of warm-up's own key, or that of the default request when the engine warms up at full size and
/// warm-up's own key is not given.
fn size(reader: &Reader<'_>, at_full_size: bool, own: &Key<u32>, usual: &Key<u32>) -> u32 {
    match at_full_size && !reader.is_given(&own.spec) {
        true => reader.get(usual),
        false => reader.get(own),
    }
}
