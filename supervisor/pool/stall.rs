//! The reasons why a process counts as stuck.

use std::time::Duration;

/// A missing sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stall {
    #[error("no heartbeat for {0:?}")]
    NoHeartbeat(Duration),
    #[error("not connected within {0:?}")]
    NotConnected(Duration),
    #[error("not ready within {0:?}")]
    NotReady(Duration),
    #[error("no denoise step or frame for {0:?}")]
    NoProgress(Duration),
    #[error("worker has not ended a job for {0:?} whose media the client has taken")]
    NoEnd(Duration),
    #[error("adapter not loaded within {0:?}")]
    NoAdapter(Duration),
    #[error("worker does not read its commands")]
    UnreadCommands,
}
