//! The answer to a request for a ticket.

use serde::{Deserialize, Serialize};

/// What lets a page open one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ticket {
    /// To be shown in `/v1/stream?ticket=…`, once.
    pub ticket: String,
    /// For how many seconds it is valid.
    pub expires_in: u64,
}
