//! Orders of an operator to individual workers.

use serde::{Deserialize, Serialize};

use crate::ids::GpuId;

/// The query of `POST /v1/workers/{gpu}/drain` and `POST /v1/workers/{gpu}/restart`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[serde(deny_unknown_fields)]
pub struct WorkerQuery {
    /// The deadline in seconds: segments that still run after it are started again on another worker. Without a
    /// deadline, they may finish.
    pub deadline_seconds: Option<f64>,
}

/// The answer to an order that was accepted; `/status` tells how far the worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = Ordered))]
pub struct WorkerOrderAccepted {
    #[cfg_attr(feature = "openapi", schema(value_type = u32))]
    pub gpu_id: GpuId,
    /// The accepted order, `drain` or `restart`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub order: WorkerOrder,
}

/// An operator's order to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerOrder {
    /// The worker leaves and stays away.
    Drain,
    /// The worker leaves and is started again.
    Restart,
}
