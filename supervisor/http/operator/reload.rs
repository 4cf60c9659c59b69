//! The operators' routes that change what the server does: they read its configuration again, and set the filter of its
//! log.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{post, put};
use axum::{Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::reload::{LastReload, LogLevel, ReloadOutcome, Reloaded};

use crate::http::app::{App, AppState};
use crate::ingress::error::ApiError;
use crate::ingress::extract::Body;
use crate::ingress::timestamp::rfc3339;
use crate::reload::{self, Changes, ReloadError};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/reload", post(reload))
        .route("/v1/log-level", put(set_log_level))
}

/// Reads the configuration again, with the files that it names, as SIGHUP does.
#[utoipa::path(post, path = "/v1/reload", responses(
    (status = 200, body = Reloaded, description = "what has changed, and what waits for a restart"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 422, body = ErrorBody, description = "some of it cannot be used: everything stays as it was")
))]
pub(in crate::http) async fn reload(State(app): AppState) -> Result<Json<Reloaded>, ApiError> {
    match app.reloads.run().await {
        Ok(changes) => Ok(Json(changes.into())),
        Err(ReloadError::Refused(reason)) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Err(ApiError::new(status, "not_reloaded", reason))
        }
        Err(panicked @ ReloadError::Panicked) => Err(ApiError::internal(&panicked)),
    }
}

/// Sets the filter of the log until the next reload. The body is the filter, as `server.log_level` has it.
#[utoipa::path(put, path = "/v1/log-level", request_body(content = String, content_type = "text/plain"), responses(
    (status = 200, body = LogLevel),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 408, body = ErrorBody, description = "the body took too long"),
    (status = 413, body = ErrorBody, description = "the body is larger than a message may be"),
    (status = 422, body = ErrorBody, description = "the body is no filter: it stays as it was"),
    (status = 503, body = ErrorBody, description = "too much is being received")
))]
pub(in crate::http) async fn set_log_level(
    State(app): AppState,
    body: Body,
) -> Result<Json<LogLevel>, ApiError> {
    let log_level = String::from_utf8_lossy(&body.bytes).trim().to_owned();
    match app.reloads.set_log_filter(&log_level) {
        Ok(()) => {
            tracing::info!(target: "audit", log_level, "log level set until the next reload");
            Ok(Json(LogLevel { log_level }))
        }
        Err(reason) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            let message = format!("the body must be {reason}");
            Err(ApiError::new(status, "bad_log_level", message))
        }
    }
}

impl From<reload::LastReload> for LastReload {
    fn from(last: reload::LastReload) -> Self {
        let (outcome, reason, changes) = match last.outcome {
            Ok(changes) => (ReloadOutcome::Ok, None, changes),
            Err(reason) => (ReloadOutcome::Refused, Some(reason), Changes::default()),
        };
        Self {
            ts: rfc3339(last.at),
            outcome,
            reason,
            reloaded: changes.into(),
        }
    }
}

impl From<Changes> for Reloaded {
    fn from(changes: Changes) -> Self {
        let names = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
        Self {
            changed: names(changes.changed),
            pending_restart: names(changes.pending_restart),
        }
    }
}
