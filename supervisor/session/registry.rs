//! The sessions that are open, and the limits on their number.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use fastvideo_proto::ids::{SessionId, WorkerId};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::command::Protocol;
use super::not_admitted::Full;
use super::outbox::Outbox;
use super::playback::Playback;
use super::state::{InvalidTransition, SessionState};
use crate::client_address::ClientAddress;
use crate::tenant::{Scope, Tenant};

/// All open sessions. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    entries: Mutex<Entries>,
    /// Notified when a session has left.
    left: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    by_connection: BTreeMap<u64, Entry>,
}

/// The description of a session that others can see.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: SessionId,
    pub state: SessionState,
    /// What the client speaks.
    pub protocol: Protocol,
    /// Where the client connects from.
    pub client: ClientAddress,
    /// Whose the session is.
    pub tenant: Tenant,
    pub connected: Instant,
    /// The worker that the session is bound to, or was bound to last.
    pub worker: Option<WorkerId>,
    /// Number of finished segments.
    pub segments: u32,
    pub playback: Playback,
    /// The session's events on their way to its client; `None` before the opening message is accepted.
    pub outbox: Option<Outbox>,
    /// Whether the session is stored, so that who drops its record ends it.
    pub is_stored: bool,
    /// Ends the session when it is cancelled, if it is not stored.
    end: CancellationToken,
}

/// A connection's entry in the registry. Dropping the ticket removes the entry.
#[derive(Debug)]
pub struct Ticket {
    connection: u64,
    id: SessionId,
    registry: Registry,
}

/// The limits on the number of open sessions.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub sessions: usize,
    pub sessions_per_client: usize,
    /// Of the tenant that opens one; `None` where it has no limit of its own.
    pub sessions_of_tenant: Option<usize>,
}

impl Registry {
    /// Adds a new session.
    ///
    /// # Errors
    /// Returns an error when as many sessions are open as the limits allow.
    pub fn enter(
        &self,
        client: ClientAddress,
        tenant: &Tenant,
        limits: Limits,
    ) -> Result<Ticket, Full> {
        let mut entries = self.lock();
        entries.check(client, tenant, limits)?;
        let connection = entries.next;
        entries.next += 1;
        let id = SessionId::random();
        let entry = Entry {
            id: id.clone(),
            state: SessionState::Initializing,
            protocol: Protocol::default(),
            client,
            tenant: tenant.clone(),
            connected: Instant::now(),
            worker: None,
            segments: 0,
            playback: Playback::default(),
            outbox: None,
            is_stored: true,
            end: CancellationToken::new(),
        };
        entries.by_connection.insert(connection, entry);
        Ok(Ticket {
            connection,
            id,
            registry: self.clone(),
        })
    }

    /// Checks whether there is room for another session.
    ///
    /// # Errors
    /// Returns an error when as many sessions are open as the limits allow.
    pub fn check(
        &self,
        client: ClientAddress,
        tenant: &Tenant,
        limits: Limits,
    ) -> Result<(), Full> {
        self.lock().check(client, tenant, limits)
    }

    pub fn count(&self) -> usize {
        self.lock().by_connection.len()
    }

    /// Returns all sessions, in the order in which they connected.
    pub fn list(&self) -> Vec<Entry> {
        self.lock().by_connection.values().cloned().collect()
    }

    /// Ends a session that is not stored. Returns false when there is none with this id among those of `scope`.
    pub fn end_unstored(&self, session: &SessionId, scope: &Scope) -> bool {
        let entries = self.lock();
        let mut entries = entries.by_connection.values();
        let found = entries.find(|entry| entry.id == *session && !entry.is_stored);
        let found = found.filter(|entry| scope.has(&entry.tenant));
        found.inspect(|entry| entry.end.cancel()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        (self.0.entries.lock()).expect("no holder of this lock panics")
    }
}

impl Entries {
    fn check(&self, client: ClientAddress, tenant: &Tenant, limits: Limits) -> Result<(), Full> {
        let open = &self.by_connection;
        if open.len() >= limits.sessions {
            return Err(Full::Server(limits.sessions));
        }
        let of_client = open.values().filter(|entry| entry.client == client);
        if of_client.count() >= limits.sessions_per_client {
            return Err(Full::Client(limits.sessions_per_client));
        }
        if let Some(most) = limits.sessions_of_tenant {
            let of_tenant = open.values().filter(|entry| entry.tenant == *tenant);
            if of_tenant.count() >= most {
                return Err(Full::Tenant(most));
            }
        }
        Ok(())
    }
}

impl Ticket {
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// Resolves when an operator ends the session, if it is not stored.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn ended(&self) {
        let end = self.update(|entry| entry.end.clone());
        end.cancelled().await;
    }

