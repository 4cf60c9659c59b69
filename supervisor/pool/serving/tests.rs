//! The state machine on a paused clock. The test plays the process, the sessions and the operator.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fastvideo_proto::adapter::Adapter;
use fastvideo_proto::job::{JobTiming, Stage};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{advance, sleep};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::pool::adapters::{OrderedAdapters, WorkerAdapterState};
use crate::pool::assignments::Placement;
use crate::pool::boot::BootError;
use crate::pool::config::Config;
use crate::pool::control::{Directive, StopSignal};
use crate::pool::fixtures::{self, assignment};
use crate::pool::job::{JobHandle, StartState, pair};
use crate::pool::lifecycle::WorkerState;
use crate::pool::link::TestWorker;
use crate::pool::renewal::StandbyBoot;
use crate::pool::restart::RestartDecision;
use crate::pool::status::WorkerStatus;
use crate::pool::testing::{snapshot_parts, step_snapshot};
use crate::tenant::Tenant;

mod videos;

/// How long a standby boots.
const STANDBY_BOOT: Duration = Duration::from_secs(20);
/// The device on which no standby becomes ready.
const BROKEN: &str = "broken";

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A standby without a process.
#[derive(Debug)]
struct TestStandby {
    incarnation: u32,
}

impl Standby for TestStandby {
    fn boot(context: &WorkerContext, give_up: CancellationToken) -> (WorkerId, StandbyBoot<Self>) {
        let plan = context.next_boot();
        let next = plan.worker_id();
        let standby = async move {
            tokio::select! {
                () = sleep(STANDBY_BOOT) => {}
                () = give_up.cancelled() => return None,
            }
            Some(match plan.gpu.visible_device.as_str() {
                BROKEN => Err(BootError::exited(ExitStatus::from_raw(9))),
                _ => Ok(Self {
                    incarnation: plan.incarnation,
                }),
            })
        };
        (next, standby.boxed())
    }

    fn exit_status(&mut self) -> Option<ExitStatus> {
        None
    }

    fn discard(self) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

/// Everything around a serving process.
struct Scene {
    context: WorkerContext,
    policy: RestartPolicy,
    controls: Controls,
    outside: Outside,
}

/// What the test plays.
struct Outside {
    status: watch::Receiver<WorkerStatus>,
    worker: TestWorker,
    directive: watch::Sender<Directive>,
    stop: watch::Sender<StopSignal>,
    assignments: Arc<crate::pool::shared_assignments::SharedAssignments>,
    notify: Arc<tokio::sync::Notify>,
    next_job: AtomicU32,
}

/// A session that is bound to the worker.
struct TestSession {
    id: SessionId,
    placement: watch::Receiver<Placement>,
}

/// Runs `script` beside a process that serves; returns how it ended, or `None` when the script was over first.
async fn serve(
    config: Config,
    script: impl AsyncFnOnce(&mut Outside),
) -> (Option<ServeEnd<TestStandby>>, Scene) {
    serve_with(config, Arc::default(), script).await
}

/// The same, with these adapters ordered.
async fn serve_with(
    config: Config,
    ordered_adapters: Arc<OrderedAdapters>,
    script: impl AsyncFnOnce(&mut Outside),
) -> (Option<ServeEnd<TestStandby>>, Scene) {
    let (context, status) = fixtures::context(config);
    let context = WorkerContext {
        ordered_adapters,
        ..context
    };
    let (link, worker) = Link::to_test_worker();
    let (directive, directive_seen) = watch::channel(Directive::default());
    let (stop, stop_seen) = watch::channel(StopSignal::Run);
    let policy = fixtures::restart_policy();
    for event in [
        WorkerEvent::Spawned { pid: 1 },
        WorkerEvent::Connected,
        WorkerEvent::Ready {
            report: fixtures::ready_report(&[]),
        },
    ] {
        context.emit(event);
    }
    context.with_assignments(|assignments, slot| assignments.serve(slot, assignment(0, 1)));
    let outside = Outside {
        status,
        worker,
        directive,
        stop,
        assignments: context.assignments.clone(),
        notify: context.notify.clone(),
        next_job: AtomicU32::new(1),
    };
    let mut scene = Scene {
        context,
        policy,
        controls: Controls::new(directive_seen, stop_seen),
        outside,
    };
    let worker = WorkerId::new(scene.context.gpu.id, 1);
    let mut serving = ServingWorker::new(&scene.context, &mut scene.policy, worker, link, &[]);
    let end = tokio::select! {
        end = serving.serve(pending(), &mut scene.controls) => Some(end),
        () = script(&mut scene.outside) => None,
    };
    if end.is_some() {
        serving.hand_back("it has ended");
    }
    (end, scene)
}

impl Outside {
    fn join(&self) -> TestSession {
        let id = SessionId::random();
        let placement = self.assignments.lock().join(id.clone(), Tenant::default());
        TestSession { id, placement }
    }

    fn submit(&self, session: &TestSession) -> JobHandle {
        self.submit_from(session, None)
    }

