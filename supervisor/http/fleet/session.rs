//! A server's end of a session link (see [`fastvideo_proto::session_link`]): a session whose client is at a router.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use fastvideo_proto::checkpoint::{Checkpoint, MAX_CHECKPOINT_BYTES, Shown};
use fastvideo_proto::job::MediaMode;
use fastvideo_proto::session_link::{
    self, BadHead, End, Moved, Open, Opened, SessionTrace, ToRouter, ToServer, Turn,
};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep_until, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tracing::Instrument;

use crate::auth::{Auth, Grant};
use crate::client_address::ClientAddress;
use crate::dialect::stream_v1::{StreamParser, StreamRenderer};
use crate::dialect::{HEARTBEAT_INTERVAL, Parser, Renderer, Wire};
use crate::http::app::{App, AppState};
use crate::http::stream::{session_span, while_it_goes_on};
use crate::ingress::connection::Connection;
use crate::ingress::connections::Phase;
use crate::ingress::error::ApiError;
use crate::ingress::liveness::Liveness;
use crate::ingress::message_io::CompleteShare;
use crate::ingress::websocket::{Handshake, WebSocket};
use crate::pool::Media;
use crate::session::command::OpenSession;
use crate::session::ending::{EndCause, NotOpened};
use crate::session::{
    self, Full, Inbound, LinkItem, MovedSession, NotAdmitted, Origin, Outbox, Receipt,
    RelayLatency, SessionEvent, TurnEnd,
};
use crate::store::ResumeToken;
use crate::tasks::catch_panic;

/// How long a router may take to open a session.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// What a message of a router may have besides a message of its client: a checkpoint, curated prompts, and hashes.
const MAX_HEAD_BYTES: usize = MAX_CHECKPOINT_BYTES + (32 << 20);
/// How long a router may take to take the last words, and to close.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Capacity of the queue of messages to the session, which takes them at once.
const INBOUND_BUFFER: usize = 4;

/// Serves the route `/v1/router/session`.
pub(in crate::http) async fn session(
    State(app): AppState,
    headers: HeaderMap,
    handshake: Handshake,
) -> Result<Response, ApiError> {
    app.fleet.admit(&headers)?;
    let limit = app.ingress.rules().max_message_bytes + MAX_HEAD_BYTES;
    let upgrade = handshake.begin(&app.ingress, limit as u64)?;
    let (answer, connection, opened) = upgrade.split();
    let tracker = app.ingress.connections.clone();
    let span = session_span();
    let carried = async move {
        if let Some((socket, shares)) = opened.await
            && let Err(error) = carry(socket, &shares, &connection, &app).await
        {
            tracing::warn!(%error, "a router broke the session link");
        }
    };
    tracker.spawn(catch_panic("session link", carried.instrument(span)));
    Ok(answer)
}

/// How a router broke the protocol.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Head(#[from] BadHead),
    #[error("{0}")]
    Opening(&'static str),
    #[error("the checkpoint cannot be read: {0}")]
    Checkpoint(serde_json::Error),
    #[error("it has sent a binary message")]
    Binary,
}

/// The first message of a router, read.
struct Opening {
    client: ClientAddress,
    grant: Grant,
    origin: Origin,
    parser: StreamParser,
    renderer: StreamRenderer,
    first: Inbound,
}

