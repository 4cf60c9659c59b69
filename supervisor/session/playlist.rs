//! The requests and prompts that a session generates segments from, and which of them have to be prepared first. It
//! does no I/O and looks at no clock: [`super::director`] asks it when the session is free.

use std::collections::VecDeque;

use fastvideo_proto::adapter::Adapter;
use fastvideo_proto::ids::RequestId;
use fastvideo_proto::job::PromptSource;
use tokio::time::Instant;

use super::Config;
use super::command::RequestEdit;
use super::event::DroppedRequest;
use super::prompt_draft::{PreparedDraft, PromptDraft, PromptText};
use super::request::ValidRequest;
use crate::prompt::RolloutRequest;

mod checkpoint;

/// The largest number of prompts that an extension is written from.
const MAX_STORY: usize = 8;

/// The requests that wait, the curated prompts, and the switches between them.
#[derive(Debug)]
pub(crate) struct Playlist {
    waiting: VecDeque<WaitingRequest>,
    curated: Vec<PromptDraft>,
    /// Counts the changes of the curated prompts.
    curated_edition: u64,
    next_curated: usize,
    pub(crate) looping: bool,
    pub(crate) paused: bool,
    /// Whether auto-generation is paused because an auto-generated segment failed.
    pub(crate) auto_paused: bool,
    enhancing: bool,
    extending: bool,
    can: PromptAbilities,
    /// The prompts of the last finished segments, oldest first.
    story: VecDeque<String>,
    /// The prompt of the running segment.
    running: Option<String>,
    /// The adapters that act on the next segment, unless its request names others.
    adapters: Vec<Adapter>,
    extension: Extension,
    /// Number of segments after which the session is complete.
    cap: u32,
    produced: u32,
    /// The id of the next prompt task.
    next_task: u64,
}

/// The client's switches at the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Switches {
    pub(crate) looping: bool,
    pub(crate) enhancing: bool,
    pub(crate) extending: bool,
}

/// What the server can do with prompts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PromptAbilities {
    /// Whether an enhancer enhances and extends prompts.
    pub(crate) write: bool,
    /// The safety filter that screens every prompt before it is used, by its number.
    pub(crate) filter: Option<u64>,
}

/// The next segment of a session.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlannedSegment {
    /// The client's name for the request.
    pub(crate) id: Option<RequestId>,
    pub(crate) request: ValidRequest,
    /// The prompt before it was enhanced; absent when the text is the same.
    pub(crate) original_prompt: Option<String>,
    pub(crate) received: Instant,
    /// Whether the client has requested the segment; otherwise it was auto-generated.
    pub(crate) by_client: bool,
}

/// A client's request in the queue. Its prompt may be pending.
#[derive(Debug)]
struct WaitingRequest {
    id: Option<RequestId>,
    request: ValidRequest,
    received: Instant,
    draft: PromptDraft,
    /// The enhancement switch at the time of the request.
    enhance: bool,
}

/// Why a request is not added to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAdded {
    #[error("{0} requests wait already, which is the limit")]
    Full(usize),
    #[error("a request with this `request_id` waits already")]
    SameId,
}

/// The extension: the prompt that a language model writes to follow the prompts so far.
#[derive(Debug)]
enum Extension {
    None,
    Pending(u64),
    Ready(String),
}

/// A task that prepares or writes a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PromptTask {
    pub(crate) id: u64,
    pub(crate) work: PromptWork,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PromptWork {
    /// Screens a prompt, and enhances it when `enhance` is set.
    Prepare { prompt: String, enhance: bool },
    /// Writes the prompt that follows these, which are in order, oldest first.
    Extend { story: Vec<String> },
    /// Screens the seed prompts of a rollout.
    Screen { prompts: Vec<String> },
    /// Writes the seed prompts of a rollout, or other versions of them, none longer than `max_chars` characters.
    Rollout {
        request: Box<RolloutRequest>,
        max_chars: usize,
    },
}

impl Playlist {
    /// Drops adapters that are not there any more.
    pub(crate) fn drop_adapters(&mut self, gone: &[String]) {
        self.adapters
            .retain(|adapter| !gone.contains(&adapter.name));
    }

    /// Sets the adapters that act from the next segment on.
    pub(crate) fn set_adapters(&mut self, adapters: Vec<Adapter>) {
        self.adapters = adapters;
    }

