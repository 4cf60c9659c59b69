//! Turns the lines that a worker prints on stderr into events of the supervisor's own log.
//!
//! A worker logs JSON objects with a level, a message and fields. Anything else that it prints comes from a library or a
//! panic. [`LogBudget`] bounds how much of it the log takes.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use tokio::time::Instant;
use tracing::Level;

/// How many bytes a worker may print at once.
const BURST_BYTES: f64 = 512.0 * 1024.0;
/// How many bytes a second a worker may print for ever.
const BYTES_PER_SECOND: f64 = 32.0 * 1024.0;
/// How many bytes have to be free after lines were left out, so that the gaps are few.
const RESUME_BYTES: f64 = BURST_BYTES / 8.0;
/// What a line costs beside its bytes: its time, level and names in the log.
const LINE_BYTES: f64 = 100.0;

/// A line of a worker's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkerLine {
    level: Level,
    /// The message, followed by its fields as `name=value`.
    text: String,
}

impl WorkerLine {
    /// Parses a line. A line that is not in the worker's log format becomes a warning with the line as its text.
    pub(super) fn parse(line: &str) -> Self {
        Self::of_json(line).unwrap_or_else(|| Self {
            level: Level::WARN,
            text: line.to_owned(),
        })
    }

    fn of_json(line: &str) -> Option<Self> {
        let mut object: Map<String, Value> = serde_json::from_str(line).ok()?;
        let level = object.remove("level")?.as_str()?.parse().ok()?;
        let mut text = object.remove("message")?.as_str()?.to_owned();
        for (name, value) in object {
            let _ = match value {
                Value::String(value) => write!(text, " {name}={value}"),
                value => write!(text, " {name}={value}"),
            };
        }
        Some(Self { level, text })
    }

    /// Returns the line as text for people.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Logs the line at its level.
    pub(super) fn log(&self) {
        let text = &self.text;
        match self.level {
            Level::ERROR => tracing::error!("{text}"),
            Level::WARN => tracing::warn!("{text}"),
            Level::INFO => tracing::info!("{text}"),
            Level::DEBUG => tracing::debug!("{text}"),
            Level::TRACE => tracing::trace!("{text}"),
        }
    }
}

/// A token bucket for the lines that a worker prints. What exceeds it is left out of the log and counted.
#[derive(Debug)]
pub(super) struct LogBudget {
    free_bytes: f64,
    refilled: Instant,
    /// The lines that were left out since the last one that was admitted.
    left_out: u64,
}

impl LogBudget {
    pub(super) fn new() -> Self {
        Self {
            free_bytes: BURST_BYTES,
            refilled: Instant::now(),
            left_out: 0,
        }
    }

    /// Returns whether a line of so many bytes may be logged.
    pub(super) fn admits(&mut self, bytes: usize) -> bool {
        let now = Instant::now();
        let earned = (now - self.refilled).as_secs_f64() * BYTES_PER_SECOND;
        self.refilled = now;
        self.free_bytes = (self.free_bytes + earned).min(BURST_BYTES);
        let needed = match self.left_out {
            0 => 0.0,
            _ => RESUME_BYTES,
        };
        if self.free_bytes <= needed {
            self.left_out += 1;
            return false;
        }
        let cost = bytes as f64 + LINE_BYTES;
        self.free_bytes -= cost;
        true
    }

    /// Logs how many lines were left out since the last call. Returns false when none were.
    pub(super) fn log_gap(&mut self) -> bool {
        let lines = std::mem::take(&mut self.left_out);
        if lines > 0 {
            tracing::warn!(
                lines,
                "lines of the worker were left out: it prints too much"
            );
        }
        lines > 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_may_print_much_at_once_and_little_for_ever() {
        let mut budget = LogBudget::new();
        let line = 900;
        let burst = (0..).take_while(|_| budget.admits(line)).count();
        assert_eq!(burst, 525);
        assert!((0..1_000_000).all(|_| !budget.admits(line)));
        assert_eq!(budget.left_out, 1_000_001);
        advance(Duration::from_secs(1)).await;
        assert!(!budget.admits(line));
        advance(Duration::from_secs(2)).await;
        assert!(budget.admits(line));
        budget.log_gap();
        let mut logged = 0;
        for _ in 0..10_000 {
            advance(Duration::from_millis(10)).await;
            if budget.admits(line) {
                budget.log_gap();
                logged += 1;
            }
        }
        assert!((3200..3400).contains(&logged), "{logged}");
    }

    #[track_caller]
    fn check(line: &str, level: Level, text: &str) {
        let expected = WorkerLine {
            level,
            text: text.to_owned(),
        };
        assert_eq!(WorkerLine::parse(line), expected);
    }

    #[test]
    fn line_of_the_workers_log_keeps_its_level_and_fields() {
        check(
            r#"{"level":"WARN","message":"injecting a fault","kind":"Exit","step":3}"#,
            Level::WARN,
            "injecting a fault kind=Exit step=3",
        );
        check(
            r#"{"level":"DEBUG","message":"two\nlines"}"#,
            Level::DEBUG,
            "two\nlines",
        );
    }

    #[test]
    fn other_lines_are_warnings_as_they_are() {
        for line in [
            "thread 'main' panicked at worker/faults.rs:90:33:",
            "INFO not a line of the log",
            "{}",
            r#"{"level":"LOUD","message":"x"}"#,
            r#"{"level":"INFO"}"#,
            r#"["level"]"#,
        ] {
            check(line, Level::WARN, line);
        }
    }
}
