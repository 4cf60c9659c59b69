//! A soft chord whose key follows from the prompt, and the wind, rain or surf of the scene.
//!
//! All movement is a phase in [`SoundState`], so that the next segment's first sample follows this one's last.

use super::scene::Scene;
use super::wave;
use super::words::Weather;
use super::world::{SoundState, VOICES};

pub(super) const SAMPLE_RATE: u32 = 24_000;
pub(super) const CHANNELS: u32 = 2;

const LOWEST_HZ: f32 = 98.0;
/// The highest loudness of each voice; together with the air they stay below -12 dBFS.
const LOUDNESS: [f32; VOICES] = [0.075, 0.05, 0.04, 0.03];
const AIR_LOUDNESS: f32 = 0.045;
/// The frequency of the slow movement in turns per second; each voice moves at a multiple of it.
const SWELL_HZ: f32 = 0.09;
const FADE_IN_SAMPLES: u32 = SAMPLE_RATE / 2;

/// Equal temperament within one octave.
const SEMITONES: [f32; 12] = [
    1.0,
    1.059_463,
    1.122_462,
    1.189_207,
    1.259_921,
    1.334_84,
    std::f32::consts::SQRT_2,
    1.498_307,
    1.587_401,
    1.681_793,
    1.781_797,
    1.887_749,
];

/// The sound of a scene.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Chord {
    hz: [f32; VOICES],
    air: f32,
}

impl Chord {
    pub(super) fn of(scene: &Scene) -> Self {
        let root = LOWEST_HZ * SEMITONES[usize::from(scene.key) % 12];
        let third = if scene.minor { 2.4 } else { 2.5 };
        let air = if scene.has(Weather::Rain) || scene.has(Weather::Wind) {
            1.0
        } else if scene.water || scene.has(Weather::Snow) {
            0.6
        } else {
            0.12
        };
        Self {
            hz: [root, root * 1.5, root * 2.0, root * third],
            air,
        }
    }

    pub(super) fn mix(self, other: Self, amount: f32) -> Self {
        let between = |a: f32, b: f32| a + (b - a) * amount;
        Self {
            hz: std::array::from_fn(|v| between(self.hz[v], other.hz[v])),
            air: between(self.air, other.air),
        }
    }

    /// Appends `samples` samples, left and right interleaved, while the air's strength moves to that of `next`.
    pub(super) fn play(
        &self,
        next: &Self,
        state: &mut SoundState,
        samples: u32,
        out: &mut Vec<f32>,
    ) {
        let begin = Gains::at(state, self.air);
        let swell = SWELL_HZ * samples as f32 / SAMPLE_RATE as f32;
        state.swell = state.swell.wrapping_add(wave::turns(swell));
        state.age = state.age.saturating_add(samples).min(FADE_IN_SAMPLES);
        let end = Gains::at(state, next.air);
        let steps = self.hz.map(|hz| wave::turns(hz / SAMPLE_RATE as f32));
        for n in 0..samples {
            let gains = begin.towards(&end, n as f32 / samples as f32);
            let mut sides = [0.0; 2];
            for (voice, phase) in state.voices.iter_mut().enumerate() {
                *phase = phase.wrapping_add(steps[voice]);
                // A little of the octave makes the sine less pure.
                let tone = wave::sin(*phase) + 0.2 * wave::sin(phase.wrapping_mul(2));
                sides[0] += tone * gains.voices[voice][0];
                sides[1] += tone * gains.voices[voice][1];
            }
            state.noise = state
                .noise
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223);
            let white = state.noise as i32 as f32 / 2_147_483_648.0;
            state.air += (white - state.air) * 0.12;
            out.extend(sides.map(|side| side + state.air * gains.air));
        }
    }
}

/// The loudness of every part at one moment.
#[derive(Clone, Copy, Debug)]
struct Gains {
    voices: [[f32; 2]; VOICES],
    air: f32,
}

impl Gains {
    fn at(state: &SoundState, air: f32) -> Self {
        let fade = wave::smoothstep(state.age as f32 / FADE_IN_SAMPLES as f32);
        let mut turn = 0_u32;
        let voices = LOUDNESS.map(|loudness| {
            turn = turn.wrapping_add(state.swell);
            let move_by = 0.3 * wave::sin(turn);
            // The divisor is the peak of tone and octave together.
            let loudness = loudness * fade / 1.2;
            [loudness * (0.7 + move_by), loudness * (0.7 - move_by)]
        });
        let surf = 0.65 + 0.35 * wave::sin(state.swell.wrapping_mul(2));
        Self {
            voices,
            air: AIR_LOUDNESS * fade * air * surf,
        }
    }

    fn towards(&self, end: &Self, amount: f32) -> Self {
        let between = |a: f32, b: f32| a + (b - a) * amount;
        Self {
            voices: std::array::from_fn(|v| {
                [
                    between(self.voices[v][0], end.voices[v][0]),
                    between(self.voices[v][1], end.voices[v][1]),
                ]
            }),
            air: between(self.air, end.air),
        }
    }
}
