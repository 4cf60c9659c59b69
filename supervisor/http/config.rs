//! The keys of `server`, except those of the log and of `server.limits`, and the `Config` of the HTTP server.

use std::time::Duration;

use super::Config;
use crate::settings::{HOUR, Key, KeySpec, Reader};
use crate::{ingress, pool};

/// The keys of `server`, except those of the log.
pub static KEYS: &[&KeySpec] = &[
    &HOST.spec,
    &PORT.spec,
    &ingress::config::ALLOWED_HOSTS.spec,
    &ingress::config::ALLOWED_ORIGINS.spec,
    &SERVICE_NAME.spec,
    &GRACE.spec,
    &pool::config::REALTIME.spec,
];

static HOST: Key<String> = Key::text("server.host")
    .short("host")
    .help("Address to listen on")
    .default("0.0.0.0");

static PORT: Key<u16> = Key::u16("server.port", 0, 65_535)
    .short("port")
    .help("Port to listen on, 0 for any free one")
    .default(8000);

static SERVICE_NAME: Key<String> = Key::text("server.service_name")
    .help("The `service` that /healthz and /readyz name; the default is what FastVideo's server answers")
    .default("ltx2-streaming-backend");

/// The grace period of the server's shutdown.
pub static GRACE: Key<Duration> = Key::seconds("server.grace_seconds", 0.0, HOUR)
    .short("grace-seconds")
    .help("Time that running segments have to finish after the first SIGTERM")
    .default(30.0);

pub(crate) fn read(reader: &mut Reader<'_>) -> Config {
    reader.refuse_blank(&HOST, "an address or a host name");
    reader.refuse_blank(&SERVICE_NAME, "a name");
    Config {
        host: reader.get(&HOST),
        port: reader.get(&PORT),
        service_name: reader.get(&SERVICE_NAME),
        ingress: ingress::config::read(reader),
    }
}
