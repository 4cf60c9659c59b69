//! The OpenAPI description of all routes, served at `/openapi.json`. Routers describe theirs with parts of it.

use axum::routing::get;
use axum::{Json, Router};
use fastvideo_proto::api::error::{ErrorBody, ErrorDetail};
use utoipa::OpenApi;

use super::app::App;
use super::dreamverse::{adapters as styles, monitor, presets, prompts as system_prompts};
use super::film;
use super::operator::{adapters, prompts, sessions, workers};
use super::rollouts;
use super::status;
use super::videos::routes as videos;
use crate::auth::issue;
use crate::reload::routes as reload;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/openapi.json", get(openapi))
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "fastvideo-supervisor",
        description = "Realtime video generation, segment by segment. Sessions run on `WS /v1/stream`. \
            Every route answers 421 to a request that names another host, see `server.allowed_hosts`. \
            Where callers are asked for keys (`server.auth`), every route but probes, the page, films and `/v1/watch` \
            answers 401, 403, 429 or 503 to one that is not let in."
    ),
    paths(
        status::health,
        status::healthz,
        status::readyz,
        status::status,
        status::metrics,
        sessions::list,
        sessions::drain,
        workers::drain,
        workers::restart,
        adapters::list,
        adapters::load,
        adapters::unload,
        prompts::reload,
        rollouts::write,
        system_prompts::show,
        system_prompts::change
    ),
    components(schemas(ErrorBody, ErrorDetail))
)]
struct ApiDoc;

/// The routes that a router answers as a server does.
#[derive(OpenApi)]
#[openapi(paths(
    openapi,
    stream,
    watch,
    issue::issue,
    reload::reload,
    reload::set_log_level
))]
pub(crate) struct CommonRoutes;

/// The routes that a router passes on to the server that has, or takes, the session.
#[derive(OpenApi)]
#[openapi(paths(
    film::film,
    film::media,
    film::thumbnail,
    film::whole_film,
    film::playlist,
    film::part,
    sessions::hydrate,
    sessions::state,
    sessions::end,
    sessions::relocate
))]
pub(crate) struct SessionRoutes;

/// The routes that a router passes on to the server that has, or makes, the video.
#[derive(OpenApi)]
#[openapi(paths(
    videos::create,
    videos::create_and_wait,
    videos::list,
    videos::retrieve,
    videos::content,
    videos::cancel,
    videos::remove,
    videos::remix,
    videos::edit,
    videos::extend,
    videos::models,
    videos::model
))]
pub(crate) struct VideoRoutes;

/// The routes of FastVideo's web UI.
#[derive(OpenApi)]
#[openapi(paths(
    presets::list,
    presets::append,
    styles::options,
    styles::apply,
    monitor::replicas,
    monitor::sessions
))]
struct DreamverseRoutes;

/// Returns this document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    let document = ApiDoc::openapi().merge_from(CommonRoutes::openapi());
    let document = document.merge_from(SessionRoutes::openapi());
    let document = document.merge_from(VideoRoutes::openapi());
    Json(document.merge_from(DreamverseRoutes::openapi()))
}

/// Opens a session, one per connection: JSON text messages travel both ways, media as binary messages to the client.
/// The messages are described in `docs/protocol.md`.
#[utoipa::path(get, path = "/v1/stream", params(
    ("ticket" = Option<String>, Query, description = "a ticket, in place of a key")
), responses(
    (status = 101, description = "the WebSocket is open"),
    (status = 401, body = ErrorBody, description = "no key, or a wrong one; a browser is told over the WebSocket"),
    (status = 403, body = ErrorBody, description = "the page of a site that is not allowed sent the request"),
    (status = 426, body = ErrorBody, description = "the request was no WebSocket upgrade"),
    (status = 503, body = ErrorBody, description = "too many WebSockets wait for their opening message")
))]
#[expect(
    dead_code,
    reason = "describes the route that `http/stream.rs` answers"
)]
fn stream() {}

/// Shows a session to a spectator who has a token of it: JSON text messages and media. The messages are described in
/// `docs/protocol.md`; nothing that the spectator sends has an effect.
#[utoipa::path(get, path = "/v1/watch", params(
    ("session" = String, Query, description = "the session's id"),
    ("token" = Option<String>, Query, description = "a watch token or resume token, unless it is the bearer token"),
    ("from" = Option<u32>, Query, description = "the first segment; what is on air where it is absent")
), responses(
    (status = 101, description = "the WebSocket is open"),
    (status = 400, body = ErrorBody, description = "a parameter is wrong"),
    (status = 403, body = ErrorBody, description = "the page of a site that is not allowed sent the request"),
    (status = 404, body = ErrorBody, description = "there is no such session, or it has another token"),
    (status = 426, body = ErrorBody, description = "the request was no WebSocket upgrade"),
    (status = 500, body = ErrorBody, description = "what the store has is lost or damaged, or the server failed"),
    (status = 503, body = ErrorBody, description = "there are too many spectators, or the store does not answer")
))]
#[expect(dead_code, reason = "describes the route that `http/watch.rs` answers")]
fn watch() {}
