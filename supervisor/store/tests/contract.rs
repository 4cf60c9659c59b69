//! What every backend of records promises.

use std::collections::HashMap;
use std::sync::Arc;

use fastvideo_proto::ids::SessionId;
use nix::sys::signal::Signal;

use super::backends::{RECORDS, RecordsHome, RecordsKind, Redis};
use crate::store::error::StoreError;
use crate::store::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};
use crate::store::records::file::{FILE_NAME, FileOpenError, FileRecords};
use crate::store::records::ledger::Limits;
use crate::store::records::redis::{RedisAddress, RedisRecords};
use crate::store::records::{BlobKind, BlobRef, Record, RecordWrite, Records, WriteOutcome};

/// A server that writes records whose bodies are short texts.
pub(super) struct Writer<'a> {
    pub(super) records: &'a dyn Records,
    pub(super) server: ServerId,
}

impl<'a> Writer<'a> {
    pub(super) fn new(records: &'a dyn Records) -> Self {
        let server = ServerId::random();
        Self { records, server }
    }

    async fn reserve(&self, number: u64, blobs: &[BlobId]) -> Vec<BlobKey> {
        let reservation = ReservationId(number);
        let reserved = self.records.reserve(&self.server, reservation, blobs);
        reserved.await.unwrap()
    }

    pub(super) async fn write(
        &self,
        key: &RecordKey,
        expected: Option<Revision>,
        reservation: Option<u64>,
        record: Option<&Record>,
    ) -> Result<WriteOutcome, StoreError> {
        let write = RecordWrite {
            key,
            expected,
            record,
            server: &self.server,
            reservation: reservation.map(ReservationId),
        };
        self.records.write(write).await
    }

    async fn restore(
        &self,
        key: &RecordKey,
        lost: Revision,
        record: Option<&Record>,
    ) -> Result<Revision, StoreError> {
        let write = RecordWrite {
            key,
            expected: Some(lost),
            record,
            server: &self.server,
            reservation: None,
        };
        let outcome = self.records.restore(write).await?;
        Ok(outcome.revision)
    }

    fn record(&self, body: &str, blobs: &[BlobKey]) -> Record {
        let blob = |key: &BlobKey| BlobRef {
            key: *key,
            bytes: 100,
            kind: BlobKind::State,
        };
        Record {
            owner: Some(self.server.clone()),
            blobs: blobs.iter().map(blob).collect(),
            body: body.as_bytes().to_vec(),
        }
    }
}

fn random_key() -> RecordKey {
    SessionId::random().into()
}

fn blob(n: u8) -> BlobId {
    BlobId::of(&[n])
}

#[tokio::test]
async fn a_record_is_written_over_the_revision_that_was_expected_and_no_other() {
    for kind in RECORDS {
        let home = RecordsHome::new(kind).await;
        let writer = Writer::new(&*home.records);
        let session = random_key();
        assert_eq!(home.records.read(&session).await.unwrap(), None);

        let mut record = writer.record("one\0\u{ff}", &[]);
        let first = writer.write(&session, None, None, Some(&record)).await;
        let first = first.unwrap().revision;
        let read = home.records.read(&session).await.unwrap().unwrap();
        assert_eq!((read.revision, &read.record), (first, &record));

        for wrong in [None, Some(Revision(first.0 + 1))] {
            let refused = writer.write(&session, wrong, None, Some(&record)).await;
            assert!(matches!(refused, Err(StoreError::Stale)), "{kind:?}");
            let refused = writer.write(&session, wrong, None, None).await;
            assert!(matches!(refused, Err(StoreError::Stale)), "{kind:?}");
        }
        let nobody = random_key();
        let absent = writer.write(&nobody, Some(first), None, None);
        assert!(matches!(absent.await, Err(StoreError::Stale)));

        record.owner = None;
        record.body = b"two".to_vec();
        let second = writer.write(&session, Some(first), None, Some(&record));
        let second = second.await.unwrap().revision;
        assert!(second > first);
        let read = home.records.read(&session).await.unwrap().unwrap();
        assert_eq!((read.revision, &read.record), (second, &record));

        let held = [(session.clone(), first), (random_key(), first)];
        let stale = home.records.stale(&held).await.unwrap();
        assert_eq!(stale, [held[0].0.clone(), held[1].0.clone()]);
        let held = [(session.clone(), second)];
        assert_eq!(home.records.stale(&held).await.unwrap(), []);
        assert_eq!(home.records.stale(&[]).await.unwrap(), []);

        let gone = writer.write(&session, Some(second), None, None).await;
        assert!(gone.unwrap().revision > second);
        assert_eq!(home.records.read(&session).await.unwrap(), None);
        let again = writer.write(&session, None, None, Some(&record)).await;
        assert!(again.unwrap().revision.0 > second.0 + 1, "{kind:?}");
    }
}

