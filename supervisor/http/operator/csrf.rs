//! The CSRF guard: rejects state-changing requests that another site's page sends through an operator's browser.

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::app::App;
use crate::ingress::error::ApiError;

/// Rejects a state-changing request of another site's page.
pub(super) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let changes_state = !matches!(*request.method(), Method::GET | Method::HEAD);
    match app.ingress.origins.foreign(request.headers()) {
        Some(origin) if changes_state => ApiError::other_site(&origin).into_response(),
        _ => next.run(request).await,
    }
}
