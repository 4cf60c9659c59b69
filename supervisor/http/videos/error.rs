//! Why a request for a video is refused: all answers of this interface that are no success.

use std::error::Error;
use std::time::Duration;

use axum::http::StatusCode;

use crate::causes::with_causes;
use crate::ingress::error::ApiError;
use crate::ingress::openai::Param;

pub(in crate::http) use crate::ingress::openai::VideoError;

impl VideoError {
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

    /// Answers that the video that another one is to be made of has failed.
    pub(super) fn source_failed(param: &'static str) -> Self {
        let message = "the video has failed, so that no other can be made of it";
        Self::bad_request("video_not_ready", message).about(param)
    }

    /// Answers that no video can go on where that one ends.
    pub(super) fn not_extendable(why: impl Into<String>) -> Self {
        Self::bad_request("video_not_extendable", why).about("video")
    }

    /// Answers that the video that a field names is not there.
    pub(super) fn source_not_found(param: &'static str) -> Self {
        Self::video_not_found().about(param)
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

    /// Answers that another request was made under the same key.
    pub(super) fn idempotency_key_reused() -> Self {
        let message = "another request was sent with this `Idempotency-Key`";
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self::new(status, "idempotency_key_reused", message).about("Idempotency-Key")
    }

    /// Answers that as many jobs wait as may wait. `whose` is `the server` or `your key`.
    pub(super) fn queue_full(whose: &str, limit: usize, retry_after: Duration) -> Self {
        let message = format!("{limit} videos of {whose} wait already, which is the limit");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message).retry_after(retry_after)
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
        Self::unavailable("storage_full", message).never_retry()
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
        Self::new(status, code, message).never_retry()
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
    use axum::extract::Request;
    use axum::http::HeaderValue;
    use axum::http::header::RETRY_AFTER;
    use axum::middleware::from_fn;
    use axum::response::{IntoResponse, Response};
    use axum::routing::get;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use serde_json::{Value, json};

    use super::*;
    use crate::ingress::openai::in_openai_form;

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
            let header = |name: &str| {
                let value = response.headers().get(name);
                value.map(|it: &HeaderValue| it.to_str().unwrap())
            };
            assert_eq!(
                (header(RETRY_AFTER.as_str()), header("x-should-retry")),
                (after, should)
            );
        };
        let full = |ms| VideoError::queue_full("your key", 1, Duration::from_millis(ms));
        check(full(0), Some("1"), None).await;
        check(full(1001), Some("2"), None).await;
        check(VideoError::storage_full(), None, Some("false")).await;
        check(VideoError::server_draining(), None, None).await;
    }
}
