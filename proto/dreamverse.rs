//! The client protocol of `WS /ws`: that of FastVideo's Dreamverse, whose web UI works with it unchanged. JSON text messages
//! in both directions; `docs/dreamverse.md` says how they follow each other.
//!
//! Names on the wire are those of Dreamverse's server. A field that is null is sent, unlike on `/v1/stream`.

use std::fmt;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::stream_v1::{ParseError, fields};

#[cfg(test)]
mod tests;

/// A message from a client.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// `project_init_v1`
    ProjectInit(Box<Opening>),
    /// `end_project_keep_session`
    EndProject,
    /// `rewrite_seed_prompts`
    Rewrite(Box<Rewrite>),
    AppendPrompt(AppendPrompt),
    SimpleGenerate(Box<SimpleGenerate>),
    SetEnhancement(Toggle),
    SetAutoExtension(Toggle),
    SetLoopGeneration(Toggle),
    SetGenerationPaused(Paused),
    ResetToSeedPrompts,
    RestartGeneration,
    SetRewriteModel(RewriteModel),
    SetRewriteTemperature(RewriteTemperature),
    Leave,
}

/// Opens a session or a project. Unknown fields are ignored.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Opening {
    pub preset_id: Option<String>,
    pub preset_label: Option<String>,
    #[serde(deserialize_with = "texts")]
    pub curated_prompts: Vec<String>,
    /// The same, in openings of other types.
    #[serde(deserialize_with = "texts")]
    pub segment_prompts: Vec<String>,
    pub initial_rollout_prompt: Option<String>,
    pub initial_image: Option<InitialImage>,
    pub single_clip_mode: Option<bool>,
    pub enhancement_enabled: Option<bool>,
    pub auto_extension_enabled: Option<bool>,
    pub loop_generation_enabled: Option<bool>,
    pub rewrite_model: Option<String>,
    pub rewrite_temperature: Option<f64>,
    pub rewrite_window_system_prompt: Option<String>,
    pub rewrite_user_system_prompt: Option<String>,
}

/// A picture: a base64 data URL of PNG, JPEG or WebP. Without `data_url` there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct InitialImage {
    pub data_url: Option<String>,
    pub mime_type: Option<String>,
    pub name: Option<String>,
}

/// Asks for other seed prompts.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Rewrite {
    pub rewrite_instruction: Option<String>,
    #[serde(deserialize_with = "texts")]
    pub prompt_window_prompts: Vec<String>,
    pub rewrite_model: Option<String>,
    pub rewrite_temperature: Option<f64>,
    pub rewrite_window_system_prompt: Option<String>,
    pub rewrite_user_system_prompt: Option<String>,
}

/// Adds a prompt for the next segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AppendPrompt {
    pub prompt: String,
    pub prompt_id: Option<String>,
}

