//! Traces, as a collector gets them: the spans of a session, of its prompts, of a router, and collectors that are away or
//! never answer.

use nix::sys::signal::{Signal, kill};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::json;

use crate::auth::{Keys, open_as};
use crate::harness::{Server, WATCHFUL};
use crate::{initial_image, resume};

use collector::{Collector, attribute, hex, ids, links, status};

mod collector;
mod outage;
mod prompts;
mod router;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_session_with_a_worker_that_dies_is_one_trace_below_the_clients_span() {
    let collector = Collector::start().await;
    let flag = collector.flag();
    let own = [
        "--gpus=2",
        "--generator.synthetic.step_ms=60",
        "--log-level=error",
        &flag,
    ];
    let server = Server::start(&[WATCHFUL, &own].concat());
    server.ready(2).await;
    let mut client = server.open(json!({"traceparent": PARENT})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    client.prompt("a red fox").await;
    client.until_type("step_complete").await;
    let gpu = u32::try_from(assigned["gpu_id"].as_u64().unwrap()).unwrap();
    kill(server.worker_pid(gpu).await, Signal::SIGKILL).unwrap();
    client.until_type("ltx2_segment_complete").await;
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;

    let trace = collector.session().await;
    for span in &trace.0 {
        assert_eq!(hex(&span.trace_id), &PARENT[3..35], "{}", span.name);
        assert!(
            span.start_time_unix_nano <= span.end_time_unix_nano,
            "{}",
            span.name
        );
        // Nobody's prompt is in a trace.
        let shown = format!("{span:?}");
        assert!(!shown.contains("fox"), "{shown}");
    }
    let session = trace.only("session");
    assert_eq!(hex(&session.parent_span_id), &PARENT[36..52]);
    assert_eq!(
        attribute(session, "session.id").as_deref(),
        assigned["session_id"].as_str()
    );
    assert_eq!(
        attribute(session, "fastvideo.cause").as_deref(),
        Some("left")
    );
    trace.check_below("session.open", session);
    trace.check_below("store.claim", trace.only("session.open"));
    let segment = trace.only("segment");
    trace.check_below("store.save", segment);
    trace.check_below("segment", session);
    assert_eq!(
        attribute(segment, "gen_ai.output.type").as_deref(),
        Some("video")
    );
    for (key, value) in [
        ("fastvideo.frames", "12"),
        ("fastvideo.width", "128"),
        ("fastvideo.height", "96"),
        ("fastvideo.steps", "4"),
        ("fastvideo.segment_idx", "0"),
        ("fastvideo.source", "user"),
        ("gen_ai.operation.name", "generate_content"),
        ("gen_ai.request.seed", "10"),
    ] {
        assert_eq!(attribute(segment, key).as_deref(), Some(value), "{key}");
    }
    assert!(attribute(segment, "gen_ai.request.model").is_some());
    assert_eq!(
        attribute(segment, "session.id"),
        attribute(session, "session.id")
    );
    let jobs = trace.named("job");
    assert_eq!(jobs.len(), 2, "{:?}", trace.names());
    for job in &jobs {
        assert!(attribute(job, "fastvideo.gpu").is_some());
    }
    trace.check_below("job", segment);
    assert_eq!(status(jobs[0]), StatusCode::Error as i32);
    assert_eq!(
        attribute(jobs[0], "error.type").as_deref(),
        Some("worker_lost")
    );
    // The last step that the lost worker was heard of.
    assert!(jobs[0].events.iter().any(|event| event.name == "step"));
    assert_eq!(status(jobs[1]), StatusCode::Unset as i32);
    assert_eq!(jobs[1].events.len(), 4);
    let generate = trace.only("generate");
    assert_eq!(generate.parent_span_id, jobs[1].span_id);
    for phase in ["text_encode", "denoise", "decode", "encode", "state_pack"] {
        trace.only(phase);
        trace.check_below(phase, generate);
    }
    assert!(generate.start_time_unix_nano >= jobs[1].start_time_unix_nano);
    assert!(generate.end_time_unix_nano <= jobs[1].end_time_unix_nano);
    let send = trace.only("send");
    trace.check_below("send", segment);
    assert!(send.events.iter().any(|event| event.name == "first_byte"));
    assert!(trace.0.len() <= 22, "{:?}", trace.names());

    let resource = collector.resources.lock().unwrap()[0].clone();
    assert_eq!(resource["service.name"], "fastvideo-supervisor");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert!(resource.contains_key("service.instance.id") && resource.contains_key("host.name"));
}

#[tokio::test]
async fn a_session_is_traced_as_often_as_it_is_wanted_and_by_whom() {
    let collector = Collector::start().await;
    let flag = collector.flag();
    let never = "--server.tracing.sample_ratio=0";
    let run = async |args: &[&str], init| {
        let server = Server::start(&[&[&*flag], args].concat());
        let mut client = server.active(init).await;
        client.segment("a red fox").await;
        client.send(json!({"type": "leave"})).await;
        client.until_type("ltx2_stream_complete").await;
        drop(client);
        let mut server = server;
        server.signal(Signal::SIGTERM);
        server.exit().await;
    };
    run(&[never], json!({"traceparent": PARENT})).await;
    assert_eq!(collector.spans().len(), 0);
    // What is no traceparent is as none.
    let trusting = [never, "--server.tracing.trust_client_sampling=true"];
    run(&trusting, json!({"traceparent": "nonsense"})).await;
    assert_eq!(collector.spans().len(), 0);
    run(&trusting, json!({"traceparent": PARENT})).await;
    assert!(!collector.spans().is_empty());
}

#[tokio::test]
async fn a_resumed_session_links_to_the_one_before() {
    let collector = Collector::start().await;
    let server = Server::start(&["--gpus=1", &collector.flag()]);
    let (mut client, ticket) = resume::open(&server, json!({})).await;
    client.segment("a red fox").await;
    drop(client);
    let first = collector.session().await.only("session").span_id.clone();
    for expected in 2..4 {
        let (mut client, _) = resume::open(&server, ticket.clone()).await;
        client.segment("a blue hare").await;
        drop(client);
        collector.until("session", expected).await;
    }
    let trace = collector.until("session", 3).await;
    let sessions = trace.named("session");
    assert_eq!(sessions[0].span_id, first);
    assert_eq!(links(sessions[0]), [""; 0]);
    for pair in sessions.windows(2) {
        assert_eq!(links(pair[1]), [hex(&pair[0].span_id)]);
        assert_ne!(pair[1].trace_id, pair[0].trace_id);
    }
}

#[tokio::test]
async fn a_segment_may_have_a_parent_of_its_own() {
    const OTHER: &str = "00-11112222333344445555666677778888-1234567890abcdef-01";
    let collector = Collector::start().await;
    let server = Server::start(&["--gpus=1", &collector.flag()]);
    let mut client = server.active(json!({"traceparent": PARENT})).await;
    client
        .send(json!({"type": "segment_prompt_source", "prompt": "a red fox", "traceparent": OTHER}))
        .await;
    client.until_type("ltx2_segment_complete").await;
    client.segment("a blue hare").await;
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;

    let trace = collector.session().await;
    let session = trace.only("session");
    let segments = trace.named("segment");
    let (trace_id, span_id) = ids(OTHER);
    assert_eq!(hex(&segments[0].trace_id), trace_id);
    assert_eq!(hex(&segments[0].parent_span_id), span_id);
    assert_eq!(links(segments[0]), [hex(&session.span_id)]);
    for span in trace.below(segments[0]) {
        assert_eq!(hex(&span.trace_id), trace_id, "{}", span.name);
    }
    assert_eq!(segments[1].parent_span_id, session.span_id);
    assert_eq!(links(segments[1]), [""; 0]);
}

#[tokio::test]
async fn the_check_of_a_key_and_the_reading_of_an_image_are_part_of_the_opening() {
    let collector = Collector::start().await;
    let keys = Keys::new();
    let server = keys.serve(&[&collector.flag()]);
    let init = json!({"initial_image": initial_image::small()});
    let mut client = open_as(&server, "acme", init).await;
    client.until_type("ltx2_stream_start").await;
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;

    let trace = collector.session().await;
    let open = trace.only("session.open");
    for name in ["auth", "image", "store.claim"] {
        let span = trace.only(name);
        assert_eq!(span.parent_span_id, open.span_id, "{name}");
        assert!(
            span.start_time_unix_nano >= open.start_time_unix_nano,
            "{name}"
        );
        assert!(span.end_time_unix_nano <= open.end_time_unix_nano, "{name}");
    }
    let tenant = attribute(trace.only("session"), "fastvideo.tenant");
    assert_eq!(tenant.as_deref(), Some("acme"));
    // No key and no address.
    let shown = format!("{:?}", trace.0);
    assert!(
        !shown.contains("fvk_") && !shown.contains("127.0.0.1"),
        "{shown}"
    );
}

#[tokio::test]
async fn an_attempt_that_fails_shows_how_far_it_came() {
    let collector = Collector::start().await;
    let fault = "--generator.synthetic.faults=error@frame2";
    let server = Server::start(&["--gpus=1", fault, &collector.flag()]);
    let mut client = server.active(json!({})).await;
    client.prompt("a red fox").await;
    let error = client.error().await;
    assert_eq!(error["code"], "worker_failed");
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;

    let trace = collector.session().await;
    for name in ["segment", "job"] {
        let span = trace.only(name);
        assert_eq!(status(span), StatusCode::Error as i32);
        let error = attribute(span, "error.type");
        assert_eq!(error.as_deref(), Some("worker_failed"), "{name}");
    }
    let generate = trace.only("generate");
    trace.check_below("generate", trace.only("job"));
    let mut phases: Vec<_> = trace.below(generate).iter().map(|s| &*s.name).collect();
    phases.sort_unstable();
    assert_eq!(phases, ["decode", "denoise", "encode", "text_encode"]);
}

#[tokio::test]
async fn the_last_segment_and_the_session_end_with_the_last_byte() {
    let collector = Collector::start().await;
    let flag = collector.flag();
    let server = Server::start(&["--gpus=1", &flag]);
    let mut client = server.active(json!({"single_clip_mode": true})).await;
    client.segment("a red fox").await;
    client.until_type("ltx2_stream_complete").await;
    let trace = collector.session().await;
    let [session, segment, send] = ["session", "segment", "send"].map(|name| trace.only(name));
    assert!(send.events.iter().any(|event| event.name == "first_byte"));
    let sent = send.events[0].time_unix_nano;
    assert!(send.end_time_unix_nano >= sent);
    assert!(segment.end_time_unix_nano >= send.end_time_unix_nano);
    assert!(session.end_time_unix_nano >= segment.end_time_unix_nano);
    assert_eq!(
        attribute(session, "fastvideo.cause").as_deref(),
        Some("cap")
    );
}
