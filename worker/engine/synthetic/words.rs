//! The words that the synthetic engine understands. Everything else in a prompt only shifts hues.

use super::colour::Rgb;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Colour(Rgb),
    Time(Time),
    Terrain(Terrain),
    Water,
    Sun,
    Moon,
    Weather(Weather),
    Actor(Actor),
    Neon,
    Motion(Motion),
    /// `no`, `without`: the next known word is not wanted.
    No,
    /// Carries no picture.
    Filler,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    Dawn,
    Day,
    Sunset,
    Dusk,
    Night,
    Overcast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Terrain {
    Hills,
    Mountains,
    Forest,
    City,
    Dunes,
    /// Nothing but the horizon.
    Open,
}

impl Terrain {
    pub(super) const ALL: [Self; 6] = [
        Self::Hills,
        Self::Mountains,
        Self::Forest,
        Self::City,
        Self::Dunes,
        Self::Open,
    ];
}

/// Each a bit of [`super::scene::Scene::weather`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Weather {
    Snow = 1,
    Rain = 2,
    Stars = 4,
    Clouds = 8,
    Fireflies = 16,
    Petals = 32,
    Fog = 64,
    Aurora = 128,
    Wind = 256,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Actor {
    Fox = 1,
    Cat,
    Horse,
    Deer,
    Birds,
    Boat,
    Balloon,
    Person,
    Car,
    Whale,
}

impl Actor {
    pub(super) const ALL: [Self; 10] = [
        Self::Fox,
        Self::Cat,
        Self::Horse,
        Self::Deer,
        Self::Birds,
        Self::Boat,
        Self::Balloon,
        Self::Person,
        Self::Car,
        Self::Whale,
    ];

