//! Carries a session over a WebSocket, in any dialect: bytes in, bytes out, pings and closes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use fastvideo_proto::job::MediaMode;
use fastvideo_proto::trace::TraceContext;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tracing::Instrument;

use super::app::{App, AppState};
use crate::auth::guard::Admission;
use crate::auth::{Caller, Grant};
use crate::client_address::ClientAddress;
use crate::dialect::stream_v1::{StreamParser, StreamRenderer};
use crate::dialect::{HEARTBEAT_INTERVAL, Parser, Rendered, Renderer, Wire, close_code};
use crate::ingress::connection::Connection;
use crate::ingress::connections::Phase;
use crate::ingress::error::ApiError;
use crate::ingress::liveness::Liveness;
use crate::ingress::message_io::CompleteShare;
use crate::ingress::websocket::{Handshake, TransportViolation, WebSocket, violation};
use crate::pool::Media;
use crate::session::command::OpenSession;
use crate::session::{self, Drain, Inbound, NotAdmitted, Origin, Outbox, SessionEvent};
use crate::tasks::catch_panic;
use crate::traces::{self, Period};

/// Capacity of the queue of client messages to their session, which takes them at once.
const INBOUND_BUFFER: usize = 4;
/// Time limit on a client that takes nothing of what is left after its session has ended.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How long a client that has taken everything may take to answer a close.
const CLOSE_REPLY: Duration = Duration::from_secs(2);

/// Serves the route `/v1/stream`.
pub(super) async fn upgrade(
    State(app): AppState,
    headers: HeaderMap,
    Admission { caller, checked }: Admission,
    Extension(client): Extension<ClientAddress>,
    handshake: Handshake,
) -> Result<Response, ApiError> {
    let known = HandshakeFacts {
        trace: traces::named_by(&headers),
        auth: checked,
        time_limit: None,
    };
    let admitted = caller.map_err(NotAdmitted::from);
    upgrade_to::<StreamParser, StreamRenderer>(app, admitted, client, handshake, known)
}

/// What is known for a session's trace before its opening message comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandshakeFacts {
    /// The span that the handshake names.
    pub(super) trace: Option<TraceContext>,
    /// The time in which the client's key was checked.
    pub(super) auth: Option<Period>,
    /// How long a session that makes rollouts may last.
    pub(super) time_limit: Option<Duration>,
}

impl HandshakeFacts {
    fn add_to(self, opening: &mut OpenSession) {
        match opening.trace_parent {
            Some(_) => opening.trace_link = self.trace,
            None => opening.trace_parent = self.trace,
        }
        opening.auth = self.auth;
        if let Some(rollouts) = &mut opening.rollouts {
            rollouts.time_limit = self.time_limit;
        }
    }
}

/// Upgrades a request to a WebSocket that carries a session in a dialect.
pub(super) fn upgrade_to<P: Parser + 'static, R: Renderer + 'static>(
    app: App,
    admitted: Result<Caller, NotAdmitted>,
    client: ClientAddress,
    handshake: Handshake,
    known: HandshakeFacts,
) -> Result<Response, ApiError> {
    let upgrade = handshake.begin(&app.ingress, app.ingress.rules().max_message_bytes as u64)?;
    let (answer, connection, opened) = upgrade.split();
    let tracker = app.ingress.connections.clone();
    let carried = async move {
        if let Some((socket, shares)) = opened.await {
            match admitted {
                Ok(caller) => {
                    let from = (client, caller, known);
                    carry::<P, R>(socket, shares, &connection, &app, from).await;
                }
                Err(why) => {
                    app.context.metrics.rejected((&why).into());
                    turn_away(socket, R::turn_away(&why), &connection, &app).await;
                }
            }
        }
    };
    tracker.spawn(catch_panic("session", carried));
    Ok(answer)
}

