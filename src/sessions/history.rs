//! Reads a session's log, and groups its events into attempts at segments.

use std::collections::HashMap;

use fastvideo_proto::job::Stage;
use fastvideo_supervisor_core::session::SessionState;
use fastvideo_supervisor_core::session::log::{Line, Llm, LogEvent as Event};
use serde::Deserialize;
use serde_json::Value;

/// The latest time in seconds, about 30 years. Later ones are absurd: an axis to the end of time is never drawn.
const MAX_TIME: f64 = 1e9;

/// A session's log. Times are seconds since its first line.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) session_id: String,
    /// The time of the first line, as Unix time in seconds.
    pub(super) begun_unix: f64,
    /// The time from the first line to the last one; at least a millisecond.
    pub(super) length: f64,
    pub(super) entries: Vec<LogEntry>,
    /// All attempts at all segments, in the order in which they were queued.
    pub(super) attempts: Vec<SegmentAttempt>,
    /// The number of lines that cannot be read, including one at the end that is cut off.
    pub(super) skipped: usize,
}

/// One line of the log.
#[derive(Clone, Debug)]
pub(super) struct LogEntry {
    pub(super) at: f64,
    pub(super) event: LoggedEvent,
}

#[derive(Clone, Debug)]
pub(super) enum LoggedEvent {
    Known(Event),
    /// An event of another version of the server.
    Unknown {
        name: String,
        payload: Value,
    },
}

/// One attempt at one segment.
#[derive(Clone, Debug, Default)]
pub(super) struct SegmentAttempt {
    pub(super) segment_idx: u32,
    pub(super) attempt: u32,
    pub(super) prompt: String,
    /// How long the language model took to write the prompt.
    pub(super) llm_ms: Option<f64>,
    /// When the segment was requested; for a later attempt, when it was queued again.
    pub(super) requested: f64,
    /// When the prompt was ready, which is later than the request where a language model had to write it.
    pub(super) ready: f64,
    /// When the job was sent to the worker.
    pub(super) started: Option<f64>,
    pub(super) steps: Vec<StepSpan>,
    /// When the worker's part ended, successfully or not.
    pub(super) ended: Option<f64>,
    pub(super) outcome: AttemptOutcome,
    pub(super) first_byte: Option<f64>,
    pub(super) last_byte: Option<f64>,
    pub(super) bytes: u64,
}

/// A step of the sampling loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct StepSpan {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) stage: Stage,
    pub(super) step: u32,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum AttemptOutcome {
    /// The log does not tell how the attempt ended.
    #[default]
    Unknown,
    Finished {
        decode_ms: f64,
        encode_ms: f64,
    },
    Cancelled,
    Failed,
    /// The worker was lost.
    WorkerLost,
    /// The job was taken back from a worker that had to leave.
    TakenBack,
}

impl SegmentAttempt {
    /// Returns the number of the segment, followed by that of the attempt if it is not the first one.
    pub(super) fn name(&self) -> String {
        match self.attempt {
            1 => format!("#{}", self.segment_idx),
            again => format!("#{} again ({again})", self.segment_idx),
        }
    }

    /// Returns the time from the ready prompt to the start, in milliseconds.
    pub(super) fn queue_ms(&self) -> Option<f64> {
        Some((self.started? - self.ready) * 1e3)
    }

    /// Returns the sum of all steps except decoding, in milliseconds.
    pub(super) fn denoise_ms(&self) -> f64 {
        let sampling = self.steps.iter().filter(|step| step.stage != Stage::Decode);
        sampling.map(|step| (step.to - step.from) * 1e3).sum()
    }

    /// Returns the time from the request to `at`, in milliseconds.
    pub(super) fn since_request_ms(&self, at: Option<f64>) -> Option<f64> {
        Some((at? - self.requested) * 1e3)
    }

    /// Returns the start and the end of the time from the last step to the last decoded frame; `None` unless the
    /// attempt finished.
    pub(super) fn decoding(&self) -> Option<(f64, f64)> {
        let ended = self.ended?;
        let AttemptOutcome::Finished { decode_ms, .. } = self.outcome else {
            return None;
        };
        let last_step = self.steps.last().map(|step| step.to);
        let from = last_step.unwrap_or(ended - decode_ms / 1e3);
        Some((from, (from + decode_ms / 1e3).min(ended)))
    }

