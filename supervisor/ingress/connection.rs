//! One HTTP connection: its socket, with or without TLS, and the time limits on each of its phases.
//!
//! hyper reads requests and writes answers; here it is watched. The bodies of requests have time limits of their own
//! (see `extract`), and so have WebSockets (see `stream`), which leave this module when they begin.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::connections::{Phase, Place, Standing};
use super::liveness::Progress;
use request_body::{RequestBody, Unread};

mod request_body;

/// The largest head of a request, and the size up to which hyper's read buffer of a connection grows.
const MAX_BUFFER_BYTES: usize = 32 << 10;

/// The length of an answer for which a client has the whole time limit once more: films are long, and at the default
/// limit a client of 14 kB/s gets any.
const ANSWER_PART_BYTES: u64 = 4 << 20;

/// Time limits on the phases of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeLimits {
    /// From the beginning of the connection to its first byte, and from the first byte of a request to the end of its
    /// head.
    pub(crate) head: Duration,
    /// From the end of an answer to the first byte of the next request.
    pub(crate) idle: Duration,
    /// In which the client has to take at least a byte of an answer.
    pub(crate) answer_stall: Duration,
    /// From the beginning of an answer to its end, for each [`ANSWER_PART_BYTES`] of it.
    pub(crate) answer: Duration,
}

impl TimeLimits {
    /// Returns the time for an answer of so many parts.
    fn whole_answer(&self, parts: u32) -> Duration {
        self.answer.saturating_mul(parts)
    }
}

/// Time limits on receiving the body of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    pub(crate) total: Duration,
    /// From one part to the next.
    pub(crate) idle: Duration,
}

/// An accepted connection, as its socket, its task and the requests on it share it.
#[derive(Debug)]
pub(crate) struct Connection {
    // Before `place`, so that a place is free once the file descriptor is.
    pub(super) stream: TcpStream,
    heard: AtomicU64,
    written: AtomicU64,
    /// The number of parts that the answer has for its time limit.
    answer_parts: AtomicU32,
    /// Where the last WebSocket message ends in what was written; `u64::MAX` while one is being written.
    message_end: AtomicU64,
    unread: Mutex<Option<Unread>>,
    pub(crate) place: Place,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, place: Place) -> Self {
        Self {
            stream,
            heard: AtomicU64::new(0),
            written: AtomicU64::new(0),
            answer_parts: AtomicU32::new(1),
            message_end: AtomicU64::new(0),
            unread: Mutex::default(),
            place,
        }
    }

    /// Returns the number of bytes that the peer's system has acknowledged.
    fn taken(&self) -> u64 {
        let written = self.written.load(Ordering::Relaxed);
        written.saturating_sub(unacknowledged(&self.stream))
    }

    /// Tells that a WebSocket message, which is no ping, is being written until the returned value is dropped.
    pub(crate) fn write_message(&self) -> MessageWrite<'_> {
        self.message_end.store(u64::MAX, Ordering::Relaxed);
        MessageWrite(self)
    }

    /// Returns what the peer of a WebSocket has done.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            heard: self.heard.load(Ordering::Relaxed),
            taken: self.taken().min(self.message_end.load(Ordering::Relaxed)),
        }
    }

    /// Returns when the present phase ends the connection; `None` for the phases that have their limits elsewhere.
    fn deadline(&self, limits: &TimeLimits, progress: Instant) -> Option<Instant> {
        let Standing { phase, since } = self.place.standing();
        match phase {
            Phase::Idle => Some(since + limits.idle),
            Phase::Fresh | Phase::Head => Some(since + limits.head),
            Phase::Request => None,
            Phase::Answer => {
                let stalled = progress.max(since) + limits.answer_stall;
                let parts = self.answer_parts.load(Ordering::Relaxed);
                Some(stalled.min(since + limits.whole_answer(parts)))
            }
            // The answer to the handshake has not been written yet.
            Phase::Silent | Phase::Opening | Phase::Session => Some(since + limits.head),
        }
    }

    /// Drops what comes of a body that nobody reads.
    fn poll_unread(&self, cx: &mut Context<'_>) {
        let mut unread = self.lock_unread();
        if unread
            .as_mut()
            .is_some_and(|unread| unread.poll_end(cx).is_ready())
        {
            *unread = None;
            if self.place.standing().phase == Phase::Answer {
                self.place.enter_phase(Phase::Idle);
            }
            // hyper goes on, or closes the connection where the body has not ended.
            cx.waker().wake_by_ref();
        }
    }

    fn lock_unread(&self) -> MutexGuard<'_, Option<Unread>> {
        self.unread.lock().expect("no holder of this lock panics")
    }

    /// Takes note of bytes of requests or messages.
    fn note_content(&self, bytes: usize) {
        if bytes > 0 && matches!(self.place.standing().phase, Phase::Fresh | Phase::Idle) {
            self.place.enter_phase(Phase::Head);
        }
    }
}

