//! Reads a model's file. The number of bytes left in the file bounds every allocation.

use std::io::{self, BufRead, Read};

use super::error::{ModelError, damaged};

/// A reader that knows how many bytes are left. Numbers are little-endian. The parameter `what` names the value that is read,
/// for error messages.
#[derive(Debug)]
pub(super) struct Source<R> {
    bytes: R,
    left: u64,
}

/// The number of bytes of a matrix that are read at once.
const PIECE: usize = 1 << 16;
const F32_BYTES: u64 = 4;

impl<R: BufRead> Source<R> {
    pub(super) fn new(bytes: R, len: u64) -> Self {
        Self { bytes, left: len }
    }

    pub(super) fn i32(&mut self, what: &'static str) -> Result<i32, ModelError> {
        self.array(what).map(i32::from_le_bytes)
    }

    pub(super) fn i64(&mut self, what: &'static str) -> Result<i64, ModelError> {
        self.array(what).map(i64::from_le_bytes)
    }

    pub(super) fn f64(&mut self, what: &'static str) -> Result<f64, ModelError> {
        self.array(what).map(f64::from_le_bytes)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, ModelError> {
        self.array(what).map(|[byte]| byte)
    }

    pub(super) fn flag(&mut self, what: &'static str) -> Result<bool, ModelError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(damaged(what, other, "0 or 1")),
        }
    }

    /// Reads a text and the NUL that ends it.
    pub(super) fn text(&mut self, what: &'static str) -> Result<Box<[u8]>, ModelError> {
        let mut text = Vec::new();
        let mut rest = self.bytes.by_ref().take(self.left);
        rest.read_until(0, &mut text)?;
        self.left = rest.limit();
        match text.pop() {
            Some(0) => Ok(text.into()),
            _ => Err(self.short(what, 1)),
        }
    }

    pub(super) fn bytes(&mut self, what: &'static str, len: u64) -> Result<Vec<u8>, ModelError> {
        let len = self.claim(what, len)?;
        let mut bytes = vec![0; len];
        self.bytes.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a matrix, `[rows, cols]`.
    ///
    /// # Errors
    /// Returns an error when the file is too short, or when a value is infinite or not a number.
    pub(super) fn floats(
        &mut self,
        what: &'static str,
        rows: u64,
        cols: u64,
    ) -> Result<Vec<f32>, ModelError> {
        let bytes = rows.saturating_mul(cols).saturating_mul(F32_BYTES);
        let bytes = self.claim(what, bytes)?;
        let mut floats = Vec::with_capacity(bytes / size_of::<f32>());
        let mut piece = vec![0; PIECE.min(bytes)];
        let mut left = bytes;
        while left > 0 {
            let piece = &mut piece[..PIECE.min(left)];
            self.bytes.read_exact(piece)?;
            let (values, _) = piece.as_chunks();
            floats.extend(values.iter().map(|value| f32::from_le_bytes(*value)));
            left -= piece.len();
        }
        match floats.iter().all(|value| value.is_finite()) {
            true => Ok(floats),
            false => Err(ModelError::NotFinite(what)),
        }
    }

    /// Checks, before memory is allocated for them, that `entries` entries of at least `entry_bytes` bytes can follow.
    pub(super) fn check_left(
        &self,
        what: &'static str,
        entries: usize,
        entry_bytes: u64,
    ) -> Result<(), ModelError> {
        let needed = (entries as u64).saturating_mul(entry_bytes);
        match needed <= self.left {
            true => Ok(()),
            false => Err(self.short(what, needed)),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ModelError> {
        self.claim(what, N as u64)?;
        let mut bytes = [0; N];
        self.bytes.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Subtracts `needed` from the bytes that are left. The read may still fail if the file is truncated meanwhile.
    fn claim(&mut self, what: &'static str, needed: u64) -> Result<usize, ModelError> {
        let Some(left) = self.left.checked_sub(needed) else {
            return Err(self.short(what, needed));
        };
        self.left = left;
        // This fails only where addresses have 32 bits.
        usize::try_from(needed).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory).into())
    }

    fn short(&self, what: &'static str, needed: u64) -> ModelError {
        ModelError::Short {
            what,
            needed,
            left: self.left,
        }
    }
}
