//! The part of the moving picture and its sound that a continuation state carries, and its form in the latents.
//!
//! The world advances by the frame and by the sample, in fixed point, so that a continued segment takes up exactly where
//! the one before ended.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clocks wrap, and a latent's value is cut down to bf16"
)]

use super::colour::Rgb;
use super::scene::{ACTORS, Light, Palette, Scene};
use super::wave::{self, Dice};
use super::words::{Actor, Terrain};

/// The number of voices of the chord.
pub(super) const VOICES: usize = 4;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct World {
    /// The seed of the land; it stays the same when the prompt changes.
    pub(super) land: u64,
    /// The time in seconds, 32.32 fixed point.
    pub(super) time: u64,
    /// The distance that the camera has moved to the right in picture heights, 32.32 fixed point, wrapping.
    pub(super) way: u64,
    /// How far the camera looks down, in picture heights, 16.16 fixed point.
    pub(super) lift: i32,
    pub(super) sound: SoundState,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SoundState {
    pub(super) voices: [u32; VOICES],
    /// The phase of the slow movement of loudness.
    pub(super) swell: u32,
    /// The number of samples since the sound began, until it has faded in.
    pub(super) age: u32,
    /// The memory of the filter that makes wind out of noise.
    pub(super) air: f32,
    pub(super) noise: u32,
}

impl World {
    pub(super) fn begin(seed: u64, prompt: &str, scene: &Scene) -> Self {
        let land = wave::scramble(seed ^ wave::hash_bytes(prompt.as_bytes()));
        Self {
            land,
            time: (land >> 40) << 32,
            way: (land & 0xffff) << 32,
            lift: i32::from(scene.lift) << 7,
            sound: SoundState::default(),
        }
    }

    /// Advances by one frame, between two scenes while one fades into the other.
    pub(super) fn advance(&mut self, from: &Scene, to: &Scene, mix: f32, fps: u32) {
        let between = |from: f32, to: f32| from + (to - from) * mix;
        let second = 4_294_967_296.0 / fps as f32;
        let pace = between(f32::from(from.pace), f32::from(to.pace)) / 64.0;
        self.time = self.time.wrapping_add((second * pace) as u64);
        let speed = between(from.camera_speed(), to.camera_speed());
        self.way = self.way.wrapping_add((second * speed) as i64 as u64);
        let target = i32::from(to.lift) << 7;
        self.lift += ((target - self.lift) as f32 * 1.2 / fps.max(2) as f32) as i32;
    }

    /// Returns the phase of something that happens `rate` times per second.
    pub(super) fn phase(&self, rate: f32) -> u32 {
        wave::turned(self.time, rate)
    }

    /// Returns the phase of something that passes by `rate` times for each picture height that the camera moves.
    pub(super) fn passed(&self, rate: f32) -> u32 {
        wave::turned(self.way, rate)
    }

    pub(super) fn lift(&self) -> f32 {
        self.lift as f32 / 65_536.0
    }
}

/// The content of a state, bound to the frames that it came with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Memory {
    pub(super) world: World,
    pub(super) scene: Scene,
    /// The checksum of the trailing frames.
    pub(super) frames: u32,
}

const MAGIC: &[u8; 4] = b"SYN1";

