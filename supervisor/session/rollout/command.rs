//! What a client of rollouts asks for.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::byte_budget::Share;

/// The opening of a project: what it is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProjectSetup {
    /// The client's names for what it begins with.
    pub preset: PresetName,
    /// The prompts of its segments, in order; none is blank.
    pub seed_prompts: Vec<String>,
    /// What a first rollout is to be written from, where there are no seed prompts.
    pub rollout_prompt: String,
    /// Whether a rollout has one segment.
    pub single_clip: bool,
    pub switches: ProjectSwitches,
    pub style: RewriteStyle,
}

/// The client's names for what a project begins with. They are told back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresetName {
    pub id: Option<String>,
    pub label: String,
}

impl PresetName {
    /// Takes another name, as far as it is given.
    pub(super) fn take(&mut self, new: Self) {
        if new.id.is_some() {
            self.id = new.id;
        }
        if !new.label.is_empty() {
            self.label = new.label;
        }
    }
}

/// The client's switches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectSwitches {
    /// Whether a language model enhances the client's prompts.
    pub enhancing: bool,
    /// Whether a language model goes on where the prompts end.
    pub extending: bool,
    /// Whether the seed prompts begin again where they end.
    pub looping: bool,
}

/// How seed prompts are rewritten. What is absent is the server's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewriteStyle {
    pub model: Option<String>,
    /// 0 to 2.
    pub temperature: Option<f64>,
    /// The system prompt for another version of a rollout.
    pub edit_system_prompt: Option<String>,
    /// The system prompt for a new rollout.
    pub new_system_prompt: Option<String>,
}

/// A request to write other seed prompts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewriteAsk {
    pub instruction: String,
    /// The prompts as the client shows them; without any, the project's own are rewritten.
    pub window: Vec<String>,
    pub style: RewriteStyle,
}

/// A prompt of the client's for the next segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPrompt {
    /// The client's name for it.
    pub id: String,
    pub text: String,
}

/// One clip by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    pub prompt: UserPrompt,
    pub enhance: bool,
    pub preset: PresetName,
}

/// The image of a command, before it is read.
#[derive(Clone, Debug, Default)]
pub struct GivenImage {
    /// `{mime, name, data}`
    pub object: Map<String, Value>,
    /// What it takes of the server's memory for what clients send.
    pub share: Arc<Share>,
}

impl PartialEq for GivenImage {
    fn eq(&self, other: &Self) -> bool {
        self.object == other.object
    }
}

/// A command of a client that makes rollouts.
#[derive(Clone, Debug, PartialEq)]
pub enum RolloutCommand {
    /// Begins another project, whose rollouts begin with the image; without one, they begin with none.
    BeginProject(Box<ProjectSetup>, Option<GivenImage>),
    /// Ends the project; the session goes on.
    EndProject,
    Rewrite(Box<RewriteAsk>),
    Append(UserPrompt),
    /// Makes one clip, and single clips from then on. Without an image, they begin with the last one.
    MakeClip(Box<Clip>, Option<GivenImage>),
    /// Without a value, nothing changes, and the answer says what holds.
    SetEnhancing(Option<bool>),
    SetExtending(Option<bool>),
    SetLooping(Option<bool>),
    SetPaused(Option<bool>),
    /// Begins the rollout again.
    Reset,
    /// The same, and nothing holds it back any more.
    Restart,
    /// Without a value, the server's model rewrites.
    SetRewriteModel(Option<String>),
    SetRewriteTemperature(Option<f64>),
}
