//! What a router and a server tell each other on the control link, `GET /v1/router`: JSON text over a WebSocket.
//!
//! The router says hello first. The server answers with a report, and with another one after every change and at least
//! once a second. Unknown fields and messages are ignored, so that a newer side can say more.

use serde::{Deserialize, Serialize};

/// The version of what is said here. A side names those that it speaks.
pub const FLEET_VERSION: u32 = 1;

/// The shortest key by which servers know a router, in bytes.
pub const MIN_KEY_BYTES: usize = 32;

/// What a router says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterMessage {
    Hello(Hello),
    /// Said when it has changed.
    Waiting(Waiting),
}

/// The first message of a router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The router's [`FLEET_VERSION`].
    pub fleet: u32,
    /// A random name, another one after each start.
    pub router_id: String,
    /// The operator's name for it.
    pub name: Option<String>,
    pub zone: Option<String>,
}

/// The sessions that wait for a place at any server: idle ones are to make room for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// This server's share of them.
    pub sessions: usize,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerMessage {
    Report(Box<Report>),
}

/// How a server is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Report {
    /// A random name, another one after each start.
    pub server_id: String,
    /// The operator's name for it.
    pub name: Option<String>,
    pub zone: Option<String>,
    /// The server's version.
    pub version: String,
    /// The versions of the control link that it speaks.
    pub fleet: Vec<u32>,
    /// What its segments are, in short: sessions move only between servers of the same class. Empty while it has no
    /// worker.
    #[serde(default)]
    pub class: String,
    /// The name of its store: sessions move only between servers with the same one.
    #[serde(default)]
    pub store: String,
    /// Whether the store outlives the server's process.
    #[serde(default)]
    pub store_outlives: bool,
    /// Whether at least one worker serves.
    pub ready: bool,
    /// Whether it takes no further session.
    pub draining: bool,
    /// Sessions that its workers can serve at once.
    pub places: usize,
    /// Sessions that it could take now.
    pub free: usize,
    /// Open sessions, including those that wait for a worker.
    pub sessions: usize,
    /// Sessions that wait for a worker.
    pub waiting: usize,
    pub gpus: Gpus,
    /// Its video jobs; `None` where it makes no videos, and in reports of servers that do not know of them.
    #[serde(default)]
    pub videos: Option<VideoJobs>,
}

/// Numbers of video jobs. Servers with the same store may count the same ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VideoJobs {
    /// Those that wait for their turn.
    pub queued: usize,
    pub running: usize,
}

/// Numbers of GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gpus {
    pub total: usize,
    /// Those whose workers serve.
    pub ready: usize,
    /// Those whose workers start.
    pub starting: usize,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_are_named_by_their_only_key() {
        let hello = RouterMessage::Hello(Hello {
            fleet: 1,
            router_id: "r".to_owned(),
            name: None,
            zone: Some("a".to_owned()),
        });
        let expected = json!({"hello": {"fleet": 1, "router_id": "r", "name": null, "zone": "a"}});
        assert_eq!(serde_json::to_value(hello).unwrap(), expected);
        let report = ServerMessage::Report(Box::default());
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["report"]["gpus"]["total"], 0);
    }

    #[test]
    fn what_a_newer_side_adds_is_ignored() {
        let mut value = serde_json::to_value(ServerMessage::Report(Box::default())).unwrap();
        value["report"]["mood"] = json!("good");
        serde_json::from_value::<ServerMessage>(value).unwrap();
    }
}
