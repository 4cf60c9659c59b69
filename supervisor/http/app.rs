//! The state that all requests share.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, State};
use tokio::sync::Notify;
use url::Url;

use super::dreamverse::{self, PresetsFile};
use super::fleet::{Fleet, Names, RouterKeys};
use super::parts::ServerParts;
use super::site::Site;
use crate::auth::guard::Guard;
use crate::auth::{self, Auth, Caller};
use crate::current::Current;
use crate::ingress::hosts::Hosts;
use crate::ingress::metrics::{HttpMetrics, Scrapes};
use crate::ingress::{self, Ingress};
use crate::metrics::Metrics;
use crate::reload::{Reloads, Source};
use crate::service_manager::ServiceManager;
use crate::session::{self, Context, Registry, RelayLatency};
use crate::store::SessionStore;
use crate::video::Videos;

/// Where the server listens, whom it answers, and its limits on connections.
#[derive(Clone, Debug)]
pub struct Config {
    pub host: String,
    /// The TCP port; 0 takes any free one.
    pub port: u16,
    /// Where operators reach the server, if not at the same address as everybody.
    pub admin: Admin,
    /// The folder of the site that has the place of the built-in page, if there is one.
    pub ui_dir: Option<PathBuf>,
    /// The name of the service in the answers of the health probes.
    pub service_name: String,
    pub auth: auth::Config,
    /// The keys of routers; `None` where none may connect.
    pub router_keys: Option<RouterKeys>,
    /// What routers call the server.
    pub names: Names,
    /// Where routers reach the server, if it is to tell them.
    pub advertise_url: Option<Url>,
    pub ingress: ingress::Config,
    /// What is said of FastVideo's web UI.
    pub dreamverse: dreamverse::Config,
}

/// The address of operators.
#[derive(Clone, Debug)]
pub struct Admin {
    pub host: String,
    /// 0 takes any free port. `None` where operators use the address of everybody.
    pub port: Option<u16>,
}

/// What a reload needs besides the parts of the server.
#[derive(Debug)]
pub(crate) struct Reloading {
    pub(crate) source: Source,
    pub(crate) service: ServiceManager,
    pub(crate) grace: Current<Duration>,
}

/// The state that all requests share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App {
    pub(crate) ingress: Ingress,
    /// The names by which operators may address the server, where it has a listener for them.
    pub(super) admin_hosts: Option<Hosts>,
    pub(crate) auth: Auth,
    pub(super) site: Option<Site>,
    pub(super) service_name: Arc<str>,
    pub(crate) fleet: Fleet,
    pub(crate) reloads: Reloads,
    pub(super) dreamverse: Current<dreamverse::Config>,
    pub(super) presets_file: PresetsFile,
    pub(super) context: Context,
    pub(super) videos: Videos,
    pub(super) registry: Registry,
    pub(super) relay_latency: RelayLatency,
    pub(super) http_metrics: HttpMetrics,
    pub(super) scrapes: Scrapes,
    /// Notified when an operator asks the server to drain.
    pub(crate) drain_asked: Arc<Notify>,
}

/// The extractor of the state that all requests share.
pub(super) type AppState = State<App>;

impl App {
    /// Creates the state of a server that listens on `address`, and on `admin` for operators, and has open files for
    /// `most_connections`. Registers its metrics, and those of sessions, beside those that `metrics` has.
    pub(crate) fn new(
        config: Config,
        (address, admin): (IpAddr, Option<IpAddr>),
        most_connections: usize,
        context: Context,
        videos: Videos,
        mut metrics: Metrics,
        reloading: Reloading,
    ) -> Self {
        let allowed = config.ingress.allowed_hosts.clone();
        let admin_hosts = admin.map(|admin| Hosts::new(allowed, &config.admin.host, admin));
        let auth = Auth::new(config.auth);
        auth.warn_if_open(address);
        let ingress = config.ingress.asking_for_keys(auth.asks());
        let registry = Registry::default();
        let relay_latency = RelayLatency::default();
        relay_latency.register(metrics.product());
        (context.metrics).register(metrics.product(), auth.tenants());
        session::gauges::register(metrics.product(), &registry, &context.metrics);
        auth.register(metrics.product());
        let http_metrics = HttpMetrics::register(&mut metrics);
        let fleet = Fleet::new(config.router_keys, config.names);
        let ingress = Ingress::new(ingress, &config.host, address, most_connections);
        let dreamverse = Current::new(config.dreamverse);
        let parts = ServerParts {
            auth: auth.clone(),
            fleet: fleet.clone(),
            ingress: ingress.clone(),
            admin_hosts: admin_hosts.clone(),
            dreamverse: dreamverse.clone(),
            context: context.clone(),
            videos: videos.clone(),
            grace: reloading.grace,
        };
        let reloads = Reloads::new(reloading.source, Box::new(parts), reloading.service);
        reloads.register(metrics.product());
        Self {
            admin_hosts,
            ingress,
            auth,
            site: config.ui_dir.map(Site::new),
            service_name: config.service_name.into(),
            fleet,
            reloads,
            dreamverse,
            presets_file: PresetsFile::default(),
            context,
            videos,
            registry,
            relay_latency,
            http_metrics,
            scrapes: Scrapes::new(metrics),
            drain_asked: Arc::default(),
        }
    }

    /// Returns the store as a caller sees it.
    pub(super) fn store_of(&self, caller: &Caller) -> SessionStore {
        let store = &self.context.store;
        store.seen_by(caller.scope(), caller.own_tenant())
    }

    /// Returns the guard before all routes.
    pub(super) fn guard(&self) -> Guard {
        let fleet = self.fleet.clone();
        Guard {
            auth: self.auth.clone(),
            ingress: self.ingress.clone(),
            is_router_key: Arc::new(move |given| fleet.is_router_key(given)),
        }
    }
}

impl FromRef<App> for Auth {
    fn from_ref(app: &App) -> Self {
        app.auth.clone()
    }
}

impl FromRef<App> for Ingress {
    fn from_ref(app: &App) -> Self {
        app.ingress.clone()
    }
}

impl FromRef<App> for Reloads {
    fn from_ref(app: &App) -> Self {
        app.reloads.clone()
    }
}
