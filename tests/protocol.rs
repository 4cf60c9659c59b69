//! From the connection to the first segment: the handshake, the queue, and who is turned away.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::harness::{Client, Heard, Server};

/// `queue_status` as a client in the queue gets it.
fn queued(position: u64, queue_depth: u64) -> Value {
    json!({"type": "queue_status", "position": position, "queue_depth": queue_depth})
}

#[tokio::test]
async fn a_free_worker_is_bound_at_once() {
    let server = Server::start(&["--gpus", "1"]);
    server.ready(1).await;
    let mut client = server.open(json!({"preset": "sunset"})).await;
    assert_eq!(client.expect("queue_status").await, queued(0, 0));
    let assigned = client.expect("gpu_assigned").await;
    let name = |field: &str| {
        let name = assigned[field].as_str().unwrap();
        assert!(!name.is_empty());
        name
    };
    assert_eq!(
        assigned,
        json!({
            "type": "gpu_assigned", "gpu_id": 0, "session_timeout": 300, "session_id": name("session_id"),
            "resume_token": name("resume_token"), "watch_token": name("watch_token"), "worker_id": name("worker_id"), "model_id": "synthetic",
        })
    );
    assert_eq!(
        client.expect("ltx2_stream_start").await,
        json!({
            "type": "ltx2_stream_start", "preset": "sunset", "width": 128, "height": 96, "fps": 24, "num_frames": 12,
            "generation_segment_cap": 1000, "next_segment_idx": 0, "features": {
                "enhancement": false, "auto_extension": false, "rewrite": false, "safety": false, "audio": true,
                "preview": false,
            },
            "limits": {
                "max_message_bytes": 48 << 20, "max_prompt_chars": 4000, "max_waiting_requests": 8,
                "max_inference_steps": 200, "max_guidance_scale": 100.0, "opening_timeout_seconds": 30,
                "slow_client_timeout_seconds": 30, "hold_seconds": 0, "recording": true,
                "max_cap_extensions": 0,
            },
        })
    );
    assert_eq!(client.so_far().await, []);
}

#[tokio::test]
async fn a_session_without_sound_says_so() {
    let server = Server::start(&["--gpus", "1"]);
    let mut client = server.open(json!({"stream_mode": "legacy_jpeg"})).await;
    let start = client.until_type("ltx2_stream_start").await;
    assert_eq!(start["features"]["audio"], false);
    assert_eq!(start.get("preset"), None);
}

#[tokio::test]
async fn those_who_wait_move_up_in_order_of_arrival() {
    let server = Server::start(&["--gpus", "1"]);
    let mut active = server.active(json!({})).await;
    let mut first = server.open(json!({})).await;
    assert_eq!(first.expect("queue_status").await, queued(0, 1));
    let mut second = server.open(json!({})).await;
    assert_eq!(second.expect("queue_status").await, queued(1, 2));
    let mut third = server.open(json!({})).await;
    assert_eq!(third.expect("queue_status").await, queued(2, 3));
    assert_eq!(server.status().await["queue_size"], 3);

    second.send(json!({"type": "leave"})).await;
    assert_eq!(third.expect("queue_status").await, queued(1, 2));
    assert_eq!(second.closed().await, Some(1000));
    assert_eq!(first.so_far().await, [], "nothing changed for the first");

    drop(first);
    assert_eq!(third.expect("queue_status").await, queued(0, 1));

    active.send(json!({"type": "leave"})).await;
    third.expect("gpu_assigned").await;
    third.expect("ltx2_stream_start").await;
    assert_eq!(server.status().await["queue_size"], 0);
}

#[tokio::test]
async fn a_request_made_while_waiting_runs_once_a_worker_is_bound() {
    let server = Server::start(&["--gpus", "1"]);
    let mut active = server.active(json!({})).await;
    let mut waiting = server.open(json!({})).await;
    waiting.prompt("a heron").await;
    let heard = waiting.so_far().await;
    assert_eq!(heard, [Heard::Text(queued(0, 1))]);
    active.send(json!({"type": "leave"})).await;
    waiting.expect("gpu_assigned").await;
    waiting.expect("ltx2_stream_start").await;
    let segment = waiting.collect_until("ltx2_segment_complete").await;
    assert_eq!(segment.only("ltx2_segment_start")["prompt"], "a heron");
}

