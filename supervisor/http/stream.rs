//! Carries a session over a WebSocket, in any dialect: bytes in, bytes out, pings and closes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep_until, timeout};
use tokio_tungstenite::tungstenite;
use tracing::Instrument;

use super::app::{App, AppState};
use super::error::ApiError;
use crate::dialect::stream_v1::{StreamParser, StreamRenderer};
use crate::dialect::{Parser, Rendered, Renderer, Wire};
use crate::pool::Media;
use crate::session::command::TransportViolation;
use crate::session::{self, Inbound, Outbox, RelayLatency};

/// Capacity of the queue of client messages to their session, which takes them at once.
const INBOUND_BUFFER: usize = 4;
/// Time limit on a client that reads nothing of what is left after its session has ended.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// A client that asks for heartbeats gets one after so much time without another message.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// How long a client may take to answer a close.
const CLOSE_REPLY: Duration = Duration::from_secs(2);
/// The size of the read buffer that each connection keeps for all its life.
const READ_BUFFER_BYTES: usize = 4096;

/// Serves the route `/v1/stream`.
pub(super) async fn upgrade(
    State(app): AppState,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    upgrade_to::<StreamParser, StreamRenderer>(app, client, upgrade)
}

/// Upgrades a request to a WebSocket that carries a session in a dialect.
fn upgrade_to<P: Parser + 'static, R: Renderer + 'static>(
    app: App,
    client: SocketAddr,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(_) => {
            let message = "this route speaks WebSocket only; see docs/protocol.md";
            return ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
                .into_response();
        }
    };
    let token = app.connections.token();
    upgrade
        .max_message_size(app.max_message_bytes)
        .max_frame_size(app.max_message_bytes)
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .on_upgrade(async move |socket| {
            connection::<P, R>(socket, client.ip(), &app).await;
            drop(token);
        })
}

