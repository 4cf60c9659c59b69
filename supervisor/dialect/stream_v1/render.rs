//! Renders events as server messages.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fastvideo_proto::checkpoint::{self, OpeningFacts};
use fastvideo_proto::ids::{RequestId, SessionId};
use fastvideo_proto::job::{ErrorCode, MediaKind, MediaMode, Stage};
use fastvideo_proto::link::Preview;
use fastvideo_proto::stored::StoredSegment;
use fastvideo_proto::stream_v1::{Features, Limits, ServerMessage};

use super::close;
use crate::dialect::{Rendered, Renderer, Wire};
use crate::engines::default_request::MAX_GUIDANCE;
use crate::pool::Media;
use crate::segment_run::AttemptId;
use crate::session::event::{SegmentCompleted, SegmentQueued, StreamLimits, WorkerBound};
use crate::session::{NotAdmitted, SessionEvent};

/// Renders the events of one session.
#[derive(Debug, Default)]
pub(crate) struct StreamRenderer {
    /// Whether the client has received a `queue_status`.
    has_queue_status: bool,
    /// The session's id and media mode; known once a worker is bound.
    stream: Option<Stream>,
    shown: Shown,
    /// Whether the client wants heartbeats.
    heartbeats: bool,
}

#[derive(Debug)]
struct Stream {
    session: SessionId,
    mode: MediaMode,
}

/// What the client has seen of the current segment. Another attempt after a fault is silent: nothing is shown twice.
#[derive(Debug, Default)]
struct Shown {
    segment: u32,
    start: bool,
    /// The attempt that the first media came from. It names the stream of all of them.
    media: Option<AttemptId>,
    /// The latest attempt, to be shown if it voids the media of those before.
    queued: Option<Box<SegmentQueued>>,
    /// The last step of each stage that the client has seen.
    steps: Vec<(Stage, u32)>,
    /// Whether the segment is a finished one that is sent again.
    is_resent: bool,
}

impl Renderer for StreamRenderer {
    fn render(&mut self, event: SessionEvent) -> Rendered {
        let mut out = Rendered::default();
        self.render_into(event, &mut out);
        out
    }

    fn wants_heartbeats(&self) -> bool {
        self.heartbeats
    }

    fn heartbeat() -> String {
        Rendered::text(&ServerMessage::Heartbeat)
    }

    fn turn_away(why: &NotAdmitted) -> Rendered {
        let mut out = Rendered::default();
        close::not_admitted(why, &mut out);
        out
    }
}

impl StreamRenderer {
    /// Creates the renderer of a session that another server has begun, whose client was shown this.
    pub(crate) fn going_on(
        session: SessionId,
        facts: &OpeningFacts,
        shown: &checkpoint::Shown,
    ) -> Self {
        let media = shown.media_attempt.map(|attempt| AttemptId {
            segment_idx: shown.segment,
            attempt,
        });
        Self {
            has_queue_status: true,
            stream: Some(Stream {
                session,
                mode: facts.media_mode,
            }),
            shown: Shown {
                segment: shown.segment,
                start: shown.start,
                media,
                queued: None,
                steps: shown.steps.clone(),
                is_resent: shown.is_resent,
            },
            heartbeats: facts.heartbeat,
        }
    }

    /// Returns what the client was shown of the segment that is being sent.
    pub(crate) fn shown(&self) -> checkpoint::Shown {
        let shown = &self.shown;
        checkpoint::Shown {
            segment: shown.segment,
            start: shown.start,
            media_attempt: shown.media.map(|at| at.attempt),
            steps: shown.steps.clone(),
            is_resent: shown.is_resent,
        }
    }

