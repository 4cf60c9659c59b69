//! A client's session over all the servers that it has: opened at one with a place, and gone on with at another one when
//! that is lost, leaves, or has no worker left. The client notices a pause at most.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::session_link::{self, Digest, End, ToRouter, ToServer, Turn};
use fastvideo_proto::stream_v1::{CompleteReason, ServerMessage};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::carried::{CarriedSession, MoveOrder};
use super::held::{ClientSaid, Held};
use super::line::Arrival;
use super::messages::{CLOSE_REPLY, bridge_failed, close, messages, no_healthy_replica, text};
use super::metrics::MoveReason;
use super::registry::{CountedSession, Home, Replica};
use super::server_socket::{ConnectError, Headers, ServerSocket};
use super::tracer::SessionSpan;
use super::visitor::Visitor;
use crate::auth::Grant;
use crate::backoff::Backoff;
use crate::dialect::stream_v1::{self, StreamParser, StreamRenderer};
use crate::dialect::{HEARTBEAT_INTERVAL, Parser, Renderer, close_code};
use crate::ingress::connection::Connection;
use crate::ingress::connections::Phase;
use crate::ingress::liveness::Liveness;
use crate::ingress::message_io::CompleteShare;
use crate::ingress::websocket::{TransportViolation, WebSocket, violation};
use crate::session::Inbound;
use crate::session::ending::NotOpened;

/// How long a client may take to send its opening message.
const OPENING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may take to open a session: it may check a picture, and wait for its store.
const OPEN_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a client that reads slowly may take to take a message of a server that is lost.
const LAST_MESSAGE: Duration = Duration::from_secs(60);
/// Number of servers in a row that may be lost with a session at once. After more of them without any progress there are
/// pauses between: the session may be what they die of.
const QUICK_LOSSES: u32 = 3;
/// A server that has run a session for so long was not lost by it.
const STABLE: Duration = Duration::from_secs(10);
/// The shortest and the longest of these pauses.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The shortest time between two messages about the client's position in the line.
const POSITION_INTERVAL: Duration = Duration::from_millis(250);

type ToClient<'a> = SplitSink<&'a mut WebSocket, Message>;
type FromClient<'a> = SplitStream<&'a mut WebSocket>;

/// How a client's session has ended.
pub(super) enum Finish {
    /// The client is gone; nothing can be said any more.
    Gone,
    /// The client has closed its connection; the handshake is to be completed.
    Closed,
    /// These are the last messages for the client.
    Say(Vec<Message>),
    /// The session goes over a plain bridge, which begins with these messages.
    Plain {
        replica: Arc<Replica>,
        server: Box<ServerSocket>,
        counted: CountedSession,
        opening: Vec<Message>,
    },
}

/// What a client does.
enum Heard {
    Said(ClientSaid),
    Closed,
    Gone,
    Violation(TransportViolation),
}

/// A link with a server that has opened the session.
struct Link {
    replica: Arc<Replica>,
    server: Box<ServerSocket>,
    counted: CountedSession,
    /// The first turn.
    first: (Box<Turn>, Vec<String>),
}

/// How a try to open the session at a server has ended.
enum Tried {
    Opened(Box<Link>),
    Finished(Finish),
    /// The server has no place.
    Full,
    /// It does not know the session that the client resumes.
    Missing(Vec<Message>),
    Unreachable(String),
}

/// Why a link has ended.
enum Ended {
    Finished(Finish),
    /// The session is to go on elsewhere.
    Released,
    /// The server is gone, or does not do what it should.
    Lost(String),
}

/// A client's session.
struct ClientSession<'a> {
    app: &'a App,
    visitor: &'a Visitor,
    connection: &'a Connection,
    from: FromClient<'a>,
    to: ToClient<'a>,
    shares: &'a CompleteShare,
    liveness: Liveness,
    ping_interval: Duration,
    arrival: Arrival,
    held: Mutex<Held>,
    span: &'a mut SessionSpan,
    resumes: bool,
    /// Whether the client wants to hear from the router when nothing happens.
    heartbeats: bool,
    /// Where the session can go on; known once it is opened.
    home: Option<Home>,
    /// The place that is kept for the session at another server.
    reserved: Option<(Arc<Replica>, CountedSession)>,
    /// Why its last server was lost.
    lost_for: Option<String>,
}

