//! The open connections: counted in sum and by address, and the choice of those that are closed to make room.
//!
//! When a limit is reached, connections on which nobody says anything are closed first, the oldest first, so that
//! strangers who are silent do not keep out a client who speaks. A connection that carries a request or a session is
//! never closed for another one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client_address::ClientAddress;

/// Limits on the number of connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections: usize,
    pub(crate) connections_per_address: usize,
    /// WebSockets whose session has not been opened yet.
    pub(crate) unopened: usize,
    pub(crate) unopened_per_address: usize,
}

/// A limit that is reached. The text is safe to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("the server has {0} connections open, which is its limit; try again soon")]
    Connections(usize),
    #[error("your address has {0} connections open, which is the limit for one address")]
    ConnectionsOfAddress(usize),
    #[error("{0} WebSockets wait for their opening message, which is the limit; try again soon")]
    Unopened(usize),
    #[error(
        "{0} WebSockets of your address wait for their opening message, which is the limit for one address"
    )]
    UnopenedOfAddress(usize),
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No byte has come since the connection began.
    Fresh,
    /// No byte of a request has come since the last answer was written.
    Idle,
    /// A part of a request's head has come.
    Head,
    /// A request is being read and answered.
    Request,
    /// The answer is being written.
    Answer,
    /// A WebSocket whose client has not sent anything.
    Silent,
    /// A WebSocket whose client has sent a part of its opening message.
    Opening,
    /// A WebSocket whose opening message has come.
    Session,
}

impl Phase {
    /// Returns how willingly a connection is closed for another one; the lowest first. `None`: it is not.
    fn rank(self) -> Option<u8> {
        match self {
            Self::Fresh | Self::Idle | Self::Silent => Some(0),
            Self::Head => Some(1),
            Self::Request | Self::Answer | Self::Opening | Self::Session => None,
        }
    }

    fn is_unopened(self) -> bool {
        matches!(self, Self::Silent | Self::Opening)
    }
}

/// All open connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    open: Mutex<Open>,
    /// Notified when a connection has been closed.
    left: Notify,
}

#[derive(Debug)]
struct Open {
    limits: Limits,
    next: u64,
    entries: BTreeMap<u64, Arc<Entry>>,
    by_client: HashMap<ClientAddress, usize>,
}

#[derive(Debug)]
struct Entry {
    client: ClientAddress,
    standing: Mutex<Standing>,
    /// Cancelled when the connection is closed for another one.
    displaced: CancellationToken,
}

/// What a connection is doing, and since when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) phase: Phase,
    pub(crate) since: Instant,
}

/// The place of one connection. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    id: u64,
    entry: Arc<Entry>,
    connections: Connections,
}

impl Connections {
    pub(crate) fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared {
            open: Mutex::new(Open {
                limits,
                next: 0,
                entries: BTreeMap::new(),
                by_client: HashMap::new(),
            }),
            left: Notify::new(),
        }))
    }

    /// Changes the limits. Where more connections are open than the new ones allow, they stay.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
        self.0.left.notify_waiters();
    }

    /// Gives a place to a new connection.
    ///
    /// # Errors
    /// Returns an error when as many are open as the limits allow.
    pub(crate) fn enter(&self, client: ClientAddress) -> Result<Place, Full> {
        let mut open = self.lock();
        let limits = open.limits;
        if open.entries.len() >= limits.connections {
            return Err(Full::Connections(limits.connections));
        }
        let of_client = open.by_client.entry(client).or_default();
        if *of_client >= limits.connections_per_address {
            return Err(Full::ConnectionsOfAddress(limits.connections_per_address));
        }
        *of_client += 1;
        let id = open.next;
        open.next += 1;
        let entry = Arc::new(Entry {
            client,
            standing: Mutex::new(Standing {
                phase: Phase::Fresh,
                since: Instant::now(),
            }),
            displaced: CancellationToken::new(),
        });
        open.entries.insert(id, entry.clone());
        Ok(Place {
            id,
            entry,
            connections: self.clone(),
        })
    }

    /// Begins to close a connection on which nobody says anything, one of those that a limit counts. Returns whether
    /// there is one.
    pub(crate) fn displace(&self, full: Full, client: ClientAddress) -> bool {
        self.displace_one_of(|entry, phase| match full {
            Full::Connections(_) => true,
            Full::ConnectionsOfAddress(_) => entry.client == client,
            Full::Unopened(_) => phase.is_unopened(),
            Full::UnopenedOfAddress(_) => phase.is_unopened() && entry.client == client,
        })
    }

    /// Begins to close any connection on which nobody says anything. Returns whether there is one.
    pub(crate) fn displace_any(&self) -> bool {
        self.displace_one_of(|_, _| true)
    }

    fn displace_one_of(&self, counts: impl Fn(&Entry, Phase) -> bool) -> bool {
        let open = self.lock();
        let candidates = open.entries.values().filter_map(|entry| {
            let standing = *entry.lock();
            let rank = standing.phase.rank()?;
            let may_go = counts(entry, standing.phase) && !entry.displaced.is_cancelled();
            may_go.then_some((rank, standing.since, entry))
        });
        match candidates.min_by_key(|(rank, since, _)| (*rank, *since)) {
            Some((_, _, entry)) => {
                entry.displaced.cancel();
                true
            }
            None => false,
        }
    }

    /// Waits until a connection has been closed.
    pub(crate) fn left(&self) -> Notified<'_> {
        self.0.left.notified()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        (self.0.open.lock()).expect("no holder of this lock panics")
    }
}

