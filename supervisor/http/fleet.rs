//! A server's end of the control link with routers (see [`fastvideo_proto::fleet`]): it tells each router how it is.
//!
//! Only who has a router's key is answered; to everybody else there is no such route.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use fastvideo_proto::fleet::{
    FLEET_VERSION, Gpus, Report, RouterMessage, ServerMessage, VideoJobs,
};
use fastvideo_proto::link::ReadyReport;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tracing::Instrument;

use super::app::{App, AppState};
use crate::current::Current;
use crate::ingress::connections::Phase;
use crate::ingress::error::ApiError;
use crate::ingress::extract::bearer;
use crate::ingress::liveness::Liveness;
use crate::ingress::websocket::{Handshake, WebSocket};
use crate::pool::WorkerState;
use crate::session::{Context, Drain};
use crate::tasks::catch_panic;

pub use keys::{KeysError, RouterKeys};

mod keys;
mod session;

pub(super) use session::session;

/// The longest time between two reports.
const INTERVAL: Duration = Duration::from_secs(1);
/// For so long, changes are gathered for one report.
const GATHER: Duration = Duration::from_millis(20);
/// How long a router may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest message that is read from a router.
const MAX_MESSAGE_BYTES: u64 = 64 << 10;

/// What the server is called in reports.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub name: Option<String>,
    pub zone: Option<String>,
}

/// The server's place in a fleet. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Fleet(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` where no router may connect.
    keys: Current<Option<RouterKeys>>,
    server_id: String,
    names: Names,
}

impl Fleet {
    pub(super) fn new(keys: Option<RouterKeys>, names: Names) -> Self {
        let server_id = format!("{:032x}", rand::random::<u128>());
        Self(Arc::new(Shared {
            keys: Current::new(keys),
            server_id,
            names,
        }))
    }

    /// Lets in routers with these keys from now on, and no others.
    pub(crate) fn set_keys(&self, keys: Option<RouterKeys>) -> Vec<&'static str> {
        let old = self.0.keys.get();
        let is_other = old.is_some() && keys.is_some() && *old != keys;
        self.0.keys.replace(keys);
        Vec::from_iter(is_other.then_some(super::config::ROUTER_KEYS_FILE.spec.path))
    }

    /// Returns whether a text is one of the keys of routers.
    pub(crate) fn is_router_key(&self, given: &str) -> bool {
        (*self.0.keys.get())
            .as_ref()
            .is_some_and(|keys| keys.admit(given))
    }

    /// Lets only routers in; to everybody else there is no such route.
    fn admit(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let given = bearer(headers).unwrap_or_default();
        match self.is_router_key(given) {
            true => Ok(()),
            false => Err(ApiError::not_found(
                "there is nothing here; see /openapi.json",
            )),
        }
    }

    fn report(&self, app: &App) -> Report {
        let pool = app.context.pool.status();
        let workers = || pool.workers.iter().map(|slot| slot.status.state);
        let serves = |state| matches!(state, WorkerState::Ready | WorkerState::Busy);
        let starts = |state| {
            matches!(
                state,
                WorkerState::Spawning
                    | WorkerState::Connecting
                    | WorkerState::Loading
                    | WorkerState::WarmingUp
            )
        };
        let ready = workers().filter(|state| serves(*state)).count();
        // Who waits comes first.
        let free = pool.room.free.saturating_sub(pool.queue_depth);
        let ready_report = pool
            .workers
            .iter()
            .find_map(|slot| slot.status.ready.as_ref());
        Report {
            class: ready_report
                .map(|ready| class(ready, &app.context))
                .unwrap_or_default(),
            store: app.context.store.name().to_owned(),
            store_outlives: app.context.store.outlives_server(),
            server_id: self.0.server_id.clone(),
            name: self.0.names.name.clone(),
            zone: self.0.names.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            fleet: vec![FLEET_VERSION],
            ready: ready > 0,
            draining: *app.context.drain.borrow() != Drain::No,
            places: pool.room.places,
            free,
            sessions: app.registry.count(),
            waiting: pool.queue_depth,
            gpus: Gpus {
                total: pool.workers.len(),
                ready,
                starting: workers().filter(|state| starts(*state)).count(),
            },
            videos: app.videos.config().enabled.then(|| {
                let counts = app.videos.counts();
                VideoJobs {
                    queued: counts.queued,
                    running: counts.running,
                }
            }),
        }
    }
}

