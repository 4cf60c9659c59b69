//! The client protocol of `WS /v1/stream`: JSON text messages in both directions. `docs/protocol.md` describes it for
//! authors of clients.
//!
//! Names on the wire are those of FastVideo's streaming server, so that its clients work unchanged. A field that is
//! absent when null is an `Option` that is not serialised.

use std::fmt::{self, Display};
use std::time::Duration;

use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::adapter::{Adapter, AdapterChoice};
use crate::ids::{InvalidRequestId, RequestId};
use crate::job::{ErrorCode, MediaMode, PromptSource, Stage};
use crate::state::ContinuationState;
use crate::untrusted_json;

#[cfg(test)]
mod tests;

/// A message from a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    #[serde(rename = "session_init_v2")]
    SessionInit(Box<SessionInit>),
    #[serde(rename = "segment_prompt_source")]
    SegmentRequest(SegmentRequest),
    SeedPromptsUpdated(SeedPromptsUpdated),
    EnhancementUpdated(Toggle),
    AutoExtensionUpdated(Toggle),
    LoopGenerationUpdated(Toggle),
    GenerationPausedUpdated(Paused),
    SnapshotState,
    CancelSegment,
    WithdrawRequest,
    Playback(Playback),
    MediaReceived(MediaReceived),
    RenewWatchToken,
    EditRequest(EditRequest),
    RewriteSeedPrompts(RewriteSeedPrompts),
    Leave,
}

/// Opens the session; must be the first message. Unknown fields are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionInit {
    pub client_id: Option<String>,
    pub preset: Option<String>,
    pub preset_label: Option<String>,
    #[serde(deserialize_with = "untrusted_json::prompts")]
    pub curated_prompts: Vec<String>,
    /// `{mime, name, data}`; null or an empty object means no image. Other fields are skipped. The session checks the
    /// values, since it knows the limits.
    #[serde(deserialize_with = "untrusted_json::image")]
    pub initial_image: Option<Map<String, Value>>,
    pub enhancement_enabled: bool,
    pub auto_extension_enabled: bool,
    pub loop_generation_enabled: bool,
    pub single_clip_mode: bool,
    pub stream_mode: MediaMode,
    pub continuation_state: Option<ContinuationState>,
    pub resume: Option<Resume>,
    /// Whether the session that is resumed goes on although it has all the segments that it may have.
    pub extend: bool,
    /// Whether the server sends a `heartbeat` after each ten seconds without another message.
    pub heartbeat: bool,
    /// Whether the server sends an `ltx2_preview` for some frames of a segment before its media.
    pub preview: bool,
    /// The span of the client's that the session is below, as the header of that name: browsers can set no headers. Text
    /// that is no `traceparent` is ignored.
    pub traceparent: Option<String>,
    /// The adapters that act on the session's segments; null takes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<Vec<AdapterChoice>>,
}

/// Resumes a session whose connection was lost, on this server or on another one with the same store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    pub session_id: String,
    /// The `resume_token` from the session's `gpu_assigned` message.
    pub token: String,
    /// What the client has; the server sends the rest. Without it, nothing is sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub have: Option<Have>,
}

/// What a client has received of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Have {
    /// The number of segments that it has completely.
    pub segments: u32,
    /// The number of binary messages that it has of the next one, the init segment included.
    pub messages: u32,
}

/// Asks for the next segment. A null takes the operator's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SegmentRequest {
    pub prompt: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    #[serde(default)]
    pub source: PromptSource,
    /// The seed, as a number or as a string of digits: a number above 2^53 is not exact in JavaScript.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "number_or_digits"
    )]
    pub seed: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_inference_steps: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// The adapters that act from this segment on; null leaves them as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapters: Option<Vec<AdapterChoice>>,
    /// The span of the client's that the segment is below. Text that is no `traceparent` is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Changes the request that the message's `request_id` names while the request waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EditRequest {
    /// The new prompt; null keeps the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The new place in the queue, 0 for the front; null keeps the old one. A place behind the end is the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
}

