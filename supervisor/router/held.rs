//! What a router keeps of a client's session, so that another server can go on with it. It does no I/O.

use std::collections::VecDeque;
use std::net::IpAddr;

use bytes::Bytes;
use fastvideo_proto::session_link::{
    self, Digest, LetIn, Moved, Open, Opened, SessionTrace, ToServer, Turn,
};
use fastvideo_proto::stream_v1::ClientMessage;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::byte_budget::Share;

/// What waits for a server is limited in number and in bytes: a client that sends more is not read for that time.
const MAX_MESSAGES: usize = 1000;
const MAX_BYTES: usize = 1 << 20;
/// The longest message that may say that the client leaves.
const MAX_LEAVE_BYTES: usize = 4096;

/// What another server needs to go on.
#[derive(Debug)]
pub(super) struct Held {
    address: IpAddr,
    /// Whom the router has let in.
    caller: Option<LetIn>,
    /// The trace that the session belongs to.
    trace: Option<SessionTrace>,
    /// The client's opening message with the memory that it takes, until no server needs it any more.
    opening: Option<(Utf8Bytes, Share)>,
    opened: Option<Opened>,
    /// The client's messages that the checkpoint does not contain. The number of the first is `seq + 1`.
    messages: VecDeque<ClientSaid>,
    bytes: usize,
    seq: u64,
    /// And when it came.
    checkpoint: Option<(Box<RawValue>, Instant)>,
    curated: Option<Box<RawValue>>,
    shown: Option<Box<RawValue>>,
    /// Hashes of the media that the client has of the segment that is shown.
    media: Vec<Digest>,
    /// Whether the client was told or sent something since that was last asked.
    has_progress: bool,
}

/// A message of the client.
#[derive(Clone, Debug)]
pub(super) enum ClientSaid {
    Text(Utf8Bytes),
    /// Any binary message is against the rules.
    Binary,
}

impl ClientSaid {
    /// Returns the message for the server.
    pub(super) fn for_server(&self) -> String {
        match self {
            Self::Text(text) => session_link::join(&ToServer::Client, [text.as_str()]),
            Self::Binary => session_link::join(&ToServer::ClientBinary, []),
        }
    }

    /// Returns whether the client leaves for good.
    pub(super) fn is_leave(&self) -> bool {
        match self {
            Self::Text(text) if text.len() <= MAX_LEAVE_BYTES => {
                matches!(ClientMessage::parse(text), Ok(ClientMessage::Leave))
            }
            Self::Text(_) | Self::Binary => false,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary => 0,
        }
    }
}

impl Held {
    pub(super) fn new(
        address: IpAddr,
        caller: Option<LetIn>,
        trace: Option<SessionTrace>,
        opening: Utf8Bytes,
        share: Share,
    ) -> Self {
        Self {
            address,
            caller,
            trace,
            opening: Some((opening, share)),
            opened: None,
            messages: VecDeque::new(),
            bytes: 0,
            seq: 0,
            checkpoint: None,
            curated: None,
            shown: None,
            media: Vec::new(),
            has_progress: false,
        }
    }

    /// Returns the messages that open the session at a server, or let it go on there, in order.
    pub(super) fn open(&self) -> Vec<String> {
        let moved = match (&self.opened, &self.checkpoint) {
            (Some(opened), Some((checkpoint, taken))) => Some(Moved {
                session: opened.session.clone(),
                resume_token: opened.resume_token.clone(),
                seq: self.seq,
                checkpoint: checkpoint.clone(),
                age_ms: u64::try_from(taken.elapsed().as_millis()).unwrap_or(u64::MAX),
                curated: self.curated.clone(),
                shown: self.shown.clone(),
                media: self.media.clone(),
            }),
            _ => None,
        };
        let open = ToServer::Open(Box::new(Open {
            address: self.address,
            caller: self.caller.clone(),
            trace: self.trace,
            moved,
        }));
        let opening = self.opening.iter().map(|(opening, _)| opening.as_str());
        let mut messages = vec![session_link::join(&open, opening)];
        messages.extend(self.messages.iter().map(ClientSaid::for_server));
        messages
    }

    /// Returns whether a server has opened the session.
    pub(super) fn is_opened(&self) -> bool {
        self.opened.is_some()
    }

    /// Takes a message of the client.
    pub(super) fn client_said(&mut self, message: ClientSaid) {
        self.bytes += message.len();
        self.messages.push_back(message);
    }

