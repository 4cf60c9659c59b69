//! The record that a store keeps of a video job, as bytes in an [`envelope`](crate::state::envelope).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::VideoId;
use crate::job::VideoFormat;
use crate::state::envelope::{Envelope, EnvelopeError};
use crate::stored::StoredSegment;

/// The longest record that is accepted. It holds a state's header, and where the samples of all segments are.
const MAX_BYTES: usize = 16 << 20;
const ENVELOPE: Envelope<MAX_BYTES> = Envelope {
    magic: *b"FVSV",
    kind: 0,
    version: 1,
};
/// The longest claim of an idempotency key.
const MAX_CLAIM_BYTES: usize = 1 << 10;
const CLAIM_ENVELOPE: Envelope<MAX_CLAIM_BYTES> = Envelope {
    magic: *b"FVSV",
    kind: 1,
    version: 1,
};

/// A video job between two segments. All times are in milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredVideo {
    pub created_at_ms: u64,
    /// When its first segment was begun.
    pub started_at_ms: Option<u64>,
    /// When it ended, well or not.
    pub ended_at_ms: Option<u64>,
    /// When it is removed; `None` while it has not ended, and where it is kept for ever.
    pub expires_at_ms: Option<u64>,
    pub status: VideoStatus,
    /// The name of the model, as clients know it.
    pub model: String,
    pub request: StoredVideoRequest,
    pub plan: VideoPlan,
    /// The initial image, a PNG file.
    pub image: Option<StoredFile>,
    /// The prompt that a language model has written.
    pub enhanced_prompt: Option<String>,
    /// The segments that are there, in order; those of the video that this one extends come first.
    pub film: Vec<Arc<StoredSegment>>,
    /// Number of segments of `film` that are those of the video that this one extends.
    pub extended_segments: u32,
    /// Time that the segments took in workers, without those of the video that this one extends.
    pub inference: Duration,
    /// Whether the video has sound; `None` before the first segment.
    pub has_audio: Option<bool>,
    /// The header of the last segment's state, encoded by [`crate::state::StateHeader::encode`]. The state's blob is the
    /// record's blob of that kind.
    pub state: Option<Vec<u8>>,
    /// The tiles of the frames that are there, RGB uint8 `[count, height, width, 3]`.
    pub tiles: Option<StoredFile>,
    /// A JPEG picture.
    pub thumbnail: Option<StoredFile>,
    /// All tiles in one JPEG picture.
    pub spritesheet: Option<StoredFile>,
    /// The size of the finished video.
    pub bytes: Option<u64>,
    /// Whether its segments were made again once, since the encoder had changed meanwhile.
    pub is_remade: bool,
    /// How often a server has begun a segment without one being finished since. It tells a job that may be what ends its
    /// servers.
    pub starts: u32,
    /// Whether somebody has asked for the job's end while another server ran it.
    pub is_cancelled: bool,
    pub remixed_from: Option<VideoId>,
    pub extended_from: Option<VideoId>,
    /// What the client wants to have back.
    pub metadata: BTreeMap<String, String>,
    /// The hash of the idempotency key under which the job was asked for.
    pub claim: Option<[u8; 32]>,
    /// The message about the job's end that its receiver has not taken yet.
    pub webhook: Option<PendingWebhook>,
}

/// What a client has asked for, with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredVideoRequest {
    pub prompt: String,
    pub negative_prompt: Option<String>,
    /// Segment *k* of the video has the seed `seed + k`, wrapping.
    pub seed: u64,
    pub num_inference_steps: u32,
    pub guidance_scale: f64,
    /// Whether a language model writes the prompt out.
    pub enhance_prompt: bool,
}

/// The segments of a video. It is made when the job is created, and never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VideoPlan {
    /// The size in pixels in which pictures are made: multiples of the model's cell.
    pub made: (u32, u32),
    /// The size that the video has: the middle of what is made.
    pub shown: (u32, u32),
    pub fps: u32,
    /// The segments that the job makes, in order.
    pub segments: Vec<PlannedSegment>,
    /// Number of frames of the video that this one extends.
    pub extended_frames: u64,
}

/// A segment of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedSegment {
    /// The number of frames that the model makes, those included that repeat the segment before.
    pub made_frames: u32,
    /// The number of frames that are a part of the video. It is smaller than what the model gives in the last segment alone.
    pub frames: u32,
}

/// The place of a job on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VideoStatus {
    Queued,
    InProgress,
    Completed,
    Failed {
        /// A stable name of the reason, for programs.
        code: String,
        message: String,
    },
}

/// A file of a video: one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// The blob's name, which is the BLAKE3 hash of its bytes.
    pub blob: [u8; 32],
    pub bytes: u64,
}

/// A message that is to be delivered at least once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingWebhook {
    /// The same for each attempt.
    pub event: String,
    /// When the job ended.
    pub created_at_ms: u64,
}

/// The claim of an idempotency key by a job, whose record may not be there yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VideoClaim {
    pub video: VideoId,
    /// The hash of the request, which another request under the same key must have, too.
    pub request: [u8; 32],
    pub created_at_ms: u64,
}

impl VideoPlan {
    /// Returns the number of frames that the job makes.
    pub fn own_frames(&self) -> u64 {
        let frames = self.segments.iter();
        frames.map(|segment| u64::from(segment.frames)).sum()
    }

