//! What language models generate: one prompt, or alternatives to one.

use std::time::Duration;

/// A prompt that a language model has written.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedPrompt {
    /// The prompt: one line without control characters.
    pub content: String,
    pub provider: String,
    pub model: String,
    /// The time from the request to the answer, over all providers that were called. It is zero for a cache hit.
    pub latency: Duration,
    /// Whether another provider than the first one has answered.
    pub fallback_used: bool,
}

/// Alternatives to a prompt that a language model has written.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptAlternatives {
    /// The alternatives, at least one; each is one line without control characters.
    pub alternatives: Vec<String>,
    pub provider: String,
    pub model: String,
    /// The time from the request to the answer, over all providers that were called.
    pub latency: Duration,
    /// Whether another provider than the first one has answered.
    pub fallback_used: bool,
}
