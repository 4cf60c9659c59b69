//! The CSRF guard: rejects state-changing requests that another site's page sends through an operator's browser.

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::origins::Origins;

/// Rejects a state-changing request of another site's page.
pub(crate) async fn guard(
    State(origins): State<Origins>,
    request: Request,
    next: Next,
) -> Response {
    let changes_state = !matches!(*request.method(), Method::GET | Method::HEAD);
    match origins.foreign(request.headers()) {
        Some(origin) if changes_state => ApiError::other_site(&origin).into_response(),
        _ => next.run(request).await,
    }
}
