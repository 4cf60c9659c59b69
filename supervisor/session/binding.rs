//! Binds a session to its worker: tells the client which worker it is, and submits segments to it.

use fastvideo_proto::ids::JobId;
use fastvideo_proto::job::{ErrorCode, MediaMode};
use fastvideo_proto::link::JobSpec;
use tokio::time::Instant;

use super::ending::EndCause;
use super::event::{SegmentQueued, SessionEvent, StreamInfo, StreamLimits, WorkerBound};
use super::live::LiveSession;
use super::state::SessionState;
use crate::pool::{Assignment, Placement};
use crate::segment_run::start_from;

impl LiveSession {
    /// Reacts to where the pool has put the session: changes its state and tells the client.
    pub(super) fn placed(&mut self) -> Option<EndCause> {
        let state = self.ticket.state();
        match self.placement.clone() {
            Placement::Bound(assignment) => {
                let announced = self.announced.as_ref();
                if announced.is_none_or(|a| a.worker != assignment.worker) {
                    self.bound(assignment);
                }
            }
            Placement::Waiting { .. } | Placement::NoWorker if self.link.is_some() => {
                return Some(EndCause::Released);
            }
            Placement::Waiting {
                position,
                queue_depth,
            } => match state {
                // A session that had a worker is next in line: to its client this is a pause.
                SessionState::Active => self.transition(SessionState::GpuBinding),
                SessionState::GpuBinding => {}
                _ => self.emit(SessionEvent::Queued {
                    position,
                    queue_depth,
                    seats: self.context.pool.seats(),
                }),
            },
            Placement::NoWorker if self.announced.is_none() => return Some(EndCause::NoWorker),
            Placement::NoWorker => {
                if state == SessionState::Active {
                    self.transition(SessionState::GpuBinding);
                }
                let message = "no GPU is left to generate the segment; try again in a minute";
                self.segment_failed(ErrorCode::GpuUnavailable, message, true);
            }
        }
        None
    }

    fn bound(&mut self, assignment: Assignment) {
        if self.ticket.state() != SessionState::GpuBinding {
            self.transition(SessionState::GpuBinding);
        }
        let is_first = !std::mem::replace(&mut self.knows_stream, true);
        self.emit(SessionEvent::WorkerBound(Box::new(WorkerBound {
            assignment: assignment.clone(),
            server: self.config.server_name.clone(),
            previous: self.announced.as_ref().map(|a| a.worker.clone()),
            session_id: self.ticket.id().clone(),
            resume_token: self.record.as_ref().map(|record| record.token.clone()),
            watch_token: (self.record.as_ref())
                .filter(|_| self.config.watch)
                .map(|record| record.lease.watch_token(&record.token)),
            session_timeout: self.config.session_timeout,
            time_limit: self.time_limit,
            stream: is_first.then(|| self.stream_info(assignment.audio)),
        })));
        self.ticket
            .update(|entry| entry.worker = Some(assignment.worker.clone()));
        self.transition(SessionState::Active);
        if is_first {
            let now = Instant::now();
            self.last_activity = now;
            self.ends_at = self.time_limit.and_then(|limit| now.checked_add(limit));
            let waiting = self.limits().max_waiting_requests;
            self.director.bound(waiting);
        }
        self.announced = Some(assignment);
    }

    fn stream_info(&self, audio: bool) -> StreamInfo {
        let (config, limits) = (&self.config, self.limits());
        let prompts = &self.context.prompts;
        StreamInfo {
            preset: self.preset.clone(),
            format: config.format,
            segment_cap: self.segment_cap,
            next_segment_idx: self.director.segment_idx(),
            enhancer: prompts.enhancer().is_some(),
            safety: prompts.safety().is_some_and(|safety| safety.is_available()),
            audio: audio && self.media_mode == MediaMode::AvFmp4,
            preview: config.previews,
            adapters: self.context.pool.offered_adapters(),
            media_mode: self.media_mode,
            limits: StreamLimits {
                max_message_bytes: config.max_message_bytes,
                max_prompt_chars: limits.max_prompt_chars,
                max_waiting_requests: limits.max_waiting_requests,
                max_inference_steps: limits.max_inference_steps,
                opening_timeout: limits.opening_timeout,
                slow_client_timeout: limits.slow_client_timeout,
                hold: config.hold,
                recording: self.context.store.config().recording.is_some(),
                max_cap_extensions: config.cap_extensions,
            },
        }
    }

