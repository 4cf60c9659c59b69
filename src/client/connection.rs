//! The WebSocket connection to the server: it sends messages, and receives messages and media.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use fastvideo_proto::stream_v1::{ClientMessage, ServerMessage};
use fastvideo_supervisor_core::tls;
use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
};

use super::args::CA_FILE;

/// The time limit for connecting, which is longer than any network that can carry video takes.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest message that is accepted. A continuation state of large frames, as PNG in base64, is above the library's own
/// limits.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// The connection is lost, but the server may still have the session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionLost {
    #[error("cannot connect to {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("the connection broke: {0}")]
    Broke(String),
    #[error("{0}")]
    Closed(String),
}

#[derive(Debug)]
pub(crate) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// A message, media or the close that the client receives.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(ServerMessage),
    Media(Bytes),
    /// The server closed the connection; nothing follows.
    Closed {
        code: u16,
        reason: String,
    },
}

impl Connection {
    /// Connects to the server, over TLS if there is a configuration for it.
    ///
    /// # Errors
    /// Returns [`ConnectionLost`] when the server cannot be reached, and another error when a retry would not help.
    pub(crate) async fn open(
        url: &str,
        tls: Option<Arc<ClientConfig>>,
        authorization: Option<HeaderValue>,
    ) -> anyhow::Result<Self> {
        let mut request = url.into_client_request().context("--url")?;
        if let Some(authorization) = authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let connector = tls.map_or(Connector::Plain, Connector::Rustls);
        let connecting =
            connect_async_tls_with_config(request, Some(config), true, Some(connector));
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok((socket, _))) => Ok(Self { socket }),
            Ok(Err(Error::Http(response))) if matches!(response.status().as_u16(), 401 | 403) => {
                bail!(
                    "{url} answered {}: it asks for a key, see --api-key-env",
                    response.status()
                )
            }
            Ok(Err(Error::Http(response))) if !response.status().is_server_error() => {
                bail!("{url} answered {} instead of a session", response.status())
            }
            Ok(Err(error)) => {
                if let Some(reason) = tls::handshake_failure(&error, CA_FILE) {
                    bail!("cannot connect to {url}: {reason}");
                }
                bail!(unreachable(url, error.to_string()))
            }
            Err(_) => {
                let reason = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                bail!(unreachable(url, reason))
            }
        }
    }

    /// Sends a message. When the connection is closed already, the message is dropped: the server's last messages, which
    /// say why, are still to be read.
    ///
    /// # Errors
    /// Returns an error when the message cannot be written.
    pub(crate) async fn send(&mut self, message: &ClientMessage) -> anyhow::Result<()> {
        let text = serde_json::to_string(message).context("message cannot be written as JSON")?;
        match self.socket.send(Message::text(text)).await {
            Ok(()) => Ok(()),
            Err(Error::ConnectionClosed | Error::AlreadyClosed | Error::Io(_)) => Ok(()),
            Err(error) => Err(error).context("cannot send"),
        }
    }

    /// Receives the next message of a known type. It skips unknown types, as the protocol demands.
    ///
    /// # Errors
    /// Returns [`ConnectionLost`] when the connection breaks, and another error when a message cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Incoming> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    if let Some(message) = read(&text)? {
                        return Ok(Incoming::Message(message));
                    }
                }
                Some(Ok(Message::Binary(bytes))) => return Ok(Incoming::Media(bytes)),
                Some(Ok(Message::Close(frame))) => {
                    let (code, reason) = frame.map_or((1005, String::new()), |frame| {
                        (frame.code.into(), frame.reason.to_string())
                    });
                    return Ok(Incoming::Closed { code, reason });
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => bail!(ConnectionLost::Broke(error.to_string())),
                None => bail!(ConnectionLost::Broke("it ended without a close".to_owned())),
            }
        }
    }

    /// Closes the connection without waiting for the server's answer.
    pub(crate) async fn close(&mut self) {
        // An error means that the connection is closed already.
        let _ = self.socket.close(None).await;
    }
}

/// Describes a close code of the WebSocket protocol, with the reason that the server gave.
pub(crate) fn describe_close(code: u16, reason: &str) -> String {
    let meaning = match code {
        1000 => "the server ended the session",
        1001 => "the server is going away",
        1003 => "the server refused the opening message",
        1008 => "the server closed the session: a rule was broken",
        1009 => "a message was larger than the server accepts",
        1011 => "the server had an internal fault",
        1013 => "the server is full; try again later",
        _ => "the server closed the connection",
    };
    match reason {
        "" => format!("{meaning} (close code {code})"),
        _ => format!("{meaning} (close code {code}, {reason})"),
    }
}

fn unreachable(url: &str, reason: String) -> ConnectionLost {
    ConnectionLost::Unreachable {
        url: url.to_owned(),
        reason,
    }
}

/// Parses a message; `None` when its type is unknown.
fn read(text: &str) -> anyhow::Result<Option<ServerMessage>> {
    let error = match serde_json::from_str(text) {
        Ok(message) => return Ok(Some(message)),
        Err(error) => error,
    };
    // Unknown types are meant for newer clients. A known type with other fields is an error.
    match error.to_string().starts_with("unknown variant") {
        true => Ok(None),
        false => Err(error).context("the server sent a message that cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_messages_are_skipped_and_bad_ones_are_not() {
        let known = read(r#"{"type": "queue_status", "position": 1, "queue_depth": 2, "new": 3}"#);
        let expected = ServerMessage::QueueStatus {
            position: 1,
            queue_depth: 2,
        };
        assert_eq!(known.unwrap(), Some(expected));
        assert_eq!(
            read(r#"{"type": "of_a_later_version", "prompt": "x"}"#).unwrap(),
            None
        );
        assert!(read(r#"{"type": "queue_status", "position": "1"}"#).is_err());
        assert!(read("no JSON").is_err());
    }
}
