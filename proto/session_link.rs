//! What a router and a server tell each other on a session link, `GET /v1/router/session`: one WebSocket for each session.
//!
//! A binary message from the server is one for the client, unchanged. Every text message is a head, which is JSON on the
//! first line, and a body, which is the rest: the client's message, or the messages for the client, one on each line.
//!
//! A head comes in one message with what the client is told by it. So the client was told, or is being told, a prefix of
//! what the session says, and the last [`Checkpoint`] that the router has says which. Unknown fields are ignored.
//!
//! [`Checkpoint`]: crate::checkpoint::Checkpoint

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_128;

use crate::ids::SessionId;
use crate::trace::TraceContext;

/// What a router says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToServer {
    /// The first message. Its body is the client's opening message, which may be absent after a move.
    Open(Box<Open>),
    /// The body is a message of the client.
    Client,
    /// The client has sent a binary message.
    ClientBinary,
    /// Everything up to this gate was handed to the client.
    Passed { gate: u64 },
    /// The session is to be let go at its next boundary.
    Release,
    /// The client is gone; it has closed its connection properly or not. A link that ends without this means that the
    /// router is gone, or goes on elsewhere.
    Gone { closed: bool },
}

/// Opens a session, or goes on with one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Open {
    /// Where the client connects from.
    pub address: IpAddr,
    /// Whom the router has let in; absent where it asks nobody for a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<LetIn>,
    /// Absent where neither the router nor the client has named a span.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<SessionTrace>,
    /// What another server has made of the session; absent for a client that has just come.
    pub moved: Option<Moved>,
}

/// Whom a router has let in, which the server believes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetIn {
    /// Whose the session is.
    pub tenant: String,
    /// The id of the key, or the subject of the token.
    pub key_id: String,
    /// Whether sessions of all tenants are there for the client.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_admin: bool,
}

/// What a router knows of the trace of a session. It counts instead of what the client's opening message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionTrace {
    /// The span that the session is below: the router's, or the client's where the router makes none.
    pub parent: TraceContext,
    /// Another span that the client has named, where the router makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<TraceContext>,
    /// Whether the router has decided if the session is traced, as `parent` says.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_decided: bool,
}

/// A session that another server has begun.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    pub session: SessionId,
    pub resume_token: String,
    /// The number of the client's messages after the opening that the checkpoint contains. Those that follow are sent
    /// anew.
    pub seq: u64,
    /// A [`Checkpoint`](crate::checkpoint::Checkpoint).
    pub checkpoint: Box<RawValue>,
    /// Time since the checkpoint was taken, in milliseconds.
    #[serde(default)]
    pub age_ms: u64,
    /// The [`CuratedPrompt`](crate::checkpoint::CuratedPrompt)s.
    pub curated: Option<Box<RawValue>>,
    /// What the client was [`Shown`](crate::checkpoint::Shown).
    pub shown: Option<Box<RawValue>>,
    /// Of the binary messages that the client has of the segment that is shown.
    pub media: Vec<Digest>,
}

/// The XXH3 hash of a binary message, 128 bits: it tells accidents apart, and takes the least time. As text, 32 hexadecimal
/// digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(u128);

/// A text that is no digest.
#[derive(Debug, thiserror::Error)]
#[error("a digest has 32 hexadecimal digits")]
pub struct BadDigest;

impl Digest {
    pub fn of(message: &[u8]) -> Self {
        Self(xxh3_128(message))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        format!("{:032x}", digest.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = BadDigest;

    fn try_from(text: String) -> Result<Self, BadDigest> {
        let digits = text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit());
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| digits);
        number.map(Self).ok_or(BadDigest)
    }
}

/// What a server says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToRouter {
    /// The body has messages for the client.
    Turn(Box<Turn>),
    /// The router says when everything before this was handed to the client.
    Gate { gate: u64 },
    /// The session has to go on elsewhere: before it is opened since there is no room, later since the server is going
    /// away or has no worker left. Nothing follows.
    Released,
    /// The session is over, or does not begin. The body has the last messages for the client. Nothing follows.
    End(End),
}

/// A step of the session. What is absent stays as it is.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Turn {
    /// Present in the first turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened: Option<Opened>,
    /// The number of the client's messages that the checkpoint contains. Present with a checkpoint.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curated: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shown: Option<Box<RawValue>>,
    /// Whether the binary messages that follow are the first of a segment's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub begins_media: bool,
    /// Whether a segment is finished, so that the opening message is not needed any more.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_progress: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    pub session: SessionId,
    pub resume_token: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The close code of the client's WebSocket; `None` when the client is gone.
    pub code: Option<u16>,
    pub reason: String,
    /// Whether the session was not found that the client resumes: another store may have it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_missing: bool,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// A text message that has no head that can be read.
#[derive(Debug, thiserror::Error)]
#[error("a message of the session link cannot be read: {0}")]
pub struct BadHead(#[from] serde_json::Error);

/// Puts a head and a body together.
pub fn join<'a>(head: &impl Serialize, body: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = serde_json::to_string(head).expect("strings and numbers are JSON");
    for line in body {
        text.push('\n');
        text.push_str(line);
    }
    text
}

/// Takes a message apart. The body is `None` when there is only a head.
///
/// # Errors
/// Returns an error when the head is not what is expected.
pub fn split<T: DeserializeOwned>(text: &str) -> Result<(T, Option<&str>), BadHead> {
    match text.split_once('\n') {
        Some((head, body)) => Ok((serde_json::from_str(head)?, Some(body))),
        None => Ok((serde_json::from_str(text)?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_head_and_its_body() {
        let text = join(&ToServer::Client, ["{\n}"]);
        assert_eq!(text, "\"client\"\n{\n}");
        let (head, body) = split::<ToServer>(&text).unwrap();
        assert!(matches!(head, ToServer::Client));
        assert_eq!(body, Some("{\n}"));
        assert!(split::<ToServer>("client\n{}").is_err());

        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = SessionTrace {
            parent: parent.parse().unwrap(),
            link: None,
            is_decided: true,
        };
        let text = serde_json::to_string(&trace).unwrap();
        assert_eq!(
            text,
            format!("{{\"parent\":\"{parent}\",\"is_decided\":true}}")
        );
        assert_eq!(serde_json::from_str::<SessionTrace>(&text).unwrap(), trace);

        let turn = Turn {
            seq: 3,
            checkpoint: Some(RawValue::from_string("{\"a\":1}".to_owned()).unwrap()),
            ..Turn::default()
        };
        let text = join(&ToRouter::Turn(Box::new(turn)), ["{}", "[]"]);
        assert_eq!(
            text,
            "{\"turn\":{\"seq\":3,\"checkpoint\":{\"a\":1}}}\n{}\n[]"
        );
        let (head, body) = split::<ToRouter>(&text).unwrap();
        let ToRouter::Turn(turn) = head else {
            panic!("{head:?}");
        };
        assert_eq!((turn.seq, turn.begins_media), (3, false));
        assert_eq!(body.unwrap().lines().count(), 2);
    }
}
