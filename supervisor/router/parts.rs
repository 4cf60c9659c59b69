//! The parts of a router that take over another configuration while it runs.

use super::config;
use crate::auth::Auth;
use crate::ingress::Ingress;
use crate::reload::{Commit, Parts};
use crate::settings::Reader;
use crate::tls;

/// The parts of a router. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct RouterParts {
    pub(super) auth: Auth,
    pub(super) ingress: Ingress,
}

impl Parts for RouterParts {
    fn prepare(&self, reader: &mut Reader<'_>) -> Option<Commit> {
        let config = config::read(reader);
        if !reader.errors().is_empty() {
            return None;
        }
        let parts = self.clone();
        Some(Box::new(move || {
            let mut changed = parts.auth.reconfigure(config.auth);
            if (parts.ingress).reconfigure(config.ingress, parts.auth.asks()) {
                changed.push(tls::config::ROUTER.cert_file.spec.path);
            }
            changed
        }))
    }
}
