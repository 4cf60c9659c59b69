//! Tiles, which are small pictures of some frames of a video, and the sheet, which is one picture of all of them.

use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::{SHEET_COLUMNS, tile_size};
use jpeg_encoder::ColorType;

use super::error::EncodeError;
use super::thumbnail::scale;

/// The JPEG quality of a sheet, 1 to 100.
const QUALITY: u8 = 80;

/// Returns a frame, RGB uint8 `[height, width, 3]`, in the size of a tile.
///
/// # Errors
/// Returns an error when the frame does not have the format's size.
pub(crate) fn tile(rgb: &[u8], format: VideoFormat) -> Result<Vec<u8>, EncodeError> {
    let (expected, actual) = (format.frame_bytes(), rgb.len());
    if actual != expected {
        return Err(EncodeError::FrameSize { expected, actual });
    }
    let from = (format.width as usize, format.height as usize);
    let (width, height) = tile_size(format.width, format.height);
    Ok(scale(rgb, from, (width as usize, height as usize)))
}

/// Returns a JPEG picture of tiles of frames of this format, one after the other in rows of [`SHEET_COLUMNS`]. The rest of the
/// last row is black.
///
/// # Errors
/// Returns an error when there are so many tiles that no JPEG picture is that high, or when it cannot be compressed.
pub(crate) fn sheet(tiles: &[&[u8]], format: VideoFormat) -> Result<Vec<u8>, EncodeError> {
    let (width, height) = tile_size(format.width, format.height);
    let (width, height) = (width as usize, height as usize);
    let columns = SHEET_COLUMNS as usize;
    let rows = tiles.len().div_ceil(columns);
    let side = |what, pixels: usize| {
        u16::try_from(pixels).map_err(|_| EncodeError::Parameter {
            what,
            given: pixels.to_string(),
            expected: "at most 65535",
        })
    };
    let sheet_width = side("sheet's width", columns * width)?;
    let sheet_height = side("sheet's height", rows * height)?;
    let row_bytes = 3 * width;
    let mut sheet = vec![0; rows * height * columns * row_bytes];
    for (n, tile) in tiles.iter().enumerate() {
        let (row, column) = (n / columns, n % columns);
        for (y, pixels) in tile.chunks_exact(row_bytes).enumerate() {
            let at = ((row * height + y) * columns + column) * row_bytes;
            sheet[at..at + row_bytes].copy_from_slice(pixels);
        }
    }
    let mut jpeg = Vec::new();
    jpeg_encoder::Encoder::new(&mut jpeg, QUALITY).encode(
        &sheet,
        sheet_width,
        sheet_height,
        ColorType::Rgb,
    )?;
    Ok(jpeg)
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::link::{MAX_PICTURE_BYTES, MAX_TILES};
    use image::RgbImage;

    use super::*;

    fn format(width: u32, height: u32) -> VideoFormat {
        VideoFormat {
            width,
            height,
            num_frames: 1,
            fps: 24,
        }
    }

    #[track_caller]
    fn check_near(given: &[u8], expected: [u8; 3]) {
        let off = given.iter().zip(expected).map(|(a, b)| a.abs_diff(b)).max();
        assert!(off <= Some(8), "{given:?} for {expected:?}");
    }

    /// Checks the tile of a frame whose quarters have one colour each.
    fn check_tile(width: u32, height: u32, expected_height: u32) {
        let quarters = [[200, 30, 40], [20, 180, 60], [30, 60, 220], [250, 240, 90]];
        let frame = RgbImage::from_fn(width, height, |x, y| {
            let quarter = usize::from(x >= width / 2) + 2 * usize::from(y >= height / 2);
            image::Rgb(quarters[quarter])
        });
        let tile = tile(&frame, format(width, height)).unwrap();
        let tile = RgbImage::from_raw(160, expected_height, tile).unwrap();
        for (x, y, expected) in [(40, 1, 0), (120, 1, 1), (40, 3, 2), (120, 3, 3)] {
            let pixel = tile.get_pixel(x, y * expected_height / 4);
            assert_eq!(pixel.0, quarters[expected], "{width}x{height}");
        }
    }

    #[test]
    fn tile_is_the_whole_frame_in_its_own_proportions() {
        check_tile(1280, 720, 90);
        check_tile(720, 1280, 284);
        check_tile(1024, 1024, 160);
        check_tile(98, 222, 362);
        check_tile(64, 64, 160);
        check_tile(4096, 128, 6);
        check_tile(64, 2176, 640);
    }

    #[test]
    fn frame_of_another_size_is_refused() {
        let error = tile(&[0; 7], format(64, 64)).unwrap_err();
        assert_eq!(error.to_string(), "a frame is 7 bytes, expected 12288");
    }

    fn colour(n: usize) -> [u8; 3] {
        let n = u8::try_from(n).unwrap();
        [60 + 7 * n, 220 - 6 * n, 40 + 8 * (n % 5)]
    }

    /// Checks the sheet of so many tiles of frames of this size.
    fn check_sheet(count: usize, frame: (u32, u32), expected: (u32, u32)) {
        let format = format(frame.0, frame.1);
        let (width, height) = tile_size(frame.0, frame.1);
        let pixels = (width * height) as usize;
        let tiles: Vec<Vec<u8>> = (0..count).map(|n| colour(n).repeat(pixels)).collect();
        let tiles: Vec<&[u8]> = tiles.iter().map(Vec::as_slice).collect();
        let sheet = image::load_from_memory(&super::sheet(&tiles, format).unwrap());
        let sheet = sheet.unwrap().to_rgb8();
        assert_eq!(sheet.dimensions(), expected);
        for cell in 0..count.next_multiple_of(5) {
            let expected = match cell < count {
                true => colour(cell),
                false => [0; 3],
            };
            let n = u32::try_from(cell).unwrap();
            let (x, y) = (n % 5 * width + width / 2, n / 5 * height + height / 2);
            check_near(&sheet.get_pixel(x, y).0, expected);
        }
    }

    #[test]
    fn sheet_has_five_columns_and_as_many_rows_as_it_needs() {
        check_sheet(1, (1280, 720), (800, 90));
        check_sheet(5, (1280, 720), (800, 90));
        check_sheet(6, (1280, 720), (800, 180));
        check_sheet(25, (1280, 720), (800, 450));
        check_sheet(6, (720, 1280), (800, 568));
        check_sheet(7, (66, 70), (800, 340));
        check_sheet(2, (64, 2176), (800, 640));
    }

    #[test]
    fn largest_sheet_of_noise_is_not_too_large() {
        let mut noise = 1_u32;
        let tile: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.to_be_bytes()[0]
        })
        .take(3 * 160 * 640)
        .collect();
        let tiles = vec![&tile[..]; MAX_TILES as usize];
        let sheet = sheet(&tiles, format(64, 2176)).unwrap();
        assert!(sheet.len() <= MAX_PICTURE_BYTES, "{} bytes", sheet.len());
    }
}
