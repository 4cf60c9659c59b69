//! A session's log as it was read, and its segments put together.

use std::collections::HashMap;

use fastvideo_proto::job::Stage;
use fastvideo_supervisor_core::session::SessionState;
use fastvideo_supervisor_core::session::log::{Line, Llm, LogEvent as Event};
use serde::Deserialize;
use serde_json::Value;

/// What is known of a session. Times are seconds since its first line.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) session_id: String,
    /// Of the first line, Unix time.
    pub(super) begun_unix: f64,
    /// Of the last line, but never 0.
    pub(super) length: f64,
    pub(super) entries: Vec<Entry>,
    /// Every attempt at every segment, in order.
    pub(super) attempts: Vec<Attempt>,
    /// Lines that are no events, a torn one at the end included.
    pub(super) skipped: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) at: f64,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Known(Event),
    /// Of another version.
    Unknown {
        event: String,
        payload: Value,
    },
}

/// One attempt at one segment.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempt {
    pub(super) segment_idx: u32,
    pub(super) attempt: u32,
    pub(super) prompt: String,
    /// What a model took to write the prompt.
    pub(super) llm_ms: Option<f64>,
    /// When it was asked for; a later attempt: when it was tried again.
    pub(super) asked: f64,
    /// When its prompt was there: later where a model had to write it first.
    pub(super) ready: f64,
    /// When a worker was given the job.
    pub(super) started: Option<f64>,
    pub(super) steps: Vec<Step>,
    /// When it ended in the worker, one way or another.
    pub(super) ended: Option<f64>,
    pub(super) outcome: Outcome,
    pub(super) first_byte: Option<f64>,
    pub(super) last_byte: Option<f64>,
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) stage: Stage,
    pub(super) step: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Outcome {
    /// The log ends before.
    #[default]
    Open,
    Finished {
        decode_ms: f64,
        encode_ms: f64,
    },
    Cancelled,
    Failed,
    Lost,
    TakenBack,
}

impl Attempt {
    /// From its prompt to its start, in milliseconds.
    pub(super) fn queue_ms(&self) -> Option<f64> {
        Some((self.started? - self.ready) * 1e3)
    }

    pub(super) fn denoise_ms(&self) -> f64 {
        let sampling = self.steps.iter().filter(|step| step.stage != Stage::Decode);
        sampling.map(|step| (step.to - step.from) * 1e3).sum()
    }

    pub(super) fn since_asked_ms(&self, at: Option<f64>) -> Option<f64> {
        Some((at? - self.asked) * 1e3)
    }

    /// When the last that is known of it happened.
    pub(super) fn end(&self) -> f64 {
        let step = self.steps.last().map(|step| step.to);
        [self.started, step, self.ended, self.last_byte]
            .into_iter()
            .flatten()
            .fold(self.asked, f64::max)
    }
}

/// A line of any version.
#[derive(Deserialize)]
struct AnyLine {
    session_id: String,
    ts: f64,
    event: String,
    #[serde(default)]
    payload: Value,
}

impl History {
    /// Reads a file of the session log; none when no line of it is an event.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut lines = Vec::new();
        let mut skipped = 0;
        for line in bytes.split(|&byte| byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            match serde_json::from_slice::<AnyLine>(line) {
                Ok(any) => {
                    let what = match serde_json::from_slice::<Line>(line) {
                        Ok(line) => What::Known(line.event),
                        Err(_) => What::Unknown {
                            event: any.event,
                            payload: any.payload,
                        },
                    };
                    lines.push((any.session_id, any.ts, what));
                }
                Err(_) => skipped += 1,
            }
        }
        let (session_id, begun_unix, _) = lines.first()?;
        let (session_id, begun_unix) = (session_id.clone(), *begun_unix);
        let entry = |(_, ts, what)| Entry {
            at: f64::max(ts - begun_unix, 0.0),
            what,
        };
        let entries: Vec<Entry> = lines.into_iter().map(entry).collect();
        Some(Self {
            session_id,
            begun_unix,
            length: entries.iter().map(|entry| entry.at).fold(1e-3, f64::max),
            attempts: attempts(&entries),
            entries,
            skipped,
        })
    }

    pub(super) fn known(&self) -> impl Iterator<Item = (f64, &Event)> {
        self.entries.iter().filter_map(|entry| match &entry.what {
            What::Known(event) => Some((entry.at, event)),
            What::Unknown { .. } => None,
        })
    }

    /// The states of the session, each with its beginning and its end.
    pub(super) fn states(&self) -> Vec<(f64, f64, SessionState)> {
        let changes = self.known().filter_map(|(at, event)| match event {
            Event::State { to, .. } => Some((at, *to)),
            _ => None,
        });
        spans(changes, self.length)
    }

    /// What models have written, each with the time that it took.
    pub(super) fn written(&self) -> impl Iterator<Item = (f64, f64, &Llm, &str)> {
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

    /// The workers that the session had, each with its beginning and its end.
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

/// What begins at each change and lasts to the next.
fn spans<T>(changes: impl IntoIterator<Item = (f64, T)>, end: f64) -> Vec<(f64, f64, T)> {
    let mut spans: Vec<(f64, f64, T)> = Vec::new();
    for (at, what) in changes {
        if let Some(last) = spans.last_mut() {
            last.1 = at;
        }
        spans.push((at, end, what));
    }
    spans
}

fn attempts(entries: &[Entry]) -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = Vec::new();
    // When a prompt was written, and what that took.
    let mut written: HashMap<&str, (f64, f64)> = HashMap::new();
    for Entry { at, what } in entries {
        let at = *at;
        let What::Known(event) = what else { continue };
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
            let asked = match attempt {
                1 => f64::max(at - waited_ms / 1e3, 0.0),
                _ => at,
            };
            // A second attempt has its prompt already.
            let written = written.get(prompt.as_str()).filter(|_| *attempt == 1);
            attempts.push(Attempt {
                segment_idx: *segment_idx,
                attempt: *attempt,
                prompt: prompt.clone(),
                llm_ms: written.map(|(_, latency_ms)| *latency_ms),
                asked,
                ready: written.map_or(asked, |(there, _)| asked.max(*there)),
                ..Attempt::default()
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

fn add(attempt: &mut Attempt, at: f64, event: &Event) {
    let mut end = |outcome| {
        attempt.ended = Some(at);
        attempt.outcome = outcome;
    };
    match event {
        Event::SegmentStarted { .. } => attempt.started = Some(at),
        Event::Step {
            stage, step, ms, ..
        } => attempt.steps.push(Step {
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
        } => end(Outcome::Finished {
            decode_ms: *decode_ms,
            encode_ms: *encode_ms,
        }),
        Event::SegmentCancelled { .. } => end(Outcome::Cancelled),
        Event::SegmentFailed { .. } => end(Outcome::Failed),
        Event::Fault { .. } => end(Outcome::Lost),
        Event::SegmentTakenBack { .. } => end(Outcome::TakenBack),
        _ => {}
    }
}

/// The attempt that an event belongs to.
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
