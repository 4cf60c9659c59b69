//! The client's side of a session: it requests segments, follows their generation, and reconnects when the connection is
//! lost.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use fastvideo_proto::job::{ErrorCode, PromptSource};
use fastvideo_proto::state::ContinuationState;
use fastvideo_proto::stream_v1::{
    ClientMessage, CompleteReason, Features, Have, MediaReceived, Paused, Resume, ServerMessage,
    SessionInit,
};
use fastvideo_supervisor_core::backoff::Backoff;

use super::args::ValidArgs;
use super::connection::{Connection, ConnectionLost, Incoming, describe_close};
use super::output::{InitSegment, Output};
use super::progress::Progress;
use super::report::{Format, Report, SegmentReport, millis};

/// How many requests are sent ahead: one runs and one waits, so that the GPU does not idle between segments. Every server
/// accepts one request that waits.
const REQUESTS_AHEAD: usize = 2;
/// How long the client waits for the server to close the connection after the last segment.
const FAREWELL: Duration = Duration::from_secs(5);
/// The shortest pause before an attempt to reconnect.
pub(super) const MIN_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause before an attempt to reconnect.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(10);

/// A session as the client sees it, over all connections.
pub(super) struct Conversation<'a> {
    args: &'a ValidArgs,
    connection: Option<Connection>,
    /// Whether the server has ever opened a connection.
    has_connected: bool,
    output: Option<&'a mut Output>,
    progress: &'a Progress,
    report: &'a mut Report,
    started: Instant,
    /// The worker that the session is bound to; empty before the first one.
    worker_id: String,
    resume: Option<Resume>,
    /// Whether the stream has started on this connection, so that requests may be sent.
    is_active: bool,
    /// How many segments are finished.
    finished: usize,
    /// How many requests are answered by a finished segment. The server chose the prompts of the other segments.
    answered: usize,
    /// How many requests were sent.
    requested: usize,
    /// When each request was sent whose segment is not finished yet.
    unanswered: VecDeque<Instant>,
    segment: Option<RunningSegment>,
    /// Whether the server keeps the session's film.
    is_recorded: bool,
    /// The index of the next segment; known once the stream has started.
    next_idx: Option<u32>,
    /// The index up to which the server sends segments again. Nothing is requested before.
    resent_up_to: u32,
}

