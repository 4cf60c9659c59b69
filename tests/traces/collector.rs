//! A collector of traces that keeps what it is sent, and what tests look at in it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{Server, until};

/// A collector that keeps what it is sent.
pub(crate) struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    pub(crate) resources: Arc<Mutex<Vec<BTreeMap<String, String>>>>,
    served: Mutex<JoinSet<()>>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
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

    pub(crate) fn flag(&self) -> String {
        format!("--otlp-endpoint=http://{}", self.address)
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// Waits until the span of the session has come, which is its last one.
    pub(crate) async fn session(&self) -> Trace {
        self.until("session", 1).await
    }

    /// Waits until so many spans of that name have come.
    pub(crate) async fn until(&self, name: &str, count: usize) -> Trace {
        let spans = until(&format!("{count} spans {name} come"), async || {
            let spans = self.spans();
            let named = spans.iter().filter(|span| span.name == name);
            (named.count() >= count).then_some(spans)
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

/// Spans that have come.
pub(crate) struct Trace(pub(crate) Vec<Span>);

impl Trace {
    pub(crate) fn named(&self, name: &str) -> Vec<&Span> {
        self.0.iter().filter(|span| span.name == name).collect()
    }

    #[track_caller]
    pub(crate) fn only(&self, name: &str) -> &Span {
        let named = self.named(name);
        assert_eq!(named.len(), 1, "{name}: {:?}", self.names());
        named[0]
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.0.iter().map(|span| span.name.as_str()).collect()
    }

    #[track_caller]
    pub(crate) fn check_below(&self, name: &str, parent: &Span) {
        let named = self.named(name);
        assert!(!named.is_empty(), "{name}: {:?}", self.names());
        for span in named {
            assert_eq!(
                span.parent_span_id, parent.span_id,
                "{name} below {}",
                parent.name
            );
        }
    }

    /// The spans below a span, and those below them.
    pub(crate) fn below(&self, parent: &Span) -> Vec<&Span> {
        let children = self.0.iter();
        let children = children.filter(|span| span.parent_span_id == parent.span_id);
        let with_theirs = children.flat_map(|child| [vec![child], self.below(child)].concat());
        with_theirs.collect()
    }
}

pub(crate) fn attribute(span: &Span, key: &str) -> Option<String> {
    let pair = span.attributes.iter().find(|pair| pair.key == key)?;
    Some(text_of(pair.value.clone()?.value))
}

/// The code of a span's status.
pub(crate) fn status(span: &Span) -> i32 {
    span.status.as_ref().map_or(0, |status| status.code)
}

/// An id in hexadecimal digits.
pub(crate) fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The trace and the span of a `traceparent`.
pub(crate) fn ids(traceparent: &str) -> (&str, &str) {
    (&traceparent[3..35], &traceparent[36..52])
}

/// The spans that a span links to.
pub(crate) fn links(span: &Span) -> Vec<String> {
    span.links.iter().map(|link| hex(&link.span_id)).collect()
}

/// How many spans have that outcome.
pub(crate) async fn counted(server: &Server, outcome: &str) -> f64 {
    let (_, text) = server.get("/metrics").await;
    let text = text.as_str().unwrap().to_owned();
    let series = format!("trace_spans_total{{outcome=\"{outcome}\"}}");
    let line = text.lines().find(|line| line.contains(&series));
    line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap()
}
