//! WebSockets with servers.
//!
//! Binary messages, which are media, pass the codec by: it would clear the memory that they are read into before each
//! read. Everything else goes through it.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use bytes::{Bytes, BytesMut};
use fastvideo_proto::trace::TraceContext;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_with_config};
use url::Url;

use super::encryption::reason;
use super::health_check::below;
use crate::ingress::frame::{BINARY, FIN, FrameReader, Head, MAX_HEAD_BYTES, Next, OPCODE, Short};
use crate::traces::TRACE_PARENT;

/// The largest message that is taken from a server: a continuation state with its pictures.
pub(super) const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// The size of the codec's read buffer, of which thousands may be idle.
const READ_BUFFER_BYTES: usize = 8 << 10;
/// Binary messages of this length or more pass the codec by.
const MIN_MEDIA_BYTES: u64 = 4096;
/// The most memory that is taken for a message before its bytes come.
const MAX_RESERVED_BYTES: usize = 4 << 20;
/// Time limit on connecting to a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a head of HTTP ends with.
const HEAD_END: &[u8; 4] = b"\r\n\r\n";

/// Why there is no connection to a server.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("it answered {0} to a WebSocket")]
    Refused(StatusCode),
    #[error("{0}")]
    Failed(String),
}

impl ConnectError {
    fn failed(error: impl Error + 'static) -> Self {
        Self::Failed(reason(&error))
    }
}

/// The headers of a handshake that say who asks for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Headers<'a> {
    pub(super) authorization: Option<&'a HeaderValue>,
    /// The span that the connection belongs to.
    pub(super) trace: Option<TraceContext>,
}

impl Headers<'_> {
    fn add_to(self, head: &mut HeaderMap) {
        if let Some(authorization) = self.authorization {
            head.insert(AUTHORIZATION, authorization.clone());
        }
        if let Some(trace) = self.trace {
            let value = HeaderValue::try_from(trace.to_string());
            let value = value.expect("digits and hyphens are a header's value");
            head.insert(TRACE_PARENT, value);
        }
    }
}

/// Opens a connection to a server, below whose address the path lies. Messages may have
/// `max_message_bytes` at most.
///
/// # Errors
/// Returns why there is none.
pub(super) async fn connect(
    base: &Url,
    path: &str,
    headers: Headers<'_>,
    tls: Option<Arc<ClientConfig>>,
    max_message_bytes: usize,
) -> Result<ServerSocket, ConnectError> {
    let connecting = async {
        let url = socket_url(base, path).map_err(ConnectError::Failed)?;
        let request = url.as_str().into_client_request();
        let mut request = request.map_err(ConnectError::failed)?;
        headers.add_to(request.headers_mut());
        // An IPv6 address stands in brackets.
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().unwrap_or_default();
        let stream = TcpStream::connect((host, port)).await;
        let stream = stream.map_err(ConnectError::failed)?;
        stream.set_nodelay(true).map_err(ConnectError::failed)?;
        let stream = match tls {
            Some(config) if url.scheme() == "wss" => {
                let name = ServerName::try_from(host.to_owned()).map_err(ConnectError::failed)?;
                let stream = TlsConnector::from(config).connect(name, stream).await;
                MaybeTlsStream::Rustls(stream.map_err(ConnectError::failed)?)
            }
            _ if url.scheme() == "wss" => {
                let reason = "this router trusts no certificates".to_owned();
                return Err(ConnectError::Failed(reason));
            }
            _ => MaybeTlsStream::Plain(stream),
        };
        begin(request, stream, max_message_bytes).await
    };
    let connected = timeout(CONNECT_TIMEOUT, connecting).await;
    connected.unwrap_or_else(|_| {
        let limit = CONNECT_TIMEOUT.as_secs();
        Err(ConnectError::Failed(format!("no answer within {limit} s")))
    })
}

/// Begins a WebSocket over a stream.
async fn begin<T: AsyncRead + AsyncWrite + Unpin>(
    request: Request,
    stream: T,
    max_message_bytes: usize,
) -> Result<ServerSocket<T>, ConnectError> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(max_message_bytes))
        .max_frame_size(Some(max_message_bytes))
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0);
    let io = MediaIo::new(stream, max_message_bytes);
    match client_async_with_config(request, io, Some(config)).await {
        Ok((codec, _)) => Ok(ServerSocket(codec)),
        Err(tungstenite::Error::Http(answer)) => Err(ConnectError::Refused(answer.status())),
        Err(error) => Err(ConnectError::failed(error)),
    }
}

/// Returns the address of a WebSocket below that of a server.
///
/// # Errors
/// Returns an error when the server's address can be none of a WebSocket.
fn socket_url(base: &Url, path: &str) -> Result<Url, String> {
    let mut url = below(base, path);
    let scheme = match base.scheme() {
        "https" => "wss",
        _ => "ws",
    };
    url.set_scheme(scheme)
        .map_err(|()| "its address has no host".to_owned())?;
    Ok(url)
}

