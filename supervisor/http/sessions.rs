//! Sessions for operators: listed, exported, brought in, ended; and the drain of the whole server.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use fastvideo_proto::ids::{GpuId, SessionId};
use fastvideo_proto::state::ContinuationState;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{App, AppState, ErrorBody, error};
use crate::pool::MoveError;
use crate::session::SessionState;
use crate::store::export::Expectation;
use crate::store::{
    ExportFailed, ImportFailed, StoreError, export_by_reference, export_inline, import,
};

pub(super) fn routes(max_body_bytes: usize) -> Router<App> {
    Router::new()
        .route("/v1/sessions", get(list).post(hydrate))
        .route("/v1/sessions/{id}", axum::routing::delete(end))
        .route("/v1/sessions/{id}/state", get(state))
        .route("/v1/sessions/{id}/move", post(relocate))
        .route("/v1/drain", post(drain))
        .layer(DefaultBodyLimit::max(max_body_bytes))
}

#[derive(Serialize, ToSchema)]
pub(super) struct SessionList {
    /// In the order in which they connected.
    sessions: Vec<SessionEntry>,
}

#[derive(Serialize, ToSchema)]
struct SessionEntry {
    session_id: String,
    #[schema(value_type = String)]
    state: SessionState,
    /// The worker that it is bound to, or was last.
    worker_id: Option<String>,
    /// The segment that comes next, or runs.
    segment_idx: u32,
    /// Since its client connected.
    age_seconds: f64,
}

/// The sessions that are connected to this server.
#[utoipa::path(get, path = "/v1/sessions", responses((status = 200, body = SessionList)))]
pub(super) async fn list(State(app): AppState) -> Json<SessionList> {
    let entries = app.registry.list().into_iter().map(|entry| SessionEntry {
        session_id: entry.id.to_string(),
        state: entry.state,
        worker_id: entry.worker.map(|worker| worker.to_string()),
        segment_idx: entry.segments,
        age_seconds: entry.connected.elapsed().as_secs_f64(),
    });
    Json(SessionList {
        sessions: entries.collect(),
    })
}

/// A continuation state as `snapshot_state` gives it.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StateBody {
    /// `ltx2.v1`.
    kind: String,
    #[schema(value_type = Object)]
    payload: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Hydrated {
    session_id: String,
    /// For `resume` in the opening message.
    resume_token: String,
}

/// Brings a continuation state in as a session that a client can resume.
#[utoipa::path(post, path = "/v1/sessions", request_body = StateBody, responses(
    (status = 201, body = Hydrated),
    (status = 400, body = ErrorBody, description = "the body is no continuation state"),
    (status = 413, body = ErrorBody, description = "the body is larger than a message may be"),
    (status = 422, body = ErrorBody, description = "the model does not take this state"),
    (status = 503, body = ErrorBody, description = "the store does not answer or is full")
))]
pub(super) async fn hydrate(State(app): AppState, body: Result<Bytes, BytesRejection>) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => {
            let (status, limit) = (rejection.status(), app.max_message_bytes);
            let message = match status {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    format!("the body is larger than {limit} bytes, which is the limit")
                }
                _ => rejection.body_text(),
            };
            return error(status, "invalid_body", message);
        }
    };
    let parsed = tokio::task::spawn_blocking(move || serde_json::from_slice::<StateBody>(&body));
    let state = match parsed.await {
        Ok(Ok(state)) => ContinuationState {
            kind: state.kind,
            payload: state.payload,
        },
        Ok(Err(wrong)) => {
            let message = format!("the body is not {{kind, payload}} in JSON: {wrong}");
            return error(StatusCode::BAD_REQUEST, "invalid_body", message);
        }
        Err(panic) => return broken(&panic),
    };
    let format = app.context.config.format;
    let expected = Expectation {
        width: format.width,
        height: format.height,
    };
    let state = match import(state, expected, &app.context.store).await {
        Ok(state) => state,
        Err(ImportFailed::Refused(why)) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return error(status, "state_incompatible", why.to_string());
        }
        Err(ImportFailed::Store(failed)) => return unavailable(&failed),
        Err(ImportFailed::Panicked(panic)) => return broken(&panic),
    };
    match app.context.store.hydrate(&state).await {
        Ok((session, token)) => {
            let hydrated = Hydrated {
                session_id: session.to_string(),
                resume_token: token.as_str().to_owned(),
            };
            (StatusCode::CREATED, Json(hydrated)).into_response()
        }
        Err(failed) => unavailable(&failed),
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Inline {
    /// Everything in the answer, and no references to blobs of this server's store.
    #[serde(default)]
    inline: bool,
}

/// A session's last finished state. Tensors above 2 MiB are references to blobs, which the store keeps as long as the
/// state of a session that nobody runs.
#[utoipa::path(get, path = "/v1/sessions/{id}/state", params(("id" = String, Path), Inline), responses(
    (status = 200, body = StateBody),
    (status = 404, body = ErrorBody, description = "there is no such session, or it has no state yet"),
    (status = 503, body = ErrorBody, description = "the store does not answer or is full")
))]
pub(super) async fn state(
    State(app): AppState,
    Path(id): Path<String>,
    Query(inline): Query<Inline>,
) -> Response {
    let store = &app.context.store;
    let Some(session) = SessionId::parse(&id) else {
        return no_session();
    };
    let state = match store.snapshot(&session).await {
        Ok(Some(snapshot)) => snapshot.state,
        Ok(None) => return no_session(),
        Err(failed) => return unavailable(&failed),
    };
    let Some(state) = state else {
        let message = "the session has no continuation state yet: no segment is finished";
        return error(StatusCode::NOT_FOUND, "no_state", message);
    };
    let exported = match inline.inline {
        true => export_inline(state).await,
        false => export_by_reference(state, store).await,
    };
    match exported {
        Ok(ContinuationState { kind, payload }) => {
            Json(StateBody { kind, payload }).into_response()
        }
        Err(ExportFailed::Store(failed)) => unavailable(&failed),
        Err(failed) => broken(&failed),
    }
}