    /// Returns the time of the last known event of the attempt.
    pub(super) fn end(&self) -> f64 {
        let step = self.steps.last().map(|step| step.to);
        [self.started, step, self.ended, self.last_byte]
            .into_iter()
            .flatten()
            .fold(self.requested, f64::max)
    }
}

/// A line that any version of the server may have written.
#[derive(Deserialize)]
struct AnyLine {
    session_id: String,
    ts: f64,
    event: String,
    #[serde(default)]
    payload: Value,
}

impl History {
    /// Reads a file of the session log; `None` when no line of it is an event.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut lines = Vec::new();
        let mut skipped = 0;
        for line in bytes.split(|&byte| byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            match serde_json::from_slice::<AnyLine>(line) {
                Ok(any) => {
                    let event = match serde_json::from_slice::<Line>(line) {
                        Ok(line) => LoggedEvent::Known(line.event),
                        Err(_) => LoggedEvent::Unknown {
                            name: any.event,
                            payload: any.payload,
                        },
                    };
                    lines.push((any.session_id, any.ts, event));
                }
                Err(_) => skipped += 1,
            }
        }
        let (session_id, begun_unix, _) = lines.first()?;
        let (session_id, begun_unix) = (session_id.clone(), *begun_unix);
        let entry = |(_, ts, event)| LogEntry {
            at: f64::clamp(ts - begun_unix, 0.0, MAX_TIME),
            event,
        };
        let entries: Vec<LogEntry> = lines.into_iter().map(entry).collect();
        Some(Self {
            session_id,
            begun_unix,
            length: entries.iter().map(|entry| entry.at).fold(1e-3, f64::max),
            attempts: attempts(&entries),
            entries,
            skipped,
        })
    }

    /// Returns the events that this version knows, each with its time.
    pub(super) fn known(&self) -> impl Iterator<Item = (f64, &Event)> {
        self.entries.iter().filter_map(|entry| match &entry.event {
            LoggedEvent::Known(event) => Some((entry.at, event)),
            LoggedEvent::Unknown { .. } => None,
        })
    }

    /// Returns the states of the session, each with its start and its end.
    pub(super) fn states(&self) -> Vec<(f64, f64, SessionState)> {
        let changes = self.known().filter_map(|(at, event)| match event {
            Event::State { to, .. } => Some((at, *to)),
            _ => None,
        });
        spans(changes, self.length)
    }

    /// Returns the prompts that language models have written, each with its start and its end.
    pub(super) fn generated_prompts(&self) -> impl Iterator<Item = (f64, f64, &Llm, &str)> {
        self.known().filter_map(|(at, event)| {
            let (by, prompt) = match event {
                Event::PromptEnhanced { by, prompt, .. } | Event::PromptExtended { by, prompt } => {
                    (by, prompt)
                }
                Event::PromptRewritten {
                    by, seed_prompt, ..
                } => (by, seed_prompt),
                _ => return None,
            };
            let from = f64::max(at - by.latency_ms / 1e3, 0.0);
            Some((from, at, by, prompt.as_str()))
        })
    }

    /// Returns the workers that the session was bound to, each with its start and its end.
    pub(super) fn workers(&self) -> Vec<(f64, f64, String)> {
        let mut changes = Vec::new();
        for (at, event) in self.known() {
            match event {
                Event::Assigned { worker_id, .. } => changes.push((at, worker_id.to_string())),
                Event::State {
                    to: SessionState::GpuBinding,
                    ..
                }
                | Event::Closed { .. } => changes.push((at, String::new())),
                _ => {}
            }
        }
        let mut spans = spans(changes, self.length);
        spans.retain(|(_, _, worker)| !worker.is_empty());
        spans
    }
}

/// Turns changes into spans: each value lasts until the next change, the last one until `end`.
fn spans<T>(changes: impl IntoIterator<Item = (f64, T)>, end: f64) -> Vec<(f64, f64, T)> {
    let mut spans: Vec<(f64, f64, T)> = Vec::new();
    for (at, value) in changes {
        if let Some(last) = spans.last_mut() {
            last.1 = at;
        }
        spans.push((at, end, value));
    }
    spans
}

