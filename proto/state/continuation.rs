//! The public form of a continuation state, which clients and operators use.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A continuation state that clients can keep and send back: a kind, and a JSON payload whose schema depends on the
/// kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContinuationState {
    /// The kind, such as [`LTX2_V1`](super::LTX2_V1).
    pub kind: String,
    #[serde(deserialize_with = "crate::untrusted_json::object")]
    pub payload: Map<String, Value>,
}
