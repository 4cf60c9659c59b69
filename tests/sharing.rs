//! Several sessions on one worker: one segment after the other, and none of them waits for another's client.

use std::cell::Cell;

use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Client, Heard, Server, WATCHFUL, until};

/// The number of segments of each session that meets dying workers.
const SEGMENTS: usize = 4;
/// The largest number of workers that are killed.
const KILLS: u32 = 20;

async fn sessions(server: &Server, count: usize) -> Vec<Client> {
    join_all((0..count).map(|_| server.active(json!({})))).await
}

#[tokio::test]
async fn segments_run_in_order_of_request_one_after_the_other() {
    let args = ["--sessions-per-gpu=3", "--generator.synthetic.step_ms=40"];
    let server = Server::start(&args);
    let mut clients = sessions(&server, 3).await;
    let gpu = server.gpu(0).await;
    assert_eq!(
        (&gpu["client_count"], &gpu["available"]),
        (&json!(3), &json!(false))
    );
    for idx in 0..2 {
        for client in &mut clients {
            client.prompt("a red fox").await;
            let start = client.until_type("ltx2_segment_start").await;
            assert_eq!(start["segment_idx"], idx);
        }
        let mut order = Vec::new();
        let [a, b, c] = &mut clients[..] else {
            panic!()
        };
        let mut open = [true; 3];
        while open.contains(&true) {
            // What has arrived at once is looked at in the order that is right.
            let (n, heard) = tokio::select! {
                biased;
                heard = a.next(), if open[0] => (0, heard),
                heard = b.next(), if open[1] => (1, heard),
                heard = c.next(), if open[2] => (2, heard),
            };
            if let Heard::Text(text) = heard {
                match text["type"].as_str().unwrap() {
                    "step_complete" => order.push((n, text["step"].as_u64().unwrap())),
                    "ltx2_segment_complete" => open[n] = false,
                    _ => {}
                }
            }
        }
        let steps = (0..3).flat_map(|n| (1..=4).map(move |step| (n, step)));
        assert_eq!(order, steps.collect::<Vec<_>>());
    }
    assert_eq!(server.gpu(0).await["segments_finished"], 6);
}

#[tokio::test]
async fn session_that_waits_for_its_turn_is_cancelled_at_once() {
    let args = [
        "--sessions-per-gpu=3",
        "--generator.synthetic.step_ms=60000",
        "--streaming.warmup.enabled=false",
    ];
    let server = Server::start(&args);
    let mut clients = sessions(&server, 3).await;
    for client in &mut clients {
        client.prompt("a red fox").await;
        client.until_type("ltx2_segment_start").await;
    }
    clients[1].send(json!({"type": "cancel_segment"})).await;
    clients[1].until_type("segment_cancelled").await;
    clients[2].send(json!({"type": "leave"})).await;
    assert_eq!(clients[2].closed().await, Some(1000));
    assert_eq!(server.gpu(0).await["client_count"], 2);
    assert_eq!(server.gpu(0).await["state"], "busy");
}

#[tokio::test]
async fn client_that_does_not_read_is_closed_and_disturbs_nobody() {
    let args = [
        "--sessions-per-gpu=3",
        "--default_request.sampling.width=320",
        "--default_request.sampling.height=240",
        "--streaming.encoder.crf=0",
        "--streaming.limits.max_unsent_bytes=65536",
        "--streaming.limits.slow_client_timeout_seconds=1",
    ];
    let server = Server::start(&args);
    let curated = json!({"curated_prompts": ["a red fox"], "loop_generation_enabled": true});
    let mut deaf = server.active(curated).await;
    let mut others = sessions(&server, 2).await;
    let closed = Cell::new(false);
    let serve = async {
        while !closed.get() {
            for client in &mut others {
                let segment = client.segment("a quiet lake").await;
                assert_eq!(segment.of("error").len(), 0);
            }
        }
    };
    let watch = async {
        server.sessions(2).await;
        closed.set(true);
    };
    tokio::join!(serve, watch);
    assert_eq!(deaf.closed().await, Some(1008));
    assert_eq!(server.gpu(0).await["restarts"], 0);
}

