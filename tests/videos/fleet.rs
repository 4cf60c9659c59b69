//! Two servers that share their jobs.

use super::*;
use crate::durable::Redis;

/// Two servers with one store, each of which soon notices that the other one is silent.
struct Pair {
    servers: [Server; 2],
    args: Vec<String>,
    _redis: Redis,
    _blobs: TempDir,
}

impl Pair {
    async fn start(pace: &[&str]) -> Self {
        let (redis, blobs) = (Redis::start().await, TempDir::new().unwrap());
        let store = [
            format!("--store={}", redis.url),
            folder("--blobs", blobs.path()),
            "--streaming.store.lease_seconds=1".to_owned(),
        ];
        let args = with(pace, &store);
        Self {
            servers: [start(&args), start(&args)],
            args,
            _redis: redis,
            _blobs: blobs,
        }
    }

    fn both(&self) -> (&Server, &Server) {
        (&self.servers[0], &self.servers[1])
    }

    /// Kills a server and starts it again.
    async fn kill(&mut self, n: usize) {
        self.servers[n].kill().await;
        let address = self.servers[n].address.clone();
        self.servers[n] = start_at(&address, &self.args);
    }
}

async fn status_of(server: &Server, id: &str) -> u16 {
    server.get(&format!("/v1/videos/{id}")).await.0
}

#[tokio::test]
async fn any_server_answers_for_any_job() {
    let pair = Pair::start(SLOW).await;
    let (one, other) = pair.both();
    let request = json!({"prompt": "a red fox", "num_frames": 24, "seed": 7});
    let id = create(one, request).await;
    let there = in_progress(one, &id).await;
    let seen = retrieve(other, &id).await;
    for field in [
        "id",
        "status",
        "created_at",
        "started_at",
        "prompt",
        "seed",
        "size",
    ] {
        assert_eq!(seen[field], there[field], "{field}");
    }
    assert_eq!(ids(&list(other, "").await), [&id]);
    let early = content(other, &id).await;
    assert_eq!((early.status, &*early.code()), (404, "video_not_ready"));
    // What the other one waits for is what is stored.
    let changed = progress(other, &id, 1).await;
    assert_eq!(changed["segments"], json!({"done": 1, "total": 2}));
    let (video, made) = completed(other, &id).await;
    assert_eq!(retrieve(one, &id).await, video);
    let here = content(one, &id).await;
    let etag = content(other, &id).await.header("etag").to_owned();
    assert!(here.body == made && here.header("etag") == etag);
    delete(other, &id).await;
    assert_eq!(
        (status_of(one, &id).await, status_of(other, &id).await),
        (404, 404)
    );
    assert_eq!(content(one, &id).await.status, 404);
}

#[tokio::test]
async fn a_server_ends_what_another_one_runs() {
    let pair = Pair::start(SLOW).await;
    let (one, other) = pair.both();
    let request = json!({"prompt": "a red fox", "num_frames": 1200});
    let cancelled = create(one, request.clone()).await;
    in_progress(one, &cancelled).await;
    let (status, _) = other.post(&format!("/v1/videos/{cancelled}/cancel")).await;
    assert_eq!(status, 200);
    for server in [one, other] {
        assert_eq!(failed(server, &cancelled).await, "cancelled");
    }
    let deleted = create(one, request.clone()).await;
    in_progress(one, &deleted).await;
    let waiting = create(one, request).await;
    for id in [&deleted, &waiting] {
        delete(other, id).await;
        assert_eq!(
            (status_of(one, id).await, status_of(other, id).await),
            (404, 404)
        );
    }
    // Their GPU is free: both would have taken minutes.
    let next = json!({"prompt": "a blue whale", "num_frames": 12});
    let next = create(one, next).await;
    completed(one, &next).await;
    assert_eq!(status_of(one, &deleted).await, 404);
    assert_eq!(ids(&list(other, "order=asc").await), [&cancelled, &next]);
}

#[tokio::test]
async fn a_request_under_the_same_key_at_two_servers_is_the_same_job() {
    let pair = Pair::start(PACE).await;
    let post = async |n: usize| {
        let headers = [("idempotency-key", "one")];
        let body = request().to_string().into_bytes();
        fetch(&pair.servers[n % 2], "POST", "/v1/videos", &headers, body).await
    };
    let answers = futures_util::future::join_all((0..10).map(post)).await;
    let ids: BTreeSet<String> = (answers.iter())
        .map(|it| it.json()["id"].to_string())
        .collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let replayed = answers
        .iter()
        .filter(|it| it.header("idempotent-replayed") == "true");
    assert_eq!(replayed.count(), 9);
}

/// Checks that of jobs that wait none begins before an older one.
fn check_order(videos: &[Value]) {
    let waits: Vec<bool> = videos.iter().map(|it| it["status"] == "queued").collect();
    assert!(waits.is_sorted(), "{videos:#?}");
}

#[tokio::test]
async fn a_server_takes_the_jobs_of_one_that_is_killed_in_their_order() {
    let expected = expected().await;
    let mut pair = Pair::start(PACE).await;
    let mut created = Vec::new();
    for _ in 0..5 {
        created.push(create(&pair.servers[0], request()).await);
    }
    progress(&pair.servers[0], &created[0], 40).await;
    let before = list(&pair.servers[0], "order=asc").await;
    pair.servers[0].kill().await;
    let other = &pair.servers[1];
    let videos = until("all jobs are made", async || {
        let videos = list(other, "order=asc").await;
        // The first one was in hand, and is free when its server has been silent for long enough.
        check_order(&videos[1..]);
        let are_made = videos.iter().all(|it| it["status"] == "completed");
        are_made.then_some(videos)
    })
    .await;
    assert_eq!(ids(&videos), created);
    for (before, after) in before.iter().zip(&videos) {
        for field in ["id", "created_at", "seed", "prompt", "num_frames"] {
            assert_eq!(before[field], after[field]);
        }
        let (_, content) = completed(other, after["id"].as_str().unwrap()).await;
        assert!(content == expected, "{after}");
    }
}

#[tokio::test]
async fn jobs_outlive_servers_that_are_killed_in_turn() {
    let expected = expected().await;
    let mut pair = Pair::start(PACE).await;
    let mut created = Vec::new();
    for n in 0..6 {
        created.push(create(&pair.servers[n % 2], request()).await);
    }
    for n in 0..4 {
        sleep(Duration::from_millis(1500).mul_f64(rand::random())).await;
        pair.kill(n % 2).await;
    }
    for (n, id) in created.iter().enumerate() {
        let (video, content) = completed(&pair.servers[n % 2], id).await;
        assert!(content == expected, "{video}");
    }
}

#[tokio::test]
async fn a_server_that_was_stopped_past_its_lease_leaves_its_job_to_the_other_one() {
    let expected = expected().await;
    let pair = Pair::start(PACE).await;
    let (one, other) = pair.both();
    let id = create(one, request()).await;
    progress(one, &id, 20).await;
    one.signal(Signal::SIGSTOP);
    let (video, content) = completed(other, &id).await;
    assert!(content == expected, "{video}");
    one.signal(Signal::SIGCONT);
    assert_eq!(ended(one, &id).await, video);
    // It goes on with others.
    let next = create(one, request()).await;
    assert!(completed(one, &next).await.1 == expected);
    assert_eq!(retrieve(other, &id).await, video);
}
