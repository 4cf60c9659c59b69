//! Writes a playlist down for another server, and reads it.

use std::time::Duration;

use fastvideo_proto::checkpoint::{self, Ask, Checkpoint, CuratedPrompt};
use tokio::time::Instant;

use super::{Extension, PlannedSegment, Playlist, PromptAbilities, WaitingRequest};
use crate::session::prompt_draft::PromptDraft;
use crate::session::request::ValidRequest;

impl Playlist {
    /// Writes down what is asked for and what follows, without the curated prompts.
    pub(crate) fn write(&self, checkpoint: &mut Checkpoint, now: Instant) {
        checkpoint.segments = self.produced;
        checkpoint.switches = checkpoint::Switches {
            looping: self.looping,
            enhancing: self.enhancing,
            extending: self.extending,
            paused: self.paused,
        };
        checkpoint.adapters.clone_from(&self.adapters);
        checkpoint.next_curated = self.next_curated;
        checkpoint.waiting = self
            .waiting
            .iter()
            .map(|waiting| waiting.write(now))
            .collect();
        checkpoint.story = self.story.iter().cloned().collect();
        checkpoint.extension = match &self.extension {
            Extension::Ready(prompt) => Some(prompt.clone()),
            Extension::None | Extension::Pending(_) => None,
        };
    }

    /// Returns a number that changes with the curated prompts.
    pub(crate) fn curated_edition(&self) -> u64 {
        self.curated_edition
    }

    pub(crate) fn curated(&self) -> Vec<CuratedPrompt> {
        self.curated.iter().map(PromptDraft::write).collect()
    }

    /// Reads a playlist that was written down. Tasks that ran there are started again.
    pub(crate) fn read(
        checkpoint: &Checkpoint,
        curated: Vec<CuratedPrompt>,
        can: PromptAbilities,
        cap: u32,
        now: Instant,
    ) -> Self {
        let switches = super::Switches {
            looping: checkpoint.switches.looping,
            enhancing: checkpoint.switches.enhancing,
            extending: checkpoint.switches.extending,
        };
        let waiting = checkpoint.waiting.iter();
        let curated: Vec<_> = curated.into_iter().map(PromptDraft::read).collect();
        let next_curated = checkpoint.next_curated;
        Self {
            waiting: waiting
                .map(|waiting| WaitingRequest::read(waiting, now))
                .collect(),
            next_curated: if next_curated < curated.len() {
                next_curated
            } else {
                0
            },
            curated,
            adapters: checkpoint.adapters.clone(),
            paused: checkpoint.switches.paused,
            auto_paused: checkpoint.auto_pause_ms.is_some(),
            story: checkpoint.story.iter().cloned().collect(),
            running: (checkpoint.running.as_ref()).map(|running| running.ask.prompt.clone()),
            extension: match &checkpoint.extension {
                Some(prompt) => Extension::Ready(prompt.clone()),
                None => Extension::None,
            },
            ..Self::new(Vec::new(), switches, can, cap, checkpoint.segments)
        }
    }
}

impl WaitingRequest {
    fn write(&self, now: Instant) -> checkpoint::WaitingRequest {
        let mut ask = self.request.write(now - self.received);
        ask.id = self.id.clone();
        checkpoint::WaitingRequest {
            ask,
            draft: self.draft.write().draft,
            enhance: self.enhance,
        }
    }

    fn read(waiting: &checkpoint::WaitingRequest, now: Instant) -> Self {
        let request = ValidRequest::read(&waiting.ask);
        Self {
            id: waiting.ask.id.clone(),
            draft: PromptDraft::read(CuratedPrompt {
                prompt: request.prompt.clone(),
                draft: waiting.draft.clone(),
            }),
            enhance: waiting.enhance,
            received: since(&waiting.ask, now),
            request,
        }
    }
}

impl PlannedSegment {
    /// Writes down what was asked for.
    pub(crate) fn write(&self, now: Instant) -> Ask {
        Ask {
            id: self.id.clone(),
            ..self.request.write(now - self.received)
        }
    }

    /// Reads what was written down.
    pub(crate) fn read(
        ask: &Ask,
        original_prompt: Option<String>,
        by_client: bool,
        now: Instant,
    ) -> Self {
        Self {
            id: ask.id.clone(),
            request: ValidRequest::read(ask),
            original_prompt,
            received: since(ask, now),
            by_client,
        }
    }
}

/// Returns when the request came.
fn since(ask: &Ask, now: Instant) -> Instant {
    let waited = Duration::from_millis(ask.waited_ms);
    now.checked_sub(waited).unwrap_or(now)
}
