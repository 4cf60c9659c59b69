//! The restart policy of one GPU: exponential backoff, and quarantine as a circuit breaker.
//!
//! Exits without a finished job between them are counted. An exit during a job makes the worker and the job suspects: it
//! counts, until the same job ends the worker of another GPU too; then the job is to blame, and neither exit counts.
//!
//! Too many exits quarantine the worker (the breaker is open). When the last of them came during a job, the worker is
//! tried again after a while (half-open): one more exit quarantines it again, a finished job forgives everything. A
//! worker that does not even get as far as a job is not tried again by itself while others serve.

use std::time::Duration;

use super::config::Config;
use super::exit::{Blame, ExitKind, WorkerExit};
use crate::backoff::Backoff;

/// The policy that decides when a worker that exited unasked is started again.
#[derive(Debug)]
pub(super) struct RestartPolicy {
    limits: RestartLimits,
    /// The exits since the last finished job that count.
    exits_in_a_row: u32,
    /// The pauses after the exits in a row.
    backoff: Backoff,
    /// The pause after an exit that does not count.
    first_pause: Backoff,
    /// The pauses between attempts to start a process for which the host has no room.
    shortage: Backoff,
    /// Whether the host had no room the last time.
    is_short: bool,
}

/// The configured limits of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RestartLimits {
    /// The first pause after an exit. The pauses have jitter, so that workers that exited together do not all restart
    /// together.
    pub(super) min_backoff: Duration,
    pub(super) max_backoff: Duration,
    /// The number of consecutive exits that quarantine the worker.
    pub(super) quarantine_after: u32,
    /// The time after which a worker that exited during jobs is tried again.
    pub(super) quarantine_trial: Duration,
}

/// The decision about a worker that exited unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestartDecision {
    RestartAfter(Duration),
    /// The host has no room for the worker, which is tried again after the pause.
    WaitForHost {
        pause: Duration,
        /// Whether the host had no room the last time either.
        again: bool,
    },
    /// The worker is not started until an operator asks for it, until no worker has served for a while, or until it is
    /// time for a trial.
    Quarantine {
        trial: Option<Duration>,
    },
    /// The worker is not started until an operator asks for it, since waiting does not fix the cause.
    QuarantineForGood,
}

impl RestartLimits {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            min_backoff: config.min_backoff,
            max_backoff: config.max_backoff,
            quarantine_after: config.quarantine_after,
            quarantine_trial: config.quarantine_trial,
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.min_backoff, self.max_backoff).with_jitter()
    }
}

impl RestartDecision {
    pub(super) fn quarantines(self) -> bool {
        matches!(self, Self::Quarantine { .. } | Self::QuarantineForGood)
    }
}

impl RestartPolicy {
    pub(super) fn new(limits: RestartLimits) -> Self {
        Self {
            limits,
            exits_in_a_row: 0,
            backoff: limits.backoff(),
            first_pause: limits.backoff(),
            shortage: limits.backoff(),
            is_short: false,
        }
    }

    /// Changes the limits. The exits so far count on.
    pub(super) fn set_limits(&mut self, limits: RestartLimits) {
        if limits != self.limits {
            *self = Self {
                exits_in_a_row: self.exits_in_a_row,
                is_short: self.is_short,
                ..Self::new(limits)
            };
            self.set_exits_in_a_row(self.exits_in_a_row);
        }
    }

    /// Records that a process has become ready: the host had room for it.
    pub(super) fn became_ready(&mut self) {
        self.is_short = false;
        self.shortage.reset();
    }

    /// Records real work, after which the exits so far are forgiven.
    pub(super) fn job_finished(&mut self) {
        self.forgive_all();
    }

    /// Forgives all exits so far: the worker has all its tries again.
    pub(super) fn forgive_all(&mut self) {
        self.exits_in_a_row = 0;
        self.backoff.reset();
    }

    /// Forgives some of the exits in a row, which turned out to be the fault of jobs.
    pub(super) fn forgive(&mut self, exits: u32) {
        self.set_exits_in_a_row(self.exits_in_a_row.saturating_sub(exits));
    }

