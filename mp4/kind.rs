//! Pictures or sound.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a track shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Video,
    Sound,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Video => "video",
            Self::Sound => "sound",
        })
    }
}