/// Asks for one clip.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SimpleGenerate {
    pub prompt: String,
    pub prompt_id: Option<String>,
    pub enhancement_enabled: Option<bool>,
    pub preset_id: Option<String>,
    pub preset_label: Option<String>,
    pub initial_image: Option<InitialImage>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Toggle {
    /// Null changes nothing.
    pub enabled: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Paused {
    /// Null changes nothing.
    pub paused: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RewriteModel {
    pub rewrite_model: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RewriteTemperature {
    pub rewrite_temperature: Option<f64>,
}

/// What all messages have.
#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
}

impl ClientMessage {
    /// Returns the message's `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ProjectInit(_) => "project_init_v1",
            Self::EndProject => "end_project_keep_session",
            Self::Rewrite(_) => "rewrite_seed_prompts",
            Self::AppendPrompt(_) => "append_prompt",
            Self::SimpleGenerate(_) => "simple_generate",
            Self::SetEnhancement(_) => "set_enhancement",
            Self::SetAutoExtension(_) => "set_auto_extension",
            Self::SetLoopGeneration(_) => "set_loop_generation",
            Self::SetGenerationPaused(_) => "set_generation_paused",
            Self::ResetToSeedPrompts => "reset_to_seed_prompts",
            Self::RestartGeneration => "restart_generation",
            Self::SetRewriteModel(_) => "set_rewrite_model",
            Self::SetRewriteTemperature(_) => "set_rewrite_temperature",
            Self::Leave => "leave",
        }
    }

    /// Parses one text message; `None` for one of a type that is ignored.
    ///
    /// # Errors
    /// Returns [`ParseError`], which names the message type and the field that does not fit.
    pub fn parse(text: &str) -> Result<Option<Self>, ParseError> {
        let kind = kind(text)?;
        Ok(Some(match kind.as_str() {
            "project_init_v1" => Self::ProjectInit(fields(text, kind)?),
            "end_project_keep_session" => Self::EndProject,
            "rewrite_seed_prompts" => Self::Rewrite(fields(text, kind)?),
            "append_prompt" => Self::AppendPrompt(fields(text, kind)?),
            "simple_generate" => Self::SimpleGenerate(fields(text, kind)?),
            "set_enhancement" => Self::SetEnhancement(fields(text, kind)?),
            "set_auto_extension" => Self::SetAutoExtension(fields(text, kind)?),
            "set_loop_generation" => Self::SetLoopGeneration(fields(text, kind)?),
            "set_generation_paused" => Self::SetGenerationPaused(fields(text, kind)?),
            "reset_to_seed_prompts" => Self::ResetToSeedPrompts,
            "restart_generation" => Self::RestartGeneration,
            "set_rewrite_model" => Self::SetRewriteModel(fields(text, kind)?),
            "set_rewrite_temperature" => Self::SetRewriteTemperature(fields(text, kind)?),
            "leave" => Self::Leave,
            _ => return Ok(None),
        }))
    }
}

impl Opening {
    /// Parses the first message of a client, whatever its type is.
    ///
    /// # Errors
    /// As [`ClientMessage::parse`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let kind = kind(text)?;
        let is_init = matches!(kind.as_str(), "session_init_v2" | "project_init_v1");
        let mut opening: Self = fields(text, kind)?;
        if !is_init {
            opening.curated_prompts = std::mem::take(&mut opening.segment_prompts);
        }
        Ok(opening)
    }
}

fn kind(text: &str) -> Result<String, ParseError> {
    // Only objects are accepted, because the derived deserialisers would take an array of the fields' values too.
    if !text.trim_start().starts_with('{') {
        return Err(ParseError::NoObject);
    }
    let envelope: Envelope = serde_json::from_str(text).map_err(ParseError::Envelope)?;
    Ok(envelope.kind)
}

/// The most texts of a list that are kept. Sessions accept fewer.
const MAX_TEXTS: usize = 4096;

/// Reads a list of texts or null: without blanks around them, and without what is blank or no text.
fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Texts;

    impl<'de> Visitor<'de> for Texts {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of texts")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut texts = Vec::new();
            while let Some(TextOrOther(text)) = list.next_element()? {
                let text = text.as_deref().map_or("", str::trim);
                if !text.is_empty() {
                    if texts.len() == MAX_TEXTS {
                        return Err(de::Error::custom(format!("more than {MAX_TEXTS} texts")));
                    }
                    texts.push(text.to_owned());
                }
            }
            Ok(texts)
        }
    }

    deserializer.deserialize_any(Texts)
}

/// A text, or anything else, which is skipped.
struct TextOrOther(Option<String>);

