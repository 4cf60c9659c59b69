//! Sessions that are replayed from their logs, by the program itself: what is equal, what is different, and what is
//! refused.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use fastvideo_supervisor_core::session::log::signature::{Signature, Signer};
use futures_util::StreamExt;
use futures_util::stream;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::cli::run;
use crate::harness::{Client, Heard, Server, WATCHFUL, until};
use crate::safety::{self, Classifier, HARMFUL, HARMLESS};

/// A cancellation needs some time.
const STEP: &str = "--generator.synthetic.step_ms=100";

/// A supervisor that keeps its log there.
async fn with_log(folder: &Path, gpus: usize, args: &[&str]) -> Server {
    let log = format!("--session-log-dir={}", folder.display());
    let gpus_arg = format!("--gpus={gpus}");
    let server = Server::start(&[&[gpus_arg.as_str(), &log][..], WATCHFUL, args].concat());
    server.ready(gpus).await;
    server
}

/// The file of a session, once that is closed and signed.
async fn signed(folder: &Path, session: &str) -> PathBuf {
    let path = folder.join(format!("session-{session}.jsonl"));
    until("the session's log is signed", async || {
        let text = fs::read_to_string(&path).ok()?;
        let last = text.lines().last()?.contains(r#""event":"signed""#);
        last.then_some(())
    })
    .await;
    path
}

/// Opens a session, and returns its id.
async fn open(server: &Server) -> (Client, String) {
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let id = assigned["session_id"].as_str().unwrap().to_owned();
    (client, id)
}

async fn leave(mut client: Client) {
    client.send(json!({"type": "leave"})).await;
    assert_eq!(client.closed().await, Some(1000));
}

fn request(prompt: &str, seed: u64) -> Value {
    json!({
        "type": "segment_prompt_source", "prompt": prompt, "seed": seed, "num_inference_steps": 3,
        "guidance_scale": 2.5,
    })
}

/// Runs `sessions replay`.
async fn replay(file: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let file = file.to_str().unwrap();
    run(&[&["sessions", "replay", file][..], args].concat()).await
}

async fn equal(file: &Path, args: &[&str]) {
    let (code, stdout, stderr) = replay(file, args).await;
    assert_eq!(code, Some(0), "{}: {stdout}{stderr}", file.display());
    assert!(stdout.contains("equal"), "{stdout}");
}

async fn refused(file: &Path, args: &[&str], why: &str) {
    let (code, stdout, stderr) = replay(file, args).await;
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    assert!(stderr.contains(why), "{why} in {stderr}");
}

/// A session with all that may happen to it: its worker stops during the second segment and is killed, the third one is
/// cancelled, and the session is moved before the last.
async fn faulty(folder: &Path) -> PathBuf {
    let stops = "--generator.synthetic.faults=stop@step2,segment=1,max_attempt=1";
    let server = with_log(folder, 2, &[STEP, stops]).await;
    let (mut client, id) = open(&server).await;
    client.send(request("a red fox", 1)).await;
    client.until_type("ltx2_segment_complete").await;
    client.send(request("it runs", u64::MAX)).await;
    // The third waits while the second runs.
    client.until_type("step_complete").await;
    client.send(request("it sleeps", 3)).await;
    let status = server.status().await;
    let of_session = status["gpu_status"].as_object().unwrap().iter();
    let mut gpu = of_session
        .filter(|(_, gpu)| gpu["client_count"] == 1)
        .map(|(gpu, _)| gpu.parse().unwrap());
    let gpu = gpu.next_back().unwrap();
    kill(server.worker_pid(gpu).await, Signal::SIGKILL).unwrap();
    client.until_type("ltx2_segment_complete").await;
    client.until_type("step_complete").await;
    client.send(json!({"type": "cancel_segment"})).await;
    client.until_type("segment_cancelled").await;
    server.ready(2).await;
    let (code, body) = server.post(&format!("/v1/sessions/{id}/move")).await;
    assert!(code < 300, "{body}");
    client.until_type("gpu_assigned").await;
    client.send(request("it wakes", 4)).await;
    client.until_type("ltx2_segment_complete").await;
    leave(client).await;
    signed(folder, &id).await
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// Writes a file of these lines, without their signatures, beside another one.
fn unsigned(beside: &Path, lines: &[Value]) -> PathBuf {
    let lines = lines.iter().filter(|line| line["event"] != "signed");
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let path = beside.with_file_name("session-copy.jsonl");
    fs::write(&path, text).unwrap();
    path
}

/// Signs a whole file.
fn sign(path: &Path, signer: &Signer) {
    let mut text = fs::read_to_string(path).unwrap();
    let signature: Signature = signer.sign(0, Sha256::digest(&text).into());
    let line = json!({"session_id": "s", "ts": 1.0, "event": "signed", "payload": signature});
    text += &format!("{line}\n");
    fs::write(path, text).unwrap();
}

#[tokio::test]
async fn a_faulty_session_is_replayed_with_its_faults_and_without() {
    let folder = TempDir::new().unwrap();
    let file = faulty(folder.path()).await;
    let recorded = lines(&file);
    let count = |event: &str| recorded.iter().filter(|l| l["event"] == event).count();
    assert_eq!((count("fault"), count("handoff")), (1, 2));
    assert_eq!(
        (count("segment_cancelled"), count("segment_finished")),
        (1, 3)
    );

    equal(&file, &[]).await;
    equal(&file, &["--with-faults"]).await;
    let key = folder.path().join("signing.key");
    let (code, stdout, _) = replay(
        &file,
        &["--with-faults", "--json", "--key", key.to_str().unwrap()],
    )
    .await;
    assert_eq!(code, Some(0), "{stdout}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["equal"], true);
    assert_eq!(report["segments"].as_array().unwrap().len(), 3);
    assert!(report["segments"][2]["replayed"]["generation_ms"].as_f64() > Some(0.0));
    let key = Signer::read(&key).unwrap().key().to_string();
    assert_eq!(report["signature"], format!("signed with {key}"));

    // A server that runs already, which makes segments of the same size.
    let running = Server::start(&["--gpus=1", STEP]);
    let url = format!("ws://{}", running.address);
    equal(&file, &["--against", &url]).await;
    let other = Server::start(&["--gpus=1", "--default_request.sampling.fps=25"]);
    let url = format!("http://{}", other.address);
    refused(&file, &["--against", &url], "25 frames per second").await;
}

#[tokio::test]
async fn a_changed_file_is_told_and_a_changed_seed_gives_another_hash() {
    let folder = TempDir::new().unwrap();
    let server = with_log(folder.path(), 1, &[]).await;
    let (mut client, id) = open(&server).await;
    for (prompt, seed) in [("a red fox", 1), ("it runs", 2)] {
        client.send(request(prompt, seed)).await;
        client.until_type("ltx2_segment_complete").await;
    }
    leave(client).await;
    let file = signed(folder.path(), &id).await;
    let (_, shown, _) = run(&["sessions", "show", file.to_str().unwrap()]).await;
    assert!(shown.contains("The file is signed with "), "{shown}");

    let text = fs::read_to_string(&file).unwrap();
    let changed = file.with_file_name("session-changed.jsonl");
    fs::write(&changed, text.replacen("a red fox", "a bed fox", 1)).unwrap();
    refused(&changed, &[], "changed after it was signed, in lines 1 to ").await;
    let (_, shown, _) = run(&["sessions", "show", changed.to_str().unwrap()]).await;
    assert!(
        shown.contains("The file is changed after it was signed"),
        "{shown}"
    );

    // Another key demands another file.
    let other = TempDir::new().unwrap();
    let other = Signer::open(other.path()).unwrap();
    let key = other.key().to_string();
    refused(&file, &["--key", &key], "must be signed with").await;

    // The segments after it go on from its state.
    let recorded = lines(&file);
    let mut seeded = recorded.clone();
    for line in &mut seeded {
        if line["event"] == "segment_queued" && line["payload"]["segment_idx"] == 0 {
            line["payload"]["seed"] = json!(99);
        }
    }
    let copy = unsigned(&file, &seeded);
    refused(&copy, &["--key", &key], "is not signed in lines 1 to ").await;
    sign(&copy, &other);
    let (code, stdout, stderr) = replay(&copy, &["--key", &key]).await;
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    for segment in 0..2 {
        let differs = format!("segment {segment}: the SHA-256 differs");
        assert!(stdout.contains(&differs), "{stdout}");
    }
    assert!(!stdout.contains("the order of events differs"), "{stdout}");

    // What the log lacks is a difference in the order, unless the session had not come to its end.
    let shorter = |lacks: &[&str]| {
        let is_kept = |line: &&Value| {
            let is_lacking = lacks.iter().any(|event| line["event"] == *event);
            !is_lacking || line["payload"]["segment_idx"] == 0
        };
        recorded.iter().filter(is_kept).cloned().collect::<Vec<_>>()
    };
    let steps = unsigned(&file, &shorter(&["step"]));
    let (code, stdout, _) = replay(&steps, &[]).await;
    assert_eq!(code, Some(1), "{stdout}");
    assert!(
        stdout.contains("the order of events differs after "),
        "{stdout}"
    );
    assert!(stdout.contains("  recorded segment 1 finished"), "{stdout}");
    assert!(
        stdout.contains("  replayed segment 1 denoise 1"),
        "{stdout}"
    );
    let end = unsigned(&file, &shorter(&["segment_finished"]));
    let (code, stdout, _) = replay(&end, &[]).await;
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("not compared"), "{stdout}");
}

#[tokio::test]
async fn what_the_log_does_not_have_is_named() {
    let folder = TempDir::new().unwrap();
    let server = with_log(folder.path(), 1, &[]).await;
    let (mut client, id) = open(&server).await;
    client.send(request("a red fox", 1)).await;
    client.until_type("ltx2_segment_complete").await;
    leave(client).await;
    let file = signed(folder.path(), &id).await;
    let recorded = lines(&file);
    let changed = |event: &str, field: &str, value: Value| {
        let mut lines = recorded.clone();
        for line in lines.iter_mut().filter(|line| line["event"] == event) {
            match &value {
                Value::Null => drop(line["payload"].as_object_mut().unwrap().remove(field)),
                value => line["payload"][field] = value.clone(),
            }
        }
        unsigned(&file, &lines)
    };
    for (event, field) in [
        ("opened", "format"),
        ("assigned", "engine"),
        ("segment_queued", "seed"),
        ("segment_finished", "sha256"),
    ] {
        let why = format!("`{event}` has no `{field}`: an older version has written the file");
        refused(&changed(event, field, Value::Null), &[], &why).await;
    }
    let hydrated = changed("opened", "hydrated", json!(true));
    refused(&hydrated, &[], "a state that its client brought").await;
    let image = changed("opened", "image", json!("fox.png"));
    refused(&image, &[], "the image `fox.png`").await;
    let late = unsigned(&file, &recorded[1..]);
    refused(&late, &[], "does not begin where the session does").await;
    // As the example in the documentation's tests, which an older version has written.
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/session_log/session.jsonl");
    refused(&old, &[], "an older version").await;
    refused(Path::new("/nowhere"), &[], "cannot read /nowhere").await;
}

#[tokio::test]
async fn a_key_that_is_none_stops_the_start() {
    let folder = TempDir::new().unwrap();
    let dir = folder.path().to_str().unwrap();
    let key = "--streaming.session_log.signing_key_file";
    let (code, _, stderr) = run(&["--session-log-dir", dir, key, "/nowhere"]).await;
    assert_eq!(code, Some(2), "{stderr}");
    for word in [
        "streaming.session_log.signing_key_file",
        "cannot read /nowhere",
    ] {
        assert!(stderr.contains(word), "{word} in {stderr}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_without_prompts_is_refused() {
    let folder = TempDir::new().unwrap();
    let classifier = Classifier::train();
    let flags = safety::with(&classifier.path);
    let args = [flags[0].as_str(), flags[1].as_str()];
    let server = with_log(folder.path(), 1, &args).await;
    let (mut client, blocked) = open(&server).await;
    client.prompt(HARMFUL).await;
    client.error().await;
    client.segment(HARMLESS).await;
    leave(client).await;
    let (mut client, negative) = open(&server).await;
    let mut request = request(HARMLESS, 1);
    request["negative_prompt"] = json!("a secret");
    client.send(request).await;
    client.until_type("ltx2_segment_complete").await;
    leave(client).await;
    let file = signed(folder.path(), &blocked).await;
    refused(
        &file,
        &[],
        "the text of a prompt that the safety filter blocked is not in the log",
    )
    .await;
    let file = signed(folder.path(), &negative).await;
    assert!(!fs::read_to_string(&file).unwrap().contains("a secret"));
    refused(
        &file,
        &[],
        "the negative prompt of segment 0 is not in the log",
    )
    .await;

    // Where they are logged, the server of the replay must block the same ones.
    let logged = TempDir::new().unwrap();
    let args = [&args[..], &["--streaming.safety.log_prompts=true"]].concat();
    let server = with_log(logged.path(), 1, &args).await;
    let (mut client, id) = open(&server).await;
    client.prompt(HARMFUL).await;
    client.error().await;
    client.segment(HARMLESS).await;
    leave(client).await;
    let file = signed(logged.path(), &id).await;
    refused(
        &file,
        &[],
        "has blocked prompts of the session, and the server has none",
    )
    .await;
    equal(&file, &args).await;
}

/// Waits for a text of one of these types.
async fn until_any(client: &mut Client, types: &[&str]) {
    loop {
        match client.next().await {
            Heard::Text(text) if types.iter().any(|it| text["type"] == *it) => return,
            Heard::Closed(code) => panic!("closed with {code:?}"),
            _ => {}
        }
    }
}

/// Plays a session in which a worker crashes or hangs; some sessions are moved, and have a cancellation.
async fn disturbed(server: &Server, folder: &Path, n: usize) -> PathBuf {
    let (mut client, id) = open(server).await;
    let fault = if n.is_multiple_of(2) { "crash" } else { "hang" };
    for segment in 0..3 {
        let kind = if segment == n % 3 { fault } else { "calm" };
        let seed = u64::try_from(n * 10 + segment).unwrap();
        client
            .send(request(&format!("{kind} {n} {segment}"), seed))
            .await;
        until_any(&mut client, &["ltx2_segment_complete"]).await;
    }
    if n % 5 == 3 {
        let (code, _) = server.post(&format!("/v1/sessions/{id}/move")).await;
        if code < 300 {
            until_any(&mut client, &["gpu_assigned"]).await;
        }
        client.send(request("moved", 1)).await;
        until_any(&mut client, &["ltx2_segment_complete"]).await;
    }
    if n % 5 == 2 {
        client.send(request("cancelled", 1)).await;
        until_any(&mut client, &["step_complete"]).await;
        client.send(json!({"type": "cancel_segment"})).await;
        // It may come too late.
        until_any(&mut client, &["segment_cancelled", "ltx2_segment_complete"]).await;
    }
    leave(client).await;
    signed(folder, &id).await
}

/// Records so many faulty sessions, and replays them.
async fn all_equal(sessions: Range<usize>, at_once: usize) {
    let folder = TempDir::new().unwrap();
    let faults = "--generator.synthetic.faults=abort@step2,prompt=crash,max_attempt=1;stop@step2,prompt=hang,max_attempt=1";
    let args = ["--generator.synthetic.step_ms=20", faults];
    let server = with_log(folder.path(), at_once + 1, &args).await;
    let recorded: Vec<PathBuf> = stream::iter(sessions.clone())
        .map(|n| disturbed(&server, folder.path(), n))
        .buffer_unordered(at_once)
        .collect()
        .await;
    drop(server);
    let faults = |file: &PathBuf| lines(file).iter().filter(|l| l["event"] == "fault").count();
    assert!(recorded.iter().all(|file| faults(file) >= 1));
    let replayed = stream::iter(&recorded)
        .map(|file| equal(file, &["--with-faults"]))
        .buffer_unordered(at_once)
        .count()
        .await;
    assert_eq!(replayed, sessions.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_faulty_sessions_are_replayed_with_equal_order_and_hashes() {
    match std::env::var("FASTVIDEO_TEST_FLEET").is_ok() {
        true => all_equal(0..100, 4).await,
        false => all_equal(0..4, 2).await,
    }
}
