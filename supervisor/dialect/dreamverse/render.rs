//! Renders events as server messages.

use std::time::Duration;

use fastvideo_proto::dreamverse::{ServerMessage, StepLatency};
use fastvideo_proto::job::{MediaKind, PromptSource};

use super::close;
use crate::dialect::{Rendered, Renderer, Wire};
use crate::pool::{Media, Seats};
use crate::segment_run::AttemptId;
use crate::session::event::{SegmentCompleted, WorkerBound};
use crate::session::rollout::event::{
    DroppedPrompts, PlannedPrompt, PromptOrigin, ReadyPrompt, ResetReason, Rewritten, RewrittenBy,
    RolloutEvent, Started,
};
use crate::session::{NotAdmitted, SessionEvent};

/// The only mode of media of this dialect.
const MODE: &str = "av_fmp4";

/// Renders the events of one session.
#[derive(Debug, Default)]
pub(crate) struct DreamverseRenderer {
    /// What the client was told last of the line: its place, the GPUs, and those that are free.
    queue: Option<(usize, usize, usize)>,
    /// Begins the names of streams; known once a GPU is assigned.
    session: Option<String>,
    /// The number of the rollout that is shown, over all projects.
    rollout: u32,
    /// The prompt of the next segment that is shown.
    planned: Option<PlannedPrompt>,
    shown: Shown,
}

/// What the client has seen of the current segment. Another attempt after a fault is silent: nothing is shown twice.
#[derive(Debug, Default)]
struct Shown {
    total_segments: usize,
    /// The stream of the media.
    stream: Option<String>,
    /// The number of binary messages.
    messages: u32,
}

impl Renderer for DreamverseRenderer {
    fn greet(&mut self, seats: Seats) -> Rendered {
        let mut out = Rendered::default();
        let has_place = seats.available > 0 && seats.queue_depth == 0;
        let position = if has_place { 0 } else { seats.queue_depth + 1 };
        self.queue_status(position, seats, &mut out);
        out
    }

    fn render(&mut self, event: SessionEvent) -> Rendered {
        let mut out = Rendered::default();
        self.render_into(event, &mut out);
        out
    }

    fn wants_heartbeats(&self) -> bool {
        false
    }

    fn heartbeat() -> String {
        String::new()
    }

    fn turn_away(why: &NotAdmitted) -> Rendered {
        let mut out = Rendered::default();
        close::not_admitted(why, &mut out);
        out
    }
}

impl DreamverseRenderer {
    fn render_into(&mut self, event: SessionEvent, out: &mut Rendered) {
        match event {
            SessionEvent::Media { at, media } => self.media(at, media, out),
            SessionEvent::Queued {
                position, seats, ..
            } => self.queue_status(position + 1, seats, out),
            SessionEvent::WorkerBound(bound) => self.bound(&bound, out),
            SessionEvent::Rollout(event) => self.rollout(*event, out),
            SessionEvent::SegmentQueued(_) => self.segment_start(out),
            SessionEvent::SegmentCompleted(completed) => self.completed(&completed, out),
            SessionEvent::SegmentCancelled { .. } => self.segment_over(),
            SessionEvent::SegmentFailed { message, .. } => {
                self.segment_over();
                close::error(message, out);
            }
            SessionEvent::MediaVoid { at, .. } => self.media_void(at),
            // The client is told that there is no extension.
            SessionEvent::PromptBlocked {
                source: Some(PromptSource::AutoExtension),
                ..
            } => {}
            SessionEvent::PromptBlocked { blocked, .. } => close::error(blocked.to_string(), out),
            SessionEvent::Error { message, .. } => close::error(message, out),
            SessionEvent::RateLimited { retry_after, .. } => {
                let seconds = retry_after.as_secs_f64().ceil();
                let message = format!("too many prompts; try again in {seconds} s");
                close::error(message, out);
            }
            SessionEvent::NotOpened(why) => close::not_opened(why, out),
            SessionEvent::Ended(ended) => close::ended(&ended, self.session.is_some(), out),
            _ => {}
        }
    }

    fn queue_status(&mut self, position: usize, seats: Seats, out: &mut Rendered) {
        let new = (position, seats.gpus, seats.available);
        if self.queue.replace(new) == Some(new) {
            return;
        }
        out.json(&ServerMessage::QueueStatus {
            position,
            total_gpus: seats.gpus,
            available_gpus: seats.available,
        });
    }

    /// Tells the client of its GPU, the first time: it would count its time down anew.
    fn bound(&mut self, bound: &WorkerBound, out: &mut Rendered) {
        if self.session.is_none() {
            self.session = Some(bound.session_id.to_string());
            out.json(&ServerMessage::GpuAssigned {
                gpu_id: bound.assignment.gpu.0,
                session_timeout: bound.time_limit.map(|limit| limit.as_secs()),
            });
        }
    }

