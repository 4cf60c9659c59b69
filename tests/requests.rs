//! Requests that have a name: their answers, and what a client may still change while they wait.

use serde_json::{Value, json};

use crate::harness::{Client, Heard, Server, WATCHFUL, merge};
use crate::prompts;
use crate::provider::{Provider, Reply};

/// Asks for a segment under a name.
async fn request(client: &mut Client, id: &str, fields: Value) {
    let mut message = json!({"type": "segment_prompt_source", "request_id": id, "prompt": id});
    merge(&mut message, fields);
    client.send(message).await;
}

async fn pause(client: &mut Client, paused: bool) {
    client
        .send(json!({"type": "generation_paused_updated", "paused": paused}))
        .await;
}

/// The prompts of the next segments, in order.
async fn shown(client: &mut Client, segments: usize) -> Vec<String> {
    let mut prompts = Vec::new();
    for _ in 0..segments {
        let segment = client.collect_until("ltx2_segment_complete").await;
        let start = segment.only("ltx2_segment_start");
        prompts.push(start["prompt"].as_str().unwrap().to_owned());
    }
    prompts
}

#[tokio::test]
async fn every_answer_names_the_request_that_it_answers() {
    let server = Server::start(&["--gpus", "1"]);
    let mut client = server.active(json!({})).await;
    request(&mut client, "good", json!({})).await;
    request(&mut client, "bad", json!({"guidance_scale": -1})).await;
    request(&mut client, "worse", json!({"seed": "ten"})).await;
    client
        .send(json!({"type": "snapshot_state", "request_id": "too soon"}))
        .await;
    let segment = client.collect_until("ltx2_segment_complete").await;
    for kind in ["ltx2_segment_start", "ltx2_segment_complete"] {
        assert_eq!(segment.only(kind)["request_id"], "good", "{kind}");
    }
    let refused: Vec<_> = (segment.of("error").into_iter())
        .map(|error| (error["request_id"].clone(), error["retryable"].clone()))
        .collect();
    let expected = ["bad", "worse", "too soon"].map(|id| (json!(id), json!(false)));
    assert_eq!(refused, expected);

    client
        .send(json!({"type": "snapshot_state", "request_id": "now"}))
        .await;
    let snapshot = client.expect("continuation_state_snapshot").await;
    assert_eq!(snapshot["request_id"], "now");
    client.prompt("without a name").await;
    let nameless = client.collect_until("ltx2_segment_complete").await;
    for text in nameless.texts {
        assert_eq!(text.get("request_id"), None, "{text}");
    }
}

