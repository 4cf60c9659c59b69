//! Operators' requests for sessions: the lists of all servers as one, states for a server that takes them, and orders for the
//! server that runs a session.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use fastvideo_proto::api::router::{FleetSession, FleetSessions};
use fastvideo_proto::api::sessions::{Destination, SessionEntry, SessionList};
use fastvideo_proto::ids::SessionId;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::app::App;
use super::proxy::{Asked, judged, target};
use super::registry::Replica;
use crate::ingress::error::ApiError;
use crate::ingress::extract::{Body, PathSession};

/// The most that is read of a server's list.
const MAX_LIST_BYTES: usize = 16 << 20;

/// How long a server may take to list its sessions.
const LIST_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn routes(app: &App) -> Router<App> {
    Router::new()
        .route("/v1/sessions", get(list).post(hydrate))
        .route("/v1/sessions/{id}", delete(order))
        .route("/v1/sessions/{id}/state", get(order))
        .route("/v1/sessions/{id}/move", post(relocate))
        // Without one of its own, the whole router's would take the place of what the layer answers.
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(app.guard().cross_origin())
}

/// Lists the sessions of all servers. Those that do not answer are named, too.
#[utoipa::path(get, path = "/v1/sessions", responses((status = 200, body = FleetSessions)))]
pub(super) async fn list(State(app): State<App>, headers: HeaderMap) -> Json<FleetSessions> {
    let mut merged = FleetSessions::default();
    for (replica, entries) in lists(&app, &headers).await {
        let server = replica.label();
        match entries {
            Some(entries) => {
                let entries = entries.into_iter();
                merged.sessions.extend(entries.map(|entry| FleetSession {
                    server: server.clone(),
                    entry,
                }));
            }
            None => merged.unreachable.push(server),
        }
    }
    Json(merged)
}

/// Passes a state on to the first server that takes it; those with room are asked first.
async fn hydrate(
    State(app): State<App>,
    uri: Uri,
    headers: HeaderMap,
    Body { bytes, share }: Body,
) -> Result<Response, ApiError> {
    let asked = Asked {
        method: &Method::POST,
        target: target(&uri)?,
        headers: &judged(headers),
        body: bytes,
    };
    app.registry.first_probes().await;
    let replicas = app.registry.preferred();
    let answer = app.proxy.ask_until_taken(replicas, &asked).await;
    drop(share);
    answer
}

/// Passes a request on to the server that runs the session, else to the first one that knows it.
async fn order(
    State(app): State<App>,
    PathSession(session): PathSession,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    Body { bytes, share }: Body,
) -> Result<Response, ApiError> {
    let asked = Asked {
        method: &method,
        target: target(&uri)?,
        headers: &judged(headers),
        body: bytes,
    };
    let replicas = running_first(&app, &session, asked.headers).await;
    let answer = app.proxy.ask_in_turn(replicas, &asked).await;
    drop(share);
    answer
}

/// Moves a session: to another GPU of its server, or, where none has room and none is named, to another server.
async fn relocate(
    State(app): State<App>,
    session: PathSession,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let is_any = match &body.bytes[..] {
        [] => true,
        body => serde_json::from_slice::<Destination>(body)
            .is_ok_and(|destination| destination.gpu_id.is_none()),
    };
    let PathSession(id) = &session;
    let id = id.clone();
    let answer = order(State(app.clone()), session, method, uri, headers, body).await?;
    let has_no_room = answer.status() == StatusCode::CONFLICT;
    match is_any && has_no_room && app.carried.move_elsewhere(&id).await {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Ok(answer),
    }
}

/// Returns the healthy servers; the one that runs the session comes first.
async fn running_first(app: &App, session: &SessionId, headers: &HeaderMap) -> Vec<Arc<Replica>> {
    let (mut running, mut others) = (Vec::new(), Vec::new());
    for (replica, entries) in lists(app, headers).await {
        let runs = |entries: Vec<SessionEntry>| entries.iter().any(|it| it.session_id == *session);
        match entries.is_some_and(runs) {
            true => running.push(replica),
            false if replica.is_healthy() => others.push(replica),
            false => {}
        }
    }
    running.append(&mut others);
    running
}

/// Asks all servers at once for their sessions; `None` is where there is no answer in time.
async fn lists(app: &App, headers: &HeaderMap) -> Vec<(Arc<Replica>, Option<Vec<SessionEntry>>)> {
    app.registry.first_probes().await;
    let asked = Asked {
        method: &Method::GET,
        target: "/v1/sessions",
        headers,
        body: Vec::new().into(),
    };
    let replicas = app.registry.all();
    let lists = replicas.iter().map(async |replica| {
        let list = async {
            if !replica.is_healthy() {
                return None;
            }
            let body = app.proxy.read(replica, &asked, MAX_LIST_BYTES).await?;
            serde_json::from_slice::<SessionList>(&body).ok()
        };
        let list = timeout(LIST_TIMEOUT, list).await.ok().flatten();
        (replica.clone(), list.map(|list| list.sessions))
    });
    join_all(lists).await
}