    fn render_into(&mut self, event: SessionEvent, out: &mut Rendered) {
        match event {
            SessionEvent::Media { at, media } => self.media(at, media, out),
            SessionEvent::StepDone {
                at,
                stage,
                step,
                total_steps,
                ..
            } => {
                if self.shown.is_new_step(stage, step) {
                    out.json(&ServerMessage::StepComplete {
                        segment_idx: at.segment_idx,
                        step,
                        total_steps,
                        stage,
                    });
                }
            }
            SessionEvent::Preview { at, preview } => self.preview(at, &preview, out),
            SessionEvent::Queued {
                position,
                queue_depth,
                ..
            } => self.queue_status(position, queue_depth, out),
            SessionEvent::WorkerBound(bound) => self.bound(*bound, out),
            SessionEvent::SegmentQueued(queued) => self.segment_queued(queued, out),
            SessionEvent::SegmentCompleted(completed) => self.completed(*completed, out),
            SessionEvent::ResendStarted(segment) => self.resend_started(&segment, out),
            SessionEvent::ResendCompleted(segment) => self.resend_completed(&segment, out),
            SessionEvent::ResendFailed { segment_idx } => out.json(&ServerMessage::Error {
                code: ErrorCode::InternalError,
                message: format!("the media of segment {segment_idx} are not kept any more"),
                retryable: false,
                segment_idx: Some(segment_idx),
                restarting: false,
                request_id: None,
                retry_after_ms: None,
            }),
            SessionEvent::AudienceChanged { spectators } => {
                out.json(&ServerMessage::Spectators { count: spectators });
            }
            SessionEvent::WatchTokenRenewed { request, token } => {
                out.json(&ServerMessage::WatchToken {
                    watch_token: token,
                    request_id: request,
                });
            }
            SessionEvent::SegmentCancelled { at, request, .. } => {
                self.shown = Shown::default();
                out.json(&ServerMessage::SegmentCancelled {
                    segment_idx: at.segment_idx,
                    request_id: request,
                });
            }
            SessionEvent::SegmentFailed {
                at,
                request,
                code,
                message,
                retryable,
                ..
            } => {
                self.shown = Shown::default();
                out.json(&ServerMessage::Error {
                    code,
                    message,
                    retryable,
                    segment_idx: Some(at.segment_idx),
                    restarting: false,
                    request_id: request,
                    retry_after_ms: None,
                });
            }
            SessionEvent::MediaVoid { at, request } => self.media_void(at, request, out),
            SessionEvent::PromptEnhanced {
                request,
                original_prompt,
                answer,
            } => {
                if answer.content != original_prompt {
                    out.json(&ServerMessage::PromptEnhanced {
                        original_prompt,
                        prompt: answer.content,
                        provider: answer.provider,
                        latency_ms: ms(answer.latency),
                        fallback_used: answer.fallback_used,
                        request_id: request,
                    });
                }
            }
            SessionEvent::PromptFallback {
                request,
                original_prompt,
                reason,
            } => out.json(&ServerMessage::PromptFallback {
                original_prompt,
                reason,
                request_id: request,
            }),
            SessionEvent::PromptBlocked {
                request, blocked, ..
            } => error(
                request,
                ErrorCode::PromptBlocked,
                blocked.to_string(),
                false,
                out,
            ),
            SessionEvent::PromptRewritten {
                request,
                seed_prompt,
                rewritten,
                ..
            } => out.json(&ServerMessage::SeedPromptsRewritten {
                seed_prompt,
                alternatives: rewritten.alternatives,
                provider: rewritten.provider,
                model: rewritten.model,
                latency_ms: ms(rewritten.latency),
                fallback_used: rewritten.fallback_used,
                request_id: request,
            }),
            SessionEvent::RewriteFailed {
                request, reason, ..
            } => error(
                request,
                ErrorCode::UpstreamTimeout,
                format!("the prompt was not rewritten: {reason}"),
                true,
                out,
            ),
            SessionEvent::StateExported(exported) => {
                out.json(&ServerMessage::ContinuationStateSnapshot {
                    state: exported.state,
                    request_id: exported.request,
                });
            }
            SessionEvent::Error {
                request,
                code,
                message,
                retryable,
            } => error(request, code, message, retryable, out),
            SessionEvent::RateLimited {
                request,
                retry_after,
            } => {
                let message = "your tenant asks for segments too often";
                out.json(&ServerMessage::rate_limited(request, message, retry_after));
            }
            SessionEvent::RequestWithdrawn { request, .. } => {
                out.json(&ServerMessage::RequestWithdrawn {
                    request_id: request,
                });
            }
            SessionEvent::RequestEdited { request, position } => {
                out.json(&ServerMessage::RequestEdited {
                    request_id: request,
                    position,
                });
            }
            SessionEvent::IdleWarning { time_left } => out.json(&ServerMessage::IdleWarning {
                seconds_left: whole_seconds(time_left),
            }),
            SessionEvent::Draining { time_left } => out.json(&ServerMessage::ServerDraining {
                deadline_seconds: whole_seconds(time_left),
            }),
            SessionEvent::NotOpened(why) => close::not_opened(why, out),
            SessionEvent::Ended(ended) => close::ended(*ended, self.stream.is_some(), out),
            SessionEvent::Opened(opened) => self.heartbeats = opened.heartbeat,
            SessionEvent::MessageReceived(_)
            | SessionEvent::StateChanged { .. }
            | SessionEvent::PromptReceived { .. }
            | SessionEvent::Rollout(_)
            | SessionEvent::PromptExtended(_)
            | SessionEvent::SegmentStarted { .. }
            | SessionEvent::FirstMediaSent { .. }
            | SessionEvent::Viewed { .. }
            | SessionEvent::Stored { .. }
            | SessionEvent::PromptWorked(_)
            | SessionEvent::AttemptFailed { .. }
            | SessionEvent::SnapshotDropped { .. }
            | SessionEvent::AllMediaSent { .. }
            | SessionEvent::SegmentFinished { .. }
            | SessionEvent::SegmentTakenBack { .. }
            | SessionEvent::WorkerLost(_) => {}
        }
    }

