//! The routes for operators: they list, move and end sessions, drain workers, and reload prompts.
//!
//! All these routes are one router behind the CSRF guard; an authentication layer for operators goes here, too.

use axum::Router;
use axum::middleware::from_fn;

use super::app::App;

pub(super) mod prompts;
pub(super) mod sessions;
pub(super) mod workers;

mod csrf;

/// Returns the routes. `max_body_bytes` limits the body of a request.
pub(super) fn routes(max_body_bytes: usize) -> Router<App> {
    sessions::routes(max_body_bytes)
        .merge(workers::routes())
        .merge(prompts::routes())
        .layer(from_fn(csrf::guard))
}