    fn submit_from(&self, session: &TestSession, start: Option<StartState>) -> JobHandle {
        self.submit_after(session, start, None)
    }

    fn submit_after(
        &self,
        session: &TestSession,
        start: Option<StartState>,
        snapshot: Option<StepSnapshot>,
    ) -> JobHandle {
        self.submit_spec(self.spec(session), start, snapshot)
    }

    /// The next job of a session.
    fn spec(&self, session: &TestSession) -> JobSpec {
        let id = self.next_job.fetch_add(1, Ordering::Relaxed);
        fixtures::job_spec(id.into(), session.id.clone())
    }

    fn submit_spec(
        &self,
        spec: JobSpec,
        start: Option<StartState>,
        snapshot: Option<StepSnapshot>,
    ) -> JobHandle {
        let (handle, job) = pair(spec, start, snapshot, Some(Instant::now()));
        self.assignments.lock().submit(0, job);
        handle
    }

    async fn send(&self, event: Event) {
        let blob = match event {
            Event::Finished(_) => Some(SharedMemory::from_bytes(&[1]).unwrap()),
            _ => None,
        };
        self.send_with(event, blob).await;
    }

    async fn send_with(&self, event: Event, blob: Option<SharedMemory>) {
        self.worker
            .events
            .send(LinkInput::Event(event, blob))
            .await
            .unwrap();
    }

    /// Leaves a snapshot after a step.
    async fn snapshot(&self, job: &JobHandle, step: u32) {
        let (header, latents) = snapshot_parts(step);
        let header = Box::new(header);
        let event = Event::StepSnapshot {
            job: job.id,
            header,
        };
        self.send_with(event, Some(latents)).await;
    }

    async fn heartbeat(&self) {
        self.send(Event::Heartbeat {
            resident_bytes: 1,
            gpu_bytes: None,
        })
        .await;
    }

    async fn step(&self, job: &JobHandle) {
        self.send(Event::Step {
            job: job.id,
            stage: Stage::Denoise,
            step: 1,
            total_steps: 1,
        })
        .await;
    }

    async fn finish(&self, job: &JobHandle) {
        self.send(Event::Finished(Box::new(report(job.id)))).await;
    }

    /// The next command to the process.
    async fn command(&self) -> Command {
        self.command_with_blobs().await.0
    }

    /// The next command to the process, and what is sent beside it.
    async fn command_with_blobs(&self) -> (Command, Vec<SharedMemory>) {
        for _ in 0..100 {
            if let Ok(command) = self.worker.commands.try_recv() {
                return command;
            }
            yield_now().await;
        }
        panic!("no command");
    }

