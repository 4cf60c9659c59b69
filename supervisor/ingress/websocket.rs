//! Begins WebSockets: the handshake of RFC 6455, and the codec on the connection's socket.
//!
//! axum's own upgrade would hide the socket, on which the limits of `message_io` and the judgement of `liveness` rest. Media
//! pass the codec by, which would copy them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::Ingress;
use super::connection::{Connection, Socket};
use super::connections::Phase;
use super::error::ApiError;
use super::message_io::{CompleteShare, Interrupted, MessageIo, MessageLimits};

/// The size of the read buffer that each connection keeps for all its life.
const READ_BUFFER_BYTES: usize = 4096;

/// Binary messages of this length or more are not copied to be sent.
const MIN_UNCOPIED_BYTES: usize = 4096;

/// The subprotocol that is answered to a client that offers it. A page that shows a key beside it is not connected without
/// an answer.
const SUBPROTOCOL: &str = "fastvideo.v1";

/// A WebSocket with a client.
pub(crate) struct WebSocket<T = Socket> {
    /// Boxed, since futures hold a second place for what they are given and move on.
    codec: Box<WebSocketStream<MessageIo<T>>>,
    /// Whether a close was sent or received, after which there are no other messages.
    is_closing: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for WebSocket<T> {
    type Item = tungstenite::Result<Message>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.codec.poll_next_unpin(cx));
        self.is_closing |= !matches!(&next, Some(Ok(message)) if !message.is_close());
        Poll::Ready(next)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Sink<Message> for WebSocket<T> {
    type Error = tungstenite::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<tungstenite::Result<()>> {
        if self.codec.get_ref().is_writing() {
            ready!(self.codec.poll_flush_unpin(cx))?;
        }
        self.codec.poll_ready_unpin(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> tungstenite::Result<()> {
        self.is_closing |= message.is_close();
        let message = match message {
            Message::Binary(payload) if payload.len() >= MIN_UNCOPIED_BYTES && !self.is_closing => {
                match self.start_uncopied(payload) {
                    Ok(()) => return Ok(()),
                    Err(payload) => Message::Binary(payload),
                }
            }
            other => other,
        };
        self.codec.start_send_unpin(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<tungstenite::Result<()>> {
        self.codec.poll_flush_unpin(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<tungstenite::Result<()>> {
        self.is_closing = true;
        self.codec.poll_close_unpin(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> WebSocket<T> {
    /// Begins on a stream whose handshake is done.
    async fn begin(io: MessageIo<T>, max_bytes: u64) -> Self {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let config = WebSocketConfig::default()
            .max_message_size(Some(max_bytes))
            .max_frame_size(Some(max_bytes))
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0);
        let codec = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        Self {
            codec: Box::new(codec),
            is_closing: false,
        }
    }

    /// Sends a binary message beside the codec. Returns it when the codec still has something to write.
    fn start_uncopied(&mut self, payload: Bytes) -> Result<(), Bytes> {
        // The sender flushes next, with its own waker.
        let mut now = Context::from_waker(Waker::noop());
        match self.codec.poll_flush_unpin(&mut now) {
            Poll::Ready(Ok(())) => self.codec.get_mut().write_binary(payload),
            // An error is found again by the codec.
            Poll::Ready(Err(_)) | Poll::Pending => Err(payload),
        }
    }
}

/// A request to make the connection a WebSocket.
pub(crate) struct Handshake {
    accept: String,
    /// Whether the client offers [`SUBPROTOCOL`].
    offers_protocol: bool,
    upgrade: OnUpgrade,
    connection: Arc<Connection>,
}

impl<S: Send + Sync> FromRequestParts<S> for Handshake {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::read(parts).ok_or_else(|| {
            let message = "this route speaks WebSocket only; see docs/protocol.md";
            ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
        })
    }
}

/// Waits for a WebSocket to begin; `None` when the client is gone before.
pub(crate) type Opened = BoxFuture<'static, Option<(WebSocket, CompleteShare)>>;

/// A WebSocket that has a place among those that are open.
pub(crate) struct Upgrade {
    handshake: Handshake,
    limits: MessageLimits,
}

impl Upgrade {
    /// Returns the answer that accepts the request, the connection, and what waits until the answer is written: it begins
    /// the WebSocket, or gives `None` when the client is gone before.
    pub(crate) fn split(self) -> (Response, Arc<Connection>, Opened) {
        let Self { handshake, limits } = self;
        let (answer, connection) = (handshake.answer(), handshake.connection.clone());
        (answer, connection, handshake.complete(limits).boxed())
    }
}

impl Handshake {
    /// Gives the WebSocket a place. Messages up to `max_bytes` are read from it.
    ///
    /// # Errors
    /// Returns a refusal when too many others are open.
    pub(crate) fn begin(self, ingress: &Ingress, max_bytes: u64) -> Result<Upgrade, ApiError> {
        let place = &self.connection.place;
        place.await_opening().map_err(ApiError::too_busy)?;
        let limits = ingress.message_limits(place.client(), max_bytes);
        Ok(Upgrade {
            handshake: self,
            limits,
        })
    }

    fn read(parts: &mut Parts) -> Option<Self> {
        let headers = &parts.headers;
        let is_handshake = parts.method == Method::GET
            && has_token(headers, CONNECTION, "upgrade")
            && has_token(headers, UPGRADE, "websocket")
            && headers
                .get(SEC_WEBSOCKET_VERSION)
                .is_some_and(|v| v == "13");
        let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| is_handshake)?;
        Some(Self {
            accept: derive_accept_key(key.as_bytes()),
            offers_protocol: protocols(headers).any(|it| it == SUBPROTOCOL),
            upgrade: parts.extensions.remove()?,
            connection: parts.extensions.get::<Arc<Connection>>()?.clone(),
        })
    }

    /// Returns the answer that accepts the request.
    fn answer(&self) -> Response {
        let accept = HeaderValue::from_str(&self.accept).expect("base64 is a header's value");
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        if self.offers_protocol {
            let protocol = HeaderValue::from_static(SUBPROTOCOL);
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        answer
    }

    /// Waits until the answer is written, and begins the WebSocket. Returns `None` when the client is gone before.
    async fn complete(self, limits: MessageLimits) -> Option<(WebSocket, CompleteShare)> {
        let upgraded = self.upgrade.await.ok()?;
        let parts = upgraded.downcast::<TokioIo<Socket>>().ok()?;
        let max_bytes = limits.max_bytes;
        let connection = self.connection;
        let begin_opening = move || {
            if connection.place.standing().phase == Phase::Silent {
                connection.place.enter_phase(Phase::Opening);
            }
        };
        // A copy, since hyper's bytes keep its whole read buffer, empty or not.
        let before = Bytes::copy_from_slice(&parts.read_buf);
        let io = MessageIo::new(parts.io.into_inner(), before, limits, begin_opening);
        let complete = io.complete_share();
        Some((WebSocket::begin(io, max_bytes).await, complete))
    }
}

/// How a client broke the protocol below its dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportViolation {
    /// A message was larger than the server takes.
    TooLarge,
    /// A message was not complete within the time limit.
    TooSlow,
    /// The server receives too much from others at the moment, or too many others are connected.
    Crowded,
    /// A text was not UTF-8.
    NotUtf8,
    /// Any other violation.
    Protocol,
}

/// Returns how a client broke the protocol that an error of its WebSocket tells of; `None` when the client is gone.
pub(crate) fn violation(error: &tungstenite::Error) -> Option<TransportViolation> {
    use tungstenite::Error as E;
    let violation = match error {
        E::Capacity(_) => TransportViolation::TooLarge,
        E::Utf8(_) => TransportViolation::NotUtf8,
        E::Protocol(ProtocolError::ResetWithoutClosingHandshake) => return None,
        E::Protocol(_) => TransportViolation::Protocol,
        E::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref())? {
            Interrupted::TooLarge => TransportViolation::TooLarge,
            Interrupted::TooSlow => TransportViolation::TooSlow,
            Interrupted::Protocol => TransportViolation::Protocol,
            Interrupted::NoShare(_) => TransportViolation::Crowded,
        },
        _ => return None,
    };
    tracing::info!(%error, ?violation, "client broke the WebSocket protocol");
    Some(violation)
}

/// Returns the subprotocols that a client offers, in its order.
pub(crate) fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',').map(str::trim))
}

/// Returns whether a header with a list of tokens has that one.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter();
    let mut tokens = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    tokens.any(|given| given.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use futures_util::future::{join, pending};
    use tokio::io::duplex;

    use super::*;
    use crate::byte_budget::{ByteBudget, Limits};
    use crate::client_address::ClientAddress;

    fn limits() -> MessageLimits {
        MessageLimits {
            max_bytes: 1 << 20,
            timeout: Duration::from_secs(60),
            client: ClientAddress::of(Ipv4Addr::LOCALHOST.into()),
            budget: ByteBudget::new(Limits {
                total: 1 << 20,
                per_address: 1 << 20,
            }),
        }
    }

    fn binary(length: usize) -> Message {
        Message::Binary(vec![7; length].into())
    }

    #[tokio::test]
    async fn media_keep_their_place_between_other_messages_and_pongs() {
        let said = [
            Message::text("a"),
            binary(MIN_UNCOPIED_BYTES),
            binary(MIN_UNCOPIED_BYTES - 1),
            binary(70_000),
            binary(65_536),
            Message::text("b".repeat(10_000)),
            binary(65_535),
        ];
        let mut pongs = 0;
        for size in [13, 4097, 1 << 20] {
            let (ours, theirs) = duplex(size);
            let io = MessageIo::new(ours, Bytes::new(), limits(), || {});
            let socket = WebSocket::begin(io, 1 << 20).await;
            let config = WebSocketConfig::default().read_buffer_size(4096);
            let client = WebSocketStream::from_raw_socket(theirs, Role::Client, Some(config)).await;
            let ((mut sink, mut stream), (mut pings, mut heard)) = (socket.split(), client.split());
            let write = async {
                for message in said.clone() {
                    sink.send(message).await.unwrap();
                }
                sink.send(Message::Close(None)).await.unwrap();
                assert!(sink.send(binary(5000)).await.is_err(), "after the close");
            };
            // Pongs are written by whoever reads.
            let read = async {
                while let Some(Ok(_)) = stream.next().await {}
                pending::<()>().await;
            };
            let peer = async {
                let mut count = 0;
                loop {
                    let _ = pings.send(Message::Ping("p".into())).await;
                    match heard.next().await.unwrap().unwrap() {
                        Message::Pong(_) => pongs += 1,
                        Message::Close(_) => break,
                        message => {
                            assert_eq!(message, said[count], "{size}");
                            count += 1;
                        }
                    }
                }
                assert_eq!(count, said.len(), "{size}");
            };
            tokio::select! {
                ((), ()) = join(write, peer) => {}
                () = read => {}
            }
        }
        assert!(pongs > 0, "no pong came between");
    }
}
