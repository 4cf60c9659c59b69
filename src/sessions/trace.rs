//! Exports a session's log in the Chrome trace event format, which [Perfetto](https://ui.perfetto.dev) and
//! `chrome://tracing` open.
//!
//! The session is a process of the trace, and each kind of activity is a track, which the format calls a thread. Spans that
//! overlap are not allowed on one track, so a further track of the same name takes them. The facts are in the `args` of the
//! events.
//!
//! The format is described in [Trace Event Format](https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU).

use fastvideo_supervisor_core::session::log::LogEvent as Event;
use serde_json::{Value, json};

use super::history::{AttemptOutcome, History, LoggedEvent, SegmentAttempt};
use super::text::{begun, remark, wire_name};

/// The tracks from top to bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Track {
    Session,
    Worker,
    Client,
    Prompts,
    Segments,
    Queue,
    Steps,
    ClientBytes,
}

/// A span that begins by less than this before the end of the one before it on its track begins at that end instead: the
/// two were measured by different clocks.
const TOLERANCE_US: f64 = 1000.0;
/// The latest time, about 30 years. It keeps absurd numbers in a log out of the trace.
const MAX_US: f64 = 1e15;
const PROCESS_ID: u32 = 1;

struct Trace {
    /// The tracks that are in use, each with the end of its last span in microseconds. The thread id is the index plus 1.
    tracks: Vec<(Track, f64)>,
    /// The events, each with its time in microseconds.
    events: Vec<(f64, Value)>,
}

/// Exports the log as one JSON object.
pub(super) fn export(history: &History) -> Value {
    let mut trace = Trace {
        tracks: Vec::new(),
        events: Vec::new(),
    };
    for (from, to, state) in history.states() {
        trace.span(Track::Session, (from, to), &wire_name(state), json!({}));
    }
    for (from, to, worker) in history.workers() {
        trace.span(Track::Worker, (from, to), &worker, json!({}));
    }
    for (from, to, by, prompt) in history.generated_prompts() {
        let args = json!({"prompt": prompt, "by": by});
        trace.span(Track::Prompts, (from, to), &by.model, args);
    }
    for attempt in &history.attempts {
        trace.attempt(attempt);
    }
    for entry in &history.entries {
        trace.instant(entry.at, &entry.event);
    }
    trace.into_json(history)
}

impl Trace {
    fn attempt(&mut self, attempt: &SegmentAttempt) {
        let name = attempt.name();
        let whole = (attempt.requested, attempt.end());
        let mut args = json!({
            "segment_idx": attempt.segment_idx,
            "attempt": attempt.attempt,
            "prompt": attempt.prompt,
            "outcome": remark(attempt).unwrap_or("finished"),
            "llm_ms": attempt.llm_ms,
            "queue_ms": attempt.queue_ms(),
            "denoise_ms": attempt.denoise_ms(),
            "first_byte_ms": attempt.since_request_ms(attempt.first_byte),
            "last_byte_ms": attempt.since_request_ms(attempt.last_byte),
        });
        if let AttemptOutcome::Finished {
            decode_ms,
            encode_ms,
        } = attempt.outcome
        {
            args["decode_ms"] = json!(decode_ms);
            args["encode_ms"] = json!(encode_ms);
        }
        let label = format!("{name} {}", attempt.prompt);
        self.span(Track::Segments, whole, &label, args);
        let args = json!({"segment_idx": attempt.segment_idx, "attempt": attempt.attempt});
        if let Some(started) = attempt.started {
            self.span(Track::Queue, (attempt.ready, started), &name, args.clone());
        }
        for step in &attempt.steps {
            let label = format!("{} {}", wire_name(step.stage), step.step);
            self.span(Track::Steps, (step.from, step.to), &label, args.clone());
        }
        if let Some(decoding) = attempt.decoding() {
            self.span(Track::Steps, decoding, "decode", args.clone());
        }
        if let Some(first) = attempt.first_byte {
            let last = attempt.last_byte.unwrap_or_else(|| attempt.end());
            let mut args = args;
            args["bytes"] = json!(attempt.bytes);
            self.span(Track::ClientBytes, (first, last), &name, args);
        }
    }