/// Says what the viewer sees.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Playback {
    /// Where the viewer is on the session's time line, in milliseconds.
    pub position_ms: f64,
    /// Whether the video plays; false while it is paused or waits for media.
    #[serde(default = "yes")]
    pub playing: bool,
}

/// Says that the client has binary messages of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaReceived {
    pub segment_idx: u32,
    /// How many binary messages of the segment it has, the init segment included.
    pub messages: u32,
}

/// Replaces the curated prompts from the next segment on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeedPromptsUpdated {
    #[serde(default, deserialize_with = "untrusted_json::prompts")]
    pub seed_prompts: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toggle {
    pub enabled: bool,
}

/// Pauses the session or continues it. While it is paused, requests wait in the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    pub paused: bool,
}

/// Asks for alternatives to a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewriteSeedPrompts {
    pub seed_prompt: String,
    #[serde(default = "three")]
    pub count: u32,
}

fn yes() -> bool {
    true
}

fn three() -> u32 {
    3
}

/// The reason why a text message is not a client message. Its text is safe to show to the client.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error("message is not a JSON object")]
    NoObject,
    #[error("message is not a JSON object with a `type`: {}", shortened(.0))]
    Envelope(serde_json::Error),
    #[error(transparent)]
    RequestId(#[from] InvalidRequestId),
    #[error("unknown message type `{0}`")]
    UnknownType(String),
    #[error("`{kind}`: {}", shortened(.source))]
    Field {
        kind: String,
        source: serde_path_to_error::Error<serde_json::Error>,
    },
}

impl ClientMessage {
    /// Returns the message's `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SessionInit(_) => "session_init_v2",
            Self::SegmentRequest(_) => "segment_prompt_source",
            Self::SeedPromptsUpdated(_) => "seed_prompts_updated",
            Self::EnhancementUpdated(_) => "enhancement_updated",
            Self::AutoExtensionUpdated(_) => "auto_extension_updated",
            Self::LoopGenerationUpdated(_) => "loop_generation_updated",
            Self::GenerationPausedUpdated(_) => "generation_paused_updated",
            Self::SnapshotState => "snapshot_state",
            Self::CancelSegment => "cancel_segment",
            Self::WithdrawRequest => "withdraw_request",
            Self::EditRequest(_) => "edit_request",
            Self::Playback(_) => "playback",
            Self::MediaReceived(_) => "media_received",
            Self::RenewWatchToken => "renew_watch_token",
            Self::RewriteSeedPrompts(_) => "rewrite_seed_prompts",
            Self::Leave => "leave",
        }
    }

    /// Parses one text message.
    ///
    /// # Errors
    /// Returns [`ParseError`], which names the message type and the field that does not fit.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Self::parse_request(text).1
    }

    /// Parses one text message like [`Self::parse`]. Returns its `request_id`, too, even when the rest of the message
    /// is wrong, so that the error can name the request.
    pub fn parse_request(text: &str) -> (Option<RequestId>, Result<Self, ParseError>) {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(rename = "type")]
            kind: String,
            #[serde(default, deserialize_with = "id_or_other")]
            request_id: Option<Result<RequestId, InvalidRequestId>>,
        }
        // Only objects are accepted, because the derived deserialisers would take an array of the fields' values too.
        if !text.trim_start().starts_with('{') {
            return (None, Err(ParseError::NoObject));
        }
        let Envelope { kind, request_id } = match serde_json::from_str(text) {
            Ok(envelope) => envelope,
            Err(error) => return (None, Err(ParseError::Envelope(error))),
        };
        match request_id.transpose() {
            Ok(request_id) => (request_id, Self::parse_fields(text, kind)),
            Err(invalid) => (None, Err(invalid.into())),
        }
    }

    fn parse_fields(text: &str, kind: String) -> Result<Self, ParseError> {
        Ok(match kind.as_str() {
            "session_init_v2" => Self::SessionInit(fields(text, kind)?),
            "segment_prompt_source" => Self::SegmentRequest(fields(text, kind)?),
            "seed_prompts_updated" => Self::SeedPromptsUpdated(fields(text, kind)?),
            "enhancement_updated" => Self::EnhancementUpdated(fields(text, kind)?),
            "auto_extension_updated" => Self::AutoExtensionUpdated(fields(text, kind)?),
            "loop_generation_updated" => Self::LoopGenerationUpdated(fields(text, kind)?),
            "generation_paused_updated" => Self::GenerationPausedUpdated(fields(text, kind)?),
            "snapshot_state" => Self::SnapshotState,
            "cancel_segment" => Self::CancelSegment,
            "withdraw_request" => Self::WithdrawRequest,
            "edit_request" => Self::EditRequest(fields(text, kind)?),
            "playback" => Self::Playback(fields(text, kind)?),
            "media_received" => Self::MediaReceived(fields(text, kind)?),
            "renew_watch_token" => Self::RenewWatchToken,
            "rewrite_seed_prompts" => Self::RewriteSeedPrompts(fields(text, kind)?),
            "leave" => Self::Leave,
            _ => return Err(ParseError::UnknownType(kind.chars().take(64).collect())),
        })
    }
}

