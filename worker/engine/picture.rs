//! A session's initial image, read from its file.

use std::path::Path;

use image::{DynamicImage, ImageReader, Limits};

use super::EngineError;

/// Images are checked before they come here; this only bounds what a mistake could cost.
const MAX_SIDE: u32 = 16_384;
const MAX_BYTES: u64 = 1 << 30;

/// # Errors
/// [`EngineError::Refused`] when it is no image, or too large.
pub(super) fn read(path: &Path) -> Result<DynamicImage, EngineError> {
    let refused = |e: &dyn std::fmt::Display| {
        EngineError::Refused(format!("initial image cannot be decoded: {e}"))
    };
    let mut reader = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|e| refused(&e))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    reader.decode().map_err(|e| refused(&e))
}
