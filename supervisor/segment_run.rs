//! Runs one segment over all its attempts: submitted to a worker, taken back, pre-empted, lost with a worker, retried, given
//! up.
//!
//! [`SegmentRun`] is a state machine over the events of the jobs that make the segment. It does not depend on sessions
//! or any other kind of caller: the caller feeds it the events of its job ([`SegmentRun::next_event`],
//! [`SegmentRun::observe`]) and is told what happened. It sends nothing to clients and stores nothing.
//!
//! The bytes of a segment depend only on what was asked for, so another attempt repeats what the one before has given.
//! Media that were handed out are not handed out again; the caller is told only when an attempt differs.
//!
//! An attempt goes on from the newest step snapshot of those before. One that may be the reason why an attempt was lost or
//! failed is not used again: the next attempt begins with the first step.

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use fastvideo_proto::ids::WorkerId;
use fastvideo_proto::job::{JobFailure, JobTiming, MediaKind, Stage};
use fastvideo_proto::link::{Preview, VideoPictures};
use fastvideo_proto::session_link::Digest;
use fastvideo_proto::step_snapshot::StepPoint;
use tokio::time::Instant;
use tracing::Span;

pub(crate) use self::recorder::Recorder;
pub(crate) use self::replay::RepeatedMedia;
use self::replay::{Compared, Replay};
use crate::causes::with_causes;
use crate::pool::{JobEnd, JobEvent, JobHandle, Media, StartState, StepSnapshot};
use crate::store::State;

mod recorder;
mod replay;

/// One attempt at one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptId {
    pub segment_idx: u32,
    /// Counts from 1.
    pub attempt: u32,
}

/// The amount of media of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MediaCount {
    /// Number of fragments or pictures, without the init segment.
    pub chunks: u32,
    /// Number of bytes, the init segment included.
    pub bytes: u64,
}

/// A segment from its turn until it is finished, failed or cancelled.
#[derive(Debug)]
pub(crate) struct SegmentRun {
    segment_idx: u32,
    /// The number of the current attempt. It grows when an attempt has reached a worker and did not end there.
    attempt: u32,
    /// Number of worker deaths after which the segment is given up.
    max_attempts: u32,
    /// Number of workers that died while they ran the segment.
    deaths: u32,
    /// The running attempt; `None` while the segment waits for a worker.
    job: Option<JobHandle>,
    /// The step snapshot that the next attempt goes on from. A running attempt's is with its job.
    snapshot: Option<StepSnapshot>,
    /// Whether the running attempt goes on from a step snapshot.
    is_resumed: bool,
    /// Whether the running attempt has done a step or given media.
    has_progressed: bool,
    /// The worker that was lost with the last attempt.
    lost_with: Option<WorkerId>,
    cancelling: bool,
    /// The attempt's media, those that were handed out before included.
    media: MediaCount,
    replay: Replay,
    /// Whether the attempt goes on with one that another server has begun, so that both have one number.
    goes_on: bool,
    /// When the attempt last made progress.
    progressed: Instant,
    /// The span in which the events of the segment are logged.
    span: Span,
}

/// What happened to a segment.
#[derive(Debug)]
pub(crate) enum RunEvent {
    /// The job was given to a worker.
    Started {
        worker: WorkerId,
        queued_for: Duration,
        /// The step of an earlier attempt that this one goes on from.
        after: Option<StepPoint>,
    },
    Step {
        stage: Stage,
        /// 1..=`total_steps`.
        step: u32,
        total_steps: u32,
        /// Time since the step before, or since the start.
        took: Duration,
    },
    /// A picture of the segment before its media.
    Preview(Box<Preview>),
    Media {
        media: Media,
        /// Whether these are the attempt's first media.
        first: bool,
    },
    /// The attempt has repeated media that were handed out before.
    Repeated(RepeatedMedia),
    /// The attempt gives other media than were handed out before, which are void. These are the attempt's media so far.
    Differs(Vec<Media>),
    /// The segment is finished.
    Finished(Box<FinishedSegment>),
    /// The segment is over, cancelled by its caller.
    Cancelled,
    /// The segment is over without success.
    Failed(RunFailure),
    /// The step snapshot that the attempt went on from is not used any more, for this reason, which is not for clients.
    SnapshotDropped {
        reason: String,
        /// Whether the attempt is over, so that the caller has to submit the segment again. Otherwise it begins anew.
        is_over: bool,
    },
    /// The worker has to leave, or has stopped the segment for one that a viewer waits for, so the caller has to submit it
    /// again. The latter is not counted as an attempt.
    TakenBack {
        /// Whether the job was running.
        started: bool,
    },
    /// The worker was lost with the job.
    WorkerLost {
        worker: WorkerId,
        /// Whether the job had reached the worker, so that it may have killed the worker.
        started: bool,
        reason: String,
        then: AfterLoss,
    },
}

