//! The actors that move in the picture: on the ground, on the water, in the sky.

mod beasts;
mod pen;

use self::pen::{Pen, facing, reach};
use super::colour::Rgb;
use super::draw::Canvas;
use super::layer::Layer;
use super::scene::Scene;
use super::shape::Shape;
use super::wave::{self, Dice};
use super::words::Actor;
use super::world::World;

/// Returns an actor's own colour in the light of the scene.
fn lit(scene: &Scene, colour: Rgb) -> Rgb {
    let dark = scene.palette.middle.luma() < 110.0;
    colour.mix(scene.palette.top, if dark { 0.28 } else { 0.06 })
}

fn named(scene: &Scene, of: &[Actor]) -> impl Iterator<Item = (Actor, Rgb)> {
    scene
        .actors
        .into_iter()
        .flatten()
        .filter(|(actor, _)| of.contains(actor))
}

pub(super) fn on_the_ground(
    scene: &Scene,
    world: &World,
    canvas: &mut Canvas<'_>,
    shape: &mut Shape,
    ground: &Layer,
) {
    let walkers = [
        Actor::Fox,
        Actor::Cat,
        Actor::Horse,
        Actor::Deer,
        Actor::Person,
        Actor::Car,
    ];
    let height = canvas.height as f32;
    for (i, (actor, colour)) in named(scene, &walkers).enumerate() {
        let sway = wave::sin(world.phase(0.07).wrapping_add(wave::turns(i as f32 * 0.3)));
        let across = 0.47 + 0.05 * sway;
        let x = canvas.width as f32 * across - facing(scene) * i as f32 * height * 0.36;
        let y = ground.ground_at(world, canvas, x) + height * 0.012;
        let mut pen = Pen {
            canvas,
            shape,
            origin: [x, y],
            scale: height,
            facing: facing(scene),
        };
        match actor {
            Actor::Person => person(&mut pen, scene, world, lit(scene, colour)),
            Actor::Car => car(&mut pen, scene, world, lit(scene, colour)),
            _ => beasts::draw(&mut pen, scene, world, actor, lit(scene, colour)),
        }
    }
}

fn person(pen: &mut Pen<'_, '_>, scene: &Scene, world: &World, coat: Rgb) {
    pen.scale *= 0.17;
    let gait = world.passed(facing(scene) / 0.17);
    let trousers = coat.mix(Rgb::hex(0x1c202c), 0.75);
    let skin = lit(scene, Rgb::hex(0xe6b894));
    let hip = [0.0, 0.46];
    for side in [0, 1 << 31] {
        let swing = wave::sin(gait.wrapping_add(side));
        let lift = wave::cos(gait.wrapping_add(side)).max(0.0);
        let knee = reach(hip, 0.24, swing * 0.08 + lift * 0.03);
        let foot = reach(knee, 0.24, swing * 0.08 - lift * 0.12);
        pen.limb(hip, knee, [0.075, 0.06]);
        pen.limb(knee, foot, [0.06, 0.045]);
        pen.limb(foot, [foot[0] + 0.08, foot[1] - 0.01], [0.04, 0.03]);
    }
    pen.paint(trousers);
    pen.polygon(&[[-0.12, 0.36], [0.12, 0.36], [0.1, 0.8], [-0.08, 0.8]]);
    pen.limb([-0.02, 0.74], [0.02, 0.5], [0.1, 0.12]);
    pen.paint(coat);
    let swing = wave::sin(gait);
    let elbow = reach([0.0, 0.76], 0.19, swing * 0.09);
    let hand = reach(elbow, 0.16, swing * 0.09 + 0.05);
    pen.limb([0.0, 0.76], elbow, [0.06, 0.05]);
    pen.limb(elbow, hand, [0.05, 0.035]);
    pen.paint(coat.scaled(0.8));
    pen.circle([0.03, 0.93], 0.1);
    pen.paint(skin);
    pen.ellipse([0.0, 0.97], [0.11, 0.085], 0.03);
    pen.paint(trousers.scaled(0.8));
}

