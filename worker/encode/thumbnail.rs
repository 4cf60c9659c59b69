//! Small JPEG pictures of a segment's frames, whatever container the segment has: thumbnails, and previews.

use fastvideo_proto::job::VideoFormat;
use jpeg_encoder::ColorType;

use super::error::EncodeError;

/// The longer side of the thumbnail of a larger frame, in pixels.
const MAX_SIDE: u32 = 320;
/// The JPEG quality, 1 to 100. At 80, a thumbnail has 3 to 40 kB.
const QUALITY: u8 = 80;
/// The longer side of a video's thumbnail where its frames are larger, in pixels.
const VIDEO_MAX_SIDE: u32 = 640;
/// The longer side of the preview of a larger frame, in pixels.
const PREVIEW_MAX_SIDE: u32 = 640;
/// The JPEG quality of previews. At 75, one has 10 to 80 kB.
const PREVIEW_QUALITY: u8 = 75;

/// A small picture.
#[derive(Debug)]
pub(crate) struct SmallPicture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) jpeg: Vec<u8>,
}

/// Returns the index of the frame that a segment's thumbnail shows: the middle one. The first frames of a segment look
/// like the last ones of the segment before, which it continues; its middle shows what its own prompt asked for.
pub(crate) fn thumbnail_frame(num_frames: u32) -> u32 {
    num_frames / 2
}

/// Returns a frame, RGB uint8 `[height, width, 3]`, as a JPEG picture whose longer side has at most [`MAX_SIDE`] pixels.
///
/// # Errors
/// Returns an error when the frame does not have the format's size, or when it cannot be compressed.
pub(crate) fn thumbnail(rgb: &[u8], format: VideoFormat) -> Result<Vec<u8>, EncodeError> {
    let picture = small_picture(rgb, (format.width, format.height), MAX_SIDE, QUALITY)?;
    Ok(picture.jpeg)
}

/// Returns a frame as the thumbnail of a whole video, a JPEG picture whose longer side has at most [`VIDEO_MAX_SIDE`] pixels.
///
/// # Errors
/// Returns the errors of [`thumbnail`].
pub(crate) fn video_thumbnail(rgb: &[u8], format: VideoFormat) -> Result<Vec<u8>, EncodeError> {
    let size = (format.width, format.height);
    let picture = small_picture(rgb, size, VIDEO_MAX_SIDE, QUALITY)?;
    Ok(picture.jpeg)
}

/// Returns a picture of the size `(width, height)`, even numbers, as a preview whose longer side has at most
/// [`PREVIEW_MAX_SIDE`] pixels.
///
/// # Errors
/// Returns the errors of [`thumbnail`].
pub(crate) fn preview(rgb: &[u8], size: (u32, u32)) -> Result<SmallPicture, EncodeError> {
    small_picture(rgb, size, PREVIEW_MAX_SIDE, PREVIEW_QUALITY)
}

fn small_picture(
    rgb: &[u8],
    (from_width, from_height): (u32, u32),
    max_side: u32,
    quality: u8,
) -> Result<SmallPicture, EncodeError> {
    let from = (from_width as usize, from_height as usize);
    let (expected, actual) = (3 * from.0 * from.1, rgb.len());
    if actual != expected {
        return Err(EncodeError::FrameSize { expected, actual });
    }
    let (width, height) = size(from_width, from_height, max_side);
    let small = scale(rgb, from, (width.into(), height.into()));
    let mut jpeg = Vec::new();
    jpeg_encoder::Encoder::new(&mut jpeg, quality).encode(&small, width, height, ColorType::Rgb)?;
    Ok(SmallPicture {
        width: width.into(),
        height: height.into(),
        jpeg,
    })
}

/// Returns the size of the small picture of a frame: its proportions in even numbers, and never larger than the frame. The
/// sides of a frame are even.
fn size(width: u32, height: u32, max_side: u32) -> (u16, u16) {
    let longer = width.max(height);
    let scaled = |side: u32| {
        let even = 2 * ((side * longer.min(max_side) + longer) / (2 * longer));
        u16::try_from(even).expect("a side is not longer than `max_side`")
    };
    (scaled(width), scaled(height))
}

