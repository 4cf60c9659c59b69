//! Prompts that a classifier calls unsafe, and servers without the classifier that they should have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Client, Segment, Server, command, until};
use crate::prompts;
use crate::provider::{Provider, Reply};

pub(crate) const HARMFUL: &str = "blood weapon explode";
pub(crate) const HARMLESS: &str = "garden kitten picnic";

/// A classifier that knows the two prompts above. The server loads it when the first prompt comes.
pub(crate) struct Classifier {
    pub(crate) path: PathBuf,
    _folder: TempDir,
}

impl Classifier {
    #[expect(
        clippy::disallowed_methods,
        reason = "trains a model, which is no worker"
    )]
    pub(crate) fn train() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (examples, model) = (
            folder.path().join("examples"),
            folder.path().join("classifier"),
        );
        let lines = format!("__label__unsafe {HARMFUL}\n__label__safe {HARMLESS}\n");
        fs::write(&examples, lines.repeat(50)).unwrap();
        let trained = Command::new("fasttext")
            .arg("supervised")
            .arg("-input")
            .arg(examples)
            .arg("-output")
            .arg(&model)
            .args("-dim 8 -epoch 20 -lr 1 -thread 1 -verbose 0".split(' '))
            .stdout(Stdio::null())
            .status()
            .expect("fasttext is installed (make test does that)");
        assert!(trained.success());
        Self {
            path: model.with_extension("bin"),
            _folder: folder,
        }
    }

    fn server(&self, args: &[&str]) -> Server {
        Server::start(&[&with(&self.path).each_ref().map(String::as_str), args].concat())
    }
}

/// Flags of a server with this classifier.
pub(crate) fn with(classifier: &Path) -> [String; 2] {
    [
        "--streaming.safety.enabled=true".to_owned(),
        format!(
            "--streaming.safety.classifier_path={}",
            classifier.display()
        ),
    ]
}

async fn expect_blocked(client: &mut Client) {
    let error = client.error().await;
    assert_eq!(error["code"], "prompt_blocked");
    assert_eq!(error["retryable"], false);
    let message = "the prompt was blocked by the safety filter";
    assert_eq!(error["message"], message);
}

/// Waits until the log has said it.
async fn logged(server: &Server, what: &str) {
    until("it is logged", async || {
        server.log().contains(what).then_some(())
    })
    .await;
}

fn prompt_of(segment: &Segment) -> &str {
    let start = segment.only("ltx2_segment_start");
    start["prompt"].as_str().unwrap()
}

#[tokio::test]
async fn a_prompt_that_is_called_unsafe_makes_no_segment_and_is_not_logged() {
    let classifier = Classifier::train();
    let server = classifier.server(&["--log-level=debug"]);
    assert_eq!(server.status().await["safety"]["state"], "not_loaded");
    let mut client = server.open(json!({})).await;
    let start = client.until_type("ltx2_stream_start").await;
    assert_eq!(start["features"]["safety"], true);

    client.prompt(HARMFUL).await;
    expect_blocked(&mut client).await;
    client.prompt(&format!("kitten\n{HARMFUL}")).await;
    expect_blocked(&mut client).await;
    let segment = client.segment(HARMLESS).await;
    assert_eq!(prompt_of(&segment), HARMLESS);
    assert_eq!(segment.only("ltx2_segment_start")["segment_idx"], 0);

    let status = server.status().await["safety"].clone();
    assert_eq!(
        status,
        json!({"state": "ready", "reason": null, "screened": 3, "blocked": 2})
    );
    logged(&server, "prompt blocked").await;
    assert!(!server.log().contains("weapon"), "{}", server.log());
}

#[tokio::test]
async fn blocked_prompts_are_logged_when_that_is_wanted() {
    let classifier = Classifier::train();
    let server = classifier.server(&["--streaming.safety.log_prompts=true"]);
    let mut client = server.active(json!({})).await;
    client.prompt(HARMFUL).await;
    expect_blocked(&mut client).await;
    logged(&server, HARMFUL).await;
}

