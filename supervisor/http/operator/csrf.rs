//! The CSRF guard: rejects state-changing requests that another site's page sends through an operator's browser.

use axum::extract::Request;
use axum::http::header::{HOST, ORIGIN};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::error::ApiError;

/// Rejects a state-changing request with a foreign `Origin`. Programs other than browsers send no `Origin` and pass.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    if let Some(origin) = foreign_origin(&request) {
        let message = format!("requests from pages of {origin} are not accepted");
        return ApiError::new(StatusCode::FORBIDDEN, "other_site", message).into_response();
    }
    next.run(request).await
}

/// Returns the `Origin` of a state-changing request when it is not this server's.
fn foreign_origin(request: &Request) -> Option<String> {
    let header = |name| {
        let value = request.headers().get(name)?;
        value.to_str().ok()
    };
    let origin = header(ORIGIN)?;
    let changes_state = !matches!(*request.method(), Method::GET | Method::HEAD);
    let site = origin.split_once("://").map(|(_, site)| site);
    let is_own = site.is_some() && site == header(HOST);
    (changes_state && !is_own).then(|| origin.to_owned())
}
