//! Runs one video job: makes its segments, one after the other, each from the state of the one before.
//!
//! What becomes of the job is written before it is told: [`Live`] changes when the record has. The next segment runs while
//! the one before is being stored, and is finished only after that.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use bytes::Bytes;
use fastvideo_mp4::{Kind, Layout, SegmentIndex};
use fastvideo_proto::ids::{JobId, VideoId};
use fastvideo_proto::job::{MediaKind, MediaMode, PromptSource, Stage, frames_to_time};
use fastvideo_proto::link::{EncoderSpec, JobSpec, VideoPart, VideoPictures};
use fastvideo_proto::step_snapshot::StepPoint;
use fastvideo_proto::stored::StoredSegment;
use fastvideo_proto::stored_video::{PlannedSegment, StoredVideo, VideoStatus};
use sha2::{Digest, Sha256};
use tempfile::TempPath;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::clock::unix_ms;
use super::config::Config;
use super::failure::Failure;
use super::live::Live;
use super::plan;
use super::record::{self, add_file};
use super::record_writer::{RecordWriter, Standing, Version};
use super::reports::Reports;
use crate::causes::with_causes;
use crate::init_image;
use crate::pool::{JobEvent, Media, VideoAsker};
use crate::prompt::{PreparedPrompt, Prompts};
use crate::segment_run::{
    AfterLoss, FinishedSegment, Recorder, RunEvent, RunFailure, SegmentRun, start_from,
};
use crate::session::Drain;
use crate::store::{NewBlob, State};

/// The media that may be on their way from a worker to this process, in bytes.
const WINDOW: u64 = 16 << 20;
/// Number of servers that may have had a segment in hand and ended before the job is held to be the reason.
pub(super) const MAX_STARTS: u32 = 5;

/// How the run of a job ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The job is completed or has failed, and its record says so.
    Ended,
    /// The server goes away; another one, or this one's next process, goes on with the job.
    Released,
    /// The job was deleted, or another server has taken it.
    Gone,
}

/// Why a step of a run is not followed by another one.
#[derive(Debug)]
enum Stop {
    Failed(Failure),
    Released,
    Gone,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What a job needs besides its record.
#[derive(Debug)]
pub(super) struct JobParts {
    pub(super) config: Arc<Config>,
    pub(super) encoder: EncoderSpec,
    pub(super) prompts: Prompts,
    pub(super) asker: VideoAsker,
    pub(super) drain: watch::Receiver<Drain>,
    /// Cancelled when somebody asks for the job's end.
    pub(super) cancelled: CancellationToken,
    pub(super) live: watch::Sender<Live>,
    pub(super) writer: RecordWriter,
    pub(super) reports: Reports,
}

/// What the record refers to and this process has in memory.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// The state of the last segment.
    pub(super) state: Option<State>,
    /// The tiles of the frames that are there.
    pub(super) tiles: Bytes,
    /// The initial image, a PNG file, if the first segment is not there yet.
    pub(super) image: Option<Bytes>,
}

/// A job that runs here.
#[derive(Debug)]
pub(super) struct JobRun {
    id: VideoId,
    /// The job as it is once all versions on their way are stored.
    video: StoredVideo,
    parts: JobParts,
    state: Option<State>,
    tiles: Bytes,
    image: Option<TempPath>,
    /// The version that was committed last, until it is stored.
    commit: Option<oneshot::Receiver<()>>,
}

/// The segment in hand.
#[derive(Debug)]
struct Segment {
    planned: PlannedSegment,
    run: SegmentRun,
    recorder: Recorder,
    sha256: Sha256,
    /// Number of fragments of the running attempt.
    fragments: u32,
    /// Whether the record says that the segment was begun.
    is_begun: bool,
    /// The version that says so, until it is stored.
    begun: Option<oneshot::Receiver<()>>,
}

