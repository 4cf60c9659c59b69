//! The end of a server: sessions are told, the segment in hand is finished, and nothing is left behind.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Heard, Server, WATCHFUL, exists, until};

/// Waits for the exit, which must be a success and leave none of these processes.
async fn ended(mut server: Server, workers: &[Pid]) -> Server {
    let status = server.exit().await;
    assert_eq!(status.code(), Some(0), "{status}\n{}", server.log());
    for &worker in workers {
        assert!(!exists(worker));
    }
    server
}

#[tokio::test]
async fn running_segment_is_finished_and_nothing_new_begins() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let args = ["--grace-seconds=40", "--generator.synthetic.step_ms=200"];
        let server = Server::start(&args);
        let mut client = server.active(json!({})).await;
        let worker = server.worker_pid(0).await;
        let mut queued = server.open(json!({})).await;
        queued.expect("queue_status").await;
        client.prompt("a red fox").await;
        client.prompt("never begun").await;
        client.until_type("step_complete").await;
        server.signal(signal);

        let draining = client.until_type("server_draining").await;
        let deadline = draining["deadline_seconds"].as_u64().unwrap();
        assert!((1..=40).contains(&deadline), "{deadline}");
        assert_eq!(queued.closed().await, Some(1001));
        assert_eq!(server.get("/healthz").await.0, 200);
        let (code, readyz) = server.get("/readyz").await;
        assert_eq!((code, &readyz["status"]), (503, &json!("draining")));
        assert_eq!(server.status().await["draining"], true);
        let mut late = server.connect().await;
        let error = late.error().await;
        assert_eq!(error["code"], "session_rejected");
        assert_eq!(error["retryable"], true);
        assert_eq!(late.closed().await, Some(1001));

        client.prompt("too late").await;
        let error = client.error().await;
        assert_eq!(error["code"], "session_rejected");
        client.until_type("ltx2_segment_complete").await;
        let rest = client.collect_until("ltx2_stream_complete").await;
        assert_eq!(rest.texts.len(), 1, "{:?}", rest.texts);
        assert_eq!(
            rest.only("ltx2_stream_complete")["reason"],
            "stop_requested"
        );
        assert_eq!(client.closed().await, Some(1001));
        ended(server, &[worker]).await;
    }
}

#[tokio::test]
async fn idle_session_can_take_its_state_along() {
    let server = Server::start(&[]);
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;
    server.signal(Signal::SIGTERM);
    client.until_type("server_draining").await;
    client.send(json!({"type": "snapshot_state"})).await;
    let snapshot = client.until_type("continuation_state_snapshot").await;
    assert_eq!(snapshot["state"]["kind"], "ltx2.v1");
    assert_eq!(client.closed().await, Some(1001));
    ended(server, &[]).await;
}

#[tokio::test]
async fn sessions_that_are_not_open_yet_are_closed() {
    let server = Server::start(&[]);
    let mut silent = server.connect().await;
    // It does not count as a session before it is open.
    server.sessions(0).await;
    server.signal(Signal::SIGTERM);
    assert_eq!(silent.closed().await, Some(1001));
    ended(server, &[]).await;
}

#[tokio::test]
async fn segment_that_takes_longer_than_the_grace_period_is_ended() {
    let args = [
        "--grace-seconds=1",
        "--generator.synthetic.step_ms=60000",
        "--streaming.warmup.enabled=false",
    ];
    let server = Server::start(&args);
    let mut client = server.active(json!({})).await;
    let worker = server.worker_pid(0).await;
    client.prompt("a red fox").await;
    client.until_type("ltx2_segment_start").await;
    let before = Instant::now();
    server.signal(Signal::SIGTERM);
    let draining = client.until_type("server_draining").await;
    assert_eq!(draining["deadline_seconds"], 1);
    client.until_type("ltx2_stream_complete").await;
    assert_eq!(client.closed().await, Some(1001));
    assert!(before.elapsed() >= Duration::from_millis(900));
    ended(server, &[worker]).await;
}