/// Carries a client's session, from its opening message to its end. Its span begins, and is left to the caller.
pub(super) async fn carry(
    socket: &mut WebSocket,
    shares: &CompleteShare,
    connection: &Connection,
    app: &App,
    visitor: &Visitor,
    span: &mut SessionSpan,
) -> Finish {
    let (to, mut from) = socket.split();
    let ping_interval = app.ingress.rules().ping_interval;
    let mut liveness = Liveness::new(ping_interval * 2);
    let opening = timeout(
        OPENING_TIMEOUT,
        hear(&mut from, connection, &mut liveness, true),
    );
    let opening = match opening.await {
        Err(_) => return refused(NotOpened::Timeout(OPENING_TIMEOUT)),
        Ok(Heard::Gone) => return Finish::Gone,
        Ok(Heard::Closed) => return Finish::Closed,
        Ok(Heard::Violation(broken)) => return refused(NotOpened::Violation(broken)),
        Ok(Heard::Said(ClientSaid::Text(text))) => Some(text),
        Ok(Heard::Said(ClientSaid::Binary)) => None,
    };
    connection.place.enter_phase(Phase::Session);
    let share = shares.take();
    let mut parser = StreamParser::default();
    let parsed = match &opening {
        Some(text) => Box::pin(parser.text(text.clone())).await,
        None => parser.binary(),
    };
    let (opening, open) = match (opening, parsed) {
        (Some(opening), Inbound::Open(open)) => (opening, open),
        (_, Inbound::Invalid { reason, .. }) => return invalid(reason),
        (_, Inbound::RuleBroken(reason)) => return invalid(reason.to_owned()),
        _ => return invalid("the first message must be a session_init_v2".to_owned()),
    };
    let (resumes, heartbeats) = (open.resume.is_some(), open.heartbeat);
    *span = visitor.span(&app.traces, open.trace_parent);
    drop(open);
    let address = visitor.client.address();
    let session = ClientSession {
        app,
        visitor,
        connection,
        from,
        to,
        shares,
        liveness,
        ping_interval,
        arrival: app.line.arrive().await,
        held: Mutex::new(Held::new(
            address,
            Grant::let_in(&visitor.caller),
            span.told(),
            opening,
            share,
        )),
        span,
        resumes,
        heartbeats,
        home: None,
        reserved: None,
        lost_for: None,
    };
    session.run().await
}

fn invalid(message: String) -> Finish {
    refused(NotOpened::Refused {
        code: ErrorCode::InvalidMessage,
        message,
    })
}

/// Returns the end of a session whose client leaves while it waits.
fn left() -> Finish {
    let complete = ServerMessage::StreamComplete {
        reason: CompleteReason::StopRequested,
        resumable_until: None,
        dropped_requests: Vec::new(),
    };
    Finish::Say(vec![text(&complete), close(close_code::NORMAL, "left")])
}

fn refused(why: NotOpened) -> Finish {
    Finish::Say(messages(stream_v1::refused(why)).collect())
}

