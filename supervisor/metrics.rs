//! The registry of all metrics, and its text for Prometheus.
//!
//! Each module declares its own metrics in a `metrics.rs`; `lib.rs` and `router.rs` register them here. Counters and
//! histograms are counted where an event is emitted; gauges keep no value of their own and are read when they are
//! scraped, by a [`Collector`]. The names, the labels and the bounds of histograms are part of what the product promises:
//! dashboards and alerts hang on them.
//!
//! Every label has a bounded number of values: those of an enum, the GPUs, the configured providers, the configured
//! tenants. All series of such a set exist from the start, so that an `increase` sees the first event.
//!
//! [`Collector`]: prometheus_client::collector::Collector

use std::collections::HashSet;
use std::fmt::{self, Write};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, MetricEncoder,
    NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::tenant::Tenant;

/// The upper bounds of latencies, from a step to a minute, in seconds.
pub(crate) const LATENCY: [f64; 13] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
];
/// The upper bounds of what takes no time for a person, in seconds.
pub(crate) const FAST: [f64; 11] = [
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5,
];
/// The upper bounds of what takes minutes or hours, in seconds.
pub(crate) const LONG: [f64; 8] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0];
/// The upper bounds of a ratio around 1.
pub(crate) const RATIO: [f64; 12] = [
    0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 8.0,
];

/// The prefix of all names but those that a convention fixes, such as `process_cpu_seconds_total`.
const PREFIX: &str = "fastvideo";
/// The number of tenants that have series of their own. What all others do counts for `other`.
const MAX_TENANTS: usize = 200;
/// The tenant of those beyond the limit.
const OTHER_TENANTS: &str = "other";

/// All metrics of this process.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    registry: Registry,
}

/// The text format of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0, with exemplars.
    OpenMetrics,
    /// Prometheus' text format 0.0.4, which every agent reads.
    Text,
}

/// A metric's labels, and a metric for each.
pub(crate) type Histograms<L> = Family<L, Histogram, Bounds>;
/// The same with exemplars, which name a trace.
pub(crate) type TracedHistograms<L> = Family<L, TracedHistogram, Bounds>;
pub(crate) type TracedHistogram = HistogramWithExemplars<TraceLabels>;

/// The upper bounds of a family's histograms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds(pub(crate) &'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

impl MetricConstructor<HistogramWithExemplars<TraceLabels>> for Bounds {
    fn new_metric(&self) -> HistogramWithExemplars<TraceLabels> {
        HistogramWithExemplars::new(self.0.iter().copied())
    }
}

/// The trace that an exemplar belongs to, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TraceLabels {
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
}

/// The label of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct GpuLabel {
    pub(crate) gpu: u32,
}

/// The label of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TenantLabel {
    pub(crate) tenant: Tenant,
}

/// The tenants that have series of their own. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownTenants(Arc<Mutex<HashSet<Tenant>>>);

impl Metrics {
    /// Returns where metrics that a convention names are registered.
    pub(crate) fn without_prefix(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Returns where a module's own metrics are registered.
    pub(crate) fn product(&mut self) -> &mut Registry {
        self.registry.sub_registry_with_prefix(PREFIX)
    }

    /// Registers what the program is.
    pub(crate) fn register_build(&mut self, engine: Option<&str>) {
        let mut labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            (
                "revision",
                option_env!("FASTVIDEO_REVISION")
                    .unwrap_or("unknown")
                    .to_owned(),
            ),
            (
                "link_version",
                fastvideo_proto::link::LINK_VERSION.to_string(),
            ),
        ];
        labels.extend(engine.map(|engine| ("engine", engine.to_owned())));
        self.product().register(
            "build",
            "The program: its version, the revision of its source, the version of the link with workers, and the engine",
            Info::new(labels),
        );
    }

    /// Renders all metrics. Gauges are read now.
    pub(crate) fn render(&self, format: Format) -> Result<String, fmt::Error> {
        let mut rendered = String::new();
        match format {
            Format::OpenMetrics => text::encode(&mut rendered, &self.registry)?,
            Format::Text => prometheus_text::encode(&mut rendered, &self.registry)?,
        }
        Ok(rendered)
    }
}

impl Format {
    /// Chooses the format by a request's header `Accept`.
    pub(crate) fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

impl KnownTenants {
    /// Gives a tenant series of its own while there is room. Returns whether it is a new one.
    pub(crate) fn add(&self, tenant: &Tenant) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.len() < MAX_TENANTS && known.insert(tenant.clone())
    }

    /// Returns the tenant that is counted for this one.
    pub(crate) fn label(&self, tenant: &Tenant) -> Tenant {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.contains(tenant) {
            true => tenant.clone(),
            false => Tenant::new(OTHER_TENANTS),
        }
    }

    pub(crate) fn all(&self) -> Vec<Tenant> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().cloned().collect()
    }
}

impl EncodeLabelValue for Tenant {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.as_str())
    }
}

/// Writes gauges into a scrape.
pub(crate) struct Gauges<'a>(pub(crate) DescriptorEncoder<'a>);

impl Gauges<'_> {
    /// Writes a gauge without labels.
    pub(crate) fn one(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let encoder = self.begin(name, help, MetricType::Gauge)?;
        encode_gauge(encoder, value)
    }

    /// Writes a gauge for each label set.
    pub(crate) fn each<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut encoder = self.begin(name, help, MetricType::Gauge)?;
        for (labels, value) in values {
            encode_gauge(encoder.encode_family(&labels)?, value)?;
        }
        Ok(())
    }

    /// Writes a counter without labels, which something else counts.
    pub(crate) fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut encoder = self.begin(name, help, MetricType::Counter)?;
        encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    /// Writes a counter for each label set.
    pub(crate) fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut encoder = self.begin(name, help, MetricType::Counter)?;
        for (labels, value) in values {
            let mut encoder = encoder.encode_family(&labels)?;
            encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    fn begin<'a>(
        &'a mut self,
        name: &'a str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'a>, fmt::Error> {
        // As the registry does with the help of what it holds.
        (self.0).encode_descriptor(name, &format!("{help}."), None, kind)
    }
}

fn encode_gauge(mut encoder: MetricEncoder<'_>, value: f64) -> fmt::Result {
    encoder.encode_gauge(&value)
}

/// Makes a series exist from the start.
pub(crate) fn create<L, M, C>(family: &Family<L, M, C>, labels: &L)
where
    L: Clone + Hash + Eq,
    C: MetricConstructor<M>,
{
    drop(family.get_or_create(labels));
}

/// Returns a number of things as the value of a gauge.
#[expect(
    clippy::cast_precision_loss,
    reason = "beyond 2^53 the last digits do not matter"
)]
pub(crate) fn number(count: impl TryInto<u64>) -> f64 {
    count.try_into().map_or(f64::NAN, |count| count as f64)
}

/// Returns a duration in seconds, for a histogram.
pub(crate) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_the_format_that_it_asks_for() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("*/*")), Format::Text);
        assert_eq!(Format::accepted(None), Format::Text);
    }

    #[test]
    fn tenants_beyond_the_limit_share_their_series() {
        let known = KnownTenants::default();
        for n in 0..MAX_TENANTS {
            assert!(known.add(&Tenant::new(&format!("t{n}"))));
        }
        let late = Tenant::new("late");
        assert!(!known.add(&late));
        assert_eq!(known.label(&late).as_str(), OTHER_TENANTS);
        let first = Tenant::new("t0");
        assert_eq!(known.label(&first), first);
    }
}
