//! Projects and their rollouts: which segment comes next, and what the client is told of it. It does no I/O.
//!
//! A project makes rollouts, one at a time. A rollout is a run of segments from nothing: from its seed prompts, and from
//! prompts that the client sends meanwhile. It is over when another one replaces it, or when it waits for a rewrite of the
//! seed prompts. `rollout_director` asks between two segments, and says what it hears from clients and models.

use std::collections::VecDeque;

use fastvideo_proto::job::PromptSource;
use tokio::time::Instant;

use super::Config;
use super::playlist::{PlannedSegment, PromptAbilities};
use super::request::ValidRequest;
use command::{PresetName, ProjectSetup, ProjectSwitches, RewriteStyle};
use event::{DroppedPrompts, PlannedPrompt, PromptOrigin, ResetReason, RolloutEvent, Started};
use project::{Extension, Phase, Project};
use waiting::WaitingPrompt;

pub mod command;
pub mod event;
mod project;
mod prompts;
pub(crate) mod rewriting;
mod waiting;

#[cfg(test)]
mod tests;

/// The rollouts of one session.
#[derive(Debug)]
pub(crate) struct Rollouts {
    /// Number of segments after which the rollouts of a project wait for a rewrite.
    cap: u32,
    can: PromptAbilities,
    /// The longest prompt, in characters.
    max_chars: usize,
    /// The model that rewrites unless the client names another one; empty where there is none.
    model: String,
    switches: ProjectSwitches,
    paused: bool,
    style: RewriteStyle,
    /// The last names that the client gave.
    preset: PresetName,
    /// What the session begins with once it has a worker.
    opening: Option<Box<ProjectSetup>>,
    /// The safety filter that has screened it.
    opened_with: Option<u64>,
    project: Option<Project>,
    said: VecDeque<Said>,
    /// The id of the last prompt task.
    last_task: u64,
}

/// What the session is to do, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    Tell(RolloutEvent),
    /// Forget the state: the next segment is the first one.
    BeginAnew,
}

/// What is chosen for the next segment.
enum Choice {
    Prompt(PlannedPrompt, Instant),
    /// The seed prompts begin again.
    Loop,
    /// Its prompt is on its way.
    Later,
    Nothing,
}

impl Rollouts {
    pub(crate) fn new(
        setup: ProjectSetup,
        can: PromptAbilities,
        cap: u32,
        max_chars: usize,
    ) -> Self {
        Self {
            cap,
            can,
            max_chars,
            model: String::new(),
            switches: setup.switches,
            paused: false,
            style: setup.style.clone(),
            preset: setup.preset.clone(),
            opening: Some(Box::new(setup)),
            opened_with: can.filter,
            project: None,
            said: VecDeque::new(),
            last_task: 0,
        }
    }

    /// Takes the next of what the session is to do.
    pub(crate) fn take_said(&mut self) -> Option<Said> {
        self.said.pop_front()
    }

    pub(super) fn tell(&mut self, event: RolloutEvent) {
        self.said.push_back(Said::Tell(event));
    }

    /// Begins the project of the opening: the session has a worker.
    pub(crate) fn begin(&mut self) {
        let Some(setup) = self.opening.take() else {
            return;
        };
        self.paused = setup.awaits_rewrite();
        self.tell(RolloutEvent::LoopSet(self.switches.looping));
        self.tell(RolloutEvent::PausedSet(self.paused));
        self.begin_project(*setup, true);
    }

    fn begin_project(&mut self, setup: ProjectSetup, is_opening: bool) {
        let awaits_rewrite = setup.awaits_rewrite();
        let prompt = setup.rollout_prompt.clone();
        // The opening's were screened before there was a session.
        let screened_by = self.opened_with.filter(|_| is_opening);
        self.project = Some(Project::new(setup, screened_by));
        if awaits_rewrite {
            self.write_first(prompt);
            return;
        }
        if !is_opening {
            return self.open_rollout(Some(ResetReason::ProjectInit));
        }
        self.open_rollout(None);
        if let Some(project) = &self.project {
            let prompts = project.seeds.clone();
            let preset = self.preset.clone();
            self.tell(RolloutEvent::SeedPrompts { preset, prompts });
        }
    }

