//! The answers to requests for videos and models that are refused, in the form that OpenAI's clients read.
//!
//! Handlers return a [`VideoError`]. [`in_openai_form`] is the layer around all routes: it turns what other parts refuse, the
//! guard before all routes for one, into the same form, and gives every answer an id.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::extract::{MatchedPath, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fastvideo_proto::api::videos::{OpenAiError, OpenAiErrorBody};

use super::access::REQUEST_ID;
use super::error::Refused;

/// By this header a server tells OpenAI's clients whether they should send a request again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// The routes whose answers have this form, and all that is below them.
const PREFIXES: [&str; 2] = ["/v1/videos", "/v1/models"];

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VideoError {
    status: StatusCode,
    code: &'static str,
    /// The field of the request that is wrong.
    param: Option<Cow<'static, str>>,
    /// It is safe to show.
    message: String,
    retry: Retry,
}

/// What a client is told about sending the request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// Nothing: the status tells.
    Unsaid,
    After(Duration),
    /// It should not, though the status would make it.
    Never,
}

/// The name of a field in a message to a client.
pub(crate) type Param = Cow<'static, str>;

impl VideoError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            param: None,
            message: message.into(),
            retry: Retry::Unsaid,
        }
    }

    pub(crate) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// Tells the client when to send the request again.
    pub(crate) fn retry_after(self, wait: Duration) -> Self {
        Self {
            retry: Retry::After(wait),
            ..self
        }
    }

    /// Tells the client not to send the request again, though the status would make it.
    pub(crate) fn never_retry(self) -> Self {
        Self {
            retry: Retry::Never,
            ..self
        }
    }

    /// Names the field that is wrong.
    pub(crate) fn about(self, param: impl Into<Param>) -> Self {
        Self {
            param: Some(param.into()),
            ..self
        }
    }

    /// Answers that there is no such video, or none for that caller.
    pub(crate) fn video_not_found() -> Self {
        let message = "there is no such video; it may have expired";
        Self::new(StatusCode::NOT_FOUND, "video_not_found", message)
    }

    /// Answers that there is no such model.
    pub(crate) fn model_not_found() -> Self {
        let message = "there is no such model";
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message)
    }

    /// Answers that there is nothing at this address.
    pub(crate) fn not_found() -> Self {
        let message = "there is nothing here; see /openapi.json";
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Answers that there is something, but not for this method.
    pub(crate) fn method_not_allowed() -> Self {
        let message = "this route does not answer that method";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            message,
        )
    }

    /// Returns the same for clients of this interface.
    pub(crate) fn of_other_part(status: StatusCode, refused: Refused) -> Self {
        let code = match (status, refused.code) {
            (StatusCode::BAD_REQUEST, "invalid_request" | "invalid_body") => "invalid_value",
            (StatusCode::UNAUTHORIZED, _) => "invalid_api_key",
            (StatusCode::FORBIDDEN, "local_only") => "forbidden",
            (StatusCode::PAYLOAD_TOO_LARGE, _) => "request_too_large",
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => "invalid_range",
            (_, code) => code,
        };
        Self::new(status, code, refused.message)
    }

    /// Returns code, field and message.
    #[cfg(test)]
    pub(crate) fn parts(&self) -> (&'static str, Option<&str>, &str) {
        (self.code, self.param.as_deref(), &self.message)
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn body(&self) -> OpenAiErrorBody {
        OpenAiErrorBody {
            error: OpenAiError {
                message: self.message.clone(),
                kind: self.kind().into(),
                param: self.param.as_deref().map(str::to_owned),
                code: self.code.into(),
            },
        }
    }
}