/// Waits for what the client does next.
///
/// # Cancel safety
/// This function is cancel safe.
async fn hear(
    from: &mut FromClient<'_>,
    connection: &Connection,
    liveness: &mut Liveness,
    is_first: bool,
) -> Heard {
    loop {
        let message = tokio::select! {
            message = liveness.next(from, || connection.progress()) => message,
            () = connection.place.displaced(), if is_first => {
                return Heard::Violation(TransportViolation::Crowded);
            }
        };
        return match message {
            None => Heard::Gone,
            Some(Err(error)) => violation(&error).map_or(Heard::Gone, Heard::Violation),
            Some(Ok(Message::Text(text))) => Heard::Said(ClientSaid::Text(text)),
            Some(Ok(Message::Binary(_))) => Heard::Said(ClientSaid::Binary),
            // A page that is reloaded closes with another code than 1000.
            Some(Ok(Message::Close(frame))) => match frame.map(|frame| u16::from(frame.code)) {
                None | Some(close_code::NORMAL) => Heard::Closed,
                Some(_) => Heard::Gone,
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
        };
    }
}

impl ClientSession<'_> {
    async fn run(mut self) -> Finish {
        // When the session has to have made progress at another server.
        let mut until = None;
        let mut losses = 0;
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        // Why it has left its last server, and when.
        let mut left: Option<(MoveReason, Instant)> = None;
        loop {
            // Boxed, so that the memory of what is needed while it waits is not kept while it runs.
            let placed = Box::pin(self.place(until)).await;
            let moves = &self.app.moves;
            let link = match (placed, left) {
                (Ok(link), Some((reason, since))) => {
                    moves.moved(reason, since.elapsed());
                    link
                }
                (Ok(link), None) => link,
                (Err(finish), left) => {
                    if let Some((reason, _)) = left {
                        moves.ended(reason);
                    }
                    return finish;
                }
            };
            let replica = link.replica.clone();
            tracing::info!(%replica, "session runs");
            let opened = link.first.0.opened.as_ref();
            (self.span).taken(opened.map(|opened| opened.session.as_str()));
            let begun = Instant::now();
            match self.pump(*link).await {
                Ended::Finished(finish) => return finish,
                Ended::Released => {
                    tracing::info!(%replica, "session released");
                    left = Some((MoveReason::Released, Instant::now()));
                    self.span.left(MoveReason::Released);
                    until = None;
                }
                Ended::Lost(reason) => {
                    tracing::warn!(%replica, reason, "server lost with a session");
                    left = Some((MoveReason::Lost, Instant::now()));
                    self.span.left(MoveReason::Lost);
                    losses += 1;
                    if self.held().made_progress() || begun.elapsed() >= STABLE {
                        (losses, until) = (1, None);
                        backoff.reset();
                    }
                    if losses > QUICK_LOSSES {
                        sleep(backoff.next_pause()).await;
                    }
                    self.lost_for = Some(reason);
                }
            }
            let limit = Instant::now() + self.app.failover_timeout;
            until.get_or_insert(limit);
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no holder of this lock panics")
    }

    /// Waits in the line until a server has opened the session, `until` that time at most.
    async fn place(&mut self, until: Option<Instant>) -> Result<Box<Link>, Finish> {
        let home = self.home.as_ref().map(Home::name);
        let mut place = self.app.line.enter(&self.arrival, home);
        let (_, waiting) = place.rank();
        if until.is_none() && waiting > self.app.max_waiting {
            let message = format!(
                "the router is full: {} sessions wait, which is its limit",
                self.app.max_waiting
            );
            let error = ServerMessage::error(ErrorCode::SessionRejected, message, true);
            let last = close(close_code::TRY_AGAIN_LATER, "session_rejected");
            return Err(Finish::Say(vec![text(&error), last]));
        }
        let (mut changes, mut moves) = (self.app.registry.changes(), place.changes());
        let interval = self.ping_interval;
        let mut pings = interval_at(Instant::now() + interval, interval);
        let mut heartbeats = interval_at(Instant::now() + HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL);
        let mut without_session = Vec::new();
        let mut missing = None;
        // Since when no server is healthy.
        let mut without_server: Option<Instant> = None;
        let mut told = None;
        let mut may_tell = Instant::now();
        loop {
            changes.mark_unchanged();
            moves.mark_unchanged();
            let reserved = self.reserved.take();
            let may_try = place.may_take(&self.app.registry.room()) || reserved.is_some();
            let mut replicas = match may_try {
                true => self.app.registry.with_room(self.home.as_ref()),
                false => Vec::new(),
            };
            if let Some((replica, counted)) = reserved {
                counted.was_not_taken();
                replicas.retain(|other| !Arc::ptr_eq(other, &replica));
                replicas.insert(0, replica);
            }
            let mut unreachable = None;
            for replica in replicas {
                let store = replica.home().map(|home| home.store);
                if without_session.contains(&store) {
                    continue;
                }
                match self.try_at(&replica).await {
                    Tried::Opened(link) => return Ok(link),
                    Tried::Finished(finish) => return Err(finish),
                    Tried::Full => replica.is_full(),
                    Tried::Missing(said) => {
                        without_session.push(store);
                        missing = Some(said);
                    }
                    Tried::Unreachable(reason) => {
                        tracing::warn!(%replica, reason, "server not reached; another one is tried");
                        unreachable = Some(reason);
                    }
                }
            }
            if let (Some(home), Some(reason)) = (&self.home, &self.lost_for)
                && !self.app.registry.may_go_on(home)
            {
                return Err(Finish::Say(bridge_failed(reason).into()));
            }
            if until.is_none() {
                let is_unknown = |store| without_session.contains(store);
                if missing.is_some()
                    && self.app.registry.stores().iter().all(is_unknown)
                    && let Some(said) = missing.take()
                {
                    return Err(Finish::Say(said));
                }
                match self.app.registry.is_any_healthy() {
                    true => without_server = None,
                    false => {
                        without_server.get_or_insert_with(Instant::now);
                    }
                }
                let patience = self.app.wait_for_replica;
                if without_server.is_some_and(|since| since.elapsed() >= patience) {
                    return Err(Finish::Say(no_healthy_replica().into()));
                }
                if let Some(reason) = unreachable
                    && self
                        .app
                        .registry
                        .healthy()
                        .all(|replica| replica.is_plain())
                {
                    return Err(Finish::Say(bridge_failed(&reason).into()));
                }
            }
            let (rank, waiting) = place.rank();
            // Sessions that have lost their servers stand before those that came later, and so do those of other routers
            // that are heard of again. A client is told no higher position for that.
            let rank = told.map_or(rank, |(told, _)| rank.min(told));
            let is_told = told == Some((rank, waiting)) || self.held().is_opened();
            let now = Instant::now();
            if !is_told && may_tell <= now {
                let position = ServerMessage::QueueStatus {
                    position: rank,
                    queue_depth: waiting,
                };
                if self.to.send(text(&position)).await.is_err() {
                    return Err(Finish::Gone);
                }
                told = Some((rank, waiting));
                may_tell = now + POSITION_INTERVAL;
            }
            let is_full = self.held().is_full();
            tokio::select! {
                _ = changes.changed() => {}
                _ = moves.changed() => {}
                () = sleep_until(without_server.unwrap_or_else(Instant::now) + self.app.wait_for_replica), if without_server.is_some() => {}
                () = sleep_until(may_tell), if !is_told && told != Some((rank, waiting)) => {}
                _ = pings.tick() => {
                    if self.to.send(Message::Ping(Default::default())).await.is_err() {
                        return Err(Finish::Gone);
                    }
                }
                _ = heartbeats.tick(), if self.heartbeats => {
                    let heartbeat = StreamRenderer::heartbeat();
                    if self.to.send(Message::Text(heartbeat.into())).await.is_err() {
                        return Err(Finish::Gone);
                    }
                }
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    let message = "no server has a place for the session at the moment; it can be resumed";
                    let error = ServerMessage::error(ErrorCode::GpuUnavailable, message, true);
                    let last = close(close_code::TRY_AGAIN_LATER, "gpu_unavailable");
                    return Err(Finish::Say(vec![text(&error), last]));
                }
                heard = hear(&mut self.from, self.connection, &mut self.liveness, false), if !is_full => {
                    if let Some(finish) = self.keep(heard) {
                        return Err(finish);
                    }
                }
            }
        }
    }

    /// Keeps a message of a client that waits. Returns how the session ends if it does.
    fn keep(&mut self, heard: Heard) -> Option<Finish> {
        match heard {
            Heard::Said(message) => {
                drop(self.shares.take());
                if message.is_leave() {
                    return Some(left());
                }
                self.held().client_said(message);
                None
            }
            Heard::Closed => Some(Finish::Closed),
            Heard::Gone => Some(Finish::Gone),
            Heard::Violation(broken) => {
                Some(Finish::Say(messages(stream_v1::violated(broken)).collect()))
            }
        }
    }

    /// Tries to open the session at a server.
    async fn try_at(&mut self, replica: &Arc<Replica>) -> Tried {
        let counted = replica.begin_session();
        let base = &replica.endpoint.url;
        if replica.is_plain() {
            let headers = self.visitor.headers(self.span);
            return match self.app.connect(base, "/v1/stream", headers).await {
                Ok(server) => Tried::Finished(Finish::Plain {
                    replica: replica.clone(),
                    server: Box::new(server),
                    counted,
                    opening: self.held().take_messages(),
                }),
                Err(error) => {
                    counted.was_not_taken();
                    Tried::Unreachable(error.to_string())
                }
            };
        }
        let Some(home) = replica.home() else {
            counted.was_not_taken();
            return Tried::Unreachable("it is not there any more".to_owned());
        };
        let opened = self.open_link(replica);
        let opened = tokio::select! {
            opened = timeout(OPEN_TIMEOUT, opened) => match opened {
                Ok(opened) => opened,
                Err(_) => Err("it opens no session".to_owned()),
            },
            () = replica.is_down() => Err("it is not there any more".to_owned()),
        };
        let tried = match opened {
            Ok((server, ToRouter::Turn(turn), body)) => {
                self.home = Some(home);
                return Tried::Opened(Box::new(Link {
                    replica: replica.clone(),
                    server: Box::new(server),
                    counted,
                    first: (turn, body),
                }));
            }
            Ok((_, ToRouter::Released, _)) => Tried::Full,
            Ok((_, ToRouter::End(end), body)) => {
                let is_missing = end.is_missing && self.resumes;
                match is_missing {
                    true => Tried::Missing(last_words(end, body)),
                    false => Tried::Finished(Finish::Say(last_words(end, body))),
                }
            }
            Ok((_, ToRouter::Gate { .. }, _)) => {
                Tried::Unreachable("it breaks the rules of the link".to_owned())
            }
            Err(reason) => Tried::Unreachable(reason),
        };
        counted.was_not_taken();
        tried
    }

    /// Asks a server to open the session, and waits for its answer.
    async fn open_link(
        &self,
        replica: &Replica,
    ) -> Result<(ServerSocket, ToRouter, Vec<String>), String> {
        let base = &replica.endpoint.url;
        let headers = Headers {
            authorization: self.app.authorization.as_ref(),
            trace: None,
        };
        let connecting = self.app.connect(base, "/v1/router/session", headers);
        let mut server = connecting.await.map_err(|error| match error {
            ConnectError::Refused(status) => format!("it answered {status} to a session link"),
            ConnectError::Failed(reason) => reason,
        })?;
        let opening = self.held().open();
        for message in opening {
            let sent = server.feed(Message::Text(message.into())).await;
            sent.map_err(|error| error.to_string())?;
        }
        server.flush().await.map_err(|error| error.to_string())?;
        loop {
            match server.next().await {
                Some(Ok(Message::Text(text))) => {
                    let (head, body) = read(&text)?;
                    return Ok((server, head, body));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                Some(Ok(Message::Binary(_))) => {
                    return Err("it breaks the rules of the link".to_owned());
                }
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the connection ended without a close".to_owned()),
            }
        }
    }

    /// Carries messages both ways until the session ends or has to go on elsewhere.
    async fn pump(&mut self, link: Link) -> Ended {
        let Link {
            replica,
            server,
            counted,
            first,
        } = link;
        let (mut to_server, mut from_server) = server.split();
        let opened = first.0.opened.as_ref().map(|it| it.session.clone());
        let mut carried = opened.map(|session| self.app.carried.carry(session));
        let interval = self.ping_interval;
        let stop = CancellationToken::new();
        let (passed, passed_seen) = watch::channel(0);
        let down = Down {
            from: &mut from_server,
            to: &mut self.to,
            held: &self.held,
            passed,
            stop: &stop,
            connection: self.connection,
        };
        let up = Up {
            from: &mut self.from,
            to: &mut to_server,
            held: &self.held,
            passed: passed_seen,
            shares: self.shares,
            connection: self.connection,
            liveness: &mut self.liveness,
            interval,
            app: self.app,
            replica: &replica,
            home: self.home.as_ref(),
            reserved: &mut self.reserved,
            carried: carried.as_mut(),
        };
        let ended = {
            let mut down = Box::pin(down.run(first, interval));
            let up = tokio::select! {
                ended = &mut down => Err(ended),
                finish = up.run() => Ok(finish),
                () = replica.is_down() => Ok(Ended::Lost("it is silent or gone".to_owned())),
            };
            match up {
                Err(ended) => ended,
                // The message that is being handed to the client is handed over whole.
                Ok(Ended::Lost(reason)) => {
                    stop.cancel();
                    match timeout(LAST_MESSAGE, down).await {
                        Ok(Ended::Lost(_)) => Ended::Lost(reason),
                        Ok(ended) => ended,
                        Err(_) => Ended::Finished(Finish::Gone),
                    }
                }
                Ok(ended) => ended,
            }
        };
        drop((counted, carried));
        let farewell = match &ended {
            Ended::Finished(Finish::Gone) => Some(ToServer::Gone { closed: false }),
            Ended::Finished(Finish::Closed) => Some(ToServer::Gone { closed: true }),
            Ended::Finished(Finish::Say(_)) => Some(ToServer::Gone { closed: false }),
            _ => None,
        };
        if let Some(farewell) = farewell {
            let said = async {
                let text = session_link::join(&farewell, []);
                let _ = to_server.send(Message::Text(text.into())).await;
                let _ = to_server.send(Message::Close(None)).await;
                while let Some(Ok(_)) = from_server.next().await {}
            };
            let _ = timeout(CLOSE_REPLY, said).await;
        }
        ended
    }
}

/// Reads a text message of a server: the head, and the messages for the client.
fn read(text: &str) -> Result<(ToRouter, Vec<String>), String> {
    let (head, body) = session_link::split(text).map_err(|error| error.to_string())?;
    let body = body.map(|body| body.split('\n').map(str::to_owned).collect());
    Ok((head, body.unwrap_or_default()))
}

fn closed(frame: Option<CloseFrame>) -> String {
    let reason = frame.map(|frame| frame.reason.to_string());
    format!("it has closed the link: {}", reason.unwrap_or_default())
}

/// Returns a session's last messages for its client.
fn last_words(end: End, body: Vec<String>) -> Vec<Message> {
    let texts = body.into_iter().map(|text| Message::Text(text.into()));
    let last = end.code.map(|code| {
        Message::Close(Some(CloseFrame {
            code: code.into(),
            reason: end.reason.into(),
        }))
    });
    texts.chain(last).collect()
}

/// The direction to the client.
struct Down<'a, 'c> {
    from: &'a mut SplitStream<Box<ServerSocket>>,
    to: &'a mut ToClient<'c>,
    held: &'a Mutex<Held>,
    /// Told of the last gate that the client has passed.
    passed: watch::Sender<u64>,
    /// Cancelled when nothing more is to be taken from the server.
    stop: &'a CancellationToken,
    connection: &'a Connection,
}

impl Down<'_, '_> {
    async fn run(mut self, first: (Box<Turn>, Vec<String>), ping_interval: Duration) -> Ended {
        let (turn, body) = first;
        if self.turn(*turn, body).await.is_err() {
            return Ended::Finished(Finish::Gone);
        }
        let mut pings = interval_at(Instant::now() + ping_interval, ping_interval);
        loop {
            let message = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ended::Lost(String::new()),
                message = self.from.next() => message,
                _ = pings.tick() => {
                    if self.to.send(Message::Ping(Default::default())).await.is_err() {
                        return Ended::Finished(Finish::Gone);
                    }
                    continue;
                }
            };
            let done = match message {
                Some(Ok(Message::Binary(bytes))) => {
                    let _writing = self.connection.write_message();
                    let sent = self.to.send(Message::Binary(bytes.clone())).await;
                    // The client comes first.
                    let digest = Digest::of(&bytes);
                    self.held().media(digest);
                    sent
                }
                Some(Ok(Message::Text(text))) => match read(&text) {
                    Ok((ToRouter::Turn(turn), body)) => self.turn(*turn, body).await,
                    Ok((ToRouter::Gate { gate }, _)) => {
                        self.passed.send_replace(gate);
                        Ok(())
                    }
                    Ok((ToRouter::Released, _)) => return Ended::Released,
                    Ok((ToRouter::End(end), body)) => {
                        return Ended::Finished(Finish::Say(last_words(end, body)));
                    }
                    Err(reason) => return Ended::Lost(reason),
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(frame))) => return Ended::Lost(closed(frame)),
                Some(Err(error)) => return Ended::Lost(error.to_string()),
                None => return Ended::Lost("the connection ended without a close".to_owned()),
            };
            if done.is_err() {
                return Ended::Finished(Finish::Gone);
            }
        }
    }

    /// Hands a turn to the client, and keeps what holds then.
    async fn turn(
        &mut self,
        turn: Turn,
        body: Vec<String>,
    ) -> Result<(), tokio_tungstenite::tungstenite::Error> {
        let _writing = self.connection.write_message();
        for text in body {
            self.to.feed(Message::Text(text.into())).await?;
        }
        self.held().turn(turn);
        self.to.flush().await
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no holder of this lock panics")
    }
}

