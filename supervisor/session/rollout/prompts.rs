//! The client's own prompts, and those that a model writes to go on with the story.

use std::time::Duration;

use tokio::time::Instant;

use super::Rollouts;
use super::command::{Clip, ProjectSwitches, UserPrompt};
use super::event::{ResetReason, RolloutEvent};
use super::project::{Extension, Phase};
use super::rewriting::RewriteEnd;
use super::waiting::WaitingPrompt;
use crate::session::playlist::{PromptTask, PromptWork};
use crate::session::prompt_draft::PreparedDraft;

impl Rollouts {
    /// Takes a prompt of the client's for the next segment, if fewer than `limit` wait. It was checked.
    pub(crate) fn append(&mut self, prompt: UserPrompt, limit: usize) {
        let enhance = self.switches.enhancing;
        let Some(project) = self.running_project("add a prompt to") else {
            return;
        };
        if project.phase != Phase::Live {
            return self.refuse("no rollout runs; a rewrite of the prompts begins one");
        }
        let (given, id) = (project.waiting.len(), prompt.id.as_str());
        if given >= limit {
            return self.refuse(format!("{given} prompts wait already, which is the limit"));
        }
        if project.waiting.iter().any(|it| it.id() == id) {
            return self.refuse("a prompt with this `prompt_id` waits already");
        }
        let waiting = self.receive(prompt, enhance, given + 1);
        if let Some(project) = &mut self.project {
            project.waiting.push_back(waiting);
        }
        self.look_at_waiting();
    }

    /// Makes a rollout of one clip at the next boundary, and clips alone from then on. Returns whether it will.
    pub(crate) fn make_clip(&mut self, clip: Clip) -> bool {
        let Clip {
            prompt,
            enhance,
            preset,
        } = clip;
        if self.running_project("make a clip in").is_none() {
            return false;
        }
        let waiting = self.receive(prompt, enhance, 1);
        self.preset.take(preset);
        self.switches = ProjectSwitches {
            enhancing: enhance,
            ..ProjectSwitches::default()
        };
        if let Some(project) = &mut self.project {
            project.single_clip = true;
            project.seeds.clear();
            project.rewrite = None;
            project.clip = Some(waiting);
            project.reset = Some(ResetReason::SimpleGenerate);
        }
        self.paused = false;
        true
    }

    fn receive(&mut self, prompt: UserPrompt, enhance: bool, queue_depth: usize) -> WaitingPrompt {
        let enhance = enhance && self.can.write;
        let id = prompt.id.clone();
        self.tell(RolloutEvent::PromptReceived { id, queue_depth });
        if enhance {
            let id = prompt.id.clone();
            self.tell(RolloutEvent::PromptEnhancing { id });
        }
        WaitingPrompt::new(prompt, enhance)
    }

    /// Tells the client of prompts that are ready now.
    pub(super) fn look_at_waiting(&mut self) {
        let screens = self.can.filter.is_some();
        let waiting = self.project.iter_mut().flat_map(|it| &mut it.waiting);
        let ready: Vec<_> = waiting.filter_map(|it| it.look(screens)).collect();
        for prompt in ready {
            self.tell(RolloutEvent::PromptReady(prompt));
        }
    }

    /// Takes the tasks that are needed and not started yet.
    pub(crate) fn take_tasks(&mut self) -> Vec<PromptTask> {
        self.look_at_waiting();
        let mut tasks = Vec::new();
        let screens = self.can.filter.is_some();
        let mut id = self.last_task;
        if let Some(project) = &mut self.project {
            for waiting in &mut project.waiting {
                if let Some(prompt) = waiting.begin(id + 1, screens) {
                    id += 1;
                    let enhance = waiting.enhances();
                    let work = PromptWork::Prepare { prompt, enhance };
                    tasks.push(PromptTask { id, work });
                }
            }
            if let Some(rewrite) = &mut project.rewrite
                && let Some(request) = rewrite.request.take()
            {
                let work = PromptWork::Rollout {
                    request,
                    max_chars: self.max_chars,
                };
                let id = rewrite.task;
                tasks.push(PromptTask { id, work });
            }
        }
        self.last_task = id;
        tasks.extend(self.screen_seeds());
        if self.wants_extension() {
            let id = self.next_task();
            if let Some(project) = &mut self.project {
                project.extension = Extension::Pending(id, Instant::now());
                let story = project.story();
                let work = PromptWork::Extend { story };
                tasks.push(PromptTask { id, work });
            }
        }
        tasks
    }

