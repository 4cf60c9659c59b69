//! Tells the client how many spectators its session has.

use std::time::Duration;

use tokio::time::Instant;

use super::event::SessionEvent;
use super::live::LiveSession;

/// The shortest time between two messages.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the client knows of its spectators.
#[derive(Clone, Copy, Debug)]
pub(super) struct Audience {
    /// The number that the client was told last.
    told: usize,
    count: usize,
    /// When it may be told of another number.
    next: Instant,
}

impl Audience {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            told: 0,
            count: 0,
            next: now,
        }
    }

    /// Returns the number that the client was told last.
    pub(super) fn told(&self) -> usize {
        self.told
    }

    /// Takes note of what another server has told the client.
    pub(super) fn was_told(&mut self, count: usize) {
        self.told = count;
    }
}

impl LiveSession {
    /// Returns when the client is to be told of the number of spectators.
    pub(super) fn audience_due(&self) -> Option<Instant> {
        // A client that reads nothing needs no more of them.
        let may_tell = self.announced.is_some() && !self.client_is_full();
        (may_tell && self.audience.count != self.audience.told).then_some(self.audience.next)
    }

    pub(super) fn audience_changed(&mut self, count: usize) {
        self.audience.count = count;
    }

    /// Tells the client of the number of spectators, if it is due.
    pub(super) fn tell_audience(&mut self, now: Instant) {
        if self.audience_due().is_some_and(|due| due <= now) {
            let count = self.audience.count;
            self.audience.told = count;
            self.audience.next = now + INTERVAL;
            self.emit(SessionEvent::AudienceChanged { spectators: count });
        }
    }
}
