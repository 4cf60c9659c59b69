//! What FastVideo's web UI (Dreamverse) speaks: its HTTP routes, in the shapes of FastVideo's own server.
//!
//! `presets` are the stories that users can choose, `adapters` the styles, and `monitor` is what the UI's page for operators
//! polls, `prompts` are the system prompts, `socket` carries its sessions. `error` is every refusal, `config` has the keys.

use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::routing::get;

use super::app::App;
use crate::tenant::Tenant;

pub(super) use error::in_detail;
pub(super) use presets::PresetsFile;

pub(super) mod adapters;
pub mod config;
mod error;
pub(super) mod monitor;
pub(super) mod presets;
pub(super) mod prompts;
mod socket;

/// What the operator says of FastVideo's web UI, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether there are its routes.
    pub enabled: bool,
    /// How long a session lasts from its first worker on, whatever runs; `None` where it may last.
    pub session: Option<Duration>,
    /// The file of the presets; `None` for the built-in ones.
    pub presets_file: Option<PathBuf>,
    /// Whose the sessions of users without a key are, where callers are asked for one; `None` where these are not let in.
    pub tenant: Option<Tenant>,
}

/// Returns the routes of everybody, where the operator has not turned them off.
pub(super) fn routes(app: &App) -> Router<App> {
    match app.dreamverse.get().enabled {
        true => presets::routes()
            .merge(adapters::routes())
            .merge(monitor::routes())
            .merge(prompts::routes())
            .route("/ws", get(socket::upgrade)),
        false => Router::new(),
    }
}

/// Returns the routes of operators' orders, where the operator has not turned them off.
pub(super) fn orders(app: &App) -> Router<App> {
    match app.dreamverse.get().enabled {
        true => presets::orders()
            .merge(adapters::orders())
            .merge(prompts::orders()),
        false => Router::new(),
    }
}