/// Parses the fields of a message. The derived deserialiser of the tagged enum would buffer the message and lose the
/// path of a bad field.
pub(crate) fn fields<'a, T: Deserialize<'a>>(text: &'a str, kind: String) -> Result<T, ParseError> {
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(|source| ParseError::Field { kind, source })
}

/// Deserialises a [`RequestId`], or skips any other value but null. The message's own fields are then still read.
fn id_or_other<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Result<RequestId, InvalidRequestId>>, D::Error> {
    struct IdOrOther;

    /// A value that was skipped, without building it.
    const OTHER: Option<Result<RequestId, InvalidRequestId>> = Some(Err(InvalidRequestId));

    impl<'de> Visitor<'de> for IdOrOther {
        type Value = Option<Result<RequestId, InvalidRequestId>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any value")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(RequestId::try_from(text.to_owned())))
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
            Ok(OTHER)
        }

        fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
            Ok(OTHER)
        }

        fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
            Ok(OTHER)
        }

        fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
            Ok(OTHER)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            Ok(OTHER)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(OTHER)
        }
    }

    deserializer.deserialize_any(IdOrOther)
}

/// Deserialises an unsigned number of 64 bits, or a string of its decimal digits.
fn number_or_digits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct NumberOrDigits;

    impl<'de> Visitor<'de> for NumberOrDigits {
        type Value = Option<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(
                f,
                "a whole number from 0 to {}, or its digits as a string",
                u64::MAX
            )
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
            Ok(Some(number))
        }

        fn visit_i64<E: de::Error>(self, negative: i64) -> Result<Self::Value, E> {
            Err(E::invalid_value(Unexpected::Signed(negative), &self))
        }

        fn visit_str<E: de::Error>(self, digits: &str) -> Result<Self::Value, E> {
            let number = digits.parse();
            number
                .map(Some)
                .map_err(|_| E::invalid_value(Unexpected::Str(digits), &self))
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }

    deserializer.deserialize_any(NumberOrDigits)
}

/// Returns the beginning and the end of an error's text, because serde repeats an invalid value whatever its length.
fn shortened(error: &impl Display) -> String {
    const KEPT_CHARS: usize = 150;
    let text = error.to_string();
    let head_end = text.char_indices().nth(KEPT_CHARS);
    let tail_start = text.char_indices().nth_back(KEPT_CHARS - 1);
    match (head_end, tail_start) {
        (Some((head, _)), Some((tail, _))) if head < tail => {
            format!("{}…{}", &text[..head], &text[tail..])
        }
        _ => text,
    }
}

