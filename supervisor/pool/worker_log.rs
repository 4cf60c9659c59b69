//! Turns the lines that a worker prints on stderr into events of the supervisor's own log.
//!
//! A worker logs JSON objects with a level, a message and fields. Anything else that it prints comes from a library or a
//! panic.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use tracing::Level;

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

#[cfg(test)]
mod tests {
    use super::*;

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
