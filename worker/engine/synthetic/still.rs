//! The session's initial image as a backdrop that fades into the scene.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "offsets stay within the margin"
)]

use std::path::Path;

use image::imageops::FilterType;

use super::draw;
use super::wave;
use crate::engine::{EngineError, initial_image};

/// How much wider than the picture the image is, so that it can pan.
const PAN: f32 = 0.06;

#[derive(Debug)]
pub(super) struct Still {
    /// The pixels, `[height, wide, 3]`.
    pixels: Vec<u8>,
    wide: usize,
    width: usize,
}

impl Still {
    pub(super) fn open(path: &Path, width: usize, height: usize) -> Result<Self, EngineError> {
        let wide = width + (width as f32 * PAN) as usize + 1;
        let size = (wide as u32, height as u32);
        let scaled =
            initial_image::read(path, size)?.resize_exact(size.0, size.1, FilterType::Triangle);
        Ok(Self {
            pixels: scaled.into_rgb8().into_raw(),
            wide,
            width,
        })
    }

    /// Draws the image over the frame; `progress` is 0 in the first frame and 1 in the last one, where the image has
    /// faded out.
    pub(super) fn paint(&self, progress: f32, frame: &mut [u8]) {
        let shown = 1.0 - wave::smoothstep(progress * 1.3 - 0.3);
        if shown <= 0.0 {
            return;
        }
        let room = (self.wide - self.width - 1) as f32;
        let offset = room * progress;
        let first = offset as usize;
        let mut row = vec![0; self.width * 3];
        for (out, source) in frame
            .chunks_exact_mut(self.width * 3)
            .zip(self.pixels.chunks_exact(self.wide * 3))
        {
            row.copy_from_slice(&source[first * 3..][..out.len()]);
            let next = &source[(first + 1) * 3..][..out.len()];
            draw::cross_fade(&mut row, next, 1.0 - (offset - first as f32));
            draw::cross_fade(out, &row, 1.0 - shown);
        }
    }
}