    /// Creates the playlist of a session that has finished `produced` segments already and is complete after `cap`.
    pub(crate) fn new(
        curated: Vec<String>,
        switches: Switches,
        can: PromptAbilities,
        cap: u32,
        produced: u32,
    ) -> Self {
        Self {
            waiting: VecDeque::new(),
            adapters: Vec::new(),
            curated: curated.into_iter().map(PromptDraft::new).collect(),
            curated_edition: 0,
            next_curated: 0,
            looping: switches.looping,
            paused: false,
            auto_paused: false,
            enhancing: switches.enhancing && can.write,
            extending: switches.extending && can.write,
            can,
            story: VecDeque::new(),
            running: None,
            extension: Extension::None,
            cap,
            produced,
            next_task: 0,
        }
    }

    /// Adds a request to the queue.
    ///
    /// # Errors
    /// Returns an error when `limit` requests wait already, or one with the same id.
    pub(crate) fn add(
        &mut self,
        id: Option<RequestId>,
        request: ValidRequest,
        received: Instant,
        limit: usize,
    ) -> Result<(), NotAdded> {
        if self.waiting.len() >= limit {
            return Err(NotAdded::Full(limit));
        }
        if id.is_some() && self.waiting.iter().any(|waiting| waiting.id == id) {
            return Err(NotAdded::SameId);
        }
        self.waiting.push_back(WaitingRequest {
            id,
            draft: PromptDraft::new(request.prompt.clone()),
            enhance: self.enhancing && !request.is_written_by_model(),
            request,
            received,
        });
        Ok(())
    }

    /// Removes and returns all waiting requests.
    pub(crate) fn take_waiting(&mut self) -> Vec<DroppedRequest> {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let dropped = waiting.map(|waiting| DroppedRequest {
            request: waiting.id,
            prompt: waiting.request.prompt,
            source: waiting.request.source,
        });
        dropped.collect()
    }

    /// Removes a waiting request from the queue. Returns where it came from, or `None` when no request with this id waits.
    pub(crate) fn withdraw(&mut self, id: &RequestId) -> Option<PromptSource> {
        let place = self.place_of(id)?;
        let withdrawn = self.waiting.remove(place)?;
        Some(withdrawn.request.source)
    }

    /// Returns since when the first of the waiting requests has been asked for; `None` while nothing is to run.
    pub(crate) fn asked_since(&self) -> Option<Instant> {
        let first = self.waiting.front().filter(|_| !self.paused)?;
        Some(first.received)
    }

    /// Changes a waiting request; a new prompt is prepared anew. Returns the request's place in the queue, or `None`
    /// when no request with this id waits.
    pub(crate) fn edit(&mut self, id: &RequestId, edit: RequestEdit) -> Option<usize> {
        let place = self.place_of(id)?;
        let mut edited = self.waiting.remove(place)?;
        if let Some(prompt) = edit.prompt {
            edited.draft = PromptDraft::new(prompt.clone());
            edited.enhance = self.enhancing && !edited.request.is_written_by_model();
            edited.request.prompt = prompt;
        }
        let place = edit.position.unwrap_or(place).min(self.waiting.len());
        self.waiting.insert(place, edited);
        Some(place)
    }

    fn place_of(&self, id: &RequestId) -> Option<usize> {
        self.waiting
            .iter()
            .position(|waiting| waiting.id.as_ref() == Some(id))
    }

    /// Returns whether requests wait.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns the id of the request whose prompt this task prepares.
    pub(crate) fn request_of(&self, task: u64) -> Option<RequestId> {
        self.awaiting(task)?.id.clone()
    }

    /// Returns where the request came from whose prompt this task prepares.
    pub(crate) fn source_of(&self, task: u64) -> Option<PromptSource> {
        Some(self.awaiting(task)?.request.source)
    }

    fn awaiting(&self, task: u64) -> Option<&WaitingRequest> {
        let mut waiting = self.waiting.iter();
        waiting.find(|waiting| waiting.draft.awaits(task))
    }

    /// Replaces the curated prompts; the next one is the first of them.
    pub(crate) fn set_curated(&mut self, prompts: Vec<String>) {
        self.curated = prompts.into_iter().map(PromptDraft::new).collect();
        self.curated_edition += 1;
        self.next_curated = 0;
    }

    /// Follows what the server can do now. What it cannot do any more is switched off, and what another filter has let pass
    /// is prepared once more.
    pub(crate) fn set_abilities(&mut self, can: PromptAbilities) {
        let before = std::mem::replace(&mut self.can, can);
        if can.filter.is_some() && can.filter != before.filter {
            self.prepare_again();
        }
        if !can.write {
            self.enhancing = false;
            self.set_extending(false);
            for waiting in &mut self.waiting {
                waiting.enhance = false;
            }
        }
    }

