//! Turns a prompt's words into the parameters of a picture and its sound.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shares are clamped to the small numbers that a state holds"
)]

use super::colour::Rgb;
use super::wave::{self, Dice};
use super::words::{self, Actor, Motion, Terrain, Time, Weather, Word};

/// The parameters of a picture that come from its prompt. They are small, because a state carries them for the next
/// segment to fade from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scene {
    pub(super) palette: Palette,
    pub(super) terrain: Terrain,
    pub(super) water: bool,
    pub(super) light: Light,
    /// The position of the sun or the moon, in 1/255 of width and height.
    pub(super) light_at: [u8; 2],
    /// The weather, as bits of [`Weather`].
    pub(super) weather: u16,
    pub(super) actors: [Option<(Actor, Rgb)>; ACTORS],
    /// The speed of the camera to the right, in 1/1024 picture heights per second.
    pub(super) speed: i16,
    /// The rate of the world's time, in 1/64.
    pub(super) pace: u8,
    /// How far the camera looks down, in 1/512 picture heights.
    pub(super) lift: i8,
    /// The number of semitones above the lowest key.
    pub(super) key: u8,
    pub(super) minor: bool,
}

pub(super) const ACTORS: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Palette {
    pub(super) top: Rgb,
    pub(super) middle: Rgb,
    /// The colour of the sky at the horizon; distance fades into it.
    pub(super) low: Rgb,
    pub(super) light: Rgb,
    /// The colour of the nearest ground.
    pub(super) ground: Rgb,
    /// The colour of lit windows and sparks.
    pub(super) accent: Rgb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Light {
    None,
    Sun,
    Moon,
}

impl Scene {
    /// Creates the scene of a prompt. Words that are in the negative prompt are ignored; guidance strengthens colours a
    /// little.
    pub(super) fn new(prompt: &str, negative: Option<&str>, guidance: f64) -> Self {
        let reading = Reading::new(prompt, negative);
        let mut dice = Dice::new(reading.hash, 1);
        let time = reading.time(&mut dice);
        let terrain = reading.terrain(&mut dice);
        let weather = reading.weather(time, &mut dice);
        let light = reading.light(time, weather);
        let low_light = matches!(time, Time::Dawn | Time::Sunset | Time::Dusk);
        let light_y = if low_light {
            dice.range(0.36, 0.46)
        } else {
            dice.range(0.16, 0.3)
        };
        let saturation = 1.0 + ((guidance.clamp(1.0, 15.0) - 4.0) * 0.02) as f32;
        Self {
            palette: reading
                .palette(time, terrain, weather, &mut dice)
                .saturated(saturation),
            terrain,
            water: reading.water,
            light,
            light_at: [
                (dice.range(0.58, 0.82) * 255.0) as u8,
                (light_y * 255.0) as u8,
            ],
            weather,
            actors: reading.actors(),
            speed: reading.speed(),
            pace: reading.pace(),
            lift: reading.lift(),
            key: dice.below(12) as u8,
            minor: matches!(time, Time::Night | Time::Dusk | Time::Overcast) || dice.chance(0.2),
        }
    }

    pub(super) fn has(&self, weather: Weather) -> bool {
        self.weather & weather as u16 != 0
    }

    /// Returns the camera's speed in picture heights per second.
    pub(super) fn camera_speed(&self) -> f32 {
        f32::from(self.speed) / 1024.0
    }
}

impl Palette {
    fn saturated(self, amount: f32) -> Self {
        Self {
            top: self.top.saturated(amount),
            middle: self.middle.saturated(amount),
            low: self.low.saturated(amount),
            light: self.light,
            ground: self.ground.saturated(amount),
            accent: self.accent.saturated(amount),
        }
    }
}

/// The prompt's words, sorted by category.
#[derive(Debug, Default)]
struct Reading {
    /// The hash of all words that influence the picture.
    hash: u64,
    time: Option<Time>,
    terrain: Option<Terrain>,
    water: bool,
    sun: bool,
    moon: bool,
    neon: bool,
    weather: u16,
    motions: Vec<Motion>,
    actors: Vec<(Actor, Option<Rgb>)>,
    /// The colour of words that refer to nothing in particular, or to the sky.
    tint: Option<Rgb>,
    ground_tint: Option<Rgb>,
}

impl Reading {
    fn new(prompt: &str, negative: Option<&str>) -> Self {
        let unwanted: Vec<Word> = negative
            .map(|n| split(n).filter_map(|w| words::look_up(&w)).collect())
            .unwrap_or_default();
        let mut reading = Self::default();
        let mut colour = None;
        let mut negated = false;
        for text in split(prompt) {
            let word = words::look_up(&text);
            match word {
                Some(Word::Filler) => continue,
                Some(Word::No) => {
                    negated = true;
                    continue;
                }
                Some(known) if negated || unwanted.contains(&known) => {
                    negated = false;
                    continue;
                }
                _ => {}
            }
            reading.hash = wave::scramble(reading.hash ^ wave::hash_bytes(text.as_bytes()));
            if let Some(Word::Colour(rgb)) = word {
                reading.tint = reading.tint.or(colour.replace(rgb));
            } else if let Some(word) = word {
                reading.take(word, &mut colour);
            }
        }
        reading.tint = colour.or(reading.tint);
        reading
    }

    /// Takes a word. A colour belongs to the thing named after it: "a red fox" does not change the sky.
    fn take(&mut self, word: Word, colour: &mut Option<Rgb>) {
        match word {
            Word::Time(time) => {
                self.time.get_or_insert(time);
                self.tint = colour.take().or(self.tint);
            }
            Word::Terrain(terrain) => {
                self.terrain.get_or_insert(terrain);
                self.ground_tint = colour.take().or(self.ground_tint);
            }
            Word::Water => {
                self.water = true;
                self.tint = colour.take().or(self.tint);
            }
            Word::Sun => self.sun = true,
            Word::Moon => self.moon = true,
            Word::Weather(weather) => self.weather |= weather as u16,
            Word::Actor(actor) => {
                let given = colour.take();
                if !self.actors.iter().any(|(a, _)| *a == actor) {
                    self.actors.push((actor, given));
                }
            }
            Word::Neon => self.neon = true,
            Word::Motion(motion) => self.motions.push(motion),
            Word::Colour(_) | Word::No | Word::Filler => {}
        }
    }

    fn time(&self, dice: &mut Dice) -> Time {
        let guess =
            [Time::Dawn, Time::Day, Time::Day, Time::Sunset, Time::Day][dice.below(5) as usize];
        let bit = |w: Weather| self.weather & w as u16 != 0;
        if let Some(time) = self.time {
            time
        } else if self.neon
            || self.moon
            || bit(Weather::Stars)
            || bit(Weather::Aurora)
            || bit(Weather::Fireflies)
        {
            Time::Night
        } else if bit(Weather::Rain) {
            Time::Overcast
        } else if self.sun || bit(Weather::Clouds) {
            Time::Day
        } else {
            guess
        }
    }

    fn terrain(&self, dice: &mut Dice) -> Terrain {
        let guess = [
            Terrain::Hills,
            Terrain::Mountains,
            Terrain::Hills,
            Terrain::Dunes,
            Terrain::Forest,
        ][dice.below(5) as usize];
        match self.terrain {
            Some(terrain) => terrain,
            None if self.neon => Terrain::City,
            None if self.water => Terrain::Open,
            None if self.actors.iter().any(|(a, _)| *a == Actor::Car) => Terrain::City,
            None => guess,
        }
    }

    fn weather(&self, time: Time, dice: &mut Dice) -> u16 {
        let mut weather = self.weather;
        match time {
            Time::Night if weather & Weather::Rain as u16 == 0 => {
                weather |= Weather::Stars as u16;
            }
            Time::Day | Time::Overcast => weather |= Weather::Clouds as u16,
            _ if dice.chance(0.6) => weather |= Weather::Clouds as u16,
            _ => {}
        }
        weather
    }

    fn light(&self, time: Time, weather: u16) -> Light {
        let dim = weather & Weather::Rain as u16 != 0 || time == Time::Overcast;
        match time {
            _ if self.moon => Light::Moon,
            _ if self.sun => Light::Sun,
            _ if dim => Light::None,
            Time::Night => Light::Moon,
            _ => Light::Sun,
        }
    }

    fn palette(&self, time: Time, terrain: Terrain, weather: u16, dice: &mut Dice) -> Palette {
        let [top, middle, low, light, shade] = sky(time).map(Rgb::hex);
        let dimming = match time {
            Time::Day => 0.1,
            Time::Overcast => 0.45,
            Time::Dawn => 0.5,
            Time::Sunset => 0.55,
            Time::Dusk => 0.6,
            Time::Night => 0.68,
        };
        let snow = weather & Weather::Snow as u16 != 0;
        let mut ground = Rgb::hex(match terrain {
            _ if snow && terrain != Terrain::City => 0xe6eef6,
            Terrain::Hills => 0x5d8f45,
            Terrain::Mountains => 0x4d6670,
            Terrain::Forest => 0x2f5d3c,
            Terrain::City => 0x3a4458,
            Terrain::Dunes => 0xd89a56,
            Terrain::Open => 0x3a7a94,
        });
        if let Some(tint) = self.tint {
            ground = ground.mix(tint, 0.15);
        }
        let dimming = if snow { dimming * 0.8 } else { dimming };
        let turn = dice.range(-0.07, 0.07);
        let mut palette = Palette {
            top: top.hue_turned(turn),
            middle: middle.hue_turned(turn * 1.2),
            low: low.hue_turned(turn),
            light,
            ground: self
                .painted(ground.hue_turned(turn * 0.6))
                .mix(shade, dimming),
            accent: Rgb::hex(0xffcf7a),
        };
        if self.neon {
            palette.middle = palette.middle.mix(Rgb::hex(0x4a1a6a), 0.55);
            palette.low = palette.low.mix(Rgb::hex(0xd0369a), 0.5);
            palette.accent = [0x38e0f0, 0xff4fc8, 0xffe05a].map(Rgb::hex)[dice.below(3) as usize];
        }
        if let Some(tint) = self.tint {
            palette.top = palette.top.tinted(tint, 0.35);
            palette.middle = palette.middle.tinted(tint, 0.5);
            palette.low = palette.low.tinted(tint, 0.5).mix(tint, 0.12);
            palette.light = palette.light.mix(tint.mix(Rgb::hex(0xffffff), 0.5), 0.3);
            palette.accent = palette.accent.mix(tint, 0.4);
        }
        palette
    }

    /// Returns the ground's colour. A colour that was named for the land shows even in the dark.
    fn painted(&self, ground: Rgb) -> Rgb {
        self.ground_tint
            .map_or(ground, |tint| ground.mix(tint, 0.65))
    }

    fn actors(&self) -> [Option<(Actor, Rgb)>; ACTORS] {
        let mut actors = [None; ACTORS];
        for (place, &(actor, colour)) in actors.iter_mut().zip(&self.actors) {
            *place = Some((
                actor,
                colour.map_or(actor.colour(), |c| c.mix(actor.colour(), 0.25)),
            ));
        }
        actors
    }

    fn speed(&self) -> i16 {
        let runs = self.actors.iter().any(|(a, _)| {
            matches!(
                a,
                Actor::Fox | Actor::Cat | Actor::Horse | Actor::Deer | Actor::Car
            )
        });
        let mut speed: f32 = if runs { 0.3 } else { 0.12 };
        for motion in &self.motions {
            speed *= match motion {
                Motion::Slow => 0.55,
                Motion::Fast => 1.7,
                Motion::Still => 0.1,
                Motion::Drone => 2.0,
                Motion::Left => -1.2,
                Motion::Right | Motion::Up | Motion::Down => 1.0,
            };
        }
        (speed.clamp(-1.2, 1.2) * 1024.0) as i16
    }

    fn pace(&self) -> u8 {
        let mut pace: f32 = 64.0;
        for motion in &self.motions {
            pace *= match motion {
                Motion::Slow => 0.7,
                Motion::Fast => 1.3,
                Motion::Still => 0.5,
                _ => 1.0,
            };
        }
        pace.clamp(16.0, 160.0) as u8
    }

    fn lift(&self) -> i8 {
        let lift: i32 = self
            .motions
            .iter()
            .map(|m| match m {
                Motion::Drone => 44,
                Motion::Up => 36,
                Motion::Down => -28,
                _ => 0,
            })
            .sum();
        lift.clamp(-40, 70) as i8
    }
}

fn split(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric() && c != '-')
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
}

/// Returns the colours of the top, the middle, the horizon and the light, and the one that the ground turns into as the
/// light goes.
fn sky(time: Time) -> [u32; 5] {
    match time {
        Time::Dawn => [0x425a98, 0xd08c98, 0xffdca2, 0xffecc0, 0x3d2f52],
        Time::Day => [0x2f78c8, 0x7cbcea, 0xdceef2, 0xfffae0, 0x245062],
        Time::Sunset => [0x2c2a62, 0xbe4c6c, 0xffa458, 0xffd884, 0x2c1a3e],
        Time::Dusk => [0x161e48, 0x5a4484, 0xe09294, 0xffe2cc, 0x181838],
        Time::Night => [0x05081a, 0x0f1c40, 0x304a78, 0xf4f1e2, 0x080e22],
        Time::Overcast => [0x485464, 0x7c8894, 0xb6c0c6, 0xe8eaec, 0x2c3640],
    }
}
