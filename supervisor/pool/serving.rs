//! The state machine of one ready process while it serves: the jobs that it has in hand, when it counts as stuck, when
//! it leaves or is renewed.
//!
//! Its inputs are the process's link and the signals of its jobs. It neither starts nor ends processes: it returns a
//! [`ServeEnd`] that tells the caller what to do with this one.

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::ops::ControlFlow;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use bytes::Bytes;
use fastvideo_link::SharedMemory;
use fastvideo_proto::adapter::{AdapterSpec, HeldAdapter};
use fastvideo_proto::ids::{JobId, SessionId, WorkerId};
use fastvideo_proto::job::{JobFailure, MediaKind, PhaseSpan};
use fastvideo_proto::link::{
    Command, Event, JobReport, JobSpec, JobState, MAX_PICTURE_BYTES, MAX_PREVIEW_BYTES,
    MAX_PREVIEWS, MAX_THUMBNAIL_BYTES, Preview, VideoPart, VideoPictures, media_cost, tile_size,
};
use fastvideo_proto::step_snapshot::{SnapshotHeader, StepPoint};
use tokio::time::{Instant, sleep_until, timeout};

use super::adapters::{NextAdapter, ToldAdapters};
use super::assignments::Absence;
use super::attendance::Attendance;
use super::boot::LAST_EVENTS_TIMEOUT;
use super::context::WorkerContext;
use super::control::{Control, Controls};
use super::event::{LeaveReason, WorkerEvent};
use super::exit::{Blame, ExitKind, WorkerExit};
use super::job::{Credit, JobEnd, JobEvent, Media, QueuedJob};
use super::link::{Link, LinkEnd, LinkInput};
use super::process::describe;
use super::progress_limit::ProgressLimit;
use super::renewal::{Renewal, RenewalFailure, Standby};
use super::restart::RestartPolicy;
use super::rolling_median::RollingMedian;
use super::stall::Stall;
use super::step_snapshot::StepSnapshot;

/// The number of step times from which it is estimated whether a segment of a video job is nearly done.
const STEP_SAMPLES: usize = 15;

/// A process that serves sessions and video jobs.
pub(super) struct ServingWorker<'a, S> {
    context: &'a WorkerContext,
    policy: &'a mut RestartPolicy,
    worker: WorkerId,
    link: Link,
    /// The job that the engine works on.
    running: Option<JobInHand>,
    /// Jobs that the engine has finished. Their media wait in the process for flow credit.
    finishing: HashMap<JobId, JobInHand>,
    /// The latest continuation state of each session that the process holds, by the job that generated it.
    held_states: HashMap<SessionId, JobId>,
    /// The number of jobs that this process has finished.
    jobs_finished: u32,
    /// When the last event arrived over the link.
    last_heard: Instant,
    /// When the running job last made progress, or was sent.
    last_progress: Instant,
    attendance: Attendance,
    progress_limit: ProgressLimit,
    /// When a segment of a video job may be begun or has to make way, if nothing else happens before.
    look_again: Option<Instant>,
    leaving: Option<Leaving>,
    renewal: Renewal<S>,
    adapters: ToldAdapters,
}

/// The reason why a process no longer serves.
pub(super) enum ServeEnd<S> {
    /// The process has died, hangs or has violated the link's protocol. The caller kills it.
    Failed(WorkerExit),
    /// The caller asks the process to exit. Jobs are in hand only when the pool stops.
    Leave,
    /// The standby serves from now on. No job is in hand.
    Replaced(S),
}

/// A job that was sent to the process and has not ended.
#[derive(Debug)]
struct JobInHand {
    job: QueuedJob,
    /// Whether the process was told that the job is cancelled.
    cancel_sent: bool,
    /// Whether the session was unbound from the worker, which then no longer keeps the session's state.
    unbound: bool,
    /// The cost of media for which the process has not been given flow credit, including those that the client has not
    /// taken yet.
    unacknowledged: u64,
    /// The number of previews that the process has sent.
    previews: u32,
    /// When the process last reported something about the job, or was told something about it.
    last_activity: Instant,
    /// The step that the job goes on from, until the process has reported progress beyond it.
    goes_on_after: Option<StepPoint>,
    /// Present when the job is a segment of a video job.
    video: Option<VideoRun>,
}

/// A segment of a video job that was sent to the process.
#[derive(Debug)]
struct VideoRun {
    /// Whether the segment began with its first step.
    is_whole: bool,
    /// When the segment is likely to be done; `None` where that is not known.
    ends: Option<Instant>,
    /// The times of its steps.
    steps: RollingMedian,
    /// Whether the process was told to stop the segment for one of a viewer.
    makes_way: bool,
}

/// The shutdown of a worker that takes no more jobs and is asked to exit when it has none in hand.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    /// The deadline after which jobs in hand are taken back.
    cut_at: Option<Instant>,
}

