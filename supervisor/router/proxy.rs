//! Passes requests on to servers.
//!
//! Any server with the session's store has its film; the one that runs the session has also what is being made. So the
//! servers are asked one after the other, until one knows the session and the token.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONNECTION,
    CONTENT_TYPE, IF_NONE_MATCH, IF_RANGE, ORIGIN, RANGE, TRANSFER_ENCODING,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use fastvideo_proto::api::error::ErrorBody;
use futures_util::stream;
use rustls::ClientConfig;

use super::encryption;
use super::health_check::below;
use super::registry::{Replica, ReplicaRegistry};
use crate::auth::guard::ROUTER_KEY;
use crate::ingress::error::ApiError;
use crate::ingress::origins::{Origins, SEC_FETCH_SITE};

/// Time limit on connecting to a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that is read of a refusal.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// The headers of a request that the routes of a session look at.
const PASSED_ON: [HeaderName; 9] = [
    ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD,
    AUTHORIZATION,
    CONTENT_TYPE,
    IF_NONE_MATCH,
    IF_RANGE,
    ORIGIN,
    RANGE,
    SEC_FETCH_SITE,
];

/// What a client asks for.
#[derive(Clone, Debug)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    /// Path and query.
    pub(super) target: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: Bytes,
}

/// Returns the headers for a server, which knows the router's address by no other means: where the browser has not said
/// that a request is of the page at this address, the headers say it.
pub(super) fn judged(mut headers: HeaderMap) -> HeaderMap {
    let is_own = Origins::default().foreign(&headers).is_none();
    if is_own && headers.contains_key(ORIGIN) {
        headers.insert(SEC_FETCH_SITE, HeaderValue::from_static("same-origin"));
    }
    headers
}

/// Asks servers for what clients of the router ask for.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    client: reqwest::Client,
    /// By which servers know that an order was judged here.
    router_key: Option<HeaderValue>,
}

impl Proxy {
    /// # Errors
    /// Returns an error when TLS cannot be set up.
    pub(super) fn new(
        tls: Option<&ClientConfig>,
        router_key: Option<HeaderValue>,
    ) -> io::Result<Self> {
        let client = encryption::http_client(tls).connect_timeout(CONNECT_TIMEOUT);
        Ok(Self {
            client: client.build().map_err(io::Error::other)?,
            router_key,
        })
    }

    /// Asks one server. The log says why one does not answer.
    async fn ask(
        &self,
        replica: &Replica,
        asked: &Asked<'_>,
    ) -> reqwest::Result<reqwest::Response> {
        let url = below(&replica.endpoint.url, asked.target);
        let mut passed_on = HeaderMap::new();
        for name in PASSED_ON {
            for value in asked.headers.get_all(&name) {
                passed_on.append(&name, value.clone());
            }
        }
        if let Some(key) = &self.router_key {
            passed_on.insert(ROUTER_KEY, key.clone());
        }
        let request = self
            .client
            .request(asked.method.clone(), url)
            .headers(passed_on);
        let request = match asked.body.is_empty() {
            true => request,
            false => request.body(asked.body.clone()),
        };
        let answer = request.send().await;
        let failed = |error: &reqwest::Error| {
            let error = encryption::reason(error);
            tracing::warn!(%replica, error, "replica not reached");
        };
        let answer = answer.map_err(reqwest::Error::without_url);
        answer.inspect_err(failed)
    }

    /// Reads the answer of one server; `None` when it is none, a refusal, or larger than `limit`.
    pub(super) async fn read(
        &self,
        replica: &Replica,
        asked: &Asked<'_>,
        limit: usize,
    ) -> Option<Vec<u8>> {
        let mut answer = self.ask(replica, asked).await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.ok()? {
            body.extend_from_slice(&chunk);
            if body.len() > limit {
                return None;
            }
        }
        Some(body)
    }

    /// Asks one server; `None` when it does not answer.
    pub(super) async fn ask_one(&self, replica: &Replica, asked: &Asked<'_>) -> Option<Response> {
        self.ask(replica, asked).await.ok().map(passed)
    }

    /// Asks the servers one after the other, until one knows the session.
    pub(super) async fn ask_in_turn(
        &self,
        replicas: impl IntoIterator<Item = Arc<Replica>>,
        asked: &Asked<'_>,
    ) -> Result<Response, ApiError> {
        let mut refused = None;
        for replica in replicas {
            let Ok(answer) = self.ask(&replica, asked).await else {
                continue;
            };
            match answer.status() {
                StatusCode::NOT_FOUND => {
                    let (is_unknown, answer) = not_found(answer).await;
                    if !is_unknown {
                        return Ok(answer);
                    }
                    refused.get_or_insert(answer);
                }
                // Another one may have what its store does not give now.
                StatusCode::SERVICE_UNAVAILABLE => refused = Some(passed(answer)),
                _ => return Ok(passed(answer)),
            }
        }
        refused.ok_or_else(nobody_answers)
    }

