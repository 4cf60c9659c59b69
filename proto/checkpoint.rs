//! A session's checkpoint: what another server needs to go on with it, besides what the store keeps.
//!
//! A server gives it to the router with each message that changes it (see [`crate::session_link`]), and the router gives
//! the last one to the server that goes on. It is JSON; a reader ignores fields that it does not know. It contains
//! prompts, and is never logged.

use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::ids::RequestId;
use crate::job::{MediaMode, PromptSource, Stage};
use crate::trace::TraceContext;

/// The version of [`Checkpoint`]; a server that knows another one only does not go on from it.
pub const CHECKPOINT_VERSION: u32 = 1;

/// The largest checkpoint, in bytes, that a server takes.
pub const MAX_CHECKPOINT_BYTES: usize = 4 << 20;

/// What a session is doing, after everything that its client was told so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checkpoint {
    pub version: u32,
    pub opening: OpeningFacts,
    /// Number of finished segments.
    pub segments: u32,
    /// Where the next segment begins on the session's time line, in frames.
    pub start_frame: u64,
    pub switches: Switches,
    /// The adapters that act on the session's segments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<Adapter>,
    /// The curated prompt whose turn is next.
    pub next_curated: usize,
    /// The client's requests that wait, in order.
    pub waiting: Vec<WaitingRequest>,
    /// The prompts of the last finished segments, oldest first.
    pub story: Vec<String>,
    /// The prompt that a language model has written for the next segment.
    pub extension: Option<String>,
    /// For how long nothing is generated that nobody has asked for, in milliseconds.
    pub auto_pause_ms: Option<u64>,
    /// The segment that is being generated.
    pub running: Option<RunningSegment>,
    /// The exports of the state that were asked for and not answered: the client's names for them.
    pub exports: Vec<Option<RequestId>>,
    /// The rewritings that were asked for and not answered.
    pub rewrites: Vec<Rewrite>,
    /// How far the viewer is behind what is finished, in milliseconds; `None` before the first segment.
    pub lead_ms: Option<u64>,
    /// Time since the session was last active, in milliseconds.
    pub idle_ms: u64,
    /// Whether the client was warned of the session's end for lack of activity.
    pub is_warned: bool,
    /// The number of spectators that the client was told.
    pub spectators: usize,
    /// The next finished segment that is to be sent to the client again, and the number of its messages that the client
    /// has.
    pub resend: Option<Resend>,
}

impl Checkpoint {
    /// Lets the milliseconds pass that have gone by since it was taken. The session does not count as idle meanwhile.
    pub fn pass(&mut self, ms: u64) {
        let running = self.running.iter_mut().map(|running| &mut running.ask);
        let waiting = self.waiting.iter_mut().map(|waiting| &mut waiting.ask);
        for ask in running.chain(waiting) {
            ask.waited_ms = ask.waited_ms.saturating_add(ms);
        }
        for left in [&mut self.lead_ms, &mut self.auto_pause_ms] {
            *left = left.map(|left| left.saturating_sub(ms));
        }
    }
}

/// What the opening message said that still matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpeningFacts {
    pub client_id: Option<String>,
    pub preset: Option<String>,
    pub media_mode: MediaMode,
    pub heartbeat: bool,
    pub preview: bool,
    pub single_segment: bool,
}

/// The client's switches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Switches {
    pub looping: bool,
    pub enhancing: bool,
    pub extending: bool,
    pub paused: bool,
}

/// What is asked of a segment: every field is set, and within the server's limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ask {
    /// The client's name for the request.
    pub id: Option<RequestId>,
    pub prompt: String,
    pub negative_prompt: Option<String>,
    pub source: PromptSource,
    pub seed: u64,
    pub num_inference_steps: u32,
    pub guidance_scale: f64,
    /// The adapters that act from this segment on; `None` leaves them as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<Vec<Adapter>>,
    /// Time since the request came, in milliseconds.
    pub waited_ms: u64,
    /// The span that the segment is below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_parent: Option<TraceContext>,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitingRequest {
    /// With the prompt as the client wrote it.
    pub ask: Ask,
    pub draft: Draft,
    /// Whether the prompt is to be enhanced.
    pub enhance: bool,
}

/// How far the preparation of a prompt has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draft {
    /// It is neither screened nor enhanced.
    #[default]
    Written,
    /// It was screened and may be used as it is written.
    Admitted,
    Enhanced(String),
    /// It could not be enhanced and may be used as it is written.
    NotEnhanced,
}

/// A curated prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CuratedPrompt {
    pub prompt: String,
    pub draft: Draft,
}

/// The segment that is being generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningSegment {
    /// With the prompt as it is used.
    pub ask: Ask,
    /// The prompt before it was enhanced; absent when it is the same.
    pub original_prompt: Option<String>,
    /// Whether the client has asked for the segment.
    pub by_client: bool,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// Number of workers that were lost with the segment.
    pub deaths: u32,
    /// Whether the client has cancelled it.
    pub is_cancelled: bool,
}

/// Alternatives to a prompt that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    pub id: Option<RequestId>,
    pub prompt: String,
    pub count: u32,
}

/// A place in the finished segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resend {
    pub segment: u32,
    /// Number of the segment's messages that the client has.
    pub messages: u32,
}

/// What the client was shown of the segment that is being sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shown {
    pub segment: u32,
    /// Whether it was told of the segment's start.
    pub start: bool,
    /// The attempt whose media it was told of.
    pub media_attempt: Option<u32>,
    /// The last step of each stage.
    pub steps: Vec<(Stage, u32)>,
    /// Whether the segment is a finished one that is sent again.
    pub is_resent: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_checkpoint_of_a_newer_server_can_be_read() {
        let checkpoint = Checkpoint {
            version: CHECKPOINT_VERSION,
            waiting: vec![WaitingRequest {
                ask: Ask {
                    guidance_scale: 0.1 + 0.2,
                    seed: u64::MAX,
                    ..Ask::default()
                },
                draft: Draft::Enhanced("a red fox".to_owned()),
                enhance: true,
            }],
            ..Checkpoint::default()
        };
        let mut value = serde_json::to_value(&checkpoint).unwrap();
        value["mood"] = json!("good");
        let text = value.to_string();
        assert_eq!(
            serde_json::from_str::<Checkpoint>(&text).unwrap(),
            checkpoint
        );
    }

    #[test]
    fn time_passes_for_requests_and_for_the_viewer() {
        let ask = || Ask {
            waited_ms: 10,
            ..Ask::default()
        };
        let mut checkpoint = Checkpoint {
            waiting: vec![WaitingRequest {
                ask: ask(),
                draft: Draft::Written,
                enhance: false,
            }],
            lead_ms: Some(2000),
            auto_pause_ms: Some(500),
            idle_ms: 7,
            ..Checkpoint::default()
        };
        checkpoint.pass(1500);
        assert_eq!(checkpoint.waiting[0].ask.waited_ms, 1510);
        assert_eq!(checkpoint.lead_ms, Some(500));
        assert_eq!(checkpoint.auto_pause_ms, Some(0));
        assert_eq!(checkpoint.idle_ms, 7);
    }
}