fn attempts(entries: &[LogEntry]) -> Vec<SegmentAttempt> {
    let mut attempts: Vec<SegmentAttempt> = Vec::new();
    // When each generated prompt was written, and how long that took in milliseconds.
    let mut written: HashMap<&str, (f64, f64)> = HashMap::new();
    for LogEntry { at, event } in entries {
        let at = *at;
        let LoggedEvent::Known(event) = event else {
            continue;
        };
        if let Event::PromptEnhanced { prompt, by, .. } | Event::PromptExtended { prompt, by } =
            event
        {
            written.insert(prompt, (at, by.latency_ms));
        }
        if let Event::SegmentQueued {
            segment_idx,
            attempt,
            prompt,
            waited_ms,
            ..
        } = event
        {
            let requested = match attempt {
                1 => f64::max(at - waited_ms / 1e3, 0.0),
                _ => at,
            };
            // The prompt of a later attempt was written for the first one.
            let written = written.get(prompt.as_str()).filter(|_| *attempt == 1);
            attempts.push(SegmentAttempt {
                segment_idx: *segment_idx,
                attempt: *attempt,
                prompt: prompt.clone(),
                llm_ms: written.map(|(_, latency_ms)| *latency_ms),
                requested,
                ready: written.map_or(requested, |(written_at, _)| requested.max(*written_at)),
                ..SegmentAttempt::default()
            });
            continue;
        }
        let Some((idx, number)) = attempt_of(event) else {
            continue;
        };
        let found = attempts
            .iter_mut()
            .rfind(|a| (a.segment_idx, a.attempt) == (idx, number));
        if let Some(attempt) = found {
            add(attempt, at, event);
        }
    }
    attempts
}

/// Adds an event to the attempt that it belongs to.
fn add(attempt: &mut SegmentAttempt, at: f64, event: &Event) {
    let mut end = |outcome| {
        attempt.ended = Some(at);
        attempt.outcome = outcome;
    };
    match event {
        Event::SegmentStarted { .. } => attempt.started = Some(at),
        Event::Step {
            stage, step, ms, ..
        } => attempt.steps.push(StepSpan {
            from: f64::max(at - ms / 1e3, 0.0),
            to: at,
            stage: *stage,
            step: *step,
        }),
        Event::FirstByte { .. } => attempt.first_byte = Some(at),
        Event::LastByte { bytes, .. } => {
            attempt.last_byte = Some(at);
            attempt.bytes = *bytes;
        }
        Event::SegmentFinished {
            decode_ms,
            encode_ms,
            ..
        } => end(AttemptOutcome::Finished {
            decode_ms: *decode_ms,
            encode_ms: *encode_ms,
        }),
        Event::SegmentCancelled { .. } => end(AttemptOutcome::Cancelled),
        Event::SegmentFailed { .. } => end(AttemptOutcome::Failed),
        Event::SnapshotDropped {
            attempt_over: true, ..
        } => end(AttemptOutcome::Failed),
        Event::Fault { .. } => end(AttemptOutcome::WorkerLost),
        Event::SegmentTakenBack { .. } => end(AttemptOutcome::TakenBack),
        _ => {}
    }
}

/// Returns the segment and the attempt that an event belongs to.
pub(super) fn attempt_of(event: &Event) -> Option<(u32, u32)> {
    match event {
        Event::SegmentQueued {
            segment_idx,
            attempt,
            ..
        }
        | Event::SegmentStarted {
            segment_idx,
            attempt,
            ..
        }
        | Event::SnapshotDropped {
            segment_idx,
            attempt,
            ..
        }
        | Event::Step {
            segment_idx,
            attempt,
            ..
        }
        | Event::FirstByte {
            segment_idx,
            attempt,
            ..
        }
        | Event::SegmentFinished {
            segment_idx,
            attempt,
            ..
        }
        | Event::LastByte {
            segment_idx,
            attempt,
            ..
        }
        | Event::SegmentCancelled {
            segment_idx,
            attempt,
        }
        | Event::MediaVoid {
            segment_idx,
            attempt,
        }
        | Event::SegmentFailed {
            segment_idx,
            attempt,
            ..
        }
        | Event::SegmentTakenBack {
            segment_idx,
            attempt,
            ..
        }
        | Event::Fault {
            segment_idx,
            attempt,
            ..
        } => Some((*segment_idx, *attempt)),
        _ => None,
    }
}
