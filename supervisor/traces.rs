//! Traces: spans of what sessions do, sent to an OpenTelemetry collector over OTLP (HTTP, protobuf).
//!
//! Nobody waits for the collector. Spans go into a bounded queue, from which a thread of its own sends them; what finds no
//! room there or is not taken is counted. The spans themselves are made by readers of events (`session/tracer.rs`), from
//! the events that the session log and the metrics read.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderName};
use fastvideo_proto::trace::TraceContext;
use nix::time::{ClockId, clock_gettime};
use opentelemetry::trace::{
    Link, SpanContext, SpanId, TraceFlags, TraceId, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span, SpanData,
    SpanExporter, SpanProcessor,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

pub use config::Config;

use crate::causes::with_causes;
use crate::metrics::create;

pub mod config;

/// The header in which a request names its span, as W3C's Trace Context has it.
pub(crate) const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
/// The number of spans that may wait for the collector.
const MAX_WAITING: usize = 4096;
/// The number of spans that are sent at once.
const MAX_BATCH: usize = 512;
/// How long spans are gathered.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take to answer.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of the server waits for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// The pause between two lines in the log about a collector that takes nothing.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// The names of outcomes in metrics.
const EXPORTED: &str = "exported";
const FAILED: &str = "failed";
const DROPPED: &str = "dropped";

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the exporter of traces cannot be made")]
    Exporter(#[from] ExporterBuildError),
    #[error("the exporter of traces cannot be made: its thread panicked")]
    Panicked,
}

/// Makes spans. Cheap to clone; without a collector it makes none.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    sample_ratio: f64,
    trusts_clients: bool,
    shared: Arc<Shared>,
}

/// What the queue and the exporter know of each other.
#[derive(Debug, Default)]
struct Shared {
    /// The number of spans that were not handed to the exporter yet.
    waiting: AtomicUsize,
    spans: Family<OutcomeLabel, Counter>,
    outage: Mutex<Outage>,
}

/// A time in which the collector takes nothing.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    told: Option<Instant>,
    lost: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

impl Traces {
    /// Opens the exporter. The collector is not asked for anything yet.
    ///
    /// # Errors
    /// Returns an error when the exporter refuses its configuration.
    pub(crate) async fn open(config: Option<Config>) -> Result<Self, OpenError> {
        let Some(config) = config else {
            return Ok(Self(None));
        };
        // The exporter's client has a runtime of its own, which must not be made on one.
        let opened = spawn_blocking(move || Inner::open(config)).await;
        let inner = opened.map_err(|_| OpenError::Panicked)??;
        Ok(Self(Some(Arc::new(inner))))
    }

    /// Registers how many spans were sent and lost.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let spans = match &self.0 {
            Some(inner) => inner.shared.spans.clone(),
            None => Family::default(),
        };
        for outcome in [EXPORTED, FAILED, DROPPED] {
            create(&spans, &OutcomeLabel { outcome });
        }
        registry.register(
            "trace_spans",
            "Spans that the collector has taken, that it did not take, and that found no room in the queue to it",
            spans,
        );
    }

    /// Returns whether there is a collector.
    pub(crate) fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// Decides whether something new is traced. Returns what it is below: a span of the client's, if it has sent one, or
    /// nothing. Returns `None` when it is not traced.
    pub(crate) fn begin(&self, parent: Option<TraceContext>) -> Option<Trace> {
        let inner = self.0.as_ref()?;
        let decided = parent.filter(|_| inner.trusts_clients);
        let is_sampled = match decided {
            Some(parent) => parent.sampled,
            None => rand::random::<f64>() < inner.sample_ratio,
        };
        is_sampled.then(|| Trace {
            inner: inner.clone(),
            parent: parent.map_or_else(Context::new, below_other),
        })
    }

    /// Goes on with a trace of which a router has decided whether it is recorded. Returns `None` when it is not.
    pub(crate) fn go_on(&self, parent: TraceContext) -> Option<Trace> {
        let inner = self.0.as_ref().filter(|_| parent.sampled)?;
        Some(Trace {
            inner: inner.clone(),
            parent: below_other(parent),
        })
    }

    /// Sends what waits to be sent, for a bounded time.
    pub(crate) async fn close(&self) {
        let Some(inner) = self.0.clone() else { return };
        let closed = spawn_blocking(move || {
            let _ = inner.provider.shutdown_with_timeout(LAST_SPANS);
            drop(inner);
        });
        let _ = closed.await;
    }
}