    /// Submits the current segment to the worker that the session is bound to, unless it runs there already or the
    /// client's window has no room for its media.
    pub(super) fn submit(&mut self) {
        let (Placement::Bound(assignment), Some(segment)) = (&self.placement, &mut self.segment)
        else {
            return;
        };
        let worker = &assignment.worker;
        let (unsent, limit) = (self.emitter.outbox().cost(), self.emitter.outbox().limit());
        if !segment.run.may_submit_to(worker) || unsent >= limit || segment.not_before.is_some() {
            return;
        }
        let request = &mut segment.planned.request;
        if (self.binding).choose_adapters(request.adapters.as_deref().unwrap_or_default()) {
            // The notification of the move is on its way.
            return;
        }
        // An operator may have unloaded some, the worker may have failed to load some, and the server that the session came
        // from may have had others.
        let gone = request.drop_adapters(&self.context.pool.adapters_of(assignment.gpu));
        if !gone.is_empty() {
            (self.binding).choose_adapters(request.adapters.as_deref().unwrap_or_default());
            self.director.drop_adapters(&gone);
            self.emitter.emit(SessionEvent::Error {
                request: segment.planned.id.clone(),
                code: ErrorCode::InvalidMessage,
                message: format!(
                    "`adapters`: there is no `{}` any more; segments are made without it",
                    gone.join("`, `")
                ),
                retryable: false,
            });
        }
        let (at, request) = (segment.run.at(), &segment.planned.request);
        let spec = JobSpec {
            // The pool sets it.
            job: JobId(0),
            session: self.ticket.id().clone(),
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            seed: request.seed,
            num_inference_steps: request.num_inference_steps,
            guidance_scale: request.guidance_scale,
            adapters: request.adapters.clone().unwrap_or_default(),
            format: self.config.format,
            media_mode: self.media_mode,
            start_frame: self.start_frame,
            initial_image: match at.segment_idx {
                0 => self.image.as_ref().map(|image| image.path().to_owned()),
                _ => None,
            },
            // The pool sets these three.
            state: None,
            snapshot: None,
            snapshot_min_step: None,
            previews: self.wants_previews && self.config.previews,
            video: None,
            window: limit - unsent,
            trace: self.emitter.readers().trace(),
        };
        let start = self.state.as_ref().map(start_from);
        let due = self
            .playback
            .due(Instant::now(), self.config.format.duration());
        let submitted = (segment.run)
            .submit(|snapshot| self.binding.submit(worker, spec, start, snapshot, due));
        if let Err(moved) = submitted {
            // The notification of the move is on its way.
            tracing::debug!(%moved, "job not submitted");
            return;
        }
        let queued = SegmentQueued {
            at,
            request: segment.planned.id.clone(),
            worker: worker.clone(),
            gpu: assignment.gpu,
            source: request.source,
            prompt: request.prompt.clone(),
            original_prompt: segment.planned.original_prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            loggable: self.context.prompts.logs_unscreened(),
            seed: request.seed,
            guidance_scale: request.guidance_scale,
            adapters: request.adapters.clone().unwrap_or_default(),
            total_steps: request.num_inference_steps,
            waited: segment.planned.received.elapsed(),
            trace_parent: request.trace_parent,
        };
        (self.emitter).emit(SessionEvent::SegmentQueued(Box::new(queued)));
    }
}
