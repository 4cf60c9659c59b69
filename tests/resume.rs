//! Sessions that outlive their connection: resumed with a token, brought in, exported and ended over HTTP.

use serde_json::{Value, json};

use crate::harness::{Client, Heard, Segment, Server};

const PROMPTS: [&str; 3] = ["a red desert", "a blue ocean", "a fox in the snow"];

/// What a client needs to go on with its session.
fn ticket(assigned: &Value) -> Value {
    json!({"resume": {"session_id": assigned["session_id"], "token": assigned["resume_token"]}})
}

/// Opens a session and waits until it is active. Returns what it is resumed with, too.
pub(crate) async fn open(server: &Server, init: Value) -> (Client, Value) {
    let mut client = server.open(init).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let ticket = ticket(&assigned);
    (client, ticket)
}

/// The media of a session that nothing disturbs.
async fn undisturbed(server: &Server) -> Vec<Vec<u8>> {
    let mut client = server.active(json!({})).await;
    let mut media = Vec::new();
    for prompt in PROMPTS {
        media.push(client.segment(prompt).await.bytes());
    }
    client.send(json!({"type": "leave"})).await;
    assert_eq!(client.closed().await, Some(1000));
    media
}

fn index(segment: &Segment) -> &Value {
    &segment.only("ltx2_segment_complete")["segment_idx"]
}

/// An opening message that is refused, and why.
async fn refused(server: &Server, init: Value) -> (Value, Option<u16>) {
    let mut client = server.open(init).await;
    let error = client.expect("error").await;
    (error, client.closed().await)
}

#[tokio::test]
async fn a_session_goes_on_over_another_connection() {
    let server = Server::start(&["--gpus", "2"]);
    let expected = undisturbed(&server).await;
    let (mut client, ticket) = open(&server, json!({})).await;
    assert_eq!(client.segment(PROMPTS[0]).await.bytes(), expected[0]);
    // Lost in the middle of a segment, which is not finished therefore.
    client.prompt(PROMPTS[1]).await;
    client.until_type("ltx2_segment_start").await;
    drop(client);
    for n in 1..3 {
        let (mut client, again) = open(&server, ticket.clone()).await;
        assert_eq!(again, ticket);
        let segment = client.segment(PROMPTS[n]).await;
        assert_eq!(index(&segment), n);
        assert!(
            segment.bytes() == expected[n],
            "segment {n} has other bytes"
        );
    }
}

#[tokio::test]
async fn a_session_that_was_idle_is_resumed() {
    let expected = undisturbed(&Server::start(&["--gpus", "1"])).await;
    let timeout = "--streaming.session_timeout_seconds=2";
    let server = Server::start(&["--gpus", "1", timeout]);
    let (mut client, ticket) = open(&server, json!({})).await;
    client.segment(PROMPTS[0]).await;
    client.expect("idle_warning").await;
    client.expect("session_timeout").await;
    assert_eq!(client.next().await, Heard::Closed(Some(1000)));
    let mut client = server.open(ticket).await;
    let start = client.until_type("ltx2_stream_start").await;
    assert_eq!(start["next_segment_idx"], 1);
    let segment = client.segment(PROMPTS[1]).await;
    assert_eq!(index(&segment), 1);
    assert!(segment.bytes() == expected[1], "it has other bytes");
}

#[tokio::test]
async fn whoever_resumes_a_session_ends_its_older_connection() {
    let server = Server::start(&["--gpus", "1"]);
    let (mut old, ticket) = open(&server, json!({})).await;
    old.segment(PROMPTS[0]).await;
    // The only worker becomes free by it.
    let (mut new, _) = open(&server, ticket).await;
    let error = old.error().await;
    assert_eq!(error["code"], "session_rejected");
    assert_eq!(error["retryable"], false);
    assert_eq!(old.closed().await, Some(1000));
    assert_eq!(index(&new.segment(PROMPTS[1]).await), 1);
    assert_eq!(server.get("/health").await.1["sessions"], 1);
}

