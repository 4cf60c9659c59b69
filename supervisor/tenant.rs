//! Whose a session is.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a tenant: an organisation or a product whose sessions no other tenant sees. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tenant(Arc<str>);

impl Tenant {
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    /// Whose everything is where nobody is asked for a key.
    fn default() -> Self {
        Self::new("none")
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
