//! The answers of a router.

use serde::{Deserialize, Serialize};

use super::reload::LastReload;
use super::sessions::SessionEntry;
use crate::fleet::Report;

/// The answer of a router's `GET /status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RouterStatus {
    /// The router's version.
    pub version: String,
    /// When the router answered, in seconds since the Unix epoch.
    pub ts: f64,
    /// Whether the router takes no further session.
    pub draining: bool,
    /// Sessions that wait for a place at a server, at all routers whose line this is.
    pub waiting: usize,
    /// Whether the line is that of all routers with the same Redis at the moment.
    pub line_is_common: bool,
    /// The replicas, in the order of the configuration.
    pub replicas: Vec<ReplicaState>,
    /// How the last reload of the configuration went; absent before the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reload: Option<LastReload>,
}

/// One replica as the router sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplicaState {
    pub url: String,
    /// Its name in the configuration, else the one that it has reported.
    pub name: Option<String>,
    /// Whether it is preferred while it is healthy.
    pub primary: bool,
    /// `unknown`, `healthy` or `unhealthy`.
    pub status: String,
    /// When a probe last succeeded, in seconds since the Unix epoch.
    pub last_ok_at: Option<f64>,
    /// How long the last successful probe took.
    pub last_latency_ms: Option<f64>,
    /// Failed probes since the last successful one.
    pub consecutive_failures: u32,
    /// Sessions that this router carries to it.
    pub sessions: usize,
    /// The control link with it: `unknown` before it was asked, `plain` where it has none, `up` or `down`.
    pub link: String,
    /// What the server reports itself; null while there is no control link with it.
    pub report: Option<Report>,
}

/// The answer of a router's `GET /v1/sessions`: the sessions at all healthy servers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetSessions {
    pub sessions: Vec<FleetSession>,
    /// The servers whose sessions are not here, since they do not answer: by name or address.
    pub unreachable: Vec<String>,
}

/// One session at a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetSession {
    /// The server's name or address.
    pub server: String,
    #[serde(flatten)]
    pub entry: SessionEntry,
}

/// The answer of a router's `GET /v1/fleet/demand`: what the servers have, and what their sessions need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetDemand {
    /// Sessions that wait for a place at a server, at all routers whose line this is.
    pub waiting: usize,
    /// Sessions at the servers.
    pub sessions: usize,
    /// Sessions that the servers can serve at once.
    pub places: usize,
    /// Sessions that they would take now.
    pub free: usize,
    /// GPUs of the servers.
    pub gpus: usize,
    /// GPUs that all these sessions need, and the headroom.
    pub wanted_gpus: usize,
}

/// The answer of a router's `GET /health` and `GET /readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RouterHealth {
    /// `ok`.
    pub status: String,
    pub healthy_replicas: usize,
    pub replicas: usize,
    /// Sessions that this router carries.
    pub sessions: usize,
}
