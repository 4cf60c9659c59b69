//! Spectators: they see what the client gets, steer nothing, and slow nobody down.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error as WsError;

use crate::harness::{Client, Heard, Server};

mod moves;

/// Pictures that are large for their size, so that what is not read piles up quickly.
const HEAVY: &[&str] = &[
    "--gpus=1",
    "--generator.synthetic.step_ms=0",
    "--generator.synthetic.frame_ms=0",
    "--default_request.sampling.width=640",
    "--default_request.sampling.height=352",
    "--default_request.sampling.num_frames=24",
    "--default_request.sampling.num_inference_steps=1",
    "--streaming.encoder.jpeg_quality=95",
];

/// A session, its id and its token for spectators.
async fn session(server: &Server, init: Value) -> (Client, String, String) {
    let mut client = server.open(init).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let text = |field: &str| assigned[field].as_str().unwrap().to_owned();
    (client, text("session_id"), text("watch_token"))
}

/// Connects a spectator; the status code of the answer when it is refused.
async fn try_watch(server: &Server, query: &str) -> Result<Client, u16> {
    let url = format!("ws://{}/v1/watch?{query}", server.address);
    match tokio_tungstenite::connect_async(url).await {
        Ok((socket, _)) => Ok(Client { socket }),
        Err(WsError::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

pub(crate) async fn watch(server: &Server, query: &str) -> (Client, Value) {
    let mut spectator = try_watch(server, query).await.unwrap();
    let start = spectator.expect("watch_start").await;
    (spectator, start)
}

/// The next segment as a spectator sees it: its texts' types in order, its bytes, and what is known of it.
async fn segment(spectator: &mut Client) -> (Vec<String>, Vec<u8>, Value) {
    let seen = spectator.collect_until("film_segment").await;
    let kind = |text: &Value| text["type"].as_str().unwrap().to_owned();
    let types = seen.texts.iter().map(kind).collect();
    let facts = seen.only("film_segment").clone();
    (types, seen.bytes(), facts)
}

#[tokio::test]
async fn a_spectator_sees_what_the_client_gets_as_it_is_made_and_from_any_segment() {
    let server = Server::start(&["--gpus=1"]);
    let (mut client, id, token) = session(&server, json!({})).await;
    let query = format!("session={id}&token={token}");
    let (mut early, start) = watch(&server, &query).await;
    assert_eq!(
        (&start["live"], &start["from"], &start["session_id"]),
        (&json!(true), &json!(0), &json!(id))
    );
    assert_eq!(client.expect("spectators").await["count"], 1);
    let mut made = Vec::new();
    for prompt in ["a fox", "a hare"] {
        made.push(client.segment(prompt).await);
    }
    for (n, made) in made.iter().enumerate() {
        let (types, bytes, facts) = segment(&mut early).await;
        let expected = [
            "ltx2_segment_start",
            "media_init",
            "media_segment_complete",
            "film_segment",
        ];
        assert_eq!(types, expected);
        assert!(bytes == made.bytes(), "segment {n} has other bytes");
        assert_eq!(facts["prompt"], ["a fox", "a hare"][n]);
        assert_eq!(
            (&facts["segment_idx"], &facts["kept"]),
            (&json!(n), &json!(true))
        );
    }
    // One that comes later sees what follows, or the film first.
    let (mut late, start) = watch(&server, &query).await;
    assert_eq!(start["from"], 2);
    let (mut again, _) = watch(&server, &format!("{query}&from=0")).await;
    for made in &made {
        assert!(segment(&mut again).await.1 == made.bytes());
    }
    let third = client.segment("a wood").await;
    for spectator in [&mut early, &mut late, &mut again] {
        let (_, bytes, facts) = segment(spectator).await;
        assert!(bytes == third.bytes());
        assert_eq!(facts["segment_idx"], 2);
    }
    let (_, film) = server
        .get(&format!("/v1/sessions/{id}/film?token={token}"))
        .await;
    assert_eq!(film["spectators"], 3);
    assert_eq!(server.status().await["spectators"], 3);
}

#[tokio::test]
async fn nothing_that_a_spectator_sends_has_an_effect() {
    let server = Server::start(&["--gpus=1"]);
    let (mut client, id, token) = session(&server, json!({})).await;
    let (mut spectator, _) = watch(&server, &format!("session={id}&token={token}")).await;
    spectator.prompt("a fox").await;
    spectator.send(json!({"type": "leave"})).await;
    spectator.send_binary(b"bytes").await;
    let made = client.segment("a hare").await;
    assert!(segment(&mut spectator).await.1 == made.bytes());
}

#[tokio::test]
async fn only_who_has_a_token_may_watch_and_only_so_many() {
    let server = Server::start(&["--gpus=1", "--streaming.watch.max_per_session=1"]);
    let (mut client, id, token) = session(&server, json!({})).await;
    let unknown = "0".repeat(32);
    for query in [
        format!("session={id}&token={unknown}"),
        format!("session={id}"),
        format!("session={unknown}&token={token}"),
        format!("session=../etc&token={token}"),
    ] {
        assert_eq!(try_watch(&server, &query).await.err(), Some(404), "{query}");
    }
    let query = format!("session={id}&token={token}");
    let (mut spectator, _) = watch(&server, &query).await;
    assert_eq!(try_watch(&server, &query).await.err(), Some(503));
    // Another token ends the show for those who have the old one.
    client.send(json!({"type": "renew_watch_token"})).await;
    let renewed = client.until_type("watch_token").await;
    assert_eq!(spectator.closed().await, Some(1000));
    assert_eq!(try_watch(&server, &query).await.err(), Some(404));
    let renewed = renewed["watch_token"].as_str().unwrap();
    watch(&server, &format!("session={id}&token={renewed}")).await;
}

#[tokio::test]
async fn nobody_may_watch_where_the_operator_does_not_want_that() {
    let server = Server::start(&["--gpus=1", "--watch=false"]);
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    assert_eq!(assigned.get("watch_token"), None);
    let (id, token) = (&assigned["session_id"], &assigned["resume_token"]);
    let (id, token) = (id.as_str().unwrap(), token.as_str().unwrap());
    let refused = try_watch(&server, &format!("session={id}&token={token}")).await;
    assert_eq!(refused.err(), Some(404));
    // The film is the client's own.
    let path = format!("/v1/sessions/{id}/film?token={token}");
    assert_eq!(server.get(&path).await.0, 200);
}

#[tokio::test]
async fn a_spectator_who_does_not_read_is_moved_on_and_slows_nobody_down() {
    let server = Server::start(HEAVY);
    let init = json!({"stream_mode": "legacy_jpeg"});
    let (mut client, id, token) = session(&server, init).await;
    let (mut slow, _) = watch(&server, &format!("session={id}&token={token}")).await;
    for n in 0..30 {
        client.segment(&format!("a wood in the snow {n}")).await;
    }
    let mut segments = Vec::new();
    loop {
        match slow.next().await {
            Heard::Text(text) if text["type"] == "watch_skipped" => {
                segments.push(text["segment_idx"].as_u64().unwrap());
                break;
            }
            Heard::Closed(code) => panic!("closed with {code:?}"),
            _ => {}
        }
    }
    // From there on it sees everything again.
    client.prompt("a calm sea").await;
    let last = loop {
        let (_, bytes, facts) = segment(&mut slow).await;
        if facts["prompt"] == "a calm sea" {
            break bytes;
        }
    };
    let made = client.collect_until("ltx2_segment_complete").await;
    assert!(last == made.bytes());
}

#[tokio::test]
async fn the_show_goes_on_when_the_client_comes_back_and_ends_with_the_session() {
    let server = Server::start(&["--gpus=1"]);
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let (id, token) = (&assigned["session_id"], &assigned["resume_token"]);
    let query = format!(
        "session={}&token={}",
        id.as_str().unwrap(),
        assigned["watch_token"].as_str().unwrap()
    );
    let (mut spectator, _) = watch(&server, &query).await;
    client.segment("a fox").await;
    segment(&mut spectator).await;
    drop(client);
    let resume = json!({"resume": {"session_id": id, "token": token}});
    let mut again = server.open(resume).await;
    again.until_type("ltx2_stream_start").await;
    let made = again.segment("a hare").await;
    let (_, bytes, facts) = segment(&mut spectator).await;
    assert!(bytes == made.bytes());
    assert_eq!(facts["segment_idx"], 1);
    let path = format!("/v1/sessions/{}", id.as_str().unwrap());
    assert_eq!(server.call("DELETE", &path, None).await.0, 204);
    spectator.until_type("watch_end").await;
    assert_eq!(spectator.closed().await, Some(1000));
}