impl<'a, S: Standby> ServingWorker<'a, S> {
    /// Creates the state of a process that has just become ready, at the other end of `link`. `warmup` has the
    /// generation times of its warm-up segments.
    pub(super) fn new(
        context: &'a WorkerContext,
        policy: &'a mut RestartPolicy,
        worker: WorkerId,
        link: Link,
        warmup: &[Duration],
    ) -> Self {
        let now = Instant::now();
        let config = context.config();
        Self {
            context,
            policy,
            worker,
            link,
            running: None,
            finishing: HashMap::new(),
            held_states: HashMap::new(),
            jobs_finished: 0,
            last_heard: now,
            last_progress: now,
            attendance: Attendance::new(config.heartbeat_timeout.min(config.min_step_timeout)),
            progress_limit: ProgressLimit::new(&config, warmup),
            look_again: None,
            leaving: None,
            renewal: Renewal::new(config.min_backoff, config.max_backoff),
            adapters: ToldAdapters::default(),
        }
    }

    /// Serves until there is a reason to end. `exited` resolves when the process has exited.
    pub(super) async fn serve(
        &mut self,
        exited: impl Future<Output = io::Result<ExitStatus>>,
        controls: &mut Controls,
    ) -> ServeEnd<S> {
        let mut exited = pin!(exited);
        loop {
            if let ControlFlow::Break(exit) = self.look_for_stall() {
                return ServeEnd::Failed(exit);
            }
            if let ControlFlow::Break(end) = self.advance() {
                return end;
            }
            let turn = self.stall_deadline().0.min(self.attendance.next_turn());
            let turn = self.look_again.map_or(turn, |at| at.min(turn));
            let cut_at = self.leaving.and_then(|leaving| leaving.cut_at);
            let flow = tokio::select! {
                status = &mut exited => ControlFlow::Break(crashed(status)),
                input = self.link.events.recv() => {
                    self.on_input(input.unwrap_or(LinkInput::Closed(LinkEnd::Disconnected)))
                }
                () = self.context.notify.notified() => self.pass_signals(),
                control = controls.next() => match control {
                    Control::Stop => return ServeEnd::Leave,
                    Control::Directive(directive) => {
                        let why = LeaveReason::Directive { drained: directive.drained };
                        self.leave_after_jobs(why, directive.cut_at);
                        ControlFlow::Continue(())
                    }
                },
                failure = self.renewal.changed() => {
                    if let Some(failure) = failure {
                        self.renewal_failed(&failure);
                    }
                    ControlFlow::Continue(())
                }
                () = sleep_until(turn) => ControlFlow::Continue(()),
                () = sleep_until_some(cut_at) => {
                    self.cut_jobs();
                    ControlFlow::Continue(())
                }
            };
            if let ControlFlow::Break(exit) = flow {
                return ServeEnd::Failed(exit);
            }
        }
    }

    /// Takes the steps that are due: leave, renew, load and drop adapters, begin the next job.
    fn advance(&mut self) -> ControlFlow<ServeEnd<S>> {
        self.look_again = None;
        if self.leaving.is_none() {
            self.renew()?;
        }
        match self.leaving {
            Some(_) if self.has_no_job() => ControlFlow::Break(ServeEnd::Leave),
            Some(_) => ControlFlow::Continue(()),
            None => {
                self.adapt().map_break(ServeEnd::Failed)?;
                self.make_way().map_break(ServeEnd::Failed)?;
                self.start_next_job().map_break(ServeEnd::Failed)
            }
        }
    }

    /// Tells the process of the next adapter that it has to load, and of those that it has to drop. It does so between two
    /// jobs: none is begun while an adapter is being loaded.
    fn adapt(&mut self) -> ControlFlow<WorkerExit> {
        while self.running.is_none()
            && let Some(next) = self.adapters.next(&self.context.ordered_adapters)
        {
            let (event, command) = match next {
                NextAdapter::Unload(name) => (
                    WorkerEvent::AdapterUnloaded { name: name.clone() },
                    Command::UnloadAdapter { name },
                ),
                NextAdapter::Load(spec) => {
                    let (name, serial) = (spec.name.clone(), spec.serial);
                    let loading = WorkerEvent::AdapterLoading { name, serial };
                    (loading, Command::LoadAdapter(Box::new(spec)))
                }
            };
            self.emit_of_adapter(event);
            send(&self.link, command, Vec::new())?;
        }
        ControlFlow::Continue(())
    }

    /// Reports how the loading of an adapter has ended.
    fn on_adapter(
        &mut self,
        serial: u64,
        loaded: Result<HeldAdapter, String>,
    ) -> ControlFlow<WorkerExit> {
        let Some(AdapterSpec { name, .. }) = self.adapters.ended(serial) else {
            return ControlFlow::Continue(());
        };
        let ordered = &self.context.ordered_adapters;
        let loaded = match loaded {
            // A session would get other pictures from one worker than from another.
            Ok(adapter) if !ordered.is_same_file(serial, adapter.file_hash) => {
                let unload = Command::UnloadAdapter { name: name.clone() };
                send(&self.link, unload, Vec::new())?;
                let why = "the file has changed since another worker loaded it: load it under another name";
                Err(why.to_owned())
            }
            loaded => loaded,
        };
        self.emit_of_adapter(match loaded {
            Ok(adapter) => WorkerEvent::AdapterLoaded {
                name,
                serial,
                adapter,
            },
            Err(message) => WorkerEvent::AdapterFailed {
                name,
                serial,
                message,
            },
        });
        ControlFlow::Continue(())
    }