#[tokio::test]
async fn a_session_is_resumed_only_with_its_token_and_while_it_is_there() {
    let server = Server::start(&["--gpus", "1"]);
    let (mut client, ticket) = open(&server, json!({})).await;
    client.segment(PROMPTS[0]).await;
    let id = ticket["resume"]["session_id"].clone();
    let unknown = "0".repeat(32);
    let mut messages = Vec::new();
    for (id, token) in [
        (&id, "0".repeat(64)),
        (&id, String::new()),
        (&json!(unknown), "0".repeat(64)),
    ] {
        let resume = json!({"resume": {"session_id": id, "token": token}});
        let (error, code) = refused(&server, resume).await;
        assert_eq!(error["code"], "session_rejected");
        assert_eq!(code, Some(1003));
        let message = error["message"].as_str().unwrap();
        messages.push(message.replace(id.as_str().unwrap(), "ID"));
    }
    // Who does not know the token does not learn whether there is such a session.
    assert!(messages.iter().all(|m| *m == messages[0]), "{messages:?}");

    let no_id = json!({"resume": {"session_id": "../etc", "token": "t"}});
    let (error, code) = refused(&server, no_id).await;
    assert_eq!(
        (&error["code"], code),
        (&json!("invalid_message"), Some(1003))
    );
    let mut both = ticket.clone();
    both["continuation_state"] = json!({"kind": "ltx2.v1", "payload": {}});
    let (error, _) = refused(&server, both).await;
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("exclude each other")
    );

    // Nothing of that has disturbed the session.
    assert_eq!(index(&client.segment(PROMPTS[1]).await), 1);
    client.send(json!({"type": "leave"})).await;
    assert_eq!(client.closed().await, Some(1000));
    // It has ended, and can be gone on with, until somebody drops it.
    let (mut again, _) = open(&server, ticket.clone()).await;
    assert_eq!(index(&again.segment(PROMPTS[2]).await), 2);
    again.send(json!({"type": "leave"})).await;
    assert_eq!(again.closed().await, Some(1000));
    let path = format!("/v1/sessions/{}", id.as_str().unwrap());
    assert_eq!(server.call("DELETE", &path, None).await.0, 204);
    let (error, _) = refused(&server, ticket).await;
    assert_eq!(error["code"], "session_rejected");
}

