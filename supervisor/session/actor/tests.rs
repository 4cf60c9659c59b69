//! Whole sessions on the paused clock, with workers that the test plays and the store in memory.

use std::net::Ipv4Addr;

use fastvideo_proto::ids::{SessionId, VideoId};
use fastvideo_proto::job::{ErrorCode, JobFailure};
use tokio::task::JoinSet;
use tokio::time::{advance, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::*;
use crate::auth::{self, Auth, Caller, Grant};
use crate::current::Current;
use crate::pool::testing::{TestJob, TestWorkers, video_spec};
use crate::prompt::Prompts;
use crate::session::command::{
    Have, MessageInfo, OpenSession, PlaybackReport, ResumeRequest, RewriteRequest, SessionCommand,
};
use crate::session::event::WorkerBound;
use crate::session::registry::Registry;
use crate::session::tests::config;
use crate::session::{Broadcasts, Config, Logs, SessionMetrics};
use crate::store::open::{self, StoreLocation};
use crate::store::records::ledger;
use crate::store::{Recording, SessionStore, Upkeep, handle};

/// A server without processes.
struct World {
    workers: TestWorkers,
    context: Context,
    registry: Registry,
    drain: watch::Sender<Drain>,
    _upkeep: JoinSet<()>,
}

/// A client that takes its session's events at once, or not at all.
struct Client {
    inbound: mpsc::Sender<Box<Inbound>>,
    outbox: Outbox,
    session: JoinSet<()>,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config();
        change(&mut config);
        let workers = TestWorkers::new(1, 4);
        let store = open::Config {
            location: StoreLocation::memory(ledger::Limits {
                max_sessions: 100,
                max_bytes: 1 << 30,
                max_media_bytes: 1 << 40,
            }),
            wait: Duration::ZERO,
            sessions: handle::Config {
                resume_ttl: Duration::from_secs(300),
                lease: Duration::from_secs(6),
                timeout: Duration::from_secs(2),
                required_for_readiness: false,
                recording: Some(Recording {
                    max_session_bytes: 3 << 20,
                    max_bytes: 1 << 30,
                    ttl: Duration::from_secs(3600),
                }),
            },
        };
        let (drain, drain_seen) = watch::channel(Drain::No);
        let context = Context {
            metrics: SessionMetrics::default(),
            traces: crate::traces::Traces::default(),
            broadcasts: Broadcasts::new(config.limits.spectators),
            config: Current::new(config),
            pool: workers.pool().clone(),
            prompts: Prompts::open(crate::prompt::Config::default()).unwrap(),
            store: SessionStore::open(store).await.unwrap(),
            drain: drain_seen,
            logs: Logs::default(),
            writes: TaskTracker::new(),
        };
        let upkeep = JoinSet::from_iter([Upkeep::new(context.store.clone()).run()]);
        Self {
            workers,
            context,
            registry: Registry::default(),
            drain,
            _upkeep: upkeep,
        }
    }

    /// A server with a worker that serves.
    async fn serving() -> Self {
        let mut world = Self::new().await;
        world.workers.serve(0);
        world
    }

    fn connect(&self) -> Client {
        let (inbound, inbound_seen) = mpsc::channel(4);
        let outbox = Outbox::new(self.context.config.get().max_unsent_bytes);
        let session = run(
            ClientAddress::of(Ipv4Addr::LOCALHOST.into()),
            Grant::new(Auth::new(auth::Config::default()), Caller::anyone()),
            Origin::Direct,
            self.registry.clone(),
            inbound_seen,
            outbox.clone(),
            self.context.clone(),
        );
        Client {
            inbound,
            outbox,
            session: JoinSet::from_iter([session]),
        }
    }

    async fn open(&self, opening: OpenSession) -> Client {
        let client = self.connect();
        client.send(Inbound::Open(Box::new(opening))).await;
        client
    }

    /// A client whose session is bound to the worker.
    async fn active(&self, opening: OpenSession) -> Client {
        let mut client = self.open(opening).await;
        client.bound().await;
        client
    }

    async fn job(&self) -> TestJob {
        self.workers.next_job(0).await
    }
}

impl Client {
    async fn send(&self, inbound: Inbound) {
        self.inbound.send(Box::new(inbound)).await.unwrap();
    }

    async fn command(&self, command: SessionCommand) {
        let message = MessageInfo {
            kind: "test",
            bytes: 1,
        };
        let request = None;
        self.send(Inbound::Command {
            message,
            request,
            command,
        })
        .await;
    }