    /// Emits an event after which the worker may hold other adapters.
    fn emit_of_adapter(&self, event: WorkerEvent) {
        self.context.emit(event);
        let held = self.context.events.loaded_adapters();
        self.context
            .with_assignments(|assignments, slot| assignments.set_adapters(slot, held));
    }

    fn has_no_job(&self) -> bool {
        self.running.is_none() && self.finishing.is_empty()
    }

    /// Judges whether the process is stuck, by what it has said while the supervisor could hear it.
    fn look_for_stall(&mut self) -> ControlFlow<WorkerExit> {
        if let Some(absence) = self.attendance.turn() {
            self.context.emit(WorkerEvent::SupervisorAbsent { absence });
            self.last_heard = Instant::now();
            self.last_progress = self.last_heard;
            self.adapters.start_afresh();
            for in_hand in self.finishing.values_mut() {
                in_hand.last_activity = self.last_heard;
            }
        }
        let config = self.context.config();
        (self.attendance).judge_by(config.heartbeat_timeout.min(config.min_step_timeout));
        let (deadline, stall) = self.stall_deadline();
        if deadline > Instant::now() {
            return ControlFlow::Continue(());
        }
        // What the process has said, and was not read yet, goes before the judgement.
        match self.link.events.try_recv() {
            Ok(input) => self.on_input(input),
            Err(_) => stuck(stall),
        }
    }

    /// Returns the earliest moment at which the process counts as stuck, and the reason.
    fn stall_deadline(&self) -> (Instant, Stall) {
        let config = self.context.config();
        let limit = config.heartbeat_timeout;
        let mut first = (self.last_heard + limit, Stall::NoHeartbeat(limit));
        if let Some(running) = &self.running {
            let limit = (self.progress_limit).get(config.min_step_timeout, running.job.spec.format);
            let deadline = self.last_progress + limit;
            if deadline < first.0 {
                first = (deadline, Stall::NoProgress(limit));
            }
        }
        if let Some(since) = self.adapters.loading_since() {
            let limit = config.boot_timeout;
            if since + limit < first.0 {
                first = (since + limit, Stall::NoAdapter(limit));
            }
        }
        let limit = config.min_step_timeout;
        for in_hand in self.finishing.values() {
            let deadline = in_hand.last_activity + limit;
            if in_hand.waits_for_process() && deadline < first.0 {
                first = (deadline, Stall::NoEnd(limit));
            }
        }
        first
    }

    fn on_input(&mut self, input: LinkInput) -> ControlFlow<WorkerExit> {
        self.last_heard = Instant::now();
        match input {
            LinkInput::Connected { .. } => bad_link("worker connected twice"),
            LinkInput::Event(event, blob) => self.on_event(event, blob),
            LinkInput::Closed(end) => {
                ControlFlow::Break(WorkerExit::new(end.exit_kind(), end.to_string()))
            }
        }
    }

    fn on_event(&mut self, event: Event, blob: Option<SharedMemory>) -> ControlFlow<WorkerExit> {
        match event {
            Event::Heartbeat {
                resident_bytes,
                gpu_bytes,
            } => self.context.emit(WorkerEvent::Heartbeat {
                resident_bytes,
                gpu_bytes,
            }),
            Event::Step {
                job,
                stage,
                step,
                total_steps,
            } => self.on_step(
                job,
                JobEvent::Step {
                    stage,
                    step,
                    total_steps,
                },
            ),
            Event::StepSnapshot { job, header } => return self.on_snapshot(job, *header, blob),
            Event::Preview { job, preview } => return self.on_preview(job, preview),
            Event::Media {
                job,
                kind,
                bytes,
                sent_at_us,
            } => return self.on_media(job, kind, bytes, sent_at_us),
            Event::Generated { job } => self.on_generated(job),
            Event::AdapterLoaded { serial, adapter } => {
                return self.on_adapter(serial, Ok(*adapter));
            }
            Event::AdapterFailed { serial, message } => {
                return self.on_adapter(serial, Err(message));
            }
            Event::Finished(report) => match blob {
                Some(blob) => return self.on_finished(*report, blob),
                None => return bad_link("worker finished a job without its state"),
            },
            Event::Failed {
                job,
                failure: JobFailure::StateNotHeld,
                ..
            } => return self.send_with_state(job),
            Event::Failed {
                job,
                failure: JobFailure::SnapshotRefused,
                message,
                ..
            } => return self.send_without_snapshot(job, message),
            Event::Failed {
                job,
                failure,
                message,
                phases,
            } => self.on_failed(job, failure, message, phases),
            Event::Ready(_) => return bad_link("worker became ready twice"),
            // These events belong to the boot, which is over.
            Event::LoadProgress { .. } | Event::WarmingUp | Event::BootFailed { .. } => {}
        }
        ControlFlow::Continue(())
    }

