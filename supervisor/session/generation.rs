//! Generates a session's segment: begins it, follows the events of its job, and commits it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastvideo_proto::job::{ErrorCode, MediaKind, frames_to_time};
use fastvideo_proto::link::Preview;
use fastvideo_proto::stored::StoredSegment;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::broadcast::{Script, SegmentEnd};
use super::ending::EndCause;
use super::event::{SegmentCompleted, SessionEvent, WorkerLost};
use super::live::{CurrentSegment, LiveSession};
use super::outbox::Mark;
use super::persistence::Committed;
use super::playlist::PlannedSegment;
use super::state::SessionState;
use crate::pool::{JobEnd, JobEvent, Media};
use crate::segment_run::{
    AfterLoss, AttemptId, FinishedSegment, MediaCount, Recorder, RepeatedMedia, RunEvent,
    RunFailure, SegmentRun,
};
use crate::store::Progress;

impl LiveSession {
    /// Begins the next segment, if there is one and the client has room for it.
    pub(super) fn begin_segment(&mut self) {
        let is_ready = self.segment.is_none()
            && self.redelivery.is_none()
            && self.ticket.state() == SessionState::Active
            && !self.is_to_be_released()
            && !self.client_is_full();
        if !is_ready {
            return;
        }
        let alone = self.may_go_on_alone();
        let planned = self.director.next(&self.config, alone);
        self.do_said();
        if let Some(planned) = planned {
            let (idx, max_attempts) = (self.director.segment_idx(), self.config.max_attempts);
            let run = SegmentRun::new(idx, max_attempts);
            let segment = CurrentSegment::new(planned, run, self.keeps(), self.last_end);
            self.segment = Some(Box::new(segment));
        }
    }

    /// Handles the next event of the current segment's job; `None` means that the pool has dropped the job.
    pub(super) fn follow_job(&mut self, mut event: Option<JobEvent>) -> Option<EndCause> {
        let segment = self.segment.as_mut()?;
        let at = segment.run.at();
        if let Some(JobEvent::Ended(JobEnd::Failed { phases, .. })) = &mut event {
            let phases = std::mem::take(phases);
            self.emitter
                .note(&SessionEvent::AttemptFailed { at, phases });
        }
        match segment.run.observe(event) {
            RunEvent::Media { media, first } => {
                self.relay(at, media, first);
                None
            }
            event => {
                let span = segment.run.span().clone();
                span.in_scope(|| self.follow_run(at, event))
            }
        }
    }

    fn relay(&mut self, at: AttemptId, media: Media, first: bool) {
        if self.is_unwanted() {
            return;
        }
        let (kind, bytes) = (media.kind.clone(), media.bytes.clone());
        // The client comes first.
        self.emit(SessionEvent::Media { at, media });
        self.keep(at, &kind, bytes);
        if first {
            self.mark(at, None);
        }
        if self.playback.awaits_media() {
            self.look_at_viewer();
        }
        self.playback.media_sent(Instant::now());
    }

    /// Gives a message to those who need all of the segment besides the client.
    fn keep(&mut self, at: AttemptId, kind: &MediaKind, bytes: Bytes) {
        let Some(segment) = &mut self.segment else {
            return;
        };
        let at = AttemptId {
            attempt: segment.first_attempt.unwrap_or(at.attempt),
            ..at
        };
        segment.kept += 1;
        if let Some(recorder) = &mut segment.recorder {
            recorder.add(at, kind, &bytes);
        }
        if let Some(sha256) = &mut segment.sha256 {
            sha256.update(&bytes);
        }
        let planned = &segment.planned;
        self.broadcaster
            .media(at, kind, bytes, || Script::of(planned));
    }

    /// Takes media that the client has: another server has sent them, so that others here may lack them.
    fn keep_repeated(&mut self, at: AttemptId, repeated: RepeatedMedia) {
        let RepeatedMedia {
            position,
            kind,
            bytes,
        } = repeated;
        let is_new = |segment: &CurrentSegment| segment.kept <= position;
        if self.segment.as_deref().is_some_and(is_new) {
            self.keep(at, &kind, bytes);
        }
    }

    /// Marks the end of what is in the outbox now: the readers are told when the client has taken everything up to
    /// there.
    fn mark(&self, at: AttemptId, all: Option<MediaCount>) {
        if let Some(segment) = &self.segment {
            self.emitter.outbox().mark(Mark {
                readers: self.emitter.readers().clone(),
                at,
                requested: segment.planned.received,
                turn: segment.turn,
                all,
            });
        }
    }

