//! Probes, and the state of the workers, the prompts and the log.
//!
//! `gpu`, `prompt` and `store` build their parts of `/status` from the status of the pool, the prompts and the store.

use std::time::SystemTime;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::probes::{Health, Healthz, Liveness, Readiness, Readyz};
use fastvideo_proto::api::status::{LatencySummary, SessionLogStatus, Status, VideosStatus};
use fastvideo_proto::job::MediaMode;

use super::app::{App, AppState};
use crate::ingress::error::ApiError;
use crate::ingress::timestamp::rfc3339;
use crate::pool::PoolStatus;
use crate::session::{Drain, LatencyQuantiles};

mod gpu;
mod prompt;
mod store;

/// Returns the routes of the probes.
pub(super) fn probes() -> Router<App> {
    Router::new()
        .route("/health", get(health))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
}

/// Returns the routes that tell operators of the state.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
}

/// Says that the process answers, and how many sessions it has.
#[utoipa::path(get, path = "/health", responses((status = 200, body = Health)))]
pub(super) async fn health(State(app): AppState) -> Json<Health> {
    Json(Health {
        status: Liveness::Ok,
        sessions: app.registry.count(),
        stream_mode: MediaMode::default(),
    })
}

/// Liveness probe: the process answers.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Healthz)))]
pub(super) async fn healthz(State(app): AppState) -> Json<Healthz> {
    Json(Healthz {
        status: Liveness::Ok,
        service: app.service_name.to_string(),
        ts: rfc3339(SystemTime::now()),
    })
}

/// Readiness probe: a new session would find a worker that serves, and a store where one is required.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, body = Readyz, description = "at least one worker serves"),
    (status = 503, body = Readyz, description = "warming, unavailable, draining, or without a store that is required")
))]
pub(super) async fn readyz(State(app): AppState) -> (StatusCode, Json<Readyz>) {
    let pool = app.context.pool.status();
    let counts = WorkerCounts::of(&pool);
    let readiness = readiness_with(&app, &counts);
    let code = match readiness {
        Readiness::Ready => StatusCode::OK,
        Readiness::Warming
        | Readiness::Unavailable
        | Readiness::StoreFailing
        | Readiness::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = Readyz {
        status: readiness,
        service: app.service_name.to_string(),
        ready_gpu_workers: counts.ready,
        total_gpus: pool.workers.len(),
        available_gpus: counts.available,
        warmup_successful_gpus: counts.warmed_up,
        warmup_failed_gpus: counts.failed,
        queue_size: pool.queue_depth,
        ts: rfc3339(SystemTime::now()),
        detail: why_not_ready(readiness).map(Into::into),
    };
    (code, Json(body))
}

/// Returns why no session would find a worker, for users. FastVideo's web UI shows it, and knows the first one.
fn why_not_ready(readiness: Readiness) -> Option<&'static str> {
    match readiness {
        Readiness::Ready => None,
        Readiness::Warming => Some("No ready GPU worker processes."),
        Readiness::Unavailable => {
            Some("No GPU worker could be started. The log of the server says why.")
        }
        Readiness::StoreFailing => {
            Some("The server cannot reach its store. It takes sessions again as soon as it can.")
        }
        Readiness::Draining => Some("The server is shutting down. Try again in a minute."),
    }
}

/// Returns what the readiness probe answers now.
pub(super) fn readiness(app: &App) -> Readiness {
    readiness_with(app, &WorkerCounts::of(&app.context.pool.status()))
}

fn readiness_with(app: &App, counts: &WorkerCounts) -> Readiness {
    match is_draining(app) {
        true => Readiness::Draining,
        false if counts.ready == 0 && app.context.pool.all_lost() => Readiness::Unavailable,
        false if counts.ready == 0 => Readiness::Warming,
        false if store::is_missed(&app.context.store) => Readiness::StoreFailing,
        false => Readiness::Ready,
    }
}

/// Returns the state of every worker, and the latency that the supervisor adds to fragments.
#[utoipa::path(get, path = "/status", responses((status = 200, body = Status)))]
pub(super) async fn status(State(app): AppState) -> Json<Status> {
    let pool = app.context.pool.status();
    let counts = WorkerCounts::of(&pool);
    let gpu_status = pool.workers.iter().map(|slot| {
        let status = gpu::status(slot, pool.warmup_enabled);
        (slot.status.gpu.id, status)
    });
    let events_lost = app.context.logs.events_lost();
    Json(Status {
        total_gpus: pool.workers.len(),
        available_gpus: counts.available,
        queue_size: pool.queue_depth,
        warmup_enabled: pool.warmup_enabled,
        warmup_successful_gpus: counts.warmed_up,
        warmup_failed_gpus: counts.failed,
        gpu_status: gpu_status.collect(),
        sessions: app.registry.count(),
        spectators: app.context.broadcasts.spectators(),
        draining: is_draining(&app),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        relay_latency: app.relay_latency.quantiles().into(),
        safety: prompt::safety_status(app.context.prompts.safety().as_ref()),
        prompt: (app.context.prompts.enhancer()).map(|enhancer| prompt::enhancer_status(&enhancer)),
        store: store::store_status(&app.context.store),
        videos: videos_status(&app, &pool),
        session_log: events_lost.map(|events_lost| SessionLogStatus { events_lost }),
        last_reload: app.reloads.last().map(Into::into),
    })
}

fn videos_status(app: &App, pool: &PoolStatus) -> Option<VideosStatus> {
    let videos = &app.videos;
    let counts = videos.counts();
    videos.config().enabled.then(|| VideosStatus {
        durable: videos.are_durable(),
        queued: counts.queued,
        running: counts.running,
        completed: counts.completed,
        failed: counts.failed,
        stored_bytes: counts.stored_bytes,
        preemptions: pool.preemptions,
    })
}

/// Returns all metrics, as OpenMetrics where the request accepts that, else in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, content_type = "text/plain", body = String),
    (status = 503, body = ErrorBody, description = "4 scrapes run already")
))]
pub(super) async fn metrics(
    State(app): AppState,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.scrapes.answer(&headers).await
}

/// Numbers of workers.
struct WorkerCounts {
    ready: usize,
    available: usize,
    warmed_up: usize,
    failed: usize,
}

impl WorkerCounts {
    fn of(pool: &PoolStatus) -> Self {
        let mut counts = Self {
            ready: 0,
            available: 0,
            warmed_up: 0,
            failed: 0,
        };
        for slot in &pool.workers {
            counts.ready += usize::from(slot.status.state.serves());
            counts.available += usize::from(slot.available);
            counts.warmed_up += usize::from(slot.status.warmed_up);
            counts.failed += usize::from(gpu::boot_error(slot).is_some());
        }
        counts
    }
}

fn is_draining(app: &App) -> bool {
    *app.context.drain.borrow() != Drain::No
}

impl From<LatencyQuantiles> for LatencySummary {
    fn from(quantiles: LatencyQuantiles) -> Self {
        Self {
            count: quantiles.count,
            p50_ms: quantiles.p50.as_secs_f64() * 1000.0,
            p99_ms: quantiles.p99.as_secs_f64() * 1000.0,
        }
    }
}
