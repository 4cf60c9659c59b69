//! The spans of one segment: its prompt's, its attempts' and that of its media. Their number is limited.

use std::time::SystemTime;

use fastvideo_proto::job::{PhaseSpan, Stage};
use fastvideo_proto::step_snapshot::StepPoint;
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::Span;

use super::room::Room;
use crate::prompt::{PromptSpan, PromptSpanKind};
use crate::session::event::SegmentQueued;
use crate::traces::{Clock, Trace, begun, below, done};

/// The number of spans of one segment.
const MAX_SPANS: usize = 20;
/// Those that every segment has room for: its own, `send` and `store.save`.
const RESERVED: usize = 3;
/// The number of spans that are about the prompt.
const MAX_PROMPT_SPANS: usize = 4;
/// The number of steps of one attempt that are events of its span.
const MAX_STEPS: usize = 128;

/// The spans of a segment that have begun and not ended.
#[derive(Debug)]
pub(super) struct SegmentSpans {
    pub(super) idx: u32,
    span: Span,
    below: Context,
    job: Option<JobSpans>,
    send: Option<Span>,
    /// Whether it is generated in whole.
    pub(super) is_generated: bool,
    /// The room for spans besides those reserved.
    left: Room,
}

#[derive(Debug)]
struct JobSpans {
    span: Span,
    below: Context,
    queue: Option<Span>,
    /// Number of steps that are events of the span.
    steps: usize,
}

/// A segment that is generated, and to be stored.
#[derive(Debug)]
pub(super) struct GeneratedSegment {
    pub(super) below: Context,
    /// The room for spans, in which `store.save` has its place.
    pub(super) left: Room,
}

