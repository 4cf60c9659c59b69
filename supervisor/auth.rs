//! Who may do what: keys, tickets and the tenants that they belong to.
//!
//! `guard` stands before all routes: it finds out who sends a request ([`Caller`]), and compares that with the table in
//! `routes`. `key_set` is the file of keys, `key` a single one, `jwt` checks tokens of an identity provider, `ticket` what a page shows in place of a key and `issue`
//! the route that gives one; `wrong_keys` slows those who guess, `rates` what a tenant
//! asks for, and `decision` is the event of each decision, of which `metrics` tells. `grant` is what a session knows of all this; the store knows
//! tenants alone.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

pub use caller::Caller;
pub use decision::{AuthCounts, AuthMethod, AuthOutcome, Decision};
pub use grant::Grant;
pub use key_set::{KeySet, KeySetError, Role};
pub use routes::Access;

use crate::client_address::ClientAddress;
use crate::current::Current;
use crate::tenant::Tenant;
use credential::Credential;
use jwt::{BadToken, Jwt};
use key::KeyHash;
use rates::Rates;
use ticket::{BadTicket, Bearer, TicketKey, UsedTickets};
use wrong_keys::WrongKeys;

mod caller;
pub mod config;
pub(crate) mod credential;
mod decision;
mod grant;
pub(crate) mod guard;
pub(crate) mod issue;
pub mod jwt;
pub mod key;
pub mod key_set;
mod metrics;
mod rates;
pub mod routes;
pub mod ticket;
mod wrong_keys;

/// How callers are known, checked.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The file of keys, and what it says; `None` where nobody is asked for a key.
    pub keys: Option<(PathBuf, KeySet)>,
    /// What the operator is warned of.
    pub warning: Option<String>,
    /// The secret of tickets that servers share; `None` for one of this process.
    pub ticket_key: Option<TicketKey>,
    /// The identity provider whose tokens are accepted.
    pub jwt: Option<jwt::Config>,
}

/// Knows who may do what. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Auth(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    means: Current<Means>,
    keys: watch::Sender<Arc<KeySet>>,
    used_tickets: UsedTickets,
    wrong: WrongKeys,
    rates: Rates,
    counts: AuthCounts,
}

/// By what else than a key callers are known.
#[derive(Debug)]
struct Means {
    /// Whether there is a file of keys.
    has_keys: bool,
    jwt: Option<Arc<Jwt>>,
    ticket_key: TicketKey,
    /// Whether the secret of tickets is this process's own, and not one that servers share.
    has_own_ticket_key: bool,
}

/// Why a caller is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) method: AuthMethod,
    pub(crate) outcome: AuthOutcome,
    /// The id of the key, where there is one.
    pub(crate) id: Option<Arc<str>>,
    /// When another try may succeed.
    pub(crate) retry_after: Option<Duration>,
}

impl Auth {
    pub fn new(config: Config) -> Self {
        let means = Means {
            has_keys: config.keys.is_some(),
            jwt: config.jwt.map(|jwt| Arc::new(Jwt::new(jwt))),
            has_own_ticket_key: config.ticket_key.is_none(),
            ticket_key: config.ticket_key.unwrap_or_else(TicketKey::random),
        };
        let keys = config.keys.map(|(_, keys)| keys);
        Self(Arc::new(Shared {
            means: Current::new(means),
            keys: watch::Sender::new(Arc::new(keys.unwrap_or_default())),
            used_tickets: UsedTickets::default(),
            wrong: WrongKeys::default(),
            rates: Rates::default(),
            counts: AuthCounts::default(),
        }))
    }

    /// Returns whether callers are asked for a key.
    pub fn asks(&self) -> bool {
        self.0.means.get().ask()
    }

    /// Tells the log where anybody who reaches the server may use it.
    pub(crate) fn warn_if_open(&self, address: IpAddr) {
        if !self.asks() && !address.to_canonical().is_loopback() {
            tracing::warn!(
                %address,
                "nobody is asked for a key: whoever reaches this address can open sessions; `{}` lets in whom you want",
                config::KEYS_FILE.spec.path
            );
        }
    }

