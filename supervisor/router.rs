//! The router: one address before many servers.
//!
//! `registry` holds the servers, which `health_check` probes and which report over `control` how they are; `health` is what
//! the probes have said, and `choose` says which of the servers takes a session.
//!
//! `app` is the state that all requests share, and `routes` has all routes. `stream` takes a client, a `visitor`: `session`
//! carries its session over links, and `bridge` over one `server_socket` to a server without links. `watch` carries
//! spectators, and `messages` has what both are told by the router itself. `status` answers probes, `proxy` passes requests
//! on to servers: `film` and `videos` those of clients, in the order of `makers` where a video is to be made and with what `known_videos` remembers, `sessions` and
//! `servers` those of operators; `openapi` describes all routes. `tracer` makes a span of
//! each session.
//!
//! `line` is where sessions wait; several routers have one line through a Redis. A router keeps nothing that is missed when
//! it ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::fleet::{FLEET_VERSION, Hello};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::auth::Auth;
use crate::discovery::{Description, Directory};
use crate::ingress::metrics::{HttpMetrics, Scrapes};
use crate::ingress::tls::Side;
use crate::ingress::{Ingress, listener};
use crate::metrics::Metrics;
use crate::process_metrics::{self, RuntimeLag};
use crate::redis::BEAT;
use crate::reload::Reloads;
use crate::signals::{Hangups, StopSignals};
use crate::sockets::listen;
use crate::tasks::BackgroundTasks;
use crate::tls::metrics::TlsGauges;
use crate::traces::Traces;
use crate::{Launch, Listening, ServeError, most_connections, raise_file_limit};

pub use config::{Config, HealthCheck};

use app::App;
use carried::Carried;
use config::{ReplicaEndpoint, RouterKey};
use control::Identity;
use health_check::{HttpClient, run_health_check_loop};
use known_videos::KnownVideos;
use line::Line;
use line::shared::SharedLine;
use metrics::{FleetGauges, MoveMetrics};
use parts::RouterParts;
use proxy::Proxy;
use registry::ReplicaRegistry;

mod app;
mod bridge;
mod carried;
mod choose;
pub mod config;
mod control;
mod demand;
mod encryption;
mod film;
pub mod health;
pub mod health_check;
mod held;
mod known_videos;
mod line;
mod makers;
mod messages;
mod metrics;
mod openapi;
mod parts;
mod proxy;
pub mod registry;
mod routes;
mod server_socket;
mod servers;
mod session;
mod sessions;
mod status;
mod stream;
mod tracer;
mod videos;
mod visitor;
mod watch;

/// Time limit on the end of all connections once the router has left them.
const FAREWELL: Duration = Duration::from_secs(5);

