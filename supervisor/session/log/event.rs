//! The lines of a session's log. The names in the file are those of the types here, so they must not change.

use std::borrow::Cow;

use fastvideo_proto::adapter::Adapter;
use fastvideo_proto::ids::{GpuId, WorkerId};
use fastvideo_proto::job::{ErrorCode, MediaMode, PromptSource, Stage, VideoFormat};
use fastvideo_proto::link::EncoderSpec;
use fastvideo_proto::step_snapshot::StepPoint;
use serde::{Deserialize, Serialize};

use super::signature::Signature;
use crate::session::SessionState;

/// One line of the file: `{session_id, ts, event, payload}`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Line {
    pub session_id: String,
    /// Unix time in seconds. It never goes back while one server has the session.
    pub ts: f64,
    #[serde(flatten)]
    pub event: LogEvent,
}

/// A line as it is written; it borrows what [`Line`] owns.
#[derive(Serialize)]
pub(super) struct LineRef<'a> {
    pub(super) session_id: &'a str,
    pub(super) ts: f64,
    #[serde(flatten)]
    pub(super) event: &'a LogEvent,
}

/// Something that happened in a session. Times are milliseconds; `segment_idx` counts from 0, `attempt` from 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", content = "payload", rename_all = "snake_case")]
pub enum LogEvent {
    /// The opening message was accepted. A file has more than one when the session was resumed.
    Opened {
        client_id: Option<String>,
        preset: Option<String>,
        stream_mode: MediaMode,
        /// Whether the session was resumed.
        resumed: bool,
        /// Whether the session began from a state that the client brought.
        hydrated: bool,
        image: Option<String>,
        curated_prompts: usize,
        next_segment_idx: u32,
        /// The version of the server. Older versions than 0.1.0 do not write it, nor the other optional fields.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<VideoFormat>,
        /// Number of segments that the session may have.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        segment_cap: Option<u32>,
    },
    State {
        from: SessionState,
        to: SessionState,
    },
    /// The client sent a message.
    Message {
        /// The type in `docs/protocol.md`; `invalid` for everything that is not described there.
        r#type: Cow<'static, str>,
        bytes: usize,
    },
    /// The session waits for a worker.
    Queued {
        position: usize,
        queue_depth: usize,
    },
    Assigned {
        worker_id: WorkerId,
        gpu_id: GpuId,
        model_id: String,
        /// The engine's name in the configuration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        engine: Option<String>,
        /// The name of the GPU, or `CPU`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encoder: Option<Encoder>,
    },
    /// The session goes on with another worker.
    Handoff {
        from: WorkerId,
        to: WorkerId,
    },
    /// A request for a segment.
    PromptReceived {
        source: PromptSource,
        /// The client's text; null where it may still be blocked and blocked prompts are not to be logged.
        prompt: Option<String>,
    },
    /// A model has written a better prompt.
    PromptEnhanced {
        original_prompt: String,
        prompt: String,
        #[serde(flatten)]
        by: Llm,
    },
    /// A model has written the prompt of the next segment.
    PromptExtended {
        prompt: String,
        #[serde(flatten)]
        by: Llm,
    },
    /// A model has written alternatives to a prompt.
    PromptRewritten {
        seed_prompt: String,
        /// Null where they may still be blocked and blocked prompts are not to be logged.
        alternatives: Option<Vec<String>>,
        #[serde(flatten)]
        by: Llm,
    },
    /// A rollout begins: its next segment is the first one.
    RolloutStarted {
        /// The number of the rollout in its project, from 1.
        loop_iteration: u32,
        seed_prompts: usize,
    },
    /// Other seed prompts are in place.
    SeedPromptsRewritten {
        prompts: Vec<String>,
        instruction: String,
        /// The model that wrote them; null where none has answered, for that reason.
        model: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The rollout makes no more segments.
    RolloutCompleted {},
    /// The project is over.
    ProjectEnded {},
    /// No model has answered; the prompt is used as it was.
    PromptFallback {
        original_prompt: String,
        reason: String,
    },
    PromptBlocked {
        /// Null where blocked prompts are not to be logged.
        prompt: Option<String>,
    },
    /// A job was made of the segment and waits for its worker.
    SegmentQueued {
        segment_idx: u32,
        attempt: u32,
        /// The worker that the session is bound to; a segment of a video job waits for any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker_id: Option<WorkerId>,
        source: PromptSource,
        /// The text that is used.
        prompt: String,
        /// The text that `prompt` was made from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        original_prompt: Option<String>,
        /// Time since the request.
        waited_ms: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seed: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        num_inference_steps: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guidance_scale: Option<f64>,
        /// The adapters that act on the segment.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        adapters: Vec<Adapter>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        negative_prompt: Option<String>,
        /// Whether there is a negative prompt that must not be logged, since nothing screens it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        negative_prompt_hidden: bool,
    },
    /// The worker was given the job.
    SegmentStarted {
        segment_idx: u32,
        attempt: u32,
        /// The worker of a segment of a video job. That of a session's segment is known since it was queued.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker_id: Option<WorkerId>,
        /// Time since it was queued.
        queue_ms: f64,
        /// The step of an earlier attempt that this one goes on from; without it the attempt begins with the first step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<LoggedStep>,
    },
    /// The attempt's step snapshot is not used any more; the segment begins with its first step.
    SnapshotDropped {
        segment_idx: u32,
        attempt: u32,
        reason: String,
        /// Whether the attempt is over, and another one follows; else the same attempt begins anew.
        attempt_over: bool,
    },
    Step {
        segment_idx: u32,
        attempt: u32,
        stage: Stage,
        /// 1..=`total_steps`.
        step: u32,
        total_steps: u32,
        /// Time since the step before, or since the start.
        ms: f64,
    },
    /// The first media were handed to the client's socket.
    FirstByte {
        segment_idx: u32,
        attempt: u32,
        /// Time since the request.
        ms: f64,
    },
    /// The worker is done, and the segment has become part of the session.
    SegmentFinished {
        segment_idx: u32,
        attempt: u32,
        frames: u32,
        /// Time in the worker, from the job's arrival to the last frame's encoding.
        generation_ms: f64,
        /// Time from the last denoise or refine step to the last frame.
        decode_ms: f64,
        /// Time that the encoder worked, in parallel with the decoder.
        encode_ms: f64,
        /// The SHA-256 of the segment's binary messages in order, in hexadecimal digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
    /// The last media were handed to the client's socket.
    LastByte {
        segment_idx: u32,
        attempt: u32,
        /// Time since the request.
        ms: f64,
        /// Number of fragments or pictures.
        chunks: u32,
        bytes: u64,
    },
    /// A finished segment that the client lacked was sent again.
    SegmentResent {
        segment_idx: u32,
        bytes: u64,
    },
    SegmentCancelled {
        segment_idx: u32,
        attempt: u32,
    },
    SegmentFailed {
        segment_idx: u32,
        attempt: u32,
        code: ErrorCode,
        message: String,
    },
    /// The worker had to leave; the segment runs again elsewhere.
    SegmentTakenBack {
        segment_idx: u32,
        attempt: u32,
        /// Whether the segment was running.
        started: bool,
    },
    /// The worker was lost with the segment.
    Fault {
        segment_idx: u32,
        attempt: u32,
        worker_id: WorkerId,
        /// Whether the segment was running, so that it may have killed the worker.
        started: bool,
        reason: String,
    },
    /// The attempt gives other media than those before, which are void.
    MediaVoid {
        segment_idx: u32,
        attempt: u32,
    },
    /// The client was told of an error that concerns no segment.
    Error {
        code: ErrorCode,
        message: String,
        retryable: bool,
    },
    /// The server is going away.
    Draining {
        deadline_seconds: f64,
    },
    /// The session left this connection. Only media on their way follow, and the lines of the session when it is
    /// resumed.
    Closed {
        /// `gone`, `closed`, `left`, `cap`, `idle`, `slow`, `draining`, `lost`, and others.
        cause: Cow<'static, str>,
        state: SessionState,
        /// Number of finished segments.
        segments: u32,
    },
    /// A server runs a video job from now on. A file has more than one when the job went on elsewhere or later.
    VideoTaken {
        /// The version of the server.
        version: String,
        model: String,
        /// The size of the video in pixels.
        width: u32,
        height: u32,
        fps: u32,
        /// The number of frames of the whole video.
        num_frames: u64,
        /// The number of segments that the job makes.
        segments: usize,
        /// The number of those that are stored.
        segments_done: u32,
        prompt: String,
        enhance_prompt: bool,
        seed: u64,
        num_inference_steps: u32,
        guidance_scale: f64,
    },
    /// A video job has ended: it is completed, or has failed for the reason of that code.
    VideoEnded {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<Cow<'static, str>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        segments_done: u32,
        /// The size of the video.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
    },
    /// A video job has left the server before its end.
    VideoLeft {
        /// Whether it was deleted, or another server has taken it; otherwise it waits for the next server.
        was_deleted: bool,
    },
    /// Events are missing since the last such line: they came faster than they could be written, or the disk was full.
    Dropped {
        events: u64,
    },
    /// The server has signed what is before this line.
    Signed(Signature),
}

/// A step of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedStep {
    pub stage: Stage,
    /// The number of the step in its stage, counted from 1.
    pub step: u32,
}

impl From<StepPoint> for LoggedStep {
    fn from(at: StepPoint) -> Self {
        Self {
            stage: at.stage,
            step: at.step,
        }
    }
}

/// What all sessions of a server have in common, which a replay needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// The engine's name.
    pub engine: String,
    pub format: VideoFormat,
    pub encoder: Encoder,
}

/// How media are encoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Encoder {
    pub video_codec: String,
    pub crf: u32,
    /// The length of a fragment.
    pub fragment_ms: f64,
    pub audio_bit_rate: u32,
    pub jpeg_quality: u8,
}

impl From<&EncoderSpec> for Encoder {
    fn from(spec: &EncoderSpec) -> Self {
        Self {
            video_codec: spec.video_codec.clone(),
            crf: spec.crf,
            fragment_ms: spec.fragment.as_secs_f64() * 1e3,
            audio_bit_rate: spec.audio_bit_rate,
            jpeg_quality: spec.jpeg_quality,
        }
    }
}

/// Who has written a prompt, and how long it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Llm {
    pub provider: String,
    pub model: String,
    /// Time over all providers that were asked; 0 for an answer from the cache.
    pub latency_ms: f64,
    /// Whether another provider than the first has answered.
    pub fallback_used: bool,
}