    fn prepare_again(&mut self) {
        let waiting = self.waiting.iter_mut().map(|waiting| &mut waiting.draft);
        (waiting.chain(&mut self.curated)).for_each(PromptDraft::forget);
        self.curated_edition += 1;
        self.extension = Extension::None;
    }

    /// Switches enhancement on or off, from the next prompt on. It stays off without an enhancer.
    pub(crate) fn set_enhancing(&mut self, enhancing: bool) {
        self.enhancing = enhancing && self.can.write;
        if self.enhancing {
            self.curated_edition += 1;
            self.curated.iter_mut().for_each(PromptDraft::try_again);
        }
    }

    /// Switches auto-extension on or off. It stays off without an enhancer.
    pub(crate) fn set_extending(&mut self, extending: bool) {
        self.extending = extending && self.can.write;
        if !self.extending {
            self.extension = Extension::None;
        }
    }

    /// Takes the next segment: a request in order of arrival, else, with `alone`, the next curated prompt if looping is
    /// on, else the extension. Returns `None` while the prompt whose turn it is is pending.
    pub(crate) fn next(&mut self, config: &Config, alone: bool) -> Option<PlannedSegment> {
        if self.paused || self.is_complete() {
            return None;
        }
        let planned = match self.waiting.front() {
            Some(_) => self.next_request(),
            None if self.auto_paused || !alone => None,
            None if self.loops() => self.next_curated(config),
            None => self.next_extension(config),
        }?;
        let mut planned = planned;
        match &planned.request.adapters {
            Some(adapters) => self.adapters.clone_from(adapters),
            None => planned.request.adapters = Some(self.adapters.clone()),
        }
        self.running = Some(planned.request.prompt.clone());
        self.extension = Extension::None;
        Some(planned)
    }

    /// Returns whether the next segment is one that nobody has asked for, and its prompt is there.
    pub(crate) fn goes_on_alone(&self) -> bool {
        let may = !self.paused && !self.is_complete() && !self.auto_paused;
        let has_prompt = self.loops() || matches!(self.extension, Extension::Ready(_));
        may && self.waiting.is_empty() && has_prompt
    }

    fn next_request(&mut self) -> Option<PlannedSegment> {
        let first = self.waiting.front()?;
        let PromptText { prompt, original } = first.draft.text(first.enhance, self.screens())?;
        let first = self.waiting.pop_front()?;
        Some(PlannedSegment {
            id: first.id,
            request: ValidRequest {
                prompt,
                ..first.request
            },
            original_prompt: original,
            received: first.received,
            by_client: true,
        })
    }

    fn next_curated(&mut self, config: &Config) -> Option<PlannedSegment> {
        let draft = &self.curated[self.next_curated % self.curated.len()];
        let PromptText { prompt, original } = draft.text(self.enhancing, self.screens())?;
        self.next_curated = (self.next_curated + 1) % self.curated.len();
        Some(PlannedSegment {
            id: None,
            request: ValidRequest::curated(prompt, config),
            original_prompt: original,
            received: Instant::now(),
            by_client: false,
        })
    }

    fn next_extension(&mut self, config: &Config) -> Option<PlannedSegment> {
        match std::mem::replace(&mut self.extension, Extension::None) {
            Extension::Ready(prompt) if self.extending => Some(PlannedSegment {
                id: None,
                request: ValidRequest::extension(prompt, config),
                original_prompt: None,
                received: Instant::now(),
                by_client: false,
            }),
            other => {
                self.extension = other;
                None
            }
        }
    }

    fn screens(&self) -> bool {
        self.can.filter.is_some()
    }

    /// Returns whether looping is on and there are curated prompts. Otherwise auto-extension goes on.
    fn loops(&self) -> bool {
        self.looping && !self.curated.is_empty()
    }

