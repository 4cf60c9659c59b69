//! The one segment that a session has in hand, over all its attempts.

use std::time::{Duration, Instant};

use fastvideo_proto::ids::{SessionId, WorkerId};
use fastvideo_proto::job::{ErrorCode, MediaMode, Stage};
use fastvideo_proto::job::{JobTiming, MediaKind, frames_to_time};
use fastvideo_proto::stream_v1::ServerMessage;

use super::log::{Event, SessionLog};
use super::outbox::{Note, Outbox, Outgoing, Sent};
use super::playlist::PlannedSegment;
use crate::pool::{JobHandle, Media};

/// A segment from the moment that it is its turn to the one when it is finished, failed or cancelled.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) idx: u32,
    pub(super) planned: PlannedSegment,
    /// Counts from 1; raised when an attempt had reached a worker and did not end there.
    pub(super) attempt: u32,
    /// Workers that died with it.
    pub(super) deaths: u32,
    /// The running attempt; none while a worker is waited for.
    pub(super) job: Option<JobHandle>,
    /// The worker that the last attempt was lost with.
    pub(super) lost_with: Option<WorkerId>,
    pub(super) cancelling: bool,
    shown: Shown,
    log: SessionLog,
    /// When the attempt came as far as it has, by the log.
    reached: Instant,
}

/// What the client has seen of the segment.
#[derive(Debug, Default)]
struct Shown {
    start: bool,
    stream_id: Option<String>,
    chunks: u32,
    /// Of all binary messages.
    bytes: u64,
    /// The last step of each stage; a silent second attempt does not show them again.
    steps: Vec<(Stage, u32)>,
}

impl Segment {
    pub(super) fn new(idx: u32, planned: PlannedSegment, log: SessionLog) -> Self {
        Self {
            idx,
            planned,
            attempt: 1,
            deaths: 0,
            job: None,
            lost_with: None,
            cancelling: false,
            shown: Shown::default(),
            log,
            reached: Instant::now(),
        }
    }

    /// Media of this attempt have been sent.
    pub(super) fn has_media(&self) -> bool {
        self.shown.stream_id.is_some()
    }

    /// The attempt is lost; what the client has seen of it is void when there were media.
    pub(super) fn lose_attempt(&mut self, worker: WorkerId, started: bool) {
        self.lost_with = Some(worker);
        if started {
            self.deaths += 1;
        }
        self.begin_again(started);
    }

    /// The attempt, which may have been started, is void; the next one may run on any worker.
    pub(super) fn begin_again(&mut self, started: bool) {
        self.job = None;
        if started {
            self.attempt += 1;
        }
        if self.has_media() {
            self.shown = Shown::default();
        }
    }

    /// Tells the client that the segment begins, unless it knows.
    pub(super) fn show_start(&mut self, outbox: &Outbox) {
        if !std::mem::replace(&mut self.shown.start, true) {
            outbox.send(&ServerMessage::SegmentStart {
                segment_idx: self.idx,
                prompt: self.planned.request.prompt.clone(),
                total_steps: self.planned.request.num_inference_steps,
                source: self.planned.request.source,
                original_prompt: self.planned.original_prompt.clone(),
                attempt: self.attempt,
            });
        }
    }

    pub(super) fn show_step(&mut self, outbox: &Outbox, stage: Stage, step: u32, total_steps: u32) {
        match self.shown.steps.iter_mut().find(|(s, _)| *s == stage) {
            Some((_, seen)) if *seen >= step => return,
            Some((_, seen)) => *seen = step,
            None => self.shown.steps.push((stage, step)),
        }
        outbox.send(&ServerMessage::StepComplete {
            segment_idx: self.idx,
            step,
            total_steps,
            stage,
        });
    }

    pub(super) fn show_media(
        &mut self,
        outbox: &Outbox,
        session: &SessionId,
        mode: MediaMode,
        media: Media,
    ) {
        if self.shown.stream_id.is_none() {
            let stream_id = format!("{session}-{}-{}", self.idx, self.attempt);
            let mime = match &media.kind {
                MediaKind::InitSegment { mime } => mime.clone(),
                MediaKind::Fragment => "image/jpeg".to_owned(),
            };
            outbox.send(&ServerMessage::MediaInit {
                segment_idx: self.idx,
                mime,
                stream_id: stream_id.clone(),
                mode,
            });
            self.shown.stream_id = Some(stream_id);
        }
        if media.kind == MediaKind::Fragment {
            self.shown.chunks += 1;
        }
        let first = self.shown.bytes == 0;
        self.shown.bytes += media.bytes.len() as u64;
        outbox.push(Outgoing::Binary(media));
        if first {
            self.note(outbox, Sent::First);
        }
    }

