//! A Redis that has lost data: it restarts empty, or as it was some time ago.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::SessionId;
use fastvideo_proto::stored_video::StoredVideo;
use object_store::memory::InMemory;
use tokio::time::timeout;

use super::backends::Redis;
use super::videos::next;
use super::world::{
    CONFIG, any, at, begin, is_lost, same, segment, small, video, video_id, video_key,
};
use crate::store::blobs::BlobStore;
use crate::store::records::redis::{RedisAddress, RedisRecords};
use crate::store::records::{Order, Records, VideoPage};
use crate::store::{
    ResumeError, ResumeToken, SessionStore, StoreError, VideoChange, VideoError, VideoLease,
};
use crate::tenant::Tenant;

/// Time limit on everything that the tests wait for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Servers with one Redis, and blobs in one place.
struct Servers {
    redis: Redis,
    blobs: Arc<InMemory>,
}

impl Servers {
    fn new() -> Self {
        Self {
            redis: Redis::start(),
            blobs: Arc::default(),
        }
    }

    async fn server(&self) -> SessionStore {
        let address = RedisAddress::parse(&self.redis.url()).unwrap();
        let records = RedisRecords::connect(&address, Duration::from_secs(1)).await;
        let records = Arc::new(records.unwrap());
        let name = records.name().await.unwrap();
        let blobs = BlobStore::new(self.blobs.clone(), &name);
        SessionStore::new(CONFIG, "test".to_owned(), records, blobs)
    }

    async fn two(&self) -> [SessionStore; 2] {
        [self.server().await, self.server().await]
    }

    /// Loses everything.
    fn empty(&self) {
        self.redis.order("FLUSHALL");
    }
}

/// Does what upkeep does.
async fn notice(server: &SessionStore) {
    let noticed = async {
        // The first calls may find a connection that is broken.
        while server.beat().await.is_err() {}
        assert!(server.restore().await);
    };
    timeout(PATIENCE, noticed).await.expect("the store answers");
    server.beat().await.unwrap();
}

#[tokio::test]
async fn a_session_that_is_run_outlives_the_memory_of_the_store() {
    let servers = Servers::new();
    let [one, two] = servers.two().await;
    let (session, token, lease) = begin(&one).await;
    let (_, _, untouched) = begin(&one).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    servers.empty();
    let refused = lease.writer().store(at(2), small(2)).await;
    assert!(matches!(refused, Err(StoreError::Forgotten)), "{refused:?}");
    notice(&one).await;
    assert!(!is_lost(&lease) && !is_lost(&untouched));
    lease.writer().store(at(3), small(3)).await.unwrap();
    // The other one learns of it before it finds anything.
    let early = two.resume(&session, &token, any).await;
    assert!(matches!(
        early,
        Err(ResumeError::Store(StoreError::Forgotten))
    ));
    notice(&two).await;
    let (nobody, no_token) = (SessionId::random(), ResumeToken::random());
    let unknown = two.resume(&nobody, &no_token, any).await;
    assert!(matches!(
        unknown,
        Err(ResumeError::Store(StoreError::Forgotten))
    ));
    let (taken, saved) = two.resume(&session, &token, any).await.unwrap();
    assert_eq!(saved.progress, at(3));
    assert!(same(&saved.state, &small(3)));
    taken.writer().store(at(4), small(4)).await.unwrap();
    one.beat().await.unwrap();
    assert!(is_lost(&lease) && !is_lost(&untouched));
    for server in [&one, &two] {
        assert!(server.clean_up().await);
    }
    assert_eq!(
        one.0.blobs.list().await.unwrap().len(),
        1,
        "nothing is left of before"
    );
}

#[tokio::test]
async fn a_session_that_has_ended_meanwhile_is_written_before_it_is_let_go() {
    let servers = Servers::new();
    let [one, two] = servers.two().await;
    let (session, token, lease) = begin(&one).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    let (ended, _, mut ending) = begin(&one).await;
    servers.empty();
    drop(lease);
    ending.end_session();
    notice(&one).await;
    assert!(one.clean_up().await);
    notice(&two).await;
    let (_, saved) = two.resume(&session, &token, any).await.unwrap();
    assert!(same(&saved.state, &small(1)));
    let gone = one.0.records.read(&ended.into()).await.unwrap();
    assert_eq!(gone, None);
}

