//! Identifiers, each a type of its own so that a mixed-up argument does not compile.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One client session. 32 lower-case hexadecimal digits; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Returns a new id with 128 random bits.
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()).into())
    }

    /// Parses an id from an external source; returns `None` unless it has the form of a session id.
    pub fn parse(id: &str) -> Option<Self> {
        let digits = id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        (digits && id.len() == 32).then(|| Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One process of a worker: the GPU, and the number of processes started on it so far, as in `gpu0-1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// Creates the id of a GPU's process number `incarnation`, counted from 1.
    pub fn new(gpu: GpuId, incarnation: u32) -> Self {
        Self(format!("gpu{gpu}-{incarnation}").into())
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number by which clients and operators refer to a GPU: its CUDA ordinal if the operator listed ordinals, else its
/// index in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GpuId(pub u32);

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One attempt at one segment. Ids are never reused during the life of a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The most characters of a `request_id`.
pub const MAX_REQUEST_ID_CHARS: usize = 64;

/// The name that a client gives to one of its requests, 1 to [`MAX_REQUEST_ID_CHARS`] characters. Answers about the
/// request repeat it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct RequestId(Arc<str>);

/// A text is too long, or too short, for a [`RequestId`].
#[derive(Debug, thiserror::Error)]
#[error("`request_id` must be a string of 1 to {MAX_REQUEST_ID_CHARS} characters")]
pub struct InvalidRequestId;

impl RequestId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RequestId {
    type Error = InvalidRequestId;

    fn try_from(text: String) -> Result<Self, InvalidRequestId> {
        let is_valid = !text.is_empty() && text.chars().nth(MAX_REQUEST_ID_CHARS).is_none();
        is_valid.then(|| Self(text.into())).ok_or(InvalidRequestId)
    }
}