    /// Begins another project, unless there is one. Returns whether it has.
    pub(crate) fn begin_another(&mut self, setup: ProjectSetup) -> bool {
        if !self.is_idle() {
            self.refuse("a project is running; end it first");
            return false;
        }
        self.preset.take(setup.preset.clone());
        self.switches = setup.switches;
        self.style = setup.style.clone();
        self.paused = setup.awaits_rewrite();
        self.begin_project(setup, false);
        true
    }

    fn is_idle(&self) -> bool {
        self.project.is_none() && self.opening.is_none()
    }

    /// Ends the project, at the next boundary where a segment runs.
    pub(crate) fn end_project(&mut self) {
        match &mut self.project {
            Some(project) => {
                project.is_ending = true;
                project.rewrite = None;
            }
            None => self.tell(RolloutEvent::Idle(DroppedPrompts::default())),
        }
    }

    /// Does what was put off until no segment runs.
    pub(crate) fn at_boundary(&mut self) {
        let Some(project) = &mut self.project else {
            return;
        };
        if project.is_ending {
            let dropped = project.drop_prompts();
            let was_open = project.is_open;
            self.project = None;
            self.paused = false;
            self.switches.looping = false;
            self.said.push_back(Said::BeginAnew);
            if was_open {
                self.tell(RolloutEvent::Completed);
            }
            self.tell(RolloutEvent::Idle(dropped));
        } else if let Some(reason) = project.reset.take() {
            self.open_rollout(Some(reason));
        } else if project.has_made(self.cap) {
            self.complete();
        }
    }

    /// Ends the rollout: it waits for a rewrite.
    fn complete(&mut self) {
        let Some(project) = &mut self.project else {
            return;
        };
        project.phase = Phase::Waiting;
        if std::mem::take(&mut project.is_open) {
            self.switches.looping = false;
            self.tell(RolloutEvent::Completed);
        }
    }

    /// Begins a rollout from nothing.
    fn open_rollout(&mut self, reason: Option<ResetReason>) {
        let Some(project) = &mut self.project else {
            return;
        };
        if reason != Some(ResetReason::Loop) {
            project.made = 0;
        }
        let dropped = project.begin_rollout();
        let seed_prompts = project.seeds.len();
        let loop_iteration = project.loop_iteration;
        let started = Started {
            preset: self.preset.clone(),
            seed_prompts,
            looping: self.switches.looping,
            loop_iteration,
            segment_cap: if project.single_clip { 0 } else { self.cap },
        };
        self.said.push_back(Said::BeginAnew);
        self.tell(RolloutEvent::Started(started));
        if let Some(reason) = reason {
            self.tell(RolloutEvent::Reset {
                reason,
                loop_iteration,
                seed_prompts,
                dropped,
            });
        }
        self.look_at_waiting();
    }

    /// Begins the rollout again at the next boundary.
    pub(crate) fn reset(&mut self) {
        match self.running_project("reset") {
            Some(project) if project.phase == Phase::FirstRewrite => {
                self.refuse("there are no seed prompts yet");
            }
            Some(project) => {
                project.reset = Some(ResetReason::ManualReset);
                let seed_prompts = project.seeds.len();
                self.tell(RolloutEvent::ResetPending { seed_prompts });
            }
            None => {}
        }
    }

    /// As [`Self::reset`], and lifts the pause.
    pub(crate) fn restart(&mut self) {
        match self.running_project("restart") {
            Some(project) if project.phase == Phase::FirstRewrite => {
                self.refuse("there are no seed prompts yet");
            }
            Some(project) => {
                project.reset = Some(ResetReason::CapRestart);
                let segment_cap = if project.single_clip { 0 } else { self.cap };
                self.paused = false;
                self.tell(RolloutEvent::Restarted { segment_cap });
            }
            None => {}
        }
    }

