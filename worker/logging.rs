//! The log on stderr: JSON for the supervisor, text for people.

#[cfg(feature = "torch")]
use std::io::IsTerminal;
use std::io::stderr;

use tracing_subscriber::EnvFilter;

/// Logs JSON lines, which the supervisor logs again as its own, with their level and fields.
pub(crate) fn json_to_stderr() {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(stderr)
        .without_time()
        .with_target(false)
        .with_env_filter(filter())
        // The library would report a closed stderr on stderr, and panic.
        .log_internal_errors(false)
        .init();
}

/// Logs text, for the tools that a person starts.
#[cfg(feature = "torch")]
pub(crate) fn text_to_stderr() {
    tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .without_time()
        .with_target(false)
        .with_env_filter(filter())
        .log_internal_errors(false)
        .init();
}

/// Returns the filter in `RUST_LOG`, or the level INFO.
fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"))
}
