//! The answers to orders that change what a program does while it runs.

use serde::{Deserialize, Serialize};

/// The answer of `POST /v1/reload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reloaded {
    /// The keys of the configuration whose values have changed, or the files that they name.
    pub changed: Vec<String>,
    /// The keys whose new values wait for a restart.
    pub pending_restart: Vec<String>,
}

/// How the last reload went, as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastReload {
    /// When it ended, in RFC 3339.
    pub ts: String,
    pub outcome: ReloadOutcome,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(flatten)]
    pub reloaded: Reloaded,
}

/// Whether what was read could be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReloadOutcome {
    Ok,
    /// Nothing has changed.
    Refused,
}

/// The answer of `PUT /v1/log-level`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogLevel {
    /// The filter that holds now.
    pub log_level: String,
}
