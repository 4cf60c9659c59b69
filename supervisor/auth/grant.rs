//! What lets a client have sessions: who it is, and the limits of its tenant.

use std::time::Duration;

use fastvideo_proto::session_link::LetIn;

use super::key_set::{Role, TenantLimits};
use super::rates::Counted;
use super::{Auth, Caller};
use crate::tenant::{Scope, Tenant};

/// What lets a client have a session. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Grant {
    auth: Auth,
    caller: Caller,
    /// Whose the session is.
    tenant: Tenant,
}

impl Grant {
    pub(crate) fn new(auth: Auth, caller: Caller) -> Self {
        let tenant = caller.own_tenant();
        Self {
            auth,
            caller,
            tenant,
        }
    }

    /// Creates the grant of a client that a router has let in. Returns `None` where the router has to say whom, and does
    /// not.
    pub(crate) fn of_router(auth: Auth, let_in: Option<LetIn>) -> Option<Self> {
        let Some(LetIn {
            tenant,
            key_id,
            is_admin,
        }) = let_in
        else {
            return (!auth.asks()).then(|| Self::new(auth, Caller::anyone()));
        };
        let tenant = Tenant::new(&tenant);
        // A server with the same file ends the session when the key leaves it.
        let key = auth.keys().named(&key_id).map(|entry| entry.hash);
        let caller = Caller {
            role: match is_admin {
                true => Role::Admin,
                false => Role::User,
            },
            tenant: (tenant != Tenant::default()).then_some(tenant),
            id: Some(key_id.into()),
            key,
            ..Caller::anyone()
        };
        Some(Self::new(auth, caller))
    }

    /// Returns what a server is told of the client.
    pub(crate) fn let_in(caller: &Caller) -> Option<LetIn> {
        let key_id = caller.id.as_ref()?.to_string();
        Some(LetIn {
            tenant: caller.own_tenant().to_string(),
            key_id,
            is_admin: caller.role == Role::Admin,
        })
    }

    /// Returns whose the session is.
    pub(crate) fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Takes note that the session is another tenant's: an administrator resumes it.
    pub(crate) fn set_tenant(&mut self, tenant: Tenant) {
        self.tenant = tenant;
    }

    /// Returns whose things there are for the client.
    pub(crate) fn scope(&self) -> Scope {
        self.caller.scope()
    }

    /// Returns the limits of the tenant as they are now.
    pub(crate) fn limits(&self) -> TenantLimits {
        match self.auth.asks() {
            true => self.auth.keys().limits(&self.tenant),
            false => TenantLimits::default(),
        }
    }

    /// Counts a session that is opened.
    ///
    /// # Errors
    /// Returns how long the tenant has to wait when it has opened too many.
    pub(crate) fn count_opening(&self) -> Result<(), Duration> {
        let limit = self.limits().opens_per_minute;
        (self.auth.0.rates).count(&self.tenant, Counted::Opens, limit)
    }

    /// Counts a segment that is asked for.
    ///
    /// # Errors
    /// Returns how long the tenant has to wait when it has asked for too many.
    pub(crate) fn count_request(&self) -> Result<(), Duration> {
        let limit = self.limits().requests_per_minute;
        (self.auth.0.rates).count(&self.tenant, Counted::Requests, limit)
    }

    /// Returns whether the client would not be let in any more: its key has left the file.
    pub(crate) fn is_withdrawn(&self) -> bool {
        !self.auth.still_admits(&self.caller)
    }

    /// Waits until the client would not be let in any more; for ever while its key stays in the file.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(crate) async fn withdrawn(&self) {
        let mut changes = self.auth.changes();
        let withdrawn = changes.wait_for(|_| self.is_withdrawn()).await.is_ok();
        if !withdrawn {
            std::future::pending::<()>().await;
        }
    }
}