impl Place {
    pub(crate) fn client(&self) -> ClientAddress {
        self.entry.client
    }

    pub(crate) fn standing(&self) -> Standing {
        *self.entry.lock()
    }

    pub(crate) fn enter_phase(&self, phase: Phase) {
        *self.entry.lock() = Standing {
            phase,
            since: Instant::now(),
        };
    }

    /// Makes the connection a WebSocket that waits for its opening message. Where the limits on those are reached, the
    /// oldest one that is silent is closed for it.
    ///
    /// # Errors
    /// Returns an error when a limit is reached and none is silent.
    pub(crate) fn await_opening(&self) -> Result<(), Full> {
        loop {
            match self.try_await_opening() {
                Err(full) if self.connections.displace(full, self.entry.client) => {}
                done => return done,
            }
        }
    }

    fn try_await_opening(&self) -> Result<(), Full> {
        let open = self.connections.lock();
        let limits = open.limits;
        let (mut all, mut of_client) = (0, 0);
        for entry in open.entries.values() {
            if entry.lock().phase.is_unopened() && !entry.displaced.is_cancelled() {
                all += 1;
                of_client += usize::from(entry.client == self.entry.client);
            }
        }
        if all >= limits.unopened {
            return Err(Full::Unopened(limits.unopened));
        }
        if of_client >= limits.unopened_per_address {
            return Err(Full::UnopenedOfAddress(limits.unopened_per_address));
        }
        self.enter_phase(Phase::Silent);
        Ok(())
    }

    /// Returns whether the connection has to be closed for another one.
    pub(crate) fn is_displaced(&self) -> bool {
        self.entry.displaced.is_cancelled()
    }

    /// Waits until the connection has to be closed for another one.
    pub(crate) async fn displaced(&self) {
        self.entry.displaced.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.entries.remove(&self.id);
        if let Some(of_client) = open.by_client.get_mut(&self.entry.client) {
            *of_client -= 1;
            if *of_client == 0 {
                open.by_client.remove(&self.entry.client);
            }
        }
        drop(open);
        self.connections.0.left.notify_waiters();
    }
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    fn client(n: u8) -> ClientAddress {
        ClientAddress::of(Ipv4Addr::new(192, 0, 2, n).into())
    }

    fn connections() -> Connections {
        Connections::new(Limits {
            connections: 4,
            connections_per_address: 3,
            unopened: 3,
            unopened_per_address: 2,
        })
    }

    /// Enters, and begins a phase at a time of its own.
    async fn enter(connections: &Connections, n: u8, phase: Phase) -> Place {
        let place = connections.enter(client(n)).unwrap();
        advance(Duration::from_secs(1)).await;
        place.enter_phase(phase);
        place
    }

    fn is_displaced(place: &Place) -> bool {
        place.entry.displaced.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_limited_in_sum_and_by_address() {
        let connections = connections();
        let first = [1, 1, 1].map(|n| connections.enter(client(n)).unwrap());
        let refused = connections.enter(client(1)).unwrap_err();
        assert_eq!(refused, Full::ConnectionsOfAddress(3));
        let _fourth = connections.enter(client(2)).unwrap();
        assert_eq!(
            connections.enter(client(3)).unwrap_err(),
            Full::Connections(4)
        );
        drop(first);
        assert_eq!(connections.lock().entries.len(), 1);
        connections.enter(client(1)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_silent_connection_makes_room_and_one_that_is_served_never_does() {
        let connections = connections();
        let session = enter(&connections, 1, Phase::Session).await;
        let half_head = enter(&connections, 1, Phase::Head).await;
        let older = enter(&connections, 1, Phase::Idle).await;
        let younger = enter(&connections, 2, Phase::Idle).await;
        let full = Full::ConnectionsOfAddress(3);
        assert!(connections.displace(full, client(1)));
        assert!(is_displaced(&older) && !is_displaced(&half_head));
        let full = Full::Connections(4);
        assert!(connections.displace(full, client(3)));
        assert!(is_displaced(&younger) && !is_displaced(&half_head));
        assert!(connections.displace(full, client(3)));
        assert!(is_displaced(&half_head));
        assert!(!connections.displace(full, client(3)));
        assert!(!is_displaced(&session));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_websocket_makes_room_for_the_next_one_of_its_address() {
        let connections = connections();
        let oldest = enter(&connections, 1, Phase::Silent).await;
        let speaking = enter(&connections, 1, Phase::Opening).await;
        let third = enter(&connections, 1, Phase::Request).await;
        assert_eq!(third.await_opening(), Ok(()));
        assert!(is_displaced(&oldest) && !is_displaced(&speaking));
        third.enter_phase(Phase::Opening);
        drop(oldest);
        let fourth = enter(&connections, 1, Phase::Request).await;
        assert_eq!(fourth.await_opening(), Err(Full::UnopenedOfAddress(2)));
        speaking.enter_phase(Phase::Session);
        assert_eq!(fourth.await_opening(), Ok(()));
    }
}