#[tokio::test]
async fn a_record_that_was_lost_is_restored_from_its_latest_version() {
    for kind in RECORDS {
        let home = RecordsHome::new(kind).await;
        let [old, new, other] = [(); 3].map(|()| Writer::new(&*home.records));
        let lost = Revision;
        let owner = async |key: &RecordKey| {
            let stored = home.records.read(key).await.unwrap();
            stored.and_then(|stored| stored.record.owner)
        };
        let is_stale = |outcome: Result<Revision, StoreError>| {
            assert!(
                matches!(outcome, Err(StoreError::Stale)),
                "{kind:?}: {outcome:?}"
            );
        };
        let by_old = old.record("old", &[]);
        // The numbers that were lost are not used again.
        for _ in 0..10 {
            let written = old.write(&random_key(), None, None, Some(&by_old)).await;
            written.unwrap();
        }
        let session = random_key();
        old.restore(&session, lost(4), Some(&by_old)).await.unwrap();
        // The answer was lost.
        old.restore(&session, lost(4), Some(&by_old)).await.unwrap();
        is_stale(other.restore(&session, lost(4), Some(&by_old)).await);
        is_stale(other.restore(&session, lost(3), None).await);
        let by_new = new.record("new", &[]);
        new.restore(&session, lost(5), Some(&by_new)).await.unwrap();
        is_stale(old.restore(&session, lost(4), Some(&by_old)).await);
        assert_eq!(owner(&session).await, Some(new.server.clone()));

        // It goes on: its owner may still turn out not to be the latest.
        let read = home.records.read(&session).await.unwrap().unwrap();
        let written = new.write(&session, Some(read.revision), None, Some(&by_new));
        let written = written.await.unwrap().revision;
        let by_other = other.record("other", &[]);
        let taken = other
            .restore(&session, lost(6), Some(&by_other))
            .await
            .unwrap();
        assert!(taken > written);
        // Whoever takes it over now has it from the one who was the latest.
        let resumed = old.write(&session, Some(taken), None, Some(&by_old)).await;
        let resumed = resumed.unwrap().revision;
        is_stale(other.restore(&session, lost(6), Some(&by_other)).await);
        assert_eq!(owner(&session).await, Some(old.server.clone()));
        // What was removed does not come back.
        old.write(&session, Some(resumed), None, None)
            .await
            .unwrap();
        is_stale(other.restore(&session, lost(6), Some(&by_other)).await);
        assert_eq!(owner(&session).await, None);

        let removed = random_key();
        new.restore(&removed, lost(5), None).await.unwrap();
        is_stale(old.restore(&removed, lost(4), Some(&by_old)).await);
        let removed_late = random_key();
        old.restore(&removed_late, lost(4), Some(&by_old))
            .await
            .unwrap();
        new.restore(&removed_late, lost(5), None).await.unwrap();
        is_stale(old.restore(&removed_late, lost(4), Some(&by_old)).await);
        assert_eq!(owner(&removed_late).await, None);
        // A store that was set back has an earlier version.
        let back = random_key();
        let first = old.write(&back, None, None, Some(&by_old)).await.unwrap();
        is_stale(
            new.restore(&back, Revision(first.revision.0 - 1), None)
                .await,
        );
        old.restore(&back, first.revision, Some(&by_old))
            .await
            .unwrap();
        let later = Revision(first.revision.0 + 1);
        new.restore(&back, later, Some(&by_new)).await.unwrap();
        assert_eq!(owner(&back).await, Some(new.server.clone()));
    }
}

