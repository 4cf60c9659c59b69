//! The segments of video jobs: they wait in one list for any worker, and fill the time that viewers leave.
//!
//! A video job is bound to no worker and has no seat: it counts neither as a session nor as demand. A worker is given its
//! segment when no viewer's segment waits there, and none is likely to before the video job's segment is done. A session that
//! waits in the queue need not be looked for: it waits only where no worker has room for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::{JobId, SessionId};
use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::JobSpec;
use tokio::time::Instant;

use super::{Assignments, PACE_SAMPLES, SuspectSegment, WorkerSlot};
use crate::pool::job::{JobEnd, JobEvent, QueuedJob, Signals};
use crate::pool::rolling_median::RollingMedian;

/// How long a worker begins no segment of a video job after a session was bound to it or a segment of one has ended. Most
/// clients ask again at once, and would otherwise wait for a denoise step of the video job each time.
const LIVE_GRACE: Duration = Duration::from_millis(50);
/// The number of kinds of segments of which a worker's generation times are kept.
const MAX_KINDS: usize = 8;

/// The video jobs that ask for workers, by the names that they have on the link. These sort as the ids do, so that older
/// ones come first.
#[derive(Debug, Default)]
pub(super) struct Videos(BTreeMap<SessionId, Video>);

/// A video job that asks for workers.
#[derive(Debug, Default)]
struct Video {
    /// The segment that waits for any worker.
    waiting: Option<QueuedJob>,
    /// The segment that a worker was given and that has not ended.
    running: Option<RunningSegment>,
    /// The slot of the worker that was given a segment last, and may hold the job's state.
    slot: Option<usize>,
    /// The latest segment that ran when a worker exited.
    suspect: Option<SuspectSegment>,
}

#[derive(Debug)]
struct RunningSegment {
    job: JobId,
    signals: Arc<Signals>,
}

/// The latest generation times of a worker's segments of video jobs, for the kinds that it generated last.
#[derive(Debug, Default)]
pub(super) struct VideoPaces(Vec<(SegmentKind, RollingMedian)>);

/// What the generation time of a segment depends on most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SegmentKind {
    format: VideoFormat,
    num_inference_steps: u32,
}

impl Videos {
    pub(super) fn suspect_mut(&mut self, video: &SessionId) -> Option<&mut Option<SuspectSegment>> {
        self.0.get_mut(video).map(|video| &mut video.suspect)
    }

    /// Returns whether a worker runs a segment of a video job.
    pub(super) fn run_on(&self, slot: usize) -> bool {
        let runs = |video: &Video| video.running.is_some() && video.slot == Some(slot);
        self.0.values().any(runs)
    }

    /// Returns the segments that wait for a worker, those of older jobs first.
    fn waiting(&self) -> impl Iterator<Item = (&SessionId, &QueuedJob)> {
        let videos = self.0.iter().filter(|(_, video)| video.running.is_none());
        videos.filter_map(|(id, video)| Some((id, video.waiting.as_ref()?)))
    }
}

impl VideoPaces {
    fn add(&mut self, kind: SegmentKind, took: Duration) {
        let known = self.0.iter().position(|(other, _)| *other == kind);
        let (_, mut pace) = match known {
            Some(index) => self.0.remove(index),
            None => (kind, RollingMedian::new(PACE_SAMPLES)),
        };
        pace.add(took);
        self.0.insert(0, (kind, pace));
        self.0.truncate(MAX_KINDS);
    }

    fn median(&self, kind: SegmentKind) -> Option<Duration> {
        let known = self.0.iter().find(|(other, _)| *other == kind);
        known.and_then(|(_, pace)| pace.median())
    }
}

impl SegmentKind {
    fn of(spec: &JobSpec) -> Self {
        Self {
            format: spec.format,
            num_inference_steps: spec.num_inference_steps,
        }
    }
}

impl WorkerSlot {
    /// Leaves the next moment to the worker's sessions.
    pub(super) fn expect_live_job(&mut self) {
        self.begin_no_video_for(LIVE_GRACE);
    }

    fn begin_no_video_for(&mut self, time: Duration) {
        self.videos_from = self.videos_from.max(Some(Instant::now() + time));
    }
}

