//! Reads again what can change while a server or a router runs: keys, the certificate, the keys of routers, the system
//! prompts. All of it is checked before any of it takes effect: one error, and nothing changes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::registry::Registry;
use tokio::sync::Mutex;
use tokio::task::{JoinError, spawn_blocking};

use crate::auth::Auth;
use crate::causes::with_causes;
use crate::http::fleet::RouterKeys;
use crate::metrics::{Gauges, number};
use crate::prompt::Enhancer;
use crate::service_manager::ServiceManager;
use crate::tls::server::ServerTls;

/// What is read again, and how that went. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Reloads(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sources: Sources,
    /// Is told when it begins and when it is done.
    service: ServiceManager,
    /// Held while it runs.
    running: Mutex<()>,
    counts: Counts,
}

/// Where what can change comes from; absent what there is not.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) auth: Auth,
    pub(crate) router_keys: Option<RouterKeys>,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) enhancer: Option<Enhancer>,
}

#[derive(Debug, Default)]
struct Counts {
    ok: AtomicU64,
    refused: AtomicU64,
    /// Whether the last one succeeded; the start counts as one.
    last_failed: std::sync::atomic::AtomicBool,
    /// Unix time of the last one that succeeded, in milliseconds.
    last_success_ms: AtomicU64,
}

/// Why nothing was read again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    /// The words that `check` would say.
    #[error("{0}")]
    Refused(String),
    #[error("the reload panicked")]
    Panicked(#[source] JoinError),
}

impl Reloads {
    pub(crate) fn new(sources: Sources, service: ServiceManager) -> Self {
        let counts = Counts::default();
        counts.succeeded();
        Self(Arc::new(Shared {
            sources,
            service,
            running: Mutex::default(),
            counts,
        }))
    }

    /// Registers the metrics, with all their series.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(ReloadGauges(self.clone())));
    }

    /// Reads everything again. Returns the names of what was read.
    ///
    /// # Errors
    /// Returns an error when any of it cannot be used; then nothing has changed.
    pub(crate) async fn run(&self) -> Result<Vec<&'static str>, ReloadError> {
        let shared = &*self.0;
        let _running = shared.running.lock().await;
        shared.service.reloading();
        let sources = shared.sources.clone();
        let done = spawn_blocking(move || sources.check().and_then(|()| sources.reload())).await;
        shared.service.reloaded();
        match done {
            Ok(Ok(read)) => {
                shared.counts.succeeded();
                shared.counts.ok.fetch_add(1, Ordering::Relaxed);
                match read.is_empty() {
                    true => tracing::info!("there is nothing to reload"),
                    false => tracing::info!(target: "audit", outcome = "ok", ?read, "reloaded"),
                }
                Ok(read)
            }
            Ok(Err(reason)) => {
                shared.counts.last_failed.store(true, Ordering::Relaxed);
                shared.counts.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(target: "audit", outcome = "refused", reason, "not reloaded: everything stays as it was");
                Err(ReloadError::Refused(reason))
            }
            Err(panic) => {
                shared.counts.last_failed.store(true, Ordering::Relaxed);
                tracing::error!(%panic, "not reloaded");
                Err(ReloadError::Panicked(panic))
            }
        }
    }
}

impl Sources {
    /// Reads everything and keeps nothing of it.
    fn check(&self) -> Result<(), String> {
        let said = |error: &dyn std::error::Error| with_causes(error);
        self.auth.check().map_err(|error| said(&error))?;
        if let Some(keys) = &self.router_keys {
            keys.check().map_err(|error| said(&error))?;
        }
        if let Some(tls) = &self.tls {
            tls.check().map_err(|error| said(&error))?;
        }
        if let Some(enhancer) = &self.enhancer {
            enhancer.check().map_err(|error| said(&error))?;
        }
        Ok(())
    }

    /// Lets everything take effect.
    fn reload(&self) -> Result<Vec<&'static str>, String> {
        let said = |error: &dyn std::error::Error| with_causes(error);
        let mut read = Vec::new();
        if self.auth.reload().map_err(|error| said(&error))?.is_some() {
            read.push("keys");
        }
        if let Some(keys) = &self.router_keys {
            keys.reload().map_err(|error| said(&error))?;
            read.push("router_keys");
        }
        if let Some(tls) = &self.tls {
            tls.reload().map_err(|error| said(&error))?;
            read.push("certificate");
        }
        if let Some(enhancer) = &self.enhancer {
            enhancer.reload().map_err(|error| said(&error))?;
            read.push("system_prompts");
        }
        Ok(read)
    }
}

impl Counts {
    fn succeeded(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        self.last_success_ms.store(now, Ordering::Relaxed);
        self.last_failed.store(false, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Reads the counts when they are scraped.
#[derive(Debug)]
struct ReloadGauges(Reloads);

impl Collector for ReloadGauges {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = &self.0.0.counts;
        let get = |count: &AtomicU64| number(count.load(Ordering::Relaxed));
        let outcomes = [("ok", &counts.ok), ("refused", &counts.refused)];
        let outcomes = outcomes.map(|(outcome, count)| (OutcomeLabel { outcome }, get(count)));
        let failed = counts.last_failed.load(Ordering::Relaxed);
        let mut gauges = Gauges(encoder);
        gauges.counters(
            "config_reloads",
            "Reloads of keys, certificates and prompts, by whether what was read could be used",
            outcomes,
        )?;
        gauges.one(
            "config_last_reload_successful",
            "Whether the last reload succeeded; the start counts as one",
            f64::from(u8::from(!failed)),
        )?;
        gauges.one(
            "config_last_reload_success_timestamp_seconds",
            "Unix time of the last reload that succeeded; the start counts as one",
            get(&counts.last_success_ms) / 1000.0,
        )
    }
}
