//! The sessions that wait for a worker, in the order in which they are served: tenants take turns, and of one tenant the
//! session that came first is first.
//!
//! Each session has the round in which it is served: the one after that of its tenant's session before it, and none that
//! has passed. Of one round, the session that came first is first. With one tenant the queue is first come, first served.

use std::collections::{HashMap, VecDeque};

use fastvideo_proto::ids::SessionId;

use crate::tenant::Tenant;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// In order.
    entries: VecDeque<Entry>,
    /// The round from which sessions are served now.
    round: u64,
    /// The last round in which a tenant was served, where that has not passed.
    served: HashMap<Tenant, u64>,
    /// The number of the next session.
    arrivals: u64,
}

#[derive(Debug)]
struct Entry {
    session: SessionId,
    tenant: Tenant,
    /// `None` for a session that has lost its worker: it is served before all that have none yet.
    turn: Option<Turn>,
}

/// When a session is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    round: u64,
    arrival: u64,
}

impl Queue {
    /// Adds a session that has just come.
    pub(super) fn join(&mut self, session: SessionId, tenant: Tenant) {
        let waiting = self.entries.iter().filter(|entry| entry.tenant == tenant);
        let waiting = waiting.filter_map(|entry| entry.turn).map(|it| it.round);
        let before = waiting.max().max(self.served.get(&tenant).copied());
        let round = before.map_or(self.round, |before| self.round.max(before + 1));
        let turn = Some(Turn {
            round,
            arrival: self.arrivals,
        });
        self.arrivals += 1;
        let place = self.entries.partition_point(|entry| entry.turn < turn);
        let entry = Entry {
            session,
            tenant,
            turn,
        };
        self.entries.insert(place, entry);
    }

    /// Adds a session that has lost its worker: it is served first, behind those that have lost theirs before. Returns its
    /// position.
    pub(super) fn rejoin(&mut self, session: SessionId, tenant: Tenant) -> usize {
        let place = self.entries.partition_point(|entry| entry.turn.is_none());
        let entry = Entry {
            session,
            tenant,
            turn: None,
        };
        self.entries.insert(place, entry);
        place
    }

    /// Takes the session that is served next.
    pub(super) fn pop(&mut self) -> Option<SessionId> {
        let Entry {
            session,
            tenant,
            turn,
        } = self.entries.pop_front()?;
        if let Some(Turn { round, .. }) = turn {
            self.round = round;
            self.served.retain(|_, served| *served >= round);
            self.served.insert(tenant, round);
        }
        Some(session)
    }

    /// Removes a session that does not wait any more. Those of its tenant behind it move up.
    pub(super) fn remove(&mut self, session: &SessionId) {
        let Some(place) = self.entries.iter().position(|it| it.session == *session) else {
            return;
        };
        let gone = self.entries.remove(place);
        let Some(Entry {
            tenant,
            turn: Some(Turn { mut round, .. }),
            ..
        }) = gone
        else {
            return;
        };
        for entry in self.entries.range_mut(place..) {
            if let Some(turn) = entry.turn.as_mut().filter(|_| entry.tenant == tenant) {
                std::mem::swap(&mut turn.round, &mut round);
            }
        }
        self.entries
            .make_contiguous()
            .sort_by_key(|entry| entry.turn);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SessionId> {
        self.entries.iter().map(|entry| &entry.session)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue whose sessions have names: a letter for the tenant, and a number.
    #[derive(Default)]
    struct Named {
        queue: Queue,
        names: HashMap<SessionId, String>,
    }

    impl Named {
        fn join(&mut self, names: &str) {
            for name in names.split(' ') {
                let id = SessionId::random();
                self.names.insert(id.clone(), name.to_owned());
                self.queue.join(id, Tenant::new(&name[..1]));
            }
        }

        fn id(&self, name: &str) -> SessionId {
            let found = self.names.iter().find(|(_, it)| *it == name);
            found.unwrap().0.clone()
        }

        fn pop(&mut self) -> &str {
            let id = self.queue.pop().unwrap();
            &self.names[&id]
        }

        fn order(&self) -> String {
            let names: Vec<&str> = self.queue.iter().map(|id| &*self.names[id]).collect();
            names.join(" ")
        }
    }

    #[test]
    fn with_one_tenant_who_came_first_is_first() {
        let mut line = Named::default();
        line.join("a1 a2 a3");
        assert_eq!(line.pop(), "a1");
        line.join("a4");
        assert_eq!(line.order(), "a2 a3 a4");
    }

    #[test]
    fn tenants_take_turns_however_many_sessions_one_has() {
        let mut line = Named::default();
        line.join("a1 a2 a3 a4");
        line.join("b1 b2 c1");
        assert_eq!(line.order(), "a1 b1 c1 a2 b2 a3 a4");
        assert_eq!(line.pop(), "a1");
        // Its next one has its turn after those of the others.
        assert_eq!(line.order(), "b1 c1 a2 b2 a3 a4");
        line.join("d1 c2");
        assert_eq!(line.order(), "b1 c1 d1 a2 b2 c2 a3 a4");
        for name in ["b1", "c1", "d1", "a2"] {
            assert_eq!(line.pop(), name);
        }
        // Who was served in this round waits for the next one.
        line.join("a5 e1");
        assert_eq!(line.order(), "b2 c2 e1 a3 a4 a5");
    }

    #[test]
    fn who_leaves_leaves_its_turn_to_its_tenant() {
        let mut line = Named::default();
        line.join("a1 a2 a3 b1 b2");
        line.queue.remove(&line.id("a1"));
        assert_eq!(line.order(), "a2 b1 a3 b2");
        line.queue.remove(&line.id("b2"));
        line.queue.remove(&SessionId::random());
        assert_eq!(line.order(), "a2 b1 a3");
    }

    #[test]
    fn who_has_lost_a_worker_is_first() {
        let mut line = Named::default();
        line.join("a1 b1");
        for (name, position) in [("b8", 0), ("a9", 1)] {
            let id = SessionId::random();
            line.names.insert(id.clone(), name.to_owned());
            assert_eq!(line.queue.rejoin(id, Tenant::new("a")), position);
        }
        assert_eq!(line.order(), "b8 a9 a1 b1");
        assert_eq!(line.pop(), "b8");
        assert_eq!(line.queue.len(), 3);
    }
}
