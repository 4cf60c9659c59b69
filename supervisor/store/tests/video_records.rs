//! What every backend of records promises about the records of video jobs.

use std::collections::BTreeSet;

use fastvideo_proto::ids::{SessionId, VideoId};
use futures_util::future::join_all;

use super::backends::{RECORDS, RecordsHome, RecordsKind};
use super::contract::Writer;
use super::world::{video_id, video_key};
use crate::store::error::StoreError;
use crate::store::ids::{BlobId, ReservationId, Revision};
use crate::store::records::file::FileRecords;
use crate::store::records::ledger::Limits;
use crate::store::records::{BlobKind, BlobRef, Order, Record, RecordWrite, Records, VideoPage};
use crate::tenant::Tenant;

fn record(body: &str) -> Record {
    Record {
        owner: None,
        blobs: Vec::new(),
        body: body.into(),
    }
}

/// A record without an owner, with a blob that was put.
async fn with_blob(
    writer: &Writer<'_>,
    number: u64,
    content: &[u8],
    bytes: u64,
    kind: BlobKind,
) -> Record {
    let (id, number) = ([BlobId::of(content)], ReservationId(number));
    let reserving = writer.records.reserve(&writer.server, number, &id);
    let key = reserving.await.unwrap()[0];
    Record {
        blobs: vec![BlobRef { key, bytes, kind }],
        ..record("x")
    }
}

async fn list(
    records: &dyn Records,
    tenant: &str,
    after: Option<u64>,
    limit: usize,
    order: Order,
) -> Vec<VideoId> {
    let page = VideoPage {
        after: after.map(video_id),
        limit,
        order,
    };
    let listed = records.list(&Tenant::new(tenant), page).await.unwrap();
    listed.into_iter().map(|(id, _)| id).collect()
}

fn ids(times: &[u64]) -> Vec<VideoId> {
    times.iter().map(|unix_ms| video_id(*unix_ms)).collect()
}

#[tokio::test]
async fn a_tenants_videos_are_listed_in_the_order_of_their_ids() {
    use Order::{Ascending, Descending};
    for kind in RECORDS {
        let home = RecordsHome::new(kind).await;
        let records = &*home.records;
        let writer = Writer::new(records);
        let write = async |tenant: &str, unix_ms: u64, expected, record: Option<&Record>| {
            let key = video_key(tenant, unix_ms);
            let written = writer.write(&key, expected, None, record).await;
            written.unwrap().revision
        };
        assert_eq!(list(records, "a", None, 9, Ascending).await, []);
        let mut revision = Revision(0);
        for unix_ms in [16, 3, 9, 10, 1 << 40] {
            revision = write("a", unix_ms, None, Some(&record("a"))).await;
        }
        // What is no video of that tenant is not listed.
        for tenant in ["a-b", "a.b", "a0", "ab", "A", "a/b", "none"] {
            write(tenant, 5, None, Some(&record("foreign"))).await;
        }
        let (session, body) = (SessionId::random().into(), record("session"));
        let written = writer.write(&session, None, None, Some(&body)).await;
        written.unwrap();

        for (after, limit, order, expected) in [
            (None, 9, Ascending, &[3, 9, 10, 16, 1 << 40][..]),
            (None, 9, Descending, &[1 << 40, 16, 10, 9, 3]),
            (None, 2, Ascending, &[3, 9]),
            (None, 2, Descending, &[1 << 40, 16]),
            (Some(9), 2, Ascending, &[10, 16]),
            (Some(10), 9, Descending, &[9, 3]),
            // There is no such video.
            (Some(11), 1, Ascending, &[16]),
            (Some(11), 1, Descending, &[10]),
            (Some(1), 9, Descending, &[]),
            (Some(1 << 41), 9, Ascending, &[]),
            (None, 0, Ascending, &[]),
        ] {
            let listed = list(records, "a", after, limit, order).await;
            assert_eq!(
                listed,
                ids(expected),
                "{kind:?} {after:?} {limit} {order:?}"
            );
        }
        assert_eq!(list(records, "A", None, 9, Ascending).await, ids(&[5]));

        // A page has what the records have.
        let changed = write("a", 1 << 40, Some(revision), Some(&record("new"))).await;
        let page = VideoPage {
            after: None,
            limit: 1,
            order: Descending,
        };
        let listed = records.list(&Tenant::new("a"), page).await.unwrap();
        let read = records.read(&video_key("a", 1 << 40)).await.unwrap();
        assert_eq!(listed[0].1, read.unwrap());
        assert_eq!(listed[0].1.revision, changed);
        write("a", 1 << 40, Some(changed), None).await;
        assert_eq!(list(records, "a", None, 1, Descending).await, ids(&[16]));
        let stale = writer
            .write(&video_key("a", 16), Some(changed), None, None)
            .await;
        assert!(matches!(stale, Err(StoreError::Stale)));
        assert_eq!(list(records, "a", None, 1, Descending).await, ids(&[16]));
    }
}

#[tokio::test]
async fn videos_that_are_restored_or_removed_after_a_loss_are_listed_or_not() {
    for kind in RECORDS {
        let home = RecordsHome::new(kind).await;
        let records = &*home.records;
        let writer = Writer::new(records);
        let key = video_key("a", 7);
        let restore = async |lost: u64, record: Option<&Record>| {
            let write = RecordWrite {
                key: &key,
                expected: Some(Revision(lost)),
                record,
                server: &writer.server,
                reservation: None,
            };
            records.restore(write).await.unwrap();
        };
        restore(4, Some(&record("lost"))).await;
        let listed = list(records, "a", None, 9, Order::Ascending).await;
        assert_eq!(listed, ids(&[7]), "{kind:?}");
        restore(5, None).await;
        let listed = list(records, "a", None, 9, Order::Ascending).await;
        assert_eq!(listed, [], "{kind:?}");
    }
}