#[tokio::test]
async fn sessions_are_listed_and_ended_by_an_operator() {
    let server = Server::start(&["--gpus", "1"]);
    assert_eq!(server.get("/v1/sessions").await.1, json!({"sessions": []}));
    let (mut client, ticket) = open(&server, json!({})).await;
    client.segment(PROMPTS[0]).await;
    let mut queued = server.open(json!({})).await;
    queued.expect("queue_status").await;
    let list = server.get("/v1/sessions").await.1;
    let list = list["sessions"].as_array().unwrap();
    assert_eq!(list.len(), 2);
    let id = ticket["resume"]["session_id"].as_str().unwrap();
    assert_eq!(list[0]["session_id"], id);
    assert_eq!(list[0]["state"], "ACTIVE");
    assert_eq!(list[0]["worker_id"], "gpu0-1");
    assert_eq!(list[0]["segment_idx"], 1);
    assert!(list[0]["age_seconds"].as_f64().unwrap() > 0.0);
    assert!(list[0]["lead_seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(list[1]["state"], "QUEUED");
    assert_eq!(list[1]["worker_id"], Value::Null);

    let path = format!("/v1/sessions/{id}");
    assert_eq!(server.call("DELETE", &path, None).await.0, 204);
    assert_eq!(client.error().await["code"], "session_rejected");
    assert_eq!(client.closed().await, Some(1000));
    queued.until_type("gpu_assigned").await;
    let (code, body) = server.call("DELETE", &path, None).await;
    assert_eq!((code, &body["error"]["code"]), (404, &json!("no_session")));
    assert_eq!(server.get("/v1/sessions/nonsense/state").await.0, 404);
}

#[tokio::test]
async fn a_session_is_moved_by_an_operator_and_its_bytes_stay_the_same() {
    let server = Server::start(&["--gpus", "2", "--generator.synthetic.step_ms", "20"]);
    server.ready(2).await;
    let expected = undisturbed(&server).await;
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    let id = assigned["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}/move");
    client.until_type("ltx2_stream_start").await;
    let mut gpu = assigned["gpu_id"].as_u64().unwrap();
    for (n, expected) in expected.iter().enumerate() {
        client.prompt(PROMPTS[n]).await;
        client.until_type("step_complete").await;
        // Now to the other one, wherever that is; then to one that is named.
        let body = (n > 0).then(|| json!({"gpu_id": 1 - gpu}));
        assert_eq!(server.call("POST", &path, body).await.0, 202);
        let segment = client.collect_until("ltx2_segment_complete").await;
        assert_eq!(index(&segment), n);
        assert!(segment.bytes() == *expected, "segment {n} has other bytes");
        let assigned = client.expect("gpu_assigned").await;
        gpu = 1 - gpu;
        assert_eq!(assigned["gpu_id"], gpu);
        assert_eq!(assigned["session_id"], id);
    }
    let mut other = server.active(json!({})).await;
    let (code, body) = server.call("POST", &path, None).await;
    assert_eq!((code, &body["error"]["code"]), (409, &json!("no_room")));
    let (code, body) = server.call("POST", &path, Some(json!({"gpu_id": 7}))).await;
    assert_eq!((code, &body["error"]["code"]), (400, &json!("no_gpu")));
    let (code, body) = server.call("POST", &path, Some(json!({"gpu": 1}))).await;
    assert_eq!(
        (code, &body["error"]["code"]),
        (400, &json!("invalid_body"))
    );
    let nobody = format!("/v1/sessions/{}/move", "0".repeat(32));
    assert_eq!(server.call("POST", &nobody, None).await.0, 404);
    other.segment(PROMPTS[0]).await;
}

#[tokio::test]
async fn a_state_is_exported_and_brought_in_over_http() {
    let origin = Server::start(&["--gpus", "1"]);
    let expected = undisturbed(&origin).await;
    let (mut client, ticket) = open(&origin, json!({})).await;
    let id = ticket["resume"]["session_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/sessions/{id}/state");
    let (code, body) = origin.get(&path).await;
    assert_eq!((code, &body["error"]["code"]), (404, &json!("no_state")));
    client.segment(PROMPTS[0]).await;
    let (code, state) = origin.get(&format!("{path}?inline=true")).await;
    assert_eq!(code, 200);
    client.send(json!({"type": "snapshot_state"})).await;
    let snapshot = client.expect("continuation_state_snapshot").await;
    assert_eq!(snapshot["state"], state);
    drop(origin);

    let server = Server::start(&["--gpus", "1"]);
    let (code, hydrated) = server
        .call("POST", "/v1/sessions", Some(state.clone()))
        .await;
    assert_eq!(code, 201, "{hydrated}");
    let resume = json!({
        "session_id": hydrated["session_id"], "token": hydrated["resume_token"],
    });
    let (mut client, _) = open(&server, json!({"resume": resume})).await;
    let segment = client.segment(PROMPTS[1]).await;
    // A state from elsewhere brings no place on a time line along.
    assert_eq!(index(&segment), 0);
    assert_eq!(segment.only("media_segment_complete")["pts_base_ms"], 0.0);
    assert!(!expected.is_empty());

    let mut bad = state;
    bad["payload"]["schema_version"] = json!(7);
    let (code, body) = server.call("POST", "/v1/sessions", Some(bad)).await;
    assert_eq!(code, 422);
    assert_eq!(body["error"]["code"], "state_incompatible");
    let (code, body) = server.call("POST", "/v1/sessions", Some(json!([1]))).await;
    assert_eq!(
        (code, &body["error"]["code"]),
        (400, &json!("invalid_body"))
    );
}

#[tokio::test]
async fn large_tensors_of_an_exported_state_are_blobs_of_the_store() {
    let large = &[
        "--gpus",
        "1",
        "--default_request.sampling.width=1280",
        "--default_request.sampling.height=704",
    ];
    let server = Server::start(large);
    let (mut client, ticket) = open(&server, json!({})).await;
    client.segment("confetti and noise, a crowded market").await;
    let id = ticket["resume"]["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}/state");
    let (code, mut state) = server.get(&path).await;
    assert_eq!(code, 200);
    let video = &state["payload"]["video"];
    assert_eq!(video["frame_count"], 9, "{video}");
    assert_eq!(video["blob_id"].as_str().unwrap().len(), 64);
    drop(client);
    server.sessions(0).await;

    let (code, hydrated) = server
        .call("POST", "/v1/sessions", Some(state.clone()))
        .await;
    assert_eq!(code, 201, "{hydrated}");
    let mut client = server.active(json!({"continuation_state": state})).await;
    client.segment("on and on").await;

    state["payload"]["video"]["blob_id"] = json!("f".repeat(64));
    let (code, body) = server
        .call("POST", "/v1/sessions", Some(state.clone()))
        .await;
    assert_eq!(code, 422);
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("not in the store"), "{message}");
    let (error, code) = refused(&server, json!({"continuation_state": state})).await;
    assert_eq!(
        (&error["code"], code),
        (&json!("state_incompatible"), Some(1003))
    );
}

#[tokio::test]
async fn exports_of_one_session_drop_no_other() {
    let server = Server::start(&[
        "--gpus",
        "1",
        "--default_request.sampling.width=1280",
        "--default_request.sampling.height=704",
        "--streaming.store.max_mib=100",
    ]);
    let mut tickets = Vec::new();
    for _ in 0..2 {
        let (mut client, ticket) = open(&server, json!({})).await;
        client.segment("confetti and noise, a crowded market").await;
        tickets.push(ticket);
        drop(client);
        server.sessions(0).await;
    }
    let id = tickets[1]["resume"]["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}/state");
    let (code, first) = server.get(&path).await;
    assert_eq!(code, 200);
    assert!(first["payload"]["video"]["blob_id"].is_string());
    for _ in 0..30 {
        assert_eq!(server.get(&path).await, (200, first.clone()));
    }
    for ticket in tickets {
        let (client, _) = open(&server, ticket).await;
        drop(client);
        server.sessions(0).await;
    }
}

#[tokio::test]
async fn one_address_cannot_take_all_places() {
    let server = Server::start(&["--gpus", "1", "--max-sessions-per-client", "2"]);
    let first = server.active(json!({})).await;
    let mut second = server.open(json!({})).await;
    second.expect("queue_status").await;
    let mut third = server.connect().await;
    let error = third.error().await;
    assert_eq!(error["code"], "session_rejected");
    assert_eq!(error["retryable"], true);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("limit for one address")
    );
    assert_eq!(third.closed().await, Some(1013));
    drop(first);
    second.until_type("gpu_assigned").await;
    server.sessions(1).await;
    let mut fourth = server.open(json!({})).await;
    assert!(matches!(fourth.next().await, Heard::Text(text) if text["type"] == "queue_status"));
}

