//! What happens in a session: one [`SessionEvent`] for each fact.
//!
//! All reports on a session come from these events: a dialect renders them for the client, the session log writes them
//! down, and the server's own log mentions some (see `event_readers.rs`). So no reader can disagree with another.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::adapter::Adapter;
use fastvideo_proto::ids::{GpuId, RequestId, SessionId, WorkerId};
use fastvideo_proto::job::{
    ErrorCode, JobTiming, MediaMode, PhaseSpan, PromptSource, Stage, VideoFormat,
};
use fastvideo_proto::link::Preview;
use fastvideo_proto::state::ContinuationState;
use fastvideo_proto::step_snapshot::StepPoint;
use fastvideo_proto::stored::StoredSegment;
use fastvideo_proto::trace::TraceContext;
use tokio::time::Instant;

use super::command::MessageInfo;
use super::ending::{EndCause, NotOpened};
use super::rollout::event::RolloutEvent;
use super::state::SessionState;
use crate::pool::{Assignment, Media, Seats};
use crate::prompt::{Blocked, GeneratedPrompt, PromptAlternatives, PromptSpan};
use crate::segment_run::{AttemptId, MediaCount};
use crate::store::ResumeToken;
use crate::traces::Period;

/// The cost of an event in the window of its client, in addition to its texts and its media.
const BASE_COST: u64 = 128;

