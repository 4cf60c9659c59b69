//! What is known of a job that has not ended: its record as it is stored, and how far the segment in hand is.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::job::Stage;
use fastvideo_proto::step_snapshot::StepPoint;
use fastvideo_proto::stored_video::{StoredVideo, VideoStatus};

use super::clock::unix_ms;
use super::progress::{InHand, progress};

/// What happens to a job now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It waits for its turn or for a worker.
    Waiting,
    Generating,
    Storing,
    Done,
}

/// A job, as clients see it.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    /// The job as it is stored.
    pub(crate) video: Arc<StoredVideo>,
    pub(crate) phase: Phase,
    /// The segment that a worker has in hand.
    in_hand: InHand,
    /// The least that is told to be done: progress falls only when work was lost.
    least: u32,
    /// The number of the job's own frames that are finished. Those of the last segment may not be stored yet.
    finished_frames: u64,
    /// How many jobs run before this one; `None` unless it waits for its turn.
    pub(crate) position: Option<usize>,
}

impl Live {
    /// Returns what is known of a job that no worker has in hand.
    pub(super) fn of(video: Arc<StoredVideo>) -> Self {
        Self {
            phase: phase_of(&video),
            in_hand: InHand::default(),
            least: 0,
            finished_frames: own_frames_done(&video),
            position: None,
            video,
        }
    }

    /// Returns what is known of a job that another server runs.
    pub(super) fn elsewhere(video: Arc<StoredVideo>) -> Self {
        let phase = match video.status {
            VideoStatus::InProgress => Phase::Generating,
            _ => phase_of(&video),
        };
        Self {
            phase,
            ..Self::of(video)
        }
    }

    /// Takes the job as it is stored now.
    pub(super) fn set_stored(&mut self, video: Arc<StoredVideo>) {
        if video.status.is_end() {
            self.phase = Phase::Done;
            self.position = None;
        }
        self.finished_frames = self.finished_frames.max(own_frames_done(&video));
        self.video = video;
    }

    /// Returns whether a client sees no difference that it could wait for.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let (status, before) = (&self.video.status, &other.video.status);
        status == before && self.progress() == other.progress()
    }

    /// Returns how long the job may still take, at the pace that it has had since it was started; `None` before it has got
    /// anywhere.
    pub(crate) fn expected_rest(&self) -> Option<Duration> {
        let done = self.progress();
        let since = unix_ms().saturating_sub(self.video.started_at_ms?);
        let rest = since.saturating_mul(u64::from(99_u32.saturating_sub(done)));
        Some(Duration::from_millis(rest.checked_div(done.into())?))
    }

    /// Returns how much of the job is done, from 0 to 100. It is 100 when the video is there, and not before.
    pub(crate) fn progress(&self) -> u32 {
        if self.video.status == VideoStatus::Completed {
            return 100;
        }
        let all = self.video.plan.own_frames();
        progress(self.finished_frames, all, self.in_hand).max(self.least)
    }

    /// Takes note that a segment waits for a worker. What was done of it is lost.
    pub(super) fn wait(&mut self) {
        self.phase = Phase::Waiting;
        self.in_hand = InHand::default();
        self.least = 0;
    }

    /// Takes note that a worker has begun with a segment of so many frames, or goes on with it after a step. It takes so many
    /// denoise and refine steps, as far as it is known.
    pub(super) fn begin(&mut self, frames: u32, steps: u32, after: Option<StepPoint>) {
        self.phase = Phase::Generating;
        self.in_hand = InHand {
            frames,
            steps_done: after.map_or(0, |after| after.steps_done),
            steps,
            frames_encoded: 0,
        };
        self.least = self.progress();
    }

    /// Takes note of a step of the segment in hand. Returns whether it counts.
    pub(super) fn step_done(&mut self, stage: Stage, step: u32, total_steps: u32) -> bool {
        if stage == Stage::Decode {
            return false;
        }
        let in_hand = &mut self.in_hand;
        in_hand.steps_done = in_hand.steps_done.saturating_add(1);
        // More steps of this stage may follow than were expected.
        let left = total_steps.saturating_sub(step);
        in_hand.steps = in_hand.steps.max(in_hand.steps_done.saturating_add(left));
        self.least = self.progress();
        true
    }

    /// Takes note of how many frames of the segment in hand are encoded. All of its steps are done then.
    pub(super) fn frames_encoded(&mut self, frames: u32) {
        let in_hand = &mut self.in_hand;
        in_hand.steps_done = in_hand.steps;
        in_hand.frames_encoded = frames.min(in_hand.frames);
        self.least = self.progress();
    }

    /// Takes note that the segment in hand is finished, and is being stored.
    pub(super) fn finish(&mut self, finished_frames: u64) {
        self.phase = Phase::Storing;
        self.in_hand = InHand::default();
        self.finished_frames = finished_frames;
    }

    /// Takes note that all segments are made again.
    pub(super) fn make_again(&mut self) {
        self.finished_frames = 0;
        self.wait();
    }
}

fn own_frames_done(video: &StoredVideo) -> u64 {
    video.frames_done() - video.plan.extended_frames
}

fn phase_of(video: &StoredVideo) -> Phase {
    match video.status.is_end() {
        true => Phase::Done,
        false => Phase::Waiting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::testing::video;

    /// A job of two segments of 100 and 50 frames.
    fn live() -> Live {
        Live::of(Arc::new(video(&[100, 50])))
    }

    #[test]
    fn progress_counts_frames_and_is_100_only_at_the_end() {
        let mut live = live();
        assert_eq!(live.progress(), 0);
        live.begin(100, 8, None);
        for step in 1..=4 {
            assert!(live.step_done(Stage::Denoise, step, 8));
        }
        // 99 x 0.45 x 100 / 150.
        assert_eq!(live.progress(), 29);
        assert!(!live.step_done(Stage::Decode, 1, 5));
        live.frames_encoded(100);
        assert_eq!(live.progress(), 66);
        live.finish(100);
        assert_eq!(live.progress(), 66);
        live.begin(50, 8, None);
        live.finish(150);
        assert_eq!((live.progress(), live.phase), (99, Phase::Storing));
        let mut done = StoredVideo::clone(&live.video);
        done.status = VideoStatus::Completed;
        live.set_stored(Arc::new(done));
        assert_eq!((live.progress(), live.phase), (100, Phase::Done));
    }

    #[test]
    fn progress_does_not_fall_where_more_steps_come_than_were_expected() {
        let mut live = live();
        live.begin(100, 8, None);
        let steps = (1..=8).map(|n| (Stage::Denoise, n, 8));
        let mut last = 0;
        for (stage, step, total) in steps.chain((1..=2).map(|n| (Stage::Refine, n, 2))) {
            live.step_done(stage, step, total);
            assert!(live.progress() >= last);
            last = live.progress();
        }
        assert_eq!(last, 59);
    }

    #[test]
    fn progress_falls_to_what_is_finished_when_work_was_lost() {
        let mut live = live();
        live.begin(100, 8, None);
        live.finish(100);
        live.begin(50, 8, None);
        for step in 1..=6 {
            live.step_done(Stage::Denoise, step, 8);
        }
        assert_eq!(live.progress(), 88);
        live.wait();
        assert_eq!(live.progress(), 66);
        // It goes on from a step snapshot.
        let after = StepPoint {
            stage: Stage::Denoise,
            step: 6,
            steps_done: 6,
        };
        live.begin(50, 8, Some(after));
        assert_eq!(live.progress(), 88);
    }
}
