//! The director of a session that makes rollouts: the [`Rollouts`], with the tasks that prepare and write their prompts.

use std::time::Duration;

use fastvideo_proto::job::PromptSource;
use tokio::time::Instant;

use super::Config;
use super::director::Director;
use super::event::{DroppedRequest, PromptWorked, SessionEvent};
use super::playlist::PlannedSegment;
use super::prompt_draft::PreparedDraft;
use super::prompt_tasks::{PromptTaskEnd, PromptTaskResult, PromptTasks};
use super::rollout::command::{ProjectSetup, RewriteStyle, RolloutCommand};
use super::rollout::rewriting::RewriteEnd;
use super::rollout::{Rollouts, Said};
use crate::backoff::Backoff;
use crate::init_image::InitImage;
use crate::prompt::{Blocked, GenerateError, GeneratedPrompt, PreparedPrompt, Prompts};

/// The first and the longest pause before a segment that has failed is tried again.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Number of commands that wait for a worker.
const MAX_EARLY: usize = 16;
/// Number of times that one segment is tried again.
const MAX_RETRIES: u32 = 4;

/// Decides what a session generates that makes rollouts.
#[derive(Debug)]
pub(super) struct RolloutDirector {
    rollouts: Rollouts,
    tasks: PromptTasks,
    prompts: Prompts,
    /// What the client has asked for before there was a worker, with its images; `None` once there is one.
    early: Option<Vec<(RolloutCommand, Option<InitImage>)>>,
    /// What the rollouts begin with from the next one on: an image or none.
    next_image: Option<Option<InitImage>>,
    /// How often the running segment was tried again, and the next pause.
    retries: u32,
    backoff: Backoff,
}

