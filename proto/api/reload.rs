//! The answer to an order to read files again.

use serde::{Deserialize, Serialize};

/// The answer of `POST /v1/reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reloaded {
    /// What was read again: `keys`, `router_keys`, `certificate`, `system_prompts`.
    pub reloaded: Vec<String>,
}
