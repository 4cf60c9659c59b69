//! Keeps prompts from being used that a classifier calls unsafe.
//!
//! The classifier is loaded when the first prompt comes, once. A server whose classifier cannot be loaded lets everything
//! pass and says so, in its log and in `/status`, unless the classifier is `required`: then it does not start.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::task::spawn_blocking;

use super::fasttext::{Classifier, Label, ModelError};
use crate::causes::with_causes;

/// What a classifier calls a prompt that must not be used.
const UNSAFE: &str = "__label__unsafe";

#[derive(Clone, Debug)]
pub struct Config {
    /// A supervised fastText model that knows the label `__label__unsafe`.
    pub classifier_path: Option<PathBuf>,
    /// Prompts are blocked whose score is this or more; 0 to 1.
    pub block_threshold: f64,
    /// The server does not start without the classifier.
    pub required: bool,
    /// Blocked prompts are shown in the log.
    pub log_prompts: bool,
}

/// The safety filter does not let a prompt through. Does not say which one, so that it can be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the prompt was blocked by the safety filter")]
pub struct Blocked;

/// Why there is no classifier.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("`streaming.safety.classifier_path` is not set")]
    NotConfigured,
    #[error("the classifier {} cannot be loaded", path.display())]
    NotLoaded {
        path: PathBuf,
        source: Arc<ModelError>,
    },
    #[error("the classifier {} has no label `{UNSAFE}`", path.display())]
    NoLabel { path: PathBuf },
    #[error("loading the classifier has failed in the server")]
    Panicked,
}

/// What operators see of the filter.
#[derive(Debug)]
pub struct SafetyStatus {
    pub state: SafetyState,
    /// Why it is unavailable.
    pub reason: Option<String>,
    /// Prompts that the classifier has judged since the supervisor's start.
    pub screened: u64,
    pub blocked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SafetyState {
    /// Not enabled.
    Off,
    /// The classifier is loaded when the first prompt comes.
    NotLoaded,
    Ready,
    /// Every prompt passes.
    Unavailable,
}

/// The filter of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SafetyFilter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    judge: OnceLock<Result<Judge, Unavailable>>,
    screened: AtomicU64,
    blocked: AtomicU64,
}

#[derive(Debug)]
struct Judge {
    classifier: Classifier,
    label: Label,
}

impl SafetyFilter {
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Shared {
            config,
            judge: OnceLock::new(),
            screened: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
        }))
    }

    /// Loads the classifier at once when the server must not start without it.
    ///
    /// # Errors
    /// When that is so and it cannot be loaded.
    pub async fn load_if_required(&self) -> Result<(), Unavailable> {
        if !self.0.config.required {
            return Ok(());
        }
        let shared = Arc::clone(&self.0);
        let loaded = spawn_blocking(move || shared.judge().as_ref().err().cloned()).await;
        match loaded {
            Ok(None) => Ok(()),
            Ok(Some(unavailable)) => Err(unavailable),
            Err(_) => Err(Unavailable::Panicked),
        }
    }

    /// Blocked prompts may be logged.
    pub fn logs_blocked(&self) -> bool {
        self.0.config.log_prompts
    }

    /// Whether prompts are judged, as far as that is known before the first one.
    pub fn is_available(&self) -> bool {
        match self.0.judge.get() {
            Some(judge) => judge.is_ok(),
            None => self.0.config.classifier_path.is_some(),
        }
    }

    /// Judges a prompt, on a thread for blocking work: long ones take milliseconds, and the first one has to wait for
    /// the classifier.
    ///
    /// # Errors
    /// When the prompt must not be used.
    pub async fn screen(&self, prompt: &str) -> Result<(), Blocked> {
        if matches!(self.0.judge.get(), Some(Err(_))) {
            return Ok(());
        }
        let (shared, prompt) = (Arc::clone(&self.0), prompt.to_owned());
        let span = tracing::Span::current();
        let screening = spawn_blocking(move || span.in_scope(|| shared.screen(&prompt)));
        screening.await.unwrap_or_else(|panic| {
            tracing::error!(%panic, "a prompt that could not be judged is blocked");
            Err(Blocked)
        })
    }

    pub fn status(&self) -> SafetyStatus {
        let (state, reason) = match self.0.judge.get() {
            None => (SafetyState::NotLoaded, None),
            Some(Ok(_)) => (SafetyState::Ready, None),
            Some(Err(unavailable)) => (SafetyState::Unavailable, Some(with_causes(unavailable))),
        };
        SafetyStatus {
            state,
            reason,
            screened: self.0.screened.load(Ordering::Relaxed),
            blocked: self.0.blocked.load(Ordering::Relaxed),
        }
    }
}

impl SafetyStatus {
    /// Of a server without a filter.
    pub fn off() -> Self {
        Self {
            state: SafetyState::Off,
            reason: None,
            screened: 0,
            blocked: 0,
        }
    }
}

impl Shared {
    /// Loads the classifier when that was not tried before. Others wait meanwhile.
    fn judge(&self) -> &Result<Judge, Unavailable> {
        self.judge.get_or_init(|| {
            let judge = Judge::load(self.config.classifier_path.as_deref());
            match &judge {
                Ok(_) => tracing::info!("safety classifier loaded"),
                // The server says so itself, as it ends.
                Err(_) if self.config.required => {}
                Err(unavailable) => {
                    let reason = with_causes(unavailable);
                    tracing::warn!(reason, "safety filter unavailable: every prompt passes");
                }
            }
            judge
        })
    }

    fn screen(&self, prompt: &str) -> Result<(), Blocked> {
        let Ok(judge) = self.judge() else {
            return Ok(());
        };
        self.screened.fetch_add(1, Ordering::Relaxed);
        let Some(score) = judge.score(prompt) else {
            return Ok(());
        };
        // So that a prompt is blocked whose score is not a number, as from a model with absurd ones.
        if f64::from(score) < self.config.block_threshold {
            return Ok(());
        }
        self.blocked.fetch_add(1, Ordering::Relaxed);
        match self.config.log_prompts {
            true => tracing::info!(score, prompt, "prompt blocked"),
            false => tracing::info!(score, "prompt blocked"),
        }
        Err(Blocked)
    }
}

impl Judge {
    fn load(path: Option<&Path>) -> Result<Self, Unavailable> {
        let path = path.ok_or(Unavailable::NotConfigured)?;
        let classifier = Classifier::open(path).map_err(|source| Unavailable::NotLoaded {
            path: path.to_owned(),
            source: Arc::new(source),
        })?;
        let label = classifier
            .label(UNSAFE)
            .ok_or_else(|| Unavailable::NoLabel {
                path: path.to_owned(),
            })?;
        Ok(Self { classifier, label })
    }

    /// `None` when the classifier knows no part of the prompt.
    fn score(&self, prompt: &str) -> Option<f32> {
        self.classifier.score(&one_line(prompt), self.label)
    }
}

/// The prompt as one line of words. To the classifier a line feed ends the text, and so does the word `</s>`: behind either
/// of them anything could be hidden.
fn one_line(prompt: &str) -> String {
    let is_blank = |c| matches!(c, ' ' | '\n' | '\r' | '\t' | '\x0b' | '\x0c' | '\0');
    let words = prompt.split(is_blank);
    let words: Vec<&str> = words
        .filter(|word| !word.is_empty() && *word != "</s>")
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests;
