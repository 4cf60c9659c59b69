//! Drawing into RGB frames: spans, rectangles, soft dots, masks, and the ground below a line of heights.
//!
//! Coordinates are pixels, y down; everything is clipped to the canvas.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "coordinates are clamped to the canvas before they become indices"
)]

use super::colour::Rgb;

/// The number of columns that are filled together by whole rows, once all of them are covered.
const BLOCK: usize = 16;

#[derive(Debug)]
pub(super) struct Canvas<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    /// The pixels, `[height, width, 3]`.
    pub(super) pixels: &'a mut [u8],
}

impl Canvas<'_> {
    fn row(&mut self, y: usize) -> &mut [u8] {
        let stride = self.width * 3;
        &mut self.pixels[y * stride..(y + 1) * stride]
    }

    /// Fills columns `x0..x1` of a row with an opaque colour.
    pub(super) fn fill(&mut self, y: usize, x0: usize, x1: usize, colour: Rgb) {
        fill_span(&mut self.row(y)[x0 * 3..x1 * 3], colour);
    }

    /// Blends one pixel; `alpha` is in 0..=256.
    pub(super) fn blend(&mut self, x: usize, y: usize, colour: Rgb, alpha: i32) {
        let at = (y * self.width + x) * 3;
        for (d, c) in self.pixels[at..at + 3].iter_mut().zip(colour.0) {
            *d = blended(*d, c, alpha);
        }
    }

    /// Draws a bar one row high whose ends may lie within pixels; `alpha` is in 0..=1.
    pub(super) fn bar(&mut self, y: i32, x0: f32, x1: f32, colour: Rgb, alpha: f32) {
        let (x0, x1) = (x0.max(0.0), x1.min(self.width as f32));
        let Ok(y) = usize::try_from(y) else { return };
        if y >= self.height || x1 <= x0 {
            return;
        }
        let (first, last) = (x0 as usize, (x1.ceil() as usize).min(self.width) - 1);
        if first == last {
            self.blend(first, y, colour, weight((x1 - x0) * alpha));
            return;
        }
        self.blend(first, y, colour, weight((first as f32 + 1.0 - x0) * alpha));
        self.blend(last, y, colour, weight((x1 - last as f32) * alpha));
        let inner = &mut self.row(y)[(first + 1) * 3..last * 3];
        if alpha >= 1.0 {
            fill_span(inner, colour);
        } else {
            blend_span(inner, colour, weight(alpha));
        }
    }

    /// Draws a rectangle whose edges may lie within pixels.
    pub(super) fn rect(&mut self, x: [f32; 2], y: [f32; 2], colour: Rgb, alpha: f32) {
        let (top, bottom) = (y[0].max(0.0), y[1].min(self.height as f32));
        let mut row = top.floor();
        while row < bottom {
            let part = (row + 1.0).min(bottom) - row.max(top);
            self.bar(row as i32, x[0], x[1], colour, alpha * part);
            row += 1.0;
        }
    }

    /// Draws a rectangle with rounded corners on whole rows.
    pub(super) fn panel(&mut self, x: [f32; 2], y: [i32; 2], radius: f32, colour: Rgb, alpha: f32) {
        for row in y[0]..y[1] {
            let edge = ((row - y[0]).min(y[1] - 1 - row)) as f32 + 0.5;
            let into = (radius - edge).max(0.0);
            let inset = radius - (radius * radius - into * into).max(0.0).sqrt();
            self.bar(row, x[0] + inset, x[1] - inset, colour, alpha);
        }
    }

    /// Draws a disc with a soft or a hard rim: `soft` is the part of the radius over which it fades.
    pub(super) fn dot(
        &mut self,
        centre: [f32; 2],
        radius: f32,
        soft: f32,
        colour: Rgb,
        alpha: f32,
    ) {
        let [cx, cy] = centre;
        let reach = radius + 1.0;
        let x0 = (cx - reach).floor().max(0.0) as usize;
        let y0 = (cy - reach).floor().max(0.0) as usize;
        let x1 = ((cx + reach).ceil().max(0.0) as usize).min(self.width);
        let y1 = ((cy + reach).ceil().max(0.0) as usize).min(self.height);
        let fade = (radius * soft).max(1.0);
        let full = (radius + 0.5 - fade).max(0.0);
        // Dots smaller than a pixel become faint instead of vanishing between pixels.
        let alpha = alpha * (radius * radius * 4.0).min(1.0);
        for y in y0..y1 {
            let dy = y as f32 + 0.5 - cy;
            for x in x0..x1 {
                let dx = x as f32 + 0.5 - cx;
                let square = dx * dx + dy * dy;
                if square >= (full + fade) * (full + fade) {
                    continue;
                }
                let part = ((full + fade - square.sqrt()) / fade).min(1.0);
                let part = if soft > 0.5 { part * part } else { part };
                self.blend(x, y, colour, weight(part * alpha));
            }
        }
    }

    /// Draws a mask of coverages in a colour, clipped; `at` is its upper left corner.
    pub(super) fn stamp(&mut self, at: [i32; 2], mask: &Mask, colour: Rgb) {
        for (row, line) in mask.cover.chunks_exact(mask.width.max(1)).enumerate() {
            let y = at[1] + row as i32;
            if y < 0 || y as usize >= self.height {
                continue;
            }
            for (column, &cover) in line.iter().enumerate() {
                let x = at[0] + column as i32;
                if cover > 0 && x >= 0 && (x as usize) < self.width {
                    let alpha = i32::from(cover) + i32::from(cover >> 7);
                    self.blend(x as usize, y as usize, colour, alpha);
                }
            }
        }
    }

    /// Fills everything below a line. `edges[x]` is the line's y at the left border of column `x`, with one more entry
    /// than there are columns. Rows from `limit` on are skipped, since something opaque will cover them.
    pub(super) fn ground(&mut self, edges: &[f32], limit: usize, colour: impl Fn(usize) -> Rgb) {
        let limit = limit.min(self.height);
        let colours: Vec<Rgb> = (0..limit).map(colour).collect();
        let solid: Vec<usize> = edges
            .windows(2)
            .take(self.width)
            .enumerate()
            .map(|(x, pair)| self.rim(x, [pair[0], pair[1]], &colours))
            .collect();
        let blocks: Vec<usize> = solid
            .chunks(BLOCK)
            .map(|block| block.iter().copied().max().unwrap_or(0))
            .collect();
        for (x, &from) in solid.iter().enumerate() {
            self.column(x, from, blocks[x / BLOCK], &colours);
        }
        let first = blocks.iter().copied().min().unwrap_or(0);
        for (y, &colour) in colours.iter().enumerate().skip(first) {
            let mut start = None;
            for (i, &from) in blocks.iter().enumerate() {
                if from <= y {
                    start.get_or_insert(i * BLOCK);
                } else if let Some(start) = start.take() {
                    self.fill(y, start, i * BLOCK, colour);
                }
            }
            if let Some(start) = start {
                self.fill(y, start, self.width, colour);
            }
        }
    }

    /// Fills the area between a line and a lower one. Something else will be painted below the lower one.
    pub(super) fn band(
        &mut self,
        edges: &[f32],
        lower: &[f32],
        limit: usize,
        colour: impl Fn(usize) -> Rgb,
    ) {
        let lowest = lower.iter().copied().fold(0.0, f32::max) as usize + 1;
        let limit = limit.min(self.height).min(lowest);
        let colours: Vec<Rgb> = (0..limit).map(colour).collect();
        for x in 0..self.width {
            let (upper, lower) = ([edges[x], edges[x + 1]], [lower[x], lower[x + 1]]);
            if lower[0] - upper[0] + lower[1] - upper[1] < 0.02 {
                continue;
            }
            let from = self.rim(x, upper, &colours);
            let to = lower[0].max(lower[1]).max(0.0) as usize + 1;
            self.column(x, from, to.min(limit), &colours);
        }
    }

    /// Blends the pixels of a column that a line crosses. Returns the row from which the column is completely covered.
    fn rim(&mut self, x: usize, [left, right]: [f32; 2], colours: &[Rgb]) -> usize {
        let bottom = colours.len() as f32;
        let low = left.min(right).clamp(0.0, bottom);
        let high = left.max(right).clamp(0.0, bottom);
        let full = high as usize + usize::from(high.fract() > 0.0);
        for (y, &colour) in colours.iter().enumerate().take(full).skip(low as usize) {
            let part = part_below(low - y as f32, high - y as f32);
            self.blend(x, y, colour, weight(part));
        }
        full
    }

    fn column(&mut self, x: usize, from: usize, to: usize, colours: &[Rgb]) {
        let stride = self.width * 3;
        let mut at = from * stride + x * 3;
        for colour in &colours[from.min(to)..to] {
            self.pixels[at..at + 3].copy_from_slice(&colour.0);
            at += stride;
        }
    }
}

