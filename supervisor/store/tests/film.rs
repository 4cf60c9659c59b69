//! Films: stored with their sessions, limited, and kept for their time.

use std::time::Duration;

use fastvideo_proto::stored::Expectation;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::backends::{BlobsKind, RecordsKind};
use super::world::{LEASE, RECORDING, TTL, World, any, at, begin, segment, small};
use crate::store::ids::RecordKey;
use crate::store::records::ledger::Limits;
use crate::store::{DataLoss, Lease, RecordedSegment, Recording, SessionStore, StoreError, Upkeep};

const BACKENDS: [(RecordsKind, BlobsKind); 4] = [
    (RecordsKind::Memory, BlobsKind::Memory),
    (RecordsKind::File, BlobsKind::Folder),
    (RecordsKind::Redis, BlobsKind::Folder),
    (RecordsKind::Redis, BlobsKind::S3),
];

/// Finishes a segment with media, and stores it.
async fn finish(lease: &Lease, segment_idx: u32) -> RecordedSegment {
    let recorded = segment(segment_idx);
    let writer = lease.writer();
    let state = small(segment_idx.to_le_bytes()[0]);
    writer.record(recorded.clone());
    writer.commit(at(segment_idx + 1), state);
    writer.write().await.unwrap();
    recorded
}

/// Which segments of a film have media.
async fn kept(
    store: &SessionStore,
    session: &fastvideo_proto::ids::SessionId,
    token: &str,
) -> Vec<u32> {
    let film = store.film(session, token).await.unwrap().unwrap().film;
    let kept = film
        .segments()
        .iter()
        .filter(|segment| segment.media.is_some());
    kept.map(|segment| segment.segment_idx).collect()
}

#[tokio::test]
async fn a_film_is_read_by_every_server_while_it_runs_and_after() {
    for (records, blobs) in BACKENDS {
        let Some(world) = World::new(records, blobs).await else {
            continue;
        };
        let (one, two) = (world.server(), world.server());
        let (session, token, lease) = begin(&one).await;
        let mut recorded = Vec::new();
        for idx in 0..3 {
            recorded.push(finish(&lease, idx).await);
        }
        for store in [&one, &two] {
            let view = store.film(&session, token.as_str()).await.unwrap().unwrap();
            assert!(view.is_live && view.is_resumable && view.is_owner);
            let segments = view.film.segments();
            assert_eq!(segments.len(), 3, "{records:?}");
            for (segment, recorded) in segments.iter().zip(&recorded) {
                assert_eq!(*segment, recorded.segment);
                let media = store.media(segment).await.unwrap();
                assert_eq!(media.join(), recorded.content.join());
                let part = store.media_range(segment, 90..110).await.unwrap();
                assert_eq!(part.join(), recorded.content.slice(90..110).join());
            }
        }
        // It moves with its session.
        let (lease, saved) = two.resume(&session, &token, any).await.unwrap();
        assert_eq!(saved.film.segments().len(), 3);
        finish(&lease, 3).await;
        one.beat().await.unwrap();
        assert_eq!(kept(&one, &session, token.as_str()).await, [0, 1, 2, 3]);
        drop(lease);
        assert!(two.clean_up().await);
        let view = one.film(&session, token.as_str()).await.unwrap().unwrap();
        assert!(!view.is_live && view.is_resumable);
        assert!(view.released.is_some());
        // Who ends it removes its media.
        assert!(one.drop(&session).await.unwrap());
        assert!(one.clean_up().await && two.clean_up().await);
        world.delete_condemned().await;
        world.is_empty().await;
    }
}