    fn on_step(&mut self, job: JobId, step: JobEvent) {
        let took = self.last_heard - self.last_progress;
        if let Some(running) = self.running.as_mut().filter(|r| r.id() == job) {
            self.progress_limit.add_step(took, running.job.spec.format);
            if let Some(video) = &mut running.video {
                video.steps.add(took);
            }
        }
        if let Some(in_hand) = self.in_hand(job) {
            in_hand.job.tell(step);
        }
    }

    /// Keeps the snapshot of a step in place of the one before.
    fn on_snapshot(
        &mut self,
        job: JobId,
        header: SnapshotHeader,
        latents: Option<SharedMemory>,
    ) -> ControlFlow<WorkerExit> {
        let Some(latents) = latents else {
            return bad_link("worker sends a step snapshot without its latents");
        };
        if let Err(error) = header.check(&latents) {
            return bad_link(&format!("worker sends a bad step snapshot: {error}"));
        }
        if self.is_running(job) {
            let snapshot = self.context.events.take_snapshot(header, latents);
            if let Some(in_hand) = self.in_hand(job) {
                in_hand.job.snapshot.replace(Some(snapshot));
            }
        }
        ControlFlow::Continue(())
    }

    /// Passes on a preview. It is no progress: the encoder's thread has made it.
    fn on_preview(&mut self, job: JobId, preview: Preview) -> ControlFlow<WorkerExit> {
        let Some(running) = self.running.as_mut().filter(|r| r.id() == job) else {
            return ControlFlow::Continue(());
        };
        if !running.job.spec.previews {
            return bad_link("worker sends a preview that was not asked for");
        }
        running.previews += 1;
        if preview.jpeg.len() > MAX_PREVIEW_BYTES || running.previews > MAX_PREVIEWS {
            return bad_link("worker sends larger or more previews than are allowed");
        }
        running.job.show(preview);
        ControlFlow::Continue(())
    }

    fn on_media(
        &mut self,
        job: JobId,
        kind: MediaKind,
        bytes: Bytes,
        sent_at_us: u64,
    ) -> ControlFlow<WorkerExit> {
        if let Some(in_hand) = self.in_hand(job) {
            // The last message may exceed the window, and none may follow it.
            if in_hand.unacknowledged >= in_hand.job.spec.window {
                return bad_link("worker sends more media than the job's window allows");
            }
            let cost = media_cost(bytes.len());
            in_hand.unacknowledged += cost;
            let credit = Credit::new(cost, in_hand.job.signals.clone());
            in_hand.job.tell(JobEvent::Media(Media {
                kind,
                bytes,
                sent_at_us: Some(sent_at_us),
                credit,
            }));
        }
        ControlFlow::Continue(())
    }

    fn is_running(&self, job: JobId) -> bool {
        self.running.as_ref().is_some_and(|r| r.id() == job)
    }

    /// Returns the job about which the process has just reported something. The report counts as progress of the
    /// running job.
    fn in_hand(&mut self, job: JobId) -> Option<&mut JobInHand> {
        self.note_going_on(job);
        let in_hand = match &mut self.running {
            Some(running) if running.id() == job => {
                self.last_progress = self.last_heard;
                running
            }
            _ => self.finishing.get_mut(&job)?,
        };
        in_hand.last_activity = self.last_heard;
        Some(in_hand)
    }

    /// Handles [`Event::Generated`]: the engine has finished a job, and the job's media wait for flow credit.
    fn on_generated(&mut self, job: JobId) {
        if let Some(mut running) = self.take_running(job) {
            self.hold_state(&running);
            running.last_activity = self.last_heard;
            self.finishing.insert(job, running);
        }
    }

    fn on_finished(&mut self, report: JobReport, blob: SharedMemory) -> ControlFlow<WorkerExit> {
        let job = report.job;
        let generation = report.generation;
        let running = (self.running.as_ref()).filter(|running| running.id() == job);
        let Some(in_hand) = running.or_else(|| self.finishing.get(&job)) else {
            self.context.emit(WorkerEvent::StrayJobEnd { job });
            return ControlFlow::Continue(());
        };
        if let Err(reason) = check_report(&report, &in_hand.job.spec) {
            return bad_link(reason);
        }
        let in_hand = match self.take_running(job) {
            Some(running) => {
                self.hold_state(&running);
                Some(running)
            }
            None => self.finishing.remove(&job),
        };
        self.policy.job_finished();
        self.jobs_finished += 1;
        if let Some(in_hand) = in_hand {
            let finished = WorkerEvent::JobFinished {
                job,
                generation,
                frames: report.frames,
            };
            self.emit_for(&in_hand.job, finished);
            let end = JobEnd::Finished {
                state: (report.state, blob),
                generation,
                timing: report.timing,
                frames: report.frames,
                thumbnail: report
                    .thumbnail
                    .filter(|thumbnail| is_small(thumbnail, &in_hand.job)),
                video: report.video,
            };
            self.end_job(&in_hand.job, end);
            self.record_time(&in_hand, generation);
        }
        ControlFlow::Continue(())
    }

