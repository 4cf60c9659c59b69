//! A client's prompt on its way to a segment.

use std::time::Duration;

use tokio::time::Instant;

use super::command::UserPrompt;
use super::event::{PromptOrigin, ReadyPrompt};
use crate::session::prompt_draft::{PreparedDraft, PromptDraft, PromptText};

#[derive(Debug)]
pub(super) struct WaitingPrompt {
    prompt: UserPrompt,
    draft: PromptDraft,
    enhance: bool,
    received: Instant,
    state: WaitingState,
}

#[derive(Debug)]
enum WaitingState {
    /// It has to be screened or enhanced.
    Raw,
    Ready {
        text: String,
        origin: PromptOrigin,
    },
}

/// A prompt that can be used.
#[derive(Debug)]
pub(super) struct UsablePrompt {
    pub(super) id: String,
    pub(super) text: String,
    pub(super) origin: PromptOrigin,
    /// Whether no model has enhanced it although one was to.
    pub(super) fallback_used: bool,
}

impl WaitingPrompt {
    pub(super) fn new(prompt: UserPrompt, enhance: bool) -> Self {
        Self {
            draft: PromptDraft::new(prompt.text.clone()),
            prompt,
            enhance,
            received: Instant::now(),
            state: WaitingState::Raw,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.prompt.id
    }

    pub(super) fn received(&self) -> Instant {
        self.received
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, WaitingState::Ready { .. })
    }

    pub(super) fn enhances(&self) -> bool {
        self.enhance
    }

    pub(super) fn is_pending(&self) -> bool {
        self.draft.is_pending()
    }

    pub(super) fn awaits(&self, task: u64) -> bool {
        self.draft.awaits(task)
    }

    /// Makes the prompt ready, if it needs no more work. Returns what the client is told, the first time.
    pub(super) fn look(&mut self, screens: bool) -> Option<ReadyPrompt> {
        if self.is_ready() {
            return None;
        }
        let PromptText { prompt, original } = self.draft.text(self.enhance, screens)?;
        let origin = match original {
            Some(_) => PromptOrigin::Enhanced,
            None => PromptOrigin::User,
        };
        self.state = WaitingState::Ready {
            text: prompt.clone(),
            origin,
        };
        Some(ReadyPrompt {
            id: self.prompt.id.clone(),
            text: prompt,
            origin,
            latency: self.latency(),
        })
    }

    fn latency(&self) -> Duration {
        self.received.elapsed()
    }

    /// Returns what a task has to work on, if the prompt needs one.
    pub(super) fn begin(&mut self, task: u64, screens: bool) -> Option<String> {
        let needs_work = !self.is_ready() && self.draft.needs_work(self.enhance, screens);
        needs_work.then(|| self.draft.begin(task))
    }

    pub(super) fn settle(&mut self, outcome: PreparedDraft) {
        self.draft.settle(outcome);
    }

    /// Forgets how the prompt was prepared.
    pub(super) fn prepare_again(&mut self) {
        self.draft.forget();
        self.state = WaitingState::Raw;
    }

    /// Returns the prompt to use, once it is ready.
    pub(super) fn into_usable(self) -> UsablePrompt {
        let (text, origin) = match self.state {
            WaitingState::Ready { text, origin } => (text, origin),
            WaitingState::Raw => (self.prompt.text, PromptOrigin::User),
        };
        UsablePrompt {
            id: self.prompt.id,
            fallback_used: self.enhance && origin == PromptOrigin::User,
            text,
            origin,
        }
    }
}