#[tokio::test]
async fn a_session_that_was_removed_does_not_come_back() {
    for owner_is_first in [true, false] {
        let servers = Servers::new();
        let [one, two] = servers.two().await;
        let (session, _, lease) = begin(&one).await;
        lease.writer().store(at(1), small(1)).await.unwrap();
        // Its server does not learn of it.
        assert!(two.drop(&session).await.unwrap());
        servers.empty();
        let order = if owner_is_first {
            [&one, &two]
        } else {
            [&two, &one]
        };
        for server in order {
            notice(server).await;
        }
        one.beat().await.unwrap();
        assert!(is_lost(&lease), "{owner_is_first}");
        let gone = two.0.records.read(&session.into()).await.unwrap();
        assert_eq!(gone, None, "{owner_is_first}");
    }
}

#[tokio::test]
async fn the_latest_owner_has_the_session_whoever_comes_first() {
    for latest_is_first in [true, false] {
        let servers = Servers::new();
        let [one, two] = servers.two().await;
        let (session, token, before) = begin(&one).await;
        before.writer().store(at(1), small(1)).await.unwrap();
        let (lease, _) = two.resume(&session, &token, any).await.unwrap();
        lease.writer().store(at(2), small(2)).await.unwrap();
        servers.empty();
        let order = if latest_is_first {
            [&two, &one]
        } else {
            [&one, &two]
        };
        for server in order {
            notice(server).await;
        }
        one.beat().await.unwrap();
        assert!(is_lost(&before) && !is_lost(&lease), "{latest_is_first}");
        lease.writer().store(at(3), small(3)).await.unwrap();
        let saved = two.snapshot(&session).await.unwrap().unwrap();
        assert!(same(&saved.state, &small(3)));
    }
}

#[tokio::test]
async fn a_server_that_began_with_the_empty_store_joins_those_that_were_before() {
    let servers = Servers::new();
    let one = servers.server().await;
    let (session, token, lease) = begin(&one).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    servers.empty();
    let fresh = servers.server().await;
    let (begun, _, its) = begin(&fresh).await;
    its.writer().store(at(1), small(9)).await.unwrap();
    notice(&one).await;
    notice(&fresh).await;
    assert!(!is_lost(&lease) && !is_lost(&its));
    let name = async |server: &SessionStore| server.0.records.name().await.unwrap();
    assert_eq!(name(&one).await, name(&fresh).await);
    assert!(one.snapshot(&begun).await.unwrap().is_some());
    let (_, saved) = fresh.resume(&session, &token, any).await.unwrap();
    assert!(same(&saved.state, &small(1)));
}

#[tokio::test]
async fn a_store_that_was_set_back_gets_what_it_has_missed() {
    let mut servers = Servers::new();
    let [one, two] = servers.two().await;
    let (kept, _, lease) = begin(&one).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    let (moved, token, before) = begin(&one).await;
    let (removed, removed_token, _ending) = begin(&one).await;
    let copy = servers.redis.keep();
    notice(&one).await;
    notice(&two).await;
    lease.writer().store(at(2), small(2)).await.unwrap();
    let (taken, _) = two.resume(&moved, &token, any).await.unwrap();
    taken.writer().store(at(3), small(3)).await.unwrap();
    assert!(two.drop(&removed).await.unwrap());
    let (new, _, begun) = begin(&two).await;
    one.beat().await.unwrap();
    assert!(is_lost(&before));

    servers.redis.set_back(&copy);
    notice(&one).await;
    notice(&two).await;
    one.beat().await.unwrap();
    for lease in [&lease, &taken, &begun] {
        assert!(!is_lost(lease));
    }
    lease.writer().store(at(4), small(4)).await.unwrap();
    let state = async |session: &SessionId| two.snapshot(session).await.unwrap().unwrap().state;
    assert!(same(&state(&kept).await, &small(4)));
    assert!(same(&state(&moved).await, &small(3)));
    assert!(two.snapshot(&new).await.unwrap().is_some());
    let back = two.resume(&removed, &removed_token, any).await;
    assert!(back.is_err(), "{back:?}");
}