impl Inner {
    fn open(config: Config) -> Result<Self, ExporterBuildError> {
        let shared = Arc::new(Shared::default());
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_timeout(EXPORT_TIMEOUT);
        let exporter = match &config.endpoint {
            Some(endpoint) => exporter.with_endpoint(endpoint.as_str()),
            // The exporter reads the variables of OpenTelemetry itself.
            None => exporter,
        };
        let exporter = MeasuredExporter {
            exporter: exporter.build()?,
            shared: shared.clone(),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_WAITING)
            .with_max_export_batch_size(MAX_BATCH)
            .with_scheduled_delay(GATHER)
            .build();
        let processor = BoundedProcessor {
            processor: BatchSpanProcessor::builder(exporter)
                .with_batch_config(batches)
                .build(),
            shared: shared.clone(),
        };
        let provider = SdkTracerProvider::builder()
            // Whether a session is traced is decided when it begins.
            .with_sampler(Sampler::AlwaysOn)
            .with_span_processor(processor)
            .with_resource(resource())
            .build();
        Ok(Self {
            tracer: provider.tracer("fastvideo-supervisor"),
            provider,
            sample_ratio: config.sample_ratio,
            trusts_clients: config.trusts_clients,
            shared,
        })
    }
}

/// Returns what all spans of this process are from. The variables of OpenTelemetry add to it.
fn resource() -> Resource {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let own = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new(
            "service.instance.id",
            format!("{:032x}", rand::random::<u128>()),
        ),
        KeyValue::new("host.name", host.to_string_lossy().into_owned()),
    ];
    let builder = Resource::builder().with_attributes(own);
    match std::env::var_os("OTEL_SERVICE_NAME") {
        Some(_) => builder.build(),
        None => builder.with_service_name("fastvideo-supervisor").build(),
    }
}

/// A trace that is recorded, and the span that everything begun with it is below.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    inner: Arc<Inner>,
    parent: Context,
}

impl Trace {
    pub(crate) fn tracer(&self) -> &SdkTracer {
        &self.inner.tracer
    }

    pub(crate) fn parent(&self) -> &Context {
        &self.parent
    }
}

/// Returns the context of what is below a span.
pub(crate) fn below(span: &Span) -> Context {
    context(opentelemetry::trace::Span::span_context(span).clone())
}

/// Returns the context of what is below a span of another process.
pub(crate) fn below_other(parent: TraceContext) -> Context {
    context(span_context(parent))
}

/// Returns the span that a request names in its header `traceparent`. Its `tracestate` is not read.
pub(crate) fn named_by(headers: &HeaderMap) -> Option<TraceContext> {
    headers.get(TRACE_PARENT)?.to_str().ok()?.parse().ok()
}

/// Returns a link to a span.
pub(crate) fn link(to: TraceContext) -> Link {
    Link::with_context(span_context(to))
}

/// Begins a span.
pub(crate) fn begun(trace: &Trace, name: &'static str, began: SystemTime, below: &Context) -> Span {
    let builder = trace.tracer().span_builder(name).with_start_time(began);
    trace.tracer().build_with_context(builder, below)
}

/// Makes a span of what is done already: when it began, and when it ended.
pub(crate) fn done(
    trace: &Trace,
    name: &'static str,
    (began, ended): (SystemTime, SystemTime),
    below: &Context,
) {
    let mut span = begun(trace, name, began, below);
    opentelemetry::trace::Span::end_with_timestamp(&mut span, ended);
}

fn context(span: SpanContext) -> Context {
    use opentelemetry::trace::TraceContextExt;
    Context::new().with_remote_span_context(span)
}

fn span_context(context: TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(context.trace_id.to_be_bytes()),
        SpanId::from_bytes(context.span_id.to_be_bytes()),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    )
}

/// Returns a span as others, in other processes, are told of it.
pub(crate) fn trace_context(span: &Span) -> TraceContext {
    let context = opentelemetry::trace::Span::span_context(span);
    TraceContext {
        trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(context.span_id().to_bytes()),
        sampled: true,
    }
}

/// A time in which something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    pub began: Instant,
    pub ended: Instant,
}

impl Period {
    /// Returns the time that ends now.
    pub(crate) fn since(began: Instant) -> Self {
        Self {
            began,
            ended: Instant::now(),
        }
    }
}

