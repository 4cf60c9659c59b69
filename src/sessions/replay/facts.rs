//! What happened in a session, as far as a replay repeats it: the same facts from a log and from a conversation.

use std::fmt::{self, Display};

use fastvideo_proto::job::{ErrorCode, Stage};
use fastvideo_supervisor_core::session::SessionState;
use fastvideo_supervisor_core::session::log::LogEvent as Event;

use crate::sessions::text::wire_name;

/// Something that happened, without times, ids and the names of workers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fact {
    Queued {
        segment: u32,
        attempt: u32,
    },
    Started {
        segment: u32,
    },
    Step {
        segment: u32,
        stage: Stage,
        step: u32,
    },
    Finished {
        segment: u32,
        sha256: String,
    },
    Cancelled {
        segment: u32,
    },
    Failed {
        segment: u32,
        code: ErrorCode,
    },
    /// The worker was lost with the segment.
    Lost {
        segment: u32,
    },
    Void {
        segment: u32,
    },
    State(SessionState),
    Assigned,
    Handoff,
    Closed {
        cause: String,
        segments: u32,
    },
}

/// What of a session's faults is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Faults {
    /// Faults, and what follows from them until the segment has ended, are left out.
    LeftOut,
    /// Attempts, handoffs and states are compared.
    Repeated,
}

impl Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queued {
                segment,
                attempt: 1,
            } => write!(f, "segment {segment} queued"),
            Self::Queued { segment, attempt } => {
                write!(f, "segment {segment} queued again ({attempt})")
            }
            Self::Started { segment } => write!(f, "segment {segment} started"),
            Self::Step {
                segment,
                stage,
                step,
            } => write!(f, "segment {segment} {} {step}", wire_name(stage)),
            Self::Finished { segment, .. } => write!(f, "segment {segment} finished"),
            Self::Cancelled { segment } => write!(f, "segment {segment} cancelled"),
            Self::Failed { segment, code } => {
                write!(f, "segment {segment} failed ({})", wire_name(code))
            }
            Self::Lost { segment } => write!(f, "segment {segment} lost with its worker"),
            Self::Void { segment } => {
                write!(f, "segment {segment} given other media, from its start")
            }
            Self::State(state) => f.write_str(&wire_name(state)),
            Self::Assigned => f.write_str("worker assigned"),
            Self::Handoff => f.write_str("handed to another worker"),
            Self::Closed { cause, segments } => {
                write!(f, "closed ({cause}) with {segments} segments")
            }
        }
    }
}

/// Collects facts in order. It leaves out what is chance: how far an attempt got that did not finish, and where the session
/// waited for a worker.
#[derive(Debug)]
pub(super) struct Facts {
    faults: Faults,
    facts: Vec<Fact>,
    run: Option<OpenRun>,
    /// The steps of the attempts before the current one, while that has none of its own.
    carried: Vec<Fact>,
    /// Where the first fact of each run is, and whether the run has ended.
    runs: Vec<(usize, bool)>,
}

/// The segment that is being generated, over all its attempts.
#[derive(Clone, Copy, Debug)]
struct OpenRun {
    segment: u32,
    /// Where the first fact of the current attempt is.
    attempt: usize,
    /// Whether the current attempt ended as if it had not been.
    is_undone: bool,
}

impl Facts {
    pub(super) fn new(faults: Faults) -> Self {
        Self {
            faults,
            facts: Vec::new(),
            run: None,
            carried: Vec::new(),
            runs: Vec::new(),
        }
    }