    /// Records how long a segment took. Segments of video jobs have formats of their own, so they do not count for the pace by
    /// which sessions are accepted.
    fn record_time(&self, in_hand: &JobInHand, generation: Duration) {
        self.context
            .with_assignments(|assignments, slot| match &in_hand.video {
                None => assignments.record_generation_time(slot, generation),
                Some(video) if video.is_whole => {
                    assignments.record_video_time(slot, &in_hand.job.spec, generation);
                }
                Some(_) => {}
            });
    }

    fn on_failed(
        &mut self,
        job: JobId,
        failure: JobFailure,
        message: String,
        phases: Vec<PhaseSpan>,
    ) {
        let in_hand = self
            .take_running(job)
            .or_else(|| self.finishing.remove(&job));
        let Some(in_hand) = in_hand else {
            return self.context.emit(WorkerEvent::StrayJobEnd { job });
        };
        if failure == JobFailure::Cancelled && in_hand.is_preempted() {
            return self.end_preempted(&in_hand.job);
        }
        self.emit_for(
            &in_hand.job,
            WorkerEvent::JobFailed {
                job,
                failure,
                message: message.clone(),
            },
        );
        let end = JobEnd::Failed {
            failure,
            message,
            phases,
        };
        self.end_job(&in_hand.job, end);
    }

    /// Ends a segment of a video job that has made way for a viewer's.
    fn end_preempted(&self, job: &QueuedJob) {
        let preempted = WorkerEvent::JobPreempted {
            job: job.spec.job,
            session: job.spec.session.clone(),
        };
        self.emit_for(job, preempted);
        self.context
            .with_assignments(|assignments, slot| assignments.yield_to_viewers(slot));
        self.end_job(job, JobEnd::Preempted);
    }

    /// Tells once that a job goes on from a snapshot: the process has reported progress beyond it.
    fn note_going_on(&mut self, job: JobId) {
        let running = self.running.as_mut().filter(|running| running.id() == job);
        let after = running.and_then(|running| running.goes_on_after.take());
        if let (Some(after), Some(running)) = (after, &self.running) {
            self.emit_for(&running.job, WorkerEvent::JobWentOn { job, after });
        }
    }

    /// Takes the running job, which the engine has finished.
    fn take_running(&mut self, job: JobId) -> Option<JobInHand> {
        let running = self.running.take_if(|r| r.id() == job)?;
        self.context.emit(WorkerEvent::EngineFree);
        Some(running)
    }

    /// Records that the process holds the state that the job generated, in place of the session's previous state,
    /// whether or not the session commits it. The process forgets the state at once if the session was unbound in the
    /// meantime.
    fn hold_state(&mut self, in_hand: &JobInHand) {
        if !in_hand.unbound {
            let spec = &in_hand.job.spec;
            self.held_states.insert(spec.session.clone(), spec.job);
        }
    }

    /// Tells the session how its job ended, and then the assignments, which may move the session.
    fn end_job(&self, job: &QueuedJob, end: JobEnd) {
        job.tell(JobEvent::Ended(end));
        self.context.with_assignments(|assignments, _| {
            assignments.job_ended(&job.spec.session, job.spec.job);
        });
    }

    /// Passes cancellations and flow credit on, ends cancelled jobs that were not sent yet, and tells the process to
    /// forget the sessions that it no longer serves.
    fn pass_signals(&mut self) -> ControlFlow<WorkerExit> {
        let (cancelled, to_forget) = self.context.with_assignments(|assignments, slot| {
            (
                assignments.take_cancelled(slot),
                assignments.take_sessions_to_forget(slot),
            )
        });
        for job in cancelled {
            self.end_job(&job, JobEnd::cancelled());
        }
        for session in to_forget {
            self.held_states.remove(&session);
            if let Some(running) = &mut self.running
                && running.job.spec.session == session
            {
                running.unbound = true;
            }
            send(&self.link, Command::Forget { session }, Vec::new())?;
        }
        let now = Instant::now();
        for in_hand in self.running.iter_mut().chain(self.finishing.values_mut()) {
            let job = in_hand.id();
            let cost = in_hand.job.signals.take_credit();
            in_hand.unacknowledged = in_hand.unacknowledged.saturating_sub(cost);
            let command = if in_hand.job.signals.cancelled() {
                if std::mem::replace(&mut in_hand.cancel_sent, true) {
                    continue;
                }
                Command::Cancel { job }
            } else if cost > 0 {
                Command::Credit { job, cost }
            } else {
                continue;
            };
            in_hand.last_activity = now;
            send(&self.link, command, Vec::new())?;
        }
        ControlFlow::Continue(())
    }

