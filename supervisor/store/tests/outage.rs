//! Backends that fail, hang or answer late, and what is left to do then.

use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::backends::LIMITS;
use super::flaky::Flaky;
use super::world::{CONFIG, LEASE, TTL, World, any, at, begin, is_lost, same, small};
use crate::store::blobs::BlobStore;
use crate::store::{StoreError, Upkeep};

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
    assert!(!store.clean_up().await);
    flaky.down(false);
    let (_lease, snapshot) = store.resume(&session, &token, any).await.unwrap();
    assert!(same(&snapshot.state, &small(1)));
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
            while !one.clean_up().await {}
            world.delete_condemned().await;
            assert_eq!(world.blobs().await, 1, "{lost}");

            flaky.lose(lost, down);
            drop(lease);
            while !one.clean_up().await {}
            flaky.lose(lost, down);
            let resumed = two.resume(&session, &token, any).await;
            let (lease, snapshot) = match resumed {
                Ok(resumed) => resumed,
                Err(_) => two.resume(&session, &token, any).await.unwrap(),
            };
            assert_eq!(snapshot.progress, at(2));
            assert!(same(&snapshot.state, &small(2)), "{lost}");
            let mut lease = lease;
            flaky.lose(lost, down);
            lease.end_session();
            while !two.clean_up().await {}
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
    assert!(store.clean_up().await);
    // Those that have condemned the first edition are late.
    world.delete_condemned().await;
    let read = other.snapshot(&session).await.unwrap().unwrap();
    assert!(same(&read.state, &small(1)));
    assert_eq!(world.blobs().await, 1);
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
    assert!(store.clean_up().await);
    assert_eq!(world.blobs().await, 0);

    throttled.config_mut(|config| config.wait_put_per_call = Duration::ZERO);
    lease.writer().store(at(3), small(3)).await.unwrap();
    assert!(store.clean_up().await);
    assert_eq!(world.blobs().await, 1);
}

#[tokio::test]
async fn an_outage_leaves_as_much_cleanup_as_there_are_writers_and_not_as_there_are_writes() {
    let flaky = Arc::new(Flaky::default());
    let world = World::with(flaky.clone());
    let store = world.server();
    let (session, _, lease) = begin(&store).await;
    flaky.down(true);
    for n in 0..50 {
        let failed = lease.writer().store(at(n.into()), small(n)).await;
        assert!(matches!(failed, Err(StoreError::Unavailable(_))));
        assert!(store.hydrate(&small(n)).await.is_err());
    }
    assert_eq!(store.0.cleanup.pending().len(), 1);
    assert!(!store.clean_up().await);
    // What was reserved without an answer is given back by the next one who reserves.
    flaky.down(false);
    flaky.lose("reserve", false);
    assert!(lease.writer().store(at(50), small(50)).await.is_err());
    assert_eq!(world.records.survey().await.unwrap().blobs, 1);
    lease.writer().store(at(51), small(51)).await.unwrap();
    assert!(store.clean_up().await);
    assert!(store.0.cleanup.pending().is_empty());
    assert_eq!(world.records.survey().await.unwrap().blobs, 1);
    let saved = store.snapshot(&session).await.unwrap().unwrap();
    assert!(same(&saved.state, &small(51)));
}

#[tokio::test(start_paused = true)]
async fn a_write_takes_no_longer_than_the_timeout_with_all_its_steps_and_its_wait() {
    let flaky = Arc::new(Flaky::default());
    let world = World::with(flaky.clone());
    let store = world.server();
    let (_, _, lease) = begin(&store).await;
    // Reserving fits into the timeout, and so does writing, but not both.
    flaky.delay(CONFIG.timeout * 2 / 3);
    let began = Instant::now();
    let (first, second) = tokio::join!(
        lease.writer().store(at(1), small(1)),
        lease.writer().store(at(2), small(2)),
    );
    for late in [first, second] {
        assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
    }
    assert_eq!(began.elapsed(), CONFIG.timeout);
    flaky.delay(Duration::ZERO);
    lease.writer().store(at(3), small(3)).await.unwrap();
}

#[tokio::test]
async fn a_session_that_was_ended_during_an_outage_is_removed_afterwards() {
    let flaky = Arc::new(Flaky::default());
    let world = World::with(flaky.clone());
    let (store, other) = (world.server(), world.server());
    let (session, token, lease) = begin(&store).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    flaky.down(true);
    // Nothing has ended there, so it is no success.
    let elsewhere = other.drop(&session).await;
    assert!(matches!(elsewhere, Err(StoreError::Unavailable(_))));
    assert!(!is_lost(&lease));
    assert!(store.drop(&session).await.unwrap());
    assert!(is_lost(&lease));
    drop(lease);
    assert!(!store.clean_up().await);
    flaky.down(false);
    assert!(store.clean_up().await);
    assert!(!store.drop(&session).await.unwrap());
    assert!(other.resume(&session, &token, any).await.is_err());
    world.is_empty().await;
}
