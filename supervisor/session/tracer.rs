//! The spans of a session: a reader of its events.
//!
//! ```text
//! session                          the opening message to the end
//!   session.open                   to the first worker; below it store.claim
//!   session.queue                  each time that it waits for a worker
//!   segment                        a request to the last byte on the socket
//!     prompt.enhance
//!     job                          one attempt, from its making to its end; an event for each step
//!       job.queue                  until a worker is given it
//!       generate                   in the worker; below it its phases
//!     send                         the first media for the client to the last byte
//!   store.save
//! ```
//!
//! No span has a prompt, a key or an address.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use fastvideo_proto::ids::RequestId;
use fastvideo_proto::job::{JobTiming, Stage, VideoFormat};
use fastvideo_proto::trace::TraceContext;
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::Span;
use tokio::time::Instant;

use super::event::{Ended, Opened, SegmentQueued, SessionEvent};
use super::state::SessionState;
use crate::metrics::TraceLabels;
use crate::segment_run::AttemptId;
use crate::traces::{Clock, Trace, Traces, below, below_client, link, trace_context};

/// The number of steps of one attempt that are events of its span.
const MAX_STEPS: usize = 128;
/// The number of prompts whose enhancement waits to be shown with its segment.
const MAX_ENHANCED: usize = 16;

/// Makes the spans of one session. Cheap to clone; it makes none for a session that is not traced.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionTracer(Option<Arc<Mutex<Spans>>>);

/// The spans that have begun and not ended.
#[derive(Debug)]
struct Spans {
    trace: Trace,
    clock: Clock,
    session: Span,
    below_session: Context,
    open: Option<Span>,
    queue: Option<Span>,
    segments: Vec<SegmentSpans>,
    /// Enhanced prompts whose segments have not begun: when their enhancement began and ended, and by whom.
    enhanced: Vec<Enhanced>,
    model: Option<String>,
    format: Option<VideoFormat>,
}

#[derive(Debug)]
struct SegmentSpans {
    idx: u32,
    segment: Span,
    below: Context,
    job: Option<JobSpans>,
    send: Option<Span>,
}

#[derive(Debug)]
struct JobSpans {
    job: Span,
    below: Context,
    queue: Option<Span>,
    steps: usize,
}

#[derive(Debug)]
struct Enhanced {
    request: Option<RequestId>,
    began: SystemTime,
    ended: SystemTime,
    provider: String,
    model: String,
}

/// What is known of a session when its trace begins.
#[derive(Debug)]
pub(super) struct TracedSession<'a> {
    pub(super) id: &'a str,
    pub(super) tenant: &'a str,
    /// The span of the client's that the session is below.
    pub(super) parent: Option<TraceContext>,
    /// A span that the session links to.
    pub(super) link: Option<TraceContext>,
    /// When the opening message came.
    pub(super) received: Instant,
}

impl SessionTracer {
    /// Begins the trace of a session, unless it is one of those that are not traced.
    pub(super) fn begin(traces: &Traces, session: &TracedSession<'_>) -> Self {
        let Some(trace) = traces.begin(session.parent) else {
            return Self(None);
        };
        let clock = Clock::now();
        let received = clock.at(session.received);
        let attributes = vec![
            KeyValue::new("session.id", session.id.to_owned()),
            KeyValue::new("gen_ai.conversation.id", session.id.to_owned()),
            KeyValue::new("fastvideo.tenant", session.tenant.to_owned()),
        ];
        let root = (trace.tracer())
            .span_builder("session")
            .with_kind(SpanKind::Server)
            .with_start_time(received)
            .with_links(session.link.map(link).into_iter().collect())
            .with_attributes(attributes);
        let span = trace.tracer().build_with_context(root, trace.parent());
        let below_session = below(&span);
        let open = start(&trace, "session.open", received, &below_session);
        let spans = Spans {
            trace,
            clock,
            session: span,
            below_session,
            open: Some(open),
            queue: None,
            segments: Vec::new(),
            enhanced: Vec::new(),
            model: None,
            format: None,
        };
        Self(Some(Arc::new(Mutex::new(spans))))
    }

    /// Returns the session's span, for workers and logs.
    pub(super) fn session(&self) -> Option<TraceContext> {
        self.with(|spans| trace_context(&spans.session))
    }