#[tokio::test]
async fn a_thousand_videos_are_paged_while_others_are_deleted() {
    const VIDEOS: u64 = 1000;
    const PAGE: usize = 20;
    for kind in RECORDS {
        for order in [Order::Ascending, Order::Descending] {
            let home = RecordsHome::new(kind).await;
            let records = &*home.records;
            let writer = Writer::new(records);
            let body = record("video");
            let keys: Vec<_> = (1..=VIDEOS).map(|n| video_key("a", n)).collect();
            let writes = keys
                .iter()
                .map(|key| writer.write(key, None, None, Some(&body)));
            let written = join_all(writes).await;
            let revision = |n: u64| {
                let outcome = &written[usize::try_from(n - 1).unwrap()];
                outcome.as_ref().unwrap().revision
            };
            let mut seen = Vec::new();
            let mut deleted = BTreeSet::new();
            let mut after = None;
            loop {
                let page = VideoPage {
                    after,
                    limit: PAGE,
                    order,
                };
                let listed = records.list(&Tenant::new("a"), page).await.unwrap();
                let Some((last, _)) = listed.last() else {
                    break;
                };
                after = Some(*last);
                assert!(listed.iter().all(|(id, _)| !deleted.contains(id)));
                seen.extend(listed.iter().map(|(id, _)| *id));
                // The one after which the next page begins, and some before and behind it.
                let place = (1..=VIDEOS).find(|n| video_id(*n) == *last).unwrap();
                for n in [place, place / 2, place + 3, place + 50, VIDEOS - place] {
                    if (1..=VIDEOS).contains(&n) && deleted.insert(video_id(n)) {
                        let key = video_key("a", n);
                        let removed = writer.write(&key, Some(revision(n)), None, None);
                        removed.await.unwrap();
                    }
                }
            }
            let mut in_order = seen.clone();
            in_order.sort_unstable();
            in_order.dedup();
            if order == Order::Descending {
                in_order.reverse();
            }
            assert_eq!(seen, in_order, "{kind:?} {order:?}");
            let stays = (1..=VIDEOS)
                .map(video_id)
                .filter(|id| !deleted.contains(id));
            let seen: BTreeSet<_> = seen.into_iter().collect();
            assert!(stays.clone().count() > 700);
            assert!(stays.clone().all(|id| seen.contains(&id)), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_file_that_is_opened_again_lists_its_videos() {
    let folder = tempfile::tempdir().unwrap();
    let records = FileRecords::open(folder.path()).unwrap();
    let writer = Writer::new(&records);
    let mut last = Revision(0);
    for unix_ms in [5, 2, 9] {
        let key = video_key("a", unix_ms);
        let written = writer.write(&key, None, None, Some(&record("x"))).await;
        last = written.unwrap().revision;
    }
    let key = video_key("a", 9);
    let removed = writer.write(&key, Some(last), None, None).await;
    removed.unwrap();
    drop(records);
    let records = FileRecords::open(folder.path()).unwrap();
    let listed = list(&records, "a", None, 9, Order::Descending).await;
    assert_eq!(listed, ids(&[5, 2]));
}

#[tokio::test]
async fn memory_never_lets_go_of_videos_and_counts_them_as_no_sessions() {
    let limits = Limits {
        max_sessions: 1,
        max_bytes: 250,
        max_media_bytes: 250,
    };
    let home = RecordsHome::limited(RecordsKind::Memory, limits).await;
    let records = &*home.records;
    let writer = Writer::new(records);
    let film = with_blob(&writer, 0, b"film", 200, BlobKind::Media).await;
    let session = SessionId::random().into();
    let written = writer.write(&session, None, Some(0), Some(&film)).await;
    written.unwrap();
    // The film of a session that nobody runs makes room, and the session stays.
    let media = with_blob(&writer, 1, b"media", 200, BlobKind::Media).await;
    let (first, second) = (video_key("a", 1), video_key("a", 2));
    let written = writer.write(&first, None, Some(1), Some(&media)).await;
    assert_eq!(written.unwrap().condemned, [film.blobs[0].key]);
    let use_of_memory = records.memory_use().unwrap();
    assert_eq!((use_of_memory.sessions, use_of_memory.bytes), (1, 202));
    // A video makes no room.
    let more = with_blob(&writer, 2, b"more", 100, BlobKind::Media).await;
    let full = writer.write(&second, None, Some(2), Some(&more)).await;
    assert!(matches!(full, Err(StoreError::MediaFull { .. })));
    let other = SessionId::random().into();
    let full = writer.write(&other, None, Some(2), Some(&more)).await;
    assert!(matches!(full, Err(StoreError::MediaFull { .. })));
    // What others need is not taken from it.
    let state = with_blob(&writer, 3, b"state", 200, BlobKind::State).await;
    let written = writer.write(&second, None, Some(3), Some(&state)).await;
    written.unwrap();
    let large = with_blob(&writer, 4, b"large", 100, BlobKind::State).await;
    let full = writer.write(&other, None, Some(4), Some(&large)).await;
    assert!(matches!(full, Err(StoreError::Full { .. })));
    let third = video_key("a", 3);
    let full = writer.write(&third, None, Some(4), Some(&large)).await;
    assert!(matches!(full, Err(StoreError::Full { .. })));
    // As many sessions as before are permitted.
    let small = writer.write(&other, None, None, Some(&record("x"))).await;
    small.unwrap();
    let listed = list(records, "a", None, 9, Order::Ascending).await;
    assert_eq!(listed, ids(&[1, 2]));
    let stays = records.read(&first).await.unwrap().unwrap();
    assert_eq!(stays.record, media);
}
