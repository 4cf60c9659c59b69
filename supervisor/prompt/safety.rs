//! The safety filter: blocks prompts that a classifier calls unsafe.
//!
//! The classifier is loaded lazily, once, when the first prompt arrives. When it cannot be loaded, the filter fails open:
//! every prompt passes, and the server's log and `/status` say so. With `required` the server does not start instead.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::task::spawn_blocking;

use super::fasttext::{Classifier, Label, ModelError};
use crate::causes::with_causes;
use crate::file_stamp::Stamp;

/// The classifier's label for prompts that must be blocked.
const UNSAFE: &str = "__label__unsafe";

/// Which classifier screens prompts, and how strict it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file of a supervised fastText model with the label `__label__unsafe`.
    pub classifier_path: Option<PathBuf>,
    /// The score from which on a prompt is blocked, 0 to 1.
    pub block_threshold: f64,
    /// Whether the server refuses to start without the classifier.
    pub required: bool,
    /// Whether the text of blocked prompts is logged.
    pub log_prompts: bool,
}

/// The safety filter blocked a prompt. The error does not contain the prompt, so it is safe to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the prompt was blocked by the safety filter")]
pub struct Blocked;

/// Why the classifier is not available.
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

/// The filter's state, as `/status` shows it.
#[derive(Debug)]
pub struct SafetyStatus {
    pub state: SafetyState,
    /// Why the classifier is unavailable.
    pub reason: Option<String>,
    /// The number of prompts that the classifier has scored since the supervisor's start.
    pub screened: u64,
    /// The number of prompts that were blocked since the supervisor's start.
    pub blocked: u64,
}

/// Whether prompts are screened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SafetyState {
    /// The filter is not enabled.
    Off,
    /// The classifier will be loaded when the first prompt arrives.
    NotLoaded,
    /// The classifier is loaded.
    Ready,
    /// The classifier cannot be loaded, and every prompt passes.
    Unavailable,
}

/// The safety filter of one server. It is cheap to clone.
#[derive(Clone, Debug)]
pub struct SafetyFilter(Arc<Shared>);

/// The number of the next filter.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
struct Shared {
    /// Tells this filter from all others of the process.
    number: u64,
    config: Config,
    /// What the classifier's file was when this was made.
    stamp: Option<Stamp>,
    scorer: OnceLock<Result<UnsafeScorer, Unavailable>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    screened: AtomicU64,
    blocked: AtomicU64,
}

/// A loaded classifier with the label that is asked for.
#[derive(Debug)]
struct UnsafeScorer {
    classifier: Classifier,
    label: Label,
}

impl SafetyFilter {
    /// Creates the filter. The classifier is not loaded yet.
    pub fn new(config: Config) -> Self {
        Self::counting(config, Arc::default())
    }

    fn counting(config: Config, counts: Arc<Counts>) -> Self {
        Self(Arc::new(Shared {
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            stamp: config.classifier_path.as_deref().and_then(Stamp::of),
            config,
            scorer: OnceLock::new(),
            counts,
        }))
    }

    /// Returns the filter that takes this one's place with another configuration: this one where neither that nor the
    /// classifier's file has changed, else one whose classifier is loaded. Blocks while it is.
    ///
    /// # Errors
    /// Returns an error when the classifier cannot be loaded.
    pub(super) fn renewed(&self, config: Config) -> Result<Self, Unavailable> {
        let new = Self::counting(config, self.0.counts.clone());
        if new.0.config == self.0.config && new.0.stamp == self.0.stamp {
            return Ok(self.clone());
        }
        new.load()?;
        Ok(new)
    }

    /// Loads the classifier, if one is configured. Blocks while it does.
    ///
    /// # Errors
    /// Returns an error when the classifier cannot be loaded.
    pub(super) fn load(&self) -> Result<(), Unavailable> {
        match (&self.0.config.classifier_path, self.0.scorer()) {
            (Some(_), Err(unavailable)) => Err(unavailable.clone()),
            _ => Ok(()),
        }
    }

    /// Returns the number of this filter, which no other one of the process has. One with another configuration or another
    /// classifier is another filter.
    pub fn number(&self) -> u64 {
        self.0.number
    }

    pub(super) fn config(&self) -> &Config {
        &self.0.config
    }

