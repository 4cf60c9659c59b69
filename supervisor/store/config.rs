//! The keys `streaming.store.*`, and how long a session can be resumed.

use std::time::Duration;

use super::film::Recording;
use super::handle;
use super::open::{Config, LocationError, StoreLocation};
use super::records::ledger::Limits;
use crate::settings::{DAY, HOUR, Key, KeySpec, MINUTE, Reader, Reload};

/// The keys of `streaming.store`.
pub static KEYS: &[&KeySpec] = &[
    &SESSIONS.spec,
    &SESSIONS_FILE.spec,
    &BLOBS.spec,
    &MAX_SESSIONS.spec,
    &MAX_MIB.spec,
    &LEASE.spec,
    &TIMEOUT.spec,
    &WAIT.spec,
    &REQUIRED_FOR_READINESS.spec,
];

/// The keys of `streaming.recording`.
pub static RECORDING_KEYS: &[&KeySpec] = &[
    &FILM_ENABLED.spec,
    &FILM_MAX_MIB_PER_SESSION.spec,
    &FILM_MAX_MIB.spec,
    &FILM_TTL.spec,
];

/// How long a session can be resumed. It is one of the session's own keys in the file, `streaming.resume_ttl_seconds`.
pub static RESUME_TTL: Key<Duration> =
    Key::seconds("streaming.resume_ttl_seconds", 0.1, 30.0 * DAY)
        .reload(Reload::AtOnce)
        .help("A session whose client is gone can be resumed for this long")
        .default(300.0);

/// Where sessions are kept. The program has a default of its own under systemd.
pub static SESSIONS: Key<String> = Key::text("streaming.store.sessions")
    .short("store")
    .help("Where sessions are kept: memory: until this process ends; file:///FOLDER through restarts; redis://HOST:PORT/DB, rediss:// with TLS, for several servers")
    .default("memory:");

static SESSIONS_FILE: Key<Option<String>> = Key::text("streaming.store.sessions_file")
    .help("A file that holds the URL of `streaming.store.sessions`, which may contain a password [default: none]");

static BLOBS: Key<Option<String>> = Key::text("streaming.store.blobs")
    .short("blobs")
    .help("Where the frames and latents of their states are kept: memory:, file:///FOLDER, or s3://BUCKET/PREFIX with the usual AWS_* variables [default: with the sessions; to be named with Redis]");

static MAX_SESSIONS: Key<usize> = Key::usize("streaming.store.max_sessions", 1, 10_000_000)
    .unit("sessions")
    .help("Sessions that a store in memory keeps; when it is full, those that nobody runs leave, the oldest first")
    .default(10_000);

static MAX_MIB: Key<u64> = Key::u64("streaming.store.max_mib", 1, 1 << 30)
    .unit("MiB")
    .help("States that a store in memory keeps")
    .default(4096);

static LEASE: Key<Duration> = Key::seconds("streaming.store.lease_seconds", 0.1, HOUR)
    .help("The sessions of a server that is silent for this long count as left alone")
    .default(6.0);

static TIMEOUT: Key<Duration> = Key::millis("streaming.store.timeout_ms", 10.0, MINUTE * 1e3)
    .help("Time that the store has for one operation; a session goes on without it")
    .default(2000.0);

static WAIT: Key<Duration> = Key::seconds("streaming.store.wait_seconds", 0.0, HOUR)
    .help("How long the server waits at its start for a Redis or a bucket that cannot be reached")
    .default(30.0);

static REQUIRED_FOR_READINESS: Key<bool> = Key::switch("streaming.store.required_for_readiness")
    .help(
        "Answer /readyz with 503 while the store does not work; sessions that run go on without it",
    )
    .default(false);

static FILM_ENABLED: Key<bool> = Key::switch("streaming.recording.enabled")
    .help("Keep the film of each session: clients get what they missed, and can load and watch it")
    .default(true);

