//! The keys of limits on connections and messages, the names of the server and the sites that it trusts, and the `Config`
//! that they fill.

use std::time::Duration;

use super::hosts::{self, HostNames};
use super::origins::{self, Origins};
use super::proxies::{self, TrustedProxies};
use super::{Config, Limits};
use crate::settings::{DAY, HOUR, Key, KeySpec, Reader, Reload};

const GIB: u64 = 1 << 30;

/// The keys of `server` that say whom the server answers.
pub static NAME_KEYS: &[&KeySpec] = &[
    &ALLOWED_HOSTS.spec,
    &ALLOWED_ORIGINS.spec,
    &TRUSTED_PROXIES.spec,
];

/// The keys of `streaming.limits` that are about connections and messages.
pub static MESSAGE_KEYS: &[&KeySpec] = &[
    &MAX_UNOPENED.spec,
    &MAX_UNOPENED_PER_CLIENT.spec,
    &MAX_MESSAGE_BYTES.spec,
    &MESSAGE_TIMEOUT.spec,
    &PING_INTERVAL.spec,
];

/// The keys of `server.limits`.
pub static LIMIT_KEYS: &[&KeySpec] = &[
    &MAX_CONNECTIONS.spec,
    &MAX_CONNECTIONS_PER_CLIENT.spec,
    &MAX_RECEIVING_BYTES.spec,
    &MAX_RECEIVING_BYTES_PER_CLIENT.spec,
    &HEAD_TIMEOUT.spec,
    &IDLE_TIMEOUT.spec,
    &BODY_TIMEOUT.spec,
    &BODY_IDLE_TIMEOUT.spec,
    &ANSWER_TIMEOUT.spec,
    &ANSWER_IDLE_TIMEOUT.spec,
];

static MAX_CONNECTIONS: Key<Option<usize>> =
    Key::usize("server.limits.max_connections", 1, 1_000_000)
        .unit("connections")
        .reload(Reload::AtOnce)
    .help("Connections at once, sessions included [default: a third of the files that the server may open, without those that it needs itself; at most 4096]");

static MAX_CONNECTIONS_PER_CLIENT: Key<Option<usize>> =
    Key::usize("server.limits.max_connections_per_client", 1, 1_000_000)
        .unit("connections")
        .reload(Reload::AtOnce)
    .help("Connections at once from one address (IPv6: one /64 network); all clients of a proxy share its address [default: half of max_connections]");

static MAX_RECEIVING_BYTES: Key<Option<u64>> =
    Key::u64("server.limits.max_receiving_bytes", 64 << 10, 1024 * GIB)
        .unit("bytes")
        .reload(Reload::AtOnce)
    .help("Bodies and messages that are being received at once, in sum [default: 4 times streaming.limits.max_message_bytes]");

static MAX_RECEIVING_BYTES_PER_CLIENT: Key<Option<u64>> = Key::u64(
    "server.limits.max_receiving_bytes_per_client",
    64 << 10,
    1024 * GIB,
)
.unit("bytes")
.reload(Reload::AtOnce)
    .help("The same from one address [default: half of max_receiving_bytes, but at least streaming.limits.max_message_bytes]");

static HEAD_TIMEOUT: Key<Duration> = Key::seconds("server.limits.head_timeout_seconds", 0.01, HOUR)
    .reload(Reload::Later)
    .help("Time to the first byte on a new connection, and from the first byte of a request to the end of its head")
    .default(20.0);

static IDLE_TIMEOUT: Key<Duration> = Key::seconds("server.limits.idle_timeout_seconds", 0.01, DAY)
    .reload(Reload::Later)
    .help("Time from an answer to the next request on the same connection; keep it above that of a proxy")
    .default(75.0);

static BODY_TIMEOUT: Key<Duration> = Key::seconds("server.limits.body_timeout_seconds", 0.01, DAY)
    .reload(Reload::Later)
    .help("Time to receive the body of a request")
    .default(60.0);

static BODY_IDLE_TIMEOUT: Key<Duration> =
    Key::seconds("server.limits.body_idle_timeout_seconds", 0.01, DAY)
        .reload(Reload::Later)
        .help("Time to receive the next bytes of a body")
        .default(15.0);

static ANSWER_TIMEOUT: Key<Duration> =
    Key::seconds("server.limits.answer_timeout_seconds", 0.01, DAY)
        .reload(Reload::Later)
        .help("Time that a client has to take an answer, for each 4 MiB of it")
        .default(300.0);

static ANSWER_IDLE_TIMEOUT: Key<Duration> =
    Key::seconds("server.limits.answer_idle_timeout_seconds", 0.01, DAY)
        .reload(Reload::Later)
        .help("Time in which a client has to take something of an answer")
        .default(30.0);

pub(crate) static ALLOWED_HOSTS: Key<Option<String>> = Key::items(
    "server.allowed_hosts",
    "NAMES",
    "host names without a port, or `*`",
)
.reload(Reload::AtOnce)
    .help("Names by which clients may address the server, besides those of the loopback address; `*` is any name [default: on a loopback address no other name, on other addresses any name]");