    async fn request(&self, prompt: &str) {
        let request = crate::session::command::SegmentRequest {
            prompt: prompt.to_owned(),
            ..Default::default()
        };
        self.command(SessionCommand::RequestSegment(Box::new(request)))
            .await;
    }

    /// The next event with this name; what comes before is passed over.
    async fn until(&mut self, expected: &str) -> SessionEvent {
        let found = async {
            loop {
                let (event, _) = self.outbox.next().await;
                if name(&event) == expected {
                    return event;
                }
                assert_ne!(name(&event), "Ended", "before {expected}: {event:?}");
            }
        };
        let found = timeout(Duration::from_secs(3600), found).await;
        found.unwrap_or_else(|_| panic!("no {expected}"))
    }

    /// The names of the events up to the one with this name.
    async fn names_until(&mut self, expected: &str) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let (event, _) = self.outbox.next().await;
            names.push(name(&event));
            if names.last().is_some_and(|name| name == expected) {
                return names;
            }
        }
    }

    async fn bound(&mut self) -> WorkerBound {
        match self.until("WorkerBound").await {
            SessionEvent::WorkerBound(bound) => *bound,
            other => panic!("{other:?}"),
        }
    }

    /// Why the session has ended.
    async fn ended(&mut self) -> EndCause {
        let SessionEvent::Ended(ended) = self.until("Ended").await else {
            unreachable!("asked for that event");
        };
        if let Some(joined) = self.session.join_next().await {
            joined.unwrap();
        }
        ended.cause
    }

    async fn not_opened(&mut self) -> NotOpened {
        match self.until("NotOpened").await {
            SessionEvent::NotOpened(why) => why,
            other => panic!("{other:?}"),
        }
    }

    /// Code, message and `retryable` of the next error that concerns no segment.
    async fn error(&mut self) -> (ErrorCode, String, bool) {
        match self.until("Error").await {
            SessionEvent::Error {
                code,
                message,
                retryable,
                ..
            } => (code, message, retryable),
            other => panic!("{other:?}"),
        }
    }
}

fn name(event: &SessionEvent) -> String {
    let text = format!("{event:?}");
    let end = text.find(|c: char| !c.is_alphanumeric());
    text[..end.unwrap_or(text.len())].to_owned()
}

