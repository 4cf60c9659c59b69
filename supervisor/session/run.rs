//! The loop of one session: it hears the client, the pool and the clock, and never waits for any of them alone.

use std::future::pending;
use std::time::Duration;

use fastvideo_proto::ids::JobId;
use fastvideo_proto::job::{ErrorCode, MediaMode};
use fastvideo_proto::job::{JobFailure, frames_to_time};
use fastvideo_proto::link::JobSpec;
use fastvideo_proto::stream_v1::{
    ClientMessage, CompleteReason, Features, RewriteSeedPrompts, ServerMessage,
};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Span;

use super::init_image::InitImage;
use super::log::{Event, SessionLog};
use super::opening::{self, MAX_CURATED_PROMPTS, NotOpened, Opening};
use super::outbox::Outbox;
use super::persistence::{Gate, Persistence};
use super::playback::Playback;
use super::playlist::{Abilities, Playlist, Switches};
use super::prompt_tasks::{MAX_ALTERNATIVES, MAX_PENDING_REWRITES, Next, PromptTasks, Written};
use super::registry::Ticket;
use super::request::{ValidRequest, check_prompt};
use super::segment::Segment;
use super::state::SessionState;
use super::{Context, Drain, Inbound, close};
use crate::causes::with_causes;
use crate::pool::{Assignment, Binding, JobEnd, JobEvent, Placement, StartState};
use crate::prompt::safety::SafetyFilter;
use crate::store::export::{self, ExportError};
use crate::store::{Lease, Progress, ResumeError, ResumeToken, SavedSession, State, StoreError};

/// How long a client may still ask for its state when the server is going away and its last segment is done.
const DRAIN_LINGER: Duration = Duration::from_secs(2);
/// Pause before the session goes on by itself after that failed; doubles with each failure in a row.
const MIN_LOOP_PAUSE: Duration = Duration::from_secs(1);
const MAX_LOOP_PAUSE: Duration = Duration::from_secs(30);
/// Snapshots that may be asked for before one is answered.
const MAX_PENDING_SNAPSHOTS: u32 = 8;
/// Of any message but the opening one, which may bring an image along: it is read between two other things.
const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// Of a name that a client gives, in the log.
const MAX_NAME_CHARS: usize = 200;
/// How long a connection may take to end whose session goes on over another one.
const TAKE_OVER: Duration = Duration::from_secs(5);
/// Messages that a client may send while it leaves all that it may unread. Each may have an answer, of a few hundred
/// bytes.
const MAX_MESSAGES_WHILE_FULL: u32 = 1000;

/// Serves one client from its opening message to the close of the connection, which is the outbox's last message
/// unless the client is gone.
pub async fn run(
    mut ticket: Ticket,
    mut inbound: mpsc::Receiver<Inbound>,
    outbox: Outbox,
    context: Context,
) {
    let opening = tokio::select! {
        opening = opening::read(&mut inbound, &context.config, &context.store) => opening,
        () = drain_begins(context.drain.clone()) => {
            outbox.close(close::GOING_AWAY, "draining");
            ticket.transition(SessionState::Rejected);
            return;
        }
    };
    let opened = match opening {
        Ok(opening) => claim(&mut ticket, &context, &opening)
            .await
            .map(|claim| (opening, claim)),
        Err(why) => Err(why),
    };
    let (opening, claim) = match opened {
        Ok(opened) => opened,
        Err(why) => return refuse(&ticket, &outbox, &context, why),
    };
    Span::current().record("session_id", ticket.id().as_str());
    ticket.keep_log(context.logs.session(ticket.id()));
    ticket.log().record(|| opened_event(&opening, &claim));
    tracing::info!(client_id = opening.init.client_id, preset = opening.init.preset, stream_mode = ?opening.init.stream_mode, hydrated = opening.state.is_some(), resumed = opening.resume.is_some(), image = opening.image.as_ref().map(|i| i.name()), "session opened");
    let mut session = Box::new(Session::begin(ticket, outbox, context, opening, claim));
    let end = session.serve(&mut inbound).await;
    session.end(end);
}

fn opened_event(opening: &Opening, claim: &Claim) -> Event {
    let init = &opening.init;
    Event::Opened {
        client_id: init.client_id.as_deref().map(short),
        preset: init.preset.as_deref().map(short),
        stream_mode: init.stream_mode,
        resumed: opening.resume.is_some(),
        hydrated: opening.state.is_some(),
        image: opening.image.as_ref().map(|image| short(image.name())),
        curated_prompts: init.curated_prompts.len(),
        next_segment_idx: claim.snapshot.progress.segments,
    }
}

/// What a client calls something, as far as it says anything.
fn short(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}

/// A session in the store that is this connection's now.
struct Claim {
    lease: Lease,
    token: ResumeToken,
    snapshot: SavedSession,
}

