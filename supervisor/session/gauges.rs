//! Gauges of the open sessions.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::registry::Registry;

use super::metrics::SessionMetrics;
use super::registry::{Entry, Registry as Sessions};
use super::state::SessionState;
use crate::metrics::{Gauges, KnownTenants, number};
use crate::tenant::Tenant;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
    tenant: Tenant,
}

/// Reads the open sessions when they are scraped.
#[derive(Debug)]
struct OpenSessions {
    sessions: Sessions,
    tenants: KnownTenants,
}

impl Collector for OpenSessions {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let open = self.sessions.list();
        let states = [
            (SessionState::Initializing, "initializing"),
            (SessionState::Queued, "queued"),
            (SessionState::GpuBinding, "gpu_binding"),
            (SessionState::Active, "active"),
        ];
        let mut tenants = self.tenants.all();
        let others = Tenant::new("other");
        if open
            .iter()
            .any(|entry| self.tenants.label(&entry.tenant) == others)
        {
            tenants.push(others);
        }
        let mut gauges = Gauges(encoder);
        let counts = tenants.iter().flat_map(|tenant| {
            states.map(|(state, name)| {
                let is_it = |entry: &&Entry| {
                    entry.state == state && self.tenants.label(&entry.tenant) == *tenant
                };
                let labels = StateLabels {
                    state: name,
                    tenant: tenant.clone(),
                };
                (labels, number(open.iter().filter(is_it).count()))
            })
        });
        gauges.each("sessions", "Open sessions", counts)?;
        let outboxes = || open.iter().filter_map(|entry| entry.outbox.as_ref());
        let unsent: u64 = outboxes().map(|outbox| outbox.cost()).sum();
        gauges.one(
            "unsent_bytes",
            "What waits for clients to take it, in the server and on its way; each message counts for 16 KiB at least",
            number(unsent),
        )?;
        let slow = outboxes().filter(|outbox| outbox.full_since().is_some());
        gauges.one(
            "slow_clients",
            "Clients whose window is full, so that nothing more is generated for them",
            number(slow.count()),
        )
    }
}

/// Registers the gauges, for the tenants that have series of their own.
pub(crate) fn register(registry: &mut Registry, sessions: &Sessions, metrics: &SessionMetrics) {
    registry.register_collector(Box::new(OpenSessions {
        sessions: sessions.clone(),
        tenants: metrics.tenants().clone(),
    }));
}