/// A text message from the server. Media travel as binary messages between `media_init` and `media_segment_complete`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    QueueStatus {
        /// The position in the queue; 0 is the next session to be bound.
        position: usize,
        queue_depth: usize,
    },
    GpuAssigned {
        gpu_id: u32,
        /// The idle timeout in seconds: the session ends after this time without a message and without a running
        /// segment.
        session_timeout: u64,
        session_id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume_token: Option<String>,
        /// Who has it may watch the session, and do nothing else.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        watch_token: Option<String>,
        worker_id: String,
        model_id: String,
        /// The operator's name for the server.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
    },
    #[serde(rename = "ltx2_stream_start")]
    StreamStart {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        preset: Option<String>,
        width: u32,
        height: u32,
        fps: u32,
        num_frames: u32,
        generation_segment_cap: u32,
        /// The index of the session's next segment; 0 unless the session was resumed.
        next_segment_idx: u32,
        features: Features,
        limits: Limits,
    },
    #[serde(rename = "ltx2_segment_start")]
    SegmentStart {
        segment_idx: u32,
        /// The prompt that is used for the segment.
        prompt: String,
        total_steps: u32,
        source: PromptSource,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        original_prompt: Option<String>,
        /// The number of the attempt, counted from 1; above 1 when the segment was started again after a fault.
        attempt: u32,
        /// Whether the segment was finished before and is sent again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        replayed: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<RequestId>,
    },
    StepComplete {
        segment_idx: u32,
        /// The number of the step, 1..=`total_steps`.
        step: u32,
        total_steps: u32,
        stage: Stage,
    },
    /// A small picture of a frame that is not ready. It is not sent again, and not sent at all to a client that reads too
    /// slowly.
    #[serde(rename = "ltx2_preview")]
    Preview {
        segment_idx: u32,
        /// The attempt that the picture comes from.
        attempt: u32,
        /// The frame's position among the frames of the segment's media.
        frame: u32,
        /// The number of those frames.
        num_frames: u32,
        /// The picture's size in pixels.
        width: u32,
        height: u32,
        /// The picture, a JPEG file in base64.
        jpeg: String,
    },
    MediaInit {
        segment_idx: u32,
        mime: String,
        stream_id: String,
        mode: MediaMode,
    },
    MediaSegmentComplete {
        segment_idx: u32,
        stream_id: String,
        /// The number of binary messages after the init segment.
        chunks: u32,
        duration_ms: f64,
        /// The start of the segment on the session's time line.
        pts_base_ms: f64,
    },
    #[serde(rename = "ltx2_segment_complete")]
    SegmentComplete {
        segment_idx: u32,
        /// The generation time in the worker.
        generation_time_ms: f64,
        /// The time from the request until the last byte was written to the socket.
        e2e_latency_ms: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<RequestId>,
    },
    #[serde(rename = "ltx2_stream_complete")]
    StreamComplete {
        reason: CompleteReason,
        /// Until when the server keeps the session's state, in RFC 3339.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resumable_until: Option<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        dropped_requests: Vec<DroppedRequest>,
    },
    SessionTimeout {
        timeout_seconds: u64,
        /// Until when the session can be resumed, in RFC 3339.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resumable_until: Option<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        dropped_requests: Vec<DroppedRequest>,
    },
    ContinuationStateSnapshot {
        state: ContinuationState,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<RequestId>,
    },
    Error {
        code: ErrorCode,
        /// The message, worded for the client's user.
        message: String,
        retryable: bool,
        /// The segment that the error ends or interrupts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        segment_idx: Option<u32>,
        /// Whether the server starts the segment again by itself: the client discards what it has received of the
        /// segment, and another `ltx2_segment_start` follows.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        restarting: bool,
        /// The request that the error answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<RequestId>,
        /// After how many milliseconds another try may succeed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    /// A language model has enhanced a prompt; `prompt` is the text that its segment uses.
    PromptEnhanced {
        original_prompt: String,
        prompt: String,
        provider: String,
        latency_ms: f64,
        /// Whether a provider other than the first one has answered.
        fallback_used: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<RequestId>,
    },
    /// No provider has answered, so the prompt is used unchanged.
    PromptFallback {
        original_prompt: String,
        /// The reason, worded for the client's user.
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<RequestId>,
    },
    SeedPromptsRewritten {
        seed_prompt: String,
        alternatives: Vec<String>,
        provider: String,
        model: String,
        latency_ms: f64,
        fallback_used: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<RequestId>,
    },
    SegmentCancelled {
        segment_idx: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<RequestId>,
    },
    /// The request was taken out of the queue.
    RequestWithdrawn {
        request_id: RequestId,
    },
    RequestEdited {
        request_id: RequestId,
        /// The request's place in the queue, 0 for the front.
        position: usize,
    },
    /// The session will end for lack of activity.
    IdleWarning {
        /// The time until then, unless the client sends a message.
        seconds_left: u64,
    },
    /// Another token lets spectators watch, and no other one does.
    WatchToken {
        watch_token: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<RequestId>,
    },
    /// The number of spectators has changed.
    Spectators {
        count: usize,
    },
    /// The connection works: nothing else was sent for a while.
    Heartbeat,
    ServerDraining {
        deadline_seconds: u64,
    },
}

