//! What lies between the socket of a WebSocket and its codec: bounds the memory and the time that a client's message
//! takes until it is complete.
//!
//! The codec keeps a frame whole in memory, and the buffer that it read the largest frame into for as long as the
//! connection lives. So large frames are passed on as several small ones, which is the same message (RFC 6455, 5.4).
//! Before its payload is read, a message takes its share of the memory for what clients are sending.
//!
//! What is sent goes through the codec, which copies it, except for large binary messages.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::frame::{
    BINARY, CONTINUATION, FIN, FrameReader, Head, MAX_HEAD_BYTES, Next, OPCODE, RESERVED_BITS,
    Short,
};
use crate::byte_budget::{ByteBudget, Exhausted, Share};
use crate::client_address::ClientAddress;

/// How long a message or a body waits for its share of the memory.
pub(crate) const SHARE_WAIT: Duration = Duration::from_secs(5);
/// What every connection may have in memory without a share. The messages of an open session fit, so they do not wait.
const FREE_BYTES: u64 = 16 << 10;
/// The payload of the frames that a large one is passed on as. A multiple of four, so that each begins with the first
/// byte of the mask.
const PIECE_BYTES: u16 = 32 << 10;
/// The longest payload of a control frame.
const MAX_CONTROL_BYTES: u64 = 125;

/// Returns how many bytes of the budget a message of this length needs besides those that it has; `None` when it has
/// enough.
pub(crate) fn missing_share(length: u64, share: &Share) -> Option<u64> {
    let missing = length.saturating_sub(share.bytes());
    (length > FREE_BYTES && missing > 0).then_some(missing)
}

/// Limits on the messages of one client.
#[derive(Clone, Debug)]
pub(crate) struct MessageLimits {
    /// The largest message, in bytes.
    pub(crate) max_bytes: u64,
    /// From the first byte of a message to its last.
    pub(crate) timeout: Duration,
    pub(crate) client: ClientAddress,
    pub(crate) budget: ByteBudget,
}

/// Why a message is not read to its end. It is the inner error of an [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Interrupted {
    #[error("the message is too large")]
    TooLarge,
    #[error("the message took too long")]
    TooSlow,
    #[error("a frame's head is wrong")]
    Protocol,
    #[error(transparent)]
    NoShare(#[from] Exhausted),
}

impl From<Interrupted> for io::Error {
    fn from(interrupted: Interrupted) -> Self {
        Self::other(interrupted)
    }
}

/// The share of the last complete message, for whoever takes the message. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct CompleteShare(Arc<Mutex<Share>>);

impl CompleteShare {
    /// Takes the share of the message that the codec has just returned.
    pub(crate) fn take(&self) -> Share {
        mem::take(&mut *self.0.lock().expect("no holder of this lock panics"))
    }

    fn put(&self, share: Share) {
        *self.0.lock().expect("no holder of this lock panics") = share;
    }
}

/// Reads a client's frames from `T`, within limits, and writes to `T`.
pub(crate) struct MessageIo<T> {
    frames: FrameReader<T>,
    limits: MessageLimits,
    /// Called when the first byte of a message has come.
    on_message: Box<dyn Fn() + Send + Sync>,
    complete: CompleteShare,
    /// The head that is passed on next.
    head: Short,
    frame: Frame,
    message: Option<Box<Message>>,
    outgoing: Option<Outgoing>,
}

/// A frame that is written beside the codec.
struct Outgoing {
    head: Short,
    payload: Bytes,
}

/// The frame that is being passed on.
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    /// Whether it is a part of a message and not a control frame.
    is_data: bool,
    ends_message: bool,
    /// The opcode of the next piece.
    opcode: u8,
    mask: [u8; 4],
    /// Payload of the present piece that was not passed on yet.
    piece: u64,
    /// Payload after the present piece.
    rest: u64,
}

/// A message that is being received.
struct Message {
    /// Payload of the frames whose heads have come.
    bytes: u64,
    share: Share,
    /// Waits for more of the budget.
    waiting: Option<BoxFuture<'static, Result<Share, Exhausted>>>,
    timeout: Pin<Box<Sleep>>,
}

