//! The envelope of all encoded values that are stored or sent: magic, version, kind, then the fields in bincode.
//!
//! The version and the kind take a byte each. The first builds wrote the version as two bytes, little-endian, so their
//! bytes are those of version 1 and kind 0 and stay readable. A new kind takes the next number; a new layout of a kind
//! takes the next version, and its module goes on reading the versions that stores may still hold.

use bincode::error::DecodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The prefix of all encoded values of one kind. `MAX_BYTES` limits the whole encoding: longer input is refused before
/// anything is allocated, and so is a length inside the fields that exceeds the limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope<const MAX_BYTES: usize> {
    pub(crate) magic: [u8; 4],
    /// The kind of the fields; it distinguishes kinds with the same magic.
    pub(crate) kind: u8,
    /// The version of the fields' layout.
    pub(crate) version: u8,
}

/// The reason why bytes are not an encoded value of the expected kind.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("it is {actual} bytes, the limit is {limit}")]
    Size { limit: usize, actual: usize },
    #[error("it does not begin with its magic")]
    Magic,
    #[error("it is of kind {actual}, expected {expected}")]
    Kind { expected: u8, actual: u8 },
    #[error("it has version {actual}, this build reads {expected}")]
    Version { expected: u8, actual: u8 },
    #[error("its fields are damaged: {0}")]
    Fields(#[from] DecodeError),
    #[error("it has {0} bytes after its end")]
    Trailing(usize),
}

impl EnvelopeError {
    /// Returns whether a later build may read the value.
    pub fn is_newer(&self) -> bool {
        matches!(self, Self::Version { expected, actual } if actual > expected)
    }
}

impl<const MAX_BYTES: usize> Envelope<MAX_BYTES> {
    /// Encodes the fields with the envelope in front.
    pub(crate) fn encode(&self, fields: &impl Serialize) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend_from_slice(&[self.version, self.kind]);
        let fields = bincode::serde::encode_to_vec(fields, bincode::config::standard())
            .expect("plain fields written to memory cannot fail");
        bytes.extend_from_slice(&fields);
        bytes
    }

    /// Decodes the fields that [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Returns an error when the bytes are of another kind or version, or are longer or shorter than one encoded value.
    pub(crate) fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, EnvelopeError> {
        if bytes.len() > MAX_BYTES {
            return Err(EnvelopeError::Size {
                limit: MAX_BYTES,
                actual: bytes.len(),
            });
        }
        let rest = bytes
            .strip_prefix(&self.magic)
            .ok_or(EnvelopeError::Magic)?;
        let (&[version, kind], rest) = rest.split_first_chunk().ok_or(EnvelopeError::Magic)?;
        if kind != self.kind {
            return Err(EnvelopeError::Kind {
                expected: self.kind,
                actual: kind,
            });
        }
        if version != self.version {
            return Err(EnvelopeError::Version {
                expected: self.version,
                actual: version,
            });
        }
        let config = bincode::config::standard().with_limit::<MAX_BYTES>();
        let (fields, read) = bincode::serde::decode_from_slice(rest, config)?;
        match rest.len() - read {
            0 => Ok(fields),
            n => Err(EnvelopeError::Trailing(n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENVELOPE: Envelope<100> = Envelope {
        magic: *b"TEST",
        kind: 3,
        version: 7,
    };

    #[test]
    fn fields_survive_their_bytes_and_nothing_less_or_more() {
        let fields = (1_u32, "text".to_owned());
        let bytes = ENVELOPE.encode(&fields);
        assert_eq!(bytes[..6], *b"TEST\x07\x03");
        assert_eq!(ENVELOPE.decode::<(u32, String)>(&bytes).unwrap(), fields);
        for n in 0..bytes.len() {
            let cut = ENVELOPE.decode::<(u32, String)>(&bytes[..n]);
            assert!(cut.is_err(), "{n} bytes");
        }
        let longer = [&bytes[..], &[0]].concat();
        let refused = ENVELOPE.decode::<(u32, String)>(&longer);
        assert!(matches!(refused, Err(EnvelopeError::Trailing(1))));
    }

    #[test]
    fn another_kind_version_or_magic_is_refused_by_name() {
        let check = |at: usize, expected: &str| {
            let mut bytes = ENVELOPE.encode(&1_u32);
            bytes[at] = 9;
            let refused = ENVELOPE.decode::<u32>(&bytes).unwrap_err();
            assert_eq!(refused.to_string(), expected);
        };
        check(0, "it does not begin with its magic");
        check(4, "it has version 9, this build reads 7");
        check(5, "it is of kind 9, expected 3");
        let huge = ENVELOPE.decode::<u32>(&[0; 101]).unwrap_err();
        assert_eq!(huge.to_string(), "it is 101 bytes, the limit is 100");
    }
}