    /// Begins a trial: the next exit quarantines the worker again.
    pub(super) fn begin_trial(&mut self) {
        self.set_exits_in_a_row(self.limits.quarantine_after.saturating_sub(1));
    }

    /// Decides what follows an exit; nothing when it was asked for.
    pub(super) fn decide(&mut self, exit: &WorkerExit) -> Option<RestartDecision> {
        match exit.kind {
            ExitKind::Asked => {
                self.forgive_all();
                return None;
            }
            ExitKind::Shortage => {
                return Some(RestartDecision::WaitForHost {
                    pause: self.shortage.next_pause(),
                    again: std::mem::replace(&mut self.is_short, true),
                });
            }
            ExitKind::Crashed | ExitKind::Stuck | ExitKind::Boot | ExitKind::BadLink => {}
        }
        if exit.permanent {
            self.forgive_all();
            return Some(RestartDecision::QuarantineForGood);
        }
        if exit.blame == Blame::Job {
            self.first_pause.reset();
            let pause = self.first_pause.next_pause();
            return Some(RestartDecision::RestartAfter(pause));
        }
        self.exits_in_a_row += 1;
        if self.exits_in_a_row >= self.limits.quarantine_after {
            let trial = self.limits.quarantine_trial;
            return Some(RestartDecision::Quarantine {
                trial: (exit.blame == Blame::WorkerOrJob).then_some(trial),
            });
        }
        let pause = self.backoff.next_pause();
        Some(RestartDecision::RestartAfter(pause))
    }

