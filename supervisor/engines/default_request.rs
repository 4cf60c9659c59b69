//! The keys `default_request.*`: the values for the fields that a request leaves out.

use fastvideo_proto::job::VideoFormat;

use crate::settings::{Key, KeySpec, Reader, Reload};

/// The most denoise steps that any key accepts: no sampler in use takes more.
pub const MAX_STEPS: u32 = 1000;
/// The largest guidance scale, for the default and for requests.
pub const MAX_GUIDANCE: f64 = 100.0;

/// The keys of `default_request`.
pub static KEYS: &[&KeySpec] = &[
    &NEGATIVE_PROMPT.spec,
    &WIDTH.spec,
    &HEIGHT.spec,
    &NUM_FRAMES.spec,
    &FPS.spec,
    &NUM_INFERENCE_STEPS.spec,
    &SEED.spec,
    &GUIDANCE_SCALE.spec,
];

pub static NEGATIVE_PROMPT: Key<Option<String>> = Key::text("default_request.negative_prompt")
    .reload(Reload::Later)
    .help("What the video should not show");

pub static WIDTH: Key<u32> = Key::u32("default_request.sampling.width", 64, 4096)
    .even()
    .unit("pixels")
    .help("Width of the video")
    .default(768);

pub static HEIGHT: Key<u32> = Key::u32("default_request.sampling.height", 64, 2176)
    .even()
    .unit("pixels")
    .help("Height of the video")
    .default(512);

pub static NUM_FRAMES: Key<u32> = Key::u32("default_request.sampling.num_frames", 1, 1000)
    .unit("frames")
    .help("Frames of one segment")
    .default(121);

pub static FPS: Key<u32> = Key::u32("default_request.sampling.fps", 1, 120)
    .unit("frames per second")
    .help("Frames per second")
    .default(24);

pub static NUM_INFERENCE_STEPS: Key<u32> =
    Key::u32("default_request.sampling.num_inference_steps", 1, MAX_STEPS)
        .unit("steps")
        .reload(Reload::Later)
        .help("Denoise steps of one segment")
        .default(8);

pub static SEED: Key<u64> = Key::u64("default_request.sampling.seed", 0, u64::MAX)
    .reload(Reload::Later)
    .help("Seed of a request that brings none")
    .default(10);

pub static GUIDANCE_SCALE: Key<f64> =
    Key::f64("default_request.sampling.guidance_scale", 0.0, MAX_GUIDANCE)
        .reload(Reload::Later)
        .help("Guidance scale; 1 is without guidance")
        .default(1.0);

/// Returns the shape of the video that a request gets.
pub fn format(reader: &Reader<'_>) -> VideoFormat {
    VideoFormat {
        width: reader.get(&WIDTH),
        height: reader.get(&HEIGHT),
        num_frames: reader.get(&NUM_FRAMES),
        fps: reader.get(&FPS),
    }
}
