//! Extractors: the parts of a request as checked values. They answer a refusal with an [`ApiError`]. axum's own
//! extractors would answer with plain text, so no handler uses those directly.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use fastvideo_proto::ids::{GpuId, SessionId};
use serde::de::DeserializeOwned;

use super::app::App;
use super::error::ApiError;

/// The query string, parsed as a `T`.
pub(super) struct ValidQuery<T>(pub(super) T);

/// The session that a path names as `{id}`.
pub(super) struct PathSession(pub(super) SessionId);

/// The GPU that a path names as `{gpu}`; it need not exist.
pub(super) struct PathGpu(pub(super) GpuId);

/// The whole body. It may be as large as a message.
pub(super) struct Body(pub(super) Bytes);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for ValidQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(ApiError::invalid_request(rejection.body_text())),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PathSession {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = parameter(parts, state).await;
        let session = id.and_then(|id| SessionId::parse(&id));
        session.map(Self).ok_or_else(ApiError::no_session)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PathGpu {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let gpu = parameter(parts, state).await.unwrap_or_default();
        let id = gpu.parse().map(GpuId);
        id.map(Self).map_err(|_| ApiError::no_gpu(&gpu))
    }
}

impl FromRequest<App> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let rejection = match Bytes::from_request(request, app).await {
            Ok(body) => return Ok(Self(body)),
            Err(rejection) => rejection,
        };
        let (status, limit) = (rejection.status(), app.max_message_bytes);
        let message = match status {
            StatusCode::PAYLOAD_TOO_LARGE => {
                format!("the body is larger than {limit} bytes, which is the limit")
            }
            _ => rejection.body_text(),
        };
        Err(ApiError::new(status, "invalid_body", message))
    }
}

/// Returns the only parameter of a path, or `None` when it is not UTF-8.
async fn parameter<S: Send + Sync>(parts: &mut Parts, state: &S) -> Option<String> {
    let path = Path::from_request_parts(parts, state).await;
    path.ok().map(|Path(parameter)| parameter)
}
