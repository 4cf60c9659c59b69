//! Fault injection for tests. It is always compiled in, so that tests run the shipped code, and only
//! `generator.synthetic.faults` arms it.

use std::convert::Infallible;
use std::hint::spin_loop;
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use serde::Deserialize;

use crate::engine::EngineError;
use crate::link::EventSender;

/// One fault, injected once per worker process where all of its conditions hold. The supervisor parses it from
/// `generator.synthetic.faults`; see `supervisor/engines/synthetic/faults.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FaultSpec {
    kind: FaultKind,
    at: FaultPoint,
    /// Inject it only in the segment with this index; in any segment when absent.
    #[serde(rename = "segment")]
    segment_idx: Option<u32>,
    /// Inject it only when the prompt contains this text; for any prompt when absent.
    prompt: Option<String>,
    /// Inject it only in jobs with an attempt up to this number, so that a retry succeeds; in every attempt when
    /// absent.
    max_attempt: Option<u32>,
    /// Inject it only in the worker of this GPU; in any worker when absent.
    gpu: Option<u32>,
    /// Inject it only in the first processes of a GPU, up to this number; in every process when absent.
    max_incarnation: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FaultKind {
    /// Exit with status 3.
    Exit,
    Abort,
    /// Send SIGSTOP to the process itself.
    Stop,
    /// Compute forever without progress, while heartbeats continue.
    Spin,
    /// Take ten seconds for the step.
    Slow,
    /// Allocate 256 MiB and keep it.
    Leak,
    /// Send bytes on the link that are not an event.
    Garbage,
    /// Make the engine report an error.
    Error,
    /// Make the engine report that memory has run out.
    Oom,
    Panic,
    /// Show a black picture in place of the frame.
    Blank,
    /// Damage the next step snapshot.
    Spoil,
}

/// The point at which a fault is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FaultPoint {
    /// After the link is open, before anything is loaded.
    Boot,
    Load,
    Warmup,
    /// While the worker is ready and has no job.
    Idle,
    /// Before this denoise step, counted from 1.
    Step(u32),
    /// Before this frame, counted from 0.
    Frame(u32),
    /// After all frames, before the segment is finished.
    End,
}

/// The faults of one process. Each of them is injected once.
#[derive(Debug)]
pub(crate) struct Faults {
    armed: Vec<FaultSpec>,
    events: EventSender,
    /// Whether the next frame is to be black.
    blank: bool,
    /// Whether the next step snapshot is to be damaged.
    spoil: bool,
}

/// The job in which a fault point is reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JobContext<'a> {
    pub(crate) segment_idx: u32,
    pub(crate) attempt: u32,
    pub(crate) prompt: &'a str,
}

/// How long [`FaultKind::Slow`] takes.
const SLOW: Duration = Duration::from_secs(10);
/// The number of bytes that [`FaultKind::Leak`] leaks.
const LEAK_BYTES: usize = 256 << 20;

impl Faults {
    /// Arms the faults that are meant for this process. `incarnation` counts the processes of this GPU from 1.
    pub(crate) fn new(
        specs: &[FaultSpec],
        gpu: u32,
        incarnation: u32,
        events: EventSender,
    ) -> Self {
        let here = |spec: &&FaultSpec| {
            spec.gpu.is_none_or(|g| g == gpu)
                && spec.max_incarnation.is_none_or(|n| incarnation <= n)
        };
        Self {
            armed: specs.iter().filter(here).cloned().collect(),
            events,
            blank: false,
            spoil: false,
        }
    }

    /// Returns whether the frame whose point was reached last is to be black.
    pub(crate) fn take_blank(&mut self) -> bool {
        std::mem::take(&mut self.blank)
    }

    /// Returns whether the step snapshot that is made now is to be damaged.
    pub(crate) fn take_spoil(&mut self) -> bool {
        std::mem::take(&mut self.spoil)
    }

