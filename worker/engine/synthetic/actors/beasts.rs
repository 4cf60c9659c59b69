//! Animals on four legs, which share one construction and differ in their measures.

use super::super::colour::Rgb;
use super::super::scene::Scene;
use super::super::wave;
use super::super::words::Actor;
use super::super::world::World;
use super::pen::{Pen, facing, reach};

/// The measures of an animal, in units of the height of its back.
struct Build {
    /// The height of the back in picture heights.
    size: f32,
    /// Half of the length from hips to shoulders.
    long: f32,
    /// Half the thickness of hips and chest.
    thick: [f32; 2],
    leg: f32,
    /// The neck, from the shoulders to the head.
    neck: [f32; 2],
    neck_thick: [f32; 2],
    head: f32,
    snout: f32,
    ear: f32,
}

fn build(actor: Actor) -> Build {
    match actor {
        Actor::Cat => Build {
            size: 0.088,
            long: 0.52,
            thick: [0.2, 0.19],
            leg: 0.042,
            neck: [0.2, 0.24],
            neck_thick: [0.14, 0.12],
            head: 0.19,
            snout: 0.1,
            ear: 0.17,
        },
        Actor::Horse => Build {
            size: 0.17,
            long: 0.42,
            thick: [0.18, 0.19],
            leg: 0.04,
            neck: [0.3, 0.44],
            neck_thick: [0.15, 0.085],
            head: 0.095,
            snout: 0.28,
            ear: 0.1,
        },
        Actor::Deer => Build {
            size: 0.155,
            long: 0.38,
            thick: [0.15, 0.16],
            leg: 0.03,
            neck: [0.22, 0.42],
            neck_thick: [0.11, 0.065],
            head: 0.085,
            snout: 0.2,
            ear: 0.13,
        },
        _ => Build {
            size: 0.1,
            long: 0.54,
            thick: [0.17, 0.2],
            leg: 0.04,
            neck: [0.27, 0.24],
            neck_thick: [0.17, 0.13],
            head: 0.16,
            snout: 0.3,
            ear: 0.24,
        },
    }
}

pub(super) fn draw(pen: &mut Pen<'_, '_>, scene: &Scene, world: &World, actor: Actor, coat: Rgb) {
    let build = build(actor);
    pen.scale *= build.size;
    let stride = build.size * 2.3;
    let gait = world.passed(facing(scene) / stride);
    let bob = 0.05 * wave::sin(gait.wrapping_mul(2));
    // A running back bends: the hips rise as the shoulders sink.
    let pitch = 0.05 * wave::sin(gait);
    let hips = [-build.long, 0.84 + bob + pitch];
    let chest = [build.long, 0.84 + bob - pitch];
    let dark = coat.mix(Rgb::hex(0x161214), 0.6);
    let pale = coat.mix(Rgb::hex(0xfff4e4), 0.8);

    pen.ellipse([0.05, 0.0], [build.long * 1.7, 0.07], 0.0);
    pen.paint_faint(Rgb::hex(0x101420), 0.28);
    legs(pen, &build, [hips, chest], gait.wrapping_add(1 << 30));
    pen.paint(dark.scaled(0.75));
    tail(pen, actor, hips, gait, [coat, pale, dark]);
    legs(pen, &build, [hips, chest], gait);
    pen.paint(if actor == Actor::Fox {
        dark
    } else {
        coat.scaled(0.82)
    });

    let head = [chest[0] + build.neck[0], chest[1] + build.neck[1]];
    let [haunch, breast] = build.thick;
    pen.limb(hips, chest, build.thick);
    pen.ellipse(
        [hips[0] - 0.02, hips[1]],
        [haunch * 1.3, haunch * 1.12],
        0.05,
    );
    pen.ellipse(
        [chest[0] + 0.03, chest[1] - 0.02],
        [breast * 1.1, breast * 1.22],
        -0.05,
    );
    let belly = [0.0, (hips[1] + chest[1]) * 0.5 - 0.03];
    pen.ellipse(belly, [build.long, breast * 1.02], 0.0);
    pen.limb([chest[0] * 0.95, chest[1] + 0.02], head, build.neck_thick);
    head_of(pen, &build, head);
    pen.paint(coat);
    details(pen, actor, &build, [chest, head], [pale, dark]);
}

/// Draws a fore leg and a hind leg; the other pair is a quarter turn behind.
fn legs(pen: &mut Pen<'_, '_>, build: &Build, [hips, chest]: [[f32; 2]; 2], gait: u32) {
    for (root, lag, bend) in [(hips, 0, 0.1), (chest, 3 << 29, -0.1)] {
        let phase = gait.wrapping_add(lag);
        let swing = wave::sin(phase) * 0.1;
        let folded = wave::cos(phase).max(0.0);
        let upper = root[1] * 0.5;
        let root = [root[0], root[1] - 0.06];
        let knee = reach(root, upper, swing + bend * 0.35);
        let foot = reach(
            knee,
            upper * 0.92 - folded * 0.05,
            swing - bend * 0.5 - folded * 0.13,
        );
        pen.limb(root, knee, [build.leg * 2.6, build.leg * 1.35]);
        pen.limb(knee, foot, [build.leg * 1.35, build.leg]);
        pen.limb(
            foot,
            [foot[0] + 0.05, foot[1]],
            [build.leg, build.leg * 0.8],
        );
    }
}

