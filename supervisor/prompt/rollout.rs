//! Rollouts: the prompts of a whole video, one for each segment, which a language model writes or edits.
//!
//! [`RolloutRequest::message`] is what the model is told, in the form that system prompts written for FastVideo's
//! Dreamverse expect; `reader` finds the prompts in its answer. The enhancer asks the model.

use std::time::Duration;

use serde::Serialize;

pub(super) use reader::RolloutAnswer;

mod reader;

#[cfg(test)]
mod tests;

/// The temperature of rollouts, which are to differ from each other.
pub(super) const DEFAULT_TEMPERATURE: f64 = 1.0;

/// What a rollout is called that has no name.
const DEFAULT_ID: &str = "current_rollout";
const DEFAULT_LABEL: &str = "Current rollout";

/// What a model is asked for in words, beside the system prompt.
const NEW_REQUEST: &str = "Write a new rollout: as many prompts as desired_segment_count says, each of which goes on from the one before.";
const EDIT_REQUEST: &str = "Write all prompts of current_rollout again as user_instruction says: as many, in the same order.";

/// What a language model is asked for: the prompts of a new rollout, or another version of one.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutRequest {
    /// The rollout to edit; `None` asks for a new one.
    pub current: Option<RolloutPrompts>,
    /// What the user wants.
    pub instruction: String,
    /// Number of prompts that the answer must have.
    pub count: usize,
    /// A model in place of the server's; ignored unless the configuration names it.
    pub model: Option<String>,
    /// A temperature in place of the server's, 0 to 2.
    pub temperature: Option<f64>,
    /// A system prompt in place of the server's; a blank one is ignored.
    pub system_prompt: Option<String>,
    /// What a new rollout may be called.
    pub id_hint: Option<String>,
    pub label_hint: Option<String>,
}

/// The prompts of a rollout, and its name.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutPrompts {
    pub id: String,
    pub label: String,
    pub prompts: Vec<String>,
}

/// The prompts of a rollout that a language model has written.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedRollout {
    pub id: Option<String>,
    pub label: Option<String>,
    /// As many prompts as were asked for; each is one line without control characters.
    pub prompts: Vec<String>,
    /// The whole answer of the model, without its thinking.
    pub raw: String,
    pub provider: String,
    pub model: String,
    /// The time from the request to the answer, over all providers that were called.
    pub latency: Duration,
    /// Whether another provider than the first one has answered.
    pub fallback_used: bool,
}

/// The prompts of a rollout, whoever has written them.
#[derive(Clone, Debug, PartialEq)]
pub enum WrittenRollout {
    ByModel(GeneratedRollout),
    /// No model has answered, for this reason: they are the user's own words.
    InOwnWords {
        prompts: Vec<String>,
        /// The model that was to be asked; empty where there is none.
        model: String,
        latency: Duration,
        reason: String,
    },
}

/// The user message of a request.
#[derive(Serialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
enum Message<'a> {
    NewRollout {
        request: &'static str,
        user_instruction: &'a str,
        desired_segment_count: usize,
        rollout_id_hint: &'a str,
        rollout_label_hint: &'a str,
    },
    EditExistingRollout {
        request: &'static str,
        user_instruction: &'a str,
        current_rollout: CurrentRollout<'a>,
    },
}

#[derive(Serialize)]
struct CurrentRollout<'a> {
    id: &'a str,
    label: &'a str,
    segment_prompts: &'a [String],
}

impl RolloutRequest {
    /// Returns the prompts for a user whom no language model answers: of a new rollout, the instruction itself for each
    /// segment, since each goes on from the one before; of another version, each prompt with the instruction as a sentence
    /// after it. Without an instruction, prompts stay as they are, and there are none for a new rollout. Each prompt is cut
    /// at `max_chars` characters.
    pub fn without_model(&self, max_chars: usize) -> Vec<String> {
        let instruction = self.instruction.trim();
        let prompt = |prompt: &String| match instruction.is_empty() {
            true => prompt.clone(),
            false => format!("{} {}", as_sentence(prompt), as_sentence(instruction)),
        };
        let prompts = match &self.current {
            Some(current) => current.prompts.iter().map(prompt).collect(),
            None if instruction.is_empty() => Vec::new(),
            None => vec![instruction.to_owned(); self.count],
        };
        let cut = |prompt: &String| cut(prompt, max_chars).to_owned();
        prompts.iter().map(cut).collect()
    }

    /// Returns the user message: one JSON object.
    pub(super) fn message(&self) -> String {
        let user_instruction = self.instruction.trim();
        let message = match &self.current {
            None => Message::NewRollout {
                request: NEW_REQUEST,
                user_instruction,
                desired_segment_count: self.count,
                rollout_id_hint: or_default(self.id_hint.as_deref(), DEFAULT_ID),
                rollout_label_hint: or_default(self.label_hint.as_deref(), DEFAULT_LABEL),
            },
            Some(current) => Message::EditExistingRollout {
                request: EDIT_REQUEST,
                user_instruction,
                current_rollout: CurrentRollout {
                    id: or_default(Some(&current.id), DEFAULT_ID),
                    label: or_default(Some(&current.label), DEFAULT_LABEL),
                    segment_prompts: &current.prompts,
                },
            },
        };
        serde_json::to_string(&message).expect("texts and a number are JSON")
    }

    /// Returns the client's system prompt, if it has one.
    pub(super) fn own_system_prompt(&self) -> Option<&str> {
        let own = self.system_prompt.as_deref().map(str::trim);
        own.filter(|own| !own.is_empty())
    }
}

/// Returns the text, or the default where it is missing or blank.
fn or_default<'a>(text: Option<&'a str>, default: &'a str) -> &'a str {
    let text = text.unwrap_or_default().trim();
    if text.is_empty() { default } else { text }
}

/// Returns the text with a mark at its end after which another sentence can begin.
fn as_sentence(text: &str) -> String {
    let text = text.trim();
    let bare = text.trim_end_matches(['"', '\u{201d}', '\u{bb}', '\'', '\u{2019}', ')']);
    let is_whole = bare.ends_with(['.', '!', '?', '…', '。', '！', '？']);
    match is_whole || text.is_empty() {
        true => text.to_owned(),
        false => format!("{text}."),
    }
}

/// Returns the beginning of a text, at most so many characters.
fn cut(text: &str, max_chars: usize) -> &str {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => text[..end].trim_end(),
        None => text,
    }
}
