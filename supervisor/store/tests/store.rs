//! Sessions of several servers in one store.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::state::{FramesLayout, StateHeader, blob_hash};
use ipc_channel::ipc::IpcSharedMemory;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::backends::{BLOBS, BlobsKind, LIMITS, RECORDS, RecordsHome, RecordsKind, blobs};
use crate::small_disk::SmallDisk;
use crate::store::blobs::BlobStore;
use crate::store::open::{self, OpenError, Place, in_folder};
use crate::store::records::memory::{Limits, MemoryRecords};
use crate::store::records::{
    BlobId, BlobKey, Change, Outcome, Records, ReservationId, Revision, ServerId, Survey, Written,
};
use crate::store::sessions::Config;
use crate::store::{
    Lease, Progress, ResumeError, ResumeToken, SessionStore, State, StoreError, Upkeep,
};

const TTL: Duration = Duration::from_secs(300);
const LEASE: Duration = Duration::from_secs(6);
const CONFIG: Config = Config {
    resume_ttl: TTL,
    lease: LEASE,
    timeout: Duration::from_secs(20),
};

/// A store that several servers share.
struct World {
    records: Arc<dyn Records>,
    blobs: BlobStore,
    _home: Option<RecordsHome>,
    _folder: TempDir,
}

impl World {
    /// None where the tests have no S3.
    async fn new(kind: RecordsKind, blobs_kind: BlobsKind) -> Option<Self> {
        let home = RecordsHome::new(kind).await;
        let folder = tempfile::tempdir().unwrap();
        let name = home.records.name().await.unwrap();
        Some(Self {
            records: home.records.clone(),
            blobs: blobs(blobs_kind, folder.path(), &name)?,
            _home: Some(home),
            _folder: folder,
        })
    }

    fn memory(limits: Limits) -> Self {
        Self::with(Arc::new(MemoryRecords::new(limits)))
    }

    fn with(records: Arc<dyn Records>) -> Self {
        Self {
            records,
            blobs: BlobStore::new(Arc::new(InMemory::new()), "store"),
            _home: None,
            _folder: tempfile::tempdir().unwrap(),
        }
    }

    fn server(&self) -> SessionStore {
        SessionStore::new(CONFIG, self.records.clone(), self.blobs.clone())
    }

    /// What upkeep does with blobs that the one who has condemned them never heard of.
    async fn delete_condemned(&self) {
        for key in self.records.survey().await.unwrap().condemned {
            self.blobs.drop(key).await.unwrap();
            self.records.forget(&[key]).await.unwrap();
        }
    }

    async fn blobs(&self) -> usize {
        self.blobs.list().await.unwrap().len()
    }

    async fn is_empty(&self) {
        let survey = self.records.survey().await.unwrap();
        assert_eq!(survey.sessions, []);
        assert_eq!(survey.condemned, []);
        assert_eq!(survey.blobs, 0);
        assert_eq!(self.blobs().await, 0);
    }
}

/// A state whose blob is of that many bytes, a multiple of 300 or 5760, and depends on `n`.
pub(super) fn state(n: u8, bytes: usize) -> State {
    let blob: Vec<u8> = (0..bytes)
        .map(|i| n.wrapping_add(i.to_le_bytes()[0]))
        .collect();
    let width = if bytes.is_multiple_of(5760) {
        1920
    } else {
        100
    };
    let header = StateHeader {
        segment_index: n.into(),
        video_conditioning_frame_idx: 0,
        video_conditioning_strength: 1.0,
        audio_sample_rate: None,
        audio_conditioning_num_frames: 0,
        audio_conditioning_strength: 0.0,
        video_position_offset_sec: 0.0,
        metadata: "{}".to_owned(),
        frames: Some(FramesLayout {
            count: 1,
            height: u32::try_from(bytes / 3).unwrap() / width,
            width,
        }),
        audio_latents: None,
        blob_hash: blob_hash(&blob),
    };
    State::from_worker(header.encode(), IpcSharedMemory::from_bytes(&blob)).unwrap()
}

fn small(n: u8) -> State {
    state(n, 300)
}

fn at(segments: u32) -> Progress {
    Progress {
        segments,
        start_frame: u64::from(segments) * 24,
    }
}

