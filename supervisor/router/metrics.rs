//! The metrics of a router: its servers, and the sessions that move from one to another.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::demand;
use super::line::Line;
use super::registry::ReplicaRegistry;
use crate::metrics::{Gauges, LATENCY, create, number, seconds};

/// The states of servers, as `/status` shows them, and that of one that is healthy and cannot be heard.
const STATUSES: [&str; 4] = ["unknown", "healthy", "unhealthy", "cut_off"];

/// Counts the sessions that go on at another server. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct MoveMetrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    moves: Family<MoveLabels, Counter>,
    took: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MoveLabels {
    reason: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

/// Why a session leaves its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MoveReason {
    /// The server is gone, or does not answer.
    Lost,
    /// The server lets it go: it drains, or an operator wants it.
    Released,
}

impl MoveReason {
    const ALL: [Self; 2] = [Self::Lost, Self::Released];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lost => "server_lost",
            Self::Released => "released",
        }
    }
}

impl MoveMetrics {
    /// Creates the metrics and registers them.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let families = Families {
            moves: Family::default(),
            took: Histogram::new(LATENCY),
        };
        registry.register(
            "router_moves",
            "Sessions that left their server, by why and by whether another one took them",
            families.moves.clone(),
        );
        registry.register(
            "router_move_seconds",
            "Time from the loss of a session's server until another one had opened the session",
            families.took.clone(),
        );
        for reason in MoveReason::ALL {
            for outcome in ["moved", "ended"] {
                let reason = reason.name();
                create(&families.moves, &MoveLabels { reason, outcome });
            }
        }
        Self(Arc::new(families))
    }

    /// Counts a session that another server has opened.
    pub(super) fn moved(&self, reason: MoveReason, took: Duration) {
        self.0.took.observe(seconds(took));
        self.count(reason, "moved");
    }

    /// Counts a session that ended before another server had opened it.
    pub(super) fn ended(&self, reason: MoveReason) {
        self.count(reason, "ended");
    }

    fn count(&self, reason: MoveReason, outcome: &'static str) {
        let reason = reason.name();
        self.0
            .moves
            .get_or_create(&MoveLabels { reason, outcome })
            .inc();
    }
}

/// Reads the registry and the line when they are scraped.
#[derive(Debug)]
pub(super) struct FleetGauges {
    pub(super) registry: ReplicaRegistry,
    pub(super) line: Line,
    pub(super) headroom_gpus: usize,
}

impl Collector for FleetGauges {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let replicas = self.registry.all();
        let status = |replica: &Arc<super::registry::Replica>| match replica.is_cut_off() {
            true => "cut_off".to_owned(),
            false => replica.health().status().to_string(),
        };
        let statuses: Vec<_> = replicas.iter().map(status).collect();
        let counts = STATUSES.map(|status| {
            let count = statuses.iter().filter(|it| *it == status).count();
            (StatusLabel { status }, number(count))
        });
        let mut gauges = Gauges(encoder);
        gauges.each("router_servers", "Servers, by state", counts)?;
        let sessions: usize = replicas.iter().map(|replica| replica.sessions()).sum();
        gauges.one(
            "router_sessions",
            "Sessions that servers have for clients of this router",
            number(sessions),
        )?;
        gauges.one(
            "router_waiting_sessions",
            "Sessions that wait for a place at any server",
            number(self.line.len()),
        )?;
        let reports: Vec<_> = replicas.iter().filter_map(|r| r.report()).collect();
        let demand = demand::demand(&reports, self.line.len(), self.headroom_gpus);
        gauges.one(
            "router_wanted_gpus",
            "GPUs that the sessions need, with those that are to be free",
            number(demand.wanted_gpus),
        )
    }
}