/// Scales an RGB picture from one size to another. Each pixel is the mean of a box of pixels, or one pixel where the
/// picture grows. From 1088x1920 to a thumbnail this takes 1.1 ms, and `image::imageops::thumbnail` 7.8 ms.
pub(super) fn scale(rgb: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let (width, height) = from;
    let (small_width, small_height) = to;
    let part = |n: usize, of: usize, length: usize| {
        let first = n * length / of;
        first..((n + 1) * length / of).max(first + 1)
    };
    let mut small = Vec::with_capacity(3 * small_width * small_height);
    // The sums of the columns of a row of boxes. 16 bits suffice for 257 rows, and a box has fewer than 40.
    let mut sums = vec![0_u16; 3 * width];
    for y in 0..small_height {
        let rows = part(y, small_height, height);
        sums.fill(0);
        for row in rgb[3 * width * rows.start..3 * width * rows.end].chunks_exact(3 * width) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += u16::from(*value);
            }
        }
        for x in 0..small_width {
            let columns = part(x, small_width, width);
            let count = u32::try_from(rows.len() * columns.len()).expect("a box is small");
            let mut sum = [0_u32; 3];
            for pixel in sums[3 * columns.start..3 * columns.end].chunks_exact(3) {
                for (sum, value) in sum.iter_mut().zip(pixel) {
                    *sum += u32::from(*value);
                }
            }
            let mean = |sum| u8::try_from((sum + count / 2) / count);
            small.extend(sum.map(|sum| mean(sum).expect("a mean of bytes is a byte")));
        }
    }
    small
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, Rgb, RgbImage};

    use super::*;

    fn format(width: u32, height: u32) -> VideoFormat {
        VideoFormat {
            width,
            height,
            num_frames: 1,
            fps: 24,
        }
    }

    fn decode(jpeg: &[u8]) -> RgbImage {
        let picture = image::load_from_memory_with_format(jpeg, ImageFormat::Jpeg);
        picture.unwrap().to_rgb8()
    }

    #[test]
    fn sides_keep_their_proportions_and_are_never_longer() {
        let check = |frame: (u32, u32), expected| {
            assert_eq!(size(frame.0, frame.1, MAX_SIDE), expected, "{frame:?}");
        };
        check((64, 64), (64, 64));
        check((66, 70), (66, 70));
        check((320, 318), (320, 318));
        check((322, 320), (320, 318));
        check((768, 512), (320, 214));
        check((1920, 1088), (320, 182));
        check((1088, 1920), (182, 320));
        check((4096, 2176), (320, 170));
        check((4096, 64), (320, 6));
        check((64, 2176), (10, 320));
    }

    /// Checks the thumbnail of a frame whose quarters have one colour each.
    fn check_colours(width: u32, height: u32) {
        let quarters = [[200, 30, 40], [20, 180, 60], [30, 60, 220], [250, 240, 90]];
        let frame = RgbImage::from_fn(width, height, |x, y| {
            Rgb(quarters[usize::from(x >= width / 2) + 2 * usize::from(y >= height / 2)])
        });
        let jpeg = thumbnail(&frame, format(width, height)).unwrap();
        let shown = decode(&jpeg);
        let (w, h) = size(width, height, MAX_SIDE);
        assert_eq!(shown.dimensions(), (w.into(), h.into()));
        for (index, expected) in (0..).zip(quarters) {
            let (right, lower) = (index % 2, index / 2);
            let middle = |side: u32, second: u32| side * (1 + 2 * second) / 4;
            let Rgb(given) =
                *shown.get_pixel(middle(shown.width(), right), middle(shown.height(), lower));
            let off = given.iter().zip(expected).map(|(a, b)| a.abs_diff(b)).max();
            assert!(
                off <= Some(8),
                "{width}x{height}: {given:?} for {expected:?}"
            );
        }
    }

    #[test]
    fn colours_come_back_at_any_size() {
        for (width, height) in [(64, 64), (66, 70), (98, 222), (768, 512), (1088, 1920)] {
            check_colours(width, height);
        }
    }

    #[test]
    fn details_are_averaged_and_not_skipped() {
        let (width, height) = (1280, 640);
        let frame = RgbImage::from_fn(width, height, |x, y| {
            Rgb([255 * u8::from((x ^ y) & 1 == 0); 3])
        });
        let jpeg = thumbnail(&frame, format(width, height)).unwrap();
        let grey = |value: &u8| value.abs_diff(128) <= 4;
        assert!(decode(&jpeg).iter().all(grey));
    }

    #[test]
    fn previews_say_their_size() {
        for (from, expected) in [((480, 272), (480, 272)), ((960, 544), (640, 362))] {
            let frame = RgbImage::from_fn(from.0, from.1, |_, y| {
                Rgb([200, u8::try_from(y % 256).unwrap(), 40])
            });
            let preview = preview(&frame, from).unwrap();
            assert_eq!((preview.width, preview.height), expected);
            assert_eq!(decode(&preview.jpeg).dimensions(), expected);
        }
        assert!(preview(&[0; 7], (64, 64)).is_err());
    }

    #[test]
    fn frame_of_another_size_is_refused() {
        let error = thumbnail(&[0; 7], format(64, 64)).unwrap_err();
        assert_eq!(error.to_string(), "a frame is 7 bytes, expected 12288");
    }
}
