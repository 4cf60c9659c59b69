//! Which layers make a scene's land.

use super::colour::Rgb;
use super::landscape::Part;
use super::layer::{Cap, Lamp, Layer, Reach};
use super::scene::Scene;
use super::terrain::{Outline, PERIOD};
use super::water::{HORIZON, Water};
use super::wave::{self, Dice};
use super::words::{Actor, Terrain, Weather};

/// From far to near.
pub(super) fn parts(scene: &Scene, land: u64, height: usize) -> Vec<Part> {
    let mut plan = Plan {
        scene,
        dice: Dice::new(land, 6),
        height,
        parts: Vec::new(),
    };
    match scene.terrain {
        Terrain::Hills => plan.hills(),
        Terrain::Mountains => plan.mountains(),
        Terrain::Forest => plan.forest(),
        Terrain::City => plan.city(),
        Terrain::Dunes => plan.dunes(),
        Terrain::Open => plan.open(),
    }
    plan.parts
}

struct Plan<'a> {
    scene: &'a Scene,
    dice: Dice,
    height: usize,
    parts: Vec<Part>,
}

impl Plan<'_> {
    fn hills(&mut self) {
        let far = self.level().mountains(0.16, &mut self.dice);
        self.push(far, 0.06, HORIZON, 0.12);
        let far = self.level().hills(0.16, &mut self.dice);
        self.push(far, 0.16, HORIZON + 0.02, 0.3);
        if !self.water() {
            let middle = self.level().hills(0.17, &mut self.dice);
            self.push(middle, 0.32, HORIZON + 0.1, 0.55);
            let wooded = self
                .level()
                .hills(0.12, &mut self.dice)
                .trees(0.045, false, &mut self.dice);
            self.push(wooded, 0.5, HORIZON + 0.16, 0.72);
        }
        self.near_ground(0.1);
    }

    fn mountains(&mut self) {
        for (depth, base, nearness, amount) in
            [(0.04, HORIZON, 0.16, 0.5), (0.1, HORIZON + 0.03, 0.4, 0.4)]
        {
            let outline = self.level().mountains(amount, &mut self.dice);
            let mut layer = self.layer(outline, depth, base, nearness);
            let snow = self.scene.palette.light.mix(Rgb::hex(0xff_ff_ff), 0.4);
            let snow = snow.mix(self.scene.palette.low, 0.3).mix(layer.colours[0], 0.15);
            layer.cap = Some(Cap {
                reach: Reach::Down(amount * 0.42),
                colours: vec![snow],
            });
            self.parts.push(Part::Layer(layer));
        }
        if !self.water() {
            let wooded = self
                .level()
                .hills(0.14, &mut self.dice)
                .trees(0.06, true, &mut self.dice);
            self.push_trees(wooded, 0.26, HORIZON + 0.09, 0.6);
        }
        self.near_ground(0.1);
    }

    fn forest(&mut self) {
        let far = self.level().mountains(0.2, &mut self.dice);
        self.push(far, 0.05, HORIZON - 0.04, 0.1);
        let conifers = self.scene.has(Weather::Snow) || self.dice.chance(0.65);
        let rows = [
            (0.14, 0.0, 0.25, 0.16),
            (0.28, 0.05, 0.48, 0.24),
            (0.48, 0.12, 0.75, 0.33),
        ];
        let rows = if self.water() { &rows[..2] } else { &rows[..] };
        for &(depth, down, nearness, size) in rows {
            let outline = self
                .level()
                .hills(0.06, &mut self.dice)
                .trees(size, conifers, &mut self.dice);
            self.push_trees(outline, depth, HORIZON + down, nearness);
        }
        self.near_ground(0.07);
    }

    fn city(&mut self) {
        let rows = [
            (0.06, -0.02, 0.16, 0.4),
            (0.14, 0.04, 0.45, 0.5),
            (0.3, 0.13, 0.8, 0.56),
        ];
        let rows = if self.water() { &rows[..2] } else { &rows[..] };
        for &(depth, down, nearness, size) in rows {
            let window = [0.0055 + 0.008 * depth, 0.009 + 0.012 * depth];
            let (outline, windows) =
                self.level().buildings(size, window, &mut self.dice);
            let mut layer = self.layer(outline, depth, HORIZON + down, nearness);
            let strength = if self.dark() { 0.3 + 0.6 * nearness } else { 0.1 + 0.25 * nearness };
            layer.lamps = windows
                .iter()
                .map(|w| Lamp {
                    at: w.at,
                    height: w.height,
                    size: window,
                    colour: self.window_colour(w.glow),
                    alpha: strength * (0.5 + 0.5 * w.glow),
                    halo: 0.0,
                })
                .collect();
            if self.dark() && nearness > 0.4 {
                self.signs(&mut layer, size);
            }
            self.parts.push(Part::Layer(layer));
        }
        if !self.water() {
            self.parts.push(Part::Walkers);
            let street = self.level();
            let mut layer = self.layer(street, 0.75, 0.86, 0.95);
            let rim = self.scene.palette.accent.mix(layer.colours[0], 0.6);
            layer.cap = Some(Cap {
                reach: Reach::Along(0.006),
                colours: vec![rim],
            });
            self.parts.push(Part::Layer(layer));
        }
    }

    /// Neon signs on the houses.
    fn signs(&mut self, layer: &mut Layer, size: f32) {
        let accent = self.scene.palette.accent;
        let colours = [accent, accent.hue_turned(0.33), accent.hue_turned(-0.33), Rgb::hex(0xff_4f_a8)];
        for _ in 0..26 {
            let upright = self.dice.chance(0.6);
            let long = self.dice.range(0.04, 0.1) * (0.5 + layer.depth * 2.0);
            let thin = long * 0.2;
            let at = self.dice.bits();
            let height = layer.outline.at(at) - long - self.dice.range(0.02, 0.12);
            if height < size * 0.12 {
                continue;
            }
            layer.lamps.push(Lamp {
                at,
                height,
                size: if upright { [thin, long] } else { [long, thin] },
                colour: colours[self.dice.below(4) as usize],
                alpha: 0.9,
                halo: long * 1.1,
            });
        }
    }

    fn window_colour(&self, glow: f32) -> Rgb {
        let warm = Rgb::hex(0xff_d9_96);
        if glow > 0.8 {
            self.scene.palette.accent
        } else {
            warm.mix(self.scene.palette.accent, glow * 0.5)
        }
    }

    fn dunes(&mut self) {
        let far = self.level().mountains(0.14, &mut self.dice);
        self.push(far, 0.04, HORIZON, 0.14);
        let rows = [(0.12, 0.03, 0.35, 0.15), (0.26, 0.1, 0.6, 0.17), (0.5, 0.2, 0.82, 0.18)];
        let rows = if self.water() { &rows[..1] } else { &rows[..] };
        for &(depth, down, nearness, amount) in rows {
            let outline = self.level().dunes(amount, &mut self.dice);
            let mut layer = self.layer(outline, depth, HORIZON + down, nearness);
            layer.cap = Some(self.lit_crest(&layer, 0.007 + 0.008 * depth));
            self.parts.push(Part::Layer(layer));
        }
        self.near_ground(0.06);
    }

    fn open(&mut self) {
        let far = self.level().mountains(0.05, &mut self.dice);
        self.push(far, 0.03, HORIZON + 0.005, 0.1);
        self.near_ground(0.05);
    }

    /// Water where the prompt speaks of it, else the ground that actors walk on; both when both are there.
    fn near_ground(&mut self, amount: f32) {
        if self.water() {
            self.parts.push(Part::Water(Water::new(self.scene)));
            if !self.walked_on() {
                return;
            }
        }
        self.parts.push(Part::Walkers);
        let ground = self.level().hills(amount * 0.8, &mut self.dice);
        let mut layer = self.layer(ground, 0.85, 0.9, 1.0);
        layer.cap = Some(self.lit_crest(&layer, 0.008));
        self.parts.push(Part::Layer(layer));
    }

    fn lit_crest(&self, layer: &Layer, thickness: f32) -> Cap {
        let light = self.scene.palette.light;
        Cap {
            reach: Reach::Along(thickness),
            colours: layer.colours.iter().map(|c| c.mix(light, 0.22)).collect(),
        }
    }

    fn water(&self) -> bool {
        self.scene.water
    }

    fn dark(&self) -> bool {
        self.scene.palette.middle.luma() < 110.0
    }

    fn walked_on(&self) -> bool {
        self.scene.actors.iter().flatten().any(|(actor, _)| {
            !matches!(actor, Actor::Birds | Actor::Boat | Actor::Balloon | Actor::Whale)
        })
    }

    fn level(&self) -> Outline {
        Outline::level(self.height)
    }

    fn push(&mut self, outline: Outline, depth: f32, base: f32, nearness: f32) {
        let layer = self.layer(outline, depth, base, nearness);
        self.parts.push(Part::Layer(layer));
    }

    /// As `push`, but green stays below the snow.
    fn push_trees(&mut self, outline: Outline, depth: f32, base: f32, nearness: f32) {
        let mut layer = self.layer(outline, depth, base, nearness);
        if self.scene.has(Weather::Snow) {
            let snow = layer.colours.clone();
            let dark = Rgb::hex(0x22_3c_44).mix(self.scene.palette.top, 0.35);
            for colour in &mut layer.colours {
                *colour = colour.mix(dark, 0.25 + 0.45 * nearness);
            }
            layer.cap = Some(Cap {
                reach: Reach::Along(0.012 + 0.02 * depth),
                colours: snow,
            });
        }
        self.parts.push(Part::Layer(layer));
    }

    /// Colours go from the horizon's haze (0) to the ground's own (1) with nearness; each layer fades downwards into
    /// the haze that lies before it.
    fn layer(&self, outline: Outline, depth: f32, base: f32, nearness: f32) -> Layer {
        let palette = &self.scene.palette;
        let haze = palette.low.mix(palette.middle, 0.35);
        let near = nearness * if self.scene.has(Weather::Fog) { 0.72 } else { 1.0 };
        let body = haze.mix(palette.ground, near);
        let foot = if nearness > 0.9 {
            body.scaled(0.6)
        } else {
            body.mix(haze, 0.62 * (1.0 - nearness * 0.55))
        };
        let extent = outline.highest() + if nearness > 0.9 { 0.16 } else { 0.1 };
        let rows = rows_of(extent, self.height);
        let colours = (0..rows)
            .map(|row| body.mix(foot, wave::smoothstep(row as f32 / rows as f32)))
            .collect();
        Layer {
            outline,
            depth,
            base,
            colours,
            cap: None,
            lamps: Vec::new(),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive number of rows of a picture"
)]
fn rows_of(extent: f32, height: usize) -> usize {
    ((extent.clamp(0.0, PERIOD) * height as f32) as usize).max(1)
}
