//! Why a job has failed, as its client is told.

use std::fmt;

/// Why a job has failed. The message is safe to show to the client: it names no path, no worker and no library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// A stable name of the reason, for programs.
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Failure {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Somebody has asked for the job's end.
    pub(super) fn cancelled() -> Self {
        Self::new("cancelled", "the job was cancelled")
    }

    /// Workers could not make a segment.
    pub(super) fn worker(message: impl Into<String>) -> Self {
        Self::new("worker_failed", message)
    }

    /// The model refuses the request.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new("invalid_value", message)
    }

    /// The model does not take the state that a segment was to continue from.
    pub(super) fn state(message: impl Into<String>) -> Self {
        Self::new("state_incompatible", message)
    }

    pub(super) fn memory() -> Self {
        let message = "the video takes more memory than a GPU has: ask for a smaller size";
        Self::new("out_of_memory", message)
    }

    /// The safety filter has blocked the prompt that a language model has written.
    pub(super) fn blocked(blocked: &impl fmt::Display) -> Self {
        Self::new("moderation_blocked", blocked.to_string())
    }

    /// The server is at fault; its log says more.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new("internal_error", message)
    }
}