    fn queue_status(&mut self, position: usize, queue_depth: usize, out: &mut Rendered) {
        self.has_queue_status = true;
        out.json(&ServerMessage::QueueStatus {
            position,
            queue_depth,
        });
    }

    fn bound(&mut self, bound: WorkerBound, out: &mut Rendered) {
        if !self.has_queue_status {
            self.queue_status(0, 0, out);
        }
        out.json(&ServerMessage::GpuAssigned {
            gpu_id: bound.assignment.gpu.0,
            session_timeout: bound.session_timeout.as_secs(),
            session_id: bound.session_id.to_string(),
            resume_token: bound.resume_token.map(|token| token.as_str().to_owned()),
            watch_token: bound.watch_token,
            worker_id: bound.assignment.worker.to_string(),
            model_id: bound.assignment.model_id,
            server: bound.server,
        });
        let Some(stream) = bound.stream else {
            return;
        };
        out.json(&ServerMessage::StreamStart {
            preset: stream.preset,
            width: stream.format.width,
            height: stream.format.height,
            fps: stream.format.fps,
            num_frames: stream.format.num_frames,
            generation_segment_cap: stream.segment_cap,
            next_segment_idx: stream.next_segment_idx,
            features: Features {
                enhancement: stream.enhancer,
                auto_extension: stream.enhancer,
                rewrite: stream.enhancer,
                safety: stream.safety,
                audio: stream.audio,
                preview: stream.preview,
                adapters: stream.adapters,
            },
            limits: limits(&stream.limits),
        });
        self.stream = Some(Stream {
            session: bound.session_id,
            mode: stream.media_mode,
        });
    }

    fn segment_queued(&mut self, queued: Box<SegmentQueued>, out: &mut Rendered) {
        if !std::mem::replace(&mut self.shown.start, true) {
            self.shown.segment = queued.at.segment_idx;
            out.json(&segment_start(&queued));
        }
        self.shown.queued = Some(queued);
    }

    /// Shows a picture of a segment of which there are no media yet.
    fn preview(&self, at: AttemptId, preview: &Preview, out: &mut Rendered) {
        if self.shown.media.is_some() {
            return;
        }
        out.json(&ServerMessage::Preview {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            frame: preview.frame,
            num_frames: preview.num_frames,
            width: preview.width,
            height: preview.height,
            jpeg: STANDARD.encode(&preview.jpeg),
        });
    }

    fn media(&mut self, at: AttemptId, media: Media, out: &mut Rendered) {
        if self.shown.media.is_none() {
            self.shown.media = Some(at);
            let mime = match &media.kind {
                MediaKind::InitSegment { mime } => mime.clone(),
                MediaKind::Fragment => "image/jpeg".to_owned(),
            };
            out.json(&ServerMessage::MediaInit {
                segment_idx: at.segment_idx,
                mime,
                stream_id: self.stream_id(at),
                mode: self.stream.as_ref().map(|s| s.mode).unwrap_or_default(),
            });
        }
        out.push(Wire::Media(media));
    }

