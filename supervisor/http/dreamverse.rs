//! The HTTP routes of Dreamverse, FastVideo's web UI.

use axum::Router;

use super::app::App;

pub(super) mod prompts;

pub(super) fn routes() -> Router<App> {
    prompts::routes()
}