impl IntoResponse for VideoError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self.retry {
            Retry::Unsaid => {}
            Retry::After(wait) => {
                // Whole seconds, rounded up, and never 0, with which clients would come back at once.
                let seconds = wait.as_millis().div_ceil(1000).max(1);
                headers.insert(RETRY_AFTER, number(seconds));
            }
            Retry::Never => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives every answer for videos and models an id, and every refusal the form that OpenAI's clients read.
pub(crate) async fn in_openai_form(request: Request, next: Next) -> Response {
    if !is_for_videos(request.uri().path()) {
        return next.run(request).await;
    }
    let id = format!("req_{:032x}", rand::random::<u128>());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(refused) = response.extensions_mut().remove::<Refused>() {
        response = rewritten(response, refused);
    }
    if let Some(error) = response.extensions().get::<VideoError>() {
        let route = route.as_ref().map(MatchedPath::as_str);
        let (code, param) = (error.code, error.param.as_deref());
        tracing::debug!(target: "access", request_id = id, route, code, param, reason = error.message, "refused");
    }
    let id = HeaderValue::try_from(id).expect("hexadecimal digits");
    // What a router passes on has the id that the server has given it.
    response.headers_mut().entry(REQUEST_ID).or_insert(id);
    response
}

/// Returns the refusal of another part with all of its headers and another body.
fn rewritten(response: Response, refused: Refused) -> Response {
    let (mut head, _) = response.into_parts();
    let (form, body) = VideoError::of_other_part(head.status, refused)
        .into_response()
        .into_parts();
    head.headers.remove(CONTENT_LENGTH);
    if let Some(mime) = form.headers.get(CONTENT_TYPE) {
        head.headers.insert(CONTENT_TYPE, mime.clone());
    }
    head.extensions.extend(form.extensions);
    Response::from_parts(head, body)
}

fn is_for_videos(path: &str) -> bool {
    PREFIXES.iter().any(|prefix| {
        let rest = path.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Returns a header with a number.
fn number(number: u128) -> HeaderValue {
    HeaderValue::try_from(number.to_string()).expect("digits")
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::http::header::WWW_AUTHENTICATE;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use serde_json::json;

    use super::*;
    use crate::ingress::error::ApiError;

    async fn ask(router: Router, path: &str) -> Response {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = TowerToHyperService::new(router).call(request).await;
        answer.unwrap()
    }

    #[tokio::test]
    async fn what_another_part_refuses_has_the_same_form() {
        let refused = |status: u16, code, message: &'static str| {
            let error = ApiError::new(StatusCode::from_u16(status).unwrap(), code, message);
            let mut response = error.into_response();
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, bearer);
            response
        };
        for (status, code, kind, expected) in [
            (
                401,
                "unauthorized",
                "invalid_request_error",
                "invalid_api_key",
            ),
            (403, "local_only", "invalid_request_error", "forbidden"),
            (403, "other_site", "invalid_request_error", "other_site"),
            (
                400,
                "invalid_body",
                "invalid_request_error",
                "invalid_value",
            ),
            (408, "body_timeout", "invalid_request_error", "body_timeout"),
            (
                413,
                "invalid_body",
                "invalid_request_error",
                "request_too_large",
            ),
            (429, "rate_limited", "rate_limit_error", "rate_limited"),
            (503, "too_busy", "server_error", "too_busy"),
        ] {
            let router: Router = Router::new()
                .fallback(move || async move { refused(status, code, "why") })
                .layer(from_fn(in_openai_form));
            for path in [
                "/v1/videos",
                "/v1/videos/edits",
                "/v1/models/x",
                "/v1/videosx",
                "/status",
            ] {
                let response = ask(router.clone(), path).await;
                assert_eq!(response.status(), status);
                assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
                let has_form = is_for_videos(path);
                assert_eq!(
                    response.headers().contains_key(REQUEST_ID),
                    has_form,
                    "{path}"
                );
                let body = to_bytes(response.into_body(), 10_000).await.unwrap();
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                match has_form {
                    true => {
                        let error = json!({"message": "why", "type": kind, "param": null, "code": expected});
                        assert_eq!(body, json!({ "error": error }), "{path}");
                    }
                    false => assert_eq!(body["error"]["code"], code, "{path}"),
                }
            }
        }
    }

    #[tokio::test]
    async fn each_answer_has_an_id_of_its_own_unless_a_server_has_given_it_one() {
        let given = [(REQUEST_ID, "req_1")];
        let router: Router = Router::new()
            .route("/v1/videos/{id}", get(async || "fine"))
            .route("/v1/videos/given", get(async move || (given, "fine")))
            .layer(from_fn(in_openai_form));
        let id = async |path| {
            let response = ask(router.clone(), path).await;
            response.headers()[REQUEST_ID].to_str().unwrap().to_owned()
        };
        let (first, second) = (id("/v1/videos/1").await, id("/v1/videos/1").await);
        assert_eq!(first.len(), 36);
        assert_ne!(first, second);
        assert_ne!(first, id("/v1/videos/1/no/route").await);
        assert_eq!(id("/v1/videos/given").await, "req_1");
    }
}
