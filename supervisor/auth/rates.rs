//! How often a tenant may open sessions and ask for segments.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Mutex;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota};
use lru::LruCache;

use crate::tenant::Tenant;

/// Number of tenants whose rates are remembered; those that were quiet the longest are forgotten first.
const TENANTS: NonZeroUsize = NonZeroUsize::new(4096).expect("it is above 0");

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Counted {
    Opens,
    Requests,
}

/// The rates of all tenants.
#[derive(Debug)]
pub(super) struct Rates(Mutex<LruCache<(Tenant, Counted), Rate>>);

#[derive(Debug)]
struct Rate {
    per_minute: NonZeroU32,
    limiter: DefaultDirectRateLimiter,
}

impl Rate {
    /// As many as in a minute may come at once.
    fn of(per_minute: NonZeroU32) -> Self {
        Self {
            per_minute,
            limiter: DefaultDirectRateLimiter::direct(Quota::per_minute(per_minute)),
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(TENANTS)))
    }
}

impl Rates {
    /// Counts one more.
    ///
    /// # Errors
    /// Returns how long the tenant has to wait when it has had so many in the last minute.
    pub(super) fn count(
        &self,
        tenant: &Tenant,
        counted: Counted,
        per_minute: Option<NonZeroU32>,
    ) -> Result<(), Duration> {
        let Some(per_minute) = per_minute else {
            return Ok(());
        };
        let mut rates = self.0.lock().expect("no holder of this lock panics");
        let rate = rates.get_or_insert_mut((tenant.clone(), counted), || Rate::of(per_minute));
        if rate.per_minute != per_minute {
            *rate = Rate::of(per_minute);
        }
        let checked = rate.limiter.check();
        checked.map_err(|until| until.wait_time_from(DefaultClock::default().now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_as_many_at_once_as_in_a_minute_and_no_other_tenant_loses_any() {
        let rates = Rates::default();
        let [acme, beta] = ["acme", "beta"].map(Tenant::new);
        let count = |tenant, counted, limit| rates.count(tenant, counted, NonZeroU32::new(limit));
        for _ in 0..5 {
            assert_eq!(count(&acme, Counted::Requests, 5), Ok(()));
        }
        let wait = count(&acme, Counted::Requests, 5).unwrap_err();
        assert!(
            wait > Duration::from_secs(11) && wait <= Duration::from_secs(12),
            "{wait:?}"
        );
        assert_eq!(count(&acme, Counted::Opens, 5), Ok(()));
        assert_eq!(count(&beta, Counted::Requests, 5), Ok(()));
        // A limit that was raised holds at once, and none is none.
        assert_eq!(count(&acme, Counted::Requests, 6), Ok(()));
        assert_eq!(count(&acme, Counted::Requests, 0), Ok(()));
    }
}
