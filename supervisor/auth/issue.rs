//! The route for tickets, of servers and of routers.

use axum::extract::{FromRef, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::tickets::Ticket;

use super::guard::Guard;
use super::ticket::VALID;
use super::{Auth, Caller};
use crate::ingress::error::ApiError;

/// Returns the route for a service with any state that has an [`Auth`].
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(guard: &Guard) -> Router<S>
where
    Auth: FromRef<S>,
{
    Router::new()
        .route("/v1/tickets", post(issue))
        // Without one of its own, the whole router's would take the place of what the layer answers.
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(guard.cross_origin())
}

/// Issues a ticket, with which a page that has no key opens one session: `/v1/stream?ticket=…`.
#[utoipa::path(post, path = "/v1/tickets", responses(
    (status = 201, body = Ticket),
    (status = 401, body = ErrorBody, description = "no key, or a wrong one"),
    (status = 403, body = ErrorBody, description = "the key's role does not suffice, or another site's page sent the request"),
    (status = 409, body = ErrorBody, description = "nobody is asked for a key, so there are no tickets"),
    (status = 429, body = ErrorBody, description = "too many wrong keys from this address")
))]
pub(crate) async fn issue(
    State(auth): State<Auth>,
    Extension(caller): Extension<Caller>,
) -> Result<(StatusCode, Json<Ticket>), ApiError> {
    let Some(ticket) = auth.issue_ticket(&caller) else {
        let message = "nobody is asked for a key here, so no ticket is needed";
        return Err(ApiError::new(StatusCode::CONFLICT, "no_tickets", message));
    };
    let expires_in = VALID.as_secs();
    Ok((StatusCode::CREATED, Json(Ticket { ticket, expires_in })))
}
