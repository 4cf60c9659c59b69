//! The span of a router, which stands between those of its client and of its servers.

use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use super::PARENT;
use super::collector::{Collector, attribute, counted, hex, ids, links};
use crate::auth::connect;
use crate::harness::{Client, Server, until};
use crate::moves::Fleet;
use crate::router::{KEY, Keys, router, with_room};

const NEVER: &str = "--server.tracing.sample_ratio=0";

async fn leave(client: &mut Client) {
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;
}

#[tokio::test]
async fn a_routers_span_is_between_the_clients_and_those_of_all_servers_of_the_session() {
    let collector = Collector::start().await;
    let flag = collector.flag();
    // The router decides, and its servers believe it.
    let mut fleet = Fleet::start(2, &["--gpus=1", &flag, NEVER]).await;
    let addresses: Vec<_> = fleet
        .servers
        .iter()
        .map(|server| &*server.address)
        .collect();
    let router = fleet.keys.router(&addresses, &[&flag]);
    with_room(&router, 2, 1).await;
    let mut client = router.active(json!({"traceparent": PARENT})).await;
    client.segment("a red fox").await;
    let first = fleet.running().await;
    fleet.servers[first].signal(Signal::SIGTERM);
    fleet.servers[first].exit().await;
    client.segment("a blue hare").await;
    leave(&mut client).await;
    drop(client);

    let trace = collector.until("router.session", 1).await;
    let of_router = trace.only("router.session").clone();
    assert_eq!(of_router.kind, SpanKind::Server as i32);
    let (trace_id, span_id) = ids(PARENT);
    assert_eq!(hex(&of_router.parent_span_id), span_id);
    let trace = collector.until("session", 2).await;
    for span in &trace.0 {
        assert_eq!(hex(&span.trace_id), trace_id, "{}", span.name);
    }
    trace.check_below("session", &of_router);
    let sessions = trace.named("session");
    // The second one knows of the first from the store.
    assert_eq!(links(sessions[0]), [""; 0]);
    assert_eq!(links(sessions[1]), [hex(&sessions[0].span_id)]);
    let id = attribute(sessions[0], "session.id");
    assert!(id.is_some());
    assert_eq!(attribute(&of_router, "session.id"), id);
    assert_eq!(
        attribute(&of_router, "fastvideo.cause").as_deref(),
        Some("left")
    );
    let events: Vec<_> = of_router.events.iter().map(|event| &*event.name).collect();
    assert_eq!(events, ["taken", "left", "taken"]);
    until("the router has counted its span", async || {
        (counted(&router, "exported").await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_session_that_a_router_does_not_trace_is_traced_by_no_server() {
    let collector = Collector::start().await;
    let flag = collector.flag();
    let keys = Keys::new(KEY);
    let trusting = "--server.tracing.trust_client_sampling=true";
    let mut server = keys.server(&[&flag, trusting]);
    let router = keys.router(&[&server.address], &[&flag, NEVER]);
    with_room(&router, 1, 2).await;
    let mut client = router.active(json!({"traceparent": PARENT})).await;
    client.segment("a red fox").await;
    leave(&mut client).await;
    // It sends what it has before it ends.
    server.signal(Signal::SIGTERM);
    server.exit().await;
    assert_eq!(collector.spans().len(), 0);
}

#[tokio::test]
async fn a_router_without_a_collector_passes_the_clients_span_on() {
    let keys = Keys::new(KEY);
    for is_linked in [true, false] {
        let collector = Collector::start().await;
        let server = keys.server(&[&collector.flag()]);
        let router = match is_linked {
            true => keys.router(&[&server.address], &[]),
            false => router(&[&server.address]),
        };
        if is_linked {
            with_room(&router, 1, 2).await;
        }
        let mut client = with_header(&router).await;
        client.until_type("ltx2_stream_start").await;
        leave(&mut client).await;
        let trace = collector.session().await;
        let (trace_id, span_id) = ids(PARENT);
        let session = trace.only("session");
        assert_eq!(hex(&session.trace_id), trace_id, "{is_linked}");
        assert_eq!(hex(&session.parent_span_id), span_id, "{is_linked}");
    }
}

#[tokio::test]
async fn a_server_without_a_link_is_below_its_router_too() {
    let collector = Collector::start().await;
    let flag = collector.flag();
    let keys = Keys::new(KEY);
    let server = keys.server(&[&flag]);
    let router = {
        let url = format!("http://{}", server.address);
        let replicas = json!([{"url": url}]).to_string();
        let own = ["router", "--replicas", &replicas, &flag];
        Server::spawn(crate::harness::command().args(own))
    };
    let mut client = with_header(&router).await;
    client.until_type("ltx2_stream_start").await;
    leave(&mut client).await;
    drop(client);
    collector.session().await;
    let trace = collector.until("router.session", 1).await;
    let of_router = trace.only("router.session");
    assert_eq!(hex(&of_router.parent_span_id), ids(PARENT).1);
    trace.check_below("session", of_router);
}

#[tokio::test]
async fn a_server_without_a_link_decides_by_itself_and_is_below_the_client_where_its_router_makes_no_span()
 {
    let collector = Collector::start().await;
    let flag = collector.flag();
    let keys = Keys::new(KEY);
    let server = keys.server(&[&flag]);
    let url = format!("http://{}", server.address);
    let replicas = json!([{"url": url}]).to_string();
    let own = ["router", "--replicas", &replicas, &flag, NEVER];
    let router = Server::spawn(crate::harness::command().args(own));
    let mut client = with_header(&router).await;
    client.until_type("ltx2_stream_start").await;
    leave(&mut client).await;
    let trace = collector.session().await;
    assert_eq!(hex(&trace.only("session").parent_span_id), ids(PARENT).1);
    assert_eq!(trace.named("router.session").len(), 0);
}

/// Opens a session whose handshake names a span.
async fn with_header(router: &Server) -> Client {
    let connected = connect(router, "/v1/stream", &[("traceparent", PARENT)]).await;
    let (mut client, _) = connected.unwrap();
    client.send(json!({"type": "session_init_v2"})).await;
    client
}
