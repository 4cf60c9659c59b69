//! Operators' requests for one server, which is named in the path.

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use axum::routing::any;
use fastvideo_proto::api::error::ErrorBody;

use super::app::App;
use super::proxy::{Asked, judged};
use super::registry::Replica;
use crate::ingress::error::ApiError;
use crate::ingress::extract::Body;

/// The most characters of a path that an answer repeats.
const MAX_SHOWN: usize = 100;

pub(super) fn routes(app: &App) -> Router<App> {
    Router::new()
        .route("/v1/servers/{name}/{*path}", any(pass_on))
        // Without one of its own, the whole router's would take the place of what the layer answers.
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(app.guard().cross_origin())
}

/// Passes a request on to the server with that name, whether or not it is healthy: `/v1/servers/a/v1/drain` drains `a`. The
/// routes of its WebSockets are not there.
#[utoipa::path(
    method(get, post, put, patch, delete, options),
    path = "/v1/servers/{name}/{path}",
    params(
        ("name" = String, Path, description = "the server's name, or `host:port` as in its address"),
        ("path" = String, Path, description = "the path at the server, with slashes")
    ),
    responses(
        (status = "default", description = "what the server answers"),
        (status = 400, body = ErrorBody, description = "the path has empty segments, `.` or `..`"),
        (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
        (status = 404, body = ErrorBody, description = "there is no such server, or the route is one for WebSockets"),
        (status = 408, body = ErrorBody, description = "the body took too long"),
        (status = 409, body = ErrorBody, description = "several servers have that name"),
        (status = 413, body = ErrorBody, description = "the body is larger than a message may be"),
        (status = 502, body = ErrorBody, description = "the server does not answer"),
        (status = 503, body = ErrorBody, description = "too much is being received")
    )
)]
pub(super) async fn pass_on(
    State(app): State<App>,
    Order { server, target }: Order,
    method: Method,
    headers: HeaderMap,
    Body { bytes, share }: Body,
) -> Result<Response, ApiError> {
    let asked = Asked {
        method: &method,
        target: &target,
        headers: &judged(headers),
        body: bytes,
    };
    let replica = find(&app, &server).await?;
    let answer = app.proxy.ask_one(&replica, &asked).await;
    drop(share);
    answer.ok_or_else(|| {
        let message = format!("the server `{replica}` does not answer");
        ApiError::new(StatusCode::BAD_GATEWAY, "server_unreachable", message)
    })
}

/// Finds the server with that name.
async fn find(app: &App, name: &str) -> Result<Arc<Replica>, ApiError> {
    app.registry.first_probes().await;
    let named = app.registry.named(name);
    let name = shown(name);
    match &named[..] {
        [] => {
            let message = format!("there is no server `{name}`; /status lists all");
            Err(ApiError::new(StatusCode::NOT_FOUND, "no_server", message))
        }
        [replica] => Ok(replica.clone()),
        several => {
            let addresses = several.iter().map(|it| it.endpoint.url.authority());
            let addresses = addresses.collect::<Vec<_>>().join(", ");
            let message = format!("several servers are named `{name}`: ask {addresses} instead");
            Err(ApiError::new(
                StatusCode::CONFLICT,
                "ambiguous_name",
                message,
            ))
        }
    }
}

/// What a path asks of which server.
pub(super) struct Order {
    server: String,
    /// The path at the server and the query, as the client has encoded them.
    target: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Order {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let decoded = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Ok(Path((server, path))) = decoded else {
            return Err(ApiError::invalid_request("the path is not UTF-8"));
        };
        check(&path)?;
        let target = target(&parts.uri);
        Ok(Self { server, target })
    }
}

/// Returns the path at the server and the query.
fn target(uri: &Uri) -> String {
    // Empty, `v1`, `servers`, the name, and the rest.
    let path = uri.path().splitn(5, '/').last().unwrap_or_default();
    match uri.query() {
        Some(query) => format!("/{path}?{query}"),
        None => format!("/{path}"),
    }
}

/// Checks a decoded path at a server: it must be what it seems to be, also to a proxy before the server, and not be one of a
/// WebSocket.
fn check(path: &str) -> Result<(), ApiError> {
    let segments = path.strip_suffix('/').unwrap_or(path);
    let segments: Vec<&str> = segments.split(['/', '\\']).collect();
    if segments.iter().any(|it| matches!(*it, "" | "." | "..")) {
        let message = format!(
            "the path at a server must have no empty segments and no `.` or `..`, given `/{}`",
            shown(path)
        );
        return Err(ApiError::invalid_request(message));
    }
    match segments[..] {
        ["v1", "stream" | "watch" | "router", ..] => {
            let message = format!(
                "a server's WebSockets are not reached through a router, given `/{}`; sessions and spectators use /v1/stream and /v1/watch of the router",
                shown(path)
            );
            Err(ApiError::not_found(message))
        }
        _ => Ok(()),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    #[test]
    fn paths_that_are_not_what_they_seem_and_those_of_websockets_are_refused() {
        for (path, expected) in [
            ("status", None),
            ("v1/drain", None),
            ("v1/drain/", None),
            ("v1/sessions/x/film/0.mp4", None),
            ("v1/streams", None),
            ("v1/workers/0/...", None),
            ("/", Some(400)),
            ("/v1/drain", Some(400)),
            ("v1//drain", Some(400)),
            ("v1/drain//", Some(400)),
            ("..", Some(400)),
            ("x/../v1/router", Some(400)),
            ("x\\..\\v1\\router", Some(400)),
            ("v1/./router", Some(400)),
            ("v1/stream", Some(404)),
            ("v1/stream/", Some(404)),
            ("v1/watch", Some(404)),
            ("v1/router", Some(404)),
            ("v1/router/session", Some(404)),
            ("v1\\router", Some(404)),
        ] {
            let refused = check(path).err().map(|error| error.into_response());
            let status = refused.map(|answer| answer.status().as_u16());
            assert_eq!(status, expected, "{path}");
        }
    }

    #[test]
    fn the_path_and_query_at_a_server_stay_as_they_are_encoded() {
        for (uri, expected) in [
            ("/v1/servers/a/status", "/status"),
            ("/v1/servers/a%20b/v1/x%20y?z=%2F", "/v1/x%20y?z=%2F"),
            ("/v1/servers/http:%2F%2F[::1]:80/x/", "/x/"),
            ("/v1/servers/a/v1/servers/b/x?", "/v1/servers/b/x?"),
            ("http://router/v1/servers/a/x", "/x"),
        ] {
            assert_eq!(target(&uri.parse().unwrap()), expected, "{uri}");
        }
    }
}
