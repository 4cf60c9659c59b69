//! What the page for operators of FastVideo's web UI polls: this server as the only one of a router.

use std::collections::BTreeMap;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::HOST;
use axum::routing::get;
use axum::{Json, Router};
use fastvideo_proto::api::dreamverse::{MonitoredSessions, Replica, ReplicaList};
use fastvideo_proto::api::probes::Readiness;

use crate::http::app::{App, AppState};
use crate::http::status::readiness;
use crate::ingress::timestamp::rfc3339;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/router/replicas/sessions", get(replicas))
        .route("/internal/monitor/sessions", get(sessions))
}

/// Lists this server with its sessions, as a router of FastVideo lists its servers.
#[utoipa::path(get, path = "/router/replicas/sessions", responses((status = 200, body = ReplicaList)))]
pub(in crate::http) async fn replicas(
    State(app): AppState,
    headers: HeaderMap,
) -> Json<ReplicaList> {
    let pool = app.context.pool.status();
    let replica = Replica {
        url: address(&app, &headers),
        healthy: readiness(&app) == Readiness::Ready,
        active_sessions: pool.workers.iter().map(|slot| slot.sessions).sum(),
        pending_sessions: pool.queue_depth,
        max_available_sessions: pool.room.places,
        prompt_provider_success_counts: answered_calls(&app),
    };
    Json(ReplicaList {
        replicas: vec![replica],
    })
}

/// Returns the numbers of sessions, as FastVideo's server tells them to its router.
#[utoipa::path(get, path = "/internal/monitor/sessions", responses((status = 200, body = MonitoredSessions)))]
pub(in crate::http) async fn sessions(State(app): AppState) -> Json<MonitoredSessions> {
    let pool = app.context.pool.status();
    Json(MonitoredSessions {
        service: app.service_name.to_string(),
        pending_sessions: pool.queue_depth,
        max_available_sessions: pool.room.places,
        prompt_provider_success_counts: answered_calls(&app),
        ts: rfc3339(SystemTime::now()),
    })
}

/// Returns the address of the server as the request names it.
fn address(app: &App, headers: &HeaderMap) -> String {
    let scheme = match app.ingress.encryption {
        Some(_) => "https",
        None => "http",
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    format!("{scheme}://{}", host.unwrap_or("localhost"))
}

/// Returns the number of answered calls by provider of language models.
fn answered_calls(app: &App) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    if let Some(enhancer) = app.context.prompts.enhancer() {
        for provider in enhancer.status().providers {
            *counts.entry(provider.name).or_default() += provider.calls - provider.failed;
        }
    }
    counts
}
