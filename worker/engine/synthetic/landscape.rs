//! The picture of one scene: the parts that are made once per segment, and the drawing of each frame from them and the
//! world.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rows are clamped to the canvas"
)]

use super::actors;
use super::draw::Canvas;
use super::plan::{self, Part};
use super::scene::Scene;
use super::shape::Shape;
use super::sky;
use super::water;
use super::weather;
use super::words::Weather;
use super::world::World;

#[derive(Debug)]
pub(super) struct Painter {
    scene: Scene,
    width: usize,
    height: usize,
    /// The still part of the picture.
    backdrop: Vec<u8>,
    parts: Vec<Part>,
    /// The rows of each part's upper line; empty where it has none.
    edges: Vec<Vec<f32>>,
    shape: Shape,
}

impl Painter {
    pub(super) fn new(scene: &Scene, land: u64, width: usize, height: usize) -> Self {
        let mut backdrop = vec![0; width * height * 3];
        let mut canvas = Canvas {
            width,
            height,
            pixels: &mut backdrop,
        };
        sky::paint(scene, land, &mut canvas);
        let parts = plan::parts(scene, land, height);
        Self {
            scene: scene.clone(),
            width,
            height,
            backdrop,
            edges: vec![Vec::new(); parts.len()],
            parts,
            shape: Shape::default(),
        }
    }

    /// Draws the world in its current state into `frame`, `[height, width, 3]`.
    pub(super) fn paint(&mut self, world: &World, frame: &mut [u8]) {
        frame.copy_from_slice(&self.backdrop);
        let canvas = &mut Canvas {
            width: self.width,
            height: self.height,
            pixels: frame,
        };
        let (scene, shape) = (&self.scene, &mut self.shape);
        if scene.has(Weather::Stars) {
            sky::twinkle(world, canvas);
        }
        if scene.has(Weather::Aurora) {
            sky::aurora(world, canvas);
        }
        if scene.has(Weather::Clouds) {
            sky::clouds(scene, world, canvas, shape);
        }
        for (part, edges) in self.parts.iter().zip(&mut self.edges) {
            if let Part::Layer(layer) = part {
                layer.trace(world, canvas, edges);
            }
        }
        let limits = self.hidden_from(world);
        let canvas = &mut Canvas {
            width: self.width,
            height: self.height,
            pixels: frame,
        };
        let (scene, shape) = (&self.scene, &mut self.shape);
        let mut flown = false;
        for (i, part) in self.parts.iter().enumerate() {
            if !flown && !matches!(part, Part::Layer(_)) {
                actors::in_the_sky(scene, world, canvas, shape);
                flown = true;
            }
            match part {
                Part::Layer(layer) => layer.paint(world, canvas, &self.edges[i], limits[i]),
                Part::Water(water) => water.paint(scene, world, canvas, limits[i], shape),
                Part::Walkers => {
                    if let Some(Part::Layer(layer)) = self.parts.get(i + 1) {
                        actors::on_the_ground(scene, world, canvas, shape, layer);
                    }
                }
            }
        }
        weather::paint(scene, world, canvas);
    }

    /// Returns the row of each part from which nearer parts hide it.
    fn hidden_from(&self, world: &World) -> Vec<usize> {
        let mut limits = vec![self.height; self.parts.len()];
        let mut limit = self.height;
        for (i, part) in self.parts.iter().enumerate().rev() {
            limits[i] = limit;
            let line = match part {
                Part::Layer(_) => self.edges[i].iter().copied().fold(0.0, f32::max),
                Part::Water(_) => water::line(world, self.height),
                Part::Walkers => continue,
            };
            limit = limit.min(line.max(0.0).ceil() as usize);
        }
        limits
    }
}
