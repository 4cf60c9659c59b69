//! The readers of a session's events other than its client: the session log and the server's own log.

use fastvideo_proto::trace::TraceContext;

use super::ending::NotOpened;
use super::event::SessionEvent;
use super::log::{self, SessionLog};
use super::metrics::Meter;
use super::tracer::SessionTracer;

/// The readers of a session's events other than its client. Cheap to clone.
///
/// To add a reader, add a field here and a line in [`Self::read`].
#[derive(Clone, Debug)]
pub(super) struct EventReaders {
    log: SessionLog,
    tracer: SessionTracer,
    meter: Meter,
}

impl EventReaders {
    /// Creates the readers of a session; before it is open, there is no log.
    pub(super) fn new(log: SessionLog, tracer: SessionTracer, meter: Meter) -> Self {
        Self { log, tracer, meter }
    }

    /// Returns the session's span, if it is traced.
    pub(super) fn trace(&self) -> Option<TraceContext> {
        self.tracer.session()
    }

    /// Returns whether a session log is kept.
    pub(super) fn keep_log(&self) -> bool {
        self.log.is_kept()
    }

    pub(super) fn read(&self, event: &SessionEvent) {
        log::record(&self.log, event);
        let span = self.tracer.read(event);
        self.meter.read(event, span);
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