/// The direction to the server.
struct Up<'a, 'c> {
    from: &'a mut FromClient<'c>,
    to: &'a mut SplitSink<Box<ServerSocket>, Message>,
    held: &'a Mutex<Held>,
    passed: watch::Receiver<u64>,
    shares: &'a CompleteShare,
    connection: &'a Connection,
    liveness: &'a mut Liveness,
    interval: Duration,
    app: &'a App,
    replica: &'a Arc<Replica>,
    home: Option<&'a Home>,
    reserved: &'a mut Option<(Arc<Replica>, CountedSession)>,
    carried: Option<&'a mut CarriedSession>,
}

impl Up<'_, '_> {
    async fn run(mut self) -> Ended {
        let mut changes = self.app.registry.changes();
        changes.mark_changed();
        loop {
            let is_full = self
                .held
                .lock()
                .expect("no holder of this lock panics")
                .is_full();
            let text = tokio::select! {
                heard = hear(self.from, self.connection, self.liveness, false), if !is_full => {
                    match heard {
                        Heard::Said(message) => {
                            let text = message.for_server();
                            drop(self.shares.take());
                            let mut held = self.held.lock().expect("no holder of this lock panics");
                            held.client_said(message);
                            text
                        }
                        Heard::Closed => return Ended::Finished(Finish::Closed),
                        Heard::Gone => return Ended::Finished(Finish::Gone),
                        Heard::Violation(broken) => {
                            let last = messages(stream_v1::violated(broken)).collect();
                            return Ended::Finished(Finish::Say(last));
                        }
                    }
                }
                () = changed(&mut self.passed) => {
                    let gate = *self.passed.borrow_and_update();
                    session_link::join(&ToServer::Passed { gate }, [])
                }
                () = changed(&mut changes), if self.reserved.is_none() => {
                    let is_leaving = self.replica.report().is_some_and(|report| report.draining);
                    if !is_leaving || !self.find_place_elsewhere() {
                        continue;
                    }
                    session_link::join(&ToServer::Release, [])
                }
                order = next_order(self.carried.as_deref_mut()) => {
                    let is_moving = self.reserved.is_some();
                    let moves = is_moving || self.find_place_elsewhere();
                    // Err: nobody waits for the answer any more.
                    let _ = order.send(moves);
                    if is_moving || !moves {
                        continue;
                    }
                    session_link::join(&ToServer::Release, [])
                }
            };
            let sent = timeout_at(
                Instant::now() + self.interval * 2,
                self.to.send(Message::Text(text.into())),
            );
            match sent.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Ended::Lost(error.to_string()),
                Err(_) => return Ended::Lost("the server takes nothing".to_owned()),
            }
        }
    }

    /// Keeps a place at another server. Returns whether there is one.
    fn find_place_elsewhere(&mut self) -> bool {
        if self.home.is_none() {
            return false;
        }
        let replicas = self.app.registry.with_room(self.home).into_iter();
        let mut others = replicas.filter(|other| !Arc::ptr_eq(other, self.replica));
        *self.reserved = others.next().map(|replica| {
            let counted = replica.begin_session();
            (replica, counted)
        });
        self.reserved.is_some()
    }
}

/// Waits for the next order to move the session.
async fn next_order(carried: Option<&mut CarriedSession>) -> MoveOrder {
    match carried {
        Some(carried) => match carried.orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn changed<T>(changes: &mut watch::Receiver<T>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
