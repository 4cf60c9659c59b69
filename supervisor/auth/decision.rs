//! What was decided of a request: one typed event, which the counters and the audit log read.

use std::array::from_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::client_address::ClientAddress;
use crate::tenant::Tenant;

/// By what a caller is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthMethod {
    /// By nothing: it showed nothing, or nobody is asked.
    None,
    Key,
    Jwt,
    Ticket,
}

impl AuthMethod {
    pub const ALL: [Self; 4] = [Self::None, Self::Key, Self::Jwt, Self::Ticket];

    /// Returns the name in metrics and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Key => "key",
            Self::Jwt => "jwt",
            Self::Ticket => "ticket",
        }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthOutcome {
    Ok,
    /// Nothing was shown.
    Missing,
    /// There is no such key, or the ticket was used.
    Unknown,
    Expired,
    /// What was shown is no key, ticket or token that could be valid.
    Invalid,
    /// The role does not suffice.
    Role,
    /// The request comes from the page of another site, or an order from another machine.
    Origin,
    /// Too many wrong keys from one address.
    Limited,
    /// It cannot be checked at the moment.
    Unavailable,
}

impl AuthOutcome {
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::Missing,
        Self::Unknown,
        Self::Expired,
        Self::Invalid,
        Self::Role,
        Self::Origin,
        Self::Limited,
        Self::Unavailable,
    ];

    /// Returns the name in metrics and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
            Self::Role => "role",
            Self::Origin => "origin",
            Self::Limited => "limited",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A decision on a request.
#[derive(Clone, Debug)]
pub struct Decision {
    pub method: AuthMethod,
    pub outcome: AuthOutcome,
    /// The id of the key, or the subject of the token, where it is known.
    pub id: Option<Arc<str>>,
    pub tenant: Option<Tenant>,
    pub address: ClientAddress,
    /// The order that was given; `None` for requests that are none, which the audit log does not name.
    pub order: Option<String>,
}

impl Decision {
    /// Counts the decision, and writes the line of the audit log where one is due.
    pub fn emit(&self, counts: &AuthCounts) {
        counts.add(self.method, self.outcome);
        // Of strangers' tries, a flood would fill the log: they are counted.
        let is_known = self.id.is_some() || self.outcome == AuthOutcome::Ok;
        let Some(order) = self.order.as_deref().filter(|_| is_known) else {
            return;
        };
        tracing::info!(
            target: "audit",
            key_id = self.id.as_deref(),
            tenant = self.tenant.as_ref().map(Tenant::as_str),
            address = %self.address,
            order,
            method = self.method.name(),
            outcome = self.outcome.name(),
            "order"
        );
    }
}

/// The number of decisions of each kind since the start. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AuthCounts(Arc<[[AtomicU64; AuthOutcome::ALL.len()]; AuthMethod::ALL.len()]>);

impl Default for AuthCounts {
    fn default() -> Self {
        Self(Arc::new(from_fn(|_| from_fn(|_| AtomicU64::new(0)))))
    }
}

impl AuthCounts {
    fn add(&self, method: AuthMethod, outcome: AuthOutcome) {
        let count = &self.0[method as usize][outcome as usize];
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of decisions of one kind.
    pub fn get(&self, method: AuthMethod, outcome: AuthOutcome) -> u64 {
        self.0[method as usize][outcome as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn each_decision_is_counted_in_its_place() {
        let counts = AuthCounts::default();
        let all = || {
            let outcomes = AuthOutcome::ALL.into_iter();
            outcomes.flat_map(|outcome| AuthMethod::ALL.map(|method| (method, outcome)))
        };
        for (n, (method, outcome)) in all().enumerate() {
            let decision = Decision {
                method,
                outcome,
                id: None,
                tenant: None,
                address: ClientAddress::of(Ipv4Addr::LOCALHOST.into()),
                order: None,
            };
            (0..=n).for_each(|_| decision.emit(&counts));
        }
        for (n, (method, outcome)) in all().enumerate() {
            assert_eq!(counts.get(method, outcome), n as u64 + 1);
        }
    }
}