async fn carry(
    socket: WebSocket,
    shares: &CompleteShare,
    connection: &Connection,
    app: &App,
) -> Result<(), LinkError> {
    let (sink, mut stream) = socket.split();
    let first = timeout(OPEN_TIMEOUT, stream.next()).await;
    let Ok(Some(Ok(Message::Text(text)))) = first else {
        tracing::debug!("a router has opened no session");
        return Ok(());
    };
    connection.place.enter_phase(Phase::Session);
    let share = shares.take();
    let mut opening = match opening(&text, &app.auth).await {
        Ok(opening) => opening,
        Err(error) => {
            refuse(sink, &error).await;
            return Err(error);
        }
    };
    drop(text);
    if let Inbound::Open(open) = &mut opening.first {
        open.share = share.into();
    }
    let outbox = Outbox::for_link(app.context.config.get().max_unsent_bytes);
    let (inbound, inbound_seen) = mpsc::channel(INBOUND_BUFFER);
    let session = session::run(
        opening.client,
        opening.grant,
        opening.origin,
        app.registry.clone(),
        inbound_seen,
        outbox.clone(),
        app.context.clone(),
    );
    let mut session = Box::pin(session);
    let gate = AtomicU64::new(0);
    let writer = LinkWriter {
        sink,
        connection,
        latency: &app.relay_latency,
        mode: MediaMode::default(),
        told: opening.renderer.shown(),
        renderer: opening.renderer,
        turn: Turn::default(),
        texts: Vec::new(),
        receipts: Vec::new(),
        is_open: false,
        has_opened: false,
        is_progress: false,
        gate: &gate,
    };
    let ping_interval = app.ingress.rules().ping_interval;
    let mut writer = Box::pin(writer.write(&outbox, ping_interval));
    let mut broken = None;
    let last = {
        let read = read(
            &mut stream,
            opening.first,
            opening.parser,
            &inbound,
            connection,
            shares,
            (&outbox, &gate),
            ping_interval * 2,
        );
        let mut reader = Box::pin(read);
        tokio::select! {
            () = &mut session => None,
            last = &mut reader => Some(last),
            () = &mut writer => Some(Ok(Inbound::Unlinked)),
        }
    };
    if let Some(last) = last {
        let last = last.unwrap_or_else(|error| {
            broken = Some(error);
            Inbound::Unlinked
        });
        let is_unlinked = matches!(last, Inbound::Unlinked);
        let _ = tokio::join!(inbound.send(Box::new(last)), &mut session);
        if is_unlinked {
            return broken.map_or(Ok(()), Err);
        }
    }
    // The session has emitted its last event; gates are still passed.
    let listening = async {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Text(text) = message
                && let Ok((ToServer::Passed { gate: passed }, _)) = session_link::split(&text)
            {
                pass(&outbox, &gate, passed);
            }
        }
    };
    let farewell = async {
        tokio::join!(listening, writer);
    };
    while_it_goes_on(farewell, LAST_WORDS, || connection.progress()).await;
    Ok(())
}

/// Reads a router's first message.
async fn opening(text: &str, auth: &Auth) -> Result<Opening, LinkError> {
    let (head, body) = session_link::split::<ToServer>(text)?;
    let ToServer::Open(open) = head else {
        return Err(LinkError::Opening("it has not opened a session first"));
    };
    let Open {
        address,
        caller,
        trace,
        moved,
    } = *open;
    let client = ClientAddress::of(address);
    let grant = Grant::of_router(auth.clone(), caller);
    let grant = grant.ok_or(LinkError::Opening("it does not say whose the session is"))?;
    let mut parser = StreamParser::default();
    let first = match body {
        Some(body) => Some(parser.text(body.to_owned()).await),
        None => None,
    };
    let Some(moved) = moved else {
        let mut first = first.ok_or(LinkError::Opening("it has sent no opening message"))?;
        if let (Inbound::Open(open), Some(trace)) = (&mut first, trace) {
            set_trace(open, trace);
        }
        return Ok(Opening {
            client,
            grant,
            origin: Origin::Router,
            parser,
            renderer: StreamRenderer::default(),
            first,
        });
    };
    let moved = moved_session(moved).map_err(LinkError::Checkpoint)?;
    let opened = match first {
        Some(Inbound::Open(opened)) => Some(*opened),
        _ => None,
    };
    let facts = &moved.checkpoint.opening;
    let mut open = moved.opening(opened);
    if let Some(trace) = trace {
        set_trace(&mut open, trace);
    }
    Ok(Opening {
        client,
        grant,
        renderer: StreamRenderer::going_on(moved.session.clone(), facts, &moved.shown),
        first: Inbound::Open(Box::new(open)),
        origin: Origin::Moved(Box::new(moved)),
        parser: StreamParser::after_opening(),
    })
}

/// Takes what the router knows of the session's trace.
fn set_trace(open: &mut OpenSession, trace: SessionTrace) {
    let SessionTrace {
        parent,
        link,
        is_decided,
    } = trace;
    open.trace_parent = Some(parent);
    open.trace_link = link;
    open.is_trace_decided = is_decided;
}

fn moved_session(moved: Moved) -> Result<MovedSession, serde_json::Error> {
    let checkpoint = moved.checkpoint.get();
    if checkpoint.len() > MAX_CHECKPOINT_BYTES {
        let message = format!(
            "it has {} bytes, at most {MAX_CHECKPOINT_BYTES} are allowed",
            checkpoint.len()
        );
        return Err(serde::de::Error::custom(message));
    }
    let mut checkpoint: Checkpoint = serde_json::from_str(checkpoint)?;
    checkpoint.pass(moved.age_ms);
    let shown: Shown = match &moved.shown {
        Some(shown) => serde_json::from_str(shown.get())?,
        None => Shown::default(),
    };
    Ok(MovedSession {
        session: moved.session,
        token: ResumeToken::given(moved.resume_token),
        seq: moved.seq,
        curated: match &moved.curated {
            Some(curated) => serde_json::from_str(curated.get())?,
            None => Vec::new(),
        },
        // Media of a segment whose media the client was not told of are those of one before.
        media: match shown.media_attempt {
            Some(_) => moved.media,
            None => Vec::new(),
        },
        checkpoint,
        shown,
    })
}

