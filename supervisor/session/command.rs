//! Commands of a client to its session, typed and parsed.
//!
//! A dialect (see `supervisor/dialect.rs`) builds these values from wire messages; a job runner can build them
//! directly. The session checks them against its limits; until then they are untrusted input.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::adapter::AdapterChoice;
use fastvideo_proto::ids::RequestId;
use fastvideo_proto::job::{MediaMode, PromptSource};
use fastvideo_proto::state::ContinuationState;
use fastvideo_proto::trace::TraceContext;
use serde_json::{Map, Value};

use super::rollout::command::{ProjectSetup, RolloutCommand};
use crate::byte_budget::Share;
use crate::ingress::websocket::TransportViolation;
use crate::traces::Period;

/// What a session receives from its client's connection.
#[derive(Debug)]
pub enum Inbound {
    /// Opens the session. It comes first, and only once.
    Open(Box<OpenSession>),
    Command {
        message: MessageInfo,
        /// The client's name for what it asks. Answers repeat it.
        request: Option<RequestId>,
        command: SessionCommand,
    },
    /// The client sent something that is not a command.
    Invalid {
        message: MessageInfo,
        request: Option<RequestId>,
        /// Says what is wrong; safe to show to the client.
        reason: String,
    },
    /// The client sent something that its dialect does not know, which is ignored.
    Ignored(MessageInfo),
    /// The client broke a rule of its dialect, which ends the session. The text is safe to show to the client.
    RuleBroken(&'static str),
    /// The session is to be let go at its next boundary, so that it goes on elsewhere.
    Release,
    /// The link with the client's router is lost. Nothing follows.
    Unlinked,
    /// The connection is lost. Nothing follows.
    Gone,
    /// The client has closed its connection properly, and so does not come back at once. Nothing follows.
    Closed,
    /// The client broke the protocol that carries its messages, which ends the connection. Nothing follows.
    Violation(TransportViolation),
}

/// The description of a client's message for the session log.
#[derive(Clone, Copy, Debug)]
pub struct MessageInfo {
    /// The message's type in its dialect, or `invalid` when it is not a command.
    pub kind: &'static str,
    pub bytes: usize,
}

/// A request for a new session.
#[derive(Clone, Debug, Default)]
pub struct OpenSession {
    /// The name that the client gives itself, for the logs.
    pub client_id: Option<String>,
    pub protocol: Protocol,
    /// The client's name for its settings, for the logs and for the client itself.
    pub preset: Option<String>,
    pub curated_prompts: Vec<String>,
    /// Present where the client makes rollouts; then nothing of the session is stored.
    pub rollouts: Option<Box<RolloutOpening>>,
    /// The adapters that act on the session's segments.
    pub adapters: Vec<AdapterChoice>,
    /// `{mime, name, data}`; an empty object means no image.
    pub initial_image: Option<Map<String, Value>>,
    pub enhancement: bool,
    pub auto_extension: bool,
    pub looping: bool,
    /// Whether the client wants to hear from the server when nothing happens.
    pub heartbeat: bool,
    /// Whether the client wants pictures of segments before their media.
    pub preview: bool,
    /// Whether the session is complete after its first segment.
    pub single_segment: bool,
    pub media_mode: MediaMode,
    /// The first segment continues from this state. Excludes `resume`.
    pub state: Option<ContinuationState>,
    /// The stored session to resume.
    pub resume: Option<ResumeRequest>,
    /// The span that the session is below.
    pub trace_parent: Option<TraceContext>,
    /// Another span that the client has named, which the session links to.
    pub trace_link: Option<TraceContext>,
    /// Whether a router has decided if the session is traced, as `trace_parent` says.
    pub is_trace_decided: bool,
    /// The time in which the client's key was checked.
    pub auth: Option<Period>,
    /// What the opening takes of the server's memory for what clients send, until it has been dealt with.
    pub share: Arc<Share>,
}

/// The protocol of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// `/v1/stream`.
    #[default]
    StreamV1,
    /// `/ws`.
    Dreamverse,
}

impl Protocol {
    /// Returns its name in lists of sessions.
    pub fn name(self) -> &'static str {
        match self {
            Self::StreamV1 => "stream_v1",
            Self::Dreamverse => "dreamverse",
        }
    }
}

/// What a client of rollouts opens with.
#[derive(Clone, Debug, Default)]
pub struct RolloutOpening {
    pub setup: ProjectSetup,
    /// How long the session may last from its first worker on; `None` where that is not limited.
    pub time_limit: Option<Duration>,
}

/// A request to resume a session whose connection was lost.
#[derive(Clone, Debug)]
pub struct ResumeRequest {
    pub session_id: String,
    pub token: String,
    /// What the client has of the session; without it, nothing is sent again.
    pub have: Option<Have>,
    /// Whether the session goes on although it has all the segments that it may have.
    pub extend: bool,
}

/// What a client has received of its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// Number of segments that it has completely, from the first one on.
    pub segments: u32,
    /// Number of media messages that it has of the next one.
    pub messages: u32,
}

/// A command to an open session.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionCommand {
    RequestSegment(Box<SegmentRequest>),
    /// Replaces the curated prompts from the next segment on.
    SetCuratedPrompts(Vec<String>),
    SetEnhancement(bool),
    SetAutoExtension(bool),
    SetLooping(bool),
    /// While paused, requests wait in the session.
    SetPaused(bool),
    /// Asks for the continuation state after the last finished segment.
    ExportState,
    CancelSegment,
    /// Takes a waiting request out of the queue.
    WithdrawRequest,
    /// Changes a waiting request.
    EditRequest(RequestEdit),
    /// Says what the viewer sees. It is no sign of activity.
    ReportPlayback(PlaybackReport),
    /// Says that the client has this many media messages of a segment, and all of those before. It is no sign of
    /// activity.
    AcknowledgeMedia {
        segment_idx: u32,
        messages: u32,
    },
    /// Makes the token invalid that lets others watch, and another one valid.
    RenewWatchToken,
    /// Asks for `count` alternatives to a prompt.
    RewritePrompt(RewriteRequest),
    /// Of a client that makes rollouts.
    Rollout(RolloutCommand),
    /// Ends the session for good.
    Leave,
}

impl SessionCommand {
    /// Keeps what the message takes of the server's memory for what clients send, as long as its image is not read.
    pub(crate) fn with_share(mut self, share: Share) -> Self {
        if let Self::Rollout(
            RolloutCommand::BeginProject(_, Some(image)) | RolloutCommand::MakeClip(_, Some(image)),
        ) = &mut self
        {
            image.share = Arc::new(share);
        }
        self
    }
}

/// What a client says about its viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaybackReport {
    /// Where the viewer is on the session's time line.
    pub position: Duration,
    /// Whether the video plays.
    pub playing: bool,
}

/// A request for the next segment. Absent fields take the operator's defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SegmentRequest {
    pub prompt: String,
    pub negative_prompt: Option<String>,
    pub source: PromptSource,
    pub seed: Option<u64>,
    pub num_inference_steps: Option<u32>,
    pub guidance_scale: Option<f64>,
    /// The adapters that act from this segment on; without them, those that act stay.
    pub adapters: Option<Vec<AdapterChoice>>,
    /// The span that the segment is below.
    pub trace_parent: Option<TraceContext>,
}

/// A change of a waiting request. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestEdit {
    pub prompt: Option<String>,
    /// The new place in the queue, 0 for the front. A place behind the end is the end.
    pub position: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteRequest {
    pub prompt: String,
    /// The number of alternatives.
    pub count: u32,
}
