//! Bounds the memory of what clients send: bodies of requests and messages take a share of a common budget before they
//! are read, and give it back when they have been dealt with.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::client_address::ClientAddress;

/// The limits of a budget, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) total: u64,
    pub(crate) per_address: u64,
}

/// The bytes that all clients together may have under way. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ByteBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    taken: Mutex<Taken>,
    /// Notified when bytes are given back.
    given_back: Notify,
}

#[derive(Debug)]
struct Taken {
    limits: Limits,
    total: u64,
    by_client: HashMap<ClientAddress, u64>,
}

/// Bytes of a budget, which are given back when this is dropped. The default is no bytes.
#[derive(Debug, Default)]
pub struct Share(Option<Held>);

#[derive(Debug)]
struct Held {
    bytes: u64,
    client: ClientAddress,
    budget: ByteBudget,
}

/// The budget was used up for as long as the caller could wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server receives too much at the moment; try again soon")]
pub(crate) struct Exhausted;

impl ByteBudget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared {
            taken: Mutex::new(Taken {
                limits,
                total: 0,
                by_client: HashMap::new(),
            }),
            given_back: Notify::new(),
        }))
    }

    /// Changes the limits. What is taken already stays taken.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.0.lock().limits = limits;
        self.0.given_back.notify_waiters();
    }

    /// Returns the most bytes that a client can have.
    pub(crate) fn largest(&self) -> u64 {
        let limits = self.0.lock().limits;
        limits.total.min(limits.per_address)
    }

    /// Takes bytes for a client; waits for them if need be.
    ///
    /// # Cancel safety
    /// This method is cancel safe: nothing is taken by a call that was cancelled.
    ///
    /// # Errors
    /// Returns an error when there are not as many left within `patience`.
    pub(crate) async fn take(
        &self,
        client: ClientAddress,
        bytes: u64,
        patience: Duration,
    ) -> Result<Share, Exhausted> {
        let taken = async {
            loop {
                let given_back = self.0.given_back.notified();
                if let Some(share) = self.try_take(client, bytes) {
                    return share;
                }
                given_back.await;
            }
        };
        timeout(patience, taken).await.map_err(|_| Exhausted)
    }

    fn try_take(&self, client: ClientAddress, bytes: u64) -> Option<Share> {
        let mut taken = self.0.lock();
        let limits = taken.limits;
        let of_client = taken.by_client.get(&client).copied().unwrap_or(0);
        if bytes > limits.total.saturating_sub(taken.total)
            || bytes > limits.per_address.saturating_sub(of_client)
        {
            return None;
        }
        taken.total += bytes;
        taken.by_client.insert(client, of_client + bytes);
        Some(Share(Some(Held {
            bytes,
            client,
            budget: self.clone(),
        })))
    }
}

impl Share {
    /// Returns the number of bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |held| held.bytes)
    }

    /// Adds another share of the same client and budget.
    pub(crate) fn add(&mut self, mut other: Self) {
        match (&mut self.0, &mut other.0) {
            (Some(held), Some(added)) => held.bytes += mem::take(&mut added.bytes),
            (none @ None, added) => *none = added.take(),
            (Some(_), None) => {}
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let shared = &self.budget.0;
        let mut taken = shared.lock();
        taken.total -= self.bytes;
        if let Some(of_client) = taken.by_client.get_mut(&self.client) {
            *of_client -= self.bytes;
            if *of_client == 0 {
                taken.by_client.remove(&self.client);
            }
        }
        drop(taken);
        shared.given_back.notify_waiters();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn client(n: u8) -> ClientAddress {
        ClientAddress::of(Ipv4Addr::new(192, 0, 2, n).into())
    }

    fn budget() -> ByteBudget {
        ByteBudget::new(Limits {
            total: 100,
            per_address: 60,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_have_its_part_and_all_together_no_more_than_there_is() {
        let budget = budget();
        let take = async |n, bytes| budget.take(client(n), bytes, PATIENCE).await;
        assert_eq!(budget.largest(), 60);
        let first = take(1, 60).await.unwrap();
        assert_eq!(take(1, 1).await.unwrap_err(), Exhausted);
        let _second = take(2, 40).await.unwrap();
        assert_eq!(take(3, 1).await.unwrap_err(), Exhausted);
        drop(first);
        assert_eq!(take(3, 60).await.unwrap().bytes(), 60);
        assert_eq!(budget.0.lock().by_client.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_what_another_gives_back() {
        let budget = budget();
        let mut held = budget.take(client(1), 50, PATIENCE).await.unwrap();
        held.add(budget.take(client(1), 10, PATIENCE).await.unwrap());
        assert_eq!(held.bytes(), 60);
        let mut waiting = Box::pin(budget.take(client(2), 50, PATIENCE));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(held);
        let mut share = Share::default();
        share.add(waiting.now_or_never().unwrap().unwrap());
        assert_eq!(share.bytes(), 50);
    }
}
