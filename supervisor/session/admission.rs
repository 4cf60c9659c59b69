//! Admission control: decides whether a client may open a session, by the number of open ones and whether the server is
//! going away.

use super::registry::{Full, Limits, Registry, Ticket};
use super::{Context, Drain};
use crate::client_address::ClientAddress;

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

/// Checks whether a client could open a session now, so that one that could not is told before it sends its opening.
///
/// # Errors
/// Returns an error when the server is going away, or a limit on the number of open sessions is reached.
pub fn may_open(
    client: ClientAddress,
    registry: &Registry,
    context: &Context,
) -> Result<(), NotAdmitted> {
    Ok(registry.check(client, limits(context)?)?)
}

/// Admits a client that has sent its opening message.
///
/// # Errors
/// Returns an error when the server is going away, or a limit on the number of open sessions is reached.
pub(super) fn admit(
    client: ClientAddress,
    registry: &Registry,
    context: &Context,
) -> Result<Ticket, NotAdmitted> {
    Ok(registry.enter(client, limits(context)?)?)
}

fn limits(context: &Context) -> Result<Limits, NotAdmitted> {
    if *context.drain.borrow() != Drain::No {
        return Err(NotAdmitted::Draining);
    }
    let config = &context.config;
    Ok(Limits {
        sessions: (config.max_sessions).unwrap_or_else(|| context.pool.capacity() + DEFAULT_QUEUE),
        sessions_per_client: config.max_sessions_per_client,
    })
}
