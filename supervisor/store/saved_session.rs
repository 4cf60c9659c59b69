//! A session as a store keeps it, and the tokens with which clients resume and watch it.

use std::fmt;
use std::time::SystemTime;

use fastvideo_proto::ids::SessionId;
use fastvideo_proto::state::envelope::EnvelopeError;
use fastvideo_proto::stored::{Expectation, StoredSession};
use fastvideo_proto::trace::TraceContext;

use super::chunks::Chunks;
use super::error::{DataLoss, StoreError};
use super::film::Film;
use super::ids::{BlobId, RecordKey, ServerId};
use super::records::BlobKind;
use super::state::State;
use super::writer::{BlobContent, DraftBlob, RecordDraft};
use crate::tenant::Tenant;

/// What the tokens of spectators are derived for (a context string of BLAKE3).
const WATCH_CONTEXT: &str = "fastvideo-supervisor 2026-11-30 watch token";

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
    pub film: Film,
    /// How often the session was continued after its last permitted segment.
    pub extensions: u32,
    pub(super) watch: Watch,
    /// What is expected once no server runs the session.
    pub(super) expected: Expectation,
    /// Whose the session is.
    pub tenant: Tenant,
    /// The span of the session on the last connection on which it was traced.
    pub trace: Option<TraceContext>,
}

/// Who may watch a session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// Which of the tokens that the resume token gives is valid.
    pub(super) number: u32,
    pub(super) hash: Option<[u8; 32]>,
}

impl Watch {
    /// Makes the watch token with a number the valid one.
    pub(super) fn by(token: &ResumeToken, number: u32) -> Self {
        let hash = *blake3::hash(token.watch_token(number).as_bytes()).as_bytes();
        let hash = Some(hash);
        Self { number, hash }
    }
}

impl SavedSession {
    /// Creates a session that has not made a segment yet, with the state from which it starts.
    pub fn starting_from(state: Option<&State>, token: &ResumeToken) -> Self {
        Self {
            state: state.cloned(),
            watch: Watch::by(token, 0),
            ..Self::default()
        }
    }

    /// Returns the session as a tenant's.
    pub fn of_tenant(mut self, tenant: &Tenant) -> Self {
        self.tenant = tenant.clone();
        self
    }

    /// Returns the number of the valid watch token: see [`ResumeToken::watch_token`].
    pub fn watch_number(&self) -> u32 {
        self.watch.number
    }

    /// Returns the session as a record. `released` is the time at which no server runs it any more, `media` returns media
    /// that may not be in the store yet.
    pub(super) fn draft(
        &self,
        token_hash: [u8; 32],
        owner: Option<ServerId>,
        released: Option<SystemTime>,
        media: impl Fn(BlobId) -> Option<Chunks>,
    ) -> RecordDraft {
        let state = self.state.iter().map(|state| DraftBlob {
            id: state.blob_id(),
            kind: BlobKind::State,
            content: Some(BlobContent::Bytes(state.blob_bytes().into())),
        });
        let mut blobs: Vec<DraftBlob> = state.collect();
        // What is recorded and not committed may still be made anew.
        let film = self.film.until(self.progress.segments);
        for id in film.blobs() {
            if blobs.iter().all(|blob| blob.id != id) {
                blobs.push(DraftBlob {
                    id,
                    kind: BlobKind::Media,
                    content: media(id).map(BlobContent::Bytes),
                });
            }
        }
        RecordDraft {
            owner,
            body: self.encode(film, token_hash, released),
            blobs,
        }
    }

    /// Encodes the session as the body of its record.
    fn encode(&self, film: Film, token_hash: [u8; 32], released: Option<SystemTime>) -> Vec<u8> {
        let stored = StoredSession {
            token_hash: Some(token_hash),
            segments: self.progress.segments,
            start_frame: self.progress.start_frame,
            state: (self.state.as_ref()).map(|state| state.header_bytes().to_vec()),
            watch_number: self.watch.number,
            watch_hash: self.watch.hash,
            extensions: self.extensions,
            released_at_ms: released.map(unix_ms),
            film: film.0,
            expected: self.expected,
            tenant: stored_tenant(&self.tenant),
            trace: self.trace,
        };
        stored.encode()
    }

    /// Takes what a record's body says, with the state that was read. The session is to go on.
    pub(super) fn from_stored(stored: StoredSession, state: Option<State>) -> Self {
        Self {
            tenant: tenant_of(&stored),
            trace: stored.trace,
            progress: Progress {
                segments: stored.segments,
                start_frame: stored.start_frame,
            },
            state,
            film: Film(stored.film),
            extensions: stored.extensions,
            watch: Watch {
                number: stored.watch_number,
                hash: stored.watch_hash,
            },
            expected: Expectation::GoesOn,
        }
    }
}

/// Returns whose a record is. Those of older builds are nobody's.
pub(super) fn tenant_of(stored: &StoredSession) -> Tenant {
    stored
        .tenant
        .as_deref()
        .map(Tenant::new)
        .unwrap_or_default()
}

/// Returns a tenant as records name it.
pub(super) fn stored_tenant(tenant: &Tenant) -> Option<String> {
    (*tenant != Tenant::default()).then(|| tenant.to_string())
}

/// Decodes a record's body.
///
/// # Errors
/// Returns an error when it is damaged or of a version that this build cannot read.
pub(super) fn decode(session: &SessionId, body: &[u8]) -> Result<StoredSession, StoreError> {
    StoredSession::decode(body).map_err(|error| unreadable(&session.clone().into(), error))
}

/// Returns why a record's body cannot be read.
pub(super) fn unreadable(record: &RecordKey, source: EnvelopeError) -> StoreError {
    let record = record.clone();
    match source.is_newer() {
        true => StoreError::Newer(record),
        false => DataLoss::Record { record, source }.into(),
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
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

    /// Returns the token with that number for those who may watch the session and do nothing else. Nothing can be told
    /// from it of this token, or of those with other numbers.
    pub fn watch_token(&self, number: u32) -> String {
        let mut hasher = blake3::Hasher::new_derive_key(WATCH_CONTEXT);
        hasher.update(self.0.as_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.finalize().to_hex().to_string()
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