/// The segment that is being generated.
#[derive(Debug)]
struct RunningSegment {
    /// When it was requested, or else when it began.
    requested: Instant,
    /// Whether this client has requested it.
    is_answer: bool,
    report: SegmentReport,
    /// Number of binary messages that have come.
    messages: u32,
    /// Whether the next binary message is the init segment.
    init_segment_is_next: bool,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        args: &'a ValidArgs,
        output: Option<&'a mut Output>,
        progress: &'a Progress,
        report: &'a mut Report,
    ) -> Self {
        Self {
            args,
            connection: None,
            has_connected: false,
            output,
            progress,
            report,
            started: Instant::now(),
            worker_id: String::new(),
            resume: args.resume.clone(),
            is_active: false,
            finished: 0,
            answered: 0,
            requested: 0,
            unanswered: VecDeque::new(),
            segment: None,
            is_recorded: false,
            next_idx: None,
            resent_up_to: 0,
        }
    }

    /// Runs the session from the opening message to the last segment, over as many connections as it takes.
    ///
    /// # Errors
    /// Returns an error when the session fails, or the client gives up reconnecting.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        let mut failures = 0;
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE).with_jitter();
        loop {
            let Err(error) = self.run_connection().await else {
                break;
            };
            if std::mem::take(&mut self.is_active) {
                failures = 0;
                backoff.reset();
            }
            // If no connection could be opened, the address is probably wrong.
            let is_lost = error.is::<ConnectionLost>() && self.has_connected;
            if !is_lost || failures >= self.args.retries {
                return Err(error);
            }
            let pause = backoff.next_pause();
            failures += 1;
            self.report.reconnects += 1;
            self.progress.say(&format!(
                "{error}; trying again in {:.1} s ({failures} of {})",
                pause.as_secs_f64(),
                self.args.retries
            ));
            tokio::time::sleep(pause).await;
        }
        self.leave().await;
        Ok(())
    }

    /// Runs the session over one connection, until the last segment is there.
    async fn run_connection(&mut self) -> anyhow::Result<()> {
        self.connection = None;
        let access = &self.args.access;
        let (tls, authorization) = (access.tls.clone(), access.authorization.clone());
        self.connection = Some(Connection::open(&access.url, tls, authorization).await?);
        self.has_connected = true;
        let is_unused = self.finished == 0;
        let init = SessionInit {
            initial_image: self.args.initial_image.clone().filter(|_| is_unused),
            // The server has the state of a session that is resumed.
            continuation_state: match self.resume {
                None => self.args.state.clone(),
                Some(_) => None,
            },
            resume: self.resume.clone().map(|resume| Resume {
                have: self.have(),
                ..resume
            }),
            adapters: Some(self.args.adapters.clone()),
            curated_prompts: self.args.curated_prompts.clone(),
            loop_generation_enabled: self.args.loops,
            auto_extension_enabled: self.args.auto_extends,
            enhancement_enabled: self.args.enhances,
            ..SessionInit::default()
        };
        self.send(ClientMessage::SessionInit(Box::new(init)))
            .await?;
        loop {
            let flow = match self.incoming().await? {
                Incoming::Message(message) => self.handle_message(message).await?,
                Incoming::Media(bytes) => {
                    self.media(bytes)?;
                    ControlFlow::Continue(())
                }
                Incoming::Closed { code, reason } => return Err(self.closed(code, &reason)),
            };
            if flow.is_break() {
                return Ok(());
            }
        }
    }

    /// Returns what has come of the session; `None` before this client has taken part in it.
    fn have(&self) -> Option<Have> {
        let segments = self.next_idx?;
        let partial = self.segment.as_ref();
        let partial = partial.filter(|segment| segment.report.segment_idx == segments);
        Some(Have {
            segments,
            messages: partial.map_or(0, |segment| segment.messages),
        })
    }

    async fn incoming(&mut self) -> anyhow::Result<Incoming> {
        let connection = self.connection.as_mut().context("not connected")?;
        connection.next().await
    }

    /// Turns a close into an error: [`ConnectionLost`] where the server may still have the session, since it is going away
    /// or cannot resume the session yet.
    fn closed(&self, code: u16, reason: &str) -> anyhow::Error {
        let text = describe_close(code, reason);
        let is_lost = match code {
            1001 | 1005 | 1006 | 1012 => true,
            1011 | 1013 => !self.is_active,
            _ => false,
        };
        match is_lost {
            true => ConnectionLost::Closed(text).into(),
            false => anyhow::anyhow!(text),
        }
    }

    async fn handle_message(&mut self, message: ServerMessage) -> anyhow::Result<ControlFlow<()>> {
        match message {
            ServerMessage::QueueStatus {
                position,
                queue_depth,
            } => self.progress.waiting(position, queue_depth),
            ServerMessage::GpuAssigned {
                gpu_id,
                session_id,
                worker_id,
                model_id,
                resume_token,
                server,
                ..
            } => {
                let of = server.map(|server| format!(" of {server}"));
                let of = of.unwrap_or_default();
                self.progress
                    .say(&format!("on GPU {gpu_id}{of} ({worker_id}, {model_id})"));
                let waited = millis(self.started.elapsed());
                self.report.assigned_ms.get_or_insert(waited);
                self.resume = resume_token.map(|token| Resume {
                    session_id: session_id.clone(),
                    token,
                    have: None,
                });
                self.report.resume = self.resume.as_ref().map(resume_argument);
                self.report.session_id = Some(session_id);
                self.report.model_id = Some(model_id);
                self.worker_id = worker_id;
            }
            ServerMessage::StreamStart {
                width,
                height,
                fps,
                num_frames,
                generation_segment_cap,
                next_segment_idx,
                features,
                limits,
                ..
            } => {
                self.check_features(features)?;
                self.report.format = Some(Format {
                    width,
                    height,
                    fps,
                    num_frames,
                });
                self.is_active = true;
                self.is_recorded = limits.recording;
                self.resume_at(next_segment_idx)?;
                // Those that the server has and this client lacks are sent again.
                let next_idx = self.next_idx.unwrap_or(next_segment_idx);
                self.check_cap(generation_segment_cap, next_idx)?;
                if self.finished == self.args.segments {
                    return self.all_finished().await;
                }
                self.request_ahead().await?;
            }
            // What has come of it is continued.
            ServerMessage::SegmentStart {
                segment_idx,
                replayed: true,
                ..
            } if (self.segment.as_ref()).is_some_and(|s| s.report.segment_idx == segment_idx) => {}
            ServerMessage::SegmentStart {
                segment_idx,
                prompt,
                total_steps,
                attempt,
                source,
                ..
            } => {
                let report = SegmentReport {
                    segment_idx,
                    prompt,
                    attempt,
                    total_steps,
                    ..SegmentReport::default()
                };
                self.segment_start(report, source).await?;
            }
            ServerMessage::StepComplete { step, .. } => {
                let segment = self.running()?;
                let first = millis(segment.requested.elapsed());
                segment.report.first_step_ms.get_or_insert(first);
                self.progress.step(step);
            }
            ServerMessage::MediaInit { mime, .. } => {
                let segment = self.running()?;
                segment.report.mime = mime;
                segment.init_segment_is_next = segment.messages == 0;
            }
            ServerMessage::MediaSegmentComplete {
                chunks,
                duration_ms,
                ..
            } => {
                let report = &mut self.running()?.report;
                let received = report.fragments;
                ensure!(
                    received == chunks,
                    "segment {} came with {received} fragments, the server sent {chunks}",
                    report.segment_idx
                );
                report.duration_ms = duration_ms;
            }
            ServerMessage::SegmentComplete {
                generation_time_ms,
                e2e_latency_ms,
                ..
            } => {
                return self
                    .segment_complete(generation_time_ms, e2e_latency_ms)
                    .await;
            }
            ServerMessage::ContinuationStateSnapshot { state, .. } => {
                self.save_state(&state)?;
                return Ok(ControlFlow::Break(()));
            }
            ServerMessage::Error {
                message,
                restarting: true,
                ..
            } => self.progress.say(&message),
            // The server still has the session but cannot resume it at the moment.
            ServerMessage::Error {
                message,
                retryable: true,
                ..
            } if self.resume.is_some() && !self.is_active => bail!(ConnectionLost::Closed(message)),
            // Of no segment and no request: a router has lost the session's server, or finds no place at another one. The
            // session may go on later.
            ServerMessage::Error {
                code: ErrorCode::WorkerFailed | ErrorCode::GpuUnavailable,
                message,
                retryable: true,
                segment_idx: None,
                request_id: None,
                ..
            } => bail!(ConnectionLost::Closed(message)),
            ServerMessage::Error {
                code,
                message,
                retryable,
                ..
            } => {
                if code == ErrorCode::SessionRejected {
                    self.report.resume = None;
                }
                bail!("{}", refused(code, &message, retryable))
            }
            // The server is going away; a close with code 1001 follows.
            ServerMessage::StreamComplete {
                reason: CompleteReason::StopRequested,
                ..
            } => {}
            ServerMessage::StreamComplete { reason, .. } => {
                self.report.resume = None;
                bail!("the server ended the session early ({reason:?})")
            }
            ServerMessage::SessionTimeout {
                timeout_seconds, ..
            } => {
                bail!("the server ended the session: nothing happened for {timeout_seconds} s")
            }
            ServerMessage::PromptEnhanced {
                original_prompt,
                prompt,
                ..
            } => self
                .progress
                .say(&format!("enhanced: {original_prompt} -> {prompt}")),
            ServerMessage::PromptFallback {
                original_prompt,
                reason,
                ..
            } => self
                .progress
                .say(&format!("not enhanced ({reason}): {original_prompt}")),
            // This client does not ask for alternatives.
            ServerMessage::SeedPromptsRewritten { .. } => {}
            // It names, withdraws and edits no requests, and asks for no heartbeats and previews.
            ServerMessage::RequestWithdrawn { .. }
            | ServerMessage::RequestEdited { .. }
            | ServerMessage::WatchToken { .. }
            | ServerMessage::Spectators { .. }
            | ServerMessage::Preview { .. }
            | ServerMessage::Heartbeat => {}
            ServerMessage::IdleWarning { seconds_left } => self.progress.say(&format!(
                "the server ends the session in {seconds_left} s unless something is asked for"
            )),
            ServerMessage::SegmentCancelled { segment_idx, .. } => {
                bail!("segment {segment_idx} was cancelled")
            }
            ServerMessage::ServerDraining { deadline_seconds } => self.progress.say(&format!(
                "the server is going away within {deadline_seconds} s and takes no new segments"
            )),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Continues after the segments that the server has finished. Those that have not come are sent again by a server
    /// that keeps films. A segment that was running when the connection was lost is requested again.
    ///
    /// # Errors
    /// Returns an error when the server has finished a segment that has not come, and does not send it again.
    fn resume_at(&mut self, next_segment_idx: u32) -> anyhow::Result<()> {
        self.unanswered.clear();
        self.requested = self.answered;
        let expected = *self.next_idx.get_or_insert(next_segment_idx);
        if self.is_recorded && expected < next_segment_idx {
            self.resent_up_to = next_segment_idx;
            return Ok(());
        }
        if let Some(segment) = self.segment.take() {
            // The message that ends the segment may be all that was lost.
            if segment.report.segment_idx < next_segment_idx && segment.report.duration_ms > 0.0 {
                self.finish(segment, 0.0, 0.0);
                self.requested = self.answered;
            } else if let Some(output) = &mut self.output {
                output.begin_segment()?;
            }
        }
        ensure!(
            self.next_idx
                .is_none_or(|expected| expected >= next_segment_idx),
            "segment {expected} was finished while the connection was lost, and not all of it came"
        );
        Ok(())
    }

    /// Refuses to wait for segments that the server cannot make.
    fn check_features(&self, features: Features) -> anyhow::Result<()> {
        ensure!(
            !self.args.auto_extends || features.auto_extension,
            "--auto-extend: the server has no language model that writes prompts"
        );
        if self.args.enhances && !features.enhancement {
            self.progress.say(
                "warning: prompts are used as they are, since the server has no language model",
            );
        }
        Ok(())
    }

    /// Checks before the first segment that the server generates as many segments in one session as were requested.
    fn check_cap(&self, cap: u32, next_idx: u32) -> anyhow::Result<()> {
        let wanted = self.args.segments - self.finished;
        let left = cap.saturating_sub(next_idx) as usize;
        let so_far = match next_idx {
            0 => String::new(),
            n => format!(", of which this one has {n}"),
        };
        ensure!(
            wanted <= left,
            "the server generates at most {cap} segments in one session{so_far}; {wanted} are wanted"
        );
        ensure!(
            (self.args.save_state.is_none() && !self.args.keep) || wanted < left,
            "the server ends a session with its {cap}th segment, after which there is no state to \
             save or to keep; ask for fewer than {left} segments"
        );
        Ok(())
    }

    /// Sends requests until enough of them wait; none while the server sends segments again.
    async fn request_ahead(&mut self) -> anyhow::Result<()> {
        if self.is_resending() {
            return Ok(());
        }
        while self.unanswered.len() < REQUESTS_AHEAD
            && let Some(request) = self.args.requests.get(self.requested)
        {
            self.requested += 1;
            self.unanswered.push_back(Instant::now());
            self.send(ClientMessage::SegmentRequest(request.clone()))
                .await?;
        }
        Ok(())
    }

    async fn segment_start(
        &mut self,
        mut report: SegmentReport,
        source: PromptSource,
    ) -> anyhow::Result<()> {
        let is_answer = !matches!(source, PromptSource::Curated | PromptSource::AutoExtension);
        let requested = match (is_answer, self.unanswered.front()) {
            _ if self.is_resending() => Instant::now(),
            (true, Some(&requested)) => requested,
            (false, _) if self.args.loops || self.args.auto_extends => Instant::now(),
            _ => bail!("the server began a segment that was not asked for"),
        };
        if let Some(output) = &mut self.output {
            output.begin_segment()?;
        }
        let (idx, attempt) = (report.segment_idx, report.attempt);
        match attempt {
            1 => self
                .progress
                .say(&format!("segment {idx}: {}", report.prompt)),
            _ => self
                .progress
                .say(&format!("segment {idx} again, attempt {attempt}")),
        }
        self.progress.segment(idx, report.total_steps);
        report.start_ms = Some(millis(requested.elapsed()));
        self.segment = Some(RunningSegment {
            requested,
            is_answer,
            report,
            messages: 0,
            init_segment_is_next: false,
        });
        // By itself, the server would go on after the last segment that is wanted.
        let is_last = self.finished + 1 == self.args.segments;
        if is_last && (self.args.loops || self.args.auto_extends) {
            let paused = Paused { paused: true };
            self.send(ClientMessage::GenerationPausedUpdated(paused))
                .await?;
        }
        Ok(())
    }

    fn media(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        let segment = self
            .segment
            .as_mut()
            .context("media came outside a segment")?;
        segment.messages += 1;
        let report = &mut segment.report;
        report.bytes += bytes.len() as u64;
        if std::mem::take(&mut segment.init_segment_is_next) {
            if let Some(output) = &mut self.output
                && output.init_segment(bytes)? == InitSegment::Changed
            {
                self.progress.say(
                    "warning: the video's parameters changed between segments; not every player follows",
                );
            }
            return Ok(());
        }
        report.fragments += 1;
        let first = millis(segment.requested.elapsed());
        report.first_fragment_ms.get_or_insert(first);
        self.progress.media(report.fragments, report.bytes);
        match &mut self.output {
            Some(output) => output.fragment(&bytes),
            None => Ok(()),
        }
    }

    async fn segment_complete(
        &mut self,
        generation_ms: f64,
        e2e_ms: f64,
    ) -> anyhow::Result<ControlFlow<()>> {
        let segment = self.segment.take();
        let segment = segment.context("the server finished a segment that it had not begun")?;
        let received = MediaReceived {
            segment_idx: segment.report.segment_idx,
            messages: segment.messages,
        };
        if self.is_recorded {
            self.send(ClientMessage::MediaReceived(received)).await?;
        }
        self.finish(segment, generation_ms, e2e_ms);
        self.requested = self.requested.max(self.answered);
        self.request_ahead().await?;
        match self.finished == self.args.segments {
            false => Ok(ControlFlow::Continue(())),
            true => self.all_finished().await,
        }
    }

    async fn all_finished(&mut self) -> anyhow::Result<ControlFlow<()>> {
        if self.args.save_state.is_none() {
            return Ok(ControlFlow::Break(()));
        }
        self.send(ClientMessage::SnapshotState).await?;
        Ok(ControlFlow::Continue(()))
    }

    fn finish(&mut self, segment: RunningSegment, generation_ms: f64, e2e_ms: f64) {
        let RunningSegment {
            requested,
            is_answer,
            mut report,
            ..
        } = segment;
        if is_answer {
            self.unanswered.pop_front();
            self.answered += 1;
        }
        self.finished += 1;
        self.next_idx = Some(report.segment_idx + 1);
        if let Some(output) = &mut self.output {
            output.commit_segment();
        }
        report.worker_id = self.worker_id.clone();
        report.e2e_ms = millis(requested.elapsed());
        report.server_generation_ms = generation_ms;
        report.server_e2e_ms = e2e_ms;
        self.print_done(&report);
        self.report.segments.push(report);
    }

    /// Prints the times of a segment, counted from its start: the wait for the segment before it would hide them.
    fn print_done(&self, report: &SegmentReport) {
        let since_start = |ms: f64| (ms - report.start_ms.unwrap_or_default()) / 1e3;
        self.progress.say(&format!(
            "segment {} done: {:.1} s of video in {:.2} s, first fragment after {:.2} s, {} bytes",
            report.segment_idx,
            report.duration_ms / 1e3,
            since_start(report.e2e_ms),
            report.first_fragment_ms.map_or(0.0, since_start),
            report.bytes
        ));
    }

    fn save_state(&self, state: &ContinuationState) -> anyhow::Result<()> {
        let Some(path) = &self.args.save_state else {
            return Ok(());
        };
        let bytes = serde_json::to_vec(state).context("state cannot be written as JSON")?;
        super::write_file(path, &bytes)?;
        self.progress.say(&format!("wrote {}", path.display()));
        Ok(())
    }

    /// Ends the session, or only the connection with `--keep`. Errors are ignored, since all segments have arrived.
    async fn leave(&mut self) {
        let keep = self.args.keep;
        if !keep {
            self.report.resume = None;
        }
        let farewell = async {
            match keep {
                true => {
                    self.connection
                        .as_mut()
                        .context("not connected")?
                        .close()
                        .await
                }
                false => self.send(ClientMessage::Leave).await?,
            }
            while !matches!(self.incoming().await?, Incoming::Closed { .. }) {}
            self.connection
                .as_mut()
                .context("not connected")?
                .close()
                .await;
            anyhow::Ok(())
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }

    /// Returns whether the server still sends segments again.
    fn is_resending(&self) -> bool {
        self.next_idx.is_some_and(|next| next < self.resent_up_to)
    }

    fn running(&mut self) -> anyhow::Result<&mut RunningSegment> {
        self.segment
            .as_mut()
            .context("the server spoke of a segment that it had not begun")
    }

    async fn send(&mut self, message: ClientMessage) -> anyhow::Result<()> {
        let connection = self.connection.as_mut().context("not connected")?;
        connection.send(&message).await
    }
}

/// Formats the argument for `--resume`.
fn resume_argument(resume: &Resume) -> String {
    format!("{}:{}", resume.session_id, resume.token)
}

/// Describes an error message of the server.
fn refused(code: ErrorCode, message: &str, retryable: bool) -> String {
    // For an invalid message, `retryable` only means that the session continues.
    let hint = match retryable && code != ErrorCode::InvalidMessage {
        true => "; trying again may help",
        false => "",
    };
    let code = serde_json::to_value(code).unwrap_or_default();
    format!("{message} ({}){hint}", code.as_str().unwrap_or_default())
}