#[tokio::test]
async fn the_server_drains_when_an_operator_asks_over_http() {
    let mut server = Server::start(&["--gpus", "1"]);
    let mut client = server.active(json!({})).await;
    assert_eq!(server.call("POST", "/v1/drain", None).await.0, 202);
    client.until_type("server_draining").await;
    assert_eq!(client.closed().await, Some(1001));
    assert_eq!(server.exit().await.code(), Some(0));
}

#[tokio::test]
async fn pages_of_other_sites_give_no_orders() {
    let server = Server::start(&["--gpus", "1"]);
    let url = format!("http://{}/v1/drain", server.address);
    let own = format!("http://{}", server.address);
    let order = async |origin: String| {
        let url = url.clone();
        let ordered = move || {
            let request = ureq::post(&url).header("origin", origin);
            let request = request.config().http_status_as_error(false).build();
            request.send_empty().unwrap().status().as_u16()
        };
        tokio::task::spawn_blocking(ordered).await.unwrap()
    };
    assert_eq!(order("https://elsewhere.example".to_owned()).await, 403);
    assert_eq!(order("null".to_owned()).await, 403);
    assert_eq!(server.status().await["draining"], false);
    assert_eq!(order(own).await, 202);
}

#[tokio::test]
async fn a_segment_that_is_not_kept_any_more_is_told_and_counted() {
    let server = Server::start(&[
        "--gpus=1",
        "--default_request.sampling.width=640",
        "--default_request.sampling.height=352",
        "--default_request.sampling.num_frames=48",
        "--default_request.sampling.num_inference_steps=1",
        "--streaming.encoder.jpeg_quality=95",
        "--streaming.recording.max_mib_per_session=1",
    ]);
    let pictures = json!({"stream_mode": "legacy_jpeg"});
    let (mut client, ticket) = open(&server, pictures.clone()).await;
    for prompt in PROMPTS {
        let bytes = client.segment(prompt).await.bytes().len();
        assert!(bytes > 1 << 20, "{bytes} bytes fit into the film");
    }
    drop(client);
    let mut opening = pictures;
    opening["resume"] = ticket["resume"].clone();
    opening["resume"]["have"] = json!({"segments": 1, "messages": 0});
    let (mut again, _) = open(&server, opening).await;
    for idx in 1..3 {
        let error = again.error().await;
        assert_eq!(error["segment_idx"], idx);
        assert_eq!(error["retryable"], false);
    }
    assert_eq!(index(&again.segment(PROMPTS[0]).await), 3);
    assert_eq!(server.status().await["store"]["lost_segments"], 4);
}

