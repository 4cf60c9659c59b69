//! The spans of a session: a reader of its events.
//!
//! ```text
//! session                          the opening message to the end
//!   session.open                   the check of the client's key to the first worker; below it auth, image, store.claim
//!   session.queue                  each time that it waits for a worker
//!   segment                        a request to the last byte on the socket
//!     safety.screen
//!     prompt.enhance               one for each provider that is asked
//!     job                          one attempt, from its making to its end; an event for each step
//!       job.queue                  until a worker is given it
//!       generate                   in the worker; below it its phases
//!     send                         the first media for the client to the last byte
//!     store.save
//!   prompt.rewrite                 and other work for prompts that become no segment
//! ```
//!
//! No span has a prompt, a key or an address. `segment` has the spans of a segment, whose number is limited.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use fastvideo_proto::ids::RequestId;
use fastvideo_proto::job::{ErrorCode, VideoFormat};
use fastvideo_proto::trace::TraceContext;
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::Span;
use tokio::time::Instant;

use self::room::Room;
use self::segment::{GeneratedSegment, SegmentSpans, end, prompt_span};
use super::event::{Ended, Opened, PromptWorked, SegmentQueued, SessionEvent, WorkerBound};
use super::state::SessionState;
use crate::metrics::TraceLabels;
use crate::prompt::PromptSpan;
use crate::traces::{
    Clock, Period, Trace, Traces, begun, below, below_other, done, link, trace_context,
};

mod room;
mod segment;

/// The number of prompts whose work waits to be shown with their segments.
const MAX_PREPARED: usize = 16;
/// The number of spans below the session's besides segments.
const MAX_OTHERS: usize = 64;

/// Makes the spans of one session. Cheap to clone; it makes none for a session that is not traced.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionTracer(Option<Arc<Mutex<Spans>>>);

/// The spans that have begun and not ended.
#[derive(Debug)]
struct Spans {
    trace: Trace,
    clock: Clock,
    id: String,
    session: Span,
    below_session: Context,
    open: Option<Span>,
    queue: Option<Span>,
    segments: Vec<SegmentSpans>,
    /// Whether the session is over; what its client was not sent yet still has spans.
    is_over: bool,
    /// The room for spans below the session's, besides segments.
    left: Room,
    /// The last segment that was generated.
    generated: Option<GeneratedSegment>,
    /// What was done for prompts whose segments have not begun.
    prepared: Vec<PreparedPrompt>,
    model: Option<String>,
    format: Option<VideoFormat>,
}

/// What was done for a prompt.
#[derive(Debug)]
struct PreparedPrompt {
    request: Option<RequestId>,
    /// It tells the segment, and is in no span.
    prompt: String,
    work: Vec<PromptSpan>,
}

/// What is known of a session when its trace begins.
#[derive(Debug)]
pub(super) struct TracedSession<'a> {
    pub(super) id: &'a str,
    pub(super) tenant: &'a str,
    /// The span that the session is below.
    pub(super) parent: Option<TraceContext>,
    /// Whether the session's router has decided if it is traced, as `parent` says.
    pub(super) is_decided: bool,
    /// The spans that the session links to: another one of the client's, and that of the same session on an earlier
    /// connection.
    pub(super) links: [Option<TraceContext>; 2],
    /// When the client's key was checked or, where nobody is asked for one, the opening message came.
    pub(super) accepted: Instant,
    /// When the opening message came.
    pub(super) received: Instant,
}

