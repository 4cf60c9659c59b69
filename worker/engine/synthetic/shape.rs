//! Anti-aliased shapes of any outline.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "coordinates are clamped to the canvas before they become indices"
)]

use super::colour::Rgb;
use super::draw::{Canvas, weight};
use super::wave;

/// Closed outlines that are filled together with exact coverage; overlaps of outlines with the same orientation count
/// once.
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

    /// Adds an ellipse, rotated by `tilt` turns.
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

    /// Adds a thick line with round ends that may differ in thickness.
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

    /// Draws the outlines and removes them from the shape.
    pub(super) fn paint(&mut self, canvas: &mut Canvas<'_>, colour: Rgb, alpha: f32) {
        let Some([x0, y0, x1, y1]) = self.bounds(canvas) else {
            self.lines.clear();
            return;
        };
        let (columns, rows) = (x1 - x0, y1 - y0);
        // Two more columns are needed: one for what a pixel passes to its right neighbour, one for what lies beyond.
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

    /// Returns the pixels that the outlines touch, `[x0, y0, x1, y1]`, the last two exclusive.
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

/// Adds a line's changes to each pixel's running sum of coverage along its row.
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

/// Adds the part of a line within one row: from `low` to `high` in x, of signed height `rise`.
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