    /// The state with which the next job is sent.
    async fn generate(&self, job: &JobHandle) -> Option<JobState> {
        match self.command().await {
            Command::Generate(spec) if spec.job == job.id => spec.state,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing more is sent to the process for now.
    async fn no_command(&self) {
        for _ in 0..100 {
            yield_now().await;
        }
        if let Ok((command, _)) = self.worker.commands.try_recv() {
            panic!("{command:?}");
        }
    }
}

fn report(job: JobId) -> JobReport {
    JobReport {
        job,
        state: vec![1],
        generation: seconds(1),
        timing: JobTiming::default(),
        frames: fixtures::FORMAT.num_frames,
        thumbnail: None,
        video: None,
    }
}

fn start_state(made_by: &JobHandle) -> StartState {
    StartState {
        header: vec![7],
        blob: SharedMemory::from_bytes(&[1]).unwrap(),
        made_by: Some(made_by.id),
    }
}

/// How a job ended.
async fn ended(job: &mut JobHandle) -> JobEnd {
    loop {
        match job.events.recv().await {
            Some(JobEvent::Ended(end)) => return end,
            Some(_) => {}
            None => panic!("a job without an end"),
        }
    }
}

#[track_caller]
fn check_failed(end: Option<ServeEnd<TestStandby>>, kind: ExitKind, reason: &str) {
    match end {
        Some(ServeEnd::Failed(exit)) => {
            assert_eq!((exit.kind, exit.reason.as_str()), (kind, reason));
        }
        Some(ServeEnd::Leave) => panic!("it leaves"),
        Some(ServeEnd::Replaced(_)) => panic!("it is replaced"),
        None => panic!("it serves"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_without_a_heartbeat_is_stuck() {
    let begun = Instant::now();
    let (end, _) = serve(fixtures::config(), async |outside| {
        sleep(seconds(3)).await;
        outside.heartbeat().await;
        pending().await
    })
    .await;
    check_failed(end, ExitKind::Stuck, "no heartbeat for 5s");
    assert_eq!(begun.elapsed(), seconds(8));
}

#[tokio::test(start_paused = true)]
async fn silence_while_the_supervisor_stood_still_proves_nothing() {
    let begun = Instant::now();
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let job = outside.submit(&session);
        outside.generate(&job).await;
        for _ in 0..3 {
            // All time limits pass at once, and nothing was read meanwhile.
            advance(seconds(1000)).await;
            sleep(seconds(4)).await;
            outside.heartbeat().await;
        }
        pending().await
    })
    .await;
    // From then on the process is silent while the supervisor listens.
    check_failed(end, ExitKind::Stuck, "no heartbeat for 5s");
    assert_eq!(begun.elapsed(), seconds(3 * 1004 + 5));
}

#[tokio::test(start_paused = true)]
async fn what_waits_to_be_read_goes_before_the_judgement() {
    for _ in 0..20 {
        let begun = Instant::now();
        let (end, _) = serve(fixtures::config(), async |outside| {
            sleep(seconds(5) - Duration::from_millis(1)).await;
            // The deadline passes before the word is read.
            outside.heartbeat().await;
            advance(Duration::from_millis(1)).await;
            pending().await
        })
        .await;
        check_failed(end, ExitKind::Stuck, "no heartbeat for 5s");
        assert!(begun.elapsed() >= seconds(9), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_job_without_progress_makes_its_process_stuck() {
    let begun = Instant::now();
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let job = outside.submit(&session);
        outside.generate(&job).await;
        for second in 0.. {
            if second == 10 {
                outside.step(&job).await;
            }
            sleep(seconds(1)).await;
            outside.heartbeat().await;
        }
    })
    .await;
    // The step took ten seconds: so ten times as long is the limit.
    check_failed(end, ExitKind::Stuck, "no denoise step or frame for 100s");
    assert_eq!(begun.elapsed(), seconds(110));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_exits_or_closes_its_link_has_crashed() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let closed = LinkInput::Closed(LinkEnd::Disconnected);
        outside.worker.events.send(closed).await.unwrap();
        pending().await
    })
    .await;
    check_failed(end, ExitKind::Crashed, "link closed by the worker");
    let (end, _) = serve(fixtures::config(), async |outside| {
        let garbage = LinkEnd::Garbage("odd".to_owned());
        outside
            .worker
            .events
            .send(LinkInput::Closed(garbage))
            .await
            .unwrap();
        pending().await
    })
    .await;
    let reason = "worker sent bytes that are no event: odd";
    check_failed(end, ExitKind::BadLink, reason);
    let (end, _) = serve(fixtures::config(), async |outside| {
        let ready = Box::new(fixtures::ready_report(&[]));
        outside.send(Event::Ready(ready)).await;
        pending().await
    })
    .await;
    check_failed(end, ExitKind::BadLink, "worker became ready twice");
}

#[tokio::test(start_paused = true)]
async fn jobs_run_one_after_the_other_and_their_sessions_are_told() {
    let (end, scene) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let mut first = outside.submit(&session);
        assert_eq!(outside.generate(&first).await, None);
        let mut second = outside.submit(&session);
        outside.no_command().await;
        assert_eq!(outside.status.borrow().state, WorkerState::Busy);
        outside.step(&first).await;
        outside.finish(&first).await;
        assert!(matches!(
            first.events.recv().await,
            Some(JobEvent::Started { after: None, .. })
        ));
        assert!(matches!(
            first.events.recv().await,
            Some(JobEvent::Step { .. })
        ));
        assert!(matches!(
            ended(&mut first).await,
            JobEnd::Finished { frames: 24, .. }
        ));
        outside.generate(&second).await;
        let failed = Event::Failed {
            job: second.id,
            failure: JobFailure::Failed,
            message: "broken".to_owned(),
            phases: Vec::new(),
        };
        outside.send(failed).await;
        assert!(matches!(
            ended(&mut second).await,
            JobEnd::Failed {
                failure: JobFailure::Failed,
                ..
            }
        ));
        assert_eq!(outside.status.borrow().state, WorkerState::Ready);
    })
    .await;
    assert!(end.is_none());
    assert_eq!(scene.outside.status.borrow().jobs_finished, 1);
}

#[tokio::test(start_paused = true)]
async fn credit_and_cancellation_are_passed_to_the_process() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let mut job = outside.submit(&session);
        outside.generate(&job).await;
        let media = Event::Media {
            job: job.id,
            kind: MediaKind::Fragment,
            bytes: Bytes::from_static(&[0; 10]),
            sent_at_us: 0,
        };
        outside.send(media).await;
        job.events.recv().await;
        let media = job.events.recv().await;
        outside.no_command().await;
        drop(media);
        let credit = Command::Credit {
            job: job.id,
            cost: media_cost(10),
        };
        assert_eq!(outside.command().await, credit);
        job.cancel();
        job.cancel();
        assert_eq!(outside.command().await, Command::Cancel { job: job.id });
        outside.no_command().await;
        // One that was not sent yet is cancelled at once.
        let mut waiting = outside.submit(&session);
        waiting.cancel();
        assert!(matches!(
            ended(&mut waiting).await,
            JobEnd::Failed {
                failure: JobFailure::Cancelled,
                ..
            }
        ));
        outside.no_command().await;
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn media_beyond_the_window_are_a_bad_link() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let job = outside.submit(&session);
        outside.generate(&job).await;
        // The window is 100,000 bytes, and each message costs 16 KiB at least.
        for _ in 0..8 {
            let media = Event::Media {
                job: job.id,
                kind: MediaKind::Fragment,
                bytes: Bytes::from_static(&[0; 10]),
                sent_at_us: 0,
            };
            outside.send(media).await;
        }
        pending().await
    })
    .await;
    let reason = "worker sends more media than the job's window allows";
    check_failed(end, ExitKind::BadLink, reason);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_the_process_holds_is_not_sent_unless_it_is_missed() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let first = outside.submit(&session);
        outside.generate(&first).await;
        outside.finish(&first).await;
        let second = outside.submit_from(&session, Some(start_state(&first)));
        assert_eq!(
            outside.generate(&second).await,
            Some(JobState::Held(first.id))
        );
        let missing = || Event::Failed {
            job: second.id,
            failure: JobFailure::StateNotHeld,
            message: String::new(),
            phases: Vec::new(),
        };
        outside.send(missing()).await;
        assert_eq!(
            outside.generate(&second).await,
            Some(JobState::Sent(vec![7]))
        );
        outside.send(missing()).await;
        pending().await
    })
    .await;
    let reason = "worker misses a state that was sent to it";
    check_failed(end, ExitKind::BadLink, reason);
}

