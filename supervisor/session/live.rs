//! An open session: its fields, and the steps that all its parts share.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::RequestId;
use fastvideo_proto::job::{ErrorCode, MediaMode, frames_to_time};
use sha2::Sha256;
use tokio::time::Instant;

use super::audience::Audience;
use super::broadcast::{Broadcaster, SegmentEnd};
use super::director::AnyDirector;
use super::emitter::Emitter;
use super::ending::EndCause;
use super::event::{Ended, SessionEvent};
use super::handshake::{Claim, Opening, Record};
use super::moved::{LinkState, Origin};
use super::persistence::Persistence;
use super::playback::{Playback, Viewed};
use super::playlist::{PlannedSegment, Switches};
use super::redelivery::Redelivery;
use super::registry::Ticket;
use super::request_director::RequestDirector;
use super::rollout_client::ImageCheck;
use super::rollout_director::RolloutDirector;
use super::snapshots::StateExports;
use super::state::SessionState;
use super::{ClientLimits, Config, Context};
use crate::auth::Grant;
use crate::init_image::InitImage;
use crate::pool::{Assignment, Binding, Placement};
use crate::segment_run::{Recorder, SegmentRun};
use crate::store::{SavedSession, State};

/// A session from its handshake to its end. Dropping it cancels its job, frees its place with the pool, removes its
/// image, and releases its lease.
#[derive(Debug)]
pub(super) struct LiveSession {
    pub(super) context: Context,
    /// What the session was opened with; see also [`Self::limits`].
    pub(super) config: Arc<Config>,
    pub(super) grant: Grant,
    /// Whether the client would not be let in any more, so that the session ends at its next boundary.
    pub(super) is_withdrawn: bool,
    pub(super) emitter: Emitter,
    pub(super) binding: Binding,
    /// The last placement by the pool that the session has seen.
    pub(super) placement: Placement,
    /// The worker that the client was last told about.
    pub(super) announced: Option<Assignment>,
    /// Whether the client knows the properties of the stream.
    pub(super) knows_stream: bool,
    /// Present when the client is at a router.
    pub(super) link: Option<Box<LinkState>>,
    pub(super) preset: Option<String>,
    pub(super) media_mode: MediaMode,
    /// Whether the client wants pictures of segments before their media.
    pub(super) wants_previews: bool,
    /// The image that the first segment starts from.
    pub(super) image: Option<InitImage>,
    pub(super) director: AnyDirector,
    /// The segment that is being generated.
    pub(super) segment: Option<Box<CurrentSegment>>,
    /// The last committed state.
    pub(super) state: Option<State>,
    /// Where the next segment begins on the session's time line, in frames.
    pub(super) start_frame: u64,
    pub(super) persistence: Persistence,
    pub(super) playback: Playback,
    pub(super) exports: StateExports,
    /// What is to be sent again before anything new.
    pub(super) redelivery: Option<Box<Redelivery>>,
    pub(super) broadcaster: Broadcaster,
    pub(super) audience: Audience,
    /// Number of segments that the session may have.
    pub(super) segment_cap: u32,
    /// When the client last sent a message, or a segment ended.
    pub(super) last_activity: Instant,
    /// When the last segment ended on this server.
    pub(super) last_end: Option<Instant>,
    /// Until when the session keeps its worker although others wait, since enough others give theirs up.
    pub(super) keeps_place_until: Option<Instant>,
    /// The end for lack of activity that the client was warned of.
    pub(super) warned_of: Option<Instant>,
    /// Number of messages that the client has sent since its window became full.
    pub(super) messages_while_full: u32,
    /// The time until which the server waits for the running segment; present once the client knows that the server
    /// goes away.
    pub(super) drain_deadline: Option<Instant>,
    /// When the session began to wait only for a last export before the server goes away.
    pub(super) lingering_since: Option<Instant>,
    /// What the store has of the session; `None` for one that nobody can resume.
    pub(super) record: Option<Record>,
    /// How long the session may last from its first worker on, and when it is over.
    pub(super) time_limit: Option<Duration>,
    pub(super) ends_at: Option<Instant>,
    /// An image that is being checked, and the command that came with it. What the client says meanwhile waits.
    pub(super) image_check: Option<Box<ImageCheck>>,
    /// The last field, so that it is dropped last: a session counts until its place is free and its image is gone.
    pub(super) ticket: Ticket,
}

