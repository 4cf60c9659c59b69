//! A session whose client is at a router: it writes itself down for another server (its checkpoint), and goes on with
//! what another server has written.

use std::time::Duration;

use fastvideo_proto::checkpoint::{
    CHECKPOINT_VERSION, Checkpoint, CuratedPrompt, OpeningFacts, Resend, RunningSegment, Shown,
};
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::job::{MediaMode, frames_to_time};
use fastvideo_proto::session_link::Digest;
use tokio::time::Instant;

use super::command::{Have, OpenSession, ResumeRequest};
use super::director::AnyDirector;
use super::ending::EndCause;
use super::event::{SegmentCompleted, SessionEvent};
use super::live::{CurrentSegment, LiveSession};
use super::outbox::TurnEnd;
use super::playback::Playback;
use super::playlist::PlannedSegment;
use super::redelivery::Redelivery;
use super::request_director::RequestDirector;
use crate::segment_run::{AttemptId, MediaCount, SegmentRun};
use crate::store::{ResumeToken, SavedSession};

/// Where a session's client is, and whether another server has begun the session.
#[derive(Debug)]
pub(crate) enum Origin {
    /// The client is connected to this server. The session waits here when there is no worker for it.
    Direct,
    /// The client is at a router, where the session waits.
    Router,
    /// The same, and another server has begun the session.
    Moved(Box<MovedSession>),
}

/// A session that another server has begun.
#[derive(Debug)]
pub(crate) struct MovedSession {
    pub(crate) session: SessionId,
    pub(crate) token: ResumeToken,
    /// Number of the client's messages that the checkpoint contains.
    pub(crate) seq: u64,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) curated: Vec<CuratedPrompt>,
    pub(crate) shown: Shown,
    /// The media that the client has of the segment that is shown.
    pub(crate) media: Vec<Digest>,
}

impl MovedSession {
    /// Returns the opening of the session. `opening` is the client's, which is there as long as it matters.
    pub(crate) fn opening(&self, opening: Option<OpenSession>) -> OpenSession {
        let facts = &self.checkpoint.opening;
        let opening = opening.unwrap_or_default();
        OpenSession {
            client_id: facts.client_id.clone(),
            preset: facts.preset.clone(),
            media_mode: facts.media_mode,
            heartbeat: facts.heartbeat,
            preview: facts.preview,
            single_segment: facts.single_segment,
            initial_image: opening.initial_image,
            share: opening.share,
            resume: Some(ResumeRequest {
                session_id: self.session.to_string(),
                token: self.token.as_str().to_owned(),
                have: None,
                extend: false,
            }),
            ..OpenSession::default()
        }
    }

    /// Returns what the client has of the finished segments, when it lacks some that were to be sent again.
    pub(super) fn to_resend(&self) -> Option<Have> {
        let resend = self.checkpoint.resend?;
        let is_begun = self.shown.is_resent && self.shown.segment == resend.segment;
        let since = if is_begun { self.media.len() } else { 0 };
        Some(Have {
            segments: resend.segment,
            messages: resend
                .messages
                .saturating_add(u32::try_from(since).unwrap_or(u32::MAX)),
        })
    }

    /// Checks whether the session can go on from what is stored.
    ///
    /// # Errors
    /// Returns why not; the text is safe to show.
    pub(super) fn check(&self, saved: &SavedSession) -> Result<(), String> {
        let Checkpoint {
            version,
            segments,
            running,
            ..
        } = &self.checkpoint;
        if *version != CHECKPOINT_VERSION {
            return Err("the session was begun by a server of another version".to_owned());
        }
        let stored = saved.progress.segments;
        // The last server may have stored the running segment, and not said so.
        let most = segments + u32::from(running.is_some());
        match (*segments..=most).contains(&stored) {
            true => Ok(()),
            false => Err(format!(
                "the session has {segments} segments, of which {stored} are stored; it cannot go on"
            )),
        }
    }
}

