//! Places: waiting for one, losing one, and having none.

use futures_util::StreamExt;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use ureq::http::Request;

use super::*;
use crate::auth::{Keys, key};
use crate::harness::until;

fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let mut all = SLOW.to_vec();
    all.extend_from_slice(args);
    all
}

#[tokio::test]
async fn who_waits_hears_its_place_and_who_leaves_frees_it_at_once() {
    let server = Server::start(&with(&["--streaming.pool.sessions_per_gpu", "1"]));
    let first = live(&server, &["one"]).await;
    let mut second = open(&server, json!({"curated_prompts": ["two"]})).await;
    let status =
        json!({"type": "queue_status", "position": 1, "total_gpus": 1, "available_gpus": 0});
    assert_eq!(second.next().await, Heard::Text(status.clone()));
    until("the second is in line", async || {
        let ready = server.get("/readyz").await.1;
        (ready["queue_size"] == 1).then_some(())
    })
    .await;
    let mut third = open(&server, json!({"curated_prompts": ["three"]})).await;
    assert_eq!(third.expect("queue_status").await["position"], 2);
    drop(second);
    assert_eq!(third.next().await, Heard::Text(status));
    drop(first);
    third.expect("gpu_assigned").await;
    let rollout = take_until(&mut third, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts, ["three"]);
}

#[tokio::test]
async fn what_is_asked_for_in_line_is_done_once_there_is_a_place() {
    let server = Server::start(&with(&["--streaming.pool.sessions_per_gpu", "1"]));
    let first = live(&server, &["one"; 6]).await;
    let mut client = open(&server, json!({"curated_prompts": ["two"]})).await;
    assert_eq!(client.expect("queue_status").await["position"], 1);
    for n in 0..8 {
        let id = format!("p{n}");
        client
            .send(json!({"type": "append_prompt", "prompt": "three", "prompt_id": id}))
            .await;
        client
            .send(json!({"type": "set_auto_extension", "enabled": true}))
            .await;
    }
    client
        .send(json!({"type": "append_prompt", "prompt": "four"}))
        .await;
    let error = client.until_type("error").await;
    assert!(
        error["message"].as_str().unwrap().contains("GPU"),
        "{error}"
    );
    drop(first);
    for n in 0..8 {
        let received = client.until_type("prompt_received").await;
        assert_eq!(received["prompt_id"], format!("p{n}"));
    }
    let rollout = take_until(&mut client, "ltx2_stream_complete").await;
    assert_eq!(
        rollout.prompts[0], "two",
        "the first seed prompt comes first"
    );
    assert_eq!(rollout.prompts[1..], ["three"; 5]);
}

#[tokio::test]
async fn a_server_that_is_full_says_so_and_leaves_the_socket_to_the_client() {
    let server = Server::start(&with(&["--streaming.limits.max_sessions", "1"]));
    let _first = live(&server, &["one"]).await;
    for _ in 0..2 {
        let mut second = server.connect_to("/ws").await;
        let error = second.until_type("error").await;
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .contains("replica unavailable"),
            "{error}"
        );
        silent(&mut second).await;
        second.close(None).await;
    }
}

#[tokio::test]
async fn an_address_has_its_limit() {
    let server = Server::start(&with(&["--streaming.limits.max_sessions_per_client", "1"]));
    let _first = live(&server, &["one"]).await;
    let mut second = server.connect_to("/ws").await;
    assert_eq!(
        second.until_type("error").await["error_code"],
        "ip_session_limit"
    );
    silent(&mut second).await;
}

#[tokio::test]
async fn the_clock_ends_a_session_in_the_middle_of_a_segment() {
    let server = Server::start(&with(&[
        "--streaming.dreamverse.session_seconds",
        "2",
        "--default_request.sampling.num_inference_steps",
        "200",
    ]));
    let mut client = open(&server, json!({"curated_prompts": ["one"]})).await;
    assert_eq!(
        client.until_type("gpu_assigned").await["session_timeout"],
        2
    );
    let kinds = kinds_until(&mut client, "session_timeout").await;
    assert!(
        !kinds.contains(&"ltx2_stream_complete".to_owned()),
        "{kinds:?}"
    );
    assert_eq!(client.next().await, Heard::Closed(Some(1000)));
}

#[tokio::test]
async fn without_a_clock_the_idle_time_out_holds() {
    let server = Server::start(
        &[
            ONE_GPU,
            &[
                "--streaming.dreamverse.session_seconds",
                "0",
                "--streaming.session_timeout_seconds",
                "1",
            ],
        ]
        .concat(),
    );
    let mut client = open(&server, json!({"curated_prompts": ["one"]})).await;
    assert_eq!(
        client.until_type("gpu_assigned").await["session_timeout"],
        Value::Null
    );
    take_until(&mut client, "prompt_sources_blocked").await;
    client.expect("session_timeout").await;
    assert_eq!(client.next().await, Heard::Closed(Some(1000)));
}

