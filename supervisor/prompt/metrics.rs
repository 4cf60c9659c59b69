//! The metrics of prompt processing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::Prompts;
use super::provider::ProviderStatus;
use super::safety::SafetyStatus;
use crate::metrics::{Bounds, Gauges, Histograms, LATENCY, create, number, seconds};

const OPERATIONS: [&str; 4] = ["enhance", "auto_extend", "rewrite", "rollout"];
const OUTCOMES: [&str; 4] = ["ok", "failed", "timeout", "resting"];

/// The metrics of all providers. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct PromptMetrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    requests: Family<OutcomeLabels, Counter>,
    took: Histograms<RequestLabels>,
    fallbacks: Family<OperationLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    provider: String,
    op: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    provider: String,
    op: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    op: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabel {
    verdict: &'static str,
}

/// How a request to a provider ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestOutcome {
    Answered,
    Failed,
    Timeout,
    /// It was not made: the provider is left alone for a while.
    Resting,
}

impl Default for PromptMetrics {
    fn default() -> Self {
        Self(Arc::new(Families {
            requests: Family::default(),
            took: Family::new_with_constructor(Bounds(&LATENCY)),
            fallbacks: Family::default(),
        }))
    }
}

impl Prompts {
    /// Registers the metrics of prompts, with all series of the providers that are configured.
    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        let metrics = self.metrics();
        let all = &metrics.0;
        registry.register(
            "prompt_requests",
            "Requests to language models, by how they ended; `resting` ones were not made, since the provider is left alone for a while",
            all.requests.clone(),
        );
        registry.register(
            "prompt_request_seconds",
            "Time that a request to a language model took",
            all.took.clone(),
        );
        registry.register(
            "prompt_fallbacks",
            "Prompts that were used as they were since no language model answered",
            all.fallbacks.clone(),
        );
        if let Some(enhancer) = self.enhancer() {
            metrics.create(&enhancer.status().providers);
        }
        for op in OPERATIONS {
            create(&all.fallbacks, &OperationLabel { op });
        }
        registry.register_collector(Box::new(PromptCounters(self.clone())));
    }
}

impl PromptMetrics {
    /// Creates all series of providers.
    pub(super) fn create(&self, providers: &[ProviderStatus]) {
        for provider in providers {
            for op in OPERATIONS {
                let provider = provider.name.clone();
                let labels = RequestLabels { provider, op };
                create(&self.0.took, &labels);
                for outcome in OUTCOMES {
                    let labels = OutcomeLabels {
                        provider: labels.provider.clone(),
                        op,
                        outcome,
                    };
                    create(&self.0.requests, &labels);
                }
            }
        }
    }

    /// Counts a request to a provider. `took` is absent for one that was not made.
    pub(super) fn requested(
        &self,
        provider: &str,
        op: &'static str,
        outcome: RequestOutcome,
        took: Option<Duration>,
    ) {
        let provider = provider.to_owned();
        if let Some(took) = took {
            let labels = RequestLabels {
                provider: provider.clone(),
                op,
            };
            self.0.took.get_or_create(&labels).observe(seconds(took));
        }
        let outcome = match outcome {
            RequestOutcome::Answered => "ok",
            RequestOutcome::Failed => "failed",
            RequestOutcome::Timeout => "timeout",
            RequestOutcome::Resting => "resting",
        };
        let labels = OutcomeLabels {
            provider,
            op,
            outcome,
        };
        self.0.requests.get_or_create(&labels).inc();
    }

    /// Counts a prompt that is used as it was.
    pub(super) fn fell_back(&self, op: &'static str) {
        self.0.fallbacks.get_or_create(&OperationLabel { op }).inc();
    }
}

/// Reads what the prompts count themselves when it is scraped.
#[derive(Debug)]
struct PromptCounters(Prompts);

impl Collector for PromptCounters {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let enhancer = self.0.enhancer();
        let hits = enhancer.map_or(0, |enhancer| enhancer.status().cache_hits);
        let SafetyStatus {
            screened, blocked, ..
        } = match self.0.safety() {
            Some(safety) => safety.status(),
            None => SafetyStatus::off(),
        };
        let is_available = self.0.safety().is_some_and(|safety| safety.is_available());
        let mut gauges = Gauges(encoder);
        gauges.counter(
            "prompt_cache_hits",
            "Enhanced prompts that came from the cache",
            number(hits),
        )?;
        gauges.counters(
            "prompts_screened",
            "Prompts that the classifier has scored",
            [
                ("passed", screened.saturating_sub(blocked)),
                ("blocked", blocked),
            ]
            .map(|(verdict, count)| (VerdictLabel { verdict }, number(count))),
        )?;
        gauges.one(
            "safety_available",
            "Whether prompts are screened: 1 with a classifier that can be used",
            f64::from(u8::from(is_available)),
        )
    }
}