fn looping() -> OpenSession {
    OpenSession {
        curated_prompts: vec!["a hill".to_owned()],
        looping: true,
        ..OpenSession::default()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_session_waits_is_bound_and_makes_a_segment() {
    let mut world = World::new().await;
    let mut client = world.open(OpenSession::default()).await;
    client.request("a fox").await;
    let waiting = client.names_until("Queued").await;
    assert_eq!(waiting, ["Opened", "StateChanged", "Queued"]);
    client.until("PromptReceived").await;
    world.workers.serve(0);
    let bound = client.names_until("SegmentQueued").await;
    let expected = [
        "StateChanged",
        "WorkerBound",
        "StateChanged",
        "SegmentQueued",
    ];
    assert_eq!(bound, expected);
    let job = world.job().await;
    assert_eq!(job.spec().prompt, "a fox");
    job.step(1);
    job.media(100);
    job.finish();
    let made = client.names_until("SegmentCompleted").await;
    let expected = [
        "SegmentStarted",
        "StepDone",
        "Media",
        "SegmentFinished",
        "SegmentCompleted",
    ];
    assert_eq!(made, expected);
}

#[tokio::test(start_paused = true)]
async fn a_video_job_waits_until_the_viewer_has_seen_what_there_is() {
    let world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    client.request("a fox").await;
    let job = world.job().await;
    job.media(100);
    job.finish();
    client.until("SegmentCompleted").await;
    let begun = Instant::now();
    world.workers.record_video_time(0, 60 * SECOND);
    let asker = (world.context.pool).video_asker(VideoId::after(None, 0, 1));
    let _segment = asker.submit(video_spec(), None, None);
    let _job = world.job().await;
    let plays = world.context.config.get().format.duration();
    let waited = begun.elapsed();
    assert!(waited.abs_diff(plays) < SECOND / 100, "{waited:?}");
}

/// The frames of the previews up to the end of the segment.
async fn previews(client: &mut Client) -> Vec<u32> {
    let mut frames = Vec::new();
    loop {
        match client.outbox.next().await.0 {
            SessionEvent::Preview { preview, .. } => frames.push(preview.frame),
            SessionEvent::SegmentCompleted(_) => return frames,
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn previews_come_before_the_media_and_to_those_who_ask() {
    for (asks, makes) in [(true, true), (true, false), (false, true)] {
        let mut world = World::with(|config| config.previews = makes).await;
        world.workers.serve(0);
        let opening = OpenSession {
            preview: asks,
            ..OpenSession::default()
        };
        let mut client = world.active(opening).await;
        client.request("a fox").await;
        let job = world.job().await;
        assert_eq!(job.spec().previews, asks && makes);
        job.step(1);
        job.preview(3, 1000);
        job.preview(7, 1000);
        job.media(100);
        // The encoder was late.
        job.preview(7, 1000);
        job.finish();
        // A worker sends none that was not asked for.
        assert_eq!(previews(&mut client).await, [3, 7]);
    }
}

#[tokio::test(start_paused = true)]
async fn previews_never_fill_the_window() {
    let mut world = World::with(|config| {
        config.previews = true;
        config.max_unsent_bytes = 20_000;
    })
    .await;
    world.workers.serve(0);
    let opening = OpenSession {
        preview: true,
        ..OpenSession::default()
    };
    let mut client = world.active(opening).await;
    client.request("a fox").await;
    let job = world.job().await;
    // In base64 each has 8000 bytes, and the client takes none.
    for frame in 0..4 {
        job.preview(frame, 6000);
    }
    job.step(1);
    sleep(SECOND).await;
    assert!(client.outbox.full_since().is_none());
    job.media(100);
    job.finish();
    assert_eq!(previews(&mut client).await, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_next_segment_continues_where_the_last_one_ended() {
    let world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    for segment_idx in 0..2 {
        client.request("a fox").await;
        let job = world.job().await;
        let spec = job.spec();
        assert_eq!(spec.segment_idx, segment_idx);
        assert_eq!(spec.start_frame, u64::from(segment_idx) * 8);
        job.finish();
        client.until("SegmentCompleted").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_without_activity_ends_but_not_while_a_segment_runs() {
    let world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    client.request("a fox").await;
    let job = world.job().await;
    sleep(1000 * SECOND).await;
    job.finish();
    let finished = Instant::now();
    assert_eq!(client.ended().await, EndCause::Idle(300 * SECOND));
    assert_eq!(finished.elapsed(), 300 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_message_now_and_then_keeps_a_session() {
    let world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    for _ in 0..5 {
        sleep(200 * SECOND).await;
        client.command(SessionCommand::SetPaused(false)).await;
    }
    let last = Instant::now();
    client.ended().await;
    assert_eq!(last.elapsed(), 300 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_its_window_full_is_ended() {
    let mut world = World::with(|config| config.max_unsent_bytes = 100_000).await;
    world.workers.serve(0);
    let mut client = world.active(looping()).await;
    let job = world.job().await;
    for _ in 0..10 {
        job.media(16 << 10);
    }
    job.finish();
    let full = Instant::now();
    // Nothing more is generated for it, and it is ended in the end.
    client.session.join_next().await.unwrap().unwrap();
    assert_eq!(full.elapsed(), 30 * SECOND);
    assert_eq!(client.names_until("Ended").await, ["StateChanged", "Ended"]);
}

#[tokio::test(start_paused = true)]
async fn time_in_which_the_server_stood_still_counts_against_no_client() {
    let mut world = World::with(|config| config.max_unsent_bytes = 100_000).await;
    world.workers.serve(0);
    let mut idle = world.active(OpenSession::default()).await;
    sleep(200 * SECOND).await;
    advance(1000 * SECOND).await;
    let resumed = Instant::now();
    assert_eq!(idle.ended().await, EndCause::Idle(300 * SECOND));
    assert_eq!(resumed.elapsed(), 300 * SECOND);

    let mut client = world.active(looping()).await;
    let job = world.job().await;
    for _ in 0..10 {
        job.media(16 << 10);
    }
    job.finish();
    sleep(10 * SECOND).await;
    advance(1000 * SECOND).await;
    let resumed = Instant::now();
    client.session.join_next().await.unwrap().unwrap();
    assert_eq!(resumed.elapsed(), 30 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_only_sends_while_its_window_is_full_is_ended() {
    let mut world = World::with(|config| config.max_unsent_bytes = 1000).await;
    world.workers.serve(0);
    let mut client = world.active(OpenSession::default()).await;
    let mut sent = 0;
    while client.session.try_join_next().is_none() {
        let message = MessageInfo {
            kind: "invalid",
            bytes: 1,
        };
        let reason = "x".repeat(100);
        let invalid = Inbound::Invalid {
            message,
            request: None,
            reason,
        };
        if client.inbound.send(Box::new(invalid)).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!((1000..1020).contains(&sent), "{sent}");
    assert_eq!(client.ended().await, EndCause::SlowClient);
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_the_segment_finish_and_lingers_for_a_last_export() {
    let world = World::serving().await;
    let mut client = world.active(looping()).await;
    let job = world.job().await;
    let begun = Instant::now();
    world.drain.send_replace(Drain::Until(begun + 60 * SECOND));
    client.until("Draining").await;
    client.request("a fox").await;
    let (code, _, retryable) = client.error().await;
    assert_eq!((code, retryable), (ErrorCode::SessionRejected, true));
    sleep(10 * SECOND).await;
    job.finish();
    client.until("SegmentCompleted").await;
    client.command(SessionCommand::ExportState).await;
    client.until("StateExported").await;
    assert_eq!(client.ended().await, EndCause::Draining);
    assert_eq!(begun.elapsed(), 12 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_a_segment_that_runs_at_its_deadline_which_may_come_nearer() {
    let world = World::serving().await;
    let mut client = world.active(looping()).await;
    let job = world.job().await;
    let begun = Instant::now();
    world.drain.send_replace(Drain::Until(begun + 60 * SECOND));
    client.until("Draining").await;
    world.drain.send_replace(Drain::Until(begun + 5 * SECOND));
    assert_eq!(client.ended().await, EndCause::Draining);
    assert_eq!(begun.elapsed(), 5 * SECOND);
    assert!(job.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_sessions_that_wait_and_connections_without_a_session_at_once() {
    let world = World::new().await;
    let mut waiting = world.open(OpenSession::default()).await;
    waiting.until("Queued").await;
    let mut unopened = world.connect();
    let begun = Instant::now();
    world.drain.send_replace(Drain::Until(begun + 60 * SECOND));
    assert_eq!(waiting.ended().await, EndCause::Draining);
    assert!(matches!(unopened.not_opened().await, NotOpened::Draining));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_segment_leaves_its_index_to_the_next_one() {
    let world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    client.command(SessionCommand::CancelSegment).await;
    assert_eq!(client.error().await.1, "no segment is running");
    client.request("a fox").await;
    let job = world.job().await;
    job.media(100);
    client.until("Media").await;
    client.command(SessionCommand::CancelSegment).await;
    while !job.is_cancelled() {
        tokio::task::yield_now().await;
    }
    job.fail(JobFailure::Cancelled);
    client.until("SegmentCancelled").await;
    client.request("a hare").await;
    let job = world.job().await;
    assert_eq!((job.spec().segment_idx, job.spec().attempt), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_is_taken_back_or_loses_its_worker_runs_again() {
    let mut world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    client.request("a fox").await;
    world.job().await.take_back();
    client.until("SegmentTakenBack").await;
    let job = world.job().await;
    assert_eq!(job.spec().attempt, 2);
    job.media(100);
    job.lose_worker();
    let SessionEvent::WorkerLost(lost) = client.until("WorkerLost").await else {
        unreachable!("asked for that event");
    };
    assert_eq!(lost.at.attempt, 2);
    world.workers.serve(0);
    assert_eq!(client.bound().await.previous, Some(lost.worker));
    let job = world.job().await;
    assert_eq!(job.spec().attempt, 3);
    job.media(100);
    job.media(50);
    job.finish();
    let names = client.names_until("SegmentCompleted").await;
    assert_eq!(names.iter().filter(|name| *name == "Media").count(), 1);
    assert!(!names.iter().any(|name| name == "MediaVoid"), "{names:?}");
}

/// Loses the worker of a job, and returns the next attempt.
async fn lose(world: &mut World, client: &mut Client, job: TestJob) -> TestJob {
    job.lose_worker();
    client.until("WorkerLost").await;
    world.workers.serve(0);
    world.job().await
}

#[tokio::test(start_paused = true)]
async fn a_segment_goes_on_from_its_newest_step_snapshot() {
    let mut world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    client.request("a fox").await;
    let job = world.job().await;
    assert_eq!(job.goes_on_after(), None);
    for step in 1..=3 {
        job.step(step);
        job.snapshot(step);
    }
    let job = lose(&mut world, &mut client, job).await;
    assert_eq!(job.goes_on_after(), Some(3));
    let SessionEvent::SegmentStarted { after, .. } = client.until("SegmentStarted").await else {
        unreachable!("asked for that event");
    };
    assert_eq!(after.map(|after| after.step), Some(3));
    // It has left no snapshot of its own: that of the attempt before is kept.
    job.step(4);
    let job = lose(&mut world, &mut client, job).await;
    assert_eq!(job.goes_on_after(), Some(3));
    job.take_back();
    let job = world.job().await;
    assert_eq!(job.goes_on_after(), Some(3));
    job.finish();
    client.until("SegmentCompleted").await;
    client.request("a hare").await;
    assert_eq!(world.job().await.goes_on_after(), None);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_with_which_an_attempt_gets_nowhere_is_not_used_again() {
    let mut world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    client.request("a fox").await;
    let job = world.job().await;
    job.step(1);
    job.snapshot(1);
    let job = lose(&mut world, &mut client, job).await;
    assert_eq!(job.goes_on_after(), Some(1));
    let job = lose(&mut world, &mut client, job).await;
    assert_eq!(job.goes_on_after(), None);
    // Nor is one with which an attempt fails, which does not end the segment.
    job.step(1);
    job.snapshot(1);
    let job = lose(&mut world, &mut client, job).await;
    assert_eq!(job.goes_on_after(), Some(1));
    job.fail(JobFailure::Failed);
    let job = world.job().await;
    assert_eq!((job.goes_on_after(), job.spec().attempt), (None, 5));
    job.finish();
    let names = client.names_until("SegmentCompleted").await;
    assert!(!names.iter().any(|name| name == "SegmentFailed"));
}

#[tokio::test(start_paused = true)]
async fn the_last_attempt_of_a_segment_uses_nothing_that_comes_from_a_snapshot() {
    let mut world = World::with(|config| config.max_attempts = 3).await;
    world.workers.serve(0);
    let mut client = world.active(OpenSession::default()).await;
    client.request("a fox").await;
    let mut job = world.job().await;
    for (step, expected) in [(1, Some(1)), (2, None)] {
        job.step(step);
        job.snapshot(step);
        job = lose(&mut world, &mut client, job).await;
        assert_eq!(job.goes_on_after(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_segment_keeps_no_snapshot() {
    let world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    client.request("a fox").await;
    let job = world.job().await;
    job.snapshot(1);
    client.command(SessionCommand::CancelSegment).await;
    while !job.is_cancelled() {
        sleep(SECOND).await;
    }
    assert_eq!(job.goes_on_after(), None);
    job.snapshot(2);
    assert_eq!(job.goes_on_after(), None);
    job.fail(JobFailure::Cancelled);
    client.until("SegmentCancelled").await;
}

#[tokio::test(start_paused = true)]
async fn media_that_differ_from_those_of_the_attempt_before_take_their_place() {
    // Another message, or fewer of them.
    for (second, expected) in [(vec![100, 99], 2), (vec![100], 1)] {
        let mut world = World::serving().await;
        let mut client = world.active(OpenSession::default()).await;
        client.request("a fox").await;
        let job = world.job().await;
        job.media(100);
        job.media(50);
        job.lose_worker();
        client.until("WorkerLost").await;
        world.workers.serve(0);
        let job = world.job().await;
        for bytes in second {
            job.media(bytes);
        }
        job.finish();
        let SessionEvent::MediaVoid { at, .. } = client.until("MediaVoid").await else {
            unreachable!("asked for that event");
        };
        assert_eq!(at.attempt, 2);
        let names = client.names_until("SegmentCompleted").await;
        assert_eq!(
            names.iter().filter(|name| *name == "Media").count(),
            expected
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_costs_too_many_workers_is_given_up_and_the_session_goes_on() {
    let mut world = World::with(|config| config.max_attempts = 3).await;
    world.workers.serve(0);
    let mut client = world.active(OpenSession::default()).await;
    client.request("a fox").await;
    for _ in 0..3 {
        world.job().await.lose_worker();
        client.until("WorkerLost").await;
        world.workers.serve(0);
    }
    let SessionEvent::SegmentFailed {
        code, retryable, ..
    } = client.until("SegmentFailed").await
    else {
        unreachable!("asked for that event");
    };
    assert_eq!((code, retryable), (ErrorCode::WorkerFailed, false));
    client.request("a hare").await;
    world.job().await.finish();
    client.until("SegmentCompleted").await;
}

#[tokio::test(start_paused = true)]
async fn auto_generated_segments_that_fail_are_repeated_with_backoff() {
    let world = World::serving().await;
    let mut client = world.active(looping()).await;
    for pause in [1, 2, 4, 8, 16, 30, 30] {
        world.job().await.fail(JobFailure::Failed);
        let failed = Instant::now();
        client.until("SegmentFailed").await;
        client.until("SegmentQueued").await;
        assert_eq!(failed.elapsed(), pause * SECOND);
    }
    world.job().await.finish();
    client.until("SegmentQueued").await;
    world.job().await.fail(JobFailure::Failed);
    let failed = Instant::now();
    client.until("SegmentQueued").await;
    assert_eq!(failed.elapsed(), SECOND, "a success resets the backoff");
}

#[tokio::test(start_paused = true)]
async fn a_complete_session_goes_on_only_where_that_is_asked_for_and_allowed() {
    let mut world = World::with(|config| {
        config.generation_segment_cap = 1;
        config.cap_extensions = 1;
    })
    .await;
    world.workers.serve(0);
    let mut client = world.open(looping()).await;
    let bound = client.bound().await;
    world.job().await.finish();
    assert_eq!(client.names_until("SegmentCompleted").await.len(), 5);
    assert_eq!(client.ended().await, EndCause::SegmentCap);
    let resuming = |extend| {
        let mut opening = resume(&bound);
        opening.resume.as_mut().unwrap().extend = extend;
        opening.looping = true;
        opening.curated_prompts = looping().curated_prompts;
        opening
    };
    let refused = async |extend, expected: &str| {
        sleep(SECOND).await;
        let mut again = world.open(resuming(extend)).await;
        match again.not_opened().await {
            NotOpened::Refused { code, message } => {
                assert_eq!(code, ErrorCode::SessionRejected);
                assert!(message.ends_with(expected), "{message}");
            }
            why => panic!("{why:?}"),
        }
    };
    refused(false, "`extend` in the opening message continues it").await;
    let mut again = world.open(resuming(true)).await;
    let stream = again.bound().await.stream.unwrap();
    assert_eq!((stream.next_segment_idx, stream.segment_cap), (1, 2));
    world.job().await.finish();
    assert_eq!(again.ended().await, EndCause::SegmentCap);
    refused(true, "it was continued 1 times, which is the limit").await;
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_what_it_lacks_before_anything_new() {
    let world = World::serving().await;
    let mut client = world.open(looping()).await;
    let bound = client.bound().await;
    for n in 0..3 {
        let job = world.job().await;
        job.media(100 + n);
        job.media(200 + n);
        job.finish();
        client.until("SegmentCompleted").await;
    }
    let _running = world.job().await;
    client.send(Inbound::Gone).await;
    assert_eq!(client.ended().await, EndCause::Gone);
    let mut opening = resume(&bound);
    opening.resume.as_mut().unwrap().have = Some(Have {
        segments: 1,
        messages: 1,
    });
    let mut again = world.open(opening).await;
    let names = again.names_until("ResendCompleted").await;
    let resent = |names: &[String]| {
        let start = names
            .iter()
            .position(|name| name == "ResendStarted")
            .unwrap();
        names[start..].to_vec()
    };
    assert_eq!(
        resent(&names),
        ["ResendStarted", "Media", "ResendCompleted"]
    );
    let names = again.names_until("ResendCompleted").await;
    let whole = ["ResendStarted", "Media", "Media", "ResendCompleted"];
    assert_eq!(resent(&names), whole);
    again.request("a fox").await;
    assert_eq!(world.job().await.spec().segment_idx, 3);
}

#[tokio::test(start_paused = true)]
async fn a_client_is_told_of_segments_that_it_lacks_and_that_are_not_kept() {
    let world = World::serving().await;
    let mut client = world.open(looping()).await;
    let bound = client.bound().await;
    for _ in 0..2 {
        let job = world.job().await;
        job.media(2 << 20);
        job.finish();
        client.until("SegmentCompleted").await;
    }
    client.send(Inbound::Gone).await;
    assert_eq!(client.ended().await, EndCause::Gone);
    let mut opening = resume(&bound);
    opening.resume.as_mut().unwrap().have = Some(Have::default());
    let mut again = world.open(opening).await;
    again.until("ResendFailed").await;
    again.until("ResendCompleted").await;
    assert_eq!(world.context.store.lost_segments(), 1);
}

fn resume(bound: &WorkerBound) -> OpenSession {
    OpenSession {
        resume: Some(ResumeRequest {
            session_id: bound.session_id.to_string(),
            token: bound.resume_token.as_ref().unwrap().as_str().to_owned(),
            have: None,
            extend: false,
        }),
        ..OpenSession::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_resumed_session_goes_on_and_ends_its_older_connection() {
    let world = World::serving().await;
    let mut old = world.open(OpenSession::default()).await;
    let bound = old.bound().await;
    old.request("a fox").await;
    world.job().await.finish();
    old.until("SegmentCompleted").await;
    let mut new = world.open(resume(&bound)).await;
    let (code, _, retryable) = old.error().await;
    assert_eq!((code, retryable), (ErrorCode::SessionRejected, false));
    assert_eq!(old.ended().await, EndCause::LeaseLost);
    let stream = new.bound().await.stream.unwrap();
    assert_eq!(stream.next_segment_idx, 1);
    new.request("a hare").await;
    let job = world.job().await;
    assert_eq!((job.spec().segment_idx, job.spec().start_frame), (1, 8));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_an_operator_drops_is_lost() {
    let world = World::serving().await;
    let mut client = world.open(OpenSession::default()).await;
    let bound = client.bound().await;
    let session: SessionId = bound.session_id;
    assert!(world.context.store.drop(&session).await.unwrap());
    assert_eq!(client.ended().await, EndCause::LeaseLost);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_not_opened() {
    let world = World::serving().await;
    let mut client = world.connect();
    let begun = Instant::now();
    let why = client.not_opened().await;
    assert!(matches!(why, NotOpened::Timeout(_)), "{why:?}");
    assert_eq!(begun.elapsed(), 30 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn without_any_worker_a_new_session_ends_and_an_old_one_waits() {
    let mut world = World::serving().await;
    let mut old = world.active(looping()).await;
    let _job = world.job().await;
    world.workers.lose_for_good(0);
    let SessionEvent::SegmentFailed { code, .. } = old.until("SegmentFailed").await else {
        unreachable!("asked for that event");
    };
    assert_eq!(code, ErrorCode::GpuUnavailable);
    let mut new = world.open(OpenSession::default()).await;
    assert_eq!(new.error().await.0, ErrorCode::GpuUnavailable);
    assert_eq!(new.ended().await, EndCause::NoWorker);
    world.workers.serve(0);
    old.bound().await;
    world.job().await;
}

#[tokio::test(start_paused = true)]
async fn switches_without_effect_are_accepted_in_silence_and_an_export_needs_a_segment() {
    let world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    client.command(SessionCommand::SetEnhancement(true)).await;
    client.command(SessionCommand::SetAutoExtension(true)).await;
    client.command(SessionCommand::ExportState).await;
    let (code, message, retryable) = client.error().await;
    assert!(message.contains("no segment is finished"), "{message}");
    assert_eq!((code, retryable), (ErrorCode::InternalError, false));
    let prompt = "a fox".to_owned();
    let rewrite = RewriteRequest { prompt, count: 1 };
    client.command(SessionCommand::RewritePrompt(rewrite)).await;
    let (_, message, retryable) = client.error().await;
    assert!(message.contains("no prompt enhancer"), "{message}");
    assert!(!retryable);
}

#[tokio::test(start_paused = true)]
async fn a_pause_with_requests_is_not_idle_and_has_a_limit_of_its_own() {
    let world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    client.command(SessionCommand::SetPaused(true)).await;
    client.request("a fox").await;
    client.until("PromptReceived").await;
    let begun = Instant::now();
    assert_eq!(client.ended().await, EndCause::Idle(900 * SECOND));
    assert_eq!(begun.elapsed(), 900 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_is_warned_before_it_ends() {
    let world = World::serving().await;
    let mut client = world.active(OpenSession::default()).await;
    let begun = Instant::now();
    client.until("IdleWarning").await;
    assert_eq!(begun.elapsed(), 285 * SECOND);
    // A message keeps the session.
    client.command(SessionCommand::SetLooping(false)).await;
    client.until("IdleWarning").await;
    assert_eq!(begun.elapsed(), 570 * SECOND);
    assert_eq!(client.ended().await, EndCause::Idle(300 * SECOND));
}

/// The worker serves four sessions.
#[tokio::test(start_paused = true)]
async fn as_many_idle_sessions_as_others_wait_end_and_no_more() {
    let world = World::serving().await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(world.active(OpenSession::default()).await);
    }
    sleep(200 * SECOND).await;
    let begun = Instant::now();
    let mut waiting = world.open(OpenSession::default()).await;
    waiting.bound().await;
    assert_eq!(begun.elapsed(), 15 * SECOND, "all were idle for long");
    sleep(10 * SECOND).await;
    assert_eq!(world.registry.count(), 4);
}

/// How long somebody who waits has to wait for the worker of a client that goes in this way.
async fn waits_for_worker_of_a_client_that(goes: Inbound) -> Duration {
    let world = World::serving().await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(world.active(OpenSession::default()).await);
    }
    let mut waiting = world.open(OpenSession::default()).await;
    waiting.until("Queued").await;
    let begun = Instant::now();
    clients[0].send(goes).await;
    waiting.bound().await;
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn the_worker_of_a_lost_connection_is_kept_for_a_while() {
    let waited = waits_for_worker_of_a_client_that(Inbound::Gone).await;
    assert_eq!(waited, 10 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn the_worker_of_a_client_that_closes_its_connection_is_free_at_once() {
    let waited = waits_for_worker_of_a_client_that(Inbound::Closed).await;
    assert_eq!(waited, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn whoever_resumes_in_time_has_the_worker_that_was_kept() {
    let world = World::serving().await;
    let mut clients = Vec::new();
    let mut bounds = Vec::new();
    for _ in 0..4 {
        let mut client = world.open(OpenSession::default()).await;
        bounds.push(client.bound().await);
        clients.push(client);
    }
    let mut waiting = world.open(OpenSession::default()).await;
    waiting.until("Queued").await;
    let lost = bounds.remove(0);
    clients[0].send(Inbound::Gone).await;
    sleep(9 * SECOND).await;
    let resume = ResumeRequest {
        session_id: lost.session_id.to_string(),
        token: lost.resume_token.unwrap().as_str().to_owned(),
        have: None,
        extend: false,
    };
    let begun = Instant::now();
    let _again = world
        .active(OpenSession {
            resume: Some(resume),
            ..OpenSession::default()
        })
        .await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    sleep(20 * SECOND).await;
    assert_eq!(world.context.pool.status().queue_depth, 1);
}

#[tokio::test(start_paused = true)]
async fn a_loop_waits_for_its_viewer_and_a_request_does_not() {
    let limit = Duration::from_secs(1);
    let mut world = World::with(|config| {
        config.max_lead = limit;
        config.generation_segment_cap = 100;
        config.session_timeout = Duration::from_secs(5);
    })
    .await;
    world.workers.serve(0);
    let looping = OpenSession {
        curated_prompts: vec!["a fox".to_owned()],
        looping: true,
        ..OpenSession::default()
    };
    let mut client = world.active(looping).await;
    // Segments of a third of a second, made in no time.
    let begun = Instant::now();
    let finish = async |client: &mut Client| {
        let job = world.job().await;
        job.media(100);
        job.finish();
        client.until("SegmentCompleted").await;
        begun.elapsed()
    };
    let mut last = Duration::ZERO;
    for _ in 0..4 {
        last = finish(&mut client).await;
    }
    assert!(last < Duration::from_millis(100), "{last:?}");
    let fifth = finish(&mut client).await;
    assert!(fifth > Duration::from_millis(300), "{fifth:?}");
    client.request("a hare").await;
    let asked = finish(&mut client).await;
    assert!(asked < fifth + Duration::from_millis(100), "{asked:?}");

    // A viewer that has paused is waited for, until the session ends for lack of activity.
    let report = |playing| {
        SessionCommand::ReportPlayback(PlaybackReport {
            position: Duration::ZERO,
            playing,
        })
    };
    client.command(report(false)).await;
    sleep(Duration::from_secs(3)).await;
    client.command(report(true)).await;
    let paused = begun.elapsed();
    let next = finish(&mut client).await;
    assert!(next > paused + limit / 2, "{next:?} after {paused:?}");
    client.command(report(false)).await;
    let cause = client.ended().await;
    assert!(matches!(cause, EndCause::Idle(_)), "{cause:?}");
}
