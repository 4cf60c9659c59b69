//! The answer to a request that was refused or that failed.

use std::error::Error;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use fastvideo_proto::api::error::{ErrorBody, ErrorDetail};

use crate::causes::with_causes;

/// An answer that is not a success: its body is an [`ErrorBody`].
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    /// A stable name of the reason, for programs.
    code: &'static str,
    message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    /// Returns the status, and the reason.
    pub(crate) fn into_parts(self) -> (StatusCode, Refused) {
        let Self {
            status,
            code,
            message,
        } = self;
        (status, Refused { code, message })
    }

    /// Answers that there is no session with that id.
    pub(crate) fn no_session() -> Self {
        let message = "there is no such session; it may have expired";
        Self::new(StatusCode::NOT_FOUND, "no_session", message)
    }

    /// Answers that there is no GPU with that number.
    pub(crate) fn no_gpu(gpu: &str) -> Self {
        let message = format!("there is no GPU `{gpu}`");
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Answers that there is nothing at this address.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
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

    /// Answers that a parameter of the request is wrong.
    pub(crate) fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// Answers that the body of the request is wrong.
    pub(crate) fn invalid_body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", message)
    }

    /// Answers that pages of another site may not send such a request.
    pub(crate) fn other_site(origin: &str) -> Self {
        let origin: String = origin.chars().take(100).collect();
        let message = format!(
            "requests from pages of {origin} are not accepted; `server.allowed_origins` names the sites that may"
        );
        Self::new(StatusCode::FORBIDDEN, "other_site", message)
    }

    /// Answers that the server receives too much at the moment.
    pub(crate) fn too_busy(reason: impl ToString) -> Self {
        let message = reason.to_string();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_busy", message)
    }

    /// Answers that the body of the request took too long.
    pub(crate) fn slow_body() -> Self {
        let message = "the body of the request took too long";
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
    }

    /// Answers that the server failed. The reason goes to the log and not to the client.
    pub(crate) fn internal(failed: &dyn Error) -> Self {
        tracing::error!(error = with_causes(failed), "request not served");
        let message = "the server failed; its log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }
}

/// Why an answer is not a success: an extension of the answer, for layers that give it another form.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            error: ErrorDetail {
                code: self.code.into(),
                message: self.message.clone(),
            },
        };
        let mut response = (self.status, Json(body)).into_response();
        response.extensions_mut().insert(Refused {
            code: self.code,
            message: self.message,
        });
        response
    }
}

/// Returns an answer for a connection that carries no requests, with which it ends. `headers` are whole lines.
pub(super) fn last_answer(
    status: &str,
    headers: &str,
    code: &'static str,
    message: &str,
) -> String {
    let body = ErrorBody {
        error: ErrorDetail {
            code: code.into(),
            message: message.to_owned(),
        },
    };
    let body = serde_json::to_string(&body).expect("two texts are JSON");
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}connection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}
