//! The states of a worker, and the restart policy: exponential backoff and quarantine.

use std::time::Duration;

use serde::Serialize;

use super::exit::{ExitKind, WorkerExit};
use crate::backoff::Backoff;

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
    /// or until no worker has served for a while.
    Quarantined,
}

impl WorkerState {
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

/// The policy that decides when a worker that exited unasked is started again.
#[derive(Debug)]
pub(super) struct RestartPolicy {
    /// The pauses after consecutive exits.
    backoff: Backoff,
    /// The pauses after exits that do not count, because the job is the suspect.
    first_pause: Backoff,
    quarantine_after: u32,
    /// The exits since the last finished job.
    exits_in_a_row: u32,
}

/// The decision about a worker that exited unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestartDecision {
    RestartAfter(Duration),
    /// The worker is not started until an operator asks for it, or until no worker has served for a while.
    Quarantine,
    /// The worker is not started until an operator asks for it, since waiting does not fix the cause.
    QuarantineForGood,
}

impl RestartDecision {
    pub(super) fn quarantines(self) -> bool {
        matches!(self, Self::Quarantine | Self::QuarantineForGood)
    }
}

impl RestartPolicy {
    /// Creates the policy. The pauses grow from `min_backoff` to `max_backoff` with jitter, so that workers that exited
    /// together do not all restart together. `quarantine_after` consecutive exits quarantine the worker.
    pub(super) fn new(min_backoff: Duration, max_backoff: Duration, quarantine_after: u32) -> Self {
        let backoff = || Backoff::new(min_backoff, max_backoff).with_jitter();
        Self {
            backoff: backoff(),
            first_pause: backoff(),
            quarantine_after,
            exits_in_a_row: 0,
        }
    }

    /// Forgives the exits so far, after real work.
    pub(super) fn job_finished(&mut self) {
        self.forgive();
    }

    /// Decides what follows an exit; nothing when it was asked for.
    pub(super) fn decide(&mut self, exit: &WorkerExit) -> Option<RestartDecision> {
        if exit.kind == ExitKind::Asked {
            return None;
        }
        if exit.permanent {
            self.forgive();
            return Some(RestartDecision::QuarantineForGood);
        }
        // The exit does not count: the job is the suspect.
        if exit.by_suspect_job {
            self.first_pause.reset();
            let pause = self.first_pause.next_pause();
            return Some(RestartDecision::RestartAfter(pause));
        }
        self.exits_in_a_row += 1;
        if self.exits_in_a_row >= self.quarantine_after {
            // A worker whose quarantine is over has all its tries again.
            self.forgive();
            return Some(RestartDecision::Quarantine);
        }
        let pause = self.backoff.next_pause();
        Some(RestartDecision::RestartAfter(pause))
    }

    fn forgive(&mut self) {
        self.exits_in_a_row = 0;
        self.backoff.reset();
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

    fn exit(kind: ExitKind) -> WorkerExit {
        WorkerExit::new(kind, "for a reason")
    }

    #[test]
    fn pauses_double_up_to_the_ceiling_and_reset_with_real_work() {
        let ms = Duration::from_millis;
        let mut policy = RestartPolicy::new(ms(500), ms(3000), 6);
        let check = |policy: &mut RestartPolicy, exit: &WorkerExit, least: u64, most: u64| {
            let Some(RestartDecision::RestartAfter(pause)) = policy.decide(exit) else {
                panic!("{exit:?}");
            };
            assert!((ms(least)..=ms(most)).contains(&pause), "{pause:?}");
        };
        let crash = exit(ExitKind::Crashed);
        for (least, most) in [(500, 1000), (1000, 2000), (2000, 3000), (3000, 3000)] {
            check(&mut policy, &crash, least, most);
        }
        policy.job_finished();
        check(&mut policy, &crash, 500, 1000);
    }

    #[test]
    fn exits_in_a_row_quarantine_a_worker() {
        let ms = Duration::from_millis;
        let mut policy = RestartPolicy::new(ms(1), ms(1), 3);
        for kind in [ExitKind::Crashed, ExitKind::Stuck] {
            let decision = policy.decide(&exit(kind));
            assert_eq!(decision, Some(RestartDecision::RestartAfter(ms(1))));
        }
        let decision = policy.decide(&exit(ExitKind::Boot));
        assert_eq!(decision, Some(RestartDecision::Quarantine));
        // It has all its tries again.
        let decision = policy.decide(&exit(ExitKind::BadLink));
        assert_eq!(decision, Some(RestartDecision::RestartAfter(ms(1))));
    }

    #[test]
    fn an_exit_that_was_asked_for_or_that_a_suspect_job_caused_does_not_count() {
        let ms = Duration::from_millis;
        let mut policy = RestartPolicy::new(ms(1), ms(1), 2);
        let suspect = WorkerExit {
            by_suspect_job: true,
            ..exit(ExitKind::Crashed)
        };
        for _ in 0..10 {
            assert_eq!(policy.decide(&exit(ExitKind::Asked)), None);
            let decision = policy.decide(&suspect);
            assert_eq!(decision, Some(RestartDecision::RestartAfter(ms(1))));
        }
    }

    #[test]
    fn a_worker_that_can_never_become_ready_is_quarantined_for_good() {
        let ms = Duration::from_millis;
        let mut policy = RestartPolicy::new(ms(1), ms(1), 100);
        let permanent = WorkerExit {
            permanent: true,
            ..exit(ExitKind::Boot)
        };
        let decision = policy.decide(&permanent);
        assert_eq!(decision, Some(RestartDecision::QuarantineForGood));
    }
}