/// Enters a new session in the store, or takes over the one that the client goes on with.
async fn claim(
    ticket: &mut Ticket,
    context: &Context,
    opening: &Opening,
) -> Result<Claim, NotOpened> {
    let Some((session, token)) = &opening.resume else {
        let (token, state) = (ResumeToken::random(), opening.state.clone());
        return match context
            .store
            .create(ticket.id(), &token, state.as_ref())
            .await
        {
            Ok(lease) => Ok(Claim {
                lease,
                token,
                snapshot: SavedSession {
                    progress: Progress::default(),
                    state,
                },
            }),
            Err(error) => {
                tracing::error!(%error, "session not opened");
                Err(NotOpened::Unavailable(
                    "the server cannot keep the state of a new session at the moment; try again soon",
                ))
            }
        };
    };
    let format = context.config.format;
    let fits = |saved: &SavedSession| match saved.state.as_ref().and_then(|s| s.header().frames) {
        Some(frames) if (frames.width, frames.height) != (format.width, format.height) => {
            Err(format!(
                "the session was made with {}x{} pixels, this server makes {}x{}",
                frames.width, frames.height, format.width, format.height
            ))
        }
        _ => Ok(()),
    };
    let (lease, snapshot) = match context.store.resume(session, token, fits).await {
        Ok(resumed) => resumed,
        Err(ResumeError::Store(error)) => {
            let error = with_causes(&error);
            tracing::error!(error, session_id = %session, "session not resumed");
            return Err(NotOpened::Unavailable(
                "the session cannot be resumed at the moment; try again soon",
            ));
        }
        Err(ResumeError::Lost(loss)) => {
            let error = with_causes(&loss);
            tracing::error!(error, session_id = %session, "session not resumed");
            return Err(NotOpened::Refused {
                code: ErrorCode::SessionRejected,
                message: "what the server has stored of the session is lost or damaged".to_owned(),
            });
        }
        Err(ResumeError::Unfit(message)) => {
            return Err(NotOpened::Refused {
                code: ErrorCode::StateIncompatible,
                message,
            });
        }
        Err(refused @ ResumeError::NotFound(_)) => {
            return Err(NotOpened::Refused {
                code: ErrorCode::SessionRejected,
                message: refused.to_string(),
            });
        }
    };
    let alone = ticket.take_over(session.clone());
    if timeout(TAKE_OVER, alone).await.is_err() {
        return Err(NotOpened::Unavailable(
            "the session's last connection has not ended yet; try again soon",
        ));
    }
    Ok(Claim {
        lease,
        token: token.clone(),
        snapshot,
    })
}

fn refuse(ticket: &Ticket, outbox: &Outbox, context: &Context, why: NotOpened) {
    match why {
        NotOpened::Gone => ticket.transition(SessionState::Error),
        NotOpened::Broken { code, reason } => {
            outbox.close(code, reason);
            ticket.transition(SessionState::Rejected);
        }
        NotOpened::Timeout => {
            outbox.send(&ServerMessage::SessionTimeout {
                timeout_seconds: context.config.opening_timeout.as_secs(),
            });
            outbox.close(close::NORMAL, "session_timeout");
            ticket.transition(SessionState::Timeout);
        }
        NotOpened::Refused { code, message } => {
            tracing::info!(?code, message, "opening message refused");
            outbox.send(&ServerMessage::error(code, message, false));
            outbox.close(close::BAD_OPENING, "bad opening message");
            ticket.transition(SessionState::Rejected);
        }
        NotOpened::Unavailable(message) => {
            outbox.send(&ServerMessage::error(
                ErrorCode::SessionRejected,
                message,
                true,
            ));
            outbox.close(close::TRY_AGAIN_LATER, "session_rejected");
            ticket.transition(SessionState::Rejected);
        }
    }
}

async fn drain_begins(mut drain: tokio::sync::watch::Receiver<Drain>) {
    if drain.wait_for(|drain| *drain != Drain::No).await.is_err() {
        pending().await
    }
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Gone,
    Broken {
        code: u16,
        reason: &'static str,
    },
    Left,
    Cap,
    Idle,
    /// The client reads too slowly.
    Slow,
    SentBinary,
    /// The model does not take the session's state, and the session has no other.
    BadState,
    /// No worker is left and none was ever bound.
    NoGpu,
    Draining,
    /// The session was resumed elsewhere, or an operator has ended it.
    Lost,
}

impl End {
    /// As the session's log has it.
    fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Broken { .. } => "broken",
            Self::Left => "left",
            Self::Cap => "cap",
            Self::Idle => "idle",
            Self::Slow => "slow",
            Self::SentBinary => "sent_binary",
            Self::BadState => "bad_state",
            Self::NoGpu => "no_gpu",
            Self::Draining => "draining",
            Self::Lost => "lost",
        }
    }
}

