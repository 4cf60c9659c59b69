//! The director of a session whose client asks for segments: a [`Playlist`], with the tasks that prepare its prompts.

use std::time::Duration;

use fastvideo_proto::adapter::Adapter;
use fastvideo_proto::checkpoint::{Checkpoint, CuratedPrompt};
use fastvideo_proto::ids::RequestId;
use fastvideo_proto::job::{ErrorCode, PromptSource};
use tokio::time::Instant;

use super::Config;
use super::command::RequestEdit;
use super::director::Director;
use super::event::{DroppedRequest, PromptWorked, SessionEvent};
use super::playlist::{NotAdded, PlannedSegment, Playlist, Switches};
use super::prompt_draft::PreparedDraft;
use super::prompt_tasks::{PromptTaskEnd, PromptTaskResult, PromptTasks};
use super::request::ValidRequest;
use crate::backoff::Backoff;
use crate::prompt::{GenerateError, PreparedPrompt, Prompts};

/// The first and the longest pause of the exponential backoff after auto-generated segments that failed.
const MIN_AUTO_PAUSE: Duration = Duration::from_secs(1);
const MAX_AUTO_PAUSE: Duration = Duration::from_secs(30);

/// Decides what a session generates whose client asks for segments.
#[derive(Debug)]
pub(super) struct RequestDirector {
    playlist: Playlist,
    tasks: PromptTasks,
    prompts: Prompts,
    /// The exponential backoff of auto-generated segments; `None` while the last one succeeded.
    backoff: Option<Box<Backoff>>,
    /// The time before which no segment is auto-generated, after one failed.
    paused_until: Option<Instant>,
}

impl RequestDirector {
    /// Creates the director of a session that has finished `produced` segments already and is complete after `cap`.
    pub(super) fn new(
        curated: Vec<String>,
        switches: Switches,
        prompts: Prompts,
        cap: u32,
        produced: u32,
    ) -> Self {
        let tasks = PromptTasks::new(prompts.clone());
        let playlist = Playlist::new(curated, switches, tasks.abilities(), cap, produced);
        Self::with(playlist, tasks, prompts)
    }

    fn with(playlist: Playlist, tasks: PromptTasks, prompts: Prompts) -> Self {
        Self {
            playlist,
            tasks,
            prompts,
            backoff: None,
            paused_until: None,
        }
    }

    /// Creates the director of a session that another server has written down, and that is complete after `cap` segments.
    pub(super) fn read(
        checkpoint: &Checkpoint,
        curated: Vec<CuratedPrompt>,
        prompts: Prompts,
        cap: u32,
    ) -> Self {
        let now = Instant::now();
        let tasks = PromptTasks::new(prompts.clone());
        let playlist = Playlist::read(checkpoint, curated, tasks.abilities(), cap, now);
        let pause = checkpoint.auto_pause_ms.map(Duration::from_millis);
        let mut director = Self::with(playlist, tasks, prompts);
        director.paused_until = pause.and_then(|pause| now.checked_add(pause));
        for rewrite in &checkpoint.rewrites {
            director.rewrite(rewrite.id.clone(), rewrite.prompt.clone(), rewrite.count);
        }
        director
    }

    /// Writes down what is to come, without the curated prompts.
    pub(super) fn write(&self, checkpoint: &mut Checkpoint, now: Instant) {
        self.playlist.write(checkpoint, now);
        let pause = self
            .paused_until
            .map(|until| until.saturating_duration_since(now));
        checkpoint.auto_pause_ms =
            pause.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        checkpoint.rewrites = self.tasks.rewrites().cloned().collect();
    }

    /// Returns a number that changes with the curated prompts.
    pub(super) fn curated_edition(&self) -> u64 {
        self.playlist.curated_edition()
    }

    pub(super) fn curated(&self) -> Vec<CuratedPrompt> {
        self.playlist.curated()
    }

    /// Takes note of what the server can do with prompts now, which a reload may have changed.
    fn follow_abilities(&mut self) {
        self.playlist.set_abilities(self.tasks.abilities());
    }

    fn prepared(
        &mut self,
        task: u64,
        prompt: String,
        prepared: PreparedPrompt,
    ) -> Option<SessionEvent> {
        let request = self.playlist.request_of(task);
        let (prepared, event) = match prepared {
            PreparedPrompt::AsWritten => (PreparedDraft::AsWritten, None),
            PreparedPrompt::Enhanced(answer) => (
                PreparedDraft::Enhanced(answer.content.clone()),
                Some(SessionEvent::PromptEnhanced {
                    request,
                    original_prompt: prompt,
                    answer: Box::new(answer),
                }),
            ),
            PreparedPrompt::Fallback(failure) => (
                PreparedDraft::NotEnhanced,
                Some(SessionEvent::PromptFallback {
                    request,
                    original_prompt: prompt,
                    reason: failure.to_string(),
                }),
            ),
        };
        self.playlist.prepared(task, prepared);
        event
    }

