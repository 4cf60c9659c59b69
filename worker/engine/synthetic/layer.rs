//! One range of hills, trees or houses.

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
    /// 0 is infinitely far away, 1 moves with the camera's own speed.
    pub(super) depth: f32,
    /// The outline's base line, in picture heights from the top, when the camera looks straight ahead.
    pub(super) base: f32,
    /// By row, from the outline's highest place down.
    pub(super) colours: Vec<Rgb>,
    pub(super) cap: Option<Cap>,
    pub(super) lamps: Vec<Lamp>,
}

/// Snow above a jagged line, or light along the crest.
#[derive(Debug)]
pub(super) struct Cap {
    pub(super) reach: Reach,
    /// As the layer's own.
    pub(super) colours: Vec<Rgb>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Reach {
    /// Down to about this height above the base line.
    Down(f32),
    /// This far below the crest, both in picture heights.
    Along(f32),
}

/// Something lit on a layer, in picture heights.
#[derive(Clone, Debug)]
pub(super) struct Lamp {
    /// Its left border on the outline, a phase.
    pub(super) at: u32,
    /// Its lower border above the base line.
    pub(super) height: f32,
    pub(super) size: [f32; 2],
    pub(super) colour: Rgb,
    pub(super) alpha: f32,
    /// Radius of the glow around it; 0 for none.
    pub(super) halo: f32,
}

impl Layer {
    /// The phase of the outline at the left border.
    fn left(&self, world: &World) -> u32 {
        world.passed(self.depth / PERIOD)
    }

    /// The base line's row. What is near moves more when the camera looks up or down.
    fn base_row(&self, world: &World, height: usize) -> f32 {
        (self.base - world.lift() * (1.0 - 0.6 * self.depth)) * height as f32
    }

    /// The outline's rows at the borders of the columns.
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

    /// The ground's row at a column, without its small bumps.
    pub(super) fn ground_at(&self, world: &World, canvas: &Canvas<'_>, x: f32) -> f32 {
        let height = canvas.height as f32;
        let around = [-0.06, -0.03, 0.0, 0.03, 0.06].map(|off| {
            let turns = (x / height + off) / PERIOD;
            self.outline.at(self.left(world).wrapping_add(wave::turns(turns)))
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
        match &self.cap {
            None => canvas.ground(edges, limit, |y| shade(&self.colours, y)),
            Some(cap) => {
                let lower = self.below_cap(cap.reach, world, edges, canvas.height);
                let lowest = lower.iter().copied().fold(0.0, f32::max).max(0.0) as usize + 1;
                canvas.ground(edges, limit.min(lowest), |y| shade(&cap.colours, y));
                canvas.ground(&lower, limit, |y| shade(&self.colours, y));
            }
        }
        for lamp in &self.lamps {
            self.light(lamp, world, canvas, base);
        }
    }

    fn below_cap(&self, reach: Reach, world: &World, edges: &[f32], height: usize) -> Vec<f32> {
        let scale = height as f32;
        let line = match reach {
            Reach::Along(thickness) => {
                return edges.iter().map(|edge| edge + thickness * scale).collect();
            }
            Reach::Down(line) => line,
        };
        let base = self.base_row(world, height);
        let mut phase = self.left(world);
        edges
            .iter()
            .map(|&edge| {
                let jag = wave::sin(phase.wrapping_mul(61)) * 0.012
                    + wave::sin(phase.wrapping_mul(149)) * 0.011
                    + wave::sin(phase.wrapping_mul(397)) * 0.006;
                phase = phase.wrapping_add(phase_step(height));
                // The line follows the slope a little, so that snow reaches down in the gullies.
                let follow = (base - edge) * 0.4;
                edge.max(base - (line * 0.6 + jag) * scale - follow)
            })
            .collect()
    }

    fn light(&self, lamp: &Lamp, world: &World, canvas: &mut Canvas<'_>, base: f32) {
        let height = canvas.height as f32;
        let period = PERIOD * height;
        let mut x = wave::fraction(lamp.at.wrapping_sub(self.left(world))) * period;
        // One that hangs over the left border is nearly a period to the right.
        if x > period * 0.95 {
            x -= period;
        }
        let [w, h] = lamp.size.map(|s| s * height);
        let y = base - lamp.height * height;
        let halo = lamp.halo * height;
        if x - halo > canvas.width as f32 {
            return;
        }
        if halo > 0.0 {
            canvas.dot([x + w * 0.5, y - h * 0.5], halo, 1.0, lamp.colour, 0.45);
        }
        canvas.rect([x, x + w], [y - h, y], lamp.colour, lamp.alpha);
    }
}

/// What one column is on an outline.
fn phase_step(height: usize) -> u32 {
    (4_294_967_296.0 / f64::from(PERIOD) / height as f64) as u32
}