impl RolloutDirector {
    /// Creates the director of a session whose projects wait for a rewrite after `cap` segments.
    pub(super) fn new(
        mut setup: ProjectSetup,
        prompts: Prompts,
        cap: u32,
        max_chars: usize,
    ) -> Self {
        choose_model(&mut setup.style, &prompts);
        let tasks = PromptTasks::new(prompts.clone());
        Self {
            rollouts: Rollouts::new(setup, tasks.abilities(), cap, max_chars),
            tasks,
            prompts,
            early: Some(Vec::new()),
            next_image: None,
            retries: 0,
            backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE),
        }
    }

    /// Obeys a client. The image was taken out of the command, and prompts were checked; at most `limit` wait.
    pub(super) fn obey(&mut self, command: RolloutCommand, image: Option<InitImage>, limit: usize) {
        if let Some(early) = &mut self.early {
            match early.len() < MAX_EARLY {
                true => early.push((command, image)),
                false => self.rollouts.refuse("wait for a GPU first"),
            }
            return;
        }
        self.follow_default_model();
        let rollouts = &mut self.rollouts;
        match command {
            RolloutCommand::BeginProject(mut setup, _) => {
                choose_model(&mut setup.style, &self.prompts);
                if rollouts.begin_another(*setup) {
                    self.next_image = Some(image);
                }
            }
            RolloutCommand::EndProject => rollouts.end_project(),
            RolloutCommand::Rewrite(mut ask) => {
                choose_model(&mut ask.style, &self.prompts);
                rollouts.rewrite(*ask);
            }
            RolloutCommand::Append(prompt) => rollouts.append(prompt, limit),
            RolloutCommand::MakeClip(clip, _) => {
                if rollouts.make_clip(*clip) && image.is_some() {
                    self.next_image = Some(image);
                }
            }
            RolloutCommand::SetEnhancing(on) => rollouts.set_enhancing(on),
            RolloutCommand::SetExtending(on) => rollouts.set_extending(on),
            RolloutCommand::SetLooping(on) => rollouts.set_looping(on),
            RolloutCommand::SetPaused(on) => rollouts.set_paused(on),
            RolloutCommand::Reset => rollouts.reset(),
            RolloutCommand::Restart => rollouts.restart(),
            RolloutCommand::SetRewriteModel(model) => {
                let model = self.prompts.rollout_model(model.as_deref());
                rollouts.set_rewrite_model(model);
            }
            RolloutCommand::SetRewriteTemperature(temperature) => {
                let default = self.prompts.system_prompts().rollout_temperature;
                rollouts.set_rewrite_temperature(temperature, default);
            }
        }
    }

    /// Takes what the rollouts begin with from now on, if it is something else than before.
    pub(super) fn take_next_image(&mut self) -> Option<Option<InitImage>> {
        self.next_image.take()
    }

    fn follow_abilities(&mut self) {
        self.rollouts.set_abilities(self.tasks.abilities());
    }

    fn follow_default_model(&mut self) {
        self.rollouts
            .set_default_model(self.prompts.rollout_model(None));
    }

    fn prepared(
        &mut self,
        task: u64,
        prompt: String,
        result: Result<PreparedPrompt, Blocked>,
    ) -> Option<SessionEvent> {
        let (draft, failure, event) = match result {
            Ok(PreparedPrompt::AsWritten) => (PreparedDraft::AsWritten, None, None),
            Ok(PreparedPrompt::Enhanced(answer)) => (
                PreparedDraft::Enhanced(answer.content.clone()),
                None,
                Some(SessionEvent::PromptEnhanced {
                    request: None,
                    original_prompt: prompt,
                    answer: Box::new(answer),
                }),
            ),
            Ok(PreparedPrompt::Fallback(failure)) => {
                let reason = failure.to_string();
                let event = SessionEvent::PromptFallback {
                    request: None,
                    original_prompt: prompt,
                    reason: reason.clone(),
                };
                (PreparedDraft::NotEnhanced, Some(reason), Some(event))
            }
            Err(blocked) => {
                self.rollouts.remove(task);
                let prompt = self.prompts.logs_unscreened().then_some(prompt);
                return Some(prompt_blocked(prompt, None, blocked));
            }
        };
        self.rollouts.prepared(task, draft, failure);
        event
    }

    fn extended(
        &mut self,
        task: u64,
        result: Result<GeneratedPrompt, GenerateError>,
    ) -> Option<SessionEvent> {
        match result {
            Ok(answer) => {
                self.rollouts.extended(task, Ok(answer.content.clone()));
                Some(SessionEvent::PromptExtended(Box::new(answer)))
            }
            Err(why) => {
                self.rollouts.extended(task, Err(why.to_string()));
                match why {
                    GenerateError::Blocked(blocked) => {
                        let source = Some(PromptSource::AutoExtension);
                        Some(prompt_blocked(None, source, blocked))
                    }
                    GenerateError::Failed(_) => None,
                }
            }
        }
    }
}

impl Director for RolloutDirector {
    fn next(&mut self, config: &Config, alone: bool) -> Option<PlannedSegment> {
        self.follow_abilities();
        let planned = self.rollouts.next(config, alone)?;
        self.retries = 0;
        self.backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        Some(planned)
    }

    fn goes_on_alone(&self) -> bool {
        self.rollouts.goes_on_alone()
    }

    fn bound(&mut self, limit: usize) {
        self.follow_default_model();
        self.rollouts.begin();
        for (command, image) in self.early.take().into_iter().flatten() {
            self.obey(command, image, limit);
            self.rollouts.at_boundary();
        }
    }

    fn at_boundary(&mut self) {
        self.rollouts.at_boundary();
    }

    fn take_said(&mut self) -> Option<Said> {
        self.rollouts.take_said()
    }

    fn is_running_in_vain(&self) -> bool {
        self.rollouts.is_running_in_vain()
    }

    fn prepare_prompts(&mut self) {
        self.follow_abilities();
        let rollouts = &mut self.rollouts;
        self.tasks.retain(|task| rollouts.awaits(task));
        for task in rollouts.take_tasks() {
            self.tasks.start(task);
        }
    }

