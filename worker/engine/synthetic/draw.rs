//! Drawing into RGB frames: spans, anti-aliased shapes, soft dots, and the ground below a line of heights.
//!
//! Coordinates are pixels, y down; everything is clipped to the canvas.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "coordinates are clamped to the canvas before they become indices"
)]

use super::colour::Rgb;
use super::wave;

/// Columns that a ridge is looked at together: few enough to follow a slope, enough to skip most pixels.
const BLOCK: usize = 16;

#[derive(Debug)]
pub(super) struct Canvas<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    /// `[height, width, 3]`.
    pub(super) pixels: &'a mut [u8],
}

impl Canvas<'_> {
    fn row(&mut self, y: usize) -> &mut [u8] {
        let stride = self.width * 3;
        &mut self.pixels[y * stride..(y + 1) * stride]
    }

    /// Opaque, columns `x0..x1`.
    pub(super) fn fill(&mut self, y: usize, x0: usize, x1: usize, colour: Rgb) {
        fill_span(&mut self.row(y)[x0 * 3..x1 * 3], colour);
    }

    /// One pixel, `alpha` in 0..=256.
    fn blend(&mut self, x: usize, y: usize, colour: Rgb, alpha: i32) {
        let at = (y * self.width + x) * 3;
        for (d, c) in self.pixels[at..at + 3].iter_mut().zip(colour.0) {
            *d = blended(*d, c, alpha);
        }
    }

    /// A bar one row high whose ends may lie within pixels; `alpha` in 0..=1.
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
        self.blend(
            first,
            y,
            colour,
            weight((first as f32 + 1.0 - x0) * alpha),
        );
        self.blend(last, y, colour, weight((x1 - last as f32) * alpha));
        let inner = &mut self.row(y)[(first + 1) * 3..last * 3];
        if alpha >= 1.0 {
            fill_span(inner, colour);
        } else {
            blend_span(inner, colour, weight(alpha));
        }
    }

    /// A rectangle whose edges may lie within pixels.
    pub(super) fn rect(&mut self, x: [f32; 2], y: [f32; 2], colour: Rgb, alpha: f32) {
        let (top, bottom) = (y[0].max(0.0), y[1].min(self.height as f32));
        let mut row = top.floor();
        while row < bottom {
            let part = (row + 1.0).min(bottom) - row.max(top);
            self.bar(row as i32, x[0], x[1], colour, alpha * part);
            row += 1.0;
        }
    }

    /// A rectangle with rounded corners on whole rows.
    pub(super) fn panel(&mut self, x: [f32; 2], y: [i32; 2], radius: f32, colour: Rgb, alpha: f32) {
        for row in y[0]..y[1] {
            let edge = ((row - y[0]).min(y[1] - 1 - row)) as f32 + 0.5;
            let into = (radius - edge).max(0.0);
            let inset = radius - (radius * radius - into * into).max(0.0).sqrt();
            self.bar(row, x[0] + inset, x[1] - inset, colour, alpha);
        }
    }

    /// A disc with a soft or a hard rim: `soft` is the part of the radius over which it fades.
    pub(super) fn dot(&mut self, centre: [f32; 2], radius: f32, soft: f32, colour: Rgb, alpha: f32) {
        let [cx, cy] = centre;
        let reach = radius + 1.0;
        let x0 = (cx - reach).floor().max(0.0) as usize;
        let y0 = (cy - reach).floor().max(0.0) as usize;
        let x1 = ((cx + reach).ceil().max(0.0) as usize).min(self.width);
        let y1 = ((cy + reach).ceil().max(0.0) as usize).min(self.height);
        let fade = (radius * soft).max(1.0);
        let full = (radius + 0.5 - fade).max(0.0);
        // Dots smaller than a pixel grow faint instead of vanishing between pixels.
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

    /// A mask of coverages in a colour, clipped; `at` is its upper left corner.
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

    /// Everything below a line: `edges[x]` is the line's y at the left border of column `x`, one entry more than there
    /// are columns. Rows from `limit` on are left alone, since something opaque will cover them.
    pub(super) fn ground(&mut self, edges: &[f32], limit: usize, colour: impl Fn(usize) -> Rgb) {
        let limit = limit.min(self.height);
        let solid = self.ground_rim(edges, limit, &colour);
        let blocks: Vec<(usize, usize)> = solid
            .chunks(BLOCK)
            .map(|b| (b.iter().copied().min().unwrap_or(0), b.iter().copied().max().unwrap_or(0)))
            .collect();
        let first = blocks.iter().map(|b| b.0).min().unwrap_or(0);
        let last = blocks.iter().map(|b| b.1).max().unwrap_or(0).min(limit);
        for y in first..last {
            let colour = colour(y);
            let mut start = None;
            for (i, &(low, high)) in blocks.iter().enumerate() {
                let from = i * BLOCK;
                if y >= high {
                    start.get_or_insert(from);
                } else if y < low {
                    if let Some(start) = start.take() {
                        self.fill(y, start, from, colour);
                    }
                } else {
                    for (x, &solid) in solid.iter().enumerate().skip(from).take(BLOCK) {
                        if solid <= y {
                            start.get_or_insert(x);
                        } else if let Some(start) = start.take() {
                            self.fill(y, start, x, colour);
                        }
                    }
                }
            }
            if let Some(start) = start {
                self.fill(y, start, self.width, colour);
            }
        }
        for y in last.max(first)..limit {
            self.fill(y, 0, self.width, colour(y));
        }
    }

    /// Blends the pixels that the line crosses; returns for each column the row from which it is covered whole.
    fn ground_rim(
        &mut self,
        edges: &[f32],
        limit: usize,
        colour: &impl Fn(usize) -> Rgb,
    ) -> Vec<usize> {
        let bottom = limit as f32;
        let mut solid = Vec::with_capacity(self.width);
        for (x, pair) in edges.windows(2).take(self.width).enumerate() {
            let low = pair[0].min(pair[1]).clamp(0.0, bottom);
            let high = pair[0].max(pair[1]).clamp(0.0, bottom);
            let full = high.ceil() as usize;
            for y in low as usize..full {
                let part = part_below(low - y as f32, high - y as f32);
                self.blend(x, y, colour(y), weight(part));
            }
            solid.push(full);
        }
        solid
    }
}