impl JobParts {
    /// Waits until there is a reason not to go on with the segment in hand.
    async fn stopped(&mut self) -> Stop {
        tokio::select! {
            () = self.cancelled.cancelled() => Stop::Failed(Failure::cancelled()),
            standing = self.writer.changed() => match standing {
                Standing::Cancelled => Stop::Failed(Failure::cancelled()),
                Standing::Gone => Stop::Gone,
            },
            () = grace_ends(&mut self.drain) => Stop::Released,
        }
    }
}

impl JobRun {
    /// Makes the run of a job whose record this server owns.
    pub(super) fn new(id: VideoId, video: StoredVideo, parts: JobParts) -> Self {
        Self {
            id,
            video,
            parts,
            state: None,
            tiles: Bytes::new(),
            image: None,
            commit: None,
        }
    }

    /// Runs the job to its end, or until it goes on elsewhere. `loaded` is what it goes on from, or why it cannot.
    pub(super) async fn run(mut self, loaded: Result<Loaded, Failure>) -> Outcome {
        self.parts.reports.taken(&self.video);
        let ended = match self.make_all(loaded).await {
            Err(Stop::Failed(failure)) => {
                record::fail(&mut self.video, &failure, &self.parts.config);
                self.write_end().await.map(|()| Some(failure))
            }
            made => made.map(|()| None),
        };
        let reports = &self.parts.reports;
        match ended {
            Ok(failure) => {
                reports.ended(&self.video, failure.as_ref());
                Outcome::Ended
            }
            Err(Stop::Released) => {
                reports.left(false);
                Outcome::Released
            }
            Err(_) => {
                reports.left(true);
                Outcome::Gone
            }
        }
    }

    async fn make_all(&mut self, loaded: Result<Loaded, Failure>) -> Result<(), Stop> {
        let Loaded {
            state,
            tiles,
            image,
        } = loaded?;
        (self.state, self.tiles) = (state, tiles);
        if let Some(png) = image {
            self.image = Some(keep_image(png).await?);
        }
        if self.video.starts >= MAX_STARTS {
            let message = format!(
                "the job is given up: {MAX_STARTS} servers have ended in a row while they made the same segment"
            );
            return Err(Failure::internal(message).into());
        }
        self.write_prompt().await?;
        while let Some(planned) = self.next_segment() {
            if self.is_draining() {
                self.wait_for_commit().await?;
                return Err(Stop::Released);
            }
            let (finished, segment) = self.make(planned).await?;
            self.wait_for_commit().await?;
            self.commit(finished, segment)?;
        }
        self.wait_for_commit().await
    }

    /// Returns the segment that is to be made next.
    fn next_segment(&self) -> Option<PlannedSegment> {
        let done = self.video.segments_done() as usize;
        self.video.plan.segments.get(done).copied()
    }

    /// Has the prompt written out, if the client wants that and it was not done before.
    async fn write_prompt(&mut self) -> Result<(), Stop> {
        let request = &self.video.request;
        if !request.enhance_prompt || self.video.enhanced_prompt.is_some() {
            return Ok(());
        }
        let prompt = request.prompt.clone();
        let prompts = self.parts.prompts.clone();
        let prepared = tokio::select! {
            prepared = prompts.prepare(&prompt, true) => prepared,
            stop = self.parts.stopped() => return Err(stop),
        };
        let written = match prepared {
            Ok(PreparedPrompt::Enhanced(enhanced)) => enhanced.content,
            Ok(PreparedPrompt::AsWritten | PreparedPrompt::Fallback(_)) => prompt,
            Err(blocked) => return Err(Failure::blocked(&blocked).into()),
        };
        self.video.enhanced_prompt = Some(written);
        Ok(())
    }

