//! Client protocols: each dialect translates what travels on a connection into a session's commands, and a session's
//! events into what travels back.
//!
//! Sessions know no dialect, and dialects know no socket: `http::stream` pumps the bytes. `stream_v1` is the dialect of
//! clients of `WS /v1/stream`, `dreamverse` that of clients of `WS /ws`. To add a dialect, implement [`Parser`] and [`Renderer`] and give it a route.

use std::time::Duration;

use serde::Serialize;

use crate::ingress::websocket::TransportViolation;
use crate::pool::{Media, Seats};
use crate::session::command::OpenSession;
use crate::session::{Inbound, NotAdmitted, SessionEvent};

pub(crate) mod dreamverse;
pub(crate) mod stream_v1;

/// A client that asks for heartbeats gets one after so much time without another message.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Reads one client's messages. It may remember what the client has sent before.
pub(crate) trait Parser: Default + Send {
    /// Reads a text message.
    fn text(
        &mut self,
        text: impl AsRef<str> + Send + 'static,
    ) -> impl Future<Output = Inbound> + Send;

    /// Reads a binary message.
    fn binary(&mut self) -> Inbound;

    /// Returns the opening of a client that says nothing, and how long to wait for one that does; `None` where the client has
    /// to say something.
    fn silent_opening(&mut self) -> Option<(Duration, Box<OpenSession>)> {
        None
    }

    /// Takes note that the silent opening was used.
    fn opened_silently(&mut self) {}
}

/// Renders the events of one session. It may remember what the client was told before.
pub(crate) trait Renderer: Default + Send {
    /// Renders what a client is told at once. `seats` is what there is for it.
    fn greet(&mut self, seats: Seats) -> Rendered {
        let _ = seats;
        Rendered::default()
    }

    /// Renders an event. An event that the client is not told of renders to no message.
    fn render(&mut self, event: SessionEvent) -> Rendered;

    /// Returns whether the client has asked for a [`Self::heartbeat`] when nothing else was sent for a while.
    fn wants_heartbeats(&self) -> bool;

    /// Returns the message that tells a client that the connection works.
    fn heartbeat() -> String;

    /// Renders the refusal of a client that may not open a session.
    fn turn_away(why: &NotAdmitted) -> Rendered;
}

/// One message to the client.
#[derive(Debug)]
pub(crate) enum Wire {
    Text(String),
    /// One binary message, sent unchanged.
    Media(Media),
    /// Closes the connection. It is the last message.
    Close {
        code: u16,
        reason: &'static str,
    },
    /// Leaves the connection open, and sends nothing more, until the client closes it.
    Hold,
}

/// Messages in order. A single message takes no allocation, since most events, and all media but the first, render to
/// one message.
#[derive(Debug, Default)]
pub(crate) struct Rendered {
    first: Option<Wire>,
    rest: Vec<Wire>,
}

impl Rendered {
    fn push(&mut self, wire: Wire) {
        match self.first {
            None => self.first = Some(wire),
            Some(_) => self.rest.push(wire),
        }
    }

    fn text(message: &impl Serialize) -> String {
        serde_json::to_string(message).expect("a message of strings and numbers is JSON")
    }

    fn json(&mut self, message: &impl Serialize) {
        self.push(Wire::Text(Self::text(message)));
    }

    fn hold(&mut self) {
        self.push(Wire::Hold);
    }

    fn close(&mut self, code: u16, reason: &'static str) {
        self.push(Wire::Close { code, reason });
    }
}

impl IntoIterator for Rendered {
    type Item = Wire;
    type IntoIter = std::iter::Chain<std::option::IntoIter<Wire>, std::vec::IntoIter<Wire>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.rest)
    }
}

/// What a client is told that is not served because others keep the server busy.
const CROWDED: &str = "the server has too much to do with other clients; try again soon";

/// Returns the close code and the reason of a connection that has broken the rules of the transport.
fn close_of(violation: TransportViolation) -> (u16, &'static str) {
    match violation {
        TransportViolation::TooLarge => (close_code::TOO_LARGE, "message too large"),
        TransportViolation::TooSlow => (close_code::RULE_BROKEN, "message too slow"),
        TransportViolation::Crowded => (close_code::TRY_AGAIN_LATER, "too busy"),
        TransportViolation::NotUtf8 => (close_code::INVALID_UTF8, "text is not UTF-8"),
        TransportViolation::Protocol => (close_code::PROTOCOL, "WebSocket protocol violated"),
    }
}

/// WebSocket close codes (RFC 6455) as the dialects use them.
pub(crate) mod close_code {
    pub(crate) const NORMAL: u16 = 1000;
    pub(crate) const GOING_AWAY: u16 = 1001;
    pub(crate) const PROTOCOL: u16 = 1002;
    pub(crate) const BAD_OPENING: u16 = 1003;
    pub(crate) const INVALID_UTF8: u16 = 1007;
    pub(crate) const RULE_BROKEN: u16 = 1008;
    pub(crate) const TOO_LARGE: u16 = 1009;
    pub(crate) const INTERNAL: u16 = 1011;
    pub(crate) const TRY_AGAIN_LATER: u16 = 1013;
}