#[tokio::test]
async fn a_drain_finishes_the_segment_and_ends_the_session() {
    let mut server = Server::start(SLOW);
    let mut running = live(&server, &["one", "two"]).await;
    running.until_type("media_init").await;
    server.signal(Signal::SIGTERM);
    let kinds = kinds_until(&mut running, "session_timeout").await;
    let ends = ["ltx2_segment_complete", "session_timeout"].map(str::to_owned);
    assert!(kinds.ends_with(&ends), "{kinds:?}");
    assert_eq!(running.next().await, Heard::Closed(Some(1001)));
    assert!(server.exit().await.success());
}

#[tokio::test]
async fn a_drain_ends_an_idle_project_at_once() {
    let mut server = Server::start(ONE_GPU);
    let mut idle = live(&server, &["one"]).await;
    take_until(&mut idle, "prompt_sources_blocked").await;
    idle.send(json!({"type": "end_project_keep_session"})).await;
    idle.until_type("project_idle").await;
    server.signal(Signal::SIGTERM);
    idle.expect("session_timeout").await;
    assert_eq!(idle.next().await, Heard::Closed(Some(1001)));
    assert!(server.exit().await.success());
}

#[tokio::test]
async fn an_operator_can_end_and_move_a_session() {
    let server = Server::start(&["--gpus", "2"]);
    server.ready(2).await;
    let mut client = live(&server, &["one"]).await;
    take_until(&mut client, "prompt_sources_blocked").await;
    let list = server.get("/v1/sessions").await.1;
    let session = list["sessions"][0]["session_id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        server.post(&format!("/v1/sessions/{session}/move")).await.0,
        202
    );
    client
        .send(json!({"type": "append_prompt", "prompt": "two"}))
        .await;
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts, ["two"], "another GPU is no news");
    let moved = server.get("/v1/sessions").await.1;
    assert_ne!(
        moved["sessions"][0]["worker_id"],
        list["sessions"][0]["worker_id"]
    );
    let (status, _) = server
        .call("DELETE", &format!("/v1/sessions/{session}"), None)
        .await;
    assert_eq!(status, 204);
    client.until_type("session_timeout").await;
    assert_eq!(client.next().await, Heard::Closed(Some(1000)));
}

#[tokio::test]
async fn a_drain_lets_who_waits_and_who_has_not_opened_go_at_once() {
    let args = with(&[
        "--streaming.pool.sessions_per_gpu",
        "1",
        "--default_request.sampling.num_inference_steps",
        "100",
    ]);
    let mut server = Server::start(&args);
    let mut running = live(&server, &["one"]).await;
    running.until_type("ltx2_segment_start").await;
    let mut waiting = open(&server, json!({"curated_prompts": ["two"]})).await;
    assert_eq!(waiting.until_type("queue_status").await["position"], 1);
    let mut silent_one = server.connect_to("/ws").await;
    silent_one.expect("queue_status").await;
    server.signal(Signal::SIGTERM);
    for client in [&mut waiting, &mut silent_one] {
        let error = client.until_type("error").await;
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("replica unavailable"), "{error}");
    }
    // The one that runs is finished meanwhile.
    let kinds = kinds_until(&mut running, "session_timeout").await;
    assert!(
        kinds.contains(&"ltx2_segment_complete".to_owned()),
        "{kinds:?}"
    );
    assert!(server.exit().await.success());
}

#[tokio::test]
async fn a_drain_ends_a_session_that_is_dry_paused_or_at_its_cap() {
    for (fields, command, last) in [
        (
            json!({"curated_prompts": ["one"]}),
            None,
            "prompt_sources_blocked",
        ),
        (
            json!({"curated_prompts": ["one"]}),
            Some(json!({"type": "set_generation_paused", "paused": true})),
            "ltx2_segment_complete",
        ),
        (
            json!({"curated_prompts": ["one", "two"], "loop_generation_enabled": true}),
            None,
            "ltx2_stream_complete",
        ),
    ] {
        let mut server = Server::start(ONE_GPU);
        let mut client = open(&server, fields).await;
        if let Some(command) = command {
            client.until_type("ltx2_segment_start").await;
            client.send(command).await;
        }
        client.until_type(last).await;
        server.signal(Signal::SIGTERM);
        client.until_type("session_timeout").await;
        assert_eq!(client.next().await, Heard::Closed(Some(1001)), "{last}");
        assert!(server.exit().await.success());
    }
}

#[tokio::test]
async fn a_thousand_are_held_and_no_more() {
    let server = Server::start(&with(&["--streaming.limits.max_sessions", "1"]));
    let first = live(&server, &["one"]).await;
    let mut held = Vec::new();
    for _ in 0..1000 {
        let mut client = server.connect_to("/ws").await;
        client.until_type("error").await;
        held.push(client);
    }
    let (status, body) = refused(&server).await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("session_rejected"), "{body}");
    // One that goes makes room for another one.
    held.pop().unwrap().close(None).await;
    until("one more is held", async || {
        let url = format!("ws://{}/ws", server.address);
        tokio_tungstenite::connect_async(url).await.ok().map(drop)
    })
    .await;
    drop(first);
    server.sessions(0).await;
    let mut client = live(&server, &["two"]).await;
    take_until(&mut client, "prompt_sources_blocked").await;
}

