//! A Redis that has lost data: it restarts empty, or as it was some time ago.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::SessionId;
use object_store::memory::InMemory;
use tokio::time::timeout;

use super::backends::Redis;
use super::world::{CONFIG, any, at, begin, is_lost, same, small};
use crate::store::blobs::BlobStore;
use crate::store::records::Records;
use crate::store::records::redis::{RedisAddress, RedisRecords};
use crate::store::{ResumeError, ResumeToken, SessionStore, StoreError};

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