fn same(a: &Option<State>, b: &State) -> bool {
    a.as_ref()
        .is_some_and(|a| a.header_bytes() == b.header_bytes() && a.blob()[..] == b.blob()[..])
}

async fn begin(store: &SessionStore) -> (SessionId, ResumeToken, Lease) {
    let (session, token) = (SessionId::random(), ResumeToken::random());
    let lease = store.create(&session, &token, None).await.unwrap();
    (session, token, lease)
}

#[track_caller]
fn is_lost(lease: &Lease) -> bool {
    futures_util::FutureExt::now_or_never(lease.lost()).is_some()
}

#[tokio::test]
async fn a_session_is_stored_left_resumed_elsewhere_and_dropped_on_every_backend() {
    for records in RECORDS {
        for blobs in BLOBS {
            let Some(world) = World::new(records, blobs).await else {
                continue;
            };
            let (one, two) = (world.server(), world.server());
            let (session, token, lease) = begin(&one).await;
            let fresh = two.snapshot(&session).await.unwrap().unwrap();
            assert!(fresh.state.is_none());
            for n in 1..=3 {
                lease.writer().store(at(n.into()), small(n)).await.unwrap();
            }
            let seen = two.snapshot(&session).await.unwrap().unwrap();
            assert_eq!(seen.progress, at(3));
            assert!(same(&seen.state, &small(3)), "{records:?} {blobs:?}");
            assert!(one.do_chores().await);
            assert_eq!(world.blobs().await, 1);

            drop(lease);
            assert!(one.do_chores().await);
            let wrong = two.resume(&session, &ResumeToken::random()).await;
            assert!(matches!(wrong, Err(ResumeError::Refused(_))));
            let absent = two.resume(&SessionId::random(), &token).await;
            assert!(matches!(absent, Err(ResumeError::Refused(_))));
            let (lease, snapshot) = two.resume(&session, &token).await.unwrap();
            assert_eq!(snapshot.progress, at(3));
            assert!(same(&snapshot.state, &small(3)));
            lease.writer().store(at(4), small(4)).await.unwrap();

            assert!(one.drop(&session).await.unwrap());
            assert!(!one.drop(&session).await.unwrap());
            let stale = lease.writer().store(at(5), small(5)).await;
            assert!(matches!(stale, Err(StoreError::Stale)), "{stale:?}");
            lease.lost().await;
            drop(lease);
            for store in [&one, &two] {
                assert!(store.do_chores().await);
            }
            world.is_empty().await;
        }
    }
}

#[tokio::test]
async fn who_takes_a_session_over_has_it_and_nobody_else() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let (one, two) = (world.server(), world.server());
        let (session, token, lease) = begin(&one).await;
        let (_, _, other) = begin(&one).await;
        lease.writer().store(at(1), small(1)).await.unwrap();
        let (taken, _) = two.resume(&session, &token).await.unwrap();
        let stale = lease.writer().store(at(2), small(2)).await;
        assert!(matches!(stale, Err(StoreError::Stale)));
        assert!(is_lost(&lease));
        // What its old server does with it now does not reach it.
        let mut lease = lease;
        lease.end_session();
        assert!(one.do_chores().await);
        taken.writer().store(at(2), small(3)).await.unwrap();

        // Who has nothing to write finds out too.
        let (back, snapshot) = one.resume(&session, &token).await.unwrap();
        assert!(same(&snapshot.state, &small(3)));
        assert!(!is_lost(&taken));
        two.beat().await.unwrap();
        assert!(is_lost(&taken));
        drop(taken);
        assert!(two.do_chores().await);
        one.beat().await.unwrap();
        assert!(!is_lost(&back) && !is_lost(&other));
        back.writer().store(at(3), small(4)).await.unwrap();
    }
}

