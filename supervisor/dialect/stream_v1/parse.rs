//! Parses client messages into commands.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::RequestId;
use fastvideo_proto::stream_v1::{
    ClientMessage, EditRequest, MediaReceived, Playback, SegmentRequest, SessionInit,
};
use fastvideo_proto::trace::TraceContext;
use tokio::task::spawn_blocking;

use crate::dialect::Parser;
use crate::session::command::{
    self, Have, MessageInfo, OpenSession, PlaybackReport, Protocol, RequestEdit, ResumeRequest,
    RewriteRequest,
};
use crate::session::{Inbound, SessionCommand};

/// Opening messages above this size are parsed on a thread for blocking work.
const LARGE_MESSAGE_BYTES: usize = 64 * 1024;
/// The largest message after the opening one, which may carry an image. It is parsed inline, on a thread of the async
/// runtime.
const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// The session log's name for a message that is not a command.
const INVALID: &str = "invalid";

/// Reads the messages of one client. The first one has to open the session.
#[derive(Debug, Default)]
pub(crate) struct StreamParser {
    has_first: bool,
}

impl StreamParser {
    /// Creates the parser of a client whose session another server has opened.
    pub(crate) fn after_opening() -> Self {
        Self { has_first: true }
    }
}

impl Parser for StreamParser {
    async fn text(&mut self, text: impl AsRef<str> + Send + 'static) -> Inbound {
        let bytes = text.as_ref().len();
        if std::mem::replace(&mut self.has_first, true) {
            return next(text.as_ref());
        }
        if bytes < LARGE_MESSAGE_BYTES {
            return first(text.as_ref());
        }
        match spawn_blocking(move || first(text.as_ref())).await {
            Ok(inbound) => inbound,
            Err(panic) => {
                tracing::error!(%panic, "opening message could not be parsed");
                invalid(INVALID, bytes, None, "the message could not be parsed")
            }
        }
    }

    fn binary(&mut self) -> Inbound {
        match std::mem::replace(&mut self.has_first, true) {
            true => Inbound::RuleBroken("binary messages travel only from server to client"),
            false => Inbound::RuleBroken("the first message must be a session_init_v2, got binary"),
        }
    }
}

fn first(text: &str) -> Inbound {
    match ClientMessage::parse(text) {
        Ok(ClientMessage::SessionInit(init)) => Inbound::Open(Box::new(opening(*init))),
        Ok(other) => invalid(
            other.kind(),
            text.len(),
            None,
            "the first message must be a session_init_v2",
        ),
        Err(error) => invalid(INVALID, text.len(), None, error),
    }
}

fn next(text: &str) -> Inbound {
    let bytes = text.len();
    if bytes > MAX_MESSAGE_BYTES {
        let reason = format!(
            "the message has {bytes} bytes, at most {MAX_MESSAGE_BYTES} are allowed after the opening"
        );
        return invalid(INVALID, bytes, None, reason);
    }
    let (request, parsed) = ClientMessage::parse_request(text);
    let message = match parsed {
        Ok(message) => message,
        Err(error) => return invalid(INVALID, bytes, request, error),
    };
    let kind = message.kind();
    let command = match message {
        ClientMessage::SessionInit(_) => {
            return invalid(kind, bytes, request, "the session is open already");
        }
        ClientMessage::SegmentRequest(request) => {
            SessionCommand::RequestSegment(Box::new(segment(request)))
        }
        ClientMessage::SeedPromptsUpdated(update) => {
            SessionCommand::SetCuratedPrompts(update.seed_prompts)
        }
        ClientMessage::EnhancementUpdated(toggle) => SessionCommand::SetEnhancement(toggle.enabled),
        ClientMessage::AutoExtensionUpdated(toggle) => {
            SessionCommand::SetAutoExtension(toggle.enabled)
        }
        ClientMessage::LoopGenerationUpdated(toggle) => SessionCommand::SetLooping(toggle.enabled),
        ClientMessage::GenerationPausedUpdated(paused) => SessionCommand::SetPaused(paused.paused),
        ClientMessage::SnapshotState => SessionCommand::ExportState,
        ClientMessage::CancelSegment => SessionCommand::CancelSegment,
        ClientMessage::WithdrawRequest => SessionCommand::WithdrawRequest,
        ClientMessage::EditRequest(EditRequest { prompt, position }) => {
            SessionCommand::EditRequest(RequestEdit { prompt, position })
        }
        ClientMessage::Playback(Playback {
            position_ms,
            playing,
        }) => match Duration::try_from_secs_f64(position_ms / 1000.0) {
            Ok(position) => SessionCommand::ReportPlayback(PlaybackReport { position, playing }),
            Err(error) => {
                let reason = format!("`position_ms` is {position_ms}: {error}");
                return invalid(kind, bytes, request, reason);
            }
        },
        ClientMessage::MediaReceived(MediaReceived {
            segment_idx,
            messages,
        }) => SessionCommand::AcknowledgeMedia {
            segment_idx,
            messages,
        },
        ClientMessage::RenewWatchToken => SessionCommand::RenewWatchToken,
        ClientMessage::RewriteSeedPrompts(rewrite) => {
            SessionCommand::RewritePrompt(RewriteRequest {
                prompt: rewrite.seed_prompt,
                count: rewrite.count,
            })
        }
        ClientMessage::Leave => SessionCommand::Leave,
    };
    let message = MessageInfo { kind, bytes };
    Inbound::Command {
        message,
        request,
        command,
    }
}