pub(crate) static ALLOWED_ORIGINS: Key<Option<String>> = Key::items(
    "server.allowed_origins",
    "ORIGINS",
    "origins such as https://video.example.org",
)
.reload(Reload::AtOnce)
    .help("Sites whose pages may send orders and, where this is given, open sessions and read films, besides the server's own page [default: orders from no other site, sessions and films from any site]");

pub(crate) static TRUSTED_PROXIES: Key<Option<String>> = Key::items(
    "server.trusted_proxies",
    "NETWORKS",
    proxies::EXPECTED,
)
.reload(Reload::AtOnce)
.help(
    "Reverse proxies whose `X-Forwarded-For` is believed, as addresses or networks [default: none]",
);

pub(crate) static MAX_UNOPENED: Key<Option<usize>> =
    Key::usize("streaming.limits.max_unopened", 1, 1_000_000)
        .unit("connections")
        .reload(Reload::AtOnce)
    .help("WebSockets at once that have not sent their opening message, which are no sessions yet [default: a quarter of server.limits.max_connections]");

pub(crate) static MAX_UNOPENED_PER_CLIENT: Key<Option<usize>> =
    Key::usize("streaming.limits.max_unopened_per_client", 1, 1_000_000)
        .unit("connections")
        .reload(Reload::AtOnce)
    .help("The same from one address (IPv6: one /64 network); all clients of a proxy share its address [default: half of max_unopened]");

pub(crate) static MAX_MESSAGE_BYTES: Key<usize> =
    Key::usize("streaming.limits.max_message_bytes", 64 << 10, 1 << 30)
        .unit("bytes")
        .reload(Reload::Later)
        .help("Largest message accepted from a client")
        .default(50_331_648);

pub(crate) static MESSAGE_TIMEOUT: Key<Duration> =
    Key::seconds("streaming.limits.message_timeout_seconds", 0.01, HOUR)
        .reload(Reload::Later)
        .help("Time to receive a message, from its first byte to its last")
        .default(60.0);

pub(crate) static PING_INTERVAL: Key<Duration> =
    Key::seconds("streaming.limits.ping_interval_seconds", 0.01, HOUR)
        .reload(Reload::Later)
        .help("How often clients are pinged; one that answers nothing for two intervals is gone")
        .default(20.0);

/// Reads all but the certificate, whose keys depend on the program.
pub(crate) fn read(reader: &mut Reader<'_>) -> Config {
    Config {
        allowed_hosts: list(reader, &ALLOWED_HOSTS, HostNames::parse, hosts::EXPECTED),
        allowed_origins: list(reader, &ALLOWED_ORIGINS, Origins::parse, origins::EXPECTED),
        trusted_proxies: (list(
            reader,
            &TRUSTED_PROXIES,
            TrustedProxies::parse,
            proxies::EXPECTED,
        ))
        .unwrap_or_default(),
        max_message_bytes: reader.get(&MAX_MESSAGE_BYTES),
        ping_interval: reader.get(&PING_INTERVAL),
        limits: read_limits(reader),
        tls: None,
    }
}

fn read_limits(reader: &mut Reader<'_>) -> Limits {
    let message = reader.get(&MAX_MESSAGE_BYTES) as u64;
    for key in [&MAX_RECEIVING_BYTES, &MAX_RECEIVING_BYTES_PER_CLIENT] {
        if reader.get(key).is_some_and(|bytes| bytes < message) {
            let expected = format!(
                "at least `{}`, which is {message} bytes",
                MAX_MESSAGE_BYTES.spec.path
            );
            reader.refuse(&key.spec, expected);
        }
    }
    let receiving = (reader.get(&MAX_RECEIVING_BYTES)).unwrap_or(message.saturating_mul(4));
    let of_client = (reader.get(&MAX_RECEIVING_BYTES_PER_CLIENT)).unwrap_or(receiving / 2);
    Limits {
        connections: reader.get(&MAX_CONNECTIONS),
        connections_per_client: reader.get(&MAX_CONNECTIONS_PER_CLIENT),
        unopened: reader.get(&MAX_UNOPENED),
        unopened_per_client: reader.get(&MAX_UNOPENED_PER_CLIENT),
        receiving_bytes: receiving,
        receiving_bytes_per_client: of_client.max(message),
        head_timeout: reader.get(&HEAD_TIMEOUT),
        idle_timeout: reader.get(&IDLE_TIMEOUT),
        body_timeout: reader.get(&BODY_TIMEOUT),
        body_idle_timeout: reader.get(&BODY_IDLE_TIMEOUT),
        answer_timeout: reader.get(&ANSWER_TIMEOUT),
        answer_idle_timeout: reader.get(&ANSWER_IDLE_TIMEOUT),
        message_timeout: reader.get(&MESSAGE_TIMEOUT),
    }
}

/// Reads a key whose value is a list; reports one that is wrong.
fn list<T>(
    reader: &mut Reader<'_>,
    key: &Key<Option<String>>,
    parse: fn(&str) -> Option<T>,
    expected: &str,
) -> Option<T> {
    let text = reader.non_empty(key)?;
    let list = parse(&text);
    if list.is_none() {
        reader.refuse(&key.spec, expected);
    }
    list
}