fn car(pen: &mut Pen<'_, '_>, scene: &Scene, world: &World, colour: Rgb) {
    pen.scale *= 0.1;
    let spin = world.passed(facing(scene) / 0.13);
    let dark = Rgb::hex(0x14161e);
    let beam = scene.palette.light;
    pen.polygon(&[[1.4, 0.42], [3.6, 0.75], [3.6, -0.05]]);
    pen.paint_faint(beam, 0.16);
    pen.ellipse([0.0, 0.0], [1.55, 0.07], 0.0);
    pen.paint_faint(dark, 0.5);
    pen.polygon(&[
        [-1.45, 0.2],
        [1.45, 0.2],
        [1.48, 0.48],
        [0.85, 0.58],
        [-1.42, 0.62],
    ]);
    pen.polygon(&[[-1.15, 0.58], [0.85, 0.55], [0.4, 0.98], [-0.75, 1.0]]);
    pen.paint(colour);
    pen.polygon(&[[-0.95, 0.62], [-0.2, 0.6], [-0.2, 0.92], [-0.68, 0.92]]);
    pen.polygon(&[[-0.08, 0.6], [0.66, 0.58], [0.33, 0.9], [-0.08, 0.92]]);
    pen.paint(scene.palette.low.mix(dark, 0.45));
    for x in [-0.88, 0.86] {
        pen.circle([x, 0.24], 0.25);
        pen.paint(dark);
        pen.circle([x, 0.24], 0.13);
        pen.paint(Rgb::hex(0xb0b6c0));
        let spoke = reach([x, 0.24], 0.13, wave::fraction(spin));
        pen.limb([x, 0.24], spoke, [0.03, 0.03]);
        pen.paint(dark);
    }
    pen.ellipse([1.4, 0.44], [0.09, 0.07], 0.0);
    pen.paint(Rgb::hex(0xfff6d2));
    pen.ellipse([-1.4, 0.5], [0.06, 0.07], 0.0);
    pen.paint(Rgb::hex(0xff3a3a));
}

/// Draws the actors that float between the waves; `horizon` is a row.
pub(super) fn afloat(
    scene: &Scene,
    world: &World,
    canvas: &mut Canvas<'_>,
    shape: &mut Shape,
    horizon: f32,
) {
    let height = canvas.height as f32;
    for (i, (actor, colour)) in named(scene, &[Actor::Boat, Actor::Whale]).enumerate() {
        let drift = wave::sin(world.phase(0.02).wrapping_add(wave::turns(i as f32 * 0.4)));
        let x = canvas.width as f32 * (0.36 + 0.12 * drift) + i as f32 * height * 0.4;
        let heave = wave::sin(world.phase(0.21));
        let y = horizon + height * (0.2 + 0.006 * heave);
        let mut pen = Pen {
            canvas,
            shape,
            origin: [x, y],
            scale: height,
            facing: facing(scene),
        };
        match actor {
            Actor::Boat => boat(&mut pen, world, lit(scene, colour)),
            _ => whale(&mut pen, scene, world, lit(scene, colour)),
        }
    }
}

fn boat(pen: &mut Pen<'_, '_>, world: &World, colour: Rgb) {
    pen.scale *= 0.24;
    let roll = wave::sin(world.phase(0.17)) * 0.06;
    let tip = |x: f32, y: f32| [x + roll * y, y - roll * x];
    let sail = Rgb::hex(0xf6efe2);
    pen.polygon(&[
        tip(-0.42, 0.16),
        tip(0.5, 0.2),
        tip(0.34, 0.02),
        tip(-0.34, 0.02),
    ]);
    pen.paint(colour);
    pen.polygon(&[
        tip(-0.42, 0.17),
        tip(0.5, 0.21),
        tip(0.49, 0.17),
        tip(-0.41, 0.13),
    ]);
    pen.paint(colour.scaled(0.6));
    pen.limb(tip(0.02, 0.15), tip(0.02, 1.0), [0.014, 0.01]);
    pen.paint(Rgb::hex(0x4a382c));
    pen.polygon(&[
        tip(0.0, 0.26),
        tip(0.0, 0.97),
        tip(-0.2, 0.6),
        tip(-0.38, 0.27),
    ]);
    pen.paint(sail);
    pen.polygon(&[
        tip(0.05, 0.28),
        tip(0.04, 0.9),
        tip(0.22, 0.58),
        tip(0.42, 0.28),
    ]);
    pen.paint(sail.mix(colour, 0.25));
}

fn whale(pen: &mut Pen<'_, '_>, scene: &Scene, world: &World, colour: Rgb) {
    pen.scale *= 0.16;
    let turn = world.phase(0.12);
    let up = 0.35 * wave::sin(turn) - 0.12;
    pen.ellipse([0.0, up - 0.25], [1.0, 0.55], 0.02);
    pen.polygon(&[[-0.3, up + 0.2], [-0.52, up + 0.42], [-0.6, up + 0.12]]);
    let fluke = up + 0.2 * wave::sin(turn.wrapping_sub(1 << 29));
    pen.limb([-0.8, up - 0.3], [-1.25, fluke], [0.22, 0.06]);
    pen.polygon(&[
        [-1.2, fluke - 0.05],
        [-1.55, fluke + 0.32],
        [-1.38, fluke + 0.02],
        [-1.62, fluke - 0.08],
    ]);
    pen.paint(colour);
    pen.circle([0.72, up - 0.12], 0.035);
    pen.paint(Rgb::hex(0x10141c));
    let spout = (wave::sin(turn) - 0.5).max(0.0) * 2.0;
    for i in 0..5 {
        let part = i as f32 / 4.0;
        let spread = (part - 0.5) * 0.5 * spout;
        pen.limb(
            [0.45, up + 0.25],
            [0.45 + spread, up + 0.25 + spout * 0.6],
            [0.02, 0.035],
        );
    }
    pen.paint_faint(scene.palette.light, 0.55 * spout);
    // The water that the actor lies in.
    pen.ellipse([0.0, -0.55], [1.5, 0.5], 0.0);
    pen.paint_faint(scene.palette.low.mix(scene.palette.top, 0.5), 0.4);
}