    /// Loads the classifier now if the configuration requires it; otherwise does nothing.
    ///
    /// # Errors
    /// Returns an error when a required classifier cannot be loaded.
    pub async fn load_if_required(&self) -> Result<(), Unavailable> {
        if !self.0.config.required {
            return Ok(());
        }
        let shared = Arc::clone(&self.0);
        let loaded = spawn_blocking(move || shared.scorer().as_ref().err().cloned()).await;
        match loaded {
            Ok(None) => Ok(()),
            Ok(Some(unavailable)) => Err(unavailable),
            Err(_) => Err(Unavailable::Panicked),
        }
    }

    /// Returns whether the text of blocked prompts may be logged.
    pub fn logs_blocked(&self) -> bool {
        self.0.config.log_prompts
    }

    /// Returns whether prompts are screened. Before the first prompt this means that a classifier is configured;
    /// afterwards it means that the classifier is loaded.
    pub fn is_available(&self) -> bool {
        match self.0.scorer.get() {
            Some(loaded) => loaded.is_ok(),
            None => self.0.config.classifier_path.is_some(),
        }
    }

    /// Screens a prompt. The work is done on a blocking thread: a long prompt takes milliseconds, and the first one waits
    /// until the classifier is loaded.
    ///
    /// # Errors
    /// Returns an error when the prompt must not be used, or could not be scored because the classifier panicked.
    pub async fn screen(&self, prompt: &str) -> Result<(), Blocked> {
        if matches!(self.0.scorer.get(), Some(Err(_))) {
            return Ok(());
        }
        let (shared, prompt) = (Arc::clone(&self.0), prompt.to_owned());
        let span = tracing::Span::current();
        let screening = spawn_blocking(move || span.in_scope(|| shared.screen(&prompt)));
        screening.await.unwrap_or_else(|panic| {
            tracing::error!(%panic, "a prompt that could not be scored is blocked");
            Err(Blocked)
        })
    }

    /// Returns the filter's state and counters.
    pub fn status(&self) -> SafetyStatus {
        let (state, reason) = match self.0.scorer.get() {
            None => (SafetyState::NotLoaded, None),
            Some(Ok(_)) => (SafetyState::Ready, None),
            Some(Err(unavailable)) => (SafetyState::Unavailable, Some(with_causes(unavailable))),
        };
        SafetyStatus {
            state,
            reason,
            screened: self.0.counts.screened.load(Ordering::Relaxed),
            blocked: self.0.counts.blocked.load(Ordering::Relaxed),
        }
    }
}

impl SafetyStatus {
    /// Returns the status of a server without a safety filter.
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
    /// Loads the classifier on the first call; concurrent callers wait. The result of the first attempt is kept.
    fn scorer(&self) -> &Result<UnsafeScorer, Unavailable> {
        self.scorer.get_or_init(|| {
            let loaded = UnsafeScorer::load(self.config.classifier_path.as_deref());
            match &loaded {
                Ok(_) => tracing::info!("safety classifier loaded"),
                // The server reports it as the reason why it does not start.
                Err(_) if self.config.required => {}
                Err(unavailable) => {
                    let reason = with_causes(unavailable);
                    tracing::warn!(reason, "safety filter unavailable: every prompt passes");
                }
            }
            loaded
        })
    }

    fn screen(&self, prompt: &str) -> Result<(), Blocked> {
        let Ok(scorer) = self.scorer() else {
            return Ok(());
        };
        self.counts.screened.fetch_add(1, Ordering::Relaxed);
        let Some(score) = scorer.score(prompt) else {
            return Ok(());
        };
        // The comparison is this way round so that a score of NaN, from a model with absurd weights, blocks the prompt.
        if f64::from(score) < self.config.block_threshold {
            return Ok(());
        }
        self.counts.blocked.fetch_add(1, Ordering::Relaxed);
        match self.config.log_prompts {
            true => tracing::info!(score, prompt, "prompt blocked"),
            false => tracing::info!(score, "prompt blocked"),
        }
        Err(Blocked)
    }
}

impl UnsafeScorer {
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

    /// Returns how likely the prompt is unsafe, 0 to 1; `None` when the classifier knows no part of the prompt.
    fn score(&self, prompt: &str) -> Option<f32> {
        self.classifier.score(&one_line(prompt), self.label)
    }
}

/// Joins the words of a prompt into one line. For the classifier the text ends at a line feed or at the word `</s>`; without
/// this, unsafe text could be hidden behind either of them.
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
