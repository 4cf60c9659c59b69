//! Jobs whose store is full, slow or away, and servers whose clock is wrong.

use std::time::SystemTime;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::durable::{Clock, Redis};
use crate::harness::SMALL;
use crate::small_disk::SmallDisk;

/// How long each message to or from a slow store is on its way.
const DELAY: Duration = Duration::from_millis(100);

#[tokio::test]
async fn no_job_is_taken_while_the_videos_have_no_room() {
    // About 1 KiB.
    let server =
        Server::start(&[ONE_GPU, &["--streaming.videos.max_stored_gib=0.000001"]].concat());
    let request = json!({"prompt": "a red fox", "num_frames": 12});
    let id = create(&server, request.clone()).await;
    completed(&server, &id).await;
    let more = json!({"prompt": "a red fox", "num_frames": 12, "video": {"id": id}});
    let remix = format!("/v1/videos/{id}/remix");
    for (path, request) in [
        ("/v1/videos", &request),
        ("/v1/videos/sync", &request),
        (&remix, &request),
        ("/v1/videos/edits", &more),
        ("/v1/videos/extensions", &more),
    ] {
        let body = request.to_string().into_bytes();
        let refused = fetch(&server, "POST", path, &[], body).await;
        assert_eq!(
            (refused.status, &*refused.code()),
            (503, "storage_full"),
            "{path}"
        );
        assert_eq!(refused.header("x-should-retry"), "false", "{path}");
    }
    // Nothing was thrown out, and there is room again once a client does that.
    assert_eq!(ids(&list(&server, "").await), [&id]);
    assert_eq!(content(&server, &id).await.status, 200);
    delete(&server, &id).await;
    let id = create(&server, request).await;
    completed(&server, &id).await;
}

/// Waits until the server has failed to store what a job has made.
async fn not_stored(server: &Server) {
    until("the store fails", async || {
        server
            .log()
            .contains("a job is not stored; trying again")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_job_whose_disk_is_full_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    // All that it leaves fits on the disk.
    let request = json!({"prompt": "a red fox", "num_frames": 12, "seed": 7});
    let expected = undisturbed(request.clone()).await;
    let records = TempDir::new().unwrap();
    let store = [
        folder("--store", records.path()),
        folder("--blobs", disk.path()),
    ];
    let server = start(&with(PACE, &store));
    let id = create(&server, request).await;
    progress(&server, &id, 10).await;
    let filler = disk.path().join("filler");
    // An error means that the disk is full.
    let _ = std::fs::write(&filler, vec![0; 4 << 20]);
    not_stored(&server).await;
    let video = retrieve(&server, &id).await;
    assert_eq!(video["status"], "in_progress");
    assert!(video["progress"].as_u64() < Some(100), "{video}");
    std::fs::remove_file(filler).unwrap();
    let (video, content) = completed(&server, &id).await;
    assert!(content == expected, "{video}");
}

/// Stands between a server and its store, and lets each message wait.
struct SlowWay {
    address: String,
    _tasks: JoinSet<()>,
}

impl SlowWay {
    /// Begins to listen for connections to that port.
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut ways = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                ways.spawn(carry(from_client, to_server));
                ways.spawn(carry(from_server, to_client));
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }
}

async fn carry(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        sleep(DELAY).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

// The way is open while the test waits for its server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_store_changes_nothing() {
    let expected = expected().await;
    let (redis, blobs) = (Redis::start().await, TempDir::new().unwrap());
    let way = SlowWay::to(redis.port()).await;
    let store = [
        format!("--store=redis://{}", way.address),
        folder("--blobs", blobs.path()),
    ];
    let server = start(&with(PACE, &store));
    let mut created = Vec::new();
    for _ in 0..2 {
        created.push(create(&server, request()).await);
    }
    let mut last = 0;
    video_until(&server, &created[0], "the job is made", |video| {
        let progress = video["progress"].as_u64().unwrap();
        assert!(
            progress >= std::mem::replace(&mut last, progress),
            "{video}"
        );
        progress == 100
    })
    .await;
    for id in &created {
        let (video, content) = completed(&server, id).await;
        assert!(content == expected, "{video}");
    }
    delete(&server, &created[0]).await;
    assert_eq!(ids(&list(&server, "").await), [&created[1]]);
    assert!(!server.log().contains("trying again"), "{}", server.log());
}

#[tokio::test]
async fn a_job_goes_on_when_its_store_is_back() {
    let expected = expected().await;
    let (redis, blobs) = (Redis::start().await, TempDir::new().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", blobs.path()),
        "--streaming.store.timeout_ms=300".to_owned(),
    ];
    let server = start(&with(PACE, &store));
    let id = create(&server, request()).await;
    progress(&server, &id, 10).await;
    redis.signal(Signal::SIGSTOP);
    not_stored(&server).await;
    let body = request().to_string().into_bytes();
    let refused = fetch(&server, "POST", "/v1/videos", &[], body).await;
    assert_eq!(
        (refused.status, &*refused.code()),
        (503, "store_unavailable")
    );
    assert_ne!(refused.header("x-should-retry"), "false");
    assert_eq!(server.get("/v1/videos").await.0, 503);
    // It is known here how the job is.
    assert_eq!(retrieve(&server, &id).await["status"], "in_progress");
    redis.signal(Signal::SIGCONT);
    let (video, content) = completed(&server, &id).await;
    assert!(content == expected, "{video}");
    assert_eq!(ids(&list(&server, "").await), [&id]);
}

/// Waits until a server's clock is behind, or right again.
async fn clock_is_behind(server: &Server, is_behind: bool) {
    until("the server's clock has jumped", async || {
        let ts = server.get("/healthz").await.1["ts"].clone();
        let now = humantime::parse_rfc3339(ts.as_str().unwrap()).unwrap();
        let soon = SystemTime::now() - Duration::from_secs(1800);
        ((now < soon) == is_behind).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_changes_no_order_and_expires_nothing() {
    let expected = expected().await;
    let folder = TempDir::new().unwrap();
    let clock = Clock::new(folder.path());
    let args = kept_in(&folder);
    let serve = || Server::spawn(clock.command().args(SMALL).args(&args));
    let mut server = serve();
    let mut created = vec![create(&server, request()).await];
    let (before, _) = completed(&server, &created[0]).await;
    created.push(create(&server, request()).await);
    progress(&server, &created[1], 20).await;
    clock.set("-1h");
    clock_is_behind(&server, true).await;
    created.push(create(&server, request()).await);
    for id in &created {
        let (video, content) = completed(&server, id).await;
        assert!(content == expected, "{video}");
    }
    let late = retrieve(&server, &created[2]).await;
    assert!(late["created_at"].as_u64() < before["created_at"].as_u64());
    // A server that was never right.
    server.kill().await;
    server = serve();
    created.push(create(&server, request()).await);
    completed(&server, &created[3]).await;
    clock.set("+0");
    clock_is_behind(&server, false).await;
    created.push(create(&server, request()).await);
    completed(&server, &created[4]).await;
    assert_eq!(ids(&list(&server, "order=asc").await), created);
    assert!(created.is_sorted());
    assert_eq!(retrieve(&server, &created[0]).await, before);
    // All are kept for a day, by that clock.
    clock.set("+25h");
    until("all are gone", async || {
        list(&server, "").await.is_empty().then_some(())
    })
    .await;
}
