//! The parts of a server that take over another configuration while it runs.

use std::time::Duration;

use super::dreamverse;
use super::fleet::Fleet;
use crate::auth::Auth;
use crate::current::Current;
use crate::ingress::Ingress;
use crate::ingress::hosts::Hosts;
use crate::reload::{Commit, Parts};
use crate::session::Context;
use crate::settings::Reader;
use crate::video::Videos;
use crate::{config, tls};

/// The parts of a server. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct ServerParts {
    pub(super) auth: Auth,
    pub(super) fleet: Fleet,
    pub(super) ingress: Ingress,
    pub(super) admin_hosts: Option<Hosts>,
    pub(super) dreamverse: Current<dreamverse::Config>,
    pub(super) context: Context,
    pub(super) videos: Videos,
    /// How long running segments may go on when the server leaves.
    pub(super) grace: Current<Duration>,
}

impl Parts for ServerParts {
    fn prepare(&self, reader: &mut Reader<'_>) -> Option<Commit> {
        let config = config::read(reader);
        if !reader.errors().is_empty() {
            return None;
        }
        let prompts = match self.context.prompts.prepare_parts(config.prompt) {
            Ok(prompts) => prompts,
            Err(error) => {
                reader.refuse_because(error);
                return None;
            }
        };
        let parts = self.clone();
        Some(Box::new(move || {
            let Context {
                config: sessions,
                pool,
                store,
                broadcasts,
                prompts: current_prompts,
                ..
            } = &parts.context;
            let mut changed = parts.auth.reconfigure(config.http.auth);
            changed.extend(parts.fleet.set_keys(config.http.router_keys));
            changed.extend(current_prompts.adopt(prompts));
            let ingress = config.http.ingress;
            if let Some(hosts) = &parts.admin_hosts {
                hosts.allow(ingress.allowed_hosts.clone());
            }
            if parts.ingress.reconfigure(ingress, parts.auth.asks()) {
                changed.push(tls::config::SERVER.cert_file.spec.path);
            }
            parts.dreamverse.replace(config.http.dreamverse);
            broadcasts.set_limits(config.session.limits.spectators);
            sessions.replace(config.session);
            parts.videos.reconfigure(config.video);
            store.set_resume_ttl(config.store.sessions.resume_ttl);
            pool.reconfigure(config.pool);
            parts.grace.replace(config.grace);
            changed
        }))
    }
}
