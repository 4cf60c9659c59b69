//! The OpenAPI description of a router's routes, served at `/openapi.json`.

use axum::routing::get;
use axum::{Json, Router};
use fastvideo_proto::api::error::{ErrorBody, ErrorDetail};
use utoipa::OpenApi;
use utoipa::openapi::{Content, OpenApi as Document, PathItem, Ref, Response, ResponseBuilder};

use super::app::App;
use super::{servers, sessions, status, videos};
use crate::http::openapi::{CommonRoutes, SessionRoutes, VideoRoutes};

pub(super) fn routes() -> Router<App> {
    Router::new().route("/openapi.json", get(async || Json(document())))
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "fastvideo-supervisor router",
        description = "One address before many servers. Sessions run on `WS /v1/stream`. \
            Every route answers 421 to a request that names another host, see `server.allowed_hosts`. \
            Where callers are asked for keys (`server.auth`), every route but probes, the page, films and `/v1/watch` \
            answers 401, 403, 429 or 503 to one that is not let in."
    ),
    paths(
        status::health,
        status::healthz,
        status::readyz,
        status::status,
        status::scrape,
        status::fleet_demand,
        sessions::list,
        servers::pass_on,
        videos::list
    ),
    components(schemas(ErrorBody, ErrorDetail))
)]
struct ApiDoc;

fn document() -> Document {
    let no_answer = refusal("ErrorBody", "no server that is healthy answers");
    let sessions = with_answer(SessionRoutes::openapi(), "502", &no_answer);
    let lost = refusal("OpenAiErrorBody", "the server was lost before it answered");
    let videos = with_answer(VideoRoutes::openapi(), "502", &lost);
    let away = "no server answers, or one on which this depends does not, or none can do this now";
    let videos = with_answer(videos, "503", &refusal("OpenAiErrorBody", away));
    let own = ApiDoc::openapi().merge_from(CommonRoutes::openapi());
    own.merge_from(sessions).merge_from(videos)
}

/// Adds an answer to all operations.
fn with_answer(mut document: Document, status: &str, answer: &Response) -> Document {
    for path in document.paths.paths.values_mut() {
        let PathItem {
            get, post, delete, ..
        } = path;
        for operation in [get, post, delete].into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            responses.insert(status.to_owned(), answer.clone().into());
        }
    }
    document
}

/// Returns the description of a refusal.
fn refusal(body: &str, description: &str) -> Response {
    let body = Content::new(Some(Ref::from_schema_name(body)));
    ResponseBuilder::new()
        .description(description)
        .content("application/json", body)
        .build()
}
