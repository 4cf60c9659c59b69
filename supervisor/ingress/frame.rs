//! Heads of WebSocket frames (RFC 6455, 5.2).

use tokio::io::ReadBuf;

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
