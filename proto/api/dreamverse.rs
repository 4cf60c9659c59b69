//! What FastVideo's web UI (Dreamverse) asks for over HTTP. The shapes are those of its own server; `docs/dreamverse.md`
//! describes them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::ErrorDetail;

/// The body of a refusal, with the reason once more where FastVideo's web UI reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DetailErrorBody {
    pub error: ErrorDetail,
    /// The reason in words, for people.
    pub detail: String,
}

/// A story that users can choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Preset {
    pub id: String,
    pub label: String,
    #[serde(default)]
    pub description: String,
    /// The prompts of its segments, at least two.
    pub segment_prompts: Vec<String>,
}

/// The answer of `GET /curated-presets`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PresetList {
    pub presets: Vec<Preset>,
    pub count: usize,
    /// The operator's file, `streaming.dreamverse.presets_file`; null where the presets are built in.
    pub file_path: Option<String>,
    /// Always null: there is no second file.
    pub fallback_file_path: Option<String>,
}

/// What `POST /curated-presets/append` adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewPreset {
    /// Whatever is no letter or digit becomes `_`.
    pub id: String,
    pub label: String,
    /// At least two that are not blank.
    pub segment_prompts: Vec<String>,
}

/// The answer of `POST /curated-presets/append`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PresetAppended {
    /// Always `curated_preset_appended`.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kind: Cow<'static, str>,
    pub preset: Preset,
    /// The number of presets in the file now.
    pub count: usize,
    pub file_path: String,
    /// Always null: there is no second file.
    pub fallback_file_path: Option<String>,
}

/// The answer of `GET /lora/options`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LoraOptions {
    pub styles: Vec<String>,
    /// The names of the styles, for people.
    pub labels: BTreeMap<String, String>,
    pub has_base_lora: bool,
}

/// The answer of `GET /router/replicas/sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplicaList {
    /// This server alone.
    pub replicas: Vec<Replica>,
}

/// A server, as FastVideo's monitor page shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Replica {
    pub url: String,
    /// Whether the readiness probe succeeds.
    pub healthy: bool,
    /// Sessions that have a worker.
    pub active_sessions: usize,
    /// Sessions that wait for one.
    pub pending_sessions: usize,
    /// Sessions for which the workers have room that serve.
    pub max_available_sessions: usize,
    /// Answered calls by provider of language models.
    pub prompt_provider_success_counts: BTreeMap<String, u64>,
}

/// The answer of `GET /internal/monitor/sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MonitoredSessions {
    /// The service's name, `server.service_name`.
    pub service: String,
    /// Sessions that wait for a worker.
    pub pending_sessions: usize,
    /// Sessions for which the workers have room that serve.
    pub max_available_sessions: usize,
    /// Answered calls by provider of language models.
    pub prompt_provider_success_counts: BTreeMap<String, u64>,
    /// When the server answered, RFC 3339.
    pub ts: String,
}