    /// Injects the fault that is armed for this point, if there is one. `job` is the running job.
    ///
    /// # Errors
    /// Returns the engine's error when the fault is [`FaultKind::Error`] or [`FaultKind::Oom`].
    pub(crate) fn reach(
        &mut self,
        point: FaultPoint,
        job: Option<JobContext<'_>>,
    ) -> Result<(), EngineError> {
        let hit = |spec: &FaultSpec| {
            spec.at == point
                && spec
                    .segment_idx
                    .is_none_or(|n| job.is_some_and(|job| job.segment_idx == n))
                && spec
                    .max_attempt
                    .is_none_or(|n| job.is_none_or(|job| job.attempt <= n))
                && (spec.prompt.as_deref())
                    .is_none_or(|p| job.is_some_and(|job| job.prompt.contains(p)))
        };
        match self.armed.iter().position(hit) {
            None => Ok(()),
            Some(i) => {
                let fault = self.armed.remove(i);
                tracing::warn!(kind = ?fault.kind, at = ?fault.at, "injecting a fault");
                self.inject(fault.kind)
            }
        }
    }

    fn inject(&mut self, kind: FaultKind) -> Result<(), EngineError> {
        match kind {
            FaultKind::Exit => std::process::exit(3),
            FaultKind::Abort => std::process::abort(),
            FaultKind::Stop => {
                raise(Signal::SIGSTOP).map_err(|e| EngineError::Failed(e.to_string()))
            }
            FaultKind::Spin => loop {
                spin_loop();
            },
            FaultKind::Slow => {
                let (_never, silence) = mpsc::channel::<Infallible>();
                let _ = silence.recv_timeout(SLOW);
                Ok(())
            }
            FaultKind::Leak => {
                std::mem::forget(vec![1_u8; LEAK_BYTES]);
                Ok(())
            }
            FaultKind::Garbage => {
                self.events.send_garbage();
                Ok(())
            }
            FaultKind::Error => Err(EngineError::Failed("injected error".to_owned())),
            FaultKind::Oom => Err(EngineError::OutOfMemory(
                "injected lack of memory".to_owned(),
            )),
            FaultKind::Panic => panic!("injected panic"),
            FaultKind::Blank => {
                self.blank = true;
                Ok(())
            }
            FaultKind::Spoil => {
                self.spoil = true;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(at: FaultPoint) -> FaultSpec {
        FaultSpec {
            kind: FaultKind::Error,
            at,
            segment_idx: None,
            prompt: None,
            max_attempt: None,
            gpu: None,
            max_incarnation: None,
        }
    }

    /// Checks whether a fault is injected at its point, in this job of the second process of GPU 1.
    #[track_caller]
    fn check(spec: FaultSpec, job: Option<JobContext<'_>>, hit: bool) {
        let (events, _sent) = EventSender::to_nobody();
        let at = spec.at;
        let mut faults = Faults::new(&[spec], 1, 2, events);
        assert_eq!(faults.reach(at, job).is_err(), hit);
        assert!(faults.reach(at, job).is_ok(), "once is enough");
    }

    #[test]
    fn a_fault_is_injected_where_all_its_conditions_hold() {
        let job = Some(JobContext {
            segment_idx: 3,
            attempt: 2,
            prompt: "a red fox",
        });
        let fault = || error(FaultPoint::End);
        let with = |change: fn(&mut FaultSpec)| {
            let mut fault = fault();
            change(&mut fault);
            fault
        };
        check(fault(), job, true);
        check(fault(), None, true);
        check(with(|f| f.segment_idx = Some(3)), job, true);
        check(with(|f| f.segment_idx = Some(2)), job, false);
        check(with(|f| f.segment_idx = Some(3)), None, false);
        check(with(|f| f.max_attempt = Some(2)), job, true);
        check(with(|f| f.max_attempt = Some(1)), job, false);
        check(with(|f| f.max_attempt = Some(1)), None, true);
        check(with(|f| f.prompt = Some("fox".to_owned())), job, true);
        check(with(|f| f.prompt = Some("dog".to_owned())), job, false);
        check(with(|f| f.gpu = Some(1)), job, true);
        check(with(|f| f.gpu = Some(0)), job, false);
        check(with(|f| f.max_incarnation = Some(2)), job, true);
        check(with(|f| f.max_incarnation = Some(1)), job, false);
    }

    #[test]
    fn a_fault_waits_for_its_point() {
        let (events, _sent) = EventSender::to_nobody();
        let mut faults = Faults::new(&[error(FaultPoint::Step(2))], 0, 1, events);
        assert!(faults.reach(FaultPoint::Step(1), None).is_ok());
        assert!(faults.reach(FaultPoint::Frame(2), None).is_ok());
        assert!(faults.reach(FaultPoint::Step(2), None).is_err());
    }
}