    fn follow_run(&mut self, at: AttemptId, event: RunEvent) -> Option<EndCause> {
        match event {
            RunEvent::Started {
                queued_for, after, ..
            } => {
                self.emit(SessionEvent::SegmentStarted {
                    at,
                    queued_for,
                    after,
                });
            }
            RunEvent::Step {
                stage,
                step,
                total_steps,
                took,
            } => self.emit(SessionEvent::StepDone {
                at,
                stage,
                step,
                total_steps,
                took,
            }),
            RunEvent::Preview(preview) => self.show_preview(at, preview),
            RunEvent::Media { media, first } => self.relay(at, media, first),
            RunEvent::Repeated(repeated) => self.keep_repeated(at, repeated),
            RunEvent::Differs(media) => self.replace_media(media),
            RunEvent::Finished(finished) => self.commit(*finished),
            RunEvent::Cancelled => self.segment_cancelled(),
            RunEvent::Failed(failure) => return self.give_up(failure),
            RunEvent::SnapshotDropped { reason, is_over } => {
                let dropped = SessionEvent::SnapshotDropped {
                    at,
                    reason,
                    is_over,
                };
                self.emitter.note(&dropped);
            }
            RunEvent::TakenBack { started } => {
                self.emit(SessionEvent::SegmentTakenBack { at, started });
            }
            RunEvent::WorkerLost {
                worker,
                started,
                reason,
                then,
            } => {
                self.emit(SessionEvent::WorkerLost(Box::new(WorkerLost {
                    at,
                    worker,
                    started,
                    reason,
                })));
                match then {
                    AfterLoss::RunsAgain => {}
                    AfterLoss::Cancelled => self.segment_cancelled(),
                    AfterLoss::GivenUp { deaths } => {
                        let message = format!(
                            "the segment is given up: it was tried {deaths} times and its worker died each time"
                        );
                        self.segment_failed(ErrorCode::WorkerFailed, message, false);
                    }
                }
            }
        }
        None
    }

    /// Shows the client a picture of the segment, unless it has media of it or reads too slowly: a preview never fills its
    /// window.
    fn show_preview(&self, at: AttemptId, preview: Box<Preview>) {
        let has_media = self.segment.as_ref().is_none_or(|segment| segment.kept > 0);
        let event = SessionEvent::Preview { at, preview };
        let outbox = self.emitter.outbox();
        if !has_media && outbox.cost() + event.cost() < outbox.limit() {
            self.emit(event);
        }
    }

    /// Tells the client that the media that it has of the segment are void, and hands these out instead.
    fn replace_media(&mut self, media: Vec<Media>) {
        let Some(segment) = &self.segment else {
            return;
        };
        let at = segment.run.at();
        self.playback.media_void();
        self.broadcaster.end_segment(SegmentEnd::Void);
        let mut request = None;
        if let Some(segment) = &mut self.segment {
            request = segment.planned.id.clone();
            segment.kept = 0;
            segment.first_attempt = None;
            if let Some(recorder) = &mut segment.recorder {
                *recorder = Recorder::default();
            }
            if let Some(sha256) = &mut segment.sha256 {
                *sha256 = Sha256::new();
            }
        }
        self.emit(SessionEvent::MediaVoid { at, request });
        for (n, media) in media.into_iter().enumerate() {
            self.relay(at, media, n == 0);
        }
    }

    /// Lets the segment, which has failed, be tried again after a pause, if the director wants that.
    fn try_again(&mut self) -> bool {
        let Some(segment) = &mut self.segment else {
            return false;
        };
        let Some(pause) = self.director.pause_before_retry() else {
            return false;
        };
        segment.run.try_again();
        segment.not_before = Some(Instant::now() + pause);
        true
    }

