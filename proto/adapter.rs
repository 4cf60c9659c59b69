//! Adapters (LoRA): small changes of a model that a client chooses by name.

use serde::{Deserialize, Serialize};

/// The strongest that an adapter may act, in either direction.
pub const MAX_STRENGTH: f64 = 2.0;

/// The number of adapters that may act on a segment at once.
pub const MAX_ADAPTERS: usize = 8;

/// An adapter and how strongly it acts, from -[`MAX_STRENGTH`] to [`MAX_STRENGTH`]; at 0 it does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    pub name: String,
    pub strength: f64,
}

/// A client's choice of an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterChoice {
    pub name: String,
    /// Null takes the operator's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
}