/// What becomes of the step snapshot of an attempt that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SnapshotUse {
    /// The next attempt goes on from it.
    Keep,
    /// The next attempt begins with the first step.
    Drop,
}

/// What becomes of a segment that was lost with its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterLoss {
    /// The segment has to be submitted again, to any other worker.
    RunsAgain,
    /// The segment is over, cancelled by its caller.
    Cancelled,
    /// The segment is over, because too many workers died while they ran it.
    GivenUp { deaths: u32 },
}

/// A finished segment.
#[derive(Debug)]
pub(crate) struct FinishedSegment {
    /// The state that the next segment continues from.
    pub(crate) state: State,
    pub(crate) frames: u32,
    /// Time that the generation took in the worker.
    pub(crate) generation: Duration,
    pub(crate) timing: JobTiming,
    pub(crate) media: MediaCount,
    /// A JPEG picture of the segment, as its worker made it: at most 320 pixels on its longer side, and 64 KiB.
    pub(crate) thumbnail: Option<Bytes>,
    /// The pictures of a segment of a video job.
    pub(crate) video: Option<Box<VideoPictures>>,
    /// All media of the attempt, when fewer than were handed out before, which are void then.
    pub(crate) instead: Option<Vec<Media>>,
}

/// Returns a committed state as the pool takes it for the job that continues from it.
pub(crate) fn start_from(state: &State) -> StartState {
    StartState {
        header: state.header_bytes().to_vec(),
        blob: state.blob().clone(),
        made_by: state.maker(),
    }
}

/// Why a segment is over without success. Messages are safe to show to a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RunFailure {
    /// The model cannot serve the request.
    Refused(String),
    /// The model does not take the state that the segment was to continue from.
    StateIncompatible(String),
    /// The segment takes more memory than there is.
    OutOfMemory,
    /// The engine or the encoder failed; trying again may help.
    Failed,
    /// The worker's state of the finished segment is damaged; trying again may help.
    BadState,
    /// The pool has dropped the job.
    Dropped,
}

impl SegmentRun {
    /// Creates the run of a segment, which is given up when `max_attempts` workers died while they ran it.
    pub(crate) fn new(segment_idx: u32, max_attempts: u32) -> Self {
        Self {
            segment_idx,
            attempt: 1,
            max_attempts,
            deaths: 0,
            job: None,
            snapshot: None,
            is_resumed: false,
            has_progressed: false,
            lost_with: None,
            cancelling: false,
            media: MediaCount::default(),
            replay: Replay::default(),
            goes_on: false,
            progressed: Instant::now(),
            span: tracing::info_span!("segment", segment_idx),
        }
    }

    /// Creates the run of a segment that another server has begun: it goes on with the `attempt`th attempt, of which these
    /// messages were handed out, after `deaths` deaths.
    pub(crate) fn begun_elsewhere(
        segment_idx: u32,
        max_attempts: u32,
        attempt: u32,
        deaths: u32,
        handed_out: Vec<Digest>,
    ) -> Self {
        Self {
            attempt,
            deaths,
            replay: Replay::after(handed_out),
            goes_on: true,
            ..Self::new(segment_idx, max_attempts)
        }
    }

    /// Returns how many workers were lost with the segment.
    pub(crate) fn deaths(&self) -> u32 {
        self.deaths
    }