    /// Tells the process to stop a segment of a video job at its next step or frame when a viewer's segment waits. One of which
    /// less than a step is left may end by itself.
    fn make_way(&mut self) -> ControlFlow<WorkerExit> {
        let Some(running) = &mut self.running else {
            return ControlFlow::Continue(());
        };
        let Some(video) = running.video.as_mut().filter(|_| !running.cancel_sent) else {
            return ControlFlow::Continue(());
        };
        let context = self.context;
        if !(context.assignments.lock()).live_job_preempts(context.slot) {
            return ControlFlow::Continue(());
        }
        let now = Instant::now();
        let until = video.may_run_until(now);
        if until > now {
            self.look_again = Some(until);
            return ControlFlow::Continue(());
        }
        video.makes_way = true;
        running.cancel_sent = true;
        running.last_activity = now;
        let job = running.id();
        send(&self.link, Command::Cancel { job }, Vec::new())
    }

    fn start_next_job(&mut self) -> ControlFlow<WorkerExit> {
        while self.running.is_none()
            && self.adapters.loading_since().is_none()
            && !self.renewal.holds_back()
        {
            let now = Instant::now();
            let next = self
                .context
                .with_assignments(|assignments, slot| assignments.next_job(slot, now));
            let Some(job) = next else {
                let assignments = self.context.assignments.lock();
                self.look_again = assignments.videos_held_off_until(self.context.slot, now);
                break;
            };
            if job.signals.cancelled() {
                self.end_job(&job, JobEnd::cancelled());
                continue;
            }
            // One was unloaded while the job waited: the session submits the job again, without it.
            if !self.context.events.has_loaded(&job.spec.adapters) {
                self.end_job(&job, JobEnd::TakenBack { started: false });
                continue;
            }
            self.renewal.job_begun();
            let after = job.snapshot.get().map(|snapshot| snapshot.at());
            let worker = self.worker.clone();
            job.tell(JobEvent::Started { worker, after });
            self.send_job(job, false)?;
        }
        ControlFlow::Continue(())
    }

    /// Sends a job, which runs from now on. The state that it starts from is sent along unless the process holds it, and
    /// so is the step snapshot that it goes on from.
    fn send_job(&mut self, job: QueuedJob, again: bool) -> ControlFlow<WorkerExit> {
        self.last_progress = Instant::now();
        let held = self.held_states.get(&job.spec.session).copied();
        let mut blobs = Vec::new();
        let state = job.start.as_ref().map(|start| {
            match start.made_by.filter(|&maker| held == Some(maker)) {
                Some(maker) => JobState::Held(maker),
                None => {
                    blobs.push(start.blob.clone());
                    JobState::Sent(start.header.clone())
                }
            }
        });
        let snapshot = job.snapshot.get();
        let latents = snapshot.as_ref().and_then(StepSnapshot::latents);
        blobs.extend(latents.cloned());
        let goes_on_after = snapshot.as_ref().map(StepSnapshot::at);
        let sent = WorkerEvent::JobSent {
            job: job.spec.job,
            session: job.spec.session.clone(),
            state_held: matches!(state, Some(JobState::Held(_))),
            again,
        };
        self.emit_for(&job, sent);
        let video = (job.is_of_video()).then(|| self.video_run(&job.spec, goes_on_after.is_none()));
        let spec = JobSpec {
            state,
            snapshot: snapshot.map(|snapshot| Box::new(snapshot.header().clone())),
            snapshot_min_step: self.context.config().snapshot_min_step,
            ..job.spec.clone()
        };
        self.running = Some(JobInHand {
            job,
            cancel_sent: false,
            unbound: false,
            unacknowledged: 0,
            previews: 0,
            last_activity: self.last_progress,
            goes_on_after,
            video,
        });
        send(&self.link, Command::Generate(Box::new(spec)), blobs)
    }

    fn video_run(&self, spec: &JobSpec, is_whole: bool) -> VideoRun {
        let assignments = self.context.assignments.lock();
        let takes = assignments.video_pace(self.context.slot, spec);
        VideoRun {
            is_whole,
            ends: (takes.filter(|_| is_whole))
                .and_then(|takes| self.last_progress.checked_add(takes)),
            steps: RollingMedian::new(STEP_SAMPLES),
            makes_way: false,
        }
    }

    /// Sends the running job again, with its state, because the process does not hold the state that the job starts
    /// from.
    fn send_with_state(&mut self, job: JobId) -> ControlFlow<WorkerExit> {
        let Some(running) = self.running.take_if(|r| r.id() == job) else {
            return ControlFlow::Continue(());
        };
        let session = running.job.spec.session.clone();
        let held = self.held_states.remove(&session);
        self.emit_for(&running.job, WorkerEvent::StateNotHeld { job, session });
        if held.is_none() {
            self.running = Some(running);
            return bad_link("worker misses a state that was sent to it");
        }
        self.send_job(running.job, true)?;
        // An earlier cancellation has only ended the first attempt to send the job.
        self.pass_signals()
    }