fn invalid(
    kind: &'static str,
    bytes: usize,
    request: Option<RequestId>,
    reason: impl ToString,
) -> Inbound {
    Inbound::Invalid {
        message: MessageInfo { kind, bytes },
        request,
        reason: reason.to_string(),
    }
}

fn opening(init: SessionInit) -> OpenSession {
    let SessionInit {
        client_id,
        preset,
        preset_label: _,
        curated_prompts,
        initial_image,
        enhancement_enabled,
        auto_extension_enabled,
        loop_generation_enabled,
        single_clip_mode,
        stream_mode,
        continuation_state,
        resume,
        extend,
        heartbeat,
        preview,
        traceparent,
        adapters,
    } = init;
    OpenSession {
        client_id,
        protocol: Protocol::StreamV1,
        preset,
        curated_prompts,
        rollouts: None,
        adapters: adapters.unwrap_or_default(),
        initial_image,
        enhancement: enhancement_enabled,
        auto_extension: auto_extension_enabled,
        looping: loop_generation_enabled,
        heartbeat,
        preview,
        single_segment: single_clip_mode,
        media_mode: stream_mode,
        state: continuation_state,
        resume: resume.map(|resume| ResumeRequest {
            session_id: resume.session_id,
            token: resume.token,
            have: resume.have.map(|have| Have {
                segments: have.segments,
                messages: have.messages,
            }),
            extend,
        }),
        trace_parent: trace_parent(traceparent),
        trace_link: None,
        is_trace_decided: false,
        auth: None,
        share: Arc::default(),
    }
}

/// Reads a `traceparent`. What is none is ignored, as Trace Context wants it.
fn trace_parent(text: Option<String>) -> Option<TraceContext> {
    text?.parse().ok()
}

fn segment(request: SegmentRequest) -> command::SegmentRequest {
    let SegmentRequest {
        prompt,
        negative_prompt,
        source,
        seed,
        num_inference_steps,
        guidance_scale,
        adapters,
        traceparent,
    } = request;
    command::SegmentRequest {
        prompt,
        negative_prompt,
        source,
        seed,
        num_inference_steps,
        guidance_scale,
        adapters,
        trace_parent: trace_parent(traceparent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a message, the second after an opening.
    #[track_caller]
    fn check(text: &str, kind: &str, reason: Option<&str>) {
        let (message, given) = match next(text) {
            Inbound::Command { message, .. } => (message, None),
            Inbound::Invalid {
                message, reason, ..
            } => (message, Some(reason)),
            other => panic!("{other:?}"),
        };
        assert_eq!((message.kind, message.bytes), (kind, text.len()), "{text}");
        assert_eq!(given.as_deref(), reason, "{text}");
    }

    #[test]
    fn every_message_is_a_command_or_says_what_is_wrong() {
        check(r#"{"type":"leave"}"#, "leave", None);
        check(
            r#"{"type":"session_init_v2"}"#,
            "session_init_v2",
            Some("the session is open already"),
        );
        check(
            r#"{"type":"jump"}"#,
            "invalid",
            Some("unknown message type `jump`"),
        );
        let large = "x".repeat(MAX_MESSAGE_BYTES + 1);
        check(
            &large,
            "invalid",
            Some("the message has 8388609 bytes, at most 8388608 are allowed after the opening"),
        );
    }

    #[tokio::test]
    async fn only_the_first_message_opens_a_session_and_it_may_be_large() {
        let mut parser = StreamParser::default();
        let large = format!(
            r#"{{"type":"session_init_v2","preset":"{}"}}"#,
            "x".repeat(MAX_MESSAGE_BYTES)
        );
        let Inbound::Open(opening) = parser.text(large).await else {
            panic!("no opening");
        };
        assert_eq!(opening.preset.unwrap().len(), MAX_MESSAGE_BYTES);
        let second = parser.text(r#"{"type":"session_init_v2"}"#).await;
        assert!(matches!(second, Inbound::Invalid { .. }), "{second:?}");
        assert!(matches!(parser.binary(), Inbound::RuleBroken(_)));
    }
}
