//! The body of a request, which outlives the handler that does not read it to its end.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

/// How long a client may go on to send a body that nobody reads, after the answer.
const LINGER: Duration = Duration::from_secs(10);

/// The body of a request. A clone is the same body.
#[derive(Clone, Debug)]
pub(super) struct RequestBody(Arc<Mutex<Incoming>>);

impl RequestBody {
    pub(super) fn new(incoming: Incoming) -> Self {
        Self(Arc::new(Mutex::new(incoming)))
    }

    fn lock(&self) -> MutexGuard<'_, Incoming> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut *self.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().size_hint()
    }
}

/// The body of a request that was answered without it. What comes of it is dropped for a while: a socket that is closed
/// with unread bytes is reset, and the client would not see the answer.
#[derive(Debug)]
pub(super) struct Unread {
    body: RequestBody,
    until: Pin<Box<Sleep>>,
}

impl Unread {
    pub(super) fn new(body: RequestBody) -> Self {
        let until = Box::pin(sleep(LINGER));
        Self { body, until }
    }

    /// Drops what comes, until the end of the body or of the time for it.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.until.as_mut().poll(cx).is_pending() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            }
        }
        Poll::Ready(())
    }
}
