//! The routes for operators: they list, move and end sessions, drain workers, load adapters, and reload the system prompts.
//!
//! Who may use them is in the table of `auth::routes`.

use super::app::App;
use crate::ingress::error::ApiError;
use axum::Router;

pub(super) mod adapters;
pub(super) mod prompts;
pub(super) mod sessions;
pub(super) mod workers;

pub(super) fn routes(app: &App) -> Router<App> {
    sessions::routes()
        .merge(workers::routes())
        .merge(adapters::routes())
        .merge(prompts::routes())
        // Without one of its own, the whole router's would take the place of what the layer answers.
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(app.guard().cross_origin())
}