/// A small picture of coverages; 255 is full coverage.
#[derive(Clone, Debug, Default)]
pub(super) struct Mask {
    pub(super) width: usize,
    pub(super) cover: Vec<u8>,
}

/// Returns how much of a pixel lies below a line that enters at `low` and leaves at `high`, both counted from its top.
fn part_below(low: f32, high: f32) -> f32 {
    if high - low < 1e-3 {
        return (1.0 - low).clamp(0.0, 1.0);
    }
    let integral = |u: f32| {
        if u <= 0.0 {
            u
        } else if u >= 1.0 {
            0.5
        } else {
            u - u * u * 0.5
        }
    };
    (integral(high) - integral(low)) / (high - low)
}

pub(super) fn weight(alpha: f32) -> i32 {
    (alpha * 256.0 + 0.5) as i32
}

fn blended(old: u8, new: u8, alpha: i32) -> u8 {
    let (old, new) = (i32::from(old), i32::from(new));
    (old + (((new - old) * alpha + 128) >> 8)) as u8
}

fn fill_span(span: &mut [u8], colour: Rgb) {
    let mut pattern = [0; 48];
    for pixel in pattern.chunks_exact_mut(3) {
        pixel.copy_from_slice(&colour.0);
    }
    let mut chunks = span.chunks_exact_mut(48);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&pattern);
    }
    let rest = chunks.into_remainder();
    let len = rest.len();
    rest.copy_from_slice(&pattern[..len]);
}

fn blend_span(span: &mut [u8], colour: Rgb, alpha: i32) {
    for pixel in span.chunks_exact_mut(3) {
        for (d, c) in pixel.iter_mut().zip(colour.0) {
            *d = blended(*d, c, alpha);
        }
    }
}

/// Cross-fades into `out`: it becomes `from` at 0 and stays unchanged at 1.
pub(super) fn cross_fade(out: &mut [u8], from: &[u8], amount: f32) {
    let amount = weight(amount) as i16;
    for (out, from) in out.iter_mut().zip(from) {
        let (new, old) = (i16::from(*out), i16::from(*from));
        // The amount is halved so that the product fits 16 bits, which doubles the number of SIMD lanes.
        *out = (old + (((new - old) * (amount >> 1)) >> 7)) as u8;
    }
}