impl<T: AsyncRead + Unpin> MessageIo<T> {
    /// Reads from `io`, after the bytes that were read from it before. Calls `on_message` at the first byte of each
    /// message.
    pub(crate) fn new(
        io: T,
        before: Bytes,
        limits: MessageLimits,
        on_message: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            frames: FrameReader::new(io, before),
            limits,
            on_message: Box::new(on_message),
            complete: CompleteShare::default(),
            head: Short::default(),
            frame: Frame::default(),
            message: None,
            outgoing: None,
        }
    }

    /// Returns the place where the share of a message lies once it is complete.
    pub(crate) fn complete_share(&self) -> CompleteShare {
        self.complete.clone()
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.head.is_empty() {
                self.head.pass(out, MAX_HEAD_BYTES);
                return Poll::Ready(Ok(()));
            }
            if self.frame.piece > 0 {
                ready!(self.poll_share(cx))?;
                return self.poll_payload(cx, out);
            }
            if self.frame.rest > 0 {
                self.begin_piece();
                continue;
            }
            match ready!(self.frames.poll_head(cx))? {
                Next::Frame(head) => self.begin_frame(head)?,
                Next::End(rest) if rest.is_empty() => return Poll::Ready(Ok(())),
                // The codec is told of a head that ends too early.
                Next::End(rest) => self.head = rest,
            }
        }
    }

    /// Passes on payload of the present piece.
    fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.frame.piece -= ready!(self.frames.poll_payload(cx, out, self.frame.piece))?;
        if self.frame.piece == 0 && self.frame.rest == 0 {
            self.end_frame();
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for the message's share, if it does not have all of it.
    fn poll_share(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(message) = &mut self.message
            && let Some(waiting) = &mut message.waiting
        {
            let taken = ready!(waiting.as_mut().poll(cx));
            message.share.add(taken.map_err(Interrupted::from)?);
            message.waiting = None;
        }
        Poll::Ready(Ok(()))
    }

    fn begin_frame(&mut self, head: Head) -> Result<(), Interrupted> {
        let Head { first_byte, .. } = head;
        let is_data = first_byte & OPCODE <= BINARY && first_byte & RESERVED_BITS == 0;
        let Some(mask) = head.mask.filter(|_| is_data) else {
            if head.length > MAX_CONTROL_BYTES {
                return Err(Interrupted::Protocol);
            }
            // A control frame, or one that the codec refuses.
            self.frame = Frame {
                piece: head.length,
                ..Frame::default()
            };
            self.head = head.encode();
            return Ok(());
        };
        let before = self.message.as_ref().map_or(0, |message| message.bytes);
        let bytes = before.saturating_add(head.length);
        if bytes > self.limits.max_bytes {
            return Err(Interrupted::TooLarge);
        }
        let message = self.message.get_or_insert_with(|| {
            (self.on_message)();
            Box::new(Message {
                bytes: 0,
                share: Share::default(),
                waiting: None,
                timeout: Box::pin(sleep(self.limits.timeout)),
            })
        });
        message.bytes = bytes;
        if let Some(missing) = missing_share(bytes, &message.share) {
            let MessageLimits { client, budget, .. } = self.limits.clone();
            message.waiting = Some(Box::pin(async move {
                budget.take(client, missing, SHARE_WAIT).await
            }));
        }
        self.frame = Frame {
            is_data: true,
            ends_message: first_byte & FIN != 0,
            opcode: first_byte & OPCODE,
            mask,
            piece: 0,
            rest: head.length,
        };
        self.begin_piece();
        if head.length == 0 {
            self.end_frame();
        }
        Ok(())
    }

    /// Makes the head of the frame's next piece.
    fn begin_piece(&mut self) {
        let frame = &mut self.frame;
        let piece = frame.rest.min(PIECE_BYTES.into());
        frame.piece = piece;
        frame.rest -= piece;
        let ends_message = frame.ends_message && frame.rest == 0;
        let head = Head {
            first_byte: frame.opcode | if ends_message { FIN } else { 0 },
            length: piece,
            mask: Some(frame.mask),
            bytes: 0,
        };
        frame.opcode = CONTINUATION;
        self.head = head.encode();
    }

    fn end_frame(&mut self) {
        if self.frame.is_data
            && self.frame.ends_message
            && let Some(message) = self.message.take()
        {
            self.complete.put(message.share);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for MessageIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(read) = this.poll_next(cx, out) {
            return Poll::Ready(read);
        }
        if let Some(message) = &mut this.message {
            ready!(message.timeout.as_mut().poll(cx));
            return Poll::Ready(Err(Interrupted::TooSlow.into()));
        }
        Poll::Pending
    }
}

impl<T: AsyncWrite + Unpin> MessageIo<T> {
    /// Whether a message of [`write_binary`](Self::write_binary) is still to be written.
    pub(crate) fn is_writing(&self) -> bool {
        self.outgoing.is_some()
    }

    /// Writes a binary message before everything that the codec writes from now on, without a copy of it. The codec must
    /// have flushed what it had. Returns the message when another one is still being written.
    pub(crate) fn write_binary(&mut self, payload: Bytes) -> Result<(), Bytes> {
        if self.outgoing.is_some() {
            return Err(payload);
        }
        let head = Head {
            first_byte: FIN | BINARY,
            length: payload.len() as u64,
            mask: None,
            bytes: 0,
        };
        let head = head.encode();
        self.outgoing = Some(Outgoing { head, payload });
        Ok(())
    }

    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(Outgoing { head, payload }) = &mut self.outgoing {
            let slices = [IoSlice::new(head.bytes()), IoSlice::new(payload)];
            let slices = if head.is_empty() {
                &slices[1..]
            } else {
                &slices
            };
            let written = ready!(Pin::new(self.frames.io()).poll_write_vectored(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(head.bytes().len());
            head.skip(of_head);
            payload.advance(written - of_head);
            if head.is_empty() && payload.is_empty() {
                self.outgoing = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for MessageIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_outgoing(cx))?;
        Pin::new(self.frames.io()).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_outgoing(cx))?;
        Pin::new(self.frames.io()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.frames.io()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
