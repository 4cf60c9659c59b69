//! Video jobs of several servers in one store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastvideo_proto::ids::{SessionId, VideoId};
use fastvideo_proto::stored_video::{StoredVideo, VideoClaim, VideoStatus};
use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::backends::{BlobsKind, LIMITS, RECORDS, RecordsKind};
use super::flaky::Flaky;
use super::world::{LEASE, TTL, World, begin, same, segment, small, video, video_id};
use crate::store::ids::RecordKey;
use crate::store::open::{self, StoreLocation};
use crate::store::records::ledger::Limits;
use crate::store::records::{BlobKind, Order, VideoPage};
use crate::store::{
    DataLoss, NewBlob, ResumeToken, SessionStore, StoreError, Upkeep, VideoChange, VideoError,
    VideoLease, VideoRecord,
};
use crate::tenant::Tenant;

const BACKENDS: [(RecordsKind, BlobsKind); 5] = [
    (RecordsKind::Memory, BlobsKind::Memory),
    (RecordsKind::Memory, BlobsKind::Folder),
    (RecordsKind::File, BlobsKind::Folder),
    (RecordsKind::Redis, BlobsKind::Folder),
    (RecordsKind::Redis, BlobsKind::S3),
];

fn tenant() -> Tenant {
    Tenant::new("acme")
}

/// Returns the next version of a job, which has one more segment with its state and tiles, and what is new in it.
pub(super) fn next(before: &StoredVideo) -> (StoredVideo, Vec<NewBlob>) {
    let n = u8::try_from(before.film.len()).unwrap();
    let (recorded, state) = (segment(n.into()), small(n));
    let (tiles, tiles_blob) = NewBlob::file(Bytes::from(vec![n; 30 + usize::from(n)]).into());
    let mut video = before.clone();
    video.status = VideoStatus::InProgress;
    video.state = Some(state.header_bytes().to_vec());
    video.tiles = Some(tiles);
    let media = recorded.segment.media.as_ref().unwrap().blob;
    video.film.push(recorded.segment);
    let new = vec![
        NewBlob::bytes(media, recorded.content),
        NewBlob::state(&state),
        tiles_blob,
    ];
    (video, new)
}

/// Returns the last version of a job that is completed: its film, its last state and a thumbnail.
fn completed(before: &StoredVideo) -> (StoredVideo, Vec<NewBlob>) {
    let (thumbnail, blob) = NewBlob::file(Bytes::from_static(b"thumbnail").into());
    let video = StoredVideo {
        status: VideoStatus::Completed,
        thumbnail: Some(thumbnail),
        tiles: None,
        ..before.clone()
    };
    (video, vec![blob])
}

/// Returns the last version of a job that was cancelled: nothing of it is kept.
fn cancelled(before: &StoredVideo) -> StoredVideo {
    StoredVideo {
        status: VideoStatus::Failed {
            code: "cancelled".to_owned(),
            message: "cancelled".to_owned(),
        },
        is_cancelled: true,
        film: Vec::new(),
        state: None,
        tiles: None,
        image: None,
        ..before.clone()
    }
}

async fn create(store: &SessionStore, unix_ms: u64) -> VideoRecord {
    let id = video_id(unix_ms);
    store
        .create_video(&tenant(), id, &video(), &[])
        .await
        .unwrap()
}

async fn read(store: &SessionStore, id: VideoId) -> VideoRecord {
    store.read_video(&tenant(), id).await.unwrap().unwrap()
}

/// Takes a job with its first segment.
async fn begun(store: &SessionStore, unix_ms: u64) -> (VideoLease, StoredVideo) {
    let record = create(store, unix_ms).await;
    let (video, new) = next(&record.video);
    let lease = store.take_video(&record, &video, &new).await.unwrap();
    (lease, video)
}

fn change(written: Result<(), VideoError>) -> VideoChange {
    match written {
        Err(VideoError::Changed(change)) => change,
        other => panic!("{other:?}"),
    }
}

/// Returns what is known of the job, without waiting.
fn known(lease: &VideoLease) -> Option<VideoChange> {
    lease.changed().now_or_never()
}

