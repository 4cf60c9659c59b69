//! Crops a picture to the shape of a frame and averages it to the frame's size, row by row.

use image::RgbImage;

/// Takes the rows of a picture from top to bottom. Beside what it keeps, it holds one row.
///
/// Averages exactly: each pixel counts for the share of its area that lies in the pixel of the result.
#[derive(Debug)]
pub(super) struct Shrinker {
    /// The part of the picture that has the shape of the frame.
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    /// The size of the result, at most that of the part.
    to_width: usize,
    to_height: usize,
    rows_seen: usize,
    /// Sums for one row of the result, over columns and rows; three for each pixel.
    sums: Vec<u64>,
    /// The same, of the last row of the picture alone.
    line: Vec<u64>,
    /// How much of the row of the result is still to come, in units of `1 / to_height` rows of the picture.
    rows_left: usize,
    kept: Vec<u8>,
}

impl Shrinker {
    /// Keeps the middle of a picture, in the proportions of the frame. No size is zero.
    pub(super) fn new(picture: (u32, u32), frame: (u32, u32)) -> Self {
        let (width, height) = part(picture, frame);
        let (to_width, to_height) = if width >= frame.0 && height >= frame.1 {
            frame
        } else {
            (width, height)
        };
        let size = |n: u32| n as usize;
        Self {
            left: size((picture.0 - width) / 2),
            top: size((picture.1 - height) / 2),
            width: size(width),
            height: size(height),
            to_width: size(to_width),
            to_height: size(to_height),
            rows_seen: 0,
            sums: vec![0; size(to_width) * 3],
            line: vec![0; size(to_width) * 3],
            rows_left: size(height),
            kept: Vec::with_capacity(size(to_width) * size(to_height) * 3),
        }
    }

    /// Takes the next row. A pixel has one value (grey), two (grey, alpha), three (RGB) or four (RGBA), and alpha is
    /// dropped.
    pub(super) fn push(&mut self, row: &[u8], channels: usize) {
        let y = self.rows_seen;
        self.rows_seen += 1;
        if y < self.top || y >= self.top + self.height {
            return;
        }
        let pixels = row[self.left * channels..][..self.width * channels].chunks_exact(channels);
        let pixels = pixels.map(|pixel| match *pixel {
            [red, green, blue, ..] => [red, green, blue],
            [grey, ..] => [grey; 3],
            [] => [0; 3],
        });
        if self.to_width == self.width && self.to_height == self.height {
            self.kept.extend(pixels.flatten());
            return;
        }
        average_columns(pixels, self.width, self.to_width, &mut self.line);
        self.average_rows();
    }

    /// Adds the line to the row of the result that it lies in, or to the two.
    fn average_rows(&mut self) {
        let here = self.to_height.min(self.rows_left);
        for (sum, value) in self.sums.iter_mut().zip(&self.line) {
            *sum += value * here as u64;
        }
        self.rows_left -= here;
        if self.rows_left > 0 {
            return;
        }
        let area = (self.width * self.height) as u64;
        let mean = |sum: &u64| u8::try_from((sum + area / 2) / area).unwrap_or(u8::MAX);
        self.kept.extend(self.sums.iter().map(mean));
        let next = self.to_height - here;
        for (sum, value) in self.sums.iter_mut().zip(&self.line) {
            *sum = value * next as u64;
        }
        self.rows_left = self.height - next;
    }

    /// Returns the result, or `None` when rows are missing.
    pub(super) fn finish(self) -> Option<RgbImage> {
        let size = |n: usize| u32::try_from(n).ok();
        RgbImage::from_raw(size(self.to_width)?, size(self.to_height)?, self.kept)
    }
}

/// Returns the largest size within the picture that has the proportions of the frame, in whole pixels.
fn part((width, height): (u32, u32), frame: (u32, u32)) -> (u32, u32) {
    let scaled = |n: u32, by: u32, of: u32, most: u32| {
        let rounded = (u64::from(n) * u64::from(by) + u64::from(of) / 2) / u64::from(of);
        u32::try_from(rounded).unwrap_or(most).clamp(1, most)
    };
    if u64::from(width) * u64::from(frame.1) > u64::from(height) * u64::from(frame.0) {
        (scaled(height, frame.0, frame.1, width), height)
    } else {
        (width, scaled(width, frame.1, frame.0, height))
    }
}