/// Tells a router that it has broken the protocol.
async fn refuse(mut sink: SplitSink<WebSocket, Message>, error: &LinkError) {
    // A reason has at most 123 bytes.
    let reason: String = error.to_string().chars().take(30).collect();
    let frame = CloseFrame {
        code: CloseCode::Policy,
        reason: reason.into(),
    };
    let _ = timeout(LAST_WORDS, sink.send(Message::Close(Some(frame)))).await;
}

/// Opens the gate that the router has passed, unless that is an older one.
fn pass(outbox: &Outbox, gate: &AtomicU64, passed: u64) {
    if gate.load(Ordering::Relaxed) == passed {
        outbox.pass_gate();
    }
}

/// Hands the router's messages to the session, until the client or the router is gone.
#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one loop, which have no other user"
)]
async fn read(
    stream: &mut SplitStream<WebSocket>,
    first: Inbound,
    mut parser: StreamParser,
    inbound: &mpsc::Sender<Box<Inbound>>,
    connection: &Connection,
    shares: &CompleteShare,
    (outbox, gate): (&Outbox, &AtomicU64),
    silence: Duration,
) -> Result<Inbound, LinkError> {
    let mut liveness = Liveness::new(silence);
    let mut next = Some(first);
    loop {
        if let Some(message) = next.take()
            && inbound.send(Box::new(message)).await.is_err()
        {
            // The session is over, which the caller sees as well.
            std::future::pending::<()>().await;
        }
        let text = match liveness.next(stream, || connection.progress()).await {
            None | Some(Ok(Message::Close(_)) | Err(_)) => return Ok(Inbound::Unlinked),
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Binary(_))) => return Err(LinkError::Binary),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
        };
        // The memory that the message takes counts until it is parsed.
        let _share = shares.take();
        let (head, body) = session_link::split::<ToServer>(&text)?;
        next = match head {
            ToServer::Client => Some(parser.text(body.unwrap_or_default().to_owned()).await),
            ToServer::ClientBinary => Some(parser.binary()),
            ToServer::Passed { gate: passed } => {
                pass(outbox, gate, passed);
                None
            }
            ToServer::Release => Some(Inbound::Release),
            ToServer::Gone { closed: true } => return Ok(Inbound::Closed),
            ToServer::Gone { closed: false } => return Ok(Inbound::Gone),
            ToServer::Open(_) => return Err(LinkError::Opening("it has opened a session twice")),
        };
    }
}

/// Sends what the session says. What belongs together, and the checkpoint that holds then, are one message.
struct LinkWriter<'a> {
    sink: SplitSink<WebSocket, Message>,
    connection: &'a Connection,
    latency: &'a RelayLatency,
    mode: MediaMode,
    renderer: StreamRenderer,
    /// The head of the next message.
    turn: Turn,
    /// The messages for the client in it.
    texts: Vec<String>,
    /// The receipts of what is in it.
    receipts: Vec<Receipt>,
    /// Whether the end of the turn is still to come.
    is_open: bool,
    /// What the router knows that the client was shown.
    told: Shown,
    has_opened: bool,
    /// Whether a segment has become finished in this turn.
    is_progress: bool,
    /// The number of the gate that the router was told of last.
    gate: &'a AtomicU64,
}

