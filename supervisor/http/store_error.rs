//! The answer to a request that the store cannot serve.

use axum::http::StatusCode;

use crate::causes::with_causes;
use crate::ingress::error::ApiError;
use crate::store::StoreError;

impl ApiError {
    /// Answers that the store cannot serve the request: not now, or never when its data are lost. The log tells of lost
    /// data here, and of an outage once (see [`crate::store`]), not for each request.
    pub(crate) fn store(failed: &StoreError) -> Self {
        if let StoreError::Lost(_) = failed {
            tracing::error!(error = with_causes(failed), "request not served");
            let message = "what the server has stored of the session is lost or damaged";
            return Self::new(StatusCode::INTERNAL_SERVER_ERROR, "state_lost", message);
        }
        tracing::debug!(error = with_causes(failed), "request not served");
        let message = match failed {
            StoreError::Full { .. } => "the store is full; try again soon",
            _ => "the store does not answer; try again soon",
        };
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "store_unavailable",
            message,
        )
    }
}
