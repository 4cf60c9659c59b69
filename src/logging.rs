//! The log on stderr, as text for people or as JSON for log collectors, and its keys `server.log_format` and
//! `server.log_level`.
//!
//! - `filter` reads which lines are wanted;
//! - `json` writes lines as flat objects;
//! - `escape` keeps control characters in what clients send from forging lines;
//! - `writer` writes the lines on a thread of its own, so that nobody who logs ever waits for the log's reader;
//! - `panics` logs the messages of panics.

use std::io::{self, IsTerminal, stderr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastvideo_supervisor_core::LogLines;
use fastvideo_supervisor_core::settings::{Key, KeySpec, Origin, Reader, Reload, SettingError};
use fastvideo_supervisor_core::turns::Turns;
use fastvideo_supervisor_core::{Commit, LogControl};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterFn};
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::Layered;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use self::escape::{EscapedFields, EscapedJson};
use self::filter::{Filter, ShownLines};
use self::json::FlatJson;
use self::writer::LogWriter;

pub(crate) mod escape;
mod filter;
mod json;
mod panics;
mod writer;

/// How long the end of the process waits until the last lines are written.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// The names of log formats in the configuration.
const TEXT: &str = "text";
const JSON: &str = "json";

/// The variable that sets the filter where no level is configured. Workers read it, too.
const FILTER_VARIABLE: &str = "RUST_LOG";

/// The keys of the log.
pub(crate) static KEYS: &[&KeySpec] = &[&LOG_FORMAT.spec, &LOG_LEVEL.spec];

static LOG_FORMAT: Key<String> = Key::choice("server.log_format", &[TEXT, JSON])
    .short("log-format")
    .help("How the log on stderr is written")
    .default(TEXT);

static LOG_LEVEL: Key<Option<String>> = Key::text("server.log_level")
    .short("log-level")
    .reload(Reload::AtOnce)
    .help("What is logged: off, error, warn, info, debug, trace, or a filter as in RUST_LOG, such as `info,fastvideo_supervisor_core=debug`; lines of libraries at level trace are left out unless the filter names the library [default: RUST_LOG, or info]");

/// The options of the log; the filter has been checked.
#[derive(Debug)]
pub(crate) struct Options {
    format: LogFormat,
    filter: Filter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogFormat {
    Text,
    Json,
}

/// The log of this process while it runs. Dropping it waits, for a bounded time, until the last lines are written.
#[derive(Debug)]
pub(crate) struct Log(LogWriter);

/// Builds the options. `RUST_LOG` sets the filter where no level is configured.
pub(crate) fn read(reader: &mut Reader<'_>) -> Options {
    let format = match reader.get(&LOG_FORMAT).as_str() {
        JSON => LogFormat::Json,
        _ => LogFormat::Text,
    };
    let variable = (reader.surroundings().variable(FILTER_VARIABLE))
        .filter(|filter| !filter.is_empty())
        .map(|filter| (filter, Origin::Environment(FILTER_VARIABLE.to_owned())));
    let level = reader.get(&LOG_LEVEL);
    let key = (level.as_deref())
        .filter(|filter| !filter.is_empty())
        .map(|filter| (filter, reader.origin(&LOG_LEVEL.spec)));
    let mut wanted = None;
    // The variable is checked in any case, since the workers inherit it.
    for (text, origin) in [key, variable].into_iter().flatten() {
        match text.parse::<Filter>() {
            Ok(filter) => wanted = wanted.or(Some(filter)),
            Err(error) => reader.report(SettingError::Value {
                key: LOG_LEVEL.spec.path.to_owned(),
                expected: filter::EXPECTED.to_owned(),
                given: format!("{text:?}: {error}"),
                origin,
            }),
        }
    }
    Options {
        format,
        filter: wanted.unwrap_or_default(),
    }
}

/// The filter of the log that runs. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct LogFilter(Arc<Mutex<FilterLayers>>);

/// The two halves of the filter, which are exchanged together.
#[derive(Debug)]
struct FilterLayers {
    directives: Handle<EnvFilter, Registry>,
    cap: Handle<FilterFn<ShownLines>, Filtered>,
}

/// What the cap is put on.
type Filtered = Layered<reload::Layer<EnvFilter, Registry>, Registry>;

impl LogFilter {
    fn exchange(&self, filter: Filter) {
        let (directives, cap) = filter.into_layers();
        let layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails where the log has ended, which is when nobody reads it.
        let _ = layers.directives.reload(directives);
        let _ = layers.cap.reload(cap);
    }
}

impl LogControl for LogFilter {
    fn prepare(&self, reader: &mut Reader<'_>) -> Commit {
        let (log, filter) = (self.clone(), read(reader).filter);
        Box::new(move || {
            log.exchange(filter);
            Vec::new()
        })
    }

    fn set_filter(&self, text: &str) -> Result<(), String> {
        let filter = text.parse::<Filter>();
        let filter =
            filter.map_err(|error| format!("{}, given {text:?}: {error}", filter::EXPECTED))?;
        self.exchange(filter);
        Ok(())
    }
}

/// Starts the log of this process, which gets the messages of panics, too. Its lines are counted in `lines`, and its thread
/// is one of the loops that have to turn.
///
/// # Errors
/// Returns an error when the log's thread cannot be started.
///
/// # Panics
/// Panics when the process has a log already.
pub(crate) fn start(
    options: Options,
    lines: LogLines,
    turns: &Turns,
) -> io::Result<(Log, LogFilter)> {
    let writer = LogWriter::start(stderr(), turns)?;
    let layer = fmt::layer()
        .with_writer(writer.clone())
        // The library would report its errors on stderr, and panic where that is closed.
        .log_internal_errors(false);
    let layer = match options.format {
        LogFormat::Text => layer
            .with_ansi(stderr().is_terminal())
            .fmt_fields(EscapedFields::default())
            .boxed(),
        LogFormat::Json => layer
            .with_ansi(false)
            .fmt_fields(JsonFields::new())
            .event_format(EscapedJson(FlatJson))
            .boxed(),
    };
    let (filter, cap) = options.filter.into_layers();
    let (filter, directives) = reload::Layer::new(filter);
    let (cap, cap_handle) = reload::Layer::new(cap);
    tracing_subscriber::registry()
        .with(filter)
        .with(cap)
        .with(CountLines(lines))
        .with(layer)
        .init();
    panics::log_panics();
    let layers = FilterLayers {
        directives,
        cap: cap_handle,
    };
    Ok((Log(writer), LogFilter(Arc::new(Mutex::new(layers)))))
}

/// Counts the lines that are logged.
struct CountLines(LogLines);

impl<S: Subscriber> Layer<S> for CountLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.count(*event.metadata().level());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush(LAST_LINES_TIMEOUT);
    }
}