    /// Returns the number of decisions of each kind.
    pub fn counts(&self) -> &AuthCounts {
        &self.0.counts
    }

    /// Returns the keys that are valid now.
    pub fn keys(&self) -> Arc<KeySet> {
        self.0.keys.borrow().clone()
    }

    /// Takes over another configuration: its keys are valid from now on, and no others. Returns the keys of it that name files
    /// which have changed.
    pub(crate) fn reconfigure(&self, config: Config) -> Vec<&'static str> {
        if let Some(warning) = &config.warning {
            tracing::warn!("{warning}");
        }
        let mut changed = Vec::new();
        let old = self.0.means.get();
        let jwt = match (&old.jwt, config.jwt) {
            (_, None) => None,
            // It has fetched the provider's keys.
            (Some(old), Some(new)) if *old.config() == new => Some(old.clone()),
            (old, Some(new)) => {
                if old
                    .as_ref()
                    .is_some_and(|old| old.config().reads_like(&new))
                {
                    changed.push(config::JWKS_FILE.spec.path);
                }
                Some(Arc::new(Jwt::after(new, old.as_deref())))
            }
        };
        let has_own_ticket_key = config.ticket_key.is_none();
        // Tickets of the last minute stay valid where the secret stays this process's own. One that was shared may have
        // become known.
        let ticket_key = config
            .ticket_key
            .unwrap_or_else(|| match old.has_own_ticket_key {
                true => old.ticket_key.clone(),
                false => TicketKey::random(),
            });
        let keys = config.keys.map(|(_, keys)| keys);
        let has_keys = keys.is_some();
        let keys = Arc::new(keys.unwrap_or_default());
        if old.has_keys && has_keys && *self.keys() != *keys {
            changed.push(config::KEYS_FILE.spec.path);
        }
        self.0.means.replace(Means {
            has_keys,
            jwt,
            ticket_key,
            has_own_ticket_key,
        });
        self.0.keys.send_replace(keys);
        changed
    }

    /// Finds out who shows a credential.
    async fn identify(
        &self,
        credential: &Credential<'_>,
        address: ClientAddress,
    ) -> Result<Caller, Refusal> {
        let means = self.0.means.get();
        let found = match credential {
            Credential::None => Err(Refusal::of(AuthMethod::None, AuthOutcome::Missing)),
            Credential::Bearer(text) => match &means.jwt {
                Some(jwt) if Jwt::is_token(text) => by_token(jwt, text).await,
                _ => self.by_key(text),
            },
            Credential::Ticket(ticket) => self.by_ticket(ticket),
        };
        found.map_err(|refusal| {
            let is_wrong = matches!(
                refusal.outcome,
                AuthOutcome::Unknown | AuthOutcome::Invalid | AuthOutcome::Expired
            );
            match is_wrong.then(|| self.0.wrong.add(address)) {
                Some(Err(wait)) => Refusal {
                    outcome: AuthOutcome::Limited,
                    retry_after: Some(wait),
                    ..refusal
                },
                _ => refusal,
            }
        })
    }

    fn by_key(&self, key: &str) -> Result<Caller, Refusal> {
        let hash = KeyHash::of(key);
        let keys = self.keys();
        let entry = keys.find(hash);
        let entry = entry.ok_or_else(|| Refusal::of(AuthMethod::Key, AuthOutcome::Unknown))?;
        caller(entry, AuthMethod::Key)
    }

    fn by_ticket(&self, ticket: &str) -> Result<Caller, Refusal> {
        let refused = |outcome| Refusal::of(AuthMethod::Ticket, outcome);
        let means = self.0.means.get();
        let taken = (self.0.used_tickets).take(&means.ticket_key, ticket, SystemTime::now());
        let bearer = taken.map_err(|bad| match bad {
            BadTicket::Invalid => refused(AuthOutcome::Invalid),
            BadTicket::Expired => refused(AuthOutcome::Expired),
            BadTicket::Used => refused(AuthOutcome::Unknown),
            BadTicket::TooMany => Refusal {
                retry_after: Some(ticket::VALID),
                ..refused(AuthOutcome::Unavailable)
            },
        })?;
        if bearer.is_subject && means.jwt.is_some() {
            return Ok(Caller {
                method: AuthMethod::Ticket,
                id: Some(bearer.id.into()),
                role: Role::User,
                tenant: Some(Tenant::new(&bearer.tenant)),
                ..Caller::anyone()
            });
        }
        // The key may have left the file, or may be another tenant's by now.
        let keys = self.keys();
        let entry = keys.named(&bearer.id).filter(|entry| {
            let tenant = entry.tenant.clone().unwrap_or_default();
            tenant.as_str() == bearer.tenant
        });
        let entry = entry.ok_or_else(|| refused(AuthOutcome::Unknown))?;
        caller(entry, AuthMethod::Ticket)
    }

    /// Issues a ticket for a caller. Returns `None` where nobody is asked for a key.
    pub(crate) fn issue_ticket(&self, caller: &Caller) -> Option<String> {
        let id = caller.id.as_ref()?;
        let bearer = Bearer {
            tenant: caller.own_tenant().to_string(),
            id: id.to_string(),
            is_subject: caller.key.is_none(),
        };
        let means = self.0.means.get();
        Some(ticket::issue(&means.ticket_key, bearer, SystemTime::now()))
    }

    /// Returns whether a caller that was let in would still be.
    pub fn still_admits(&self, caller: &Caller) -> bool {
        let Some(hash) = caller.key.filter(|_| self.asks()) else {
            return true;
        };
        let keys = self.keys();
        let entry = keys.find(hash);
        entry.is_some_and(|entry| entry.tenant == caller.tenant && entry.role == caller.role)
    }

    /// Returns the changes of the keys.
    pub fn changes(&self) -> watch::Receiver<Arc<KeySet>> {
        self.0.keys.subscribe()
    }
}

