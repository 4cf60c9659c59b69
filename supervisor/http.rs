//! The HTTP server: WebSocket sessions, films, health, status, operators' requests, and the built-in page.
//!
//! `app` is the state that all requests share. `stream` carries a session over a WebSocket, `watch` shows it to
//! spectators, `film` serves what was recorded, `videos` are video jobs, `file` serves files, `fleet` tells routers how the server is, `status` answers probes, `operator` serves operators' requests,
//! `dreamverse` is for FastVideo's web UI, `site` serves a folder where no route answers, and `openapi` describes all routes. `parts` are what a reload gives another configuration. Connections come in through [`crate::ingress`], and [`crate::auth`] stands before all routes.
//!
//! The bodies of requests and answers are the types of [`fastvideo_proto::api`]; the modules here build them from the
//! state of the pool, the store and the prompts.

use std::io;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use fastvideo_proto::api::probes::Readiness;
use tokio::net::TcpListener;

pub(crate) use app::Reloading;
pub use app::{Admin, App, Config};

use crate::auth::{guard, issue};
use crate::ingress::error::ApiError;
use crate::ingress::hosts::{self, Hosts};
use crate::ingress::openai::in_openai_form;
use crate::ingress::tls::Side;
use crate::ingress::{listener, metrics};
use crate::page;
use crate::reload::routes as reload;
use crate::turns::Turns;

mod app;
pub mod config;
pub mod dreamverse;
mod file;
mod film;
pub mod fleet;
pub(crate) mod openapi;
mod operator;
mod parts;
mod rollouts;
mod site;
mod status;
mod store_error;
mod stream;
mod videos;
mod watch;

/// Accepts connections until the returned future is dropped. The connections end with `Ingress::stopping`. With `admin`,
/// what is for operators is served there alone.
///
/// # Errors
/// Returns no error: a listener that cannot accept now is asked again.
pub async fn serve(
    listener: TcpListener,
    admin: Option<TcpListener>,
    app: App,
    turns: Turns,
) -> io::Result<()> {
    let hosts = &app.ingress.hosts;
    let Some(admin) = admin else {
        let routes = for_clients(&app).merge(for_operators(&app));
        let router = complete(routes.fallback(site::answer), hosts, &app);
        let accepting = listener::run(listener, Side::Public, &app.ingress, router);
        turns.watch("HTTP listener", accepting).await;
        return Ok(());
    };
    let router = complete(for_clients(&app).fallback(site::answer), hosts, &app);
    let public = listener::run(listener, Side::Public, &app.ingress, router);
    let hosts = app.admin_hosts.as_ref().unwrap_or(hosts);
    let routes = for_operators(&app).fallback(async || site::nothing_here());
    let router = complete(routes, hosts, &app);
    let admin = listener::run(admin, Side::Admin, &app.ingress, router);
    tokio::join!(
        turns.watch("HTTP listener", public),
        turns.watch("admin listener", admin)
    );
    Ok(())
}

/// Returns the routes of everybody: sessions, films, the page; and the links of routers, which reach a server at one address.
fn for_clients(app: &App) -> Router<App> {
    Router::new()
        .route("/v1/stream", get(stream::upgrade))
        .route("/v1/watch", get(watch::upgrade))
        .route("/v1/router", get(fleet::control))
        .route("/v1/router/session", get(fleet::session))
        .merge(film::routes(app))
        .merge(videos::routes(app))
        .merge(rollouts::routes(app))
        .merge(dreamverse::routes(app))
        .merge(issue::routes(&app.guard()))
        .merge(match app.site {
            Some(_) => page::routes_beside_site(),
            None => page::routes(),
        })
}

/// Returns the routes of operators and of what watches the server.
fn for_operators(app: &App) -> Router<App> {
    status::routes()
        .merge(operator::routes(app))
        .merge(dreamverse::orders(app))
        .merge(reload::routes(&app.guard()))
}

/// Adds what every listener answers. `routes` have a fallback.
fn complete(routes: Router<App>, hosts: &Hosts, app: &App) -> Router {
    routes
        .merge(status::probes())
        .merge(openapi::routes())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(from_fn_with_state(app.guard(), guard::guard))
        .layer(from_fn_with_state(hosts.clone(), hosts::guard))
        .layer(from_fn(in_openai_form))
        .layer(from_fn(dreamverse::in_detail))
        .layer(from_fn_with_state(
            app.http_metrics.clone(),
            metrics::measure,
        ))
        .with_state(app.clone())
}

/// Returns what the readiness probe answers now.
pub(crate) fn readiness(app: &App) -> Readiness {
    status::readiness(app)
}