    fn extended(
        &mut self,
        task: u64,
        last: String,
        result: Result<crate::prompt::GeneratedPrompt, GenerateError>,
    ) -> SessionEvent {
        match result {
            Ok(answer) => {
                self.playlist.extended(task, Some(answer.content.clone()));
                SessionEvent::PromptExtended(Box::new(answer))
            }
            Err(GenerateError::Failed(failure)) => {
                self.playlist.extended(task, None);
                SessionEvent::PromptFallback {
                    request: None,
                    original_prompt: last,
                    reason: failure.to_string(),
                }
            }
            Err(GenerateError::Blocked(blocked)) => {
                self.playlist.blocked(task);
                self.pause_auto();
                SessionEvent::PromptBlocked {
                    request: None,
                    prompt: None,
                    source: None,
                    blocked,
                }
            }
        }
    }

    fn rewritten(
        &self,
        request: Option<RequestId>,
        seed_prompt: String,
        result: Result<crate::prompt::PromptAlternatives, GenerateError>,
    ) -> SessionEvent {
        match result {
            Ok(rewritten) => SessionEvent::PromptRewritten {
                request,
                seed_prompt,
                rewritten: Box::new(rewritten),
                loggable: self.prompts.logs_unscreened(),
            },
            Err(GenerateError::Failed(failure)) => SessionEvent::RewriteFailed {
                request,
                seed_prompt,
                reason: failure.to_string(),
            },
            Err(GenerateError::Blocked(blocked)) => SessionEvent::PromptBlocked {
                request,
                prompt: self.loggable(seed_prompt),
                source: None,
                blocked,
            },
        }
    }

    /// Returns the prompt if it may be logged: some logs must not contain prompts that are, or may still be, blocked.
    fn loggable(&self, prompt: String) -> Option<String> {
        self.prompts.logs_unscreened().then_some(prompt)
    }

    /// Adds a request.
    ///
    /// # Errors
    /// Returns an error when `limit` requests wait already, or one with the same id.
    pub(super) fn add(
        &mut self,
        id: Option<RequestId>,
        request: ValidRequest,
        received: Instant,
        limit: usize,
    ) -> Result<(), NotAdded> {
        self.playlist.add(id, request, received, limit)
    }

    /// Removes a waiting request. Returns where it came from, or `None` when no request with this id waits.
    pub(super) fn withdraw(&mut self, id: &RequestId) -> Option<PromptSource> {
        self.playlist.withdraw(id)
    }

    /// Changes a waiting request. Returns its place in the queue, or `None` when no request with this id waits.
    pub(super) fn edit(&mut self, id: &RequestId, edit: RequestEdit) -> Option<usize> {
        self.playlist.edit(id, edit)
    }

    /// Starts to write alternatives to a prompt. Returns false when too many prompts are being rewritten already.
    pub(super) fn rewrite(
        &mut self,
        request: Option<RequestId>,
        seed_prompt: String,
        count: u32,
    ) -> bool {
        self.tasks.rewrite(request, seed_prompt, count)
    }

    /// Sets the adapters that act from the next segment on.
    pub(super) fn set_adapters(&mut self, adapters: Vec<Adapter>) {
        self.playlist.set_adapters(adapters);
    }

    pub(super) fn set_curated(&mut self, prompts: Vec<String>) {
        self.playlist.set_curated(prompts);
    }

    /// Switches enhancement on or off. This has no effect without a prompt enhancer.
    pub(super) fn set_enhancing(&mut self, enhancing: bool) {
        self.playlist.set_enhancing(enhancing);
    }

    /// Switches auto-extension on or off. This has no effect without a prompt enhancer.
    pub(super) fn set_extending(&mut self, extending: bool) {
        self.playlist.set_extending(extending);
        self.resume_auto();
    }

    pub(super) fn set_looping(&mut self, looping: bool) {
        self.playlist.looping = looping;
        self.resume_auto();
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.playlist.paused = paused;
    }

    /// Pauses auto-generation, for longer after each failure.
    fn pause_auto(&mut self) {
        let new = || Box::new(Backoff::new(MIN_AUTO_PAUSE, MAX_AUTO_PAUSE));
        let pause = self.backoff.get_or_insert_with(new).next_pause();
        self.playlist.auto_paused = true;
        self.paused_until = Some(Instant::now() + pause);
    }