/// Returns the caller that a token names.
async fn by_token(jwt: &Jwt, token: &str) -> Result<Caller, Refusal> {
    let refused = |outcome| Refusal::of(AuthMethod::Jwt, outcome);
    let claims = jwt.check(token).await.map_err(|bad| match bad {
        BadToken::Unknown => refused(AuthOutcome::Unknown),
        BadToken::Expired => refused(AuthOutcome::Expired),
        BadToken::Invalid => refused(AuthOutcome::Invalid),
        BadToken::Unavailable(wait) => Refusal {
            retry_after: Some(wait),
            ..refused(AuthOutcome::Unavailable)
        },
    })?;
    Ok(Caller {
        method: AuthMethod::Jwt,
        id: Some(claims.subject.into()),
        role: claims.role,
        tenant: claims.tenant,
        ..Caller::anyone()
    })
}

/// Returns the caller that has a key.
fn caller(entry: &key_set::KeyEntry, method: AuthMethod) -> Result<Caller, Refusal> {
    let has_ended = |end: SystemTime| end <= SystemTime::now();
    if entry.expires.is_some_and(has_ended) {
        return Err(Refusal {
            id: Some(entry.id.clone()),
            ..Refusal::of(method, AuthOutcome::Expired)
        });
    }
    Ok(Caller {
        method,
        id: Some(entry.id.clone()),
        role: entry.role,
        tenant: entry.tenant.clone(),
        origins: entry.origins.clone(),
        key: Some(entry.hash),
    })
}

impl Means {
    /// Returns whether callers are asked for a key.
    fn ask(&self) -> bool {
        self.has_keys || self.jwt.is_some()
    }
}

impl Refusal {
    fn of(method: AuthMethod, outcome: AuthOutcome) -> Self {
        Self {
            method,
            outcome,
            id: None,
            retry_after: None,
        }
    }
}