/// Routes sessions until SIGTERM or SIGINT. Then no further client is taken, and those that are there may stay for a
/// while; a second signal ends that. SIGHUP reads the configuration again. `on_listening` is called once clients can connect.
///
/// # Errors
/// Returns an error when a server needs TLS and there are no certificate authorities, the port cannot be bound, or a
/// background task panics.
pub async fn serve(
    config: Config,
    launch: Launch,
    on_listening: impl FnOnce(Listening),
) -> Result<(), ServeError> {
    let Launch {
        sockets,
        service,
        turns,
        log_lines,
        source,
    } = launch;
    let mut signals = StopSignals::install().map_err(ServeError::Signals)?;
    let hangups = Hangups::install().map_err(ServeError::Signals)?;
    let tls = config.tls().map_err(ServeError::Authorities)?;
    let router_key = config.key.as_ref().map(RouterKey::value);
    let proxy = Proxy::new(tls.as_deref(), router_key).map_err(ServeError::Client)?;
    let probe = HttpClient::new(tls.as_deref()).map_err(ServeError::Client)?;
    let files = raise_file_limit();
    let (listener, address) = listen(sockets.http, &config.host, config.port).await?;
    let certificate = config.ingress.tls.clone();
    let traces = Traces::open(config.traces).await?;
    on_listening(Listening {
        address,
        is_encrypted: certificate.is_some(),
        admin: None,
    });

    let thresholds = config.health_check.thresholds;
    let registry = ReplicaRegistry::new(
        config.replicas,
        thresholds,
        config.zone.clone(),
        config.key.is_some(),
    );
    // Each session has two sockets.
    let most = most_connections(files, 0);
    let auth = Auth::new(config.auth);
    auth.warn_if_open(address.ip());
    let of_connections = config.ingress.asking_for_keys(auth.asks());
    let ingress = Ingress::new(of_connections, &config.host, address.ip(), most);
    let leaving = CancellationToken::new();
    let router_id: u128 = rand::random();
    let line = Line::default();
    let directory = config.store.clone().filter(|_| config.finds_servers);
    let directory = directory.map(Directory::new).transpose();
    let directory = directory.map_err(ServeError::Redis)?;
    let shared_line = config.store.filter(|_| !config.has_own_line);
    let shared_line = shared_line.map(|it| SharedLine::new(line.clone(), it, router_id));
    let shared_line = shared_line.transpose().map_err(ServeError::Redis)?;
    let shared_line = shared_line.map(Arc::new);
    let mut metrics = Metrics::default();
    metrics.register_build(None);
    process_metrics::register(&mut metrics);
    log_lines.register(&mut metrics);
    let runtime_lag = RuntimeLag::register(&mut metrics);
    let http_metrics = HttpMetrics::register(&mut metrics);
    let moves = MoveMetrics::register(metrics.product());
    metrics.product().register_collector(Box::new(FleetGauges {
        registry: registry.clone(),
        line: line.clone(),
        headroom_gpus: config.headroom_gpus,
    }));
    let tls_gauges = Box::new(TlsGauges(certificate.clone()));
    metrics.product().register_collector(tls_gauges);
    let parts = RouterParts {
        auth: auth.clone(),
        ingress: ingress.clone(),
    };
    let reloads = Reloads::new(source, Box::new(parts), service.clone());
    reloads.register(metrics.product());
    auth.register(metrics.product());
    traces.register(metrics.product());
    let app = App {
        ingress: ingress.clone(),
        auth: auth.clone(),
        registry: registry.clone(),
        tls: tls.clone(),
        authorization: config.key.as_ref().map(RouterKey::authorization),
        line: line.clone(),
        max_waiting: config.max_waiting,
        wait_for_replica: config.wait_for_replica,
        headroom_gpus: config.headroom_gpus,
        failover_timeout: config.failover_timeout,
        proxy,
        videos: KnownVideos::default(),
        leaving: leaving.clone(),
        carried: Carried::default(),
        moves,
        traces: traces.clone(),
        reloads: reloads.clone(),
        http_metrics,
        scrapes: Scrapes::new(metrics),
    };
    let mut tasks = BackgroundTasks::default();
    tasks.spawn("runtime lag", runtime_lag.run());
    if let Some(key) = config.key {
        let identity = Identity {
            hello: Hello {
                fleet: FLEET_VERSION,
                router_id: format!("{router_id:032x}"),
                name: config.name,
                zone: config.zone,
            },
            authorization: key.authorization(),
            tls,
            dead_after: config.dead_after,
            line: line.clone(),
            registry: registry.clone(),
        };
        let links = control::keep_all(registry.clone(), identity);
        tasks.spawn("control links", async move {
            links.await;
            Ok(())
        });
    }
    if let Some(mut directory) = directory {
        // They are among those that the first clients wait for.
        look_for_servers(&mut directory, &registry).await;
        let registry = registry.clone();
        tasks.spawn("discovery", async move {
            loop {
                sleep(BEAT).await;
                look_for_servers(&mut directory, &registry).await;
            }
        });
    }
    tasks.spawn("health checks", async move {
        run_health_check_loop(registry, config.health_check, probe).await;
        Ok(())
    });
    if let Some(shared) = shared_line.clone() {
        tasks.spawn("line of all routers", async move {
            shared.run().await;
            Ok(())
        });
    }
    tasks.spawn("reload", async move {
        hangups.reload(reloads).await;
        Ok(())
    });
    if let Some(certificate) = certificate {
        tasks.spawn("certificate", async {
            certificate.watch().await;
            Ok(())
        });
    }
    let status = app.clone();
    let front = ingress.clone();
    let accepting = turns.watch("HTTP listener", async move {
        listener::run(listener, Side::Public, &front, routes::router(app)).await;
    });
    tasks.spawn("HTTP server", async move {
        accepting.await;
        Ok::<_, io::Error>(())
    });
    service.ready();
    // It is kept informed until the end.
    let mut informing = JoinSet::new();
    let status = move || status::readiness(&status).to_owned();
    informing.spawn(service.clone().keep_informed(turns, status));

    let failed = tokio::select! {
        () = signals.next() => None,
        error = tasks.failed() => Some(error),
    };
    service.stopping();
    if failed.is_none() {
        tracing::info!(linger_s = config.linger.as_secs(), "draining");
        ingress.connections.close();
        tokio::select! {
            _ = timeout(config.linger, ingress.connections.wait()) => {}
            () = signals.next() => tracing::warn!("second signal: stopping at once"),
        }
    }
    leaving.cancel();
    ingress.connections.close();
    let _ = timeout(FAREWELL, ingress.connections.wait()).await;
    tasks.stop().await;
    if let Some(shared) = shared_line {
        let _ = timeout(FAREWELL, shared.leave()).await;
    }
    ingress.stopping.cancel();
    ingress.requests.close();
    let _ = timeout(FAREWELL, ingress.requests.wait()).await;
    traces.close().await;
    tracing::info!("stopped");
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Takes note of the servers that are announced now.
async fn look_for_servers(directory: &mut Directory, registry: &ReplicaRegistry) {
    let found = directory.look().await.into_iter();
    let endpoint = |server: Description| ReplicaEndpoint::found(server.url, server.name);
    registry.set_found(found.map(endpoint).collect());
}