    pub fn state(&self) -> SessionState {
        self.update(|entry| entry.state)
    }

    /// Gives the connection the id of an older session. Waits until no other connection runs that session.
    pub(crate) async fn take_over(&mut self, id: SessionId) {
        self.update(|entry| entry.id = id.clone());
        self.id = id;
        loop {
            let left = self.registry.0.left.notified();
            let runs_it = |(connection, entry): (&u64, &Entry)| {
                *connection != self.connection && entry.id == self.id
            };
            if !self.registry.lock().by_connection.iter().any(runs_it) {
                return;
            }
            left.await;
        }
    }

    /// Returns whether another connection of this server waits for the session's end to go on with it.
    pub(crate) fn is_taken_over(&self) -> bool {
        let entries = self.registry.lock();
        let mut entries = entries.by_connection.iter();
        entries.any(|(connection, entry)| *connection != self.connection && entry.id == self.id)
    }

    /// Returns how many other sessions of the same tenant wait for a worker, or are about to.
    pub(super) fn others_waiting(&self) -> usize {
        let entries = self.registry.lock();
        let own = &entries.by_connection[&self.connection].tenant;
        let waits = |state| matches!(state, SessionState::Initializing | SessionState::Queued);
        let others = entries.by_connection.iter();
        others
            .filter(|(connection, entry)| {
                **connection != self.connection && entry.tenant == *own && waits(entry.state)
            })
            .count()
    }

    /// Changes what others can see.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.registry.lock();
        let entry = entries.by_connection.get_mut(&self.connection);
        change(entry.expect("the ticket holds the entry"))
    }

    /// Moves the session to another state, and returns the one before. A transition that does not exist is a
    /// programming error: it is logged, and the session stays in its state.
    pub(crate) fn transition(&self, to: SessionState) -> Option<SessionState> {
        let moved = self.update(|entry| {
            let from = entry.state;
            entry.state = from.transition(to)?;
            Ok::<_, InvalidTransition>(from)
        });
        match moved {
            Ok(from) => Some(from),
            Err(error) => {
                tracing::error!(%error, "session state left as it is");
                None
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.registry.lock().by_connection.remove(&self.connection);
        self.registry.0.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt;

    use super::*;

    fn client(n: u8) -> ClientAddress {
        ClientAddress::of(Ipv4Addr::new(192, 0, 2, n).into())
    }

    const LIMITS: Limits = Limits {
        sessions: 3,
        sessions_per_client: 2,
        sessions_of_tenant: None,
    };

    #[test]
    fn a_ticket_that_is_dropped_makes_room() {
        let registry = Registry::default();
        let enter = |n| registry.enter(client(n), &Tenant::default(), LIMITS);
        let tickets = [enter(1).unwrap(), enter(1).unwrap()];
        assert_eq!(enter(1).unwrap_err(), Full::Client(2));
        let other = enter(2).unwrap();
        assert_eq!(enter(3).unwrap_err(), Full::Server(3));
        drop(tickets);
        drop(other);
        assert_eq!(registry.count(), 0);
        enter(1).unwrap();
    }

    #[test]
    fn a_tenant_has_a_limit_of_its_own() {
        let registry = Registry::default();
        let limits = Limits {
            sessions_of_tenant: Some(1),
            ..LIMITS
        };
        let [acme, beta] = ["acme", "beta"].map(Tenant::new);
        let first = registry.enter(client(1), &acme, limits).unwrap();
        let full = registry.enter(client(2), &acme, limits).unwrap_err();
        assert_eq!(full, Full::Tenant(1));
        let other = registry.enter(client(2), &beta, limits).unwrap();
        assert_eq!((first.others_waiting(), other.others_waiting()), (0, 0));
        let second = registry.enter(client(2), &acme, LIMITS).unwrap();
        assert_eq!((first.others_waiting(), other.others_waiting()), (1, 0));
        drop(first);
        assert_eq!(second.others_waiting(), 0);
    }

    #[test]
    fn a_session_is_taken_over_once_its_last_connection_has_left() {
        let registry = Registry::default();
        let enter = |n| registry.enter(client(n), &Tenant::default(), LIMITS);
        let old = enter(1).unwrap();
        let mut new = enter(2).unwrap();
        let id = old.id().clone();
        let mut taken = Box::pin(new.take_over(id.clone()));
        assert!(taken.as_mut().now_or_never().is_none());
        drop(old);
        assert!(taken.as_mut().now_or_never().is_some());
        drop(taken);
        assert_eq!(registry.list()[0].id, id);
    }
}