/// Something that happened in a session. Large payloads are boxed, so that a queue of events stays small.
#[derive(Debug)]
pub enum SessionEvent {
    /// The opening was accepted.
    Opened(Box<Opened>),
    /// The session does not begin. It is the only event of such a session.
    NotOpened(NotOpened),
    MessageReceived(MessageInfo),
    StateChanged {
        from: SessionState,
        to: SessionState,
    },
    /// The session waits for a worker, or moved up in the queue. Position 0 is next.
    Queued {
        position: usize,
        queue_depth: usize,
        seats: Seats,
    },
    WorkerBound(Box<WorkerBound>),
    /// The client asked for a segment.
    PromptReceived {
        source: PromptSource,
        /// Absent where the prompt may still be blocked and blocked prompts are not to be logged.
        prompt: Option<String>,
    },
    /// Of a session that makes rollouts.
    Rollout(Box<RolloutEvent>),
    /// A prompt was made ready, or written, or could not be.
    PromptWorked(Box<PromptWorked>),
    /// A language model has enhanced a prompt. The text may be unchanged.
    PromptEnhanced {
        /// The request whose prompt it is; `None` for a curated prompt, and for a request that the client did not
        /// name.
        request: Option<RequestId>,
        original_prompt: String,
        answer: Box<GeneratedPrompt>,
    },
    /// A language model has written the prompt of the next segment.
    PromptExtended(Box<GeneratedPrompt>),
    PromptRewritten {
        request: Option<RequestId>,
        seed_prompt: String,
        rewritten: Box<PromptAlternatives>,
        /// Whether the alternatives may be logged although they were not screened.
        loggable: bool,
    },
    /// No language model has rewritten the prompt.
    RewriteFailed {
        request: Option<RequestId>,
        seed_prompt: String,
        reason: String,
    },
    /// No language model has answered: the prompt is used as it was.
    PromptFallback {
        request: Option<RequestId>,
        original_prompt: String,
        reason: String,
    },
    /// The safety filter has rejected a prompt.
    PromptBlocked {
        request: Option<RequestId>,
        /// Absent where blocked prompts are not to be logged.
        prompt: Option<String>,
        /// Where the request came from; `None` for a prompt that is no request.
        source: Option<PromptSource>,
        blocked: Blocked,
    },
    /// An attempt at a segment waits for its worker.
    SegmentQueued(Box<SegmentQueued>),
    /// The job was given to the worker.
    SegmentStarted {
        at: AttemptId,
        /// Time since the attempt was queued.
        queued_for: Duration,
        /// The step of an earlier attempt that this one goes on from.
        after: Option<StepPoint>,
    },
    /// The step snapshot that an attempt went on from is not used any more: its worker has refused it, or the attempt has
    /// failed. The segment begins with its first step.
    SnapshotDropped {
        at: AttemptId,
        /// The reason is not for clients.
        reason: String,
        /// Whether the attempt is over, and another one follows.
        is_over: bool,
    },
    StepDone {
        at: AttemptId,
        stage: Stage,
        /// 1..=`total_steps`.
        step: u32,
        total_steps: u32,
        /// Time since the step before, or since the start.
        took: Duration,
    },
    /// A picture of a segment that has no media yet. It may be dropped.
    Preview {
        at: AttemptId,
        preview: Box<Preview>,
    },
    Media {
        at: AttemptId,
        media: Media,
    },
    /// The consumer of the events has taken the first media of an attempt.
    FirstMediaSent {
        at: AttemptId,
        /// Time since the segment was requested.
        after: Duration,
        /// The same, but not from before the segment before it had ended.
        waited: Duration,
    },
    /// The consumer of the events has taken all media of a segment.
    AllMediaSent {
        at: AttemptId,
        /// Time since the segment was requested.
        after: Duration,
        media: MediaCount,
    },
    /// The worker is done, and the segment's state has become the session's.
    SegmentFinished {
        at: AttemptId,
        source: PromptSource,
        frames: u32,
        /// How long the segment plays.
        plays: Duration,
        /// Time that the generation took in the worker.
        generation: Duration,
        timing: Box<JobTiming>,
        /// The SHA-256 of the segment's media; present where it is needed.
        sha256: Option<Box<[u8; 32]>>,
    },
    /// All media of a finished segment were taken, and its state is stored or the store is late. The consumer of the
    /// events gets this event only then.
    SegmentCompleted(Box<SegmentCompleted>),
    /// A finished segment that the client lacks is sent again. Its media follow.
    ResendStarted(Arc<StoredSegment>),
    ResendCompleted(Arc<StoredSegment>),
    /// A finished segment that the client lacks cannot be sent again: its media are not kept any more, or cannot be
    /// read.
    ResendFailed {
        segment_idx: u32,
    },
    /// A worker says that an attempt is over without a segment: it was cancelled, or failed. What becomes of the segment
    /// follows.
    AttemptFailed {
        at: AttemptId,
        /// What the worker did until then.
        phases: Vec<PhaseSpan>,
    },
    SegmentCancelled {
        at: AttemptId,
        source: PromptSource,
        request: Option<RequestId>,
    },
    /// The segment is given up; the session goes on.
    SegmentFailed {
        at: AttemptId,
        source: PromptSource,
        request: Option<RequestId>,
        code: ErrorCode,
        /// The message is safe to show to the client.
        message: String,
        /// Whether the same request may succeed later.
        retryable: bool,
    },
    /// The worker has to leave; the segment runs again.
    SegmentTakenBack {
        at: AttemptId,
        /// Whether the segment was running.
        started: bool,
    },
    /// The worker was lost with the segment.
    WorkerLost(Box<WorkerLost>),
    /// This attempt at a segment gives other media than those before, which are void.
    MediaVoid {
        at: AttemptId,
        request: Option<RequestId>,
    },
    /// The continuation state that the client has asked for.
    StateExported(Box<ExportedState>),
    /// The number of spectators is another one than the client was told.
    AudienceChanged {
        spectators: usize,
    },
    /// Another token lets others watch the session, and no other one does.
    WatchTokenRenewed {
        request: Option<RequestId>,
        token: String,
    },
    /// A waiting request was taken out of the queue.
    RequestWithdrawn {
        request: RequestId,
        source: PromptSource,
    },
    /// A waiting request was changed.
    RequestEdited {
        request: RequestId,
        /// The request's place in the queue; 0 is the front.
        position: usize,
    },
    /// A write of what was committed has ended.
    Stored {
        began: Instant,
        is_stored: bool,
    },
    /// What the viewer did since the last such event, as far as the server can know.
    Viewed {
        played: Duration,
        /// Time without video although some was asked for.
        stalled: Duration,
        /// Whether the viewer had video until then.
        is_new_stall: bool,
    },
    /// The session ends unless its client sends a message in time.
    IdleWarning {
        time_left: Duration,
    },
    /// Something is wrong that concerns no segment. The message is safe to show to the client.
    Error {
        /// The request that the error answers.
        request: Option<RequestId>,
        code: ErrorCode,
        message: String,
        /// Whether the same request may succeed later.
        retryable: bool,
    },
    /// A request was not taken, since the tenant asks for too many.
    RateLimited {
        request: Option<RequestId>,
        /// When another one will be taken.
        retry_after: Duration,
    },
    /// The server is going away.
    Draining {
        /// How long running segments may go on.
        time_left: Duration,
    },
    /// The session leaves this connection. Only media that are still on their way follow.
    Ended(Box<Ended>),
}