/// What a client gets in place of a connection.
async fn refused(server: &Server) -> (u16, String) {
    let url = format!("ws://{}/ws", server.address);
    match tokio_tungstenite::connect_async(url).await {
        Err(WsError::Http(answer)) => {
            let body = answer.body().clone().unwrap_or_default();
            (answer.status().as_u16(), String::from_utf8(body).unwrap())
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[tokio::test]
async fn where_keys_are_asked_for_it_is_closed_unless_a_tenant_has_guests() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let mut client = server.connect_to("/ws").await;
    client.until_type("error").await;
    assert_eq!(client.next().await, Heard::Closed(Some(1008)));

    let server = keys.serve(&["--streaming.dreamverse.tenant=acme"]);
    let mut guest = live(&server, &["one"]).await;
    take_until(&mut guest, "prompt_sources_blocked").await;
    for (who, open) in [("acme", 1), ("beta", 0)] {
        let bearer = format!("Bearer {}", key(who));
        let request = Request::get("/v1/sessions").header("authorization", bearer);
        let answer = server.send(request.body(String::new()).unwrap()).await;
        let list: Value = serde_json::from_str(answer.body()).unwrap();
        let listed = list["sessions"].as_array().map(Vec::len);
        assert_eq!(listed, Some(open), "{list}");
    }
    // A guest gets nothing else.
    assert_eq!(server.get("/v1/sessions").await.0, 401);
}

#[tokio::test]
async fn who_shows_a_wrong_key_or_comes_from_another_site_is_no_guest() {
    let keys = Keys::new();
    let server = keys.serve(&["--streaming.dreamverse.tenant=acme"]);
    let connect = async |name: &'static str, value: &str| {
        let mut request = format!("ws://{}/ws", server.address)
            .into_client_request()
            .unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
        tokio_tungstenite::connect_async(request).await
    };
    let foreign = connect("origin", "https://elsewhere.example").await;
    let Err(WsError::Http(answer)) = foreign else {
        panic!("{:?}", foreign.map(|_| ()));
    };
    assert_eq!(answer.status(), 403);
    connect("origin", &format!("http://{}", server.address))
        .await
        .expect("the server's own pages may");
    let wrong = format!("Bearer {}", key("nobody"));
    let (mut socket, _) = connect("authorization", &wrong).await.unwrap();
    let told = socket.next().await.unwrap().unwrap();
    assert!(told.to_text().unwrap().contains("error"), "{told}");
    let closed = socket.next().await.unwrap().unwrap();
    assert!(closed.is_close(), "{closed}");
}

#[tokio::test]
async fn a_drain_begins_no_rollout_and_completes_none_before_the_end() {
    let mut server = Server::start(SLOW);
    let mut client = live(&server, &["one", "two"]).await;
    client.until_type("media_init").await;
    client
        .send(json!({"type": "rewrite_seed_prompts", "rewrite_instruction": "at night"}))
        .await;
    client.until_type("rewrite_seed_prompts_complete").await;
    server.signal(Signal::SIGTERM);
    let kinds = kinds_until(&mut client, "session_timeout").await;
    for kind in ["ltx2_stream_start", "ltx2_stream_complete"] {
        assert!(!kinds.contains(&kind.to_owned()), "{kinds:?}");
    }
    assert!(server.exit().await.success());
}

#[tokio::test]
async fn who_is_held_is_let_go_by_a_drain() {
    let mut server = Server::start(&with(&["--streaming.limits.max_sessions", "1"]));
    let first = live(&server, &["one"]).await;
    let mut held = server.connect_to("/ws").await;
    held.until_type("error").await;
    drop(first);
    server.sessions(0).await;
    server.signal(Signal::SIGTERM);
    assert_eq!(held.next().await, Heard::Closed(Some(1001)));
    assert!(server.exit().await.success());
}

#[tokio::test]
async fn without_a_worker_a_client_hears_one_reason_and_is_held() {
    let server = Server::start(&[
        "--gpus=1",
        "--worker-bin=/bin/false",
        "--streaming.pool.quarantine_after=1",
    ]);
    server
        .gpu_until(0, "it is given up", |gpu| gpu["state"] == "quarantined")
        .await;
    let mut client = open(&server, json!({"curated_prompts": ["one"]})).await;
    let error = client.until_type("error").await;
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("replica unavailable"), "{error}");
    silent(&mut client).await;
}

#[tokio::test]
async fn a_project_can_be_replaced_in_line() {
    let server = Server::start(&with(&["--streaming.pool.sessions_per_gpu", "1"]));
    let first = live(&server, &["one"; 6]).await;
    let mut client = open(&server, json!({"curated_prompts": ["two"]})).await;
    assert_eq!(client.expect("queue_status").await["position"], 1);
    client
        .send(json!({"type": "end_project_keep_session"}))
        .await;
    client
        .send(json!({"type": "project_init_v1", "curated_prompts": ["three"]}))
        .await;
    // The last one is one too many, and says that the others were heard.
    for _ in 0..15 {
        client
            .send(json!({"type": "set_loop_generation", "enabled": false}))
            .await;
    }
    client.expect("error").await;
    drop(first);
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts, ["three"]);
}
