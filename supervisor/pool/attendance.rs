//! Notices when the supervisor itself has stood still: a paused virtual machine, a frozen container, a starved host.
//!
//! What a worker says in that time is read only afterwards, so its silence proves nothing. A loop that judges silence
//! therefore has to turn often. When a turn comes late, the loop starts all its deadlines afresh.

use std::time::Duration;

use tokio::time::Instant;

/// The number of turns within the time limit that a loop judges by.
const TURNS_PER_LIMIT: u32 = 10;
/// The number of turns after which a turn counts as late.
const LATE_TURNS: u32 = 3;
/// The shortest time between two turns.
const MIN_PERIOD: Duration = Duration::from_millis(10);

/// The turns of a loop that judges silence.
#[derive(Debug)]
pub(super) struct Attendance {
    /// The longest time between two turns.
    period: Duration,
    last_turn: Instant,
}

impl Attendance {
    /// Starts now. `limit` is the shortest silence that the loop judges.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            period: (limit / TURNS_PER_LIMIT).max(MIN_PERIOD),
            last_turn: Instant::now(),
        }
    }

    /// Changes the shortest silence that the loop judges.
    pub(super) fn judge_by(&mut self, limit: Duration) {
        self.period = (limit / TURNS_PER_LIMIT).max(MIN_PERIOD);
    }

    /// Returns when the loop has to turn again at the latest.
    pub(super) fn next_turn(&self) -> Instant {
        self.last_turn + self.period
    }

    /// Records a turn of the loop. Returns how long the supervisor was absent, if the turn comes late.
    pub(super) fn turn(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let pause = now - std::mem::replace(&mut self.last_turn, now);
        (pause > self.period * LATE_TURNS).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_turns_in_time_is_present() {
        let mut attendance = Attendance::new(LIMIT);
        for _ in 0..100 {
            sleep_until(attendance.next_turn()).await;
            assert_eq!(attendance.turn(), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_comes_late_tells_of_the_absence_once() {
        let mut attendance = Attendance::new(LIMIT);
        advance(LIMIT / 5).await;
        assert_eq!(attendance.turn(), None);
        advance(LIMIT).await;
        assert_eq!(attendance.turn(), Some(LIMIT));
        assert_eq!(attendance.turn(), None);
    }
}