/// Says what time of day it was at a moment of a clock that does not jump.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    now: Instant,
    now_us: u64,
    time: SystemTime,
}

impl Clock {
    pub(crate) fn now() -> Self {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC);
        let monotonic = monotonic.expect("the monotonic clock is always there");
        let us = monotonic.tv_sec() * 1_000_000 + monotonic.tv_nsec() / 1000;
        Self {
            now: Instant::now(),
            now_us: us.cast_unsigned(),
            time: SystemTime::now(),
        }
    }

    pub(crate) fn at(&self, moment: Instant) -> SystemTime {
        match moment.checked_duration_since(self.now) {
            Some(after) => self.time + after,
            None => self.time - (self.now - moment),
        }
    }

    /// Returns when a time began and when it ended.
    pub(crate) fn period(&self, Period { began, ended }: Period) -> (SystemTime, SystemTime) {
        (self.at(began), self.at(ended))
    }

    /// Returns the time of a moment that another process has read, CLOCK_MONOTONIC in microseconds.
    pub(crate) fn at_us(&self, us: u64) -> SystemTime {
        match us.checked_sub(self.now_us) {
            Some(after) => self.time + Duration::from_micros(after),
            None => self.time - Duration::from_micros(self.now_us - us),
        }
    }
}

/// The queue to the exporter. What finds no room in it is counted, which the one behind it would not tell.
#[derive(Debug)]
struct BoundedProcessor {
    processor: BatchSpanProcessor,
    shared: Arc<Shared>,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.shared.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            self.shared.count(DROPPED, 1);
            return;
        }
        self.processor.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let result = self.processor.shutdown_with_timeout(timeout);
        let left = self.shared.waiting.swap(0, Ordering::Relaxed);
        self.shared.count(DROPPED, left);
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// The exporter, whose successes and failures are counted.
struct MeasuredExporter {
    exporter: opentelemetry_otlp::SpanExporter,
    shared: Arc<Shared>,
}

impl fmt::Debug for MeasuredExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeasuredExporter")
    }
}

impl SpanExporter for MeasuredExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
        let result = self.exporter.export(batch).await;
        match &result {
            Ok(()) => {
                self.shared.count(EXPORTED, count);
                self.shared.outage().over();
            }
            Err(error) => {
                self.shared.count(FAILED, count);
                self.shared.outage().go_on(count, || with_causes(error));
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl Shared {
    fn count(&self, outcome: &'static str, spans: usize) {
        let counter = self.spans.get_or_create(&OutcomeLabel { outcome });
        counter.inc_by(spans as u64);
    }

    fn outage(&self) -> std::sync::MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outage {
    /// Takes note that the collector did not take some spans: the log is told when that begins, and once a minute.
    fn go_on(&mut self, lost: usize, reason: impl FnOnce() -> String) {
        let now = Instant::now();
        self.since.get_or_insert(now);
        self.lost += lost;
        if self
            .told
            .is_none_or(|told| now - told >= COMPLAINT_INTERVAL)
        {
            self.told = Some(now);
            let (reason, lost) = (reason(), self.lost);
            tracing::warn!(reason, lost, "the collector of traces takes no spans");
        }
    }

    /// Takes note that the collector has taken some.
    fn over(&mut self) {
        if let Some(since) = self.since.take() {
            let seconds = since.elapsed().as_secs();
            let lost = std::mem::take(&mut self.lost);
            self.told = None;
            tracing::info!(seconds, lost, "the collector of traces takes spans again");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_log_is_told_of_an_outage_when_it_begins_once_a_minute_and_when_it_ends() {
        let mut outage = Outage::default();
        let mut told = 0;
        for _ in 0..130 {
            outage.go_on(1, || {
                told += 1;
                String::new()
            });
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!((told, outage.lost), (3, 130));
        outage.over();
        assert_eq!((outage.lost, outage.since), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn moments_of_all_clocks_are_times_of_day() {
        let clock = Clock::now();
        advance(Duration::from_secs(3)).await;
        let later = clock.at(Instant::now());
        assert_eq!(later.duration_since(clock.time).unwrap().as_secs(), 3);
        let before = clock.at_us(clock.now_us - 2_000_000);
        assert_eq!(clock.time.duration_since(before).unwrap().as_secs(), 2);
    }
}
