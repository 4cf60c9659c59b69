//! Exports of the continuation state that the client asks for, one at a time.

use std::future::pending;

use fastvideo_proto::job::ErrorCode;
use serde_json::Value;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::event::{ExportedState, SessionEvent};
use crate::causes::with_causes;
use crate::store::State;
use crate::store::export::{self, ExportError};

/// Number of exports that may be asked for before one is answered.
pub(super) const MAX_PENDING_EXPORTS: u32 = 8;

/// The outcome of the task of an export.
pub(super) type ExportOutcome = Result<Result<ExportedState, ExportError>, JoinError>;

/// The exports of a session that were asked for and are not answered yet.
#[derive(Debug, Default)]
pub(super) struct StateExports {
    pending: u32,
    running: Option<JoinHandle<Result<ExportedState, ExportError>>>,
}

impl StateExports {
    /// Returns whether another export may be asked for.
    pub(super) fn has_room(&self) -> bool {
        self.pending < MAX_PENDING_EXPORTS
    }

    /// Asks for another export.
    pub(super) fn request(&mut self) {
        self.pending += 1;
    }

    /// Starts the next pending export, unless one is running.
    pub(super) fn start(&mut self, state: Option<&State>) {
        if self.pending == 0 || self.running.is_some() {
            return;
        }
        if let Some(state) = state.cloned() {
            self.running = Some(spawn_blocking(move || {
                let state = export::export_inline(&state)?;
                let bytes = state.payload.values().map(text_bytes).sum();
                Ok(ExportedState { state, bytes })
            }));
        }
    }

    /// Waits until the running export has ended. The outcome has to be passed to [`Self::finish`].
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn ended(&mut self) -> ExportOutcome {
        match &mut self.running {
            Some(running) => running.await,
            None => pending().await,
        }
    }

    /// Handles the outcome of the running export, and returns the event to emit.
    pub(super) fn finish(&mut self, outcome: ExportOutcome) -> SessionEvent {
        self.running = None;
        self.pending -= 1;
        let error = match outcome {
            Ok(Ok(exported)) => return SessionEvent::StateExported(Box::new(exported)),
            Ok(Err(error)) => with_causes(&error),
            Err(panic) => panic.to_string(),
        };
        tracing::error!(error, "state could not be exported");
        SessionEvent::Error {
            code: ErrorCode::InternalError,
            message: "the continuation state could not be exported".to_owned(),
            retryable: true,
        }
    }
}

/// Estimates the length of a value's text, almost all of which is in its long strings.
fn text_bytes(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64 + 2,
        Value::Array(items) => items.iter().map(text_bytes).sum::<u64>() + 2,
        Value::Object(fields) => {
            let fields = fields.iter();
            fields
                .map(|(k, v)| k.len() as u64 + 4 + text_bytes(v))
                .sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}