    fn segment_start(&mut self, out: &mut Rendered) {
        let Some(planned) = self.planned.take() else {
            return;
        };
        let segment_idx = planned.segment_idx + 1;
        let source = source(planned.origin);
        let total_segments = planned.seed_prompts.max(segment_idx as usize);
        self.shown = Shown {
            total_segments,
            ..Shown::default()
        };
        out.json(&ServerMessage::SegmentPromptSource {
            segment_idx,
            source,
            prompt_id: planned.prompt_id,
            fallback_used: planned.fallback_used,
            seed_prompt_index: planned.seed_prompt_index,
            loop_iteration: planned.loop_iteration,
        });
        out.json(&ServerMessage::SegmentStart {
            segment_idx,
            total_segments,
            prompt: planned.text,
            source,
            seed_prompt_index: planned.seed_prompt_index,
            loop_iteration: planned.loop_iteration,
        });
    }

    fn media(&mut self, at: AttemptId, media: Media, out: &mut Rendered) {
        if self.shown.stream.is_none()
            && let MediaKind::InitSegment { mime } = &media.kind
        {
            let stream_id = self.stream_id(at);
            self.shown.stream = Some(stream_id.clone());
            out.json(&ServerMessage::MediaInit {
                segment_idx: at.segment_idx + 1,
                mime: mime.clone(),
                stream_id,
                mode: MODE,
            });
        }
        self.shown.messages += 1;
        out.push(Wire::Media(media));
    }

    /// The whole segment follows as another stream.
    fn media_void(&mut self, at: AttemptId) {
        tracing::warn!(
            segment_idx = at.segment_idx,
            attempt = at.attempt,
            "another attempt gives other media; the client gets the whole segment again"
        );
        self.shown.stream = None;
        self.shown.messages = 0;
    }

    fn stream_id(&self, at: AttemptId) -> String {
        let session = self.session.as_deref().unwrap_or_default();
        let (rollout, idx, attempt) = (self.rollout, at.segment_idx, at.attempt);
        format!("{session}-{rollout}-{idx}-{attempt}")
    }

    fn completed(&mut self, completed: &SegmentCompleted, out: &mut Rendered) {
        let segment_idx = completed.at.segment_idx + 1;
        let shown = std::mem::take(&mut self.shown);
        out.json(&ServerMessage::MediaSegmentComplete {
            segment_idx,
            stream_id: (shown.stream).unwrap_or_else(|| self.stream_id(completed.at)),
            chunks: shown.messages,
        });
        let (total, worker) = (completed.requested.elapsed(), completed.generation);
        out.json(&ServerMessage::StepComplete {
            latency_ms: StepLatency {
                total: ms(total),
                worker_e2e: ms(worker),
                main_user_step: ms(total),
                overhead: ms(total.saturating_sub(worker)),
            },
        });
        out.json(&ServerMessage::SegmentComplete {
            segment_idx,
            total_segments: shown.total_segments,
        });
    }

    fn segment_over(&mut self) {
        self.planned = None;
        self.shown = Shown::default();
    }

    fn rollout(&mut self, event: RolloutEvent, out: &mut Rendered) {
        match event {
            RolloutEvent::Planned(planned) => self.planned = Some(planned),
            RolloutEvent::Started(started) => {
                self.rollout += 1;
                self.segment_over();
                out.json(&stream_start(started));
            }
            RolloutEvent::Rewritten(rewritten) => add_rewritten(*rewritten, out),
            RolloutEvent::Refused(message) => close::error(message, out),
            other => {
                if let Some(message) = message(other) {
                    out.json(&message);
                }
            }
        }
    }
}

fn stream_start(started: Started) -> ServerMessage {
    ServerMessage::StreamStart {
        total_segments: started.seed_prompts,
        preset_id: started.preset.id,
        stream_mode: MODE,
        live_mode: true,
        loop_generation_enabled: started.looping,
        loop_iteration: started.loop_iteration,
        generation_segment_cap: started.segment_cap,
    }
}

