//! What `fastvideo-supervisor check` asks a worker program, and what it finds.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::job::VideoFormat;
use crate::link::{EncoderSpec, EngineSpec};

/// What a worker would be started with, as far as it can be tried without a GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckSpec {
    /// The sender's [`crate::link::LINK_VERSION`].
    pub version: u32,
    pub engine: EngineSpec,
    /// The format of the default request.
    pub format: VideoFormat,
    pub encoder: EncoderSpec,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub outcome: Outcome,
    pub what: String,
    /// What was found, or why it failed or was not tried.
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    Failed,
    NotTried,
}

impl Finding {
    pub fn ok(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(Outcome::Ok, what, why)
    }

    pub fn failed(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(Outcome::Failed, what, why)
    }

    pub fn not_tried(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(Outcome::NotTried, what, why)
    }

    fn new(outcome: Outcome, what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self {
            outcome,
            what: what.into(),
            why: why.to_string(),
        }
    }
}

/// Formats the finding as `ok: what: why`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::Ok => "ok",
            Outcome::Failed => "failed",
            Outcome::NotTried => "not tried",
        };
        write!(f, "{outcome}: {}: {}", self.what, self.why)
    }
}