#[tokio::test]
async fn a_blob_is_condemned_when_the_last_one_who_counts_it_goes() {
    for kind in RECORDS {
        let home = RecordsHome::new(kind).await;
        let (a, b) = (Writer::new(&*home.records), Writer::new(&*home.records));
        let (one, two) = (random_key(), random_key());
        let records = &home.records;

        let keys = a.reserve(0, &[blob(1), blob(2)]).await;
        assert_eq!(b.reserve(0, &[blob(1)]).await, keys[..1]);
        assert_eq!(records.locate(blob(1)).await.unwrap(), Some(keys[0]));
        assert_eq!(records.locate(blob(9)).await.unwrap(), None);
        assert_eq!(records.survey().await.unwrap().blobs, 2);

        let record = a.record("one", &keys);
        let first = a.write(&one, None, Some(0), Some(&record)).await.unwrap();
        assert_eq!(first.condemned, []);
        let record = b.record("two", &keys[..1]);
        let second = b.write(&two, None, Some(0), Some(&record)).await.unwrap();
        assert_eq!(second.condemned, []);

        // Its reservation is used up.
        let other = random_key();
        let refused = a.write(&other, None, Some(0), Some(&record));
        assert!(matches!(refused.await, Err(StoreError::Unreserved)));

        let record = a.record("one", &[]);
        let third = a.write(&one, Some(first.revision), None, Some(&record));
        assert_eq!(third.await.unwrap().condemned, keys[1..]);
        let gone = b.write(&two, Some(second.revision), None, None).await;
        assert_eq!(gone.unwrap().condemned, keys[..1]);
        let mut condemned = records.survey().await.unwrap().condemned;
        condemned.sort_by_key(|key| keys.iter().position(|k| k == key));
        assert_eq!(condemned, keys);

        // Nobody has to wait for the end of an edition.
        let anew = a.reserve(1, &[blob(1)]).await[0];
        assert_eq!(anew.id, keys[0].id);
        assert!(anew.edition > keys[0].edition);
        records.forget(&keys).await.unwrap();
        records.forget(&[]).await.unwrap();
        let known = records.condemn_unknown(&[anew, keys[0]]).await.unwrap();
        assert_eq!(known, keys[..1]);
        assert_eq!(records.condemn_unknown(&[]).await.unwrap(), []);

        assert_eq!(records.survey().await.unwrap().blobs, 1);
        let released = records.release(&a.server, ReservationId(1), &[]).await;
        assert_eq!(released.unwrap(), [anew]);
        let survey = records.survey().await.unwrap();
        assert_eq!(survey.blobs, 0);
        assert_eq!(survey.records.len(), 1);
    }
}

#[tokio::test]
async fn a_release_takes_its_own_reservation_and_finds_what_nobody_counts() {
    for kind in RECORDS {
        let home = RecordsHome::new(kind).await;
        let records = &home.records;
        let a = Writer::new(&**records);
        let first = a.reserve(0, &[blob(1)]).await;
        let second = a.reserve(1, &[blob(1)]).await;
        assert_eq!(first, second);
        for _ in 0..2 {
            let released = records.release(&a.server, ReservationId(0), &first).await;
            assert_eq!(released.unwrap(), [], "{kind:?}");
        }
        let released = records.release(&a.server, ReservationId(7), &[]).await;
        assert_eq!(released.unwrap(), []);
        let released = records.release(&a.server, ReservationId(1), &first).await;
        assert_eq!(released.unwrap(), first, "{kind:?}");
        records.forget(&first).await.unwrap();
        // A put that was late.
        let released = records.release(&a.server, ReservationId(1), &first).await;
        assert_eq!(released.unwrap(), first);
    }
}