#[tokio::test]
async fn lost_worker_s_sessions_all_go_on() {
    for gpus in ["--gpus=1", "--gpus=2"] {
        let args = [
            gpus,
            "--sessions-per-gpu=3",
            "--generator.synthetic.step_ms=60",
        ];
        let server = Server::start(&[WATCHFUL, &args].concat());
        let mut clients = Vec::new();
        let mut first = Vec::new();
        for _ in 0..3 {
            let mut client = server.open(json!({})).await;
            let assigned = client.until_type("gpu_assigned").await;
            first.push(assigned["worker_id"].clone());
            client.until_type("ltx2_stream_start").await;
            client.prompt("a red fox").await;
            client.until_type("ltx2_segment_start").await;
            clients.push(client);
        }
        clients[0].until_type("step_complete").await;
        let lost = first[0].clone();
        let gpu = u32::from(lost == "gpu1-1");
        kill(server.worker_pid(gpu).await, Signal::SIGKILL).unwrap();
        for (client, worker) in clients.iter_mut().zip(&first) {
            let segment = client.collect_until("ltx2_segment_complete").await;
            assert_eq!(segment.of("error").len(), 0);
            assert_eq!(segment.of("ltx2_segment_start").len(), 0);
            assert_eq!(
                segment
                    .of("step_complete")
                    .iter()
                    .filter(|m| m["step"] == 4)
                    .count(),
                1
            );
            let moved = segment.of("gpu_assigned");
            assert_eq!(moved.len(), usize::from(*worker == lost), "{moved:?}");
        }
    }
}

#[tokio::test]
async fn no_segment_is_lost_however_often_workers_are() {
    let args = [
        "--gpus=2",
        "--sessions-per-gpu=3",
        "--max-attempts=100",
        "--generator.synthetic.step_ms=5",
        "--generator.synthetic.frame_ms=5",
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let expected = {
        let server = Server::start(&[]);
        let mut client = server.active(json!({})).await;
        let mut media = Vec::new();
        for _ in 0..SEGMENTS {
            media.push(client.segment("a red fox").await.media);
        }
        media
    };
    // Every so many messages that any client hears, one worker dies: in all phases of all segments.
    let heard = Cell::new(0_u32);
    let watch_all = (0..5).map(async |_| {
        let mut client = server.active(json!({})).await;
        for expected in &expected {
            client.prompt("a red fox").await;
            let mut media = Vec::new();
            loop {
                match client.next().await {
                    Heard::Media(bytes) => media.push(bytes),
                    Heard::Text(text) if text["type"] == "ltx2_segment_complete" => break,
                    Heard::Text(text) => assert_ne!(text["type"], "error", "{text}"),
                    Heard::Closed(code) => panic!("closed with {code:?}"),
                }
                heard.set(heard.get() + 1);
                if heard.get().is_multiple_of(17) && heard.get() < 17 * KILLS {
                    let pid = server.gpu(heard.get() % 2).await["pid"].as_i64();
                    if let Some(pid) = pid {
                        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
                        // It may have gone meanwhile.
                        let _ = kill(pid, Signal::SIGKILL);
                    }
                }
            }
            assert!(media == *expected, "a segment is not what it should be");
        }
    });
    join_all(watch_all).await;
    let status = server.status().await;
    let gpus = status["gpu_status"].as_object().unwrap().values();
    let restarts: u64 = gpus.map(|gpu| gpu["restarts"].as_u64().unwrap()).sum();
    assert!(restarts > 5, "{restarts}");
}

#[tokio::test]
async fn place_of_a_client_that_goes_away_is_taken_by_the_next_in_line() {
    let args = [
        "--sessions-per-gpu=2",
        "--generator.synthetic.step_ms=30",
        "--default_request.sampling.num_inference_steps=1000",
        "--streaming.limits.max_inference_steps=1000",
    ];
    let server = Server::start(&args);
    let mut clients = sessions(&server, 2).await;
    let mut next = server.open(json!({})).await;
    assert_eq!(next.expect("queue_status").await["position"], 0);
    for client in &mut clients {
        client.prompt("a red fox").await;
        client.until_type("ltx2_segment_start").await;
    }
    clients[0].until_type("step_complete").await;
    drop(clients.remove(0));
    next.until_type("ltx2_stream_start").await;
    // The worker is free for the one who waited for its turn.
    clients[0].until_type("step_complete").await;
    until("two sessions are left", async || {
        (server.gpu(0).await["client_count"] == 2).then_some(())
    })
    .await;
}