#[tokio::test]
async fn a_job_is_created_run_ended_and_removed_on_every_backend() {
    for (records, blobs) in BACKENDS {
        let Some(world) = World::new(records, blobs).await else {
            continue;
        };
        let (one, two) = (world.server(), world.server());
        let id = video_id(1);
        let image = Bytes::from_static(b"image");
        let (file, blob) = NewBlob::file(image.clone().into());
        let job = StoredVideo {
            image: Some(file),
            ..video()
        };
        let created = one
            .create_video(&tenant(), id, &job, &[blob])
            .await
            .unwrap();
        assert_eq!((created.owner(), created.blobs().len()), (None, 1));
        let found = read(&two, id).await;
        assert_eq!((&found.video, found.revision()), (&job, created.revision()));
        assert_eq!(two.file(&file).await.unwrap().join(), image);

        let (started, none) = (
            StoredVideo {
                starts: 1,
                ..job.clone()
            },
            [],
        );
        let mut lease = two.take_video(&found, &started, &none).await.unwrap();
        let surveyed = one.survey_videos().await.unwrap();
        assert_eq!((surveyed.len(), surveyed[0].id), (1, id));
        assert_eq!(surveyed[0].tenant, tenant());
        assert_eq!(surveyed[0].owner.as_ref(), Some(two.server()));
        let mut job = started;
        for n in 0..3_u8 {
            let (version, new) = next(&job);
            lease.write(&version, &new).await.unwrap();
            job = version;
            assert!(two.clean_up().await);
            // The film and the image are kept while state and tiles are replaced.
            assert_eq!(world.blobs().await, 4 + usize::from(n), "{records:?}");
        }
        let running = read(&one, id).await;
        assert_eq!(running.video, job);
        let states = running.blobs().iter().filter(|b| b.kind == BlobKind::State);
        assert_eq!(states.count(), 1);
        assert!(same(&one.state_of(&running).await.unwrap(), &small(2)));
        let media = one.media(&job.film[1]).await.unwrap();
        assert_eq!(media.join(), segment(1).content.join());
        let part = one.media_range(&job.film[1], 90..110).await.unwrap();
        assert_eq!(part.join(), segment(1).content.slice(90..110).join());

        let (version, new) = completed(&job);
        lease.finish(&version, &new).await.unwrap();
        drop(lease);
        assert!(two.clean_up().await);
        assert_eq!(
            world.blobs().await,
            6,
            "3 segments, image, state, thumbnail"
        );
        let ended = read(&one, id).await;
        assert_eq!((&ended.video, ended.owner()), (&version, None));
        let thumbnail = version.thumbnail.unwrap();
        let part = one.file_range(&thumbnail, 1..4).await.unwrap();
        assert_eq!(part.join(), "hum");

        assert!(one.remove_video(&tenant(), id).await.unwrap());
        assert!(!one.remove_video(&tenant(), id).await.unwrap());
        assert!(two.read_video(&tenant(), id).await.unwrap().is_none());
        let gone = two.file(&thumbnail).await;
        assert!(matches!(
            gone,
            Err(StoreError::Lost(DataLoss::MissingBlob(_)))
        ));
        assert!(one.clean_up().await);
        world.is_empty().await;
    }
}

#[tokio::test]
async fn a_job_is_its_tenants() {
    let world = World::memory(LIMITS);
    let store = world.server();
    let record = create(&store, 1).await;
    let other = Tenant::new("beta");
    let page = VideoPage {
        after: None,
        limit: 9,
        order: Order::Ascending,
    };
    assert!(store.read_video(&other, record.id).await.unwrap().is_none());
    assert!(
        store
            .cancel_video(&other, record.id)
            .await
            .unwrap()
            .is_none()
    );
    assert!(!store.remove_video(&other, record.id).await.unwrap());
    let listed = store.list_videos(&other, page).await.unwrap();
    assert!(listed.videos.is_empty() && !listed.has_more);
    let listed = store.list_videos(&tenant(), page).await.unwrap();
    assert_eq!(listed.videos.len(), 1);
}

#[tokio::test]
async fn a_list_says_whether_more_follow_and_leaves_out_what_it_cannot_read() {
    let world = World::memory(LIMITS);
    let store = world.server();
    for unix_ms in 1..=3 {
        create(&store, unix_ms).await;
    }
    let list = async |limit| {
        let page = VideoPage {
            after: None,
            limit,
            order: Order::Descending,
        };
        let list = store.list_videos(&tenant(), page).await.unwrap();
        let ids: Vec<_> = list.videos.iter().map(|video| video.id).collect();
        (ids, list.has_more)
    };
    assert_eq!(list(2).await, (vec![video_id(3), video_id(2)], true));
    assert!(!list(3).await.1);
    let key = RecordKey::Video {
        tenant: tenant(),
        id: video_id(3),
    };
    world.make_newer(&key).await;
    assert_eq!(list(2).await, (vec![video_id(2)], true));
    let newer = store.read_video(&tenant(), video_id(3)).await;
    assert!(matches!(newer, Err(StoreError::Newer(_))), "{newer:?}");
    assert!(store.remove_video(&tenant(), video_id(3)).await.unwrap());
}