    /// Makes a segment, however many attempts that takes.
    async fn make(&mut self, planned: PlannedSegment) -> Result<(FinishedSegment, Segment), Stop> {
        let idx = u32::try_from(self.video.film.len()).unwrap_or(u32::MAX);
        let mut segment = Segment {
            planned,
            run: SegmentRun::new(idx, self.parts.config.max_attempts),
            recorder: Recorder::default(),
            sha256: Sha256::new(),
            fragments: 0,
            is_begun: false,
            begun: None,
        };
        let mut cancelling: Option<Stop> = None;
        self.submit(&mut segment);
        loop {
            let event = tokio::select! {
                event = segment.run.next_event() => event,
                () = stored(&mut segment.begun) => {
                    self.tell();
                    continue;
                }
                () = stored(&mut self.commit) => {
                    self.tell();
                    continue;
                }
                stop = self.parts.stopped(), if cancelling.is_none() => {
                    if segment.run.cancel() {
                        return Err(stop);
                    }
                    cancelling = Some(stop);
                    continue;
                }
            };
            match self.follow(&mut segment, event)? {
                Followed::GoesOn => {}
                Followed::Finished(finished) if cancelling.is_none() => {
                    if let Some(begun) = segment.begun.take() {
                        self.wait_for(begun).await?;
                    }
                    return Ok((*finished, segment));
                }
                Followed::Again if cancelling.is_none() => self.submit(&mut segment),
                Followed::Finished(_) | Followed::Again | Followed::Cancelled => {
                    return Err(cancelling.unwrap_or(Stop::Gone));
                }
            }
        }
    }

    fn is_draining(&self) -> bool {
        *self.parts.drain.borrow() != Drain::No
    }

    /// Submits the next attempt at a segment.
    fn submit(&mut self, segment: &mut Segment) {
        let at = segment.run.at();
        let request = &self.video.request;
        let prompt = self.video.enhanced_prompt.as_ref();
        let spec = JobSpec {
            // The pool sets it.
            job: JobId(0),
            session: self.id.as_session(),
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            prompt: prompt.unwrap_or(&request.prompt).clone(),
            negative_prompt: request.negative_prompt.clone(),
            seed: seed(&self.video, at.segment_idx),
            num_inference_steps: request.num_inference_steps,
            guidance_scale: request.guidance_scale,
            adapters: Vec::new(),
            format: self.video.plan.format(segment.planned),
            media_mode: MediaMode::AvFmp4,
            start_frame: self.video.frames_done(),
            initial_image: (self.image.as_ref())
                .filter(|_| at.segment_idx == 0)
                .map(|image| image.to_path_buf()),
            // The pool sets these three.
            state: None,
            snapshot: None,
            snapshot_min_step: None,
            previews: false,
            video: Some(Box::new(self.part(segment.planned))),
            window: WINDOW,
            trace: None,
        };
        let start = self.state.as_ref().map(start_from);
        let asker = &self.parts.asker;
        let reports = &self.parts.reports;
        reports.queued(at, &self.video, &spec.prompt, spec.seed);
        let submitted: Result<(), Infallible> = segment
            .run
            .submit(|snapshot| Ok(asker.submit(spec, start, snapshot)));
        submitted.unwrap_or_else(|never| match never {});
        self.parts.live.send_modify(Live::wait);
    }

    /// Returns what is kept of a segment, and which pictures are made of it.
    fn part(&self, planned: PlannedSegment) -> VideoPart {
        let plan = &self.video.plan;
        let (start, frames) = (self.video.frames_done(), plan.frames());
        let thumbnail = std::iter::once(plan::thumbnail_frame(frames));
        let is_last = start + u64::from(planned.frames) == frames;
        VideoPart {
            width: plan.shown.0,
            height: plan.shown.1,
            frames: planned.frames,
            tiles: plan::within(plan::tile_frames(frames), start, planned).collect(),
            thumbnail: plan::within(thumbnail, start, planned).next(),
            sheet_after: is_last.then(|| self.tiles.clone()),
        }
    }

