//! The log: on stderr, as text for people or JSON for collectors.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// State changes and what is unexpected.
pub(crate) const DEFAULT_FILTER: &str = "info";

/// How to log; the filter is checked.
#[derive(Debug)]
pub(crate) struct Options {
    format: LogFormat,
    filter: EnvFilter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Options {
    pub(crate) fn new(format: LogFormat, filter: &str) -> Result<Self, ParseError> {
        Ok(Self {
            format,
            filter: EnvFilter::try_new(filter)?,
        })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: EnvFilter::new(DEFAULT_FILTER),
        }
    }
}

/// Starts the log of this process. A second call has no effect.
pub(crate) fn start(options: Options) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(options.filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal());
    // Err: there is a log already.
    let _ = match options.format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}