#[tokio::test]
async fn second_signal_ends_everything_at_once() {
    let args = [
        "--gpus=3",
        "--streaming.pool.heartbeat_timeout_ms=600000",
        "--streaming.warmup.enabled=false",
        "--generator.synthetic.step_ms=60000",
        "--generator.synthetic.faults=spin@step1,prompt=spin;stop@step1,prompt=stop",
    ];
    for signals in [
        [Signal::SIGTERM, Signal::SIGTERM],
        [Signal::SIGTERM, Signal::SIGINT],
    ] {
        let server = Server::start(&args);
        server.ready(3).await;
        let mut clients = Vec::new();
        let mut workers = Vec::new();
        for (gpu, prompt) in (0..).zip(["spin", "stop", "a red fox"]) {
            let mut client = server.active(json!({})).await;
            client.prompt(prompt).await;
            client.until_type("ltx2_segment_start").await;
            workers.push(server.worker_pid(gpu).await);
            clients.push(client);
        }
        until("both faults are injected", async || {
            (server.log().matches("injecting a fault").count() == 2).then_some(())
        })
        .await;
        server.signal(signals[0]);
        for client in &mut clients {
            client.until_type("server_draining").await;
        }
        let before = Instant::now();
        server.signal(signals[1]);
        for client in &mut clients {
            assert_eq!(client.closed().await, Some(1001));
        }
        ended(server, &workers).await;
        // A stopped worker that is asked first takes four seconds.
        assert!(
            before.elapsed() < Duration::from_secs(3),
            "{:?}",
            before.elapsed()
        );
    }
}

#[tokio::test]
async fn second_signal_needs_no_client_to_be_quick() {
    let server = Server::start(&["--streaming.pool.heartbeat_timeout_ms=600000"]);
    server.ready(1).await;
    let worker = server.worker_pid(0).await;
    kill(worker, Signal::SIGSTOP).unwrap();
    let before = Instant::now();
    server.signal(Signal::SIGTERM);
    until("the drain is seen", async || {
        server.log().contains("draining").then_some(())
    })
    .await;
    server.signal(Signal::SIGTERM);
    ended(server, &[worker]).await;
    assert!(
        before.elapsed() < Duration::from_secs(3),
        "{:?}",
        before.elapsed()
    );
}

#[tokio::test]
async fn worker_that_does_not_leave_is_made_to() {
    let server = Server::start(&["--streaming.pool.heartbeat_timeout_ms=600000"]);
    server.ready(1).await;
    let worker = server.worker_pid(0).await;
    kill(worker, Signal::SIGSTOP).unwrap();
    server.signal(Signal::SIGTERM);
    ended(server, &[worker]).await;
}

#[tokio::test]
async fn server_without_sessions_ends_in_any_phase_of_its_workers() {
    let check = async |args: &[&str], reached: &str| {
        let server = Server::start(args);
        let there = |gpu: &Value| gpu["state"] == reached;
        let gpu = server.gpu_until(0, "the worker is so far", there).await;
        let worker = gpu["pid"]
            .as_i64()
            .map(|pid| Pid::from_raw(i32::try_from(pid).unwrap()));
        let before = Instant::now();
        server.signal(Signal::SIGTERM);
        let server = ended(server, worker.as_slice()).await;
        assert!(before.elapsed() < Duration::from_secs(3), "{reached}");
        assert!(
            !server.log().contains("ERROR programming"),
            "{}",
            server.log()
        );
        assert!(!server.log().contains("left as it is"), "{}", server.log());
    };
    check(&["--generator.synthetic.load_ms=60000"], "loading").await;
    check(&["--generator.synthetic.step_ms=60000"], "warming_up").await;
    check(&[], "ready").await;
    let failing = [
        "--worker-bin=/bin/false",
        "--streaming.pool.min_backoff_ms=60000",
    ];
    check(&failing, "backing_off").await;
    let given_up = [
        "--worker-bin=/bin/false",
        "--streaming.pool.quarantine_after=1",
    ];
    check(&given_up, "quarantined").await;
}

#[tokio::test]
async fn segment_whose_worker_dies_is_still_finished() {
    let args = [
        "--grace-seconds=40",
        "--generator.synthetic.step_ms=50",
        "--generator.synthetic.frame_ms=50",
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let mut client = server.active(json!({})).await;
    client.prompt("a red fox").await;
    client.until_type("media_init").await;
    server.signal(Signal::SIGTERM);
    client.until_type("server_draining").await;
    kill(server.worker_pid(0).await, Signal::SIGKILL).unwrap();
    client.until_type("ltx2_segment_complete").await;
    assert_eq!(client.closed().await, Some(1001));
    ended(server, &[]).await;
}

#[tokio::test]
async fn client_that_never_answers_holds_nothing_up() {
    let server = Server::start(&["--grace-seconds=1"]);
    let _nobody = TcpStream::connect(&server.address).unwrap();
    let mut silent = server.active(json!({})).await;
    silent.prompt("a red fox").await;
    server.signal(Signal::SIGTERM);
    let server = ended(server, &[]).await;
    drop(server);
    while !matches!(silent.next().await, Heard::Closed(_)) {}
}
