//! What is below a session, from whichever server has it.
//!
//! Any server with the session's store has its film; the one that runs the session has also what is being made. So the
//! servers are asked one after the other, until one knows the session and the token.

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::Response;

use super::proxy::{Asked, Proxy, target};
use super::registry::ReplicaRegistry;
use crate::ingress::error::ApiError;

/// Serves what is below a session.
pub(super) async fn film(
    State(proxy): State<Proxy>,
    State(registry): State<ReplicaRegistry>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked {
        method: request.method(),
        target: target(request.uri())?,
        headers: request.headers(),
        body: Bytes::new(),
    };
    registry.first_probes().await;
    proxy.ask_in_turn(registry.healthy(), &asked).await
}
