//! A session as a store keeps it, and the token with which a client resumes it.

use std::fmt;

use fastvideo_proto::ids::SessionId;
use fastvideo_proto::stored::StoredSession;

use super::error::DataLoss;
use super::state::State;

/// How far a session has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Number of segments that are finished.
    pub segments: u32,
    /// Where the next segment begins on the session's time line, in frames.
    pub start_frame: u64,
}

/// A session between two segments, as it is saved.
#[derive(Clone, Debug, Default)]
pub struct SavedSession {
    pub progress: Progress,
    /// `None` before the first segment is finished.
    pub state: Option<State>,
}

impl SavedSession {
    /// Creates a session that has not made a segment yet, with the state from which it starts.
    pub(super) fn starting_from(state: Option<&State>) -> Self {
        Self {
            progress: Progress::default(),
            state: state.cloned(),
        }
    }

    /// Encodes the session as the body of its record.
    pub(super) fn encode(&self, token_hash: [u8; 32]) -> Vec<u8> {
        let stored = StoredSession {
            token_hash: Some(token_hash),
            segments: self.progress.segments,
            start_frame: self.progress.start_frame,
            state: (self.state.as_ref()).map(|state| state.header_bytes().to_vec()),
        };
        stored.encode()
    }
}

/// Decodes a record's body.
///
/// # Errors
/// Returns an error when it is damaged or of a version that this build cannot read.
pub(super) fn decode(session: &SessionId, body: &[u8]) -> Result<StoredSession, DataLoss> {
    StoredSession::decode(body).map_err(|source| DataLoss::Record {
        session: session.clone(),
        source,
    })
}

/// Returns the progress in a record's body.
pub(super) fn progress(stored: &StoredSession) -> Progress {
    Progress {
        segments: stored.segments,
        start_frame: stored.start_frame,
    }
}

/// The right to resume a session: 64 lower-case hexadecimal digits, of which the store keeps only a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct ResumeToken(String);

impl ResumeToken {
    /// Generates a token with 256 random bits.
    pub fn random() -> Self {
        let bits: [u128; 2] = rand::random();
        Self(format!("{:032x}{:032x}", bits[0], bits[1]))
    }

    /// Takes the text that a client has sent, which may not be a valid token.
    pub fn given(token: String) -> Self {
        Self(token)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        *blake3::hash(self.0.as_bytes()).as_bytes()
    }

    /// Returns whether this is the token with that hash. The comparison takes constant time.
    pub(super) fn matches(&self, hash: [u8; 32]) -> bool {
        blake3::Hash::from_bytes(hash) == blake3::hash(self.0.as_bytes())
    }
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeToken(…)")
    }
}
