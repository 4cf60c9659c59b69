//! Sessions of several servers in one store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastvideo_proto::ids::SessionId;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::backends::{BLOBS, BlobsKind, LIMITS, RECORDS, RecordsKind};
use super::world::{LEASE, TTL, World, any, at, begin, is_lost, same, small, state};
use crate::small_disk::SmallDisk;
use crate::store::ids::{BlobId, ReservationId, ServerId};
use crate::store::open::in_folder;
use crate::store::records::Records;
use crate::store::records::ledger::Limits;
use crate::store::records::memory::MemoryRecords;
use crate::store::{DataLoss, ResumeError, ResumeToken, StoreError, Upkeep};

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
            assert!(one.clean_up().await);
            assert_eq!(world.blobs().await, 1);

            drop(lease);
            assert!(one.clean_up().await);
            let wrong = two.resume(&session, &ResumeToken::random(), any).await;
            assert!(matches!(wrong, Err(ResumeError::NotFound(_))));
            let absent = two.resume(&SessionId::random(), &token, any).await;
            assert!(matches!(absent, Err(ResumeError::NotFound(_))));
            let (lease, snapshot) = two.resume(&session, &token, any).await.unwrap();
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
                assert!(store.clean_up().await);
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
        let (taken, _) = two.resume(&session, &token, any).await.unwrap();
        let stale = lease.writer().store(at(2), small(2)).await;
        assert!(matches!(stale, Err(StoreError::Stale)));
        assert!(is_lost(&lease));
        // What its old server does with it now does not reach it.
        let mut lease = lease;
        lease.end_session();
        assert!(one.clean_up().await);
        taken.writer().store(at(2), small(3)).await.unwrap();

        // Who has nothing to write finds out too.
        let (back, snapshot) = one.resume(&session, &token, any).await.unwrap();
        assert!(same(&snapshot.state, &small(3)));
        assert!(!is_lost(&taken));
        two.beat().await.unwrap();
        assert!(is_lost(&taken));
        drop(taken);
        assert!(two.clean_up().await);
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
    let (taken, _) = two.resume(&session, &token, any).await.unwrap();
    // It does not know yet that it is lost.
    lease.end_session();
    assert!(one.clean_up().await);
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
        let (_, _, resumed) = tokio::join!(
            saving,
            store.clean_up(),
            store.resume(&session, &token, any)
        );
        let (resumed, snapshot) = resumed.unwrap();
        assert!(same(&snapshot.state, &small(n)), "{n}");
        assert!(store.clean_up().await);
        lease = resumed;
        assert!(!is_lost(&lease), "{n}");
    }
    store.drop(&session).await.unwrap();
    drop(lease);
    assert!(store.clean_up().await);
    world.is_empty().await;
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
    let (lease, _) = store.resume(&left, &token, any).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    assert!(matches!(
        store.blob(lent).await,
        Err(StoreError::Lost(DataLoss::MissingBlob(_)))
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
        .put(key, Bytes::from_static(b"x").into())
        .await
        .unwrap();

    // Both live: nobody is taken for dead.
    sleep(10 * LEASE).await;
    let owner = async || {
        let written = world
            .records
            .read(&session.clone().into())
            .await
            .unwrap()
            .unwrap();
        written.record.owner
    };
    assert!(owner().await.is_some());
    assert_eq!(world.blobs().await, 1);

    its_upkeep.shutdown().await;
    sleep(3 * LEASE).await;
    assert!(owner().await.is_none());
    let (resumed, snapshot) = alive.resume(&session, &token, any).await.unwrap();
    assert!(same(&snapshot.state, &small(1)));
    // It was only stopped for a while.
    dead.beat().await.unwrap();
    assert!(is_lost(&lease));
    drop(resumed);
    sleep(TTL + 3 * LEASE).await;
    world.is_empty().await;
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
        assert!(one.clean_up().await && two.clean_up().await);
        let read = one.snapshot(&b).await.unwrap().unwrap();
        assert!(same(&read.state, &small(1)));
        assert_eq!(world.blobs().await, 1);
        two.drop(&b).await.unwrap();
        drop((first, second));
        assert!(one.clean_up().await && two.clean_up().await);
        world.is_empty().await;
    }
}

