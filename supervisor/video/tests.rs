//! Jobs on a paused clock, with workers and a store of the test's own.

use std::collections::BTreeMap;
use std::time::Duration;

use fastvideo_proto::ids::VideoId;
use fastvideo_proto::job::JobFailure;
use fastvideo_proto::stored_video::VideoStatus;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::testing;
use super::*;
use crate::pool::testing::{TestJob, TestWorkers};
use crate::session::Drain;
use crate::store::handle::Config as StoreConfig;
use crate::store::open::{Config as OpenConfig, StoreLocation};
use crate::store::records::ledger::Limits;
use crate::store::{SessionStore, VideoRecord};
use crate::tenant::Tenant;

mod fault_points;

const SECOND: Duration = Duration::from_secs(1);

/// A server with one GPU.
struct World {
    workers: TestWorkers,
    store: SessionStore,
    videos: Videos,
    drain: watch::Sender<Drain>,
    tenant: Tenant,
    _running: JoinSet<()>,
}

impl World {
    async fn new() -> Self {
        let mut workers = TestWorkers::new(1, 1);
        workers.serve(0);
        let store = SessionStore::open(OpenConfig {
            location: StoreLocation::memory(Limits {
                max_sessions: 10,
                max_bytes: 1 << 20,
                max_media_bytes: 1 << 30,
            }),
            wait: Duration::ZERO,
            sessions: StoreConfig {
                resume_ttl: SECOND,
                lease: SECOND,
                timeout: SECOND,
                required_for_readiness: false,
                recording: None,
            },
        });
        let store = store.await.unwrap();
        let (drain, drain_seen) = watch::channel(Drain::No);
        let writes = TaskTracker::new();
        let videos = testing::videos(workers.pool(), &store, &drain_seen, &writes);
        let mut running = JoinSet::new();
        running.spawn(videos.clone().run());
        Self {
            workers,
            store,
            videos,
            drain,
            tenant: Tenant::default(),
            _running: running,
        }
    }

    /// Creates a job of one segment.
    async fn create(&self) -> VideoId {
        let created = self
            .videos
            .create(self.tenant.clone(), new_video(8), None, None);
        created.await.unwrap().id
    }

    async fn job(&self) -> TestJob {
        let job = timeout(60 * SECOND, self.workers.next_job(0)).await;
        job.expect("a worker is given a job")
    }

    /// Waits until what clients see of a job fits.
    async fn until(&self, id: VideoId, fits: impl Fn(&Live) -> bool) -> Live {
        let deadline = Instant::now() + 60 * SECOND;
        loop {
            let live = self.videos.wait(&self.tenant, id, SECOND).await.unwrap();
            let live = live.expect("the job is there");
            if fits(&live) {
                return live;
            }
            assert!(Instant::now() < deadline, "{live:?}");
        }
    }

    /// Waits until a job has failed, and returns the code and the message.
    async fn failure(&self, id: VideoId) -> (String, String) {
        let live = self.until(id, |live| live.video.status.is_end()).await;
        match live.video.status.clone() {
            VideoStatus::Failed { code, message } => (code, message),
            other => panic!("{other:?}"),
        }
    }

    async fn record(&self, id: VideoId) -> Option<VideoRecord> {
        self.store.read_video(&self.tenant, id).await.unwrap()
    }
}