/// A segment that is being generated, and what was asked for.
#[derive(Debug)]
pub(super) struct CurrentSegment {
    pub(super) planned: PlannedSegment,
    pub(super) run: SegmentRun,
    /// Present where films are kept.
    pub(super) recorder: Option<Recorder>,
    /// The SHA-256 of the media so far; present where films or a session log are kept.
    pub(super) sha256: Option<Sha256>,
    /// Number of the segment's messages that the recorder, the hash and the spectators have.
    pub(super) kept: usize,
    /// The attempt that the segment's first media came from, when those came from another server.
    pub(super) first_attempt: Option<u32>,
    /// When its turn came: it was requested, and the segment before it had ended.
    pub(super) turn: Instant,
    /// When another try at it may begin, after one has failed.
    pub(super) not_before: Option<Instant>,
}

impl CurrentSegment {
    pub(super) fn new(
        planned: PlannedSegment,
        run: SegmentRun,
        keeps: Keeps,
        last_end: Option<Instant>,
    ) -> Self {
        Self {
            turn: last_end.map_or(planned.received, |end| end.max(planned.received)),
            planned,
            run,
            recorder: keeps.films.then(Recorder::default),
            sha256: (keeps.films || keeps.log).then(Sha256::default),
            kept: 0,
            first_attempt: None,
            not_before: None,
        }
    }
}

/// What is kept of a session's segments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeps {
    pub(super) films: bool,
    pub(super) log: bool,
}

/// The end of a session for lack of activity.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleEnd {
    pub(super) at: Instant,
    /// The time without activity after which the session ends.
    pub(super) limit: Duration,
    /// Whether the session ends because others wait.
    gives_place_up: bool,
}

/// How long the sessions that give their workers up may take to end.
const GIVING_UP: Duration = Duration::from_secs(5);

impl IdleEnd {
    /// Returns when the client is to be warned.
    pub(super) fn warning_at(&self) -> Instant {
        self.at - warning_time(self.limit)
    }
}

/// Returns how long before the end the client of an idle session is warned.
fn warning_time(limit: Duration) -> Duration {
    const WARNING: Duration = Duration::from_secs(15);
    WARNING.min(limit / 4)
}

impl LiveSession {
    /// Returns what is kept of the session's segments.
    pub(super) fn keeps(&self) -> Keeps {
        Keeps {
            films: self.record.is_some() && self.context.store.config().recording.is_some(),
            log: self.emitter.readers().keep_log(),
        }
    }

