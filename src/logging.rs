//! The log on stderr, as text for people or as JSON for log collectors, and its keys `server.log_format` and
//! `server.log_level`.

use std::io::{IsTerminal, stderr};

use fastvideo_supervisor_core::settings::{Key, KeySpec, Origin, Reader, SettingError};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The filter without configuration: state changes, warnings and errors.
const DEFAULT_FILTER: &str = "info";

/// The names of log formats in the configuration.
const TEXT: &str = "text";
const JSON: &str = "json";

/// The keys of the log.
pub(crate) static KEYS: &[&KeySpec] = &[&LOG_FORMAT.spec, &LOG_LEVEL.spec];

static LOG_FORMAT: Key<String> = Key::choice("server.log_format", &[TEXT, JSON])
    .short("log-format")
    .help("How the log on stderr is written")
    .default(TEXT);

static LOG_LEVEL: Key<Option<String>> = Key::text("server.log_level")
    .short("log-level")
    .help("What is logged: error, warn, info, debug, trace, or a filter as in RUST_LOG [default: RUST_LOG, or info]");

/// The options of the log; the filter has been checked.
#[derive(Debug)]
pub(crate) struct Options {
    format: LogFormat,
    filter: EnvFilter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogFormat {
    Text,
    Json,
}

impl Options {
    fn new(format: LogFormat, filter: &str) -> Result<Self, ParseError> {
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

/// Builds the options. `RUST_LOG` sets the filter where no level is configured.
pub(crate) fn read(reader: &mut Reader<'_>) -> Options {
    let level = reader.get(&LOG_LEVEL);
    let filter = (level.as_deref())
        .or_else(|| reader.surroundings().variable("RUST_LOG"))
        .filter(|filter| !filter.is_empty())
        .unwrap_or(DEFAULT_FILTER);
    let format = match reader.get(&LOG_FORMAT).as_str() {
        JSON => LogFormat::Json,
        _ => LogFormat::Text,
    };
    Options::new(format, filter).unwrap_or_else(|error| {
        reader.report(SettingError::Value {
            key: LOG_LEVEL.spec.path.to_owned(),
            expected: "a level or a filter such as `info,fastvideo_supervisor_core=debug`"
                .to_owned(),
            given: format!("{filter:?}: {error}"),
            origin: match &level {
                Some(_) => reader.origin(&LOG_LEVEL.spec),
                None => Origin::Environment("RUST_LOG".to_owned()),
            },
        });
        Options::default()
    })
}

/// Starts the log of this process. A second call has no effect.
pub(crate) fn start(options: Options) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(options.filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal());
    // `try_init` fails only when a log has been started already.
    let _ = match options.format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}