    /// Returns whether nothing more of the client is to be read.
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() >= MAX_MESSAGES || self.bytes >= MAX_BYTES
    }

    /// Takes what the client has said, the opening first, out for a server without links.
    pub(super) fn take_messages(&mut self) -> Vec<Message> {
        let opening = self.opening.take().map(|(text, _)| Message::Text(text));
        let said = self.messages.drain(..).map(|said| match said {
            ClientSaid::Text(text) => Message::Text(text),
            ClientSaid::Binary => Message::Binary(Bytes::new()),
        });
        opening.into_iter().chain(said).collect()
    }

    /// Takes a turn, whose messages were handed to the client.
    pub(super) fn turn(&mut self, turn: Turn) {
        let Turn {
            opened,
            seq,
            checkpoint,
            curated,
            shown,
            begins_media,
            is_progress,
        } = turn;
        if let Some(opened) = opened {
            self.opened = Some(opened);
        }
        if let Some(checkpoint) = checkpoint {
            self.checkpoint = Some((checkpoint, Instant::now()));
            while self.seq < seq
                && let Some(message) = self.messages.pop_front()
            {
                self.bytes -= message.len();
                self.seq += 1;
            }
        }
        if curated.is_some() {
            self.curated = curated;
        }
        if shown.is_some() {
            self.has_progress = true;
            self.shown = shown;
        }
        if begins_media {
            self.media = Vec::new();
        }
        if is_progress {
            self.opening = None;
        }
    }

    /// Takes note of a binary message that was handed to the client.
    pub(super) fn media(&mut self, digest: Digest) {
        self.has_progress = true;
        self.media.push(digest);
    }

    /// Returns whether the client was told of a further step of a segment, or sent media, since this was last asked.
    pub(super) fn made_progress(&mut self) -> bool {
        std::mem::take(&mut self.has_progress)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use fastvideo_proto::ids::SessionId;
    use tokio::time::advance;

    use super::*;

    fn held() -> Held {
        let opening = Utf8Bytes::from_static("{\"type\":\"session_init_v2\"}");
        Held::new(
            Ipv4Addr::LOCALHOST.into(),
            None,
            None,
            opening,
            Share::default(),
        )
    }

    fn said(text: &'static str) -> ClientSaid {
        ClientSaid::Text(Utf8Bytes::from_static(text))
    }

    fn raw(text: &str) -> Option<Box<RawValue>> {
        Some(RawValue::from_string(text.to_owned()).unwrap())
    }

    /// What the next server is told of the session, and the messages of the client that follow.
    fn opens(held: &mut Held) -> (Option<Moved>, bool, Vec<String>) {
        let mut messages = held.open();
        let first = messages.remove(0);
        let (head, body) = session_link::split::<ToServer>(&first).unwrap();
        let ToServer::Open(open) = head else {
            panic!("{head:?}");
        };
        (open.moved, body.is_some(), messages)
    }

    #[test]
    fn before_it_is_opened_a_session_begins_anew() {
        let mut held = held();
        held.client_said(said("a"));
        let (moved, has_opening, messages) = opens(&mut held);
        assert!(moved.is_none() && has_opening);
        assert_eq!(messages, ["\"client\"\na"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_server_is_told_how_old_the_checkpoint_is() {
        let mut held = held();
        held.turn(Turn {
            opened: Some(Opened {
                session: SessionId::random(),
                resume_token: "t".to_owned(),
            }),
            checkpoint: raw("{}"),
            ..Turn::default()
        });
        advance(Duration::from_millis(1500)).await;
        let (moved, ..) = opens(&mut held);
        assert_eq!(moved.unwrap().age_ms, 1500);
        held.turn(Turn {
            checkpoint: raw("{}"),
            ..Turn::default()
        });
        let (moved, ..) = opens(&mut held);
        assert_eq!(moved.unwrap().age_ms, 0);
    }

    #[test]
    fn what_the_checkpoint_does_not_contain_is_said_again() {
        let mut held = held();
        for text in ["a", "b", "c"] {
            held.client_said(said(text));
        }
        held.client_said(ClientSaid::Binary);
        held.turn(Turn {
            opened: Some(Opened {
                session: SessionId::random(),
                resume_token: "t".to_owned(),
            }),
            seq: 2,
            checkpoint: raw("{\"n\":1}"),
            shown: raw("{}"),
            begins_media: true,
            ..Turn::default()
        });
        held.media(Digest::of(b"first"));
        held.media(Digest::of(b"second"));
        assert!(held.made_progress() && !held.made_progress());
        let (moved, has_opening, messages) = opens(&mut held);
        let moved = moved.unwrap();
        assert!(has_opening, "its image may still be needed");
        assert_eq!(moved.seq, 2);
        assert_eq!(moved.checkpoint.get(), "{\"n\":1}");
        assert_eq!(moved.media.len(), 2);
        assert_eq!(moved.media[0], Digest::of(b"first"));
        assert_eq!(messages, ["\"client\"\nc", "\"client_binary\""]);

        // A segment is finished, and another one has begun.
        held.turn(Turn {
            seq: 4,
            checkpoint: raw("{\"n\":2}"),
            is_progress: true,
            ..Turn::default()
        });
        let (moved, has_opening, messages) = opens(&mut held);
        let moved = moved.unwrap();
        assert!(!has_opening && messages.is_empty());
        assert_eq!(moved.seq, 4);
        held.turn(Turn {
            begins_media: true,
            ..Turn::default()
        });
        assert_eq!(opens(&mut held).0.unwrap().media, []);
    }

    #[test]
    fn a_client_that_leaves_says_so() {
        assert!(said("{\"type\": \"leave\"}").is_leave());
        for other in ["{}", "leave", "{\"type\": \"snapshot_state\"}"] {
            assert!(!said(other).is_leave());
        }
    }

    #[test]
    fn a_client_that_says_too_much_is_not_read_any_more() {
        let mut held = held();
        for _ in 0..MAX_MESSAGES {
            assert!(!held.is_full());
            held.client_said(said("x"));
        }
        assert!(held.is_full());
        held.turn(Turn {
            seq: 1,
            checkpoint: raw("{}"),
            ..Turn::default()
        });
        assert!(!held.is_full());
    }
}