    pub(super) fn of_log<'a>(faults: Faults, events: impl Iterator<Item = &'a Event>) -> Self {
        let mut facts = Self::new(faults);
        for event in events {
            facts.read(event);
        }
        facts
    }

    /// Returns the facts in order.
    pub(super) fn in_order(&self) -> &[Fact] {
        &self.facts
    }

    /// Returns the number of the last run if that has not ended.
    pub(super) fn open_run(&self) -> Option<usize> {
        let (_, ended) = self.runs.last()?;
        (!ended).then(|| self.runs.len() - 1)
    }

    /// Leaves out the run of this number and what follows it, the close included.
    pub(super) fn end_before(&mut self, run: usize) {
        if let Some((first, _)) = self.runs.get(run) {
            self.facts.truncate(*first);
        }
        self.leave_close_out();
    }

    pub(super) fn leave_close_out(&mut self) {
        self.facts
            .retain(|fact| !matches!(fact, Fact::Closed { .. }));
    }

    fn read(&mut self, event: &Event) {
        let repeats = self.faults == Faults::Repeated;
        match event {
            Event::Opened { resumed: true, .. } => {
                // It goes on as if its connection had not been lost.
                self.leave_close_out();
                if self.run.take().is_some()
                    && let Some((first, _)) = self.runs.pop()
                {
                    self.facts.truncate(first);
                }
            }
            Event::SegmentQueued {
                segment_idx,
                attempt,
                ..
            } => self.queued(*segment_idx, *attempt),
            Event::SegmentStarted { segment_idx, .. } if repeats => {
                self.facts.push(Fact::Started {
                    segment: *segment_idx,
                });
            }
            Event::Step {
                segment_idx,
                stage,
                step,
                ..
            } => self.step_of_attempt(Fact::Step {
                segment: *segment_idx,
                stage: *stage,
                step: *step,
            }),
            Event::SegmentFinished {
                segment_idx,
                sha256,
                ..
            } => self.finished(*segment_idx, sha256.clone().unwrap_or_default()),
            Event::SegmentCancelled { segment_idx, .. } => self.ended(Fact::Cancelled {
                segment: *segment_idx,
            }),
            Event::SegmentFailed {
                segment_idx, code, ..
            } => self.ended(Fact::Failed {
                segment: *segment_idx,
                code: *code,
            }),
            Event::SegmentTakenBack { .. } => self.undo(),
            Event::Fault { started: false, .. } => self.undo(),
            Event::SnapshotDropped {
                attempt_over: true, ..
            } => self.undo(),
            Event::Fault { segment_idx, .. } => {
                self.carry_steps();
                if repeats {
                    self.facts.push(Fact::Lost {
                        segment: *segment_idx,
                    });
                }
            }
            Event::MediaVoid { segment_idx, .. } if repeats => self.facts.push(Fact::Void {
                segment: *segment_idx,
            }),
            Event::State { to, .. } => {
                if matches!(to, SessionState::GpuBinding | SessionState::Active) {
                    self.placed(Fact::State(*to));
                }
            }
            Event::Assigned { .. } => self.placed(Fact::Assigned),
            Event::Handoff { .. } => self.placed(Fact::Handoff),
            Event::Closed {
                cause, segments, ..
            } => self.facts.push(Fact::Closed {
                cause: cause.clone().into_owned(),
                segments: *segments,
            }),
            _ => {}
        }
    }

    /// An attempt was queued. In a conversation it is the first one, or one that voids those before.
    pub(super) fn queued(&mut self, segment: u32, attempt: u32) {
        let again = self.run.filter(|run| run.segment == segment);
        match again {
            Some(run) if self.faults == Faults::LeftOut || run.is_undone => {
                self.facts.truncate(run.attempt);
            }
            Some(_) => {}
            None => self.runs.push((self.facts.len(), false)),
        }
        self.run = Some(OpenRun {
            segment,
            attempt: self.facts.len(),
            is_undone: false,
        });
        let attempt = match self.faults {
            Faults::LeftOut => 1,
            Faults::Repeated => attempt,
        };
        self.facts.push(Fact::Queued { segment, attempt });
    }

    pub(super) fn step(&mut self, segment: u32, stage: Stage, step: u32) {
        self.facts.push(Fact::Step {
            segment,
            stage,
            step,
        });
    }

    pub(super) fn finished(&mut self, segment: u32, sha256: String) {
        self.facts.push(Fact::Finished { segment, sha256 });
        self.end_run();
    }

    /// The run ended without a segment.
    pub(super) fn ended(&mut self, how: Fact) {
        self.drop_steps();
        self.facts.push(how);
        self.end_run();
    }

    pub(super) fn closed(&mut self, cause: &str, segments: u32) {
        self.facts.push(Fact::Closed {
            cause: cause.to_owned(),
            segments,
        });
    }

    /// A step of an attempt. The first one of an attempt that goes on from a snapshot follows those that were done before.
    fn step_of_attempt(&mut self, step: Fact) {
        let before = std::mem::take(&mut self.carried);
        let before = before.into_iter().take_while(|carried| *carried != step);
        self.facts.extend(before);
        self.facts.push(step);
    }

    fn end_run(&mut self) {
        self.run = None;
        self.carried.clear();
        if let Some((_, ended)) = self.runs.last_mut() {
            *ended = true;
        }
    }

    /// The attempt did not reach a worker, or was taken back from one: another one follows elsewhere.
    fn undo(&mut self) {
        self.carry_steps();
        if let Some(run) = &mut self.run {
            self.facts.truncate(run.attempt);
            run.is_undone = true;
        }
    }

    /// Where the session is, unless that follows from an attempt that is left out.
    fn placed(&mut self, fact: Fact) {
        let is_undone = self.run.is_some_and(|run| run.is_undone);
        if self.faults == Faults::Repeated && !is_undone {
            self.facts.push(fact);
        }
    }

    /// Takes the steps out of an attempt that is over. The next one may go on from one of them.
    fn carry_steps(&mut self) {
        let steps = self.drop_steps();
        if !steps.is_empty() {
            self.carried = steps;
        }
    }

    fn drop_steps(&mut self) -> Vec<Fact> {
        let Some(run) = self.run else {
            return Vec::new();
        };
        let attempt = self.facts.split_off(run.attempt);
        let (steps, kept) =
            (attempt.into_iter()).partition(|fact| matches!(fact, Fact::Step { .. }));
        self.facts.extend::<Vec<_>>(kept);
        steps
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(event: &str, payload: Value) -> Event {
        serde_json::from_value(json!({"event": event, "payload": payload})).unwrap()
    }

    fn queued(segment: u32, attempt: u32) -> Event {
        event(
            "segment_queued",
            json!({"segment_idx": segment, "attempt": attempt, "worker_id": "gpu0-1", "source": "user", "prompt": "p", "waited_ms": 1.0}),
        )
    }

    fn step(segment: u32, attempt: u32, step: u32) -> Event {
        event(
            "step",
            json!({"segment_idx": segment, "attempt": attempt, "stage": "denoise", "step": step, "total_steps": 2, "ms": 1.0}),
        )
    }

    fn finished(segment: u32, attempt: u32) -> Event {
        event(
            "segment_finished",
            json!({"segment_idx": segment, "attempt": attempt, "frames": 8, "generation_ms": 1.0, "decode_ms": 1.0, "encode_ms": 1.0, "sha256": "ab"}),
        )
    }

    fn fault(segment: u32, attempt: u32, started: bool) -> Event {
        event(
            "fault",
            json!({"segment_idx": segment, "attempt": attempt, "worker_id": "gpu0-1", "started": started, "reason": "r"}),
        )
    }

    fn state(from: &str, to: &str) -> Event {
        event("state", json!({"from": from, "to": to}))
    }

    fn check(faults: Faults, events: &[Event], expected: &[&str]) {
        let facts = Facts::of_log(faults, events.iter());
        let told: Vec<String> = facts.in_order().iter().map(Fact::to_string).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn faults_are_told_or_left_out_with_what_follows_from_them() {
        let events = [
            state("INITIALIZING", "QUEUED"),
            state("QUEUED", "GPU_BINDING"),
            state("GPU_BINDING", "ACTIVE"),
            queued(0, 1),
            step(0, 1, 1),
            fault(0, 1, true),
            state("ACTIVE", "GPU_BINDING"),
            event("handoff", json!({"from": "gpu0-1", "to": "gpu1-1"})),
            state("GPU_BINDING", "ACTIVE"),
            queued(0, 2),
            step(0, 2, 1),
            finished(0, 2),
        ];
        check(
            Faults::LeftOut,
            &events,
            &[
                "segment 0 queued",
                "segment 0 denoise 1",
                "segment 0 finished",
            ],
        );
        check(
            Faults::Repeated,
            &events,
            &[
                "GPU_BINDING",
                "ACTIVE",
                "segment 0 queued",
                "segment 0 lost with its worker",
                "GPU_BINDING",
                "handed to another worker",
                "ACTIVE",
                "segment 0 queued again (2)",
                "segment 0 denoise 1",
                "segment 0 finished",
            ],
        );
    }

    #[test]
    fn steps_before_a_snapshot_count_for_the_attempt_that_goes_on_from_it() {
        let back = event(
            "segment_taken_back",
            json!({"segment_idx": 0, "attempt": 3, "started": true}),
        );
        let mut events = vec![queued(0, 1)];
        events.extend([1, 2, 3].map(|n| step(0, 1, n)));
        events.extend([fault(0, 1, true), queued(0, 2), fault(0, 2, true)]);
        events.extend([queued(0, 3), step(0, 3, 3), step(0, 3, 4), back]);
        events.extend([queued(0, 4), step(0, 4, 5), finished(0, 4)]);
        let steps = (1..=5).map(|n| format!("segment 0 denoise {n}"));
        let expected: Vec<String> = std::iter::once("segment 0 queued".to_owned())
            .chain(steps)
            .chain(["segment 0 finished".to_owned()])
            .collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(Faults::LeftOut, &events, &expected);
        // One that begins with the first step has them all itself.
        let mut events = vec![queued(0, 1), step(0, 1, 1), step(0, 1, 2)];
        events.extend([
            fault(0, 1, true),
            queued(0, 2),
            step(0, 2, 1),
            step(0, 2, 2),
        ]);
        events.push(finished(0, 2));
        let expected = [
            "segment 0 queued",
            "segment 0 denoise 1",
            "segment 0 denoise 2",
            "segment 0 finished",
        ];
        check(Faults::LeftOut, &events, &expected);
    }

    #[test]
    fn an_attempt_that_reached_no_worker_is_left_out() {
        let events = [
            queued(0, 1),
            fault(0, 1, false),
            state("ACTIVE", "GPU_BINDING"),
            state("GPU_BINDING", "ACTIVE"),
            queued(0, 1),
            finished(0, 1),
        ];
        for faults in [Faults::LeftOut, Faults::Repeated] {
            check(faults, &events, &["segment 0 queued", "segment 0 finished"]);
        }
    }

    #[test]
    fn how_far_a_cancelled_segment_got_is_chance() {
        let cancelled = |steps: u32| {
            let mut events = vec![queued(3, 1)];
            events.extend((1..=steps).map(|n| step(3, 1, n)));
            let at = json!({"segment_idx": 3, "attempt": 1});
            events.push(event("segment_cancelled", at));
            events
        };
        for steps in 0..3 {
            let expected = ["segment 3 queued", "segment 3 cancelled"];
            check(Faults::Repeated, &cancelled(steps), &expected);
        }
    }

    #[test]
    fn a_segment_that_had_not_ended_is_left_out() {
        let left = json!({"cause": "gone", "state": "COMPLETE", "segments": 1});
        let events = [
            queued(0, 1),
            finished(0, 1),
            queued(1, 1),
            step(1, 1, 1),
            event("closed", left),
        ];
        let mut facts = Facts::of_log(Faults::LeftOut, events.iter());
        assert_eq!(facts.open_run(), Some(1));
        facts.end_before(1);
        assert_eq!(facts.in_order().len(), 2);
    }
}