#[tokio::test]
async fn only_who_has_a_token_sees_a_film() {
    let world = World::new(RecordsKind::Memory, BlobsKind::Memory)
        .await
        .unwrap();
    let store = world.server();
    let (session, token, lease) = begin(&store).await;
    finish(&lease, 0).await;
    let view = async |given: &str| store.film(&session, given).await.unwrap();
    let watch = lease.watch_token(&token);
    assert!(view(token.as_str()).await.unwrap().is_owner);
    assert!(!view(&watch).await.unwrap().is_owner);
    for wrong in ["", "0", &token.watch_token(1)] {
        assert!(view(wrong).await.is_none(), "{wrong}");
    }
    let renewed = lease.renew_watch_token(&token);
    assert!(view(&watch).await.is_none());
    assert!(!view(&renewed).await.unwrap().is_owner);
    // The store has it as well once the session is written.
    lease.writer().write().await.unwrap();
    drop(lease);
    assert!(store.clean_up().await);
    assert!(view(&watch).await.is_none());
    assert!(!view(&renewed).await.unwrap().is_owner);
    let (lease, _) = store.resume(&session, &token, any).await.unwrap();
    assert_eq!(lease.watch_token(&token), renewed);
}

#[tokio::test]
async fn a_session_keeps_as_much_as_its_limit_the_newest() {
    let world = World::new(RecordsKind::Memory, BlobsKind::Memory)
        .await
        .unwrap();
    let store = world.server_with(Recording {
        max_session_bytes: 500,
        ..RECORDING
    });
    let (session, token, lease) = begin(&store).await;
    for idx in 0..4 {
        finish(&lease, idx).await;
        lease.acknowledge(idx, 2);
    }
    assert_eq!(kept(&store, &session, token.as_str()).await, [2, 3]);
    assert_eq!(store.lost_segments(), 0, "the client had them");
    let film = store
        .film(&session, token.as_str())
        .await
        .unwrap()
        .unwrap()
        .film;
    let gone = store.media(&film.segments()[0]).await;
    assert!(matches!(
        gone,
        Err(StoreError::Lost(DataLoss::MediaNotKept))
    ));
    // What the client may lack is counted when it has to go.
    for idx in 4..8 {
        finish(&lease, idx).await;
    }
    assert_eq!(kept(&store, &session, token.as_str()).await, [6, 7]);
    assert_eq!(store.lost_segments(), 2);
    assert!(store.clean_up().await);
    world.delete_condemned().await;
    assert_eq!(world.blobs().await, 3, "two segments and the state");
}

#[tokio::test]
async fn films_that_nobody_runs_make_room_in_memory_and_their_sessions_stay() {
    let world = World::memory(Limits {
        max_sessions: 10,
        max_bytes: 1 << 20,
        max_media_bytes: 500,
    });
    let store = world.server();
    let (old, old_token, lease) = begin(&store).await;
    finish(&lease, 0).await;
    drop(lease);
    assert!(store.clean_up().await);
    let (session, token, lease) = begin(&store).await;
    finish(&lease, 0).await;
    assert_eq!(kept(&store, &old, old_token.as_str()).await, [0]);
    finish(&lease, 1).await;
    assert!(kept(&store, &old, old_token.as_str()).await.is_empty());
    assert_eq!(kept(&store, &session, token.as_str()).await, [0, 1]);
    // A film of a running session makes room for itself, and its state is stored in any case.
    finish(&lease, 2).await;
    assert_eq!(kept(&store, &session, token.as_str()).await, [1, 2]);
    assert_eq!(store.lost_segments(), 1);
    assert!(store.status().last_failure.is_none(), "that is no failure");
    let (_, saved) = store.resume(&old, &old_token, any).await.unwrap();
    assert!(saved.state.is_some());
}