#[tokio::test]
async fn curated_prompts_that_are_called_unsafe_are_left_out() {
    let classifier = Classifier::train();
    let server = classifier.server(&[]);
    let mut client = server
        .open(json!({"curated_prompts": [HARMLESS, HARMFUL, "picnic"], "loop_generation_enabled": true}))
        .await;
    let mut blocked = 0;
    let mut shown = Vec::new();
    while shown.len() < 4 {
        let segment = client.collect_until("ltx2_segment_complete").await;
        let errors = segment.of("error");
        assert!(errors.iter().all(|e| e["code"] == "prompt_blocked"));
        blocked += errors.len();
        shown.push(prompt_of(&segment).to_owned());
    }
    assert_eq!(shown, [HARMLESS, "picnic", HARMLESS, "picnic"]);
    assert_eq!(blocked, 1);
}

/// A server whose language model always answers with the harmful prompt.
async fn server_with_model(classifier: &Classifier) -> (Server, Provider) {
    let provider = Provider::always(|| Reply::Say(HARMFUL.to_owned())).await;
    let args = prompts::with(&provider, &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    (classifier.server(&args), provider)
}

#[tokio::test]
async fn what_a_model_makes_of_a_prompt_is_judged_and_it_sees_no_unsafe_one() {
    let classifier = Classifier::train();
    let (server, provider) = server_with_model(&classifier).await;
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    client.prompt(HARMFUL).await;
    expect_blocked(&mut client).await;
    assert_eq!(provider.asked().len(), 0);
    client.prompt(HARMLESS).await;
    expect_blocked(&mut client).await;
    assert_eq!(provider.asked().len(), 1);
    client
        .send(json!({"type": "enhancement_updated", "enabled": false}))
        .await;
    let segment = client.segment(HARMLESS).await;
    assert_eq!(prompt_of(&segment), HARMLESS);
    logged(&server, "prompt blocked").await;
    assert!(!server.log().contains("weapon"), "{}", server.log());
}

#[tokio::test]
async fn what_a_model_continues_with_is_judged() {
    let classifier = Classifier::train();
    let (server, provider) = server_with_model(&classifier).await;
    let mut client = server.active(json!({"auto_extension_enabled": true})).await;
    client.prompt(HARMLESS).await;
    let start = client.until_type("ltx2_segment_start").await;
    assert_eq!(start["prompt"], HARMLESS);
    expect_blocked(&mut client).await;
    // Not at once: the session rests before it tries again.
    provider.asked_times(2).await;
    client.prompt("picnic").await;
    let start = client.until_type("ltx2_segment_start").await;
    assert_eq!(start["prompt"], "picnic");
}

#[tokio::test]
async fn a_threshold_of_one_lets_doubtful_prompts_pass() {
    let classifier = Classifier::train();
    let server = classifier.server(&["--streaming.safety.block_threshold=1"]);
    let mut client = server.active(json!({})).await;
    client.segment(&format!("{HARMFUL} {HARMLESS}")).await;
}

#[tokio::test]
async fn every_prompt_passes_while_the_classifier_is_unavailable() {
    let flags = with(Path::new("/nowhere/model.ftz"));
    let server = Server::start(&flags.each_ref().map(String::as_str));
    let mut client = server.active(json!({})).await;
    for _ in 0..2 {
        client.segment(HARMFUL).await;
    }
    let status = server.status().await["safety"].clone();
    assert_eq!(status["state"], "unavailable");
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.starts_with("the classifier /nowhere/model.ftz cannot be loaded: "));
    let news = "safety filter unavailable";
    logged(&server, news).await;
    assert_eq!(server.log().matches(news).count(), 1);
    drop(client);
    let mut client = server.open(json!({})).await;
    let start = client.until_type("ltx2_stream_start").await;
    assert_eq!(start["features"]["safety"], false);
}

#[tokio::test]
async fn a_server_without_a_filter_says_so() {
    let server = Server::start(&[]);
    assert_eq!(server.status().await["safety"]["state"], "off");
    let mut client = server.open(json!({})).await;
    let start = client.until_type("ltx2_stream_start").await;
    assert_eq!(start["features"]["safety"], false);
}

#[test]
fn a_server_does_not_start_without_a_classifier_that_is_required() {
    let classifier = Classifier::train();
    let whole = fs::read(&classifier.path).unwrap();
    fs::write(&classifier.path, &whole[..whole.len() - 1]).unwrap();
    let output = command()
        .args(["--host", "127.0.0.1", "--port", "0"])
        .args(with(&classifier.path))
        .arg("--streaming.safety.required=true")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("cannot be loaded: cut off or damaged: the output matrix takes"),
        "{log}"
    );
}
