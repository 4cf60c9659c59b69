//! Probes, the state of the servers, and what their sessions need.

use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::router::{FleetDemand, ReplicaState, RouterHealth, RouterStatus};

use super::app::App;
use super::demand;
use super::registry::seconds;
use crate::ingress::error::ApiError;

/// What probes are told.
const OK: &str = "ok";
const UNAVAILABLE: &str = "unavailable";

/// Returns the state of all replicas.
#[utoipa::path(get, path = "/status", responses((status = 200, body = RouterStatus)))]
pub(super) async fn status(State(app): State<App>) -> Json<RouterStatus> {
    let replicas = app.registry.all();
    let replicas = replicas.iter().map(|replica| {
        let health = replica.health();
        let endpoint = &replica.endpoint;
        ReplicaState {
            url: endpoint.url.as_str().trim_end_matches('/').to_owned(),
            name: replica.name(),
            primary: endpoint.primary,
            status: health.status().to_string(),
            last_ok_at: health.last_ok().map(seconds),
            last_latency_ms: health.last_latency().map(|took| took.as_secs_f64() * 1e3),
            consecutive_failures: health.consecutive_failures(),
            sessions: replica.sessions(),
            link: replica.link().to_owned(),
            report: replica.report(),
        }
    });
    Json(RouterStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ts: seconds(SystemTime::now()),
        draining: app.leaving.is_cancelled() || app.ingress.connections.is_closed(),
        waiting: app.line.len(),
        line_is_common: app.line.is_common(),
        replicas: replicas.collect(),
        last_reload: app.reloads.last().map(Into::into),
    })
}

/// Returns all metrics, as OpenMetrics where the request accepts that, else in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, content_type = "text/plain", body = String),
    (status = 503, body = ErrorBody, description = "4 scrapes run already")
))]
pub(super) async fn scrape(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.scrapes.answer(&headers).await
}

/// Returns what the servers have, and what their sessions need.
#[utoipa::path(get, path = "/v1/fleet/demand", responses((status = 200, body = FleetDemand)))]
pub(super) async fn fleet_demand(State(app): State<App>) -> Json<FleetDemand> {
    let replicas = app.registry.all();
    let reports: Vec<_> = replicas.iter().filter_map(|r| r.report()).collect();
    Json(demand::demand(&reports, app.line.len(), app.headroom_gpus))
}

/// Says that the process answers, and how many sessions it has.
#[utoipa::path(get, path = "/health", responses((status = 200, body = RouterHealth)))]
pub(super) async fn health(State(app): State<App>) -> Json<RouterHealth> {
    Json(health_of(&app))
}

/// Liveness probe: the process answers.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = RouterHealth)))]
pub(super) async fn healthz(State(app): State<App>) -> Json<RouterHealth> {
    Json(health_of(&app))
}

/// Readiness probe: a new session would find a server.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, body = RouterHealth, description = "a server is healthy"),
    (status = 503, body = RouterHealth, description = "no server is healthy, or the router drains")
))]
pub(super) async fn readyz(State(app): State<App>) -> (StatusCode, Json<RouterHealth>) {
    let mut health = health_of(&app);
    readiness(&app).clone_into(&mut health.status);
    let code = match health.status.as_str() {
        UNAVAILABLE => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    (code, Json(health))
}

/// Returns what the readiness probe answers now.
pub(super) fn readiness(app: &App) -> &'static str {
    match app.registry.select().is_some() && !app.ingress.connections.is_closed() {
        true => OK,
        false => UNAVAILABLE,
    }
}

fn health_of(app: &App) -> RouterHealth {
    let replicas = app.registry.all();
    RouterHealth {
        status: OK.to_owned(),
        healthy_replicas: replicas
            .iter()
            .filter(|replica| replica.is_healthy() && !replica.is_cut_off())
            .count(),
        replicas: replicas.len(),
        sessions: replicas.iter().map(|replica| replica.sessions()).sum(),
    }
}
