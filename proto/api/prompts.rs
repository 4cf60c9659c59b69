//! The status of the prompt enhancer and of the safety filter, and the system prompts.

use serde::{Deserialize, Serialize};

/// The state of the prompt enhancer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PromptStatus {
    /// The providers in the order in which they are asked.
    pub providers: Vec<ProviderEntry>,
    pub system_prompts: Origins,
    /// The number of enhanced prompts in the cache.
    pub cached: usize,
    pub cache_hits: u64,
}

/// The state of one language model provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProviderEntry {
    pub provider: String,
    pub model: String,
    /// The state of the provider's circuit breaker: `ok` (closed), `resting` (open: the provider is skipped after too many
    /// failures), `trying` (half-open: the next prompt finds out whether the provider works again) or `waiting` (the
    /// provider has asked for a pause).
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub state: ProviderState,
    pub failures_in_a_row: u32,
    pub calls: u64,
    pub failed_calls: u64,
    pub last_failure: Option<LastFailure>,
}

/// The state of a provider's circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProviderState {
    /// Closed: the provider is asked.
    Ok,
    /// Open: the provider is skipped after too many failures.
    Resting,
    /// Half-open: one call finds out whether the provider works again.
    Trying,
    /// The provider has asked for a pause.
    Waiting,
}

/// The latest failure of a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastFailure {
    pub reason: String,
    /// When it happened, RFC 3339.
    pub ts: String,
}

/// Where each system prompt comes from: `default` or `file`. This is the answer of `POST /v1/prompts/reload`, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Origins {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub enhance: Origin,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub auto_extend: Origin,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub rewrite: Origin,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub rollout_new: Origin,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub rollout_edit: Origin,
}

/// Where a system prompt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The prompt is built into the program.
    Default,
    /// The prompt was read from the operator's folder.
    File,
}

/// The system prompts in use, as FastVideo's web UI (Dreamverse) shows them: the answer of `/prompt-system-config`. A path is
/// null where the prompt is built into the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PromptSystemConfig {
    /// What enhances a prompt, `enhance.txt`.
    pub next_segment_system_prompt: String,
    pub next_segment_system_prompt_path: Option<String>,
    /// What writes the next prompt, `auto_extend.txt`.
    pub auto_extension_system_prompt: String,
    pub auto_extension_system_prompt_path: Option<String>,
    /// What edits the prompts of a rollout, `rollout_edit.txt`.
    pub rewrite_window_system_prompt: String,
    pub rewrite_window_system_prompt_path: Option<String>,
    /// What writes those of a new rollout, `rollout_new.txt`.
    pub rewrite_user_system_prompt: String,
    pub rewrite_user_system_prompt_path: Option<String>,
    /// The model of rollouts; empty without a language model.
    pub rewrite_model: String,
    /// Always empty: the configuration alone names models.
    pub rewrite_model_options: Vec<String>,
    pub rewrite_temperature: f64,
}

/// What is to be changed of a [`PromptSystemConfig`]. What is absent or null stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct NewPromptSystemConfig {
    pub next_segment_system_prompt: Option<String>,
    pub auto_extension_system_prompt: Option<String>,
    pub rewrite_window_system_prompt: Option<String>,
    pub rewrite_user_system_prompt: Option<String>,
    /// One that the configuration names.
    pub rewrite_model: Option<String>,
    /// 0 to 2; another one is brought there.
    pub rewrite_temperature: Option<f64>,
}

/// The state of the safety filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SafetyStatus {
    pub state: SafetyState,
    /// Why the filter is unavailable.
    pub reason: Option<String>,
    /// The number of prompts that the classifier has judged since the supervisor started.
    pub screened: u64,
    /// The number of judged prompts that the classifier has blocked.
    pub blocked: u64,
}

/// Whether prompts are screened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SafetyState {
    /// The filter is not enabled.
    Off,
    /// The classifier is loaded when the first prompt comes.
    NotLoaded,
    /// Every prompt is screened.
    Ready,
    /// The classifier cannot be loaded: every prompt passes.
    Unavailable,
}

/// Asks for the prompts of a video: the body of `POST /v1/prompts/rollout`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RolloutAsk {
    /// What the video is about; with `current`, what is to be changed.
    pub prompt: String,
    /// Number of prompts of a new video, 1 to 24; 6 without it.
    #[serde(default)]
    pub count: Option<usize>,
    /// The prompts to change, at most 24, in order.
    #[serde(default)]
    pub current: Option<Vec<String>>,
}

/// The prompts of a video, in order: the answer of `POST /v1/prompts/rollout`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WrittenPrompts {
    pub prompts: Vec<String>,
    /// The model's name for the video.
    pub label: Option<String>,
    /// The model that has written them; null where none has.
    pub model: Option<String>,
    /// Whether these are the caller's own words.
    pub fallback_used: bool,
    /// Why no model has written them.
    pub reason: Option<String>,
}
