//! The client's side of a replay: it takes the recorded actions when the session has come as far as it had, and tells what
//! happens.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::stream_v1::{ClientMessage, CompleteReason, ServerMessage, SessionInit};
use fastvideo_supervisor_core::session::log::signature::hex;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, interval, timeout_at};

use super::facts::{Fact, Facts, Faults};
use super::plan::{Action, Plan, When};
use super::server::{Killer, LOOK_EVERY, OwnServer};
use super::times::Times;
use crate::client::connection::{Connection, Incoming, describe_close};

/// How long the server may be silent: longer than a model takes to load and for any of its steps.
const SILENCE: Duration = Duration::from_secs(900);

/// What a conversation has come to.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) session_id: String,
    pub(super) model_id: String,
    pub(super) facts: Facts,
    pub(super) times: Times,
}

/// A session that repeats another one.
pub(super) struct Conversation<'a> {
    plan: &'a Plan,
    connection: Connection,
    /// The server, if it is the replay's own.
    own: Option<&'a OwnServer>,
    killer: Killer,
    faults: Faults,
    actions: VecDeque<(When, Action)>,
    leaves: Option<When>,
    is_active: bool,
    now: When,
    /// Whether the session was moved and its new worker is not known yet.
    is_moving: bool,
    session_id: String,
    model_id: String,
    facts: Facts,
    times: Times,
    running: Option<Running>,
    /// The number of finished segments, and why the session ended.
    finished: u32,
    cause: &'static str,
    silent_since: Instant,
}

struct Running {
    segment: u32,
    sha256: Sha256,
    begun: Instant,
    first_media: Option<Duration>,
}

impl<'a> Conversation<'a> {
    /// Opens the session.
    ///
    /// # Errors
    /// Returns an error when the server cannot be reached.
    pub(super) async fn open(
        plan: &'a Plan,
        mut connection: Connection,
        own: Option<&'a OwnServer>,
        faults: Faults,
    ) -> anyhow::Result<Self> {
        let init = SessionInit {
            stream_mode: plan.media_mode,
            single_clip_mode: plan.segment_cap == 1,
            ..SessionInit::default()
        };
        let init = ClientMessage::SessionInit(Box::new(init));
        connection.send(&init).await?;
        Ok(Self {
            plan,
            connection,
            own,
            killer: Killer::default(),
            faults,
            actions: plan.actions.iter().cloned().collect(),
            leaves: plan.leaves,
            is_active: false,
            now: When::default(),
            is_moving: false,
            session_id: String::new(),
            model_id: String::new(),
            facts: Facts::new(Faults::LeftOut),
            times: Times::default(),
            running: None,
            finished: 0,
            cause: "closed",
            silent_since: Instant::now(),
        })
    }

    /// Goes through the session until the server closes it.
    ///
    /// # Errors
    /// Returns an error when the server cannot repeat the session at all.
    pub(super) async fn run(mut self) -> anyhow::Result<Told> {
        let mut look = interval(LOOK_EVERY);
        loop {
            self.act().await?;
            let watches = self.own.filter(|_| self.faults == Faults::Repeated);
            let incoming = tokio::select! {
                incoming = timeout_at(self.silent_since + SILENCE, self.connection.next()) => {
                    incoming.with_context(|| format!("the server was silent for {} s", SILENCE.as_secs()))??
                }
                _ = look.tick(), if watches.is_some() => {
                    self.kill_if_due().await?;
                    continue;
                }
            };
            self.silent_since = Instant::now();
            match incoming {
                Incoming::Message(message) => self.hear(message)?,
                Incoming::Media(bytes) => {
                    if let Some(running) = &mut self.running {
                        running.sha256.update(&bytes);
                        let after = running.begun.elapsed();
                        running.first_media.get_or_insert(after);
                    }
                }
                Incoming::Closed { code: 1000, .. } => break,
                Incoming::Closed { code, reason } => {
                    bail!("{}", describe_close(code, &reason));
                }
            }
        }
        self.facts.closed(self.cause, self.finished);
        Ok(Told {
            session_id: self.session_id,
            model_id: self.model_id,
            facts: self.facts,
            times: self.times,
        })
    }

    /// Takes the actions that are due.
    async fn act(&mut self) -> anyhow::Result<()> {
        while self.is_active && !self.is_moving {
            let due = self
                .actions
                .front()
                .filter(|(when, _)| when.is_reached(self.now));
            if due.is_none() {
                break;
            }
            let Some((_, action)) = self.actions.pop_front() else {
                break;
            };
            match action {
                Action::Request(request) => {
                    let request = ClientMessage::SegmentRequest(request);
                    self.connection.send(&request).await?;
                }
                Action::Cancel => self.connection.send(&ClientMessage::CancelSegment).await?,
                Action::Move => {
                    let own = self
                        .own
                        .context("only a server of its own is told to move a session")?;
                    own.move_session(&self.session_id).await?;
                    self.is_moving = true;
                }
            }
        }
        let may_leave = self.is_active && self.actions.is_empty() && !self.is_moving;
        if may_leave && self.leaves.is_some_and(|when| when.is_reached(self.now)) {
            self.leaves = None;
            self.cause = "left";
            self.connection.send(&ClientMessage::Leave).await?;
        }
        Ok(())
    }

