//! The sessions that are open, and the limit on their number.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use fastvideo_proto::ids::SessionId;

use super::SessionState;

/// All open sessions. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    sessions: Arc<Mutex<BTreeMap<SessionId, SessionState>>>,
}

/// A session's entry; it is removed when this is dropped.
#[derive(Debug)]
pub struct Ticket {
    id: SessionId,
    registry: Registry,
}

/// The server has as many sessions as it takes.
#[derive(Debug, thiserror::Error)]
#[error("the server is full: it has {limit} sessions, which is its limit")]
pub struct Full {
    limit: usize,
}

impl Registry {
    /// Enters a new session.
    ///
    /// # Errors
    /// When `limit` sessions are open.
    pub fn enter(&self, limit: usize) -> Result<Ticket, Full> {
        let mut sessions = self.lock();
        if sessions.len() >= limit {
            return Err(Full { limit });
        }
        let id = SessionId::random();
        sessions.insert(id.clone(), SessionState::Initializing);
        Ok(Ticket {
            id,
            registry: self.clone(),
        })
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionId, SessionState>> {
        self.sessions.lock().expect("no holder of this lock panics")
    }
}

impl Ticket {
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    pub fn state(&self) -> SessionState {
        self.registry.lock()[&self.id]
    }

    /// Moves the session to another state. An edge that does not exist is a programming error: it is logged, and the
    /// session stays where it is.
    pub(crate) fn transition(&self, to: SessionState) {
        let mut sessions = self.registry.lock();
        let state = sessions
            .get_mut(&self.id)
            .expect("the ticket holds the entry");
        match state.transition(to) {
            Ok(to) => {
                let from = std::mem::replace(state, to);
                drop(sessions);
                tracing::debug!(?from, ?to, "session changed state");
            }
            Err(error) => {
                drop(sessions);
                tracing::error!(%error, "session state left as it is");
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_that_is_dropped_makes_room() {
        let registry = Registry::default();
        let ticket = registry.enter(1).unwrap();
        assert!(registry.enter(1).is_err());
        drop(ticket);
        assert_eq!(registry.count(), 0);
        registry.enter(1).unwrap();
    }
}
