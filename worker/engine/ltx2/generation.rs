//! The generations of the model family.

use std::fmt::{self, Display};

/// A generation of the model that this engine runs. All parts of a checkpoint are of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// LTX-2.0: texts are projected in the transformer, and their keys and values do not depend on the noise level.
    V2_0,
    /// LTX-2.3: attention is gated, texts are modulated by the noise level, and the vocoder extends the bandwidth.
    V2_3,
}

impl Generation {
    pub const ALL: [Self; 2] = [Self::V2_0, Self::V2_3];

    /// Returns the generation that a version belongs to, for example `2.3.0`.
    pub fn of_version(version: &str) -> Option<Self> {
        let mut numbers = version.split('.');
        match (numbers.next(), numbers.next()) {
            (Some("2"), Some("0")) => Some(Self::V2_0),
            (Some("2"), Some("3")) => Some(Self::V2_3),
            _ => None,
        }
    }

    /// Returns the generation of that name, which is what [`Display`] gives.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|generation| generation.to_string() == name)
    }
}

impl Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2_0 => "LTX-2.0",
            Self::V2_3 => "LTX-2.3",
        })
    }
}

/// The name of the generation after the last one that this engine runs, for messages.
pub const LATER: &str = "LTX-2.5 or later";