#[tokio::test]
async fn an_end_that_comes_late_does_not_end_the_session_elsewhere() {
    let world = World::memory(LIMITS);
    let (one, two) = (world.server(), world.server());
    let (session, token, mut lease) = begin(&one).await;
    let (taken, _) = two.resume(&session, &token).await.unwrap();
    // It does not know yet that it is lost.
    lease.end_session();
    assert!(one.do_chores().await);
    taken.writer().store(at(1), small(1)).await.unwrap();
    assert!(two.snapshot(&session).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_crosses_a_resume_on_the_same_server_does_no_harm() {
    let world = World::new(RecordsKind::Redis, BlobsKind::Memory)
        .await
        .unwrap();
    let store = world.server();
    let (session, token, mut lease) = begin(&store).await;
    for n in 0..200_u8 {
        let saving = lease.writer().store(at(n.into()), small(n));
        drop(lease);
        let (_, _, resumed) =
            tokio::join!(saving, store.do_chores(), store.resume(&session, &token));
        let (resumed, snapshot) = resumed.unwrap();
        assert!(same(&snapshot.state, &small(n)), "{n}");
        assert!(store.do_chores().await);
        lease = resumed;
        assert!(!is_lost(&lease), "{n}");
    }
    store.drop(&session).await.unwrap();
    drop(lease);
    assert!(store.do_chores().await);
    world.is_empty().await;
}

#[tokio::test]
async fn a_client_that_comes_back_finds_what_could_not_be_stored_before() {
    let flaky = Arc::new(Flaky::default());
    let world = World::with(flaky.clone());
    let store = world.server();
    let (session, token, lease) = begin(&store).await;
    flaky.down(true);
    let failed = lease.writer().store(at(1), small(1)).await;
    assert!(matches!(failed, Err(StoreError::Unavailable(_))));
    drop(lease);
    assert!(!store.do_chores().await);
    flaky.down(false);
    let (_lease, snapshot) = store.resume(&session, &token).await.unwrap();
    assert!(same(&snapshot.state, &small(1)));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_resumes_expires_and_one_that_is_run_does_not() {
    let world = World::memory(LIMITS);
    let store = world.server();
    let mut upkeep = JoinSet::new();
    upkeep.spawn(Upkeep::new(store.clone()).run());
    let (running, _, kept) = begin(&store).await;
    let (left, token, lease) = begin(&store).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    let (hydrated, _) = store.hydrate(&small(2)).await.unwrap();
    let lent = store.lend(Bytes::from_static(b"exported")).await.unwrap();
    drop(lease);
    sleep(TTL).await;
    assert_eq!(store.blob(lent).await.unwrap(), "exported");
    let (lease, _) = store.resume(&left, &token).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    assert!(matches!(
        store.blob(lent).await,
        Err(StoreError::Missing(_))
    ));
    assert!(store.snapshot(&hydrated).await.unwrap().is_none());
    drop(lease);
    sleep(TTL).await;
    assert!(store.snapshot(&left).await.unwrap().is_some());
    sleep(Duration::from_secs(20)).await;
    assert!(store.snapshot(&left).await.unwrap().is_none());
    assert!(store.snapshot(&running).await.unwrap().is_some());
    drop(kept);
    sleep(TTL + Duration::from_secs(20)).await;
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn sessions_of_a_server_that_is_silent_can_be_resumed_and_what_it_left_goes() {
    let world = World::memory(LIMITS);
    let (dead, alive) = (world.server(), world.server());
    let mut its_upkeep = JoinSet::new();
    its_upkeep.spawn(Upkeep::new(dead.clone()).run());
    let mut upkeep = JoinSet::new();
    upkeep.spawn(Upkeep::new(alive.clone()).run());
    let (session, token, lease) = begin(&dead).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    let server = ServerId::from_stored("dead".to_owned());
    let blob = [BlobId::of(b"x")];
    let reserved = world.records.reserve(&server, ReservationId(0), &blob);
    let key = reserved.await.unwrap()[0];
    world
        .blobs
        .put(key, Bytes::from_static(b"x"))
        .await
        .unwrap();

    // Both live: nobody is taken for dead.
    sleep(10 * LEASE).await;
    let owner = async || {
        let written = world.records.read(&session).await.unwrap().unwrap();
        written.record.owner
    };
    assert!(owner().await.is_some());
    assert_eq!(world.blobs().await, 1);

    its_upkeep.shutdown().await;
    sleep(3 * LEASE).await;
    assert!(owner().await.is_none());
    let (resumed, snapshot) = alive.resume(&session, &token).await.unwrap();
    assert!(same(&snapshot.state, &small(1)));
    // It was only stopped for a while.
    dead.beat().await.unwrap();
    assert!(is_lost(&lease));
    drop(resumed);
    sleep(TTL + 3 * LEASE).await;
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_store_makes_nobody_silent_and_lets_nothing_expire() {
    let flaky = Arc::new(Flaky::default());
    let world = World::with(flaky.clone());
    let servers = [world.server(), world.server()];
    let mut upkeep = JoinSet::new();
    for server in &servers {
        upkeep.spawn(Upkeep::new(server.clone()).run());
    }
    let (_, _, one) = begin(&servers[0]).await;
    let (_, _, two) = begin(&servers[1]).await;
    let (left, _) = servers[0].hydrate(&small(1)).await.unwrap();
    sleep(2 * LEASE).await;
    for _ in 0..3 {
        flaky.down(true);
        sleep(TTL / 2).await;
        flaky.down(false);
        sleep(2 * LEASE).await;
    }
    one.writer().store(at(1), small(2)).await.unwrap();
    two.writer().store(at(1), small(3)).await.unwrap();
    assert!(servers[1].snapshot(&left).await.unwrap().is_some());
    sleep(TTL).await;
    assert!(servers[1].snapshot(&left).await.unwrap().is_none());
}

/// Everything goes on after an answer that is lost, and nothing stays behind.
#[tokio::test]
async fn an_answer_that_is_lost_loses_nothing_else() {
    for lost in [
        "reserve", "write", "release", "forget", "read", "stale", "beat",
    ] {
        for down in [false, true] {
            let flaky = Arc::new(Flaky::default());
            let world = World::with(flaky.clone());
            let (one, two) = (world.server(), world.server());
            let (session, token, lease) = begin(&one).await;
            lease.writer().store(at(1), small(1)).await.unwrap();
            flaky.lose(lost, down);
            let mut failures = 0;
            while lease.writer().store(at(2), small(2)).await.is_err() {
                failures += 1;
            }
            assert!(failures <= 1, "{lost}");
            let _ = one.beat().await;
            assert!(!is_lost(&lease), "{lost}");
            while !one.do_chores().await {}
            world.delete_condemned().await;
            assert_eq!(world.blobs().await, 1, "{lost}");

            flaky.lose(lost, down);
            drop(lease);
            while !one.do_chores().await {}
            flaky.lose(lost, down);
            let resumed = two.resume(&session, &token).await;
            let (lease, snapshot) = match resumed {
                Ok(resumed) => resumed,
                Err(_) => two.resume(&session, &token).await.unwrap(),
            };
            assert_eq!(snapshot.progress, at(2));
            assert!(same(&snapshot.state, &small(2)), "{lost}");
            let mut lease = lease;
            flaky.lose(lost, down);
            lease.end_session();
            while !two.do_chores().await {}
            flaky.lose("", down);
            world.delete_condemned().await;
            world.is_empty().await;
        }
    }
}

#[tokio::test]
async fn a_server_that_was_taken_for_dead_while_it_put_a_blob_puts_it_again() {
    let flaky = Arc::new(Flaky::default());
    let world = World::with(flaky.clone());
    let (store, other) = (world.server(), world.server());
    let (session, _, lease) = begin(&store).await;
    *flaky.retire_before_write.lock().unwrap() = true;
    lease.writer().store(at(1), small(1)).await.unwrap();
    assert!(store.do_chores().await);
    // Those that have condemned the first edition are late.
    world.delete_condemned().await;
    let read = other.snapshot(&session).await.unwrap().unwrap();
    assert!(same(&read.state, &small(1)));
    assert_eq!(world.blobs().await, 1);
}

#[tokio::test]
async fn identical_states_share_a_blob_until_the_last_one_goes() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Folder).await.unwrap();
        let (one, two) = (world.server(), world.server());
        let (a, _, first) = begin(&one).await;
        let (b, _, second) = begin(&two).await;
        let (first_stored, second_stored) = tokio::join!(
            first.writer().store(at(1), small(1)),
            second.writer().store(at(1), small(1))
        );
        first_stored.unwrap();
        second_stored.unwrap();
        assert_eq!(world.blobs().await, 1);
        // A blob that comes back while it goes is kept.
        one.drop(&a).await.unwrap();
        second.writer().store(at(2), small(2)).await.unwrap();
        second.writer().store(at(3), small(1)).await.unwrap();
        assert!(one.do_chores().await && two.do_chores().await);
        let read = one.snapshot(&b).await.unwrap().unwrap();
        assert!(same(&read.state, &small(1)));
        assert_eq!(world.blobs().await, 1);
        two.drop(&b).await.unwrap();
        drop((first, second));
        assert!(one.do_chores().await && two.do_chores().await);
        world.is_empty().await;
    }
}

#[tokio::test]
async fn memory_that_is_full_refuses_new_sessions_and_drops_those_that_nobody_runs() {
    let world = World::memory(Limits {
        max_sessions: 2,
        max_bytes: 100_000,
    });
    let store = world.server();
    let (left, token, lease) = begin(&store).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    drop(lease);
    assert!(store.do_chores().await);
    let (_, _, a) = begin(&store).await;
    let (_, _, b) = begin(&store).await;
    let gone = store.resume(&left, &token).await;
    assert!(matches!(gone, Err(ResumeError::Refused(_))));
    assert!(store.do_chores().await);
    assert_eq!(world.blobs().await, 0);
    let refused = store.create(&SessionId::random(), &token, None).await;
    assert!(matches!(refused, Err(StoreError::Full { .. })));
    let large = a.writer().store(at(1), state(1, 300_000)).await;
    assert!(matches!(large, Err(StoreError::Full { .. })));
    b.writer().store(at(1), small(1)).await.unwrap();
    // It cannot be kept as it is, so it is not kept.
    drop(a);
    assert!(store.do_chores().await);
    drop(b);
    assert!(store.do_chores().await);
    assert_eq!(world.blobs().await, 1);
    assert_eq!(world.records.survey().await.unwrap().sessions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_arrives_when_nobody_waits_any_more_goes_again() {
    let slow = ThrottleConfig {
        wait_put_per_call: 2 * CONFIG.timeout,
        ..ThrottleConfig::default()
    };
    let throttled = Arc::new(ThrottledStore::new(InMemory::new(), slow));
    let world = World {
        blobs: BlobStore::new(throttled.clone(), "store"),
        ..World::memory(LIMITS)
    };
    let store = world.server();
    let (_, _, lease) = begin(&store).await;
    let began = Instant::now();
    let late = lease.writer().store(at(1), small(1)).await;
    assert!(matches!(late, Err(StoreError::Unavailable(_))));
    assert_eq!(began.elapsed(), CONFIG.timeout);
    // Also when the one who stores is gone.
    let given_up = timeout(
        Duration::from_secs(1),
        lease.writer().store(at(2), small(2)),
    );
    assert!(given_up.await.is_err());
    sleep(3 * CONFIG.timeout).await;
    assert_eq!(world.blobs().await, 2);
    assert!(store.do_chores().await);
    assert_eq!(world.blobs().await, 0);

    throttled.config_mut(|config| config.wait_put_per_call = Duration::ZERO);
    lease.writer().store(at(3), small(3)).await.unwrap();
    assert!(store.do_chores().await);
    assert_eq!(world.blobs().await, 1);
}

#[tokio::test(start_paused = true)]
async fn closing_does_what_is_left_and_says_good_bye() {
    let world = World::memory(LIMITS);
    let store = world.server();
    let mut upkeep = JoinSet::new();
    upkeep.spawn(Upkeep::new(store.clone()).run());
    let (session, token, lease) = begin(&store).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    let (_, _, mut over) = begin(&store).await;
    over.writer().store(at(1), small(2)).await.unwrap();
    drop(lease);
    over.end_session();
    upkeep.shutdown().await;
    store.close(Duration::from_secs(5)).await;
    let survey = world.records.survey().await.unwrap();
    assert!(survey.servers.is_empty() && survey.condemned.is_empty());
    assert_eq!(world.blobs().await, 1);
    let later = world.server();
    assert!(later.resume(&session, &token).await.is_ok());
}

fn config(records: &str, blobs: Option<&str>) -> open::Config {
    open::Config {
        place: Place::parse(records, blobs, LIMITS).unwrap(),
        sessions: CONFIG,
    }
}

#[tokio::test]
async fn a_folder_is_mended_at_the_start_and_belongs_to_one() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let store = SessionStore::open(config(&url, None)).await.unwrap();
    let (session, token, lease) = begin(&store).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    let busy = SessionStore::open(config(&url, None)).await;
    assert!(matches!(busy, Err(OpenError::File(_))), "{busy:?}");
    let elsewhere = tempfile::tempdir().unwrap();
    let other = format!("file://{}", elsewhere.path().display());
    let blobs = format!("{url}/blobs");
    let busy = SessionStore::open(config(&other, Some(&blobs))).await;
    assert!(matches!(busy, Err(OpenError::InUse(_))), "{busy:?}");
    drop((lease, store));

    // What a crash leaves.
    let blobs = folder.path().join("blobs");
    let name = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap());
    let name = name.filter(|entry| entry.file_type().unwrap().is_dir());
    let kept = name.map(|entry| entry.path()).next().unwrap();
    let leftover = BlobKey {
        id: BlobId::of(b"leftover"),
        edition: 77,
    };
    std::fs::write(kept.join(leftover.to_string()), b"leftover").unwrap();
    std::fs::write(kept.join("unfinished#1"), b"unfin").unwrap();
    let store = SessionStore::open(config(&url, None)).await.unwrap();
    assert!(store.do_chores().await);
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 1);
    let (_, snapshot) = store.resume(&session, &token).await.unwrap();
    assert!(same(&snapshot.state, &small(1)));
}

#[tokio::test]
async fn a_place_that_cannot_be_used_is_a_clear_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), b"").unwrap();
    let folder_url = format!("file://{}", folder.path().display());
    // It closes every connection.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = port.local_addr().unwrap();
    let mut closing = JoinSet::new();
    closing.spawn(async move { while port.accept().await.is_ok() {} });
    let in_file = format!("{folder_url}/file/x");
    let refused = async |records: &str, blobs: Option<&str>, expected: &str| {
        let opened = SessionStore::open(config(records, blobs)).await;
        let error = opened.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    for scheme in ["redis", "rediss"] {
        let url = format!("{scheme}://user:hunter2@{address}");
        let expected = format!("Redis at {address} cannot be used: ");
        refused(&url, Some(&folder_url), &expected).await;
    }
    refused(&in_file, None, "file/x cannot be used: Not a directory").await;
    refused("memory:", Some(&in_file), "Not a directory").await;
}

