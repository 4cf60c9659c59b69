//! The record that a store keeps of a session, as bytes in an [`envelope`](crate::state::envelope).

use std::sync::Arc;
use std::time::Duration;

use fastvideo_mp4::SegmentIndex;
use serde::{Deserialize, Serialize};

use crate::ids::RequestId;
use crate::job::PromptSource;
use crate::state::envelope::{Envelope, EnvelopeError};
use crate::trace::TraceContext;

/// The MIME type of the media of a segment that was sent as pictures.
pub const JPEG: &str = "image/jpeg";

/// The longest record that is accepted. A record holds a state's header, and what is known of the segments of a film.
const MAX_BYTES: usize = 8 << 20;
const ENVELOPE: Envelope<MAX_BYTES> = Envelope {
    magic: *b"FVSS",
    kind: 0,
    version: 5,
};
/// The layout before records named a span. A record of a session that is not traced still has it, or the one before, so
/// that older builds read it.
const ENVELOPE_4: Envelope<MAX_BYTES> = Envelope {
    version: 4,
    ..ENVELOPE
};
/// The layout before records named their tenants. A record of no tenant still has it, so that older builds read it.
const ENVELOPE_3: Envelope<MAX_BYTES> = Envelope {
    version: 3,
    ..ENVELOPE
};
/// The layout before records told what is expected of their sessions.
const ENVELOPE_2: Envelope<MAX_BYTES> = Envelope {
    version: 2,
    ..ENVELOPE
};
/// The first layout, before films were kept.
const ENVELOPE_1: Envelope<MAX_BYTES> = Envelope {
    version: 1,
    ..ENVELOPE
};

/// A session between two segments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredSession {
    /// The BLAKE3 hash of the resume token; `None` for a record that no client can resume.
    pub token_hash: Option<[u8; 32]>,
    /// The number of finished segments.
    pub segments: u32,
    /// The frame of the session's time line at which the next segment begins.
    pub start_frame: u64,
    /// The header of the state, encoded by [`crate::state::StateHeader::encode`]. The state's blob is the record's blob
    /// of that kind.
    pub state: Option<Vec<u8>>,
    /// Which of the watch tokens that the resume token gives is valid.
    pub watch_number: u32,
    /// The BLAKE3 hash of the valid watch token; `None` where nobody may watch.
    pub watch_hash: Option<[u8; 32]>,
    /// How often the session was continued after its last permitted segment.
    pub extensions: u32,
    /// When the last server that ran the session gave it up, in milliseconds since the Unix epoch; `None` while one runs
    /// it, and when the server died.
    pub released_at_ms: Option<u64>,
    /// The segments that are known, in order.
    pub film: Vec<Arc<StoredSegment>>,
    /// What is expected while no server runs the session. It is encoded behind the other fields.
    #[serde(skip)]
    pub expected: Expectation,
    /// Whose the session is; `None` where nobody was asked for a key. It is encoded behind the other fields.
    #[serde(skip)]
    pub tenant: Option<String>,
    /// The span of the session on the last connection on which it was traced. It is encoded behind the other fields.
    #[serde(skip)]
    pub trace: Option<TraceContext>,
}

/// What is expected of a session that no server runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expectation {
    /// It goes on soon: its server was lost, or has let it go for another one.
    #[default]
    GoesOn,
    /// It goes on if its client comes back.
    ClientGone,
    /// Nothing: it is complete, its client has left it, or it was idle.
    Over,
}

/// A finished segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredSegment {
    pub segment_idx: u32,
    /// The attempt that the first media came from, counted from 1.
    pub attempt: u32,
    /// The client's name for the request.
    pub request_id: Option<RequestId>,
    /// The text that was used.
    pub prompt: String,
    /// The text that `prompt` was made from, when that is another one.
    pub original_prompt: Option<String>,
    pub source: PromptSource,
    pub seed: u64,
    pub num_inference_steps: u32,
    pub guidance_scale: f64,
    /// Where the segment begins on the session's time line.
    pub start: Duration,
    pub duration: Duration,
    /// Time that the generation took in the worker.
    pub generation: Duration,
    /// The MIME type of the media, with codecs; `image/jpeg` for pictures.
    pub mime: String,
    /// The SHA-256 of the media.
    pub sha256: [u8; 32],
    /// The number of bytes of the media.
    pub bytes: u64,
    /// `None` when the media are not kept.
    pub media: Option<StoredMedia>,
}

/// The media of a segment that are kept: one blob, of all binary messages in order and then the thumbnail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredMedia {
    /// The blob's name, which is the BLAKE3 hash of its bytes.
    pub blob: [u8; 32],
    /// The length of each binary message.
    pub messages: Vec<u32>,
    /// The length of the thumbnail, a JPEG; 0 when there is none.
    pub thumbnail_bytes: u32,
    /// Where the samples are; `None` for pictures, and for media that make no film.
    pub samples: Option<SegmentIndex>,
}

impl StoredSegment {
    /// Returns whether the media are pictures, and no video.
    pub fn is_pictures(&self) -> bool {
        self.mime == JPEG
    }