#[tokio::test]
async fn a_version_that_names_an_unknown_blob_is_refused() {
    let world = World::memory(LIMITS);
    let store = world.server();
    let record = create(&store, 1).await;
    let (version, new) = next(&record.video);
    let refused = store.take_video(&record, &version, &new[..1]).await;
    assert!(matches!(
        refused,
        Err(StoreError::Lost(DataLoss::MissingBlob(_)))
    ));
    assert_eq!(read(&store, record.id).await.revision(), record.revision());
    assert!(store.clean_up().await);
    assert_eq!(world.blobs().await, 0);
}

#[tokio::test]
async fn one_of_two_servers_takes_a_job() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let servers = [world.server(), world.server()];
        for n in 0..20 {
            let record = create(&servers[0], n).await;
            let (version, new) = next(&record.video);
            let takes = servers
                .each_ref()
                .map(|s| s.take_video(&record, &version, &new));
            let [a, b] = takes;
            let (a, b) = tokio::join!(a, b);
            let (winner, loser) = match (a, b) {
                (Ok(lease), Err(error)) => ((lease, &servers[0]), error),
                (Err(error), Ok(lease)) => ((lease, &servers[1]), error),
                both => panic!("{both:?}"),
            };
            assert!(matches!(loser, StoreError::Stale), "{loser:?}");
            let owner = read(&servers[0], record.id).await;
            assert_eq!(owner.owner(), Some(winner.1.server()));
            // Nobody takes what is run elsewhere, and nobody replaces it.
            for server in &servers {
                let replaced = server.replace_video(&owner, &version, &[]).await;
                assert!(matches!(replaced, Err(StoreError::Stale)));
                if server.server() != winner.1.server() {
                    let taken = server.take_video(&owner, &version, &[]).await;
                    assert!(matches!(taken, Err(StoreError::Stale)));
                }
            }
            let (version, new) = completed(&version);
            let (mut lease, _) = winner;
            lease.finish(&version, &new).await.unwrap();
            servers[0].remove_video(&tenant(), record.id).await.unwrap();
        }
        for server in &servers {
            assert!(server.clean_up().await);
        }
        world.is_empty().await;
    }
}

#[tokio::test]
async fn a_lease_that_is_dropped_lets_any_server_go_on() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Folder).await.unwrap();
        let (one, two) = (world.server(), world.server());
        let (lease, job) = begun(&one, 1).await;
        let id = lease.id();
        drop(lease);
        assert!(one.clean_up().await);
        let record = read(&two, id).await;
        assert_eq!((record.owner(), &record.video), (None, &job));
        assert!(same(&two.state_of(&record).await.unwrap(), &small(0)));
        let (version, new) = next(&job);
        let mut lease = two.take_video(&record, &version, &new).await.unwrap();
        // The same server may take a job again before it was given back.
        let record = read(&two, id).await;
        drop(lease);
        let (version, new) = next(&version);
        lease = two.take_video(&record, &version, &new).await.unwrap();
        assert!(two.clean_up().await);
        assert_eq!(known(&lease), None, "{records:?}");
        let (version, new) = completed(&version);
        lease.finish(&version, &new).await.unwrap();
        assert!(two.clean_up().await);
        assert_eq!(world.blobs().await, 5, "3 segments, state, thumbnail");
    }
}

