//! The session log: what is in a session's file, whatever becomes of the session, the server and the disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Client, Heard, Server, WATCHFUL, until};
use crate::prompts;
use crate::provider::{Provider, Reply};
use crate::safety::{self, Classifier, HARMFUL, HARMLESS};

/// The file of the only session, once it is there.
async fn only_file(folder: &Path) -> PathBuf {
    until("the session has a file", async || {
        let files = fs::read_dir(folder).ok()?;
        let mut files = files.map(|file| file.unwrap().path());
        // The key is there, too.
        files.find(|path| path.extension().is_some_and(|it| it == "jsonl"))
    })
    .await
}

/// Whole lines.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// The lines once there is one of this event.
async fn lines_until(path: &Path, event: &str) -> Vec<Value> {
    let line = format!("\"event\":\"{event}\"");
    until(&format!("{event} is logged"), async || {
        let text = fs::read(path).unwrap();
        String::from_utf8_lossy(&text).contains(&line).then_some(())
    })
    .await;
    lines(path)
}

fn events(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|l| l["event"].as_str().unwrap()).collect()
}

/// The payloads of one event.
fn of<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    let lines = lines.iter().filter(|l| l["event"] == event);
    lines.map(|l| &l["payload"]).collect()
}

/// A supervisor with one GPU that keeps its log there.
async fn with_log(folder: &Path, args: &[&str]) -> Server {
    let log = format!("--session-log-dir={}", folder.display());
    let server = Server::start(&[&["--gpus=1", &log], args].concat());
    server.ready(1).await;
    server
}