    /// Returns the project unless it is about to end; without one, says what is not possible.
    fn running_project(&mut self, what: &str) -> Option<&mut Project> {
        if self.project.as_ref().is_none_or(|it| it.is_ending) {
            self.refuse(format!("there is no project to {what}"));
            return None;
        }
        self.project.as_mut()
    }

    pub(super) fn refuse(&mut self, why: impl Into<String>) {
        self.tell(RolloutEvent::Refused(why.into()));
    }

    pub(crate) fn set_enhancing(&mut self, on: Option<bool>) {
        let on = *set(&mut self.switches.enhancing, on);
        self.tell(RolloutEvent::EnhancementSet(on));
    }

    /// Another try at an extension that has failed begins with this.
    pub(crate) fn set_extending(&mut self, on: Option<bool>) {
        let on = *set(&mut self.switches.extending, on);
        if let Some(project) = &mut self.project {
            project.extension.toggled(on);
        }
        self.tell(RolloutEvent::ExtensionSet(on));
    }

    pub(crate) fn set_looping(&mut self, on: Option<bool>) {
        let on = *set(&mut self.switches.looping, on);
        self.tell(RolloutEvent::LoopSet(on));
    }

    pub(crate) fn set_paused(&mut self, on: Option<bool>) {
        let on = *set(&mut self.paused, on);
        self.tell(RolloutEvent::PausedSet(on));
    }

    /// Takes note of the model that rewrites by default now, which a reload may have changed.
    pub(crate) fn set_default_model(&mut self, model: String) {
        self.model = model;
    }

    /// Takes note of what the server can do with prompts now, which a reload may have changed.
    pub(crate) fn set_abilities(&mut self, can: PromptAbilities) {
        let before = std::mem::replace(&mut self.can, can);
        if can.filter.is_some() && can.filter != before.filter {
            for waiting in self.project.iter_mut().flat_map(|p| &mut p.waiting) {
                waiting.prepare_again();
            }
        }
    }

    /// Takes the next segment; with `alone`, also one that nobody has asked for.
    pub(crate) fn next(&mut self, config: &Config, alone: bool) -> Option<PlannedSegment> {
        let (prompt, received) = loop {
            match self.choose(alone)? {
                Choice::Prompt(prompt, received) => break (prompt, received),
                Choice::Loop => self.open_rollout(Some(ResetReason::Loop)),
                Choice::Later => return None,
                Choice::Nothing => {
                    self.run_dry();
                    return None;
                }
            }
        };
        let project = self.project.as_mut()?;
        project.running = Some(prompt.text.clone());
        project.extension.used();
        if std::mem::take(&mut project.is_dry) {
            self.said.push_back(Said::Tell(RolloutEvent::Resumed {
                segment_idx: prompt.segment_idx,
                source: prompt.origin,
                prompt_id: prompt.prompt_id.clone(),
            }));
        }
        let source = prompt.origin.source();
        let request = ValidRequest::by_itself(prompt.text.clone(), source, config);
        self.tell(RolloutEvent::Planned(prompt));
        Some(PlannedSegment {
            id: None,
            request,
            original_prompt: None,
            received,
            by_client: false,
        })
    }

    fn run_dry(&mut self) {
        let Some(project) = &mut self.project else {
            return;
        };
        if !project.single_clip && !std::mem::replace(&mut project.is_dry, true) {
            let segment_idx = project.segment_idx;
            self.tell(RolloutEvent::Blocked { segment_idx });
        }
    }