    /// Handles the next event of the segment's job.
    fn follow(&mut self, segment: &mut Segment, event: Option<JobEvent>) -> Result<Followed, Stop> {
        let at = segment.run.at();
        let event = segment.run.observe(event);
        self.parts.reports.observed(at, &event);
        match event {
            RunEvent::Started { after, .. } => self.started(segment, after),
            RunEvent::Step {
                stage,
                step,
                total_steps,
                ..
            } => {
                self.step_done(stage, step, total_steps);
            }
            RunEvent::Media { media, .. } => self.take(segment, media),
            RunEvent::Repeated(repeated) => self.count(segment, &repeated.kind),
            RunEvent::Differs(media) => self.replace(segment, media),
            RunEvent::Finished(mut finished) => {
                if let Some(media) = finished.instead.take() {
                    self.replace(segment, media);
                }
                return Ok(Followed::Finished(finished));
            }
            RunEvent::Preview(_) | RunEvent::SnapshotDropped { is_over: false, .. } => {}
            RunEvent::SnapshotDropped { is_over: true, .. } | RunEvent::TakenBack { .. } => {
                return Ok(Followed::Again);
            }
            RunEvent::Cancelled => return Ok(Followed::Cancelled),
            RunEvent::Failed(failure) => return self.attempt_failed(failure),
            RunEvent::WorkerLost { then, .. } => {
                return match then {
                    AfterLoss::RunsAgain => Ok(Followed::Again),
                    AfterLoss::Cancelled => Ok(Followed::Cancelled),
                    AfterLoss::GivenUp { deaths } => Err(Failure::worker(format!(
                        "the job is given up: a segment was tried {deaths} times and its worker died each time"
                    ))
                    .into()),
                };
            }
        }
        Ok(Followed::GoesOn)
    }

    fn attempt_failed(&mut self, failure: RunFailure) -> Result<Followed, Stop> {
        let failure = match failure {
            RunFailure::Refused(message) => Failure::invalid(message),
            RunFailure::StateIncompatible(message) => Failure::state(message),
            RunFailure::OutOfMemory => Failure::memory(),
            RunFailure::Failed | RunFailure::BadState => {
                Failure::worker("a segment could not be generated")
            }
            // The pool has ended, and the job goes on at the next start.
            RunFailure::Dropped => return Err(Stop::Released),
        };
        Err(failure.into())
    }

    /// Takes note that a worker has begun with an attempt. The first one is written down before it is told.
    fn started(&mut self, segment: &mut Segment, after: Option<StepPoint>) {
        segment.fragments = 0;
        let refine = self.parts.config.refine_steps;
        let steps = self.video.request.num_inference_steps + refine;
        let frames = segment.planned.frames;
        (self.parts.live).send_modify(|live| live.begin(frames, steps, after));
        if segment.is_begun {
            return;
        }
        segment.is_begun = true;
        self.video.starts += 1;
        if self.video.status == VideoStatus::Queued {
            self.video.status = VideoStatus::InProgress;
            self.video.started_at_ms = Some(unix_ms());
            self.parts.reports.begun(&self.video);
        }
        segment.begun = Some(self.write(Vec::new()));
    }

    fn step_done(&self, stage: Stage, step: u32, total_steps: u32) {
        (self.parts.live).send_if_modified(|live| live.step_done(stage, step, total_steps));
    }

    /// Takes media of the segment. The worker may go on at once.
    fn take(&self, segment: &mut Segment, media: Media) {
        let at = segment.run.at();
        segment.recorder.add(at, &media.kind, &media.bytes);
        segment.sha256.update(&media.bytes);
        self.count(segment, &media.kind);
    }

    /// Counts the frames of a message.
    fn count(&self, segment: &mut Segment, kind: &MediaKind) {
        if *kind != MediaKind::Fragment {
            return;
        }
        segment.fragments += 1;
        let per_fragment = self.parts.encoder.frames_per_fragment(self.video.plan.fps);
        // The first fragment has one frame.
        let frames = 1 + (segment.fragments - 1).saturating_mul(per_fragment);
        (self.parts.live).send_modify(|live| live.frames_encoded(frames));
    }