    /// Sends the running job again, without the step snapshot, which the process has refused: the job begins with the
    /// first step.
    fn send_without_snapshot(&mut self, job: JobId, reason: String) -> ControlFlow<WorkerExit> {
        let Some(running) = self.running.take_if(|r| r.id() == job) else {
            return ControlFlow::Continue(());
        };
        if running.goes_on_after.is_none() {
            self.running = Some(running);
            return bad_link("worker refuses a step snapshot that it was not sent");
        }
        let refused = WorkerEvent::SnapshotRefused {
            job,
            session: running.job.spec.session.clone(),
            reason: reason.clone(),
        };
        self.emit_for(&running.job, refused);
        running.job.snapshot.replace(None);
        running.job.tell(JobEvent::SnapshotRefused { reason });
        self.send_job(running.job, true)?;
        // An earlier cancellation has only ended the first attempt to send the job.
        self.pass_signals()
    }

    /// Makes the worker take no more jobs. It leaves at once, or when its last job has ended.
    fn leave_after_jobs(&mut self, why: LeaveReason, cut_at: Option<Instant>) {
        let before = self.leaving.replace(Leaving { cut_at });
        if before.is_none() {
            self.context.emit(WorkerEvent::Leaving { why });
            self.context
                .with_assignments(|assignments, slot| assignments.drain(slot));
        }
    }

    /// Takes back the jobs in hand after the deadline of a drain. They run again on another worker.
    fn cut_jobs(&mut self) {
        let running = self.running.take();
        let finishing = std::mem::take(&mut self.finishing);
        for JobInHand { job, .. } in running.iter().chain(finishing.values()) {
            let taken = WorkerEvent::JobTakenBack {
                job: job.spec.job,
                session: job.spec.session.clone(),
            };
            self.emit_for(job, taken);
            self.end_job(job, JobEnd::TakenBack { started: true });
        }
    }

    /// Renews a process that has served long enough or has grown too large: a standby boots beside it and takes over
    /// between two jobs or, without overlap, the process leaves first.
    fn renew(&mut self) -> ControlFlow<ServeEnd<S>> {
        if self.has_no_job() {
            match self.renewal.take() {
                Ok(Some(standby)) => return ControlFlow::Break(ServeEnd::Replaced(standby)),
                Ok(None) => {}
                Err((standby, failure)) => {
                    self.context.tracker.spawn(standby.discard());
                    self.renewal_failed(&failure);
                }
            }
        }
        if self.is_due_for_renewal() && self.renewal.may_start() {
            if self.context.config().recycle.overlap {
                let next = self.renewal.start(self.context);
                self.context.emit(WorkerEvent::RenewalStarted { next });
            } else {
                self.leave_after_jobs(LeaveReason::Renewal, None);
            }
        }
        ControlFlow::Continue(())
    }

    /// A process is renewed only after real work, because a limit that a fresh process exceeds must not keep it from
    /// serving.
    fn is_due_for_renewal(&self) -> bool {
        if self.jobs_finished == 0 {
            return false;
        }
        let recycle = self.context.config().recycle;
        let is_old = (recycle.after_segments).is_some_and(|n| self.jobs_finished >= n);
        let is_large =
            |limit| (self.context.events.resident_bytes()).is_some_and(|resident| resident > limit);
        is_old || recycle.above_bytes.is_some_and(is_large)
    }

    fn renewal_failed(&self, failure: &RenewalFailure) {
        self.context.emit(WorkerEvent::RenewalFailed {
            reason: failure.error.to_string(),
            pause: failure.pause,
        });
    }

    /// Reads the events that a dead process had still sent: it may have finished a job.
    pub(super) async fn read_last_events(&mut self) {
        let last_events = async {
            while let Some(LinkInput::Event(event, blob)) = self.link.events.recv().await {
                let _ = self.on_event(event, blob);
            }
        };
        let _ = timeout(LAST_EVENTS_TIMEOUT, last_events).await;
    }

    /// Finds out who is to blame for the exit of the process.
    pub(super) fn blame(&self) -> Blame {
        let Some(running) = &self.running else {
            return Blame::Worker;
        };
        self.context
            .with_assignments(|assignments, slot| assignments.blame(slot, &running.job.spec))
    }

    /// Hands back the jobs in hand, and then the sessions and the jobs that wait, so that a session learns how its job
    /// ended before it learns where it continues.
    pub(super) fn hand_back(&mut self, reason: &str) {
        let running = self.running.take();
        let finishing = std::mem::take(&mut self.finishing);
        for in_hand in running.iter().chain(finishing.values()) {
            self.tell_lost(&in_hand.job, true, reason);
        }
        self.hand_back_waiting(reason);
    }

    /// Hands back the sessions and the jobs that wait.
    pub(super) fn hand_back_waiting(&self, reason: &str) {
        let waiting = self
            .context
            .with_assignments(|assignments, slot| assignments.vacate(slot, Absence::Starting));
        for job in &waiting {
            self.tell_lost(job, false, reason);
        }
    }

