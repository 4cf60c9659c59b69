//! The supervisor: worker processes, client sessions, their continuation states, and the front door.
//!
//! `http` calls `session`; `session` calls `pool`, `store` and `prompt`; those three do not know each other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::pool::Pool;
use crate::prompt::Prompts;
use crate::session::{Context, Drain, Logs};
use crate::store::{SessionStore, Upkeep};

pub mod backoff;
mod causes;
pub mod config;
pub mod engines;
pub mod http;
pub mod pool;
pub mod prompt;

pub mod session;
pub mod settings;
#[cfg(test)]
mod small_disk;
pub mod store;
pub mod thread_priority;

/// Everything that can be configured, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub http: http::Config,
    pub pool: pool::Config,
    pub session: session::Config,
    pub store: store::open::Config,
    pub prompt: prompt::Config,
    /// None: no session has a log.
    pub session_log: Option<session::log::Config>,
    /// How long running segments may go on after the first SIGTERM.
    pub grace: Duration,
}

/// After the grace period, how long connections may take to say good-bye.
const FAREWELL: Duration = Duration::from_secs(5);
const HURRIED_FAREWELL: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot open the store of sessions")]
    Store(#[from] store::open::OpenError),
    #[error("cannot read the system prompts")]
    Prompts(#[from] prompt::InstructionsError),
    #[error("`streaming.safety.required` is true, but the safety filter is unavailable")]
    Safety(#[from] prompt::safety::Unavailable),
    #[error("cannot listen on {host}:{port}")]
    Listen {
        host: String,
        port: u16,
        source: io::Error,
    },
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    #[error("the HTTP server stopped")]
    Http(#[source] io::Error),
}

/// SIGHUP reads the system prompts again. Serves until SIGTERM or SIGINT, then drains: tells sessions, lets running segments finish within the grace period,
/// asks workers to leave. A second signal ends everything at once. `on_listening` is called once clients can connect.
///
/// Must run on a runtime thread that lives until the end: workers die with the thread that started them.
///
/// # Errors
/// When the store cannot be opened, a classifier that is required cannot be loaded, the port cannot be bound or the front
/// door breaks. No worker is left behind.
pub async fn serve(
    config: Config,
    on_listening: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let mut signals = Signals::install().map_err(ServeError::Signals)?;
    let hangups = signal(SignalKind::hangup()).map_err(ServeError::Signals)?;
    raise_file_limit();
    let (host, port) = (config.http.host.clone(), config.http.port);
    let listen = |source| ServeError::Listen {
        host: host.clone(),
        port,
        source,
    };
    let prompts = Prompts::open(config.prompt)?;
    if let Some(safety) = prompts.safety() {
        safety.load_if_required().await?;
    }
    let store = SessionStore::open(config.store).await?;
    let listener = TcpListener::bind((host.as_str(), port))
        .await
        .map_err(listen)?;
    on_listening(listener.local_addr().map_err(listen)?);

    let mut upkeep = tokio::task::JoinSet::new();
    upkeep.spawn(Upkeep::new(store.clone()).run());
    upkeep.spawn(reload_on_hangup(hangups, prompts.clone()));
    let writes = TaskTracker::new();
    let (drain, drain_seen) = watch::channel(Drain::No);
    let logs = Logs::open(config.session_log);
    let pool = Pool::start(config.pool);
    let app = http::App::new(
        config.http,
        Context {
            config: Arc::new(config.session),
            pool: pool.clone(),
            prompts: prompts.clone(),
            store: store.clone(),
            drain: drain_seen,
            logs: logs.clone(),
            writes: writes.clone(),
        },
    );
    let connections = app.connections.clone();
    let drain_asked = app.drain_asked.clone();
    let mut server = tokio::task::JoinSet::new();
    server.spawn(http::serve(listener, app));

    let broken = tokio::select! {
        () = signals.next() => None,
        () = drain_asked.notified() => None,
        ended = server.join_next() => Some(ended),
    };
    if let Some(ended) = broken {
        pool.stop().await;
        logs.close(FAREWELL).await;
        return match ended {
            Some(Ok(Err(error))) => Err(ServeError::Http(error)),
            _ => Err(ServeError::Http(io::Error::other(
                "the server's task ended",
            ))),
        };
    }

    tracing::info!(grace_s = config.grace.as_secs(), "draining");
    let deadline = Instant::now() + config.grace;
    drain.send_replace(Drain::Until(deadline));
    connections.close();
    let hurried = tokio::select! {
        _ = timeout_at(deadline + FAREWELL, connections.wait()) => false,
        () = signals.next() => true,
    };
    if hurried {
        tracing::warn!("second signal: stopping at once");
        drain.send_replace(Drain::Until(Instant::now()));
        pool.stop_now();
        let _ = timeout(HURRIED_FAREWELL, connections.wait()).await;
    }
    tokio::select! {
        () = pool.stop() => {}
        () = signals.next() => {
            pool.stop_now();
            pool.stop().await;
        }
    }
    let farewell = match hurried {
        true => HURRIED_FAREWELL,
        false => FAREWELL,
    };
    writes.close();
    if timeout(farewell, writes.wait()).await.is_err() {
        tracing::warn!("not all states could be stored");
    }
    upkeep.shutdown().await;
    store.close(farewell).await;
    logs.close(farewell).await;
    tracing::info!("stopped");
    Ok(())
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Reads the system prompts again at every SIGHUP, of which the server takes no other notice.
async fn reload_on_hangup(mut hangups: Signal, prompts: Prompts) {
    while hangups.recv().await.is_some() {
        let Some(enhancer) = prompts.enhancer().cloned() else {
            tracing::info!("SIGHUP: there is no prompt enhancer, nothing to reload");
            continue;
        };
        match tokio::task::spawn_blocking(move || enhancer.reload()).await {
            Ok(Ok(origins)) => tracing::info!(?origins, "system prompts reloaded"),
            Ok(Err(error)) => tracing::warn!(%error, "system prompts stay as they were"),
            Err(panic) => tracing::error!(%panic, "system prompts not reloaded"),
        }
    }
}

/// Each session is a socket and each state a file descriptor; the usual soft limit of 1024 is soon reached.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "limit of open files left as it is");
    }
}
