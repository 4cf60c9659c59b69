//! Whose a session is.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a tenant: an organisation or a product whose sessions no other tenant sees. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// The name of the tenant whose everything is where nobody is asked for a key.
    pub const NONE: &str = "none";

    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self::new(Self::NONE)
    }
}

/// Whose things there are for a caller: what is another tenant's is to it as if it were not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of all tenants.
    All,
    Only(Tenant),
}

impl Scope {
    /// Returns whether what is a tenant's is there.
    pub fn has(&self, tenant: &Tenant) -> bool {
        match self {
            Self::All => true,
            Self::Only(own) => own == tenant,
        }
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
