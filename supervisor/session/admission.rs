//! Admission control: decides whether a client may open a session, by the number of open ones and whether the server is
//! going away.

use std::net::IpAddr;

use super::registry::{Full, Limits, Registry, Ticket};
use super::{Context, Drain};

/// The number of sessions that may wait for a worker when no limit is configured.
const DEFAULT_QUEUE: usize = 64;

/// Why a client may not open a session. The text is safe to show.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    #[error("the server is going away")]
    Draining,
    #[error(transparent)]
    Full(#[from] Full),
}

/// Admits a client that connects from an address.
///
/// # Errors
/// Returns an error when the server is going away, or a limit on the number of open sessions is reached.
pub fn admit(
    client: IpAddr,
    registry: &Registry,
    context: &Context,
) -> Result<Ticket, NotAdmitted> {
    if *context.drain.borrow() != Drain::No {
        return Err(NotAdmitted::Draining);
    }
    let config = &context.config;
    let limits = Limits {
        sessions: (config.max_sessions).unwrap_or_else(|| context.pool.capacity() + DEFAULT_QUEUE),
        sessions_per_client: config.max_sessions_per_client,
    };
    Ok(registry.enter(client.to_canonical(), limits)?)
}