#[tokio::test]
async fn a_server_that_is_retired_loses_its_reservations_and_no_other_does() {
    for kind in RECORDS {
        let home = RecordsHome::new(kind).await;
        let records = &home.records;
        let (a, b) = (Writer::new(&**records), Writer::new(&**records));
        let keys = a.reserve(0, &[blob(1), blob(2)]).await;
        a.reserve(1, &[blob(3)]).await;
        b.reserve(0, &[blob(2)]).await;
        records.beat(&a.server).await.unwrap();
        records.beat(&a.server).await.unwrap();
        let expected = HashMap::from([(a.server.clone(), 2), (b.server.clone(), 0)]);
        assert_eq!(records.survey().await.unwrap().servers, expected);

        let mut condemned = records.retire(&a.server).await.unwrap();
        condemned.sort_by_key(|key| key.edition);
        assert_eq!(condemned.len(), 2, "{kind:?}");
        assert_eq!(condemned[0], keys[0]);
        assert_eq!(condemned[1].id, blob(3));
        let expected = HashMap::from([(b.server.clone(), 0)]);
        assert_eq!(records.survey().await.unwrap().servers, expected);
        let record = a.record("late", &keys[..1]);
        let other = random_key();
        let refused = a.write(&other, None, Some(0), Some(&record));
        assert!(matches!(refused.await, Err(StoreError::Unreserved)));
        assert_eq!(records.survey().await.unwrap().records, []);
        assert_eq!(records.retire(&a.server).await.unwrap(), []);
    }
}

#[tokio::test]
async fn memory_lets_go_of_sessions_that_nobody_runs_the_oldest_first() {
    let limits = Limits {
        max_sessions: 3,
        max_bytes: 350,
        max_media_bytes: 1 << 40,
    };
    let home = RecordsHome::limited(RecordsKind::Memory, limits).await;
    let writer = Writer::new(&*home.records);
    let ids: Vec<RecordKey> = (0..6).map(|_| random_key()).collect();
    let mut written = Vec::new();
    for (n, id) in (0..).zip(&ids[..3]) {
        let keys = writer.reserve(n, &[blob(n.to_le_bytes()[0])]).await;
        let mut record = writer.record("x", &keys);
        record.owner = record.owner.filter(|_| n == 1);
        let done = writer.write(id, None, Some(n), Some(&record)).await;
        written.push((done.unwrap(), record));
    }
    // By their number.
    let small = writer.record("x", &[]);
    let done = writer.write(&ids[3], None, None, Some(&small)).await;
    assert_eq!(done.unwrap().condemned, [written[0].1.blobs[0].key]);
    // By their bytes.
    let keys = writer.reserve(9, &[blob(7), blob(8)]).await;
    let large = writer.record("", &keys);
    let done = writer.write(&ids[4], None, Some(9), Some(&large)).await;
    assert_eq!(done.unwrap().condemned, [written[2].1.blobs[0].key]);
    // Those that somebody runs do not leave.
    let full = writer.write(&ids[5], None, None, Some(&small)).await;
    assert!(matches!(full, Err(StoreError::Full { .. })));
    // One that shrinks may stay.
    let (outcome, _) = &written[1];
    let shrunk = writer.write(&ids[1], Some(outcome.revision), None, Some(&small));
    shrunk.await.unwrap();
    assert_eq!(home.records.survey().await.unwrap().records.len(), 3);
}

