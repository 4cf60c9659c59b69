//! The operators' route that reads keys, certificates and prompts again.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::reload::Reloaded;

use crate::http::app::{App, AppState};
use crate::ingress::error::ApiError;
use crate::reload::ReloadError;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/v1/reload", post(reload))
}

/// Reads keys, certificates, the keys of routers and the system prompts again, as SIGHUP does.
#[utoipa::path(post, path = "/v1/reload", responses(
    (status = 200, body = Reloaded, description = "what was read again"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 422, body = ErrorBody, description = "some of it cannot be used: everything stays as it was")
))]
pub(in crate::http) async fn reload(State(app): AppState) -> Result<Json<Reloaded>, ApiError> {
    match app.reloads.run().await {
        Ok(reloaded) => Ok(Json(Reloaded {
            reloaded: reloaded.into_iter().map(str::to_owned).collect(),
        })),
        Err(ReloadError::Refused(reason)) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Err(ApiError::new(status, "not_reloaded", reason))
        }
        Err(ReloadError::Panicked(panic)) => Err(ApiError::internal(&panic)),
    }
}
