//! The keys of `router` and the `Config` that they fill.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use axum::http::HeaderValue;
use fastvideo_proto::fleet::MIN_KEY_BYTES;
use rustls::RootCertStore;
use serde::Deserialize;
use url::{Host, Url};

use super::health::Thresholds;
use crate::auth;
use crate::discovery::is_address;
use crate::ingress;
use crate::redis::RedisAddress;
use crate::settings::{DAY, HOUR, Key, KeySpec, Origin, Reader, SettingError};
use crate::{tls, traces};

/// The most replicas of a list.
const MAX_REPLICAS: usize = 10_000;

/// The keys of `router`.
pub static KEYS: &[&KeySpec] = &[
    &HOST.spec,
    &PORT.spec,
    &REPLICAS.spec,
    &CA_FILE.spec,
    &tls::config::ROUTER.cert_file.spec,
    &tls::config::ROUTER.key_file.spec,
    &KEY_FILE.spec,
    &NAME.spec,
    &ZONE.spec,
    &DEAD_AFTER.spec,
    &FAILOVER_TIMEOUT.spec,
    &MAX_WAITING.spec,
    &WAIT_FOR_REPLICA.spec,
    &STORE.spec,
    &QUEUE.spec,
    &DISCOVERY.spec,
    &HEADROOM_GPUS.spec,
    &LINGER.spec,
    &PATH.spec,
    &INTERVAL.spec,
    &TIMEOUT.spec,
    &FAILURE_THRESHOLD.spec,
    &RECOVERY_THRESHOLD.spec,
];

static HOST: Key<String> = Key::text("router.host")
    .short("host")
    .help("Address to listen on")
    .default("0.0.0.0");

static PORT: Key<u16> = Key::u16("router.port", 0, 65_535)
    .short("port")
    .help("Port to listen on, 0 for any free one")
    .default(9000);

static REPLICAS: Key<Option<Vec<serde_json::Value>>> = Key::json_list(
    "router.replicas",
    "a list such as `[{url: http://a:8000, primary: true}, {url: http://b:8000}]`",
)
.short("replicas")
.help("The servers that sessions go to, in the order in which they are preferred: each with `url`, and where needed `name`, `primary` (at most one) and `weight` [default: none, which is refused]");

pub(super) static CA_FILE: Key<Option<String>> = Key::text("router.tls.ca_file").help(
    "PEM file of the certificate authorities that `https://` servers are checked against, instead of the system's [default: none: the system's]",
);

pub static KEY_FILE: Key<Option<String>> = Key::text("router.key_file")
    .help("File whose first line is the key that servers know this router by (`server.router_keys_file`) [default: none: nothing is known of servers but their health]");

static NAME: Key<Option<String>> =
    Key::text("router.name").help("What servers call this router in their log [default: none]");

static ZONE: Key<Option<String>> = Key::text("router.zone").help(
    "Where this router is; servers of the same zone (`server.zone`) are preferred [default: none]",
);

static DEAD_AFTER: Key<Duration> = Key::seconds("router.dead_after_seconds", 1.5, HOUR)
    .help("Silence after which a server that reports each second is considered unreachable")
    .default(3.0);

static FAILOVER_TIMEOUT: Key<Duration> = Key::seconds("router.failover_timeout_seconds", 0.0, DAY)
    .help("Time that a session which has lost its server waits for another one")
    .default(300.0);

static MAX_WAITING: Key<usize> = Key::usize("router.max_waiting", 0, 10_000_000)
    .unit("sessions")
    .help("Sessions that may wait for a place at once, at all routers with the same line")
    .default(10_000);

static WAIT_FOR_REPLICA: Key<Duration> = Key::seconds("router.wait_for_replica_seconds", 0.0, DAY)
    .help("Time that a client waits when no server is healthy, before it is turned away")
    .default(0.0);

static STORE: Key<Option<String>> = Key::text("router.store").help(
    "The Redis that several routers share: redis://HOST:PORT/DB, rediss:// with TLS [default: none: this router is the only one]",
);

static DISCOVERY: Key<String> = Key::choice("router.discovery", &["replicas", "store"])
    .help("Which servers there are: replicas: those of `router.replicas`; store: also those with `server.advertise_url` whose sessions are in the Redis of `router.store`")
    .default("replicas");

