//! What operators learn of a job that runs here: its lines in the session log, and its metrics.

use std::time::Duration;

use fastvideo_proto::job::PromptSource;
use fastvideo_proto::stored_video::StoredVideo;

use super::failure::Failure;
use super::metrics::VideoMetrics;
use crate::segment_run::{AttemptId, RunEvent};
use crate::session::log::{LogEvent, LoggedStep, SessionLog, milliseconds};

/// Reports on one job.
#[derive(Debug)]
pub(super) struct Reports {
    log: SessionLog,
    metrics: VideoMetrics,
}

impl Reports {
    pub(super) fn new(log: SessionLog, metrics: VideoMetrics) -> Self {
        Self { log, metrics }
    }

    /// This server runs the job from now on.
    pub(super) fn taken(&self, video: &StoredVideo) {
        let (request, plan) = (&video.request, &video.plan);
        self.log.record(|| LogEvent::VideoTaken {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: video.model.clone(),
            width: plan.shown.0,
            height: plan.shown.1,
            fps: plan.fps,
            num_frames: plan.frames(),
            segments: plan.segments.len(),
            segments_done: video.segments_done(),
            prompt: request.prompt.clone(),
            enhance_prompt: request.enhance_prompt,
            seed: request.seed,
            num_inference_steps: request.num_inference_steps,
            guidance_scale: request.guidance_scale,
        });
    }

    /// Its first segment was begun.
    pub(super) fn begun(&self, video: &StoredVideo) {
        let begun = video.started_at_ms.unwrap_or(video.created_at_ms);
        self.metrics.begun(between(video.created_at_ms, begun));
    }

    /// An attempt at a segment waits for a worker.
    pub(super) fn queued(&self, at: AttemptId, video: &StoredVideo, prompt: &str, seed: u64) {
        let request = &video.request;
        self.log.record(|| LogEvent::SegmentQueued {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            worker_id: None,
            source: PromptSource::User,
            prompt: prompt.to_owned(),
            original_prompt: (prompt != request.prompt).then(|| request.prompt.clone()),
            waited_ms: 0.0,
            seed: Some(seed),
            num_inference_steps: Some(request.num_inference_steps),
            guidance_scale: Some(request.guidance_scale),
            adapters: Vec::new(),
            negative_prompt: None,
            negative_prompt_hidden: request.negative_prompt.is_some(),
        });
    }

    /// Something has happened to the running attempt.
    pub(super) fn observed(&self, at: AttemptId, event: &RunEvent) {
        if let Some(line) = line(at, event) {
            self.log.record(|| line);
        }
    }

    /// The job has come to its end, which is stored.
    pub(super) fn ended(&self, video: &StoredVideo, failure: Option<&Failure>) {
        let ended = video.ended_at_ms.unwrap_or_default();
        let begun = video.started_at_ms.unwrap_or(ended);
        match failure {
            None => self.metrics.completed(between(begun, ended)),
            Some(failure) => self.metrics.failed(failure.code),
        }
        self.log.record(|| LogEvent::VideoEnded {
            code: failure.map(|failure| failure.code.into()),
            message: failure.map(|failure| failure.message.clone()),
            segments_done: video.segments_done(),
            bytes: video.bytes,
        });
    }

    /// The job goes on elsewhere or later, or was deleted.
    pub(super) fn left(&self, was_deleted: bool) {
        self.log.record(|| LogEvent::VideoLeft { was_deleted });
    }
}

/// Returns the line of the session log about an event, if it has one.
fn line(at: AttemptId, event: &RunEvent) -> Option<LogEvent> {
    let AttemptId {
        segment_idx,
        attempt,
    } = at;
    Some(match event {
        RunEvent::Started {
            worker,
            queued_for,
            after,
        } => LogEvent::SegmentStarted {
            segment_idx,
            attempt,
            worker_id: Some(worker.clone()),
            queue_ms: milliseconds(*queued_for),
            after: after.map(LoggedStep::from),
        },
        RunEvent::Step {
            stage,
            step,
            total_steps,
            took,
        } => LogEvent::Step {
            segment_idx,
            attempt,
            stage: *stage,
            step: *step,
            total_steps: *total_steps,
            ms: milliseconds(*took),
        },
        RunEvent::Differs(_) => LogEvent::MediaVoid {
            segment_idx,
            attempt,
        },
        RunEvent::Finished(finished) => LogEvent::SegmentFinished {
            segment_idx,
            attempt,
            frames: finished.frames,
            generation_ms: milliseconds(finished.generation),
            decode_ms: milliseconds(finished.timing.decode),
            encode_ms: milliseconds(finished.timing.encode),
            sha256: None,
        },
        RunEvent::Cancelled => LogEvent::SegmentCancelled {
            segment_idx,
            attempt,
        },
        RunEvent::SnapshotDropped { reason, is_over } => LogEvent::SnapshotDropped {
            segment_idx,
            attempt,
            reason: reason.clone(),
            attempt_over: *is_over,
        },
        RunEvent::TakenBack { started } => LogEvent::SegmentTakenBack {
            segment_idx,
            attempt,
            started: *started,
        },
        RunEvent::WorkerLost {
            worker,
            started,
            reason,
            ..
        } => LogEvent::Fault {
            segment_idx,
            attempt,
            worker_id: worker.clone(),
            started: *started,
            reason: reason.clone(),
        },
        RunEvent::Preview(_)
        | RunEvent::Media { .. }
        | RunEvent::Repeated(_)
        | RunEvent::Failed(_) => return None,
    })
}

/// Returns the time between two moments in milliseconds since the Unix epoch; none where the clock was set back.
fn between(from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(to_ms.saturating_sub(from_ms))
}
