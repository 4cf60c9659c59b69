//! Reads a session's initial image.

use std::path::Path;

use image::{DynamicImage, ImageReader, Limits};

use super::EngineError;

/// The largest accepted side in pixels. The supervisor has decoded the picture and written the file, so the limits only
/// bound the cost of a mistake there.
const MAX_SIDE: u32 = 16_384;
const MAX_ALLOCATION_BYTES: u64 = 1 << 30;

/// Reads a picture. The supervisor's files are PNG; only `fastvideo-worker generate` reads files that a user provides.
///
/// # Errors
/// Returns [`EngineError::Refused`] when the file is not an image or is too large.
pub(super) fn read(path: &Path) -> Result<DynamicImage, EngineError> {
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
    reader.decode().map_err(|error| refused(&error))
}
