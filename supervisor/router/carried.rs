//! The sessions that this router carries over session links, so that an operator can move one to another server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use fastvideo_proto::ids::SessionId;
use tokio::sync::{mpsc, oneshot};

/// The sessions by their ids. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Carried(Arc<Mutex<HashMap<SessionId, mpsc::Sender<MoveOrder>>>>);

/// An order to move a session. It is answered with whether another server has a place.
pub(super) type MoveOrder = oneshot::Sender<bool>;

/// A session that is carried until this is dropped.
#[derive(Debug)]
pub(super) struct CarriedSession {
    id: SessionId,
    all: Carried,
    pub(super) orders: mpsc::Receiver<MoveOrder>,
}

impl Carried {
    /// Takes note of a session.
    pub(super) fn carry(&self, id: SessionId) -> CarriedSession {
        let (order, orders) = mpsc::channel(1);
        self.lock().insert(id.clone(), order);
        CarriedSession {
            id,
            all: self.clone(),
            orders,
        }
    }

    /// Lets a session go on at another server at its next boundary, if one has a place. Returns whether it will.
    pub(super) async fn move_elsewhere(&self, id: &SessionId) -> bool {
        let Some(session) = self.lock().get(id).cloned() else {
            return false;
        };
        let (answer, answered) = oneshot::channel();
        session.send(answer).await.is_ok() && answered.await.unwrap_or(false)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, mpsc::Sender<MoveOrder>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Drop for CarriedSession {
    fn drop(&mut self) {
        self.orders.close();
        let mut all = self.all.lock();
        // Its client may have come again meanwhile, over another connection.
        if all.get(&self.id).is_some_and(mpsc::Sender::is_closed) {
            all.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_connection_of_a_session_gets_the_orders() {
        let all = Carried::default();
        let id = SessionId::random();
        assert!(!all.move_elsewhere(&id).await);
        let first = all.carry(id.clone());
        let mut second = all.carry(id.clone());
        drop(first);
        let answer = async { second.orders.recv().await.unwrap().send(true) };
        let (moves, _) = tokio::join!(all.move_elsewhere(&id), answer);
        assert!(moves);
        drop(second);
        assert!(!all.move_elsewhere(&id).await);
        assert!(all.lock().is_empty());
    }
}