async fn carry<P: Parser, R: Renderer>(
    socket: WebSocket,
    shares: CompleteShare,
    connection: &Connection,
    app: &App,
    (client, caller, known): (ClientAddress, Caller, HandshakeFacts),
) {
    let grant = Grant::new(app.auth.clone(), caller);
    if let Err(why) = session::may_open(client, &grant, &app.registry, &app.context) {
        tracing::info!(%why, "session rejected");
        app.context.metrics.rejected((&why).into());
        return turn_away(socket, R::turn_away(&why), connection, app).await;
    }
    let span = session_span();
    let outbox = Outbox::new(app.context.config.get().max_unsent_bytes);
    let (inbound, inbound_seen) = mpsc::channel(INBOUND_BUFFER);
    let (sink, mut stream) = socket.split();
    let ping_interval = app.ingress.rules().ping_interval;
    let session = session::run(
        client,
        grant,
        Origin::Direct,
        app.registry.clone(),
        inbound_seen,
        outbox.clone(),
        app.context.clone(),
    );
    let mut session = Box::pin(session.instrument(span));
    let is_held = AtomicBool::new(false);
    let mut writer = Box::pin(write::<R>(sink, &outbox, connection, app, &is_held));

    // Runs until the session is over. A client is gone when it closes the connection, when it neither takes nor sends
    // anything, or when writing to it fails.
    let gone = {
        let read = read::<P>(
            &mut stream,
            &inbound,
            connection,
            &shares,
            ping_interval * 2,
            known,
        );
        let mut reader = Box::pin(read);
        tokio::select! {
            () = &mut session => None,
            last = &mut reader => Some(last),
            () = &mut writer => Some(Inbound::Gone),
        }
    };
    match gone {
        None => {}
        Some(last) => {
            let is_gone = matches!(last, Inbound::Gone | Inbound::Closed);
            let (_, ()) = tokio::join!(inbound.send(Box::new(last)), &mut session);
            if is_gone {
                // Completes the close handshake that the client has begun.
                let _ = timeout(CLOSE_REPLY, async {
                    while let Some(Ok(_)) = stream.next().await {}
                })
                .await;
                return;
            }
        }
    }
    // The session has emitted its last event. Reading goes on, since a close is a handshake.
    let farewell = async {
        let listening = async { while let Some(Ok(_)) = stream.next().await {} };
        tokio::pin!(listening);
        let mut heard_all = false;
        let is_written = {
            let written = async {
                loop {
                    tokio::select! {
                        () = &mut writer => return,
                        () = &mut listening, if !heard_all => {
                            heard_all = true;
                            if is_held.load(Ordering::Relaxed) {
                                return;
                            }
                        }
                    }
                }
            };
            let left = || (outbox.cost(), connection.progress().taken);
            while_it_goes_on(written, LAST_WORDS, left).await
        };
        if is_written && !heard_all && !connection.place.is_displaced() {
            let taken = || connection.progress().taken;
            while_it_goes_on(&mut listening, CLOSE_REPLY, taken).await;
        }
    };
    let _ = timeout(app.ingress.rules().time_limits.answer, farewell).await;
    if is_held.load(Ordering::Relaxed) {
        // Pings go on, and a client that does not answer them is gone.
        tokio::select! {
            () = &mut writer => {}
            () = until_closed(&mut stream, connection, ping_interval * 2) => {}
        }
    }
}

/// Reads until the client has closed the connection, or is gone.
async fn until_closed(
    stream: &mut SplitStream<WebSocket>,
    connection: &Connection,
    silence: Duration,
) {
    let mut liveness = Liveness::new(silence);
    while let Some(Ok(message)) = liveness.next(stream, || connection.progress()).await {
        if matches!(message, Message::Close(_)) {
            return;
        }
    }
}

/// Returns the span of a session's lines in the log. Its fields are filled when the session opens.
pub(super) fn session_span() -> tracing::Span {
    use tracing::field::Empty;
    tracing::info_span!(
        "session",
        session_id = Empty,
        tenant = Empty,
        trace_id = Empty,
        span_id = Empty
    )
}

/// Waits for `work` to end, and returns whether it has. Gives up when `progress` has not changed for `patience`: a client
/// may be slow, but must not stop.
pub(super) async fn while_it_goes_on<P: PartialEq>(
    work: impl Future<Output = ()>,
    patience: Duration,
    progress: impl Fn() -> P,
) -> bool {
    tokio::pin!(work);
    let mut last = progress();
    loop {
        if timeout(patience, &mut work).await.is_ok() {
            return true;
        }
        let now = progress();
        if now == last {
            return false;
        }
        last = now;
    }
}

