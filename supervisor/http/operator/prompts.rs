//! The operators' route for the prompt enhancer, which reloads its system prompts.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::prompts::Origins;

use crate::causes::with_causes;
use crate::http::app::{App, AppState};
use crate::ingress::error::ApiError;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/v1/prompts/reload", post(reload))
}

/// Reloads the system prompts. Prompts that are being written are finished with the old ones.
#[utoipa::path(post, path = "/v1/prompts/reload", responses(
    (status = 200, body = Origins, description = "where each system prompt comes from now: `file` or `default`"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 409, body = ErrorBody, description = "this server has no prompt enhancer"),
    (status = 422, body = ErrorBody, description = "a system prompt cannot be read: all stay as they were")
))]
pub(in crate::http) async fn reload(State(app): AppState) -> Result<Json<Origins>, ApiError> {
    let prompts = app.context.prompts.clone();
    let reloaded = app.reloads.alone(move |_| prompts.reload_instructions());
    match reloaded.await {
        Ok(Ok(None)) => {
            let message = "this server has no prompt enhancer";
            Err(ApiError::new(StatusCode::CONFLICT, "no_enhancer", message))
        }
        Ok(Ok(Some(origins))) => {
            tracing::info!(?origins, "system prompts reloaded");
            Ok(Json(origins.into()))
        }
        Ok(Err(unreadable)) => {
            let reason = with_causes(&unreadable);
            tracing::warn!(error = reason, "system prompts stay as they were");
            let message = format!("the system prompts stay as they were: {reason}");
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Err(ApiError::new(status, "not_reloaded", message))
        }
        Err(panic) => Err(ApiError::internal(&panic)),
    }
}
