//! The line of the sessions that wait for a place at a server: whoever came first is served first. A session that has
//! lost its server keeps the place in the line that it had when it came, and so stands before all who came later.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

/// The sessions that wait. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when somebody has left.
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    arrivals: u64,
    waiting: BTreeSet<u64>,
}

/// The number of a session among all that have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrival(u64);

/// A place in the line. Dropping it leaves the line.
#[derive(Debug)]
pub(super) struct LinePlace {
    arrival: Arrival,
    line: Line,
}

impl Line {
    /// Gives a session that comes its number.
    pub(super) fn arrive(&self) -> Arrival {
        let mut state = self.lock();
        state.arrivals += 1;
        Arrival(state.arrivals)
    }

    /// Puts a session into the line, at the place that its number gives it.
    pub(super) fn enter(&self, arrival: Arrival) -> LinePlace {
        self.lock().waiting.insert(arrival.0);
        LinePlace {
            arrival,
            line: self.clone(),
        }
    }

    /// Returns the number of sessions that wait.
    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        (self.0.state.lock()).expect("no holder of this lock panics")
    }
}

impl LinePlace {
    /// Returns the number of sessions that wait before this one, and of all that wait.
    pub(super) fn rank(&self) -> (usize, usize) {
        let state = self.line.lock();
        let before = state.waiting.range(..self.arrival.0).count();
        (before, state.waiting.len())
    }

    /// Returns a receiver that is told when somebody has left the line.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.line.0.changes.subscribe()
    }
}

impl Drop for LinePlace {
    fn drop(&mut self) {
        self.line.lock().waiting.remove(&self.arrival.0);
        self.line.0.changes.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_came_first_stands_first_also_when_it_comes_back() {
        let line = Line::default();
        let (a, b, c) = (line.arrive(), line.arrive(), line.arrive());
        let (b, c) = (line.enter(b), line.enter(c));
        assert_eq!((b.rank(), c.rank()), ((0, 2), (1, 2)));
        let mut changes = c.changes();
        let a = line.enter(a);
        assert_eq!((a.rank(), b.rank(), c.rank()), ((0, 3), (1, 3), (2, 3)));
        assert!(!changes.has_changed().unwrap());
        drop(b);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!(c.rank(), (1, 2));
        assert_eq!(line.len(), 2);
    }
}
