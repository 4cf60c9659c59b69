//! The metrics of what has happened to video jobs on this server.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::failure;
use super::webhook::Answer;
use crate::metrics::{LONG, create, seconds};

/// How a completed job ended; of the others it is the code of their failure.
const COMPLETED: &str = "completed";

/// What has happened to jobs on this server. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct VideoMetrics {
    created: Counter,
    ended: Family<OutcomeLabel, Counter>,
    waited: Histogram,
    took: Histogram,
    webhook: Family<OutcomeLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

impl Default for VideoMetrics {
    fn default() -> Self {
        let metrics = Self {
            created: Counter::default(),
            ended: Family::default(),
            waited: Histogram::new(LONG),
            took: Histogram::new(LONG),
            webhook: Family::default(),
        };
        for outcome in failure::CODES.into_iter().chain([COMPLETED]) {
            create(&metrics.ended, &OutcomeLabel { outcome });
        }
        for outcome in Answer::NAMES {
            create(&metrics.webhook, &OutcomeLabel { outcome });
        }
        metrics
    }
}

impl VideoMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "videos_created",
            "Video jobs that were taken in",
            self.created.clone(),
        );
        registry.register(
            "videos_ended",
            "Video jobs that have ended, by how: `completed` or the code of their failure",
            self.ended.clone(),
        );
        registry.register(
            "video_queue_seconds",
            "Time from the creation of a video job until its first segment was begun",
            self.waited.clone(),
        );
        registry.register(
            "video_duration_seconds",
            "Time from the first segment of a completed video job to its end",
            self.took.clone(),
        );
        registry.register(
            "video_webhook_attempts",
            "Messages about the ends of video jobs that were sent to the webhook, by what it answered",
            self.webhook.clone(),
        );
    }

    pub(super) fn created(&self) {
        self.created.inc();
    }

    /// Counts that a job has begun, so long after it was created.
    pub(super) fn begun(&self, after: Duration) {
        self.waited.observe(seconds(after));
    }

    /// Counts a completed job, which has taken so long since it was begun.
    pub(super) fn completed(&self, took: Duration) {
        self.took.observe(seconds(took));
        self.ended(COMPLETED);
    }

    /// Counts a job that has failed.
    pub(super) fn failed(&self, code: &'static str) {
        self.ended(code);
    }

    /// Counts an attempt at a message about a job's end.
    pub(super) fn webhook(&self, answer: &Answer) {
        let outcome = answer.name();
        self.webhook.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    fn ended(&self, outcome: &'static str) {
        self.ended.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
