//! The middle of a frame: a model makes pictures of some sizes only, and those of other sizes are cut out of larger ones.

use super::error::EncodeError;

/// The bytes of a pixel.
const PIXEL: usize = 3;

/// Cuts the middle out of frames, RGB uint8 `[height, width, 3]`.
#[derive(Debug)]
pub(crate) struct Crop {
    /// The width and height of the frames.
    from: (usize, usize),
    /// The width and height of the middle, which are not larger.
    to: (usize, usize),
    /// The column and the row of the middle's first pixel. They are even, so that chroma planes are cut in the same place.
    at: (usize, usize),
    /// The middle of the last frame, where it is not one piece of the frame's memory.
    middle: Vec<u8>,
}

impl Crop {
    /// Creates the crop of frames of the size `from`, `(width, height)`, to the size `to`. A size that is larger than the
    /// frame's is cut down to that.
    pub(crate) fn new(from: (u32, u32), to: (u32, u32)) -> Self {
        let side = |from: u32, to: u32| {
            let to = to.min(from);
            (from as usize, to as usize, ((from - to) / 4 * 2) as usize)
        };
        let (from_width, width, column) = side(from.0, to.0);
        let (from_height, height, row) = side(from.1, to.1);
        Self {
            from: (from_width, from_height),
            to: (width, height),
            at: (column, row),
            middle: Vec::new(),
        }
    }

    /// Returns the middle of a frame. It is a copy only where the frame is wider.
    ///
    /// # Errors
    /// Returns an error when the frame has another size than the crop is for.
    pub(crate) fn middle<'a>(&'a mut self, rgb: &'a [u8]) -> Result<&'a [u8], EncodeError> {
        let row_bytes = PIXEL * self.from.0;
        let (expected, actual) = (row_bytes * self.from.1, rgb.len());
        if actual != expected {
            return Err(EncodeError::FrameSize { expected, actual });
        }
        let (column, row) = self.at;
        let rows = &rgb[row * row_bytes..(row + self.to.1) * row_bytes];
        if self.to.0 == self.from.0 {
            return Ok(rows);
        }
        let columns = PIXEL * column..PIXEL * (column + self.to.0);
        self.middle.clear();
        for row in rows.chunks_exact(row_bytes) {
            self.middle.extend_from_slice(&row[columns.clone()]);
        }
        Ok(&self.middle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels that say where they are.
    fn frame(width: u8, height: u8) -> Vec<u8> {
        let row = |y| (0..width).flat_map(move |x| [x, y, x ^ y]);
        (0..height).flat_map(row).collect()
    }

    /// Checks that the middle of a frame begins at this column and row.
    #[track_caller]
    fn check(from: (u8, u8), to: (u8, u8), at: (u8, u8)) {
        let pixels = frame(from.0, from.1);
        let mut crop = Crop::new((from.0.into(), from.1.into()), (to.0.into(), to.1.into()));
        let row = |y| (0..to.0).flat_map(move |x| [at.0 + x, at.1 + y, (at.0 + x) ^ (at.1 + y)]);
        let expected: Vec<u8> = (0..to.1).flat_map(row).collect();
        // The second one is cut with the memory of the first.
        for _ in 0..2 {
            assert!(crop.middle(&pixels).unwrap() == expected);
        }
    }

    #[test]
    fn middle_begins_at_an_even_place() {
        check((64, 64), (64, 64), (0, 0));
        check((64, 96), (64, 90), (0, 2));
        check((64, 96), (64, 88), (0, 4));
        check((96, 64), (94, 64), (0, 0));
        check((96, 64), (92, 64), (2, 0));
        check((128, 96), (66, 70), (30, 12));
        check((128, 96), (64, 64), (32, 16));
    }

    #[test]
    fn frame_that_is_only_higher_is_not_copied() {
        let pixels = frame(64, 96);
        let mut crop = Crop::new((64, 96), (64, 88));
        let middle = crop.middle(&pixels).unwrap();
        assert!(pixels.as_ptr_range().contains(&middle.as_ptr()));
    }

    #[test]
    fn frame_of_another_size_is_refused() {
        let error = Crop::new((64, 64), (32, 32)).middle(&[0; 7]).unwrap_err();
        assert_eq!(error.to_string(), "a frame is 7 bytes, expected 12288");
    }
}
