//! The messages of `WS /v1/watch` that `WS /v1/stream` has not. `docs/protocol.md` describes them.

use serde::{Deserialize, Serialize};

use crate::api::film::FilmSegment;

/// The query of the route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchQuery {
    pub session: String,
    /// A token of the session, unless it comes as a header.
    pub token: Option<String>,
    /// The first segment; absent for what is on air.
    pub from: Option<u32>,
    /// Present where a router asks for a spectator.
    pub router: Option<RouterAsks>,
}

/// What a router asks a server for. A show for a router ends with close 1001 as soon as another server is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterAsks {
    /// A show of the session for as long as it runs on this server. Another server answers 409.
    OnAir,
    /// A show of the film until another server runs the session.
    Film,
}

impl RouterAsks {
    /// Returns the value in the query.
    pub fn name(self) -> &'static str {
        match self {
            Self::OnAir => "on_air",
            Self::Film => "film",
        }
    }
}

/// A text message to a spectator. Media travel as binary messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchMessage {
    /// The first message.
    WatchStart {
        session_id: String,
        /// Whether a server runs the session, or another one is expected to go on with it.
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