impl Assignments {
    /// Adds a video job, which may submit segments from now on.
    pub(in crate::pool) fn add_video(&mut self, video: SessionId) {
        self.videos.0.entry(video).or_default();
    }

    /// Removes a video job: takes its waiting segment back, cancels its running one, and lets its worker forget its state.
    pub(in crate::pool) fn remove_video(&mut self, video: &SessionId) {
        let Some(gone) = self.videos.0.remove(video) else {
            return;
        };
        if let Some(job) = gone.waiting {
            job.tell(JobEvent::Ended(JobEnd::TakenBack { started: false }));
        }
        if let Some(running) = gone.running {
            running.signals.cancel();
        }
        if let Some(slot) = gone.slot {
            self.forget_video(slot, video);
        }
        // Workers that are reserved for video jobs may take sessions now.
        self.assign_waiting();
    }

    /// Lets a video job's segment wait for any worker, and wakes their tasks. One that the job has submitted before, and that
    /// waits, is taken back.
    pub(in crate::pool) fn submit_video_job(&mut self, job: QueuedJob) {
        let Some(video) = self.videos.0.get_mut(&job.spec.session) else {
            return job.tell(JobEvent::Ended(JobEnd::TakenBack { started: false }));
        };
        if let Some(before) = video.waiting.replace(job) {
            before.tell(JobEvent::Ended(JobEnd::TakenBack { started: false }));
        }
        self.wake_all();
    }

    /// Returns whether this segment of a video job waits for a worker.
    pub(in crate::pool) fn has_waiting_video_job(&self, job: JobId) -> bool {
        let mut waiting = self.videos.0.values().filter_map(|it| it.waiting.as_ref());
        waiting.any(|waiting| waiting.spec.job == job)
    }

    /// Ends a segment of a video job as cancelled if it waits for a worker.
    pub(in crate::pool) fn cancel_video_job(&mut self, job: JobId) {
        for video in self.videos.0.values_mut() {
            if let Some(job) = video.waiting.take_if(|waiting| waiting.spec.job == job) {
                job.tell(JobEvent::Ended(JobEnd::cancelled()));
            }
        }
    }

    /// Takes the job that a worker runs next: one of its sessions', else a segment of a video job that may run now. Where a
    /// worker is reserved for video jobs, theirs come first.
    pub(in crate::pool) fn next_job(&mut self, slot: usize, now: Instant) -> Option<QueuedJob> {
        match self.is_reserved(slot) {
            true => (self.next_video_job(slot, now)).or_else(|| self.next_live_job(slot)),
            false => (self.next_live_job(slot)).or_else(|| self.next_video_job(slot, now)),
        }
    }

    /// Gives a worker that has nothing else to do the segment of the oldest video job that may run there now.
    fn next_video_job(&mut self, slot: usize, now: Instant) -> Option<QueuedJob> {
        self.slots[slot].serving()?;
        let may_run = |job: &QueuedJob| self.held_off_until(slot, &job.spec, now).is_none();
        let oldest = self.videos.waiting().find(|(_, job)| may_run(job));
        let id = oldest?.0.clone();
        let video = self.videos.0.get_mut(&id)?;
        let job = video.waiting.take()?;
        job.signals.go_to(&self.slots[slot].notify);
        video.running = Some(RunningSegment {
            job: job.spec.job,
            signals: job.signals.clone(),
        });
        let before = video.slot.replace(slot);
        if let Some(before) = before.filter(|before| *before != slot) {
            self.forget_video(before, &id);
        }
        // The job is back before the process was told to forget it.
        self.slots[slot].to_forget.retain(|other| *other != id);
        Some(job)
    }

    /// Returns when a worker may be given a segment of a video job by the passing of time alone; `None` when none waits, or
    /// one may run now.
    pub(in crate::pool) fn videos_held_off_until(
        &self,
        slot: usize,
        now: Instant,
    ) -> Option<Instant> {
        let waiting = self.videos.waiting();
        let times = waiting.filter_map(|(_, job)| self.held_off_until(slot, &job.spec, now));
        times.min()
    }

