//! Chooses the layers of a scene's landscape.

use super::colour::Rgb;
use super::layer::{Below, Coat, Lamp, Layer};
use super::scene::{Light, Scene};
use super::terrain::{Outline, PERIOD};
use super::water::{HORIZON, Water};
use super::wave::{self, Dice};
use super::words::{Actor, Terrain, Weather};

/// The base line of the ground that actors walk on, in picture heights from the top.
const NEAR_BASE: f32 = 0.83;

/// A layer of the landscape.
#[derive(Debug)]
pub(super) enum Part {
    Layer(Layer),
    Water(Water),
    /// The actors that walk or drive on the layer that comes next.
    Walkers,
}

/// Returns the layers from far to near.
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
            let wooded =
                self.level()
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
            self.snow_caps(&mut layer, amount * 0.5);
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

    /// Adds snow, lit and in the shade, above the rock.
    fn snow_caps(&self, layer: &mut Layer, line: f32) {
        let palette = &self.scene.palette;
        let rock = layer.coats[0].colours[0];
        let snow = palette
            .light
            .mix(Rgb::hex(0xffffff), 0.4)
            .mix(palette.low, 0.25);
        let shaded = snow.mix(palette.middle, 0.4).mix(rock, 0.3);
        let coat = |below: Below, colour: Rgb| Coat {
            below,
            colours: vec![colour],
        };
        let shade = Below {
            lit: Some(0.022),
            ..Below::default()
        };
        layer.coats.splice(
            0..0,
            [
                coat(Below::default(), snow.mix(rock, 0.12)),
                coat(shade, shaded),
            ],
        );
        for coat in &mut layer.coats[2..] {
            coat.below.snow_line = Some(line);
        }
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
            let outline =
                self.level()
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
            let (outline, windows) = self.level().buildings(size, window, &mut self.dice);
            let mut layer = self.layer(outline, depth, HORIZON + down, nearness);
            layer.coats[1].below.lit = Some(0.006 + 0.03 * depth);
            let strength = if self.dark() {
                0.3 + 0.6 * nearness
            } else {
                0.1 + 0.25 * nearness
            };
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
            let mut layer = self.layer(street, 0.75, NEAR_BASE - 0.01, 0.95);
            self.kerb(&mut layer);
            if self.dark() {
                self.reflections(&mut layer);
            }
            self.parts.push(Part::Layer(layer));
        }
    }

    fn kerb(&self, layer: &mut Layer) {
        let kerb = self.scene.palette.low.mix(layer.coats[1].colours[0], 0.65);
        layer.coats[0].colours = vec![kerb];
        layer.coats[1].below = Below {
            crest: 0.007,
            ..Below::default()
        };
    }

    /// Adds the reflections of the city's lights on the wet street.
    fn reflections(&mut self, layer: &mut Layer) {
        for _ in 0..150 {
            let down = self.dice.range(0.012, 0.15);
            let wide = self.dice.range(0.02, 0.09) * (0.4 + down * 6.0);
            let colour = self.sign_colour();
            layer.lamps.push(Lamp {
                at: self.dice.bits(),
                height: -down,
                size: [wide, 0.002 + down * 0.02],
                colour,
                alpha: self.dice.range(0.08, 0.34),
                halo: 0.0,
            });
        }
    }

    fn sign_colour(&mut self) -> Rgb {
        let accent = self.scene.palette.accent;
        match self.dice.below(4) {
            0 => accent,
            1 => accent.hue_turned(0.33),
            2 => accent.hue_turned(-0.33),
            _ => Rgb::hex(0xff4fa8),
        }
    }

    /// Adds neon signs on the houses.
    fn signs(&mut self, layer: &mut Layer, size: f32) {
        for _ in 0..26 {
            let upright = self.dice.chance(0.6);
            let long = self.dice.range(0.04, 0.1) * (0.5 + layer.depth * 2.0);
            let thin = long * 0.2;
            let at = self.dice.bits();
            let height = layer.outline.at(at) - long - self.dice.range(0.02, 0.12);
            if height < size * 0.12 {
                continue;
            }
            let colour = self.sign_colour();
            layer.lamps.push(Lamp {
                at,
                height,
                size: if upright { [thin, long] } else { [long, thin] },
                colour,
                alpha: 0.9,
                halo: long * 1.1,
            });
        }
    }

    fn window_colour(&self, glow: f32) -> Rgb {
        let warm = Rgb::hex(0xffd996);
        if glow > 0.8 {
            self.scene.palette.accent
        } else {
            warm.mix(self.scene.palette.accent, glow * 0.5)
        }
    }

    fn dunes(&mut self) {
        let far = self.level().mountains(0.14, &mut self.dice);
        self.push(far, 0.04, HORIZON, 0.14);
        let rows = [
            (0.12, 0.06, 0.4, 0.26),
            (0.26, 0.13, 0.66, 0.24),
            (0.5, 0.2, 0.86, 0.2),
        ];
        let rows = if self.water() { &rows[..1] } else { &rows[..] };
        for &(depth, down, nearness, amount) in rows {
            let outline = self.level().dunes(amount, &mut self.dice);
            self.push(outline, depth, HORIZON + down, nearness);
        }
        self.near_ground(0.06);
    }

    fn open(&mut self) {
        let far = self.level().mountains(0.05, &mut self.dice);
        self.push(far, 0.03, HORIZON + 0.005, 0.1);
        self.near_ground(0.05);
    }

    /// Adds water if the scene has it, else the ground that actors walk on; both if actors walk beside the water.
    fn near_ground(&mut self, amount: f32) {
        if self.water() {
            self.parts.push(Part::Water(Water::new(self.scene)));
            if !self.walked_on() {
                return;
            }
        }
        self.parts.push(Part::Walkers);
        let mut ground = self.level().hills(amount * 0.8, &mut self.dice);
        let bare = self.scene.has(Weather::Snow) || self.scene.terrain == Terrain::Dunes;
        if !bare {
            ground = ground.grass(0.013, &mut self.dice);
        }
        let mut layer = self.layer(ground, 0.85, NEAR_BASE, 1.0);
        layer.coats[1].below = Below {
            crest: 0.007,
            ..Below::default()
        };
        self.parts.push(Part::Layer(layer));
    }

    fn water(&self) -> bool {
        self.scene.water
    }

    fn dark(&self) -> bool {
        self.scene.palette.middle.luma() < 110.0
    }

    fn walked_on(&self) -> bool {
        self.scene.actors.iter().flatten().any(|(actor, _)| {
            !matches!(
                actor,
                Actor::Birds | Actor::Boat | Actor::Balloon | Actor::Whale
            )
        })
    }

    fn level(&self) -> Outline {
        Outline::level(self.height)
    }

    fn push(&mut self, outline: Outline, depth: f32, base: f32, nearness: f32) {
        let layer = self.layer(outline, depth, base, nearness);
        self.parts.push(Part::Layer(layer));
    }

    /// Adds a layer of trees as `push` does, but keeps green below the snow.
    fn push_trees(&mut self, outline: Outline, depth: f32, base: f32, nearness: f32) {
        let mut layer = self.layer(outline, depth, base, nearness);
        layer.coats[1].below.lit = Some(0.003 + 0.008 * depth);
        if self.scene.has(Weather::Snow) {
            let snow = layer.coats[0].clone();
            let dark = Rgb::hex(0x223c44).mix(self.scene.palette.top, 0.35);
            for colour in layer.coats.iter_mut().flat_map(|c| &mut c.colours) {
                *colour = colour.mix(dark, 0.25 + 0.45 * nearness);
            }
            for coat in &mut layer.coats {
                coat.below.crest = 0.008 + 0.016 * depth;
            }
            layer.coats.insert(0, snow);
        }
        self.parts.push(Part::Layer(layer));
    }

    /// Creates a layer. With `nearness`, colours change from the horizon's haze (0) to the ground's own (1); each layer
    /// fades downwards into the haze in front of it.
    fn layer(&self, outline: Outline, depth: f32, base: f32, nearness: f32) -> Layer {
        let palette = &self.scene.palette;
        let haze = palette.low.mix(palette.middle, 0.35);
        let near = nearness
            * if self.scene.has(Weather::Fog) {
                0.72
            } else {
                1.0
            };
        let body = haze.mix(palette.ground, near);
        let foot = if nearness > 0.9 {
            body.scaled(0.6)
        } else {
            body.mix(haze, 0.62 * (1.0 - nearness * 0.55))
        };
        let extent = outline.highest() + if nearness > 0.9 { 0.16 } else { 0.1 };
        let rows = rows_of(extent, self.height);
        let colours: Vec<Rgb> = (0..rows)
            .map(|row| body.mix(foot, wave::smoothstep(row as f32 / rows as f32)))
            .collect();
        let strength = (0.12 + 0.12 * nearness) * if self.dark() { 0.55 } else { 1.0 };
        let light = match self.scene.light {
            Light::None => palette.low,
            _ => palette.light,
        };
        let lit = Coat {
            below: Below::default(),
            colours: colours.iter().map(|c| c.mix(light, strength)).collect(),
        };
        let shade = Coat {
            below: Below {
                lit: Some(0.012 + 0.03 * nearness),
                ..Below::default()
            },
            colours,
        };
        Layer {
            outline,
            depth,
            base,
            coats: vec![lit, shade],
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