/// A video job that this server runs, with a segment.
async fn begun(server: &SessionStore, unix_ms: u64) -> (VideoLease, StoredVideo) {
    let (tenant, id) = (Tenant::default(), video_id(unix_ms));
    let created = server.create_video(&tenant, id, &video(), &[]).await;
    let created = created.unwrap();
    let (version, new) = next(&created.video);
    let lease = server.take_video(&created, &version, &new).await.unwrap();
    (lease, version)
}

/// What is known of a job, without waiting.
fn known(lease: &VideoLease) -> Option<VideoChange> {
    futures_util::FutureExt::now_or_never(lease.changed())
}

#[tokio::test]
async fn a_video_job_that_is_run_outlives_the_memory_of_the_store() {
    let servers = Servers::new();
    let [one, two] = servers.two().await;
    let tenant = Tenant::default();
    let (mut lease, job) = begun(&one, 1).await;
    let (untouched, its) = begun(&one, 2).await;
    servers.empty();
    let (version, new) = next(&job);
    let refused = lease.write(&version, &new).await;
    assert!(matches!(
        refused,
        Err(VideoError::Store(StoreError::Forgotten))
    ));
    notice(&one).await;
    assert_eq!((known(&lease), known(&untouched)), (None, None));
    lease.write(&version, &new).await.unwrap();
    // The other one learns of it before it finds anything.
    let early = two.read_video(&tenant, lease.id()).await;
    assert!(matches!(early, Err(StoreError::Forgotten)), "{early:?}");
    notice(&two).await;
    let unknown = two.read_video(&tenant, video_id(9)).await;
    assert!(matches!(unknown, Err(StoreError::Forgotten)), "{unknown:?}");
    for (lease, video) in [(&lease, &version), (&untouched, &its)] {
        let read = two.read_video(&tenant, lease.id()).await.unwrap().unwrap();
        assert_eq!((&read.video, read.owner()), (video, Some(one.server())));
        let last = u8::try_from(video.film.len() - 1).unwrap();
        assert!(same(&two.state_of(&read).await.unwrap(), &small(last)));
        for (idx, kept) in (0..).zip(&video.film) {
            assert_eq!(
                two.media(kept).await.unwrap().join(),
                segment(idx).content.join()
            );
        }
    }
    let page = VideoPage {
        after: None,
        limit: 9,
        order: Order::Ascending,
    };
    let listed = two.list_videos(&tenant, page).await.unwrap().videos;
    assert_eq!(listed.len(), 2);
    for server in [&one, &two] {
        assert!(server.clean_up().await);
    }
    // Both have the first segment, its state and tiles were replaced in one of them.
    assert_eq!(one.0.blobs.list().await.unwrap().len(), 6);
    for lease in [lease, untouched] {
        assert!(two.remove_video(&tenant, lease.id()).await.unwrap());
        one.beat().await.unwrap();
        assert_eq!(known(&lease), Some(VideoChange::Gone));
    }
    for server in [&one, &two] {
        assert!(server.clean_up().await);
    }
    assert_eq!(one.0.blobs.list().await.unwrap(), []);
}

#[tokio::test]
async fn video_jobs_that_share_blobs_are_restored_one_after_the_other() {
    let servers = Servers::new();
    let one = servers.server().await;
    let jobs = [begun(&one, 1).await, begun(&one, 2).await];
    servers.empty();
    while one.beat().await.is_err() {}
    for (lease, _) in &jobs {
        let leased = one.0.videos.get(&lease.id()).unwrap();
        one.restore_video(&leased).await.unwrap();
        // The blobs of before are deleted.
        assert!(one.clean_up().await);
    }
    for (lease, job) in &jobs {
        assert_eq!(known(lease), None);
        assert_eq!(
            one.media(&job.film[0]).await.unwrap().join(),
            segment(0).content.join()
        );
    }
}