/// Parses messages and hands them to the session, until the client is gone or breaks the protocol.
async fn read<P: Parser>(
    stream: &mut SplitStream<WebSocket>,
    inbound: &mpsc::Sender<Box<Inbound>>,
    connection: &Connection,
    shares: &CompleteShare,
    silence: Duration,
    known: HandshakeFacts,
) -> Inbound {
    let mut parser = P::default();
    let mut liveness = Liveness::new(silence);
    let mut has_spoken = false;
    let mut silent = parser.silent_opening();
    let opens_at = silent
        .as_ref()
        .map(|(patience, _)| Instant::now() + *patience);
    loop {
        let silence_is_over = async {
            match opens_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            message = liveness.next(stream, || connection.progress()) => message,
            () = silence_is_over, if !has_spoken && silent.is_some() => {
                let silent = silent.take();
                // A large one may take longer on a slow line; it has a time limit of its own.
                let has_begun = connection.place.standing().phase == Phase::Opening;
                if let Some((_, mut opening)) = silent.filter(|_| !has_begun) {
                    parser.opened_silently();
                    known.add_to(&mut opening);
                    has_spoken = true;
                    connection.place.enter_phase(Phase::Session);
                    let _ = inbound.send(Box::new(Inbound::Open(opening))).await;
                }
                continue;
            }
            () = connection.place.displaced(), if !has_spoken => {
                return Inbound::Violation(TransportViolation::Crowded);
            }
        };
        let message = match message {
            None => return Inbound::Gone,
            Some(Err(error)) => {
                return violation(&error).map_or(Inbound::Gone, Inbound::Violation);
            }
            Some(Ok(message)) => message,
        };
        let message = match message {
            Message::Text(text) => {
                let share = shares.take();
                match parser.text(text).await {
                    Inbound::Open(mut opening) => {
                        opening.share = Arc::new(share);
                        known.add_to(&mut opening);
                        Inbound::Open(opening)
                    }
                    Inbound::Command {
                        message,
                        request,
                        command,
                    } => Inbound::Command {
                        message,
                        request,
                        command: command.with_share(share),
                    },
                    other => other,
                }
            }
            Message::Binary(_) => parser.binary(),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            Message::Close(frame) => return closed(frame.map(|frame| frame.code)),
        };
        if !std::mem::replace(&mut has_spoken, true) {
            connection.place.enter_phase(Phase::Session);
        }
        if inbound.send(Box::new(message)).await.is_err() {
            // The session is over, which the caller sees as well.
            std::future::pending::<()>().await;
        }
    }
}

/// Returns what a client's close means. A page that is reloaded closes with another code than 1000.
fn closed(code: Option<CloseCode>) -> Inbound {
    match code {
        None | Some(CloseCode::Normal) => Inbound::Closed,
        Some(_) => Inbound::Gone,
    }
}

/// Renders and sends the events that the session puts into the outbox, and pings between, until the close or a failure.
async fn write<R: Renderer>(
    mut sink: SplitSink<WebSocket, Message>,
    outbox: &Outbox,
    connection: &Connection,
    app: &App,
    is_held: &AtomicBool,
) {
    let (latency, ping_interval) = (&app.relay_latency, app.ingress.rules().ping_interval);
    let mut renderer = R::default();
    let mut mode = MediaMode::default();
    for wire in renderer.greet(app.context.pool.seats()) {
        if let Wire::Text(text) = wire
            && sink.send(Message::Text(text.into())).await.is_err()
        {
            return;
        }
    }
    let mut pings = interval_at(Instant::now() + ping_interval, ping_interval);
    let mut last_message = Instant::now();
    loop {
        let (event, receipt) = tokio::select! {
            next = outbox.next() => next,
            () = sleep_until(last_message + HEARTBEAT_INTERVAL), if renderer.wants_heartbeats() => {
                last_message = Instant::now();
                if sink.send(Message::Text(R::heartbeat().into())).await.is_err() {
                    return;
                }
                continue;
            }
            _ = pings.tick() => {
                if sink.send(Message::Ping(Default::default())).await.is_err() {
                    return;
                }
                continue;
            }
        };
        if let SessionEvent::Opened(opened) = &event {
            mode = opened.media_mode;
        }
        for wire in renderer.render(event) {
            let _writing = connection.write_message();
            let sent = match wire {
                Wire::Text(text) => sink.send(Message::Text(text.into())).await,
                Wire::Media(Media {
                    bytes,
                    sent_at_us,
                    credit,
                    ..
                }) => {
                    let length = bytes.len();
                    let sent = sink.send(Message::Binary(bytes)).await;
                    latency.record(mode, length, sent_at_us);
                    // Returns the credit to the job: the client has room for more of its media.
                    drop(credit);
                    sent
                }
                Wire::Close { code, reason } => {
                    let _ = sink.send(close_message(code, reason)).await;
                    return;
                }
                Wire::Hold => {
                    is_held.store(true, Ordering::Relaxed);
                    drop(receipt);
                    return hold(sink, app).await;
                }
            };
            if sent.is_err() {
                return;
            }
        }
        drop(receipt);
        last_message = Instant::now();
    }
}