    async fn kill_if_due(&mut self) -> anyhow::Result<()> {
        let Some(own) = self.own else { return Ok(()) };
        match self.killer.look(self.plan, own, &self.session_id) {
            Some(gpu) => own.kill_worker(gpu).await,
            None => Ok(()),
        }
    }

    fn hear(&mut self, message: ServerMessage) -> anyhow::Result<()> {
        match message {
            ServerMessage::GpuAssigned {
                session_id,
                model_id,
                ..
            } => {
                (self.session_id, self.model_id) = (session_id, model_id);
                self.is_moving = false;
            }
            ServerMessage::StreamStart {
                width,
                height,
                fps,
                num_frames,
                generation_segment_cap,
                features,
                ..
            } => {
                let format = &self.plan.format;
                ensure!(
                    (width, height, fps, num_frames)
                        == (format.width, format.height, format.fps, format.num_frames),
                    "the server makes segments of {num_frames} frames, {width}x{height}, {fps} frames per second; the \
                     recorded ones have {} frames, {}x{}, {} frames per second",
                    format.num_frames,
                    format.width,
                    format.height,
                    format.fps
                );
                ensure!(
                    generation_segment_cap >= self.plan.segment_cap,
                    "the server ends a session after {generation_segment_cap} segments, the recorded one could have {}",
                    self.plan.segment_cap
                );
                ensure!(
                    !self.plan.has_blocked || features.safety,
                    "the safety filter has blocked prompts of the session, and the server has none \
                     (`--streaming.safety.enabled` and its other options name one)"
                );
                self.is_active = true;
            }
            ServerMessage::SegmentStart { segment_idx, .. } => {
                let is_new = self
                    .running
                    .as_ref()
                    .is_none_or(|r| r.segment != segment_idx);
                self.now.begun += usize::from(is_new);
                self.now.steps = 0;
                self.facts.queued(segment_idx, 1);
                self.running = Some(Running {
                    segment: segment_idx,
                    sha256: Sha256::new(),
                    begun: Instant::now(),
                    first_media: None,
                });
            }
            ServerMessage::StepComplete {
                segment_idx,
                step,
                stage,
                ..
            } => {
                self.now.steps += 1;
                self.facts.step(segment_idx, stage, step);
            }
            ServerMessage::SegmentComplete {
                segment_idx,
                generation_time_ms,
                e2e_latency_ms,
                ..
            } => {
                let running = self.running.take();
                let running =
                    running.context("the server finished a segment that it had not begun")?;
                let first = running.first_media.map(|after| after.as_secs_f64() * 1e3);
                self.times
                    .add(segment_idx, generation_time_ms, first, Some(e2e_latency_ms));
                self.facts
                    .finished(segment_idx, hex(&running.sha256.finalize()));
                self.finished += 1;
                self.run_ended();
            }
            ServerMessage::SegmentCancelled { segment_idx, .. } => {
                self.facts.ended(Fact::Cancelled {
                    segment: segment_idx,
                });
                self.run_ended();
            }
            ServerMessage::Error {
                segment_idx: Some(segment),
                restarting: false,
                code,
                ..
            } => {
                self.facts.ended(Fact::Failed { segment, code });
                self.run_ended();
            }
            // An invalid message is a cancellation that came too late.
            ServerMessage::Error {
                code: ErrorCode::PromptBlocked,
                ..
            }
            | ServerMessage::Error {
                code: ErrorCode::InvalidMessage,
                retryable: true,
                ..
            }
            | ServerMessage::Error {
                restarting: true, ..
            } => {}
            ServerMessage::Error { message, .. } => bail!("the server refuses: {message}"),
            ServerMessage::StreamComplete {
                reason: CompleteReason::SegmentCap,
                ..
            } => self.cause = "cap",
            ServerMessage::SessionTimeout { .. } => {
                bail!("the server ended the session: nothing happened")
            }
            _ => {}
        }
        Ok(())
    }

    fn run_ended(&mut self) {
        self.running = None;
        // A segment that failed before its start was told has begun too.
        self.now.ended += 1;
        self.now.begun = self.now.begun.max(self.now.ended);
        self.now.steps = 0;
    }
}
