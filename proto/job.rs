//! Domain types that several kinds of messages use: the format of a video, the stages of a generation, the source of a
//! prompt, the reason why a job failed.
//!
//! The link between supervisor and worker, the client protocols and the session log all use these types, so that none of
//! them depends on another. The serialised names are those of the wire and of the session log.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The format of a segment's video.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VideoFormat {
    /// The width in pixels; an even number from 64 to 4096.
    pub width: u32,
    /// The height in pixels; an even number from 64 to 2176.
    pub height: u32,
    /// The number of frames of one segment, at least 1.
    pub num_frames: u32,
    /// Frames per second, 1 to 120.
    pub fps: u32,
}

impl VideoFormat {
    /// Returns the size of one RGB frame in bytes, `height * width * 3`.
    pub fn frame_bytes(&self) -> usize {
        self.width as usize * self.height as usize * 3
    }

    pub fn duration(&self) -> Duration {
        frames_to_time(u64::from(self.num_frames), self.fps)
    }
}

/// Returns the playing time of `frames` frames.
pub fn frames_to_time(frames: u64, fps: u32) -> Duration {
    let fps = u64::from(fps);
    Duration::from_secs(frames / fps) + Duration::from_nanos(frames % fps * 1_000_000_000 / fps)
}

/// How media travel: one fragmented MP4 stream per segment, or one JPEG per frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaMode {
    #[default]
    AvFmp4,
    LegacyJpeg,
}

/// The kind of a binary message of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MediaKind {
    /// The boxes `ftyp` and `moov`, with the MIME type that names the codecs.
    InitSegment { mime: String },
    /// The boxes `moof` and `mdat`, or one JPEG picture.
    Fragment,
}

/// The source of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptSource {
    #[default]
    User,
    Curated,
    Enhanced,
    AutoExtension,
}

/// The part of a segment's generation that a step belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Denoise,
    Refine,
    Decode,
}

/// A part of a segment's generation in its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    TextEncode,
    Denoise,
    Refine,
    Decode,
    /// Overlaps the decoding.
    Encode,
    /// The state's hash is computed, and its memory sealed.
    StatePack,
}

impl Phase {
    pub const ALL: [Self; 6] = [
        Self::TextEncode,
        Self::Denoise,
        Self::Refine,
        Self::Decode,
        Self::Encode,
        Self::StatePack,
    ];

    /// Returns the phase's name in metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextEncode => "text_encode",
            Self::Denoise => "denoise",
            Self::Refine => "refine",
            Self::Decode => "decode",
            Self::Encode => "encode",
            Self::StatePack => "state_pack",
        }
    }
}

/// When a phase began and ended, as CLOCK_MONOTONIC in microseconds, which is the same for all processes of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseSpan {
    pub phase: Phase,
    pub start_us: u64,
    pub end_us: u64,
}

impl PhaseSpan {
    pub fn duration(&self) -> Duration {
        Duration::from_micros(self.end_us.saturating_sub(self.start_us))
    }
}

/// Where the time of a segment's generation went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobTiming {
    /// The time from the last denoise or refine step to the last frame.
    pub decode: Duration,
    /// The time that the encoder spent encoding.
    pub encode: Duration,
    /// The phases, each at most once, in the order in which they began.
    pub phases: Vec<PhaseSpan>,
}

/// The reason why a job ended without a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobFailure {
    Cancelled,
    /// The request or its state cannot be served by this model; a retry will not help.
    Refused,
    /// The state that came with the job is damaged or does not fit the model.
    StateIncompatible,
    /// The worker does not hold the state that the pool expected it to hold. A retry with the state sent along may
    /// succeed. Only the pool sees this failure.
    StateNotHeld,
    /// The step snapshot that came with the job is damaged or does not fit the job or the model. Nothing was generated; the
    /// job is sent again without it. Only the pool sees this failure.
    SnapshotRefused,
    /// The segment takes more memory than there is.
    OutOfMemory,
    /// The engine or the encoder failed; a retry may help.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    SessionRejected,
    InvalidMessage,
    PresetMismatch,
    GpuUnavailable,
    WorkerFailed,
    UpstreamTimeout,
    InternalError,
    PromptBlocked,
    Unauthorized,
    /// The tenant, or the address, asks for too much.
    RateLimited,
    StateIncompatible,
    SegmentTimeout,
}
