//! A project: its seed prompts, the prompts that wait, and where its rollout is.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::command::ProjectSetup;
use super::event::{DroppedPrompts, PlannedPrompt, PromptOrigin, ResetReason};
use super::waiting::WaitingPrompt;

/// The largest number of prompts that an extension is written from.
const MAX_STORY: usize = 8;

#[derive(Debug)]
pub(super) struct Project {
    pub(super) seeds: Vec<String>,
    /// The safety filter that has let the seed prompts pass, by its number.
    pub(super) screened_by: Option<u64>,
    /// The task that screens the seed prompts, and its filter.
    pub(super) screening: Option<(u64, u64)>,
    pub(super) next_seed: usize,
    /// Whether the first seed prompt goes before the client's prompts.
    pub(super) seed_first: bool,
    /// Whether a rollout has one segment.
    pub(super) single_clip: bool,
    pub(super) phase: Phase,
    /// Whether the client is shown a rollout that is not complete.
    pub(super) is_open: bool,
    pub(super) is_ending: bool,
    /// Why the rollout begins anew at the next boundary.
    pub(super) reset: Option<ResetReason>,
    pub(super) rewrite: Option<PendingRewrite>,
    /// The number of the rollout, from 1.
    pub(super) loop_iteration: u32,
    /// The index of the next segment of the rollout.
    pub(super) segment_idx: u32,
    /// Number of segments that count for the cap.
    pub(super) made: u32,
    /// The client's prompts, in order.
    pub(super) waiting: VecDeque<WaitingPrompt>,
    /// The prompt of the clip that the next rollout consists of.
    pub(super) clip: Option<WaitingPrompt>,
    /// Whether the client knows that there is nothing to make a segment from.
    pub(super) is_dry: bool,
    pub(super) extension: Extension,
    /// The prompts of the last finished segments, oldest first.
    pub(super) story: VecDeque<String>,
    /// The prompt of the running segment.
    pub(super) running: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There are no seed prompts yet: they are being written, or that was blocked.
    FirstRewrite,
    Live,
    /// The rollout is over, and waits for a rewrite.
    Waiting,
}

/// A rewrite that a task works on.
#[derive(Debug)]
pub(super) struct PendingRewrite {
    pub(super) task: u64,
    pub(super) instruction: String,
    /// What the client was told that rewrites.
    pub(super) model: String,
    /// The safety filter that screens what comes of it.
    pub(super) filter: Option<u64>,
    /// What the task was asked for, until it has begun.
    pub(super) request: Option<Box<crate::prompt::RolloutRequest>>,
}

/// The prompt that a model writes to go on with the story.
#[derive(Debug)]
pub(super) enum Extension {
    None,
    Pending(u64, Instant),
    Ready(String),
    /// None will be written before the client switches extensions on again.
    Failed,
}

impl Extension {
    /// Takes note of the client's switch.
    pub(super) fn toggled(&mut self, on: bool) {
        if !on || matches!(self, Self::Failed) {
            *self = Self::None;
        }
    }

    /// Takes note that a segment begins: what was written follows another one.
    pub(super) fn used(&mut self) {
        if !matches!(self, Self::Failed) {
            *self = Self::None;
        }
    }
}

impl Project {
    /// Creates a project whose seed prompts this safety filter has let pass.
    pub(super) fn new(setup: ProjectSetup, screened_by: Option<u64>) -> Self {
        let phase = match setup.awaits_rewrite() {
            true => Phase::FirstRewrite,
            false => Phase::Live,
        };
        Self {
            seeds: setup.seeds().to_vec(),
            screened_by,
            screening: None,
            next_seed: 0,
            seed_first: false,
            single_clip: setup.single_clip,
            phase,
            is_open: false,
            is_ending: false,
            reset: None,
            rewrite: None,
            loop_iteration: 0,
            segment_idx: 0,
            made: 0,
            waiting: VecDeque::new(),
            clip: None,
            is_dry: false,
            extension: Extension::None,
            story: VecDeque::new(),
            running: None,
        }
    }

