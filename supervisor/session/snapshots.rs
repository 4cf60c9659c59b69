//! Exports of the continuation state that the client asks for, one at a time.

use std::collections::VecDeque;
use std::future::pending;

use fastvideo_proto::ids::RequestId;
use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::state::ContinuationState;
use serde_json::Value;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::event::{ExportedState, SessionEvent};
use crate::causes::with_causes;
use crate::store::State;
use crate::store::export::{self, ExportError};

/// Number of exports that may be asked for before one is answered.
pub(super) const MAX_PENDING_EXPORTS: usize = 8;

/// The outcome of the task of an export.
pub(super) type ExportOutcome = Result<Result<(ContinuationState, u64), ExportError>, JoinError>;

/// The exports of a session that were asked for and are not answered yet.
#[derive(Debug, Default)]
pub(super) struct StateExports {
    /// The client's names for what it asked. The first is that of the running export.
    pending: VecDeque<Option<RequestId>>,
    running: Option<JoinHandle<Result<(ContinuationState, u64), ExportError>>>,
}

impl StateExports {
    /// Returns whether another export may be asked for.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < MAX_PENDING_EXPORTS
    }

    /// Asks for another export.
    pub(super) fn request(&mut self, request: Option<RequestId>) {
        self.pending.push_back(request);
    }

    /// Returns the client's names for the exports that are not answered yet.
    pub(super) fn pending(&self) -> impl Iterator<Item = &Option<RequestId>> {
        self.pending.iter()
    }

    /// Starts the next pending export, unless one is running.
    pub(super) fn start(&mut self, state: Option<&State>) {
        if self.pending.is_empty() || self.running.is_some() {
            return;
        }
        if let Some(state) = state.cloned() {
            self.running = Some(spawn_blocking(move || {
                let state = export::export_inline(&state)?;
                let bytes = state.payload.values().map(text_bytes).sum();
                Ok((state, bytes))
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

    /// Handles the outcome of the running export, and returns the event to emit. A state of more than `max_bytes` is
    /// not sent: the client could not send it back.
    pub(super) fn finish(&mut self, outcome: ExportOutcome, max_bytes: usize) -> SessionEvent {
        self.running = None;
        let request = self.pending.pop_front().flatten();
        let error = match outcome {
            Ok(Ok((_, bytes))) if bytes > max_bytes as u64 => {
                return SessionEvent::Error {
                    request,
                    code: ErrorCode::InternalError,
                    message: format!(
                        "the continuation state has about {bytes} bytes as text, at most {max_bytes} are allowed in a message"
                    ),
                    retryable: false,
                };
            }
            Ok(Ok((state, bytes))) => {
                return SessionEvent::StateExported(Box::new(ExportedState {
                    request,
                    state,
                    bytes,
                }));
            }
            Ok(Err(error)) => with_causes(&error),
            Err(panic) => panic.to_string(),
        };
        tracing::error!(error, "state could not be exported");
        SessionEvent::Error {
            request,
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