#[tokio::test]
async fn blobs_on_disk_of_sessions_in_memory_go_with_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    std::fs::create_dir(folder.path().join("somebody else's")).unwrap();
    let open = || SessionStore::open(config("memory:", Some(&url)));
    let store = open().await.unwrap();
    let (_, _, lease) = begin(&store).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    assert!(matches!(open().await, Err(OpenError::InUse(_))));
    drop((lease, store));
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files(), 3);
    let _store = open().await.unwrap();
    // The lock, and what is none of its business.
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names[..2],
        [".lock", "memory-"].map(|n| names.iter().find(|m| m.starts_with(n)).unwrap().clone())
    );
    assert_eq!(names[2], "somebody else's");
}

#[tokio::test]
async fn a_damaged_blob_is_not_handed_out() {
    let world = World::new(RecordsKind::Memory, BlobsKind::Folder)
        .await
        .unwrap();
    let (one, two) = (world.server(), world.server());
    let (session, token, lease) = begin(&one).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    let key = world.blobs.list().await.unwrap()[0];
    world
        .blobs
        .put(key, Bytes::from_static(b"other"))
        .await
        .unwrap();
    let damaged = two.resume(&session, &token).await;
    assert!(matches!(
        damaged,
        Err(ResumeError::Store(StoreError::Corrupt(_)))
    ));
    // It goes on where it runs.
    lease.writer().store(at(2), small(2)).await.unwrap();
    let read = two.snapshot(&session).await.unwrap().unwrap();
    assert!(same(&read.state, &small(2)));
}

