//! The keys of `server`, except those of the log and of `server.limits`, and the `Config` of the HTTP server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::fleet::{Names, RouterKeys};
use super::{Admin, Config, dreamverse, site};
use crate::causes::with_causes;
use crate::discovery::is_address;
use crate::session::config::SERVER_NAME;
use crate::settings::{HOUR, Key, KeySpec, Reader, Reload};
use crate::{auth, ingress, pool, sockets, tls};

/// The keys of `server`, except those of the log.
pub static KEYS: &[&KeySpec] = &[
    &HOST.spec,
    &PORT.spec,
    &ADMIN_HOST.spec,
    &ADMIN_PORT.spec,
    &ingress::config::ALLOWED_HOSTS.spec,
    &ingress::config::ALLOWED_ORIGINS.spec,
    &ingress::config::TRUSTED_PROXIES.spec,
    &UI_DIR.spec,
    &SERVICE_NAME.spec,
    &SERVER_NAME.spec,
    &ZONE.spec,
    &ADVERTISE_URL.spec,
    &ROUTER_KEYS_FILE.spec,
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

static ADMIN_HOST: Key<String> = Key::text("server.admin_host")
    .help("Address to listen on for operators, where server.admin_port is given")
    .default("127.0.0.1");

static ADMIN_PORT: Key<Option<u16>> = Key::u16("server.admin_port", 0, 65_535).help("Port for operators, 0 for any free one: orders, /status and all else but sessions, films and the page, which then are all that server.port answers besides probes [default: none: operators use server.port]");

static UI_DIR: Key<Option<String>> = Key::text("server.ui_dir")
    .short("ui-dir")
    .help("Folder of a site, such as FastVideo's exported web UI, that is served at `/`; it needs an index.html [default: none: the built-in page is at `/`, as it always is at /operator/]");

static SERVICE_NAME: Key<String> = Key::text("server.service_name")
    .help("The `service` that /healthz and /readyz name; the default is what FastVideo's server answers")
    .default("ltx2-streaming-backend");

static ZONE: Key<Option<String>> = Key::text("server.zone")
    .help("Where this server is; routers prefer servers of their own zone [default: none]");

static ADVERTISE_URL: Key<Option<String>> = Key::text("server.advertise_url").help("Where routers reach this server, which it tells them through the Redis of its sessions (`router.discovery: store`) [default: it tells nobody]");

pub(super) static ROUTER_KEYS_FILE: Key<Option<String>> = Key::text("server.router_keys_file")
    .reload(Reload::AtOnce)
    .help("File with the keys of routers, one in each line, each of at least 32 characters and all of them valid, or `sha256:` and the hash of one; read again at SIGHUP [default: no router may ask for more than clients may]");

/// The grace period of the server's shutdown.
pub static GRACE: Key<Duration> = Key::seconds("server.grace_seconds", 0.0, HOUR)
    .short("grace-seconds")
    .reload(Reload::AtOnce)
    .help("Time that running segments have to finish after the first SIGTERM")
    .default(30.0);

pub(crate) fn read(reader: &mut Reader<'_>) -> Config {
    reader.refuse_blank(&HOST, "an address or a host name");
    reader.refuse_blank(&SERVICE_NAME, "a name");
    reader.refuse_blank(&ADMIN_HOST, "an address or a host name");
    let admin = Admin {
        host: reader.get(&ADMIN_HOST),
        port: reader.get(&ADMIN_PORT),
    };
    let auth = auth::config::read(reader);
    let has_admin = admin.port.is_some() || sockets::has_admin(reader.surroundings());
    Config {
        host: reader.get(&HOST),
        port: reader.get(&PORT),
        admin,
        ui_dir: ui_dir(reader),
        service_name: reader.get(&SERVICE_NAME),
        dreamverse: dreamverse::config::read(reader, &auth),
        auth,
        router_keys: router_keys(reader),
        names: Names {
            name: reader.non_empty(&SERVER_NAME),
            zone: reader.non_empty(&ZONE),
        },
        advertise_url: advertise_url(reader),
        ingress: ingress::Config {
            tls: tls::config::read(reader, has_admin),
            ..ingress::config::read(reader)
        },
    }
}

fn ui_dir(reader: &mut Reader<'_>) -> Option<PathBuf> {
    let folder = PathBuf::from(reader.non_empty(&UI_DIR)?);
    if let Err(error) = site::check(&folder) {
        let expected = format!("a folder with an index.html ({error})");
        reader.refuse(&UI_DIR.spec, expected);
    }
    Some(folder)
}

fn advertise_url(reader: &mut Reader<'_>) -> Option<Url> {
    let text = reader.non_empty(&ADVERTISE_URL)?;
    let url = Url::parse(&text).ok().filter(is_address);
    if url.is_none() {
        let expected = "an http:// or https:// address without user, password and query";
        reader.refuse(&ADVERTISE_URL.spec, expected);
    }
    url
}

fn router_keys(reader: &mut Reader<'_>) -> Option<RouterKeys> {
    let path = reader.non_empty(&ROUTER_KEYS_FILE)?;
    match RouterKeys::read(Path::new(&path)) {
        Ok(keys) => Some(keys),
        Err(error) => {
            let expected = format!("a file of keys ({})", with_causes(&error));
            reader.refuse(&ROUTER_KEYS_FILE.spec, expected);
            None
        }
    }
}