/// A WebSocket with a server.
pub(super) struct ServerSocket<T = MaybeTlsStream<TcpStream>>(WebSocketStream<MediaIo<T>>);

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for ServerSocket<T> {
    type Item = tungstenite::Result<Message>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.0.poll_next_unpin(cx);
        match self.0.get_mut().complete.take() {
            // The codec waits for the frame after it.
            Some(message) => Poll::Ready(Some(Ok(Message::Binary(message)))),
            None => next,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Sink<Message> for ServerSocket<T> {
    type Error = tungstenite::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<tungstenite::Result<()>> {
        self.0.poll_ready_unpin(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> tungstenite::Result<()> {
        self.0.start_send_unpin(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<tungstenite::Result<()>> {
        self.0.poll_flush_unpin(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<tungstenite::Result<()>> {
        self.0.poll_close_unpin(cx)
    }
}

/// What lies between a server's socket and the codec: takes media out.
struct MediaIo<T> {
    frames: FrameReader<T>,
    max_message_bytes: usize,
    /// Number of bytes of [`HEAD_END`] that the server's answer to the handshake has so far.
    answered: usize,
    /// The head that is passed to the codec next.
    head: Short,
    /// Payload of a frame that is passed to the codec.
    rest: u64,
    /// Whether the last frame of a message is still to come.
    is_fragmented: bool,
    media: Option<Media>,
    /// A message that was read whole.
    complete: Option<Bytes>,
}

/// A message that is being read.
struct Media {
    bytes: BytesMut,
    length: usize,
}

impl<T: AsyncRead + Unpin> MediaIo<T> {
    fn new(io: T, max_message_bytes: usize) -> Self {
        Self {
            frames: FrameReader::new(io, Bytes::new()),
            max_message_bytes,
            answered: 0,
            head: Short::default(),
            rest: 0,
            is_fragmented: false,
            media: None,
            complete: None,
        }
    }

    /// Reads the answer to the handshake, and nothing beyond it.
    fn poll_answer(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 1024];
        let limit = out.remaining().min(bytes.len());
        let mut read = ReadBuf::new(&mut bytes[..limit]);
        ready!(Pin::new(self.frames.io()).poll_read(cx, &mut read))?;
        let read = read.filled();
        let mut answer = 0;
        while answer < read.len() && self.answered < HEAD_END.len() {
            self.answered = match read[answer] {
                byte if byte == HEAD_END[self.answered] => self.answered + 1,
                b'\r' => 1,
                _ => 0,
            };
            answer += 1;
        }
        out.put_slice(&read[..answer]);
        self.frames
            .read_before(Bytes::copy_from_slice(&read[answer..]));
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.head.is_empty() {
                self.head.pass(out, MAX_HEAD_BYTES);
                return Poll::Ready(Ok(()));
            }
            if self.rest > 0 {
                self.rest -= ready!(self.frames.poll_payload(cx, out, self.rest))?;
                return Poll::Ready(Ok(()));
            }
            if let Some(Media { bytes, length }) = &mut self.media {
                let reading = self
                    .frames
                    .poll_whole(cx, bytes, *length, MAX_RESERVED_BYTES);
                if !ready!(reading)? {
                    return Poll::Ready(Ok(()));
                }
                self.complete = self.media.take().map(|media| media.bytes.freeze());
                // Nobody is to be woken: it is taken now.
                return Poll::Pending;
            }
            match ready!(self.frames.poll_head(cx))? {
                Next::Frame(head) => self.begin_frame(head),
                Next::End(rest) if rest.is_empty() => return Poll::Ready(Ok(())),
                // The codec is told of a head that ends too early.
                Next::End(rest) => self.head = rest,
            }
        }
    }

    fn begin_frame(&mut self, head: Head) {
        let is_whole = head.first_byte == FIN | BINARY && head.mask.is_none();
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        let is_media = is_whole
            && !self.is_fragmented
            && head.length >= MIN_MEDIA_BYTES
            && length <= self.max_message_bytes;
        if !is_media {
            if head.first_byte & OPCODE <= BINARY {
                self.is_fragmented = head.first_byte & FIN == 0;
            }
            self.rest = head.length;
            self.head = head.encode();
            return;
        }
        // With room for the next head.
        let capacity = length.min(MAX_RESERVED_BYTES) + MAX_HEAD_BYTES;
        let bytes = BytesMut::with_capacity(capacity);
        self.media = Some(Media { bytes, length });
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for MediaIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.answered < HEAD_END.len() {
            true => this.poll_answer(cx, out),
            false => this.poll_next(cx, out),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for MediaIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.frames.io()).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.frames.io()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.frames.io()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
