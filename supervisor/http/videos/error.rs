//! The answers to requests for videos and models that are refused, in the form that OpenAI's clients read.
//!
//! Handlers return a [`VideoError`]. [`in_openai_form`] is the layer around all routes: it turns what other parts refuse, the
//! guard before all routes for one, into the same form, and gives every answer an id.

use std::borrow::Cow;
use std::error::Error;
use std::time::Duration;

use axum::Json;
use axum::extract::{MatchedPath, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fastvideo_proto::api::videos::{OpenAiError, OpenAiErrorBody};

use crate::causes::with_causes;
use crate::ingress::access::REQUEST_ID;
use crate::ingress::error::{ApiError, Refused};

/// By this header a server tells OpenAI's clients whether they should send a request again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// The routes whose answers have this form, and all that is below them.
const PREFIXES: [&str; 2] = ["/v1/videos", "/v1/models"];

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct VideoError {
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
type Param = Cow<'static, str>;

impl VideoError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            param: None,
            message: message.into(),
            retry: Retry::Unsaid,
        }
    }

    fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// Names the field that is wrong.
    fn about(self, param: impl Into<Param>) -> Self {
        Self {
            param: Some(param.into()),
            ..self
        }
    }

    /// Answers that a field is missing without which there is no request.
    pub(super) fn missing(param: &'static str) -> Self {
        let message = format!("`{param}` is required");
        Self::bad_request("missing_required_parameter", message).about(param)
    }

    /// Answers that the body cannot be read.
    pub(super) fn invalid_body(message: impl Into<String>) -> Self {
        Self::bad_request("invalid_value", message)
    }

    /// Answers that the value of a field is not one of those that it may have.
    pub(super) fn invalid_value(
        param: impl Into<Param>,
        expected: impl AsRef<str>,
        given: impl AsRef<str>,
    ) -> Self {
        Self::unexpected("invalid_value", param, expected, given)
    }

    /// Answers that a file is not a picture that can be read.
    pub(super) fn invalid_image(
        param: impl Into<Param>,
        expected: impl AsRef<str>,
        given: impl AsRef<str>,
    ) -> Self {
        Self::unexpected("invalid_image", param, expected, given)
    }

    fn unexpected(
        code: &'static str,
        param: impl Into<Param>,
        expected: impl AsRef<str>,
        given: impl AsRef<str>,
    ) -> Self {
        let (param, expected, given) = (param.into(), expected.as_ref(), given.as_ref());
        let message = format!("`{param}`: expected {expected}, got {given}");
        Self::bad_request(code, message).about(param)
    }

    /// Answers that there is no field of that name, only one of another name.
    pub(super) fn unknown_parameter(param: String, nearest: Option<&str>) -> Self {
        let message = match nearest {
            Some(nearest) => format!("there is no field `{param}`; is `{nearest}` meant?"),
            None => format!("there is no field `{param}`"),
        };
        Self::bad_request("unknown_parameter", message).about(param)
    }

    /// Answers that this server does not do what a field asks for, though others may.
    pub(super) fn unsupported_parameter(param: impl Into<Param>, why: impl AsRef<str>) -> Self {
        let param = param.into();
        let message = format!("`{param}` is not supported: {}", why.as_ref());
        Self::bad_request("unsupported_parameter", message).about(param)
    }

    /// Answers that a video was asked of a model that is not served.
    pub(super) fn other_model(given: &str, served: &str) -> Self {
        let message = format!("`model`: expected `{served}`, got {}", shown(given));
        Self::bad_request("model_not_found", message).about("model")
    }

    /// Answers that a prompt was blocked.
    pub(super) fn moderation_blocked(param: &'static str, message: impl Into<String>) -> Self {
        Self::bad_request("moderation_blocked", message).about(param)
    }

    /// Answers that the video that a new one is to be made of is not finished.
    pub(super) fn source_not_ready(param: &'static str) -> Self {
        let message = "the video is not completed";
        Self::bad_request("video_not_ready", message).about(param)
    }

    /// Answers that no video can go on where that one ends.
    pub(super) fn not_extendable(why: impl Into<String>) -> Self {
        Self::bad_request("video_not_extendable", why).about("video")
    }

    /// Answers that there is no such video, or none for that caller.
    pub(super) fn video_not_found() -> Self {
        let message = "there is no such video; it may have expired";
        Self::new(StatusCode::NOT_FOUND, "video_not_found", message)
    }

    /// Answers that the video that a field names is not there.
    pub(super) fn source_not_found(param: &'static str) -> Self {
        Self::video_not_found().about(param)
    }

    /// Answers that there is no such model.
    pub(super) fn model_not_found() -> Self {
        let message = "there is no such model";
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message)
    }

    /// Answers that there is nothing at this address.
    pub(super) fn not_found() -> Self {
        let message = "there is nothing here; see /openapi.json";
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Answers that a video has no content yet.
    pub(super) fn content_not_ready() -> Self {
        let message = "the video is not completed";
        Self::new(StatusCode::NOT_FOUND, "video_not_ready", message)
    }

    /// Answers that a video has no content, since it failed.
    pub(super) fn content_failed() -> Self {
        let message = "the video has failed, so that it has no content";
        Self::new(StatusCode::NOT_FOUND, "video_failed", message)
    }

    /// Answers that there is something, but not for this method.
    pub(super) fn method_not_allowed() -> Self {
        let message = "this route does not answer that method";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            message,
        )
    }

    /// Answers that another request was made under the same key.
    pub(super) fn idempotency_key_reused() -> Self {
        let message = "another request was sent with this `Idempotency-Key`";
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self::new(status, "idempotency_key_reused", message).about("Idempotency-Key")
    }

    /// Answers that as many jobs wait as may wait. `whose` is `the server` or `your key`.
    pub(super) fn queue_full(whose: &str, limit: usize, retry_after: Duration) -> Self {
        let message = format!("{limit} videos of {whose} wait already, which is the limit");
        Self {
            retry: Retry::After(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
        }
    }

    /// Answers that the server is about to end.
    pub(super) fn server_draining() -> Self {
        let message = "the server is about to end, and takes no new videos";
        Self::unavailable("server_draining", message)
    }

    /// Answers that the store does not answer. The reason goes to the log and not to the client.
    pub(super) fn store_unavailable(failed: &dyn Error) -> Self {
        tracing::debug!(error = with_causes(failed), "request not served");
        let message = "the store does not answer; try again soon";
        Self::unavailable("store_unavailable", message)
    }

    /// Answers that the videos take as much room as they may. That does not end soon.
    pub(super) fn storage_full() -> Self {
        let message = "the videos take all of their room; delete some, or wait until some expire";
        Self {
            retry: Retry::Never,
            ..Self::unavailable("storage_full", message)
        }
    }

    fn unavailable(code: &'static str, message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// Answers that too many images are being decoded.
    pub(super) fn too_busy() -> Self {
        let message = "too many images are being decoded; try again soon";
        Self::unavailable("too_busy", message)
    }

    /// Answers that a job has failed whose video was to be the answer.
    pub(super) fn job_failed(code: &str, message: &str) -> Self {
        let (status, code) = match code {
            "invalid_value" => (StatusCode::BAD_REQUEST, "invalid_value"),
            "moderation_blocked" => (StatusCode::BAD_REQUEST, "moderation_blocked"),
            "out_of_memory" => (StatusCode::BAD_REQUEST, "out_of_memory"),
            "cancelled" => (StatusCode::CONFLICT, "cancelled"),
            "state_incompatible" => (StatusCode::INTERNAL_SERVER_ERROR, "state_incompatible"),
            "worker_failed" => (StatusCode::INTERNAL_SERVER_ERROR, "worker_failed"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        };
        Self {
            retry: Retry::Never,
            ..Self::new(status, code, message)
        }
    }

    /// Answers that a file cannot be served.
    pub(super) fn of_file(refused: ApiError) -> Self {
        let (status, refused) = refused.into_parts();
        Self::of_other_part(status, refused)
    }

    /// Answers that the server failed. The reason goes to the log and not to the client.
    pub(super) fn internal(failed: &dyn Error) -> Self {
        tracing::error!(error = with_causes(failed), "request not served");
        let message = "the server failed; its log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// Returns the same for clients of this interface.
    fn of_other_part(status: StatusCode, refused: Refused) -> Self {
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
    pub(super) fn parts(&self) -> (&'static str, Option<&str>, &str) {
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
pub(in crate::http) async fn in_openai_form(request: Request, next: Next) -> Response {
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
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Returns the refusal of another part with all of its headers and another body.
fn rewritten(response: Response, refused: Refused) -> Response {
    let (mut head, _) = response.into_parts();
    let (form, body) = VideoError::of_other_part(head.status, refused)
        .into_response()
        .into_parts();
    head.headers.remove(CONTENT_LENGTH);
    head.headers.extend(
        form.headers
            .get(CONTENT_TYPE)
            .map(|it| (CONTENT_TYPE, it.clone())),
    );
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

/// Returns the beginning of a client's text, in quotes and on one line.
pub(super) fn shown(text: &str) -> String {
    const MAX_CHARS: usize = 64;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
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
    use serde_json::{Value, json};

    use super::*;
    use crate::ingress::error::ApiError;

    /// Returns the answer of a router whose only route refuses with `error`.
    async fn answer(
        error: impl IntoResponse + Clone + Send + Sync + 'static,
        path: &str,
    ) -> Response {
        let router: Router = Router::new()
            .route("/v1/videos/{id}", get(move || async move { error }))
            .fallback(async || ApiError::not_found("nothing"))
            .method_not_allowed_fallback(async || ApiError::method_not_allowed())
            .layer(from_fn(in_openai_form));
        let request = Request::get(path).body(Body::empty()).unwrap();
        TowerToHyperService::new(router)
            .call(request)
            .await
            .unwrap()
    }

    async fn json_of(response: Response) -> Value {
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn every_refusal_has_its_status_type_and_code() {
        let broken = std::io::Error::other("/var/lib/store is gone");
        let second = Duration::from_secs(1);
        let invalid = "invalid_request_error";
        let table = [
            (
                VideoError::missing("prompt"),
                400,
                invalid,
                "missing_required_parameter",
                json!("prompt"),
            ),
            (
                VideoError::invalid_body("no"),
                400,
                invalid,
                "invalid_value",
                json!(null),
            ),
            (
                VideoError::invalid_value("fps", "a", "b"),
                400,
                invalid,
                "invalid_value",
                json!("fps"),
            ),
            (
                VideoError::invalid_image("input_reference", "a", "b"),
                400,
                invalid,
                "invalid_image",
                json!("input_reference"),
            ),
            (
                VideoError::unknown_parameter("x".to_owned(), None),
                400,
                invalid,
                "unknown_parameter",
                json!("x"),
            ),
            (
                VideoError::unsupported_parameter("lora", "no"),
                400,
                invalid,
                "unsupported_parameter",
                json!("lora"),
            ),
            (
                VideoError::other_model("a", "b"),
                400,
                invalid,
                "model_not_found",
                json!("model"),
            ),
            (
                VideoError::moderation_blocked("prompt", "no"),
                400,
                invalid,
                "moderation_blocked",
                json!("prompt"),
            ),
            (
                VideoError::source_not_ready("video"),
                400,
                invalid,
                "video_not_ready",
                json!("video"),
            ),
            (
                VideoError::not_extendable("no"),
                400,
                invalid,
                "video_not_extendable",
                json!("video"),
            ),
            (
                VideoError::video_not_found(),
                404,
                invalid,
                "video_not_found",
                json!(null),
            ),
            (
                VideoError::source_not_found("video"),
                404,
                invalid,
                "video_not_found",
                json!("video"),
            ),
            (
                VideoError::model_not_found(),
                404,
                invalid,
                "model_not_found",
                json!(null),
            ),
            (
                VideoError::not_found(),
                404,
                invalid,
                "not_found",
                json!(null),
            ),
            (
                VideoError::content_not_ready(),
                404,
                invalid,
                "video_not_ready",
                json!(null),
            ),
            (
                VideoError::content_failed(),
                404,
                invalid,
                "video_failed",
                json!(null),
            ),
            (
                VideoError::method_not_allowed(),
                405,
                invalid,
                "method_not_allowed",
                json!(null),
            ),
            (
                VideoError::idempotency_key_reused(),
                422,
                invalid,
                "idempotency_key_reused",
                json!("Idempotency-Key"),
            ),
            (
                VideoError::queue_full("the server", 5, second),
                429,
                "rate_limit_error",
                "queue_full",
                json!(null),
            ),
            (
                VideoError::server_draining(),
                503,
                "server_error",
                "server_draining",
                json!(null),
            ),
            (
                VideoError::store_unavailable(&broken),
                503,
                "server_error",
                "store_unavailable",
                json!(null),
            ),
            (
                VideoError::storage_full(),
                503,
                "server_error",
                "storage_full",
                json!(null),
            ),
            (
                VideoError::internal(&broken),
                500,
                "server_error",
                "internal_error",
                json!(null),
            ),
        ];
        for (error, status, kind, code, param) in table {
            let response = answer(error.clone(), "/v1/videos/1").await;
            assert_eq!(response.status(), status, "{code}");
            let body = json_of(response).await;
            let message = body["error"]["message"].as_str().unwrap();
            assert!(
                !message.is_empty() && !message.contains("/var"),
                "{message}"
            );
            let expected =
                json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
            assert_eq!(body, expected);
        }
    }

    #[tokio::test]
    async fn a_refusal_tells_whether_to_come_back() {
        let check = async |error: VideoError, after: Option<&str>, should: Option<&str>| {
            let response = answer(error, "/v1/videos/1").await;
            let header = |name| {
                response
                    .headers()
                    .get(name)
                    .map(|it: &HeaderValue| it.to_str().unwrap())
            };
            assert_eq!((header(RETRY_AFTER), header(SHOULD_RETRY)), (after, should));
        };
        let full = |ms| VideoError::queue_full("your key", 1, Duration::from_millis(ms));
        check(full(0), Some("1"), None).await;
        check(full(1001), Some("2"), None).await;
        check(VideoError::storage_full(), None, Some("false")).await;
        check(VideoError::server_draining(), None, None).await;
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
                let request = Request::get(path).body(Body::empty()).unwrap();
                let response = TowerToHyperService::new(router.clone())
                    .call(request)
                    .await
                    .unwrap();
                assert_eq!(response.status(), status);
                assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
                let has_form = is_for_videos(path);
                assert_eq!(
                    response.headers().contains_key(REQUEST_ID),
                    has_form,
                    "{path}"
                );
                let body = json_of(response).await;
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
    async fn each_answer_has_an_id_of_its_own() {
        let id = async |path| {
            let response = answer("fine", path).await;
            response.headers()[REQUEST_ID].to_str().unwrap().to_owned()
        };
        let (first, second) = (id("/v1/videos/1").await, id("/v1/videos/1").await);
        assert_eq!(first.len(), 36);
        assert_ne!(first, second);
        assert_ne!(first, id("/v1/videos/1/no/route").await);
    }
}
