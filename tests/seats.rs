//! Who has a GPU while others wait for one: a lost connection keeps it for a moment, an idle client does not keep it.

use serde_json::json;

use crate::harness::{Heard, Server};
use crate::resume;

#[tokio::test]
async fn a_short_interruption_does_not_cost_a_session_its_gpu() {
    let server = Server::start(&["--gpus", "1", "--streaming.hold_seconds", "3600"]);
    let (mut client, ticket) = resume::open(&server, json!({})).await;
    client.segment("a fox").await;
    let mut waiting = server.open(json!({})).await;
    waiting.expect("queue_status").await;
    drop(client);
    server.sessions(1).await;

    let (mut again, _) = resume::open(&server, ticket).await;
    let segment = again.segment("a fox runs").await;
    let complete = segment.only("ltx2_segment_complete");
    assert_eq!(complete["segment_idx"], 1);
    // Who leaves for good frees the GPU at once.
    again.send(json!({"type": "leave"})).await;
    waiting.until_type("ltx2_stream_start").await;
}

#[tokio::test]
async fn whoever_takes_a_session_over_takes_its_gpu_over() {
    let server = Server::start(&["--gpus", "1", "--streaming.hold_seconds", "3600"]);
    let (mut old, ticket) = resume::open(&server, json!({})).await;
    old.segment("a fox").await;
    let mut waiting = server.open(json!({})).await;
    waiting.expect("queue_status").await;
    let (mut new, _) = resume::open(&server, ticket).await;
    new.segment("a fox runs").await;
}

#[tokio::test]
async fn the_gpu_of_a_lost_connection_is_freed_after_a_while() {
    let server = Server::start(&["--gpus", "1", "--streaming.hold_seconds", "0.3"]);
    let lost = server.active(json!({})).await;
    let mut waiting = server.open(json!({})).await;
    waiting.expect("queue_status").await;
    drop(lost);
    waiting.until_type("ltx2_stream_start").await;
}

#[tokio::test]
async fn a_client_that_closes_its_connection_frees_its_gpu_at_once() {
    let server = Server::start(&["--gpus", "1", "--streaming.hold_seconds", "3600"]);
    for code in [None, Some(1000)] {
        let (mut client, ticket) = resume::open(&server, json!({})).await;
        client.segment("a fox").await;
        client.close(code).await;
        server.active(json!({})).await.close(code).await;
        // It can still be resumed.
        let (mut again, _) = resume::open(&server, ticket).await;
        again.segment("a fox runs").await;
        again.close(code).await;
    }
}

#[tokio::test]
async fn a_page_that_is_reloaded_keeps_its_gpu() {
    let server = Server::start(&["--gpus", "1", "--streaming.hold_seconds", "3600"]);
    let (mut client, ticket) = resume::open(&server, json!({})).await;
    client.segment("a fox").await;
    let mut waiting = server.open(json!({})).await;
    waiting.expect("queue_status").await;
    // What browsers say when they leave a page.
    client.close(Some(1001)).await;
    let (mut again, _) = resume::open(&server, ticket).await;
    again.segment("a fox runs").await;
}

#[tokio::test]
async fn an_idle_session_gives_its_gpu_to_one_that_waits_and_is_warned_before() {
    let server = Server::start(&[
        "--gpus",
        "1",
        "--streaming.idle_while_others_wait_seconds",
        "0.4",
    ]);
    let mut idle = server.active(json!({})).await;
    let mut waiting = server.open(json!({})).await;
    waiting.expect("queue_status").await;
    let warning = idle.expect("idle_warning").await;
    assert_eq!(warning["seconds_left"], 1);
    idle.expect("session_timeout").await;
    assert_eq!(idle.next().await, Heard::Closed(Some(1000)));
    waiting.until_type("ltx2_stream_start").await;
}
