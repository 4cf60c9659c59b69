//! What follows what in a session, seen from the client.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::state::ContinuationState;
use fastvideo_proto::stream_v1::{
    ClientMessage, CompleteReason, Resume, ServerMessage, SessionInit,
};

use super::args::Order;
use super::connection::{Connection, Incoming, Lost};
use super::output::{InitSegment, Output};
use super::progress::Progress;
use super::report::{Format, Report, SegmentReport, millis};

/// One runs and one waits: the GPU never idles between them, and every server accepts one that waits.
const REQUESTS_AHEAD: usize = 2;
/// For the server's good-bye, once everything is there.
const FAREWELL: Duration = Duration::from_secs(5);
/// Before the first try to connect again.
const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Conversation<'a> {
    order: &'a Order,
    connection: Option<Connection>,
    output: Option<&'a mut Output>,
    progress: &'a Progress,
    report: &'a mut Report,
    opened: Instant,
    /// The worker that the session is bound to.
    worker_id: String,
    resume: Option<Resume>,
    /// The session's next segment is known, and requests may be sent.
    is_active: bool,
    /// Finished segments of this order.
    finished: usize,
    requested: usize,
    /// When the requests were sent that no segment was finished for yet.
    unanswered: VecDeque<Instant>,
    segment: Option<Segment>,
}

/// The segment that runs.
#[derive(Debug)]
struct Segment {
    requested: Instant,
    report: SegmentReport,
    /// The next binary message is its init segment.
    init_segment_is_next: bool,
}