/// A small picture of coverages, 255 being whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Mask {
    pub(super) width: usize,
    pub(super) cover: Vec<u8>,
}

/// How much of a pixel lies below a line that enters at `low` and leaves at `high`, both counted from its top.
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

fn weight(alpha: f32) -> i32 {
    (alpha * 256.0 + 0.5) as i32
}

fn blended(old: u8, new: u8, alpha: i32) -> u8 {
    let (old, new) = (i32::from(old), i32::from(new));
    (old + ((new - old) * alpha + 128 >> 8)) as u8
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

/// `out` becomes `from` at 0 and stays as it is at 1.
pub(super) fn cross_fade(out: &mut [u8], from: &[u8], amount: f32) {
    let amount = weight(amount) as i16;
    for (out, from) in out.iter_mut().zip(from) {
        let (new, old) = (i16::from(*out), i16::from(*from));
        // Halved so that the product fits 16 bits: twice as many lanes.
        *out = (old + ((new - old) * (amount >> 1) >> 7)) as u8;
    }
}

/// Closed outlines, filled together with exact coverage; overlaps of outlines that run the same way round count once.
#[derive(Debug, Default)]
pub(super) struct Shape {
    lines: Vec<[[f32; 2]; 2]>,
    cover: Vec<f32>,
}

impl Shape {
    pub(super) fn polygon(&mut self, points: &[[f32; 2]]) {
        let area: f32 = pairs(points).map(|[a, b]| a[0] * b[1] - b[0] * a[1]).sum();
        for [a, b] in pairs(points) {
            self.lines.push(if area >= 0.0 { [a, b] } else { [b, a] });
        }
    }

    /// `tilt` turns it, in turns.
    pub(super) fn ellipse(&mut self, centre: [f32; 2], radii: [f32; 2], tilt: f32) {
        let corners = ((radii[0].max(radii[1]).max(0.0) * 1.5) as usize).clamp(12, 96);
        let (s, c) = (wave::sin(wave::turns(tilt)), wave::cos(wave::turns(tilt)));
        let points: Vec<_> = (0..corners)
            .map(|i| {
                let phase = wave::turns(i as f32 / corners as f32);
                let (x, y) = (wave::cos(phase) * radii[0], wave::sin(phase) * radii[1]);
                [centre[0] + x * c - y * s, centre[1] + x * s + y * c]
            })
            .collect();
        self.polygon(&points);
    }

    pub(super) fn circle(&mut self, centre: [f32; 2], radius: f32) {
        self.ellipse(centre, [radius, radius], 0.0);
    }

    /// A thick line with round ends that may differ in thickness.
    pub(super) fn limb(&mut self, from: [f32; 2], to: [f32; 2], radii: [f32; 2]) {
        let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
        let length = (dx * dx + dy * dy).sqrt().max(1e-3);
        let (nx, ny) = (-dy / length, dx / length);
        self.polygon(&[
            [from[0] + nx * radii[0], from[1] + ny * radii[0]],
            [to[0] + nx * radii[1], to[1] + ny * radii[1]],
            [to[0] - nx * radii[1], to[1] - ny * radii[1]],
            [from[0] - nx * radii[0], from[1] - ny * radii[0]],
        ]);
        self.circle(from, radii[0]);
        self.circle(to, radii[1]);
    }

    /// Draws the outlines and forgets them.
    pub(super) fn paint(&mut self, canvas: &mut Canvas<'_>, colour: Rgb, alpha: f32) {
        let Some([x0, y0, x1, y1]) = self.bounds(canvas) else {
            self.lines.clear();
            return;
        };
        let (columns, rows) = (x1 - x0, y1 - y0);
        // Two more columns: one for what a pixel hands to its right neighbour, one for what lies beyond.
        let stride = columns + 2;
        self.cover.clear();
        self.cover.resize(stride * rows, 0.0);
        for line in &self.lines {
            let shifted = line.map(|[x, y]| [x - x0 as f32, y - y0 as f32]);
            cover_line(&mut self.cover, stride, rows, shifted);
        }
        for (row, cover) in self.cover.chunks_exact(stride).enumerate() {
            let mut sum = 0.0_f32;
            for (x, part) in cover[..columns].iter().enumerate() {
                sum += part;
                if sum > 0.002 {
                    canvas.blend(x0 + x, y0 + row, colour, weight(sum.min(1.0) * alpha));
                }
            }
        }
        self.lines.clear();
    }

    /// Pixels that the outlines touch, `[x0, y0, x1, y1]`, the last two exclusive.
    fn bounds(&self, canvas: &Canvas<'_>) -> Option<[usize; 4]> {
        let points = self.lines.iter().flatten();
        let (mut low, mut high) = ([f32::MAX; 2], [f32::MIN; 2]);
        for point in points {
            for axis in 0..2 {
                low[axis] = low[axis].min(point[axis]);
                high[axis] = high[axis].max(point[axis]);
            }
        }
        let size = [canvas.width as f32, canvas.height as f32];
        let from = |axis: usize| low[axis].clamp(0.0, size[axis]).floor() as usize;
        let to = |axis: usize| high[axis].clamp(0.0, size[axis]).ceil() as usize;
        let bounds = [from(0), from(1), to(0), to(1)];
        (bounds[0] < bounds[2] && bounds[1] < bounds[3]).then_some(bounds)
    }
}

fn pairs(points: &[[f32; 2]]) -> impl Iterator<Item = [[f32; 2]; 2]> + '_ {
    let next = points.iter().cycle().skip(1);
    points.iter().zip(next).map(|(&a, &b)| [a, b])
}

