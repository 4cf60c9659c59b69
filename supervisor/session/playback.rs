//! Estimates how far a session's video is ahead of its viewer. A worker that several sessions share first serves the
//! one whose viewer runs out of video first.

use std::time::Duration;

use tokio::time::Instant;

use super::command::PlaybackReport;

/// The viewer of one session, as far as the server can know: it plays without a pause from the first media on. When it
/// has run out of video, it goes on as soon as there are media again. A client can say that its viewer is further
/// behind, but not that it is further ahead: nobody gains a turn by a report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Playback {
    /// When the viewer has played all finished segments; `None` before the first.
    runs_out: Option<Instant>,
    /// When the current segment begins to play; `None` before it has media.
    begins: Option<Instant>,
    /// The end of the finished segments on the session's time line.
    made: Duration,
    reported: Option<Reported>,
    /// Until when it was reported what the viewer did; `None` before it has seen anything here.
    looked: Option<Instant>,
    /// Whether it lacked video then.
    stalls: bool,
}

/// What a viewer did from one look to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Viewed {
    pub(super) played: Duration,
    /// Time without video although some was asked for.
    pub(super) stalled: Duration,
    /// Whether it had video until then.
    pub(super) is_new_stall: bool,
}

/// What the client has said last.
#[derive(Clone, Copy, Debug)]
struct Reported {
    report: PlaybackReport,
    at: Instant,
}

impl Playback {
    /// Creates the viewer of a session whose finished segments end there on its time line; the viewer may have seen
    /// all of them.
    pub(super) fn from_end(made: Duration) -> Self {
        Self {
            made,
            ..Self::default()
        }
    }

    /// Creates the viewer of a session that another server has run: it is this far behind the end of what is finished.
    pub(super) fn behind(made: Duration, lead: Option<Duration>, now: Instant) -> Self {
        Self {
            runs_out: lead.and_then(|lead| now.checked_add(lead)),
            ..Self::from_end(made)
        }
    }

    /// Returns whether the viewer has seen anything.
    pub(super) fn has_begun(&self) -> bool {
        self.runs_out.is_some() || self.reported.is_some()
    }

    /// Returns whether no media of the current segment were handed out.
    pub(super) fn awaits_media(&self) -> bool {
        self.begins.is_none()
    }

    /// Returns what the viewer did since the last look, when the oldest request that is not served was made at `asked`;
    /// `None` when it did nothing.
    pub(super) fn look(&mut self, asked: Option<Instant>, now: Instant) -> Option<Viewed> {
        let is_paused = (self.reported).is_some_and(|reported| {
            !reported.report.playing && self.made > reported.report.position
        });
        let begun = self.runs_out.is_some() || self.begins.is_some();
        let from = match self.looked.replace(now) {
            Some(from) => from,
            None if begun => now,
            None => {
                self.looked = None;
                return None;
            }
        };
        if is_paused {
            self.stalls = false;
            return None;
        }
        // It has video until `ends`, and from `again` on that of the current segment.
        let again = self.begins.unwrap_or(now).clamp(from, now);
        let ends = self.plays_until().unwrap_or(from).clamp(from, again);
        let lacks = asked.map_or(again, |asked| asked.clamp(ends, again));
        let viewed = Viewed {
            played: (ends - from) + (now - again),
            stalled: again - lacks,
            is_new_stall: lacks < again && !self.stalls,
        };
        self.stalls = lacks < again && again == now;
        (viewed.played + viewed.stalled > Duration::ZERO).then_some(viewed)
    }

    /// Returns when the viewer has played all finished segments, as far as the server knows.
    fn plays_until(&self) -> Option<Instant> {
        let reported = self.reported.filter(|reported| reported.report.playing);
        let reported = reported.and_then(|Reported { report, at }| {
            at.checked_add(self.made.saturating_sub(report.position))
        });
        self.runs_out.max(reported)
    }