    fn resend_started(&mut self, segment: &StoredSegment, out: &mut Rendered) {
        let at = at(segment);
        if self.shown.is_resent && self.shown.segment == at.segment_idx {
            // Another server has begun to send it.
            self.shown.media = Some(at);
            return;
        }
        out.json(&ServerMessage::SegmentStart {
            segment_idx: segment.segment_idx,
            prompt: segment.prompt.clone(),
            total_steps: segment.num_inference_steps,
            source: segment.source,
            original_prompt: segment.original_prompt.clone(),
            attempt: segment.attempt,
            replayed: true,
            request_id: segment.request_id.clone(),
        });
        // The first message that follows may be any of the segment's.
        self.shown.media = Some(at);
        self.shown.segment = at.segment_idx;
        self.shown.is_resent = true;
        out.json(&ServerMessage::MediaInit {
            segment_idx: at.segment_idx,
            mime: segment.mime.clone(),
            stream_id: self.stream_id(at),
            mode: match segment.is_pictures() {
                true => MediaMode::LegacyJpeg,
                false => MediaMode::AvFmp4,
            },
        });
    }

    fn resend_completed(&mut self, segment: &StoredSegment, out: &mut Rendered) {
        self.shown = Shown::default();
        let messages = segment.media.as_ref().map_or(0, |m| m.messages.len());
        out.json(&ServerMessage::MediaSegmentComplete {
            segment_idx: segment.segment_idx,
            stream_id: self.stream_id(at(segment)),
            chunks: segment.chunks(messages),
            duration_ms: ms(segment.duration),
            pts_base_ms: ms(segment.start),
        });
        out.json(&ServerMessage::SegmentComplete {
            segment_idx: segment.segment_idx,
            generation_time_ms: ms(segment.generation),
            e2e_latency_ms: 0.0,
            request_id: segment.request_id.clone(),
        });
    }

    fn completed(&mut self, completed: SegmentCompleted, out: &mut Rendered) {
        let at = completed.at;
        let stream = std::mem::take(&mut self.shown).media.unwrap_or(at);
        out.json(&ServerMessage::MediaSegmentComplete {
            segment_idx: at.segment_idx,
            stream_id: self.stream_id(stream),
            chunks: completed.media.chunks,
            duration_ms: ms(completed.duration),
            pts_base_ms: ms(completed.start),
        });
        out.json(&ServerMessage::SegmentComplete {
            segment_idx: at.segment_idx,
            generation_time_ms: ms(completed.generation),
            e2e_latency_ms: ms(completed.requested.elapsed()),
            request_id: completed.request,
        });
    }

    /// Tells the client that the media that it has of the segment are void, and begins the segment anew.
    fn media_void(&mut self, at: AttemptId, request: Option<RequestId>, out: &mut Rendered) {
        let message =
            "the segment was interrupted, and another GPU gives other media; it starts again";
        out.json(&ServerMessage::Error {
            code: ErrorCode::WorkerFailed,
            message: message.to_owned(),
            retryable: true,
            segment_idx: Some(at.segment_idx),
            restarting: true,
            request_id: request,
            retry_after_ms: None,
        });
        if let Some(mut queued) = std::mem::take(&mut self.shown).queued {
            queued.at = at;
            self.segment_queued(queued, out);
        }
    }

    fn stream_id(&self, at: AttemptId) -> String {
        let session = self.stream.as_ref().map_or("", |s| s.session.as_str());
        format!("{session}-{}-{}", at.segment_idx, at.attempt)
    }
}

fn segment_start(queued: &SegmentQueued) -> ServerMessage {
    ServerMessage::SegmentStart {
        segment_idx: queued.at.segment_idx,
        prompt: queued.prompt.clone(),
        total_steps: queued.total_steps,
        source: queued.source,
        original_prompt: queued.original_prompt.clone(),
        attempt: queued.at.attempt,
        replayed: false,
        request_id: queued.request.clone(),
    }
}