#[tokio::test]
async fn memory_that_is_full_refuses_new_sessions_and_drops_those_that_nobody_runs() {
    let world = World::memory(Limits {
        max_sessions: 2,
        max_bytes: 100_000,
        max_media_bytes: 1 << 40,
    });
    let store = world.server();
    let (left, token, lease) = begin(&store).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    drop(lease);
    assert!(store.clean_up().await);
    let (_, _, a) = begin(&store).await;
    let (_, _, b) = begin(&store).await;
    let gone = store.resume(&left, &token, any).await;
    assert!(matches!(gone, Err(ResumeError::NotFound(_))));
    assert!(store.clean_up().await);
    assert_eq!(world.blobs().await, 0);
    let refused = store.create(&SessionId::random(), &token, None).await;
    assert!(matches!(refused, Err(StoreError::Full { .. })));
    let large = a.writer().store(at(1), state(1, 300_000)).await;
    assert!(matches!(large, Err(StoreError::Full { .. })));
    b.writer().store(at(1), small(1)).await.unwrap();
    // It cannot be kept as it is, so it is not kept.
    drop(a);
    assert!(store.clean_up().await);
    drop(b);
    assert!(store.clean_up().await);
    assert_eq!(world.blobs().await, 1);
    assert_eq!(world.records.survey().await.unwrap().records.len(), 1);
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
    assert!(later.resume(&session, &token, any).await.is_ok());
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
        .put(key, Bytes::from_static(b"other").into())
        .await
        .unwrap();
    let damaged = two.resume(&session, &token, any).await;
    assert!(matches!(
        damaged,
        Err(ResumeError::Lost(DataLoss::DamagedBlob(_)))
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
    assert!(one.clean_up().await);
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

#[tokio::test]
async fn a_resume_that_does_not_fit_leaves_the_session_where_it_runs() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let (one, two) = (world.server(), world.server());
        let (session, token, lease) = begin(&one).await;
        lease.writer().store(at(1), small(1)).await.unwrap();
        for server in [&one, &two] {
            let refused = server.resume(&session, &token, |saved| {
                assert!(same(&saved.state, &small(1)));
                Err("too small")
            });
            let refused = refused.await.unwrap_err();
            assert!(matches!(refused, ResumeError::Unfit("too small")));
        }
        one.beat().await.unwrap();
        assert!(!is_lost(&lease), "{records:?}");
        lease.writer().store(at(2), small(2)).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_lost_for_good_is_told_from_a_store_that_does_not_answer() {
    let world = World::memory(LIMITS);
    let store = world.server();
    let (session, token, lease) = begin(&store).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    drop(lease);
    assert!(store.clean_up().await);
    let resume = async || store.resume(&session, &token, any).await.unwrap_err();
    world
        .blobs
        .drop(world.blobs.list().await.unwrap()[0])
        .await
        .unwrap();
    let lost = resume().await;
    assert!(
        matches!(lost, ResumeError::Lost(DataLoss::MissingBlob(_))),
        "{lost:?}"
    );

    world.make_newer(&session.clone().into()).await;
    let lost = resume().await;
    assert!(
        matches!(lost, ResumeError::Store(StoreError::Newer(_))),
        "{lost:?}"
    );
    let lost = store.snapshot(&session).await;
    assert!(matches!(lost, Err(StoreError::Newer(_))), "{lost:?}");
}

#[tokio::test]
async fn a_blob_that_is_lent_again_and_again_is_kept_once() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let (one, two) = (world.server(), world.server());
        let blob = Bytes::from_static(b"exported");
        for _ in 0..10 {
            let (first, second) = tokio::join!(one.lend(blob.clone()), two.lend(blob.clone()));
            assert_eq!(first.unwrap(), second.unwrap());
        }
        one.lend(Bytes::from_static(b"another")).await.unwrap();
        assert!(one.clean_up().await && two.clean_up().await);
        let survey = world.records.survey().await.unwrap();
        assert_eq!((survey.records.len(), survey.blobs), (2, 2), "{records:?}");
        assert_eq!(world.blobs().await, 2);
        assert_eq!(two.blob(BlobId::of(&blob)).await.unwrap(), blob);
    }
}

#[tokio::test(start_paused = true)]
async fn a_loan_is_kept_from_the_last_time_that_it_was_lent() {
    let world = World::memory(LIMITS);
    let store = world.server();
    let mut upkeep = JoinSet::new();
    upkeep.spawn(Upkeep::new(store.clone()).run());
    let blob = Bytes::from_static(b"exported");
    let mut id = store.lend(blob.clone()).await.unwrap();
    for _ in 0..3 {
        sleep(TTL * 3 / 4).await;
        id = store.lend(blob.clone()).await.unwrap();
    }
    sleep(TTL).await;
    assert_eq!(store.blob(id).await.unwrap(), blob);
    sleep(Duration::from_secs(20)).await;
    world.is_empty().await;
}

#[tokio::test]
async fn loans_evict_no_session_and_are_evicted_first() {
    let world = World::memory(Limits {
        max_sessions: 3,
        max_bytes: 3_000,
        max_media_bytes: 1 << 40,
    });
    let store = world.server();
    let (left, token) = store.hydrate(&small(1)).await.unwrap();
    let lend = async |n: u8, bytes: usize| store.lend(vec![n; bytes].into()).await;
    let first = lend(1, 1_000).await.unwrap();
    // Another loan takes the place of the first one.
    let second = lend(2, 2_000).await.unwrap();
    assert!(store.blob(first).await.is_err());
    // And none takes that of the session.
    let large = lend(3, 2_900).await;
    assert!(matches!(large, Err(StoreError::Full { .. })), "{large:?}");
    assert!(store.snapshot(&left).await.unwrap().is_some());
    // A session takes that of the loan, before that of another session.
    store.hydrate(&state(2, 900)).await.unwrap();
    assert!(store.blob(second).await.is_err());
    assert!(store.resume(&left, &token, any).await.is_ok());

    // A loan is no session: it does not count as one.
    let third = lend(4, 10).await.unwrap();
    store.hydrate(&small(3)).await.unwrap();
    assert!(store.blob(third).await.is_ok());
    store.hydrate(&small(4)).await.unwrap();
    assert!(store.blob(third).await.is_ok());
    assert_eq!(world.records.survey().await.unwrap().records.len(), 4);
}
