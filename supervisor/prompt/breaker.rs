//! Whether a provider is asked at all: one that keeps failing is left alone for a while, then tried by one call, and
//! one that says when to come back is not asked before. Pure: the caller brings the time.

use std::time::Duration;

use tokio::time::Instant;

/// When a provider is left alone, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Failures in a row.
    pub failures: u32,
    pub rest: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// In a row.
    failures: u32,
    rests_until: Option<Instant>,
    /// After a rest, one call finds out whether the provider is well.
    trying: bool,
    /// As the provider has asked for.
    waits_until: Option<Instant>,
}

/// What to do with a provider now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ask,
    /// Its failures are too many.
    Rests,
    /// It has said to come back then.
    WaitsUntil(Instant),
}

/// As `/status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Ok,
    Resting,
    /// One call finds out whether it is well again.
    Trying,
    Waiting,
}

impl Breaker {
    /// Whether to ask. One that is asked must be followed by one of the methods below.
    pub(super) fn ask(&mut self, now: Instant) -> Verdict {
        match self.standing(now) {
            Standing::Resting => return Verdict::Rests,
            Standing::Trying if self.trying => return Verdict::Rests,
            Standing::Trying => self.trying = true,
            Standing::Ok | Standing::Waiting => {}
        }
        match self.waits_until {
            Some(until) if until > now => {
                self.trying = false;
                Verdict::WaitsUntil(until)
            }
            _ => Verdict::Ask,
        }
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    pub(super) fn failed(&mut self, config: Config, now: Instant) {
        self.trying = false;
        self.failures = self.failures.saturating_add(1);
        if self.failures >= config.failures {
            self.rests_until = Some(now + config.rest);
        }
    }

    /// Neither a success nor a failure: whoever asked has gone away, or asked for what cannot be answered.
    pub(super) fn left(&mut self) {
        self.trying = false;
    }

    pub(super) fn told_to_wait(&mut self, until: Instant) {
        self.trying = false;
        self.waits_until = Some(until);
    }

    pub(super) fn standing(&self, now: Instant) -> Standing {
        match (self.rests_until, self.waits_until) {
            (Some(until), _) if until > now => Standing::Resting,
            (Some(_), _) => Standing::Trying,
            (None, Some(until)) if until > now => Standing::Waiting,
            (None, _) => Standing::Ok,
        }
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Config = Config {
        failures: 2,
        rest: Duration::from_secs(30),
    };

    #[test]
    fn rests_after_failures_in_a_row_and_is_then_tried_by_one_call() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::default();
        breaker.failed(CONFIG, start);
        breaker.succeeded();
        breaker.failed(CONFIG, start);
        assert_eq!(breaker.ask(start), Verdict::Ask, "one in a row");
        breaker.failed(CONFIG, start);
        assert_eq!(breaker.ask(at(29)), Verdict::Rests);
        assert_eq!(breaker.ask(at(30)), Verdict::Ask);
        assert_eq!(breaker.ask(at(30)), Verdict::Rests, "one tries it");
        breaker.failed(CONFIG, at(31));
        assert_eq!(breaker.ask(at(60)), Verdict::Rests);
        assert_eq!(breaker.ask(at(61)), Verdict::Ask);
        breaker.left();
        assert_eq!(
            breaker.ask(at(61)),
            Verdict::Ask,
            "nobody tries it any more"
        );
        breaker.succeeded();
        assert_eq!(breaker.standing(at(61)), Standing::Ok);
        assert_eq!(breaker.ask(at(61)), Verdict::Ask);
    }

    #[test]
    fn is_not_asked_before_the_moment_that_it_has_named() {
        let start = Instant::now();
        let until = start + Duration::from_secs(3);
        let mut breaker = Breaker::default();
        breaker.told_to_wait(until);
        assert_eq!(breaker.ask(start), Verdict::WaitsUntil(until));
        assert_eq!(breaker.standing(start), Standing::Waiting);
        assert_eq!(breaker.ask(until), Verdict::Ask);
    }
}