    /// Returns until when viewers keep a worker from beginning a segment of a video job; `None` when they do not.
    fn held_off_until(&self, slot: usize, spec: &JobSpec, now: Instant) -> Option<Instant> {
        if self.is_reserved(slot) {
            return None;
        }
        let pause = self.slots[slot].videos_from.filter(|from| *from > now);
        pause.max(self.last_viewer_before_end(slot, spec, now))
    }

    /// Returns when the last of a worker's viewers runs out of video that do so before this segment would be done. Nobody
    /// waits for viewers that have run out before: they have not asked for more.
    fn last_viewer_before_end(&self, slot: usize, spec: &JobSpec, now: Instant) -> Option<Instant> {
        let ends = now.checked_add(self.video_pace(slot, spec)?)?;
        let sessions = self.slots[slot].sessions.iter();
        let viewers = sessions.filter_map(|session| {
            let session = self.sessions.get(session)?;
            let is_served = session.job.is_some();
            let is_there = session.hold.is_none();
            (session.viewer_lasts_until).filter(|_| is_there && !is_served)
        });
        viewers.filter(|at| now < *at && *at < ends).max()
    }

    /// Returns whether a job of a session waits for a worker that runs a segment of a video job, which has to make way.
    pub(in crate::pool) fn live_job_preempts(&self, slot: usize) -> bool {
        let mut jobs = self.slots[slot].jobs.iter();
        !self.is_reserved(slot) && jobs.any(|job| !job.signals.cancelled())
    }

    /// Begins the pause in which a worker is left to its viewers, after one of them has pre-empted a video job.
    pub(in crate::pool) fn yield_to_viewers(&mut self, slot: usize) {
        let pause = self.sharing.yield_pause;
        self.slots[slot].begin_no_video_for(pause);
    }

    /// Takes note of when a session's viewer runs out of video; `None`: it does not.
    pub(in crate::pool) fn set_viewer_lasts_until(
        &mut self,
        session: &SessionId,
        until: Option<Instant>,
    ) {
        let Some(entry) = self.sessions.get_mut(session) else {
            return;
        };
        entry.viewer_lasts_until = until;
        if let Some(slot) = entry.slot {
            self.slots[slot].notify.notify_one();
        }
    }

    /// Records how long a worker took to generate a segment of a video job from its first step on.
    pub(in crate::pool) fn record_video_time(
        &mut self,
        slot: usize,
        spec: &JobSpec,
        generation: Duration,
    ) {
        let paces = &mut self.slots[slot].video_paces;
        paces.add(SegmentKind::of(spec), generation);
    }

    /// Returns how long a worker's latest segments of video jobs took that were like this one.
    pub(in crate::pool) fn video_pace(&self, slot: usize, spec: &JobSpec) -> Option<Duration> {
        self.slots[slot].video_paces.median(SegmentKind::of(spec))
    }

    /// Records that a segment of a video job has ended.
    pub(super) fn video_job_ended(&mut self, video: &SessionId, job: JobId) {
        let Some(video) = self.videos.0.get_mut(video) else {
            return;
        };
        let ended = video.running.take_if(|running| running.job == job);
        if ended.is_some() && video.waiting.is_some() {
            self.wake_all();
        }
    }

    /// Records that a worker's process is gone: it runs no segment of a video job and holds no state.
    pub(super) fn process_of_videos_ended(&mut self, slot: usize) {
        for video in self.videos.0.values_mut() {
            if video.slot.take_if(|it| *it == slot).is_some() {
                video.running = None;
            }
        }
        if self.videos.waiting().next().is_some() {
            self.wake_all();
        }
    }

    /// Returns whether a worker is one of those on which video jobs come first.
    pub(super) fn is_reserved(&self, slot: usize) -> bool {
        slot + self.sharing.reserved_gpus >= self.slots.len()
    }

    /// Returns whether a worker takes no sessions because video jobs need it.
    pub(super) fn is_kept_for_videos(&self, slot: usize) -> bool {
        self.is_reserved(slot) && !self.videos.0.is_empty()
    }

    /// Makes a worker forget the state of a video job.
    fn forget_video(&mut self, slot: usize, video: &SessionId) {
        let slot = &mut self.slots[slot];
        slot.to_forget.push(video.clone());
        slot.notify.notify_one();
    }

    fn wake_all(&self) {
        for slot in &self.slots {
            slot.notify.notify_one();
        }
    }
}