fn head_of(pen: &mut Pen<'_, '_>, build: &Build, [x, y]: [f32; 2]) {
    let (r, snout, ear) = (build.head, build.snout, build.ear);
    pen.circle([x, y], r);
    pen.limb(
        [x + r * 0.3, y - r * 0.15],
        [x + r * 0.6 + snout, y - r * 0.15 - snout * 0.35],
        [r * 0.78, r * 0.34],
    );
    for back in [0.0, 0.55] {
        let foot = x - r * (0.55 - back);
        pen.polygon(&[
            [foot - r * 0.3, y + r * 0.5],
            [foot - r * 0.15, y + r * 0.6 + ear],
            [foot + r * 0.5, y + r * 0.7],
        ]);
    }
}

fn tail(
    pen: &mut Pen<'_, '_>,
    actor: Actor,
    [x, y]: [f32; 2],
    gait: u32,
    [coat, pale, dark]: [Rgb; 3],
) {
    let wag = 0.08 * wave::sin(gait.wrapping_sub(1 << 29));
    match actor {
        Actor::Cat => {
            let middle = [x - 0.42, y + 0.1 + wag];
            pen.limb([x - 0.1, y + 0.05], middle, [0.06, 0.055]);
            pen.limb(middle, [x - 0.56, y + 0.52 + wag * 2.0], [0.055, 0.05]);
            pen.paint(coat);
        }
        Actor::Horse => {
            pen.limb(
                [x - 0.12, y + 0.08],
                [x - 0.42, y - 0.05 + wag],
                [0.05, 0.09],
            );
            pen.limb(
                [x - 0.42, y - 0.05 + wag],
                [x - 0.56, y - 0.4 + wag],
                [0.09, 0.03],
            );
            pen.paint(dark);
        }
        Actor::Deer => {
            pen.limb(
                [x - 0.12, y + 0.08],
                [x - 0.22, y + 0.12 + wag],
                [0.05, 0.04],
            );
            pen.paint(pale);
        }
        _ => {
            let middle = [x - 0.55, y - 0.02 + wag];
            let tip = [x - 0.92, y + 0.06 + wag * 1.8];
            pen.limb([x, y], middle, [0.08, 0.17]);
            pen.limb(middle, tip, [0.17, 0.06]);
            pen.paint(coat.scaled(0.94));
            pen.limb(
                [tip[0] + 0.12, tip[1] - 0.03],
                [tip[0] - 0.1, tip[1] + 0.03],
                [0.105, 0.02],
            );
            pen.paint(pale);
        }
    }
}

fn details(
    pen: &mut Pen<'_, '_>,
    actor: Actor,
    build: &Build,
    [chest, [x, y]]: [[f32; 2]; 2],
    [pale, dark]: [Rgb; 2],
) {
    let r = build.head;
    match actor {
        Actor::Horse => {
            pen.limb(
                [x - 0.05, y + 0.08],
                [chest[0] - 0.06, chest[1] + 0.16],
                [0.06, 0.05],
            );
            pen.paint(dark);
        }
        Actor::Deer => {
            for (dx, lean) in [(-0.02, -0.1), (0.05, 0.06)] {
                let root = [x + dx, y + r];
                let fork = [x + dx + lean, y + r + 0.24];
                pen.limb(root, fork, [0.022, 0.018]);
                pen.limb(fork, [fork[0] + 0.14, fork[1] + 0.14], [0.018, 0.01]);
                pen.limb(fork, [fork[0] - 0.12, fork[1] + 0.18], [0.018, 0.01]);
            }
            pen.paint(dark.mix(pale, 0.4));
        }
        Actor::Fox => {
            pen.limb(
                [chest[0] + 0.1, chest[1] - 0.02],
                [x - 0.02, y - r * 0.75],
                [0.1, 0.07],
            );
            pen.limb(
                [x + r * 0.5, y - r * 0.55],
                [
                    x + r * 0.6 + build.snout * 0.85,
                    y - r * 0.3 - build.snout * 0.36,
                ],
                [0.05, 0.03],
            );
            pen.paint(pale);
        }
        _ => {}
    }
    let nose = [x + r * 0.65 + build.snout, y - r * 0.1 - build.snout * 0.35];
    pen.circle(nose, r * 0.17);
    pen.circle([x + r * 0.42, y + r * 0.16], r * 0.15);
    pen.paint(dark.scaled(0.35));
}
