//! Boxes in a buffer, one level at a time.
//!
//! `mp4-atom` reads and writes the boxes that hold numbers. It is not used for boxes of boxes: it would read all that
//! is in them, known to this package or not, and it does not give back the exact bytes of a sample entry.

use mp4_atom::{Atom, Decode, FourCC, Header};

use crate::error::IndexError;

/// A box of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawBox<'a> {
    pub(crate) kind: FourCC,
    /// The place of its first byte in the segment.
    pub(crate) at: u64,
    /// What follows its header.
    pub(crate) body: &'a [u8],
    /// The place of the first byte of `body` in the segment.
    pub(crate) body_at: u64,
}

/// The boxes in `bytes`, whose first byte is at `at` in the segment. It ends after an error.
#[derive(Debug)]
pub(crate) struct Boxes<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl<'a> Boxes<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: u64) -> Self {
        Self { bytes, at }
    }
}

impl<'a> Iterator for Boxes<'a> {
    type Item = Result<RawBox<'a>, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let at = self.at;
        let next = split(self.bytes, at);
        self.bytes = match next {
            Ok((_, rest)) => rest,
            Err(_) => &[],
        };
        let next = next.map(|(raw, _)| raw);
        if let Ok(raw) = &next {
            self.at = raw.end();
        }
        Some(next)
    }
}

/// Splits `bytes` after its first box.
fn split(bytes: &[u8], at: u64) -> Result<(RawBox<'_>, &[u8]), IndexError> {
    let cut = || IndexError::Cut { at };
    let mut rest = bytes;
    let header = Header::decode(&mut rest).map_err(|_| cut())?;
    let body_at = at + (bytes.len() - rest.len()) as u64;
    // A box of no size would reach to the end of a file; a segment is not a file.
    let size = header.size.ok_or_else(cut)?;
    let (body, rest) = rest.split_at_checked(size).ok_or_else(cut)?;
    let raw = RawBox {
        kind: header.kind,
        at,
        body,
        body_at,
    };
    Ok((raw, rest))
}

impl<'a> RawBox<'a> {
    /// The place after its last byte in the segment.
    pub(crate) fn end(&self) -> u64 {
        self.body_at + self.body.len() as u64
    }

    pub(crate) fn is(&self, kind: &[u8; 4]) -> bool {
        self.kind == kind.into()
    }

    /// The children of one kind. It ends after an error.
    pub(crate) fn all(
        &self,
        kind: &'static [u8; 4],
    ) -> impl Iterator<Item = Result<RawBox<'a>, IndexError>> + use<'a> {
        Boxes::new(self.body, self.body_at)
            .filter(move |child| child.as_ref().map_or(true, |child| child.is(kind)))
    }

    /// Returns the only child of a kind, if there is one.
    ///
    /// # Errors
    /// Returns an error when there are several, or the children are not whole boxes.
    pub(crate) fn optional(
        &self,
        kind: &'static [u8; 4],
    ) -> Result<Option<RawBox<'a>>, IndexError> {
        let mut children = self.all(kind);
        let child = children.next().transpose()?;
        match children.next().transpose()? {
            None => Ok(child),
            Some(second) => Err(second.invalid("a second box of its kind")),
        }
    }

    /// Returns the only child of a kind.
    ///
    /// # Errors
    /// Returns an error when there is not exactly one, or the children are not whole boxes.
    pub(crate) fn required(&self, kind: &'static [u8; 4]) -> Result<RawBox<'a>, IndexError> {
        self.optional(kind)?.ok_or(IndexError::Missing {
            kind: kind.into(),
            at: self.at,
        })
    }

    /// Reads its numbers.
    ///
    /// # Errors
    /// Returns an error when they are not those of a `T`, or bytes are left over.
    pub(crate) fn decode<T: Atom>(&self) -> Result<T, IndexError> {
        let fail = |source| IndexError::Box {
            kind: T::KIND,
            at: self.at,
            source,
        };
        let mut body = self.body;
        let atom = T::decode_body(&mut body).map_err(fail)?;
        if !body.is_empty() {
            return Err(fail(mp4_atom::Error::UnderDecode(T::KIND)));
        }
        Ok(atom)
    }

    /// Returns the big-endian number at a place in its body.
    ///
    /// # Errors
    /// Returns an error when the body ends before.
    pub(crate) fn number(&self, at: usize) -> Result<u32, IndexError> {
        let bytes = self.body.get(at..).and_then(<[u8]>::first_chunk);
        let bytes = bytes.ok_or_else(|| self.invalid("a box that is too short"))?;
        Ok(u32::from_be_bytes(*bytes))
    }

    pub(crate) fn invalid(&self, what: &'static str) -> IndexError {
        IndexError::Invalid { what, at: self.at }
    }

    pub(crate) fn unsupported(&self, what: &'static str) -> IndexError {
        IndexError::Unsupported { what, at: self.at }
    }
}
