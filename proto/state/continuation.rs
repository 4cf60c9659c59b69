//! The public form of a continuation state, as clients and operators see it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A continuation state that clients can keep and bring back: a kind, and a payload in JSON whose form the kind tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContinuationState {
    /// Such as [`LTX2_V1`](super::LTX2_V1).
    pub kind: String,
    pub payload: Map<String, Value>,
}
