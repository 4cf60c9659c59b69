//! Reads an untrusted picture at a bounded cost, upright and as a frame shows it.
//!
//! What a picture costs is known from its header and refused there: its pixels, its shape, and the memory that its
//! decoder takes. The decoded rows go straight through [`Shrinker`], so that what is kept is never larger than a frame.
//!
//! - `jpeg`, `png`, `webp`: one file format each. They hand nothing to their decoder that it does not need for the pixels:
//!   no profiles, no text, no animation.
//! - `prefix_codes`: bounds what the codes of a lossless WebP take.
//! - `shrink`: crops rows to the shape of the frame and averages them to its size.

use image::metadata::Orientation;
use image::{DynamicImage, ImageFormat, RgbImage};

use shrink::Shrinker;

mod jpeg;
mod png;
mod prefix_codes;
mod shrink;
mod webp;

/// The longest side is at most this many times the shortest one.
const MAX_ASPECT: u32 = 16;
/// The limit on the memory that one picture takes, in bytes: its decoder's, its file, and the message that brought it.
///
/// The worst pictures of each kind within these limits have taken at most 210 MiB and, in a release build, 0.25 s of one
/// core (progressive JPEG of 44 scans), 0.75 s (JPEG of 24 MiB), 1.0 s (lossless WebP) or 1.2 s (PNG with 16 bits).
const MAX_BYTES: u64 = 240 << 20;

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The limit on width times height.
    pub(super) max_pixels: u64,
    /// Width and height of a frame, for which the picture is cropped and shrunk.
    pub(super) frame: (u32, u32),
}

/// Why a picture cannot be used. Both texts are safe to show to whoever sent it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, got {given}")]
pub(super) struct Unfit {
    pub(super) expected: String,
    pub(super) given: String,
}

impl Unfit {
    fn new(expected: impl Into<String>, given: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
            given: given.into(),
        }
    }

    fn damaged(format: ImageFormat, error: impl std::fmt::Display) -> Self {
        let expected = format!("a whole {}", format.to_mime_type());
        Self::new(expected, format!("a damaged one ({error})"))
    }
}

/// Returns the format of a file, which its first bytes tell.
///
/// # Errors
/// Returns an error unless it is PNG, JPEG or WebP.
pub(super) fn format(bytes: &[u8]) -> Result<ImageFormat, Unfit> {
    use ImageFormat::{Jpeg, Png, WebP};
    let expected = "a PNG, JPEG or WebP file";
    match image::guess_format(bytes) {
        Ok(format @ (Png | Jpeg | WebP)) => Ok(format),
        Ok(other) => Err(Unfit::new(expected, other.to_mime_type())),
        Err(_) => Err(Unfit::new(expected, "bytes of no known image type")),
    }
}

/// Decodes a picture of this format, turns it as its EXIF orientation says, crops it to the shape of the frame and, if it
/// is larger than the frame, shrinks it to its size. Transparency is dropped; of an animation the first picture is taken.
///
/// # Errors
/// Returns an error when the picture is damaged or exceeds a limit.
pub(super) fn read(
    bytes: Vec<u8>,
    format: ImageFormat,
    limits: &Limits,
) -> Result<RgbImage, Unfit> {
    match format {
        ImageFormat::Jpeg => jpeg::read(bytes, limits),
        ImageFormat::WebP => webp::read(bytes, limits),
        _ => png::read(&bytes, limits),
    }
}

/// Checks the size that a header tells, before pixels are decoded.
fn check_size((width, height): (u32, u32), limits: &Limits) -> Result<(), Unfit> {
    let given = || format!("{width}x{height}");
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        let expected = format!("at most {} pixels", limits.max_pixels);
        return Err(Unfit::new(expected, given()));
    }
    let (short, long) = (width.min(height), width.max(height));
    if long > short.saturating_mul(MAX_ASPECT) {
        let expected = format!("a picture at most {MAX_ASPECT} times as long as wide");
        return Err(Unfit::new(expected, given()));
    }
    Ok(())
}

/// Checks what a picture of this size needs: `decoder` bytes beside its file. `kind` says what makes it need so much.
fn check_memory(
    decoder: u64,
    file: &[u8],
    kind: &str,
    (width, height): (u32, u32),
) -> Result<(), Unfit> {
    // The connection still has the memory of the message, in which the file was base64.
    let needed = decoder + file.len() as u64 * 7 / 3;
    if needed <= MAX_BYTES {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Unfit::new(
        format!("at most {} MiB to decode", mib(MAX_BYTES)),
        format!("{} MiB ({kind}, {width}x{height})", mib(needed)),
    ))
}

/// Turns a file's Exif data into the orientation that they tell. Unreadable data tell none.
fn orientation(exif: Option<&[u8]>) -> Orientation {
    let exif = exif.map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(exif));
    exif.and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms)
}

/// Returns what takes the rows of a picture of this size, as they are stored, and keeps what a frame shows of the upright
/// picture.
fn shrinker(size: (u32, u32), orientation: Orientation, limits: &Limits) -> Shrinker {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let (width, height) = limits.frame;
    let frame = match orientation {
        Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH => (height, width),
        _ => (width, height),
    };
    Shrinker::new(size, frame)
}

/// Turns the kept part of a picture upright.
fn upright(kept: RgbImage, orientation: Orientation) -> RgbImage {
    let mut picture = DynamicImage::ImageRgb8(kept);
    picture.apply_orientation(orientation);
    picture.into_rgb8()
}

#[cfg(test)]
mod tests;