static QUEUE: Key<String> = Key::choice("router.queue", &["auto", "memory"])
    .help("Where sessions wait: auto: in one line of all routers with the same `router.store`, where that is given; memory: in a line of this router alone")
    .default("auto");

static HEADROOM_GPUS: Key<usize> = Key::usize("router.headroom_gpus", 0, 1_000_000)
    .unit("GPUs")
    .help("GPUs that /v1/fleet/demand asks for beyond what the sessions need")
    .default(0);

static LINGER: Key<Duration> = Key::seconds("router.linger_seconds", 0.0, 7.0 * DAY)
    .short("linger-seconds")
    .help("Time that clients have to leave after the first SIGTERM")
    .default(3600.0);

static PATH: Key<String> = Key::text("router.health_check.path")
    .alias("router.health_check_path")
    .help("Path that each server is probed at")
    .default("/health");

static INTERVAL: Key<Duration> = Key::seconds("router.health_check.interval_seconds", 0.01, HOUR)
    .alias("router.health_check_interval_seconds")
    .help("Time between two probes of a server")
    .default(5.0);

static TIMEOUT: Key<Duration> = Key::seconds("router.health_check.timeout_seconds", 0.01, HOUR)
    .alias("router.health_check_timeout_seconds")
    .help("Time that a server has to answer a probe")
    .default(2.0);

static FAILURE_THRESHOLD: Key<u32> =
    Key::u32("router.health_check.failure_threshold", 1, 1_000_000)
        .alias("router.failure_threshold")
        .unit("probes")
        .help("Failed probes in a row after which a server is unhealthy")
        .default(3);

static RECOVERY_THRESHOLD: Key<u32> =
    Key::u32("router.health_check.recovery_threshold", 1, 1_000_000)
        .alias("router.recovery_threshold")
        .unit("probes")
        .help("Successful probes in a row after which an unhealthy server is healthy again")
        .default(2);

/// The configuration of a router, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub host: String,
    /// The TCP port; 0 takes any free one.
    pub port: u16,
    /// At most one is primary. At least one, unless servers are looked for.
    pub replicas: Vec<ReplicaEndpoint>,
    /// Whether servers are looked for in the Redis.
    pub finds_servers: bool,
    pub health_check: HealthCheck,
    /// How long clients may stay after the first SIGTERM.
    pub linger: Duration,
    /// The certificate authorities that servers with `https` are checked against, instead of the system's.
    pub authorities: Option<RootCertStore>,
    /// The key that servers know this router by; without it there are no control links.
    pub key: Option<RouterKey>,
    /// What servers call this router.
    pub name: Option<String>,
    pub zone: Option<String>,
    /// How long a server may be silent on its control link.
    pub dead_after: Duration,
    /// How long a session that has lost its server waits for another one.
    pub failover_timeout: Duration,
    /// How long a client waits for a healthy server.
    pub wait_for_replica: Duration,
    /// Number of sessions that may wait for a place.
    pub max_waiting: usize,
    /// Number of GPUs to be had beyond what the sessions need.
    pub headroom_gpus: usize,
    /// The Redis that routers share.
    pub store: Option<RedisAddress>,
    /// Whether the sessions of this router wait in a line of their own also where routers share a Redis.
    pub has_own_line: bool,
    pub auth: auth::Config,
    pub ingress: ingress::Config,
    /// Where traces go; without it there are none.
    pub traces: Option<traces::Config>,
}

/// How the servers are probed.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// Begins with `/`.
    pub path: String,
    pub interval: Duration,
    pub timeout: Duration,
    pub thresholds: Thresholds,
}

/// A server that the router can send sessions to.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaEndpoint {
    /// `http://` or `https://`, without a query.
    pub url: Url,
    pub name: Option<String>,
    /// Whether it is preferred while it is healthy.
    pub primary: bool,
    /// How much it can do in comparison with the others, above 0.
    pub weight: f64,
}

impl ReplicaEndpoint {
    /// Returns the endpoint of a server that is in no configuration.
    pub(super) fn found(url: Url, name: Option<String>) -> Self {
        Self {
            url,
            name: name.filter(|name| !name.is_empty()),
            primary: false,
            weight: 1.0,
        }
    }
}