    /// Returns the task that screens the seed prompts, if one has to begin.
    fn screen_seeds(&mut self) -> Option<PromptTask> {
        let filter = self.project.as_ref()?.unscreened(self.can.filter)?;
        let id = self.last_task + 1;
        let project = self.project.as_mut()?;
        if project.screening.is_some_and(|(_, by)| by == filter) {
            return None;
        }
        project.screening = Some((id, filter));
        self.last_task = id;
        let prompts = project.seeds.clone();
        let work = PromptWork::Screen { prompts };
        Some(PromptTask { id, work })
    }

    /// Takes whether the seed prompts may be used. If not, there are none, and the rollout waits for a rewrite.
    pub(crate) fn screened(&mut self, task: u64, may_be_used: bool) {
        let Some(project) = &mut self.project else {
            return;
        };
        let Some((_, filter)) = project.screening.take_if(|(id, _)| *id == task) else {
            return;
        };
        if may_be_used {
            project.screened_by = Some(filter);
            return;
        }
        project.seeds.clear();
        project.next_seed = 0;
        // Otherwise it goes on until it has no prompt left.
        if project.running.is_none() {
            self.complete();
        }
    }

    /// Returns whether an extension has to be asked for: while the segment before it runs, so that it is there in time.
    fn wants_extension(&self) -> bool {
        let Some(project) = self.project.as_ref().filter(|it| it.may_go_on()) else {
            return false;
        };
        let segments = project.made + u32::from(project.running.is_some());
        self.switches.extending
            && self.can.write
            && matches!(project.extension, Extension::None)
            && project.waiting.is_empty()
            && project.next_seed >= project.seeds.len()
            && (!self.switches.looping || project.seeds.is_empty())
            && segments < self.cap
            && (project.running.is_some() || !self.paused)
            && project.may_extend()
    }

    /// Returns whether the result of this task is still needed.
    pub(crate) fn awaits(&self, task: u64) -> bool {
        self.project.as_ref().is_some_and(|project| {
            project.waiting.iter().any(|it| it.awaits(task))
                || matches!(project.screening, Some((id, _)) if id == task)
                || matches!(&project.rewrite, Some(it) if it.task == task)
                || matches!(project.extension, Extension::Pending(id, _) if id == task)
        })
    }

    /// Takes the result of a task whose prompt may be used. `failure` says why no model has enhanced it.
    pub(crate) fn prepared(&mut self, task: u64, outcome: PreparedDraft, failure: Option<String>) {
        let screens = self.can.filter.is_some();
        let mut waiting = self.project.iter_mut().flat_map(|it| &mut it.waiting);
        let Some(waiting) = waiting.find(|it| it.awaits(task)) else {
            return;
        };
        waiting.settle(outcome);
        let Some(prompt) = waiting.look(screens) else {
            return;
        };
        if let Some(reason) = failure {
            let prompt = prompt.clone();
            self.tell(RolloutEvent::PromptFallback { prompt, reason });
        }
        self.tell(RolloutEvent::PromptReady(prompt));
    }

    /// Removes a prompt of the client's that must not be used, or is lost. Returns whether there was one.
    pub(crate) fn remove(&mut self, task: u64) -> bool {
        let Some(project) = &mut self.project else {
            return false;
        };
        let before = project.waiting.len();
        project.waiting.retain(|it| !it.awaits(task));
        let is_removed = project.waiting.len() != before;
        let has_nothing = project.waiting.is_empty() && project.running.is_none();
        if is_removed && has_nothing && project.single_clip && project.phase == Phase::Live {
            self.complete();
        }
        is_removed
    }

    /// Takes note that a task has ended without a result.
    pub(crate) fn lost(&mut self, task: u64) {
        const LOST: &str = "a prompt was lost in the server; try again";
        if self.remove(task) {
            return self.refuse(LOST);
        }
        let end = RewriteEnd::Blocked(LOST.to_owned());
        let is_rewrite = self.rewritten(task, end, Duration::ZERO);
        let is_screening = (self.project.as_ref())
            .is_some_and(|it| matches!(it.screening, Some((id, _)) if id == task));
        self.screened(task, false);
        if is_rewrite || is_screening {
            return self.refuse(LOST);
        }
        self.extended(task, Err(LOST.to_owned()));
    }

    /// Takes the extension, or why there is none.
    pub(crate) fn extended(&mut self, task: u64, result: Result<String, String>) {
        let Some(project) = &mut self.project else {
            return;
        };
        let Extension::Pending(id, since) = project.extension else {
            return;
        };
        if id != task {
            return;
        }
        match result {
            Ok(prompt) => project.extension = Extension::Ready(prompt),
            Err(reason) => {
                project.extension = Extension::Failed;
                let segment_idx = project.segment_idx + u32::from(project.running.is_some());
                let latency: Duration = since.elapsed();
                self.tell(RolloutEvent::ExtensionFailed {
                    segment_idx,
                    latency,
                    reason,
                });
            }
        }
    }
}
