//! Water up to the horizon: its colour, its waves, and the light that it reflects.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rows are clamped to the canvas"
)]

use super::actors;
use super::colour::Rgb;
use super::draw::Canvas;
use super::scene::{Light, Scene};
use super::shape::Shape;
use super::sky;
use super::wave::{self, Dice};
use super::world::World;

/// The height of the horizon when the camera looks straight ahead, in picture heights from the top.
pub(super) const HORIZON: f32 = 0.64;

/// Returns the row where the water begins.
pub(super) fn line(world: &World, height: usize) -> f32 {
    ((HORIZON - world.lift()) * height as f32).floor()
}

#[derive(Debug)]
pub(super) struct Water {
    far: Rgb,
    near: Rgb,
    crest: Rgb,
}

/// The number of wave fronts, each of which is nearer than the one before.
const SWELLS: usize = 8;
/// The distance of the nearest wave front below the horizon, in picture heights.
const NEAREST: f32 = 0.36;

/// One front of waves.
#[derive(Clone, Copy, Debug)]
struct Swell {
    /// The nearness: 0 at the horizon, 1 for the nearest front.
    near: f32,
    /// The base line's row.
    base: f32,
    next_base: f32,
    /// The amplitude of the waves in pixels.
    amount: f32,
}

impl Swell {
    fn new(i: usize, top: f32, height: f32) -> Self {
        let down = |i: usize| {
            let part = (i as f32 + 0.6) / SWELLS as f32;
            top + NEAREST * height * part * part
        };
        let near = (i as f32 + 0.6) / SWELLS as f32;
        Self {
            near,
            base: down(i),
            next_base: down(i + 1),
            amount: height * 0.017 * near * near + 0.3,
        }
    }
}

impl Water {
    pub(super) fn new(scene: &Scene) -> Self {
        let palette = &scene.palette;
        let own = Rgb::hex(0x1d6a88).mix(palette.top, 0.45);
        Self {
            far: palette.low.mix(palette.middle, 0.45).mix(own, 0.3),
            near: own.mix(palette.top, 0.2).scaled(0.68),
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
        let height = canvas.height as f32;
        let top = line(world, canvas.height).max(0.0);
        let first = Swell::new(0, top, height);
        for y in top as usize..limit.min((first.base + first.amount * 2.0) as usize) {
            canvas.fill(y, 0, canvas.width, self.far);
        }
        let mut glitter = Glitter::new(scene, world, canvas, top);
        glitter.paint(scene, world, canvas, first.base);
        let mut edges = Vec::new();
        for i in 0..SWELLS {
            let swell = Swell::new(i, top, height);
            if i == SWELLS - 3 {
                actors::afloat(scene, world, canvas, shape, top);
            }
            self.swell(world, canvas, swell, limit, &mut edges);
            glitter.paint(scene, world, canvas, swell.next_base);
        }
    }

    fn swell(
        &self,
        world: &World,
        canvas: &mut Canvas<'_>,
        swell: Swell,
        limit: usize,
        edges: &mut Vec<f32>,
    ) {
        let Swell {
            near,
            base,
            next_base,
            amount,
        } = swell;
        let height = canvas.height as f32;
        // The number of waves in a picture height, and how far they move with the camera.
        let waves = 1.1 / (near + 0.12);
        let depth = near * 0.9;
        // The second factor is not a multiple of the first, so that the pattern does not repeat.
        let factors = [1.0, 2.37];
        let rates = [0.07 + 0.1 * near, -0.16];
        let mut phases: [u32; 2] = std::array::from_fn(|i| {
            world
                .passed(depth * waves * factors[i])
                .wrapping_add(world.phase(rates[i]))
                .wrapping_add(wave::turns(near * 7.3))
        });
        let steps = factors.map(|f| (f64::from(waves * f / height) * 4_294_967_296.0) as u32);
        let heave = wave::sin(world.phase(0.13).wrapping_add(wave::turns(near * 2.1)));
        let mut rim = Vec::with_capacity(canvas.width + 1);
        edges.clear();
        for _ in 0..=canvas.width {
            let crest = wave::sin(phases[0]);
            // The crests are sharpened upwards, as on water.
            let rise = crest * 0.65 + crest * crest.abs() * 0.35 + wave::sin(phases[1]) * 0.3;
            let edge = base - (rise + heave * 0.5) * amount;
            edges.push(edge);
            // Only the crests catch light.
            rim.push(edge + (rise - 0.1).max(0.0) * amount * 0.42);
            phases = [0, 1].map(|i: usize| phases[i].wrapping_add(steps[i]));
        }
        let body = self.far.mix(self.near, (near * 1.3).min(1.0));
        let bright = body.mix(self.crest, 0.26 - 0.12 * near);
        canvas.band(edges, &rim, limit, |_| {
            body.mix(self.crest, 0.5 - 0.15 * near)
        });
        // The front is bright where it rises, and dark in the trough before the next one.
        let fall = (next_base - base + amount * 2.0).max(1.0);
        let reach = (next_base + amount * 4.0 + 2.0) as usize;
        let reach = if near > 1.0 - 1.0 / SWELLS as f32 {
            limit
        } else {
            limit.min(reach)
        };
        canvas.ground(&rim, reach, |y| {
            let part = ((y as f32 - base + amount) / fall).clamp(0.0, 1.0);
            bright.mix(body, part.sqrt())
        });
    }
}

/// The broken image of sun or moon, painted piece by piece between the waves.
struct Glitter {
    dice: Dice,
    middle: f32,
    top: f32,
    down: f32,
}

impl Glitter {
    fn new(scene: &Scene, world: &World, canvas: &Canvas<'_>, top: f32) -> Self {
        let [middle, _] = sky::light_place(scene, canvas);
        Self {
            dice: Dice::new(world.land, 7),
            middle,
            top,
            down: 1.0,
        }
    }

    /// Paints the reflection down to a row.
    fn paint(&mut self, scene: &Scene, world: &World, canvas: &mut Canvas<'_>, row: f32) {
        if scene.light == Light::None {
            return;
        }
        let height = canvas.height as f32;
        let pitch = (height / 170.0).max(1.0);
        while self.top + self.down < row.min(height) {
            let part = self.down / height;
            let spread = (0.05 + part * 0.32) * height;
            for _ in 0..4 {
                let dice = &mut self.dice;
                let rate = dice.range(0.2, 0.7);
                let shimmer = wave::sin(world.phase(rate).wrapping_add(dice.bits()));
                let off = dice.unit() + dice.unit() - 1.0;
                let x = self.middle + off * spread + shimmer * spread * 0.08;
                let half = spread * dice.range(0.06, 0.3) * (0.6 + 0.4 * shimmer);
                let alpha = (0.5 + 0.35 * shimmer) * (1.0 - off.abs() * 0.6);
                let y = self.top + self.down;
                let thick = pitch * (0.5 + part * 1.5);
                canvas.rect(
                    [x - half, x + half],
                    [y, y + thick],
                    scene.palette.light,
                    alpha,
                );
            }
            self.down += pitch * (1.1 + part * 7.0);
        }
    }
}
