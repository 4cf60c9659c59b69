//! Passes requests on to servers: to one, or to one after the other until one knows what is asked for, or takes what comes in.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONNECTION,
    CONTENT_TYPE, IF_NONE_MATCH, IF_RANGE, ORIGIN, RANGE, TRANSFER_ENCODING,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::Response;
use fastvideo_proto::api::error::ErrorBody;
use futures_util::stream;
use hyper::body::{Frame, SizeHint};
use rustls::ClientConfig;

use super::encryption;
use super::health_check::below;
use super::registry::Replica;
use crate::auth::guard::ROUTER_KEY;
use crate::ingress::access::REQUEST_ID;
use crate::ingress::error::ApiError;
use crate::ingress::origins::{Origins, SEC_FETCH_SITE};

/// Time limit on connecting to a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that is read of a refusal.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// By this header a request that creates something is known when it is sent again.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The headers of a request that the routes of sessions and videos look at.
const PASSED_ON: [HeaderName; 11] = [
    ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD,
    AUTHORIZATION,
    CONTENT_TYPE,
    IDEMPOTENCY_KEY,
    IF_NONE_MATCH,
    IF_RANGE,
    ORIGIN,
    RANGE,
    REQUEST_ID,
    SEC_FETCH_SITE,
];

/// What a client asks for.
#[derive(Clone, Debug)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    /// Path and query, see [`target`].
    pub(super) target: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: Bytes,
}

/// Returns the path and the query for a server.
///
/// # Errors
/// Returns a refusal when the path is not what it seems to be: a client of the router could reach any route of a server, in the
/// router's name, by a path that leads up.
pub(super) fn target(uri: &Uri) -> Result<&str, ApiError> {
    let is_step = |segment: &str| {
        let segment = segment.to_ascii_lowercase().replace("%2e", ".");
        matches!(segment.as_str(), "." | "..")
    };
    if uri.path().split(['/', '\\']).any(is_step) {
        return Err(ApiError::not_found("the path has a segment `.` or `..`"));
    }
    Ok(uri.path_and_query().map_or("/", |target| target.as_str()))
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

/// A body that is gone once it was sent. The HTTP client keeps one that is only bytes until the answer comes.
struct Once(Bytes);

impl HttpBody for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = std::mem::take(&mut self.0);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
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

    /// Asks one server. The log says why one does not answer. The body is held until it is sent, and no longer.
    pub(super) async fn ask(
        &self,
        replica: &Replica,
        asked: Asked<'_>,
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
            false => request.body(reqwest::Body::wrap(Once(asked.body))),
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
        let answer = self.ask(replica, asked.clone()).await.ok()?;
        match answer.status().is_success() {
            true => whole(answer, limit).await,
            false => None,
        }
    }

    /// Asks one server; `None` when it does not answer.
    pub(super) async fn ask_one(&self, replica: &Replica, asked: &Asked<'_>) -> Option<Response> {
        self.ask(replica, asked.clone()).await.ok().map(passed)
    }

    /// Asks the servers one after the other, until one knows the session.
    pub(super) async fn ask_in_turn(
        &self,
        replicas: impl IntoIterator<Item = Arc<Replica>>,
        asked: &Asked<'_>,
    ) -> Result<Response, ApiError> {
        let mut refused = None;
        for replica in replicas {
            let Ok(answer) = self.ask(&replica, asked.clone()).await else {
                continue;
            };
            match answer.status() {
                StatusCode::NOT_FOUND => {
                    let (code, answer) = refusal(answer).await;
                    if code.as_deref() != Some("no_session") {
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
            let answer = match self.ask(&replica, asked.clone()).await {
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

/// Reads an answer; `None` when it breaks off, or is larger than `limit`.
pub(super) async fn whole(mut answer: reqwest::Response, limit: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        body.extend_from_slice(&chunk);
        if body.len() > limit {
            return None;
        }
    }
    Some(body)
}

/// Reads a refusal. Returns also its code, where it has one.
pub(super) async fn refusal(mut answer: reqwest::Response) -> (Option<String>, Response) {
    let mut passed = head(&answer);
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await
        && body.len() + chunk.len() <= MAX_REFUSAL_BYTES
    {
        body.extend_from_slice(&chunk);
    }
    let refusal = serde_json::from_slice::<ErrorBody>(&body);
    let code = refusal.ok().map(|refusal| refusal.error.code.into_owned());
    *passed.body_mut() = Body::from(body);
    (code, passed)
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
pub(super) fn passed(answer: reqwest::Response) -> Response {
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
    fn no_path_leads_up_at_a_server() {
        for (uri, is_taken) in [
            ("/v1/videos/x/content?variant=..", true),
            ("/v1/videos/..x", true),
            ("/v1/videos/%2Fstatus", true),
            ("/v1/videos/../status", false),
            ("/v1/videos/%2e%2E/status", false),
            ("/v1/videos/.%2e", false),
            ("/v1/videos/./x", false),
            ("/v1/videos/x\\..\\..\\status", false),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(target(&uri).is_ok(), is_taken, "{uri}");
        }
    }

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
