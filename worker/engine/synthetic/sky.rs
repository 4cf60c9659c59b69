//! The still background behind everything else, and the stars, clouds and northern lights in front of it.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positions and brightnesses are clamped before they become pixels"
)]

use super::colour::Rgb;
use super::draw::Canvas;
use super::scene::{Light, Scene};
use super::shape::Shape;
use super::wave::{self, Dice};
use super::words::Weather;
use super::world::World;

/// Draws the sky with its sun or moon and the stars; the same for every frame of a scene.
pub(super) fn paint(scene: &Scene, land: u64, canvas: &mut Canvas<'_>) {
    let (width, height) = (canvas.width, canvas.height);
    let light = light_place(scene, canvas);
    let radius = light_radius(scene) * height as f32;
    let reach = radius * if scene.light == Light::Sun { 5.5 } else { 3.2 };
    let strength = match scene.light {
        Light::Sun => 0.8,
        Light::Moon => 0.42,
        Light::None => 0.0,
    };
    let tint = scene.palette.light.0.map(f32::from);
    for y in 0..height {
        let base = gradient(scene, y as f32 / height as f32);
        let dy = y as f32 - light[1];
        for (x, pixel) in canvas.pixels[y * width * 3..(y + 1) * width * 3]
            .chunks_exact_mut(3)
            .enumerate()
        {
            let dx = x as f32 - light[0];
            let near = 1.0 / (1.0 + (dx * dx + dy * dy) / (reach * reach));
            let glow = strength * near * near;
            // Dithering hides the bands of a gradient in eight bits.
            let grain = GRAIN[(y & 3) << 2 | (x & 3)];
            for ((d, c), l) in pixel.iter_mut().zip(base).zip(tint) {
                *d = (c + (l - c) * glow + grain) as u8;
            }
        }
    }
    if scene.has(Weather::Stars) {
        stars(land, canvas, 420, |d| [d.unit(), d.unit() * 0.66], 0.0);
    }
    let mut shape = Shape::default();
    if scene.light != Light::None {
        shape.circle(light, radius);
        shape.paint(canvas, scene.palette.light, 1.0);
    }
    if scene.light == Light::Moon {
        let shade = scene.palette.light.mix(scene.palette.middle, 0.3);
        for (x, y, r) in [
            (-0.3, -0.25, 0.26),
            (0.28, 0.1, 0.2),
            (-0.12, 0.42, 0.16),
            (0.3, -0.48, 0.11),
        ] {
            shape.circle([light[0] + x * radius, light[1] + y * radius], r * radius);
        }
        shape.paint(canvas, shade, 0.55);
    }
}

/// The ordered-dithering thresholds of a 4x4 cell, 0..1.
const GRAIN: [f32; 16] = [
    0.03, 0.53, 0.16, 0.66, 0.78, 0.28, 0.91, 0.41, 0.22, 0.72, 0.09, 0.59, 0.97, 0.47, 0.84, 0.34,
];

pub(super) fn light_place(scene: &Scene, canvas: &Canvas<'_>) -> [f32; 2] {
    let [x, y] = scene.light_at.map(|part| f32::from(part) / 255.0);
    [x * canvas.width as f32, y * canvas.height as f32]
}

fn light_radius(scene: &Scene) -> f32 {
    if scene.light == Light::Sun {
        0.085
    } else {
        0.062
    }
}

fn gradient(scene: &Scene, y: f32) -> [f32; 3] {
    let palette = &scene.palette;
    let (from, to, t) = if y < 0.36 {
        (palette.top, palette.middle, y / 0.36)
    } else {
        (palette.middle, palette.low, ((y - 0.36) / 0.28).min(1.0))
    };
    std::array::from_fn(|c| {
        let (from, to) = (f32::from(from.0[c]), f32::from(to.0[c]));
        (from + (to - from) * t).min(254.0)
    })
}

fn stars(
    land: u64,
    canvas: &mut Canvas<'_>,
    count: u32,
    place: fn(&mut Dice) -> [f32; 2],
    big: f32,
) {
    let mut dice = Dice::new(land, 3);
    let (width, height) = (canvas.width as f32, canvas.height as f32);
    let count = count.min((width * height / 260.0) as u32);
    for _ in 0..count {
        let [x, y] = place(&mut dice);
        let bright = dice.unit();
        let radius = (height / 900.0) * (0.5 + bright * bright + big);
        let alpha = (0.25 + 0.75 * bright * bright) * (1.0 - y * 1.2).max(0.1);
        let colour = Rgb::hex(if dice.chance(0.3) { 0xffe9d0 } else { 0xe4eeff });
        canvas.dot([x * width, y * height], radius, 0.4, colour, alpha);
    }
}