impl SegmentSpans {
    /// Takes the span of a segment, which has begun.
    pub(super) fn new(idx: u32, span: Span) -> Self {
        Self {
            idx,
            below: below(&span),
            span,
            job: None,
            send: None,
            is_generated: false,
            left: Room::new(MAX_SPANS - RESERVED),
        }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn set(&mut self, attribute: KeyValue) {
        self.span.set_attribute(attribute);
    }

    /// Adds what was done for the segment's prompt.
    pub(super) fn prompt_work(&mut self, trace: &Trace, clock: Clock, work: &[PromptSpan]) {
        for span in work.iter().take(MAX_PROMPT_SPANS) {
            if self.left.take() {
                prompt_span(trace, clock, span, &self.below);
            }
        }
    }

    /// Begins an attempt.
    pub(super) fn job_made(&mut self, trace: &Trace, queued: &SegmentQueued, now: SystemTime) {
        if !self.left.take() {
            return;
        }
        let attributes = vec![
            KeyValue::new("fastvideo.attempt", i64::from(queued.at.attempt)),
            KeyValue::new("fastvideo.worker_id", queued.worker.to_string()),
            KeyValue::new("fastvideo.gpu", i64::from(queued.gpu.0)),
        ];
        let builder = (trace.tracer())
            .span_builder("job")
            .with_kind(SpanKind::Client)
            .with_start_time(now)
            .with_attributes(attributes);
        let span = trace.tracer().build_with_context(builder, &self.below);
        let below = below(&span);
        let is_room = self.left.take();
        self.job = Some(JobSpans {
            queue: is_room.then(|| begun(trace, "job.queue", now, &below)),
            span,
            below,
            steps: 0,
        });
    }

    /// The attempt was given to its worker. It goes on from a step of an earlier attempt, if there is one.
    pub(super) fn job_started(&mut self, after: Option<StepPoint>, now: SystemTime) {
        let Some(job) = &mut self.job else { return };
        end(&mut job.queue, now);
        if let Some(after) = after {
            job.span.set_attributes([
                KeyValue::new("fastvideo.after_stage", stage_name(after.stage)),
                KeyValue::new("fastvideo.after_step", i64::from(after.step)),
                KeyValue::new("fastvideo.steps_saved", i64::from(after.steps_done)),
            ]);
        }
    }

    /// The worker begins with the first step, since it does not take the step snapshot.
    pub(super) fn snapshot_refused(&mut self, now: SystemTime) {
        if let Some(job) = &mut self.job {
            (job.span).add_event_with_timestamp("snapshot_refused", now, Vec::new());
        }
    }

    pub(super) fn step_done(&mut self, stage: Stage, step: u32, total_steps: u32, now: SystemTime) {
        if let Some(job) = &mut self.job
            && job.steps < MAX_STEPS
        {
            job.steps += 1;
            let attributes = vec![
                KeyValue::new("fastvideo.stage", stage_name(stage)),
                KeyValue::new("fastvideo.step", i64::from(step)),
                KeyValue::new("fastvideo.steps", i64::from(total_steps)),
            ];
            job.span.add_event_with_timestamp("step", now, attributes);
        }
    }

    /// Adds what the worker did in the attempt.
    pub(super) fn phases(&mut self, trace: &Trace, clock: Clock, phases: &[PhaseSpan]) {
        let Some(job) = &self.job else { return };
        let begins = phases.iter().map(|phase| phase.start_us).min();
        let ends = phases.iter().map(|phase| phase.end_us).max();
        let (Some(begins), Some(ends)) = (begins, ends) else {
            return;
        };
        let builder = (trace.tracer())
            .span_builder("generate")
            .with_kind(SpanKind::Server)
            .with_start_time(clock.at_us(begins));
        let below_job = job.below.clone();
        if !self.left.take() {
            return;
        }
        let mut generate = trace.tracer().build_with_context(builder, &below_job);
        let below = below(&generate);
        for phase in phases {
            if self.left.take() {
                let period = (clock.at_us(phase.start_us), clock.at_us(phase.end_us));
                done(trace, phase.phase.name(), period, &below);
            }
        }
        generate.end_with_timestamp(clock.at_us(ends));
    }

    /// The attempt is over; `error` says why it has made no segment.
    pub(super) fn job_ended(&mut self, error: Option<&str>, now: SystemTime) {
        if let Some(mut job) = self.job.take() {
            end(&mut job.queue, now);
            if let Some(error) = error {
                job.span
                    .set_attribute(KeyValue::new("error.type", error.to_owned()));
                job.span.set_status(Status::error(error.to_owned()));
            }
            job.span.end_with_timestamp(now);
        }
    }

    /// Media for the client are there.
    pub(super) fn sends(&mut self, trace: &Trace, now: SystemTime) {
        let below = &self.below;
        self.send
            .get_or_insert_with(|| begun(trace, "send", now, below));
    }

    pub(super) fn first_byte(&mut self, now: SystemTime) {
        if let Some(send) = &mut self.send {
            send.add_event_with_timestamp("first_byte", now, Vec::new());
        }
    }

    /// The media that the client has are void.
    pub(super) fn media_void(&mut self, now: SystemTime) {
        self.span
            .add_event_with_timestamp("media_void", now, Vec::new());
    }

    /// It is generated in whole. Returns what is needed of it when it is stored, which may be after its end.
    pub(super) fn generated(&mut self) -> GeneratedSegment {
        self.is_generated = true;
        GeneratedSegment {
            below: self.below.clone(),
            left: self.left.and_one(),
        }
    }

    /// The segment is over; `error` says why there is none.
    pub(super) fn ended(mut self, error: Option<&str>, now: SystemTime) {
        self.job_ended(error, now);
        end(&mut self.send, now);
        if let Some(error) = error {
            self.set(KeyValue::new("error.type", error.to_owned()));
            self.span.set_status(Status::error(error.to_owned()));
        }
        self.span.end_with_timestamp(now);
    }
}

/// Makes the span of a piece of work for a prompt. It has nothing of the prompt.
pub(super) fn prompt_span(trace: &Trace, clock: Clock, span: &PromptSpan, below: &Context) {
    let (began, ended) = clock.period(span.period);
    match &span.kind {
        PromptSpanKind::Screened { is_blocked } => {
            let mut span = begun(trace, "safety.screen", began, below);
            let verdict = if *is_blocked { "blocked" } else { "passed" };
            span.set_attribute(KeyValue::new("fastvideo.verdict", verdict));
            span.end_with_timestamp(ended);
        }
        PromptSpanKind::Asked {
            provider,
            model,
            operation,
            error,
        } => {
            let builder = (trace.tracer())
                .span_builder(format!("prompt.{operation}"))
                .with_kind(SpanKind::Client)
                .with_start_time(began)
                .with_attributes(vec![
                    KeyValue::new("gen_ai.provider.name", provider.clone()),
                    KeyValue::new("gen_ai.request.model", model.clone()),
                ]);
            let mut span = trace.tracer().build_with_context(builder, below);
            if let Some(error) = *error {
                span.set_attribute(KeyValue::new("error.type", error));
                span.set_status(Status::error(error));
            }
            span.end_with_timestamp(ended);
        }
    }
}

/// Ends a span, if there is one.
pub(super) fn end(span: &mut Option<Span>, now: SystemTime) {
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
