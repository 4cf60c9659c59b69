//! The messages of `WS /v1/watch` that `WS /v1/stream` has not. `docs/protocol.md` describes them.

use serde::{Deserialize, Serialize};

use crate::api::film::FilmSegment;

/// A text message to a spectator. Media travel as binary messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchMessage {
    /// The first message.
    WatchStart {
        session_id: String,
        /// Whether the session runs.
        live: bool,
        width: u32,
        height: u32,
        fps: u32,
        /// The MIME type of the media: `image/jpeg` for pictures; without codecs before the first segment is finished.
        mime: String,
        /// The index of the segment that comes first.
        from: u32,
    },
    /// A segment is finished and all of it was sent.
    FilmSegment(Box<FilmSegment>),
    /// The spectator reads too slowly, or media are not kept any more: the stream goes on at the start of this segment.
    WatchSkipped { segment_idx: u32 },
    /// Nothing follows.
    WatchEnd,
}