#[tokio::test]
async fn a_session_that_is_complete_gives_what_its_client_lacks() {
    let server = Server::start(&["--gpus=1", "--streaming.generation_segment_cap=2"]);
    let (mut client, ticket) = open(&server, json!({})).await;
    client.segment(PROMPTS[0]).await;
    let last = client.segment(PROMPTS[1]).await;
    client.expect("ltx2_stream_complete").await;
    assert_eq!(client.closed().await, Some(1000));
    let again = async |segments: u32, messages: u32| {
        let mut opening = ticket.clone();
        opening["resume"]["have"] = json!({"segments": segments, "messages": messages});
        server.open(opening).await
    };
    // It had one message of the last segment when its connection was lost.
    let mut client = again(1, 1).await;
    let sent_again = client.collect_until("ltx2_segment_complete").await;
    assert_eq!(sent_again.only("ltx2_segment_start")["replayed"], true);
    assert!(sent_again.bytes() == last.media[1..].concat());
    let complete = client.expect("ltx2_stream_complete").await;
    assert_eq!(complete["reason"], "segment_cap");
    assert_eq!(client.closed().await, Some(1000));
    // It had everything but the last word.
    let mut client = again(2, 0).await;
    client.until_type("ltx2_stream_complete").await;
    assert_eq!(client.closed().await, Some(1000));
    // One that does not say what it has wants to go on.
    let (error, code) = refused(&server, ticket).await;
    assert_eq!(
        (&error["code"], code),
        (&json!("session_rejected"), Some(1003))
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("complete with 2 segments"), "{message}");
}

#[tokio::test]
async fn a_single_clip_that_is_complete_gives_what_its_client_lacks() {
    let server = Server::start(&["--gpus=1"]);
    let single = json!({"single_clip_mode": true});
    let (mut client, ticket) = open(&server, single.clone()).await;
    let made = client.segment(PROMPTS[0]).await;
    assert_eq!(client.closed().await, Some(1000));
    let mut opening = single;
    opening["resume"] = ticket["resume"].clone();
    opening["resume"]["have"] = json!({"segments": 0, "messages": 2});
    let mut again = server.open(opening).await;
    let sent_again = again.collect_until("ltx2_segment_complete").await;
    assert_eq!(sent_again.bytes(), made.media[2..].concat());
    again.expect("ltx2_stream_complete").await;
    assert_eq!(again.closed().await, Some(1000));
}