/// The step after which a job is sent, with how many blobs.
async fn sent_after(outside: &Outside, job: &JobHandle) -> (Option<u32>, usize) {
    match outside.command_with_blobs().await {
        (Command::Generate(spec), blobs) if spec.job == job.id => {
            assert_eq!(spec.snapshot_min_step, Some(Duration::ZERO));
            (spec.snapshot.map(|header| header.at.step), blobs.len())
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_is_sent_with_its_snapshot_and_keeps_the_newest_one() {
    let (end, scene) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let first = outside.submit(&session);
        assert_eq!(sent_after(outside, &first).await, (None, 0));
        outside.snapshot(&first, 3).await;
        outside.snapshot(&first, 4).await;
        outside.finish(&first).await;
        outside.no_command().await;
        let snapshot = first.take_snapshot().unwrap();
        assert_eq!(snapshot.at().step, 4);
        // The process holds the state, and is sent the snapshot all the same.
        let start = Some(start_state(&first));
        let mut second = outside.submit_after(&session, start, Some(snapshot));
        assert_eq!(sent_after(outside, &second).await, (Some(4), 1));
        match second.events.recv().await {
            Some(JobEvent::Started {
                after: Some(after), ..
            }) => assert_eq!(after.step, 4),
            other => panic!("{other:?}"),
        }
        // It does not hold it after all: both are sent.
        let not_held = Event::Failed {
            job: second.id,
            failure: JobFailure::StateNotHeld,
            message: String::new(),
            phases: Vec::new(),
        };
        outside.send(not_held).await;
        assert_eq!(sent_after(outside, &second).await, (Some(4), 2));
        outside.snapshot(&second, 5).await;
        outside.no_command().await;
        assert_eq!(second.take_snapshot().unwrap().at().step, 5);
        // The job is of no interest any more.
        outside.snapshot(&second, 6).await;
        outside.no_command().await;
        assert!(second.take_snapshot().is_none());
    })
    .await;
    assert!(end.is_none());
    assert_eq!(scene.context.events.held_snapshot_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_snapshot_is_refused_is_sent_again_without_it() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let snapshot = step_snapshot(7, &Default::default());
        let mut job = outside.submit_after(&session, None, Some(snapshot));
        assert_eq!(sent_after(outside, &job).await, (Some(7), 1));
        let refused = || Event::Failed {
            job: job.id,
            failure: JobFailure::SnapshotRefused,
            message: "another model".to_owned(),
            phases: Vec::new(),
        };
        outside.send(refused()).await;
        assert_eq!(sent_after(outside, &job).await, (None, 0));
        outside.send(refused()).await;
        assert!(matches!(
            job.events.recv().await,
            Some(JobEvent::Started { .. })
        ));
        match job.events.recv().await {
            Some(JobEvent::SnapshotRefused { reason }) => assert_eq!(reason, "another model"),
            other => panic!("{other:?}"),
        }
        pending().await
    })
    .await;
    let reason = "worker refuses a step snapshot that it was not sent";
    check_failed(end, ExitKind::BadLink, reason);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_none_is_a_bad_link() {
    for (spoil, reason) in [
        (0, "worker sends a step snapshot without its latents"),
        (
            1,
            "worker sends a bad step snapshot: its field `step`: expected 1 to 20, got 21",
        ),
        (
            2,
            "worker sends a bad step snapshot: it is 1 bytes, its header says 4",
        ),
    ] {
        let (end, _) = serve(fixtures::config(), async |outside| {
            let session = outside.join();
            let job = outside.submit(&session);
            outside.generate(&job).await;
            let (mut header, latents) = snapshot_parts(3);
            let latents = match spoil {
                0 => None,
                1 => {
                    header.at.step = 21;
                    Some(latents)
                }
                _ => Some(SharedMemory::from_bytes(&[1]).unwrap()),
            };
            let event = Event::StepSnapshot {
                job: job.id,
                header: Box::new(header),
            };
            outside.send_with(event, latents).await;
            pending().await
        })
        .await;
        check_failed(end, ExitKind::BadLink, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_snapshot_of_a_process_that_died_is_kept() {
    let mut lost = None;
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let job = outside.submit(&session);
        outside.generate(&job).await;
        outside.snapshot(&job, 9).await;
        let closed = LinkInput::Closed(LinkEnd::Disconnected);
        outside.worker.events.send(closed).await.unwrap();
        lost = Some(job);
        pending().await
    })
    .await;
    check_failed(end, ExitKind::Crashed, "link closed by the worker");
    let mut job = lost.unwrap();
    assert!(matches!(ended(&mut job).await, JobEnd::WorkerLost { .. }));
    assert_eq!(job.take_snapshot().unwrap().at().step, 9);
}

#[tokio::test(start_paused = true)]
async fn a_state_of_a_session_that_left_is_forgotten() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let job = outside.submit(&session);
        outside.generate(&job).await;
        outside.finish(&job).await;
        outside.no_command().await;
        outside.assignments.lock().leave(&session.id);
        let forget = Command::Forget {
            session: session.id.clone(),
        };
        assert_eq!(outside.command().await, forget);
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_drained_worker_leaves_when_its_job_has_ended() {
    let (end, scene) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let job = outside.submit(&session);
        outside.generate(&job).await;
        outside.directive.send_replace(Directive {
            drained: true,
            cut_at: None,
        });
        sleep(seconds(2)).await;
        assert_eq!(outside.status.borrow().state, WorkerState::Draining);
        assert!(matches!(*session.placement.borrow(), Placement::Bound(_)));
        outside.finish(&job).await;
        pending().await
    })
    .await;
    assert!(matches!(end, Some(ServeEnd::Leave)));
    assert_eq!(scene.outside.status.borrow().jobs_finished, 1);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_outlast_the_deadline_of_a_drain_are_taken_back() {
    let mut taken = None;
    let begun = Instant::now();
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let job = outside.submit(&session);
        outside.generate(&job).await;
        outside.directive.send_replace(Directive {
            drained: true,
            cut_at: Some(Instant::now() + seconds(3)),
        });
        taken = Some(job);
        pending().await
    })
    .await;
    assert!(matches!(end, Some(ServeEnd::Leave)));
    assert_eq!(begun.elapsed(), seconds(3));
    let end = ended(&mut taken.unwrap()).await;
    assert!(matches!(end, JobEnd::TakenBack { started: true }));
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_process_that_ends_are_lost() {
    let mut jobs = Vec::new();
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let running = outside.submit(&session);
        outside.generate(&running).await;
        let waiting = outside.submit(&session);
        jobs = vec![running, waiting];
        pending().await
    })
    .await;
    check_failed(end, ExitKind::Stuck, "no heartbeat for 5s");
    for (job, was_started) in jobs.iter_mut().zip([true, false]) {
        match ended(job).await {
            JobEnd::WorkerLost { started, .. } => assert_eq!(started, was_started),
            // The session was unbound from the worker, and its waiting job with it.
            JobEnd::TakenBack { started } => assert_eq!((started, was_started), (false, false)),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_leaves_at_once() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let job = outside.submit(&session);
        outside.generate(&job).await;
        outside.stop.send_replace(StopSignal::Ask);
        pending().await
    })
    .await;
    assert!(matches!(end, Some(ServeEnd::Leave)));
}

