//! The operators' routes for sessions: list, export, hydrate, move and end them, and drain the whole server.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use fastvideo_proto::api;
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::sessions::{
    Destination, Hydrated, SessionEntry, SessionList, StateBody, StateQuery,
};
use fastvideo_proto::state::ContinuationState;
use tokio::time::Instant;

use crate::auth::Caller;
use crate::http::app::{App, AppState};
use crate::ingress::error::ApiError;
use crate::ingress::extract::{Body, PathSession, ValidQuery};
use crate::pool::MoveError;
use crate::session::{Entry, SessionState};
use crate::store::export::Expectation;
use crate::store::{ExportFailed, ImportFailed, export_by_reference, export_inline, import};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/sessions", get(list).post(hydrate))
        .route("/v1/sessions/{id}", delete(end))
        .route("/v1/sessions/{id}/state", get(state))
        .route("/v1/sessions/{id}/move", post(relocate))
        .route("/v1/drain", post(drain))
}

/// Lists the sessions that are connected to this server.
#[utoipa::path(get, path = "/v1/sessions", responses((status = 200, body = SessionList)))]
pub(in crate::http) async fn list(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
) -> Json<SessionList> {
    let scope = caller.scope();
    let sessions = app.registry.list().into_iter();
    let sessions = sessions.filter(|entry| scope.has(&entry.tenant));
    Json(SessionList {
        sessions: sessions.map(entry).collect(),
    })
}

/// Stores a continuation state as a session that a client can resume.
#[utoipa::path(post, path = "/v1/sessions", request_body = StateBody, responses(
    (status = 201, body = Hydrated),
    (status = 400, body = ErrorBody, description = "the body is no continuation state"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 408, body = ErrorBody, description = "the body took too long"),
    (status = 413, body = ErrorBody, description = "the body is larger than a message may be"),
    (status = 422, body = ErrorBody, description = "the model does not take this state"),
    (status = 500, body = ErrorBody, description = "what the store has is lost or damaged, or the server failed"),
    (status = 503, body = ErrorBody, description = "the store does not answer or is full, or too much is being received")
))]
pub(in crate::http) async fn hydrate(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    Body { bytes, share }: Body,
) -> Result<(StatusCode, Json<Hydrated>), ApiError> {
    let store = app.store_of(&caller);
    // States are large, so they are parsed on a thread for blocking work.
    let parsed = tokio::task::spawn_blocking(move || serde_json::from_slice::<StateBody>(&bytes));
    let StateBody { kind, payload } = match parsed.await {
        Ok(Ok(state)) => state,
        Ok(Err(wrong)) => {
            let message = format!("the body is not {{kind, payload}} in JSON: {wrong}");
            return Err(ApiError::invalid_body(message));
        }
        Err(panic) => return Err(ApiError::internal(&panic)),
    };
    let format = app.context.config.get().format;
    let expected = Expectation {
        width: format.width,
        height: format.height,
    };
    let state = ContinuationState { kind, payload };
    let state = match import(state, expected, &store).await {
        Ok(state) => state,
        Err(ImportFailed::Refused(why)) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(ApiError::new(status, "state_incompatible", why.to_string()));
        }
        Err(ImportFailed::Store(failed)) => return Err(ApiError::store(&failed)),
        Err(ImportFailed::Panicked(panic)) => return Err(ApiError::internal(&panic)),
    };
    drop(share);
    let hydrated = store.hydrate(&state).await;
    let (session_id, token) = hydrated.map_err(|failed| ApiError::store(&failed))?;
    let hydrated = Hydrated {
        session_id,
        resume_token: token.as_str().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(hydrated)))
}

/// Returns a session's last finished state. Tensors above 2 MiB are references to blobs, which the store keeps for as
/// long as the state of a session that no server runs.
#[utoipa::path(get, path = "/v1/sessions/{id}/state", params(("id" = String, Path), StateQuery), responses(
    (status = 200, body = StateBody),
    (status = 400, body = ErrorBody, description = "a parameter is wrong"),
    (status = 404, body = ErrorBody, description = "there is no such session, or it has no state yet"),
    (status = 500, body = ErrorBody, description = "what the store has is lost or damaged, or the server failed"),
    (status = 503, body = ErrorBody, description = "the store does not answer or is full")
))]
pub(in crate::http) async fn state(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    PathSession(session): PathSession,
    ValidQuery(query): ValidQuery<StateQuery>,
) -> Result<Json<StateBody>, ApiError> {
    let store = app.store_of(&caller);
    let snapshot = store.snapshot(&session).await;
    let snapshot = snapshot.map_err(|failed| ApiError::store(&failed))?;
    let Some(state) = snapshot.ok_or_else(ApiError::no_session)?.state else {
        let message = "the session has no continuation state yet: no segment is finished";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_state", message));
    };
    let exported = match query.inline {
        true => export_inline(state).await,
        false => export_by_reference(state, &store).await,
    };
    match exported {
        Ok(ContinuationState { kind, payload }) => Ok(Json(StateBody { kind, payload })),
        Err(ExportFailed::Store(failed)) => Err(ApiError::store(&failed)),
        Err(failed) => Err(ApiError::internal(&failed)),
    }
}