#[tokio::test]
async fn a_lease_finds_out_what_others_have_done() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let (one, two) = (world.server(), world.server());
        let (mut lease, job) = begun(&one, 1).await;
        let (id, (version, new)) = (lease.id(), next(&job));
        one.beat().await.unwrap();
        assert_eq!(known(&lease), None);
        let asked = two.cancel_video(&tenant(), id).await.unwrap().unwrap();
        assert!(asked.video.is_cancelled && asked.owner() == Some(one.server()));
        // Asking twice changes nothing.
        let again = two.cancel_video(&tenant(), id).await.unwrap().unwrap();
        assert_eq!(again.revision(), asked.revision());
        assert_eq!(known(&lease), None);
        one.beat().await.unwrap();
        assert_eq!(lease.changed().await, VideoChange::Cancelled);
        let refused = lease.write(&version, &new).await;
        assert_eq!(change(refused), VideoChange::Cancelled);
        // What its server has said last is not lost.
        assert_eq!(read(&two, id).await.video.film, job.film);

        assert!(two.remove_video(&tenant(), id).await.unwrap());
        one.beat().await.unwrap();
        assert_eq!(lease.changed().await, VideoChange::Gone);
        let ended = lease.finish(&cancelled(&job), &[]).await;
        assert_eq!(change(ended), VideoChange::Gone);
        drop(lease);

        // Its server was taken for dead.
        let (mut lease, job) = begun(&one, 2).await;
        let (key, record) = (
            RecordKey::Video {
                tenant: tenant(),
                id: lease.id(),
            },
            read(&two, lease.id()).await,
        );
        two.disown(&key, record.revision()).await.unwrap();
        let record = read(&two, lease.id()).await;
        let mut taken = two.take_video(&record, &job, &[]).await.unwrap();
        let (version, new) = next(&job);
        let refused = lease.write(&version, &new).await;
        assert_eq!(change(refused), VideoChange::Taken);
        drop(lease);
        assert!(one.clean_up().await);
        taken.finish(&cancelled(&job), &[]).await.unwrap();
        assert!(two.remove_video(&tenant(), taken.id()).await.unwrap());
        for store in [&one, &two] {
            assert!(store.clean_up().await);
        }
        world.is_empty().await;
    }
}

#[tokio::test]
async fn a_job_of_which_somebody_asks_for_the_end_ends_so() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let (one, two) = (world.server(), world.server());
        let (mut lease, job) = begun(&one, 1).await;
        let id = lease.id();
        two.cancel_video(&tenant(), id).await.unwrap();
        let (version, new) = completed(&job);
        let refused = lease.finish(&version, &new).await;
        assert_eq!(change(refused), VideoChange::Cancelled);
        assert!(one.clean_up().await);
        lease.finish(&cancelled(&job), &[]).await.unwrap();
        assert!(one.clean_up().await);
        assert_eq!(world.blobs().await, 0, "{records:?}");
        let ended = read(&two, id).await;
        assert_eq!((&ended.video, ended.owner()), (&cancelled(&job), None));
        // Asking for the end of what has ended changes nothing.
        let again = two.cancel_video(&tenant(), id).await.unwrap().unwrap();
        assert_eq!(again.revision(), ended.revision());

        // One that waits is for whoever asks.
        let waits = create(&one, 2).await;
        let found = two
            .cancel_video(&tenant(), waits.id)
            .await
            .unwrap()
            .unwrap();
        assert!(!found.video.is_cancelled && found.revision() == waits.revision());
        let ended = cancelled(&found.video);
        let replaced = two.replace_video(&found, &ended, &[]).await.unwrap();
        assert_eq!(replaced.video, ended);
        let late = one.replace_video(&waits, &video(), &[]).await;
        assert!(matches!(late, Err(StoreError::Stale)));
        let absent = one.cancel_video(&tenant(), video_id(9)).await.unwrap();
        assert!(absent.is_none());
    }
}