fn at(segment: &StoredSegment) -> AttemptId {
    AttemptId {
        segment_idx: segment.segment_idx,
        attempt: segment.attempt,
    }
}

impl Shown {
    /// Records a step. Returns false when the client has seen it, or a later one of its stage.
    fn is_new_step(&mut self, stage: Stage, step: u32) -> bool {
        match self.steps.iter_mut().find(|(s, _)| *s == stage) {
            Some((_, seen)) if *seen >= step => return false,
            Some((_, seen)) => *seen = step,
            None => self.steps.push((stage, step)),
        }
        true
    }
}

/// Renders an error that concerns no segment.
fn error(
    request: Option<RequestId>,
    code: ErrorCode,
    message: String,
    retryable: bool,
    out: &mut Rendered,
) {
    out.json(&ServerMessage::Error {
        code,
        message,
        retryable,
        segment_idx: None,
        restarting: false,
        request_id: request,
        retry_after_ms: None,
    });
}

fn limits(limits: &StreamLimits) -> Limits {
    Limits {
        max_message_bytes: limits.max_message_bytes as u64,
        max_prompt_chars: limits.max_prompt_chars as u64,
        max_waiting_requests: limits.max_waiting_requests as u64,
        max_inference_steps: limits.max_inference_steps,
        max_guidance_scale: MAX_GUIDANCE,
        opening_timeout_seconds: whole_seconds(limits.opening_timeout),
        slow_client_timeout_seconds: whole_seconds(limits.slow_client_timeout),
        hold_seconds: whole_seconds(limits.hold),
        recording: limits.recording,
        max_cap_extensions: limits.max_cap_extensions,
    }
}