fn new_video(frames: u64) -> NewVideo {
    NewVideo {
        prompt: "a fox".to_owned(),
        negative_prompt: None,
        seed: Some(7),
        num_inference_steps: 2,
        guidance_scale: 1.0,
        enhance_prompt: false,
        size: (64, 64),
        fps: 24,
        frames,
        image: None,
        metadata: BTreeMap::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_begun_is_stored_so_before_it_is_told() {
    let world = World::new().await;
    let id = world.create().await;
    let record = world.record(id).await.unwrap();
    assert_eq!(record.video.status, VideoStatus::Queued);
    let job = world.job().await;
    let part = job.spec().video.clone().unwrap();
    assert_eq!((part.width, part.height, part.frames), (64, 64, 8));
    assert_eq!((job.spec().seed, job.spec().start_frame), (7, 0));
    assert_eq!(part.sheet_after, Some(bytes::Bytes::new()));
    let is_begun = |live: &Live| live.video.status == VideoStatus::InProgress;
    world.until(id, is_begun).await;
    let record = world.record(id).await.unwrap();
    assert_eq!((record.video.starts, record.owner().is_some()), (1, true));
    job.step(1);
    let live = world.until(id, |live| live.progress() > 0).await;
    // 99 x 0.9 / 2.
    assert_eq!((live.progress(), live.phase), (44, Phase::Generating));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_runs_ends_at_its_next_step_when_it_is_cancelled() {
    let world = World::new().await;
    let (id, next) = (world.create().await, world.create().await);
    let job = world.job().await;
    let live = world.videos.cancel(&world.tenant, id).await.unwrap();
    assert!(!live.unwrap().video.status.is_end());
    tokio::task::yield_now().await;
    while !job.is_cancelled() {
        tokio::task::yield_now().await;
    }
    job.fail(JobFailure::Cancelled);
    assert_eq!(world.failure(id).await.0, "cancelled");
    let following = world.job().await;
    assert_eq!(following.spec().session, next.as_session());
    let record = world.record(id).await.unwrap();
    assert!(record.owner().is_none() && record.blobs().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_is_over_when_it_is_cancelled() {
    let world = World::new().await;
    let (running, waiting) = (world.create().await, world.create().await);
    let job = world.job().await;
    assert_eq!(job.spec().session, running.as_session());
    assert_eq!(world.videos.waiting(&world.tenant), (1, 1));
    let live = world.videos.cancel(&world.tenant, waiting).await.unwrap();
    assert!(live.unwrap().video.status.is_end());
    assert_eq!(world.videos.waiting(&world.tenant), (0, 0));
    // Nothing changes a job that has ended.
    let again = world.videos.cancel(&world.tenant, waiting).await.unwrap();
    assert!(again.unwrap().video.status.is_end());
}

#[tokio::test(start_paused = true)]
async fn why_a_segment_failed_is_why_its_job_failed() {
    let world = World::new().await;
    for (failure, code) in [
        (JobFailure::Refused, "invalid_value"),
        (JobFailure::StateIncompatible, "state_incompatible"),
        (JobFailure::OutOfMemory, "out_of_memory"),
        (JobFailure::Failed, "worker_failed"),
    ] {
        let id = world.create().await;
        world.job().await.fail(failure);
        assert_eq!(world.failure(id).await.0, code);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_kills_its_workers_is_given_up() {
    let mut world = World::new().await;
    let id = world.create().await;
    for attempt in 1..=5 {
        let job = world.job().await;
        assert_eq!(job.spec().attempt, attempt);
        job.lose_worker();
        world.workers.serve(0);
    }
    let (code, message) = world.failure(id).await;
    assert_eq!(code, "worker_failed");
    assert!(message.contains("5 times"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_viewers_have_stopped_is_no_further_attempt() {
    let world = World::new().await;
    let id = world.create().await;
    for _ in 0..10 {
        let job = world.job().await;
        assert_eq!(job.spec().attempt, 1);
        job.preempt();
    }
    let record = world.record(id).await.unwrap();
    assert_eq!(record.video.starts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_goes_away_leaves_its_jobs_to_another_one() {
    let world = World::new().await;
    let (id, waiting) = (world.create().await, world.create().await);
    let job = world.job().await;
    world
        .until(id, |live| live.video.status == VideoStatus::InProgress)
        .await;
    world
        .drain
        .send_replace(Drain::Until(Instant::now() + SECOND));
    let refused = world
        .videos
        .create(world.tenant.clone(), new_video(8), None, None);
    assert!(matches!(refused.await, Err(NotCreated::Draining)));
    while !job.is_cancelled() {
        tokio::time::sleep(SECOND / 10).await;
    }
    job.fail(JobFailure::Cancelled);
    world.videos.drained().await;
    let record = world.record(id).await.unwrap();
    assert_eq!(record.video.status, VideoStatus::InProgress);
    let record = world.record(waiting).await.unwrap();
    assert_eq!(
        (record.video.status.clone(), record.owner()),
        (VideoStatus::Queued, None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_job_that_may_end_its_servers_is_given_up() {
    let world = World::new().await;
    let mut video = testing::video(&[8]);
    video.starts = 5;
    let id = world.videos.next_id().await;
    let record = world
        .store
        .create_video(&world.tenant, id, &video, &[])
        .await;
    world.videos.take_in(record.unwrap());
    let (code, message) = world.failure(id).await;
    assert_eq!(code, "internal_error");
    assert!(message.contains("5 servers"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_deleted_is_gone_at_once_and_its_run_ends() {
    let world = World::new().await;
    let (id, next) = (world.create().await, world.create().await);
    let job = world.job().await;
    assert!(world.videos.delete(&world.tenant, id).await.unwrap());
    assert!(world.videos.get(&world.tenant, id).await.unwrap().is_none());
    while !job.is_cancelled() {
        tokio::task::yield_now().await;
    }
    job.fail(JobFailure::Cancelled);
    let following = world.job().await;
    assert_eq!(following.spec().session, next.as_session());
    assert!(world.record(id).await.is_none());
    assert!(!world.videos.delete(&world.tenant, id).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn as_many_jobs_wait_as_may_wait() {
    let world = World::new().await;
    world.videos.reconfigure(Config {
        max_queued: 2,
        max_queued_per_tenant: 1,
        ..testing::config()
    });
    world.create().await;
    let _running = world.job().await;
    world.create().await;
    let create = |tenant: &str| {
        let tenant = Tenant::new(tenant);
        world.videos.create(tenant, new_video(8), None, None)
    };
    let full = create(world.tenant.as_str()).await;
    assert!(matches!(
        full,
        Err(NotCreated::TenantQueueFull { limit: 1 })
    ));
    assert!(create("a").await.is_ok());
    assert!(matches!(
        create("b").await,
        Err(NotCreated::QueueFull { limit: 2 })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_tenant_knows_nothing_of_the_jobs_of_others() {
    let world = World::new().await;
    let id = world.create().await;
    let _job = world.job().await;
    let other = Tenant::new("other");
    assert!(world.videos.get(&other, id).await.unwrap().is_none());
    assert!(world.videos.cancel(&other, id).await.unwrap().is_none());
    assert!(!world.videos.delete(&other, id).await.unwrap());
    assert!(
        !world
            .videos
            .get(&world.tenant, id)
            .await
            .unwrap()
            .unwrap()
            .video
            .status
            .is_end()
    );
}
