//! Reads the configuration again while a server or a router runs, with the files that it names: keys, certificates,
//! system prompts, the classifier. All of it is checked before any of it takes effect: one error, and nothing changes.
//!
//! Each key says when a new value takes effect ([`crate::settings::Reload`]). SIGHUP asks for a reload, and `routes` lets
//! operators ask for one.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::registry::Registry;
use tokio::task::{JoinError, spawn_blocking};

use crate::metrics::{Gauges, number};
use crate::service_manager::ServiceManager;
use crate::settings::{Reader, Reloaded, SettingError, Settings, Surroundings};

pub(crate) mod routes;

/// Lets what was read take effect. Returns the keys that name files which have changed.
pub type Commit = Box<dyn FnOnce() -> Vec<&'static str> + Send>;

/// Where the configuration of a program comes from.
#[derive(Debug)]
pub struct Source {
    /// What the program was started with.
    pub settings: Settings,
    pub surroundings: Surroundings,
    pub layers: Box<dyn Layers>,
    pub log: Arc<dyn LogControl>,
}

/// The layers of a configuration: defaults, file, environment and flags.
pub trait Layers: fmt::Debug + Send + Sync {
    /// Reads them again, and merges them.
    ///
    /// # Errors
    /// Returns what `check` would say.
    fn merge(&self) -> Result<Settings, String>;
}

/// The filter of the program's log.
pub trait LogControl: fmt::Debug + Send + Sync {
    /// Reads the keys of the log, and reports what is wrong with them.
    fn prepare(&self, reader: &mut Reader<'_>) -> Commit;

    /// Uses another filter until the next reload.
    ///
    /// # Errors
    /// Returns why the text is no filter.
    fn set_filter(&self, text: &str) -> Result<(), String>;
}

/// The parts of a program that can be given another configuration while it runs.
pub(crate) trait Parts: fmt::Debug + Send + Sync {
    /// Reads their configuration, with the files that it names, and reports what is wrong with it. Returns `None` where
    /// something is. Blocks while it reads.
    fn prepare(&self, reader: &mut Reader<'_>) -> Option<Commit>;
}

/// Reads the configuration again, and knows how that went. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Reloads(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    source: Source,
    parts: Box<dyn Parts>,
    /// Is told when it begins and when it is done.
    service: ServiceManager,
    /// What holds now. It is locked while the configuration, or a part of it, is read again.
    settings: Arc<tokio::sync::Mutex<Settings>>,
    last: Mutex<Option<LastReload>>,
    counts: Counts,
}

/// How the last reload went.
#[derive(Clone, Debug)]
pub(crate) struct LastReload {
    pub(crate) at: SystemTime,
    pub(crate) outcome: Result<Changes, String>,
}

/// What a reload has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// The keys whose values have changed, or the files that they name.
    pub(crate) changed: Vec<&'static str>,
    /// The keys whose new values wait for a restart.
    pub(crate) pending_restart: Vec<&'static str>,
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

/// Why nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    /// What `check` would say.
    #[error("{0}")]
    Refused(String),
    #[error("the reload panicked")]
    Panicked,
}

impl Reloads {
    pub(crate) fn new(source: Source, parts: Box<dyn Parts>, service: ServiceManager) -> Self {
        let counts = Counts::default();
        counts.succeeded();
        Self(Arc::new(Shared {
            settings: Arc::new(tokio::sync::Mutex::new(source.settings.clone())),
            source,
            parts,
            service,
            last: Mutex::default(),
            counts,
        }))
    }

    /// Registers the metrics, with all their series.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(ReloadGauges(self.clone())));
    }

    /// Reads everything again. Returns what has changed.
    ///
    /// # Errors
    /// Returns an error when any of it cannot be used; then nothing has changed.
    pub(crate) async fn run(&self) -> Result<Changes, ReloadError> {
        let shared = self.0.clone();
        let done = self.alone(move |settings| shared.reload(settings)).await;
        done.unwrap_or(Err(ReloadError::Panicked))
    }

    /// Does something that blocks, and that no reload may run beside.
    ///
    /// # Errors
    /// Returns an error when it panics.
    pub(crate) async fn alone<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Settings) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let mut settings = self.0.settings.clone().lock_owned().await;
        spawn_blocking(move || work(&mut settings)).await
    }

    /// Returns how the last reload went; `None` before the first one.
    pub(crate) fn last(&self) -> Option<LastReload> {
        let last = self.0.last.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses another filter of the log until the next reload.
    ///
    /// # Errors
    /// Returns why the text is no filter.
    pub(crate) fn set_log_filter(&self, text: &str) -> Result<(), String> {
        self.0.source.log.set_filter(text)
    }
}

impl Shared {
    /// Reads everything again. Blocks while it does.
    fn reload(&self, settings: &mut Settings) -> Result<Changes, ReloadError> {
        self.service.reloading();
        // However it ends, operators and the service manager are told.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.try_reload(settings)));
        let outcome = outcome.map_or(Err(ReloadError::Panicked), |done| {
            done.map_err(ReloadError::Refused)
        });
        self.service.reloaded();
        match &outcome {
            Ok(Changes {
                changed,
                pending_restart,
            }) => {
                self.counts.succeeded();
                self.counts.ok.fetch_add(1, Ordering::Relaxed);
                tracing::info!(target: "audit", outcome = "ok", ?changed, ?pending_restart, "reloaded");
            }
            Err(error) => {
                let reason = error.to_string();
                self.counts.last_failed.store(true, Ordering::Relaxed);
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(target: "audit", outcome = "refused", reason, "not reloaded: everything stays as it was");
            }
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(LastReload {
            at: SystemTime::now(),
            outcome: match &outcome {
                Ok(changes) => Ok(changes.clone()),
                Err(error) => Err(error.to_string()),
            },
        });
        outcome
    }

    fn try_reload(&self, settings: &mut Settings) -> Result<Changes, String> {
        let new = self.source.layers.merge()?;
        let Reloaded {
            settings: effective,
            mut changed,
            pending_restart,
        } = settings.reloaded(&new);
        let commits = match pending_restart.is_empty() {
            true => self.prepare(&effective)?,
            false => {
                // They are checked as at a start, and then as they will hold.
                drop(self.prepare(&new)?);
                let together = |error| {
                    format!(
                        "{error}\nbefore a restart, with the old values of {}",
                        pending_restart.join(", ")
                    )
                };
                self.prepare(&effective).map_err(together)?
            }
        };
        for commit in commits {
            changed.extend(commit());
        }
        changed.sort_unstable();
        changed.dedup();
        *settings = effective;
        Ok(Changes {
            changed,
            pending_restart,
        })
    }

    fn prepare(&self, settings: &Settings) -> Result<[Commit; 2], String> {
        let mut reader = Reader::new(settings, &self.source.surroundings);
        let log = self.source.log.prepare(&mut reader);
        let parts = self.parts.prepare(&mut reader);
        let errors = reader.into_errors();
        match parts {
            Some(parts) if errors.is_empty() => Ok([log, parts]),
            _ => Err(described(&errors)),
        }
    }
}

/// Puts errors together as `check` does, a line each.
fn described(errors: &[SettingError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
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
            "Reloads of the configuration, by whether what was read could be used",
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