/// A WebSocket message that is being written.
#[derive(Debug)]
pub(crate) struct MessageWrite<'a>(&'a Connection);

impl Drop for MessageWrite<'_> {
    fn drop(&mut self) {
        let written = self.0.written.load(Ordering::Relaxed);
        self.0.message_end.store(written, Ordering::Relaxed);
    }
}

/// Returns the number of bytes in a socket's send queue that the peer has not acknowledged; 0 when the system does not
/// tell.
#[expect(unsafe_code, reason = "no safe wrapper of this system call exists")]
fn unacknowledged(stream: &TcpStream) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, since `stream` is borrowed, and `TIOCOUTQ` writes one `int`, which `bytes` is.
    let failed = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    match failed {
        0 => u64::try_from(bytes).unwrap_or(0),
        _ => 0,
    }
}

/// Reads and writes the bytes of a connection's TCP stream, and counts them. With TLS these are those of its records.
#[derive(Debug)]
pub(super) struct Wire(Arc<Connection>);

impl Wire {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self(connection)
    }

    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let connection = &self.0;
        loop {
            ready!(connection.stream.poll_write_ready(cx))?;
            match write(&connection.stream) {
                Ok(bytes) => {
                    connection
                        .written
                        .fetch_add(bytes as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let connection = &self.0;
        loop {
            ready!(connection.stream.poll_read_ready(cx))?;
            match connection.stream.try_read_buf(buffer) {
                Ok(bytes) => {
                    connection.heard.fetch_add(bytes as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.0.stream).shutdown(Shutdown::Write))
    }
}

/// Reads what a connection's peer says and writes what it is told, with or without TLS.
#[derive(Debug)]
pub(crate) struct Socket {
    connection: Arc<Connection>,
    stream: SocketStream,
}

#[derive(Debug)]
enum SocketStream {
    Plain(Wire),
    /// Boxed, since it has several hundred bytes. What is written is copied to be encrypted, and some of it may wait for a
    /// flush.
    Tls(Box<TlsStream<Wire>>),
}

impl Socket {
    /// Creates the socket of a connection without TLS.
    pub(super) fn plain(connection: Arc<Connection>) -> Self {
        Self {
            stream: SocketStream::Plain(Wire::new(connection.clone())),
            connection,
        }
    }

    /// Creates the socket of a connection whose TLS handshake is done.
    pub(super) fn encrypted(connection: Arc<Connection>, stream: TlsStream<Wire>) -> Self {
        Self {
            stream: SocketStream::Tls(Box::new(stream)),
            connection,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(match &mut this.stream {
            SocketStream::Plain(wire) => Pin::new(wire).poll_read(cx, buffer),
            SocketStream::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
        })?;
        this.connection.note_content(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            SocketStream::Plain(wire) => Pin::new(wire).poll_write(cx, bytes),
            SocketStream::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            SocketStream::Plain(wire) => Pin::new(wire).poll_write_vectored(cx, slices),
            SocketStream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            SocketStream::Plain(wire) => Pin::new(wire).poll_flush(cx),
            SocketStream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            SocketStream::Plain(wire) => Pin::new(wire).poll_shutdown(cx),
            SocketStream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// Serves the requests of a connection until the client ends it, a time limit passes, it has to make room for another
/// one, or `stopping` is cancelled and no request is under way. Returns early when the connection becomes a WebSocket.
pub(crate) async fn serve(
    socket: Socket,
    peer: SocketAddr,
    router: Router,
    limits: TimeLimits,
    stopping: CancellationToken,
) {
    let connection = socket.connection.clone();
    let requests = TowerToHyperService::new(router);
    let service = service_fn(|request| answer(&connection, peer, &requests, request));
    let io = TokioIo::new(socket);
    let mut builder = http1::Builder::new();
    // The limits here cover what hyper's own would.
    builder
        .max_buf_size(MAX_BUFFER_BYTES)
        .header_read_timeout(None);
    let mut http = pin!(builder.serve_connection(io, service).with_upgrades());
    let mut taken = (0, Instant::now());
    let mut is_ending = false;
    loop {
        let deadline = || connection.deadline(&limits, taken.1);
        let mut going_on = poll_fn(|cx| {
            let ended = http.as_mut().poll(cx);
            if ended.is_pending() {
                connection.poll_unread(cx);
            }
            ended
        });
        tokio::select! {
            biased;
            ended = until_deadline(&mut going_on, deadline) => match ended {
                Some(Ok(())) => return,
                Some(Err(error)) => {
                    tracing::trace!(%error, "connection ended");
                    return;
                }
                None => {
                    let now = connection.taken();
                    let standing = connection.place.standing();
                    let parts = connection.answer_parts.load(Ordering::Relaxed);
                    let may_go_on = standing.phase == Phase::Answer
                        && now > taken.0
                        && Instant::now() < standing.since + limits.whole_answer(parts);
                    if !may_go_on {
                        tracing::debug!(%peer, phase = ?standing.phase, "time limit of a connection has passed");
                        return;
                    }
                    taken = (now, Instant::now());
                }
            },
            () = connection.place.displaced(), if !is_ending => {
                let phase = connection.place.standing().phase;
                if matches!(phase, Phase::Fresh | Phase::Head) {
                    tracing::debug!(%peer, "connection closed for another one");
                    return;
                }
                is_ending = true;
                http.as_mut().graceful_shutdown();
            }
            () = stopping.cancelled(), if !is_ending => {
                is_ending = true;
                http.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Answers one request.
fn answer(
    connection: &Arc<Connection>,
    peer: SocketAddr,
    requests: &TowerToHyperService<Router>,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response<AnswerBody>, Infallible>> + use<> {
    connection.place.enter_phase(Phase::Request);
    request.extensions_mut().insert(ConnectInfo(peer));
    request.extensions_mut().insert(connection.clone());
    // A client that waits for leave to send its body does not send it after a refusal.
    let may_linger = !request.headers().contains_key(EXPECT);
    let (head, incoming) = request.into_parts();
    let incoming = RequestBody::new(incoming);
    let request = Request::from_parts(head, incoming.clone());
    let answer = requests.call(request);
    let connection = connection.clone();
    async move {
        let answer = answer.await?;
        let is_upgrade = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !is_upgrade {
            let parts = answer_parts(&answer);
            connection.answer_parts.store(parts, Ordering::Relaxed);
            connection.place.enter_phase(Phase::Answer);
        }
        let is_unread = may_linger && !is_upgrade && !incoming.is_end_stream();
        Ok(answer.map(|body| AnswerBody {
            body,
            rest: Bytes::new(),
            unread: is_unread.then_some(incoming),
            connection: (!is_upgrade).then_some(connection),
        }))
    }
}

/// Returns the number of parts of an answer, as its head says its length.
fn answer_parts(answer: &Response) -> u32 {
    let length = answer.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let parts = length.map_or(1, |length: u64| length.div_ceil(ANSWER_PART_BYTES));
    u32::try_from(parts).unwrap_or(u32::MAX).max(1)
}

/// The body of an answer, in parts that fit hyper's buffer. So when hyper drops it, next to all of it is written, and the
/// connection is idle again.
struct AnswerBody {
    body: Body,
    /// What was taken from `body` and not passed on yet.
    rest: Bytes,
    /// The body of the request, if nobody has read it to its end.
    unread: Option<RequestBody>,
    connection: Option<Arc<Connection>>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                ended => return Poll::Ready(ended),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let part = self.rest.len().min(MAX_BUFFER_BYTES);
        let part = self.rest.split_to(part);
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        let Some(connection) = &self.connection else {
            return;
        };
        match self.unread.take() {
            Some(body) => {
                *connection.lock_unread() = Some(Unread::new(body));
            }
            None => connection.place.enter_phase(Phase::Idle),
        }
    }
}

/// Polls a future, and asks for its deadline after each poll. Returns `None` once the deadline has passed.
async fn until_deadline<F: Future + Unpin>(
    future: &mut F,
    deadline: impl Fn() -> Option<Instant>,
) -> Option<F::Output> {
    let mut timer = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        if let Poll::Ready(output) = Pin::new(&mut *future).poll(cx) {
            return Poll::Ready(Some(output));
        }
        let Some(deadline) = deadline() else {
            return Poll::Pending;
        };
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_has_more_time() {
        for (length, parts) in [
            ("", 1),
            ("0", 1),
            ("4194304", 1),
            ("4194305", 2),
            ("268435456", 64),
            ("99999999999999999999", 1),
            ("18446744073709551615", u32::MAX),
        ] {
            let mut answer = Response::new(Body::empty());
            if !length.is_empty() {
                let length = length.parse().expect("a header's value");
                answer.headers_mut().insert(CONTENT_LENGTH, length);
            }
            assert_eq!(answer_parts(&answer), parts, "{length}");
        }
    }
}
