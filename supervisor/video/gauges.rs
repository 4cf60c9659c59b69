//! Gauges of the video jobs that there are.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::registry::Registry;

use super::library::Videos;
use crate::metrics::{Gauges, number};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

impl Videos {
    /// Registers the metrics of jobs.
    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        self.metrics().register(registry);
        registry.register_collector(Box::new(Jobs(self.clone())));
    }
}

/// Reads the jobs that there are when they are scraped.
#[derive(Debug)]
struct Jobs(Videos);

impl Collector for Jobs {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = self.0.counts();
        let states = [
            ("queued", counts.queued),
            ("running", counts.running),
            ("completed", counts.completed),
            ("failed", counts.failed),
        ];
        let states = states.map(|(state, count)| (StateLabel { state }, number(count)));
        let mut gauges = Gauges(encoder);
        gauges.each("videos", "Video jobs in the store", states)?;
        let bytes = number(counts.stored_bytes);
        gauges.one(
            "videos_stored_bytes",
            "Size of what the store keeps of video jobs",
            bytes,
        )
    }
}
