//! The preparation of one prompt, from the client's text to the text that is used. It does no I/O.

use fastvideo_proto::checkpoint::{CuratedPrompt, Draft};

/// A client's prompt and the state of its preparation.
#[derive(Debug)]
pub(super) struct PromptDraft {
    prompt: String,
    state: DraftState,
}

#[derive(Debug)]
enum DraftState {
    /// The prompt is neither screened nor enhanced.
    Written,
    /// The task with this id screens or enhances the prompt.
    Pending(u64),
    /// The prompt was screened and may be used as it is written.
    Admitted,
    Enhanced(String),
    /// The prompt could not be enhanced and may be used as it is written.
    NotEnhanced,
}

/// The text that a segment uses.
#[derive(Debug, PartialEq)]
pub(super) struct PromptText {
    pub(super) prompt: String,
    /// The client's text, when that is another one.
    pub(super) original: Option<String>,
}

/// How the preparation of a prompt that may be used has ended.
#[derive(Debug, PartialEq)]
pub(crate) enum PreparedDraft {
    AsWritten,
    Enhanced(String),
    /// Enhancing failed.
    NotEnhanced,
}

impl PromptDraft {
    pub(super) fn new(prompt: String) -> Self {
        Self {
            prompt,
            state: DraftState::Written,
        }
    }

    /// Returns the text to use, or `None` while it is not prepared. With `screened`, only a screened prompt is
    /// returned.
    pub(super) fn text(&self, enhance: bool, screened: bool) -> Option<PromptText> {
        let original = |original| PromptText {
            prompt: self.prompt.clone(),
            original,
        };
        match &self.state {
            DraftState::Enhanced(text) if enhance && *text != self.prompt => Some(PromptText {
                prompt: text.clone(),
                original: Some(self.prompt.clone()),
            }),
            DraftState::Enhanced(_) | DraftState::NotEnhanced => Some(original(None)),
            DraftState::Admitted if !enhance => Some(original(None)),
            DraftState::Written | DraftState::Pending(_) if !enhance && !screened => {
                Some(original(None))
            }
            DraftState::Admitted | DraftState::Written | DraftState::Pending(_) => None,
        }
    }

    pub(super) fn needs_work(&self, enhance: bool, screened: bool) -> bool {
        !self.is_pending() && self.text(enhance, screened).is_none()
    }

    pub(super) fn is_pending(&self) -> bool {
        matches!(self.state, DraftState::Pending(_))
    }

    pub(super) fn awaits(&self, id: u64) -> bool {
        matches!(self.state, DraftState::Pending(task) if task == id)
    }

    /// Marks the prompt as pending and returns what to work on.
    pub(super) fn begin(&mut self, task: u64) -> String {
        self.state = DraftState::Pending(task);
        self.prompt.clone()
    }

    pub(super) fn settle(&mut self, outcome: PreparedDraft) {
        self.state = match outcome {
            PreparedDraft::AsWritten => DraftState::Admitted,
            PreparedDraft::Enhanced(text) => DraftState::Enhanced(text),
            PreparedDraft::NotEnhanced => DraftState::NotEnhanced,
        };
    }

    /// Writes the prompt down. What is being prepared has to be prepared again.
    pub(super) fn write(&self) -> CuratedPrompt {
        let draft = match &self.state {
            DraftState::Written | DraftState::Pending(_) => Draft::Written,
            DraftState::Admitted => Draft::Admitted,
            DraftState::Enhanced(text) => Draft::Enhanced(text.clone()),
            DraftState::NotEnhanced => Draft::NotEnhanced,
        };
        CuratedPrompt {
            prompt: self.prompt.clone(),
            draft,
        }
    }

    /// Reads a prompt that was written down.
    pub(super) fn read(CuratedPrompt { prompt, draft }: CuratedPrompt) -> Self {
        let state = match draft {
            Draft::Written => DraftState::Written,
            Draft::Admitted => DraftState::Admitted,
            Draft::Enhanced(text) => DraftState::Enhanced(text),
            Draft::NotEnhanced => DraftState::NotEnhanced,
        };
        Self { prompt, state }
    }

    /// Forgets how the prompt was prepared.
    pub(super) fn forget(&mut self) {
        self.state = DraftState::Written;
    }

    /// Allows another try at a prompt that could not be enhanced.
    pub(super) fn try_again(&mut self) {
        if let DraftState::NotEnhanced = self.state {
            self.state = DraftState::Admitted;
        }
    }
}
