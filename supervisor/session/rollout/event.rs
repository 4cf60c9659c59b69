//! What a client of rollouts is told besides what happens to its segments.

use std::time::Duration;

use super::command::PresetName;
use crate::prompt::GeneratedRollout;

/// Something that happened to a project or its rollouts.
#[derive(Clone, Debug, PartialEq)]
pub enum RolloutEvent {
    /// A rollout begins: what was shown of the one before is over.
    Started(Started),
    /// The first rollout of an opening has these seed prompts.
    SeedPrompts {
        preset: PresetName,
        prompts: Vec<String>,
    },
    /// A rollout began anew, and dropped what waited.
    Reset {
        reason: ResetReason,
        loop_iteration: u32,
        seed_prompts: usize,
        dropped: DroppedPrompts,
    },
    /// A rollout will begin anew at the next boundary.
    ResetPending {
        seed_prompts: usize,
    },
    /// The client has lifted what held its rollouts back.
    Restarted {
        segment_cap: u32,
    },
    /// The prompt of the next segment is chosen.
    Planned(PlannedPrompt),
    /// The rollout makes no more segments.
    Completed,
    /// There is no project.
    Idle(DroppedPrompts),
    /// A client's prompt was taken.
    PromptReceived {
        id: String,
        /// The number of prompts that wait now.
        queue_depth: usize,
    },
    PromptEnhancing {
        id: String,
    },
    PromptReady(ReadyPrompt),
    /// A client's prompt is used as it was written, since no model has enhanced it.
    PromptFallback {
        prompt: ReadyPrompt,
        reason: String,
    },
    /// There is nothing to make the next segment from.
    Blocked {
        segment_idx: u32,
    },
    /// There is something again.
    Resumed {
        segment_idx: u32,
        source: PromptOrigin,
        prompt_id: Option<String>,
    },
    /// No model goes on with the story.
    ExtensionFailed {
        segment_idx: u32,
        latency: Duration,
        reason: String,
    },
    RewriteStarted {
        /// Empty where there is no model.
        model: String,
    },
    Rewritten(Box<Rewritten>),
    /// Seed prompts were not rewritten, and stay as they were.
    RewriteBlocked {
        preset: PresetName,
        model: String,
        latency: Duration,
        reason: String,
    },
    EnhancementSet(bool),
    ExtensionSet(bool),
    LoopSet(bool),
    PausedSet(bool),
    RewriteModelSet(String),
    RewriteTemperatureSet(f64),
    /// What the client asks for is not possible now. The text is safe to show.
    Refused(String),
}

impl RolloutEvent {
    /// Returns the number of bytes of the texts that a client may have chosen, or a model.
    pub(crate) fn text_bytes(&self) -> usize {
        let sum = |texts: &[&str]| texts.iter().map(|text| text.len()).sum();
        let all = |prompts: &[String]| prompts.iter().map(String::len).sum::<usize>();
        match self {
            Self::SeedPrompts { prompts, .. } => all(prompts),
            Self::Rewritten(rewritten) => {
                let raw = match &rewritten.by {
                    RewrittenBy::Model(written) => written.raw.len(),
                    RewrittenBy::Nobody { .. } => 0,
                };
                all(&rewritten.prompts) + rewritten.instruction.len() + raw
            }
            Self::Planned(planned) => planned.text.len(),
            Self::PromptReady(ready) => ready.text.len(),
            Self::PromptFallback { prompt, reason } => sum(&[&prompt.text, reason]),
            Self::ExtensionFailed { reason, .. } | Self::RewriteBlocked { reason, .. } => {
                reason.len()
            }
            Self::Refused(why) => why.len(),
            _ => 0,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    pub preset: PresetName,
    pub seed_prompts: usize,
    pub looping: bool,
    pub loop_iteration: u32,
    /// Number of segments after which the rollouts wait; 0 for a single clip.
    pub segment_cap: u32,
}

/// Numbers of prompts that were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedPrompts {
    /// Those that were not ready.
    pub raw: usize,
    pub ready: usize,
}

/// Why a rollout begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    InitialRewrite,
    RewriteRollout,
    RewriteDuringGeneration,
    ProjectInit,
    ManualReset,
    CapRestart,
    SimpleGenerate,
    Loop,
}

/// Where a segment's prompt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptOrigin {
    /// A seed prompt.
    Seed,
    /// The client's, as it was written.
    User,
    /// The client's, enhanced by a language model.
    Enhanced,
    /// A language model's, which goes on with the story.
    Extension,
}

/// The prompt of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPrompt {
    /// Counted from 0 in each rollout.
    pub segment_idx: u32,
    pub text: String,
    pub origin: PromptOrigin,
    pub prompt_id: Option<String>,
    /// Whether a client's prompt could not be enhanced.
    pub fallback_used: bool,
    pub seed_prompt_index: Option<usize>,
    pub seed_prompts: usize,
    pub loop_iteration: u32,
}

/// A client's prompt that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadyPrompt {
    pub id: String,
    pub text: String,
    pub origin: PromptOrigin,
    pub latency: Duration,
}

/// The seed prompts after a rewrite.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewritten {
    pub preset: PresetName,
    pub prompts: Vec<String>,
    pub instruction: String,
    pub by: RewrittenBy,
}

/// Who has rewritten seed prompts.
#[derive(Clone, Debug, PartialEq)]
pub enum RewrittenBy {
    Model(GeneratedRollout),
    /// No model has: the client's words are used.
    Nobody {
        model: String,
        latency: Duration,
        reason: String,
    },
}
