//! Collectors that are away, never answer, or come back.

use std::net::TcpListener as StdListener;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::Instant;

use super::collector::counted;
use crate::harness::{Client, Server, until};

/// The line of the log when an outage begins.
const BEGINS: &str = "the collector of traces takes no spans";

/// An address that nobody listens on.
fn free_address() -> String {
    let free = StdListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().to_string()
}

/// A session of one segment.
async fn session(server: &Server) {
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;
    leave(&mut client).await;
}

async fn leave(client: &mut Client) {
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;
}

async fn logged(server: &Server, line: &str) {
    until("it is logged", async || {
        server.log().contains(line).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_never_answers() {
    // It takes connections, as the system does for it, and says nothing.
    let silent = StdListener::bind("127.0.0.1:0").unwrap();
    let flag = format!("--otlp-endpoint=http://{}", silent.local_addr().unwrap());
    let mut server = Server::start(&[&flag]);
    let mut client = server.active(json!({})).await;
    for prompt in ["a red fox", "a quiet lake"] {
        client.segment(prompt).await;
    }
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());
    // The worker has left, too.
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_outage_of_the_collector_is_counted_and_told() {
    let flag = format!("--otlp-endpoint=http://{}", free_address());
    let server = Server::start(&[&flag]);
    session(&server).await;
    let failed = until("spans are counted as failed", async || {
        let count = counted(&server, "failed").await;
        (count > 0.0).then_some(count)
    })
    .await;
    assert!(failed >= 10.0, "{failed}");
    logged(&server, BEGINS).await;
}

#[tokio::test]
async fn a_collector_that_is_no_address_stops_the_start() {
    let (code, _, said) = crate::cli::run(&["--gpus=1", "--otlp-endpoint=collector:4318"]).await;
    assert_eq!(code, Some(2));
    assert!(
        said.contains("server.tracing.endpoint") || said.contains("otlp-endpoint"),
        "{said}"
    );
}