#[tokio::test]
async fn media_that_are_not_stored_yet_are_limited_and_can_be_read() {
    let world = World::new(RecordsKind::Memory, BlobsKind::Memory)
        .await
        .unwrap();
    let store = world.server_with(Recording {
        max_bytes: 450,
        ..RECORDING
    });
    let (session, token, lease) = begin(&store).await;
    for idx in 0..3 {
        let recorded = segment(idx);
        lease.writer().record(recorded);
        lease.writer().commit(at(idx + 1), small(0));
    }
    assert_eq!(kept(&store, &session, token.as_str()).await, [0, 1]);
    assert_eq!(store.lost_segments(), 1);
    let film = store
        .film(&session, token.as_str())
        .await
        .unwrap()
        .unwrap()
        .film;
    let media = store.media(&film.segments()[1]).await.unwrap();
    assert_eq!(media, segment(1).content);
    lease.writer().write().await.unwrap();
    finish(&lease, 3).await;
    assert_eq!(kept(&store, &session, token.as_str()).await, [0, 1, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_film_outlives_its_state_and_then_expires() {
    let world = World::new(RecordsKind::Memory, BlobsKind::Memory)
        .await
        .unwrap();
    let store = world.server();
    let _upkeep = JoinSet::from_iter([Upkeep::new(store.clone()).run()]);
    let (session, token, lease) = begin(&store).await;
    finish(&lease, 0).await;
    drop(lease);
    sleep(TTL - LEASE).await;
    let view = async || store.film(&session, token.as_str()).await.unwrap();
    let seen = view().await.unwrap();
    assert!(seen.is_resumable && !seen.is_over());
    sleep(4 * LEASE).await;
    let seen = view().await.unwrap();
    assert!(!seen.is_resumable && seen.is_over());
    assert!(store.media(&seen.film.segments()[0]).await.is_ok());
    assert!(store.resume(&session, &token, any).await.is_err());
    assert_eq!(world.blobs().await, 1, "the state is deleted");
    sleep(RECORDING.ttl - TTL - 8 * LEASE).await;
    assert!(view().await.is_some());
    sleep(8 * LEASE + Duration::from_secs(60)).await;
    assert!(view().await.is_none());
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_film_that_a_newer_server_has_stored_stays_for_its_time() {
    let world = World::new(RecordsKind::Memory, BlobsKind::Memory)
        .await
        .unwrap();
    let store = world.server();
    let (session, _, lease) = begin(&store).await;
    finish(&lease, 0).await;
    drop(lease);
    assert!(store.clean_up().await);
    world.make_newer(&session.clone().into()).await;
    let _upkeep = JoinSet::from_iter([Upkeep::new(store.clone()).run()]);
    sleep(RECORDING.ttl - 8 * LEASE).await;
    let key = RecordKey::from(session);
    assert!(world.records.read(&key).await.unwrap().is_some());
    assert_eq!(world.blobs().await, 2, "its state and its media");
    sleep(16 * LEASE + Duration::from_secs(60)).await;
    world.is_empty().await;
}

#[tokio::test]
async fn a_film_is_over_when_nothing_more_is_expected_of_its_session() {
    let world = World::new(RecordsKind::Memory, BlobsKind::Memory)
        .await
        .unwrap();
    let (one, two) = (world.server(), world.server());
    let (session, token, mut lease) = begin(&one).await;
    finish(&lease, 0).await;
    let view = async || two.film(&session, token.as_str()).await.unwrap().unwrap();
    for (expected, is_over) in [
        (Expectation::Over, true),
        (Expectation::ClientGone, false),
        (Expectation::GoesOn, false),
        (Expectation::Over, true),
    ] {
        lease.expect(expected);
        assert!(!view().await.is_over(), "it runs");
        drop(lease);
        assert!(one.clean_up().await);
        let seen = view().await;
        assert_eq!((seen.expected, seen.is_over()), (expected, is_over));
        assert_eq!(seen.goes_on(), expected == Expectation::GoesOn);
        assert!(!seen.is_live);
        (lease, _) = one.resume(&session, &token, any).await.unwrap();
        assert!(!view().await.is_over(), "it runs again");
    }
    // Its server is lost before it has written anything.
    let lost = world.records.read(&session.clone().into()).await.unwrap();
    let revision = lost.unwrap().revision;
    two.disown(&session.clone().into(), revision).await.unwrap();
    assert!(!view().await.is_over(), "it may go on");
}
