//! Water up to the horizon: its colour, its waves, and the light that it throws back.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rows are clamped to the canvas"
)]

use super::actors;
use super::colour::Rgb;
use super::draw::{Canvas, Shape};
use super::scene::{Light, Scene};
use super::sky;
use super::wave::{self, Dice};
use super::world::World;

/// Where the horizon is when the camera looks straight ahead, in picture heights from the top.
pub(super) const HORIZON: f32 = 0.64;

/// The row where the water begins.
pub(super) fn line(world: &World, height: usize) -> f32 {
    ((HORIZON - world.lift()) * height as f32).floor()
}

#[derive(Debug)]
pub(super) struct Water {
    far: Rgb,
    near: Rgb,
    crest: Rgb,
}

/// Waves that come nearer: how far below the horizon, amplitude, waves in a picture height, depth.
const SWELLS: [[f32; 4]; 4] = [
    [0.05, 0.003, 5.0, 0.12],
    [0.11, 0.006, 2.7, 0.25],
    [0.2, 0.011, 1.6, 0.5],
    [0.31, 0.017, 1.0, 0.9],
];

impl Water {
    pub(super) fn new(scene: &Scene) -> Self {
        let palette = &scene.palette;
        let own = Rgb::hex(0x1d_6a_88).mix(palette.top, 0.5);
        Self {
            far: palette.low.mix(palette.middle, 0.4).mix(own, 0.3),
            near: own.mix(palette.top, 0.25).scaled(0.72),
            crest: palette.low.mix(palette.light, 0.4),
        }
    }

    pub(super) fn paint(
        &self,
        scene: &Scene,
        world: &World,
        canvas: &mut Canvas<'_>,
        limit: usize,
        shape: &mut Shape,
    ) {
        let top = line(world, canvas.height).max(0.0) as usize;
        for y in top..limit {
            canvas.fill(y, 0, canvas.width, self.colour(canvas.height, top, y));
        }
        self.glitter(scene, world, canvas, top);
        let mut edges = Vec::new();
        for (i, swell) in SWELLS.into_iter().enumerate() {
            if i == 2 {
                actors::afloat(scene, world, canvas, shape, top as f32);
            }
            self.swell(world, canvas, swell, [top, limit], &mut edges);
        }
    }

    fn colour(&self, height: usize, top: usize, y: usize) -> Rgb {
        let part = (y - top.min(y)) as f32 / (height as f32 * (1.0 - HORIZON));
        self.far.mix(self.near, (part * 1.4).min(1.0))
    }

    fn swell(
        &self,
        world: &World,
        canvas: &mut Canvas<'_>,
        [down, amount, waves, depth]: [f32; 4],
        [top, limit]: [usize; 2],
        edges: &mut Vec<f32>,
    ) {
        let height = canvas.height as f32;
        let base = top as f32 + down * height;
        let amount = amount * height;
        let way = world.passed(depth * waves);
        let first = way.wrapping_add(world.phase(0.11 + 0.05 * depth));
        // Not a multiple of the first, so that the pattern does not repeat.
        let second = world.passed(depth * waves * 2.3).wrapping_sub(world.phase(0.17));
        let heave = wave::sin(world.phase(0.13).wrapping_add(wave::turns(down * 7.0)));
        let step = |factor: f32| (f64::from(waves * factor) / f64::from(height) * 4_294_967_296.0) as u64 as u32;
        let (step_a, step_b) = (step(1.0), step(2.3));
        edges.clear();
        let (mut a, mut b) = (first, second);
        for _ in 0..=canvas.width {
            let crest = wave::sin(a);
            // Sharpened upwards, as water is.
            let rise = crest * 0.7 + crest * crest.abs() * 0.3 + wave::sin(b) * 0.35;
            edges.push(base - (rise + heave * 0.5) * amount);
            (a, b) = (a.wrapping_add(step_a), b.wrapping_add(step_b));
        }
        let reach = (base + amount * 2.2).max(0.0) as usize;
        let crest = |y: usize| self.colour(canvas_height(height), top, y).mix(self.crest, 0.2 + 0.1 * depth);
        canvas.ground(edges, limit.min(reach + 2), crest);
        for edge in edges.iter_mut() {
            *edge += amount * 0.35 + 0.6;
        }
        let near = self.near;
        let body = |y: usize| self.colour(canvas_height(height), top, y).mix(near, 0.25);
        canvas.ground(edges, limit, body);
    }

    /// The broken image of sun or moon.
    fn glitter(&self, scene: &Scene, world: &World, canvas: &mut Canvas<'_>, top: usize) {
        if scene.light == Light::None {
            return;
        }
        let height = canvas.height as f32;
        let [middle, _] = sky::light_place(scene, canvas);
        let pitch = (height / 150.0).max(1.0);
        let mut dice = Dice::new(world.land, 7);
        let mut down = pitch * 0.5;
        while top as f32 + down < height {
            let part = down / height;
            let spread = (0.03 + part * 0.28) * height;
            for _ in 0..3 {
                let rate = dice.range(0.2, 0.7);
                let shimmer = wave::sin(world.phase(rate).wrapping_add(dice.bits()));
                let x = middle + (dice.unit() + dice.unit() - 1.0) * spread + shimmer * spread * 0.1;
                let half = spread * dice.range(0.08, 0.32) * (0.6 + 0.4 * shimmer);
                let alpha = (0.5 + 0.35 * shimmer) * (1.0 - part * 1.6).max(0.25);
                let y = top as f32 + down;
                canvas.rect([x - half, x + half], [y, y + pitch * 0.55], scene.palette.light, alpha);
            }
            down += pitch * (1.0 + part * 4.0);
        }
    }
}

fn canvas_height(height: f32) -> usize {
    height as usize
}