impl<'de> Deserialize<'de> for TextOrOther {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = TextOrOther;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOrOther(Some(text.to_owned())))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(TextOrOther(None))
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
                Ok(TextOrOther(None))
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
                Ok(TextOrOther(None))
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
                Ok(TextOrOther(None))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
                Ok(TextOrOther(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(TextOrOther(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(TextOrOther(None))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// A message to a client. `segment_idx` counts from 1 in each rollout, times are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    QueueStatus {
        /// 0 while there is a place, else the place in line from 1.
        position: usize,
        total_gpus: usize,
        available_gpus: usize,
    },
    GpuAssigned {
        gpu_id: u32,
        /// How long the session may last, in seconds; null where that is not limited.
        session_timeout: Option<u64>,
    },
    #[serde(rename = "ltx2_stream_start")]
    StreamStart {
        total_segments: usize,
        preset_id: Option<String>,
        /// Always `av_fmp4`.
        stream_mode: &'static str,
        live_mode: bool,
        loop_generation_enabled: bool,
        loop_iteration: u32,
        generation_segment_cap: u32,
    },
    #[serde(rename = "seed_prompts_updated")]
    SeedPrompts {
        prompts: Vec<String>,
        preset_id: Option<String>,
        preset_label: String,
        /// `init`
        reason: &'static str,
        seed_prompt_count: usize,
    },
    #[serde(rename = "seed_prompts_updated")]
    SeedPromptsRewritten {
        prompts: Vec<String>,
        preset_id: Option<String>,
        preset_label: String,
        /// `rewrite`
        reason: &'static str,
        fallback_used: bool,
        error: Option<String>,
        model: String,
        latency_ms: f64,
        raw_llm_output: Option<String>,
        rewrite_instruction: String,
    },
    SeedPromptsResetApplied {
        reason: &'static str,
        loop_iteration: u32,
        seed_prompt_count: usize,
        dropped_user_raw_queue: usize,
        dropped_user_ready_queue: usize,
    },
    LoopRestarted {
        loop_iteration: u32,
        seed_prompt_count: usize,
        dropped_user_raw_queue: usize,
        dropped_user_ready_queue: usize,
    },
    SegmentPromptSource {
        segment_idx: u32,
        source: &'static str,
        prompt_id: Option<String>,
        fallback_used: bool,
        seed_prompt_index: Option<usize>,
        loop_iteration: u32,
    },
    #[serde(rename = "ltx2_segment_start")]
    SegmentStart {
        segment_idx: u32,
        total_segments: usize,
        prompt: String,
        source: &'static str,
        seed_prompt_index: Option<usize>,
        loop_iteration: u32,
    },
    MediaInit {
        segment_idx: u32,
        mime: String,
        stream_id: String,
        /// Always `av_fmp4`.
        mode: &'static str,
    },
    MediaSegmentComplete {
        segment_idx: u32,
        stream_id: String,
        /// The number of binary messages, the init segment included.
        chunks: u32,
    },
    StepComplete {
        latency_ms: StepLatency,
    },
    #[serde(rename = "ltx2_segment_complete")]
    SegmentComplete {
        segment_idx: u32,
        total_segments: usize,
    },
    #[serde(rename = "ltx2_stream_complete")]
    StreamComplete,
    ProjectIdle {
        dropped_user_raw_queue: usize,
        dropped_user_ready_queue: usize,
    },
    RewriteSeedPromptsStarted {
        model: String,
    },
    RewriteSeedPromptsComplete {
        fallback_used: bool,
        error: Option<String>,
        model: String,
        latency_ms: f64,
        preset_id: Option<String>,
        preset_label: String,
    },
    PromptReceived {
        prompt_id: String,
        queue_depth: usize,
    },
    PromptEnhancing {
        prompt_id: String,
    },
    PromptReady {
        prompt_id: String,
        prompt: String,
        source: &'static str,
        latency_ms: f64,
    },
    PromptFallbackUsed {
        prompt_id: String,
        prompt: String,
        source: &'static str,
        latency_ms: f64,
        error: String,
    },
    PromptSourcesBlocked {
        segment_idx: u32,
    },
    PromptSourcesResumed {
        segment_idx: u32,
        source: &'static str,
        prompt_id: Option<String>,
    },
    AutoPromptFailed {
        segment_idx: u32,
        latency_ms: f64,
        error: String,
    },
    EnhancementUpdated {
        enabled: bool,
    },
    AutoExtensionUpdated {
        enabled: bool,
    },
    LoopGenerationUpdated {
        enabled: bool,
    },
    GenerationPausedUpdated {
        paused: bool,
    },
    GenerationRestarted {
        reason: &'static str,
        segment_cap: u32,
    },
    SeedPromptsResetPending {
        seed_prompt_count: usize,
    },
    RewriteModelUpdated {
        rewrite_model: String,
    },
    RewriteTemperatureUpdated {
        rewrite_temperature: f64,
    },
    SessionTimeout {
        message: String,
    },
    Error {
        message: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        error_code: Option<&'static str>,
    },
}

/// Where the time of a segment went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepLatency {
    pub total: f64,
    /// The time in the worker.
    pub worker_e2e: f64,
    /// As `total`.
    pub main_user_step: f64,
    /// What the worker has not taken.
    pub overhead: f64,
}
