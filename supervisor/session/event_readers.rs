//! The readers of a session's events other than its client: the session log and the server's own log.

use super::ending::NotOpened;
use super::event::SessionEvent;
use super::log::{self, SessionLog};
use super::metrics::Meter;

/// The readers of a session's events other than its client. Cheap to clone.
///
/// To add a reader, such as traces, add a field here and a line in [`Self::read`].
#[derive(Clone, Debug)]
pub(super) struct EventReaders {
    log: SessionLog,
    meter: Meter,
}

impl EventReaders {
    /// Creates the readers of a session; before it is open, there is no log.
    pub(super) fn new(log: SessionLog, meter: Meter) -> Self {
        Self { log, meter }
    }

    pub(super) fn read(&self, event: &SessionEvent) {
        log::record(&self.log, event);
        self.meter.read(event);
        trace(event);
    }
}

/// Writes what an operator wants to know about a session to the server's own log.
fn trace(event: &SessionEvent) {
    match event {
        SessionEvent::Opened(opened) => {
            tracing::info!(client_id = opened.client_id, preset = opened.preset, media_mode = ?opened.media_mode, hydrated = opened.hydrated, resumed = opened.resumed, image = opened.image, "session opened");
        }
        SessionEvent::NotOpened(NotOpened::Refused { code, message }) => {
            tracing::info!(?code, message, "opening refused");
        }
        SessionEvent::NotOpened(NotOpened::NotAdmitted(why)) => {
            tracing::info!(%why, "session rejected");
        }
        SessionEvent::NotOpened(why) => tracing::debug!(?why, "session not opened"),
        SessionEvent::StateChanged { from, to } => {
            tracing::debug!(?from, ?to, "session changed state");
        }
        SessionEvent::WorkerBound(bound) => {
            tracing::info!(worker_id = %bound.assignment.worker, "session bound");
        }
        SessionEvent::WorkerLost(lost) => {
            tracing::warn!(worker_id = %lost.worker, segment_idx = lost.at.segment_idx, attempt = lost.at.attempt, started = lost.started, reason = lost.reason, "worker lost with the session's job");
        }
        SessionEvent::Ended(ended) => {
            tracing::info!(cause = ?ended.cause, segments = ended.segments, "session ended");
        }
        _ => {}
    }
}