impl Config {
    /// Returns the servers to which the router's key goes over a network without TLS.
    pub fn exposing_key(&self) -> impl Iterator<Item = &ReplicaEndpoint> {
        let replicas = self.replicas.iter().filter(|_| self.key.is_some());
        replicas.filter(|replica| replica.url.scheme() == "http" && !is_loopback(&replica.url))
    }
}

/// Returns whether an address is on this machine.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

/// The key that servers know a router by. It is not shown.
#[derive(Clone)]
pub struct RouterKey(String);

impl RouterKey {
    /// Returns the key as a header's value.
    pub(super) fn value(&self) -> HeaderValue {
        let value = HeaderValue::try_from(&self.0);
        let mut value = value.expect("printable ASCII is a header's value");
        value.set_sensitive(true);
        value
    }

    /// Returns the value of the header `Authorization`.
    pub(super) fn authorization(&self) -> HeaderValue {
        let value = format!("Bearer {}", self.0);
        let value = HeaderValue::try_from(value);
        let mut value = value.expect("printable ASCII is a header's value");
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for RouterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RouterKey(…)")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    url: String,
    name: Option<String>,
    #[serde(default)]
    primary: bool,
    weight: Option<f64>,
}

/// Builds the configuration; the reader collects what is wrong.
pub fn read(reader: &mut Reader<'_>) -> Config {
    reader.refuse_blank(&HOST, "an address or a host name");
    let path = reader.get(&PATH);
    if !path.starts_with('/') {
        reader.refuse(&PATH.spec, "a path that begins with `/`");
    }
    let finds_servers = finds_servers(reader);
    Config {
        host: reader.get(&HOST),
        port: reader.get(&PORT),
        replicas: replicas(reader, finds_servers),
        finds_servers,
        health_check: HealthCheck {
            path,
            interval: reader.get(&INTERVAL),
            timeout: reader.get(&TIMEOUT),
            thresholds: Thresholds {
                failure: reader.get(&FAILURE_THRESHOLD),
                recovery: reader.get(&RECOVERY_THRESHOLD),
            },
        },
        authorities: authorities(reader),
        key: key(reader),
        name: reader.non_empty(&NAME),
        zone: reader.non_empty(&ZONE),
        dead_after: reader.get(&DEAD_AFTER),
        failover_timeout: reader.get(&FAILOVER_TIMEOUT),
        max_waiting: reader.get(&MAX_WAITING),
        wait_for_replica: reader.get(&WAIT_FOR_REPLICA),
        headroom_gpus: reader.get(&HEADROOM_GPUS),
        store: store(reader),
        has_own_line: reader.get(&QUEUE) == "memory",
        linger: reader.get(&LINGER),
        auth: auth::config::read(reader),
        ingress: ingress::Config {
            tls: tls::config::read_pair(reader, &tls::config::ROUTER, None),
            ..ingress::config::read(reader)
        },
        traces: traces::config::read(reader),
    }
}

fn finds_servers(reader: &mut Reader<'_>) -> bool {
    let is_asked = reader.get(&DISCOVERY) == "store";
    if is_asked && reader.non_empty(&STORE).is_none() {
        let expected = format!("`replicas`, or `{}` to be given", STORE.spec.path);
        reader.refuse(&DISCOVERY.spec, expected);
    }
    is_asked
}

fn store(reader: &mut Reader<'_>) -> Option<RedisAddress> {
    let text = reader.non_empty(&STORE)?;
    let address = Url::parse(&text).map_err(|_| None);
    let address = address.and_then(|url| RedisAddress::parse(&url).map_err(Some));
    match address {
        Ok(address) => Some(address),
        Err(problem) => {
            let expected = match problem {
                Some(problem) => format!("a Redis, but it {problem}"),
                None => "redis://host:port/database or rediss://…".to_owned(),
            };
            reader.refuse(&STORE.spec, expected);
            None
        }
    }
}

fn authorities(reader: &mut Reader<'_>) -> Option<RootCertStore> {
    let path = reader.non_empty(&CA_FILE)?;
    match tls::file_authorities(Path::new(&path)) {
        Ok(authorities) => Some(authorities),
        Err(error) => {
            let expected = format!("a PEM file with certificates ({error})");
            reader.refuse(&CA_FILE.spec, expected);
            None
        }
    }
}

fn key(reader: &mut Reader<'_>) -> Option<RouterKey> {
    let path = reader.non_empty(&KEY_FILE)?;
    let first = match std::fs::read_to_string(&path) {
        Ok(text) => text.lines().next().unwrap_or_default().trim().to_owned(),
        Err(error) => {
            reader.refuse(&KEY_FILE.spec, format!("a file that can be read ({error})"));
            return None;
        }
    };
    if first.len() < MIN_KEY_BYTES || !first.chars().all(|c| c.is_ascii_graphic()) {
        let expected = format!(
            "a file whose first line is a key of at least {MIN_KEY_BYTES} printable ASCII characters"
        );
        reader.refuse(&KEY_FILE.spec, expected);
        return None;
    }
    Some(RouterKey(first))
}

fn replicas(reader: &mut Reader<'_>, finds_servers: bool) -> Vec<ReplicaEndpoint> {
    let origin = reader.origin(&REPLICAS.spec);
    let list = reader.get(&REPLICAS).unwrap_or_default();
    if list.is_empty() && !finds_servers {
        reader.refuse(&REPLICAS.spec, "at least one replica");
    }
    if list.len() > MAX_REPLICAS {
        let expected = format!("at most {MAX_REPLICAS} replicas");
        reader.report(wrong("", &expected, &list.len().to_string(), &origin));
        return Vec::new();
    }
    let mut replicas: Vec<ReplicaEndpoint> = Vec::new();
    for (place, entry) in list.iter().enumerate() {
        let read = endpoint(place, entry, &replicas, &origin);
        match read {
            Ok(replica) => replicas.push(replica),
            Err(error) => reader.report(error),
        }
    }
    replicas
}

/// Reads an entry of the list, before which these were read.
fn endpoint(
    place: usize,
    entry: &serde_json::Value,
    before: &[ReplicaEndpoint],
    origin: &Origin,
) -> Result<ReplicaEndpoint, SettingError> {
    let wrong = |field: &str, expected: &str, given: &str| {
        let field = match field {
            "" | "." => format!("[{place}]"),
            field => format!("[{place}].{field}"),
        };
        wrong(&field, expected, given, origin)
    };
    let described = serde_path_to_error::deserialize::<_, Description>(entry);
    let described = described.map_err(|error| {
        let expected =
            "a replica such as {url: http://a:8000, primary: true} with fields of the right types";
        wrong(
            &error.path().to_string(),
            expected,
            &error.inner().to_string(),
        )
    })?;
    let Description {
        url: given,
        name,
        primary,
        weight,
    } = described;
    let expected = "an http:// or https:// address without user, password and query";
    let url = Url::parse(&given).ok().filter(is_address);
    // An address with a password is not shown.
    let shown = if given.contains('@') {
        "an address with a user".to_owned()
    } else {
        format!("{given:?}")
    };
    let url = url.ok_or_else(|| wrong("url", expected, &shown))?;
    if before.iter().any(|other| other.url == url) {
        return Err(wrong("url", "another one than those before", &shown));
    }
    if primary && before.iter().any(|other| other.primary) {
        return Err(wrong(
            "primary",
            "true for one replica only",
            "a second primary",
        ));
    }
    let weight = weight.unwrap_or(1.0);
    if !(weight.is_finite() && weight > 0.0) {
        return Err(wrong("weight", "a number above 0", &weight.to_string()));
    }
    Ok(ReplicaEndpoint {
        url,
        name: name.filter(|name| !name.is_empty()),
        primary,
        weight,
    })
}

fn wrong(field: &str, expected: &str, given: &str, origin: &Origin) -> SettingError {
    SettingError::Value {
        key: format!("{}{field}", REPLICAS.spec.path),
        expected: expected.to_owned(),
        given: given.to_owned(),
        origin: origin.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_loopback() {
        for (url, expected) in [
            ("http://127.0.0.1:8000", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:8000", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://LOCALHOST:8000", true),
            ("http://a.localhost.", true),
            ("http://10.0.0.1", false),
            ("http://0.0.0.0", false),
            ("http://[fe80::1]", false),
            ("http://127.0.0.1.example", false),
            ("http://notlocalhost", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
