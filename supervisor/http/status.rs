//! Probes, the state of the workers, and the description of all routes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use super::prompts::PromptStatus;
use super::{App, AppState, ErrorBody, ErrorDetail, sessions};
use crate::pool::{ExitKind, PoolStatus, SlotStatus};
use crate::prompt::safety::{SafetyFilter, SafetyStatus};
use crate::session::{Drain, LatencySummary};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/health", get(health))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/openapi.json", get(openapi))
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "fastvideo-supervisor",
        description = "Realtime video generation, segment by segment. Sessions run on `WS /v1/stream`."
    ),
    paths(
        health,
        healthz,
        readyz,
        status,
        openapi,
        stream,
        sessions::list,
        sessions::hydrate,
        sessions::state,
        sessions::end,
        sessions::relocate,
        sessions::drain,
        super::workers::drain,
        super::workers::restart,
        super::prompts::reload
    ),
    components(schemas(ErrorBody, ErrorDetail))
)]
struct ApiDoc;

#[derive(Serialize, ToSchema)]
struct Health {
    status: &'static str,
    /// Open sessions, waiting ones included.
    sessions: usize,
    /// What a session gets unless it asks otherwise.
    stream_mode: &'static str,
}

/// The process answers, and how many sessions it has.
#[utoipa::path(get, path = "/health", responses((status = 200, body = Health)))]
async fn health(State(app): AppState) -> Json<Health> {
    Json(Health {
        status: "ok",
        sessions: app.registry.count(),
        stream_mode: "av_fmp4",
    })
}

#[derive(Serialize, ToSchema)]
struct Healthz {
    status: &'static str,
    #[schema(value_type = String)]
    service: Arc<str>,
    /// Now, RFC 3339.
    ts: String,
}

/// Liveness: the process answers.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Healthz)))]
async fn healthz(State(app): AppState) -> Json<Healthz> {
    Json(Healthz {
        status: "ok",
        service: app.service_name.clone(),
        ts: now(),
    })
}

#[derive(Serialize, ToSchema)]
struct Readyz {
    /// `ready`, `warming` or `draining`.
    status: &'static str,
    #[schema(value_type = String)]
    service: Arc<str>,
    /// Workers that serve.
    ready_gpu_workers: usize,
    total_gpus: usize,
    /// Workers that could take another session.
    available_gpus: usize,
    warmup_successful_gpus: usize,
    warmup_failed_gpus: usize,
    /// Sessions that wait for a worker.
    queue_size: usize,
    ts: String,
}