/// Ends a session, whether or not it is connected, and drops its state.
#[utoipa::path(delete, path = "/v1/sessions/{id}", params(("id" = String, Path)), responses(
    (status = 204, description = "the session has ended"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = ErrorBody, description = "there is no such session"),
    (status = 500, body = ErrorBody, description = "what the store has is lost or damaged, or the server failed"),
    (status = 503, body = ErrorBody, description = "the store does not answer")
))]
pub(in crate::http) async fn end(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    PathSession(session): PathSession,
) -> Result<StatusCode, ApiError> {
    if app.registry.end_unstored(&session, &caller.scope()) {
        return Ok(StatusCode::NO_CONTENT);
    }
    match app.store_of(&caller).drop(&session).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(ApiError::no_session()),
        Err(failed) => Err(ApiError::store(&failed)),
    }
}

/// Moves a session to another worker at the end of its running segment.
#[utoipa::path(post, path = "/v1/sessions/{id}/move", params(("id" = String, Path)), request_body = Option<Destination>,
    responses(
        (status = 202, description = "the session moves, or is there already"),
        (status = 400, body = ErrorBody, description = "the body is wrong, or there is no such GPU"),
        (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
        (status = 404, body = ErrorBody, description = "there is no such session on this server"),
        (status = 408, body = ErrorBody, description = "the body took too long"),
        (status = 409, body = ErrorBody, description = "there is no room for it, or it waits for a worker"),
        (status = 413, body = ErrorBody, description = "the body is larger than a message may be"),
        (status = 503, body = ErrorBody, description = "too much is being received")
    )
)]
pub(in crate::http) async fn relocate(
    State(app): AppState,
    PathSession(session): PathSession,
    Body { bytes, .. }: Body,
) -> Result<StatusCode, ApiError> {
    let to = match bytes.is_empty() {
        true => Destination::default(),
        false => serde_json::from_slice(&bytes).map_err(|wrong| {
            ApiError::invalid_body(format!("the body is not {{gpu_id}} in JSON: {wrong}"))
        })?,
    };
    let Err(refused) = app.context.pool.move_session(&session, to.gpu_id) else {
        return Ok(StatusCode::ACCEPTED);
    };
    let (status, code) = match refused {
        MoveError::UnknownSession(_) => return Err(ApiError::no_session()),
        MoveError::UnknownGpu(_) => (StatusCode::BAD_REQUEST, "no_gpu"),
        MoveError::Waiting
        | MoveError::NotServing(_)
        | MoveError::NoRoom(_)
        | MoveError::NoOtherRoom => (StatusCode::CONFLICT, "no_room"),
    };
    Err(ApiError::new(status, code, refused.to_string()))
}

/// Starts to drain the server, as SIGTERM does: sessions are told, running segments finish, then the server ends.
#[utoipa::path(post, path = "/v1/drain", responses(
    (status = 202, description = "the server drains"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request")
))]
pub(in crate::http) async fn drain(State(app): AppState) -> StatusCode {
    app.drain_asked.notify_one();
    StatusCode::ACCEPTED
}

fn entry(session: Entry) -> SessionEntry {
    SessionEntry {
        session_id: session.id,
        protocol: session.protocol.name().to_owned(),
        state: session.state.into(),
        worker_id: session.worker,
        segment_idx: session.segments,
        lead_seconds: session.playback.lead(Instant::now()).as_secs_f64(),
        age_seconds: session.connected.elapsed().as_secs_f64(),
    }
}

impl From<SessionState> for api::sessions::SessionState {
    fn from(state: SessionState) -> Self {
        match state {
            SessionState::Initializing => Self::Initializing,
            SessionState::Queued => Self::Queued,
            SessionState::GpuBinding => Self::GpuBinding,
            SessionState::Active => Self::Active,
            SessionState::Complete => Self::Complete,
            SessionState::Error => Self::Error,
            SessionState::Timeout => Self::Timeout,
            SessionState::Rejected => Self::Rejected,
        }
    }
}