/// Ends a session, whether or not it is connected, and drops its state.
#[utoipa::path(delete, path = "/v1/sessions/{id}", params(("id" = String, Path)), responses(
    (status = 204, description = "it is over"),
    (status = 404, body = ErrorBody, description = "there is no such session"),
    (status = 503, body = ErrorBody, description = "the store does not answer")
))]
pub(super) async fn end(State(app): AppState, Path(id): Path<String>) -> Response {
    let Some(session) = SessionId::parse(&id) else {
        return no_session();
    };
    match app.context.store.drop(&session).await {
        Ok(true) => StatusCode::NO_CONTENT.into_response(),
        Ok(false) => no_session(),
        Err(failed) => unavailable(&failed),
    }
}

/// Where a session is to go.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Destination {
    /// Another worker that has room when absent.
    gpu_id: Option<u32>,
}

/// Moves a session to another worker, at the end of its running segment.
#[utoipa::path(post, path = "/v1/sessions/{id}/move", params(("id" = String, Path)), request_body = Option<Destination>,
    responses(
        (status = 202, description = "it moves, or is there already"),
        (status = 400, body = ErrorBody, description = "the body is wrong, or there is no such GPU"),
        (status = 404, body = ErrorBody, description = "there is no such session on this server"),
        (status = 409, body = ErrorBody, description = "there is no room for it, or it waits for a worker")
    )
)]
pub(super) async fn relocate(
    State(app): AppState,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let Some(session) = SessionId::parse(&id) else {
        return no_session();
    };
    let body = match body {
        Ok(body) => body,
        Err(rejection) => {
            return error(rejection.status(), "invalid_body", rejection.body_text());
        }
    };
    let to = match body.is_empty() {
        true => Destination::default(),
        false => match serde_json::from_slice(&body) {
            Ok(to) => to,
            Err(wrong) => {
                let message = format!("the body is not {{gpu_id}} in JSON: {wrong}");
                return error(StatusCode::BAD_REQUEST, "invalid_body", message);
            }
        },
    };
    let Err(refused) = app
        .context
        .pool
        .move_session(&session, to.gpu_id.map(GpuId))
    else {
        return StatusCode::ACCEPTED.into_response();
    };
    let (status, code) = match refused {
        MoveError::UnknownSession(_) => return no_session(),
        MoveError::UnknownGpu(_) => (StatusCode::BAD_REQUEST, "no_gpu"),
        MoveError::Waiting
        | MoveError::NotServing(_)
        | MoveError::NoRoom(_)
        | MoveError::NoOtherRoom => (StatusCode::CONFLICT, "no_room"),
    };
    error(status, code, refused.to_string())
}

/// Begins to drain the server as SIGTERM does: sessions are told, running segments finish, then it ends.
#[utoipa::path(post, path = "/v1/drain", responses((status = 202, description = "it drains")))]
pub(super) async fn drain(State(app): AppState) -> StatusCode {
    app.drain_asked.notify_one();
    StatusCode::ACCEPTED
}

fn no_session() -> Response {
    let message = "there is no such session; it may have expired";
    error(StatusCode::NOT_FOUND, "no_session", message)
}

fn unavailable(failed: &StoreError) -> Response {
    tracing::error!(error = %failed, "request not served");
    let message = match failed {
        StoreError::Full { .. } => "the store is full of running sessions; try again soon",
        _ => "the store does not answer; try again soon",
    };
    error(
        StatusCode::SERVICE_UNAVAILABLE,
        "store_unavailable",
        message,
    )
}

fn broken(failed: &dyn std::error::Error) -> Response {
    tracing::error!(error = %failed, "request not served");
    let message = "the server failed; its log says why";
    error(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
}
