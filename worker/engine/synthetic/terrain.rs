//! The outlines of the land: periodic tables of heights, of which each frame shows a part.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positions on a table are taken modulo its length"
)]

use super::wave::{self, Dice};

/// The period of the land in picture heights.
pub(super) const PERIOD: f32 = 8.0;

/// Heights above a base line, in picture heights, over one period.
#[derive(Clone, Debug)]
pub(super) struct Outline {
    heights: Vec<f32>,
    bits: u32,
}

/// A lit window: the position of its lower left corner on the outline, in turns and picture heights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) at: u32,
    pub(super) height: f32,
    /// The brightness and colour, 0..1.
    pub(super) glow: f32,
}

impl Outline {
    /// Creates level ground, at the resolution of a picture of this height.
    pub(super) fn level(picture_height: usize) -> Self {
        let wanted = (PERIOD as usize * picture_height).clamp(512, 16_384);
        let bits = wanted.next_power_of_two().trailing_zeros();
        Self {
            heights: vec![0.0; 1 << bits],
            bits,
        }
    }

    pub(super) fn at(&self, phase: u32) -> f32 {
        let index = (phase >> (32 - self.bits)) as usize;
        let rest = (phase << self.bits >> 8) as f32 * (1.0 / 16_777_216.0);
        let next = (index + 1) & (self.heights.len() - 1);
        let here = self.heights[index];
        here + (self.heights[next] - here) * rest
    }

    pub(super) fn highest(&self) -> f32 {
        self.heights.iter().copied().fold(0.0, f32::max)
    }

    /// Adds random heights, `cells` of them in a period, joined by a curve.
    fn add(&mut self, cells: u32, amount: f32, dice: &mut Dice, join: fn(f32, f32, f32) -> f32) {
        let knots: Vec<f32> = (0..cells).map(|_| dice.unit() * amount).collect();
        let scale = cells as f32 / self.heights.len() as f32;
        for (i, height) in self.heights.iter_mut().enumerate() {
            let place = i as f32 * scale;
            let cell = (place as usize).min(knots.len() - 1);
            let next = (cell + 1) % knots.len();
            *height += join(knots[cell], knots[next], place - cell as f32);
        }
    }

    pub(super) fn hills(mut self, amount: f32, dice: &mut Dice) -> Self {
        self.add(9, amount * 0.7, dice, round);
        self.add(21, amount * 0.3, dice, round);
        self
    }

    pub(super) fn mountains(mut self, amount: f32, dice: &mut Dice) -> Self {
        let mut cells = 17;
        let mut part = 1.0;
        for _ in 0..6 {
            self.add(cells, part, dice, straight);
            cells = cells * 2 + 1;
            part *= 0.45;
        }
        let low = self.heights.iter().copied().fold(f32::MAX, f32::min);
        let scale = 1.0 / (self.highest() - low);
        for height in &mut self.heights {
            let part = (*height - low) * scale;
            // This makes summits stand out of their ridge.
            *height = amount * part * (0.35 + 0.65 * part);
        }
        self
    }

    /// Adds blades of grass along the line.
    pub(super) fn grass(mut self, amount: f32, dice: &mut Dice) -> Self {
        self.add(523, amount, dice, straight);
        self.add(997, amount * 0.6, dice, straight);
        self
    }

    pub(super) fn dunes(mut self, amount: f32, dice: &mut Dice) -> Self {
        self.add(11, amount * 0.85, dice, crested);
        self.add(31, amount * 0.15, dice, crested);
        self
    }

    /// Raises every place to a shape's height above the ground in its middle. `shape` returns the height at a distance
    /// from there, which is 1 at `half_width`.
    fn raise(&mut self, ground: &[f32], middle: f32, half_width: f32, shape: impl Fn(f32) -> f32) {
        let len = self.heights.len();
        let scale = len as f32 / PERIOD;
        let reach = half_width * scale;
        let centre = middle * scale;
        let ground = ground[(centre as usize) % len];
        let mut x = (centre - reach).ceil();
        while x <= centre + reach {
            let index = (x as i64).rem_euclid(len as i64) as usize;
            let height = ground + shape((x - centre).abs() / reach);
            self.heights[index] = self.heights[index].max(height);
            x += 1.0;
        }
    }

