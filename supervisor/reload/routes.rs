//! The operators' routes, of servers and of routers, that read the configuration again and set the filter of the log.

use axum::extract::{FromRef, State};
use axum::http::StatusCode;
use axum::routing::{post, put};
use axum::{Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::reload::{LastReload, LogLevel, ReloadOutcome, Reloaded};

use super::{Changes, ReloadError, Reloads};
use crate::auth::guard::Guard;
use crate::ingress::Ingress;
use crate::ingress::error::ApiError;
use crate::ingress::extract::Body;
use crate::ingress::timestamp::rfc3339;

/// Returns the routes for a service with any state that has its [`Reloads`].
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(guard: &Guard) -> Router<S>
where
    Reloads: FromRef<S>,
    Ingress: FromRef<S>,
{
    Router::new()
        .route("/v1/reload", post(reload))
        .route("/v1/log-level", put(set_log_level))
        // Without one of its own, the whole router's would take the place of what the layer answers.
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(guard.cross_origin())
}

/// Reads the configuration again, with the files that it names, as SIGHUP does.
#[utoipa::path(post, path = "/v1/reload", responses(
    (status = 200, body = Reloaded, description = "what has changed, and what waits for a restart"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 422, body = ErrorBody, description = "some of it cannot be used: everything stays as it was")
))]
pub(crate) async fn reload(State(reloads): State<Reloads>) -> Result<Json<Reloaded>, ApiError> {
    match reloads.run().await {
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
pub(crate) async fn set_log_level(
    State(reloads): State<Reloads>,
    body: Body,
) -> Result<Json<LogLevel>, ApiError> {
    let log_level = String::from_utf8_lossy(&body.bytes).trim().to_owned();
    match reloads.set_log_filter(&log_level) {
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

impl From<super::LastReload> for LastReload {
    fn from(last: super::LastReload) -> Self {
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