/// Sums `width` pixels to `to_width` ones. A pixel of the result is as wide as `width` units, one of the picture as
/// `to_width`.
fn average_columns(
    pixels: impl Iterator<Item = [u8; 3]>,
    width: usize,
    to_width: usize,
    line: &mut [u64],
) {
    let mut out = line.chunks_exact_mut(3);
    let mut sum = [0_u64; 3];
    let mut left = width;
    for pixel in pixels {
        let pixel = pixel.map(u64::from);
        let here = to_width.min(left);
        for (sum, value) in sum.iter_mut().zip(pixel) {
            *sum += value * here as u64;
        }
        left -= here;
        if left == 0 {
            if let Some(out) = out.next() {
                out.copy_from_slice(&sum);
            }
            let next = to_width - here;
            sum = pixel.map(|value| value * next as u64);
            left = width - next;
        }
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn byte(n: u32) -> u8 {
        n.to_le_bytes()[0]
    }

    fn shrunk(picture: &RgbImage, frame: (u32, u32)) -> RgbImage {
        let mut shrinker = Shrinker::new(picture.dimensions(), frame);
        for row in picture.chunks_exact(picture.width() as usize * 3) {
            shrinker.push(row, 3);
        }
        shrinker.finish().unwrap()
    }

    #[test]
    fn the_middle_is_kept_in_the_shape_of_the_frame() {
        let check = |picture, frame, expected| assert_eq!(part(picture, frame), expected);
        check((300, 100), (256, 256), (100, 100));
        check((100, 300), (256, 256), (100, 100));
        check((1, 16_000), (256, 256), (1, 1));
        check((16_000, 1), (768, 512), (2, 1));
        check((4000, 3000), (768, 512), (4000, 2667));
        check((3, 2), (768, 512), (3, 2));
        let picture = RgbImage::from_fn(9, 3, |x, _| Rgb([byte(x) * 10, 0, 0]));
        let kept = shrunk(&picture, (64, 64));
        assert_eq!(kept.dimensions(), (3, 3));
        assert_eq!(kept.get_pixel(0, 0), &Rgb([30, 0, 0]));
        assert_eq!(kept.get_pixel(2, 2), &Rgb([50, 0, 0]));
    }

    #[test]
    fn a_picture_that_is_not_larger_keeps_its_pixels() {
        let picture = RgbImage::from_fn(12, 8, |x, y| Rgb([byte(x), byte(y), 7]));
        assert_eq!(shrunk(&picture, (12, 8)), picture);
        assert_eq!(shrunk(&picture, (768, 512)), picture);
    }

    #[test]
    fn pixels_are_averaged_by_area() {
        // Three columns become two: the one in the middle counts for both, by half.
        let picture = RgbImage::from_fn(3, 3, |x, y| Rgb([byte(x) * 90, byte(y) * 90, 255]));
        let kept = shrunk(&picture, (2, 2));
        assert_eq!(kept.get_pixel(0, 0), &Rgb([30, 30, 255]));
        assert_eq!(kept.get_pixel(1, 1), &Rgb([150, 150, 255]));
        let flat = RgbImage::from_pixel(1013, 677, Rgb([1, 128, 255]));
        for frame in [(1012, 676), (1000, 668), (64, 42), (2, 2)] {
            let kept = shrunk(&flat, frame);
            assert_eq!(kept.dimensions(), frame);
            assert!(kept.pixels().all(|pixel| pixel.0 == [1, 128, 255]));
        }
    }

    #[test]
    fn every_kind_of_row_is_taken() {
        let push = |row: &[u8], channels| {
            let mut shrinker = Shrinker::new((2, 1), (64, 32));
            shrinker.push(row, channels);
            shrinker.finish().unwrap().into_raw()
        };
        assert_eq!(push(&[1, 2], 1), [1, 1, 1, 2, 2, 2]);
        assert_eq!(push(&[1, 0, 2, 0], 2), [1, 1, 1, 2, 2, 2]);
        assert_eq!(push(&[1, 2, 3, 4, 5, 6], 3), [1, 2, 3, 4, 5, 6]);
        assert_eq!(push(&[1, 2, 3, 0, 4, 5, 6, 0], 4), [1, 2, 3, 4, 5, 6]);
        assert!(Shrinker::new((2, 2), (64, 64)).finish().is_none());
    }
}