    /// Begins a rollout. Returns how many prompts it has dropped.
    pub(super) fn begin_rollout(&mut self) -> DroppedPrompts {
        let dropped = self.drop_prompts();
        self.waiting.extend(self.clip.take());
        self.phase = Phase::Live;
        self.is_open = true;
        self.reset = None;
        self.loop_iteration += 1;
        self.segment_idx = 0;
        self.next_seed = 0;
        self.seed_first = true;
        self.is_dry = false;
        self.extension = Extension::None;
        self.story.clear();
        self.running = None;
        dropped
    }

    /// Drops the client's prompts.
    pub(super) fn drop_prompts(&mut self) -> DroppedPrompts {
        let ready = self.waiting.iter().filter(|it| it.is_ready()).count();
        let raw = self.waiting.len() - ready;
        self.waiting.clear();
        DroppedPrompts { raw, ready }
    }

    /// Returns whether another segment may begin, as far as the project is concerned.
    pub(super) fn may_go_on(&self) -> bool {
        self.phase == Phase::Live
            && !self.is_ending
            && self.reset.is_none()
            && self.rewrite.is_none()
    }

    /// Returns whether the open rollout has as many segments as it may.
    pub(super) fn has_made(&self, cap: u32) -> bool {
        self.is_open
            && self.phase == Phase::Live
            && match self.single_clip {
                true => self.segment_idx > 0,
                false => self.made >= cap,
            }
    }

    /// Returns the safety filter that has to screen the seed prompts before they are used, if any.
    pub(super) fn unscreened(&self, filter: Option<u64>) -> Option<u64> {
        filter.filter(|it| !self.seeds.is_empty() && self.screened_by != Some(*it))
    }

    /// Returns whether there is a story for a model to go on with.
    pub(super) fn may_extend(&self) -> bool {
        !self.single_clip && (self.running.is_some() || !self.story.is_empty())
    }

    /// Returns the prompts of the segments so far, the running one included.
    pub(super) fn story(&self) -> Vec<String> {
        self.story.iter().chain(&self.running).cloned().collect()
    }

    /// Removes and returns the first of the client's prompts that is ready.
    pub(super) fn take_ready(&mut self) -> Option<WaitingPrompt> {
        let at = self.waiting.iter().position(WaitingPrompt::is_ready)?;
        self.waiting.remove(at)
    }

    pub(super) fn plan_waiting(&mut self, waiting: WaitingPrompt) -> PlannedPrompt {
        let usable = waiting.into_usable();
        PlannedPrompt {
            prompt_id: Some(usable.id),
            fallback_used: usable.fallback_used,
            ..self.plan(usable.text, usable.origin)
        }
    }

    pub(super) fn plan_seed(&mut self) -> PlannedPrompt {
        let index = self.next_seed;
        self.next_seed += 1;
        self.seed_first = false;
        PlannedPrompt {
            seed_prompt_index: Some(index),
            ..self.plan(self.seeds[index].clone(), PromptOrigin::Seed)
        }
    }

    pub(super) fn plan_extension(&self, text: String) -> PlannedPrompt {
        self.plan(text, PromptOrigin::Extension)
    }

    fn plan(&self, text: String, origin: PromptOrigin) -> PlannedPrompt {
        PlannedPrompt {
            segment_idx: self.segment_idx,
            text,
            origin,
            prompt_id: None,
            fallback_used: false,
            seed_prompt_index: None,
            seed_prompts: self.seeds.len(),
            loop_iteration: self.loop_iteration,
        }
    }

    pub(super) fn segment_finished(&mut self) {
        self.segment_idx += 1;
        self.made = self.made.saturating_add(1);
        let Some(shown) = self.running.take() else {
            return;
        };
        if self.story.back() != Some(&shown) {
            self.story.push_back(shown);
        }
        if self.story.len() > MAX_STORY {
            self.story.pop_front();
        }
    }
}

impl ProjectSetup {
    /// Returns the prompts that are used as they are written.
    pub(in crate::session) fn seeds(&self) -> &[String] {
        match self.seed_prompts.is_empty() && self.single_clip && !self.rollout_prompt.is_empty() {
            true => std::slice::from_ref(&self.rollout_prompt),
            false => &self.seed_prompts,
        }
    }

    /// Returns whether the seed prompts have to be written first.
    pub(super) fn awaits_rewrite(&self) -> bool {
        !self.single_clip && self.seed_prompts.is_empty() && !self.rollout_prompt.is_empty()
    }
}