impl LinkWriter<'_> {
    /// Sends until the session has said its last, or a failure.
    async fn write(mut self, outbox: &Outbox, ping_interval: Duration) {
        let mut pings = interval_at(Instant::now() + ping_interval, ping_interval);
        let mut last_message = Instant::now();
        loop {
            let item = tokio::select! {
                item = outbox.next_for_link() => item,
                () = sleep_until(last_message + HEARTBEAT_INTERVAL), if self.wants_heartbeat() => {
                    last_message = Instant::now();
                    self.texts.push(StreamRenderer::heartbeat());
                    if self.flush().await.is_err() {
                        return;
                    }
                    continue;
                }
                _ = pings.tick() => {
                    if self.sink.send(Message::Ping(Default::default())).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let sent = match item {
                LinkItem::Event(event, receipt) => self.event(event, receipt).await,
                LinkItem::TurnEnd(end) => self.end_turn(*end).await,
                LinkItem::Gate => self.gate().await,
            };
            match sent {
                Ok(true) => last_message = Instant::now(),
                Ok(false) | Err(_) => return,
            }
        }
    }

    fn wants_heartbeat(&self) -> bool {
        self.renderer.wants_heartbeats() && !self.is_open
    }

    /// Sends an event, or puts it into the turn. Returns whether others may follow.
    async fn event(
        &mut self,
        event: SessionEvent,
        receipt: Receipt,
    ) -> Result<bool, tungstenite::Error> {
        let is_alone = event.is_part_of_a_turn();
        self.is_open |= !is_alone;
        match &event {
            SessionEvent::Opened(opened) => self.mode = opened.media_mode,
            SessionEvent::WorkerBound(bound) if !self.has_opened => {
                self.has_opened = true;
                let token = bound.resume_token.as_ref();
                self.turn.opened = token.map(|token| Opened {
                    session: bound.session_id.clone(),
                    resume_token: token.as_str().to_owned(),
                });
            }
            SessionEvent::SegmentCompleted(_) => self.is_progress = true,
            SessionEvent::NotOpened(
                NotOpened::NoPlace
                | NotOpened::Draining
                | NotOpened::NotAdmitted(NotAdmitted::Draining | NotAdmitted::Full(Full::Server(_))),
            ) => {
                self.say(&ToRouter::Released, &[]).await?;
                return Ok(false);
            }
            SessionEvent::Ended(ended) if ended.cause == EndCause::Released => {
                self.flush().await?;
                self.say(&ToRouter::Released, &[]).await?;
                return Ok(false);
            }
            _ => {}
        }
        let is_missing = matches!(event, SessionEvent::NotOpened(NotOpened::NoSession(_)));
        let is_last = matches!(event, SessionEvent::NotOpened(_) | SessionEvent::Ended(_));
        if is_last {
            self.flush().await?;
        }
        let mut end = End {
            is_missing,
            ..End::default()
        };
        for wire in self.renderer.render(event) {
            match wire {
                Wire::Text(text) => self.texts.push(text),
                // Clients of a router have no session that is held.
                Wire::Hold => {}
                Wire::Close { code, reason } => {
                    end.code = Some(code);
                    end.reason = reason.to_owned();
                }
                Wire::Media(media) => {
                    self.flush().await?;
                    self.media(media).await?;
                }
            }
        }
        if is_last {
            let texts = std::mem::take(&mut self.texts);
            self.say(&ToRouter::End(end), &texts).await?;
            return Ok(false);
        }
        self.receipts.push(receipt);
        if is_alone && !self.is_open {
            self.flush().await?;
        }
        Ok(true)
    }

    async fn media(&mut self, media: Media) -> Result<(), tungstenite::Error> {
        let _writing = self.connection.write_message();
        let Media {
            bytes,
            sent_at_us,
            credit,
            ..
        } = media;
        let length = bytes.len();
        let sent = self.sink.send(Message::Binary(bytes)).await;
        self.latency.record(self.mode, length, sent_at_us);
        // Returns the credit to the job: the client has room for more of its media.
        drop(credit);
        sent
    }

    async fn end_turn(&mut self, end: TurnEnd) -> Result<bool, tungstenite::Error> {
        self.is_open = false;
        self.turn.seq = end.seq;
        self.turn.checkpoint = Some(raw(&end.checkpoint));
        self.turn.curated = end.curated.map(|curated| raw(&curated));
        self.turn.is_progress = std::mem::take(&mut self.is_progress);
        self.flush().await?;
        Ok(true)
    }

    /// Sends the turn as far as it has come.
    async fn flush(&mut self) -> Result<(), tungstenite::Error> {
        let shown = self.renderer.shown();
        let has_news = self.told != shown;
        if has_news {
            self.turn.begins_media = begins_media(&self.told, &shown);
            self.turn.shown = Some(raw(&shown));
            self.told = shown;
        }
        if has_news || !self.texts.is_empty() || self.turn.checkpoint.is_some() {
            let turn = ToRouter::Turn(Box::new(std::mem::take(&mut self.turn)));
            let texts = std::mem::take(&mut self.texts);
            self.say(&turn, &texts).await?;
        }
        self.receipts.clear();
        Ok(())
    }

    /// Asks the router to say when the client has everything so far.
    async fn gate(&mut self) -> Result<bool, tungstenite::Error> {
        self.flush().await?;
        let gate = self.gate.load(Ordering::Relaxed) + 1;
        self.gate.store(gate, Ordering::Relaxed);
        self.say(&ToRouter::Gate { gate }, &[]).await?;
        Ok(true)
    }

    async fn say(&mut self, head: &ToRouter, body: &[String]) -> Result<(), tungstenite::Error> {
        let text = session_link::join(head, body.iter().map(String::as_str));
        let _writing = self.connection.write_message();
        self.sink.send(Message::Text(text.into())).await
    }
}

/// Returns whether the client was told that other media follow.
fn begins_media(before: &Shown, now: &Shown) -> bool {
    let media = |shown: &Shown| (shown.segment, shown.media_attempt, shown.is_resent);
    now.media_attempt.is_some() && media(before) != media(now)
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("strings and numbers are JSON")
}
