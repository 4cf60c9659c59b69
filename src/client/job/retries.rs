//! How long a request that fails is repeated.

use std::time::Duration;

use fastvideo_supervisor_core::backoff::Backoff;

use super::server::Failure;
use crate::client::conversation::{MAX_PAUSE, MIN_PAUSE};
use crate::client::progress::Progress;

/// The attempts after failures in a row.
#[derive(Debug)]
pub(super) struct Retries<'a> {
    /// How many attempts in a row may fail; `None` when there is no limit.
    pub(super) limit: Option<u32>,
    /// How many have failed since the last success.
    failures: u32,
    /// How many were made in all.
    pub(super) made: u32,
    /// Whether a server was ever there.
    has_connected: bool,
    backoff: Backoff,
    progress: &'a Progress,
}

impl<'a> Retries<'a> {
    pub(super) fn new(limit: u32, progress: &'a Progress) -> Self {
        Self {
            limit: Some(limit),
            failures: 0,
            made: 0,
            has_connected: false,
            backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE).with_jitter(),
            progress,
        }
    }

    /// Takes note that the server has answered.
    pub(super) fn succeeded(&mut self) {
        self.has_connected = true;
        self.failures = 0;
        self.backoff.reset();
    }

    /// Waits until the request is due again, and says so.
    ///
    /// # Errors
    /// Returns the failure when the request is not to be repeated.
    pub(super) async fn pause(&mut self, failure: Failure) -> Result<(), Failure> {
        let Some(pause) = self.next_pause(&failure) else {
            return Err(failure);
        };
        let count = match self.limit {
            Some(limit) => format!(" ({} of {limit})", self.failures),
            None => String::new(),
        };
        self.progress.say(&format!(
            "{failure}; trying again in {:.1} s{count}",
            pause.as_secs_f64()
        ));
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Counts a failure, and returns the pause after it; `None` when the request is not to be repeated.
    fn next_pause(&mut self, failure: &Failure) -> Option<Duration> {
        let may_pass = match failure {
            // If no connection could be opened, the address is probably wrong.
            Failure::Unreachable { .. } => self.has_connected,
            Failure::Broke(_) | Failure::Busy { .. } => {
                self.has_connected = true;
                true
            }
            Failure::Refused(_) | Failure::Final(_) => false,
        };
        if !may_pass || self.limit.is_some_and(|limit| self.failures >= limit) {
            return None;
        }
        self.failures += 1;
        self.made += 1;
        Some(self.backoff.next_pause().max(failure.retry_after()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> Failure {
        Failure::Unreachable {
            url: "http://host".to_owned(),
            reason: "refused".to_owned(),
        }
    }

    fn broke() -> Failure {
        Failure::Broke("reset".to_owned())
    }

    #[test]
    fn a_server_that_was_never_there_is_not_waited_for() {
        let progress = Progress::on_stderr();
        let mut retries = Retries::new(5, &progress);
        assert_eq!(retries.next_pause(&unreachable()), None);
        // It was there, though it did not answer.
        assert!(retries.next_pause(&broke()).is_some());
        assert!(retries.next_pause(&unreachable()).is_some());
        assert_eq!(retries.made, 2);
    }

    #[test]
    fn a_success_begins_the_count_anew_and_without_a_limit_there_is_no_end() {
        let progress = Progress::on_stderr();
        let mut retries = Retries::new(1, &progress);
        for _ in 0..2 {
            assert!(retries.next_pause(&broke()).is_some());
            retries.succeeded();
        }
        assert!(retries.next_pause(&broke()).is_some());
        assert_eq!(retries.next_pause(&broke()), None);
        retries.limit = None;
        for _ in 0..100 {
            let pause = retries.next_pause(&unreachable());
            assert!(pause.is_some_and(|pause| pause <= MAX_PAUSE));
        }
        let wrong = Failure::Final(anyhow::anyhow!("wrong"));
        assert_eq!(retries.next_pause(&wrong), None);
    }
}
