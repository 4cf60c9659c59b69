//! All routes of a router.

use axum::Router;
use axum::http::Uri;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{any, get};

use super::app::App;
use super::{film, openapi, servers, sessions, status, stream, videos, watch};
use crate::auth::{guard, issue};
use crate::ingress::error::ApiError;
use crate::ingress::hosts;
use crate::ingress::metrics::measure;
use crate::ingress::openai::in_openai_form;
use crate::page;
use crate::reload::routes as reload;

pub(super) fn router(app: App) -> Router {
    Router::new()
        .route("/v1/stream", get(stream::upgrade))
        .route("/v1/watch", get(watch::upgrade))
        .route("/v1/sessions/{id}/film", any(film::film))
        .route("/v1/sessions/{id}/film/{*file}", any(film::film))
        .route("/v1/sessions/{id}/film.mp4", any(film::film))
        .route("/v1/sessions/{id}/index.m3u8", any(film::film))
        .route("/status", get(status::status))
        .route("/metrics", get(status::scrape))
        .route("/v1/fleet/demand", get(status::fleet_demand))
        .route("/health", get(status::health))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .merge(openapi::routes())
        .merge(servers::routes(&app))
        .merge(sessions::routes(&app))
        .merge(videos::routes(&app))
        .merge(issue::routes(&app.guard()))
        .merge(reload::routes(&app.guard()))
        .merge(page::routes())
        .fallback(async |uri: Uri| nothing_here(uri.path()))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(from_fn_with_state(app.guard(), guard::guard))
        .layer(from_fn_with_state(app.ingress.hosts.clone(), hosts::guard))
        .layer(from_fn(in_openai_form))
        .layer(from_fn_with_state(app.http_metrics.clone(), measure))
        .with_state(app)
}

/// Answers that there is nothing at this address.
fn nothing_here(path: &str) -> ApiError {
    ApiError::not_found(match path {
        "/ws" => {
            "a router does not carry sessions of FastVideo's web UI yet; its proxy has to name a server"
        }
        _ => "there is nothing here; see /openapi.json",
    })
}