/// What a session knows of its link with a router.
#[derive(Debug)]
pub(super) struct LinkState {
    facts: OpeningFacts,
    /// Number of the client's messages that the session has dealt with.
    seq: u64,
    has_dealt_with_message: bool,
    /// The edition of the curated prompts that the router has.
    curated_edition: Option<u64>,
    is_to_be_released: bool,
    /// When the session has to be gone.
    leaves_by: Option<Instant>,
    /// A segment that is finished, which the client has not been told.
    completed: Option<Box<SegmentCompleted>>,
}

impl LinkState {
    pub(super) fn new(opening: &OpenSession) -> Self {
        Self {
            facts: OpeningFacts {
                client_id: opening.client_id.clone(),
                preset: opening.preset.clone(),
                media_mode: opening.media_mode,
                heartbeat: opening.heartbeat,
                preview: opening.preview,
                single_segment: opening.single_segment,
            },
            seq: 0,
            has_dealt_with_message: false,
            curated_edition: None,
            is_to_be_released: false,
            leaves_by: None,
            completed: None,
        }
    }

    /// Takes note that a message of the client changes the session.
    pub(super) fn dealt_with_message(&mut self) {
        self.seq += 1;
        self.has_dealt_with_message = true;
    }

    pub(super) fn release(&mut self) {
        self.is_to_be_released = true;
    }

    pub(super) fn leave_by(&mut self, deadline: Instant) {
        self.leaves_by = Some(deadline);
    }
}

