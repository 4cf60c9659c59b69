//! A circuit breaker for one provider. It is pure: the caller passes the time in.
//!
//! The circuit is *closed* while the provider is well. After too many failures in a row it *opens*, and no call goes
//! through for a rest period. Then it is *half-open*: a single probe call decides whether it closes or opens again. Apart
//! from that, a provider that asks for a pause (`Retry-After`) is not called before the pause is over.

use std::time::Duration;

use tokio::time::Instant;

/// When the circuit opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The number of failures in a row that opens the circuit.
    pub failures: u32,
    /// The time that an open circuit waits before it lets a probe call through.
    pub rest: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Failures since the last success.
    failures: u32,
    /// When an open circuit becomes half-open; `None` while the circuit is closed.
    open_until: Option<Instant>,
    /// Whether the probe call of a half-open circuit is running.
    is_probing: bool,
    /// The end of the pause that the provider has asked for.
    retry_at: Option<Instant>,
}

/// Why the breaker rejects a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// The circuit is open, or half-open with its probe call running.
    Open,
    /// The provider has asked not to be called before this moment.
    RetryAt(Instant),
}

/// The state of a circuit, as `/status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    Closed,
    Open,
    /// One probe call finds out whether the provider is well again.
    HalfOpen,
    /// The circuit is closed, and the provider has asked for a pause.
    RateLimited,
}

impl Breaker {
    /// Asks for permission to make one call. A caller that gets it must report how the call went, by one of the four
    /// methods below.
    pub(super) fn try_acquire(&mut self, now: Instant) -> Result<(), Rejection> {
        let state = self.state(now);
        if state == CircuitState::Open || (state == CircuitState::HalfOpen && self.is_probing) {
            return Err(Rejection::Open);
        }
        if let Some(retry_at) = self.retry_at.filter(|retry_at| *retry_at > now) {
            return Err(Rejection::RetryAt(retry_at));
        }
        self.is_probing = state == CircuitState::HalfOpen;
        Ok(())
    }

    /// Reports a success, which closes the circuit.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Reports a failure, which opens the circuit when it is one too many.
    pub(super) fn failed(&mut self, config: Config, now: Instant) {
        self.is_probing = false;
        self.failures = self.failures.saturating_add(1);
        if self.failures >= config.failures {
            self.open_until = Some(now + config.rest);
        }
    }

    /// Reports a call that says nothing about the provider: it was cancelled, or its request could not be answered.
    pub(super) fn abandoned(&mut self) {
        self.is_probing = false;
    }

    /// Reports that the provider asks not to be called before `retry_at`.
    pub(super) fn rate_limited(&mut self, retry_at: Instant) {
        self.is_probing = false;
        self.retry_at = Some(retry_at);
    }

    pub(super) fn state(&self, now: Instant) -> CircuitState {
        match (self.open_until, self.retry_at) {
            (Some(until), _) if until > now => CircuitState::Open,
            (Some(_), _) => CircuitState::HalfOpen,
            (None, Some(retry_at)) if retry_at > now => CircuitState::RateLimited,
            (None, _) => CircuitState::Closed,
        }
    }

    /// Returns the number of failures since the last success.
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
    fn opens_after_failures_in_a_row_and_lets_one_probe_through_when_half_open() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::default();
        breaker.failed(CONFIG, start);
        breaker.succeeded();
        breaker.failed(CONFIG, start);
        assert_eq!(breaker.try_acquire(start), Ok(()), "one in a row");
        breaker.failed(CONFIG, start);
        assert_eq!(breaker.state(at(29)), CircuitState::Open);
        assert_eq!(breaker.try_acquire(at(29)), Err(Rejection::Open));
        assert_eq!(breaker.state(at(30)), CircuitState::HalfOpen);
        assert_eq!(breaker.try_acquire(at(30)), Ok(()));
        assert_eq!(
            breaker.try_acquire(at(30)),
            Err(Rejection::Open),
            "one probe"
        );
        breaker.failed(CONFIG, at(31));
        assert_eq!(breaker.try_acquire(at(60)), Err(Rejection::Open));
        assert_eq!(breaker.try_acquire(at(61)), Ok(()));
        breaker.abandoned();
        assert_eq!(
            breaker.try_acquire(at(61)),
            Ok(()),
            "no probe runs any more"
        );
        breaker.succeeded();
        assert_eq!(breaker.state(at(61)), CircuitState::Closed);
        assert_eq!(breaker.try_acquire(at(61)), Ok(()));
    }

    #[test]
    fn no_call_goes_through_before_the_pause_is_over_that_the_provider_has_asked_for() {
        let start = Instant::now();
        let retry_at = start + Duration::from_secs(3);
        let mut breaker = Breaker::default();
        breaker.rate_limited(retry_at);
        assert_eq!(
            breaker.try_acquire(start),
            Err(Rejection::RetryAt(retry_at))
        );
        assert_eq!(breaker.state(start), CircuitState::RateLimited);
        assert_eq!(breaker.try_acquire(retry_at), Ok(()));
    }
}