/// Leaves it to a client, which was told that it may not open a session, to close the connection. Closes it after a while,
/// when the server leaves, or at once where too many are held.
async fn hold(mut sink: SplitSink<WebSocket, Message>, app: &App) {
    let Some(_held) = Held::begin() else {
        let _ = sink
            .send(close_message(close_code::TRY_AGAIN_LATER, "too busy"))
            .await;
        return;
    };
    let interval = app.ingress.rules().ping_interval;
    let mut pings = interval_at(Instant::now() + interval, interval);
    let mut drain = app.context.drain.clone();
    let leaving = async {
        if drain.wait_for(|drain| *drain != Drain::No).await.is_err() {
            std::future::pending::<()>().await;
        }
        // A client that is there closes its connection when it hears why.
        sleep(CLOSE_REPLY).await;
    };
    tokio::pin!(leaving);
    let end = sleep(MAX_HOLD);
    tokio::pin!(end);
    let close = loop {
        tokio::select! {
            _ = pings.tick() => {
                if sink.send(Message::Ping(Default::default())).await.is_err() {
                    return;
                }
            }
            () = &mut leaving => break close_message(close_code::GOING_AWAY, "draining"),
            () = &mut end => break close_message(close_code::TRY_AGAIN_LATER, "no place"),
        }
    };
    let _ = sink.send(close).await;
}

/// How long a client is held.
const MAX_HOLD: Duration = Duration::from_secs(60);

/// Number of clients that are told that they may not open a session and then held.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// The largest such number.
const MAX_HELD: usize = 1000;

/// Returns whether another client may be held.
pub(super) fn may_hold() -> bool {
    HELD.load(Ordering::Relaxed) < MAX_HELD
}

/// A client that is held.
struct Held;

impl Held {
    /// `None` where too many are held already.
    fn begin() -> Option<Self> {
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let one_more = |held| (held < MAX_HELD).then_some(held + 1);
        HELD.fetch_update(set, get, one_more).ok().map(|_| Self)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells a client that it may not open a session, and closes the connection or lets the client do so.
async fn turn_away(mut socket: WebSocket, messages: Rendered, connection: &Connection, app: &App) {
    let mut is_held = false;
    let told = async {
        for wire in messages {
            let message = match wire {
                Wire::Text(text) => Message::Text(text.into()),
                Wire::Media(media) => Message::Binary(media.bytes),
                Wire::Close { code, reason } => close_message(code, reason),
                Wire::Hold => {
                    is_held = true;
                    return Ok(());
                }
            };
            socket.send(message).await?;
        }
        while let Some(Ok(_)) = socket.next().await {}
        Ok::<_, tungstenite::Error>(())
    };
    let told = timeout(CLOSE_REPLY, told).await;
    if is_held && matches!(told, Ok(Ok(()))) {
        connection.place.enter_phase(Phase::Session);
        let silence = app.ingress.rules().ping_interval * 2;
        let (sink, mut stream) = socket.split();
        tokio::select! {
            () = hold(sink, app) => {}
            () = until_closed(&mut stream, connection, silence) => {}
        }
    }
}

fn close_message(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame {
        code: code.into(),
        reason: reason.into(),
    }))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;
    use crate::pool::Seats;
    use crate::session::ending::NotOpened;

    fn outbox_with(messages: usize) -> Outbox {
        let outbox = Outbox::new(1 << 20);
        for position in 0..messages {
            outbox.push(SessionEvent::Queued {
                position,
                queue_depth: messages,
                seats: Seats::default(),
            });
        }
        outbox.push_last(SessionEvent::NotOpened(NotOpened::Draining));
        outbox
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_gets_all_that_is_left() {
        let outbox = outbox_with(10);
        let mut read = 0;
        let reader = async {
            while let (SessionEvent::Queued { .. }, receipt) = outbox.next().await {
                sleep(LAST_WORDS * 9 / 10).await;
                drop(receipt);
                read += 1;
            }
        };
        assert!(while_it_goes_on(reader, LAST_WORDS, || outbox.cost()).await);
        assert_eq!(read, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_left() {
        let outbox = outbox_with(10);
        let reader = async {
            for _ in 0..3 {
                drop(outbox.next().await);
            }
            pending().await
        };
        let begun = Instant::now();
        assert!(!while_it_goes_on(reader, LAST_WORDS, || outbox.cost()).await);
        assert_eq!(begun.elapsed(), LAST_WORDS * 2);
    }
}
