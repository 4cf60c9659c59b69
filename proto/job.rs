//! The words of the domain that more than one message uses: the shape of a video, the stages of a generation, where a
//! prompt came from, why a job failed.
//!
//! The link between supervisor and worker, the client protocols and the session log all use these types, so that none of
//! them depends on another. The serialised names are those of the wire and of the session log.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The shape of a segment's video.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VideoFormat {
    /// Even, 64 to 4096.
    pub width: u32,
    /// Even, 64 to 2176.
    pub height: u32,
    /// Frames of one segment, at least 1.
    pub num_frames: u32,
    /// 1 to 120.
    pub fps: u32,
}

impl VideoFormat {
    /// Bytes of one RGB frame, `height * width * 3`.
    pub fn frame_bytes(&self) -> usize {
        self.width as usize * self.height as usize * 3
    }

    pub fn duration(&self) -> Duration {
        frames_to_time(u64::from(self.num_frames), self.fps)
    }
}

/// The time that so many frames last.
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

/// What a binary message of a segment is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MediaKind {
    /// `ftyp` + `moov`, with the MIME type that names the codecs.
    InitSegment { mime: String },
    /// `moof` + `mdat`, or one JPEG picture.
    Fragment,
}

/// Where a prompt came from.
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

/// Where the end of a segment's generation went. The two overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobTiming {
    /// From the last denoise or refine step to the last frame.
    pub decode: Duration,
    /// Time in which the encoder was at work.
    pub encode: Duration,
}

/// Why a job ended without a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobFailure {
    Cancelled,
    /// The request or its state cannot be served by this model; trying again will not help.
    Refused,
    /// The state that came with the job is damaged or does not fit.
    StateIncompatible,
    /// The worker does not hold the state that it should; with the state sent along, the job may go well. Only the
    /// pool sees this.
    StateNotHeld,
    /// The engine or the encoder failed; trying again may help.
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
    StateIncompatible,
    SegmentTimeout,
}
