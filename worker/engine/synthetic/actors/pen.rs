//! Draws an actor's body in the actor's own coordinates.

use super::super::colour::Rgb;
use super::super::draw::Canvas;
use super::super::scene::Scene;
use super::super::shape::Shape;
use super::super::wave;

/// A pen in an actor's own coordinates: x is forward, y is up, and the actor's height is about 1.
pub(super) struct Pen<'a, 'c> {
    pub(super) canvas: &'a mut Canvas<'c>,
    pub(super) shape: &'a mut Shape,
    /// Where the actor's feet are, in pixels.
    pub(super) origin: [f32; 2],
    /// The number of pixels of one unit.
    pub(super) scale: f32,
    /// 1 when the actor faces right, else -1.
    pub(super) facing: f32,
}

impl Pen<'_, '_> {
    fn at(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        [
            self.origin[0] + x * self.scale * self.facing,
            self.origin[1] - y * self.scale,
        ]
    }

    pub(super) fn polygon(&mut self, points: &[[f32; 2]]) {
        let points: Vec<_> = points.iter().map(|&p| self.at(p)).collect();
        self.shape.polygon(&points);
    }

    pub(super) fn limb(&mut self, from: [f32; 2], to: [f32; 2], radii: [f32; 2]) {
        let (from, to) = (self.at(from), self.at(to));
        self.shape.limb(from, to, radii.map(|r| r * self.scale));
    }

    pub(super) fn circle(&mut self, centre: [f32; 2], radius: f32) {
        let centre = self.at(centre);
        self.shape.circle(centre, radius * self.scale);
    }

    pub(super) fn ellipse(&mut self, centre: [f32; 2], radii: [f32; 2], tilt: f32) {
        let centre = self.at(centre);
        let tilt = -tilt * self.facing;
        self.shape
            .ellipse(centre, radii.map(|r| r * self.scale), tilt);
    }

    pub(super) fn paint(&mut self, colour: Rgb) {
        self.shape.paint(self.canvas, colour, 1.0);
    }

    pub(super) fn paint_faint(&mut self, colour: Rgb, alpha: f32) {
        self.shape.paint(self.canvas, colour, alpha);
    }
}

/// Returns a point moved by a length in a direction. The angle is in turns; 0 is down, and positive angles go forward.
pub(super) fn reach([x, y]: [f32; 2], length: f32, angle: f32) -> [f32; 2] {
    let phase = wave::turns(angle);
    [x + wave::sin(phase) * length, y - wave::cos(phase) * length]
}

/// Returns 1 when actors move to the right, else -1.
pub(super) fn facing(scene: &Scene) -> f32 {
    if scene.speed < 0 { -1.0 } else { 1.0 }
}