    /// Creates the session and queues it with the pool. The state that it was opened or resumed with is its first
    /// committed one.
    pub(super) fn new(
        ticket: Ticket,
        mut grant: Grant,
        emitter: Emitter,
        mut context: Context,
        opening: Opening,
        claim: Claim,
        origin: Origin,
    ) -> Self {
        let Opening {
            request,
            adapters,
            image,
            resume,
            config,
            ..
        } = opening;
        let SavedSession {
            progress,
            state,
            film,
            extensions,
            tenant,
            ..
        } = claim.snapshot;
        ticket.update(|entry| {
            entry.tenant = tenant.clone();
            entry.protocol = request.protocol;
            entry.is_stored = claim.record.is_some();
        });
        context.prompts = context.prompts.of_tenant(tenant.clone());
        grant.set_tenant(tenant);
        let (is_linked, moved) = match origin {
            Origin::Direct => (false, None),
            Origin::Router => (true, None),
            Origin::Moved(moved) => (true, Some(moved)),
        };
        let have = match &moved {
            Some(moved) => moved.to_resend(),
            None => resume.and_then(|resume| resume.have),
        };
        let record = claim.record;
        if let (Some(have), Some(record)) = (have, &record) {
            record.lease.set_received(have.segments);
        }
        let redelivery = have.and_then(|have| Redelivery::of(film, have, progress.segments));
        ticket.update(|entry| entry.segments = progress.segments);
        let segment_cap = config.segment_cap(extensions);
        let cap = match request.single_segment {
            true => 1,
            false => segment_cap,
        };
        let switches = Switches {
            looping: request.looping,
            enhancing: request.enhancement,
            extending: request.auto_extension,
        };
        let link = is_linked.then(|| Box::new(LinkState::new(&request)));
        let mut binding = (context.pool).join(ticket.id().clone(), grant.tenant().clone());
        binding.choose_adapters(&adapters);
        let prompts = context.prompts.clone();
        let mut time_limit = None;
        let director = match request.rollouts {
            Some(opening) => {
                time_limit = opening.time_limit;
                let max_chars = config.limits.max_prompt_chars;
                let director = RolloutDirector::new(opening.setup, prompts, segment_cap, max_chars);
                AnyDirector::Rollouts(Box::new(director))
            }
            None => {
                let (curated, made) = (request.curated_prompts, progress.segments);
                let mut director = RequestDirector::new(curated, switches, prompts, cap, made);
                director.set_adapters(adapters);
                AnyDirector::Requests(Box::new(director))
            }
        };
        let placement = binding.look();
        let mut session = Self {
            binding,
            placement,
            announced: None,
            knows_stream: false,
            link,
            preset: request.preset,
            media_mode: request.media_mode,
            wants_previews: request.preview,
            image,
            director,
            segment: None,
            state,
            start_frame: progress.start_frame,
            persistence: Persistence::new(context.store.config().timeout, is_linked),
            playback: Playback::from_end(frames_to_time(progress.start_frame, config.format.fps)),
            config,
            exports: StateExports::default(),
            redelivery: redelivery.map(Box::new),
            broadcaster: (context.broadcasts).begin(
                ticket.id().clone(),
                progress.segments,
                request.media_mode,
            ),
            audience: Audience::new(Instant::now()),
            segment_cap,
            last_activity: Instant::now(),
            last_end: None,
            keeps_place_until: None,
            warned_of: None,
            messages_while_full: 0,
            drain_deadline: None,
            lingering_since: None,
            record,
            time_limit,
            ends_at: None,
            image_check: None,
            ticket,
            emitter,
            grant,
            is_withdrawn: false,
            context,
        };
        if let Some(moved) = moved {
            session.go_on(*moved, cap);
        }
        session
    }

    pub(super) fn emit(&self, event: SessionEvent) {
        self.emitter.emit(event);
    }

    /// Reports an error that concerns no segment. The message is safe to show to the client.
    pub(super) fn error(
        &self,
        request: Option<RequestId>,
        code: ErrorCode,
        message: impl ToString,
        retryable: bool,
    ) {
        self.emit(SessionEvent::Error {
            request,
            code,
            message: message.to_string(),
            retryable,
        });
    }

    pub(super) fn transition(&self, to: SessionState) {
        if let Some(from) = self.ticket.transition(to) {
            self.emit(SessionEvent::StateChanged { from, to });
        }
    }

    /// Returns whether the client has more unread than its window allows.
    pub(super) fn client_is_full(&self) -> bool {
        self.emitter.outbox().full_since().is_some()
    }

    /// Ends the current segment, which the client has cancelled; the session goes on.
    pub(super) fn segment_cancelled(&mut self) {
        if let Some(segment) = self.segment.take() {
            self.broadcaster.end_segment(SegmentEnd::Void);
            self.director.segment_cancelled();
            self.segment_ended();
            self.emit(SessionEvent::SegmentCancelled {
                at: segment.run.at(),
                source: segment.planned.request.source,
                request: segment.planned.id,
            });
        }
    }

