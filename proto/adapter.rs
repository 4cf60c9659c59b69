//! Adapters (LoRA): small changes of a model that a client chooses by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The strongest that an adapter may act, in either direction.
pub const MAX_STRENGTH: f64 = 2.0;

/// The longest name of an adapter, in characters.
pub const MAX_ADAPTER_NAME: usize = 64;

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

/// An adapter that workers load while they serve, beside those of their configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterSpec {
    pub name: String,
    /// Tells it from others that had the same name before.
    pub serial: u64,
    /// The engine's options for it, as a JSON object.
    pub options: String,
}

/// An adapter that a worker holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAdapter {
    pub name: String,
    /// The memory that it takes, in bytes.
    pub bytes: u64,
    /// The number of the model's layers that it changes.
    pub layers: u32,
    /// The largest rank of a layer.
    pub rank: u32,
    /// The BLAKE3 hash of its file.
    pub file_hash: [u8; 32],
    /// What its file says about it, as far as that is short.
    pub metadata: BTreeMap<String, String>,
}
