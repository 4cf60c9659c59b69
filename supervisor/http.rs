//! The HTTP server: WebSocket sessions, films, health, status, operators' requests, and the built-in page.
//!
//! `app` is the state that all requests share. `stream` carries a session over a WebSocket, `watch` shows it to
//! spectators, `film` serves what was recorded, `fleet` tells routers how the server is, `status` answers probes, `operator` serves operators' requests, and
//! `openapi` describes all routes. Connections come in through [`crate::ingress`], and [`crate::auth`] stands before all routes.
//!
//! The bodies of requests and answers are the types of [`fastvideo_proto::api`]; the modules here build them from the
//! state of the pool, the store and the prompts.

use std::io;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use tokio::net::TcpListener;

pub use app::{App, Config};

use crate::auth::{guard, issue};
use crate::ingress::error::ApiError;
use crate::ingress::{hosts, listener};
use crate::page;

mod app;
pub mod config;
mod film;
pub mod fleet;
pub(crate) mod openapi;
mod operator;
mod status;
mod store_error;
mod stream;
mod watch;

/// Accepts connections until the returned future is dropped. The connections end with `Ingress::stopping`.
///
/// # Errors
/// Returns no error: a listener that cannot accept now is asked again.
pub async fn serve(listener: TcpListener, app: App) -> io::Result<()> {
    let router = router(app.clone());
    listener::run(listener, &app.ingress, router).await;
    Ok(())
}

fn router(app: App) -> Router {
    Router::new()
        .route("/v1/stream", get(stream::upgrade))
        .route("/v1/watch", get(watch::upgrade))
        .route("/v1/router", get(fleet::control))
        .route("/v1/router/session", get(fleet::session))
        .merge(status::routes())
        .merge(openapi::routes())
        .merge(film::routes(&app))
        .merge(operator::routes(&app))
        .merge(issue::routes(&app.guard()))
        .merge(page::routes())
        .fallback(async || ApiError::not_found("there is nothing here; see /openapi.json"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(from_fn_with_state(app.guard(), guard::guard))
        .layer(from_fn_with_state(app.ingress.hosts.clone(), hosts::guard))
        .with_state(app)
}