    /// All media are in the outbox.
    pub(super) fn media_end(&self, outbox: &Outbox) {
        let (chunks, bytes) = (self.shown.chunks, self.shown.bytes);
        self.note(outbox, Sent::All { chunks, bytes });
    }

    fn note(&self, outbox: &Outbox, sent: Sent) {
        if self.log.is_kept() {
            outbox.push(Outgoing::Note(Box::new(Note {
                log: self.log.clone(),
                segment_idx: self.idx,
                attempt: self.attempt,
                requested: self.planned.received,
                sent,
            })));
        }
    }

    /// Tells the client that the segment is whole. `start_frame` is its place on the time line.
    pub(super) fn show_complete(
        self,
        outbox: &Outbox,
        start_frame: u64,
        frames: u32,
        fps: u32,
        generation: Duration,
    ) {
        let ms = |frames| frames_to_time(frames, fps).as_secs_f64() * 1000.0;
        outbox.send(&ServerMessage::MediaSegmentComplete {
            segment_idx: self.idx,
            stream_id: self.shown.stream_id.unwrap_or_default(),
            chunks: self.shown.chunks,
            duration_ms: ms(u64::from(frames)),
            pts_base_ms: ms(start_frame),
        });
        outbox.push(Outgoing::SegmentComplete {
            segment_idx: self.idx,
            generation_time_ms: generation.as_secs_f64() * 1000.0,
            requested: self.planned.received,
        });
    }
}

/// What the session's log says of it.
impl Segment {
    pub(super) fn log_queued(&mut self, worker: &WorkerId) {
        self.reached = Instant::now();
        let request = &self.planned.request;
        self.log.record(|| Event::SegmentQueued {
            segment_idx: self.idx,
            attempt: self.attempt,
            worker_id: worker.clone(),
            source: request.source,
            prompt: request.prompt.clone(),
            original_prompt: self.planned.original_prompt.clone(),
            waited_ms: ms(self.planned.received.elapsed()),
        });
    }

    pub(super) fn log_started(&mut self) {
        let queue = self.lap();
        self.log.record(|| Event::SegmentStarted {
            segment_idx: self.idx,
            attempt: self.attempt,
            queue_ms: ms(queue),
        });
    }

    pub(super) fn log_step(&mut self, stage: Stage, step: u32, total_steps: u32) {
        let took = self.lap();
        self.log.record(|| Event::Step {
            segment_idx: self.idx,
            attempt: self.attempt,
            stage,
            step,
            total_steps,
            ms: ms(took),
        });
    }

    pub(super) fn log_finished(&self, frames: u32, generation: Duration, timing: JobTiming) {
        self.log.record(|| Event::SegmentFinished {
            segment_idx: self.idx,
            attempt: self.attempt,
            frames,
            generation_ms: ms(generation),
            decode_ms: ms(timing.decode),
            encode_ms: ms(timing.encode),
        });
    }

    pub(super) fn log_cancelled(&self) {
        self.log.record(|| Event::SegmentCancelled {
            segment_idx: self.idx,
            attempt: self.attempt,
        });
    }

    pub(super) fn log_failed(&self, code: ErrorCode, message: &str) {
        self.log.record(|| Event::SegmentFailed {
            segment_idx: self.idx,
            attempt: self.attempt,
            code,
            message: message.to_owned(),
        });
    }

    pub(super) fn log_taken_back(&self, started: bool) {
        self.log.record(|| Event::SegmentTakenBack {
            segment_idx: self.idx,
            attempt: self.attempt,
            started,
        });
    }

    pub(super) fn log_fault(&self, worker: &WorkerId, started: bool, reason: &str) {
        self.log.record(|| Event::Fault {
            segment_idx: self.idx,
            attempt: self.attempt,
            worker_id: worker.clone(),
            started,
            reason: reason.to_owned(),
        });
    }

    /// Time since the attempt last came further.
    fn lap(&mut self) -> Duration {
        let before = std::mem::replace(&mut self.reached, Instant::now());
        self.reached - before
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