/// Returns the message of an event that has exactly one.
fn message(event: RolloutEvent) -> Option<ServerMessage> {
    Some(match event {
        RolloutEvent::SeedPrompts { preset, prompts } => ServerMessage::SeedPrompts {
            seed_prompt_count: prompts.len(),
            prompts,
            preset_id: preset.id,
            preset_label: preset.label,
            reason: "init",
        },
        RolloutEvent::Reset {
            reason,
            loop_iteration,
            seed_prompts,
            dropped,
        } => reset(reason, loop_iteration, seed_prompts, dropped),
        RolloutEvent::ResetPending { seed_prompts } => ServerMessage::SeedPromptsResetPending {
            seed_prompt_count: seed_prompts,
        },
        RolloutEvent::Restarted { segment_cap } => ServerMessage::GenerationRestarted {
            reason: "cap_restart",
            segment_cap,
        },
        RolloutEvent::Completed => ServerMessage::StreamComplete,
        RolloutEvent::Idle(dropped) => ServerMessage::ProjectIdle {
            dropped_user_raw_queue: dropped.raw,
            dropped_user_ready_queue: dropped.ready,
        },
        RolloutEvent::PromptReceived { id, queue_depth } => ServerMessage::PromptReceived {
            prompt_id: id,
            queue_depth,
        },
        RolloutEvent::PromptEnhancing { id } => ServerMessage::PromptEnhancing { prompt_id: id },
        RolloutEvent::PromptReady(ready) => prompt_ready(ready),
        RolloutEvent::PromptFallback { prompt, reason } => ServerMessage::PromptFallbackUsed {
            prompt_id: prompt.id,
            prompt: prompt.text,
            source: source(prompt.origin),
            latency_ms: ms(prompt.latency),
            error: reason,
        },
        RolloutEvent::Blocked { segment_idx } => ServerMessage::PromptSourcesBlocked {
            segment_idx: segment_idx + 1,
        },
        RolloutEvent::Resumed {
            segment_idx,
            source: origin,
            prompt_id,
        } => ServerMessage::PromptSourcesResumed {
            segment_idx: segment_idx + 1,
            source: source(origin),
            prompt_id,
        },
        RolloutEvent::ExtensionFailed {
            segment_idx,
            latency,
            reason,
        } => ServerMessage::AutoPromptFailed {
            segment_idx: segment_idx + 1,
            latency_ms: ms(latency),
            error: reason,
        },
        RolloutEvent::RewriteStarted { model } => {
            ServerMessage::RewriteSeedPromptsStarted { model }
        }
        RolloutEvent::RewriteBlocked {
            preset,
            model,
            latency,
            reason,
        } => ServerMessage::RewriteSeedPromptsComplete {
            fallback_used: true,
            error: Some(reason),
            model,
            latency_ms: ms(latency),
            preset_id: preset.id,
            preset_label: preset.label,
        },
        RolloutEvent::EnhancementSet(enabled) => ServerMessage::EnhancementUpdated { enabled },
        RolloutEvent::ExtensionSet(enabled) => ServerMessage::AutoExtensionUpdated { enabled },
        RolloutEvent::LoopSet(enabled) => ServerMessage::LoopGenerationUpdated { enabled },
        RolloutEvent::PausedSet(paused) => ServerMessage::GenerationPausedUpdated { paused },
        RolloutEvent::RewriteModelSet(rewrite_model) => {
            ServerMessage::RewriteModelUpdated { rewrite_model }
        }
        RolloutEvent::RewriteTemperatureSet(rewrite_temperature) => {
            ServerMessage::RewriteTemperatureUpdated {
                rewrite_temperature,
            }
        }
        RolloutEvent::Planned(_)
        | RolloutEvent::Started(_)
        | RolloutEvent::Rewritten(_)
        | RolloutEvent::Refused(_) => return None,
    })
}

fn prompt_ready(ready: ReadyPrompt) -> ServerMessage {
    ServerMessage::PromptReady {
        prompt_id: ready.id,
        prompt: ready.text,
        source: source(ready.origin),
        latency_ms: ms(ready.latency),
    }
}

fn reset(
    reason: ResetReason,
    loop_iteration: u32,
    seed_prompt_count: usize,
    dropped: DroppedPrompts,
) -> ServerMessage {
    let reason = match reason {
        ResetReason::Loop => {
            return ServerMessage::LoopRestarted {
                loop_iteration,
                seed_prompt_count,
                dropped_user_raw_queue: dropped.raw,
                dropped_user_ready_queue: dropped.ready,
            };
        }
        ResetReason::InitialRewrite => "initial_rewrite",
        ResetReason::RewriteRollout => "rewrite_rollout",
        ResetReason::RewriteDuringGeneration => "rewrite_during_generation",
        ResetReason::ProjectInit => "project_init",
        ResetReason::ManualReset => "manual_reset",
        ResetReason::CapRestart => "cap_restart",
        ResetReason::SimpleGenerate => "simple_generate",
    };
    ServerMessage::SeedPromptsResetApplied {
        reason,
        loop_iteration,
        seed_prompt_count,
        dropped_user_raw_queue: dropped.raw,
        dropped_user_ready_queue: dropped.ready,
    }
}

fn add_rewritten(rewritten: Rewritten, out: &mut Rendered) {
    let Rewritten {
        preset,
        prompts,
        instruction,
        by,
    } = rewritten;
    let (error, model, latency, raw) = match by {
        RewrittenBy::Model(written) => (None, written.model, written.latency, Some(written.raw)),
        RewrittenBy::Nobody {
            model,
            latency,
            reason,
        } => (Some(reason), model, latency, None),
    };
    let (fallback_used, latency_ms) = (error.is_some(), ms(latency));
    out.json(&ServerMessage::SeedPromptsRewritten {
        prompts,
        preset_id: preset.id.clone(),
        preset_label: preset.label.clone(),
        reason: "rewrite",
        fallback_used,
        error: error.clone(),
        model: model.clone(),
        latency_ms,
        raw_llm_output: raw,
        rewrite_instruction: instruction,
    });
    out.json(&ServerMessage::RewriteSeedPromptsComplete {
        fallback_used,
        error,
        model,
        latency_ms,
        preset_id: preset.id,
        preset_label: preset.label,
    });
}

/// Returns the word for where a prompt comes from.
fn source(origin: PromptOrigin) -> &'static str {
    match origin {
        PromptOrigin::Seed => "curated",
        PromptOrigin::User => "user_raw",
        PromptOrigin::Enhanced => "user_enhanced",
        PromptOrigin::Extension => "auto_llm",
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