    /// Takes an attempt's media in place of all that came before.
    fn replace(&self, segment: &mut Segment, media: Vec<Media>) {
        segment.recorder = Recorder::default();
        segment.sha256 = Sha256::new();
        segment.fragments = 0;
        for media in media {
            self.take(segment, media);
        }
    }

    /// Makes a finished segment a part of the video. The last one completes it.
    fn commit(&mut self, finished: FinishedSegment, segment: Segment) -> Result<(), Stop> {
        let FinishedSegment {
            state,
            frames,
            generation,
            video: pictures,
            ..
        } = finished;
        let fps = self.video.plan.fps;
        let (at, request) = (segment.run.at(), &self.video.request);
        let prompt = self.video.enhanced_prompt.as_ref();
        let stored = StoredSegment {
            segment_idx: at.segment_idx,
            attempt: at.attempt,
            request_id: None,
            prompt: prompt.unwrap_or(&request.prompt).clone(),
            original_prompt: prompt
                .filter(|prompt| **prompt != request.prompt)
                .map(|_| request.prompt.clone()),
            source: PromptSource::User,
            seed: seed(&self.video, at.segment_idx),
            num_inference_steps: request.num_inference_steps,
            guidance_scale: request.guidance_scale,
            start: frames_to_time(self.video.frames_done(), fps),
            duration: frames_to_time(frames.into(), fps),
            generation,
            mime: String::new(),
            sha256: segment.sha256.finalize().into(),
            bytes: 0,
            media: None,
        };
        let recorded = segment.recorder.finish(stored, None);
        let samples = recorded.segment.media.as_ref();
        let Some(samples) = samples.and_then(|media| media.samples.as_ref()) else {
            return Err(Failure::internal("the media of a segment cannot be read").into());
        };
        if !self.fits(samples) {
            return self.make_again();
        }
        self.video.has_audio = Some(samples.has(Kind::Sound));
        self.video.film.push(recorded.segment.clone());
        self.video.inference += generation;
        self.video.starts = 0;
        let mut blobs = Vec::new();
        if let Some(media) = &recorded.segment.media {
            blobs.push(NewBlob::bytes(media.blob, recorded.content.clone()));
        }
        self.take_pictures(pictures.map(|pictures| *pictures), &mut blobs);
        self.state = Some(state);
        if self.next_segment().is_none() {
            self.complete()?;
        }
        let is_kept = !self.video.status.is_end() || self.parts.config.keep_state;
        match self.state.as_ref().filter(|_| is_kept) {
            Some(state) => {
                self.video.state = Some(state.header_bytes().to_vec());
                blobs.push(NewBlob::state(state));
            }
            None => self.video.state = None,
        }
        self.commit = Some(self.write(blobs));
        let finished = self.video.frames_done() - self.video.plan.extended_frames;
        self.parts.live.send_modify(|live| live.finish(finished));
        Ok(())
    }

    /// Returns whether a segment can be decoded with the init segment of those before.
    fn fits(&self, samples: &SegmentIndex) -> bool {
        let before = self.video.film.first();
        let before = before.and_then(|segment| segment.media.as_ref()?.samples.as_ref());
        before.is_none_or(|before| before.form() == samples.form())
    }

    /// Begins the video anew: the encoder makes other streams than it did for the segments that are there.
    fn make_again(&mut self) -> Result<(), Stop> {
        if self.video.is_remade || self.video.extended_segments > 0 {
            let message = "the encoder has changed, so that the video cannot be continued";
            return Err(Failure::state(message).into());
        }
        tracing::warn!(video_id = %self.id, "the encoder has changed: the video's segments are made again");
        self.video.is_remade = true;
        self.video.film.clear();
        self.video.state = None;
        self.video.tiles = None;
        self.video.thumbnail = None;
        self.tiles = Bytes::new();
        self.state = None;
        self.commit = Some(self.write(Vec::new()));
        self.parts.live.send_modify(Live::make_again);
        Ok(())
    }