    /// Sets the number of exits, and the next pause with it.
    fn set_exits_in_a_row(&mut self, exits: u32) {
        self.exits_in_a_row = exits;
        self.backoff.reset();
        for _ in 0..exits {
            self.backoff.next_pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIAL: Duration = Duration::from_secs(30);

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn policy(min_backoff: u64, max_backoff: u64, quarantine_after: u32) -> RestartPolicy {
        RestartPolicy::new(RestartLimits {
            min_backoff: ms(min_backoff),
            max_backoff: ms(max_backoff),
            quarantine_after,
            quarantine_trial: TRIAL,
        })
    }

    fn exit(kind: ExitKind) -> WorkerExit {
        WorkerExit::new(kind, "for a reason")
    }

    fn blamed(blame: Blame) -> WorkerExit {
        WorkerExit {
            blame,
            ..exit(ExitKind::Crashed)
        }
    }

    /// The decision after an exit, where each pause is one millisecond.
    fn restart() -> Option<RestartDecision> {
        Some(RestartDecision::RestartAfter(ms(1)))
    }

    fn quarantine(trial: Option<Duration>) -> Option<RestartDecision> {
        Some(RestartDecision::Quarantine { trial })
    }

    #[track_caller]
    fn check_pause(policy: &mut RestartPolicy, exit: &WorkerExit, least: u64, most: u64) {
        let Some(RestartDecision::RestartAfter(pause)) = policy.decide(exit) else {
            panic!("{exit:?}");
        };
        assert!((ms(least)..=ms(most)).contains(&pause), "{pause:?}");
    }

    #[test]
    fn pauses_double_up_to_the_ceiling_and_reset_with_real_work() {
        let mut policy = policy(500, 3000, 6);
        let crash = exit(ExitKind::Crashed);
        for (least, most) in [(500, 1000), (1000, 2000), (2000, 3000), (3000, 3000)] {
            check_pause(&mut policy, &crash, least, most);
        }
        policy.job_finished();
        check_pause(&mut policy, &crash, 500, 1000);
    }

    #[test]
    fn other_limits_count_the_exits_so_far() {
        let mut policy = policy(500, 500, 6);
        let crash = exit(ExitKind::Crashed);
        for _ in 0..2 {
            check_pause(&mut policy, &crash, 500, 500);
        }
        let mut limits = policy.limits;
        limits.min_backoff = ms(10);
        limits.max_backoff = ms(1000);
        policy.set_limits(limits);
        // It is the third pause in a row.
        check_pause(&mut policy, &crash, 40, 80);
        limits.quarantine_after = 4;
        policy.set_limits(limits);
        assert_eq!(policy.decide(&crash), quarantine(None));
    }

    #[test]
    fn exits_in_a_row_quarantine_a_worker() {
        let mut policy = policy(1, 1, 3);
        for kind in [ExitKind::Crashed, ExitKind::Stuck] {
            assert_eq!(policy.decide(&exit(kind)), restart());
        }
        assert_eq!(policy.decide(&exit(ExitKind::Boot)), quarantine(None));
        policy.forgive_all();
        assert_eq!(policy.decide(&exit(ExitKind::BadLink)), restart());
    }

    #[test]
    fn an_exit_that_a_job_is_to_blame_for_does_not_count() {
        let mut policy = policy(1, 1, 2);
        for _ in 0..10 {
            assert_eq!(policy.decide(&blamed(Blame::Job)), restart());
        }
        assert_eq!(policy.decide(&blamed(Blame::Worker)), restart());
    }

    #[test]
    fn an_exit_that_was_asked_for_forgives_those_before() {
        let mut policy = policy(1, 1, 2);
        for _ in 0..10 {
            assert_eq!(policy.decide(&exit(ExitKind::Crashed)), restart());
            assert_eq!(policy.decide(&exit(ExitKind::Asked)), None);
        }
    }

    #[test]
    fn an_exit_that_a_job_turned_out_to_be_to_blame_for_is_forgiven() {
        let mut policy = policy(500, 60_000, 3);
        for _ in 0..10 {
            check_pause(&mut policy, &blamed(Blame::WorkerOrJob), 500, 1000);
            policy.forgive(1);
        }
        check_pause(&mut policy, &blamed(Blame::WorkerOrJob), 500, 1000);
        check_pause(&mut policy, &blamed(Blame::WorkerOrJob), 1000, 2000);
        // The last of them quarantines it, and is then forgiven.
        let decision = policy.decide(&blamed(Blame::WorkerOrJob));
        assert_eq!(decision, quarantine(Some(TRIAL)));
        policy.forgive(1);
        assert_eq!(
            policy.decide(&blamed(Blame::WorkerOrJob)),
            quarantine(Some(TRIAL))
        );
        policy.forgive(100);
        check_pause(&mut policy, &blamed(Blame::WorkerOrJob), 500, 1000);
    }

    #[test]
    fn a_worker_that_exits_during_jobs_is_tried_again_once() {
        let mut policy = policy(1, 1, 3);
        for _ in 0..2 {
            assert_eq!(policy.decide(&blamed(Blame::WorkerOrJob)), restart());
        }
        for _ in 0..3 {
            let decision = policy.decide(&blamed(Blame::WorkerOrJob));
            assert_eq!(decision, quarantine(Some(TRIAL)));
            policy.begin_trial();
        }
        policy.job_finished();
        assert_eq!(policy.decide(&blamed(Blame::WorkerOrJob)), restart());
        // One that does not get as far as a job is not tried again.
        policy.begin_trial();
        assert_eq!(policy.decide(&exit(ExitKind::Boot)), quarantine(None));
    }

    #[test]
    fn a_shortage_of_the_host_does_not_count_and_is_told_once() {
        let mut policy = policy(1, 1, 1);
        let mut decide = |kind| policy.decide(&exit(kind));
        let wait = |again| {
            let pause = ms(1);
            Some(RestartDecision::WaitForHost { pause, again })
        };
        assert_eq!(decide(ExitKind::Shortage), wait(false));
        for _ in 0..10 {
            assert_eq!(decide(ExitKind::Shortage), wait(true));
        }
        policy.became_ready();
        let decision = policy.decide(&exit(ExitKind::Shortage));
        assert_eq!(decision, wait(false));
    }

    #[test]
    fn a_worker_that_can_never_become_ready_is_quarantined_for_good() {
        let mut policy = policy(1, 1, 100);
        let permanent = WorkerExit {
            permanent: true,
            ..exit(ExitKind::Boot)
        };
        let decision = policy.decide(&permanent);
        assert_eq!(decision, Some(RestartDecision::QuarantineForGood));
    }
}