/// Adds what a line changes to each pixel's running sum of coverage along its row.
fn cover_line(cover: &mut [f32], stride: usize, rows: usize, line: [[f32; 2]; 2]) {
    let [[xa, ya], [xb, yb]] = line;
    if ya == yb {
        return;
    }
    let (sign, [x0, y0], [x1, y1]) = if ya > yb {
        (1.0, [xb, yb], [xa, ya])
    } else {
        (-1.0, [xa, ya], [xb, yb])
    };
    let slope = (x1 - x0) / (y1 - y0);
    let (top, bottom) = (y0.max(0.0), y1.min(rows as f32));
    let mut y = top;
    while y < bottom {
        let row = (y as usize).min(rows - 1);
        let end = (row as f32 + 1.0).min(bottom);
        if end <= y {
            break;
        }
        let from = x0 + (y - y0) * slope;
        let to = x0 + (end - y0) * slope;
        let cells = &mut cover[row * stride..(row + 1) * stride];
        cover_row(cells, from.min(to), from.max(to), (end - y) * sign);
        y = end;
    }
}

/// A line's part within one row: from `low` to `high` in x, of signed height `rise`.
fn cover_row(cells: &mut [f32], low: f32, high: f32, rise: f32) {
    let right = (cells.len() - 2) as f32;
    if low >= right {
        return;
    }
    if high <= 0.0 {
        cells[0] += rise;
        return;
    }
    let per_x = rise / (high - low).max(1e-6);
    let mut x = low;
    loop {
        let column = x.max(0.0).floor();
        let end = if x < 0.0 {
            high.min(0.0)
        } else {
            high.min(column + 1.0)
        };
        let part = if high - low < 1e-6 {
            rise
        } else {
            (end - x) * per_x
        };
        let middle = ((x + end) * 0.5).max(0.0) - column;
        let cell = column as usize;
        cells[cell] += part * (1.0 - middle);
        cells[cell + 1] += part * middle;
        x = end;
        if x >= high || x >= right {
            return;
        }
    }
}
