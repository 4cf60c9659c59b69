//! The supervisor: worker processes, client sessions, their continuation states, and the HTTP server.
//!
//! Connections come in through `ingress`. `http` calls `session`; `session` calls `pool`, `store` and `prompt`; those three
//! do not depend on each other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fastvideo_link::FolderError;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::current::Current;
use crate::discovery::{Announcement, Description};
use crate::http::Reloading;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::process_metrics::RuntimeLag;
use crate::prompt::Prompts;
use crate::service_manager::ServiceManager;
use crate::session::{Broadcasts, Context, Drain, Logs, SessionMetrics};
use crate::signals::{Hangups, StopSignals};
use crate::sockets::{ListenError, PassedSockets, listen};
use crate::store::{SessionStore, Upkeep};
use crate::tasks::BackgroundTasks;
use crate::tls::metrics::TlsGauges;
use crate::traces::Traces;
use crate::turns::Turns;
use crate::video::Videos;

pub use crate::process_metrics::LogLines;
pub use crate::reload::{Commit, Layers, LogControl, Source};
pub use crate::tasks::TaskError;
pub use fastvideo_link::LinkFolder;

pub mod auth;
pub mod backoff;
mod byte_budget;
pub mod causes;
mod client_address;
pub mod config;
mod current;
mod dialect;
mod discovery;
pub mod engines;
mod file_stamp;
pub mod http;
pub mod ingress;
mod init_image;
mod metrics;
mod page;
pub mod pool;
pub mod probe;
mod process_metrics;
pub mod prompt;
pub mod redis;
mod reload;
pub mod router;
mod segment_run;
pub mod service_manager;
pub mod session;
pub mod settings;
mod signals;
#[cfg(test)]
mod small_disk;
pub mod sockets;
pub mod store;
mod tasks;
pub mod tenant;
pub mod thread_priority;
pub mod tls;
pub mod traces;
pub mod turns;
pub mod video;

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub http: http::Config,
    pub pool: pool::Config,
    pub session: session::Config,
    pub video: video::Config,
    pub store: store::open::Config,
    pub prompt: prompt::Config,
    /// The configuration of the session log; without it no log is kept.
    pub session_log: Option<session::log::Config>,
    /// Where traces go; without it there are none.
    pub traces: Option<traces::Config>,
    /// How long running segments may go on after the first SIGTERM.
    pub grace: Duration,
}

/// What the process has from whoever started it, and what its parts outside this library do.
#[derive(Debug)]
pub struct Launch {
    /// Sockets to listen on.
    pub sockets: PassedSockets,
    pub service: ServiceManager,
    /// The loops that have to turn; those of this library are added.
    pub turns: Turns,
    /// Where the lines of the log are counted.
    pub log_lines: LogLines,
    /// Where the configuration comes from, to be read again.
    pub source: Source,
}

/// Where clients can connect.
#[derive(Clone, Copy, Debug)]
pub struct Listening {
    pub address: SocketAddr,
    pub is_encrypted: bool,
    /// The address for operators, where they have one of their own.
    pub admin: Option<SocketAddr>,
}

/// Time limit on closing the connections after the grace period, and on each later step of an orderly shutdown.
const FAREWELL: Duration = Duration::from_secs(5);
/// The same limit for a shutdown that was cut short.
const HURRIED_FAREWELL: Duration = Duration::from_millis(500);