fn recycling(overlap: bool) -> Config {
    let mut config = fixtures::config();
    config.recycle.after_segments = Some(1);
    config.recycle.overlap = overlap;
    config.heartbeat_timeout = seconds(1000);
    config
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_overlap_leaves_to_be_renewed() {
    let (end, _) = serve(recycling(false), async |outside| {
        let session = outside.join();
        let job = outside.submit(&session);
        outside.generate(&job).await;
        outside.finish(&job).await;
        pending().await
    })
    .await;
    assert!(matches!(end, Some(ServeEnd::Leave)));
}

#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_between_two_jobs() {
    let (end, _) = serve(recycling(true), async |outside| {
        let session = outside.join();
        let first = outside.submit(&session);
        outside.generate(&first).await;
        outside.finish(&first).await;
        // The process serves on while the standby boots.
        let second = outside.submit(&session);
        outside.generate(&second).await;
        sleep(STANDBY_BOOT + seconds(1)).await;
        outside.submit(&session);
        outside.no_command().await;
        outside.finish(&second).await;
        pending().await
    })
    .await;
    match end {
        Some(ServeEnd::Replaced(standby)) => assert_eq!(standby.incarnation, 2),
        _ => panic!("it is not replaced"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_the_gpu_up_for_a_moment_only() {
    let (end, _) = serve(recycling(true), async |outside| {
        let (deaf, other) = (outside.join(), outside.join());
        let first = outside.submit(&deaf);
        outside.generate(&first).await;
        outside.finish(&first).await;
        let unread = outside.submit(&deaf);
        outside.generate(&unread).await;
        sleep(STANDBY_BOOT + seconds(1)).await;
        let next = outside.submit(&other);
        outside.send(Event::Generated { job: unread.id }).await;
        // The standby is ready, and would take over if the media were out.
        outside.no_command().await;
        sleep(seconds(1)).await;
        outside.generate(&next).await;
        outside.finish(&next).await;
        outside.finish(&unread).await;
        pending().await
    })
    .await;
    assert!(matches!(end, Some(ServeEnd::Replaced(_))));
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_standby_fails_goes_on_and_tries_again_later() {
    let mut config = recycling(true);
    config.gpus[0].visible_device = BROKEN.to_owned();
    let (end, scene) = serve(config, async |outside| {
        let session = outside.join();
        let job = outside.submit(&session);
        outside.generate(&job).await;
        outside.finish(&job).await;
        // Pauses of 1, 2, 4, 8 and 10 seconds.
        sleep(5 * STANDBY_BOOT + seconds(26)).await;
        let job = outside.submit(&session);
        outside.generate(&job).await;
    })
    .await;
    assert!(end.is_none());
    // The first process, five standbys that failed, and one that boots.
    assert_eq!(scene.context.incarnations.load(Ordering::Relaxed), 7);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_that_nobody_holds_counts_for_nothing() {
    let (end, mut scene) = serve(recycling(false), async |outside| {
        outside
            .send(Event::Finished(Box::new(report(JobId(99)))))
            .await;
        outside.heartbeat().await;
        outside.no_command().await;
    })
    .await;
    // Neither is the worker renewed, nor are earlier exits forgiven, nor does anybody see a finished segment.
    assert!(end.is_none());
    assert_eq!(scene.outside.status.borrow().jobs_finished, 0);
    let crash = WorkerExit::new(ExitKind::Crashed, "for a reason");
    let decisions: Vec<_> = (0..3).map(|_| scene.policy.decide(&crash)).collect();
    assert_eq!(
        decisions[2],
        Some(RestartDecision::Quarantine { trial: None })
    );
}

#[tokio::test(start_paused = true)]
async fn a_number_of_frames_that_does_not_fit_the_format_is_a_bad_link() {
    for frames in [0, fixtures::FORMAT.num_frames + 1, u32::MAX] {
        let (end, _) = serve(fixtures::config(), async |outside| {
            let session = outside.join();
            let job = outside.submit(&session);
            outside.generate(&job).await;
            let report = JobReport {
                frames,
                ..report(job.id)
            };
            outside.send(Event::Finished(Box::new(report))).await;
            pending().await
        })
        .await;
        let reason = "worker reports a number of frames that does not fit the job's format";
        check_failed(end, ExitKind::BadLink, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_thumbnail_that_is_too_large_is_dropped_and_nothing_else() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        for (bytes, kept) in [
            (MAX_THUMBNAIL_BYTES, true),
            (MAX_THUMBNAIL_BYTES + 1, false),
        ] {
            let mut job = outside.submit(&session);
            outside.generate(&job).await;
            let sent = Bytes::from(vec![7; bytes]);
            let report = JobReport {
                thumbnail: Some(sent.clone()),
                ..report(job.id)
            };
            outside.send(Event::Finished(Box::new(report))).await;
            match ended(&mut job).await {
                JobEnd::Finished { thumbnail, .. } => {
                    assert_eq!(thumbnail, kept.then_some(sent), "{bytes} bytes");
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    assert!(end.is_none());
}

fn preview(frame: u32, bytes: usize) -> Preview {
    Preview {
        frame,
        num_frames: 40,
        width: 64,
        height: 64,
        jpeg: vec![7; bytes].into(),
    }
}

#[tokio::test(start_paused = true)]
async fn previews_are_passed_on_and_are_no_progress() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let spec = JobSpec {
            previews: true,
            ..outside.spec(&session)
        };
        let mut job = outside.submit_spec(spec, None, None);
        outside.generate(&job).await;
        for frame in 0..MAX_PREVIEWS {
            let preview = preview(frame, MAX_PREVIEW_BYTES);
            outside
                .send(Event::Preview {
                    job: job.id,
                    preview,
                })
                .await;
        }
        // Of a job that is over: nobody asks for it any more.
        let (job_id, preview) = (JobId(99), preview(0, 1));
        outside
            .send(Event::Preview {
                job: job_id,
                preview,
            })
            .await;
        outside.finish(&job).await;
        let mut frames = Vec::new();
        loop {
            match job.events.recv().await.unwrap() {
                JobEvent::Preview(preview) => frames.push(preview.frame),
                JobEvent::Started { .. } => {}
                JobEvent::Ended(JobEnd::Finished { .. }) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(frames, Vec::from_iter(0..MAX_PREVIEWS));
    })
    .await;
    assert!(end.is_none());

    // Previews come while the engine hangs.
    let mut config = fixtures::config();
    config.heartbeat_timeout = 10 * config.min_step_timeout;
    let limit = config.min_step_timeout;
    let (end, _) = serve(config, async |outside| {
        let session = outside.join();
        let spec = JobSpec {
            previews: true,
            ..outside.spec(&session)
        };
        let job = outside.submit_spec(spec, None, None);
        outside.generate(&job).await;
        for frame in 0..MAX_PREVIEWS {
            sleep(limit / 4).await;
            let preview = preview(frame, 1);
            outside
                .send(Event::Preview {
                    job: job.id,
                    preview,
                })
                .await;
        }
        pending().await
    })
    .await;
    let Some(ServeEnd::Failed(exit)) = end else {
        panic!("it goes on");
    };
    assert_eq!(exit.kind, ExitKind::Stuck);
}

#[tokio::test(start_paused = true)]
async fn previews_beyond_what_is_allowed_are_a_bad_link() {
    let unasked = "worker sends a preview that was not asked for";
    let beyond = "worker sends larger or more previews than are allowed";
    for (previews, count, bytes, reason) in [
        (false, 1, 1, unasked),
        (true, 1, MAX_PREVIEW_BYTES + 1, beyond),
        (true, MAX_PREVIEWS + 1, 1, beyond),
    ] {
        let (end, _) = serve(fixtures::config(), async |outside| {
            let session = outside.join();
            let spec = JobSpec {
                previews,
                ..outside.spec(&session)
            };
            let job = outside.submit_spec(spec, None, None);
            outside.generate(&job).await;
            for frame in 0..count {
                let preview = preview(frame, bytes);
                outside
                    .send(Event::Preview {
                        job: job.id,
                        preview,
                    })
                    .await;
            }
            pending().await
        })
        .await;
        check_failed(end, ExitKind::BadLink, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_that_is_generated_after_its_session_left_is_not_held() {
    let (context, _) = fixtures::context(fixtures::config());
    let mut policy = fixtures::restart_policy();
    let (link, _worker) = Link::to_test_worker();
    let id = WorkerId::new(context.gpu.id, 1);
    context.with_assignments(|assignments, slot| assignments.serve(slot, assignment(0, 1)));
    let session = SessionId::random();
    let _placement = context
        .assignments
        .lock()
        .join(session.clone(), Tenant::default());
    let spec = fixtures::job_spec(1, session.clone());
    let (_job, queued) = pair(spec, None, None, Some(Instant::now()));
    context.assignments.lock().submit(0, queued);
    let mut serving = ServingWorker::<TestStandby>::new(&context, &mut policy, id, link, &[]);
    assert!(serving.start_next_job().is_continue());
    context.assignments.lock().leave(&session);
    assert!(serving.pass_signals().is_continue());
    let blob = SharedMemory::from_bytes(&[1]).unwrap();
    assert!(serving.on_finished(report(JobId(1)), blob).is_continue());
    assert!(serving.has_no_job() && serving.held_states.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_leaves_its_signals_unread_is_stuck() {
    let (end, _) = serve(fixtures::config(), async |outside| {
        let session = outside.join();
        let mut job = outside.submit(&session);
        job.events.recv().await;
        // Nobody reads the commands.
        loop {
            let media = Event::Media {
                job: job.id,
                kind: MediaKind::Fragment,
                bytes: Bytes::from_static(&[0; 10]),
                sent_at_us: 0,
            };
            outside.send(media).await;
            drop(job.events.recv().await);
            yield_now().await;
        }
    })
    .await;
    check_failed(end, ExitKind::Stuck, "worker does not read its commands");
}

#[tokio::test(start_paused = true)]
async fn a_finishing_job_whose_media_are_taken_has_a_deadline() {
    let mut config = fixtures::config();
    config.heartbeat_timeout = seconds(1000);
    let begun = Instant::now();
    let (end, _) = serve(config, async |outside| {
        let session = outside.join();
        let mut job = outside.submit(&session);
        outside.generate(&job).await;
        let media = Event::Media {
            job: job.id,
            kind: MediaKind::Fragment,
            bytes: Bytes::from_static(&[0; 10]),
            sent_at_us: 0,
        };
        outside.send(media).await;
        outside.send(Event::Generated { job: job.id }).await;
        job.events.recv().await;
        let media = job.events.recv().await;
        // As long as the client takes nothing, the process has to wait.
        sleep(seconds(100)).await;
        drop(media);
        pending().await
    })
    .await;
    let reason = "worker has not ended a job for 30s whose media the client has taken";
    check_failed(end, ExitKind::Stuck, reason);
    assert_eq!(begun.elapsed(), seconds(130));
}

fn adapter(name: &str) -> Adapter {
    Adapter {
        name: name.to_owned(),
        strength: 1.0,
    }
}

fn held(name: &str) -> HeldAdapter {
    HeldAdapter {
        name: name.to_owned(),
        bytes: 7,
        layers: 1,
        rank: 4,
        file_hash: [7; 32],
        metadata: Default::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn adapters_are_loaded_and_dropped_between_two_jobs() {
    let ordered = Arc::<OrderedAdapters>::default();
    let (end, _) = serve_with(fixtures::config(), ordered.clone(), async |outside| {
        let session = outside.join();
        let first = outside.submit(&session);
        outside.generate(&first).await;
        let serial = ordered
            .add(adapter("toon"), "{}".to_owned())
            .unwrap()
            .serial;
        outside.notify.notify_one();
        outside.no_command().await;
        outside.finish(&first).await;
        let Command::LoadAdapter(spec) = outside.command().await else {
            panic!("no adapter is loaded");
        };
        assert_eq!((spec.name.as_str(), spec.serial), ("toon", serial));

        // No job begins before the adapter is loaded.
        let second = outside.submit(&session);
        outside.no_command().await;
        let state = |outside: &Outside| outside.status.borrow().adapters["toon"].state.clone();
        assert_eq!(state(outside), WorkerAdapterState::Loading);
        let loaded = Box::new(held("toon"));
        outside
            .send(Event::AdapterLoaded {
                serial,
                adapter: loaded,
            })
            .await;
        outside.generate(&second).await;
        assert_eq!(state(outside), WorkerAdapterState::Loaded(held("toon")));
        outside.finish(&second).await;

        assert!(ordered.remove("toon"));
        outside.notify.notify_one();
        let unload = Command::UnloadAdapter {
            name: "toon".to_owned(),
        };
        assert_eq!(outside.command().await, unload);
        assert!(outside.status.borrow().adapters.is_empty());

        // One that cannot be loaded is told, and not tried again.
        let serial = ordered.add(adapter("bad"), "{}".to_owned()).unwrap().serial;
        outside.notify.notify_one();
        assert!(matches!(outside.command().await, Command::LoadAdapter(_)));
        let message = "it does not fit".to_owned();
        outside
            .send(Event::AdapterFailed {
                serial,
                message: message.clone(),
            })
            .await;
        let third = outside.submit(&session);
        outside.generate(&third).await;
        let state = outside.status.borrow().adapters["bad"].state.clone();
        assert_eq!(state, WorkerAdapterState::Failed(message));
        outside.finish(&third).await;
        outside.no_command().await;
    })
    .await;
    assert!(end.is_none());
}

/// The other worker of the server has loaded another file for the same order.
#[tokio::test(start_paused = true)]
async fn a_file_that_has_changed_since_is_dropped_again() {
    let ordered = Arc::<OrderedAdapters>::default();
    let serial = ordered
        .add(adapter("toon"), "{}".to_owned())
        .unwrap()
        .serial;
    assert!(ordered.is_same_file(serial, [1; 32]));
    let (end, _) = serve_with(fixtures::config(), ordered, async |outside| {
        assert!(matches!(outside.command().await, Command::LoadAdapter(_)));
        let adapter = Box::new(held("toon"));
        outside.send(Event::AdapterLoaded { serial, adapter }).await;
        let unload = Command::UnloadAdapter {
            name: "toon".to_owned(),
        };
        assert_eq!(outside.command().await, unload);
        let state = outside.status.borrow().adapters["toon"].state.clone();
        let WorkerAdapterState::Failed(message) = state else {
            panic!("{state:?}");
        };
        assert!(message.contains("has changed"), "{message}");
        outside.no_command().await;
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_adapter_was_unloaded_goes_back_to_its_session() {
    let (end, _) = serve_with(fixtures::config(), Arc::default(), async |outside| {
        let session = outside.join();
        let spec = JobSpec {
            adapters: vec![adapter("toon")],
            ..outside.spec(&session)
        };
        let mut job = outside.submit_spec(spec, None, None);
        outside.no_command().await;
        let event = job.events.recv().await;
        assert!(
            matches!(
                event,
                Some(JobEvent::Ended(JobEnd::TakenBack { started: false }))
            ),
            "{event:?}"
        );
        let second = outside.submit(&session);
        outside.generate(&second).await;
        outside.finish(&second).await;
    })
    .await;
    assert!(end.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_not_end_to_load_an_adapter_is_stuck() {
    let begun = Instant::now();
    let ordered = Arc::<OrderedAdapters>::default();
    ordered.add(adapter("toon"), "{}".to_owned()).unwrap();
    let (end, _) = serve_with(fixtures::config(), ordered, async |outside| {
        loop {
            sleep(seconds(1)).await;
            outside.heartbeat().await;
        }
    })
    .await;
    check_failed(end, ExitKind::Stuck, "adapter not loaded within 60s");
    assert_eq!(begun.elapsed(), seconds(60));
}
