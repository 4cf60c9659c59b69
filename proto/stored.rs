//! What a store keeps of a session, as bytes: magic, version, fields.

use serde::{Deserialize, Serialize};

const MAGIC: [u8; 4] = *b"FVSS";
const VERSION: u16 = 1;
/// A state's header and a few numbers; more is damage.
const MAX_BYTES: usize = 2 << 20;

/// A session between two segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSession {
    /// BLAKE3 hash of the resume token; none for what no client can resume.
    pub token_hash: Option<[u8; 32]>,
    /// Segments that are finished.
    pub segments: u32,
    /// Where the next segment begins on the session's time line, in frames.
    pub start_frame: u64,
    /// Header of the state, by [`crate::state::StateHeader::encode`]; its blob is the record's first.
    pub state: Option<Vec<u8>>,
}

/// Why bytes are not a stored session of this form.
#[derive(Debug, thiserror::Error)]
pub enum StoredSessionError {
    #[error("stored session is {0} bytes, limit is {MAX_BYTES}")]
    Size(usize),
    #[error("stored session does not begin with its magic")]
    Magic,
    #[error("stored session has version {0}, this build reads {VERSION}")]
    Version(u16),
    #[error("stored session is damaged: {0}")]
    Fields(#[from] bincode::error::DecodeError),
    #[error("stored session has {0} bytes after its end")]
    Trailing(usize),
}

impl StoredSession {
    /// Magic, version, fields.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let fields = bincode::serde::encode_to_vec(self, bincode::config::standard())
            .expect("plain fields written to memory cannot fail");
        bytes.extend_from_slice(&fields);
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are not a stored session of this version, or are longer or shorter than one.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoredSessionError> {
        if bytes.len() > MAX_BYTES {
            return Err(StoredSessionError::Size(bytes.len()));
        }
        let rest = bytes
            .strip_prefix(&MAGIC)
            .ok_or(StoredSessionError::Magic)?;
        let (version, rest) = rest.split_first_chunk().ok_or(StoredSessionError::Magic)?;
        let version = u16::from_le_bytes(*version);
        if version != VERSION {
            return Err(StoredSessionError::Version(version));
        }
        let config = bincode::config::standard().with_limit::<MAX_BYTES>();
        let (session, read) = bincode::serde::decode_from_slice(rest, config)?;
        match rest.len() - read {
            0 => Ok(session),
            n => Err(StoredSessionError::Trailing(n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_session_survives_its_bytes_and_nothing_less() {
        let session = StoredSession {
            token_hash: Some([7; 32]),
            segments: 3,
            start_frame: 72,
            state: Some(vec![1, 2, 3]),
        };
        let bytes = session.encode();
        assert_eq!(StoredSession::decode(&bytes).unwrap(), session);
        for n in 0..bytes.len() {
            assert!(StoredSession::decode(&bytes[..n]).is_err(), "{n} bytes");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(
            StoredSession::decode(&longer),
            Err(StoredSessionError::Trailing(1))
        ));
        let mut newer = bytes;
        newer[4] = 9;
        assert!(matches!(
            StoredSession::decode(&newer),
            Err(StoredSessionError::Version(9))
        ));
    }
}