    fn tell_lost(&self, job: &QueuedJob, started: bool, reason: &str) {
        let id = job.spec.job;
        self.emit_for(job, WorkerEvent::JobLost { job: id, started });
        job.tell(JobEvent::Ended(JobEnd::WorkerLost {
            worker: self.worker.clone(),
            started,
            reason: reason.to_owned(),
        }));
    }

    /// Ends the renewal, so that no standby is left, and returns the process's link.
    pub(super) async fn into_link(self) -> Link {
        self.renewal.abandon().await;
        self.link
    }

    pub(super) fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Emits an event of a job, in the span of the code that submitted the job.
    fn emit_for(&self, job: &QueuedJob, event: WorkerEvent) {
        job.span.in_scope(|| self.context.emit(event));
    }
}

impl JobInHand {
    fn id(&self) -> JobId {
        self.job.spec.job
    }

    /// Returns whether the process has no reason to wait: the client has taken all media so far, or the job is
    /// cancelled.
    fn waits_for_process(&self) -> bool {
        self.cancel_sent || self.unacknowledged == 0
    }

    /// Returns whether the job makes way for a viewer's, and is still wanted.
    fn is_preempted(&self) -> bool {
        let makes_way = self.video.as_ref().is_some_and(|video| video.makes_way);
        makes_way && !self.job.signals.cancelled()
    }
}

impl VideoRun {
    /// Returns until when the segment may run although a viewer's waits: the time when it is likely to be done, if that is less
    /// than a step away, and else now.
    fn may_run_until(&self, now: Instant) -> Instant {
        match (self.ends, self.steps.median()) {
            (Some(ends), Some(step)) if ends < now + step => ends.max(now),
            _ => now,
        }
    }
}

/// Sends a command. A process that does not read its commands is stuck.
fn send(link: &Link, command: Command, blobs: Vec<SharedMemory>) -> ControlFlow<WorkerExit> {
    match link.send(command, blobs) {
        true => ControlFlow::Continue(()),
        false => stuck(Stall::UnreadCommands),
    }
}

/// Returns whether a thumbnail is small enough to be passed on. A segment is not lost for a thumbnail that is not.
fn is_small(thumbnail: &Bytes, job: &QueuedJob) -> bool {
    let bytes = thumbnail.len();
    let small = bytes <= MAX_THUMBNAIL_BYTES;
    if !small {
        job.span.in_scope(|| {
            tracing::debug!(job_id = %job.spec.job, bytes, "thumbnail is too large and is dropped");
        });
    }
    small
}

/// Checks what a worker reports of a segment that it has finished.
///
/// # Errors
/// Returns an error when the report does not fit what was asked for.
fn check_report(report: &JobReport, spec: &JobSpec) -> Result<(), &'static str> {
    let frames = match &spec.video {
        Some(part) => part.frames..=part.frames,
        // A segment may leave out frames that it takes over from the one before.
        None => 1..=spec.format.num_frames,
    };
    if !frames.contains(&report.frames) {
        return Err("worker reports a number of frames that does not fit the job's format");
    }
    let is_asked_for = match (&report.video, &spec.video) {
        (None, _) => true,
        (Some(pictures), Some(part)) => are_asked_for(pictures, part),
        (Some(_), None) => false,
    };
    match is_asked_for {
        true => Ok(()),
        false => Err("worker sends larger or more pictures of a video than were asked for"),
    }
}

/// Returns whether pictures are no more and no larger than what was asked for. Some may be missing.
fn are_asked_for(pictures: &VideoPictures, part: &VideoPart) -> bool {
    let (width, height) = tile_size(part.width, part.height);
    let tile_bytes = width as usize * height as usize * 3;
    let tiles = pictures.tiles.len();
    let are_tiles = tiles <= part.tiles.len() * tile_bytes && tiles.is_multiple_of(tile_bytes);
    let is_picture = |jpeg: &Option<Bytes>, is_wanted: bool| {
        (jpeg.as_ref()).is_none_or(|jpeg| is_wanted && jpeg.len() <= MAX_PICTURE_BYTES)
    };
    are_tiles
        && is_picture(&pictures.thumbnail, part.thumbnail.is_some())
        && is_picture(&pictures.sheet, part.sheet_after.is_some())
}

fn crashed(status: io::Result<ExitStatus>) -> WorkerExit {
    let reason = status.map_or_else(|error| format!("cannot wait: {error}"), describe);
    WorkerExit::new(ExitKind::Crashed, reason)
}

fn stuck(stall: Stall) -> ControlFlow<WorkerExit> {
    ControlFlow::Break(WorkerExit::new(ExitKind::Stuck, stall.to_string()))
}

fn bad_link(reason: &str) -> ControlFlow<WorkerExit> {
    ControlFlow::Break(WorkerExit::new(ExitKind::BadLink, reason))
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
