//! Carries a client's session to a server that has no link with routers, and back: message by message, for as long as
//! both stay.
//!
//! Whoever is slow is waited for: what one side has not taken is not read from the other. A lost client is lost for the
//! server, too, and a close is passed on as it came, so that each side's own rules hold.

use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderValue, StatusCode};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval_at, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
};
use url::Url;

use super::encryption::reason;
use super::health::below;
use crate::ingress::connection::Connection;
use crate::ingress::connections::Phase;
use crate::ingress::liveness::Liveness;
use crate::ingress::message_io::CompleteShare;
use crate::ingress::websocket::{TransportViolation, WebSocket, violation};

/// The largest message that is taken from a server: a continuation state with its pictures.
const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// The size of the buffer that is read into from a server, where fragments come. It is kept for as long as the connection.
const READ_BUFFER_BYTES: usize = 128 << 10;
/// The same of a session link, of which thousands may be idle.
pub(super) const LINK_READ_BUFFER_BYTES: usize = 8 << 10;
/// Time limit on connecting to a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long either side may take to answer a close.
const CLOSE_REPLY: Duration = Duration::from_secs(2);

/// A WebSocket with a server.
pub(super) type ServerSocket = WebSocketStream<MaybeTlsStream<TcpStream>>;

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

/// Why there is no connection to a server.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("it answered {0} to a WebSocket")]
    Refused(StatusCode),
    #[error("{0}")]
    Failed(String),
}

/// Opens a connection to a server, below whose address the path lies. `authorization` is passed on.
///
/// # Errors
/// Returns why there is none.
pub(super) async fn connect(
    base: &Url,
    path: &str,
    authorization: Option<&HeaderValue>,
    tls: Connector,
) -> Result<ServerSocket, ConnectError> {
    connect_with(base, path, authorization, tls, READ_BUFFER_BYTES).await
}

/// The same with a read buffer of that size, in bytes.
///
/// # Errors
/// Returns why there is none.
pub(super) async fn connect_with(
    base: &Url,
    path: &str,
    authorization: Option<&HeaderValue>,
    tls: Connector,
    read_buffer_bytes: usize,
) -> Result<ServerSocket, ConnectError> {
    let failed = |error: tungstenite::Error| ConnectError::Failed(reason(&error));
    let url = socket_url(base, path).map_err(ConnectError::Failed)?;
    let mut request = url.as_str().into_client_request().map_err(failed)?;
    if let Some(authorization) = authorization {
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
        .read_buffer_size(read_buffer_bytes)
        .write_buffer_size(0);
    let connecting = connect_async_tls_with_config(request, Some(config), true, Some(tls));
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(tungstenite::Error::Http(answer))) => Err(ConnectError::Refused(answer.status())),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => {
            let limit = CONNECT_TIMEOUT.as_secs();
            Err(ConnectError::Failed(format!("no answer within {limit} s")))
        }
    }
}

/// Returns the address of a WebSocket below that of a server.
///
/// # Errors
/// Returns an error when the server's address can be none of a WebSocket.
pub(super) fn socket_url(base: &Url, path: &str) -> Result<Url, String> {
    let mut url = below(base, path);
    let scheme = match base.scheme() {
        "https" => "wss",
        _ => "ws",
    };
    url.set_scheme(scheme)
        .map_err(|()| "its address has no host".to_owned())?;
    Ok(url)
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
            message = from.next() => message,
            () = sleep_until(liveness.next_look()) => {
                if liveness.look(connection.progress()) {
                    continue;
                }
                tracing::debug!("client neither sends nor takes anything");
                return Stopped::ClientGone;
            }
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
