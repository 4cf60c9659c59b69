//! What the operator is told of jobs: the webhook, the session log and the metrics.

use super::*;
use crate::harness::{SMALL, command};
use crate::provider::{Asked, Provider, Reply};

const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

/// Arguments for a server that tells a receiver of its jobs' ends, whose secret is in its environment.
fn told(receiver: &Provider, more: &[&str]) -> Vec<String> {
    let webhook = [
        format!("--streaming.videos.webhook.url={}/jobs", receiver.base_url),
        "--streaming.videos.webhook.secret_env=WEBHOOK_SECRET".to_owned(),
    ];
    let args = ONE_GPU.iter().chain(more);
    let args = args.map(|arg| (*arg).to_owned());
    args.chain(webhook).collect()
}

fn start(args: &[String]) -> Server {
    let mut command = command();
    Server::spawn(command.env("WEBHOOK_SECRET", SECRET).args(SMALL).args(args))
}

/// The type of an event and the job that it is about.
fn event(asked: &Asked) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&asked.body["type"]), text(&asked.body["data"]["id"]))
}

/// The value of a counter of a scrape.
async fn counted(server: &Server, series: &str) -> u64 {
    let scrape = fetch(server, "GET", "/metrics", &[], vec![]).await;
    let text = String::from_utf8(scrape.body).unwrap();
    let line = text.lines().find(|line| line.starts_with(series));
    let value = line.and_then(|line| line.rsplit_once(' ')).map(|it| it.1);
    value.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[tokio::test]
async fn the_webhook_is_told_of_each_end_once_it_answers() {
    // It fails once for each job.
    let receiver = Provider::start(|before, _| match before {
        0 | 1 => Reply::Status(503),
        _ => Reply::Status(204),
    })
    .await;
    let server = start(&told(&receiver, &["--generator.synthetic.step_ms=50"]));
    let request = json!({"prompt": "a red fox", "num_frames": 24});
    let running = create(&server, request.clone()).await;
    let waiting = create(&server, request).await;
    server.post(&format!("/v1/videos/{waiting}/cancel")).await;
    completed(&server, &running).await;
    receiver.asked_times(4).await;
    until("both messages are taken", async || {
        let taken = "fastvideo_video_webhook_attempts_total{outcome=\"taken\"}";
        (counted(&server, taken).await == 2).then_some(())
    })
    .await;
    let asked = receiver.asked();
    let told: BTreeSet<_> = asked.iter().map(event).collect();
    let expected = [
        ("video.completed".to_owned(), running),
        ("video.failed".to_owned(), waiting),
    ];
    assert_eq!(told, expected.into());
    let ids: BTreeSet<_> = asked.iter().map(|it| it.body["id"].to_string()).collect();
    assert_eq!((ids.len(), asked.len()), (2, 4), "{asked:?}");
    assert!(asked.iter().all(|it| it.path == "/v1/jobs"));
}

#[tokio::test]
async fn a_message_outlives_the_server() {
    let receiver = Provider::start(|before, _| match before {
        0 => Reply::Status(500),
        _ => Reply::Status(200),
    })
    .await;
    let folder = TempDir::new().unwrap();
    let store = crate::durable::folder("--store", folder.path());
    let args = told(&receiver, &[&store]);
    let mut server = start(&args);
    let id = create(&server, json!({"prompt": "a red fox", "num_frames": 12})).await;
    receiver.asked_times(1).await;
    server.kill().await;
    let server = start(&args);
    receiver.asked_times(2).await;
    let asked = receiver.asked();
    assert_eq!(asked[0].body, asked[1].body);
    assert_eq!(event(&asked[1]), ("video.completed".to_owned(), id.clone()));
    assert_eq!(retrieve(&server, &id).await["status"], "completed");
}

#[tokio::test]
async fn a_job_has_a_session_log_with_each_server_that_ran_it() {
    let folder = TempDir::new().unwrap();
    let logs = folder.path().join("logs");
    let store = folder.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let kept = crate::durable::folder("--store", &store);
    let log = format!("--session-log-dir={}", logs.display());
    let more = [&kept, &log, "--generator.synthetic.step_ms=100"];
    let args = [ONE_GPU, &more].concat();
    let mut server = Server::start(&args);
    let request = json!({"prompt": "a red fox", "num_frames": 24, "seed": 7});
    let id = create(&server, request).await;
    video_until(&server, &id, "a segment is there", |it| {
        it["segments"]["done"] == 1
    })
    .await;
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());
    let mut server = Server::start(&args);
    completed(&server, &id).await;
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());

    let file = logs.join(format!("session-{id}.jsonl"));
    let text = std::fs::read_to_string(file).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |event: &str| -> Vec<&Value> {
        let lines = lines.iter().filter(|line| line["event"] == event);
        lines.map(|line| &line["payload"]).collect()
    };
    assert!(lines.iter().all(|line| line["session_id"] == id.as_str()));
    let taken = of("video_taken");
    assert_eq!(taken[0]["segments_done"], 0);
    assert_eq!(taken[1]["segments_done"], 1);
    assert_eq!(
        (&taken[0]["prompt"], &taken[0]["seed"]),
        (&json!("a red fox"), &json!(7))
    );
    assert_eq!(of("video_left"), [&json!({"was_deleted": false})]);
    let ended = of("video_ended");
    assert_eq!(ended.len(), 1);
    assert_eq!(
        (&ended[0]["code"], &ended[0]["segments_done"]),
        (&Value::Null, &json!(2))
    );
    let finished: Vec<_> = of("segment_finished");
    let finished: Vec<_> = finished.iter().map(|it| &it["segment_idx"]).collect();
    assert_eq!(finished, [0, 1]);
    let started = of("segment_started");
    assert_eq!(started[0]["worker_id"], "gpu0-1", "{started:?}");
}

#[tokio::test]
async fn jobs_are_counted_by_how_they_ended() {
    let server = Server::start(&[ONE_GPU, &["--generator.synthetic.step_ms=50"]].concat());
    let request = json!({"prompt": "a red fox", "num_frames": 12});
    let running = create(&server, request.clone()).await;
    let waiting = create(&server, request).await;
    server.post(&format!("/v1/videos/{waiting}/cancel")).await;
    completed(&server, &running).await;
    for (series, expected) in [
        ("fastvideo_videos_created_total", 2),
        ("fastvideo_videos_ended_total{outcome=\"completed\"}", 1),
        ("fastvideo_videos_ended_total{outcome=\"cancelled\"}", 1),
        ("fastvideo_videos_ended_total{outcome=\"worker_failed\"}", 0),
        ("fastvideo_videos{state=\"completed\"}", 1),
        ("fastvideo_videos{state=\"failed\"}", 1),
        ("fastvideo_video_duration_seconds_count", 1),
        ("fastvideo_video_queue_seconds_count", 1),
    ] {
        assert_eq!(counted(&server, series).await, expected, "{series}");
    }
    assert!(counted(&server, "fastvideo_videos_stored_bytes").await > 1000);
}
