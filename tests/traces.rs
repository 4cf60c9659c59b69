//! Traces, as a collector gets them: the spans of a session with a worker that dies, the span of the client's that they are
//! below, and collectors that are away or never answer.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{Server, WATCHFUL, until};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector that keeps what it is sent.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    resources: Arc<Mutex<Vec<BTreeMap<String, String>>>>,
    served: Mutex<JoinSet<()>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            spans: Arc::default(),
            resources: Arc::default(),
            served: Mutex::default(),
        };
        let (spans, resources) = (collector.spans.clone(), collector.resources.clone());
        collector.served.lock().unwrap().spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (spans, resources) = (spans.clone(), resources.clone());
                connections.spawn(async move { serve(stream, &spans, &resources).await });
            }
        });
        collector
    }

    fn flag(&self) -> String {
        format!("--otlp-endpoint=http://{}", self.address)
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// Waits until the span of the session has come, which is its last one.
    async fn session(&self) -> Trace {
        let spans = until("the session's span comes", async || {
            let spans = self.spans();
            spans
                .iter()
                .any(|span| span.name == "session")
                .then_some(spans)
        })
        .await;
        Trace(spans)
    }
}

/// Takes requests of one connection until it is closed.
async fn serve(
    mut stream: TcpStream,
    spans: &Mutex<Vec<Span>>,
    resources: &Mutex<Vec<BTreeMap<String, String>>>,
) {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            let mut part = [0; 4096];
            match stream.read(&mut part).await {
                Ok(0) | Err(_) => return,
                Ok(read) => buffer.extend_from_slice(&part[..read]),
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
        assert!(text.starts_with("post /v1/traces "), "{text}");
        assert!(text.contains("application/x-protobuf"), "{text}");
        let length = text.split("content-length:").nth(1).unwrap();
        let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
        while buffer.len() < head + length {
            let mut part = vec![0; 65_536];
            let read = stream.read(&mut part).await.unwrap();
            buffer.extend_from_slice(&part[..read]);
        }
        let request = ExportTraceServiceRequest::decode(&buffer[head..head + length]).unwrap();
        buffer.drain(..head + length);
        for of_resource in request.resource_spans {
            let attributes = of_resource.resource.unwrap().attributes.into_iter();
            let attributes = attributes.map(|pair| (pair.key, text_of(pair.value.unwrap().value)));
            resources.lock().unwrap().push(attributes.collect());
            for scope in of_resource.scope_spans {
                spans.lock().unwrap().extend(scope.spans);
            }
        }
        let answer =
            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    }
}

fn text_of(value: Option<AnyValue>) -> String {
    match value {
        Some(AnyValue::StringValue(text)) => text,
        Some(AnyValue::IntValue(number)) => number.to_string(),
        Some(AnyValue::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    }
}

/// The spans of one trace.
struct Trace(Vec<Span>);

impl Trace {
    fn named(&self, name: &str) -> Vec<&Span> {
        self.0.iter().filter(|span| span.name == name).collect()
    }

    #[track_caller]
    fn only(&self, name: &str) -> &Span {
        let named = self.named(name);
        assert_eq!(named.len(), 1, "{name}: {:?}", self.names());
        named[0]
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|span| span.name.as_str()).collect()
    }

    #[track_caller]
    fn check_below(&self, name: &str, parent: &Span) {
        for span in self.named(name) {
            assert_eq!(
                span.parent_span_id, parent.span_id,
                "{name} below {}",
                parent.name
            );
        }
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let pair = span.attributes.iter().find(|pair| pair.key == key)?;
    Some(text_of(pair.value.clone()?.value))
}

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
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
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
    trace.check_below("store.save", session);
    let segment = trace.only("segment");
    trace.check_below("segment", session);
    assert_eq!(
        attribute(segment, "gen_ai.output.type").as_deref(),
        Some("video")
    );
    assert_eq!(
        attribute(segment, "fastvideo.frames").as_deref(),
        Some("12")
    );
    let jobs = trace.named("job");
    assert_eq!(jobs.len(), 2, "{:?}", trace.names());
    trace.check_below("job", segment);
    let status = |span: &Span| span.status.as_ref().map_or(0, |status| status.code);
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
    let free = StdListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let flag = format!("--otlp-endpoint=http://{address}");
    let server = Server::start(&[&flag]);
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;
    let failed = until("spans are counted as failed", async || {
        let (_, text) = server.get("/metrics").await;
        let text = text.as_str().unwrap().to_owned();
        let line = text
            .lines()
            .find(|line| line.contains("trace_spans_total{outcome=\"failed\"}"));
        let count: f64 = line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
        (count > 0.0).then_some(count)
    })
    .await;
    assert!(failed >= 10.0, "{failed}");
    assert!(
        server
            .log()
            .contains("the collector of traces takes no spans")
    );
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
