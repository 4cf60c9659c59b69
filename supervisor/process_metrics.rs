//! The metrics of this process: what the system knows of it, and how promptly its runtime turns.

use std::fmt;
use std::io;
use std::time::Duration;

use procfs::process::{LimitValue, Process};
use procfs::{WithCurrentSystemInfo, ticks_per_second};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::Level;

use crate::metrics::{FAST, Gauges, Metrics, create, number, seconds};

/// The time between two looks at the runtime.
const TICK: Duration = Duration::from_millis(100);

/// Registers the metrics that every Prometheus client has.
pub(crate) fn register(metrics: &mut Metrics) {
    metrics
        .without_prefix()
        .register_collector(Box::new(ThisProcess));
}

/// Counts the lines of the log. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LogLines(Family<LevelLabel, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabel {
    level: &'static str,
}

impl LogLines {
    pub(crate) fn register(&self, metrics: &mut Metrics) {
        metrics.product().register(
            "log_lines",
            "Lines of the server's log, by level",
            self.0.clone(),
        );
        for level in [
            Level::ERROR,
            Level::WARN,
            Level::INFO,
            Level::DEBUG,
            Level::TRACE,
        ] {
            let level = level_name(level);
            create(&self.0, &LevelLabel { level });
        }
    }

    /// Counts a line.
    pub fn count(&self, level: Level) {
        let level = level_name(level);
        self.0.get_or_create(&LevelLabel { level }).inc();
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// How late the runtime's ticks come.
#[derive(Debug)]
pub(crate) struct RuntimeLag(Histogram);

impl RuntimeLag {
    /// Creates the metric and registers it.
    pub(crate) fn register(metrics: &mut Metrics) -> Self {
        let lag = Histogram::new(FAST);
        metrics.product().register(
            "runtime_lag_seconds",
            "How late a tick of the runtime comes that is due every 100 ms",
            lag.clone(),
        );
        Self(lag)
    }

    /// Measures for as long as it is polled.
    pub(crate) async fn run(self) -> io::Result<()> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = ticks.tick().await;
            self.0.observe(seconds(Instant::now() - due));
        }
    }
}

/// Reads what the system knows of this process when it is scraped.
#[derive(Debug)]
struct ThisProcess;

impl Collector for ThisProcess {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A system that hides its processes leaves the metrics out.
        let Ok(process) = Process::myself() else {
            return Ok(());
        };
        let mut gauges = Gauges(encoder);
        if let Ok(stat) = process.stat() {
            let ticks = number(stat.utime + stat.stime);
            gauges.counter(
                "process_cpu_seconds",
                "Processor time of this process, without its workers",
                ticks / number(ticks_per_second()),
            )?;
            gauges.one(
                "process_virtual_memory_bytes",
                "Virtual memory of this process",
                number(stat.vsize),
            )?;
            gauges.one(
                "process_resident_memory_bytes",
                "Resident memory of this process",
                number(stat.rss_bytes().get()),
            )?;
            gauges.one(
                "process_threads",
                "Threads of this process",
                number(u64::try_from(stat.num_threads).unwrap_or(0)),
            )?;
            if let Ok(boot) = procfs::boot_time_secs() {
                gauges.one(
                    "process_start_time_seconds",
                    "Unix time at which this process was started",
                    number(boot) + number(stat.starttime) / number(ticks_per_second()),
                )?;
            }
        }
        if let Ok(open) = process.fd_count() {
            gauges.one(
                "process_open_fds",
                "Files that this process has open",
                number(open),
            )?;
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(most) = limits.max_open_files.soft_limit
        {
            gauges.one(
                "process_max_fds",
                "Files that this process may have open",
                number(most),
            )?;
        }
        Ok(())
    }
}
