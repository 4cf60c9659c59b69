//! One layer of the landscape: a range of hills, trees or houses.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rows are clamped to the colours that there are"
)]

use super::colour::Rgb;
use super::draw::Canvas;
use super::terrain::{Outline, PERIOD};
use super::wave;
use super::world::World;

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) outline: Outline,
    /// The parallax: 0 is infinitely far away, 1 moves with the camera's own speed.
    pub(super) depth: f32,
    /// The outline's base line, in picture heights from the top, when the camera looks straight ahead.
    pub(super) base: f32,
    /// The coats, painted over one another in this order.
    pub(super) coats: Vec<Coat>,
    pub(super) lamps: Vec<Lamp>,
}

/// Paint below a line that follows the outline.
#[derive(Clone, Debug)]
pub(super) struct Coat {
    pub(super) below: Below,
    /// The colour of each row, from the outline's highest place down.
    pub(super) colours: Vec<Rgb>,
}

/// The height at which a coat begins, in picture heights. If several are given, the lowest one counts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Below {
    /// The distance below the outline itself.
    pub(super) crest: f32,
    /// The approximate height above the base line of a jagged line, below which the coat begins.
    pub(super) snow_line: Option<f32>,
    /// The shade: light from the right reaches no lower than the outline at this distance to the right.
    pub(super) lit: Option<f32>,
}

/// A light on a layer; sizes are in picture heights.
#[derive(Clone, Debug)]
pub(super) struct Lamp {
    /// The phase of its left border on the outline.
    pub(super) at: u32,
    /// The height of its lower border above the base line.
    pub(super) height: f32,
    pub(super) size: [f32; 2],
    pub(super) colour: Rgb,
    pub(super) alpha: f32,
    /// The radius of the glow around it; 0 for none.
    pub(super) halo: f32,
}

impl Layer {
    /// Returns the phase of the outline at the left border.
    fn left(&self, world: &World) -> u32 {
        world.passed(self.depth / PERIOD)
    }

    /// Returns the base line's row. Near layers move more when the camera looks up or down.
    fn base_row(&self, world: &World, height: usize) -> f32 {
        (self.base - world.lift() * (1.0 - 0.6 * self.depth)) * height as f32
    }

    /// Computes the outline's rows at the borders of the columns.
    pub(super) fn trace(&self, world: &World, canvas: &Canvas<'_>, edges: &mut Vec<f32>) {
        let height = canvas.height as f32;
        let base = self.base_row(world, canvas.height);
        let mut phase = self.left(world);
        edges.clear();
        for _ in 0..=canvas.width {
            edges.push(base - self.outline.at(phase) * height);
            phase = phase.wrapping_add(phase_step(canvas.height));
        }
    }

    /// Returns the ground's row at a column, without its small bumps.
    pub(super) fn ground_at(&self, world: &World, canvas: &Canvas<'_>, x: f32) -> f32 {
        let height = canvas.height as f32;
        let around = [-0.06, -0.03, 0.0, 0.03, 0.06].map(|off| {
            let turns = (x / height + off) / PERIOD;
            self.outline
                .at(self.left(world).wrapping_add(wave::turns(turns)))
        });
        self.base_row(world, canvas.height) - around.iter().sum::<f32>() / 5.0 * height
    }

    pub(super) fn paint(
        &self,
        world: &World,
        canvas: &mut Canvas<'_>,
        edges: &[f32],
        limit: usize,
    ) {
        let height = canvas.height as f32;
        let base = self.base_row(world, canvas.height);
        let top = (base - self.outline.highest() * height) as i64;
        let shade = |colours: &[Rgb], y: usize| {
            let row = (y as i64 - top).clamp(0, colours.len() as i64 - 1);
            colours[row as usize]
        };
        let mut upper = match self.coats.first() {
            Some(coat) => self.begin(coat.below, world, edges, canvas.height),
            None => return,
        };
        for (i, coat) in self.coats.iter().enumerate() {
            let colour = |y| shade(&coat.colours, y);
            if let Some(next) = self.coats.get(i + 1) {
                let lower = self.begin(next.below, world, edges, canvas.height);
                canvas.band(&upper, &lower, limit, colour);
                upper = lower;
            } else {
                canvas.ground(&upper, limit, colour);
            }
        }
        for lamp in &self.lamps {
            self.light(lamp, world, canvas, [base, limit as f32]);
        }
    }

    /// Returns the rows at which a coat begins.
    fn begin(&self, below: Below, world: &World, edges: &[f32], height: usize) -> Vec<f32> {
        let scale = height as f32;
        let mut rows: Vec<f32> = edges
            .iter()
            .map(|edge| edge + below.crest * scale)
            .collect();
        let base = self.base_row(world, height);
        let step = phase_step(height);
        if let Some(line) = below.snow_line {
            let mut phase = self.left(world);
            for (row, edge) in rows.iter_mut().zip(edges) {
                // Samples of the outline at a much higher speed make the line jagged.
                let jag = self.outline.at(phase.wrapping_mul(5))
                    + self.outline.at(phase.wrapping_mul(13)) * 0.5;
                // The line follows the slope a little, so that snow reaches down in the gullies.
                let height_there = line * 0.6 + (base - edge) / scale * 0.5 - jag * 0.22;
                *row = row.max(base - height_there * scale);
                phase = phase.wrapping_add(step);
            }
        }
        if let Some(shift) = below.lit {
            let turns = wave::turns(shift / PERIOD);
            let mut phase = self.left(world).wrapping_add(turns);
            for row in &mut rows {
                *row = row.max(base - self.outline.at(phase) * scale);
                phase = phase.wrapping_add(step);
            }
        }
        rows
    }

    fn light(&self, lamp: &Lamp, world: &World, canvas: &mut Canvas<'_>, [base, limit]: [f32; 2]) {
        let height = canvas.height as f32;
        let period = PERIOD * height;
        let mut x = wave::fraction(lamp.at.wrapping_sub(self.left(world))) * period;
        // A lamp that overlaps the left border is nearly a period to the right.
        if x > period * 0.95 {
            x -= period;
        }
        let [w, h] = lamp.size.map(|s| s * height);
        let y = base - lamp.height * height;
        let halo = lamp.halo * height;
        if x - halo > canvas.width as f32 || y - h - halo > limit {
            return;
        }
        if halo > 0.0 {
            canvas.dot([x + w * 0.5, y - h * 0.5], halo, 1.0, lamp.colour, 0.45);
        }
        canvas.rect([x, x + w], [y - h, y], lamp.colour, lamp.alpha);
    }
}

/// Returns the change of an outline's phase from one column to the next.
fn phase_step(height: usize) -> u32 {
    (4_294_967_296.0 / f64::from(PERIOD) / height as f64) as u32
}
