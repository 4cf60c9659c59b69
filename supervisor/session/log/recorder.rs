//! Reads a session's events for the session log: turns each event into lines.

use fastvideo_proto::job::ErrorCode;

use super::SessionLog;
use super::event::{Llm, LogEvent, LogEvent as L, LoggedStep, Setup};
use super::milliseconds as ms;
use super::signature::hex;
use crate::prompt::{GeneratedPrompt, PromptAlternatives};
use crate::session::event::SessionEvent;
use crate::session::rollout::event::{RewrittenBy, RolloutEvent};

/// Writes an event to the log. Events that concern only the client make no line.
pub(in crate::session) fn record(log: &SessionLog, event: &SessionEvent) {
    let Some(setup) = log.setup() else { return };
    if let SessionEvent::WorkerBound(bound) = event
        && let Some(previous) = &bound.previous
    {
        log.record(|| L::Handoff {
            from: previous.clone(),
            to: bound.assignment.worker.clone(),
        });
    }
    if let Some(line) = line(event, setup) {
        log.record(|| line);
    }
}

fn line(event: &SessionEvent, setup: &Setup) -> Option<LogEvent> {
    Some(match event {
        SessionEvent::Opened(opened) => L::Opened {
            client_id: opened.client_id.as_deref().map(short),
            preset: opened.preset.as_deref().map(short),
            stream_mode: opened.media_mode,
            resumed: opened.resumed,
            hydrated: opened.hydrated,
            image: opened.image.as_deref().map(short),
            curated_prompts: opened.curated_prompts,
            next_segment_idx: opened.next_segment_idx,
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            format: Some(setup.format),
            segment_cap: Some(opened.segment_cap),
        },
        SessionEvent::StateChanged { from, to } => L::State {
            from: *from,
            to: *to,
        },
        SessionEvent::MessageReceived(message) => L::Message {
            r#type: message.kind.into(),
            bytes: message.bytes,
        },
        SessionEvent::Queued {
            position,
            queue_depth,
            ..
        } => L::Queued {
            position: *position,
            queue_depth: *queue_depth,
        },
        SessionEvent::WorkerBound(bound) => L::Assigned {
            worker_id: bound.assignment.worker.clone(),
            gpu_id: bound.assignment.gpu,
            model_id: bound.assignment.model_id.clone(),
            engine: Some(setup.engine.clone()),
            device: Some(bound.assignment.device.clone()),
            encoder: Some(setup.encoder.clone()),
        },
        SessionEvent::PromptReceived { source, prompt } => L::PromptReceived {
            source: *source,
            prompt: prompt.clone(),
        },
        SessionEvent::PromptEnhanced {
            original_prompt,
            answer,
            ..
        } => L::PromptEnhanced {
            original_prompt: original_prompt.clone(),
            prompt: answer.content.clone(),
            by: answer.as_ref().into(),
        },
        SessionEvent::PromptExtended(answer) => L::PromptExtended {
            prompt: answer.content.clone(),
            by: answer.as_ref().into(),
        },
        SessionEvent::PromptRewritten {
            seed_prompt,
            rewritten,
            loggable,
            ..
        } => L::PromptRewritten {
            seed_prompt: seed_prompt.clone(),
            alternatives: loggable.then(|| rewritten.alternatives.clone()),
            by: rewritten.as_ref().into(),
        },
        SessionEvent::Rollout(event) => return rollout_line(event),
        SessionEvent::PromptFallback {
            original_prompt: prompt,
            reason,
            ..
        }
        | SessionEvent::RewriteFailed {
            seed_prompt: prompt,
            reason,
            ..
        } => L::PromptFallback {
            original_prompt: prompt.clone(),
            reason: reason.clone(),
        },
        SessionEvent::PromptBlocked { prompt, .. } => L::PromptBlocked {
            prompt: prompt.clone(),
        },
        SessionEvent::SegmentQueued(queued) => L::SegmentQueued {
            segment_idx: queued.at.segment_idx,
            attempt: queued.at.attempt,
            worker_id: Some(queued.worker.clone()),
            source: queued.source,
            prompt: queued.prompt.clone(),
            original_prompt: queued.original_prompt.clone(),
            waited_ms: ms(queued.waited),
            seed: Some(queued.seed),
            num_inference_steps: Some(queued.total_steps),
            guidance_scale: Some(queued.guidance_scale),
            adapters: queued.adapters.clone(),
            negative_prompt: queued.negative_prompt.clone().filter(|_| queued.loggable),
            negative_prompt_hidden: queued.negative_prompt.is_some() && !queued.loggable,
        },
        SessionEvent::SegmentStarted {
            at,
            queued_for,
            after,
        } => L::SegmentStarted {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            worker_id: None,
            queue_ms: ms(*queued_for),
            after: after.map(LoggedStep::from),
        },
        SessionEvent::SnapshotDropped {
            at,
            reason,
            is_over,
        } => L::SnapshotDropped {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            reason: reason.clone(),
            attempt_over: *is_over,
        },
        SessionEvent::StepDone {
            at,
            stage,
            step,
            total_steps,
            took,
        } => L::Step {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            stage: *stage,
            step: *step,
            total_steps: *total_steps,
            ms: ms(*took),
        },
        SessionEvent::FirstMediaSent { at, after, .. } => L::FirstByte {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            ms: ms(*after),
        },
        SessionEvent::AllMediaSent { at, after, media } => L::LastByte {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            ms: ms(*after),
            chunks: media.chunks,
            bytes: media.bytes,
        },
        SessionEvent::SegmentFinished {
            at,
            frames,
            generation,
            timing,
            sha256,
            ..
        } => L::SegmentFinished {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            frames: *frames,
            generation_ms: ms(*generation),
            decode_ms: ms(timing.decode),
            encode_ms: ms(timing.encode),
            sha256: sha256.as_ref().map(|sha256| hex(&sha256[..])),
        },
        SessionEvent::ResendCompleted(segment) => L::SegmentResent {
            segment_idx: segment.segment_idx,
            bytes: segment.bytes,
        },
        SessionEvent::SegmentCancelled { at, .. } => L::SegmentCancelled {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
        },
        SessionEvent::SegmentFailed {
            at, code, message, ..
        } => L::SegmentFailed {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            code: *code,
            message: message.clone(),
        },
        SessionEvent::SegmentTakenBack { at, started } => L::SegmentTakenBack {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            started: *started,
        },
        SessionEvent::WorkerLost(lost) => L::Fault {
            segment_idx: lost.at.segment_idx,
            attempt: lost.at.attempt,
            worker_id: lost.worker.clone(),
            started: lost.started,
            reason: lost.reason.clone(),
        },
        SessionEvent::MediaVoid { at, .. } => L::MediaVoid {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
        },
        SessionEvent::Error {
            code,
            message,
            retryable,
            ..
        } => L::Error {
            code: *code,
            message: message.clone(),
            retryable: *retryable,
        },
        SessionEvent::RateLimited { .. } => L::Error {
            code: ErrorCode::RateLimited,
            message: "the tenant asks for too many segments".to_owned(),
            retryable: true,
        },
        SessionEvent::Draining { time_left } => L::Draining {
            deadline_seconds: time_left.as_secs_f64(),
        },
        SessionEvent::Ended(ended) => L::Closed {
            cause: ended.cause.name().into(),
            state: ended.state,
            segments: ended.segments,
        },
        SessionEvent::NotOpened(_)
        | SessionEvent::Preview { .. }
        | SessionEvent::Media { .. }
        | SessionEvent::SegmentCompleted(_)
        | SessionEvent::ResendStarted(_)
        | SessionEvent::AudienceChanged { .. }
        | SessionEvent::ResendFailed { .. }
        | SessionEvent::StateExported(_)
        | SessionEvent::WatchTokenRenewed { .. }
        | SessionEvent::RequestWithdrawn { .. }
        | SessionEvent::RequestEdited { .. }
        | SessionEvent::Viewed { .. }
        | SessionEvent::Stored { .. }
        | SessionEvent::PromptWorked(_)
        | SessionEvent::AttemptFailed { .. }
        | SessionEvent::IdleWarning { .. } => return None,
    })
}

