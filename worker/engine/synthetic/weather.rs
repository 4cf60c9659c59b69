//! Rain, snow and other particles that fall or float between the camera and the land.
//!
//! Every particle is a pair of phases that move with time and with the camera; near ones are larger and faster.

#![expect(
    clippy::cast_possible_truncation,
    reason = "rows are clamped by the canvas"
)]

use super::colour::Rgb;
use super::draw::Canvas;
use super::scene::Scene;
use super::wave::{self, Dice};
use super::words::Weather;
use super::world::World;

pub(super) fn paint(scene: &Scene, world: &World, canvas: &mut Canvas<'_>) {
    if scene.has(Weather::Fog) {
        fog(scene, world, canvas);
    }
    if scene.has(Weather::Fireflies) {
        fireflies(scene, world, canvas);
    }
    if scene.has(Weather::Petals) {
        petals(scene, world, canvas);
    }
    if scene.has(Weather::Snow) {
        snow(scene, world, canvas);
    }
    if scene.has(Weather::Rain) {
        rain(scene, world, canvas);
    }
}

/// Returns the size of the area that particles move in: the picture and a margin, in picture heights.
fn room(canvas: &Canvas<'_>) -> [f32; 2] {
    [canvas.width as f32 / canvas.height as f32 + 0.3, 1.2]
}

/// Returns the position in pixels of a particle that drifts at the given number of picture heights per second.
fn place(
    world: &World,
    canvas: &Canvas<'_>,
    dice: &mut Dice,
    depth: f32,
    drift: [f32; 2],
) -> [f32; 2] {
    let room = room(canvas);
    let across = dice
        .bits()
        .wrapping_add(world.phase(drift[0] / room[0]))
        .wrapping_sub(world.passed(depth / room[0]));
    let down = dice.bits().wrapping_add(world.phase(drift[1] / room[1]));
    let height = canvas.height as f32;
    [
        (wave::fraction(across) * room[0] - 0.15) * height,
        (wave::fraction(down) * room[1] - 0.1) * height,
    ]
}

fn snow(scene: &Scene, world: &World, canvas: &mut Canvas<'_>) {
    let mut dice = Dice::new(world.land, 20);
    let height = canvas.height as f32;
    let colour = Rgb::hex(0xffffff).mix(scene.palette.light, 0.15);
    let wind = if scene.has(Weather::Wind) { 0.25 } else { 0.03 };
    for _ in 0..130 {
        let near = dice.unit();
        let near = near * near;
        let fall = 0.05 + 0.16 * near;
        let mut at = place(
            world,
            canvas,
            &mut dice,
            0.3 + near,
            [-wind * (0.5 + near), fall],
        );
        let sway = world
            .phase(0.25 * dice.range(0.5, 1.2))
            .wrapping_add(dice.bits());
        at[0] += wave::sin(sway) * height * 0.012;
        let radius = height * (0.0024 + 0.0085 * near);
        canvas.dot(at, radius, 0.5 + 0.4 * near, colour, 0.9 - 0.4 * near);
    }
}

fn rain(scene: &Scene, world: &World, canvas: &mut Canvas<'_>) {
    let mut dice = Dice::new(world.land, 21);
    let height = canvas.height as f32;
    let colour = Rgb::hex(0xe8f0ff).mix(scene.palette.low, 0.3);
    let slant = if scene.has(Weather::Wind) { 0.34 } else { 0.12 };
    for _ in 0..150 {
        let near = dice.unit();
        let fall = 1.1 + 0.9 * near;
        let at = place(
            world,
            canvas,
            &mut dice,
            0.2 + 0.8 * near,
            [-slant * fall, fall],
        );
        let length = height * (0.03 + 0.05 * near);
        let width = (height * (0.0012 + 0.0012 * near)).max(0.5);
        let mut row = 0.0;
        while row < length {
            let fade = row / length;
            let x = at[0] - slant * row;
            canvas.bar(
                (at[1] + row) as i32,
                x,
                x + width,
                colour,
                (0.12 + 0.28 * near) * fade,
            );
            row += 1.0;
        }
    }
}

fn fireflies(scene: &Scene, world: &World, canvas: &mut Canvas<'_>) {
    let mut dice = Dice::new(world.land, 22);
    let height = canvas.height as f32;
    for _ in 0..34 {
        let near = dice.unit();
        let mut at = place(world, canvas, &mut dice, 0.3 + 0.5 * near, [0.01, -0.015]);
        at[1] = height * (0.45 + 0.5 * at[1] / height);
        let rates = [
            dice.range(0.1, 0.25),
            dice.range(0.1, 0.3),
            dice.range(0.2, 0.5),
        ];
        let [x, y, blink] =
            rates.map(|rate| wave::sin(world.phase(rate).wrapping_add(dice.bits())));
        let at = [at[0] + x * height * 0.03, at[1] + y * height * 0.025];
        let bright = (0.35 + 0.65 * blink).max(0.0);
        let radius = height * (0.003 + 0.003 * near);
        canvas.dot(at, radius * 5.0, 1.0, scene.palette.accent, bright * 0.5);
        canvas.dot(at, radius, 0.5, Rgb::hex(0xfffbdc), bright);
    }
}

fn petals(scene: &Scene, world: &World, canvas: &mut Canvas<'_>) {
    let mut dice = Dice::new(world.land, 23);
    let height = canvas.height as f32;
    let colours = [Rgb::hex(0xf6a8c0), Rgb::hex(0xe88a4a), scene.palette.accent];
    for i in 0..48 {
        let near = dice.unit();
        let drift = [-0.06 - 0.08 * near, 0.05 + 0.07 * near];
        let mut at = place(world, canvas, &mut dice, 0.3 + 0.7 * near, drift);
        let turn = world.phase(dice.range(0.2, 0.6)).wrapping_add(dice.bits());
        at[0] += wave::sin(turn) * height * 0.02;
        at[1] += wave::cos(turn) * height * 0.008;
        let radius = height * (0.003 + 0.006 * near);
        let open = 0.35 + 0.65 * wave::cos(turn.wrapping_mul(2)).abs();
        let colour = colours[i % 2 + usize::from(dice.chance(0.15))];
        let wide = radius * 1.5;
        let tall = radius * open;
        let mut row = -tall;
        while row < tall {
            let half = wide * (1.0 - (row / tall) * (row / tall)).max(0.0).sqrt();
            let x = at[0] + row * 0.6;
            canvas.bar((at[1] + row) as i32, x - half, x + half, colour, 0.85);
            row += 1.0;
        }
    }
}

/// Draws banks of fog that drift over the land.
fn fog(scene: &Scene, world: &World, canvas: &mut Canvas<'_>) {
    let height = canvas.height as f32;
    let colour = scene.palette.low.mix(scene.palette.light, 0.2);
    let from = height * 0.42;
    let mut y = from;
    while y < height {
        let part = (y - from) / (height - from);
        let bank = wave::sin(wave::turns(part * 1.7).wrapping_add(world.phase(0.04)));
        let alpha = wave::smoothstep(part * 3.0) * (0.26 + 0.14 * bank) * (1.1 - part * 0.7);
        canvas.bar(y as i32, 0.0, canvas.width as f32, colour, alpha);
        y += 1.0;
    }
}