impl LiveSession {
    /// Returns whether the session begins no further segment here.
    pub(super) fn is_to_be_released(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.is_to_be_released)
    }

    /// Returns whether the session can be let go now: it is to be, and everything of it is stored.
    pub(super) fn may_be_released(&self) -> bool {
        self.is_to_be_released() && self.persistence.is_done() && self.redelivery.is_none()
    }

    /// Returns when a session of a router has to be gone.
    pub(super) fn leaves_by(&self) -> Option<Instant> {
        self.link.as_ref()?.leaves_by
    }

    /// Writes the session down, when it has changed since the last turn and its client is at a router.
    pub(super) fn end_turn(&mut self) {
        let Some(link) = &self.link else {
            return;
        };
        if !link.has_dealt_with_message && !self.emitter.outbox().has_open_turn() {
            return;
        }
        let Some(director) = self.director.requests() else {
            return;
        };
        let edition = director.curated_edition();
        let curated = (link.curated_edition != Some(edition)).then(|| director.curated());
        let end = TurnEnd {
            seq: link.seq,
            checkpoint: self.checkpoint(link, director),
            curated,
        };
        self.emitter.outbox().end_turn(end);
        if let Some(link) = &mut self.link {
            link.has_dealt_with_message = false;
            link.curated_edition = Some(edition);
        }
    }

    fn checkpoint(&self, link: &LinkState, director: &RequestDirector) -> Checkpoint {
        let now = Instant::now();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let mut checkpoint = Checkpoint {
            version: CHECKPOINT_VERSION,
            opening: link.facts.clone(),
            start_frame: self.start_frame,
            running: self.segment.as_deref().map(|segment| segment.write(now)),
            exports: self.exports.pending().cloned().collect(),
            lead_ms: (self.playback.has_begun()).then(|| ms(self.playback.lead(now))),
            idle_ms: ms(now - self.last_activity),
            is_warned: self.warned_of.is_some(),
            spectators: self.audience.told(),
            resend: self.redelivery.as_deref().map(Redelivery::next),
            ..Checkpoint::default()
        };
        director.write(&mut checkpoint, now);
        checkpoint
    }

    /// Goes on with a session that another server has begun, and that is complete after `cap` segments.
    pub(super) fn go_on(&mut self, moved: MovedSession, cap: u32) {
        let now = Instant::now();
        let MovedSession {
            seq,
            checkpoint,
            curated,
            shown,
            media,
            ..
        } = moved;
        let stored = self.director.segment_idx();
        let fps = self.config.format.fps;
        let prompts = self.context.prompts.clone();
        let director = RequestDirector::read(&checkpoint, curated, prompts, cap);
        self.director = AnyDirector::Requests(Box::new(director));
        self.knows_stream = true;
        let made = frames_to_time(checkpoint.start_frame, fps);
        let lead = checkpoint.lead_ms.map(Duration::from_millis);
        self.playback = Playback::behind(made, lead, now);
        self.show_playback();
        self.last_activity = now
            .checked_sub(Duration::from_millis(checkpoint.idle_ms))
            .unwrap_or(now);
        for request in &checkpoint.exports {
            self.exports.request(request.clone());
        }
        self.audience.was_told(checkpoint.spectators);
        if checkpoint.is_warned {
            self.warned_of = self.idle_end().map(|end| end.at);
        }
        let completed = match checkpoint.running {
            Some(running) if stored > checkpoint.segments => {
                Some(self.complete(&running, checkpoint.start_frame, media.len()))
            }
            Some(running) => {
                let is_shown = shown.segment == checkpoint.segments && !shown.is_resent;
                let shown = if is_shown { shown } else { Shown::default() };
                let media = if is_shown { media } else { Vec::new() };
                self.run_again(checkpoint.segments, running, &shown, media);
                None
            }
            None => None,
        };
        if let Some(link) = &mut self.link {
            link.seq = seq;
            link.completed = completed.map(Box::new);
        }
    }

    /// Begins a segment again that another server was generating.
    fn run_again(
        &mut self,
        segment_idx: u32,
        running: RunningSegment,
        shown: &Shown,
        media: Vec<Digest>,
    ) {
        let planned = PlannedSegment::read(
            &running.ask,
            running.original_prompt,
            running.by_client,
            Instant::now(),
        );
        let mut run = SegmentRun::begun_elsewhere(
            segment_idx,
            self.config.max_attempts,
            running.attempt,
            running.deaths,
            media,
        );
        if running.is_cancelled {
            let _ = run.cancel();
        }
        let mut segment = CurrentSegment::new(planned, run, self.keeps(), None);
        segment.first_attempt = shown.media_attempt;
        self.segment = Some(Box::new(segment));
    }

    /// Returns the end of a segment that another server has stored and of which the client has all media.
    fn complete(
        &mut self,
        running: &RunningSegment,
        start_frame: u64,
        messages: usize,
    ) -> SegmentCompleted {
        let at = AttemptId {
            segment_idx: self.director.segment_idx(),
            attempt: running.attempt,
        };
        let now = Instant::now();
        let fps = self.config.format.fps;
        let start = frames_to_time(start_frame, fps);
        let duration = frames_to_time(self.start_frame - start_frame.min(self.start_frame), fps);
        let planned = PlannedSegment::read(
            &running.ask,
            running.original_prompt.clone(),
            running.by_client,
            now,
        );
        let init_segments = usize::from(self.media_mode == MediaMode::AvFmp4);
        self.director.segment_finished();
        self.playback.finished(start + duration, duration);
        self.show_playback();
        SegmentCompleted {
            at,
            request: planned.id.clone(),
            media: MediaCount {
                chunks: u32::try_from(messages.saturating_sub(init_segments)).unwrap_or(u32::MAX),
                bytes: 0,
            },
            start,
            duration,
            generation: Duration::ZERO,
            requested: planned.received,
        }
    }

    /// Tells the client what it could not be told before the session moved here.
    pub(super) fn catch_up(&mut self) -> Option<EndCause> {
        let link = self.link.as_mut()?;
        if let Some(completed) = link.completed.take() {
            self.emit(SessionEvent::SegmentCompleted(completed));
        }
        let run = self.segment.as_ref().map(|segment| &segment.run);
        if run.is_some_and(SegmentRun::is_cancelled) {
            self.segment_cancelled();
        }
        self.export_next();
        None
    }
}

impl CurrentSegment {
    fn write(&self, now: Instant) -> RunningSegment {
        RunningSegment {
            ask: self.planned.write(now),
            original_prompt: self.planned.original_prompt.clone(),
            by_client: self.planned.by_client,
            attempt: self.run.at().attempt,
            deaths: self.run.deaths(),
            is_cancelled: self.run.is_cancelled(),
        }
    }
}

impl Redelivery {
    fn next(&self) -> Resend {
        let Have { segments, messages } = self.next_and_skipped();
        Resend {
            segment: segments,
            messages,
        }
    }
}
