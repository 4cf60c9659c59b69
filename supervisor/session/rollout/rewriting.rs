//! Rewrites of the seed prompts.

use std::time::Duration;

use super::Rollouts;
use super::command::{PresetName, RewriteAsk, RewriteStyle};
use super::event::{ResetReason, Rewritten, RewrittenBy, RolloutEvent};
use super::project::{PendingRewrite, Phase, Project};
use crate::prompt::{RolloutPrompts, RolloutRequest};

/// Number of prompts of a rollout that is written anew.
const NEW_PROMPTS: usize = 6;
/// What a rollout is called that has no name.
const NO_ID: &str = "current_rollout";
const NO_LABEL: &str = "Current rollout";

/// The prompts that a rewrite has given.
#[derive(Debug)]
pub(crate) enum RewriteEnd {
    Written(RewrittenBy, Vec<String>),
    /// The safety filter has rejected what was asked for or written, for this reason, which is safe to show.
    Blocked(String),
}

impl Rollouts {
    /// Has the first seed prompts of a project written.
    pub(super) fn write_first(&mut self, prompt: String) {
        self.begin_rewrite(Vec::new(), prompt, RewriteStyle::default());
    }

    /// Has other seed prompts written.
    pub(crate) fn rewrite(&mut self, ask: RewriteAsk) {
        let Some(project) = self.running_project("rewrite") else {
            return;
        };
        if project.rewrite.is_some() {
            return self.refuse("the prompts are being rewritten already");
        }
        let window: Vec<String> = (ask.window.into_iter())
            .filter(|text| !text.trim().is_empty())
            .collect();
        let snapshot = match window.is_empty() {
            true => project.seeds.clone(),
            false => window,
        };
        let may_be_new = project.phase != Phase::Live && !ask.instruction.is_empty();
        if snapshot.is_empty() && !may_be_new {
            return self.refuse("there is nothing to rewrite");
        }
        self.begin_rewrite(snapshot, ask.instruction, ask.style);
    }

    fn begin_rewrite(&mut self, snapshot: Vec<String>, instruction: String, style: RewriteStyle) {
        let style = style.or(&self.style);
        let model = (style.model.clone()).unwrap_or_else(|| self.model.clone());
        let task = self.next_task();
        let is_new = snapshot.is_empty();
        let request = RolloutRequest {
            count: match is_new {
                true => NEW_PROMPTS,
                false => snapshot.len(),
            },
            current: (!is_new).then(|| RolloutPrompts {
                id: self.preset.id.clone().unwrap_or_else(|| NO_ID.to_owned()),
                label: match self.preset.label.as_str() {
                    "" => NO_LABEL.to_owned(),
                    label => label.to_owned(),
                },
                prompts: snapshot,
            }),
            instruction: instruction.clone(),
            model: style.model,
            temperature: style.temperature,
            system_prompt: match is_new {
                true => style.new_system_prompt,
                false => style.edit_system_prompt,
            },
            id_hint: self.preset.id.clone(),
            label_hint: Some(self.preset.label.clone()).filter(|label| !label.is_empty()),
        };
        if let Some(project) = &mut self.project {
            project.rewrite = Some(PendingRewrite {
                task,
                instruction,
                model: model.clone(),
                filter: self.can.filter,
                request: Some(Box::new(request)),
            });
            self.tell(RolloutEvent::RewriteStarted { model });
        }
    }

    /// Takes the end of a rewrite. Returns whether it was waited for.
    pub(crate) fn rewritten(&mut self, task: u64, end: RewriteEnd, latency: Duration) -> bool {
        let Some(project) = &mut self.project else {
            return false;
        };
        let Some(rewrite) = project.rewrite.take_if(|rewrite| rewrite.task == task) else {
            return false;
        };
        match end {
            RewriteEnd::Written(by, prompts) => self.adopt(prompts, rewrite, by),
            RewriteEnd::Blocked(reason) => self.rewrite_blocked(reason, rewrite.model, latency),
        }
        true
    }

    fn adopt(&mut self, prompts: Vec<String>, rewrite: PendingRewrite, by: RewrittenBy) {
        let Some(project) = &mut self.project else {
            return;
        };
        project.screened_by = rewrite.filter;
        project.screening = None;
        let reason = project.reason_of_rewrite(self.paused);
        project.seeds.clone_from(&prompts);
        project.made = 0;
        project.reset = reason.or(project.reset);
        if let RewrittenBy::Model(written) = &by {
            if let Some(id) = &written.id {
                self.preset.id = Some(id.clone());
            }
            if let Some(label) = &written.label {
                self.preset.label.clone_from(label);
            }
        }
        self.preset.name_unnamed();
        if reason == Some(ResetReason::InitialRewrite) && std::mem::take(&mut self.paused) {
            self.tell(RolloutEvent::PausedSet(false));
        }
        self.tell(RolloutEvent::Rewritten(Box::new(Rewritten {
            preset: self.preset.clone(),
            prompts,
            instruction: rewrite.instruction,
            by,
        })));
    }

    fn rewrite_blocked(&mut self, reason: String, model: String, latency: Duration) {
        let preset = self.preset.clone();
        self.tell(RolloutEvent::RewriteBlocked {
            preset,
            model,
            latency,
            reason,
        });
        if self
            .project
            .as_ref()
            .is_some_and(|project| project.phase == Phase::FirstRewrite)
        {
            // The client waits for a rollout that does not come.
            self.tell(RolloutEvent::Completed);
        }
    }

    /// Sets the model of later rewrites.
    pub(crate) fn set_rewrite_model(&mut self, model: String) {
        self.style.model = Some(model.clone());
        self.tell(RolloutEvent::RewriteModelSet(model));
    }

    /// Sets the temperature of later rewrites, which is `default` where it is absent.
    pub(crate) fn set_rewrite_temperature(&mut self, temperature: Option<f64>, default: f64) {
        self.style.temperature = temperature.map(|it| it.clamp(0.0, 2.0));
        let temperature = self.style.temperature.unwrap_or(default);
        self.tell(RolloutEvent::RewriteTemperatureSet(temperature));
    }
}

impl Project {
    /// Returns why the rollout begins anew after a rewrite; `None` where it goes on as it is.
    fn reason_of_rewrite(&self, paused: bool) -> Option<ResetReason> {
        match self.phase {
            Phase::FirstRewrite => Some(ResetReason::InitialRewrite),
            Phase::Waiting => Some(ResetReason::RewriteRollout),
            Phase::Live if self.is_dry => Some(ResetReason::RewriteRollout),
            Phase::Live if paused => None,
            Phase::Live => Some(ResetReason::RewriteDuringGeneration),
        }
    }
}

impl PresetName {
    /// Gives a rollout that has no name one.
    fn name_unnamed(&mut self) {
        self.id.get_or_insert_with(|| NO_ID.to_owned());
        if self.label.is_empty() {
            NO_LABEL.clone_into(&mut self.label);
        }
    }
}

impl RewriteStyle {
    /// Returns this style, with what it lacks from another one.
    fn or(self, other: &Self) -> Self {
        Self {
            model: self.model.or_else(|| other.model.clone()),
            temperature: self.temperature.or(other.temperature),
            edit_system_prompt: (self.edit_system_prompt)
                .or_else(|| other.edit_system_prompt.clone()),
            new_system_prompt: self
                .new_system_prompt
                .or_else(|| other.new_system_prompt.clone()),
        }
    }
}
