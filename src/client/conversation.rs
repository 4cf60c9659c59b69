//! What follows what in a session, seen from the client.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use fastvideo_proto::client::{
    ClientMessage, ContinuationState, ErrorCode, ServerMessage, SessionInit,
};

use super::args::Order;
use super::connection::{Connection, Incoming};
use super::output::{InitSegment, Output};
use super::progress::Progress;
use super::report::{Format, Report, SegmentReport, millis};

/// One runs and one waits: the GPU never idles between them, and every server accepts one that waits.
const REQUESTS_AHEAD: usize = 2;
/// For the server's good-bye, once everything is there.
const FAREWELL: Duration = Duration::from_secs(5);

pub(super) struct Conversation<'a> {
    order: &'a Order,
    connection: Connection,
    output: Option<&'a mut Output>,
    progress: &'a Progress,
    report: &'a mut Report,
    opened: Instant,
    /// The worker that the session is bound to.
    worker_id: String,
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
        connection: Connection,
        output: Option<&'a mut Output>,
        progress: &'a Progress,
        report: &'a mut Report,
    ) -> Self {
        Self {
            order,
            connection,
            output,
            progress,
            report,
            opened: Instant::now(),
            worker_id: String::new(),
            requested: 0,
            unanswered: VecDeque::new(),
            segment: None,
        }
    }

    /// From the opening message to the last segment.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        let init = SessionInit {
            initial_image: self.order.initial_image.clone(),
            continuation_state: self.order.state.clone(),
            ..SessionInit::default()
        };
        self.send(ClientMessage::SessionInit(Box::new(init)))
            .await?;
        loop {
            let next = match self.connection.next().await? {
                Incoming::Message(message) => self.hear(message).await?,
                Incoming::Media(bytes) => {
                    self.media(bytes)?;
                    Next::Listen
                }
                Incoming::Closed { code, reason } => bail!("{}", closed(code, &reason)),
            };
            if next == Next::Done {
                break;
            }
        }
        self.leave().await;
        Ok(())
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
                ..
            } => {
                self.progress
                    .say(&format!("on GPU {gpu_id} ({worker_id}, {model_id})"));
                let waited = millis(self.opened.elapsed());
                self.report.assigned_ms.get_or_insert(waited);
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
                ..
            } => {
                self.report.format = Some(Format {
                    width,
                    height,
                    fps,
                    num_frames,
                });
                self.check_cap(generation_segment_cap)?;
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
            ServerMessage::Error {
                code,
                message,
                retryable,
                ..
            } => bail!("{}", refused(code, &message, retryable)),
            ServerMessage::StreamComplete { reason } => {
                bail!("the server ended the session early ({reason:?})")
            }
            ServerMessage::SessionTimeout { timeout_seconds } => {
                bail!("the server ended the session: nothing happened for {timeout_seconds} s")
            }
            ServerMessage::SegmentCancelled { segment_idx } => {
                bail!("segment {segment_idx} was cancelled")
            }
            ServerMessage::ServerDraining { deadline_seconds } => self.progress.say(&format!(
                "the server is going away within {deadline_seconds} s and takes no new segments"
            )),
        }
        Ok(Next::Listen)
    }

    /// Better to know before the first segment than after the last that the server gives.
    fn check_cap(&self, cap: u32) -> anyhow::Result<()> {
        let prompts = self.order.requests.len();
        let cap = cap as usize;
        ensure!(
            prompts <= cap,
            "the server generates at most {cap} segments in one session, given {prompts} prompts"
        );
        ensure!(
            self.order.save_state.is_none() || prompts < cap,
            "the server ends a session with its {cap}th segment, after which there is no state to \
             save; give fewer than {cap} prompts"
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
        let Segment {
            requested,
            mut report,
            ..
        } = segment.context("the server finished a segment that it had not begun")?;
        self.unanswered.pop_front();
        if let Some(output) = &mut self.output {
            output.commit_segment();
        }
        report.worker_id = self.worker_id.clone();
        report.e2e_ms = millis(requested.elapsed());
        report.server_generation_ms = generation_ms;
        report.server_e2e_ms = e2e_ms;
        self.say_done(&report);
        self.report.segments.push(report);
        self.request_ahead().await?;
        if !self.unanswered.is_empty() {
            return Ok(Next::Listen);
        }
        if self.order.save_state.is_none() {
            return Ok(Next::Done);
        }
        self.send(ClientMessage::SnapshotState).await?;
        Ok(Next::Listen)
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
        let farewell = async {
            self.send(ClientMessage::Leave).await?;
            while !matches!(self.connection.next().await?, Incoming::Closed { .. }) {}
            self.connection.close().await;
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
        self.connection.send(&message).await
    }
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
