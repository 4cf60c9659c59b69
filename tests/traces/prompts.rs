//! The spans of prompts: screenings, and requests to language models.

use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::json;

use super::collector::{Collector, Trace, attribute, status};
use crate::harness::{Server, WATCHFUL};
use crate::provider::{Provider, Reply};
use crate::safety::{self, Classifier, HARMFUL, HARMLESS};

/// A server with a classifier, and with a provider that fails before one that answers.
struct Writing {
    server: Server,
    _classifier: Classifier,
    _providers: [Provider; 2],
}

impl Writing {
    async fn start(args: &[&str]) -> Self {
        let classifier = Classifier::train();
        let providers = [
            Provider::always(|| Reply::Status(500)).await,
            Provider::always(|| Reply::Say(format!("{HARMLESS} {HARMLESS}"))).await,
        ];
        let provider = |provider: &Provider, model: &str| json!({"provider": "openai_compatible", "base_url": provider.base_url, "model": model});
        let list = json!([
            provider(&providers[0], "one"),
            provider(&providers[1], "two")
        ]);
        let list = format!("--streaming.prompt.providers={list}");
        let screened = safety::with(&classifier.path);
        let own = [
            "--streaming.prompt.enabled=true",
            &list,
            &screened[0],
            &screened[1],
        ];
        Self {
            server: Server::start(&[&own, args].concat()),
            _classifier: classifier,
            _providers: providers,
        }
    }
}

/// The spans below the only segment, with it.
fn of_segment(trace: &Trace) -> usize {
    1 + trace.below(trace.only("segment")).len()
}

#[tokio::test]
async fn each_provider_that_is_asked_and_each_screening_is_a_span() {
    let collector = Collector::start().await;
    let writing = Writing::start(&["--gpus=1", &collector.flag()]).await;
    let mut client = writing
        .server
        .active(json!({"enhancement_enabled": true}))
        .await;
    client.segment(HARMLESS).await;
    client.prompt(HARMFUL).await;
    client.error().await;
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;

    let trace = collector.session().await;
    let (session, segment) = (trace.only("session"), trace.only("segment"));
    let asked = trace.named("prompt.enhance");
    assert_eq!(asked.len(), 2, "{:?}", trace.names());
    trace.check_below("prompt.enhance", segment);
    let models: Vec<_> = (asked.iter())
        .map(|span| attribute(span, "gen_ai.request.model").unwrap())
        .collect();
    assert_eq!(models, ["one", "two"]);
    assert_eq!(status(asked[0]), StatusCode::Error as i32);
    assert_eq!(
        attribute(asked[0], "error.type").as_deref(),
        Some("server_error")
    );
    assert_eq!(status(asked[1]), StatusCode::Unset as i32);
    assert!(asked[0].end_time_unix_nano <= asked[1].start_time_unix_nano);
    // The client's prompt and the model's, and one that makes no segment.
    let screened = trace.named("safety.screen");
    let mut verdicts: Vec<_> = (screened.iter())
        .map(|span| {
            let parent = match &span.parent_span_id {
                id if *id == segment.span_id => "segment",
                id if *id == session.span_id => "session",
                _ => "another one",
            };
            (parent, attribute(span, "fastvideo.verdict").unwrap())
        })
        .collect();
    verdicts.sort();
    let expected = [
        ("segment", "passed"),
        ("segment", "passed"),
        ("session", "blocked"),
    ];
    assert_eq!(
        verdicts,
        expected.map(|(parent, verdict)| (parent, verdict.to_owned()))
    );
    let shown = format!("{:?}", trace.0).to_lowercase();
    assert!(
        !shown.contains("kitten") && !shown.contains("weapon"),
        "{shown}"
    );
    assert!(of_segment(&trace) <= 20, "{:?}", trace.names());
}

#[tokio::test]
async fn a_segment_has_twenty_spans_at_most() {
    let collector = Collector::start().await;
    let faults = "--generator.synthetic.faults=exit@step2,max_attempt=4";
    let flag = collector.flag();
    let args = [WATCHFUL, &["--gpus=2", faults, &flag]].concat();
    let writing = Writing::start(&args).await;
    let mut client = writing
        .server
        .active(json!({"enhancement_enabled": true}))
        .await;
    client.segment(HARMLESS).await;
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;

    let trace = collector.session().await;
    assert_eq!(of_segment(&trace), 20, "{:?}", trace.names());
    // What tells most is there: each attempt, and the way of the media to the client.
    assert_eq!(trace.named("job").len(), 5);
    for name in ["generate", "send", "store.save"] {
        trace.only(name);
    }
}