impl Memory {
    /// Fills the latents: first the memory, one byte in each, then values that look like latents and depend on it.
    pub(super) fn write(&self, latents: &mut [u8]) {
        let bytes = self.to_bytes();
        let mut dice = Dice::new(u64::from(crc32fast::hash(&bytes)), 2);
        let mut rest = bytes.iter();
        for element in latents.chunks_exact_mut(2) {
            let value = match rest.next() {
                Some(&byte) => byte_as_bf16(byte),
                None => gauss_as_bf16(&mut dice),
            };
            element.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Reads what [`Self::write`] wrote; returns `None` when a single bit differs, or when other frames came with it.
    pub(super) fn read(frames: &[u8], latents: &[u8]) -> Option<Self> {
        let bytes: Vec<u8> = latents
            .chunks_exact(2)
            .take(Self::LEN)
            .map(|e| bf16_as_byte(u16::from_le_bytes([e[0], e[1]])))
            .collect();
        let memory = Self::from_bytes(&bytes)?;
        let mut again = vec![0; latents.len()];
        memory.write(&mut again);
        (again == latents && memory.frames == crc32fast::hash(frames)).then_some(memory)
    }

    /// The size of a memory in bytes; the latents must have at least as many elements.
    pub(super) const LEN: usize = 4 + 28 + 32 + 43 + 4;

    fn to_bytes(&self) -> Vec<u8> {
        let Self {
            world,
            scene,
            frames,
        } = self;
        let mut out = MAGIC.to_vec();
        out.extend(world.land.to_le_bytes());
        out.extend(world.time.to_le_bytes());
        out.extend(world.way.to_le_bytes());
        out.extend(world.lift.to_le_bytes());
        let sound = &world.sound;
        for voice in sound.voices {
            out.extend(voice.to_le_bytes());
        }
        out.extend(sound.swell.to_le_bytes());
        out.extend(sound.age.to_le_bytes());
        out.extend(sound.air.to_bits().to_le_bytes());
        out.extend(sound.noise.to_le_bytes());
        let p = &scene.palette;
        for colour in [p.top, p.middle, p.low, p.light, p.ground, p.accent] {
            out.extend(colour.0);
        }
        out.extend([
            scene.terrain as u8,
            u8::from(scene.water),
            scene.light as u8,
        ]);
        out.extend(scene.light_at);
        out.extend(scene.weather.to_le_bytes());
        for actor in scene.actors {
            let (kind, colour) = actor.map_or((0, Rgb::default()), |(a, c)| (a as u8, c));
            out.push(kind);
            out.extend(colour.0);
        }
        out.extend(scene.speed.to_le_bytes());
        out.extend([
            scene.pace,
            scene.lift as u8,
            scene.key,
            u8::from(scene.minor),
        ]);
        out.extend(frames.to_le_bytes());
        out
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if &reader.take()? != MAGIC {
            return None;
        }
        let world = World {
            land: u64::from_le_bytes(reader.take()?),
            time: u64::from_le_bytes(reader.take()?),
            way: u64::from_le_bytes(reader.take()?),
            lift: i32::from_le_bytes(reader.take()?).clamp(-65_536, 65_536),
            sound: reader.sound()?,
        };
        Some(Self {
            world,
            scene: reader.scene()?,
            frames: u32::from_le_bytes(reader.take()?),
        })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn colour(&mut self) -> Option<Rgb> {
        self.take().map(Rgb)
    }

    fn sound(&mut self) -> Option<SoundState> {
        let mut voices = [0; VOICES];
        for voice in &mut voices {
            *voice = u32::from_le_bytes(self.take()?);
        }
        let sound = SoundState {
            voices,
            swell: u32::from_le_bytes(self.take()?),
            age: u32::from_le_bytes(self.take()?),
            air: f32::from_bits(u32::from_le_bytes(self.take()?)),
            noise: u32::from_le_bytes(self.take()?),
        };
        (sound.air.abs() <= 1.0).then_some(sound)
    }

    fn scene(&mut self) -> Option<Scene> {
        let palette = Palette {
            top: self.colour()?,
            middle: self.colour()?,
            low: self.colour()?,
            light: self.colour()?,
            ground: self.colour()?,
            accent: self.colour()?,
        };
        let terrain = self.byte()?;
        let terrain = Terrain::ALL.into_iter().find(|&t| t as u8 == terrain)?;
        let water = self.byte()? != 0;
        let light = match self.byte()? {
            0 => Light::None,
            1 => Light::Sun,
            2 => Light::Moon,
            _ => return None,
        };
        let light_at = self.take()?;
        let weather = u16::from_le_bytes(self.take()?);
        let mut actors = [None; ACTORS];
        for place in &mut actors {
            let (kind, colour) = (self.byte()?, self.colour()?);
            *place = Actor::ALL
                .into_iter()
                .find(|&a| a as u8 == kind)
                .map(|a| (a, colour));
        }
        let speed = i16::from_le_bytes(self.take()?);
        let [pace, lift, key, minor] = self.take()?;
        (key < 12).then_some(Scene {
            palette,
            terrain,
            water,
            light,
            light_at,
            weather,
            actors,
            speed,
            pace,
            lift: lift as i8,
            key,
            minor: minor != 0,
        })
    }
}

/// Encodes a byte as bf16: sign and mantissa hold the byte, and the exponent is that of 1, so it is a finite number,
/// which survives conversion to other number formats.
fn byte_as_bf16(byte: u8) -> u16 {
    let byte = u16::from(byte);
    (byte & 0x80) << 8 | 0x3f80 | byte & 0x7f
}

fn bf16_as_byte(value: u16) -> u8 {
    (value >> 8 & 0x80 | value & 0x7f) as u8
}

fn gauss_as_bf16(dice: &mut Dice) -> u16 {
    let sum: f32 = (0..4).map(|_| dice.unit()).sum();
    (((sum - 2.0) * 1.7).to_bits() >> 16) as u16
}
