//! How many wrong keys each address has shown: one that guesses is answered 429 for a while.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::client_address::ClientAddress;

/// Number of wrong keys from one address in [`PERIOD`] before it is slowed.
const MOST: u32 = 10;
/// The time in which wrong keys are counted, and for which an address is slowed.
const PERIOD: Duration = Duration::from_secs(60);
/// Number of addresses that are remembered; those that were quiet the longest are forgotten first.
const ADDRESSES: NonZeroUsize = NonZeroUsize::new(4096).expect("it is above 0");

/// The wrong keys of all addresses.
#[derive(Debug)]
pub(super) struct WrongKeys(Mutex<LruCache<ClientAddress, Tries>>);

#[derive(Clone, Copy, Debug)]
struct Tries {
    since: Instant,
    count: u32,
}

impl Default for WrongKeys {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(ADDRESSES)))
    }
}

impl WrongKeys {
    /// Counts a wrong key.
    ///
    /// # Errors
    /// Returns how long the address has to wait when it has shown too many. The time counts from the one that was too
    /// many.
    pub(super) fn add(&self, address: ClientAddress) -> Result<(), Duration> {
        let now = Instant::now();
        let mut addresses = self.0.lock().expect("no holder of this lock panics");
        let fresh = || Tries {
            since: now,
            count: 0,
        };
        let tries = addresses.get_or_insert_mut(address, fresh);
        if now - tries.since >= PERIOD {
            *tries = fresh();
        }
        if tries.count > MOST {
            return Err(PERIOD - (now - tries.since));
        }
        tries.count += 1;
        if tries.count > MOST {
            tries.since = now;
            tracing::warn!(target: "audit", %address, "many wrong keys from one address");
            return Err(PERIOD);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::advance;

    use super::*;

    fn address(n: u32) -> ClientAddress {
        ClientAddress::of(Ipv4Addr::from_bits(n).into())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_guesses_is_slowed_for_a_minute_and_no_other_is() {
        let wrong = WrongKeys::default();
        for _ in 0..MOST {
            assert_eq!(wrong.add(address(1)), Ok(()));
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(wrong.add(address(1)), Err(PERIOD));
        assert_eq!(wrong.add(address(2)), Ok(()));
        advance(PERIOD - Duration::from_secs(1)).await;
        assert_eq!(wrong.add(address(1)), Err(Duration::from_secs(1)));
        advance(Duration::from_secs(1)).await;
        assert_eq!(wrong.add(address(1)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn ten_wrong_keys_a_minute_are_borne_and_the_memory_has_a_limit() {
        let wrong = WrongKeys::default();
        for _ in 0..5 {
            for _ in 0..MOST {
                assert_eq!(wrong.add(address(1)), Ok(()));
            }
            advance(PERIOD).await;
        }
        for n in 0..10_000 {
            assert_eq!(wrong.add(address(n)), Ok(()));
        }
        assert_eq!(wrong.0.lock().unwrap().len(), ADDRESSES.get());
    }
}