    fn tasks(&mut self) -> &mut PromptTasks {
        &mut self.tasks
    }

    fn worked(&self, end: &mut PromptTaskEnd) -> SessionEvent {
        let prompt = match &end.result {
            PromptTaskResult::Prepared {
                prompt,
                result: Ok(_),
                ..
            } => Some(prompt.clone()),
            PromptTaskResult::Extended {
                result: Ok(answer), ..
            } => Some(answer.content.clone()),
            _ => None,
        };
        SessionEvent::PromptWorked(Box::new(PromptWorked {
            request: None,
            prompt,
            spans: std::mem::take(&mut end.spans),
        }))
    }

    fn settle(&mut self, result: PromptTaskResult) -> Option<SessionEvent> {
        match result {
            PromptTaskResult::Prepared { task, .. }
            | PromptTaskResult::Extended { task, .. }
            | PromptTaskResult::RolloutWritten { task, .. }
            | PromptTaskResult::SeedsScreened { task, .. }
                if !self.rollouts.awaits(task) =>
            {
                None
            }
            PromptTaskResult::Prepared {
                task,
                prompt,
                result,
            } => self.prepared(task, prompt, result),
            PromptTaskResult::Extended { task, result, .. } => self.extended(task, result),
            PromptTaskResult::RolloutWritten {
                task,
                result,
                latency,
            } => {
                let (end, blocked) = match result {
                    Ok((by, prompts)) => (RewriteEnd::Written(by, prompts), None),
                    Err(blocked) => (RewriteEnd::Blocked(blocked.to_string()), Some(blocked)),
                };
                self.rollouts.rewritten(task, end, latency);
                blocked.map(|blocked| prompt_blocked(None, None, blocked))
            }
            PromptTaskResult::SeedsScreened { task, result } => {
                self.rollouts.screened(task, result.is_ok());
                let blocked = result.err();
                blocked.map(|blocked| prompt_blocked(None, None, blocked))
            }
            PromptTaskResult::Rewritten { .. } => None,
            PromptTaskResult::Lost { task } => {
                if let Some(task) = task {
                    self.rollouts.lost(task);
                }
                None
            }
        }
    }

    fn take_waiting(&mut self) -> Vec<DroppedRequest> {
        Vec::new()
    }

    fn asked_since(&self) -> Option<Instant> {
        self.rollouts.asked_since()
    }

    fn drop_adapters(&mut self, _gone: &[String]) {}

    fn segment_finished(&mut self) {
        self.rollouts.segment_finished();
    }

    fn segment_cancelled(&mut self) {
        self.rollouts.segment_cancelled();
    }

    fn segment_failed(&mut self, _by_client: bool) {
        self.rollouts.segment_failed();
    }

    fn pause_before_retry(&mut self) -> Option<Duration> {
        if self.retries >= MAX_RETRIES || self.rollouts.is_running_in_vain() {
            return None;
        }
        self.retries += 1;
        Some(self.backoff.next_pause())
    }

    fn alarm(&self) -> Option<Instant> {
        None
    }

    fn clock_rang(&mut self, _now: Instant) {}

    fn is_preparing(&self) -> bool {
        self.rollouts.is_preparing()
    }

    fn is_paused_with_requests(&self) -> bool {
        false
    }

    fn is_complete(&self) -> bool {
        false
    }

    fn segment_idx(&self) -> u32 {
        self.rollouts.segment_idx()
    }
}

fn prompt_blocked(
    prompt: Option<String>,
    source: Option<PromptSource>,
    blocked: Blocked,
) -> SessionEvent {
    SessionEvent::PromptBlocked {
        request: None,
        prompt,
        source,
        blocked,
    }
}

/// Puts the model that will be asked in place of the one that a client wants.
fn choose_model(style: &mut RewriteStyle, prompts: &Prompts) {
    let wanted = style.model.take();
    style.model = wanted.map(|wanted| prompts.rollout_model(Some(&wanted)));
}
