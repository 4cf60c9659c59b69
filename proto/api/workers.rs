//! Orders of an operator to individual workers, and the adapters of all of them.

use std::collections::BTreeMap;

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

/// The body of `POST /v1/workers/loras`: an adapter that all workers are to load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewAdapter {
    /// The name that clients choose it by: 1 to 64 ASCII letters, digits, `-`, `_` or `.`, not starting with `.`.
    pub name: String,
    /// The file's path within `generator.ltx2.loras_folder`.
    pub file: String,
    /// The strength where a client names none, -2 to 2; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Words that are added to a prompt that does not have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// Where these words stand, `front` or `back`; `front` by default.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub trigger_position: TriggerPosition,
}

/// Where the trigger words of an adapter stand in a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TriggerPosition {
    #[default]
    Front,
    Back,
}

/// The query of `DELETE /v1/workers/loras/{name}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[serde(deny_unknown_fields)]
pub struct UnloadQuery {
    /// Unload it although sessions have chosen it: their next segments are made without it.
    #[serde(default)]
    pub force: bool,
}

/// The answer of `GET /v1/workers/loras`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AdapterList {
    /// The adapters of the configuration, and then those that were loaded by order.
    pub adapters: Vec<AdapterEntry>,
}

/// An adapter that clients can choose, or that is being loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AdapterEntry {
    pub name: String,
    /// The strength where a client names none.
    pub strength: f64,
    /// Whether the configuration names it.
    pub configured: bool,
    /// Whether clients can choose it.
    pub offered: bool,
    /// The number of sessions whose latest segment asked for it.
    pub sessions: usize,
    /// What the adapter's file says about it, as far as that is short.
    pub metadata: BTreeMap<String, String>,
    /// How it is on each GPU's worker, by `gpu_id`.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<u32, AdapterOnWorker>))]
    pub workers: BTreeMap<GpuId, AdapterOnWorker>,
}

/// An adapter on one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AdapterOnWorker {
    /// `loading`, `loaded` or `failed`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub state: AdapterState,
    /// The GPU memory that it takes, in bytes, once it is loaded.
    pub bytes: Option<u64>,
    /// The number of the model's layers that it changes.
    pub layers: Option<u32>,
    /// The largest rank of a layer.
    pub rank: Option<u32>,
    /// The reason why it is not loaded.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterState {
    Loading,
    Loaded,
    Failed,
}
