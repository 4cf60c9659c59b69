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
    /// `no` or `without`: the next known word is not wanted.
    No,
    /// A word that does not influence the picture.
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
    /// Open land: nothing but the horizon.
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

/// A kind of weather. Each is a bit of [`super::scene::Scene::weather`].
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
            Self::Fox => 0xd96a2b,
            Self::Cat => 0x3a353d,
            Self::Horse => 0x5b3a26,
            Self::Deer => 0x8a5c36,
            Self::Birds => 0x2b303c,
            Self::Boat => 0xc94f3f,
            Self::Balloon => 0xe0584f,
            Self::Person => 0xb84854,
            Self::Car => 0xd83a4a,
            Self::Whale => 0x355574,
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

/// Looks up a lower-case word; plurals are also tried without their `s`.
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
        "horse" | "pony" | "unicorn" | "stallion" | "cow" | "elephant" => Word::Actor(Actor::Horse),
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
        "red" | "crimson" | "scarlet" | "ruby" => 0xd62f3c,
        "orange" | "amber" => 0xf0822c,
        "gold" | "golden" => 0xffc24a,
        "yellow" => 0xf7dc4e,
        "green" | "emerald" => 0x3fa85a,
        "lime" => 0x9ad63a,
        "teal" | "turquoise" => 0x2ab0a8,
        "cyan" | "aqua" => 0x38cfe6,
        "blue" | "azure" | "cobalt" => 0x2f6fde,
        "navy" | "indigo" => 0x323fa0,
        "purple" | "violet" | "lavender" => 0x8a4fd0,
        "magenta" | "fuchsia" => 0xe03fc0,
        "pink" | "rose" => 0xf482b0,
        "brown" | "bronze" => 0x8a5a34,
        "white" | "pale" | "ivory" => 0xf2f0ea,
        "silver" => 0xbfc8d2,
        "grey" | "gray" => 0x8c9299,
        "black" => 0x1c1d24,
        _ => return None,
    }))
}