#[tokio::test]
async fn answers_of_language_models_and_ends_of_segments_name_their_request() {
    let provider = Provider::start(|_, asked| match asked.user() {
        "unanswered" => Reply::Status(500),
        prompt => Reply::Say(prompt.to_uppercase()),
    })
    .await;
    let args = prompts::with(
        &provider,
        &[
            "--generator.synthetic.step_ms=20",
            "--generator.synthetic.faults=error@step2,prompt=failed;blank@frame0,prompt=restarted,max_attempt=1;exit@frame9,prompt=restarted,max_attempt=1",
        ],
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let server = Server::start(&[WATCHFUL, &args].concat());
    let mut client = server.active(json!({"enhancement_enabled": true})).await;

    request(&mut client, "answered", json!({})).await;
    let enhanced = client.expect("prompt_enhanced").await;
    assert_eq!(enhanced["request_id"], "answered");
    client.until_type("ltx2_segment_complete").await;
    request(&mut client, "unanswered", json!({})).await;
    let fallback = client.expect("prompt_fallback").await;
    assert_eq!(fallback["request_id"], "unanswered");
    client.until_type("ltx2_segment_complete").await;
    let rewrite = json!({
        "type": "rewrite_seed_prompts", "request_id": "rewritten", "seed_prompt": "a fox", "count": 1,
    });
    client.send(rewrite).await;
    let rewritten = client.expect("seed_prompts_rewritten").await;
    assert_eq!(rewritten["request_id"], "rewritten");

    client
        .send(json!({"type": "enhancement_updated", "enabled": false}))
        .await;
    let long = json!({"num_inference_steps": 200});
    request(&mut client, "cancelled", long).await;
    client.until_type("step_complete").await;
    client.send(json!({"type": "cancel_segment"})).await;
    let cancelled = client.until_type("segment_cancelled").await;
    assert_eq!(cancelled["request_id"], "cancelled");
    request(&mut client, "failed", json!({})).await;
    let failed = client.error().await;
    assert_eq!(
        (&failed["request_id"], &failed["restarting"]),
        (&json!("failed"), &Value::Null)
    );
    request(&mut client, "restarted", json!({})).await;
    let restarted = client.error().await;
    assert_eq!(
        (&restarted["request_id"], &restarted["restarting"]),
        (&json!("restarted"), &json!(true))
    );
    let again = client.collect_until("ltx2_segment_complete").await;
    for kind in ["ltx2_segment_start", "ltx2_segment_complete"] {
        assert_eq!(again.only(kind)["request_id"], "restarted", "{kind}");
    }
}

#[tokio::test]
async fn a_request_that_waits_can_be_withdrawn_changed_and_moved() {
    let server = Server::start(&["--gpus", "1"]);
    let mut client = server.active(json!({})).await;
    pause(&mut client, true).await;
    for id in ["a", "b", "c", "d"] {
        request(&mut client, id, json!({})).await;
    }
    let edit = |id: &str, fields: Value| {
        let mut message = json!({"type": "edit_request", "request_id": id});
        merge(&mut message, fields);
        message
    };
    let edited = |id: &str, position: u32| {
        Heard::Text(json!({"type": "request_edited", "request_id": id, "position": position}))
    };
    client
        .send(json!({"type": "withdraw_request", "request_id": "b"}))
        .await;
    let withdrawn = json!({"type": "request_withdrawn", "request_id": "b"});
    assert_eq!(client.next().await, Heard::Text(withdrawn));
    client.send(edit("a", json!({"prompt": "A"}))).await;
    assert_eq!(client.next().await, edited("a", 0));
    client.send(edit("d", json!({"position": 0}))).await;
    assert_eq!(client.next().await, edited("d", 0));
    client
        .send(edit("a", json!({"position": 99, "prompt": "A again"})))
        .await;
    assert_eq!(client.next().await, edited("a", 2));
    pause(&mut client, false).await;
    assert_eq!(shown(&mut client, 3).await, ["d", "c", "A again"]);
}

#[tokio::test]
async fn requests_that_wait_at_the_end_are_given_back() {
    let server = Server::start(&[
        "--gpus=1",
        "--streaming.generation_segment_cap=1",
        "--streaming.paused_timeout_seconds=0.5",
        "--generator.synthetic.step_ms=50",
    ]);
    let dropped = json!([{"request_id": "b", "prompt": "b"}, {"prompt": "unnamed"}]);

    let mut client = server.active(json!({})).await;
    request(&mut client, "a", json!({})).await;
    client.until_type("ltx2_segment_start").await;
    request(&mut client, "b", json!({})).await;
    client.prompt("unnamed").await;
    let complete = client.until_type("ltx2_stream_complete").await;
    assert_eq!(complete["reason"], "segment_cap");
    assert_eq!(complete["dropped_requests"], dropped);

    let mut client = server.active(json!({})).await;
    pause(&mut client, true).await;
    request(&mut client, "b", json!({})).await;
    client.prompt("unnamed").await;
    let timeout = client.until_type("session_timeout").await;
    assert_eq!(timeout["dropped_requests"], dropped);
}

#[tokio::test]
async fn what_cannot_be_changed_is_refused_by_name() {
    let server = Server::start(&["--gpus", "1"]);
    let mut client = server.active(json!({})).await;
    pause(&mut client, true).await;
    request(&mut client, "a", json!({})).await;
    let long = "x".repeat(4001);
    for (message, said) in [
        (
            json!({"type": "withdraw_request", "request_id": "z"}),
            "no request with this `request_id` waits",
        ),
        (
            json!({"type": "edit_request", "request_id": "z", "prompt": "p"}),
            "no request with this `request_id` waits",
        ),
        (
            json!({"type": "edit_request", "request_id": "a"}),
            "`prompt` and `position` are both missing",
        ),
        (
            json!({"type": "edit_request", "request_id": "a", "prompt": long}),
            "`prompt` has 4001 characters, at most 4000 are allowed",
        ),
        (
            json!({"type": "segment_prompt_source", "request_id": "a", "prompt": "again"}),
            "a request with this `request_id` waits already",
        ),
    ] {
        let id = message["request_id"].clone();
        client.send(message).await;
        let error = client.expect("error").await;
        assert_eq!(error["message"], said);
        assert_eq!(error["request_id"], id);
    }
    for kind in ["withdraw_request", "edit_request"] {
        client.send(json!({"type": kind, "position": 0})).await;
        let error = client.expect("error").await;
        assert_eq!(error.get("request_id"), None, "{error}");
    }
    pause(&mut client, false).await;
    assert_eq!(shown(&mut client, 1).await, ["a"]);
}

#[tokio::test]
async fn a_session_tells_its_limits() {
    let server = Server::start(&[
        "--gpus",
        "1",
        "--streaming.limits.max_waiting_requests",
        "3",
        "--streaming.hold_seconds",
        "2.5",
    ]);
    let mut client = server.open(json!({})).await;
    let start = client.until_type("ltx2_stream_start").await;
    let limits = &start["limits"];
    assert_eq!(limits["max_waiting_requests"], 3);
    assert_eq!(limits["max_message_bytes"], 48 << 20);
    assert_eq!(limits["hold_seconds"], 3, "rounded up");
}

#[tokio::test]
async fn a_state_that_no_message_can_hold_is_refused_by_name() {
    let limit = "--streaming.limits.max_message_bytes=65536";
    let server = Server::start(&["--gpus", "1", limit]);
    let mut client = server.active(json!({})).await;
    client.segment("confetti and noise").await;
    client
        .send(json!({"type": "snapshot_state", "request_id": "large"}))
        .await;
    let error = client.expect("error").await;
    assert_eq!(
        (&error["request_id"], &error["retryable"]),
        (&json!("large"), &json!(false))
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with("the continuation state has about ")
            && message.ends_with(" bytes as text, at most 65536 are allowed in a message"),
        "{message}"
    );
    client.segment("the session goes on").await;
}

#[tokio::test]
async fn a_client_that_asks_for_heartbeats_hears_one_when_nothing_else_is_said() {
    let server = Server::start(&["--gpus", "2"]);
    let mut with = server.active(json!({"heartbeat": true})).await;
    let mut without = server.active(json!({})).await;
    assert_eq!(with.next().await, Heard::Text(json!({"type": "heartbeat"})));
    assert_eq!(without.so_far().await, []);
}
