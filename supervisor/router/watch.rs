//! Carries a spectator over all the servers that show its session: the one that runs it, else one that has its film.
//!
//! The router knows which segment comes next. When a server is lost or lets the session go, it asks the servers again, with
//! `from` at that segment. A segment of which the spectator has a part then comes once more from its first message. What is
//! the same is dropped, message by message (hashes are compared), so that only the rest is passed on. Where a message
//! differs, the spectator is told that its part is void, and the segment is asked for again.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use fastvideo_proto::stream_v1::ServerMessage;
use fastvideo_proto::watch::{RouterAsks, WatchMessage, WatchQuery};
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use tokio::time::{Instant, Interval, interval_at, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tracing::Instrument;
use url::form_urlencoded;

use super::app::App;
use super::messages::{close, farewell, text};
use super::registry::{Home, Replica};
use super::server_socket::{ConnectError, Headers, ServerSocket};
use crate::backoff::Backoff;
use crate::dialect::close_code;
use crate::ingress::connection::Connection;
use crate::ingress::connections::Phase;
use crate::ingress::error::ApiError;
use crate::ingress::extract::ValidQuery;
use crate::ingress::liveness::until_gone;
use crate::ingress::websocket::{Handshake, WebSocket};
use crate::tasks::catch_panic;
use seen::{Seen, Verdict};

mod seen;

/// The largest message that is read from a spectator.
const MAX_MESSAGE_BYTES: u64 = 4096;
/// The shortest and the longest pause before the servers are asked again.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// What a spectator wants to see.
struct Wanted {
    query: WatchQuery,
    authorization: Option<HeaderValue>,
}

/// A server that shows the session.
struct Shown {
    replica: Arc<Replica>,
    socket: Box<ServerSocket>,
    /// Whether it runs the session.
    is_on_air: bool,
}

/// Why no server shows the session.
#[derive(Default)]
struct NotShown {
    /// The stores of the servers that know no such session, or not the token. `None` is that of one without a link.
    without_session: Vec<Option<String>>,
    /// Whether other servers refuse, or cannot be reached.
    has_others: bool,
}

/// Serves the route `/v1/watch`.
pub(super) async fn upgrade(
    State(app): State<App>,
    headers: HeaderMap,
    ValidQuery(query): ValidQuery<WatchQuery>,
    handshake: Handshake,
) -> Result<Response, ApiError> {
    let upgrade = handshake.begin(&app.ingress, MAX_MESSAGE_BYTES)?;
    let authorization = headers.get(AUTHORIZATION).cloned();
    let wanted = Wanted {
        query,
        authorization,
    };
    app.registry.first_probes().await;
    let shown = wanted.ask(&app).await.map_err(|failed| match failed {
        NotShown {
            has_others: true, ..
        } => ApiError::too_busy("the server takes no more spectators"),
        _ => ApiError::no_session(),
    })?;
    let (answer, connection, opened) = upgrade.split();
    let tracker = app.ingress.connections.clone();
    let span = tracing::info_span!("spectator", client = %connection.place.client());
    let carried = async move {
        let Some((mut socket, _)) = opened.await else {
            return;
        };
        // Nothing is expected of a spectator.
        connection.place.enter_phase(Phase::Session);
        let last = tokio::select! {
            last = carry(&mut socket, &connection, &app, wanted, shown) => last,
            () = app.leaving.cancelled() => Some(vec![close(close_code::GOING_AWAY, "draining")]),
        };
        if let Some(last) = last {
            farewell(socket, last).await;
        }
    };
    tracker.spawn(catch_panic("spectator", carried.instrument(span)));
    Ok(answer)
}

impl Wanted {
    /// Asks the servers for the one that runs the session, and then for one that has its film, unless a server takes no
    /// more spectators: that may be the one that runs it.
    async fn ask(&self, app: &App) -> Result<Shown, NotShown> {
        let mut not_shown = NotShown::default();
        let mut with_film = Vec::new();
        let mut is_refused = false;
        for replica in app.registry.healthy().filter(|it| !it.is_cut_off()) {
            match self.ask_one(&replica, RouterAsks::OnAir, app).await {
                Ok(shown) => return Ok(shown),
                Err(ConnectError::Refused(StatusCode::NOT_FOUND)) => {
                    let store = replica.home().map(|home| home.store);
                    not_shown.without_session.push(store);
                }
                Err(ConnectError::Refused(StatusCode::CONFLICT)) => with_film.push(replica),
                Err(error) => {
                    is_refused |= matches!(error, ConnectError::Refused(_));
                    not_shown.by(&replica, &error);
                }
            }
        }
        for replica in with_film.into_iter().filter(|_| !is_refused) {
            match self.ask_one(&replica, RouterAsks::Film, app).await {
                Ok(shown) => return Ok(shown),
                Err(error) => not_shown.by(&replica, &error),
            }
        }
        Err(not_shown)
    }

    async fn ask_one(
        &self,
        replica: &Arc<Replica>,
        what: RouterAsks,
        app: &App,
    ) -> Result<Shown, ConnectError> {
        let base = &replica.endpoint.url;
        let headers = Headers {
            authorization: self.authorization.as_ref(),
            trace: None,
        };
        let socket = app.connect(base, &self.path(what), headers).await?;
        Ok(Shown {
            replica: replica.clone(),
            socket: Box::new(socket),
            is_on_air: what == RouterAsks::OnAir,
        })
    }

    fn path(&self, what: RouterAsks) -> String {
        let WatchQuery {
            session,
            token,
            from,
            router: _,
        } = &self.query;
        let path = "/v1/watch?".to_owned();
        let start = path.len();
        let mut path = form_urlencoded::Serializer::for_suffix(path, start);
        path.append_pair("session", session);
        path.append_pair("router", what.name());
        if let Some(token) = token {
            path.append_pair("token", token);
        }
        if let Some(from) = from {
            path.append_pair("from", &from.to_string());
        }
        path.finish()
    }
}

impl NotShown {
    fn by(&mut self, replica: &Replica, error: &ConnectError) {
        tracing::info!(%replica, %error, "a spectator is not taken");
        self.has_others = true;
    }
}

/// Carries a spectator. Returns the last messages for it; `None` when it is gone.
async fn carry(
    socket: &mut WebSocket,
    connection: &Connection,
    app: &App,
    wanted: Wanted,
    shown: Shown,
) -> Option<Vec<Message>> {
    let (to, mut from) = socket.split();
    let interval = app.ingress.rules().ping_interval;
    let spectator = Spectator {
        app,
        connection,
        wanted,
        to,
        pings: interval_at(Instant::now() + interval, interval),
        seen: Seen::default(),
        home: None,
        until: None,
        has_progress: true,
    };
    tokio::select! {
        last = spectator.run(shown) => last,
        has_closed = until_gone(&mut from, || connection.progress(), interval * 2) => has_closed.then(Vec::new),
    }
}

/// A spectator with what has to be known to go on at another server.
struct Spectator<'a> {
    app: &'a App,
    connection: &'a Connection,
    wanted: Wanted,
    to: SplitSink<&'a mut WebSocket, Message>,
    pings: Interval,
    seen: Seen,
    /// Where the session can go on; `None` when its server has no link.
    home: Option<Home>,
    /// When the spectator has waited long enough for a server that runs the session; `None` while one does.
    until: Option<Instant>,
    /// Whether it was sent something since that was last asked.
    has_progress: bool,
}

