//! Who sends a request, once that is known.

use std::sync::Arc;

use super::decision::AuthMethod;
use super::key::KeyHash;
use super::key_set::Role;
use super::routes::Access;
use crate::ingress::Origins;
use crate::tenant::{Scope, Tenant};

/// Who sends a request. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub method: AuthMethod,
    /// The id of the key, or the subject of the token.
    pub id: Option<Arc<str>>,
    pub role: Role,
    /// Whose the caller's sessions are; `None` for a key that belongs to no tenant.
    pub tenant: Option<Tenant>,
    /// Sites whose pages may speak for the caller, besides those that the server allows.
    pub(super) origins: Origins,
    /// The key by which the caller is known; the caller is let in for as long as the file names it.
    pub(super) key: Option<KeyHash>,
}

impl Caller {
    /// Returns who everybody is where nobody is asked for a key.
    pub fn anyone() -> Self {
        Self {
            method: AuthMethod::None,
            id: None,
            role: Role::Admin,
            tenant: None,
            origins: Origins::default(),
            key: None,
        }
    }

    /// Returns who somebody without a key is that an operator lets in as a guest of a tenant.
    pub fn guest(tenant: Tenant) -> Self {
        Self {
            role: Role::User,
            tenant: Some(tenant),
            ..Self::anyone()
        }
    }

    /// Returns the tenant of what the caller makes.
    pub fn own_tenant(&self) -> Tenant {
        self.tenant.clone().unwrap_or_default()
    }

    /// Returns whose things there are for the caller.
    pub fn scope(&self) -> Scope {
        match self.role {
            Role::Admin => Scope::All,
            Role::User | Role::Metrics => Scope::Only(self.own_tenant()),
        }
    }

    /// Returns whether the caller's role suffices for a route.
    pub(super) fn may(&self, access: Access) -> bool {
        match access {
            Access::Anyone | Access::Router => true,
            Access::Token | Access::User => matches!(self.role, Role::User | Role::Admin),
            Access::Metrics => matches!(self.role, Role::Metrics | Role::Admin),
            Access::Admin => self.role == Role::Admin,
        }
    }
}
