//! Sessions as operators see them, and their continuation states.

use serde::{Deserialize, Serialize};

use crate::ids::{GpuId, SessionId, WorkerId};

/// The answer of `GET /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionList {
    /// The sessions in the order in which they connected.
    pub sessions: Vec<SessionEntry>,
}

/// One session that is connected to the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionEntry {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub session_id: SessionId,
    /// What its client speaks: `stream_v1` or `dreamverse`.
    #[serde(default)]
    pub protocol: String,
    /// `INITIALIZING`, `QUEUED`, `GPU_BINDING`, `ACTIVE`, `COMPLETE`, `ERROR`, `TIMEOUT` or `REJECTED`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub state: SessionState,
    /// The worker that the session is bound to, or was bound to last.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub worker_id: Option<WorkerId>,
    /// The index of the running segment, or of the next one when none runs.
    pub segment_idx: u32,
    /// How far the viewer is behind the end of what is finished, in seconds of playing time, as far as the server knows.
    pub lead_seconds: f64,
    /// Seconds since the client connected.
    pub age_seconds: f64,
}

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SessionState {
    /// The client has connected; its opening message has not been accepted yet.
    Initializing,
    /// The session waits for a worker.
    Queued,
    /// A worker is being bound, for the first time or after a fault.
    GpuBinding,
    Active,
    Complete,
    Error,
    Timeout,
    Rejected,
}

/// A continuation state in its public form, as `snapshot_state` exports it: the answer of
/// `GET /v1/sessions/{id}/state` and the body of `POST /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StateBody {
    /// The kind of the state: `ltx2.v1`.
    pub kind: String,
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    #[serde(deserialize_with = "crate::untrusted_json::object")]
    pub payload: serde_json::Map<String, serde_json::Value>,
}

/// The query of `GET /v1/sessions/{id}/state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[serde(deny_unknown_fields)]
pub struct StateQuery {
    /// Whether the answer holds all tensors instead of references to blobs of this server's store.
    #[serde(default)]
    pub inline: bool,
}

/// The answer of `POST /v1/sessions`: a session that a client can resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hydrated {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub session_id: SessionId,
    /// The token for `resume` in the opening message.
    pub resume_token: String,
}

/// The body of `POST /v1/sessions/{id}/move`; an empty body asks for any other worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// The GPU whose worker gets the session. When absent, any other worker that has room may get it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>))]
    pub gpu_id: Option<GpuId>,
}
