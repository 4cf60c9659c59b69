//! The record that a store keeps of a session, as bytes in an [`envelope`](crate::state::envelope).

use serde::{Deserialize, Serialize};

use crate::state::envelope::{Envelope, EnvelopeError};

/// The longest record that is accepted. A record holds a state's header and a few numbers.
const MAX_BYTES: usize = 2 << 20;
const ENVELOPE: Envelope<MAX_BYTES> = Envelope {
    magic: *b"FVSS",
    kind: 0,
    version: 1,
};

/// A session between two segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSession {
    /// The BLAKE3 hash of the resume token; `None` for a record that no client can resume.
    pub token_hash: Option<[u8; 32]>,
    /// The number of finished segments.
    pub segments: u32,
    /// The frame of the session's time line at which the next segment begins.
    pub start_frame: u64,
    /// The header of the state, encoded by [`crate::state::StateHeader::encode`]; the record's first blob is that of
    /// the state.
    pub state: Option<Vec<u8>>,
}

impl StoredSession {
    /// Encodes the session in its envelope.
    pub fn encode(&self) -> Vec<u8> {
        ENVELOPE.encode(self)
    }

    /// Decodes a session that [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Returns an error when the bytes are not a stored session of this version, or are longer or shorter than one.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        ENVELOPE.decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> StoredSession {
        StoredSession {
            token_hash: Some([7; 32]),
            segments: 3,
            start_frame: 72,
            state: Some(vec![1, 2, 3]),
        }
    }

    #[test]
    fn a_stored_session_survives_its_bytes() {
        let session = session();
        assert_eq!(StoredSession::decode(&session.encode()).unwrap(), session);
    }

    /// The first build that had this version wrote these bytes, and stores may still hold them.
    #[test]
    fn a_session_that_an_older_build_stored_is_read() {
        let mut older = b"FVSS\x01\x00\x01".to_vec();
        older.extend([7; 32]);
        older.extend([3, 72, 1, 3, 1, 2, 3]);
        assert_eq!(StoredSession::decode(&older).unwrap(), session());
        assert_eq!(session().encode(), older);
    }

    #[test]
    fn a_session_of_a_newer_version_is_refused() {
        let mut newer = session().encode();
        newer[4] = 9;
        assert!(matches!(
            StoredSession::decode(&newer),
            Err(EnvelopeError::Version { actual: 9, .. })
        ));
    }
}
