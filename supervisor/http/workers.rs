//! Orders of an operator to single workers: leave, and start again.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use fastvideo_proto::ids::GpuId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{App, AppState, ErrorBody, error};
use crate::pool::{Pool, UnknownGpu};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/workers/{gpu}/drain", post(drain))
        .route("/v1/workers/{gpu}/restart", post(restart))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Order {
    /// Segments that still run after so many seconds are begun again elsewhere; without it they may end.
    deadline_seconds: Option<f64>,
}

/// The order is taken; `/status` tells how far the worker is.
#[derive(Serialize, ToSchema)]
pub(super) struct Ordered {
    gpu_id: u32,
    /// `drain` or `restart`.
    order: &'static str,
}

/// Has a worker leave and stay away. Its sessions go on elsewhere or wait, each at the end of its running segment.
#[utoipa::path(post, path = "/v1/workers/{gpu}/drain", params(("gpu" = u32, Path), Order), responses(
    (status = 202, body = Ordered),
    (status = 400, body = ErrorBody, description = "a parameter is wrong"),
    (status = 404, body = ErrorBody, description = "there is no such GPU")
))]
pub(super) async fn drain(
    State(app): AppState,
    Path(gpu): Path<String>,
    order: Result<Query<Order>, QueryRejection>,
) -> Response {
    give(&app, &gpu, order, "drain", Pool::drain_worker)
}

/// Starts a worker afresh. One that serves leaves first, as for a drain; one that was drained, waits for its next try or
/// is quarantined starts now.
#[utoipa::path(post, path = "/v1/workers/{gpu}/restart", params(("gpu" = u32, Path), Order), responses(
    (status = 202, body = Ordered),
    (status = 400, body = ErrorBody, description = "a parameter is wrong"),
    (status = 404, body = ErrorBody, description = "there is no such GPU")
))]
pub(super) async fn restart(
    State(app): AppState,
    Path(gpu): Path<String>,
    order: Result<Query<Order>, QueryRejection>,
) -> Response {
    give(&app, &gpu, order, "restart", Pool::restart_worker)
}

fn give(
    app: &App,
    gpu: &str,
    order: Result<Query<Order>, QueryRejection>,
    name: &'static str,
    give: fn(&Pool, GpuId, Option<Duration>) -> Result<(), UnknownGpu>,
) -> Response {
    let no_gpu = || {
        let message = format!("there is no GPU `{gpu}`");
        error(StatusCode::NOT_FOUND, "not_found", message)
    };
    let bad = |message| error(StatusCode::BAD_REQUEST, "invalid_request", message);
    let Ok(gpu_id) = gpu.parse() else {
        return no_gpu();
    };
    let patience = match order {
        Err(rejection) => return bad(rejection.body_text()),
        Ok(Query(order)) => order.deadline_seconds,
    };
    let patience = match patience.map(Duration::try_from_secs_f64).transpose() {
        Ok(patience) => patience,
        Err(error) => return bad(format!("`deadline_seconds` is no time: {error}")),
    };
    if give(&app.context.pool, GpuId(gpu_id), patience).is_err() {
        return no_gpu();
    }
    tracing::info!(gpu_id, order = name, ?patience, "an operator's order");
    let order = name;
    (StatusCode::ACCEPTED, Json(Ordered { gpu_id, order })).into_response()
}