    /// Records that media of the current segment were handed out.
    pub(super) fn media_sent(&mut self, now: Instant) {
        let begins = self.runs_out.map_or(now, |runs_out| runs_out.max(now));
        self.begins.get_or_insert(begins);
    }

    /// Records that the current segment starts again, so that its media are void.
    pub(super) fn media_void(&mut self) {
        self.begins = None;
    }

    /// Records that the current segment is finished, plays for this long and ends there on the session's time line.
    pub(super) fn finished(&mut self, end: Duration, plays: Duration) {
        self.made = end;
        if let Some(begins) = self.begins.take() {
            self.runs_out = Some(begins + plays);
        }
    }

    /// Records what the client says.
    pub(super) fn reported(&mut self, report: PlaybackReport, now: Instant) {
        self.reported = Some(Reported { report, at: now });
    }

    /// Returns when the viewer runs out of video. A viewer that has seen nothing yet can wait for as long as a segment
    /// plays: if it were due at once, the current viewers would stall for it.
    pub(super) fn due(&self, now: Instant, segment: Duration) -> Instant {
        match self.runs_out {
            None => now + segment,
            Some(_) => now + self.lead(now),
        }
    }

    /// Returns how far the viewer is behind the end of what is finished (its buffer, in playing time).
    pub fn lead(&self, now: Instant) -> Duration {
        let assumed = self.runs_out.map(|at| at.saturating_duration_since(now));
        let reported = self.reported.map(|Reported { report, at }| {
            let played = match report.playing {
                true => now.saturating_duration_since(at),
                false => Duration::ZERO,
            };
            self.made
                .saturating_sub(report.position.saturating_add(played))
        });
        assumed.max(reported).unwrap_or_default()
    }

    /// Returns when the viewer runs out of video; `None` when it has seen nothing yet, or is paused with video left.
    pub(super) fn lasts_until(&self, now: Instant) -> Option<Instant> {
        let runs_out = || self.falls_to(Duration::ZERO, now);
        self.has_begun().then(runs_out).flatten()
    }

    /// Returns when the lead falls to `limit`, which may have been in the past; `None` when it does not before the
    /// viewer goes on.
    pub(super) fn falls_to(&self, limit: Duration, now: Instant) -> Option<Instant> {
        let assumed = self.runs_out.and_then(|at| at.checked_sub(limit));
        let assumed = assumed.unwrap_or(now);
        let Some(Reported { report, at }) = self.reported else {
            return Some(assumed);
        };
        match self.made.saturating_sub(report.position).checked_sub(limit) {
            None | Some(Duration::ZERO) => Some(assumed),
            Some(beyond) => report.playing.then(|| assumed.max(at + beyond)),
        }
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
                "end" => playback.finished(Duration::ZERO, Duration::from_secs(1)),
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

    /// A viewer of ten finished seconds, of which the first came at `start`.
    fn ten_seconds(start: Instant) -> Playback {
        let mut playback = Playback::default();
        playback.media_sent(start);
        let ten = Duration::from_secs(10);
        playback.finished(ten, ten);
        playback
    }

    #[test]
    fn a_lead_falls_while_the_viewer_plays() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let s = Duration::from_secs;
        let assumed = ten_seconds(start);
        assert_eq!(assumed.lead(at(4)), s(6));
        assert_eq!(assumed.lead(at(40)), s(0));
        assert_eq!(assumed.falls_to(s(3), at(4)), Some(at(7)));
        assert_eq!(Playback::default().falls_to(s(3), at(4)), Some(at(4)));

        // At 5 s it has played 2 s.
        let report = |playing| {
            let mut playback = assumed;
            let report = PlaybackReport {
                position: s(2),
                playing,
            };
            playback.reported(report, at(5));
            playback
        };
        let behind = report(true);
        assert_eq!((behind.lead(at(5)), behind.lead(at(9))), (s(8), s(4)));
        assert_eq!(behind.falls_to(s(3), at(5)), Some(at(10)));
        assert_eq!(behind.due(at(6), s(1)), at(13));
        let paused = report(false);
        assert_eq!((paused.lead(at(5)), paused.lead(at(900))), (s(8), s(8)));
        assert_eq!(paused.falls_to(s(3), at(5)), None);
        assert_eq!(paused.falls_to(s(8), at(5)), Some(at(2)));
    }