    /// Ends the current segment, if any, as failed; the session goes on.
    pub(super) fn segment_failed(
        &mut self,
        code: ErrorCode,
        message: impl ToString,
        retryable: bool,
    ) {
        if self.director.is_running_in_vain() {
            return self.segment_cancelled();
        }
        if let Some(segment) = self.segment.take() {
            self.broadcaster.end_segment(SegmentEnd::Void);
            self.director.segment_failed(segment.planned.by_client);
            self.segment_ended();
            self.do_said();
            self.emit(SessionEvent::SegmentFailed {
                at: segment.run.at(),
                source: segment.planned.request.source,
                request: segment.planned.id,
                code,
                message: message.to_string(),
                retryable,
            });
        }
    }

    /// Takes note that a segment has ended.
    pub(super) fn segment_ended(&mut self) {
        let now = Instant::now();
        self.last_activity = now;
        self.last_end = Some(now);
    }

    /// Reports what the viewer did since the last time.
    pub(super) fn look_at_viewer(&mut self) {
        let asked = match &self.segment {
            Some(segment) => Some(segment.planned.received),
            None => self.director.asked_since(),
        };
        let viewed = self.playback.look(asked, Instant::now());
        if let Some(Viewed {
            played,
            stalled,
            is_new_stall,
        }) = viewed
        {
            self.emitter.note(&SessionEvent::Viewed {
                played,
                stalled,
                is_new_stall,
            });
        }
    }

    /// Starts to store what was committed last.
    pub(super) fn save(&mut self) {
        if let Some(record) = &self.record {
            (self.persistence).begin(&record.lease, &self.context.writes);
        }
    }

    /// Starts an export that the client has asked for. Only one runs at a time, and none while the client's window is
    /// full, since each has many megabytes.
    pub(super) fn export_next(&mut self) {
        if !self.client_is_full() {
            self.exports.start(self.state.as_ref());
        }
    }

    /// Returns the limits on the client, which may have changed since the session was opened.
    pub(super) fn limits(&self) -> ClientLimits {
        self.context.config.get().limits
    }

    /// Returns whether a segment may be started that nobody has asked for: the viewer is not too far behind.
    pub(super) fn may_go_on_alone(&self) -> bool {
        let (limit, now) = (self.config.max_lead, Instant::now());
        let catches_up = self.playback.falls_to(limit, now);
        limit.is_zero() || catches_up.is_some_and(|at| at <= now)
    }

    /// Returns when the viewer has come near enough for the next segment that nobody has asked for; `None` when none
    /// waits for that.
    pub(super) fn viewer_catches_up_at(&self) -> Option<Instant> {
        let limit = self.config.max_lead;
        if limit.is_zero() || self.segment.is_some() || !self.director.goes_on_alone() {
            return None;
        }
        let now = Instant::now();
        self.playback.falls_to(limit, now).filter(|at| *at > now)
    }

    /// Shows operators how far the viewer is behind, and tells the pool when it runs out of video.
    pub(super) fn show_playback(&self) {
        self.ticket.update(|entry| entry.playback = self.playback);
        let until = self.playback.lasts_until(Instant::now());
        self.binding.viewer_lasts_until(until);
    }

    /// Returns when the session ends because its client reads too slowly; `None` while the client's window has room.
    pub(super) fn slow_at(&self) -> Option<Instant> {
        let since = self.emitter.outbox().full_since()?;
        Some(since + self.limits().slow_client_timeout)
    }