impl SessionTracer {
    /// Begins the trace of a session, unless it is one of those that are not traced.
    pub(super) fn begin(traces: &Traces, session: &TracedSession<'_>) -> Self {
        let trace = match session.parent {
            Some(parent) if session.is_decided => traces.go_on(parent),
            parent => traces.begin(parent),
        };
        let Some(trace) = trace else {
            return Self(None);
        };
        let clock = Clock::now();
        let attributes = vec![
            KeyValue::new("session.id", session.id.to_owned()),
            KeyValue::new("gen_ai.conversation.id", session.id.to_owned()),
            KeyValue::new("fastvideo.tenant", session.tenant.to_owned()),
        ];
        let root = (trace.tracer())
            .span_builder("session")
            .with_kind(SpanKind::Server)
            .with_start_time(clock.at(session.received))
            .with_links(session.links.into_iter().flatten().map(link).collect())
            .with_attributes(attributes);
        let span = trace.tracer().build_with_context(root, trace.parent());
        let below_session = below(&span);
        let accepted = clock.at(session.accepted);
        let open = begun(&trace, "session.open", accepted, &below_session);
        let spans = Spans {
            trace,
            clock,
            id: session.id.to_owned(),
            session: span,
            below_session,
            open: Some(open),
            queue: None,
            segments: Vec::new(),
            is_over: false,
            left: Room::new(MAX_OTHERS),
            generated: None,
            prepared: Vec::new(),
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
    /// Reads an event. Returns the span that it belongs to: a segment's, or the session's.
    fn read(&mut self, event: &SessionEvent) -> TraceContext {
        let now = self.clock.at(Instant::now());
        if let SessionEvent::SegmentQueued(queued) = event {
            self.job_made(queued, now);
        }
        let Some(idx) = segment_of(event) else {
            self.read_of_session(event, now);
            return trace_context(&self.session);
        };
        let position = self.segments.iter().position(|segment| segment.idx == idx);
        let Some(position) = position else {
            return trace_context(&self.session);
        };
        let context = trace_context(self.segments[position].span());
        self.read_of_segment(position, event, now);
        self.end_session(now);
        context
    }

    /// Reads an event that belongs to no segment.
    fn read_of_session(&mut self, event: &SessionEvent, now: SystemTime) {
        match event {
            SessionEvent::Opened(opened) => self.opened(opened),
            SessionEvent::Queued { .. }
            | SessionEvent::StateChanged {
                from: SessionState::Active,
                to: SessionState::GpuBinding,
            } => self.wait(now),
            SessionEvent::WorkerBound(bound) => self.bound(bound, now),
            SessionEvent::PromptWorked(worked) => self.prompt_worked(worked),
            SessionEvent::Stored { began, is_stored } => self.stored(*began, *is_stored),
            SessionEvent::Ended(ended) => self.ended(ended, now),
            _ => {}
        }
    }

    /// Reads an event of the segment at this position.
    fn read_of_segment(&mut self, position: usize, event: &SessionEvent, now: SystemTime) {
        let (trace, clock) = (&self.trace, self.clock);
        let segment = &mut self.segments[position];
        match event {
            SessionEvent::SegmentStarted { after, .. } => segment.job_started(*after, now),
            SessionEvent::SnapshotDropped { is_over: false, .. } => segment.snapshot_refused(now),
            SessionEvent::SnapshotDropped { is_over: true, .. } => {
                segment.job_ended(Some("failed"), now);
            }
            SessionEvent::StepDone {
                stage,
                step,
                total_steps,
                ..
            } => segment.step_done(*stage, *step, *total_steps, now),
            SessionEvent::Media { .. } => segment.sends(trace, now),
            SessionEvent::FirstMediaSent { .. } => segment.first_byte(now),
            SessionEvent::MediaVoid { .. } => segment.media_void(now),
            SessionEvent::SegmentFinished { frames, timing, .. } => {
                segment.set(KeyValue::new("fastvideo.frames", i64::from(*frames)));
                segment.phases(trace, clock, &timing.phases);
                segment.job_ended(None, now);
                self.generated = Some(segment.generated());
            }
            SessionEvent::AttemptFailed { phases, .. } => segment.phases(trace, clock, phases),
            SessionEvent::SegmentTakenBack { .. } => segment.job_ended(Some("taken_back"), now),
            SessionEvent::WorkerLost(_) => segment.job_ended(Some("worker_lost"), now),
            SessionEvent::AllMediaSent { .. } | SessionEvent::SegmentCancelled { .. } => {
                self.segments.remove(position).ended(None, now);
            }
            SessionEvent::SegmentFailed { code, .. } => {
                let error = error_type(*code);
                self.segments.remove(position).ended(Some(&error), now);
            }
            _ => {}
        }
    }

    fn opened(&mut self, opened: &Opened) {
        self.session
            .set_attribute(KeyValue::new("fastvideo.resumed", opened.resumed));
        let Some(open) = &self.open else { return };
        let below = below(open);
        let add = |name, period: Option<Period>| {
            if let Some(period) = period {
                done(&self.trace, name, self.clock.period(period), &below);
            }
        };
        add("auth", opened.auth);
        add("image", opened.image_read);
        add("store.claim", Some(opened.claimed));
    }

    fn wait(&mut self, now: SystemTime) {
        if self.queue.is_none() && self.left.take() {
            let queue = begun(&self.trace, "session.queue", now, &self.below_session);
            self.queue = Some(queue);
        }
    }

    fn bound(&mut self, bound: &WorkerBound, now: SystemTime) {
        self.model = Some(bound.assignment.model_id.clone());
        if let Some(stream) = &bound.stream {
            self.format = Some(stream.format);
        }
        end(&mut self.queue, now);
        end(&mut self.open, now);
    }

    fn prompt_worked(&mut self, worked: &PromptWorked) {
        let Some(prompt) = &worked.prompt else {
            return self.work_without_segment(&worked.spans);
        };
        if self.prepared.len() == MAX_PREPARED {
            return self.work_without_segment(&worked.spans);
        }
        self.prepared.push(PreparedPrompt {
            request: worked.request.clone(),
            prompt: prompt.clone(),
            work: worked.spans.clone(),
        });
    }

    /// Shows work for a prompt of which no segment is known.
    fn work_without_segment(&mut self, work: &[PromptSpan]) {
        for span in work {
            if self.left.take() {
                prompt_span(&self.trace, self.clock, span, &self.below_session);
            }
        }
    }

    fn job_made(&mut self, queued: &SegmentQueued, now: SystemTime) {
        let idx = queued.at.segment_idx;
        let begun = self.segments.iter().position(|segment| segment.idx == idx);
        let position = begun.unwrap_or_else(|| {
            let segment = self.segment_begun(queued, now - queued.waited);
            self.segments.push(segment);
            self.segments.len() - 1
        });
        self.segments[position].job_made(&self.trace, queued, now);
    }

    fn segment_begun(&mut self, queued: &SegmentQueued, began: SystemTime) -> SegmentSpans {
        let builder = (self.trace.tracer())
            .span_builder("segment")
            .with_start_time(began)
            .with_attributes(self.attributes(queued));
        let span = match queued.trace_parent {
            Some(parent) => {
                let builder = builder.with_links(vec![link(trace_context(&self.session))]);
                (self.trace.tracer()).build_with_context(builder, &below_other(parent))
            }
            None => (self.trace.tracer()).build_with_context(builder, &self.below_session),
        };
        let mut segment = SegmentSpans::new(queued.at.segment_idx, span);
        let text = queued.original_prompt.as_ref().unwrap_or(&queued.prompt);
        let is_its = |prepared: &PreparedPrompt| {
            prepared.request == queued.request && prepared.prompt == *text
        };
        if let Some(position) = self.prepared.iter().position(is_its) {
            let prepared = self.prepared.remove(position);
            segment.prompt_work(&self.trace, self.clock, &prepared.work);
        }
        segment
    }

    /// Returns the attributes of a segment's span.
    fn attributes(&self, queued: &SegmentQueued) -> Vec<KeyValue> {
        let source = format!("{:?}", queued.source).to_lowercase();
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", "generate_content"),
            KeyValue::new("gen_ai.output.type", "video"),
            KeyValue::new("gen_ai.conversation.id", self.id.clone()),
            KeyValue::new("session.id", self.id.clone()),
            KeyValue::new("fastvideo.segment_idx", i64::from(queued.at.segment_idx)),
            KeyValue::new("fastvideo.steps", i64::from(queued.total_steps)),
            KeyValue::new("fastvideo.source", source),
        ];
        // A larger one is no number that a span can have.
        if let Ok(seed) = i64::try_from(queued.seed) {
            attributes.push(KeyValue::new("gen_ai.request.seed", seed));
        }
        if let Some(model) = &self.model {
            attributes.push(KeyValue::new("gen_ai.request.model", model.clone()));
        }
        if let Some(format) = self.format {
            attributes.push(KeyValue::new("fastvideo.width", i64::from(format.width)));
            attributes.push(KeyValue::new("fastvideo.height", i64::from(format.height)));
        }
        attributes
    }

    /// A write of what was committed has ended.
    fn stored(&mut self, began: Instant, is_stored: bool) {
        let is_room = match &mut self.generated {
            Some(segment) => segment.left.take(),
            None => self.left.take(),
        };
        if !is_room {
            return;
        }
        let generated = self.generated.as_ref();
        let below = generated.map_or(&self.below_session, |segment| &segment.below);
        let (began, ended) = self.clock.period(Period::since(began));
        let mut save = begun(&self.trace, "store.save", began, below);
        if !is_stored {
            save.set_status(Status::error("not stored"));
        }
        save.end_with_timestamp(ended);
    }

    /// The session is over. A segment that was generated ends when its client has it.
    fn ended(&mut self, ended: &Ended, now: SystemTime) {
        for segment in self
            .segments
            .extract_if(.., |segment| !segment.is_generated)
        {
            segment.ended(None, now);
        }
        for prepared in std::mem::take(&mut self.prepared) {
            self.work_without_segment(&prepared.work);
        }
        end(&mut self.queue, now);
        end(&mut self.open, now);
        self.session
            .set_attribute(KeyValue::new("fastvideo.cause", ended.cause.name()));
        self.is_over = true;
        self.end_session(now);
    }

    /// Ends the session's span, the last of its spans, once there are no others.
    fn end_session(&mut self, now: SystemTime) {
        if self.is_over && self.segments.is_empty() {
            self.session.end_with_timestamp(now);
        }
    }
}

/// The client has gone before it had everything.
impl Drop for Spans {
    fn drop(&mut self) {
        let now = self.clock.at(Instant::now());
        for segment in std::mem::take(&mut self.segments) {
            segment.ended(None, now);
        }
    }
}

/// Returns the index of the segment that an event belongs to.
fn segment_of(event: &SessionEvent) -> Option<u32> {
    let at = match event {
        SessionEvent::SegmentQueued(queued) => queued.at,
        SessionEvent::WorkerLost(lost) => lost.at,
        SessionEvent::SegmentStarted { at, .. }
        | SessionEvent::SnapshotDropped { at, .. }
        | SessionEvent::StepDone { at, .. }
        | SessionEvent::Media { at, .. }
        | SessionEvent::FirstMediaSent { at, .. }
        | SessionEvent::MediaVoid { at, .. }
        | SessionEvent::SegmentFinished { at, .. }
        | SessionEvent::AllMediaSent { at, .. }
        | SessionEvent::AttemptFailed { at, .. }
        | SessionEvent::SegmentTakenBack { at, .. }
        | SessionEvent::SegmentCancelled { at, .. }
        | SessionEvent::SegmentFailed { at, .. } => *at,
        _ => return None,
    };
    Some(at.segment_idx)
}

/// Returns an error's code as clients are told it.
fn error_type(code: ErrorCode) -> String {
    let name = serde_json::to_value(code).unwrap_or_default();
    name.as_str().unwrap_or("error").to_owned()
}