#[tokio::test]
async fn a_full_disk_fails_a_write_and_harms_nothing() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let records = Arc::new(MemoryRecords::new(LIMITS));
    let name = records.name().await.unwrap();
    let world = World {
        blobs: in_folder(disk.path(), &name, false).unwrap(),
        ..World::with(records)
    };
    let (one, two) = (world.server(), world.server());
    let (session, _, lease) = begin(&one).await;
    lease
        .writer()
        .store(at(1), state(1, 300_000))
        .await
        .unwrap();
    let full = lease.writer().store(at(2), state(2, 3_000_000)).await;
    let Err(StoreError::Unavailable(error)) = full else {
        panic!("{full:?}");
    };
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(one.do_chores().await);
    assert_eq!(world.blobs().await, 1);
    let read = two.snapshot(&session).await.unwrap().unwrap();
    assert!(same(&read.state, &state(1, 300_000)));
    let files = std::fs::read_dir(disk.path().join(&name)).unwrap();
    assert_eq!(files.count(), 1);
    // The session goes on with what fits.
    lease
        .writer()
        .store(at(3), state(3, 300_000))
        .await
        .unwrap();
    let read = two.snapshot(&session).await.unwrap().unwrap();
    assert_eq!(read.progress, at(3));
}

/// Records whose answers get lost.
#[derive(Debug)]
struct Flaky {
    inner: MemoryRecords,
    down: Mutex<bool>,
    /// Of which the next call fails, after it was done or before.
    losing: Mutex<(HashSet<&'static str>, bool)>,
    /// The next writer is taken for dead just before.
    retire_before_write: Mutex<bool>,
}

impl Default for Flaky {
    fn default() -> Self {
        Self {
            inner: MemoryRecords::new(LIMITS),
            down: Mutex::default(),
            losing: Mutex::default(),
            retire_before_write: Mutex::default(),
        }
    }
}

impl Flaky {
    fn down(&self, down: bool) {
        *self.down.lock().unwrap() = down;
    }