impl ServerMessage {
    /// Creates the message that tells spectators that what they have of a segment is void.
    pub fn void(segment_idx: u32) -> Self {
        Self::Error {
            code: ErrorCode::WorkerFailed,
            message: "the segment was interrupted".to_owned(),
            retryable: true,
            segment_idx: Some(segment_idx),
            restarting: true,
            request_id: None,
            retry_after_ms: None,
        }
    }

    /// Creates an error that concerns no segment.
    pub fn error(code: ErrorCode, message: impl Into<String>, retryable: bool) -> Self {
        Self::Error {
            code,
            message: message.into(),
            retryable,
            segment_idx: None,
            restarting: false,
            request_id: None,
            retry_after_ms: None,
        }
    }

    /// Creates the error of a client that asks for too much.
    pub fn rate_limited(
        request_id: Option<RequestId>,
        message: impl Into<String>,
        retry_after: Duration,
    ) -> Self {
        let retry_after = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
        Self::Error {
            code: ErrorCode::RateLimited,
            message: message.into(),
            retryable: true,
            segment_idx: None,
            restarting: false,
            request_id,
            // A fraction of a millisecond is not waited for in vain.
            retry_after_ms: Some(retry_after.saturating_add(1)),
        }
    }
}

/// The features that this server supports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Features {
    pub enhancement: bool,
    pub auto_extension: bool,
    pub rewrite: bool,
    pub safety: bool,
    pub audio: bool,
    /// Whether previews are made for those who ask.
    #[serde(default)]
    pub preview: bool,
    /// The adapters that the client can choose from, each with the strength that it has by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<Adapter>,
}

/// The limits that a client has to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// The largest message in either direction, in bytes.
    pub max_message_bytes: u64,
    pub max_prompt_chars: u64,
    /// The most requests that may wait in the session.
    pub max_waiting_requests: u64,
    pub max_inference_steps: u32,
    pub max_guidance_scale: f64,
    /// The time that a client has for its opening message.
    pub opening_timeout_seconds: u64,
    /// How long a client may leave its window full.
    pub slow_client_timeout_seconds: u64,
    /// How long the session's worker is kept for the client when the connection is lost.
    pub hold_seconds: u64,
    /// Whether the session's film is kept.
    #[serde(default)]
    pub recording: bool,
    /// How often a complete session may be continued.
    #[serde(default)]
    pub max_cap_extensions: u32,
}

/// A request that waited when its session ended, and was not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The prompt as it was requested.
    pub prompt: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompleteReason {
    SegmentCap,
    StopRequested,
    Error,
}