    /// Returns how many of so many messages of the segment are fragments or pictures: one of video begins with its init
    /// segment.
    pub fn chunks(&self, messages: usize) -> u32 {
        let init = usize::from(!self.is_pictures());
        u32::try_from(messages.saturating_sub(init)).unwrap_or(u32::MAX)
    }
}

/// The fields of version 1.
#[derive(Deserialize)]
struct StoredSession1 {
    token_hash: Option<[u8; 32]>,
    segments: u32,
    start_frame: u64,
    state: Option<Vec<u8>>,
}

impl StoredSession {
    /// Encodes the session in its envelope.
    pub fn encode(&self) -> Vec<u8> {
        match (&self.tenant, &self.trace) {
            (tenant, Some(trace)) => ENVELOPE.encode(&(self, self.expected, tenant, trace)),
            (Some(tenant), None) => ENVELOPE_4.encode(&(self, self.expected, tenant)),
            (None, None) => ENVELOPE_3.encode(&(self, self.expected)),
        }
    }

    /// Decodes a session that [`Self::encode`] wrote, of this version or an earlier one.
    ///
    /// # Errors
    /// Returns an error when the bytes are not a stored session, or are longer or shorter than one.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        match ENVELOPE_1.decode(bytes) {
            Ok(StoredSession1 {
                token_hash,
                segments,
                start_frame,
                state,
            }) => Ok(Self {
                token_hash,
                segments,
                start_frame,
                state,
                ..Self::default()
            }),
            Err(EnvelopeError::Version { actual: 2, .. }) => ENVELOPE_2.decode(bytes),
            Err(EnvelopeError::Version { actual: 3, .. }) => {
                let (session, expected): (Self, _) = ENVELOPE_3.decode(bytes)?;
                Ok(Self {
                    expected,
                    ..session
                })
            }
            Err(EnvelopeError::Version { actual: 4, .. }) => {
                let (session, expected, tenant): (Self, _, String) = ENVELOPE_4.decode(bytes)?;
                Ok(Self {
                    expected,
                    tenant: Some(tenant),
                    ..session
                })
            }
            Err(EnvelopeError::Version { .. }) => {
                let (session, expected, tenant, trace): (Self, _, _, TraceContext) =
                    ENVELOPE.decode(bytes)?;
                Ok(Self {
                    expected,
                    tenant,
                    trace: Some(trace),
                    ..session
                })
            }
            Err(error) => Err(error),
        }
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
            ..StoredSession::default()
        }
    }

    #[test]
    fn a_stored_session_survives_its_bytes() {
        let segment = StoredSegment {
            segment_idx: 2,
            attempt: 1,
            request_id: Some("mine".to_owned().try_into().unwrap()),
            prompt: "a fox, written out".to_owned(),
            original_prompt: Some("a fox".to_owned()),
            source: PromptSource::Enhanced,
            seed: u64::MAX,
            num_inference_steps: 8,
            guidance_scale: 1.5,
            start: Duration::from_secs(2),
            duration: Duration::from_secs(1),
            generation: Duration::from_millis(300),
            mime: "video/mp4".to_owned(),
            sha256: [3; 32],
            bytes: 12,
            media: Some(StoredMedia {
                blob: [4; 32],
                messages: vec![4, 8],
                thumbnail_bytes: 9,
                samples: None,
            }),
        };
        let session = StoredSession {
            watch_hash: Some([5; 32]),
            watch_number: 1,
            extensions: 2,
            released_at_ms: Some(1_800_000_000_000),
            film: vec![Arc::new(segment)],
            expected: Expectation::Over,
            ..session()
        };
        assert_eq!(StoredSession::decode(&session.encode()).unwrap(), session);
        assert_eq!(session.encode()[4], 3);
        let of_tenant = StoredSession {
            tenant: Some("acme".to_owned()),
            ..session
        };
        let encoded = of_tenant.encode();
        assert_eq!(StoredSession::decode(&encoded).unwrap(), of_tenant);
        assert_eq!(encoded[4], 4);
        for tenant in [None, of_tenant.tenant.clone()] {
            let span = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            let traced = StoredSession {
                tenant,
                trace: Some(span.parse().unwrap()),
                ..of_tenant.clone()
            };
            let encoded = traced.encode();
            assert_eq!(StoredSession::decode(&encoded).unwrap(), traced);
            assert_eq!(encoded[4], 5);
        }
    }

    /// The builds that had versions 1 and 2 wrote these bytes, and stores may still hold them.
    #[test]
    fn a_session_that_an_older_build_stored_is_read() {
        let versions: [(u8, &[u8]); 2] = [(1, &[]), (2, &[0; 5])];
        for (version, more) in versions {
            let mut older = b"FVSS".to_vec();
            older.extend([version, 0, 1]);
            older.extend([7; 32]);
            older.extend([3, 72, 1, 3, 1, 2, 3]);
            older.extend(more);
            assert_eq!(StoredSession::decode(&older).unwrap(), session());
        }
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