    pub(super) fn colour(self) -> Rgb {
        Rgb::hex(match self {
            Self::Fox => 0xd9_6a_2b,
            Self::Cat => 0x3a_35_3d,
            Self::Horse => 0x5b_3a_26,
            Self::Deer => 0x8a_5c_36,
            Self::Birds => 0x2b_30_3c,
            Self::Boat => 0xc9_4f_3f,
            Self::Balloon => 0xe0_58_4f,
            Self::Person => 0xb8_48_54,
            Self::Car => 0xd8_3a_4a,
            Self::Whale => 0x35_55_74,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Motion {
    Slow,
    Fast,
    Still,
    Left,
    Right,
    Up,
    Down,
    Drone,
}

/// Looks up a lower-case word; plurals are tried without their `s`.
pub(super) fn look_up(word: &str) -> Option<Word> {
    look_up_exact(word).or_else(|| look_up_exact(word.strip_suffix('s')?))
}

fn look_up_exact(word: &str) -> Option<Word> {
    if let Some(colour) = colour(word) {
        return Some(Word::Colour(colour));
    }
    Some(match word {
        "sunrise" | "dawn" | "morning" | "daybreak" => Word::Time(Time::Dawn),
        "day" | "daylight" | "noon" | "midday" | "afternoon" | "summer" | "sunny" | "bright"
        | "spring" => Word::Time(Time::Day),
        "sunset" | "evening" | "golden-hour" => Word::Time(Time::Sunset),
        "dusk" | "twilight" => Word::Time(Time::Dusk),
        "night" | "midnight" | "dark" | "nocturnal" | "space" | "galaxy" => Word::Time(Time::Night),
        "overcast" | "gloomy" | "grim" | "moody" => Word::Time(Time::Overcast),

        "hill" | "meadow" | "field" | "countryside" | "valley" | "garden" | "farm" | "grass"
        | "village" => Word::Terrain(Terrain::Hills),
        "mountain" | "peak" | "alp" | "cliff" | "canyon" | "volcano" | "rock" | "summit" => {
            Word::Terrain(Terrain::Mountains)
        }
        "forest" | "wood" | "tree" | "jungle" | "pine" | "taiga" => Word::Terrain(Terrain::Forest),
        "city" | "skyline" | "street" | "town" | "skyscraper" | "building" | "tokyo"
        | "manhattan" | "urban" | "downtown" | "metropolis" => Word::Terrain(Terrain::City),
        "desert" | "dune" | "sand" | "sahara" | "mars" => Word::Terrain(Terrain::Dunes),
        "ocean" | "sea" | "wave" | "lake" | "river" | "water" | "beach" | "coast" | "bay"
        | "underwater" | "fjord" | "shore" | "surf" => Word::Water,

        "sun" | "sunlight" | "sunshine" => Word::Sun,
        "moon" | "moonlight" | "moonlit" => Word::Moon,
        "snow" | "snowy" | "winter" | "blizzard" | "ice" | "icy" | "frozen" | "arctic"
        | "snowing" | "snowfall" => Word::Weather(Weather::Snow),
        "rain" | "rainy" | "storm" | "stormy" | "thunderstorm" | "drizzle" | "raining" | "wet" => {
            Word::Weather(Weather::Rain)
        }
        "star" | "starry" | "stardust" | "cosmic" | "milky" | "constellation" => {
            Word::Weather(Weather::Stars)
        }
        "cloud" | "cloudy" | "sky" => Word::Weather(Weather::Clouds),
        "firefly" | "fireflie" | "spark" | "ember" | "lantern" | "magic" | "magical" | "fairy"
        | "glowing" | "dust" => Word::Weather(Weather::Fireflies),
        "petal" | "leaf" | "leave" | "blossom" | "sakura" | "autumn" | "cherry" | "confetti" => {
            Word::Weather(Weather::Petals)
        }
        "fog" | "foggy" | "mist" | "misty" | "haze" | "hazy" | "smoke" => {
            Word::Weather(Weather::Fog)
        }
        "aurora" | "borealis" | "northern" => Word::Weather(Weather::Aurora),
        "wind" | "windy" | "breeze" | "gale" => Word::Weather(Weather::Wind),

        "fox" | "wolf" | "dog" | "puppy" | "coyote" => Word::Actor(Actor::Fox),
        "cat" | "kitten" | "panther" | "tiger" | "lion" | "leopard" => Word::Actor(Actor::Cat),
        "horse" | "pony" | "unicorn" | "stallion" | "cow" | "elephant" => {
            Word::Actor(Actor::Horse)
        }
        "deer" | "stag" | "elk" | "moose" | "reindeer" | "gazelle" => Word::Actor(Actor::Deer),
        "bird" | "eagle" | "seagull" | "gull" | "crow" | "raven" | "swan" | "owl" | "dragon"
        | "geese" | "goose" | "hawk" | "butterfly" => Word::Actor(Actor::Birds),
        "boat" | "ship" | "sail" | "sailboat" | "sailing" | "yacht" | "pirate" => {
            Word::Actor(Actor::Boat)
        }
        "balloon" | "airship" | "zeppelin" => Word::Actor(Actor::Balloon),
        "man" | "woman" | "person" | "girl" | "boy" | "child" | "people" | "astronaut"
        | "robot" | "walker" | "hiker" | "knight" | "dancer" => Word::Actor(Actor::Person),
        "car" | "taxi" | "truck" | "bus" | "van" | "driving" => Word::Actor(Actor::Car),
        "whale" | "dolphin" | "fish" | "shark" | "orca" => Word::Actor(Actor::Whale),

        "neon" | "cyberpunk" | "synthwave" | "vaporwave" => Word::Neon,

        "slow" | "slowly" | "calm" | "quiet" | "gentle" | "gently" | "peaceful" | "serene"
        | "drifting" | "walking" => Word::Motion(Motion::Slow),
        "fast" | "quick" | "quickly" | "running" | "racing" | "speed" | "rushing" | "chase"
        | "galloping" | "run" | "flying" => Word::Motion(Motion::Fast),
        "still" | "static" | "motionless" | "frozen-time" => Word::Motion(Motion::Still),
        "left" | "leftward" | "back" => Word::Motion(Motion::Left),
        "right" | "rightward" | "forward" => Word::Motion(Motion::Right),
        "up" | "rising" | "rise" | "above" | "ascending" => Word::Motion(Motion::Up),
        "down" | "falling" | "below" | "descending" => Word::Motion(Motion::Down),
        "drone" | "aerial" | "flyover" | "birdseye" => Word::Motion(Motion::Drone),

        "no" | "not" | "without" => Word::No,

        "a" | "an" | "the" | "and" | "of" | "in" | "on" | "at" | "over" | "under" | "through"
        | "with" | "to" | "from" | "by" | "is" | "are" | "into" | "shot" | "view" | "video"
        | "scene" | "cinematic" | "as" | "its" | "it" | "very" | "camera" | "while" | "then" => {
            Word::Filler
        }
        _ => return None,
    })
}

fn colour(word: &str) -> Option<Rgb> {
    Some(Rgb::hex(match word {
        "red" | "crimson" | "scarlet" | "ruby" => 0xd6_2f_3c,
        "orange" | "amber" => 0xf0_82_2c,
        "gold" | "golden" => 0xff_c2_4a,
        "yellow" => 0xf7_dc_4e,
        "green" | "emerald" => 0x3f_a8_5a,
        "lime" => 0x9a_d6_3a,
        "teal" | "turquoise" => 0x2a_b0_a8,
        "cyan" | "aqua" => 0x38_cf_e6,
        "blue" | "azure" | "cobalt" => 0x2f_6f_de,
        "navy" | "indigo" => 0x32_3f_a0,
        "purple" | "violet" | "lavender" => 0x8a_4f_d0,
        "magenta" | "fuchsia" => 0xe0_3f_c0,
        "pink" | "rose" => 0xf4_82_b0,
        "brown" | "bronze" => 0x8a_5a_34,
        "white" | "pale" | "ivory" => 0xf2_f0_ea,
        "silver" => 0xbf_c8_d2,
        "grey" | "gray" => 0x8c_92_99,
        "black" => 0x1c_1d_24,
        _ => return None,
    }))
}