    /// Returns when the session ends for lack of activity; `None` while it is active.
    pub(super) fn idle_end(&self) -> Option<IdleEnd> {
        let is_idle = self.time_limit.is_none()
            && self.segment.is_none()
            && self.ticket.state() == SessionState::Active
            && !self.director.is_preparing()
            && self.redelivery.is_none()
            && self.viewer_catches_up_at().is_none();
        if !is_idle {
            return None;
        }
        let config = &self.config;
        let after = |limit| IdleEnd {
            at: self.last_activity + limit,
            limit,
            gives_place_up: false,
        };
        if self.director.is_paused_with_requests() {
            return Some(after(config.paused_timeout));
        }
        let end = after(config.session_timeout);
        let Some(since) = self.binding.others_wait_since() else {
            return Some(end);
        };
        // Whoever was idle for longer than the limit already is still warned in time.
        let limit = config.idle_while_others_wait;
        let at = (self.last_activity + limit).max(since + warning_time(limit));
        let at = self.keeps_place_until.map_or(at, |until| until.max(at));
        Some(match at < end.at {
            true => IdleEnd {
                at,
                limit,
                gives_place_up: true,
            },
            false => end,
        })
    }

    /// Ends an idle session whose time has come. It goes on for a moment when enough others give their workers up to
    /// those that wait.
    pub(super) fn end_idle(&mut self, end: IdleEnd) -> Option<EndCause> {
        if end.gives_place_up && !self.binding.give_up() {
            self.keeps_place_until = Some(Instant::now() + GIVING_UP);
            return None;
        }
        Some(EndCause::Idle(end.limit))
    }

    /// Returns how long the session keeps its worker after an end for this cause, so that it can be resumed there.
    fn hold_after(&self, cause: EndCause) -> Duration {
        let may_resume_here = match cause {
            EndCause::Gone | EndCause::Unlinked => {
                self.drain_deadline.is_none() && self.leaves_by().is_none()
            }
            EndCause::LeaseLost => self.ticket.is_taken_over(),
            _ => false,
        };
        match may_resume_here && self.announced.is_some() && self.record.is_some() {
            true => self.config.hold,
            false => Duration::ZERO,
        }
    }

    /// Gives the client its time limits afresh: while the server stood still, it neither heard the client nor sent it
    /// anything.
    pub(super) fn server_stood_still(&mut self, now: Instant) {
        self.last_activity = now;
        self.emitter.outbox().restart_full_since(now);
    }

    /// Ends the session. What is stored of it stays for a while, unless nothing was made.
    pub(super) fn end(mut self: Box<Self>, cause: EndCause) {
        self.look_at_viewer();
        let running = self.segment.take();
        let hold = self.hold_after(cause);
        if !hold.is_zero() {
            self.binding.hold_for(hold);
        }
        let has_state = self.state.is_some();
        if let Some(record) = &mut self.record {
            record.lease.expect(cause.expected());
            if cause.is_final() && !has_state {
                record.lease.end_session();
            }
        }
        if self.link.is_some() && cause != EndCause::Unlinked && cause != EndCause::Released {
            // What is recorded can be sent again to a client that has not taken it.
            if self.context.store.config().recording.is_some() {
                self.emitter.outbox().reach_gates();
            }
        }
        if cause.drops_unsent() {
            self.emitter.outbox().drop_unsent();
        }
        // A client of rollouts is told in the words of its dialect.
        if self.director.requests().is_some()
            && let Some((code, message, retryable)) = cause.error()
        {
            self.error(None, code, message, retryable);
        }
        self.transition(cause.state(self.ticket.state()));
        let dropped = self.director.take_waiting();
        let goes_on = matches!(cause, EndCause::Released | EndCause::Unlinked);
        let running = running.map(|segment| segment.planned.request.source);
        let abandoned = (running.into_iter()).chain(dropped.iter().map(|dropped| dropped.source));
        let abandoned = abandoned.filter(|_| !goes_on).collect();
        self.emitter.emit_last(SessionEvent::Ended(Box::new(Ended {
            cause,
            state: self.ticket.state(),
            segments: self.director.segment_idx(),
            kept_for: (has_state && self.record.is_some() && cause.may_go_on())
                .then_some(self.context.store.config().resume_ttl),
            dropped,
            abandoned,
        })));
    }
}
