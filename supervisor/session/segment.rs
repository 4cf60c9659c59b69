//! The one segment that a session has in hand, over all its attempts.

use std::time::Duration;

use fastvideo_proto::client::{ServerMessage, Stage, StreamMode};
use fastvideo_proto::ids::{SessionId, WorkerId};
use fastvideo_proto::link::{MediaKind, frames_to_time};

use super::outbox::{Outbox, Outgoing};
use super::script::Ask;
use crate::pool::{JobHandle, Media};

/// A segment from the moment that it is its turn to the one when it is finished, failed or cancelled.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) idx: u32,
    pub(super) ask: Ask,
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
}

/// What the client has seen of the segment.
#[derive(Debug, Default)]
struct Shown {
    start: bool,
    stream_id: Option<String>,
    chunks: u32,
    /// The last step of each stage; a silent second attempt does not show them again.
    steps: Vec<(Stage, u32)>,
}

impl Segment {
    pub(super) fn new(idx: u32, ask: Ask) -> Self {
        Self {
            idx,
            ask,
            attempt: 1,
            deaths: 0,
            job: None,
            lost_with: None,
            cancelling: false,
            shown: Shown::default(),
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
                prompt: self.ask.request.prompt.clone(),
                total_steps: self.ask.request.num_inference_steps,
                source: self.ask.request.source,
                original_prompt: self.ask.original_prompt.clone(),
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
        mode: StreamMode,
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
        outbox.push(Outgoing::Binary(media));
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
            requested: self.ask.received,
        });
    }
}
