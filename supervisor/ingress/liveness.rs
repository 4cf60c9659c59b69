//! Whether the peer of a WebSocket is still there.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::{self, Message};

/// Number of times that a peer is looked at within the time in which it has to move.
const LOOKS: u32 = 8;

/// What a peer has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Number of bytes that it has sent.
    pub(crate) heard: u64,
    /// Number of bytes of messages that it has taken. Pings do not count, since the system of a peer whose program hangs
    /// takes them, too.
    pub(crate) taken: u64,
}

/// Considers a peer gone that neither sends nor takes anything. On a slow line its answers to pings wait behind media, so
/// that these alone would not tell.
#[derive(Debug)]
pub(crate) struct Liveness {
    silence: Duration,
    progress: Progress,
    /// When the progress was first seen.
    since: Instant,
    looked: Instant,
}

impl Liveness {
    /// Creates the judgement of a peer that has to make progress once in each `silence`.
    pub(crate) fn new(silence: Duration) -> Self {
        let now = Instant::now();
        Self {
            silence,
            progress: Progress::default(),
            since: now,
            looked: now,
        }
    }

    /// Waits for what comes next from the peer, of which `progress` tells. Returns `None` when nothing more will come, or
    /// the peer is gone.
    ///
    /// # Cancel safety
    /// This function is cancel safe.
    pub(crate) async fn next<S: Stream + Unpin>(
        &mut self,
        stream: &mut S,
        progress: impl Fn() -> Progress,
    ) -> Option<S::Item> {
        loop {
            tokio::select! {
                next = stream.next() => return next,
                () = sleep_until(self.next_look()) => {
                    if !self.look(progress()) {
                        tracing::debug!("the peer neither sends nor takes anything");
                        return None;
                    }
                }
            }
        }
    }

    /// Returns when to look at the peer again.
    pub(crate) fn next_look(&self) -> Instant {
        self.looked + self.silence / LOOKS
    }

    /// Looks at the peer. Returns whether it is still there.
    pub(crate) fn look(&mut self, progress: Progress) -> bool {
        let now = Instant::now();
        if progress != self.progress {
            self.progress = progress;
            self.since = now;
        }
        self.looked = now;
        now - self.since < self.silence
    }
}

/// Waits until a peer is gone of which nothing is expected. Returns whether it has closed its connection.
pub(crate) async fn until_gone(
    from: &mut (impl Stream<Item = tungstenite::Result<Message>> + Unpin),
    progress: impl Fn() -> Progress,
    silence: Duration,
) -> bool {
    let mut liveness = Liveness::new(silence);
    loop {
        match liveness.next(from, &progress).await {
            Some(Ok(Message::Close(_))) => return true,
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Watches a peer with that progress after each second; returns how long it was there, at most an hour.
    async fn watch(peer: impl Fn(u64) -> Progress) -> Duration {
        let begun = Instant::now();
        let mut liveness = Liveness::new(40 * SECOND);
        while begun.elapsed() < 3600 * SECOND {
            sleep_until(liveness.next_look()).await;
            if !liveness.look(peer(begun.elapsed().as_secs())) {
                break;
            }
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_or_sends_is_there_and_one_that_does_neither_is_gone() {
        let takes = watch(|seconds| Progress {
            taken: seconds * 150_000,
            heard: 0,
        });
        assert!(takes.await >= 3600 * SECOND);
        // It answers every other ping.
        let answers = watch(|seconds| Progress {
            taken: 0,
            heard: seconds / 39,
        });
        assert!(answers.await >= 3600 * SECOND);
        // It stops after a minute.
        let stops = watch(|seconds| Progress {
            taken: seconds.min(60) * 150_000,
            heard: seconds.min(60),
        });
        assert_eq!(stops.await, 100 * SECOND);
        assert_eq!(watch(|_| Progress::default()).await, 40 * SECOND);
    }
}
