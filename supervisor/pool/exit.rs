//! How worker processes end: the report for operators and the facts for the restart policy.

use std::time::{Duration, SystemTime};

use serde::Serialize;

/// How a worker's last process ended, for operators.
#[derive(Clone, Debug)]
pub struct ExitReport {
    pub kind: ExitKind,
    pub reason: String,
    /// Whether the next process would fail in the same way.
    pub permanent: bool,
    /// The time from the start of the process to its end.
    pub uptime: Duration,
    pub at: SystemTime,
}

/// The kind of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitKind {
    /// The process was asked to exit.
    Asked,
    /// The process exited by itself, or something other than the supervisor killed it.
    Crashed,
    /// The process made no progress and was killed.
    Stuck,
    /// The process could not be started, or said that it cannot become ready.
    Boot,
    /// The process violated the link's protocol and was killed.
    BadLink,
    /// The host had no descriptor, process, thread or memory left for the worker, which is not to blame.
    Shortage,
}

impl ExitKind {
    pub(super) const ALL: [Self; 6] = [
        Self::Asked,
        Self::Crashed,
        Self::Stuck,
        Self::Boot,
        Self::BadLink,
        Self::Shortage,
    ];

    /// Returns the kind's name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Crashed => "crashed",
            Self::Stuck => "stuck",
            Self::Boot => "boot",
            Self::BadLink => "bad_link",
            Self::Shortage => "shortage",
        }
    }
}

/// Who is to blame for an exit that nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// No job ran.
    Worker,
    /// A job ran that had not ended a worker before: either may be to blame.
    WorkerOrJob,
    /// A job ran that had already ended a worker.
    Job,
}

/// The end of a process, for the restart policy.
#[derive(Debug)]
pub(super) struct WorkerExit {
    pub(super) kind: ExitKind,
    pub(super) reason: String,
    pub(super) blame: Blame,
    /// Whether the next process would fail in the same way.
    pub(super) permanent: bool,
}

impl WorkerExit {
    pub(super) fn new(kind: ExitKind, reason: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
            blame: Blame::Worker,
            permanent: false,
        }
    }

    /// Creates the report on a process that ran for `uptime` and has just ended.
    pub(super) fn report(self, uptime: Duration) -> ExitReport {
        ExitReport {
            kind: self.kind,
            reason: self.reason,
            permanent: self.permanent,
            uptime,
            at: SystemTime::now(),
        }
    }
}