#[tokio::test]
async fn a_file_keeps_everything_and_is_used_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let open = || FileRecords::open(folder.path());
    let records = open().unwrap();
    let writer = Writer::new(&records);
    let (one, two) = (random_key(), random_key());
    let keys = writer.reserve(0, &[blob(1)]).await;
    let record = writer.record("one", &keys);
    let first = writer.write(&one, None, Some(0), Some(&record)).await;
    let first = first.unwrap();
    let doomed = writer.write(&two, None, None, Some(&record)).await.unwrap();
    let last = writer.write(&two, Some(doomed.revision), None, None).await;
    let last = last.unwrap();
    let reserved = writer.reserve(1, &[blob(2)]).await;
    let unknown = [BlobKey {
        edition: 99,
        ..keys[0]
    }];
    let gone = records.condemn_unknown(&unknown).await.unwrap();
    let name = records.name().await.unwrap();
    assert!(matches!(open(), Err(FileOpenError::InUse(_))));
    drop(records);

    let records = open().unwrap();
    assert_eq!(records.name().await.unwrap(), name);
    let read = records.read(&one).await.unwrap().unwrap();
    assert_eq!((read.revision, read.record), (first.revision, record));
    assert_eq!(records.read(&two).await.unwrap(), None);
    let survey = records.survey().await.unwrap();
    assert_eq!(survey.condemned, gone);
    assert_eq!(survey.blobs, 2);
    let retired = records.retire(&ServerId::random()).await.unwrap();
    assert_eq!(retired, []);
    let silent: Vec<ServerId> = survey.servers.into_keys().collect();
    assert_eq!(records.retire(&silent[0]).await.unwrap(), reserved);
    let writer = Writer::new(&records);
    let record = writer.record("", &[]);
    let next = writer.write(&two, None, None, Some(&record));
    assert!(next.await.unwrap().revision > last.revision);
}

#[tokio::test]
async fn a_file_that_is_no_file_of_sessions_is_refused() {
    let check = |bytes: &[u8], refused: bool| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), bytes).unwrap();
        let opened = FileRecords::open(folder.path());
        assert_eq!(opened.is_err(), refused, "{opened:?}");
        if let Err(error) = opened {
            let text = error.to_string();
            assert!(text.contains(FILE_NAME), "{text}");
        }
    };
    check(b"", false);
    check(b"SQLite format 3\0 and so on", true);
    check(&[b'x'; 100_000], true);

    // Another program's database.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let foreign = redb::Database::create(&path).unwrap();
    let table: redb::TableDefinition<'_, u64, u64> = redb::TableDefinition::new("theirs");
    let transaction = foreign.begin_write().unwrap();
    transaction.open_table(table).unwrap().insert(1, 2).unwrap();
    transaction.commit().unwrap();
    drop(foreign);
    let opened = FileRecords::open(folder.path());
    assert!(
        matches!(opened, Err(FileOpenError::Foreign(_))),
        "{opened:?}"
    );
}

#[tokio::test]
async fn a_damaged_file_is_refused_or_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let records = FileRecords::open(folder.path()).unwrap();
    let writer = Writer::new(&records);
    let mut expected = Vec::new();
    for n in 0..20 {
        let session = random_key();
        let record = writer.record(&"body ".repeat(100 * n), &[]);
        let written = writer.write(&session, None, None, Some(&record)).await;
        expected.push((session, written.unwrap().revision, record));
    }
    drop(records);
    let bytes = std::fs::read(&path).unwrap();
    let mut refused = 0;
    let longest = bytes.len();
    for n in 0..60 {
        let mut damaged = bytes.clone();
        let at = n * longest / 60 + n;
        for byte in damaged.iter_mut().skip(at).take(16) {
            *byte ^= 0x5a;
        }
        if n % 10 == 9 {
            damaged.truncate(at);
        }
        std::fs::write(&path, &damaged).unwrap();
        let Ok(records) = FileRecords::open(folder.path()) else {
            refused += 1;
            continue;
        };
        for (key, revision, record) in &expected {
            let read = records.read(key).await.unwrap().unwrap();
            assert_eq!((&read.revision, &read.record), (revision, record), "{n}");
        }
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn a_file_does_not_grow_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let records = FileRecords::open(folder.path()).unwrap();
    let writer = Writer::new(&records);
    let session = random_key();
    let record = writer.record(&"x".repeat(50_000), &[]);
    let mut revision = None;
    let mut sizes = Vec::new();
    for n in 0..400 {
        let written = writer.write(&session, revision, None, Some(&record)).await;
        revision = Some(written.unwrap().revision);
        if n % 100 == 99 {
            let file = std::fs::metadata(folder.path().join(FILE_NAME)).unwrap();
            sizes.push(file.len());
        }
    }
    assert_eq!(sizes[1], sizes[3], "{sizes:?}");
}

