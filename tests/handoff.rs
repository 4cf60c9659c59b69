//! Sessions that change their worker though nothing is wrong with it: workers are drained, started again and renewed, and
//! shared by those whose viewers need them first. The media are always those of a session that nothing happened to.

use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Client, Segment, Server, WATCHFUL, command, exists};
use crate::lifecycle::{Script, children};

/// The same segments of a session that nothing happens to.
async fn undisturbed(prompts: &[&str]) -> Vec<Segment> {
    let server = Server::start(&[]);
    let mut client = server.active(json!({})).await;
    let mut segments = Vec::new();
    for prompt in prompts {
        segments.push(client.segment(prompt).await);
    }
    segments
}

#[track_caller]
fn check_media(segments: &[Segment], expected: &[Segment]) {
    assert_eq!(segments.len(), expected.len());
    for (idx, (segment, expected)) in segments.iter().zip(expected).enumerate() {
        assert_eq!(segment.only("ltx2_segment_start")["segment_idx"], idx);
        assert!(segment.media == expected.media, "segment {idx}");
    }
}

/// A session that is active, and its first `gpu_assigned`.
async fn assigned(server: &Server) -> (Client, Value) {
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    (client, assigned)
}

fn gpu_of(assigned: &Value) -> u32 {
    u32::try_from(assigned["gpu_id"].as_u64().unwrap()).unwrap()
}

async fn order(server: &Server, gpu: u32, order: &str) {
    let (code, body) = server.post(&format!("/v1/workers/{gpu}/{order}")).await;
    assert_eq!((code, &body["gpu_id"]), (202, &json!(gpu)), "{body}");
}

async fn drained(server: &Server, gpu: u32, pid: Pid) -> Value {
    let away = |gpu: &Value| gpu["state"] == "drained";
    let gpu = server.gpu_until(gpu, "the worker has left", away).await;
    assert!(!exists(pid));
    assert_eq!(gpu["pid"], Value::Null);
    assert_eq!(gpu["available"], false);
    assert_eq!(gpu["client_count"], 0);
    assert_eq!(gpu["restarts"], 0);
    assert_eq!(gpu["last_exit"]["kind"], "asked");
    gpu
}

#[tokio::test]
async fn session_of_a_drained_worker_goes_on_elsewhere_after_its_segment() {
    let prompts = ["a red fox", "a quiet lake", "a storm at sea"];
    let args = [
        "--gpus=2",
        "--generator.synthetic.step_ms=60",
        "--log-level=info,fastvideo_supervisor_core=debug",
    ];
    let server = Server::start(&args);
    server.ready(2).await;
    let (mut client, first) = assigned(&server).await;
    let gpu = gpu_of(&first);
    let pid = server.worker_pid(gpu).await;
    let mut segments = vec![client.segment(prompts[0]).await];
    client.prompt(prompts[1]).await;
    client.until_type("ltx2_segment_start").await;
    let rest = client.collect_until("step_complete").await;
    order(&server, gpu, "drain").await;
    let mut segment = client.collect_until("ltx2_segment_complete").await;
    assert_eq!(segment.of("gpu_assigned"), Vec::<&Value>::new());
    assert_eq!(segment.of("error"), Vec::<&Value>::new());
    assert_eq!(rest.media.len(), 0);
    segment
        .texts
        .push(json!({"type": "ltx2_segment_start", "segment_idx": 1}));
    segments.push(segment);
    segments.push(client.segment(prompts[2]).await);
    let moved = segments[2].only("gpu_assigned");
    assert_eq!(moved["gpu_id"], 1 - gpu);
    assert_eq!(segments[2].of("queue_status"), Vec::<&Value>::new());
    check_media(&segments, &undisturbed(&prompts).await);
    drained(&server, gpu, pid).await;
    // The first had no state, the worker of the second held it, and the third went elsewhere.
    let log = server.log();
    let held: Vec<_> = (log.lines())
        .filter_map(|line| Some(line.split_once("state_held=")?.1.starts_with("true")))
        .collect();
    assert_eq!(held, [false, true, false], "{log}");

    order(&server, gpu, "restart").await;
    let back = |gpu: &Value| gpu["ready"] == true;
    let back = server.gpu_until(gpu, "the worker is back", back).await;
    assert_eq!(back["worker_id"], format!("gpu{gpu}-2"));
    assert_eq!(back["restarts"], 0);
}