    /// Adds a line of the log as an event at one moment, unless a span shows it.
    fn instant(&mut self, at: f64, logged: &LoggedEvent) {
        let (track, scope, name, payload) = match logged {
            LoggedEvent::Unknown { name, payload } => {
                (Track::Session, "t", name.clone(), payload.clone())
            }
            LoggedEvent::Known(event) => {
                let (track, scope) = match event {
                    Event::State { .. }
                    | Event::PromptEnhanced { .. }
                    | Event::PromptExtended { .. }
                    | Event::PromptRewritten { .. }
                    | Event::SegmentQueued { .. }
                    | Event::SegmentStarted { .. }
                    | Event::Step { .. }
                    | Event::FirstByte { .. }
                    | Event::LastByte { .. } => return,
                    Event::Message { .. } | Event::SegmentResent { .. } => (Track::Client, "t"),
                    Event::Queued { .. } => (Track::Queue, "t"),
                    Event::Assigned { .. } | Event::Handoff { .. } => (Track::Worker, "t"),
                    Event::PromptReceived { .. }
                    | Event::PromptFallback { .. }
                    | Event::PromptBlocked { .. } => (Track::Prompts, "t"),
                    Event::SegmentFinished { .. }
                    | Event::SegmentCancelled { .. }
                    | Event::SegmentTakenBack { .. }
                    | Event::SnapshotDropped { .. }
                    | Event::MediaVoid { .. } => (Track::Segments, "t"),
                    // Perfetto draws these across all tracks of the session.
                    Event::Fault { .. } | Event::SegmentFailed { .. } | Event::Error { .. } => {
                        (Track::Session, "p")
                    }
                    _ => (Track::Session, "t"),
                };
                let mut line = serde_json::to_value(event).unwrap_or_default();
                let name = line["event"].as_str().unwrap_or_default().to_owned();
                (track, scope, name, line["payload"].take())
            }
        };
        let args = match payload {
            Value::Object(_) => payload,
            other => json!({"payload": other}),
        };
        let ts = micros(at);
        let event = json!({
            "ph": "i", "s": scope, "name": name, "ts": ts,
            "pid": PROCESS_ID, "tid": self.thread(track, f64::INFINITY), "args": args,
        });
        self.events.push((ts, event));
    }

    fn span(&mut self, track: Track, (from, to): (f64, f64), name: &str, args: Value) {
        let (from, to) = (micros(from), micros(to));
        let thread = self.thread(track, from + TOLERANCE_US);
        let end = &mut self.tracks[thread - 1].1;
        let from = from.max(*end);
        let to = to.max(from);
        *end = to;
        let event = json!({
            "ph": "X", "name": name, "ts": from, "dur": to - from,
            "pid": PROCESS_ID, "tid": thread, "args": args,
        });
        self.events.push((from, event));
    }

    /// Finds the first thread of a track whose last span ends at `end` or before, or adds one.
    fn thread(&mut self, track: Track, end: f64) -> usize {
        let is_free = |(of, last_end): &(Track, f64)| *of == track && *last_end <= end;
        let found = self.tracks.iter().position(is_free);
        1 + found.unwrap_or_else(|| {
            self.tracks.push((track, 0.0));
            self.tracks.len() - 1
        })
    }

    fn into_json(mut self, history: &History) -> Value {
        self.events.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let metadata = |name: &str, tid: usize, args: Value| json!({"ph": "M", "name": name, "pid": PROCESS_ID, "tid": tid, "args": args});
        let process = format!("session {}", history.session_id);
        let mut events = vec![metadata("process_name", 0, json!({"name": process}))];
        for (tid, (track, _)) in (1..).zip(&self.tracks) {
            let order = json!({"sort_index": *track as u32});
            events.push(metadata("thread_name", tid, json!({"name": track.name()})));
            events.push(metadata("thread_sort_index", tid, order));
        }
        events.extend(self.events.into_iter().map(|(_, event)| event));
        json!({
            "displayTimeUnit": "ms",
            "otherData": {"session_id": history.session_id, "begun": begun(history)},
            "traceEvents": events,
        })
    }
}

impl Track {
    fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Worker => "worker",
            Self::Client => "client messages",
            Self::Prompts => "prompts",
            Self::Segments => "segments",
            Self::Queue => "queue",
            Self::Steps => "steps",
            Self::ClientBytes => "client bytes",
        }
    }
}

/// Converts seconds into microseconds, rounded to nanoseconds.
fn micros(seconds: f64) -> f64 {
    (seconds.clamp(0.0, MAX_US / 1e6) * 1e9).round() / 1e3
}