    fn resume_auto(&mut self) {
        self.playlist.auto_paused = false;
        self.paused_until = None;
    }
}

impl Director for RequestDirector {
    fn next(&mut self, config: &Config, alone: bool) -> Option<PlannedSegment> {
        self.follow_abilities();
        self.playlist.next(config, alone)
    }

    fn goes_on_alone(&self) -> bool {
        self.playlist.goes_on_alone()
    }

    fn prepare_prompts(&mut self) {
        self.follow_abilities();
        let playlist = &mut self.playlist;
        self.tasks.retain(|task| playlist.awaits(task));
        let room = (self.prompts.enhancer()).map_or(1, |enhancer| enhancer.max_parallel());
        for task in playlist.take_prompt_tasks(room) {
            self.tasks.start(task);
        }
    }

    fn tasks(&mut self) -> &mut PromptTasks {
        &mut self.tasks
    }

    fn worked(&self, end: &mut PromptTaskEnd) -> SessionEvent {
        let (request, prompt) = match &end.result {
            PromptTaskResult::Prepared {
                task,
                prompt,
                result: Ok(_),
            } => (self.playlist.request_of(*task), Some(prompt)),
            PromptTaskResult::Extended {
                result: Ok(answer), ..
            } => (None, Some(&answer.content)),
            _ => (None, None),
        };
        SessionEvent::PromptWorked(Box::new(PromptWorked {
            request,
            prompt: prompt.cloned(),
            spans: std::mem::take(&mut end.spans),
        }))
    }

    fn settle(&mut self, result: PromptTaskResult) -> Option<SessionEvent> {
        match result {
            PromptTaskResult::Prepared { task, .. } | PromptTaskResult::Extended { task, .. }
                if !self.playlist.awaits(task) =>
            {
                None
            }
            PromptTaskResult::Prepared {
                task,
                prompt,
                result: Ok(prepared),
            } => self.prepared(task, prompt, prepared),
            PromptTaskResult::Prepared {
                task,
                prompt,
                result: Err(blocked),
            } => {
                let request = self.playlist.request_of(task);
                let source = self.playlist.source_of(task);
                self.playlist.blocked(task);
                Some(SessionEvent::PromptBlocked {
                    request,
                    prompt: self.loggable(prompt),
                    source,
                    blocked,
                })
            }
            PromptTaskResult::Extended { task, last, result } => {
                Some(self.extended(task, last, result))
            }
            PromptTaskResult::Rewritten {
                request,
                seed_prompt,
                result,
            } => Some(self.rewritten(request, seed_prompt, result)),
            PromptTaskResult::RolloutWritten { .. } | PromptTaskResult::SeedsScreened { .. } => {
                None
            }
            PromptTaskResult::Lost { task } => {
                let request = task.and_then(|task| self.playlist.request_of(task));
                if let Some(task) = task {
                    self.playlist.blocked(task);
                }
                self.pause_auto();
                Some(SessionEvent::Error {
                    request,
                    code: ErrorCode::InternalError,
                    message: "a prompt was lost in the server; ask again".to_owned(),
                    retryable: true,
                })
            }
        }
    }

    fn take_waiting(&mut self) -> Vec<DroppedRequest> {
        self.playlist.take_waiting()
    }

    fn asked_since(&self) -> Option<Instant> {
        self.playlist.asked_since()
    }

    fn drop_adapters(&mut self, gone: &[String]) {
        self.playlist.drop_adapters(gone);
    }

    fn segment_finished(&mut self) {
        self.playlist.segment_finished();
        self.backoff = None;
    }

    fn segment_cancelled(&mut self) {
        self.playlist.segment_dropped();
    }

    fn segment_failed(&mut self, by_client: bool) {
        self.playlist.segment_dropped();
        if !by_client {
            self.pause_auto();
        }
    }

    fn alarm(&self) -> Option<Instant> {
        self.paused_until
    }

    fn clock_rang(&mut self, now: Instant) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.resume_auto();
        }
    }

    fn is_preparing(&self) -> bool {
        self.playlist.is_preparing()
    }

    fn is_paused_with_requests(&self) -> bool {
        self.playlist.paused && self.playlist.has_waiting()
    }

    fn is_complete(&self) -> bool {
        self.playlist.is_complete()
    }

    fn segment_idx(&self) -> u32 {
        self.playlist.segment_idx()
    }
}
