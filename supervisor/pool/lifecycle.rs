//! The states of a worker.

use serde::Serialize;

/// The state of a worker, as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// The process is being started.
    Spawning,
    /// The process runs and has not opened its link yet.
    Connecting,
    /// The process loads its model.
    Loading,
    /// The process generates the warm-up segments.
    WarmingUp,
    /// The worker serves sessions; no job runs.
    Ready,
    /// The worker serves sessions; a job runs.
    Busy,
    /// The worker takes no further job, and the process will be asked to exit.
    Draining,
    /// The process has exited because an operator wanted it to; no other is started until an operator wants one.
    Drained,
    /// The process was asked to exit because the pool stops, and has exited.
    Exited,
    /// The process exited unasked; another will be started after a pause.
    BackingOff,
    /// The process exited unasked too often, or cannot become ready. No other is started until an operator asks for it,
    /// or the quarantine ends by itself.
    Quarantined,
}

impl WorkerState {
    pub(super) const ALL: [Self; 11] = [
        Self::Spawning,
        Self::Connecting,
        Self::Loading,
        Self::WarmingUp,
        Self::Ready,
        Self::Busy,
        Self::Draining,
        Self::Drained,
        Self::Exited,
        Self::BackingOff,
        Self::Quarantined,
    ];

    /// Returns the state's name in metrics, which is that of `/status`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Spawning => "spawning",
            Self::Connecting => "connecting",
            Self::Loading => "loading",
            Self::WarmingUp => "warming_up",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Exited => "exited",
            Self::BackingOff => "backing_off",
            Self::Quarantined => "quarantined",
        }
    }

    /// Returns whether the worker takes jobs.
    pub fn serves(self) -> bool {
        matches!(self, Self::Ready | Self::Busy)
    }

    /// Returns whether the worker has a process or is about to have one.
    pub fn is_alive(self) -> bool {
        !matches!(
            self,
            Self::Drained | Self::Exited | Self::BackingOff | Self::Quarantined
        )
    }
}

/// An event that changes the state of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    Spawned,
    Connected,
    Loaded,
    WarmedUp,
    JobStarted,
    JobEnded,
    DrainAsked,
    /// The process has exited as it was asked to, and the pool stops.
    ExitedAsked,
    /// The process has exited as it was asked to, and another may be started.
    ExitedDrained,
    /// The process has exited unasked, and another will be started.
    ExitedToRestart,
    /// The process has exited unasked, and no other will be started.
    ExitedToQuarantine,
    /// The pause is over, or an operator asked for the worker to be started.
    Restarted,
}

/// A transition that does not exist in the current state.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker that is {from:?} cannot take {transition:?}")]
pub(super) struct InvalidTransition {
    from: WorkerState,
    transition: Transition,
}

impl WorkerState {
    /// Returns the state after a transition.
    ///
    /// # Errors
    /// Returns an error when the transition does not exist in this state, which is a programming error.
    pub(super) fn transition(self, transition: Transition) -> Result<Self, InvalidTransition> {
        use WorkerState as S;
        let next = match (self, transition) {
            (S::Spawning, Transition::Spawned) => S::Connecting,
            (S::Connecting, Transition::Connected) => S::Loading,
            // Without warm-up, a process is ready as soon as it has loaded.
            (S::Loading, Transition::Loaded) => S::WarmingUp,
            (S::Loading | S::WarmingUp, Transition::WarmedUp) => S::Ready,
            (S::Ready, Transition::JobStarted) => S::Busy,
            (S::Busy, Transition::JobEnded) => S::Ready,
            (S::Draining, Transition::JobEnded) => S::Draining,
            (alive, Transition::DrainAsked) if alive.is_alive() => S::Draining,
            // There is no process whose exit has to be awaited.
            (S::Drained | S::BackingOff | S::Quarantined, Transition::DrainAsked) => S::Drained,
            (S::Draining, Transition::ExitedDrained) => S::Drained,
            (alive, Transition::ExitedAsked) if alive.is_alive() => S::Exited,
            (S::Drained | S::BackingOff | S::Quarantined, Transition::ExitedAsked) => S::Exited,
            (alive, Transition::ExitedToRestart) if alive.is_alive() => S::BackingOff,
            (alive, Transition::ExitedToQuarantine) if alive.is_alive() => S::Quarantined,
            (S::Drained | S::BackingOff | S::Quarantined, Transition::Restarted) => S::Spawning,
            (from, transition) => return Err(InvalidTransition { from, transition }),
        };
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(from: WorkerState, changes: &[Transition], to: Option<WorkerState>) {
        let got = changes.iter().try_fold(from, |s, &c| s.transition(c)).ok();
        assert_eq!(got, to, "{from:?} after {changes:?}");
    }

    #[test]
    fn a_worker_goes_from_spawning_to_exited() {
        use Transition::*;
        use WorkerState as S;
        let boot = [Spawned, Connected, Loaded, WarmedUp];
        check(S::Spawning, &boot, Some(S::Ready));
        check(S::Spawning, &[Spawned, Connected, WarmedUp], Some(S::Ready));
        check(S::Ready, &[JobStarted, JobEnded, JobStarted], Some(S::Busy));
        check(
            S::Busy,
            &[DrainAsked, JobEnded, ExitedAsked],
            Some(S::Exited),
        );
        check(S::Busy, &[ExitedToRestart, Restarted], Some(S::Spawning));
        check(
            S::Loading,
            &[ExitedToQuarantine, Restarted],
            Some(S::Spawning),
        );
        check(S::Quarantined, &[ExitedAsked], Some(S::Exited));
    }

    #[test]
    fn a_drained_worker_waits_until_it_is_started_again() {
        use Transition::*;
        use WorkerState as S;
        let leave = [DrainAsked, JobEnded, ExitedDrained];
        check(S::Busy, &leave, Some(S::Drained));
        check(S::Loading, &[DrainAsked, ExitedDrained], Some(S::Drained));
        check(S::Quarantined, &[DrainAsked], Some(S::Drained));
        check(S::BackingOff, &[DrainAsked], Some(S::Drained));
        check(
            S::Busy,
            &[DrainAsked, ExitedToRestart, DrainAsked],
            Some(S::Drained),
        );
        check(S::Drained, &[Restarted], Some(S::Spawning));
        check(S::Drained, &[ExitedAsked], Some(S::Exited));
    }

    #[test]
    fn impossible_transitions_are_refused() {
        use Transition::*;
        use WorkerState as S;
        check(S::Spawning, &[JobStarted], None);
        check(S::Busy, &[JobStarted], None);
        check(S::Exited, &[Restarted], None);
        check(S::BackingOff, &[ExitedToRestart], None);
        check(S::Draining, &[JobStarted], None);
        check(S::Draining, &[Restarted], None);
        check(S::Drained, &[JobStarted], None);
        check(S::Busy, &[ExitedDrained], None);
    }
}