/// The same, with a language model.
async fn with_log_and_model(folder: &Path, model: &Provider) -> Server {
    let args = prompts::with(model, &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    with_log(folder, &args).await
}

async fn leave(mut client: Client) {
    client.send(json!({"type": "leave"})).await;
    assert_eq!(client.closed().await, Some(1000));
}

#[tokio::test]
async fn two_segments_are_logged_from_the_request_to_the_last_byte() {
    let folder = TempDir::new().unwrap();
    let server = with_log(folder.path(), &[]).await;
    let mut client = server.active(json!({"client_id": "me"})).await;
    for prompt in ["a red fox", "the fox \"runs\"\naway"] {
        client.segment(prompt).await;
    }
    leave(client).await;
    let path = only_file(folder.path()).await;
    let lines = lines_until(&path, "closed").await;

    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let id = lines[0]["session_id"].as_str().unwrap();
    assert!(path.ends_with(format!("session-{id}.jsonl")));
    for line in &lines {
        let fields: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["event", "payload", "session_id", "ts"]);
        assert_eq!(line["session_id"], id);
    }
    let times: Vec<f64> = lines.iter().map(|l| l["ts"].as_f64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");

    // The writer of the connection says when media were sent: where that falls among the worker's events is chance. The
    // signature may come a moment later.
    let order: Vec<&str> = events(&lines)
        .into_iter()
        .filter(|event| !matches!(*event, "first_byte" | "last_byte" | "signed"))
        .collect();
    let segment = [
        "message",
        "prompt_received",
        "segment_queued",
        "segment_started",
        "step",
        "step",
        "step",
        "step",
        "segment_finished",
    ];
    let begin = ["opened", "state", "assigned", "state"];
    let end = ["message", "state", "closed"];
    assert_eq!(order, [&begin[..], &segment, &segment, &end].concat());

    assert_eq!(of(&lines, "opened")[0]["client_id"], "me");
    let states: Vec<_> = of(&lines, "state");
    assert_eq!(
        states[0],
        &json!({"from": "INITIALIZING", "to": "GPU_BINDING"})
    );
    assert_eq!(states[2], &json!({"from": "ACTIVE", "to": "COMPLETE"}));
    assert_eq!(of(&lines, "assigned")[0]["worker_id"], "gpu0-1");
    let messages = of(&lines, "message");
    let types: Vec<_> = messages
        .iter()
        .map(|m| m["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        types,
        ["segment_prompt_source", "segment_prompt_source", "leave"]
    );
    assert_eq!(
        of(&lines, "prompt_received")[1],
        &json!({"source": "user", "prompt": "the fox \"runs\"\naway"})
    );
    for idx in 0..2 {
        let finished = of(&lines, "segment_finished")[idx];
        assert_eq!(
            (&finished["segment_idx"], &finished["frames"]),
            (&json!(idx), &json!(12))
        );
        for (event, times) in [
            ("segment_queued", &["waited_ms"][..]),
            ("segment_started", &["queue_ms"]),
            (
                "segment_finished",
                &["generation_ms", "decode_ms", "encode_ms"],
            ),
            ("first_byte", &["ms"]),
            ("last_byte", &["ms"]),
        ] {
            let payload = of(&lines, event)[idx];
            assert_eq!(payload["segment_idx"], idx, "{event}");
            for time in times {
                assert!(payload[time].as_f64().unwrap() > 0.0, "{event}: {payload}");
            }
        }
        let (first, last) = (of(&lines, "first_byte")[idx], of(&lines, "last_byte")[idx]);
        assert!(first["ms"].as_f64() <= last["ms"].as_f64());
        assert!(last["bytes"].as_u64().unwrap() > 1000);
    }
    let closed = of(&lines, "closed")[0];
    assert_eq!(
        closed,
        &json!({"cause": "left", "state": "COMPLETE", "segments": 2})
    );
}

#[tokio::test]
async fn a_killed_server_leaves_whole_lines_and_the_resumed_session_goes_on_in_the_same_file() {
    let folder = TempDir::new().unwrap();
    let store = TempDir::new().unwrap();
    let store = format!("--store=file://{}", store.path().display());
    let args = [store.as_str(), "--streaming.store.lease_seconds=1"];
    let mut server = with_log(folder.path(), &args).await;
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.segment("a red fox").await;
    let path = only_file(folder.path()).await;
    lines_until(&path, "last_byte").await;
    // So much is logged that the server dies while it writes.
    for _ in 0..2000 {
        client
            .send(json!({"type": "generation_paused_updated", "paused": false}))
            .await;
    }
    until("a good deal is logged", async || {
        (fs::metadata(&path).unwrap().len() > 20_000).then_some(())
    })
    .await;
    server.kill().await;
    let before = lines(&path);

    // A machine that lost its power may leave less than a line.
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(br#"{"session_id":"#);
    fs::write(&path, torn).unwrap();
    let server = with_log(folder.path(), &args).await;
    let resume = json!({"session_id": assigned["session_id"], "token": assigned["resume_token"]});
    let client = until("the session can be resumed", async || {
        let mut client = server.open(json!({"resume": resume})).await;
        loop {
            match client.next().await {
                Heard::Text(text) if text["type"] == "ltx2_stream_start" => return Some(client),
                Heard::Closed(_) => return None,
                _ => {}
            }
        }
    })
    .await;
    leave(client).await;
    let after = lines_until(&path, "closed").await;
    assert_eq!(after[..before.len()], before);
    let opened = of(&after, "opened");
    assert_eq!(opened.len(), 2);
    assert_eq!(
        (&opened[1]["resumed"], &opened[1]["next_segment_idx"]),
        (&json!(true), &json!(1))
    );
}

#[tokio::test]
async fn a_dead_worker_is_a_fault_and_the_segment_has_a_second_attempt() {
    let folder = TempDir::new().unwrap();
    let faults = "--generator.synthetic.faults=stop@step3,max_attempt=1";
    let args = [
        WATCHFUL,
        &[faults, "--streaming.pool.heartbeat_timeout_ms=60000"],
    ]
    .concat();
    let server = with_log(folder.path(), &args).await;
    let mut client = server.active(json!({})).await;
    client.prompt("a red fox").await;
    client.until_type("step_complete").await;
    kill(server.worker_pid(0).await, Signal::SIGKILL).unwrap();
    client.until_type("ltx2_segment_complete").await;
    leave(client).await;
    let path = only_file(folder.path()).await;
    let lines = lines_until(&path, "closed").await;
    let fault = of(&lines, "fault")[0];
    assert_eq!(
        (&fault["worker_id"], &fault["attempt"]),
        (&json!("gpu0-1"), &json!(1))
    );
    assert!(
        fault["reason"].as_str().unwrap().contains("signal"),
        "{fault}"
    );
    assert_eq!(
        of(&lines, "handoff")[0],
        &json!({"from": "gpu0-1", "to": "gpu0-2"})
    );
    let finished = of(&lines, "segment_finished");
    assert_eq!((finished.len(), &finished[0]["attempt"]), (1, &json!(2)));
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_reported_once_and_ends_no_session() {
    let folder = TempDir::new().unwrap();
    // A file where the folder should be stops root too.
    let blocked = folder.path().join("log");
    fs::write(&blocked, "").unwrap();
    let server = with_log(&blocked, &[]).await;
    for _ in 0..2 {
        let mut client = server.active(json!({})).await;
        client.segment("a red fox").await;
        leave(client).await;
    }
    let said = "the session log cannot be written";
    until("the trouble is said", async || {
        server.log().contains(said).then_some(())
    })
    .await;
    until("lines are counted as lost", async || {
        let lost = server.status().await["session_log"]["events_lost"].as_u64();
        lost.filter(|lost| *lost > 20)
    })
    .await;
    assert_eq!(server.log().matches(said).count(), 1, "{}", server.log());
}

#[tokio::test]
async fn what_the_client_says_wrong_is_logged_with_the_answer() {
    let folder = TempDir::new().unwrap();
    let server = with_log(folder.path(), &[]).await;
    let mut client = server.active(json!({})).await;
    client.send_text("{\"type\": \"secret-type\"}").await;
    client.error().await;
    client.send(json!({"type": "cancel_segment"})).await;
    client.error().await;
    leave(client).await;
    let path = only_file(folder.path()).await;
    let lines = lines_until(&path, "closed").await;
    let messages = of(&lines, "message");
    assert_eq!(messages[0], &json!({"type": "invalid", "bytes": 23}));
    assert_eq!(messages[1]["type"], "cancel_segment");
    let errors = of(&lines, "error");
    assert_eq!(errors[1]["code"], "invalid_message");
    assert_eq!(errors[1]["message"], "no segment is running");
}

#[tokio::test]
async fn what_models_write_is_logged_with_the_time_that_it_took() {
    let folder = TempDir::new().unwrap();
    let provider = Provider::shouting().await;
    let server = with_log_and_model(folder.path(), &provider).await;
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    client.segment("a fox").await;
    client
        .send(json!({"type": "rewrite_seed_prompts", "seed_prompt": "an owl", "count": 1}))
        .await;
    client.until_type("seed_prompts_rewritten").await;
    leave(client).await;
    let path = only_file(folder.path()).await;
    let lines = lines_until(&path, "closed").await;

    let enhanced = of(&lines, "prompt_enhanced")[0];
    assert_eq!(
        (&enhanced["original_prompt"], &enhanced["prompt"]),
        (&json!("a fox"), &json!("A FOX"))
    );
    let by = (&enhanced["provider"], &enhanced["model"]);
    assert_eq!(by, (&json!("openai_compatible"), &json!("test-model")));
    assert!(enhanced["latency_ms"].as_f64().unwrap() > 0.0);
    let queued = of(&lines, "segment_queued")[0];
    assert_eq!(
        (&queued["original_prompt"], &queued["prompt"]),
        (&json!("a fox"), &json!("A FOX"))
    );
    let rewritten = of(&lines, "prompt_rewritten")[0];
    assert_eq!(rewritten["seed_prompt"], "an owl");
    assert_eq!(rewritten["alternatives"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_model_that_does_not_answer_is_logged_as_a_fallback() {
    let folder = TempDir::new().unwrap();
    let provider = Provider::always(|| Reply::Status(500)).await;
    let server = with_log_and_model(folder.path(), &provider).await;
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    client.segment("a fox").await;
    leave(client).await;
    let path = only_file(folder.path()).await;
    let lines = lines_until(&path, "closed").await;
    let fallback = of(&lines, "prompt_fallback")[0];
    assert_eq!(fallback["original_prompt"], "a fox");
    assert!(!fallback["reason"].as_str().unwrap().is_empty());
    assert_eq!(of(&lines, "segment_queued")[0]["prompt"], "a fox");
}

#[tokio::test]
async fn a_blocked_prompt_is_in_the_log_only_when_that_is_wanted() {
    let classifier = Classifier::train();
    let flags = safety::with(&classifier.path);
    for wanted in [false, true] {
        let folder = TempDir::new().unwrap();
        let log_prompts = format!("--streaming.safety.log_prompts={wanted}");
        let args = [flags[0].as_str(), flags[1].as_str(), log_prompts.as_str()];
        let server = with_log(folder.path(), &args).await;
        let mut client = server.active(json!({})).await;
        client.prompt(HARMFUL).await;
        assert_eq!(client.error().await["code"], "prompt_blocked");
        client.segment(HARMLESS).await;
        leave(client).await;
        let path = only_file(folder.path()).await;
        let lines = lines_until(&path, "closed").await;
        let shown = wanted.then_some(HARMFUL);
        assert_eq!(of(&lines, "prompt_blocked"), [&json!({"prompt": shown})]);
        assert_eq!(of(&lines, "prompt_received")[0]["prompt"], json!(shown));
        assert_eq!(of(&lines, "segment_queued")[0]["prompt"], HARMLESS);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.contains(HARMFUL), wanted);
    }
}