#[tokio::test]
async fn a_video_job_ends_or_is_given_back_in_a_store_that_has_lost_it() {
    let servers = Servers::new();
    let [one, two] = servers.two().await;
    let tenant = Tenant::default();
    let (mut ends, job) = begun(&one, 1).await;
    let (released, _) = begun(&one, 2).await;
    let waits = released.id();
    servers.empty();
    drop(released);
    // It has noticed the loss, and has not restored anything yet.
    while one.beat().await.is_err() {}
    ends.finish(&job, &[]).await.unwrap();
    assert!(one.clean_up().await);
    assert!(one.restore().await);
    notice(&two).await;
    for id in [ends.id(), waits] {
        let read = two.read_video(&tenant, id).await.unwrap().unwrap();
        assert_eq!((&read.video, read.owner()), (&job, None));
        assert!(same(&two.state_of(&read).await.unwrap(), &small(0)));
    }
}

#[tokio::test]
async fn a_video_job_that_was_removed_does_not_come_back() {
    for owner_is_first in [true, false] {
        let servers = Servers::new();
        let [one, two] = servers.two().await;
        let tenant = Tenant::default();
        let (lease, _) = begun(&one, 1).await;
        // Its server does not learn of it.
        assert!(two.remove_video(&tenant, lease.id()).await.unwrap());
        servers.empty();
        let order = if owner_is_first {
            [&one, &two]
        } else {
            [&two, &one]
        };
        for server in order {
            notice(server).await;
        }
        one.beat().await.unwrap();
        assert_eq!(known(&lease), Some(VideoChange::Gone), "{owner_is_first}");
        let key = video_key(tenant.as_str(), 1);
        let gone = two.0.records.read(&key).await.unwrap();
        assert_eq!(gone, None, "{owner_is_first}");
    }
}

#[tokio::test]
async fn a_store_that_was_set_back_has_the_last_version_of_a_video_job() {
    let mut servers = Servers::new();
    let [one, two] = servers.two().await;
    let tenant = Tenant::default();
    let (mut lease, job) = begun(&one, 1).await;
    let copy = servers.redis.keep();
    notice(&one).await;
    notice(&two).await;
    let (version, new) = next(&job);
    lease.write(&version, &new).await.unwrap();
    assert!(one.clean_up().await);
    servers.redis.set_back(&copy);
    notice(&one).await;
    notice(&two).await;
    assert_eq!(known(&lease), None);
    let read = two.read_video(&tenant, lease.id()).await.unwrap().unwrap();
    assert_eq!(read.video, version);
    assert!(same(&two.state_of(&read).await.unwrap(), &small(1)));
    for (idx, kept) in (0..).zip(&version.film) {
        assert_eq!(
            two.media(kept).await.unwrap().join(),
            segment(idx).content.join()
        );
    }
    assert!(two.remove_video(&tenant, lease.id()).await.unwrap());
    for server in [&one, &two] {
        assert!(server.clean_up().await);
    }
    assert_eq!(one.0.blobs.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_video_job_whose_blobs_were_lost_as_well_is_gone() {
    let servers = Servers::new();
    let one = servers.server().await;
    let (mut lease, job) = begun(&one, 1).await;
    servers.empty();
    for blob in one.0.blobs.list().await.unwrap() {
        one.0.blobs.drop(blob).await.unwrap();
    }
    notice(&one).await;
    assert_eq!(known(&lease), Some(VideoChange::Gone));
    let refused = lease.write(&job, &[]).await;
    assert!(matches!(
        refused,
        Err(VideoError::Changed(VideoChange::Gone))
    ));
    drop(lease);
    assert!(one.clean_up().await);
    assert_eq!(one.0.records.survey().await.unwrap().blobs, 0);
}
