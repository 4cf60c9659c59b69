//! The access log: a line for each HTTP request, at INFO for orders of those who may give them, and at DEBUG for all others:
//! strangers cannot fill it. It has no query, which may hold a ticket.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderName;

use crate::client_address::ClientAddress;

/// By this header an answer tells the id of its request, which the access log has too.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who has sent a request. The guard before all routes adds it to the answer.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    /// The id of the caller's key, or the subject of its token.
    pub(crate) id: Option<Arc<str>>,
    pub(crate) address: ClientAddress,
    /// Whether the request passed, and is an operator's order or takes something away.
    pub(crate) gives_order: bool,
}

/// Writes the line of a request. `sender` is unknown for one that did not come as far as the guard; most requests have no id.
pub(super) fn log(
    (method, route): (&str, &str),
    status: u16,
    took: Duration,
    sender: Option<&Sender>,
    request_id: Option<&str>,
) {
    let ms = took.as_millis();
    let key = sender.and_then(|sender| sender.id.as_deref());
    let address = sender.map(|sender| tracing::field::display(sender.address));
    match sender.is_some_and(|sender| sender.gives_order) {
        true => {
            tracing::info!(target: "access", method, route, status, ms, key, address, request_id, "answered");
        }
        false => {
            tracing::debug!(target: "access", method, route, status, ms, key, address, request_id, "answered");
        }
    }
}
