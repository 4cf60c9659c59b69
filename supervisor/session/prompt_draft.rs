//! One prompt on its way to a segment. Pure.

/// A client's prompt, and what was made of it.
#[derive(Debug)]
pub(super) struct PromptDraft {
    prompt: String,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Nobody has looked at it.
    Written,
    InWork(u64),
    /// It may be used as it is written.
    Admitted,
    Enhanced(String),
    /// It could not be enhanced and may be used as it is written.
    NotEnhanced,
}

/// The text to use.
#[derive(Debug, PartialEq)]
pub(super) struct Words {
    pub(super) prompt: String,
    /// As the client has written it, when that is something else.
    pub(super) original: Option<String>,
}

/// How work on a prompt that may be used has ended.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    AsWritten,
    Enhanced(String),
    /// Enhancing failed.
    NotEnhanced,
}

impl PromptDraft {
    pub(super) fn new(prompt: String) -> Self {
        Self {
            prompt,
            stage: Stage::Written,
        }
    }

    /// What to use; nothing until the work on it is done. `screened`: no prompt is used that nobody has looked at.
    pub(super) fn words(&self, enhance: bool, screened: bool) -> Option<Words> {
        let original = |original| Words {
            prompt: self.prompt.clone(),
            original,
        };
        match &self.stage {
            Stage::Enhanced(text) if enhance && *text != self.prompt => Some(Words {
                prompt: text.clone(),
                original: Some(self.prompt.clone()),
            }),
            Stage::Enhanced(_) | Stage::NotEnhanced => Some(original(None)),
            Stage::Admitted if !enhance => Some(original(None)),
            Stage::Written | Stage::InWork(_) if !enhance && !screened => Some(original(None)),
            Stage::Admitted | Stage::Written | Stage::InWork(_) => None,
        }
    }

    pub(super) fn needs_work(&self, enhance: bool, screened: bool) -> bool {
        !self.is_in_work() && self.words(enhance, screened).is_none()
    }

    pub(super) fn is_in_work(&self) -> bool {
        matches!(self.stage, Stage::InWork(_))
    }

    pub(super) fn awaits(&self, id: u64) -> bool {
        matches!(self.stage, Stage::InWork(order) if order == id)
    }

    /// Work begins; returns what to work on.
    pub(super) fn begin(&mut self, order: u64) -> String {
        self.stage = Stage::InWork(order);
        self.prompt.clone()
    }

    pub(super) fn settle(&mut self, outcome: Outcome) {
        self.stage = match outcome {
            Outcome::AsWritten => Stage::Admitted,
            Outcome::Enhanced(text) => Stage::Enhanced(text),
            Outcome::NotEnhanced => Stage::NotEnhanced,
        };
    }

    /// What could not be enhanced may be tried once more.
    pub(super) fn try_again(&mut self) {
        if let Stage::NotEnhanced = self.stage {
            self.stage = Stage::Admitted;
        }
    }
}
