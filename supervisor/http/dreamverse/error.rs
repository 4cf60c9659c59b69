//! Refusals with the field that FastVideo's web UI shows to its user.

use std::error::Error;

use axum::Json;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fastvideo_proto::api::dreamverse::DetailErrorBody;
use fastvideo_proto::api::error::ErrorDetail;

use crate::ingress::error::{ApiError, Refused};

/// The routes whose refusals have a `detail`.
const ROUTES: [&str; 7] = [
    "/curated-presets",
    "/curated-presets/append",
    "/internal/monitor/sessions",
    "/lora",
    "/lora/options",
    "/prompt-system-config",
    "/router/replicas/sessions",
];

/// Why a request was refused.
#[derive(Debug)]
pub(in crate::http) struct DetailError {
    status: StatusCode,
    /// It is safe to show.
    message: String,
}

impl DetailError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// Answers that the server failed. The reason goes to the log and not to the client.
    pub(super) fn internal(failed: &dyn Error) -> Self {
        let (status, refused) = ApiError::internal(failed).into_parts();
        Self::new(status, refused.message)
    }

    fn code(&self) -> &'static str {
        match self.status {
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => "invalid_body",
            StatusCode::FORBIDDEN => "forbidden",
            StatusCode::CONFLICT => "conflict",
            _ => "internal_error",
        }
    }
}

impl IntoResponse for DetailError {
    fn into_response(self) -> Response {
        let code = self.code();
        (self.status, body(code, self.message)).into_response()
    }
}

/// Adds the `detail` to what other parts refuse on these routes, the guard before all routes for one.
pub(in crate::http) async fn in_detail(request: Request, next: Next) -> Response {
    let is_one = ROUTES.contains(&request.uri().path());
    let mut response = next.run(request).await;
    if !is_one {
        return response;
    }
    let Some(Refused { code, message }) = response.extensions_mut().remove::<Refused>() else {
        return response;
    };
    let (mut head, _) = response.into_parts();
    let (form, body) = body(code, message).into_response().into_parts();
    head.headers.remove(CONTENT_LENGTH);
    if let Some(mime) = form.headers.get(CONTENT_TYPE) {
        head.headers.insert(CONTENT_TYPE, mime.clone());
    }
    Response::from_parts(head, body)
}

fn body(code: &'static str, message: String) -> Json<DetailErrorBody> {
    Json(DetailErrorBody {
        error: ErrorDetail {
            code: code.into(),
            message: message.clone(),
        },
        detail: message,
    })
}
