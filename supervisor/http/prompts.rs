//! What operators see and change of the prompt enhancer.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::ToSchema;

use super::status::rfc3339;
use super::{App, AppState, ErrorBody, error};
use crate::prompt::enhancer::{CircuitState, ProviderStatus, Status};
use crate::prompt::{Enhancer, Origins};

pub(super) fn routes() -> Router<App> {
    Router::new().route("/v1/prompts/reload", post(reload))
}

/// Reads the system prompts again. Prompts that are being written are finished with the old ones.
#[utoipa::path(post, path = "/v1/prompts/reload", responses(
    (status = 200, body = Origins, description = "where each comes from now: `file` or `default`"),
    (status = 409, body = ErrorBody, description = "this server has no prompt enhancer"),
    (status = 422, body = ErrorBody, description = "one cannot be read: all stay as they were")
))]
pub(super) async fn reload(State(app): AppState) -> Response {
    let Some(enhancer) = app.context.prompts.enhancer().cloned() else {
        let message = "this server has no prompt enhancer";
        return error(StatusCode::CONFLICT, "no_enhancer", message);
    };
    match tokio::task::spawn_blocking(move || enhancer.reload()).await {
        Ok(Ok(origins)) => {
            tracing::info!(?origins, "system prompts reloaded");
            Json(origins).into_response()
        }
        Ok(Err(broken)) => {
            tracing::warn!(error = %broken, "system prompts stay as they were");
            let message = format!("the system prompts stay as they were: {broken}");
            error(StatusCode::UNPROCESSABLE_ENTITY, "not_reloaded", message)
        }
        Err(panic) => {
            tracing::error!(%panic, "system prompts not reloaded");
            let message = "the server failed; its log says why";
            error(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
        }
    }
}

/// The prompt enhancer.
#[derive(Serialize, ToSchema)]
pub(super) struct PromptStatus {
    /// In the order in which they are asked.
    providers: Vec<ProviderEntry>,
    system_prompts: Origins,
    /// Enhanced prompts that are kept.
    cached: usize,
    cache_hits: u64,
}

#[derive(Serialize, ToSchema)]
struct ProviderEntry {
    provider: String,
    model: String,
    /// `ok`, `resting` (too many failures: it is skipped), `trying` (the next prompt finds out whether it is well
    /// again) or `waiting` (it has asked for a pause).
    state: &'static str,
    failures_in_a_row: u32,
    calls: u64,
    failed_calls: u64,
    last_failure: Option<LastFailure>,
}

#[derive(Serialize, ToSchema)]
struct LastFailure {
    reason: String,
    ts: String,
}

impl PromptStatus {
    pub(super) fn of(enhancer: &Enhancer) -> Self {
        let Status {
            providers,
            system_prompts,
            cached,
            cache_hits,
        } = enhancer.status();
        Self {
            providers: providers.into_iter().map(ProviderEntry::of).collect(),
            system_prompts,
            cached,
            cache_hits,
        }
    }
}

impl ProviderEntry {
    fn of(status: ProviderStatus) -> Self {
        Self {
            provider: status.name,
            model: status.model,
            state: match status.circuit {
                CircuitState::Closed => "ok",
                CircuitState::Open => "resting",
                CircuitState::HalfOpen => "trying",
                CircuitState::RateLimited => "waiting",
            },
            failures_in_a_row: status.failures,
            calls: status.calls,
            failed_calls: status.failed,
            last_failure: status.last_failure.map(|(failure, at)| LastFailure {
                reason: failure.to_string(),
                ts: rfc3339(at),
            }),
        }
    }
}
