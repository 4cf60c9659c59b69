//! A server that dies at each of its writes, and the one that is started after it.

use std::sync::Arc;

use bytes::Bytes;
use fastvideo_proto::job::MediaKind;
use fastvideo_proto::link::VideoPictures;
use fastvideo_proto::stored_video::{StoredFile, StoredVideo};

use super::*;
use crate::store::records::{Order, VideoPage};
use crate::store::tests::flaky::{Flaky, LastWrite};
use crate::store::tests::world::World as SharedStore;

/// What workers give for 24 frames: segments of an init segment and three fragments each; see `make-segments`.
const SEGMENTS: [&[u8]; 3] = [
    include_bytes!("segment-0.mp4"),
    include_bytes!("segment-1.mp4"),
    include_bytes!("segment-2.mp4"),
];
/// The frames of all segments.
const FRAMES: u64 = 24;
const CLAIM: Claim = Claim {
    key: [1; 32],
    request: [2; 32],
};

/// A server whose worker makes whatever it is given.
struct Server {
    videos: Videos,
    tenant: Tenant,
    _drain: watch::Sender<Drain>,
    _running: JoinSet<()>,
}

/// What a client can fetch of a job.
#[derive(Debug, PartialEq)]
struct Content {
    film: Vec<[u8; 32]>,
    bytes: Option<u64>,
    pictures: [Option<StoredFile>; 2],
}

impl Server {
    async fn start(store: SessionStore) -> Self {
        // As a server does that nobody shares its store with.
        store.mend().await.unwrap();
        let mut workers = TestWorkers::new(1, 1);
        workers.serve(0);
        let (drain, drain_seen) = watch::channel(Drain::No);
        let writes = TaskTracker::new();
        let videos = testing::videos(workers.pool(), &store, &drain_seen, &writes);
        let mut running = JoinSet::new();
        running.spawn(videos.clone().run());
        running.spawn(async move {
            loop {
                make(workers.next_job(0).await);
            }
        });
        Self {
            videos,
            tenant: Tenant::default(),
            _drain: drain,
            _running: running,
        }
    }

    /// Asks for the job as a client does that repeats a request until it is answered, and waits for the job's end.
    async fn finish(&self) -> (VideoId, Content) {
        let tenant = &self.tenant;
        let created = match self.videos.claimed(tenant, CLAIM).await.unwrap() {
            Some(created) => created,
            None => {
                let new = new_video(FRAMES);
                let creating = self.videos.create(tenant.clone(), new, None, Some(CLAIM));
                creating.await.unwrap()
            }
        };
        let mut live = created.live;
        while !live.video.status.is_end() {
            let waited = self.videos.wait(tenant, created.id, 60 * SECOND).await;
            live = waited.unwrap().expect("a job that was created is there");
        }
        assert_eq!(live.video.status, VideoStatus::Completed, "{live:?}");
        (created.id, content(&live.video))
    }
}

fn content(video: &StoredVideo) -> Content {
    let media = video.film.iter().map(|segment| &segment.media);
    Content {
        film: media.map(|media| media.as_ref().unwrap().blob).collect(),
        bytes: video.bytes,
        pictures: [video.thumbnail, video.spritesheet],
    }
}

/// Plays a worker that makes a segment of a job.
fn make(job: TestJob) {
    job.step(1);
    let idx = job.spec().segment_idx;
    let mime = "video/mp4".to_owned();
    for (n, message) in messages(SEGMENTS[idx as usize]).into_iter().enumerate() {
        let kind = match n {
            0 => MediaKind::InitSegment { mime: mime.clone() },
            _ => MediaKind::Fragment,
        };
        job.message(kind, message);
    }
    let part = job.spec().video.clone().expect("it is a job's");
    let name = |what: &str| Bytes::from(format!("{what} of segment {idx}"));
    job.finish_with(VideoPictures {
        tiles: name("tiles"),
        thumbnail: part.thumbnail.map(|_| name("thumbnail")),
        sheet: part
            .sheet_after
            .map(|before| [&before[..], b"sheet"].concat().into()),
    });
}

/// Splits a recorded segment into the messages that a worker sends.
fn messages(segment: &'static [u8]) -> Vec<Bytes> {
    let starts = segment.windows(4).enumerate();
    let fragments = starts.filter(|(_, name)| name == b"moof");
    // The size of a box is before its name.
    let fragments = fragments.map(|(at, _)| at - 4).collect::<Vec<_>>();
    let ends = fragments.iter().copied().chain([segment.len()]);
    let begins = [0].into_iter().chain(fragments.clone());
    let messages = begins.zip(ends).map(|(from, to)| &segment[from..to]);
    messages.map(Bytes::from_static).collect()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_dies_at_any_of_its_writes_loses_nothing() {
    let undisturbed = Server::start(SharedStore::roomy().server()).await;
    let (_, expected) = undisturbed.finish().await;
    assert_eq!(expected.film.len(), 3);
    assert!(expected.pictures.iter().all(Option::is_some));
    for last in [LastWrite::Undone, LastWrite::Done] {
        let mut writes = 0;
        while dies_and_is_started_again(writes, last, &expected).await {
            writes += 1;
        }
        // The key's claim, the job, its lease, and that each segment is begun and finished.
        assert!(writes >= 9, "{writes}");
    }
}

/// Lets a server die at the write after so many others. Returns false when it had nothing more to write.
async fn dies_and_is_started_again(writes: usize, last: LastWrite, expected: &Content) -> bool {
    let shared = SharedStore::roomy();
    let records = Arc::new(Flaky::of(shared.records.clone()));
    let server = Server::start(shared.server_through(records.clone())).await;
    records.die_after(writes, last);
    let is_dead = tokio::select! {
        _ = server.finish() => false,
        () = records.died() => true,
    };
    drop(server);

    let server = Server::start(shared.server()).await;
    let (id, content) = server.finish().await;
    assert_eq!(content, *expected, "{last:?} after {writes} writes");
    let page = VideoPage {
        limit: 10,
        after: None,
        order: Order::Ascending,
    };
    let list = server.videos.list(&server.tenant, page).await.unwrap();
    assert_eq!(list.jobs.len(), 1, "{last:?} after {writes} writes");
    assert!(server.videos.delete(&server.tenant, id).await.unwrap());
    shared.delete_condemned().await;
    shared.is_empty().await;
    is_dead
}