    /// Returns whether the caller has cancelled the segment.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelling
    }

    /// Returns whether no attempt is running.
    pub(crate) fn waits_for_worker(&self) -> bool {
        self.job.is_none()
    }

    /// Returns the running attempt, or the next one.
    pub(crate) fn at(&self) -> AttemptId {
        AttemptId {
            segment_idx: self.segment_idx,
            attempt: self.attempt,
        }
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Returns whether an attempt may be submitted to this worker: none is running, and the last attempt was not lost
    /// with this worker.
    pub(crate) fn may_submit_to(&self, worker: &WorkerId) -> bool {
        self.job.is_none() && self.lost_with.as_ref() != Some(worker)
    }

    /// Submits an attempt: `submit` gives it to the pool, with the step snapshot that it goes on from.
    ///
    /// # Errors
    /// Returns the error of `submit`; the segment then waits as before.
    pub(crate) fn submit<E>(
        &mut self,
        submit: impl FnOnce(Option<StepSnapshot>) -> Result<JobHandle, E>,
    ) -> Result<(), E> {
        let _in_span = self.span.enter();
        self.job = Some(submit(self.snapshot.clone())?);
        // It is with the job from now on, which drops it as soon as there is a newer one.
        self.snapshot = None;
        self.progressed = Instant::now();
        Ok(())
    }

    /// Waits for the next event of the running attempt, to be passed to [`Self::observe`]. Never completes while none
    /// runs.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(crate) async fn next_event(&mut self) -> Option<JobEvent> {
        match &mut self.job {
            Some(job) => job.events.recv().await,
            None => pending().await,
        }
    }

    /// Cancels the segment. Returns true when this ends it at once; otherwise [`RunEvent::Cancelled`] or another end
    /// follows.
    #[must_use]
    pub(crate) fn cancel(&mut self) -> bool {
        self.cancelling = true;
        self.snapshot = None;
        match &self.job {
            Some(job) => {
                job.cancel();
                false
            }
            None => true,
        }
    }

    /// Processes the next event of the running attempt; `None` means that the pool has dropped the job.
    pub(crate) fn observe(&mut self, event: Option<JobEvent>) -> RunEvent {
        match event {
            None => RunEvent::Failed(RunFailure::Dropped),
            Some(JobEvent::Started { worker, after }) => {
                self.is_resumed = after.is_some();
                self.has_progressed = false;
                RunEvent::Started {
                    worker,
                    queued_for: self.lap(),
                    after,
                }
            }
            Some(JobEvent::SnapshotRefused { reason }) => {
                self.is_resumed = false;
                RunEvent::SnapshotDropped {
                    reason,
                    is_over: false,
                }
            }
            Some(JobEvent::Step {
                stage,
                step,
                total_steps,
            }) => {
                self.has_progressed = true;
                RunEvent::Step {
                    stage,
                    step,
                    total_steps,
                    took: self.lap(),
                }
            }
            Some(JobEvent::Preview(preview)) => RunEvent::Preview(preview),
            Some(JobEvent::Media(media)) => {
                self.has_progressed = true;
                let first = self.media.bytes == 0;
                self.media.chunks += u32::from(media.kind == MediaKind::Fragment);
                self.media.bytes += media.bytes.len() as u64;
                match self.replay.compare(media) {
                    Compared::New(media) => RunEvent::Media { media, first },
                    Compared::Repeated(repeated) => RunEvent::Repeated(repeated),
                    Compared::Differs(media) => {
                        self.differs();
                        RunEvent::Differs(media)
                    }
                }
            }
            Some(JobEvent::Ended(end)) => self.ended(end),
        }
    }

    fn ended(&mut self, end: JobEnd) -> RunEvent {
        match end {
            JobEnd::Finished {
                state: (header, blob),
                generation,
                timing,
                frames,
                thumbnail,
                video,
            } => match State::from_worker(header, blob) {
                Ok(state) => RunEvent::Finished(Box::new(FinishedSegment {
                    state: match &self.job {
                        Some(job) => state.made_by(job.id),
                        None => state,
                    },
                    frames,
                    generation,
                    timing,
                    media: self.media,
                    thumbnail,
                    video,
                    instead: self.finish_replay(),
                })),
                Err(error) => {
                    tracing::error!(error = with_causes(&error), "worker handed on a bad state");
                    RunEvent::Failed(RunFailure::BadState)
                }
            },
            JobEnd::Failed {
                failure, message, ..
            } => match failure {
                JobFailure::Cancelled => RunEvent::Cancelled,
                JobFailure::Refused => RunEvent::Failed(RunFailure::Refused(message)),
                JobFailure::StateIncompatible => {
                    RunEvent::Failed(RunFailure::StateIncompatible(message))
                }
                // Without its snapshot the segment may succeed.
                JobFailure::Failed | JobFailure::OutOfMemory
                    if self.is_resumed && !self.cancelling =>
                {
                    self.begin_again(true, SnapshotUse::Drop);
                    RunEvent::SnapshotDropped {
                        reason: message,
                        is_over: true,
                    }
                }
                JobFailure::OutOfMemory => RunEvent::Failed(RunFailure::OutOfMemory),
                JobFailure::Failed | JobFailure::StateNotHeld | JobFailure::SnapshotRefused => {
                    RunEvent::Failed(RunFailure::Failed)
                }
            },
            JobEnd::TakenBack { .. } | JobEnd::Preempted if self.cancelling => RunEvent::Cancelled,
            JobEnd::TakenBack { started } => {
                self.begin_again(started, SnapshotUse::Keep);
                RunEvent::TakenBack { started }
            }
            JobEnd::Preempted => {
                self.begin_again(false, SnapshotUse::Keep);
                RunEvent::TakenBack { started: true }
            }
            JobEnd::WorkerLost {
                worker,
                started,
                reason,
            } => {
                self.lost_with = Some(worker.clone());
                self.deaths += u32::from(started);
                let snapshot = self.snapshot_after_loss(started);
                self.begin_again(started, snapshot);
                RunEvent::WorkerLost {
                    worker,
                    started,
                    reason,
                    then: if self.cancelling {
                        AfterLoss::Cancelled
                    } else if self.deaths >= self.max_attempts {
                        AfterLoss::GivenUp {
                            deaths: self.deaths,
                        }
                    } else {
                        AfterLoss::RunsAgain
                    },
                }
            }
        }
    }

    /// Lets the segment, which has failed, be submitted again, from its first step on.
    pub(crate) fn try_again(&mut self) {
        self.begin_again(true, SnapshotUse::Drop);
    }

    fn finish_replay(&mut self) -> Option<Vec<Media>> {
        let instead = self.replay.finish();
        if instead.is_some() {
            self.differs();
        }
        instead
    }

    /// Gives the attempt a number of its own: it gives other media than the one that it was to go on with.
    fn differs(&mut self) {
        self.attempt += u32::from(std::mem::take(&mut self.goes_on));
    }

    /// Returns what becomes of the snapshot of an attempt that was lost with its worker.
    ///
    /// An attempt that went on from a snapshot and got nowhere may have died of it. One that got further has left a newer
    /// one, or at least could read its own; still the last attempt before the segment is given up uses none that comes
    /// from a snapshot, so that no segment is lost for one.
    fn snapshot_after_loss(&self, started: bool) -> SnapshotUse {
        let is_last = self.deaths + 1 >= self.max_attempts;
        match started && self.is_resumed && (!self.has_progressed || is_last) {
            true => SnapshotUse::Drop,
            false => SnapshotUse::Keep,
        }
    }

    /// Ends the attempt; the next one may run on any worker.
    fn begin_again(&mut self, started: bool, snapshot: SnapshotUse) {
        let job = self.job.take();
        self.snapshot = match snapshot {
            SnapshotUse::Keep if !self.cancelling => job.and_then(|job| job.take_snapshot()),
            _ => None,
        };
        self.is_resumed = false;
        self.has_progressed = false;
        self.goes_on &= !started;
        self.attempt += u32::from(started);
        self.media = MediaCount::default();
        self.replay.begin_attempt();
    }

    /// Returns the time since the attempt last made progress, and records that it makes progress now.
    fn lap(&mut self) -> Duration {
        let before = std::mem::replace(&mut self.progressed, Instant::now());
        self.progressed - before
    }
}

#[cfg(test)]
mod tests;
