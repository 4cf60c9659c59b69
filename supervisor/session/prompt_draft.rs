//! One prompt on its way to a segment. Pure.

/// A client's prompt, and what was made of it.
#[derive(Debug)]
pub(super) struct PromptDraft {
    prompt: String,
    state: DraftState,
}

#[derive(Debug)]
enum DraftState {
    /// Nobody has looked at it.
    Written,
    Pending(u64),
    /// It may be used as it is written.
    Admitted,
    Enhanced(String),
    /// It could not be enhanced and may be used as it is written.
    NotEnhanced,
}

/// The text to use.
#[derive(Debug, PartialEq)]
pub(super) struct PromptText {
    pub(super) prompt: String,
    /// As the client has written it, when that is something else.
    pub(super) original: Option<String>,
}

/// How work on a prompt that may be used has ended.
#[derive(Debug, PartialEq)]
pub(crate) enum PreparedPrompt {
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

    /// What to use; nothing until the work on it is done. `screened`: no prompt is used that nobody has looked at.
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

    pub(super) fn settle(&mut self, outcome: PreparedPrompt) {
        self.state = match outcome {
            PreparedPrompt::AsWritten => DraftState::Admitted,
            PreparedPrompt::Enhanced(text) => DraftState::Enhanced(text),
            PreparedPrompt::NotEnhanced => DraftState::NotEnhanced,
        };
    }

    /// What could not be enhanced may be tried once more.
    pub(super) fn try_again(&mut self) {
        if let DraftState::NotEnhanced = self.state {
            self.state = DraftState::Admitted;
        }
    }
}