    /// Adds conifers or deciduous trees to the land.
    pub(super) fn trees(mut self, size: f32, conifers: bool, dice: &mut Dice) -> Self {
        let ground = self.heights.clone();
        let mut middle = 0.0;
        while middle < PERIOD {
            let height = size * dice.range(0.55, 1.0);
            if conifers {
                let half = height * dice.range(0.24, 0.33);
                let tiers = 5.0 + dice.below(3) as f32;
                self.raise(&ground, middle, half, |t| conifer(t, tiers) * height);
                middle += half * dice.range(0.6, 1.5);
            } else {
                let half = height * dice.range(0.3, 0.5);
                self.raise(&ground, middle, half, |t| crown(t) * height);
                self.raise(&ground, middle + half * 0.5, half * 0.7, |t| {
                    crown(t) * height * 0.86
                });
                middle += half * dice.range(0.5, 1.3);
            }
        }
        self
    }

    /// Adds buildings in a row, and the lit windows on them.
    pub(super) fn buildings(
        mut self,
        size: f32,
        window: [f32; 2],
        dice: &mut Dice,
    ) -> (Self, Vec<Window>) {
        let ground = self.heights.clone();
        let mut windows = Vec::new();
        let mut left = 0.0;
        while left < PERIOD - 0.05 * size {
            let width = (size * dice.range(0.18, 0.42)).min(PERIOD - left);
            let tall = if dice.chance(0.18) { 1.0 } else { 0.7 };
            let height = size * tall * dice.range(0.35, 1.0);
            let middle = left + width * 0.5;
            self.raise(&ground, middle, width * 0.5, |_| height);
            match dice.below(5) {
                0 => self.raise(&ground, middle, width * 0.3, |_| height * 1.1),
                1 => self.raise(&ground, middle, width * 0.04, |_| height * 1.28),
                2 => self.raise(&ground, middle, width * 0.5, |t| {
                    height + (1.0 - t) * width * 0.35
                }),
                _ => {}
            }
            light_windows([left, width, height], window, dice, &mut windows);
            left += width + if dice.chance(0.3) { size * 0.06 } else { 0.0 };
        }
        (self, windows)
    }
}

fn light_windows(
    [left, width, height]: [f32; 3],
    window: [f32; 2],
    dice: &mut Dice,
    windows: &mut Vec<Window>,
) {
    let pitch = [window[0] * 2.0, window[1] * 1.9];
    let columns = ((width - window[0]) / pitch[0]).floor();
    let rows = (height / pitch[1] - 0.7).floor();
    let margin = (width - columns * pitch[0] + pitch[0] - window[0]) * 0.5;
    let busy = dice.range(0.15, 0.55);
    let mut row = 0.0;
    while row < rows {
        let mut column = 0.0;
        while column < columns {
            if dice.chance(busy) {
                let x = left + margin + column * pitch[0];
                windows.push(Window {
                    at: wave::turns(x / PERIOD),
                    height: height - (row + 1.2) * pitch[1],
                    glow: dice.unit(),
                });
            }
            column += 1.0;
        }
        row += 1.0;
    }
}

fn conifer(distance: f32, tiers: f32) -> f32 {
    let cone = 1.0 - distance;
    let level = (cone * tiers).floor();
    let tiered = (level + 0.35 * (cone * tiers - level)) / tiers;
    let part = cone + (tiered - cone) * (distance * 2.0).min(1.0);
    // The shape is slender towards the top.
    part * (0.4 + 0.6 * part)
}

fn crown(distance: f32) -> f32 {
    0.35 + 0.65 * (1.0 - distance * distance).max(0.0).sqrt()
}

fn straight(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

fn round(a: f32, b: f32, t: f32) -> f32 {
    straight(a, b, wave::smoothstep(t))
}

/// Interpolates with flat hollows and sharp tops.
fn crested(a: f32, b: f32, t: f32) -> f32 {
    if a < b {
        a + (b - a) * t * t
    } else {
        b + (a - b) * (1.0 - t) * (1.0 - t)
    }
}
