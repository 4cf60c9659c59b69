//! The routes for operators: they list, move and end sessions, drain workers, and reload prompts.
//!
//! All these routes are one router behind the CSRF guard; an authentication layer for operators goes here, too.

use axum::Router;
use axum::middleware::from_fn_with_state;

use super::app::App;
use crate::ingress::csrf;

pub(super) mod prompts;
pub(super) mod sessions;
pub(super) mod workers;

pub(super) fn routes(app: &App) -> Router<App> {
    sessions::routes()
        .merge(workers::routes())
        .merge(prompts::routes())
        .layer(from_fn_with_state(app.ingress.origins.clone(), csrf::guard))
}