/// Draws a few twinkling stars.
pub(super) fn twinkle(world: &World, canvas: &mut Canvas<'_>) {
    let mut dice = Dice::new(world.land, 4);
    let (width, height) = (canvas.width as f32, canvas.height as f32);
    for _ in 0..26 {
        let at = [dice.unit() * width, dice.unit() * 0.5 * height];
        let rate = dice.range(0.15, 0.6);
        let bright = 0.5 + 0.5 * wave::sin(world.phase(rate).wrapping_add(dice.bits()));
        let radius = height / 420.0;
        canvas.dot(at, radius * 2.6, 1.0, Rgb::hex(0xcfddff), bright * 0.35);
        canvas.dot(at, radius, 0.4, Rgb::hex(0xffffff), 0.25 + bright * 0.75);
    }
}

pub(super) fn clouds(scene: &Scene, world: &World, canvas: &mut Canvas<'_>, shape: &mut Shape) {
    let palette = &scene.palette;
    let height = canvas.height as f32;
    let span = canvas.width as f32 + height * 1.2;
    let wind = if scene.has(Weather::Wind) {
        0.03
    } else {
        0.012
    };
    let mut dice = Dice::new(world.land, 5);
    let heavy = scene.has(Weather::Rain);
    let lit = if heavy {
        palette.middle.scaled(0.92)
    } else {
        palette
            .low
            .mix(palette.light, 0.5)
            .mix(Rgb::hex(0xffffff), 0.25)
    };
    for _ in 0..if heavy { 8 } else { 6 } {
        let size = dice.range(0.05, 0.12) * height;
        let y = dice.range(0.08, 0.4) * height;
        let drift = world.phase(wind * dice.range(0.6, 1.3) * height / span);
        let camera = world.passed(0.03 * height / span);
        let place = wave::fraction(dice.bits().wrapping_add(drift).wrapping_sub(camera));
        let x = place * span - height * 0.6;
        let alpha = dice.range(0.3, 0.65);
        let mut puff = dice.clone();
        dice.bits();
        cloud(shape, [x, y], size, &mut puff);
        shape.paint(canvas, lit, alpha);
    }
}

/// Adds a cloud: balls on a level base.
fn cloud(shape: &mut Shape, [x, y]: [f32; 2], size: f32, dice: &mut Dice) {
    let reach = size * dice.range(1.5, 2.3);
    let base = size * 0.22;
    shape.limb([x - reach, y], [x + reach, y], [base, base]);
    for i in 0..5 {
        let part = (i as f32 - 2.0) / 2.4;
        let radius = size * (0.62 - 0.3 * part * part) * dice.range(0.75, 1.1);
        let lift = (radius - base).max(0.0);
        shape.circle(
            [x + part * reach, y + base - radius.max(base) - lift * 0.05],
            radius,
        );
    }
}

/// Draws the northern lights: curtains of light high in the sky.
pub(super) fn aurora(world: &World, canvas: &mut Canvas<'_>) {
    let (width, height) = (canvas.width as f32, canvas.height as f32);
    let step = (height / 180.0).max(2.0);
    let green = Rgb::hex(0x4cf0a8);
    let violet = Rgb::hex(0x9a6cf0);
    let mut x = 0.0;
    while x < width {
        let turn = wave::turns(x / height * 0.35);
        let sway = wave::sin(turn.wrapping_add(world.phase(0.03)));
        let fold = wave::sin(turn.wrapping_mul(3).wrapping_add(world.phase(0.07)));
        let ray = wave::sin(turn.wrapping_mul(17).wrapping_sub(world.phase(0.11)));
        let foot = height * (0.4 + 0.06 * sway + 0.03 * fold);
        let tall = height * (0.24 + 0.06 * fold + 0.04 * ray);
        let bright = 0.2 + 0.1 * sway + 0.07 * ray;
        let rows = 14.0;
        let mut row = 0.0;
        while row < rows {
            let part = row / rows;
            let fade = bright * (1.0 - part) * (row / 2.0).min(1.0);
            let y = foot - part * tall;
            canvas.rect(
                [x, x + step],
                [y - tall / rows, y],
                green.mix(violet, part),
                fade,
            );
            row += 1.0;
        }
        x += step;
    }
}
