//! Why a job has failed, as its client is told.

use std::fmt;

const CANCELLED: &str = "cancelled";
const WORKER_FAILED: &str = "worker_failed";
const INVALID_VALUE: &str = "invalid_value";
const STATE_INCOMPATIBLE: &str = "state_incompatible";
const OUT_OF_MEMORY: &str = "out_of_memory";
const MODERATION_BLOCKED: &str = "moderation_blocked";
const INTERNAL_ERROR: &str = "internal_error";

/// The codes of all failures.
pub(super) const CODES: [&str; 7] = [
    CANCELLED,
    WORKER_FAILED,
    INVALID_VALUE,
    STATE_INCOMPATIBLE,
    OUT_OF_MEMORY,
    MODERATION_BLOCKED,
    INTERNAL_ERROR,
];

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
        Self::new(CANCELLED, "the job was cancelled")
    }

    /// Workers could not make a segment.
    pub(super) fn worker(message: impl Into<String>) -> Self {
        Self::new(WORKER_FAILED, message)
    }

    /// The model refuses the request.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(INVALID_VALUE, message)
    }

    /// The model does not take the state that a segment was to continue from.
    pub(super) fn state(message: impl Into<String>) -> Self {
        Self::new(STATE_INCOMPATIBLE, message)
    }

    pub(super) fn memory() -> Self {
        let message = "the video takes more memory than a GPU has: ask for a smaller size";
        Self::new(OUT_OF_MEMORY, message)
    }

    /// The safety filter has blocked the prompt that a language model has written.
    pub(super) fn blocked(blocked: &impl fmt::Display) -> Self {
        Self::new(MODERATION_BLOCKED, blocked.to_string())
    }

    /// The server is at fault; its log says more.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(INTERNAL_ERROR, message)
    }
}