async fn connection<P: Parser, R: Renderer>(socket: WebSocket, client: IpAddr, app: &App) {
    let ticket = match session::admit(client, &app.registry, &app.context) {
        Ok(ticket) => ticket,
        Err(why) => {
            tracing::info!(%why, "session rejected");
            return turn_away(socket, R::turn_away(&why)).await;
        }
    };
    let span = tracing::info_span!("session", session_id = tracing::field::Empty);
    let outbox = Outbox::new(app.context.config.max_unsent_bytes);
    let (inbound, inbound_seen) = mpsc::channel(INBOUND_BUFFER);
    let (sink, mut stream) = socket.split();
    let session = session::run(ticket, inbound_seen, outbox.clone(), app.context.clone());
    let mut session = Box::pin(session.instrument(span));
    let mut writer = Box::pin(write::<R>(
        sink,
        &outbox,
        app.ping_interval,
        &app.relay_latency,
    ));

    // Runs until the session is over. A client is gone when it says so, when it is silent, or when writing to it fails.
    let gone = {
        let mut reader = Box::pin(read::<P>(&mut stream, &inbound, app.ping_interval * 2));
        tokio::select! {
            () = &mut session => None,
            last = &mut reader => Some(last),
            () = &mut writer => Some(Inbound::Gone),
        }
    };
    match gone {
        None => {}
        Some(last) => {
            let is_gone = matches!(last, Inbound::Gone);
            let (_, ()) = tokio::join!(inbound.send(last), &mut session);
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
    let listening = async { while let Some(Ok(_)) = stream.next().await {} };
    tokio::pin!(listening);
    let mut heard_all = false;
    let is_written = {
        let written = async {
            loop {
                tokio::select! {
                    () = &mut writer => return,
                    () = &mut listening, if !heard_all => heard_all = true,
                }
            }
        };
        reads_to_the_end(written, &outbox).await
    };
    if is_written && !heard_all {
        let _ = timeout(CLOSE_REPLY, &mut listening).await;
    }
}

/// Waits until everything that is left is written, and returns whether it was. A client may read slowly, but must not
/// stop.
async fn reads_to_the_end(written: impl Future<Output = ()>, outbox: &Outbox) -> bool {
    tokio::pin!(written);
    let mut left = outbox.cost();
    loop {
        if timeout(LAST_WORDS, &mut written).await.is_ok() {
            return true;
        }
        let still_left = outbox.cost();
        if still_left >= left {
            return false;
        }
        left = still_left;
    }
}

/// Parses messages and hands them to the session, until the client is gone or breaks the protocol.
async fn read<P: Parser>(
    stream: &mut SplitStream<WebSocket>,
    inbound: &mpsc::Sender<Inbound>,
    silence: Duration,
) -> Inbound {
    let mut parser = P::default();
    loop {
        let message = match timeout(silence, stream.next()).await {
            Err(_) => {
                tracing::debug!("client answers no pings");
                return Inbound::Gone;
            }
            Ok(None) => return Inbound::Gone,
            Ok(Some(Err(error))) => return broken(error),
            Ok(Some(Ok(message))) => message,
        };
        let message = match message {
            Message::Text(text) => parser.text(text.as_str()).await,
            Message::Binary(_) => parser.binary(),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return Inbound::Gone,
        };
        if inbound.send(message).await.is_err() {
            // The session is over, which the caller sees as well.
            std::future::pending::<()>().await;
        }
    }
}

fn broken(error: axum::Error) -> Inbound {
    use tungstenite::Error as E;
    let error = error.into_inner();
    let violation = match error.downcast_ref::<E>() {
        Some(E::Capacity(_)) => TransportViolation::TooLarge,
        Some(E::Utf8(_)) => TransportViolation::NotUtf8,
        Some(E::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
            return Inbound::Gone;
        }
        Some(E::Protocol(_)) => TransportViolation::Protocol,
        _ => return Inbound::Gone,
    };
    tracing::info!(%error, ?violation, "client broke the WebSocket protocol");
    Inbound::Violation(violation)
}

/// Renders and sends the events that the session puts into the outbox, and pings between, until the close or a failure.
async fn write<R: Renderer>(
    mut sink: SplitSink<WebSocket, Message>,
    outbox: &Outbox,
    ping_interval: Duration,
    latency: &RelayLatency,
) {
    let mut renderer = R::default();
    let mut pings = interval_at(Instant::now() + ping_interval, ping_interval);
    let mut last_message = Instant::now();
    loop {
        let heartbeat = renderer.heartbeat();
        let (event, receipt) = tokio::select! {
            next = outbox.next() => next,
            () = sleep_until(last_message + HEARTBEAT_INTERVAL), if heartbeat.is_some() => {
                last_message = Instant::now();
                if let Some(text) = heartbeat
                    && sink.send(Message::Text(text.into())).await.is_err()
                {
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
        for wire in renderer.render(event) {
            let sent = match wire {
                Wire::Text(text) => sink.send(Message::Text(text.into())).await,
                Wire::Media(Media {
                    bytes,
                    sent_at_us,
                    credit,
                    ..
                }) => {
                    let sent = sink.send(Message::Binary(bytes)).await;
                    latency.record(sent_at_us);
                    // Returns the credit to the job: the client has room for more of its media.
                    drop(credit);
                    sent
                }
                Wire::Close { code, reason } => {
                    let _ = sink.send(close_message(code, reason)).await;
                    return;
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

/// Tells a client that it may not open a session, and closes the connection.
async fn turn_away(mut socket: WebSocket, messages: Rendered) {
    let farewell = async {
        for wire in messages {
            let message = match wire {
                Wire::Text(text) => Message::Text(text.into()),
                Wire::Media(media) => Message::Binary(media.bytes),
                Wire::Close { code, reason } => close_message(code, reason),
            };
            socket.send(message).await?;
        }
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<_, axum::Error>(())
    };
    let _ = timeout(CLOSE_REPLY, farewell).await;
}

fn close_message(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame {
        code,
        reason: reason.into(),
    }))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;
    use crate::session::SessionEvent;
    use crate::session::ending::NotOpened;

    fn outbox_with(messages: usize) -> Outbox {
        let outbox = Outbox::new(1 << 20);
        for position in 0..messages {
            outbox.push(SessionEvent::Queued {
                position,
                queue_depth: messages,
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
        assert!(reads_to_the_end(reader, &outbox).await);
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
        assert!(!reads_to_the_end(reader, &outbox).await);
        assert_eq!(begun.elapsed(), LAST_WORDS * 2);
    }
}
