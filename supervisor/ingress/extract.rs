//! Extractors: the parts of a request as checked values. They answer a refusal with an [`ApiError`]. axum's own
//! extractors would answer with plain text, so no handler uses those directly.

use std::sync::Arc;

use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRef, FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use fastvideo_proto::ids::{GpuId, SessionId};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::Ingress;
use super::connection::Connection;
use super::error::ApiError;
use super::message_io::{SHARE_WAIT, missing_share};
use crate::byte_budget::{ByteBudget, Share};
use crate::client_address::ClientAddress;

/// The largest body of a request for a video, in bytes: the largest image in base64, and some text.
const MAX_VIDEO_BODY_BYTES: u64 = 48 << 20;

/// The query string, parsed as a `T`.
pub(crate) struct ValidQuery<T>(pub(crate) T);

/// The session that a path names as `{id}`.
pub(crate) struct PathSession(pub(crate) SessionId);

/// The GPU that a path names as `{gpu}`; it need not exist.
pub(crate) struct PathGpu(pub(crate) GpuId);

/// What a path names as `{name}`.
pub(crate) struct PathName(pub(crate) String);

/// The whole body. It may be as large as a message.
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    /// What the body takes of the memory for that; held for as long as the body is.
    pub(crate) share: Share,
}

/// The whole body of a request for a video. It may be larger than a message.
pub(crate) struct VideoBody(pub(crate) Body);

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

impl<S: Send + Sync> FromRequestParts<S> for PathName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name = parameter(parts, state).await;
        let bad = || ApiError::invalid_request("the name in the path is not UTF-8");
        name.map(Self).ok_or_else(bad)
    }
}

impl<S: Send + Sync> FromRequest<S> for Body
where
    Ingress: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let ingress = Ingress::from_ref(state);
        let limit = ingress.rules().max_message_bytes as u64;
        Self::receive(request, &ingress, limit).await
    }
}

impl<S: Send + Sync> FromRequest<S> for VideoBody
where
    Ingress: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let ingress = Ingress::from_ref(state);
        // More than this no client could ever send, however long it waits.
        let limit = MAX_VIDEO_BODY_BYTES.min(ingress.receiving.largest());
        Body::receive(request, &ingress, limit).await.map(Self)
    }
}

impl Body {
    /// Receives a body of at most `limit` bytes.
    ///
    /// # Errors
    /// Returns a refusal when the body is larger, breaks off or takes too long, or when the server receives too much.
    pub(crate) async fn receive(
        request: Request,
        ingress: &Ingress,
        limit: u64,
    ) -> Result<Self, ApiError> {
        let connection = request.extensions().get::<Arc<Connection>>();
        let client = connection
            .expect("every request has its connection")
            .place
            .client();
        let body = request.into_body();
        let limits = ingress.rules().body_limits;
        let too_large = || {
            let message = format!("the body is larger than {limit} bytes, which is the limit");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_body", message)
        };
        // The length that the head declares, or 0.
        let declared = body.size_hint().lower();
        if declared > limit {
            return Err(too_large());
        }
        let mut upload = Upload {
            bytes: Vec::new(),
            share: Share::default(),
            client,
            budget: &ingress.receiving,
        };
        upload.make_room_for(declared).await?;
        let mut frames = body.into_data_stream();
        let deadline = Instant::now() + limits.total;
        loop {
            let next = timeout_at(deadline.min(Instant::now() + limits.idle), frames.next());
            let frame = match next.await {
                Err(_) => return Err(ApiError::slow_body()),
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(ApiError::invalid_body(error.to_string())),
                Ok(Some(Ok(frame))) => frame,
            };
            let received = (upload.bytes.len() + frame.len()) as u64;
            if received > limit {
                return Err(too_large());
            }
            upload.make_room_for(received).await?;
            upload.bytes.extend_from_slice(&frame);
        }
        Ok(Self {
            bytes: upload.bytes.into(),
            share: upload.share,
        })
    }
}

/// A body that is being received.
struct Upload<'a> {
    bytes: Vec<u8>,
    share: Share,
    client: ClientAddress,
    budget: &'a ByteBudget,
}

impl Upload<'_> {
    /// Takes the bytes of the budget that a body of this length needs, and the memory.
    async fn make_room_for(&mut self, length: u64) -> Result<(), ApiError> {
        if let Some(missing) = missing_share(length, &self.share) {
            let added = self.budget.take(self.client, missing, SHARE_WAIT).await;
            self.share.add(added.map_err(ApiError::too_busy)?);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let missing = length.saturating_sub(self.bytes.len());
        self.bytes.reserve(missing);
        Ok(())
    }
}

/// Returns the only parameter of a path, or `None` when it is not UTF-8.
async fn parameter<S: Send + Sync>(parts: &mut Parts, state: &S) -> Option<String> {
    let path = Path::from_request_parts(parts, state).await;
    path.ok().map(|Path(parameter)| parameter)
}

/// Returns the token of `Authorization: Bearer`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let credentials = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = credentials.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer")).then(|| token.trim())
}