    fn give_up(&mut self, failure: RunFailure) -> Option<EndCause> {
        let failed = ErrorCode::WorkerFailed;
        match failure {
            RunFailure::Refused(message) => {
                self.segment_failed(ErrorCode::InvalidMessage, message, false);
            }
            RunFailure::StateIncompatible(message) => {
                self.segment_failed(ErrorCode::StateIncompatible, message, false);
                return Some(EndCause::StateRefused);
            }
            RunFailure::Failed
            | RunFailure::OutOfMemory
            | RunFailure::BadState
            | RunFailure::Dropped
                if self.try_again() => {}
            RunFailure::Failed | RunFailure::OutOfMemory => {
                self.segment_failed(failed, "the segment could not be generated", true);
            }
            RunFailure::BadState => {
                self.segment_failed(failed, "the segment could not be finished", true);
            }
            RunFailure::Dropped => {
                self.segment_failed(ErrorCode::InternalError, "the segment was lost", true);
            }
        }
        None
    }

    /// Commits the finished segment: its state, its index and its place on the time line become the session's in one
    /// step. The client is told once it has all of the segment and the state is stored; the next segment may run by
    /// then.
    fn commit(&mut self, finished: FinishedSegment) {
        if self.is_unwanted() {
            return self.segment_cancelled();
        }
        let FinishedSegment {
            state,
            frames,
            generation,
            timing,
            media,
            thumbnail,
            instead,
            video: _,
        } = finished;
        if let Some(media) = instead {
            self.replace_media(media);
        }
        let Some(segment) = &mut self.segment else {
            return;
        };
        let (at, source) = (segment.run.at(), segment.planned.request.source);
        let sha256: Option<[u8; 32]> = (segment.sha256.take()).map(|hash| hash.finalize().into());
        let fps = self.config.format.fps;
        let duration = frames_to_time(u64::from(frames), fps);
        self.emit(SessionEvent::SegmentFinished {
            at,
            source,
            frames,
            plays: duration,
            generation,
            timing: Box::new(timing),
            sha256: sha256.map(Box::new),
        });
        self.mark(at, Some(media));
        let Some(segment) = self.segment.take() else {
            return;
        };
        let CurrentSegment {
            planned, recorder, ..
        } = *segment;
        let start = frames_to_time(self.start_frame, fps);
        self.state = Some(state.clone());
        self.start_frame += u64::from(frames);
        self.director.segment_finished();
        self.ticket
            .update(|entry| entry.segments = self.director.segment_idx());
        self.segment_ended();
        self.look_at_viewer();
        self.playback.finished(start + duration, duration);
        self.show_playback();
        let gate = (self.record.is_some()).then(|| self.emitter.outbox().gate());
        let completed = SegmentCompleted {
            at,
            request: planned.id.clone(),
            media,
            start,
            duration,
            generation,
            requested: planned.received,
        };
        self.emitter
            .push(SessionEvent::SegmentCompleted(Box::new(completed)));
        let segment = StoredSegment {
            sha256: sha256.unwrap_or_default(),
            ..stored_segment(at, planned, start, duration, generation)
        };
        let (finished, recorded) = match recorder {
            Some(recorder) => {
                let recorded = recorder.finish(segment, thumbnail);
                (recorded.segment.clone(), Some(recorded))
            }
            None => (Arc::new(segment), None),
        };
        let committed = Committed {
            progress: Progress {
                segments: self.director.segment_idx(),
                start_frame: self.start_frame,
            },
            state,
            recorded,
        };
        if let (Some(record), Some(gate)) = (&self.record, gate) {
            let writes = &self.context.writes;
            (self.persistence).begin_behind(gate, committed, &record.lease, writes);
        }
        // Whoever is told of it finds it in the film.
        self.broadcaster.end_segment(SegmentEnd::Finished(finished));
    }
}

impl Script {
    fn of(planned: &PlannedSegment) -> Self {
        Self {
            prompt: planned.request.prompt.clone(),
            original_prompt: planned.original_prompt.clone(),
            source: planned.request.source,
            total_steps: planned.request.num_inference_steps,
        }
    }
}

/// Returns what is known of a finished segment without its media.
fn stored_segment(
    at: AttemptId,
    planned: PlannedSegment,
    start: Duration,
    duration: Duration,
    generation: Duration,
) -> StoredSegment {
    let PlannedSegment {
        id,
        request,
        original_prompt,
        ..
    } = planned;
    StoredSegment {
        segment_idx: at.segment_idx,
        attempt: at.attempt,
        request_id: id,
        prompt: request.prompt,
        original_prompt,
        source: request.source,
        seed: request.seed,
        num_inference_steps: request.num_inference_steps,
        guidance_scale: request.guidance_scale,
        start,
        duration,
        generation,
        mime: String::new(),
        sha256: [0; 32],
        bytes: 0,
        media: None,
    }
}