#[tokio::test]
async fn session_of_the_only_worker_waits_until_that_is_started_again() {
    let prompts = ["a red fox", "a quiet lake"];
    let server = Server::start(&[]);
    let (mut client, _) = assigned(&server).await;
    let pid = server.worker_pid(0).await;
    let mut segments = vec![client.segment(prompts[0]).await];
    order(&server, 0, "drain").await;
    drained(&server, 0, pid).await;
    // In front of those who have not had a worker yet.
    let mut late = server.open(json!({})).await;
    let status = late.expect("queue_status").await;
    assert_eq!(
        (&status["position"], &status["queue_depth"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(server.get("/readyz").await.0, 503);
    client.prompt(prompts[1]).await;
    assert_eq!(client.so_far().await, []);
    order(&server, 0, "restart").await;
    let segment = client.collect_until("ltx2_segment_complete").await;
    assert_eq!(segment.texts[0]["type"], "gpu_assigned");
    assert_eq!(segment.texts[0]["worker_id"], "gpu0-2");
    segments.push(segment);
    check_media(&segments, &undisturbed(&prompts).await);
}

#[tokio::test]
async fn worker_that_is_drained_while_it_starts_leaves_and_comes_back() {
    let server = Server::start(&["--generator.synthetic.load_ms=60000"]);
    let loading = |gpu: &Value| gpu["state"] == "loading";
    server.gpu_until(0, "the worker loads", loading).await;
    let pid = server.worker_pid(0).await;
    order(&server, 0, "drain").await;
    drained(&server, 0, pid).await;
    order(&server, 0, "restart").await;
    let gpu = server.gpu_until(0, "the worker loads", loading).await;
    assert_eq!(gpu["worker_id"], "gpu0-2");
    order(&server, 0, "restart").await;
    let third = |gpu: &Value| gpu["worker_id"] == "gpu0-3";
    let gpu = server.gpu_until(0, "the next worker starts", third).await;
    assert_eq!(gpu["restarts"], 0);
}

#[tokio::test]
async fn segment_that_takes_too_long_for_a_drain_is_begun_again_elsewhere() {
    let args = [
        "--gpus=2",
        "--max-attempts=1",
        "--generator.synthetic.frame_ms=60",
    ];
    let server = Server::start(&args);
    server.ready(2).await;
    let (mut client, first) = assigned(&server).await;
    let gpu = gpu_of(&first);
    let pid = server.worker_pid(gpu).await;
    client.prompt("a red fox").await;
    order(&server, gpu, "drain?deadline_seconds=0.01").await;
    let segment = client.collect_until("ltx2_segment_complete").await;
    assert_eq!(segment.only("gpu_assigned")["gpu_id"], 1 - gpu);
    check_media(&[segment], &undisturbed(&["a red fox"]).await);
    drained(&server, gpu, pid).await;
}

#[tokio::test]
async fn worker_that_serves_is_started_again_after_its_segment() {
    let prompts = ["a red fox", "a quiet lake"];
    let server = Server::start(&["--generator.synthetic.step_ms=60"]);
    let (mut client, _) = assigned(&server).await;
    let pid = server.worker_pid(0).await;
    client.prompt(prompts[0]).await;
    let start = client.until_type("ltx2_segment_start").await;
    order(&server, 0, "restart").await;
    let mut first = client.collect_until("ltx2_segment_complete").await;
    first.texts.push(start);
    let second = client.segment(prompts[1]).await;
    assert_eq!(second.only("gpu_assigned")["worker_id"], "gpu0-2");
    check_media(&[first, second], &undisturbed(&prompts).await);
    assert!(!exists(pid));
    assert_eq!(server.gpu(0).await["restarts"], 0);
}

#[tokio::test]
async fn quarantine_and_back_off_end_when_an_operator_wants_it() {
    let args = [
        "--gpus=2",
        "--streaming.pool.quarantine_after=2",
        "--streaming.pool.quarantine_lift_seconds=600",
        "--generator.synthetic.faults=exit@idle,gpu=0,max_incarnation=2",
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let left = |gpu: &Value| gpu["state"] == "quarantined";
    server.gpu_until(0, "the GPU is left alone", left).await;
    order(&server, 0, "restart").await;
    let back = |gpu: &Value| gpu["ready"] == true;
    let gpu = server.gpu_until(0, "the worker is back", back).await;
    assert_eq!(gpu["worker_id"], "gpu0-3");

    let args = [
        "--streaming.pool.min_backoff_ms=600000",
        "--streaming.pool.max_backoff_ms=600000",
        "--generator.synthetic.faults=exit@idle,max_incarnation=1",
    ];
    let server = Server::start(&args);
    let waits = |gpu: &Value| gpu["state"] == "backing_off";
    server.gpu_until(0, "the worker has died", waits).await;
    order(&server, 0, "drain").await;
    let away = |gpu: &Value| gpu["state"] == "drained";
    server.gpu_until(0, "the worker is drained", away).await;
    order(&server, 0, "restart").await;
    server.gpu_until(0, "the worker is back", back).await;
}

#[tokio::test]
async fn orders_that_make_no_sense_are_refused() {
    let server = Server::start(&[]);
    let check = async |path: &str, code: u16, error: &str| {
        let answer = server.post(path).await;
        assert_eq!(answer.0, code, "{path}: {answer:?}");
        assert_eq!(answer.1["error"]["code"], error, "{path}");
    };
    check("/v1/workers/1/drain", 404, "not_found").await;
    check("/v1/workers/first/restart", 404, "not_found").await;
    check("/v1/workers/0/stop", 404, "not_found").await;
    for deadline in ["soon", "-1", "1e300"] {
        let path = format!("/v1/workers/0/drain?deadline_seconds={deadline}");
        check(&path, 400, "invalid_request").await;
    }
    check("/v1/workers/0/drain?in=5", 400, "invalid_request").await;
    assert_eq!(server.get("/v1/workers/0/drain").await.0, 405);
    server.ready(1).await;
}

#[tokio::test]
async fn worker_is_renewed_after_so_many_segments() {
    let prompts = ["a red fox"; 5];
    let server = Server::start(&["--streaming.pool.recycle_after_segments=2"]);
    let (mut client, first) = assigned(&server).await;
    let mut workers = vec![first["worker_id"].clone()];
    let mut segments = Vec::new();
    for prompt in prompts {
        let segment = client.segment(prompt).await;
        let moved = segment.of("gpu_assigned");
        let worker = moved.first().map(|m| m["worker_id"].clone());
        workers.push(worker.unwrap_or_else(|| workers.last().unwrap().clone()));
        segments.push(segment);
    }
    let expected = ["gpu0-1", "gpu0-1", "gpu0-2", "gpu0-2", "gpu0-3"];
    assert_eq!(workers[1..], expected);
    check_media(&segments, &undisturbed(&prompts).await);
    assert_eq!(server.gpu(0).await["restarts"], 0);
}

#[tokio::test]
async fn worker_is_renewed_without_a_wait_when_the_next_one_is_warm() {
    let args = [
        "--streaming.pool.recycle_after_segments=3",
        "--streaming.pool.recycle_overlap=true",
        "--generator.synthetic.step_ms=10",
        "--generator.synthetic.load_ms=200",
    ];
    let server = Server::start(&args);
    let (mut client, _) = assigned(&server).await;
    let old = server.worker_pid(0).await;
    let mut segments = Vec::new();
    let moved = loop {
        let segment = client.segment("a red fox").await;
        assert_eq!(segment.of("error"), Vec::<&Value>::new());
        assert_eq!(segment.of("queue_status"), Vec::<&Value>::new());
        let gpu = server.gpu(0).await;
        assert_eq!((&gpu["ready"], &gpu["restarts"]), (&json!(true), &json!(0)));
        let moved = segment
            .of("gpu_assigned")
            .first()
            .map(|m| m["worker_id"].clone());
        segments.push(segment);
        if let Some(moved) = moved {
            break moved;
        }
    };
    assert_eq!(moved, "gpu0-2");
    // It served on while the next one loaded.
    assert!(segments.len() > 4, "{}", segments.len());
    assert_ne!(server.worker_pid(0).await, old);
    let left = |gpu: &Value| gpu["last_exit"]["kind"] == "asked";
    server.gpu_until(0, "the old worker has left", left).await;
    assert!(!exists(old));
    let prompts = vec!["a red fox"; segments.len()];
    check_media(&segments, &undisturbed(&prompts).await);
}

/// Starts the real worker, but something else in place of the second process of GPU 0.
fn second_is(something_else: &str) -> Script {
    let supervisor = std::path::PathBuf::from(command().get_program());
    let worker = supervisor.with_file_name("fastvideo-worker");
    Script::new(&format!(
        "[ \"$3\" = gpu0-2 ] && {something_else}\nexec {} \"$@\"",
        worker.display()
    ))
}

#[tokio::test]
async fn worker_that_was_to_follow_does_not_outlive_the_supervisor() {
    let script = second_is("exec sleep 1000");
    let args = [
        "--worker-bin",
        script.path(),
        "--streaming.pool.recycle_after_segments=1",
        "--streaming.pool.recycle_overlap=true",
    ];
    let mut server = Server::start(&args);
    let (mut client, _) = assigned(&server).await;
    client.segment("a red fox").await;
    client.segment("a red fox").await;
    let processes = children(server.pid());
    assert_eq!(processes.len(), 2);
    client.send(json!({"type": "leave"})).await;
    client.closed().await;
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit().await.code(), Some(0));
    for process in processes {
        assert!(!exists(process));
    }
}

#[tokio::test]
async fn what_a_renewed_worker_leaves_running_holds_nothing_up() {
    let supervisor = std::path::PathBuf::from(command().get_program());
    let worker = supervisor.with_file_name("fastvideo-worker");
    let script = Script::new(&format!(
        "[ \"$3\" = gpu0-1 ] && sleep 30 &\nexec {} \"$@\"",
        worker.display()
    ));
    let args = [
        "--worker-bin",
        script.path(),
        "--streaming.pool.recycle_after_segments=1",
        "--streaming.pool.recycle_overlap=true",
    ];
    let mut server = Server::start(&args);
    let (mut client, _) = assigned(&server).await;
    while client
        .segment("a red fox")
        .await
        .of("gpu_assigned")
        .is_empty()
    {}
    let left = |gpu: &Value| gpu["last_exit"]["kind"] == "asked";
    server.gpu_until(0, "the old worker has left", left).await;
    client.send(json!({"type": "leave"})).await;
    client.closed().await;
    let before = Instant::now();
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());
    assert!(before.elapsed().as_secs() < 10);
}

#[tokio::test]
async fn worker_goes_on_when_the_next_one_does_not_become_ready() {
    let script = second_is("exit 7");
    let args = [
        "--worker-bin",
        script.path(),
        "--streaming.pool.recycle_after_segments=1",
        "--streaming.pool.recycle_overlap=true",
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let (mut client, _) = assigned(&server).await;
    let moved = loop {
        let segment = client.segment("a red fox").await;
        assert_eq!(segment.of("error"), Vec::<&Value>::new());
        if let Some(moved) = segment.of("gpu_assigned").first() {
            break moved["worker_id"].clone();
        }
    };
    assert_eq!(moved, "gpu0-3");
    let log = server.log();
    assert!(log.contains("did not become ready"), "{log}");
    assert!(log.contains("exit status 7"), "{log}");
    assert_eq!(server.gpu(0).await["restarts"], 0);
}

#[tokio::test]
async fn worker_that_has_grown_too_large_is_renewed() {
    let args = [
        "--streaming.pool.recycle_above_mib=256",
        "--generator.synthetic.faults=leak@step1,max_incarnation=1",
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let (mut client, _) = assigned(&server).await;
    let first = client.segment("a red fox").await;
    let renewed = |gpu: &Value| gpu["worker_id"] == "gpu0-2" && gpu["ready"] == true;
    let gpu = server.gpu_until(0, "the worker is renewed", renewed).await;
    assert_eq!(gpu["restarts"], 0);
    let second = client.segment("a red fox").await;
    assert_eq!(second.only("gpu_assigned")["worker_id"], "gpu0-2");
    check_media(&[first, second], &undisturbed(&["a red fox"; 2]).await);
}

#[tokio::test]
async fn viewer_that_runs_out_of_video_first_is_served_first() {
    let args = ["--sessions-per-gpu=3", "--generator.synthetic.step_ms=20"];
    let server = Server::start(&args);
    let (mut ahead, _) = assigned(&server).await;
    let (mut busy, _) = assigned(&server).await;
    let (mut fresh, _) = assigned(&server).await;
    // Some seconds of video ahead of its viewer.
    for _ in 0..16 {
        ahead.segment("a red fox").await;
    }
    let slow = json!({
        "type": "segment_prompt_source", "prompt": "a quiet lake", "num_inference_steps": 40,
    });
    busy.send(slow).await;
    busy.until_type("step_complete").await;
    ahead.prompt("a red fox").await;
    ahead.until_type("ltx2_segment_start").await;
    fresh.prompt("a red fox").await;
    let begins = async |client: &mut Client| {
        client.until_type("step_complete").await;
        Instant::now()
    };
    let (ahead, fresh) = tokio::join!(begins(&mut ahead), begins(&mut fresh));
    assert!(fresh < ahead);
}

/// Segments of two seconds that take 0.6 s and a little: enough for two viewers at least, never for four.
const PACED: &[&str] = &[
    "--default_request.sampling.width=64",
    "--default_request.sampling.height=64",
    "--default_request.sampling.num_frames=48",
    "--default_request.sampling.num_inference_steps=4",
    "--generator.synthetic.step_ms=150",
    "--streaming.warmup.width=64",
    "--streaming.warmup.height=64",
    "--sessions-per-gpu=10",
];

#[tokio::test]
async fn shared_worker_takes_the_viewers_that_it_keeps_up_with() {
    let server = Server::start_exactly(PACED);
    let (mut first, _) = assigned(&server).await;
    // How fast it is will be known after the first segment.
    let mut others = Vec::new();
    for position in 0..4 {
        let mut client = server.open(json!({})).await;
        let status = client.expect("queue_status").await;
        assert_eq!(status["position"], position);
        others.push(client);
    }
    first.segment("a red fox").await;
    others[0].until_type("ltx2_stream_start").await;
    let gpu = server.gpu(0).await;
    let admitted = gpu["client_count"].as_u64().unwrap();
    assert!((2..=3).contains(&admitted), "{admitted}");
    assert_eq!(gpu["available"], false);
    drop(first);
    let next = usize::try_from(admitted).unwrap() - 1;
    others[next].until_type("ltx2_stream_start").await;
}

#[tokio::test]
async fn warm_up_tells_how_many_viewers_a_worker_keeps_up_with() {
    let typical = [
        "--streaming.warmup.num_frames=48",
        "--streaming.warmup.num_inference_steps=4",
    ];
    let server = Server::start_exactly(&[PACED, &typical].concat());
    server.ready(1).await;
    let (_first, _) = assigned(&server).await;
    let (_second, _) = assigned(&server).await;
    let mut others = Vec::new();
    for _ in 0..2 {
        let mut client = server.open(json!({})).await;
        client.expect("queue_status").await;
        others.push(client);
    }
    let admitted = server.gpu(0).await["client_count"].as_u64().unwrap();
    assert!((2..=3).contains(&admitted), "{admitted}");
}

#[tokio::test]
async fn segment_that_kills_every_worker_does_not_cost_the_gpu() {
    let args = [
        "--streaming.pool.quarantine_after=2",
        "--max-attempts=5",
        "--generator.synthetic.faults=exit@step1,prompt=poison",
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let (mut client, _) = assigned(&server).await;
    client.prompt("poison").await;
    let error = client.error().await;
    assert_eq!(error["code"], "worker_failed");
    assert_eq!(error["retryable"], false);
    let segment = client.segment("a red fox").await;
    assert_eq!(segment.only("ltx2_segment_start")["segment_idx"], 0);
    let gpu = server.gpu(0).await;
    assert_eq!(gpu["restarts"], 5, "{gpu}");
}
