//! Conditioning, which is what a segment takes over from the one before: keys of `streaming.pool` that only engines
//! read.

use crate::settings::{Key, KeySpec};

/// All keys of this file, in the order of `streaming.pool`.
pub static KEYS: &[&KeySpec] = &[
    &NUM_FRAMES.spec,
    &END_OFFSET.spec,
    &ENABLE_AUDIO_REENCODE.spec,
];

/// The number of trailing frames that the next segment begins with.
pub static NUM_FRAMES: Key<u32> = Key::u32("streaming.pool.conditioning_num_frames", 0, 64)
    .unit("frames")
    .help("Last frames of a segment that the next one continues from")
    .default(9);

/// The number of frames at a segment's end that the next one does not take over.
pub static END_OFFSET: Key<u32> = Key::u32("streaming.pool.conditioning_end_offset", 0, 1000)
    .unit("frames")
    .help("Frames at the end of a segment, behind those that the next one takes over")
    .default(0);

/// Whether the audio that is taken over is encoded again.
pub static ENABLE_AUDIO_REENCODE: Key<bool> = Key::switch("streaming.pool.enable_audio_reencode")
    .help("Continue from the sound as it was played, encoded again, and not from the latents it was made of")
    .default(false);
