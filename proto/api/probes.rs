//! Health and readiness, for load balancers and process managers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::job::MediaMode;

/// The answer of `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub status: Liveness,
    /// Open sessions, including those that wait for a worker.
    pub sessions: usize,
    /// The media mode of a session that asks for none.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub stream_mode: MediaMode,
}

/// The answer of `GET /healthz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Healthz {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub status: Liveness,
    /// The service's name, `server.service_name`.
    pub service: String,
    /// When the server answered, RFC 3339.
    pub ts: String,
}

/// The answer of `GET /readyz`: with status code 200 when the server is ready, else with 503.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Readyz {
    /// `ready`, `warming`, `unavailable`, `store_failing` or `draining`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub status: Readiness,
    /// The service's name, `server.service_name`.
    pub service: String,
    /// Workers that serve.
    pub ready_gpu_workers: usize,
    pub total_gpus: usize,
    /// Workers that could take another session.
    pub available_gpus: usize,
    pub warmup_successful_gpus: usize,
    pub warmup_failed_gpus: usize,
    /// Sessions that wait for a worker.
    pub queue_size: usize,
    /// When the server answered, RFC 3339.
    pub ts: String,
    /// Why it is not ready, for users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Whether the process is alive; one that is not alive answers nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    Ok,
}

/// Whether a new session would find a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// At least one worker serves.
    Ready,
    /// No worker serves at the moment, but one is being started.
    Warming,
    /// No worker serves, and none is started until an operator asks for it or a quarantine ends.
    Unavailable,
    /// The store does not work, and `streaming.store.required_for_readiness` is set.
    StoreFailing,
    /// The server is going away and takes no further session.
    Draining,
}

/// Formats it as the probe's answer has it.
impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Warming => "warming",
            Self::Unavailable => "unavailable",
            Self::StoreFailing => "store_failing",
            Self::Draining => "draining",
        })
    }
}
