//! The WebSocket to the server: messages out, messages and media in.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use fastvideo_proto::stream_v1::{ClientMessage, ServerMessage};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// Longer than any network that can carry video takes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A continuation state of large frames as PNG and base64; the library's own limits are below that.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// The server or the way to it is gone, and the session may still be there.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("cannot connect to {url}: {why}")]
    Unreachable { url: String, why: String },
    #[error("the connection broke: {0}")]
    Broke(String),
    #[error("{0}")]
    Closed(String),
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// What the server sends.
#[derive(Debug)]
pub(super) enum Incoming {
    Message(ServerMessage),
    Media(Bytes),
    /// The last one.
    Closed {
        code: u16,
        reason: String,
    },
}

impl Connection {
    pub(super) async fn open(url: &str) -> anyhow::Result<Self> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let connecting = connect_async_with_config(url, Some(config), true);
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok((socket, _))) => Ok(Self { socket }),
            Ok(Err(Error::Http(response))) if !response.status().is_server_error() => {
                bail!("{url} answered {} instead of a session", response.status())
            }
            Ok(Err(error)) => bail!(unreachable(url, &error)),
            Err(_) => bail!(unreachable(
                url,
                &format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())
            )),
        }
    }

    pub(super) async fn send(&mut self, message: &ClientMessage) -> anyhow::Result<()> {
        let text = serde_json::to_string(message).context("message cannot be written as JSON")?;
        match self.socket.send(Message::text(text)).await {
            Ok(()) => Ok(()),
            // The server's last words are still to be read, and say why.
            Err(Error::ConnectionClosed | Error::AlreadyClosed | Error::Io(_)) => Ok(()),
            Err(error) => Err(error).context("cannot send"),
        }
    }

    /// The next message that this client knows; types that it does not know are skipped, as the protocol asks.
    pub(super) async fn next(&mut self) -> anyhow::Result<Incoming> {
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
                Some(Err(error)) => bail!(Lost::Broke(error.to_string())),
                None => bail!(Lost::Broke("it ended without a close".to_owned())),
            }
        }
    }

    /// Closes without waiting for the answer.
    pub(super) async fn close(&mut self) {
        // Err: closed already.
        let _ = self.socket.close(None).await;
    }
}

fn unreachable(url: &str, why: &impl Display) -> Lost {
    Lost::Unreachable {
        url: url.to_owned(),
        why: why.to_string(),
    }
}

fn read(text: &str) -> anyhow::Result<Option<ServerMessage>> {
    let error = match serde_json::from_str(text) {
        Ok(message) => return Ok(Some(message)),
        Err(error) => error,
    };
    // Unknown types are for newer clients; a known type that does not fit is a fault.
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
