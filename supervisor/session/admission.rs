//! Admission control: decides whether a client may open a session, by the number of open ones and whether the server is
//! going away.

use fastvideo_proto::ids::SessionId;

use super::not_admitted::{Full, NotAdmitted};
use super::registry::{Limits, Registry, Ticket};
use super::{Context, Drain};
use crate::auth::Grant;
use crate::client_address::ClientAddress;

/// The number of sessions that may wait for a worker when no limit is configured.
const DEFAULT_QUEUE: usize = 64;

/// Checks whether a client could open a session now, so that one that could not is told before it sends its opening.
///
/// # Errors
/// Returns an error when the server is going away, or a limit on the number of open sessions is reached.
pub fn may_open(
    client: ClientAddress,
    grant: &Grant,
    registry: &Registry,
    context: &Context,
) -> Result<(), NotAdmitted> {
    Ok(registry.check(client, grant.tenant(), limits(grant, context)?)?)
}

/// Admits a client that has sent its opening message.
///
/// # Errors
/// Returns an error when the server is going away, or a limit on the number of open sessions is reached.
pub(super) fn admit(
    client: ClientAddress,
    grant: &Grant,
    registry: &Registry,
    context: &Context,
) -> Result<Ticket, NotAdmitted> {
    let ticket = registry.enter(client, grant.tenant(), limits(grant, context)?)?;
    grant
        .count_opening()
        .map_err(|retry_after| NotAdmitted::Limited {
            message: "your tenant opens sessions too often".to_owned(),
            retry_after,
        })?;
    Ok(ticket)
}

/// Admits a session that comes from another server. It was counted there when it was opened.
///
/// # Errors
/// Returns an error when the server is going away, or a limit on the number of all open sessions is reached.
pub(super) fn admit_moved(
    client: ClientAddress,
    grant: &Grant,
    registry: &Registry,
    context: &Context,
) -> Result<Ticket, NotAdmitted> {
    let limits = Limits {
        sessions_of_tenant: None,
        ..limits(grant, context)?
    };
    Ok(registry.enter(client, grant.tenant(), limits)?)
}

/// Checks whether a session may wait for a worker, where there is no place for it now.
///
/// # Errors
/// Returns an error when as many sessions of its tenant wait as may.
pub(super) fn may_wait(
    ticket: &Ticket,
    session: &SessionId,
    grant: &Grant,
    context: &Context,
) -> Result<(), NotAdmitted> {
    match grant.limits().max_waiting {
        Some(most) if ticket.others_waiting() >= most && !context.pool.has_place_for(session) => {
            Err(Full::Waiting(most).into())
        }
        _ => Ok(()),
    }
}

fn limits(grant: &Grant, context: &Context) -> Result<Limits, NotAdmitted> {
    if *context.drain.borrow() != Drain::No {
        return Err(NotAdmitted::Draining);
    }
    let config = context.config.get().limits;
    Ok(Limits {
        sessions: (config.max_sessions).unwrap_or_else(|| context.pool.capacity() + DEFAULT_QUEUE),
        sessions_per_client: config.max_sessions_per_client,
        sessions_of_tenant: grant.limits().max_sessions,
    })
}