/// Why a server shows no more.
enum Stopped {
    /// The spectator is gone.
    Gone,
    /// Nothing follows but these messages.
    Over(Vec<Message>),
    /// The server is gone, has let the session go, or does not show what the spectator has seen.
    Lost(String),
}

impl Spectator<'_> {
    async fn run(mut self, mut shown: Shown) -> Option<Vec<Message>> {
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE).with_jitter();
        loop {
            let replica = shown.replica.clone();
            match self.follow(shown).await {
                Stopped::Gone => return None,
                Stopped::Over(last) => return Some(last),
                Stopped::Lost(reason) => {
                    tracing::debug!(%replica, reason, "server lost with a spectator");
                }
            }
            let limit = Instant::now() + self.app.failover_timeout;
            let until = *self.until.get_or_insert(limit);
            self.wanted.query.from = self.seen.segment().or(self.wanted.query.from);
            shown = loop {
                match std::mem::take(&mut self.has_progress) {
                    true => backoff.reset(),
                    false => self.pause(backoff.next_pause()).await?,
                }
                match Box::pin(self.wanted.ask(self.app)).await {
                    Ok(shown) => break shown,
                    Err(failed) if self.is_gone(&failed) => return Some(end()),
                    Err(_) if until <= Instant::now() => return Some(no_server()),
                    Err(_) => {}
                }
            };
        }
    }

    /// Returns whether the session is nowhere, and will not be.
    fn is_gone(&self, failed: &NotShown) -> bool {
        match &self.home {
            Some(home) => {
                failed.without_session.contains(&Some(home.store.clone()))
                    || !self.app.registry.may_go_on(home)
            }
            None => !failed.has_others && !failed.without_session.is_empty(),
        }
    }

    /// Shows what a server shows.
    async fn follow(&mut self, shown: Shown) -> Stopped {
        let Shown {
            replica,
            mut socket,
            is_on_air,
        } = shown;
        self.home = replica.home().or(self.home.take());
        if is_on_air {
            self.until = None;
        }
        self.seen.begin_server();
        let is_linked = replica.report().is_some();
        let mut is_down = pin!(replica.is_down());
        let silence = self.pings.period() * 2;
        let mut heard = Instant::now();
        loop {
            let until = self.until;
            let message = tokio::select! {
                message = socket.next() => message,
                _ = self.pings.tick() => {
                    if self.ping().await.is_none() {
                        return Stopped::Gone;
                    }
                    let ping = socket.send(Message::Ping(Default::default()));
                    match timeout(silence, ping).await {
                        Ok(Ok(())) => continue,
                        _ => return Stopped::Lost("the server takes nothing".to_owned()),
                    }
                }
                () = &mut is_down, if is_linked => {
                    return Stopped::Lost("it is silent or gone".to_owned());
                }
                () = sleep_until(heard + silence) => {
                    return Stopped::Lost("the server is silent".to_owned());
                }
                () = sleep_until(until.unwrap_or(heard)), if until.is_some() => {
                    return Stopped::Over(no_server());
                }
            };
            heard = Instant::now();
            let message = match message {
                Some(Ok(Message::Close(frame))) => {
                    let code = frame.as_ref().map(|frame| u16::from(frame.code));
                    return match code {
                        Some(close_code::NORMAL) => Stopped::Over(vec![Message::Close(frame)]),
                        _ => Stopped::Lost(format!("it has closed with {code:?}")),
                    };
                }
                Some(Ok(message)) => message,
                _ if self.seen.has_ended() => return Stopped::Over(vec![end_of_connection()]),
                Some(Err(error)) => return Stopped::Lost(error.to_string()),
                None => return Stopped::Lost("the connection ended without a close".to_owned()),
            };
            // It is handed to the spectator whole, whatever becomes of the server.
            let (message, differs) = match self.seen.judge(&message) {
                Verdict::New => (message, false),
                Verdict::Known => continue,
                Verdict::Differs(segment) => (text(&ServerMessage::void(segment)), true),
            };
            if self.show(message).await.is_none() {
                return Stopped::Gone;
            }
            if differs {
                return Stopped::Lost("it shows other media".to_owned());
            }
        }
    }

    /// Sends a message to the spectator; `None` when that is gone.
    async fn show(&mut self, message: Message) -> Option<()> {
        let _writing = self.connection.write_message();
        self.to.send(message).await.ok()?;
        self.has_progress = true;
        if let Some(until) = &mut self.until {
            *until = Instant::now() + self.app.failover_timeout;
        }
        Some(())
    }

    /// Waits, while the spectator is pinged; `None` when that is gone.
    async fn pause(&mut self, pause: Duration) -> Option<()> {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(end) => return Some(()),
                _ = self.pings.tick() => self.ping().await?,
            }
        }
    }

    async fn ping(&mut self) -> Option<()> {
        self.to.send(Message::Ping(Default::default())).await.ok()
    }
}

/// Tells that nothing follows.
fn end() -> Vec<Message> {
    vec![text(&WatchMessage::WatchEnd), end_of_connection()]
}

/// Tells that no server goes on with the session, which may still be resumed.
fn no_server() -> Vec<Message> {
    vec![close(close_code::TRY_AGAIN_LATER, "no_server")]
}

fn end_of_connection() -> Message {
    close(close_code::NORMAL, "watch_end")
}