    /// The next call of that method fails. `undone`: nothing is done.
    fn lose(&self, method: &'static str, undone: bool) {
        *self.losing.lock().unwrap() = (HashSet::from([method]), undone);
    }

    async fn call<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let (lost, undone) = {
            let mut losing = self.losing.lock().unwrap();
            (losing.0.remove(method), losing.1)
        };
        let down = *self.down.lock().unwrap();
        let failure = Err(StoreError::unavailable("lost"));
        if down || lost && undone {
            return failure;
        }
        let done = call.await;
        if lost { failure } else { done }
    }
}

#[async_trait]
impl Records for Flaky {
    async fn name(&self) -> Result<String, StoreError> {
        self.inner.name().await
    }

    async fn read(&self, session: &SessionId) -> Result<Option<Written>, StoreError> {
        self.call("read", self.inner.read(session)).await
    }

    async fn write(&self, change: Change<'_>) -> Result<Outcome, StoreError> {
        let retire = std::mem::take(&mut *self.retire_before_write.lock().unwrap());
        if retire {
            self.inner.retire(change.server).await?;
        }
        self.call("write", self.inner.write(change)).await
    }

    async fn reserve(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let call = self.inner.reserve(server, reservation, blobs);
        self.call("reserve", call).await
    }

    async fn release(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let call = self.inner.release(server, reservation, blobs);
        self.call("release", call).await
    }

    async fn locate(&self, blob: BlobId) -> Result<Option<BlobKey>, StoreError> {
        self.call("locate", self.inner.locate(blob)).await
    }

    async fn forget(&self, blobs: &[BlobKey]) -> Result<(), StoreError> {
        self.call("forget", self.inner.forget(blobs)).await
    }

    async fn condemn_unknown(&self, blobs: &[BlobKey]) -> Result<Vec<BlobKey>, StoreError> {
        let call = self.inner.condemn_unknown(blobs);
        self.call("condemn_unknown", call).await
    }

    async fn beat(&self, server: &ServerId) -> Result<(), StoreError> {
        self.call("beat", self.inner.beat(server)).await
    }

    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobKey>, StoreError> {
        self.call("retire", self.inner.retire(server)).await
    }

    async fn stale(&self, held: &[(SessionId, Revision)]) -> Result<Vec<SessionId>, StoreError> {
        self.call("stale", self.inner.stale(held)).await
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        self.call("survey", self.inner.survey()).await
    }
}