/// Whether there is more to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Listen,
    Done,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        order: &'a Order,
        output: Option<&'a mut Output>,
        progress: &'a Progress,
        report: &'a mut Report,
    ) -> Self {
        Self {
            order,
            connection: None,
            output,
            progress,
            report,
            opened: Instant::now(),
            worker_id: String::new(),
            resume: order.resume.clone(),
            is_active: false,
            finished: 0,
            requested: 0,
            unanswered: VecDeque::new(),
            segment: None,
        }
    }

    /// From the opening message to the last segment, over as many connections as it takes.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        let mut failures = 0;
        loop {
            let Err(error) = self.over_one_connection().await else {
                break;
            };
            if std::mem::take(&mut self.is_active) {
                failures = 0;
            }
            // A server that could not be reached at first is an error of the user's.
            let is_new = self.report.session_id.is_none();
            if !error.is::<Lost>() || is_new || failures >= self.order.retries {
                return Err(error);
            }
            let pause = pause(failures);
            failures += 1;
            self.report.reconnects += 1;
            self.progress.say(&format!(
                "{error}; trying again in {:.1} s ({failures} of {})",
                pause.as_secs_f64(),
                self.order.retries
            ));
            tokio::time::sleep(pause).await;
        }
        self.leave().await;
        Ok(())
    }

    async fn over_one_connection(&mut self) -> anyhow::Result<()> {
        self.connection = None;
        self.connection = Some(Connection::open(&self.order.url).await?);
        let is_unused = self.finished == 0;
        let init = SessionInit {
            initial_image: self.order.initial_image.clone().filter(|_| is_unused),
            // A session that is resumed has its state.
            continuation_state: match self.resume {
                None => self.order.state.clone(),
                Some(_) => None,
            },
            resume: self.resume.clone(),
            ..SessionInit::default()
        };
        self.send(ClientMessage::SessionInit(Box::new(init)))
            .await?;
        loop {
            let next = match self.incoming().await? {
                Incoming::Message(message) => self.hear(message).await?,
                Incoming::Media(bytes) => {
                    self.media(bytes)?;
                    Next::Listen
                }
                Incoming::Closed { code, reason } => return Err(self.closed(code, &reason)),
            };
            if next == Next::Done {
                return Ok(());
            }
        }
    }

    async fn incoming(&mut self) -> anyhow::Result<Incoming> {
        let connection = self.connection.as_mut().context("not connected")?;
        connection.next().await
    }

    /// A close that may leave the session behind: the server goes away, or cannot take it yet.
    fn closed(&self, code: u16, reason: &str) -> anyhow::Error {
        let text = closed(code, reason);
        let is_lost = match code {
            1001 | 1005 | 1006 | 1012 => true,
            1011 | 1013 => !self.is_active,
            _ => false,
        };
        match is_lost {
            true => Lost::Closed(text).into(),
            false => anyhow::anyhow!(text),
        }
    }

    async fn hear(&mut self, message: ServerMessage) -> anyhow::Result<Next> {
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
                ..
            } => {
                self.progress
                    .say(&format!("on GPU {gpu_id} ({worker_id}, {model_id})"));
                let waited = millis(self.opened.elapsed());
                self.report.assigned_ms.get_or_insert(waited);
                self.resume = resume_token.map(|token| Resume {
                    session_id: session_id.clone(),
                    token,
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
                ..
            } => {
                self.report.format = Some(Format {
                    width,
                    height,
                    fps,
                    num_frames,
                });
                self.is_active = true;
                self.go_on(next_segment_idx)?;
                self.check_cap(generation_segment_cap, next_segment_idx)?;
                if self.finished == self.order.requests.len() {
                    return self.all_finished().await;
                }
                self.request_ahead().await?;
            }
            ServerMessage::SegmentStart {
                segment_idx,
                prompt,
                total_steps,
                attempt,
                ..
            } => self.segment_start(SegmentReport {
                segment_idx,
                prompt,
                attempt,
                total_steps,
                ..SegmentReport::default()
            })?,
            ServerMessage::StepComplete { step, .. } => {
                let segment = self.running()?;
                let first = millis(segment.requested.elapsed());
                segment.report.first_step_ms.get_or_insert(first);
                self.progress.step(step);
            }
            ServerMessage::MediaInit { mime, .. } => {
                let segment = self.running()?;
                segment.report.mime = mime;
                segment.init_segment_is_next = true;
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
            ServerMessage::ContinuationStateSnapshot { state } => {
                self.save_state(&state)?;
                return Ok(Next::Done);
            }
            ServerMessage::Error {
                message,
                restarting: true,
                ..
            } => self.progress.say(&message),
            // The session is there, and the server cannot take it at the moment.
            ServerMessage::Error {
                message,
                retryable: true,
                ..
            } if self.resume.is_some() && !self.is_active => bail!(Lost::Closed(message)),
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
            // A close with 1001 follows: the server is going away.
            ServerMessage::StreamComplete {
                reason: CompleteReason::StopRequested,
            } => {}
            ServerMessage::StreamComplete { reason } => {
                self.report.resume = None;
                bail!("the server ended the session early ({reason:?})")
            }
            ServerMessage::SessionTimeout { timeout_seconds } => {
                bail!("the server ended the session: nothing happened for {timeout_seconds} s")
            }
            // This client enhances and rewrites nothing.
            ServerMessage::PromptEnhanced { .. }
            | ServerMessage::PromptFallback { .. }
            | ServerMessage::SeedPromptsRewritten { .. } => {}
            ServerMessage::SegmentCancelled { segment_idx } => {
                bail!("segment {segment_idx} was cancelled")
            }
            ServerMessage::ServerDraining { deadline_seconds } => self.progress.say(&format!(
                "the server is going away within {deadline_seconds} s and takes no new segments"
            )),
        }
        Ok(Next::Listen)
    }

    /// Where the session goes on, when it is resumed: the segment that was running is whole, or begins again.
    fn go_on(&mut self, next_segment_idx: u32) -> anyhow::Result<()> {
        self.unanswered.clear();
        if let Some(segment) = self.segment.take() {
            let is_finished = segment.report.segment_idx < next_segment_idx;
            if is_finished {
                ensure!(
                    segment.report.duration_ms > 0.0,
                    "segment {} was finished while the connection was lost, and only a part of it came",
                    segment.report.segment_idx
                );
                // What the server would have said of its own times is lost.
                self.finish(segment, 0.0, 0.0);
            } else if let Some(output) = &mut self.output {
                output.begin_segment()?;
            }
        }
        self.requested = self.finished;
        Ok(())
    }

    /// Better to know before the first segment than after the last that the server gives.
    fn check_cap(&self, cap: u32, next_segment_idx: u32) -> anyhow::Result<()> {
        let prompts = self.order.requests.len() - self.finished;
        let left = cap.saturating_sub(next_segment_idx) as usize;
        let so_far = match next_segment_idx {
            0 => String::new(),
            n => format!(", of which this one has {n}"),
        };
        ensure!(
            prompts <= left,
            "the server generates at most {cap} segments in one session{so_far}; given {prompts} prompts"
        );
        ensure!(
            (self.order.save_state.is_none() && !self.order.keep) || prompts < left,
            "the server ends a session with its {cap}th segment, after which there is no state to \
             save or to keep; give fewer than {left} prompts"
        );
        Ok(())
    }

    async fn request_ahead(&mut self) -> anyhow::Result<()> {
        while self.unanswered.len() < REQUESTS_AHEAD
            && let Some(request) = self.order.requests.get(self.requested)
        {
            self.requested += 1;
            self.unanswered.push_back(Instant::now());
            self.send(ClientMessage::SegmentRequest(request.clone()))
                .await?;
        }
        Ok(())
    }

    fn segment_start(&mut self, mut report: SegmentReport) -> anyhow::Result<()> {
        let Some(&requested) = self.unanswered.front() else {
            bail!("the server began a segment that was not asked for");
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
        self.segment = Some(Segment {
            requested,
            report,
            init_segment_is_next: false,
        });
        Ok(())
    }

    fn media(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        let segment = self
            .segment
            .as_mut()
            .context("media came outside a segment")?;
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

    async fn segment_complete(&mut self, generation_ms: f64, e2e_ms: f64) -> anyhow::Result<Next> {
        let segment = self.segment.take();
        let segment = segment.context("the server finished a segment that it had not begun")?;
        self.finish(segment, generation_ms, e2e_ms);
        self.request_ahead().await?;
        match self.unanswered.is_empty() {
            false => Ok(Next::Listen),
            true => self.all_finished().await,
        }
    }

    async fn all_finished(&mut self) -> anyhow::Result<Next> {
        if self.order.save_state.is_none() {
            return Ok(Next::Done);
        }
        self.send(ClientMessage::SnapshotState).await?;
        Ok(Next::Listen)
    }

    fn finish(&mut self, segment: Segment, generation_ms: f64, e2e_ms: f64) {
        let Segment {
            requested,
            mut report,
            ..
        } = segment;
        self.unanswered.pop_front();
        self.finished += 1;
        if let Some(output) = &mut self.output {
            output.commit_segment();
        }
        report.worker_id = self.worker_id.clone();
        report.e2e_ms = millis(requested.elapsed());
        report.server_generation_ms = generation_ms;
        report.server_e2e_ms = e2e_ms;
        self.say_done(&report);
        self.report.segments.push(report);
    }

    /// Times from the start of the segment: the wait for the one before it would hide them.
    fn say_done(&self, report: &SegmentReport) {
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
        let Some(path) = &self.order.save_state else {
            return Ok(());
        };
        let bytes = serde_json::to_vec(state).context("state cannot be written as JSON")?;
        super::write_file(path, &bytes)?;
        self.progress.say(&format!("wrote {}", path.display()));
        Ok(())
    }

    /// Everything is there; what goes wrong now changes nothing.
    async fn leave(&mut self) {
        let keep = self.order.keep;
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

    fn running(&mut self) -> anyhow::Result<&mut Segment> {
        self.segment
            .as_mut()
            .context("the server spoke of a segment that it had not begun")
    }

    async fn send(&mut self, message: ClientMessage) -> anyhow::Result<()> {
        let connection = self.connection.as_mut().context("not connected")?;
        connection.send(&message).await
    }
}

/// What `--resume` takes.
fn resume_argument(resume: &Resume) -> String {
    format!("{}:{}", resume.session_id, resume.token)
}

/// Grows from half a second to ten, less a part by chance, so that not all clients of a server come at once.
fn pause(failures: u32) -> Duration {
    let full = MIN_PAUSE
        .saturating_mul(1 << failures.min(16))
        .min(MAX_PAUSE);
    let chance = RandomState::new().build_hasher().finish().to_le_bytes()[0];
    full.mul_f64(1.0 - 0.3 * f64::from(chance) / 255.0)
}

fn refused(code: ErrorCode, message: &str, retryable: bool) -> String {
    // A wrong message stays wrong; that it is retryable means that the session goes on.
    let hint = match retryable && code != ErrorCode::InvalidMessage {
        true => "; trying again may help",
        false => "",
    };
    let code = serde_json::to_value(code).unwrap_or_default();
    format!("{message} ({}){hint}", code.as_str().unwrap_or_default())
}

fn closed(code: u16, reason: &str) -> String {
    let meaning = match code {
        1000 => "the server ended the session",
        1001 => "the server is going away",
        1003 => "the server refused the opening message",
        1008 => "the server closed the session: a rule was broken",
        1009 => "a message was larger than the server accepts",
        1011 => "the server had an internal fault",
        1013 => "the server is full; try again later",
        _ => "the server closed the connection",
    };
    match reason {
        "" => format!("{meaning} (close code {code})"),
        _ => format!("{meaning} (close code {code}, {reason})"),
    }
}