    /// Chooses the next segment; `None` while none may begin.
    fn choose(&mut self, alone: bool) -> Option<Choice> {
        let (looping, extending) = (self.switches.looping, self.switches.extending);
        let can = self.can;
        let project = self.project.as_mut().filter(|it| it.may_go_on())?;
        let is_screened = project.unscreened(can.filter).is_none();
        if self.paused {
            return None;
        }
        let has_seed = project.next_seed < project.seeds.len();
        let seed_first = project.seed_first && has_seed;
        if !seed_first && let Some(waiting) = project.take_ready() {
            let received = waiting.received();
            return Some(Choice::Prompt(project.plan_waiting(waiting), received));
        }
        if has_seed {
            return Some(match alone && is_screened {
                true => Choice::Prompt(project.plan_seed(), Instant::now()),
                false => Choice::Later,
            });
        }
        if !project.waiting.is_empty() {
            return Some(Choice::Later);
        }
        if looping && !project.seeds.is_empty() && !project.single_clip {
            return Some(match alone && is_screened {
                true => Choice::Loop,
                false => Choice::Later,
            });
        }
        Some(match &project.extension {
            Extension::Ready(text) if extending && alone => {
                let text = text.clone();
                Choice::Prompt(project.plan_extension(text), Instant::now())
            }
            Extension::Ready(_) | Extension::Pending(..) if extending => Choice::Later,
            Extension::None if extending && can.write && project.may_extend() => Choice::Later,
            _ => Choice::Nothing,
        })
    }

    /// Returns whether the next segment is one that nobody has asked for, and its prompt is there.
    pub(crate) fn goes_on_alone(&self) -> bool {
        let Some(project) = self.project.as_ref().filter(|it| it.may_go_on()) else {
            return false;
        };
        let has_seed = project.next_seed < project.seeds.len();
        let loops = self.switches.looping && !project.seeds.is_empty() && !project.single_clip;
        let extends = self.switches.extending && matches!(project.extension, Extension::Ready(_));
        let is_screened = project.unscreened(self.can.filter).is_none();
        let has_prompt = ((has_seed || loops) && is_screened) || extends;
        !self.paused && project.waiting.is_empty() && has_prompt
    }

    pub(crate) fn segment_finished(&mut self) {
        if let Some(project) = &mut self.project {
            project.segment_finished();
        }
    }

    /// Records that the running segment was cancelled: what follows is another rollout, or the end of the project.
    pub(crate) fn segment_cancelled(&mut self) {
        if let Some(project) = &mut self.project {
            project.running = None;
        }
    }

    /// Records that the running segment is given up: the rollout waits for a rewrite.
    pub(crate) fn segment_failed(&mut self) {
        self.segment_cancelled();
        let is_replaced = |it: &Project| it.is_ending || it.reset.is_some();
        if !self.project.as_ref().is_some_and(is_replaced) {
            self.complete();
        }
    }

    /// Returns whether nobody wants the running segment any more.
    pub(crate) fn is_running_in_vain(&self) -> bool {
        let in_vain = |it: &Project| it.running.is_some() && (it.is_ending || it.reset.is_some());
        self.project.as_ref().is_some_and(in_vain)
    }

    /// Returns whether a model or the filter works on what the session needs to go on.
    pub(crate) fn is_preparing(&self) -> bool {
        self.project.as_ref().is_some_and(|project| {
            project.rewrite.is_some()
                || project.screening.is_some()
                || project.waiting.iter().any(WaitingPrompt::is_pending)
                || matches!(project.extension, Extension::Pending(..))
        })
    }

    /// Returns since when the client waits for the first of its prompts.
    pub(crate) fn asked_since(&self) -> Option<Instant> {
        let project = self.project.as_ref().filter(|_| !self.paused)?;
        project.waiting.front().map(WaitingPrompt::received)
    }

    /// Returns the index of the next segment of the rollout.
    pub(crate) fn segment_idx(&self) -> u32 {
        self.project.as_ref().map_or(0, |it| it.segment_idx)
    }

    fn next_task(&mut self) -> u64 {
        self.last_task += 1;
        self.last_task
    }
}

impl PromptOrigin {
    fn source(self) -> PromptSource {
        match self {
            Self::Seed => PromptSource::Curated,
            Self::User => PromptSource::User,
            Self::Enhanced => PromptSource::Enhanced,
            Self::Extension => PromptSource::AutoExtension,
        }
    }
}

fn set(switch: &mut bool, on: Option<bool>) -> &bool {
    *switch = on.unwrap_or(*switch);
    switch
}
