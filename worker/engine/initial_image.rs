//! Reads a session's initial image.

use std::path::Path;

use image::{DynamicImage, ImageReader, Limits};

use super::EngineError;

/// The largest accepted side in pixels. The supervisor has decoded the picture and written the file, so the limits only
/// bound the cost of a mistake there.
const MAX_SIDE: u32 = 16_384;
const MAX_ALLOCATION_BYTES: u64 = 1 << 30;

/// Reads the middle of a picture, in the proportions of `frame` (width and height). Scaling it to a frame costs no more
/// than the frame, whatever the shape of the picture.
///
/// The supervisor's files are PNG and not larger than a frame; only `fastvideo-worker generate` reads files that a user
/// provides.
///
/// # Errors
/// Returns [`EngineError::Refused`] when the file is not an image or is too large.
pub(super) fn read(path: &Path, frame: (u32, u32)) -> Result<DynamicImage, EngineError> {
    let refused = |error: &dyn std::fmt::Display| {
        EngineError::Refused(format!("initial image cannot be decoded: {error}"))
    };
    let mut reader = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|error| refused(&error))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOCATION_BYTES);
    reader.limits(limits);
    let image = reader.decode().map_err(|error| refused(&error))?;
    let (width, height) = middle((image.width(), image.height()), frame);
    let (left, top) = ((image.width() - width) / 2, (image.height() - height) / 2);
    Ok(image.crop_imm(left, top, width, height))
}

/// Returns the largest size within a picture that has the proportions of the frame, in whole pixels.
fn middle((width, height): (u32, u32), frame: (u32, u32)) -> (u32, u32) {
    let [w, h, frame_w, frame_h] = [width, height, frame.0, frame.1].map(u64::from);
    let rounded = |n: u64, by: u64, most: u32| {
        u32::try_from((n + by / 2) / by)
            .unwrap_or(most)
            .clamp(1, most)
    };
    if w * frame_h > h * frame_w {
        (rounded(h * frame_w, frame_h, width), height)
    } else {
        (width, rounded(w * frame_h, frame_w, height))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_has_the_proportions_of_the_frame() {
        let check = |picture, frame, expected| assert_eq!(middle(picture, frame), expected);
        check((768, 512), (768, 512), (768, 512));
        check((300, 100), (256, 256), (100, 100));
        check((1, 16_000), (768, 512), (1, 1));
        check((16_000, 1), (768, 512), (2, 1));
        check((4000, 3000), (768, 512), (4000, 2667));
    }
}
