//! What was done for a prompt, and when: each screening and each request to a language model, for traces. No text of a
//! prompt is among it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::traces::Period;

/// A piece of work for a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptSpan {
    pub period: Period,
    pub kind: PromptSpanKind,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptSpanKind {
    Screened {
        is_blocked: bool,
    },
    /// A language model was asked.
    Asked {
        provider: String,
        model: String,
        /// The operation's name in metrics.
        operation: &'static str,
        /// The name of what went wrong.
        error: Option<&'static str>,
    },
}

/// Keeps what is done for one prompt, or for none. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct PromptSpans(Option<Arc<Mutex<Vec<PromptSpan>>>>);

impl PromptSpans {
    /// Returns a keeper for one prompt.
    pub(crate) fn kept() -> Self {
        Self(Some(Arc::default()))
    }

    /// Takes note of what was done until now.
    pub(super) fn add(&self, began: Instant, kind: PromptSpanKind) {
        if let Some(kept) = &self.0 {
            let span = PromptSpan {
                period: Period::since(began),
                kind,
            };
            kept.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(span);
        }
    }

    /// Takes everything out, in the order in which it ended.
    pub(crate) fn take(&self) -> Vec<PromptSpan> {
        let kept = self.0.as_ref();
        let take = |kept: &Arc<Mutex<_>>| {
            std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner))
        };
        kept.map(take).unwrap_or_default()
    }
}
