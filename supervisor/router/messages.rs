//! What clients are told by the router itself.

use std::time::Duration;

use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::stream_v1::ServerMessage;
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::dialect::{Rendered, Wire, close_code};
use crate::ingress::websocket::WebSocket;

/// How long a client may take to answer a close.
pub(super) const CLOSE_REPLY: Duration = Duration::from_secs(2);

/// Tells a client that nobody can serve it.
pub(super) fn no_healthy_replica() -> [Message; 2] {
    let message = "router: no healthy replica available";
    let error = ServerMessage::error(ErrorCode::GpuUnavailable, message, true);
    [
        text(&error),
        close(close_code::TRY_AGAIN_LATER, "no_healthy_replica"),
    ]
}

/// Tells a client that the server with its session cannot be reached.
pub(super) fn bridge_failed(reason: &str) -> [Message; 2] {
    let message = format!("router bridge failed: {reason}");
    let error = ServerMessage::error(ErrorCode::WorkerFailed, message, true);
    [text(&error), close(close_code::INTERNAL, "bridge_failed")]
}

pub(super) fn text(message: &impl Serialize) -> Message {
    let text = serde_json::to_string(message).expect("strings and numbers are JSON");
    Message::Text(text.into())
}

pub(super) fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame {
        code: code.into(),
        reason: reason.into(),
    }))
}

pub(super) fn messages(rendered: Rendered) -> impl Iterator<Item = Message> {
    rendered.into_iter().map(|wire| match wire {
        Wire::Text(text) => Message::Text(text.into()),
        Wire::Media(media) => Message::Binary(media.bytes),
        Wire::Close { code, reason } => close(code, reason),
        // A client of a router is not held.
        Wire::Hold => close(close_code::TRY_AGAIN_LATER, "session_rejected"),
    })
}

/// Sends a client's last messages, and waits for its answer to the close.
pub(super) async fn farewell(mut socket: WebSocket, messages: impl IntoIterator<Item = Message>) {
    let said = async {
        for message in messages {
            socket.send(message).await?;
        }
        while let Some(Ok(_)) = socket.next().await {}
        Ok::<_, tungstenite::Error>(())
    };
    let _ = timeout(CLOSE_REPLY, said).await;
}
