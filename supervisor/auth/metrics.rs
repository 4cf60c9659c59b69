//! The metrics of decisions on requests.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::registry::Registry;

use super::Auth;
use super::decision::{AuthMethod, AuthOutcome};
use crate::metrics::{Gauges, number};
use crate::tenant::Tenant;

/// Reads what was decided when it is scraped.
#[derive(Debug)]
struct Decisions(Auth);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    method: &'static str,
    outcome: &'static str,
}

impl Auth {
    /// Registers the metrics, with all their series.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Decisions(self.clone())));
    }

    /// Returns the tenants that are known at the start.
    pub(crate) fn tenants(&self) -> Vec<Tenant> {
        match self.asks() {
            true => self.keys().tenants().cloned().collect(),
            false => vec![Tenant::default()],
        }
    }
}

impl Collector for Decisions {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = AuthMethod::ALL.into_iter();
        let all = all.flat_map(|method| AuthOutcome::ALL.map(|outcome| (method, outcome)));
        let counts = all.map(|(method, outcome)| {
            let labels = DecisionLabels {
                method: method.name(),
                outcome: outcome.name(),
            };
            (labels, number(self.0.counts().get(method, outcome)))
        });
        Gauges(encoder).counters(
            "auth",
            "Requests, by what was shown of who sends them and by what was decided",
            counts,
        )
    }
}
