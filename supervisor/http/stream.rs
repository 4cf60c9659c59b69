//! A session over a WebSocket: bytes in, bytes out, pings, close codes.

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
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::tungstenite;
use tracing::Instrument;

use super::app::{App, AppState};
use super::error::ApiError;
use crate::session::{self, Drain, Inbound, Limits, Outbox, RelayLatency, Wire, close};
use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::stream_v1::ServerMessage;

/// Client messages that may wait for their session; it takes them at once.
const INBOUND_BUFFER: usize = 4;
/// How long a client may read nothing of what is left after its session has ended.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How long a client may take to answer a close.
const CLOSE_REPLY: Duration = Duration::from_secs(2);
/// Each connection keeps a read buffer of this size for all its life.
const READ_BUFFER_BYTES: usize = 4096;
/// Sessions that may wait when no limit is configured.
const DEFAULT_QUEUE: usize = 64;

pub(super) async fn upgrade(
    State(app): AppState,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
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
            connection(socket, client.ip(), &app).await;
            drop(token);
        })
}

async fn connection(socket: WebSocket, client: IpAddr, app: &App) {
    let config = &app.context.config;
    let limits = Limits {
        sessions: config
            .max_sessions
            .unwrap_or_else(|| app.context.pool.capacity() + DEFAULT_QUEUE),
        sessions_per_client: config.max_sessions_per_client,
    };
    if *app.context.drain.borrow() != Drain::No {
        return reject(socket, "the server is going away", close::GOING_AWAY).await;
    }
    let ticket = match app.registry.enter(client.to_canonical(), limits) {
        Ok(ticket) => ticket,
        Err(full) => return reject(socket, &full.to_string(), close::TRY_AGAIN_LATER).await,
    };
    let span = tracing::info_span!("session", session_id = tracing::field::Empty);
    let outbox = Outbox::new(config.max_unsent_bytes);
    let (inbound, inbound_seen) = mpsc::channel(INBOUND_BUFFER);
    let (sink, mut stream) = socket.split();
    let session = session::run(ticket, inbound_seen, outbox.clone(), app.context.clone());
    let mut session = Box::pin(session.instrument(span));
    let mut writer = Box::pin(write(sink, &outbox, app.ping_interval, &app.relay_latency));

    // Until the session is over. A client is gone when it says so, when it is silent, or when writing to it fails.
    let gone = {
        let mut reader = Box::pin(read(&mut stream, &inbound, app.ping_interval * 2));
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
                // Answers a close that the client has begun.
                let _ = timeout(CLOSE_REPLY, async {
                    while let Some(Ok(_)) = stream.next().await {}
                })
                .await;
                return;
            }
        }
    }
    // The session has said its last word. It is read on, since a close is a handshake.
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

/// Whether all that is left could be written: a client may take its time to read it, but not stop.
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

/// Forwards messages until the client is gone or breaks the protocol, and says which.
async fn read(
    stream: &mut SplitStream<WebSocket>,
    inbound: &mpsc::Sender<Inbound>,
    silence: Duration,
) -> Inbound {
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
            Message::Text(text) => Inbound::Text(text.as_str().to_owned()),
            Message::Binary(_) => Inbound::Binary,
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return Inbound::Gone,
        };
        if inbound.send(message).await.is_err() {
            // The session is over; whoever polls this sees that too.
            std::future::pending::<()>().await;
        }
    }
}

fn broken(error: axum::Error) -> Inbound {
    use tungstenite::Error as E;
    let error = error.into_inner();
    let (code, reason) = match error.downcast_ref::<E>() {
        Some(E::Capacity(_)) => (close::TOO_LARGE, "message too large"),
        Some(E::Utf8(_)) => (close::INVALID_UTF8, "text is not UTF-8"),
        Some(E::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
            return Inbound::Gone;
        }
        Some(E::Protocol(_)) => (close::PROTOCOL, "WebSocket protocol violated"),
        _ => return Inbound::Gone,
    };
    tracing::info!(%error, code, "client broke the WebSocket protocol");
    Inbound::Broken { code, reason }
}

/// Sends what the session puts into the outbox, and pings between, until the close or a failure.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    outbox: &Outbox,
    ping_interval: Duration,
    latency: &RelayLatency,
) {
    let mut pings = interval_at(Instant::now() + ping_interval, ping_interval);
    loop {
        let (wire, receipt) = tokio::select! {
            next = outbox.next() => next,
            _ = pings.tick() => {
                if sink.send(Message::Ping(Default::default())).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let sent = match wire {
            Wire::Text(text) => sink.send(Message::Text(text.into())).await,
            Wire::Binary { bytes, sent_at_us } => {
                let sent = sink.send(Message::Binary(bytes)).await;
                latency.record(sent_at_us);
                sent
            }
            Wire::Close { code, reason } => {
                let _ = sink.send(close_message(code, reason)).await;
                return;
            }
        };
        drop(receipt);
        if sent.is_err() {
            return;
        }
    }
}

/// Turns a client away before it has a session.
async fn reject(mut socket: WebSocket, message: &str, code: u16) {
    tracing::info!(message, code, "session rejected");
    let error = ServerMessage::error(ErrorCode::SessionRejected, message, true);
    let text = serde_json::to_string(&error).expect("a message of strings is JSON");
    let farewell = async {
        socket.send(Message::Text(text.into())).await?;
        socket.send(close_message(code, "session_rejected")).await?;
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

    fn outbox_with(messages: u32) -> Outbox {
        let outbox = Outbox::new(1 << 20);
        for segment_idx in 0..messages {
            outbox.send(&ServerMessage::SegmentCancelled { segment_idx });
        }
        outbox.close(close::NORMAL, "left");
        outbox
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_gets_all_that_is_left() {
        let outbox = outbox_with(10);
        let mut read = 0;
        let reader = async {
            while let (Wire::Text(_), receipt) = outbox.next().await {
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
