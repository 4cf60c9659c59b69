//! WebSocket frames (RFC 6455, 5.2): their heads, and a reader of them.

use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// The longest head of a frame.
pub(crate) const MAX_HEAD_BYTES: usize = 14;

pub(crate) const FIN: u8 = 0x80;
pub(crate) const RESERVED_BITS: u8 = 0x70;
pub(crate) const OPCODE: u8 = 0x0f;
pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const BINARY: u8 = 2;
pub(crate) const MASKED: u8 = 0x80;

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// The opcode, and the bits before it.
    pub(crate) first_byte: u8,
    /// The length of the payload.
    pub(crate) length: u64,
    pub(crate) mask: Option<[u8; 4]>,
    /// The length of the head itself.
    pub(crate) bytes: usize,
}

impl Head {
    /// Parses a head; `None` when it is not complete.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[first_byte, second_byte], rest) = bytes.split_first_chunk()?;
        let (length, rest) = match second_byte & !MASKED {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u16::from_be_bytes(*length).into(), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            short => (short.into(), rest),
        };
        let (mask, rest) = match second_byte & MASKED {
            0 => (None, rest),
            _ => {
                let (mask, rest) = rest.split_first_chunk()?;
                (Some(*mask), rest)
            }
        };
        Some(Self {
            first_byte,
            length,
            mask,
            bytes: bytes.len() - rest.len(),
        })
    }

    pub(crate) fn encode(&self) -> Short {
        let masked = if self.mask.is_some() { MASKED } else { 0 };
        let mut head = Short::default();
        head.push(&[self.first_byte]);
        match (u8::try_from(self.length), u16::try_from(self.length)) {
            (Ok(length @ 0..126), _) => head.push(&[masked | length]),
            (_, Ok(length)) => {
                head.push(&[masked | 126]);
                head.push(&length.to_be_bytes());
            }
            _ => {
                head.push(&[masked | 127]);
                head.push(&self.length.to_be_bytes());
            }
        }
        if let Some(mask) = self.mask {
            head.push(&mask);
        }
        head
    }
}

/// A queue of a few bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Short {
    bytes: [u8; MAX_HEAD_BYTES],
    start: usize,
    end: usize,
}

impl Short {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Adds bytes. There must be room for them.
    pub(crate) fn push(&mut self, more: &[u8]) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.bytes[self.end..][..more.len()].copy_from_slice(more);
        self.end += more.len();
    }

    pub(crate) fn skip(&mut self, count: usize) {
        self.start += count;
    }

    /// Moves at most `limit` bytes to `out`, and returns how many.
    pub(crate) fn pass(&mut self, out: &mut ReadBuf<'_>, limit: usize) -> usize {
        let count = limit.min(out.remaining()).min(self.bytes().len());
        out.put_slice(&self.bytes()[..count]);
        self.skip(count);
        count
    }
}

/// Reads frames from `T`: their heads, and the payload after each.
pub(crate) struct FrameReader<T> {
    io: T,
    /// What was read before the first frame.
    before: Bytes,
    /// Bytes that were read with a head and are not part of it, or of what follows it.
    unread: Short,
}

/// What follows a frame.
pub(crate) enum Next {
    Frame(Head),
    /// The connection has ended, with these bytes of a head.
    End(Short),
}

impl<T> FrameReader<T> {
    /// Reads from `io`, after the bytes that were read from it before.
    pub(crate) fn new(io: T, before: Bytes) -> Self {
        Self {
            io,
            before,
            unread: Short::default(),
        }
    }

    /// Takes what was read before the first frame.
    pub(crate) fn read_before(&mut self, before: Bytes) {
        self.before = before;
    }

    /// Returns what the frames are read from.
    pub(crate) fn io(&mut self) -> &mut T {
        &mut self.io
    }
}

impl<T: AsyncRead + Unpin> FrameReader<T> {
    /// Reads the head of the next frame. The payload of the last one must have been read.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Next>> {
        loop {
            if let Some(head) = Head::parse(self.unread.bytes()) {
                self.unread.skip(head.bytes);
                return Poll::Ready(Ok(Next::Frame(head)));
            }
            let mut bytes = [0; MAX_HEAD_BYTES];
            let mut more = ReadBuf::new(&mut bytes[self.unread.bytes().len()..]);
            ready!(self.poll_source(cx, &mut more))?;
            match more.filled() {
                [] => return Poll::Ready(Ok(Next::End(mem::take(&mut self.unread)))),
                more => self.unread.push(more),
            }
        }
    }

    /// Passes on at most `limit` bytes of payload, and returns how many; 0 when the connection has ended.
    pub(crate) fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        limit: u64,
    ) -> Poll<io::Result<u64>> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let limit = limit.min(out.remaining());
        let count = if self.unread.is_empty() {
            let mut part = ReadBuf::new(out.initialize_unfilled_to(limit));
            ready!(self.poll_source(cx, &mut part))?;
            let count = part.filled().len();
            out.advance(count);
            count
        } else {
            self.unread.pass(out, limit)
        };
        Poll::Ready(Ok(count as u64))
    }

    /// Reads a payload of that length to its end, into memory that is reserved for at most `reserved` bytes ahead. Returns
    /// whether it is there: not when the connection has ended.
    pub(crate) fn poll_whole(
        &mut self,
        cx: &mut Context<'_>,
        payload: &mut BytesMut,
        length: usize,
        reserved: usize,
    ) -> Poll<io::Result<bool>> {
        payload.extend_from_slice(self.unread.bytes());
        self.unread = Short::default();
        while payload.len() < length {
            let missing = length - payload.len();
            payload.reserve(missing.min(reserved));
            // With the next head, so that a read that has read everything is known to have.
            let limit = missing + MAX_HEAD_BYTES;
            if self.before.is_empty() {
                let mut part = (&mut *payload).limit(limit);
                if ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut part))? == 0 {
                    return Poll::Ready(Ok(false));
                }
            } else {
                let count = self.before.len().min(limit);
                payload.extend_from_slice(&self.before.split_to(count));
            }
        }
        self.unread.push(&payload[length..]);
        payload.truncate(length);
        Poll::Ready(Ok(true))
    }

    /// Reads what follows the bytes in `unread`.
    fn poll_source(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.before.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, out);
        }
        let count = out.remaining().min(self.before.len());
        out.put_slice(&self.before[..count]);
        self.before.advance(count);
        Poll::Ready(Ok(()))
    }
}