/// Returns what segments of this server are, in short.
fn class(ready: &ReadyReport, context: &Context) -> String {
    let config = context.config.get();
    let described = format!(
        "{} {:?} {:?} {} {} {} {}",
        ready.model_id,
        config.format,
        ready.audio_sample_rate,
        config.generation_segment_cap,
        config.cap_extensions,
        context.prompts.enhancer().is_some(),
        context.prompts.safety().is_some(),
    );
    blake3::hash(described.as_bytes()).to_hex()[..16].to_owned()
}

/// Serves the route `/v1/router`.
pub(super) async fn control(
    State(app): AppState,
    headers: HeaderMap,
    handshake: Handshake,
) -> Result<Response, ApiError> {
    app.fleet.admit(&headers)?;
    let upgrade = handshake.begin(&app.ingress, MAX_MESSAGE_BYTES)?;
    let (answer, connection, opened) = upgrade.split();
    let client = connection.place.client();
    let tracker = app.ingress.requests.clone();
    let span = tracing::info_span!("router", address = %client);
    let linked = async move {
        let Some((mut socket, _)) = opened.await else {
            return;
        };
        let Some(hello) = hello(&mut socket).await else {
            tracing::info!("a router said no hello");
            return;
        };
        connection.place.enter_phase(Phase::Session);
        tracing::info!(router_id = hello, "router linked");
        tokio::select! {
            () = report(socket, &connection, &app) => tracing::info!("router gone"),
            () = app.ingress.stopping.cancelled() => {}
        }
    };
    tracker.spawn(catch_panic("router link", linked.instrument(span)));
    Ok(answer)
}

/// Waits for the router's first message, and returns its id.
async fn hello(socket: &mut WebSocket) -> Option<String> {
    let first = timeout(HELLO_TIMEOUT, socket.next()).await.ok()??;
    let Ok(Message::Text(text)) = first else {
        return None;
    };
    let RouterMessage::Hello(hello) = serde_json::from_str(&text).ok()? else {
        return None;
    };
    if hello.fleet < FLEET_VERSION {
        let frame = CloseFrame {
            code: CloseCode::Policy,
            reason: "this version of the link is not spoken here".into(),
        };
        let _ = socket.send(Message::Close(Some(frame))).await;
        return None;
    }
    Some(hello.router_id)
}

/// Reports until the router is gone.
async fn report(socket: WebSocket, connection: &crate::ingress::connection::Connection, app: &App) {
    let (mut sink, mut stream) = socket.split();
    let mut liveness = Liveness::new(app.ingress.rules().ping_interval * 2);
    let mut changes = app.context.pool.changes();
    let mut drain = app.context.drain.clone();
    // What waits at the router counts for as long as the link holds.
    let demand = app.context.pool.demand_elsewhere();
    loop {
        let report = app.fleet.report(app);
        let message = ServerMessage::Report(Box::new(report));
        let text = serde_json::to_string(&message).expect("strings and numbers are JSON");
        let sent = {
            let _writing = connection.write_message();
            sink.send(Message::Text(text.into())).await
        };
        if sent.is_err() {
            return;
        }
        let due = Instant::now() + INTERVAL;
        let changed = async {
            tokio::select! {
                () = told(&mut changes) => {}
                () = told(&mut drain) => {}
            }
            sleep(GATHER).await;
        };
        tokio::pin!(changed);
        loop {
            tokio::select! {
                () = &mut changed => break,
                () = sleep_until(due) => break,
                message = liveness.next(&mut stream, || connection.progress()) => match message {
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(Message::Text(text))) => {
                        if let Ok(RouterMessage::Waiting(waiting)) = serde_json::from_str(&text) {
                            demand.set(waiting.sessions);
                        }
                    }
                    Some(Ok(_)) => {}
                },
            }
        }
    }
}

/// Waits for the next change; for ever when none can follow.
async fn told<T>(changes: &mut watch::Receiver<T>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