/// Many sessions share a commit.
#[tokio::test(flavor = "multi_thread")]
async fn steps_that_queue_up_are_committed_together_and_all_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let records = Arc::new(FileRecords::open(folder.path()).unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let records = records.clone();
        writers.spawn(async move {
            let writer = Writer::new(&*records);
            let keys = writer.reserve(0, &[blob(1)]).await;
            let record = writer.record("x", &keys);
            let id = random_key();
            let written = writer.write(&id, None, Some(0), Some(&record)).await;
            written.unwrap().revision
        });
    }
    let mut revisions = writers.join_all().await;
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 200);
    drop(records);
    let records = FileRecords::open(folder.path()).unwrap();
    assert_eq!(records.survey().await.unwrap().records.len(), 200);
}

#[tokio::test]
async fn a_redis_that_comes_back_is_used_again() {
    let mut redis = Redis::start();
    let address = RedisAddress::parse(&redis.url()).unwrap();
    let timeout = std::time::Duration::from_secs(1);
    let records = RedisRecords::connect(&address, timeout).await.unwrap();
    let writer = Writer::new(&records);
    let session = random_key();
    let record = writer.record("kept", &[]);
    let written = writer.write(&session, None, None, Some(&record)).await;
    let written = written.unwrap();

    // It hangs.
    redis.signal(Signal::SIGSTOP);
    let hung = records.read(&session).await;
    assert!(matches!(hung, Err(StoreError::Unavailable(_))), "{hung:?}");
    redis.signal(Signal::SIGCONT);
    let read = until_answered(&records, &session).await;
    assert_eq!(read, written.revision);

    redis.stop();
    let gone = records.read(&session).await;
    assert!(matches!(gone, Err(StoreError::Unavailable(_))), "{gone:?}");
    let absent = RedisRecords::connect(&address, timeout).await;
    assert!(matches!(absent, Err(StoreError::Unavailable(_))));
    redis.start_again();
    let read = until_answered(&records, &session).await;
    assert_eq!(read, written.revision);
    let again = redis.records().await;
    assert_eq!(again.name().await.unwrap(), records.name().await.unwrap());
}

/// Asks until it is answered: nothing tells when a connection is there again.
async fn until_answered(records: &RedisRecords, key: &RecordKey) -> Revision {
    loop {
        match records.read(key).await {
            Ok(read) => return read.unwrap().revision,
            Err(StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn stores_with_different_prefixes_in_one_redis_do_not_meet() {
    let redis = Redis::start();
    let connect = async |query: &str| {
        let mut url = redis.url();
        url.set_query(Some(query));
        let address = RedisAddress::parse(&url).unwrap();
        let timeout = std::time::Duration::from_secs(20);
        RedisRecords::connect(&address, timeout).await.unwrap()
    };
    let (a, b) = (connect("prefix=a").await, connect("prefix=b").await);
    let again = connect("prefix=a").await;
    assert_ne!(a.name().await.unwrap(), b.name().await.unwrap());
    assert_eq!(a.name().await.unwrap(), again.name().await.unwrap());
    let session = random_key();
    let writer = Writer::new(&a);
    let record = writer.record("", &[]);
    let written = writer.write(&session, None, None, Some(&record)).await;
    written.unwrap();
    assert!(again.read(&session).await.unwrap().is_some());
    assert!(b.read(&session).await.unwrap().is_none());
}