    #[test]
    fn a_viewer_runs_out_of_video_unless_it_has_not_begun_or_is_paused() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let s = Duration::from_secs;
        assert_eq!(Playback::default().lasts_until(at(4)), None);
        let mut playback = ten_seconds(start);
        for now in [4, 40] {
            assert_eq!(playback.lasts_until(at(now)), Some(at(10)));
        }
        // At 5 s it has played 2 s.
        for (playing, until) in [(true, Some(at(13))), (false, None)] {
            let report = PlaybackReport {
                position: s(2),
                playing,
            };
            playback.reported(report, at(5));
            assert_eq!(playback.lasts_until(at(6)), until);
        }
        // Paused at the end of what there is.
        let report = PlaybackReport {
            position: s(10),
            playing: false,
        };
        playback.reported(report, at(12));
        assert_eq!(playback.lasts_until(at(12)), Some(at(10)));
    }

    #[test]
    fn a_viewer_stalls_while_it_lacks_what_was_asked_for() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let viewed = |played, stalled, is_new_stall| {
            Some(Viewed {
                played: Duration::from_millis(played),
                stalled: Duration::from_millis(stalled),
                is_new_stall,
            })
        };
        let second = Duration::from_secs(1);
        let mut viewer = Playback::default();
        // Nobody stalls before the first media.
        assert_eq!(viewer.look(Some(at(0)), at(500)), None);
        viewer.media_sent(at(500));
        assert_eq!(viewer.look(None, at(600)), None);
        viewer.finished(second, second);
        // Its video ends at 1500; at 2000 it asks, and at 2600 media come.
        assert_eq!(
            viewer.look(Some(at(2000)), at(2200)),
            viewed(900, 200, true)
        );
        assert_eq!(viewer.look(Some(at(2000)), at(2600)), viewed(0, 400, false));
        viewer.media_sent(at(2600));
        assert_eq!(viewer.look(None, at(2700)), viewed(100, 0, false));
        viewer.finished(2 * second, second);
        // While nobody asks it does not stall.
        assert_eq!(viewer.look(None, at(5000)), viewed(900, 0, false));
        assert_eq!(viewer.look(Some(at(5500)), at(6000)), viewed(0, 500, true));
    }

    #[test]
    fn a_viewer_that_is_paused_neither_plays_nor_stalls() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut viewer = ten_seconds(start);
        assert_eq!(viewer.look(None, at(1)), None);
        let paused = PlaybackReport {
            position: Duration::from_secs(2),
            playing: false,
        };
        assert!(viewer.look(None, at(2)).is_some());
        viewer.reported(paused, at(2));
        assert_eq!(viewer.look(Some(at(3)), at(60)), None);
        viewer.reported(
            PlaybackReport {
                playing: true,
                ..paused
            },
            at(60),
        );
        let viewed = viewer.look(Some(at(3)), at(70)).unwrap();
        assert_eq!((viewed.played.as_secs(), viewed.stalled.as_secs()), (8, 2));
    }

    #[test]
    fn nobody_gains_a_turn_by_a_report() {
        let start = Instant::now();
        let mut playback = ten_seconds(start);
        let report = PlaybackReport {
            position: Duration::from_secs(3600),
            playing: true,
        };
        playback.reported(report, start);
        assert_eq!(playback.lead(start), Duration::from_secs(10));
        assert_eq!(
            playback.due(start, Duration::ZERO),
            start + Duration::from_secs(10)
        );
    }
}