#[derive(Debug)]
struct Session {
    outbox: Outbox,
    context: Context,
    binding: Binding,
    placement: Placement,
    /// The worker that the client was last told of.
    announced: Option<Assignment>,
    preset: Option<String>,
    mode: MediaMode,
    image: Option<InitImage>,
    playlist: Playlist,
    prompt_tasks: PromptTasks,
    segment: Option<Segment>,
    persistence: Persistence,
    /// The last committed one.
    state: Option<State>,
    /// Where the next segment begins on the session's time line, in frames.
    start_frame: u64,
    playback: Playback,
    last_activity: Instant,
    /// Messages since the client has left too much unread.
    heard_while_full: u32,
    /// What the session does by itself failed: the next of it waits until then.
    rest_until: Option<Instant>,
    /// How often that failed in a row.
    failures: u32,
    exporting: Option<JoinHandle<Result<fastvideo_proto::state::ContinuationState, ExportError>>>,
    pending_snapshots: u32,
    /// Since the client knows that the server is going away.
    drain_deadline: Option<Instant>,
    /// Since when nothing is left to do but to wait for a last `snapshot_state`.
    lingering_since: Option<Instant>,
    lease: Lease,
    token: ResumeToken,
    /// Last field: a session counts until its place is free and its image is gone.
    ticket: Ticket,
}

/// What the loop has heard.
enum Heard {
    Client(Option<Inbound>),
    Placement,
    Job(Option<JobEvent>),
    Saved(Result<Result<(), StoreError>, JoinError>),
    Written(Written),
    Lost,
    Exported(
        Result<
            Result<fastvideo_proto::state::ContinuationState, ExportError>,
            tokio::task::JoinError,
        >,
    ),
    Drained,
    Drain(Drain),
    Clock,
}

impl Session {
    /// Queues the session. The state that it opened with, or was resumed with, is its first committed one.
    fn begin(
        ticket: Ticket,
        outbox: Outbox,
        context: Context,
        opening: Opening,
        claim: Claim,
    ) -> Self {
        let Opening { init, image, .. } = opening;
        let SavedSession { progress, state } = claim.snapshot;
        ticket.update(|entry| entry.segments = progress.segments);
        let config = &context.config;
        let cap = match init.single_clip_mode {
            true => 1,
            false => config.generation_segment_cap,
        };
        let switches = Switches {
            looping: init.loop_generation_enabled,
            enhancing: init.enhancement_enabled,
            extending: init.auto_extension_enabled,
        };
        let can = Abilities {
            write: context.prompts.enhancer().is_some(),
            screen: context.prompts.safety().is_some(),
        };
        let mut binding = context.pool.join(ticket.id().clone());
        let placement = binding.look();
        Self {
            binding,
            placement,
            announced: None,
            preset: init.preset,
            mode: init.stream_mode,
            image,
            playlist: Playlist::new(init.curated_prompts, switches, can, cap, progress.segments),
            prompt_tasks: PromptTasks::new(context.prompts.clone()),
            segment: None,
            persistence: Persistence::default(),
            state,
            start_frame: progress.start_frame,
            playback: Playback::default(),
            last_activity: Instant::now(),
            heard_while_full: 0,
            rest_until: None,
            failures: 0,
            exporting: None,
            pending_snapshots: 0,
            drain_deadline: None,
            lingering_since: None,
            lease: claim.lease,
            token: claim.token,
            ticket,
            outbox,
            context,
        }
    }

