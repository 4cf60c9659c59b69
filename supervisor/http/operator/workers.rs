//! The operators' routes for single workers: drain and restart.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::workers::{WorkerOrder, WorkerOrderAccepted, WorkerQuery};
use fastvideo_proto::ids::GpuId;

use crate::http::app::{App, AppState};
use crate::ingress::error::ApiError;
use crate::ingress::extract::{PathGpu, ValidQuery};
use crate::pool::Pool;

/// The answer to an order that was accepted.
type Accepted = (StatusCode, Json<WorkerOrderAccepted>);

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/workers/{gpu}/drain", post(drain))
        .route("/v1/workers/{gpu}/restart", post(restart))
}

/// Drains a worker: it ends and stays down until it is restarted. Each of its sessions goes on elsewhere, or waits, at
/// the end of its running segment.
#[utoipa::path(post, path = "/v1/workers/{gpu}/drain", params(("gpu" = u32, Path), WorkerQuery), responses(
    (status = 202, body = WorkerOrderAccepted),
    (status = 400, body = ErrorBody, description = "a parameter is wrong"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = ErrorBody, description = "there is no such GPU")
))]
pub(in crate::http) async fn drain(
    State(app): AppState,
    PathGpu(gpu): PathGpu,
    ValidQuery(query): ValidQuery<WorkerQuery>,
) -> Result<Accepted, ApiError> {
    order(&app.context.pool, gpu, query, WorkerOrder::Drain)
}

/// Restarts a worker. A worker that serves is drained first; one that was drained, waits for its next try or is
/// quarantined starts at once.
#[utoipa::path(post, path = "/v1/workers/{gpu}/restart", params(("gpu" = u32, Path), WorkerQuery), responses(
    (status = 202, body = WorkerOrderAccepted),
    (status = 400, body = ErrorBody, description = "a parameter is wrong"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = ErrorBody, description = "there is no such GPU")
))]
pub(in crate::http) async fn restart(
    State(app): AppState,
    PathGpu(gpu): PathGpu,
    ValidQuery(query): ValidQuery<WorkerQuery>,
) -> Result<Accepted, ApiError> {
    order(&app.context.pool, gpu, query, WorkerOrder::Restart)
}

fn order(
    pool: &Pool,
    gpu_id: GpuId,
    query: WorkerQuery,
    order: WorkerOrder,
) -> Result<Accepted, ApiError> {
    let deadline = query.deadline_seconds.map(Duration::try_from_secs_f64);
    let deadline = deadline.transpose().map_err(|error| {
        ApiError::invalid_request(format!("`deadline_seconds` is no time: {error}"))
    })?;
    let ordered = match order {
        WorkerOrder::Drain => pool.drain_worker(gpu_id, deadline),
        WorkerOrder::Restart => pool.restart_worker(gpu_id, deadline),
    };
    ordered.map_err(|_| ApiError::no_gpu(&gpu_id.to_string()))?;
    tracing::info!(%gpu_id, ?order, ?deadline, "an operator's order");
    let accepted = WorkerOrderAccepted { gpu_id, order };
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}