    /// Takes the pictures of a segment.
    fn take_pictures(&mut self, pictures: Option<VideoPictures>, blobs: &mut Vec<NewBlob>) {
        let VideoPictures {
            tiles,
            thumbnail,
            sheet,
        } = pictures.unwrap_or_default();
        if !tiles.is_empty() {
            self.tiles = [&self.tiles[..], &tiles[..]].concat().into();
            self.video.tiles = Some(add_file(self.tiles.clone(), blobs));
        }
        if let Some(thumbnail) = thumbnail {
            self.video.thumbnail = Some(add_file(thumbnail, blobs));
        }
        if let Some(sheet) = sheet {
            self.video.spritesheet = Some(add_file(sheet, blobs));
        }
    }

    /// Makes the video a completed one.
    fn complete(&mut self) -> Result<(), Failure> {
        let media = self.video.film.iter().filter_map(|it| it.media.as_ref());
        let layout = Layout::new(media.filter_map(|media| media.samples.as_ref()));
        let layout = layout.map_err(|error| {
            tracing::error!(video_id = %self.id, error = with_causes(&error), "the segments make no video");
            Failure::internal("the segments cannot be put together")
        })?;
        self.video.bytes = Some(layout.size());
        record::end(&mut self.video, VideoStatus::Completed, &self.parts.config);
        Ok(())
    }

    /// Writes the job's last version.
    async fn write_end(&mut self) -> Result<(), Stop> {
        // What is on its way was written before.
        self.commit = Some(self.write(Vec::new()));
        self.wait_for_commit().await
    }

    fn write(&self, blobs: Vec<NewBlob>) -> oneshot::Receiver<()> {
        self.parts.writer.write(Version {
            video: self.video.clone(),
            blobs,
        })
    }

    /// Waits until the version that was committed last is stored, and tells of it.
    async fn wait_for_commit(&mut self) -> Result<(), Stop> {
        match self.commit.take() {
            Some(commit) => self.wait_for(commit).await,
            None => Ok(()),
        }
    }

    async fn wait_for(&mut self, stored: oneshot::Receiver<()>) -> Result<(), Stop> {
        let is_stored = stored.await.is_ok();
        match is_stored {
            true => {
                self.tell();
                Ok(())
            }
            // The writer gives up only when the job is not this server's any more.
            false => Err(Stop::Gone),
        }
    }

    /// Tells what is stored.
    fn tell(&self) {
        let stored = self.parts.writer.stored();
        self.parts.live.send_modify(|live| live.set_stored(stored));
    }
}

/// What follows an event of a segment's job.
#[derive(Debug)]
enum Followed {
    GoesOn,
    /// The segment has to be submitted again.
    Again,
    Finished(Box<FinishedSegment>),
    Cancelled,
}

/// Returns the seed of a segment of a video.
fn seed(video: &StoredVideo, segment_idx: u32) -> u64 {
    video.request.seed.wrapping_add(segment_idx.into())
}

/// Waits until a version is stored, if one is on its way. A version that will not be stored is left to the writer's
/// standing.
async fn stored(version: &mut Option<oneshot::Receiver<()>>) {
    let Some(waiting) = version else {
        return pending().await;
    };
    let is_stored = waiting.await.is_ok();
    *version = None;
    if !is_stored {
        pending().await
    }
}

/// Waits until the time is over that running segments have when the server goes away.
async fn grace_ends(drain: &mut watch::Receiver<Drain>) {
    // The sender is gone only when the server is.
    let _ = drain.wait_for(|drain| *drain != Drain::No).await;
    let drain = *drain.borrow();
    if let Drain::Until(deadline) = drain {
        sleep_until(deadline).await;
    }
}

async fn keep_image(png: Bytes) -> Result<TempPath, Failure> {
    let kept = spawn_blocking(move || init_image::keep_again(&png)).await;
    kept.map_err(std::io::Error::other)
        .flatten()
        .map_err(|error| {
            tracing::error!(
                error = with_causes(&error),
                "an initial image cannot be kept"
            );
            Failure::internal("the initial image cannot be kept")
        })
}
