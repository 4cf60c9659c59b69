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
async fn counted(server: &Server, series: &str) -> f64 {
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
        (counted(&server, taken).await == 2.0).then_some(())
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

/// The lines of a job's session log, each with its event and its payload.
fn logged(logs: &Path, id: &str) -> Vec<(String, Value)> {
    let file = logs.join(format!("session-{id}.jsonl"));
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // The last one may be on its way.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["session_id"], id);
        let event = line["event"].as_str().unwrap().to_owned();
        (event, line["payload"].take())
    });
    lines.collect()
}

fn of<'a>(lines: &'a [(String, Value)], event: &str) -> Vec<&'a Value> {
    let lines = lines.iter().filter(|(name, _)| name == event);
    lines.map(|(_, payload)| payload).collect()
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
    let request = json!({"prompt": "a red fox", "num_frames": 36, "seed": 7});
    let id = create(&server, request.clone()).await;
    video_until(&server, &id, "a segment is there", |it| {
        it["segments"]["done"].as_u64() >= Some(1)
    })
    .await;
    until("the segment is logged", async || {
        let lines = logged(&logs, &id);
        (!of(&lines, "segment_finished").is_empty()).then_some(())
    })
    .await;
    server.kill().await;
    let mut server = Server::start(&args);
    completed(&server, &id).await;
    let deleted = create(&server, request).await;
    in_progress(&server, &deleted).await;
    let path = format!("/v1/videos/{deleted}");
    assert_eq!(server.call("DELETE", &path, None).await.0, 200);
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());

    let lines = logged(&logs, &id);
    let [first, second] = of(&lines, "video_taken")[..] else {
        panic!("{lines:?}");
    };
    assert_eq!(first["segments_done"], 0);
    assert!(second["segments_done"].as_u64() >= Some(1), "{second}");
    assert_eq!(
        (&first["prompt"], &first["seed"]),
        (&json!("a red fox"), &json!(7))
    );
    let started = of(&lines, "segment_started");
    assert_eq!(started[0]["worker_id"], "gpu0-1", "{started:?}");
    let finished = of(&lines, "segment_finished").into_iter();
    let finished: BTreeSet<_> = finished.map(|it| it["segment_idx"].as_u64()).collect();
    assert_eq!(finished, [Some(0), Some(1), Some(2)].into());
    let [ended] = of(&lines, "video_ended")[..] else {
        panic!("{lines:?}");
    };
    assert_eq!(
        (&ended["code"], &ended["segments_done"]),
        (&Value::Null, &json!(3))
    );
    let lines = logged(&logs, &deleted);
    assert_eq!(of(&lines, "video_left"), [&json!({"was_deleted": true})]);
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
        ("fastvideo_videos_created_total", 2.0),
        ("fastvideo_videos_ended_total{outcome=\"completed\"}", 1.0),
        ("fastvideo_videos_ended_total{outcome=\"cancelled\"}", 1.0),
        (
            "fastvideo_videos_ended_total{outcome=\"worker_failed\"}",
            0.0,
        ),
        ("fastvideo_videos{state=\"completed\"}", 1.0),
        ("fastvideo_videos{state=\"failed\"}", 1.0),
        ("fastvideo_video_duration_seconds_count", 1.0),
        ("fastvideo_video_queue_seconds_count", 1.0),
    ] {
        assert_eq!(counted(&server, series).await, expected, "{series}");
    }
    assert!(counted(&server, "fastvideo_videos_stored_bytes").await > 1000.0);
}