#[tokio::test]
async fn sessions_share_a_gpu_when_the_operator_says_so() {
    let server = Server::start(&["--gpus", "1", "--sessions-per-gpu", "2"]);
    let mut one = server.active(json!({})).await;
    let mut other = server.active(json!({})).await;
    let mut third = server.open(json!({})).await;
    assert_eq!(third.expect("queue_status").await, queued(0, 1));
    one.prompt("a hill").await;
    other.prompt("a lake").await;
    one.collect_until("ltx2_segment_complete").await;
    other.collect_until("ltx2_segment_complete").await;
}

#[tokio::test]
async fn a_session_above_the_limit_is_turned_away_and_the_place_is_free_again_later() {
    let server = Server::start(&["--gpus", "1", "--max-sessions", "2"]);
    let mut active = server.active(json!({})).await;
    let mut waiting = server.open(json!({})).await;
    waiting.expect("queue_status").await;

    let mut refused = server.connect().await;
    let error = refused.expect("error").await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("session_rejected"), &json!(true))
    );
    assert!(error["message"].as_str().unwrap().contains('2'), "{error}");
    assert_eq!(refused.next().await, Heard::Closed(Some(1013)));

    active.send(json!({"type": "leave"})).await;
    assert_eq!(active.closed().await, Some(1000));
    server.sessions(1).await;
    let mut later = server.open(json!({})).await;
    later.expect("queue_status").await;
}

/// Sends a first message that is no opening, and returns what the error says.
async fn refused_opening(client: &mut Client) -> String {
    let error = client.expect("error").await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("invalid_message"), &json!(false)),
        "{error}"
    );
    assert_eq!(client.next().await, Heard::Closed(Some(1003)));
    error["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_bad_opening_message_is_named_and_ends_the_connection() {
    let server = Server::start(&["--gpus", "1"]);
    let too_many =
        json!({"type": "session_init_v2", "curated_prompts": vec!["a"; 257]}).to_string();
    for (text, expected) in [
        ("", "not a JSON object"),
        ("{\"type\":", "EOF"),
        ("[{\"type\":\"session_init_v2\"}]", "not a JSON object"),
        ("[\"session_init_v2\"]", "not a JSON object"),
        ("{}", "missing field `type`"),
        ("{\"type\":\"session_init\"}", "`session_init`"),
        ("{\"type\":\"leave\"}", "must be a session_init_v2"),
        (
            "{\"type\":\"segment_prompt_source\",\"prompt\":\"a\"}",
            "must be a session_init_v2",
        ),
        (
            "{\"type\":\"session_init_v2\",\"curated_prompts\":\"a\"}",
            "curated_prompts",
        ),
        (
            "{\"type\":\"session_init_v2\",\"curated_prompts\":[\"a\",\" \"]}",
            "`curated_prompts` is empty",
        ),
        (
            "{\"type\":\"session_init_v2\",\"stream_mode\":\"vhs\"}",
            "stream_mode",
        ),
        (
            "{\"type\":\"session_init_v2\",\"single_clip_mode\":1}",
            "single_clip_mode",
        ),
        (
            "{\"type\":\"session_init_v2\",\"continuation_state\":{}}",
            "continuation_state",
        ),
        (&too_many, "257"),
    ] {
        let mut client = server.connect().await;
        client.send_text(text).await;
        let said = refused_opening(&mut client).await;
        assert!(said.contains(expected), "{text:.80}: {said}");
    }
    let mut client = server.connect().await;
    client.send_binary(b"session_init_v2").await;
    assert!(refused_opening(&mut client).await.contains("binary"));
    server.sessions(0).await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_dismissed() {
    let server = Server::start(&[
        "--gpus",
        "1",
        "--streaming.limits.opening_timeout_seconds",
        "1",
    ]);
    let mut client = server.connect().await;
    assert_eq!(
        client.next().await,
        Heard::Text(json!({"type": "session_timeout", "timeout_seconds": 1}))
    );
    assert_eq!(client.next().await, Heard::Closed(Some(1000)));
    server.sessions(0).await;
}

#[tokio::test]
async fn a_fault_of_the_server_while_a_session_opens_is_not_called_the_clients() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), &["--gpus", "1"]);
    server.ready(1).await;
    // There is no place to keep the image any more.
    dir.close().unwrap();
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(64, 64)
        .write_to(&mut png, image::ImageFormat::Png)
        .unwrap();
    let data = BASE64.encode(png.into_inner());
    let initial_image = json!({"mime": "image/png", "name": "a.png", "data": data});
    let mut client = server.open(json!({"initial_image": initial_image})).await;
    let error = client.expect("error").await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("internal_error"), &json!(true))
    );
    assert_eq!(client.next().await, Heard::Closed(Some(1011)));
}
