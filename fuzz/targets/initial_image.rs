//! The picture of an initial image, as it comes from a client: any bytes. libFuzzer's limits bound time and memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

use crate::picture::Limits;

// The supervisor's own files (`picture` and `picture.rs` are links to them).
mod picture;

const LIMITS: Limits = Limits {
    max_pixels: 1 << 20,
    frame: (64, 48),
};

fuzz_target!(|data: &[u8]| {
    let Ok(format) = picture::format(data) else {
        return;
    };
    // What is taken is no larger than a frame.
    if let Ok(picture) = picture::read(data.to_vec(), format, &LIMITS) {
        assert!(picture.width() > 0 && picture.width() <= 64);
        assert!(picture.height() > 0 && picture.height() <= 48);
    }
});
