//! The life of a worker as a state machine, and when a dead one is started again.

use std::time::Duration;

use serde::Serialize;

/// What others see of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// The process is being started.
    Spawning,
    /// The process runs and has not opened its link yet.
    Connecting,
    Loading,
    WarmingUp,
    /// Serves sessions; no job runs.
    Ready,
    /// Serves sessions; a job runs.
    Busy,
    /// Takes no further job and will be asked to exit.
    Draining,
    /// Has left because an operator wants it away; waits to be started again.
    Drained,
    /// Has been asked to exit, and has.
    Exited,
    /// Exited unasked; will be started again.
    BackingOff,
    /// Exited unasked too often, or cannot become ready; waits for an operator, or for the time when no worker is left.
    Quarantined,
}

impl WorkerState {
    /// Takes jobs.
    pub fn serves(self) -> bool {
        matches!(self, Self::Ready | Self::Busy)
    }

    /// Has a process.
    pub fn is_alive(self) -> bool {
        !matches!(
            self,
            Self::Drained | Self::Exited | Self::BackingOff | Self::Quarantined
        )
    }
}

/// What happens to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    Spawned,
    Connected,
    Loaded,
    WarmedUp,
    JobStarted,
    JobEnded,
    DrainAsked,
    /// It was asked to, and the pool stops.
    ExitedAsked,
    /// It was asked to, and may be started again.
    ExitedDrained,
    /// It was not asked to, and will be started again.
    ExitedToRestart,
    /// It was not asked to, once too often.
    ExitedToQuarantine,
    /// The pause is over, or an operator wants it started.
    Restarted,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker that is {from:?} cannot take {transition:?}")]
pub(crate) struct InvalidTransition {
    from: WorkerState,
    transition: Transition,
}

impl WorkerState {
    /// The state after a change.
    ///
    /// # Errors
    /// When the change cannot happen in this state, which is a programming error.
    pub(crate) fn transition(self, transition: Transition) -> Result<Self, InvalidTransition> {
        use WorkerState as S;
        let next = match (self, transition) {
            (S::Spawning, Transition::Spawned) => S::Connecting,
            (S::Connecting, Transition::Connected) => S::Loading,
            // Without warm-up, loading ends in readiness.
            (S::Loading, Transition::Loaded) => S::WarmingUp,
            (S::Loading | S::WarmingUp, Transition::WarmedUp) => S::Ready,
            (S::Ready, Transition::JobStarted) => S::Busy,
            (S::Busy, Transition::JobEnded) => S::Ready,
            (S::Draining, Transition::JobEnded) => S::Draining,
            (alive, Transition::DrainAsked) if alive.is_alive() => S::Draining,
            // There is no process to wait for.
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

/// When a worker that exited unasked is started again.
#[derive(Clone, Debug)]
pub(crate) struct RestartPolicy {
    pub(crate) min_backoff: Duration,
    pub(crate) max_backoff: Duration,
    pub(crate) quarantine_after: u32,
    /// Exits since the last finished job.
    exits_in_a_row: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartDecision {
    RestartAfter(Duration),
    Quarantine,
    /// Until an operator lifts it: no time will mend what is wrong.
    QuarantineForGood,
}

impl RestartDecision {
    pub(crate) fn quarantines(self) -> bool {
        matches!(self, Self::Quarantine | Self::QuarantineForGood)
    }
}

impl RestartPolicy {
    pub(crate) fn new(min_backoff: Duration, max_backoff: Duration, quarantine_after: u32) -> Self {
        Self {
            min_backoff,
            max_backoff,
            quarantine_after,
            exits_in_a_row: 0,
        }
    }

    /// Real work was done: earlier exits are forgiven.
    pub(crate) fn job_finished(&mut self) {
        self.exits_in_a_row = 0;
    }

    /// The quarantine was lifted: the worker has all its tries again.
    pub(crate) fn lifted(&mut self) {
        self.exits_in_a_row = 0;
    }

    /// `jitter` in 0..1 spreads workers that died together over half the pause.
    pub(crate) fn exited(&mut self, jitter: f64) -> RestartDecision {
        self.exits_in_a_row += 1;
        if self.exits_in_a_row >= self.quarantine_after {
            return RestartDecision::Quarantine;
        }
        RestartDecision::RestartAfter(self.pause(jitter))
    }

    /// An exit that does not count: it was another's fault.
    pub(crate) fn exited_blameless(&self, jitter: f64) -> RestartDecision {
        RestartDecision::RestartAfter(self.pause(jitter))
    }

    fn pause(&self, jitter: f64) -> Duration {
        let doublings = self.exits_in_a_row.saturating_sub(1).min(16);
        let pause = (self.min_backoff * (1 << doublings)).min(self.max_backoff);
        pause.mul_f64(0.75 + 0.5 * jitter).min(self.max_backoff)
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
    fn a_life_goes_from_spawning_to_exited() {
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
    fn impossible_changes_are_refused() {
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

    #[test]
    fn pauses_double_up_to_the_ceiling_and_reset_with_real_work() {
        let ms = Duration::from_millis;
        let mut policy = RestartPolicy::new(ms(500), ms(3000), 5);
        let pauses: Vec<_> = (0..4).map(|_| policy.exited(0.5)).collect();
        assert_eq!(
            pauses,
            [500, 1000, 2000, 3000].map(|n| RestartDecision::RestartAfter(ms(n)))
        );
        assert_eq!(policy.exited(0.5), RestartDecision::Quarantine);
        policy.job_finished();
        for _ in 0..10 {
            let pause = policy.exited_blameless(0.5);
            assert_eq!(pause, RestartDecision::RestartAfter(ms(500)));
        }
        assert_eq!(policy.exited(0.0), RestartDecision::RestartAfter(ms(375)));
    }
}