/// Returns a duration in seconds, rounded up.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fastvideo_proto::ids::{GpuId, WorkerId};
    use fastvideo_proto::job::PromptSource;
    use serde_json::Value;
    use tokio::time::Instant;

    use super::*;
    use crate::pool::testing;
    use crate::segment_run::MediaCount;
    use crate::session::event::WorkerLost;

    fn at(attempt: u32) -> AttemptId {
        AttemptId {
            segment_idx: 0,
            attempt,
        }
    }

    fn queued(attempt: u32) -> SessionEvent {
        SessionEvent::SegmentQueued(Box::new(SegmentQueued {
            at: at(attempt),
            request: None,
            worker: WorkerId::new(GpuId(0), attempt),
            gpu: GpuId(0),
            source: PromptSource::User,
            prompt: "a fox".to_owned(),
            original_prompt: None,
            negative_prompt: None,
            loggable: true,
            seed: 1,
            guidance_scale: 1.0,
            adapters: Vec::new(),
            total_steps: 8,
            waited: Duration::ZERO,
            trace_parent: None,
        }))
    }

    fn step(attempt: u32, step: u32) -> SessionEvent {
        SessionEvent::StepDone {
            at: at(attempt),
            stage: Stage::Denoise,
            step,
            total_steps: 8,
            took: Duration::ZERO,
        }
    }

    fn media(attempt: u32) -> SessionEvent {
        let bytes = Bytes::from_static(b"abc");
        SessionEvent::Media {
            at: at(attempt),
            media: testing::media(MediaKind::Fragment, bytes),
        }
    }

    fn lost(attempt: u32) -> SessionEvent {
        SessionEvent::WorkerLost(Box::new(WorkerLost {
            at: at(attempt),
            worker: WorkerId::new(GpuId(0), attempt),
            started: true,
            reason: "killed".to_owned(),
        }))
    }

    fn void(attempt: u32) -> SessionEvent {
        SessionEvent::MediaVoid {
            at: at(attempt),
            request: None,
        }
    }

    fn completed(attempt: u32) -> SessionEvent {
        SessionEvent::SegmentCompleted(Box::new(SegmentCompleted {
            at: at(attempt),
            request: None,
            media: MediaCount::default(),
            start: Duration::ZERO,
            duration: Duration::ZERO,
            generation: Duration::ZERO,
            requested: Instant::now(),
        }))
    }

    /// Compares the types of the messages that the client gets of these events, `media` for a binary one. Returns the
    /// texts among them.
    #[track_caller]
    fn check(events: impl IntoIterator<Item = SessionEvent>, expected: &[&str]) -> Vec<Value> {
        let mut renderer = StreamRenderer::default();
        let mut types = Vec::new();
        let mut messages = Vec::new();
        for event in events {
            for wire in renderer.render(event) {
                types.push(match wire {
                    Wire::Text(text) => {
                        let message: Value = serde_json::from_str(&text).unwrap();
                        let kind = message["type"].as_str().unwrap().to_owned();
                        messages.push(message);
                        kind
                    }
                    Wire::Media(_) => "media".to_owned(),
                    Wire::Close { code, .. } => code.to_string(),
                    Wire::Hold => "hold".to_owned(),
                });
            }
        }
        assert_eq!(types, expected);
        messages
    }

    #[test]
    fn another_attempt_is_silent() {
        let events = [
            queued(1),
            step(1, 1),
            step(1, 2),
            lost(1),
            queued(2),
            step(2, 1),
            step(2, 2),
            step(2, 3),
            media(2),
            lost(2),
            queued(3),
            step(3, 1),
            step(3, 3),
            media(3),
            completed(3),
        ];
        let expected = [
            "ltx2_segment_start",
            "step_complete",
            "step_complete",
            "step_complete",
            "media_init",
            "media",
            "media",
            "media_segment_complete",
            "ltx2_segment_complete",
        ];
        let messages = check(events, &expected);
        // The stream that began with the second attempt ends with the third.
        assert_eq!(messages[4]["stream_id"], "-0-2");
        assert_eq!(messages[5]["stream_id"], "-0-2");
    }

    #[test]
    fn previews_end_with_the_first_media() {
        let preview = |attempt| SessionEvent::Preview {
            at: at(attempt),
            preview: Box::new(Preview {
                frame: 24,
                num_frames: 25,
                width: 64,
                height: 32,
                jpeg: Bytes::from_static(b"abcd"),
            }),
        };
        let events = [
            queued(1),
            step(1, 1),
            preview(1),
            media(1),
            preview(1),
            lost(1),
            queued(2),
            preview(2),
            media(2),
            completed(2),
            queued(1),
            preview(1),
        ];
        let expected = [
            "ltx2_segment_start",
            "step_complete",
            "ltx2_preview",
            "media_init",
            "media",
            "media",
            "media_segment_complete",
            "ltx2_segment_complete",
            "ltx2_segment_start",
            "ltx2_preview",
        ];
        let messages = check(events, &expected);
        let expected = serde_json::json!({
            "type": "ltx2_preview", "segment_idx": 0, "attempt": 1, "frame": 24, "num_frames": 25,
            "width": 64, "height": 32, "jpeg": "YWJjZA==",
        });
        assert_eq!(messages[2], expected);
    }

    #[test]
    fn an_attempt_that_voids_media_begins_the_segment_anew() {
        let events = [
            queued(1),
            step(1, 1),
            media(1),
            lost(1),
            queued(2),
            step(2, 1),
            void(2),
            media(2),
            step(2, 2),
            completed(2),
        ];
        let expected = [
            "ltx2_segment_start",
            "step_complete",
            "media_init",
            "media",
            "error",
            "ltx2_segment_start",
            "media_init",
            "media",
            "step_complete",
            "media_segment_complete",
            "ltx2_segment_complete",
        ];
        let messages = check(events, &expected);
        assert_eq!(messages[0]["attempt"], 1);
        assert_eq!(messages[4]["attempt"], 2);
        assert_eq!(messages[5]["stream_id"], "-0-2");
    }

    #[test]
    fn a_cancelled_segment_leaves_its_index_to_one_that_is_shown_whole() {
        let cancelled = SessionEvent::SegmentCancelled {
            at: at(1),
            source: PromptSource::User,
            request: None,
        };
        let events = [queued(1), step(1, 1), cancelled, queued(1), step(1, 1)];
        let expected = [
            "ltx2_segment_start",
            "step_complete",
            "segment_cancelled",
            "ltx2_segment_start",
            "step_complete",
        ];
        check(events, &expected);
    }
}