    async fn serve(&mut self, inbound: &mut mpsc::Receiver<Inbound>) -> End {
        if let Placement::Bound(_) = &self.placement {
            self.outbox.send(&ServerMessage::QueueStatus {
                position: 0,
                queue_depth: 0,
            });
        } else {
            self.ticket.transition(SessionState::Queued);
        }
        if let Some(end) = self.placed() {
            return end;
        }
        loop {
            if let Some(end) = self.advance() {
                return end;
            }
            let heard = self.hear(inbound).await;
            let end = match heard {
                Heard::Client(message) => self.client_said(message),
                Heard::Placement => {
                    self.placement = self.binding.look();
                    self.placed()
                }
                Heard::Job(Some(event)) => self.job_said(event),
                Heard::Job(None) => {
                    self.fail_segment(ErrorCode::InternalError, "the segment was lost", true);
                    None
                }
                Heard::Saved(outcome) => match self.persistence.saved(outcome) {
                    Ok(()) => None,
                    Err(_) => Some(End::Lost),
                },
                Heard::Written(written) => {
                    written.record(&self.playlist, &self.context.prompts, self.log());
                    if written.deliver(&mut self.playlist, &self.outbox) == Next::Rest {
                        self.rest();
                    }
                    self.last_activity = Instant::now();
                    None
                }
                Heard::Lost => Some(End::Lost),
                Heard::Exported(state) => {
                    self.exported(state);
                    None
                }
                Heard::Drain(drain) => self.drain(drain),
                Heard::Drained => {
                    self.export_next();
                    None
                }
                Heard::Clock => self.clock_rang(),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn hear(&mut self, inbound: &mut mpsc::Receiver<Inbound>) -> Heard {
        let alarm = self.alarm();
        let job = self.segment.as_mut().and_then(|s| s.job.as_mut());
        let job = async {
            match job {
                Some(job) => job.events.recv().await,
                None => pending().await,
            }
        };
        let exported = async {
            match &mut self.exporting {
                Some(exporting) => exporting.await,
                None => pending().await,
            }
        };
        let known_drain = self.drain_deadline;
        let drain = async {
            let news = |drain: &Drain| match drain {
                Drain::No => false,
                Drain::Until(deadline) => Some(*deadline) != known_drain,
            };
            let drain = self.context.drain.wait_for(news).await.map(|drain| *drain);
            match drain {
                Ok(drain) => drain,
                Err(_) => pending().await,
            }
        };
        let clock = async {
            match alarm {
                Some(alarm) => sleep_until(alarm).await,
                None => pending().await,
            }
        };
        // In order. What the job has produced comes before what the client says next, so that a message that crosses
        // the end of a segment meets the session as it is. The client comes last, since it may never stop talking.
        tokio::select! {
            biased;
            () = self.lease.lost() => Heard::Lost,
            outcome = self.persistence.ended() => Heard::Saved(outcome),
            event = job => Heard::Job(event),
            () = self.binding.changed() => Heard::Placement,
            state = exported => Heard::Exported(state),
            written = self.prompt_tasks.ended() => Heard::Written(written),
            drain = drain => Heard::Drain(drain),
            () = self.outbox.drained() => Heard::Drained,
            () = clock => Heard::Clock,
            message = inbound.recv() => Heard::Client(message),
        }
    }

    /// The next moment at which something ends by itself.
    fn alarm(&self) -> Option<Instant> {
        let config = &self.context.config;
        let idle = self
            .is_idle()
            .then_some(self.last_activity + config.session_timeout);
        let slow = (self.outbox.full_since())
            .map(|since| Instant::from_std(since) + config.slow_client_timeout);
        let linger = self.lingering_since.map(|since| since + DRAIN_LINGER);
        let again = self.persistence.again();
        [
            idle,
            slow,
            self.rest_until,
            linger,
            self.drain_deadline,
            again,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn is_idle(&self) -> bool {
        self.segment.is_none()
            && self.ticket.state() == SessionState::Active
            && !self.playlist.is_writing()
    }

    fn clock_rang(&mut self) -> Option<End> {
        let config = &self.context.config;
        let now = Instant::now();
        let passed = |moment: Option<Instant>| moment.is_some_and(|m| m <= now);
        if let Some(since) = self.outbox.full_since()
            && passed(Some(Instant::from_std(since) + config.slow_client_timeout))
        {
            return Some(End::Slow);
        }
        if passed(self.drain_deadline) || passed(self.lingering_since.map(|s| s + DRAIN_LINGER)) {
            return Some(End::Draining);
        }
        if self.is_idle() && passed(Some(self.last_activity + config.session_timeout)) {
            return Some(End::Idle);
        }
        if passed(self.rest_until) {
            self.rested();
        }
        if passed(self.persistence.again()) {
            self.save(None);
        }
        None
    }

    /// The pool has said where the session stands.
    fn placed(&mut self) -> Option<End> {
        let state = self.ticket.state();
        match self.placement.clone() {
            Placement::Bound(assignment) => {
                if self
                    .announced
                    .as_ref()
                    .is_some_and(|a| a.worker == assignment.worker)
                {
                    return None;
                }
                if state != SessionState::GpuBinding {
                    self.ticket.transition(SessionState::GpuBinding);
                }
                self.outbox.send(&ServerMessage::GpuAssigned {
                    gpu_id: assignment.gpu.0,
                    session_timeout: self.context.config.session_timeout.as_secs(),
                    session_id: self.ticket.id().to_string(),
                    resume_token: Some(self.token.as_str().to_owned()),
                    worker_id: assignment.worker.to_string(),
                    model_id: assignment.model_id.clone(),
                });
                tracing::info!(worker_id = %assignment.worker, "session bound");
                self.log_assigned(&assignment);
                self.ticket
                    .update(|entry| entry.worker = Some(assignment.worker.clone()));
                self.ticket.transition(SessionState::Active);
                if self.announced.is_none() {
                    self.stream_start(assignment.audio);
                    self.last_activity = Instant::now();
                }
                self.announced = Some(assignment);
            }
            Placement::Waiting {
                position,
                queue_depth,
            } => match state {
                // A session that had a worker is next in line: to its client this is a pause.
                SessionState::Active => self.ticket.transition(SessionState::GpuBinding),
                SessionState::GpuBinding => {}
                _ => {
                    self.log().record(|| Event::Queued {
                        position,
                        queue_depth,
                    });
                    self.outbox.send(&ServerMessage::QueueStatus {
                        position,
                        queue_depth,
                    });
                }
            },
            Placement::NoWorker if self.announced.is_none() => return Some(End::NoGpu),
            Placement::NoWorker => {
                if state == SessionState::Active {
                    self.ticket.transition(SessionState::GpuBinding);
                }
                let message = "no GPU is left to generate the segment; try again in a minute";
                self.fail_segment(ErrorCode::GpuUnavailable, message, true);
            }
        }
        None
    }

    fn log_assigned(&self, assignment: &Assignment) {
        if let Some(before) = &self.announced {
            self.log().record(|| Event::Handoff {
                from: before.worker.clone(),
                to: assignment.worker.clone(),
            });
        }
        self.log().record(|| Event::Assigned {
            worker_id: assignment.worker.clone(),
            gpu_id: assignment.gpu,
            model_id: assignment.model_id.clone(),
        });
    }

    fn log(&self) -> &SessionLog {
        self.ticket.log()
    }

    fn stream_start(&self, audio: bool) {
        let config = &self.context.config;
        let prompts = &self.context.prompts;
        let writes = prompts.enhancer().is_some();
        self.outbox.send(&ServerMessage::StreamStart {
            preset: self.preset.clone(),
            width: config.format.width,
            height: config.format.height,
            fps: config.format.fps,
            num_frames: config.format.num_frames,
            generation_segment_cap: config.generation_segment_cap,
            next_segment_idx: self.playlist.segment_idx(),
            features: Features {
                enhancement: writes,
                auto_extension: writes,
                rewrite: writes,
                safety: prompts.safety().is_some_and(SafetyFilter::is_available),
                audio: audio && self.mode == MediaMode::AvFmp4,
            },
        });
    }

    fn client_said(&mut self, message: Option<Inbound>) -> Option<End> {
        self.last_activity = Instant::now();
        let text = match message {
            None | Some(Inbound::Gone) => return Some(End::Gone),
            Some(Inbound::Broken { code, reason }) => return Some(End::Broken { code, reason }),
            Some(Inbound::Binary) => return Some(End::SentBinary),
            Some(Inbound::Text(text)) => text,
        };
        self.heard_while_full = match self.outbox.full_since() {
            Some(_) => self.heard_while_full + 1,
            None => 0,
        };
        if self.heard_while_full > MAX_MESSAGES_WHILE_FULL {
            return Some(End::Slow);
        }
        if text.len() > MAX_MESSAGE_BYTES {
            self.invalid(format!(
                "the message has {} bytes, at most {MAX_MESSAGE_BYTES} are allowed after the opening",
                text.len()
            ));
            return None;
        }
        let parsed = ClientMessage::parse(&text);
        self.log().record(|| Event::Message {
            r#type: parsed
                .as_ref()
                .map_or("invalid", ClientMessage::kind)
                .into(),
            bytes: text.len(),
        });
        match parsed {
            Ok(message) => self.take(message),
            Err(error) => {
                self.invalid(error);
                None
            }
        }
    }

    fn take(&mut self, message: ClientMessage) -> Option<End> {
        match message {
            ClientMessage::SessionInit(_) => self.invalid("the session is open already"),
            ClientMessage::SegmentRequest(request) => {
                match ValidRequest::check(request, &self.context.config) {
                    Ok(request) => self.ask(request),
                    Err(error) => self.invalid(error),
                }
            }
            ClientMessage::SeedPromptsUpdated(update) => self.set_curated(update.seed_prompts),
            ClientMessage::EnhancementUpdated(toggle) => {
                if !self.playlist.set_enhancing(toggle.enabled) {
                    self.without_effect("enhancement");
                }
            }
            ClientMessage::AutoExtensionUpdated(toggle) => {
                if !self.playlist.set_extending(toggle.enabled) {
                    self.without_effect("auto-extension");
                }
                self.rested();
            }
            ClientMessage::LoopGenerationUpdated(toggle) => {
                self.playlist.looping = toggle.enabled;
                self.rested();
            }
            ClientMessage::GenerationPausedUpdated(paused) => self.playlist.paused = paused.paused,
            ClientMessage::SnapshotState => self.snapshot(),
            ClientMessage::CancelSegment => match &mut self.segment {
                Some(segment) => {
                    segment.cancelling = true;
                    match &segment.job {
                        Some(job) => job.cancel(),
                        None => self.cancelled(),
                    }
                }
                None => self.invalid("no segment is running"),
            },
            ClientMessage::RewriteSeedPrompts(asked) => self.rewrite(asked),
            ClientMessage::Leave => return Some(End::Left),
        }
        None
    }

    fn ask(&mut self, request: ValidRequest) {
        if self.drain_deadline.is_some() {
            self.error(
                ErrorCode::SessionRejected,
                "the server is going away and takes no new segments",
                true,
            );
            return;
        }
        if self.placement == Placement::NoWorker {
            let message = "no GPU is left to generate the segment; try again in a minute";
            return self.error(ErrorCode::GpuUnavailable, message, true);
        }
        let shown = self.context.prompts.logs_unscreened();
        self.log().record(|| Event::PromptReceived {
            source: request.source,
            prompt: shown.then(|| request.prompt.clone()),
        });
        let limit = self.context.config.max_waiting_requests;
        if !self.playlist.add(request, std::time::Instant::now(), limit) {
            self.invalid(format!("{limit} requests wait already, which is the limit"));
        }
    }

    fn without_effect(&self, what: &str) {
        let message = format!("{what} has no effect: this server has no prompt enhancer");
        self.error(ErrorCode::InvalidMessage, message, false);
    }

    fn rewrite(&mut self, asked: RewriteSeedPrompts) {
        let RewriteSeedPrompts { seed_prompt, count } = asked;
        if self.context.prompts.enhancer().is_none() {
            self.without_effect("rewriting");
        } else if let Err(error) = check_prompt("seed_prompt", &seed_prompt, &self.context.config) {
            self.invalid(error);
        } else if !(1..=MAX_ALTERNATIVES).contains(&count) {
            self.invalid(format!(
                "`count` must be from 1 to {MAX_ALTERNATIVES}, got {count}"
            ));
        } else if !self.prompt_tasks.rewrite(seed_prompt, count) {
            self.invalid(format!(
                "{MAX_PENDING_REWRITES} prompts are being rewritten already, which is the limit"
            ));
        }
    }

    fn set_curated(&mut self, prompts: Vec<String>) {
        if prompts.len() > MAX_CURATED_PROMPTS {
            let given = prompts.len();
            self.invalid(format!(
                "`seed_prompts` has {given} prompts, at most {MAX_CURATED_PROMPTS} are allowed"
            ));
            return;
        }
        let config = &self.context.config;
        match prompts
            .iter()
            .try_for_each(|p| check_prompt("seed_prompts", p, config))
        {
            Ok(()) => self.playlist.set_curated(prompts),
            Err(error) => self.invalid(error),
        }
    }

    fn snapshot(&mut self) {
        if self.pending_snapshots >= MAX_PENDING_SNAPSHOTS {
            self.invalid(format!(
                "{MAX_PENDING_SNAPSHOTS} snapshots are asked for and not answered yet"
            ));
        } else if self.outbox.full_since().is_some() {
            self.invalid("too much is unread already; read it, then ask for the snapshot again");
        } else if self.state.is_none() {
            let message = "there is no continuation state yet: no segment is finished";
            self.error(ErrorCode::InternalError, message, true);
        } else {
            self.pending_snapshots += 1;
            self.export_next();
        }
    }

    /// One export at a time, and none while the client has enough to read: each is worth many megabytes.
    fn export_next(&mut self) {
        let busy = self.exporting.is_some() || self.outbox.full_since().is_some();
        if self.pending_snapshots == 0 || busy {
            return;
        }
        if let Some(state) = self.state.clone() {
            self.exporting = Some(tokio::task::spawn_blocking(move || {
                export::export_inline(&state)
            }));
        }
    }

    fn exported(
        &mut self,
        state: Result<
            Result<fastvideo_proto::state::ContinuationState, ExportError>,
            tokio::task::JoinError,
        >,
    ) {
        self.exporting = None;
        self.pending_snapshots -= 1;
        let detail = match state {
            Ok(Ok(state)) => {
                self.outbox
                    .send(&ServerMessage::ContinuationStateSnapshot { state });
                return self.export_next();
            }
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        tracing::error!(detail, "state could not be exported");
        self.error(
            ErrorCode::InternalError,
            "the continuation state could not be exported",
            true,
        );
        self.export_next();
    }

    /// Starts what can be started.
    fn advance(&mut self) -> Option<End> {
        if self.segment.is_none() {
            if self.playlist.is_complete() {
                return Some(End::Cap);
            }
            if self.drain_deadline.is_some() {
                self.lingering_since.get_or_insert_with(Instant::now);
                if self.announced.is_none() {
                    return Some(End::Draining);
                }
                return None;
            }
            let ready =
                self.ticket.state() == SessionState::Active && self.outbox.full_since().is_none();
            if ready && let Some(ask) = self.playlist.next(&self.context.config) {
                let log = self.log().clone();
                self.segment = Some(Segment::new(self.playlist.segment_idx(), ask, log));
            }
        }
        self.submit();
        if self.drain_deadline.is_none() {
            self.prompt_tasks.follow(&mut self.playlist);
        }
        None
    }

    /// Sends the segment in hand to the worker that the session is bound to, unless it runs there already.
    fn submit(&mut self) {
        let Placement::Bound(assignment) = &self.placement else {
            return;
        };
        let Some(segment) = &mut self.segment else {
            return;
        };
        if segment.job.is_some() || segment.lost_with.as_ref() == Some(&assignment.worker) {
            return;
        }
        let unsent = self.outbox.cost();
        let limit = self.context.config.max_unsent_bytes;
        if unsent >= limit {
            return;
        }
        let request = &segment.ask.request;
        let spec = JobSpec {
            // Chosen by the pool.
            job: JobId(0),
            session: self.ticket.id().clone(),
            segment_idx: segment.idx,
            attempt: segment.attempt,
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            seed: request.seed,
            num_inference_steps: request.num_inference_steps,
            guidance_scale: request.guidance_scale,
            format: self.context.config.format,
            media_mode: self.mode,
            start_frame: self.start_frame,
            initial_image: match segment.idx {
                0 => self.image.as_ref().map(|image| image.path().to_owned()),
                _ => None,
            },
            // Chosen by the pool.
            state: None,
            window: limit - unsent,
        };
        let start = self.state.as_ref().map(|state| StartState {
            header: state.header_bytes().to_vec(),
            blob: state.blob().clone(),
            made_by: state.maker(),
        });
        let due = self
            .playback
            .due(Instant::now(), self.context.config.format.duration());
        match self.binding.submit(&assignment.worker, spec, start, due) {
            Ok(job) => {
                segment.job = Some(job);
                segment.log_queued(&assignment.worker);
                segment.show_start(&self.outbox);
            }
            // The news of the move is on its way.
            Err(moved) => tracing::debug!(%moved, "job not submitted"),
        }
    }

    fn job_said(&mut self, event: JobEvent) -> Option<End> {
        let segment = self.segment.as_mut()?;
        match event {
            JobEvent::Started => segment.log_started(),
            JobEvent::Step {
                stage,
                step,
                total_steps,
            } => {
                segment.log_step(stage, step, total_steps);
                segment.show_step(&self.outbox, stage, step, total_steps);
            }
            JobEvent::Media(media) => {
                segment.show_media(&self.outbox, self.ticket.id(), self.mode, media);
                self.playback.media_sent(Instant::now());
            }
            JobEvent::Ended(JobEnd::Finished {
                state,
                generation,
                timing,
                frames,
            }) => match State::from_worker(state.0, state.1) {
                Ok(state) => {
                    segment.log_finished(frames, generation, timing);
                    let state = match &segment.job {
                        Some(job) => state.made_by(job.id),
                        None => state,
                    };
                    self.commit(state, generation, frames);
                }
                Err(error) => {
                    tracing::error!(%error, "worker handed on a bad state");
                    self.fail_segment(
                        ErrorCode::WorkerFailed,
                        "the segment could not be finished",
                        true,
                    );
                }
            },
            JobEvent::Ended(JobEnd::Failed { failure, message }) => match failure {
                JobFailure::Cancelled => self.cancelled(),
                JobFailure::Refused => self.fail_segment(ErrorCode::InvalidMessage, message, false),
                JobFailure::StateIncompatible => {
                    self.fail_segment(ErrorCode::StateIncompatible, message, false);
                    return Some(End::BadState);
                }
                JobFailure::Failed | JobFailure::StateNotHeld => {
                    self.fail_segment(
                        ErrorCode::WorkerFailed,
                        "the segment could not be generated",
                        true,
                    );
                }
            },
            JobEvent::Ended(JobEnd::TakenBack { started }) => {
                if segment.cancelling {
                    self.cancelled();
                    return None;
                }
                let had_media = segment.has_media();
                segment.log_taken_back(started);
                segment.begin_again(started);
                if had_media {
                    let message = "the GPU worker has to leave; the segment starts again";
                    self.restarting(message);
                }
            }
            JobEvent::Ended(JobEnd::WorkerLost {
                worker,
                started,
                reason,
            }) => {
                tracing::warn!(worker_id = %worker, segment_idx = segment.idx, attempt = segment.attempt, started, reason, "worker lost with the session's job");
                segment.log_fault(&worker, started, &reason);
                if segment.cancelling {
                    self.cancelled();
                    return None;
                }
                let had_media = segment.has_media();
                segment.lose_attempt(worker, started);
                let lost = segment.deaths;
                if lost >= self.context.config.max_attempts {
                    let message = format!(
                        "the segment is given up: it was tried {lost} times and its worker died each time"
                    );
                    self.fail_segment(ErrorCode::WorkerFailed, message, false);
                } else if had_media {
                    self.restarting("the GPU worker was lost; the segment starts again");
                }
            }
        }
        None
    }

    /// The media that the client has of the segment in hand are void.
    fn restarting(&mut self, message: &str) {
        self.playback.media_void();
        self.outbox.send(&ServerMessage::Error {
            code: ErrorCode::WorkerFailed,
            message: message.to_owned(),
            retryable: true,
            segment_idx: self.segment.as_ref().map(|segment| segment.idx),
            restarting: true,
        });
    }

    /// The segment is finished: its state becomes the session's, in one step. The client hears of it when it has all of
    /// the segment and the state is stored; the next segment may run by then.
    fn commit(&mut self, state: State, generation: Duration, frames: u32) {
        let Some(segment) = self.segment.take() else {
            return;
        };
        self.state = Some(state);
        let start_frame = self.start_frame;
        self.start_frame += u64::from(frames);
        self.playlist.segment_finished();
        self.ticket
            .update(|entry| entry.segments = self.playlist.segment_idx());
        self.failures = 0;
        self.last_activity = Instant::now();
        segment.media_end(&self.outbox);
        let gate = self.outbox.gate();
        let fps = self.context.config.format.fps;
        self.playback
            .finished(frames_to_time(u64::from(frames), fps));
        segment.show_complete(&self.outbox, start_frame, frames, fps, generation);
        self.save(Some(gate));
    }

    fn save(&mut self, gate: Option<Gate>) {
        let Some(state) = self.state.clone() else {
            return;
        };
        let progress = Progress {
            segments: self.playlist.segment_idx(),
            start_frame: self.start_frame,
        };
        let writes = &self.context.writes;
        self.persistence
            .begin(&self.lease, progress, state, gate, writes);
    }

    fn cancelled(&mut self) {
        if let Some(segment) = self.segment.take() {
            segment.log_cancelled();
            self.playlist.segment_dropped();
            self.outbox.send(&ServerMessage::SegmentCancelled {
                segment_idx: segment.idx,
            });
            self.last_activity = Instant::now();
        }
    }

    /// The segment in hand, if any, is over without success; the session goes on.
    fn fail_segment(&mut self, code: ErrorCode, message: impl ToString, retryable: bool) {
        let Some(segment) = self.segment.take() else {
            return;
        };
        self.last_activity = Instant::now();
        let message = message.to_string();
        segment.log_failed(code, &message);
        self.playlist.segment_dropped();
        if !segment.ask.by_client {
            self.rest();
        }
        self.outbox.send(&ServerMessage::Error {
            code,
            message,
            retryable,
            segment_idx: Some(segment.idx),
            restarting: false,
        });
    }

    /// Lets nothing run by itself for a while.
    fn rest(&mut self) {
        let pause = (MIN_LOOP_PAUSE * (1 << self.failures.min(8))).min(MAX_LOOP_PAUSE);
        self.failures += 1;
        self.playlist.resting = true;
        self.rest_until = Some(Instant::now() + pause);
    }

    fn rested(&mut self) {
        self.playlist.resting = false;
        self.rest_until = None;
    }

    fn drain(&mut self, drain: Drain) -> Option<End> {
        let Drain::Until(deadline) = drain else {
            return None;
        };
        let first = self.drain_deadline.replace(deadline).is_none();
        let now = Instant::now();
        if deadline <= now {
            return Some(End::Draining);
        }
        if first {
            let left = deadline - now;
            self.log().record(|| Event::Draining {
                deadline_seconds: left.as_secs_f64(),
            });
            self.outbox.send(&ServerMessage::ServerDraining {
                deadline_seconds: left.as_secs() + u64::from(left.subsec_nanos() > 0),
            });
        }
        None
    }

    fn invalid(&self, why: impl ToString) {
        self.error(ErrorCode::InvalidMessage, why, true);
    }

    fn error(&self, code: ErrorCode, message: impl ToString, retryable: bool) {
        let message = message.to_string();
        self.log().record(|| Event::Error {
            code,
            message: message.clone(),
            retryable,
        });
        self.outbox
            .send(&ServerMessage::error(code, message, retryable));
    }

    /// Says good-bye. Dropping the session cancels its job, frees its place, removes its image, and releases its state,
    /// which is kept for a while unless the session was meant to end.
    fn end(mut self: Box<Self>, end: End) {
        self.segment = None;
        if let End::Left | End::Cap = end {
            self.lease.end_session();
        }
        let complete = |reason| ServerMessage::StreamComplete { reason };
        let state = match end {
            End::Gone => SessionState::Complete,
            End::Broken { code, reason } => {
                self.outbox.cut(code, reason);
                SessionState::Error
            }
            End::Left => {
                self.outbox.send(&complete(CompleteReason::StopRequested));
                self.outbox.close(close::NORMAL, "left");
                SessionState::Complete
            }
            End::Cap => {
                self.outbox.send(&complete(CompleteReason::SegmentCap));
                self.outbox.close(close::NORMAL, "segment_cap");
                SessionState::Complete
            }
            End::Idle => {
                self.outbox.send(&ServerMessage::SessionTimeout {
                    timeout_seconds: self.context.config.session_timeout.as_secs(),
                });
                self.outbox.close(close::NORMAL, "session_timeout");
                SessionState::Timeout
            }
            End::Slow => {
                self.outbox.cut(close::RULE_BROKEN, "too slow");
                SessionState::Error
            }
            End::SentBinary => {
                self.error(
                    ErrorCode::InvalidMessage,
                    "binary messages travel only from server to client",
                    false,
                );
                self.outbox.close(close::RULE_BROKEN, "binary message");
                SessionState::Error
            }
            End::BadState => {
                self.outbox.send(&complete(CompleteReason::Error));
                self.outbox.close(close::BAD_OPENING, "state_incompatible");
                SessionState::Error
            }
            End::NoGpu => {
                let message = "no GPU worker can serve at the moment; try again in a minute";
                self.error(ErrorCode::GpuUnavailable, message, true);
                self.outbox.close(close::TRY_AGAIN_LATER, "gpu_unavailable");
                SessionState::Rejected
            }
            End::Lost => {
                self.outbox.drop_waiting();
                let message =
                    "the session goes on over another connection, or was ended by the operator";
                self.error(ErrorCode::SessionRejected, message, false);
                self.outbox.close(close::NORMAL, "session_lost");
                SessionState::Error
            }
            End::Draining => {
                if self.announced.is_some() {
                    self.outbox.send(&complete(CompleteReason::StopRequested));
                }
                self.outbox.close(close::GOING_AWAY, "draining");
                SessionState::Complete
            }
        };
        // Only an active session completes; whoever leaves earlier has not been served.
        let state = match (self.ticket.state(), state) {
            (SessionState::Active, state) => state,
            (_, SessionState::Complete) => SessionState::Error,
            (SessionState::GpuBinding, SessionState::Rejected) => SessionState::Error,
            (_, state) => state,
        };
        self.ticket.transition(state);
        self.log().record(|| Event::Closed {
            cause: end.name().into(),
            state: self.ticket.state(),
            segments: self.playlist.segment_idx(),
        });
        tracing::info!(
            ?end,
            segments = self.playlist.segment_idx(),
            "session ended"
        );
    }
}