static FILM_MAX_MIB_PER_SESSION: Key<u64> =
    Key::u64("streaming.recording.max_mib_per_session", 1, 1 << 20)
        .unit("MiB")
        .help("Media that are kept of one session; the oldest go first")
        .default(256);

static FILM_MAX_MIB: Key<u64> = Key::u64("streaming.recording.max_mib", 1, 1 << 30)
    .unit("MiB")
    .help("Media in this server's memory: all films in a memory: store, else those that the store has not taken yet")
    .default(2048);

static FILM_TTL: Key<Duration> = Key::seconds("streaming.recording.ttl_seconds", 0.0, 30.0 * DAY)
    .help("A film is kept for this long after its session has ended, and at least for as long as the session can be resumed")
    .default(3600.0);

/// The URLs of sessions and of blobs are valid, but not in this combination.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{}` and `{}` do not fit together, given {sessions} and {blobs}: {problem}",
    SESSIONS.spec.path, BLOBS.spec.path
)]
struct UnfitPair {
    sessions: String,
    blobs: String,
    problem: &'static str,
}

pub(crate) fn read(reader: &mut Reader<'_>) -> Config {
    let limits = Limits {
        max_sessions: reader.get(&MAX_SESSIONS),
        max_bytes: reader.get(&MAX_MIB) << 20,
        max_media_bytes: reader.get(&FILM_MAX_MIB) << 20,
    };
    let recording = Recording {
        max_session_bytes: reader.get(&FILM_MAX_MIB_PER_SESSION) << 20,
        max_bytes: limits.max_media_bytes,
        ttl: reader.get(&FILM_TTL),
    };
    let blobs = reader.get(&BLOBS);
    let location = read_sessions(reader).and_then(|(url, key)| {
        let location = StoreLocation::parse(&url, blobs.as_deref(), limits);
        let refused = |error| refuse_location(reader, key, error);
        location.map_err(refused).ok()
    });
    let location = location.unwrap_or_else(|| StoreLocation::memory(limits));
    Config {
        location,
        wait: reader.get(&WAIT),
        sessions: handle::Config {
            resume_ttl: reader.get(&RESUME_TTL),
            lease: reader.get(&LEASE),
            timeout: reader.get(&TIMEOUT),
            required_for_readiness: reader.get(&REQUIRED_FOR_READINESS),
            recording: reader.get(&FILM_ENABLED).then_some(recording),
        },
    }
}

/// Returns the URL of the sessions, and the key that has given it; `None` when an error is reported.
fn read_sessions(reader: &mut Reader<'_>) -> Option<(String, &'static KeySpec)> {
    let Some(path) = reader.get(&SESSIONS_FILE) else {
        return Some((reader.get(&SESSIONS), &SESSIONS.spec));
    };
    if reader.is_given(&SESSIONS.spec) {
        let expected = format!("left out where `{}` is given", SESSIONS.spec.path);
        reader.refuse(&SESSIONS_FILE.spec, expected);
        return None;
    }
    match std::fs::read_to_string(&path) {
        Ok(text) => Some((text.trim().to_owned(), &SESSIONS_FILE.spec)),
        Err(error) => {
            let expected = format!("a file that can be read ({error})");
            reader.refuse(&SESSIONS_FILE.spec, expected);
            None
        }
    }
}

/// Reports what is wrong with the URLs. `sessions` is the key that has given that of the sessions.
fn refuse_location(reader: &mut Reader<'_>, sessions: &'static KeySpec, error: LocationError) {
    match error {
        LocationError::Records(expected) if sessions.path == SESSIONS_FILE.spec.path => {
            reader.refuse(sessions, format!("a file that holds {expected}"));
        }
        LocationError::Records(expected) => reader.refuse(sessions, expected.to_string()),
        LocationError::Blobs(expected) => reader.refuse(&BLOBS.spec, expected.to_string()),
        LocationError::Pair(problem) => reader.refuse_because(UnfitPair {
            sessions: reader.given(sessions),
            blobs: reader.given(&BLOBS.spec),
            problem,
        }),
    }
}