pub(super) fn in_the_sky(scene: &Scene, world: &World, canvas: &mut Canvas<'_>, shape: &mut Shape) {
    for (actor, colour) in named(scene, &[Actor::Birds, Actor::Balloon]) {
        match actor {
            Actor::Birds => birds(scene, world, canvas, shape, lit(scene, colour)),
            _ => balloons(scene, world, canvas, shape, lit(scene, colour)),
        }
    }
}

fn birds(scene: &Scene, world: &World, canvas: &mut Canvas<'_>, shape: &mut Shape, colour: Rgb) {
    let height = canvas.height as f32;
    let mut dice = Dice::new(world.land, 30);
    let lead = [
        canvas.width as f32 * (0.46 + 0.1 * wave::sin(world.phase(0.04))),
        height * (0.3 + 0.04 * wave::sin(world.phase(0.09))),
    ];
    for i in 0..9 {
        let rank = ((i + 1) / 2) as f32;
        let side = if i % 2 == 0 { 1.0 } else { -1.0 };
        let rate = dice.range(0.9, 1.15);
        let beat = world.phase(rate).wrapping_add(dice.bits());
        let x = lead[0] - facing(scene) * rank * height * 0.055;
        let y = lead[1] + side * rank * height * 0.026 + dice.range(-0.01, 0.01) * height;
        let mut pen = Pen {
            canvas,
            shape,
            origin: [x, y],
            scale: height * 0.034 * dice.range(0.8, 1.15),
            facing: facing(scene),
        };
        let flap = wave::sin(beat);
        let fold = wave::sin(beat.wrapping_sub(1 << 29));
        pen.ellipse([0.0, 0.05 * -flap], [0.42, 0.11], 0.01);
        for (near, back) in [(1.0, 0.0), (0.85, 0.12)] {
            let root = [0.05 - back, 0.0];
            let elbow = [-0.08 - back, 0.42 * flap * near];
            let tip = [-0.38 - back, 0.42 * flap * near + 0.4 * fold * near];
            pen.limb(root, elbow, [0.12, 0.09]);
            pen.limb(elbow, tip, [0.09, 0.015]);
        }
        pen.polygon(&[[-0.35, 0.03], [-0.65, 0.12], [-0.62, -0.08]]);
        pen.paint(colour);
    }
}

fn balloons(scene: &Scene, world: &World, canvas: &mut Canvas<'_>, shape: &mut Shape, colour: Rgb) {
    let height = canvas.height as f32;
    let room = canvas.width as f32 / height + 0.5;
    let colours = [colour, colour.hue_turned(0.33), colour.hue_turned(-0.3)];
    let mut dice = Dice::new(world.land, 31);
    for (i, colour) in colours.into_iter().enumerate() {
        let depth = 0.08 - 0.02 * i as f32;
        let start = wave::turns(0.37 * i as f32);
        let place = start.wrapping_sub(world.passed(0.06 / room));
        let bob = wave::sin(world.phase(0.08).wrapping_add(dice.bits()));
        let x = (wave::fraction(place) * room - 0.25) * height;
        let y = height * (0.46 - 0.08 * i as f32 + 0.015 * bob);
        let mut pen = Pen {
            canvas,
            shape,
            origin: [x, y],
            scale: height * (0.11 + depth),
            facing: 1.0,
        };
        for x in [-0.12, 0.12] {
            pen.limb([x * 2.2, 0.5], [x, 0.14], [0.01, 0.01]);
        }
        pen.polygon(&[[-0.13, 0.14], [0.13, 0.14], [0.1, -0.02], [-0.1, -0.02]]);
        pen.paint(Rgb::hex(0x5a402c));
        pen.circle([0.0, 0.9], 0.5);
        pen.polygon(&[[-0.46, 0.7], [0.46, 0.7], [0.14, 0.26], [-0.14, 0.26]]);
        pen.paint(colour);
        pen.ellipse([0.0, 0.9], [0.24, 0.5], 0.0);
        pen.polygon(&[[-0.22, 0.7], [0.22, 0.7], [0.06, 0.26], [-0.06, 0.26]]);
        pen.paint(scene.palette.light.mix(colour, 0.2));
        pen.ellipse([0.0, 0.9], [0.08, 0.5], 0.0);
        pen.paint(colour);
    }
}
