//! The OpenAPI description of a router's routes, served at `/openapi.json`.

use axum::routing::get;
use axum::{Json, Router};
use fastvideo_proto::api::error::{ErrorBody, ErrorDetail};
use utoipa::OpenApi;
use utoipa::openapi::{Content, PathItem, Ref, Response, ResponseBuilder};

use super::app::App;
use super::{servers, sessions, status};
use crate::http::openapi::{CommonRoutes, SessionRoutes};

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
        servers::pass_on
    ),
    components(schemas(ErrorBody, ErrorDetail))
)]
struct ApiDoc;

fn document() -> utoipa::openapi::OpenApi {
    let mut passed_on = SessionRoutes::openapi();
    for path in passed_on.paths.paths.values_mut() {
        let PathItem {
            get, post, delete, ..
        } = path;
        for operation in [get, post, delete].into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            responses.insert("502".to_owned(), no_answer().into());
        }
    }
    let own = ApiDoc::openapi().merge_from(CommonRoutes::openapi());
    own.merge_from(passed_on)
}

/// Returns the description of the answer where no server answers.
fn no_answer() -> Response {
    let body = Content::new(Some(Ref::from_schema_name("ErrorBody")));
    ResponseBuilder::new()
        .description("no server that is healthy answers")
        .content("application/json", body)
        .build()
}