/// Readiness: a new session would find a worker that serves.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, body = Readyz, description = "at least one worker serves"),
    (status = 503, body = Readyz, description = "warming or draining")
))]
async fn readyz(State(app): AppState) -> Response {
    let pool = app.context.pool.status();
    let counts = Counts::of(&pool);
    let (code, status) = if *app.context.drain.borrow() != Drain::No {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if counts.ready == 0 {
        (StatusCode::SERVICE_UNAVAILABLE, "warming")
    } else {
        (StatusCode::OK, "ready")
    };
    let body = Readyz {
        status,
        service: app.service_name.clone(),
        ready_gpu_workers: counts.ready,
        total_gpus: pool.workers.len(),
        available_gpus: counts.available,
        warmup_successful_gpus: counts.warmed_up,
        warmup_failed_gpus: counts.failed,
        queue_size: pool.queue_depth,
        ts: now(),
    };
    (code, Json(body)).into_response()
}

#[derive(Serialize, ToSchema)]
struct Status {
    total_gpus: usize,
    available_gpus: usize,
    queue_size: usize,
    warmup_enabled: bool,
    warmup_successful_gpus: usize,
    warmup_failed_gpus: usize,
    /// By `gpu_id`.
    gpu_status: BTreeMap<u32, GpuStatus>,
    /// Open sessions, waiting ones included.
    sessions: usize,
    draining: bool,
    version: &'static str,
    /// From a worker's link to the client's socket.
    relay_latency: LatencySummary,
    safety: SafetyStatus,
    /// Absent where nothing enhances prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<PromptStatus>,
    /// Where a log of sessions is kept.
    session_log: Option<SessionLogStatus>,
}

#[derive(Serialize, ToSchema)]
struct SessionLogStatus {
    /// Events that could not be written since the server's start.
    events_lost: u64,
}

#[derive(Serialize, ToSchema)]
struct GpuStatus {
    /// The worker serves.
    ready: bool,
    /// It could take another session.
    available: bool,
    client_count: usize,
    current_model_id: Option<String>,
    process_alive: bool,
    warmup_enabled: bool,
    /// A process of this GPU has become ready.
    warmup_success: bool,
    /// Why none has, when one tried.
    warmup_error: Option<String>,
    warmup_timings: WarmupTimings,
    worker_id: Option<String>,
    pid: Option<u32>,
    /// `spawning`, `connecting`, `loading`, `warming_up`, `ready`, `busy`, `draining`, `drained`, `exited`,
    /// `backing_off` or `quarantined`.
    #[schema(value_type = String)]
    state: crate::pool::WorkerState,
    /// Exits that nobody asked for.
    restarts: u32,
    last_exit: Option<LastExit>,
    load_progress: Option<LoadProgress>,
    /// `CUDA_VISIBLE_DEVICES` of the worker.
    visible_device: String,
    device: Option<Device>,
    /// Of the worker's process.
    resident_bytes: Option<u64>,
    /// Segments finished since the supervisor's start.
    segments_finished: u64,
}

#[derive(Serialize, ToSchema)]
struct WarmupTimings {
    load_ms: Option<f64>,
    first_segment_ms: Option<f64>,
    second_segment_ms: Option<f64>,
}

#[derive(Serialize, ToSchema)]
struct LastExit {
    /// `asked`, `crashed`, `stuck`, `boot` or `bad_link`.
    #[schema(value_type = String)]
    kind: ExitKind,
    reason: String,
    /// The next process would not become ready either: an operator has to mend what the reason says.
    permanent: bool,
    uptime_seconds: f64,
    ts: String,
}

#[derive(Serialize, ToSchema)]
struct LoadProgress {
    /// 0 to 1.
    fraction: f32,
    what: String,
}

#[derive(Serialize, ToSchema)]
struct Device {
    name: String,
    memory_bytes: Option<u64>,
}

/// Every worker, and what the supervisor adds to a fragment's way.
#[utoipa::path(get, path = "/status", responses((status = 200, body = Status)))]
async fn status(State(app): AppState) -> Json<Status> {
    let pool = app.context.pool.status();
    let counts = Counts::of(&pool);
    let gpu_status = pool.workers.iter().map(|slot| {
        (
            slot.status.gpu.id.0,
            GpuStatus::of(slot, pool.warmup_enabled),
        )
    });
    Json(Status {
        total_gpus: pool.workers.len(),
        available_gpus: counts.available,
        queue_size: pool.queue_depth,
        warmup_enabled: pool.warmup_enabled,
        warmup_successful_gpus: counts.warmed_up,
        warmup_failed_gpus: counts.failed,
        gpu_status: gpu_status.collect(),
        sessions: app.registry.count(),
        draining: *app.context.drain.borrow() != Drain::No,
        version: env!("CARGO_PKG_VERSION"),
        relay_latency: app.relay_latency.summary(),
        safety: (app.context.prompts.safety()).map_or_else(SafetyStatus::off, SafetyFilter::status),
        prompt: app.context.prompts.enhancer().map(PromptStatus::of),
        session_log: (app.context.logs.events_lost())
            .map(|events_lost| SessionLogStatus { events_lost }),
    })
}

impl GpuStatus {
    fn of(slot: &SlotStatus, warmup_enabled: bool) -> Self {
        let status = &slot.status;
        let ready = status.ready.as_ref();
        let ms = |d: std::time::Duration| d.as_secs_f64() * 1000.0;
        Self {
            ready: status.state.serves(),
            available: slot.available,
            client_count: slot.sessions,
            current_model_id: ready.map(|r| r.model_id.clone()),
            process_alive: status.pid.is_some(),
            warmup_enabled,
            warmup_success: status.warmed_up,
            warmup_error: boot_error(slot),
            warmup_timings: WarmupTimings {
                load_ms: ready.map(|r| ms(r.load)),
                first_segment_ms: ready.and_then(|r| r.warmup.first()).copied().map(ms),
                second_segment_ms: ready.and_then(|r| r.warmup.get(1)).copied().map(ms),
            },
            worker_id: status.worker_id.as_ref().map(ToString::to_string),
            pid: status.pid,
            state: status.state,
            restarts: status.restarts,
            last_exit: status.last_exit.as_ref().map(|exit| LastExit {
                kind: exit.kind,
                reason: exit.reason.clone(),
                permanent: exit.permanent,
                uptime_seconds: exit.uptime.as_secs_f64(),
                ts: rfc3339(exit.at),
            }),
            load_progress: status
                .load_progress
                .clone()
                .map(|(fraction, what)| LoadProgress { fraction, what }),
            visible_device: status.gpu.visible_device.clone(),
            device: ready.map(|r| Device {
                name: r.device.name.clone(),
                memory_bytes: r.device.memory_bytes,
            }),
            resident_bytes: status.resident_bytes,
            segments_finished: status.jobs_finished,
        }
    }
}

/// Why no process of this GPU has ever become ready, when one tried.
fn boot_error(slot: &SlotStatus) -> Option<String> {
    match &slot.status.last_exit {
        Some(exit) if !slot.status.warmed_up => Some(exit.reason.clone()),
        _ => None,
    }
}

struct Counts {
    ready: usize,
    available: usize,
    warmed_up: usize,
    failed: usize,
}

impl Counts {
    fn of(pool: &PoolStatus) -> Self {
        let count = |f: fn(&SlotStatus) -> bool| pool.workers.iter().filter(|slot| f(slot)).count();
        Self {
            ready: count(|slot| slot.status.state.serves()),
            available: count(|slot| slot.available),
            warmed_up: count(|slot| slot.status.warmed_up),
            failed: count(|slot| boot_error(slot).is_some()),
        }
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(ApiDoc::openapi())
}

/// One connection is one session: JSON text messages both ways, media as binary messages to the client. The messages
/// are described in `docs/protocol.md`.
#[utoipa::path(get, path = "/v1/stream", responses(
    (status = 101, description = "the WebSocket is open"),
    (status = 426, body = ErrorBody, description = "the request was no WebSocket upgrade")
))]
#[expect(dead_code, reason = "describes the route that `stream` answers")]
fn stream() {}

fn now() -> String {
    rfc3339(SystemTime::now())
}

pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
