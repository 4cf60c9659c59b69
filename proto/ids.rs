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

/// One video job. Its text form is `video_` and the 32 lower-case hexadecimal digits of a UUID of version 7, so that ids are
/// in the order in which their jobs were created.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VideoId(u128);

impl VideoId {
    /// The prefix of the text form.
    pub const PREFIX: &str = "video_";
    /// The bits of a UUID that say neither its version nor its variant, below the time.
    const RANDOM: u128 = 0x0fff_3fff_ffff_ffff_ffff;
    /// Version 7 and the variant of RFC 9562.
    const VERSION: u128 = 0x7000_8000_0000_0000_0000;

    /// Makes an id of the time in milliseconds since the Unix epoch and of random bits. It is greater than `last`, whatever
    /// the clock says.
    pub fn after(last: Option<Self>, unix_ms: u64, random: u128) -> Self {
        let id = Self(u128::from(unix_ms) << 80 | Self::VERSION | random & Self::RANDOM);
        match last {
            Some(last) if last >= id => Self(last.0 + 1),
            _ => id,
        }
    }

    /// Parses the text form; returns `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::parse_digits(text.strip_prefix(Self::PREFIX)?)
    }

    /// Parses the 32 digits of [`Self::digits`].
    pub fn parse_digits(digits: &str) -> Option<Self> {
        let is_hex = digits
            .bytes()
            .all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let number = u128::from_str_radix(digits, 16).ok()?;
        (is_hex && digits.len() == 32).then_some(Self(number))
    }

    /// Returns the 32 digits, which sort as the ids do.
    pub fn digits(self) -> String {
        format!("{:032x}", self.0)
    }

    /// Returns the name that the job has on the link to workers, in place of a session's.
    pub fn as_session(self) -> SessionId {
        SessionId(self.digits().into())
    }
}

impl fmt::Display for VideoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:032x}", Self::PREFIX, self.0)
    }
}

impl fmt::Debug for VideoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_videos_are_in_the_order_of_their_creation() {
        let mut last = None;
        // The clock stands still, goes on, and goes back by an hour.
        for (ms, random) in [(9, u128::MAX), (9, 0), (9, 5), (10, 0), (3, 7), (11, 1)] {
            let id = VideoId::after(last, ms, random);
            assert!(last < Some(id), "{last:?} {id}");
            assert_eq!(VideoId::parse(&id.to_string()), Some(id));
            assert_eq!(VideoId::parse_digits(&id.digits()), Some(id));
            assert_eq!(id.as_session().as_str(), id.digits());
            last = Some(id);
        }
    }

    #[test]
    fn an_id_of_a_video_is_a_uuid_of_version_7() {
        let id = VideoId::after(None, 0x0123_4567_89ab, u128::MAX);
        assert_eq!(id.to_string(), "video_0123456789ab7fffbfffffffffffffff");
        for text in [
            "video_0123456789ab7fffbfffffffffffff",
            "video_0123456789AB7fffbfffffffffffffff",
            "video_+123456789ab7fffbfffffffffffffff",
            "0123456789ab7fffbfffffffffffffff",
            "video_",
            "",
        ] {
            assert_eq!(VideoId::parse(text), None, "{text}");
        }
    }
}