#[derive(Debug)]
pub struct Ended {
    pub cause: EndCause,
    pub state: SessionState,
    /// Number of finished segments.
    pub segments: u32,
    /// How long the session's state is kept from now on; `None` when it is not, or not known.
    pub kept_for: Option<Duration>,
    /// The requests that waited, in order, with the client's names for them and their prompts.
    pub dropped: Vec<DroppedRequest>,
    /// Where the requests came from that nobody will serve: the running one, if any, and those that waited.
    pub abandoned: Vec<PromptSource>,
}

/// A request that waited when its session ended.
#[derive(Debug, PartialEq, Eq)]
pub struct DroppedRequest {
    pub request: Option<RequestId>,
    /// The prompt as it was requested.
    pub prompt: String,
    pub source: PromptSource,
}

/// What was done for a prompt.
#[derive(Debug)]
pub struct PromptWorked {
    pub request: Option<RequestId>,
    /// The text that will be, or be the original of, the prompt of a segment; `None` where the work is for no segment.
    pub prompt: Option<String>,
    pub spans: Vec<PromptSpan>,
}

#[derive(Debug)]
pub struct Opened {
    pub client_id: Option<String>,
    pub preset: Option<String>,
    pub media_mode: MediaMode,
    /// Whether the session was resumed.
    pub resumed: bool,
    /// Whether the session begins from a state that the client brought.
    pub hydrated: bool,
    /// The name of the initial image.
    pub image: Option<String>,
    pub curated_prompts: usize,
    pub next_segment_idx: u32,
    /// Number of segments that the session may have.
    pub segment_cap: u32,
    /// Whether the client wants to hear from the server when nothing happens.
    pub heartbeat: bool,
    /// The time in which the client's key was checked.
    pub auth: Option<Period>,
    /// The time in which the initial image was read.
    pub image_read: Option<Period>,
    /// The time in which the session was claimed in the store.
    pub claimed: Period,
}

#[derive(Debug)]
pub struct WorkerBound {
    pub assignment: Assignment,
    /// The operator's name for the server.
    pub server: Option<String>,
    /// The worker that the session had before.
    pub previous: Option<WorkerId>,
    pub session_id: SessionId,
    /// Lets the client resume the session; `None` where nobody can.
    pub resume_token: Option<ResumeToken>,
    /// Lets others watch the session; `None` where nobody may.
    pub watch_token: Option<String>,
    /// Time without a message and without a running segment after which the session ends.
    pub session_timeout: Duration,
    /// How long the session may last from its first worker on; `None` where that is not limited.
    pub time_limit: Option<Duration>,
    /// The properties of the stream; present when this is the session's first worker on this connection.
    pub stream: Option<StreamInfo>,
}

/// The properties of a session's stream.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    pub preset: Option<String>,
    pub format: VideoFormat,
    pub segment_cap: u32,
    pub next_segment_idx: u32,
    /// Whether language models enhance, extend and rewrite prompts.
    pub enhancer: bool,
    /// Whether a classifier screens prompts.
    pub safety: bool,
    pub audio: bool,
    /// Whether previews are made for clients that ask.
    pub preview: bool,
    /// The adapters that the client can choose from.
    pub adapters: Vec<Adapter>,
    pub media_mode: MediaMode,
    pub limits: StreamLimits,
}

/// The limits that a client is told.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// The largest message in either direction.
    pub max_message_bytes: usize,
    pub max_prompt_chars: usize,
    pub max_waiting_requests: usize,
    pub max_inference_steps: u32,
    pub opening_timeout: Duration,
    pub slow_client_timeout: Duration,
    pub hold: Duration,
    /// Whether the session's film is kept.
    pub recording: bool,
    /// How often a complete session may be continued.
    pub max_cap_extensions: u32,
}