/// Time limit on the answers that are being written when everything else has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// The limit on open files that is assumed when the system does not tell it.
const USUAL_FILE_LIMIT: u64 = 1024;
/// Number of files that the server keeps for its store, its logs, its libraries and what it asks others over HTTP.
const OWN_FILES: usize = 64;
/// Number of files that a worker and its standby take, while they start too.
const FILES_PER_GPU: usize = 16;
/// Number of files that a connection may come to: its socket, and its session's state and log.
const FILES_PER_CONNECTION: usize = 3;
/// The number of connections that are accepted however few files there are.
const MIN_CONNECTIONS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Links(#[from] FolderError),
    #[error("cannot open the store of sessions")]
    Store(#[from] store::open::OpenError),
    #[error("cannot read the system prompts")]
    Prompts(#[from] prompt::InstructionsError),
    #[error("`streaming.safety.required` is true, but the safety filter is unavailable")]
    Safety(#[from] prompt::safety::Unavailable),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Traces(#[from] traces::OpenError),
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    #[error("cannot check the certificates of servers")]
    Authorities(#[source] tls::AuthoritiesError),
    #[error("cannot ask servers over HTTP")]
    Client(#[source] io::Error),
    #[error("cannot use the Redis that routers and servers share")]
    Redis(#[source] ::redis::RedisError),
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Serves until SIGTERM, SIGINT or an operator's order to drain, then drains: tells sessions, lets running segments
/// finish within the grace period, asks workers to leave. A second signal ends everything at once, and so does a
/// background task that panics. SIGHUP reads the configuration again. `on_listening` is called once clients can
/// connect.
///
/// Must run on a runtime thread that lives until the end: workers die with the thread that started them.
///
/// # Errors
/// Returns an error when the store cannot be opened, a classifier that is required cannot be loaded, the port cannot be
/// bound, or a background task panics or ends. No worker is left behind.
pub async fn serve(
    config: Config,
    launch: Launch,
    on_listening: impl FnOnce(Listening),
) -> Result<(), ServeError> {
    let mut signals = StopSignals::install().map_err(ServeError::Signals)?;
    let server = tokio::select! {
        started = Server::start(config, launch, on_listening) => started?,
        // It may wait for the store.
        () = signals.next() => return Ok(()),
    };
    server.run_to_the_end(&mut signals).await
}

/// A running server, with everything that has to be ended in order.
struct Server {
    grace: Current<Duration>,
    pool: Pool,
    videos: Videos,
    store: SessionStore,
    logs: Logs,
    traces: Traces,
    /// Tracks writes to the store, which may outlive their session.
    writes: TaskTracker,
    /// Tracks the WebSocket connections.
    connections: TaskTracker,
    /// Tracks the HTTP connections.
    requests: TaskTracker,
    /// Cancelled to end the HTTP connections, each with the request that it carries.
    requests_end: CancellationToken,
    /// Tells sessions that the server is going away.
    drain: watch::Sender<Drain>,
    /// Notified when an operator asks the server to drain.
    drain_asked: Arc<Notify>,
    tasks: BackgroundTasks,
    /// What routers find the server by.
    announcement: Option<Arc<Announcement>>,
    service: ServiceManager,
    /// Keeps the service manager informed until the end, when the other tasks have ended.
    _informing: JoinSet<()>,
    /// Dropped last: workers connect through it, and initial images lie in it.
    _links: LinkFolder,
}

/// Why a server ends without waiting for its sessions.
#[derive(Debug)]
enum CutShort {
    SecondSignal,
    TaskFailed(TaskError),
}

impl Server {
    /// Opens everything, and starts the workers and the background tasks.
    async fn start(
        config: Config,
        launch: Launch,
        on_listening: impl FnOnce(Listening),
    ) -> Result<Self, ServeError> {
        let Launch {
            sockets,
            service,
            turns,
            log_lines,
            source,
        } = launch;
        let hangups = Hangups::install().map_err(ServeError::Signals)?;
        let files = raise_file_limit();
        start_blocking_thread().await;
        let links = LinkFolder::prepare()?;
        links.take_effect();
        let prompts = Prompts::open(config.prompt)?;
        if let Some(safety) = prompts.safety() {
            safety.load_if_required().await?;
        }
        let announcement = announcement(&config.http, &config.store)?;
        service.starting(config.store.wait);
        let store = SessionStore::open(config.store).await?;
        let traces = Traces::open(config.traces).await?;
        let (listener, address) = listen(sockets.http, &config.http.host, config.http.port).await?;
        let admin = &config.http.admin;
        let admin = match (sockets.admin, admin.port) {
            (None, None) => None,
            (passed, port) => Some(listen(passed, &admin.host, port.unwrap_or_default()).await?),
        };
        let (admin, admin_address) = admin.unzip();
        let tls = config.http.ingress.tls.clone();
        on_listening(Listening {
            address,
            is_encrypted: tls.is_some(),
            admin: admin_address,
        });

        let (drain, drain_seen) = watch::channel(Drain::No);
        let logs = Logs::open(config.session_log);
        let most_connections = most_connections(files, config.pool.gpus.len());
        let mut metrics = Metrics::default();
        metrics.register_build(Some(&config.pool.engine.name));
        process_metrics::register(&mut metrics);
        log_lines.register(&mut metrics);
        logs.register(metrics.product());
        let runtime_lag = RuntimeLag::register(&mut metrics);
        let encoder = config.pool.encoder.clone();
        let pool = Pool::start(config.pool, &turns);
        pool.register_metrics(metrics.product());
        store.register_metrics(metrics.product());
        prompts.register_metrics(metrics.product());
        traces.register(metrics.product());
        let certificate = Box::new(TlsGauges(tls.clone()));
        metrics.product().register_collector(certificate);
        let writes = TaskTracker::new();
        let grace = Current::new(config.grace);
        let videos = Videos::new(video::Parts {
            config: Current::new(config.video),
            encoder,
            pool: pool.clone(),
            prompts: prompts.clone(),
            store: store.clone(),
            drain: drain_seen.clone(),
            logs: logs.clone(),
            writes: writes.clone(),
        });
        videos.register_metrics(metrics.product());
        let app = http::App::new(
            config.http,
            (address.ip(), admin_address.map(|admin| admin.ip())),
            most_connections,
            Context {
                broadcasts: Broadcasts::new(config.session.limits.spectators),
                config: Current::new(config.session),
                pool: pool.clone(),
                prompts: prompts.clone(),
                store: store.clone(),
                drain: drain_seen,
                logs: logs.clone(),
                metrics: SessionMetrics::default(),
                traces: traces.clone(),
                writes: writes.clone(),
            },
            videos.clone(),
            metrics,
            Reloading {
                source,
                service: service.clone(),
                grace: grace.clone(),
            },
        );
        let connections = app.ingress.connections.clone();
        let requests = app.ingress.requests.clone();
        let requests_end = app.ingress.stopping.clone();
        let drain_asked = app.drain_asked.clone();

        let reloads = app.reloads.clone();
        let mut tasks = BackgroundTasks::default();
        let upkeep = Upkeep::new(store.clone());
        tasks.spawn("store upkeep", async {
            upkeep.run().await;
            Ok(())
        });
        let jobs = videos.clone();
        tasks.spawn("video jobs", async {
            jobs.run().await;
            Ok(())
        });
        let ends = videos.clone();
        tasks.spawn("webhook of video jobs", async {
            ends.tell_of_ends().await;
            Ok(())
        });
        tasks.spawn("reload", async {
            hangups.reload(reloads).await;
            Ok(())
        });
        tasks.spawn("runtime lag", runtime_lag.run());
        if let Some(tls) = tls {
            tasks.spawn("certificate", async {
                tls.watch().await;
                Ok(())
            });
        }
        let watched = pool.clone();
        tasks.spawn("worker pool", async move {
            watched.failed().await;
            Err(io::Error::other(
                "a panic has left the assignments of sessions to workers inconsistent",
            ))
        });
        let status = app.clone();
        tasks.spawn(
            "HTTP server",
            http::serve(listener, admin, app, turns.clone()),
        );
        service.ready();
        let mut informing = JoinSet::new();
        let status = move || http::readiness(&status).to_string();
        informing.spawn(service.clone().keep_informed(turns, status));
        if let Some(announcement) = announcement.clone() {
            tasks.spawn("announcement", async move {
                announcement.run().await;
                Ok(())
            });
        }
        Ok(Self {
            announcement,
            grace,
            pool,
            videos,
            store,
            logs,
            traces,
            writes,
            connections,
            requests,
            requests_end,
            drain,
            drain_asked,
            tasks,
            service,
            _informing: informing,
            _links: links,
        })
    }

    /// Serves, drains and stops. Everything has ended when this returns.
    async fn run_to_the_end(mut self, signals: &mut StopSignals) -> Result<(), ServeError> {
        let ended = match self.run(signals).await {
            Ok(()) => self.drain(signals).await,
            Err(cut) => Err(cut),
        };
        match ended {
            Ok(()) => {
                self.stop(FAREWELL, signals).await;
                Ok(())
            }
            Err(cut) => {
                self.cut_short(&cut).await;
                self.stop(HURRIED_FAREWELL, signals).await;
                match cut {
                    CutShort::SecondSignal => Ok(()),
                    CutShort::TaskFailed(error) => Err(error.into()),
                }
            }
        }
    }

    /// Waits until the server is asked to stop.
    async fn run(&mut self, signals: &mut StopSignals) -> Result<(), CutShort> {
        tokio::select! {
            () = signals.next() => Ok(()),
            () = self.drain_asked.notified() => Ok(()),
            error = self.tasks.failed() => Err(CutShort::TaskFailed(error)),
        }
    }

    /// Tells sessions and video jobs that the server goes away, lets running segments finish within the grace period, and
    /// waits until the connections are closed and no job runs.
    async fn drain(&mut self, signals: &mut StopSignals) -> Result<(), CutShort> {
        let grace = *self.grace.get();
        tracing::info!(grace_s = grace.as_secs(), "draining");
        self.service.stopping();
        let deadline = Instant::now() + grace;
        self.drain.send_replace(Drain::Until(deadline));
        self.connections.close();
        let idle = async { tokio::join!(self.connections.wait(), self.videos.drained()) };
        tokio::select! {
            _ = timeout_at(deadline + FAREWELL, idle) => Ok(()),
            () = signals.next() => Err(CutShort::SecondSignal),
            error = self.tasks.failed() => Err(CutShort::TaskFailed(error)),
        }
    }

    /// Ends all sessions and kills all workers at once.
    async fn cut_short(&mut self, cut: &CutShort) {
        match cut {
            CutShort::SecondSignal => tracing::warn!("second signal: stopping at once"),
            CutShort::TaskFailed(_) => tracing::error!("background task failed: stopping at once"),
        }
        self.service.stopping();
        self.drain.send_replace(Drain::Until(Instant::now()));
        self.connections.close();
        self.pool.stop_now();
        let idle = async { tokio::join!(self.connections.wait(), self.videos.drained()) };
        let _ = timeout(HURRIED_FAREWELL, idle).await;
    }

    /// Asks the workers to leave, then finishes all pending writes and ends the rest. Session states, the store's
    /// cleanup and the session logs each have `patience` to be written. A signal kills the workers.
    async fn stop(self, patience: Duration, signals: &mut StopSignals) {
        tokio::select! {
            () = self.pool.stop() => {}
            () = signals.next() => {
                self.pool.stop_now();
                self.pool.stop().await;
            }
        }
        self.writes.close();
        if timeout(patience, self.writes.wait()).await.is_err() {
            tracing::warn!("not all states could be stored");
        }
        self.tasks.stop().await;
        if let Some(announcement) = &self.announcement {
            let _ = timeout(patience, announcement.end()).await;
        }
        self.requests_end.cancel();
        self.requests.close();
        let _ = timeout(patience.min(LAST_ANSWERS), self.requests.wait()).await;
        self.store.close(patience).await;
        self.logs.close(patience).await;
        self.traces.close().await;
        tracing::info!("stopped");
    }
}

/// Returns what is announced to routers, if anything is.
fn announcement(
    http: &http::Config,
    store: &store::open::Config,
) -> Result<Option<Arc<Announcement>>, ServeError> {
    let Some(url) = http.advertise_url.clone() else {
        return Ok(None);
    };
    let Some(address) = store.location.redis() else {
        tracing::warn!("`server.advertise_url` has no effect: the sessions are in no Redis");
        return Ok(None);
    };
    let description = Description {
        url,
        name: http.names.name.clone(),
        zone: http.names.zone.clone(),
    };
    let announcement = Announcement::new(address.clone(), description);
    let announcement = announcement.map_err(ServeError::Redis)?;
    Ok(Some(Arc::new(announcement)))
}

/// Raises the soft limit on open files, and returns it: each session needs a socket and each state a file descriptor, so
/// the usual limit of 1024 is soon reached.
fn raise_file_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "limit of open files left as it is");
    }
    let limit = getrlimit(Resource::RLIMIT_NOFILE);
    limit.map_or(USUAL_FILE_LIMIT, |(soft, _)| soft)
}

/// Starts a thread for blocking work. tokio panics when it has none and the system has no thread left; as long as there
/// is one, work waits for it.
async fn start_blocking_thread() {
    let started = tokio::task::spawn_blocking(|| ()).await;
    started.expect("nothing cannot panic");
}

/// Returns the number of connections that leaves enough of the open files for everything else: the workers, and for each
/// session its state, the next one, and its log.
fn most_connections(files: u64, gpus: usize) -> usize {
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let own = OWN_FILES.saturating_add(FILES_PER_GPU.saturating_mul(gpus));
    let left = files.saturating_sub(own);
    (left / FILES_PER_CONNECTION).max(MIN_CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::job::VideoFormat;
    use fastvideo_proto::link::{EncoderSpec, EngineSpec};

    use super::*;
    use crate::engines::Shapes;
    use crate::store::open::StoreLocation;
    use crate::store::records::ledger::Limits;

    const SECOND: Duration = Duration::from_secs(1);

    /// A server without workers that listens nowhere.
    async fn server() -> (Server, watch::Receiver<Drain>) {
        let pool = pool::Config {
            worker_bin: "/nowhere".into(),
            gpus: Vec::new(),
            engine: EngineSpec {
                name: "synthetic".to_owned(),
                options: "{}".to_owned(),
            },
            adapters: Vec::new(),
            adapters_folder: None,
            previews: false,
            format: VideoFormat {
                width: 64,
                height: 64,
                num_frames: 8,
                fps: 24,
            },
            new_frames: 8,
            shapes: Shapes::ANY,
            refine_steps: 0,
            model_name: String::new(),
            encoder: EncoderSpec::default(),
            warmup: None,
            warmup_is_typical: false,
            sessions_per_gpu: 1,
            keep_up: false,
            reserved_gpus: 0,
            yield_pause: Duration::ZERO,
            recycle: pool::Recycle::default(),
            boot_timeout: SECOND,
            connect_timeout: SECOND,
            heartbeat_interval: SECOND,
            heartbeat_timeout: SECOND,
            min_step_timeout: SECOND,
            min_backoff: SECOND,
            max_backoff: SECOND,
            snapshot_min_step: None,
            quarantine_after: 1,
            quarantine_lift: SECOND,
            quarantine_trial: SECOND,
            realtime: false,
        };
        let store = store::open::Config {
            location: StoreLocation::memory(Limits {
                max_sessions: 1,
                max_bytes: 1 << 20,
                max_media_bytes: 1 << 40,
            }),
            wait: Duration::ZERO,
            sessions: store::handle::Config {
                resume_ttl: SECOND,
                lease: SECOND,
                timeout: SECOND,
                required_for_readiness: false,
                recording: None,
            },
        };
        let (drain, drain_seen) = watch::channel(Drain::No);
        let pool = Pool::start(pool, &Turns::new(None));
        let store = SessionStore::open(store).await.unwrap();
        let writes = TaskTracker::new();
        let server = Server {
            grace: Current::new(60 * SECOND),
            videos: video::testing::videos(&pool, &store, &drain_seen, &writes),
            pool,
            store,
            logs: Logs::open(None),
            traces: Traces::default(),
            writes,
            connections: TaskTracker::new(),
            requests: TaskTracker::new(),
            requests_end: CancellationToken::new(),
            drain,
            drain_asked: Arc::default(),
            tasks: BackgroundTasks::default(),
            announcement: None,
            service: ServiceManager::default(),
            _informing: JoinSet::new(),
            _links: LinkFolder::prepare().unwrap(),
        };
        (server, drain_seen)
    }

    #[tokio::test(start_paused = true)]
    async fn a_background_task_that_panics_ends_the_server_with_an_error() {
        let (mut server, mut drain) = server().await;
        server.tasks.spawn("doomed", async {
            tokio::time::sleep(60 * SECOND).await;
            panic!("nobody looks after the store");
        });
        let connection = server.connections.token();
        let client = async {
            drain.changed().await.unwrap();
            drop(connection);
        };
        let mut signals = StopSignals::install().unwrap();
        let (ended, ()) = tokio::join!(server.run_to_the_end(&mut signals), client);
        assert_eq!(
            ended.unwrap_err().to_string(),
            "background task `doomed` panicked: nobody looks after the store"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_background_task_that_panics_during_the_drain_cuts_it_short() {
        let (mut server, _drain) = server().await;
        server.drain_asked.notify_one();
        let _connection = server.connections.token();
        server.tasks.spawn("doomed", async {
            tokio::time::sleep(SECOND).await;
            panic!("too late");
        });
        let begun = Instant::now();
        let mut signals = StopSignals::install().unwrap();
        let ended = server.run_to_the_end(&mut signals).await;
        assert!(matches!(
            ended,
            Err(ServeError::Task(TaskError::Panicked { .. }))
        ));
        assert!(begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
    }

    #[test]
    fn connections_leave_files_for_workers_and_states() {
        let check = |files, gpus, connections| {
            assert_eq!(most_connections(files, gpus), connections, "{files} files");
        };
        check(256, 2, 53);
        check(1024, 8, 277);
        check(1 << 20, 8, 349_461);
        check(100, 8, 16);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_drains_ends_well() {
        let (server, _drain) = server().await;
        server.drain_asked.notify_one();
        let mut signals = StopSignals::install().unwrap();
        assert!(server.run_to_the_end(&mut signals).await.is_ok());
    }
}