    /// Returns the number of frames of the whole video.
    pub fn frames(&self) -> u64 {
        self.extended_frames.saturating_add(self.own_frames())
    }

    /// Returns the format in which a segment is made.
    pub fn format(&self, segment: PlannedSegment) -> VideoFormat {
        VideoFormat {
            width: self.made.0,
            height: self.made.1,
            num_frames: segment.made_frames,
            fps: self.fps,
        }
    }
}

impl VideoStatus {
    /// Returns whether nothing follows.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed { .. })
    }
}

impl StoredVideo {
    /// Makes a job that waits, and of which nothing is there yet.
    pub fn queued(
        created_at_ms: u64,
        model: String,
        request: StoredVideoRequest,
        plan: VideoPlan,
    ) -> Self {
        Self {
            created_at_ms,
            started_at_ms: None,
            ended_at_ms: None,
            expires_at_ms: None,
            status: VideoStatus::Queued,
            model,
            request,
            plan,
            image: None,
            enhanced_prompt: None,
            film: Vec::new(),
            extended_segments: 0,
            inference: Duration::ZERO,
            has_audio: None,
            state: None,
            tiles: None,
            thumbnail: None,
            spritesheet: None,
            bytes: None,
            is_remade: false,
            starts: 0,
            is_cancelled: false,
            remixed_from: None,
            extended_from: None,
            metadata: BTreeMap::new(),
            claim: None,
            webhook: None,
        }
    }

    /// Returns the number of segments that the job has finished itself.
    pub fn segments_done(&self) -> u32 {
        let all = u32::try_from(self.film.len()).unwrap_or(u32::MAX);
        all.saturating_sub(self.extended_segments)
    }

    /// Returns the number of frames that are there, those of the video that this one extends included.
    pub fn frames_done(&self) -> u64 {
        let done = self
            .plan
            .segments
            .iter()
            .take(self.segments_done() as usize);
        let own: u64 = done.map(|segment| u64::from(segment.frames)).sum();
        self.plan.extended_frames.saturating_add(own)
    }

    /// Encodes the job in its envelope.
    pub fn encode(&self) -> Vec<u8> {
        ENVELOPE.encode(self)
    }

    /// Decodes a job that [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Returns an error when the bytes are not a stored job, or are longer or shorter than one.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        ENVELOPE.decode(bytes)
    }
}

impl VideoClaim {
    /// Encodes the claim in its envelope.
    pub fn encode(&self) -> Vec<u8> {
        CLAIM_ENVELOPE.encode(self)
    }

    /// Decodes a claim that [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Returns an error when the bytes are not a claim, or are longer or shorter than one.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        CLAIM_ENVELOPE.decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn video() -> StoredVideo {
        StoredVideo {
            started_at_ms: Some(1_800_000_000_100),
            status: VideoStatus::Failed {
                code: "cancelled".to_owned(),
                message: "cancelled".to_owned(),
            },
            image: Some(StoredFile {
                blob: [1; 32],
                bytes: 9,
            }),
            enhanced_prompt: Some("a red fox".to_owned()),
            inference: Duration::from_millis(300),
            has_audio: Some(true),
            state: Some(vec![1, 2]),
            bytes: Some(7),
            is_remade: true,
            starts: 1,
            remixed_from: Some(VideoId::after(None, 1, 1)),
            metadata: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            claim: Some([2; 32]),
            webhook: Some(PendingWebhook {
                event: "evt_1".to_owned(),
                created_at_ms: 5,
            }),
            ..StoredVideo::queued(
                1_800_000_000_000,
                "synthetic".to_owned(),
                StoredVideoRequest {
                    prompt: "a fox".to_owned(),
                    negative_prompt: None,
                    seed: u64::MAX,
                    num_inference_steps: 8,
                    guidance_scale: 1.5,
                    enhance_prompt: true,
                },
                VideoPlan {
                    made: (1280, 768),
                    shown: (1280, 720),
                    fps: 24,
                    segments: vec![
                        PlannedSegment {
                            made_frames: 121,
                            frames: 121,
                        },
                        PlannedSegment {
                            made_frames: 33,
                            frames: 20,
                        },
                    ],
                    extended_frames: 7,
                },
            )
        }
    }

    #[test]
    fn a_stored_video_survives_its_bytes() {
        let video = video();
        assert_eq!(StoredVideo::decode(&video.encode()).unwrap(), video);
        assert_eq!((video.plan.own_frames(), video.plan.frames()), (141, 148));
    }

    #[test]
    fn a_video_of_a_newer_version_is_refused() {
        let mut newer = video().encode();
        newer[4] = 9;
        let refused = StoredVideo::decode(&newer).unwrap_err();
        assert!(refused.is_newer());
    }

    #[test]
    fn a_claim_survives_its_bytes_and_is_no_video() {
        let claim = VideoClaim {
            video: VideoId::after(None, 1, 1),
            request: [3; 32],
            created_at_ms: 4,
        };
        let bytes = claim.encode();
        assert_eq!(VideoClaim::decode(&bytes).unwrap(), claim);
        assert!(StoredVideo::decode(&bytes).is_err());
    }
}