#[derive(Debug)]
pub struct SegmentQueued {
    pub at: AttemptId,
    pub request: Option<RequestId>,
    pub worker: WorkerId,
    pub gpu: GpuId,
    pub source: PromptSource,
    /// The text that is used.
    pub prompt: String,
    /// The text that `prompt` was made from, when that is another one.
    pub original_prompt: Option<String>,
    pub negative_prompt: Option<String>,
    /// Whether the negative prompt may be logged although nothing screens it.
    pub loggable: bool,
    pub seed: u64,
    pub guidance_scale: f64,
    /// The adapters that act on the segment.
    pub adapters: Vec<Adapter>,
    pub total_steps: u32,
    /// Time since the request.
    pub waited: Duration,
    /// The span of the client's that the segment is below.
    pub trace_parent: Option<TraceContext>,
}

#[derive(Debug)]
pub struct SegmentCompleted {
    pub at: AttemptId,
    pub request: Option<RequestId>,
    pub media: MediaCount,
    /// Where the segment begins on the session's time line.
    pub start: Duration,
    /// How long the segment plays.
    pub duration: Duration,
    /// Time that the generation took in the worker.
    pub generation: Duration,
    pub requested: Instant,
}

#[derive(Debug)]
pub struct WorkerLost {
    pub at: AttemptId,
    pub worker: WorkerId,
    /// Whether the job had reached the worker, so that it may have killed the worker.
    pub started: bool,
    pub reason: String,
}

#[derive(Debug)]
pub struct ExportedState {
    pub request: Option<RequestId>,
    pub state: ContinuationState,
    /// The approximate size of the state's text.
    pub bytes: u64,
}

impl SessionEvent {
    /// Returns whether the event is one of many in a segment, each of which the client can be told by itself.
    pub(crate) fn is_part_of_a_turn(&self) -> bool {
        matches!(
            self,
            Self::Media { .. }
                | Self::Preview { .. }
                | Self::StepDone { .. }
                | Self::SegmentStarted { .. }
        )
    }

    /// Returns the event's cost in its client's window, in bytes.
    pub(super) fn cost(&self) -> u64 {
        let texts: &[&str] = match self {
            Self::Media { media, .. } => return media.credit.cost(),
            Self::StateExported(exported) => return exported.bytes,
            // In base64.
            Self::Preview { preview, .. } => {
                return BASE_COST + preview.jpeg.len().div_ceil(3) as u64 * 4;
            }
            Self::PromptRewritten {
                seed_prompt,
                rewritten,
                ..
            } => {
                let alternatives: usize = rewritten.alternatives.iter().map(String::len).sum();
                return BASE_COST + (seed_prompt.len() + alternatives) as u64;
            }
            Self::SegmentQueued(queued) => &[
                &queued.prompt,
                queued.original_prompt.as_deref().unwrap_or_default(),
                queued.negative_prompt.as_deref().unwrap_or_default(),
            ],
            Self::PromptEnhanced {
                original_prompt,
                answer,
                ..
            } => &[original_prompt, &answer.content],
            Self::ResendStarted(segment) => &[
                &segment.prompt,
                segment.original_prompt.as_deref().unwrap_or_default(),
            ],
            Self::PromptExtended(answer) => &[&answer.content],
            Self::PromptReceived {
                prompt: Some(prompt),
                ..
            } => &[prompt],
            Self::PromptFallback {
                original_prompt: text,
                reason,
                ..
            }
            | Self::RewriteFailed {
                seed_prompt: text,
                reason,
                ..
            } => &[text, reason],
            Self::Error { message, .. } | Self::SegmentFailed { message, .. } => &[message],
            Self::Rollout(event) => return BASE_COST + event.text_bytes() as u64,
            _ => &[],
        };
        BASE_COST + texts.iter().map(|text| text.len() as u64).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_not_larger_than_its_media() {
        let media = size_of::<Media>() + size_of::<AttemptId>();
        assert!(size_of::<SessionEvent>() <= media + 8);
    }
}