    /// Asks the servers one after the other, until one takes what the request brings in. One that was lost before it answered
    /// may have taken it, so that no other one is asked.
    pub(super) async fn ask_until_taken(
        &self,
        replicas: impl IntoIterator<Item = Arc<Replica>>,
        asked: &Asked<'_>,
    ) -> Result<Response, ApiError> {
        let mut refused: Option<Response> = None;
        for replica in replicas {
            let answer = match self.ask(&replica, asked).await {
                Ok(answer) => answer,
                Err(error) if error.is_connect() => continue,
                Err(_) => {
                    let message = format!("the server `{replica}` was lost before it answered");
                    let status = StatusCode::BAD_GATEWAY;
                    return Err(ApiError::new(status, "server_lost", message));
                }
            };
            if !refuses_untried(answer.status()) {
                return Ok(passed(answer));
            }
            tracing::info!(%replica, status = answer.status().as_u16(), "not taken; the next one is tried");
            // The larger the code, the nearer was the server to taking it.
            let status = refused.as_ref().map(Response::status);
            if status.is_none_or(|status| status < answer.status()) {
                refused = Some(passed(answer));
            }
        }
        refused.ok_or_else(nobody_answers)
    }
}

/// Returns whether a server with that answer has done nothing, and another one may take what it does not: one that has such
/// a route, larger limits, another model, or a store that works.
fn refuses_untried(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY
            | StatusCode::SERVICE_UNAVAILABLE
    )
}

fn nobody_answers() -> ApiError {
    let message = "no server that is healthy answers";
    ApiError::new(StatusCode::BAD_GATEWAY, "no_healthy_replica", message)
}

/// Serves what is below a session.
pub(super) async fn film(
    State(proxy): State<Proxy>,
    State(registry): State<ReplicaRegistry>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked {
        method: request.method(),
        target: request.uri().path_and_query().map_or("/", |it| it.as_str()),
        headers: request.headers(),
        body: Bytes::new(),
    };
    registry.first_probes().await;
    proxy.ask_in_turn(registry.healthy(), &asked).await
}

/// Reads an answer that something is not there. Returns whether that is the session, too.
async fn not_found(mut answer: reqwest::Response) -> (bool, Response) {
    let mut passed = head(&answer);
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await
        && body.len() + chunk.len() <= MAX_REFUSAL_BYTES
    {
        body.extend_from_slice(&chunk);
    }
    let refusal = serde_json::from_slice::<ErrorBody>(&body);
    let is_unknown = refusal.is_ok_and(|refusal| refusal.error.code == "no_session");
    *passed.body_mut() = Body::from(body);
    (is_unknown, passed)
}

fn head(answer: &reqwest::Response) -> Response {
    let mut passed = Response::new(Body::empty());
    *passed.status_mut() = answer.status();
    *passed.headers_mut() = answer.headers().clone();
    // They are about the connection with the server.
    for name in [CONNECTION, TRANSFER_ENCODING] {
        passed.headers_mut().remove(name);
    }
    passed
}

/// Passes a server's answer on while it comes.
fn passed(answer: reqwest::Response) -> Response {
    let mut passed = head(&answer);
    // An error ends the connection, so that the client sees that bytes are missing.
    let chunks = stream::try_unfold(answer, async |mut answer| {
        let chunk = answer.chunk().await?;
        Ok::<_, reqwest::Error>(chunk.map(|chunk| (chunk, answer)))
    });
    *passed.body_mut() = Body::from_stream(chunks);
    passed
}

#[cfg(test)]
mod tests {
    use axum::http::header::HOST;

    use super::*;

    #[test]
    fn a_server_hears_that_a_request_is_of_the_routers_own_page() {
        let judged = |origin: &'static str| {
            let headers = [(HOST, "router:9000"), (ORIGIN, origin)];
            let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
            let judged = judged(HeaderMap::from_iter(headers));
            judged.contains_key(SEC_FETCH_SITE)
        };
        assert!(judged("http://router:9000"));
        assert!(!judged("http://other.example"));
        assert!(!super::judged(HeaderMap::new()).contains_key(SEC_FETCH_SITE));
    }
}