    /// Takes the tasks that are needed and not started yet: for prompts of requests, for up to `room` curated prompts
    /// at a time from the one whose turn is next, and for the extension of the running segment.
    pub(crate) fn take_prompt_tasks(&mut self, room: usize) -> Vec<PromptTask> {
        let mut tasks = Vec::new();
        let can = self.can;
        for waiting in &mut self.waiting {
            let enhance = waiting.enhance;
            if waiting.draft.needs_work(enhance, can.filter.is_some()) {
                tasks.push(prepare(&mut self.next_task, &mut waiting.draft, enhance));
            }
        }
        let busy = self.curated.iter().filter(|d| d.is_pending()).count();
        let enhance = self.enhancing;
        let (passed, coming) = self.curated.split_at_mut(self.next_curated);
        let needs = |draft: &&mut PromptDraft| draft.needs_work(enhance, can.filter.is_some());
        for draft in coming
            .iter_mut()
            .chain(passed)
            .filter(needs)
            .take(room.saturating_sub(busy))
        {
            tasks.push(prepare(&mut self.next_task, draft, enhance));
        }
        if self.wants_extension() {
            let id = number(&mut self.next_task);
            self.extension = Extension::Pending(id);
            tasks.push(PromptTask {
                id,
                work: PromptWork::Extend {
                    story: self.story.iter().chain(&self.running).cloned().collect(),
                },
            });
        }
        tasks
    }

    /// Returns whether an extension has to be asked for. This is done while the segment before it runs, so that the
    /// extension is there in time.
    fn wants_extension(&self) -> bool {
        let segments = self.produced + u32::from(self.running.is_some());
        self.extending
            && matches!(self.extension, Extension::None)
            && self.waiting.is_empty()
            && !self.loops()
            && !self.auto_paused
            && segments < self.cap
            && (self.running.is_some() || !self.paused && !self.story.is_empty())
    }

    /// Returns whether the result of this task is still needed.
    pub(crate) fn awaits(&self, task: u64) -> bool {
        matches!(self.extension, Extension::Pending(id) if id == task)
            || self.waiting.iter().any(|w| w.draft.awaits(task))
            || self.curated.iter().any(|draft| draft.awaits(task))
    }

    /// Returns whether the prompt of the next segment is pending.
    pub(crate) fn is_preparing(&self) -> bool {
        match self.waiting.front() {
            Some(first) => first.draft.is_pending(),
            None if self.loops() => {
                self.curated[self.next_curated % self.curated.len()].is_pending()
            }
            None => matches!(self.extension, Extension::Pending(_)),
        }
    }

    /// Takes the result of a task whose prompt may be used.
    pub(crate) fn prepared(&mut self, task: u64, outcome: PreparedDraft) {
        self.curated_edition += 1;
        let waiting = self.waiting.iter_mut().map(|waiting| &mut waiting.draft);
        let mut drafts = waiting.chain(&mut self.curated);
        if let Some(draft) = drafts.find(|draft| draft.awaits(task)) {
            draft.settle(outcome);
        }
    }

    /// Removes a prompt that must not be used. Another extension is asked for, unless auto-generation is paused.
    pub(crate) fn blocked(&mut self, task: u64) {
        self.waiting.retain(|waiting| !waiting.draft.awaits(task));
        if let Some(at) = self.curated.iter().position(|d| d.awaits(task)) {
            self.remove_curated(at);
        }
        if matches!(self.extension, Extension::Pending(id) if id == task) {
            self.extension = Extension::None;
        }
    }

    fn remove_curated(&mut self, at: usize) {
        self.curated.remove(at);
        self.curated_edition += 1;
        if at < self.next_curated {
            self.next_curated -= 1;
        }
        if self.next_curated >= self.curated.len() {
            self.next_curated = 0;
        }
    }

    /// Takes the extension. Without one, the last prompt is used again.
    pub(crate) fn extended(&mut self, task: u64, prompt: Option<String>) {
        if !matches!(self.extension, Extension::Pending(id) if id == task) {
            return;
        }
        let last = || self.running.as_ref().or(self.story.back()).cloned();
        self.extension = match prompt.or_else(last) {
            Some(prompt) => Extension::Ready(prompt),
            None => Extension::None,
        };
    }

    /// Records that the running segment is finished.
    pub(crate) fn segment_finished(&mut self) {
        self.produced += 1;
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

    /// Records that the running segment was cancelled or has failed: no extension follows it.
    pub(crate) fn segment_dropped(&mut self) {
        self.running = None;
        self.extension = Extension::None;
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.produced >= self.cap
    }

    /// Returns the index of the next segment, which is the number of finished ones.
    pub(crate) fn segment_idx(&self) -> u32 {
        self.produced
    }
}

fn prepare(next_task: &mut u64, draft: &mut PromptDraft, enhance: bool) -> PromptTask {
    let id = number(next_task);
    PromptTask {
        id,
        work: PromptWork::Prepare {
            prompt: draft.begin(id),
            enhance,
        },
    }
}

fn number(next_task: &mut u64) -> u64 {
    *next_task += 1;
    *next_task
}

#[cfg(test)]
mod tests;
