//! The parts of a segment in which a player of low-latency HLS loads it (Partial Segments): its binary messages, each a
//! file of its own.

use std::sync::Arc;

use axum::http::StatusCode;
use bytes::Bytes;
use fastvideo_mp4::{Form, Message, SegmentIndex};
use fastvideo_proto::stored::StoredSegment;

use crate::causes::with_causes;
use crate::http::file::conditions::EntityTag;
use crate::http::file::content::Content;
use crate::http::file::{File, REVALIDATE};
use crate::ingress::error::ApiError;
use crate::segment_run::AttemptId;

/// What a playlist needs to know of an init segment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct InitSegment {
    /// Its length in bytes.
    pub(super) bytes: u64,
    /// Those of one form can take each other's place; `None` when it is not known.
    pub(super) form: Option<Form>,
}

impl InitSegment {
    /// Returns the init segment of a finished segment; `None` when its media are not kept.
    pub(super) fn of_stored(segment: &StoredSegment) -> Option<Self> {
        let media = segment.media.as_ref()?;
        Some(Self {
            bytes: u64::from(*media.messages.first()?),
            form: media.samples.as_ref().map(SegmentIndex::form),
        })
    }

    /// Returns whether the other one says the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.form.is_some() && self == other
    }
}

/// A segment with its messages.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) at: AttemptId,
    pub(super) init: InitSegment,
    /// What each message plays. The first one is the init segment, which plays nothing.
    pub(super) messages: Vec<Message>,
}

impl Parts {
    /// Reads the parts of a segment that is being made; `None` when it has none yet, or they cannot be told apart.
    pub(super) fn of_messages(at: AttemptId, messages: &[Bytes]) -> Option<Self> {
        if messages.len() < 2 {
            return None;
        }
        let index = SegmentIndex::read_messages(messages.iter().map(|message| &message[..]));
        let index = index.inspect_err(|error| {
            let error = with_causes(error);
            tracing::debug!(error, "the parts of a segment cannot be told apart");
        });
        let index = index.ok()?;
        let lengths = messages.iter().map(|message| message.len() as u64);
        Some(Self {
            at,
            init: InitSegment {
                bytes: messages[0].len() as u64,
                form: Some(index.form()),
            },
            messages: index.messages(ends(lengths)),
        })
    }

    /// Returns the parts of a finished segment; `None` when its media are not kept or are no video.
    pub(super) fn of_stored(segment: &StoredSegment) -> Option<Self> {
        let media = segment.media.as_ref()?;
        let lengths = media.messages.iter().copied().map(u64::from);
        Some(Self {
            at: attempt(segment),
            init: InitSegment::of_stored(segment)?,
            messages: media.samples.as_ref()?.messages(ends(lengths)),
        })
    }

    /// Returns the number of parts, without the init segment.
    pub(super) fn count(&self) -> usize {
        self.messages.len().saturating_sub(1)
    }

    /// Returns the parts, with the number of the message that each of them is.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Message)> {
        self.messages.iter().enumerate().skip(1)
    }
}

/// Returns the attempt at a segment that its media came from.
pub(super) fn attempt(segment: &StoredSegment) -> AttemptId {
    AttemptId {
        segment_idx: segment.segment_idx,
        attempt: segment.attempt,
    }
}

/// Returns where messages of these lengths end that lie behind one another.
fn ends(lengths: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
    lengths.scan(0, |end, length| {
        *end += length;
        Some(*end)
    })
}

/// The place of a message in a film, as a path names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartName {
    pub(super) at: AttemptId,
    /// Counted from 0, which is the init segment.
    pub(super) message: usize,
}

impl PartName {
    /// Returns the path below that of the session.
    pub(super) fn path(&self) -> String {
        let AttemptId {
            segment_idx,
            attempt,
        } = self.at;
        format!("film/{segment_idx}/{attempt}-{}.m4s", self.message)
    }

    /// Parses the last two pieces of a path.
    pub(super) fn parse(segment: &str, file: &str) -> Option<Self> {
        let (attempt, message) = file.strip_suffix(".m4s")?.split_once('-')?;
        Some(Self {
            at: AttemptId {
                segment_idx: number(segment)?,
                attempt: number(attempt)?,
            },
            message: usize::try_from(number(message)?).ok()?,
        })
    }

    /// Returns the message as a file, from those of a segment that is being made.
    pub(super) fn of_live(&self, messages: &[Bytes]) -> Option<File> {
        let bytes = messages.get(self.message)?.clone();
        let tag = EntityTag::of(blake3::hash(&bytes).into());
        Some(file(Content::Bytes(bytes), tag))
    }

    /// Returns the message as a file, from a finished segment.
    pub(super) fn of_stored(&self, segment: &Arc<StoredSegment>) -> Option<File> {
        let media = segment.media.as_ref().filter(|_| !segment.is_pictures())?;
        if attempt(segment) != self.at {
            return None;
        }
        let length = u64::from(*media.messages.get(self.message)?);
        let before = media.messages[..self.message].iter().copied();
        let start = before.map(u64::from).sum::<u64>();
        let mut hash = blake3::Hasher::new();
        hash.update(&segment.sha256);
        hash.update(&start.to_be_bytes());
        let tag = EntityTag::of(hash.finalize().into());
        let range = start..start + length;
        Some(file(Content::Segment(segment.clone(), range), tag))
    }
}

/// A message as a file. Another attempt at the segment can come to the same name.
fn file(content: Content, tag: EntityTag) -> File {
    File {
        content,
        tag,
        mime: "video/mp4",
        caching: REVALIDATE,
    }
}

/// Parses a number of decimal digits.
pub(super) fn number(text: &str) -> Option<u32> {
    let is_number = text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// Answers that a segment has no such part.
pub(super) fn no_part() -> ApiError {
    let message = "the segment has no such part, or another attempt has taken its place";
    ApiError::new(StatusCode::NOT_FOUND, "no_part", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let name = PartName {
            at: AttemptId {
                segment_idx: 5,
                attempt: 2,
            },
            message: 17,
        };
        assert_eq!(name.path(), "film/5/2-17.m4s");
        assert_eq!(PartName::parse("5", "2-17.m4s"), Some(name));
        for (segment, file) in [
            ("", "2-17.m4s"),
            ("5", "-17.m4s"),
            ("5", "2-.m4s"),
            ("5", "2.m4s"),
            ("5", "2-17"),
            ("5", "2-17.mp4"),
            ("+5", "2-17.m4s"),
            ("5", "2-+17.m4s"),
            ("4294967296", "2-17.m4s"),
        ] {
            assert_eq!(PartName::parse(segment, file), None, "{segment}/{file}");
        }
    }
}