/// Shortens a name that a client gives.
fn short(name: &str) -> String {
    /// The number of characters of a name that are kept.
    const MAX_NAME_CHARS: usize = 200;
    name.chars().take(MAX_NAME_CHARS).collect()
}

/// Returns the line of what happened to a rollout. Most of it is a message alone.
fn rollout_line(event: &RolloutEvent) -> Option<LogEvent> {
    Some(match event {
        RolloutEvent::Started(started) => LogEvent::RolloutStarted {
            loop_iteration: started.loop_iteration,
            seed_prompts: started.seed_prompts,
        },
        RolloutEvent::Rewritten(rewritten) => {
            let (model, reason) = match &rewritten.by {
                RewrittenBy::Model(written) => (Some(written.model.clone()), None),
                RewrittenBy::Nobody { reason, .. } => (None, Some(reason.clone())),
            };
            LogEvent::SeedPromptsRewritten {
                prompts: rewritten.prompts.clone(),
                instruction: rewritten.instruction.clone(),
                model,
                reason,
            }
        }
        RolloutEvent::Completed => LogEvent::RolloutCompleted {},
        RolloutEvent::Idle(_) => LogEvent::ProjectEnded {},
        _ => return None,
    })
}

impl From<&GeneratedPrompt> for Llm {
    fn from(answer: &GeneratedPrompt) -> Self {
        Self {
            provider: answer.provider.clone(),
            model: answer.model.clone(),
            latency_ms: ms(answer.latency),
            fallback_used: answer.fallback_used,
        }
    }
}

impl From<&PromptAlternatives> for Llm {
    fn from(rewritten: &PromptAlternatives) -> Self {
        Self {
            provider: rewritten.provider.clone(),
            model: rewritten.model.clone(),
            latency_ms: ms(rewritten.latency),
            fallback_used: rewritten.fallback_used,
        }
    }
}