    /// Reads an event. Returns the span that it belongs to.
    pub(super) fn read(&self, event: &SessionEvent) -> Option<TraceLabels> {
        let span = self.with(|spans| spans.read(event))?;
        Some(TraceLabels {
            trace_id: format!("{:032x}", span.trace_id),
            span_id: format!("{:016x}", span.span_id),
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut Spans) -> T) -> Option<T> {
        let spans = self.0.as_ref()?;
        Some(look(
            &mut spans.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl Spans {
    fn read(&mut self, event: &SessionEvent) -> TraceContext {
        let now = self.clock.at(Instant::now());
        let mut idx = None;
        match event {
            SessionEvent::Opened(opened) => self.opened(opened, now),
            SessionEvent::Queued { .. } => self.wait(now),
            SessionEvent::StateChanged {
                from: SessionState::Active,
                to: SessionState::GpuBinding,
            } => self.wait(now),
            SessionEvent::WorkerBound(bound) => {
                self.model = Some(bound.assignment.model_id.clone());
                if let Some(stream) = &bound.stream {
                    self.format = Some(stream.format);
                }
                end(&mut self.queue, now);
                end(&mut self.open, now);
            }
            SessionEvent::PromptEnhanced {
                request, answer, ..
            } => {
                if self.enhanced.len() == MAX_ENHANCED {
                    self.enhanced.remove(0);
                }
                self.enhanced.push(Enhanced {
                    request: request.clone(),
                    began: now - answer.latency,
                    ended: now,
                    provider: answer.provider.clone(),
                    model: answer.model.clone(),
                });
            }
            SessionEvent::SegmentQueued(queued) => {
                idx = Some(queued.at.segment_idx);
                self.job_made(queued, now);
            }
            SessionEvent::SegmentStarted { at, .. } => {
                idx = Some(at.segment_idx);
                if let Some(job) = self.job(*at) {
                    end(&mut job.queue, now);
                }
            }
            SessionEvent::StepDone {
                at,
                stage,
                step,
                total_steps,
                ..
            } => {
                idx = Some(at.segment_idx);
                if let Some(job) = self.job(*at).filter(|job| job.steps < MAX_STEPS) {
                    job.steps += 1;
                    let attributes = vec![
                        KeyValue::new("fastvideo.stage", stage_name(*stage)),
                        KeyValue::new("fastvideo.step", i64::from(*step)),
                        KeyValue::new("fastvideo.steps", i64::from(*total_steps)),
                    ];
                    job.job.add_event_with_timestamp("step", now, attributes);
                }
            }
            SessionEvent::Media { at, .. } => {
                idx = Some(at.segment_idx);
                let trace = self.trace.clone();
                if let Some(segment) = self.segment(at.segment_idx) {
                    let below = &segment.below;
                    segment
                        .send
                        .get_or_insert_with(|| start(&trace, "send", now, below));
                }
            }
            SessionEvent::FirstMediaSent { at, .. } => {
                idx = Some(at.segment_idx);
                if let Some(send) = self.segment(at.segment_idx).and_then(|s| s.send.as_mut()) {
                    send.add_event_with_timestamp("first_byte", now, Vec::new());
                }
            }
            SessionEvent::MediaVoid { at, .. } => {
                idx = Some(at.segment_idx);
                if let Some(segment) = self.segment(at.segment_idx) {
                    segment
                        .segment
                        .add_event_with_timestamp("media_void", now, Vec::new());
                }
            }
            SessionEvent::SegmentFinished {
                at, frames, timing, ..
            } => {
                idx = Some(at.segment_idx);
                self.job_finished(*at, *frames, timing, now);
            }
            SessionEvent::AllMediaSent { at, .. } => {
                let context = self.context(Some(at.segment_idx));
                self.segment_ended(at.segment_idx, Status::Unset, now);
                return context;
            }
            SessionEvent::SegmentTakenBack { at, .. } => {
                idx = Some(at.segment_idx);
                self.job_ended(*at, Some("taken_back"), now);
            }
            SessionEvent::WorkerLost(lost) => {
                idx = Some(lost.at.segment_idx);
                self.job_ended(lost.at, Some("worker_lost"), now);
            }
            SessionEvent::SegmentCancelled { at, .. } => {
                let context = self.context(Some(at.segment_idx));
                self.job_ended(*at, None, now);
                self.segment_ended(at.segment_idx, Status::Unset, now);
                return context;
            }
            SessionEvent::SegmentFailed { at, code, .. } => {
                let context = self.context(Some(at.segment_idx));
                let error = error_type(*code);
                self.job_ended(*at, Some(&error), now);
                if let Some(segment) = self.segment(at.segment_idx) {
                    segment
                        .segment
                        .set_attribute(KeyValue::new("error.type", error.clone()));
                }
                self.segment_ended(at.segment_idx, Status::error(error), now);
                return context;
            }
            SessionEvent::Stored { began, is_stored } => {
                let began = self.clock.at(*began);
                let mut save = start(&self.trace, "store.save", began, &self.below_session);
                if !is_stored {
                    save.set_status(Status::error("not stored"));
                }
                save.end_with_timestamp(now);
            }
            SessionEvent::Ended(ended) => self.ended(ended, now),
            _ => {}
        }
        self.context(idx)
    }

    /// Returns the span that an event belongs to: a segment's, or the session's.
    fn context(&mut self, idx: Option<u32>) -> TraceContext {
        let segment = idx.and_then(|idx| self.segment(idx).map(|s| trace_context(&s.segment)));
        segment.unwrap_or_else(|| trace_context(&self.session))
    }

    fn segment(&mut self, idx: u32) -> Option<&mut SegmentSpans> {
        self.segments.iter_mut().find(|segment| segment.idx == idx)
    }

    fn job(&mut self, at: AttemptId) -> Option<&mut JobSpans> {
        self.segment(at.segment_idx)?.job.as_mut()
    }

    fn opened(&mut self, opened: &Opened, now: SystemTime) {
        self.session
            .set_attribute(KeyValue::new("fastvideo.resumed", opened.resumed));
        if let Some(open) = &self.open {
            let below = below(open);
            let mut claim = start(&self.trace, "store.claim", now - opened.claiming, &below);
            claim.end_with_timestamp(now);
        }
    }

    fn wait(&mut self, now: SystemTime) {
        if self.queue.is_none() {
            self.queue = Some(start(
                &self.trace,
                "session.queue",
                now,
                &self.below_session,
            ));
        }
    }

    fn job_made(&mut self, queued: &SegmentQueued, now: SystemTime) {
        let idx = queued.at.segment_idx;
        if self.segment(idx).is_none() {
            let began = now - queued.waited;
            let segment = self.segment_begun(queued, began);
            self.segments.push(segment);
        }
        let trace = self.trace.clone();
        let Some(segment) = self.segment(idx) else {
            return;
        };
        let attributes = vec![
            KeyValue::new("fastvideo.attempt", i64::from(queued.at.attempt)),
            KeyValue::new("fastvideo.worker_id", queued.worker.to_string()),
        ];
        let job = (trace.tracer())
            .span_builder("job")
            .with_kind(SpanKind::Client)
            .with_start_time(now)
            .with_attributes(attributes);
        let job = trace.tracer().build_with_context(job, &segment.below);
        let below = below(&job);
        segment.job = Some(JobSpans {
            queue: Some(start(&trace, "job.queue", now, &below)),
            job,
            below,
            steps: 0,
        });
    }

    fn segment_begun(&mut self, queued: &SegmentQueued, began: SystemTime) -> SegmentSpans {
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", "generate_content"),
            KeyValue::new("gen_ai.output.type", "video"),
            KeyValue::new("fastvideo.segment_idx", i64::from(queued.at.segment_idx)),
            KeyValue::new("fastvideo.steps", i64::from(queued.total_steps)),
            KeyValue::new(
                "fastvideo.source",
                format!("{:?}", queued.source).to_lowercase(),
            ),
        ];
        if let Some(model) = &self.model {
            attributes.push(KeyValue::new("gen_ai.request.model", model.clone()));
        }
        if let Some(format) = self.format {
            attributes.push(KeyValue::new("fastvideo.width", i64::from(format.width)));
            attributes.push(KeyValue::new("fastvideo.height", i64::from(format.height)));
        }
        let builder = (self.trace.tracer())
            .span_builder("segment")
            .with_start_time(began)
            .with_attributes(attributes);
        let segment = match queued.trace_parent {
            Some(parent) => {
                let builder = builder.with_links(vec![link(trace_context(&self.session))]);
                (self.trace.tracer()).build_with_context(builder, &below_client(parent))
            }
            None => (self.trace.tracer()).build_with_context(builder, &self.below_session),
        };
        let below = below(&segment);
        let of_request = |enhanced: &Enhanced| enhanced.request == queued.request;
        if let Some(position) = self.enhanced.iter().position(of_request) {
            let enhanced = self.enhanced.remove(position);
            let builder = (self.trace.tracer())
                .span_builder("prompt.enhance")
                .with_kind(SpanKind::Client)
                .with_start_time(enhanced.began)
                .with_attributes(vec![
                    KeyValue::new("gen_ai.provider.name", enhanced.provider),
                    KeyValue::new("gen_ai.request.model", enhanced.model),
                ]);
            let mut span = self.trace.tracer().build_with_context(builder, &below);
            span.end_with_timestamp(enhanced.ended);
        }
        SegmentSpans {
            idx: queued.at.segment_idx,
            segment,
            below,
            job: None,
            send: None,
        }
    }

    fn job_finished(&mut self, at: AttemptId, frames: u32, timing: &JobTiming, now: SystemTime) {
        let (trace, clock) = (self.trace.clone(), self.clock);
        let Some(segment) = self.segment(at.segment_idx) else {
            return;
        };
        (segment.segment).set_attribute(KeyValue::new("fastvideo.frames", i64::from(frames)));
        if let Some(job) = &segment.job {
            phases(&trace, clock, &job.below, timing);
        }
        self.job_ended(at, None, now);
    }

    fn job_ended(&mut self, at: AttemptId, error: Option<&str>, now: SystemTime) {
        let Some(segment) = self.segment(at.segment_idx) else {
            return;
        };
        if let Some(mut job) = segment.job.take() {
            end(&mut job.queue, now);
            if let Some(error) = error {
                job.job
                    .set_attribute(KeyValue::new("error.type", error.to_owned()));
                job.job.set_status(Status::error(error.to_owned()));
            }
            job.job.end_with_timestamp(now);
        }
    }

    fn segment_ended(&mut self, idx: u32, status: Status, now: SystemTime) {
        let Some(position) = self.segments.iter().position(|segment| segment.idx == idx) else {
            return;
        };
        let mut segment = self.segments.remove(position);
        end(&mut segment.send, now);
        segment.segment.set_status(status);
        segment.segment.end_with_timestamp(now);
    }

    fn ended(&mut self, ended: &Ended, now: SystemTime) {
        for mut segment in std::mem::take(&mut self.segments) {
            if let Some(mut job) = segment.job.take() {
                end(&mut job.queue, now);
                job.job.end_with_timestamp(now);
            }
            end(&mut segment.send, now);
            segment.segment.end_with_timestamp(now);
        }
        end(&mut self.queue, now);
        end(&mut self.open, now);
        self.session
            .set_attribute(KeyValue::new("fastvideo.cause", ended.cause.name()));
        // The last of its spans.
        self.session.end_with_timestamp(now);
    }
}

/// Makes the spans of what the worker did.
fn phases(trace: &Trace, clock: Clock, below_job: &Context, timing: &JobTiming) {
    let begins = timing.phases.iter().map(|span| span.start_us).min();
    let ends = timing.phases.iter().map(|span| span.end_us).max();
    let (Some(begins), Some(ends)) = (begins, ends) else {
        return;
    };
    let builder = (trace.tracer())
        .span_builder("generate")
        .with_kind(SpanKind::Server)
        .with_start_time(clock.at_us(begins));
    let mut generate = trace.tracer().build_with_context(builder, below_job);
    let below = below(&generate);
    for span in &timing.phases {
        let began = clock.at_us(span.start_us);
        let mut phase = start(trace, span.phase.name(), began, &below);
        phase.end_with_timestamp(clock.at_us(span.end_us));
    }
    generate.end_with_timestamp(clock.at_us(ends));
}

fn start(trace: &Trace, name: &'static str, began: SystemTime, below: &Context) -> Span {
    let builder = trace.tracer().span_builder(name).with_start_time(began);
    trace.tracer().build_with_context(builder, below)
}

fn end(span: &mut Option<Span>, now: SystemTime) {
    if let Some(mut span) = span.take() {
        span.end_with_timestamp(now);
    }
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Denoise => "denoise",
        Stage::Refine => "refine",
        Stage::Decode => "decode",
    }
}

/// Returns an error's code as clients are told it.
fn error_type(code: fastvideo_proto::job::ErrorCode) -> String {
    let name = serde_json::to_value(code).unwrap_or_default();
    name.as_str().unwrap_or("error").to_owned()
}
