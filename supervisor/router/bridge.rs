//! Carries a client's session to a server that has no link with routers, and back: message by message, for as long as
//! both stay.
//!
//! Whoever is slow is waited for: what one side has not taken is not read from the other. A lost client is lost for the
//! server, too, and a close is passed on as it came, so that each side's own rules hold.

use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::time::{Instant, interval_at, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::server_socket::ServerSocket;
use crate::ingress::connection::Connection;
use crate::ingress::connections::Phase;
use crate::ingress::liveness::Liveness;
use crate::ingress::message_io::CompleteShare;
use crate::ingress::websocket::{TransportViolation, WebSocket, violation};

/// How long either side may take to answer a close.
const CLOSE_REPLY: Duration = Duration::from_secs(2);

/// How a session over a bridge ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// One side has closed the connection, and the other one knows.
    Closed,
    /// The client is gone, or the router leaves: nothing can be said any more.
    Gone,
    /// The client broke the protocol.
    Violation(TransportViolation),
    /// The server is gone, or does not do what it should.
    Broken(String),
}

/// Why one direction has ended.
enum Stopped {
    ClientClosed(Option<CloseFrame>),
    ClientGone,
    Violation(TransportViolation),
    ServerClosed(Option<CloseFrame>),
    Broken(String),
}

/// Carries messages both ways until one side ends. The client's connection is left open unless one side has closed.
pub(super) async fn carry(
    client: &mut WebSocket,
    shares: &CompleteShare,
    connection: &Connection,
    server: ServerSocket,
    ping_interval: Duration,
) -> Ended {
    let (mut to_client, mut from_client) = client.split();
    let (mut to_server, mut from_server) = server.split();
    let stopped = {
        let up = up(
            &mut from_client,
            &mut to_server,
            shares,
            connection,
            ping_interval,
        );
        let down = down(&mut from_server, &mut to_client, connection, ping_interval);
        tokio::select! {
            stopped = up => stopped,
            stopped = down => stopped,
        }
    };
    match stopped {
        Stopped::ClientClosed(frame) => {
            let passed_on = async {
                let _ = to_server.send(Message::Close(frame)).await;
                while let Some(Ok(_)) = from_server.next().await {}
            };
            // Completes the handshake that the client has begun.
            let completed = async { while let Some(Ok(_)) = from_client.next().await {} };
            let _ = timeout(CLOSE_REPLY, async { tokio::join!(passed_on, completed) }).await;
            Ended::Closed
        }
        Stopped::ServerClosed(frame) => {
            let passed_on = async {
                let _ = to_client.send(Message::Close(frame)).await;
                while let Some(Ok(_)) = from_client.next().await {}
            };
            let completed = async { while let Some(Ok(_)) = from_server.next().await {} };
            let _ = timeout(CLOSE_REPLY, async { tokio::join!(passed_on, completed) }).await;
            Ended::Closed
        }
        Stopped::ClientGone => Ended::Gone,
        Stopped::Violation(violation) => Ended::Violation(violation),
        Stopped::Broken(reason) => Ended::Broken(reason),
    }
}

/// Passes on what the client sends.
async fn up(
    from: &mut SplitStream<&mut WebSocket>,
    to: &mut SplitSink<ServerSocket, Message>,
    shares: &CompleteShare,
    connection: &Connection,
    ping_interval: Duration,
) -> Stopped {
    let silence = ping_interval * 2;
    let mut liveness = Liveness::new(silence);
    let mut pings = interval_at(Instant::now() + ping_interval, ping_interval);
    let mut has_spoken = false;
    loop {
        let message = tokio::select! {
            message = liveness.next(from, || connection.progress()) => message,
            () = connection.place.displaced(), if !has_spoken => {
                return Stopped::Violation(TransportViolation::Crowded);
            }
            _ = pings.tick() => Some(Ok(Message::Ping(Default::default()))),
        };
        let message = match message {
            None => return Stopped::ClientGone,
            Some(Err(error)) => {
                return violation(&error).map_or(Stopped::ClientGone, Stopped::Violation);
            }
            Some(Ok(Message::Close(frame))) => return Stopped::ClientClosed(frame),
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(message)) => message,
        };
        // The memory that the message takes counts until it is passed on.
        let _share = message.is_text().then(|| shares.take());
        if !message.is_ping() && !std::mem::replace(&mut has_spoken, true) {
            connection.place.enter_phase(Phase::Session);
        }
        match timeout(silence, to.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Stopped::Broken(error.to_string()),
            Err(_) => return Stopped::Broken("the server takes nothing".to_owned()),
        }
    }
}

/// Passes on what the server sends.
async fn down(
    from: &mut SplitStream<ServerSocket>,
    to: &mut SplitSink<&mut WebSocket, Message>,
    connection: &Connection,
    ping_interval: Duration,
) -> Stopped {
    let mut heard = Instant::now();
    let mut pings = interval_at(heard + ping_interval, ping_interval);
    loop {
        let message = tokio::select! {
            message = from.next() => message,
            _ = pings.tick() => {
                if to.send(Message::Ping(Default::default())).await.is_err() {
                    return Stopped::ClientGone;
                }
                continue;
            }
            () = sleep_until(heard + ping_interval * 2) => {
                return Stopped::Broken("the server is silent".to_owned());
            }
        };
        let message = match message {
            None => return Stopped::Broken("the connection ended without a close".to_owned()),
            Some(Err(error)) => return Stopped::Broken(error.to_string()),
            Some(Ok(Message::Close(frame))) => return Stopped::ServerClosed(frame),
            Some(Ok(message)) => message,
        };
        if message.is_text() || message.is_binary() {
            let _writing = connection.write_message();
            if to.send(message).await.is_err() {
                return Stopped::ClientGone;
            }
        }
        heard = Instant::now();
    }
}
