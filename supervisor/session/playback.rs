//! Estimates how far a session's video is ahead of its viewer. A worker that several sessions share first serves the
//! one whose viewer runs out of video first.

use std::time::Duration;

use tokio::time::Instant;

/// The viewer of one session, as far as the server can know: it plays without a pause from the first media on. When it
/// has run out of video, it goes on as soon as there are media again.
#[derive(Debug, Default)]
pub(super) struct Playback {
    /// When the viewer has played all finished segments; `None` before the first.
    runs_out: Option<Instant>,
    /// When the current segment begins to play; `None` before it has media.
    begins: Option<Instant>,
}

impl Playback {
    /// Records that media of the current segment were handed out.
    pub(super) fn media_sent(&mut self, now: Instant) {
        let begins = self.runs_out.map_or(now, |runs_out| runs_out.max(now));
        self.begins.get_or_insert(begins);
    }

    /// Records that the current segment starts again, so that its media are void.
    pub(super) fn media_void(&mut self) {
        self.begins = None;
    }

    /// Records that the current segment is finished and plays for this long.
    pub(super) fn finished(&mut self, plays: Duration) {
        if let Some(begins) = self.begins.take() {
            self.runs_out = Some(begins + plays);
        }
    }

    /// Returns when the viewer runs out of video. A viewer that has seen nothing yet can wait for as long as a segment
    /// plays: if it were due at once, the current viewers would stall for it.
    pub(super) fn due(&self, now: Instant, segment: Duration) -> Instant {
        let first = now + segment;
        self.runs_out.map_or(first, |runs_out| runs_out.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a viewer sees, each with its moment in milliseconds: media, the end of a segment of one second, or a
    /// restart; and then when it is due, asked at `now`.
    #[track_caller]
    fn check(story: &[(&str, u64)], now: u64, due: u64) {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut playback = Playback::default();
        for (what, ms) in story {
            match *what {
                "media" => playback.media_sent(at(*ms)),
                "end" => playback.finished(Duration::from_secs(1)),
                "void" => playback.media_void(),
                other => panic!("{other}"),
            }
        }
        let segment = Duration::from_secs(1);
        assert_eq!(playback.due(at(now), segment), at(due), "{story:?}");
    }

    #[test]
    fn a_viewer_is_due_when_it_runs_out_of_video() {
        check(&[], 70, 1070);
        check(&[("media", 100)], 150, 1150);
        check(&[("media", 100), ("media", 180), ("end", 200)], 200, 1100);
        let two = [("media", 100), ("end", 200), ("media", 300), ("end", 400)];
        check(&two, 400, 2100);
        check(&two, 5000, 5000);
        let dry = [("media", 100), ("end", 200), ("media", 3000), ("end", 3100)];
        check(&dry, 3100, 4000);
        let again = [("media", 100), ("void", 200), ("media", 900), ("end", 950)];
        check(&again, 950, 1900);
        check(&[("end", 100)], 200, 1200);
    }
}