#[tokio::test]
async fn a_job_on_this_server_learns_of_its_end_at_once() {
    let world = World::memory(LIMITS);
    let store = world.server();
    let (lease, _) = begun(&store, 1).await;
    store.cancel_video(&tenant(), lease.id()).await.unwrap();
    assert_eq!(known(&lease), Some(VideoChange::Cancelled));
    store.remove_video(&tenant(), lease.id()).await.unwrap();
    assert_eq!(known(&lease), Some(VideoChange::Gone));
    drop(lease);
    assert!(store.clean_up().await);
    world.is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_job_that_ends_and_is_deleted_at_once_nothing_is_left() {
    for (records, rounds) in [
        (RecordsKind::Memory, 1000),
        (RecordsKind::File, 30),
        (RecordsKind::Redis, 200),
    ] {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let (one, two) = (world.server(), world.server());
        for n in 0..rounds {
            let (mut lease, job) = begun(&one, n).await;
            let id = lease.id();
            let mut ending = JoinSet::new();
            ending.spawn(async move {
                let (version, new) = completed(&job);
                lease.finish(&version, &new).await
            });
            let mut removing = JoinSet::new();
            let store = two.clone();
            removing.spawn(async move { store.remove_video(&tenant(), id).await });
            let (ended, removed) = tokio::join!(ending.join_next(), removing.join_next());
            assert!(removed.unwrap().unwrap().unwrap(), "{records:?} {n}");
            match ended.unwrap().unwrap() {
                Ok(()) | Err(VideoError::Changed(VideoChange::Gone)) => {}
                other => panic!("{records:?} {n}: {other:?}"),
            }
            assert!(one.read_video(&tenant(), id).await.unwrap().is_none());
        }
        for store in [&one, &two] {
            assert!(store.clean_up().await);
        }
        world.is_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ends_and_is_cancelled_at_once_has_one_end() {
    for (records, rounds) in [(RecordsKind::Memory, 1000), (RecordsKind::Redis, 200)] {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let (one, two) = (world.server(), world.server());
        for n in 0..rounds {
            let (mut lease, job) = begun(&one, n).await;
            let id = lease.id();
            let mut ending = JoinSet::new();
            ending.spawn(async move {
                let (version, new) = next(&job);
                if lease.write(&version, &new).await.is_ok() {
                    let (version, new) = completed(&version);
                    if lease.finish(&version, &new).await.is_ok() {
                        return true;
                    }
                }
                let end = cancelled(&job);
                lease.finish(&end, &[]).await.unwrap();
                false
            });
            let mut cancelling = JoinSet::new();
            let store = two.clone();
            cancelling.spawn(async move { store.cancel_video(&tenant(), id).await });
            let (ended, asked) = tokio::join!(ending.join_next(), cancelling.join_next());
            let is_completed = ended.unwrap().unwrap();
            let asked = asked.unwrap().unwrap().unwrap().unwrap();
            assert_eq!(asked.video.is_cancelled, !is_completed, "{records:?} {n}");
            let ended = read(&two, id).await;
            assert_eq!(ended.video.status == VideoStatus::Completed, is_completed);
            assert_eq!(ended.owner(), None);
            assert_eq!(ended.blobs().is_empty(), !is_completed);
            two.remove_video(&tenant(), id).await.unwrap();
        }
        for store in [&one, &two] {
            assert!(store.clean_up().await);
        }
        world.is_empty().await;
    }
}

/// Returns an extension of a job with the blobs that it has in common with it.
fn extension(source: &VideoRecord) -> (StoredVideo, Vec<NewBlob>) {
    let job = StoredVideo {
        status: VideoStatus::Queued,
        extended_from: Some(source.id),
        extended_segments: u32::try_from(source.video.film.len()).unwrap(),
        thumbnail: None,
        ..source.video.clone()
    };
    let blobs = source.blobs().iter().map(|blob| NewBlob::stored(*blob));
    (job, blobs.collect())
}

/// Returns a job of one segment that is completed.
async fn source(store: &SessionStore, unix_ms: u64) -> VideoRecord {
    let (mut lease, job) = begun(store, unix_ms).await;
    let (version, new) = completed(&job);
    lease.finish(&version, &new).await.unwrap();
    read(store, lease.id()).await
}

#[tokio::test]
async fn an_extension_keeps_the_blobs_of_a_source_that_is_removed() {
    for (records, blobs) in BACKENDS {
        let Some(world) = World::new(records, blobs).await else {
            continue;
        };
        let (one, two) = (world.server(), world.server());
        let source = source(&one, 1).await;
        assert!(one.clean_up().await);
        assert_eq!(world.blobs().await, 3);
        let (job, blobs) = extension(&source);
        let id = video_id(2);
        let created = two.create_video(&tenant(), id, &job, &blobs).await.unwrap();
        assert_eq!(created.blobs().len(), 2, "the film and the state");
        assert!(two.clean_up().await);
        assert_eq!(world.blobs().await, 3, "nothing is copied");
        one.remove_video(&tenant(), source.id).await.unwrap();
        assert!(one.clean_up().await);
        assert_eq!(world.blobs().await, 2);
        let media = two.media(&job.film[0]).await.unwrap();
        assert_eq!(media.join(), segment(0).content.join());
        assert!(same(&two.state_of(&created).await.unwrap(), &small(0)));
        // It goes on as its own job.
        let (version, new) = next(&job);
        let mut lease = two.take_video(&created, &version, &new).await.unwrap();
        let (version, new) = completed(&version);
        lease.finish(&version, &new).await.unwrap();
        two.remove_video(&tenant(), id).await.unwrap();
        assert!(two.clean_up().await);
        world.is_empty().await;
    }
}

#[tokio::test]
async fn an_extension_of_what_is_being_deleted_has_blobs_of_its_own_or_is_refused() {
    for (records, blobs) in BACKENDS {
        let Some(world) = World::new(records, blobs).await else {
            continue;
        };
        let store = world.server();
        // The blobs are condemned, and not deleted yet.
        let condemned = source(&store, 1).await;
        store.remove_video(&tenant(), condemned.id).await.unwrap();
        let (job, blobs) = extension(&condemned);
        let id = video_id(2);
        let created = store
            .create_video(&tenant(), id, &job, &blobs)
            .await
            .unwrap();
        assert!(store.clean_up().await);
        assert_eq!(
            store.media(&job.film[0]).await.unwrap().join(),
            segment(0).content.join()
        );
        assert!(same(&store.state_of(&created).await.unwrap(), &small(0)));
        assert_eq!(world.blobs().await, 2);
        store.remove_video(&tenant(), id).await.unwrap();
        assert!(store.clean_up().await);
        // They are deleted.
        let refused = store.create_video(&tenant(), id, &job, &blobs).await;
        assert!(matches!(
            refused,
            Err(StoreError::Lost(DataLoss::MissingBlob(_)))
        ));
        assert!(store.status().last_failure.is_none(), "the store works");
        assert!(store.clean_up().await);
        world.is_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_crosses_the_removal_of_its_source_is_whole_or_not_there() {
    for (records, rounds) in [(RecordsKind::Memory, 500), (RecordsKind::Redis, 200)] {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let (one, two) = (world.server(), world.server());
        for n in 0..rounds {
            let source = source(&one, 2 * n).await;
            let (job, blobs) = extension(&source);
            let id = video_id(2 * n + 1);
            let mut creating = JoinSet::new();
            let (store, created) = (two.clone(), job.clone());
            creating.spawn(async move {
                let created = store.create_video(&tenant(), id, &created, &blobs).await;
                created.map(drop)
            });
            let mut removing = JoinSet::new();
            let store = one.clone();
            removing.spawn(async move {
                store.remove_video(&tenant(), source.id).await.unwrap();
                store.clean_up().await
            });
            let (created, removed) = tokio::join!(creating.join_next(), removing.join_next());
            assert!(removed.unwrap().unwrap());
            match created.unwrap().unwrap() {
                Ok(()) => {
                    let media = two.media(&job.film[0]).await.unwrap();
                    assert_eq!(media.join(), segment(0).content.join(), "{records:?} {n}");
                    let record = read(&one, id).await;
                    assert!(same(&one.state_of(&record).await.unwrap(), &small(0)));
                    two.remove_video(&tenant(), id).await.unwrap();
                }
                Err(StoreError::Lost(DataLoss::MissingBlob(_))) => {}
                Err(error) => panic!("{records:?} {n}: {error}"),
            }
            for store in [&one, &two] {
                assert!(store.clean_up().await);
            }
        }
        world.is_empty().await;
    }
}

fn claim(n: u64) -> VideoClaim {
    VideoClaim {
        video: video_id(n),
        request: [1; 32],
        created_at_ms: n,
    }
}

#[tokio::test]
async fn a_key_is_claimed_once_and_its_claim_goes_with_its_video() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let (one, two) = (world.server(), world.server());
        let hash = [7; 32];
        assert_eq!(one.read_claim(hash).await.unwrap(), None);
        let (a, b) = (claim(1), claim(2));
        let (first, second) =
            tokio::join!(one.claim_video_key(hash, &a), two.claim_video_key(hash, &b));
        let (held, same) = (first.unwrap(), second.unwrap());
        assert_eq!(held, same);
        assert!(held == a || held == b);
        assert_eq!(two.read_claim(hash).await.unwrap(), Some(held.clone()));
        // Repeating it is no second claim.
        assert_eq!(one.claim_video_key(hash, &held).await.unwrap(), held);
        assert_eq!(one.claim_video_key([8; 32], &b).await.unwrap(), b);

        let job = StoredVideo {
            claim: Some(hash),
            ..video()
        };
        let created = one.create_video(&tenant(), held.video, &job, &[]).await;
        created.unwrap();
        two.remove_claim(hash, video_id(9)).await.unwrap();
        assert_eq!(two.read_claim(hash).await.unwrap(), Some(held.clone()));
        assert!(two.remove_video(&tenant(), held.video).await.unwrap());
        assert_eq!(one.read_claim(hash).await.unwrap(), None);
        two.remove_claim(hash, held.video).await.unwrap();
        two.remove_claim([8; 32], b.video).await.unwrap();
        world.is_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_video_never_expires_by_itself_and_a_claim_without_one_does() {
    let world = World::memory(LIMITS);
    let store = world.server();
    let _upkeep = JoinSet::from_iter([Upkeep::new(store.clone()).run()]);
    let waits = create(&store, 1).await;
    let done = source(&store, 2).await;
    let (lease, _) = begun(&store, 3).await;
    store.claim_video_key([1; 32], &claim(1)).await.unwrap();
    store.claim_video_key([2; 32], &claim(9)).await.unwrap();
    let hour = Duration::from_secs(3600);
    sleep(hour).await;
    assert!(store.read_claim([2; 32]).await.unwrap().is_some());
    sleep(Duration::from_secs(20)).await;
    assert!(store.read_claim([2; 32]).await.unwrap().is_none());
    sleep(100 * TTL + 24 * hour).await;
    for id in [waits.id, done.id, lease.id()] {
        assert!(store.read_video(&tenant(), id).await.unwrap().is_some());
    }
    assert_eq!(known(&lease), None);
    assert!(store.media(&done.video.film[0]).await.is_ok());
    assert!(store.read_claim([1; 32]).await.unwrap().is_some());
    // A claim that a failure has left when its video was removed.
    store.remove_video(&tenant(), waits.id).await.unwrap();
    sleep(hour + Duration::from_secs(20)).await;
    assert!(store.read_claim([1; 32]).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_server_that_is_silent_are_taken_by_another() {
    let world = World::memory(LIMITS);
    let (dead, alive) = (world.server(), world.server());
    let mut its_upkeep = JoinSet::from_iter([Upkeep::new(dead.clone()).run()]);
    let _upkeep = JoinSet::from_iter([Upkeep::new(alive.clone()).run()]);
    let (mut lease, job) = begun(&dead, 1).await;
    sleep(10 * LEASE).await;
    assert_eq!(read(&alive, lease.id()).await.owner(), Some(dead.server()));
    its_upkeep.shutdown().await;
    sleep(3 * LEASE).await;
    let record = read(&alive, lease.id()).await;
    assert_eq!((record.owner(), &record.video), (None, &job));
    let (version, new) = next(&job);
    let mut taken = alive.take_video(&record, &version, &new).await.unwrap();
    // It was only stopped for a while.
    dead.beat().await.unwrap();
    assert_eq!(known(&lease), Some(VideoChange::Taken));
    assert_eq!(
        change(lease.write(&version, &new).await),
        VideoChange::Taken
    );
    let (version, new) = completed(&version);
    taken.finish(&version, &new).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_this_server_does_not_know_to_run_is_given_back() {
    let world = World::memory(LIMITS);
    let store = world.server();
    let _upkeep = JoinSet::from_iter([Upkeep::new(store.clone()).run()]);
    let (lease, _) = begun(&store, 1).await;
    let id = lease.id();
    let key = RecordKey::Video {
        tenant: tenant(),
        id,
    };
    // As if the answer to the take was lost.
    store.0.videos.take(&id);
    sleep(LEASE / 2).await;
    assert!(read(&store, id).await.owner().is_some());
    sleep(4 * LEASE).await;
    assert!(read(&store, id).await.owner().is_none());
    assert!(world.records.read(&key).await.unwrap().is_some());
}

#[tokio::test]
async fn a_server_that_was_killed_goes_on_with_its_jobs_at_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let open = async || {
        let config = open::Config {
            location: StoreLocation::parse(&url, None, LIMITS).unwrap(),
            wait: Duration::ZERO,
            sessions: super::world::CONFIG,
        };
        SessionStore::open(config).await.unwrap()
    };
    let store = open().await;
    let waits = create(&store, 1).await;
    let done = source(&store, 2).await;
    let (lease, job) = begun(&store, 3).await;
    let id = lease.id();
    let (session, _, its) = begin(&store).await;
    // Nobody executes what is left to do.
    drop((lease, its, store));

    let store = open().await;
    assert_eq!(read(&store, waits.id).await.video, waits.video);
    assert_eq!(read(&store, done.id).await.video, done.video);
    let record = read(&store, id).await;
    assert_eq!((record.owner(), &record.video), (None, &job));
    let page = VideoPage {
        after: None,
        limit: 9,
        order: Order::Ascending,
    };
    let listed = store.list_videos(&tenant(), page).await.unwrap().videos;
    let listed: Vec<_> = listed.iter().map(|video| video.id).collect();
    assert_eq!(listed, [waits.id, done.id, id]);
    assert!(same(&store.state_of(&record).await.unwrap(), &small(0)));
    let (version, new) = next(&job);
    let mut lease = store.take_video(&record, &version, &new).await.unwrap();
    let (version, new) = completed(&version);
    lease.finish(&version, &new).await.unwrap();
    // A session keeps its owner until that is known to be gone.
    let session = store.0.records.read(&session.into()).await.unwrap();
    assert!(session.unwrap().record.owner.is_some());
}

/// Everything goes on after an answer that is lost, and nothing stays behind.
#[tokio::test]
async fn an_answer_that_is_lost_loses_no_job() {
    for lost in ["reserve", "write", "release", "forget", "read", "stale"] {
        for undone in [false, true] {
            let flaky = Arc::new(Flaky::default());
            let world = World::with(flaky.clone());
            let (one, two) = (world.server(), world.server());
            let id = video_id(1);
            let (tiles, blob) = NewBlob::file(Bytes::from_static(b"image").into());
            let job = StoredVideo {
                image: Some(tiles),
                claim: Some([1; 32]),
                ..video()
            };
            flaky.lose(lost, undone);
            while one.claim_video_key([1; 32], &claim(1)).await.is_err() {}
            flaky.lose(lost, undone);
            let blobs = [blob];
            let mut created = one.create_video(&tenant(), id, &job, &blobs).await;
            if created.is_err() {
                created = one.create_video(&tenant(), id, &job, &blobs).await;
            }
            let created = created.unwrap();
            assert_eq!(created.video, job, "{lost}");
            let (version, new) = next(&job);
            flaky.lose(lost, undone);
            let mut taken = one.take_video(&created, &version, &new).await;
            if taken.is_err() {
                taken = one.take_video(&created, &version, &new).await;
            }
            let mut lease = taken.unwrap();
            let (version, new) = next(&version);
            flaky.lose(lost, undone);
            if lease.write(&version, &new).await.is_err() {
                lease.write(&version, &new).await.unwrap();
            }
            flaky.lose(lost, undone);
            let _ = one.beat().await;
            assert_eq!(known(&lease), None, "{lost} {undone}");
            // It is given back, and taken again.
            flaky.lose(lost, undone);
            drop(lease);
            while !one.clean_up().await {}
            flaky.lose("", undone);
            let record = read(&two, id).await;
            assert_eq!((record.owner(), &record.video), (None, &version));
            let mut lease = two.take_video(&record, &version, &[]).await.unwrap();
            flaky.lose(lost, undone);
            while one.cancel_video(&tenant(), id).await.is_err() {}
            flaky.lose("", undone);
            let refused = lease.write(&version, &[]).await;
            assert_eq!(change(refused), VideoChange::Cancelled, "{lost} {undone}");
            let ended = cancelled(&version);
            flaky.lose(lost, undone);
            if lease.finish(&ended, &[]).await.is_err() {
                lease.finish(&ended, &[]).await.unwrap();
            }
            flaky.lose("", undone);
            drop(lease);
            let record = read(&one, id).await;
            assert_eq!((record.owner(), &record.video), (None, &ended));
            let (version, new) = completed(&ended);
            flaky.lose(lost, undone);
            if one.replace_video(&record, &version, &new).await.is_err() {
                one.replace_video(&record, &version, &new).await.unwrap();
            }
            flaky.lose(lost, undone);
            if one.remove_video(&tenant(), id).await.is_err() {
                one.remove_video(&tenant(), id).await.unwrap();
            }
            flaky.lose("", undone);
            one.remove_claim([1; 32], id).await.unwrap();
            for store in [&one, &two] {
                while !store.clean_up().await {}
            }
            world.delete_condemned().await;
            world.is_empty().await;
        }
    }
}

#[tokio::test]
async fn a_store_without_room_refuses_a_version_and_the_job_stays_as_it_was() {
    let world = World::memory(Limits {
        max_sessions: 1,
        max_bytes: 1 << 20,
        max_media_bytes: 500,
    });
    let store = world.server();
    let (mut lease, job) = begun(&store, 1).await;
    let (version, new) = next(&job);
    lease.write(&version, &new).await.unwrap();
    let (third, new) = next(&version);
    let full = lease.write(&third, &new).await;
    assert!(matches!(
        full,
        Err(VideoError::Store(StoreError::MediaFull { .. }))
    ));
    assert_eq!(read(&store, lease.id()).await.video, version);
    assert!(store.clean_up().await);
    assert_eq!(world.blobs().await, 4, "2 segments, state, tiles");
    // It is no session, and takes the place of none.
    let (session, token) = (SessionId::random(), ResumeToken::random());
    let _session = store.create(&session, &token, None).await.unwrap();
    let second = create(&store, 2).await;
    assert_eq!(second.owner(), None);
    assert!(store.snapshot(&session).await.unwrap().is_some());
    let (version, new) = completed(&version);
    lease.finish(&version, &new).await.unwrap();
}
