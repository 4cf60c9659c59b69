//! The `client` subcommand: lost connections, sessions that are left and resumed, and TLS.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr};
use tokio::time::timeout;

use crate::harness::{PATIENCE, Server, command};
use crate::provider::Provider;
use crate::tls::{TlsProxy, tls_file};
use crate::{prompts, readback};

/// Slow enough that a segment can be interrupted.
const SLOW: &str = "--generator.synthetic.frame_ms=60";

/// A client that runs.
pub(crate) struct Running {
    pub(crate) child: Child,
    stderr: Lines<BufReader<ChildStderr>>,
    said: String,
}

impl Running {
    pub(crate) fn start(server: &Server, args: &[&str]) -> Self {
        Self::start_at(&server.address, "", args)
    }

    /// Starts a client that trusts the authorities in a file as those of the system.
    pub(crate) fn start_at(url: &str, system_authorities: &str, args: &[&str]) -> Self {
        let mut child = tokio::process::Command::from(command())
            .env("SSL_CERT_FILE", system_authorities)
            .env_remove("SSL_CERT_DIR")
            .args(["client", "--json", "--url", url])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        Self {
            child,
            stderr,
            said: String::new(),
        }
    }

    /// Waits until it says something.
    pub(crate) async fn says(&mut self, words: &str) {
        let found = async {
            while let Some(line) = self.stderr.next_line().await.unwrap() {
                self.said += &format!("{line}\n");
                if line.contains(words) {
                    return true;
                }
            }
            false
        };
        let found = timeout(PATIENCE, found).await.expect("it says so in time");
        assert!(found, "{words} in {}", self.said);
    }

    /// Its exit code, its summary, and all that it has said.
    pub(crate) async fn end(mut self) -> (Option<i32>, Value, String) {
        let ended = async {
            while let Some(line) = self.stderr.next_line().await.unwrap() {
                self.said += &format!("{line}\n");
            }
            let mut stdout = self.child.stdout.take().unwrap();
            let mut report = String::new();
            stdout.read_to_string(&mut report).await.unwrap();
            (self.child.wait().await.unwrap(), report)
        };
        let (status, report) = timeout(PATIENCE, ended).await.expect("the client ends");
        // There is no summary when the arguments are not valid.
        let report = serde_json::from_str(&report).unwrap_or_default();
        (status.code(), report, self.said)
    }
}

fn frames(path: &Path) -> Value {
    let file = std::fs::read(path).unwrap();
    let probe = readback::ffprobe(&file, &["-count_frames"]);
    probe["streams"][0]["nb_read_frames"].clone()
}

#[tokio::test]
async fn goes_on_after_the_server_was_killed_in_the_middle_of_a_segment() {
    let dir = TempDir::new().unwrap();
    let store = format!("--store=file://{}", dir.path().join("store").display());
    let args = ["--gpus=1", SLOW, &store];
    let mut server = Server::start(&args);
    let out = dir.path().join("out.mp4");
    let order = [
        "--prompt=a red fox",
        "--prompt=a quiet lake",
        "--prompt=snow",
    ];
    let order = [&order[..], &["-o", out.to_str().unwrap()]].concat();
    let mut client = Running::start(&server, &order);
    client.says("segment 1: a quiet lake").await;
    server.kill().await;
    client.says("trying again in").await;
    let server = Server::start_at(&server.address, &args);
    let (code, report, said) = client.end().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(frames(&out), "36");
    let segments = report["segments"].as_array().unwrap().iter();
    let indices: Vec<_> = segments
        .map(|s| s["segment_idx"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(report["resume"], Value::Null, "the session is over");
    assert!(report["reconnects"].as_u64().unwrap() >= 1);

    let whole = dir.path().join("whole.mp4");
    let order = [&order[..3], &["-o", whole.to_str().unwrap()]].concat();
    let (code, _, said) = Running::start(&server, &order).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(std::fs::read(out).unwrap() == std::fs::read(whole).unwrap());
}

#[tokio::test]
async fn gives_up_after_its_retries_and_says_how_to_resume() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.mp4");
    let mut server = Server::start(&["--gpus=1", SLOW]);
    let order = ["--prompt=one", "--prompt=two", "--retries=1", "-o"];
    let order = [&order[..], &[out.to_str().unwrap()]].concat();
    let mut client = Running::start(&server, &order);
    client.says("segment 1: two").await;
    server.kill().await;
    let (code, report, said) = client.end().await;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.matches("trying again").count(), 1, "{said}");
    let resume = report["resume"].as_str().unwrap();
    assert!(said.contains(&format!("--resume {resume}")), "{said}");
    assert!(resume.starts_with(report["session_id"].as_str().unwrap()));
    assert_eq!(frames(&dir.path().join("out.mp4.partial")), "12");
}

#[tokio::test]
async fn session_is_kept_and_gone_on_with() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&["--gpus=1"]);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (one, two, both) = (path("one.mp4"), path("two.mp4"), path("both.mp4"));

    let order = ["--keep", "--prompt=a red fox", "-o", &one];
    let (code, report, said) = Running::start(&server, &order).end().await;
    assert_eq!(code, Some(0), "{said}");
    let resume = report["resume"].as_str().unwrap();
    assert!(said.contains(&format!("--resume {resume}")), "{said}");

    let order = ["--resume", resume, "--prompt=a quiet lake", "-o", &two];
    let (code, second, said) = Running::start(&server, &order).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(second["session_id"], report["session_id"]);
    assert_eq!(second["segments"][0]["segment_idx"], 1);

    // Who drops it ends it for good.
    let id = report["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}");
    assert_eq!(server.call("DELETE", &path, None).await.0, 204);
    let (code, refused, said) = Running::start(&server, &order).end().await;
    assert_eq!(code, Some(1), "{said}");
    let error = refused["error"].as_str().unwrap();
    assert!(error.contains("session_rejected"), "{error}");

    let order = ["--prompt=a red fox", "--prompt=a quiet lake", "-o", &both];
    let (code, _, said) = Running::start(&server, &order).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(frames(Path::new(&both)), "24");
    // Each file has its own init segment.
    let sizes = [&one, &two, &both].map(|path| std::fs::read(path).unwrap().len());
    let init = std::fs::read(&both).unwrap();
    let init = init.windows(4).position(|name| name == b"moof").unwrap() - 4;
    assert_eq!(sizes[0] + sizes[1] - init, sizes[2]);
}

#[tokio::test]
async fn speaks_tls_with_a_server_whose_authority_it_trusts() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.mp4");
    let server = Server::start(&["--gpus=1"]);
    let proxy = TlsProxy::start(&server, "server.pem").await;
    let url = format!("wss://127.0.0.1:{}", proxy.port);
    let (ca, other) = (tls_file("ca.pem"), tls_file("server.pem"));
    let (ca, other) = (ca.to_str().unwrap(), other.to_str().unwrap());

    let args = [
        "--prompt=a red fox",
        "--ca-file",
        ca,
        "-o",
        out.to_str().unwrap(),
    ];
    let (code, report, said) = Running::start_at(&url, other, &args).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(report["segments"].as_array().unwrap().len(), 1);
    assert_eq!(frames(&out), "12");

    let url = url.replace("wss", "https");
    let args = ["--prompt=a red fox"];
    let (code, _, said) = Running::start_at(&url, ca, &args).end().await;
    assert_eq!(code, Some(0), "an authority of the system: {said}");
}

#[tokio::test]
async fn says_what_is_wrong_with_a_certificate_and_does_not_try_again() {
    let server = Server::start(&["--gpus=1"]);
    let good = TlsProxy::start(&server, "server.pem").await;
    let expired = TlsProxy::start(&server, "expired.pem").await;
    let (ca, other) = (tls_file("ca.pem"), tls_file("server.pem"));
    let (ca, other) = (ca.to_str().unwrap(), other.to_str().unwrap());
    let check = async |url: String, args: &[&str], code: i32, words: &[&str]| {
        let args = [&["--prompt=a red fox"], args].concat();
        let (given, report, said) = Running::start_at(&url, other, &args).end().await;
        assert_eq!(given, Some(code), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert!(!said.contains("trying again"), "{said}");
        assert_eq!(report["segments"].as_array().map_or(0, Vec::len), 0);
    };
    let trusting = ["--ca-file", ca];
    let (good, expired) = (good.port, expired.port);
    let unknown = ["not from a trusted authority", "--ca-file"];
    check(format!("wss://127.0.0.1:{good}"), &[], 1, &unknown).await;
    let url = format!("wss://127.0.0.1:{expired}");
    check(url, &trusting, 1, &["not valid: ", "expired"]).await;
    let url = format!("wss://localhost:{good}");
    check(url, &trusting, 1, &["not valid for name", "localhost"]).await;
    let url = format!("wss://{}", server.address);
    check(url, &trusting, 1, &["does not speak TLS"]).await;
    let plain = format!("ws://127.0.0.1:{good}");
    check(plain, &trusting, 2, &["--ca-file", "wss://"]).await;
    let key = tls_file("server.key");
    let no_certificate = ["--ca-file", key.to_str().unwrap()];
    let url = format!("wss://127.0.0.1:{good}");
    check(url, &no_certificate, 2, &["--ca-file", "no certificate"]).await;
}

#[tokio::test]
async fn every_cause_is_told_once() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(&["--gpus=1"]);
    let args = ["--prompt=a red fox", "-o", folder.path().to_str().unwrap()];
    let (code, report, said) = Running::start(&server, &args).end().await;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.matches("Is a directory").count(), 1, "{said}");
    let error = report["error"].as_str().unwrap();
    assert!(said.contains(&format!("error: {error}\n")), "{said}");
}

/// The prompts of the segments of a summary.
fn prompts_of(report: &Value) -> Vec<&str> {
    let segments = report["segments"].as_array().unwrap();
    segments
        .iter()
        .map(|segment| segment["prompt"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn takes_as_many_segments_of_a_loop_as_it_was_told() {
    let dir = TempDir::new().unwrap();
    let (out, state) = (dir.path().join("out.mp4"), dir.path().join("state.json"));
    let (out, state) = (out.to_str().unwrap(), state.to_str().unwrap());
    let server = Server::start(&["--gpus=1"]);
    let curated = [
        "--loop",
        "--curated-prompt=a calm sea",
        "--curated-prompt=a storm",
    ];
    let args = ["--segments=3", "-o", out, "--save-state", state];
    let args = [&curated[..], &args].concat();
    let (code, report, said) = Running::start(&server, &args).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(prompts_of(&report), ["a calm sea", "a storm", "a calm sea"]);
    assert_eq!(frames(Path::new(out)), "36");
    assert!(Path::new(state).exists());

    for wrong in [
        &curated[..],
        &["--loop", "--segments=2", "--prompt=x"],
        &["--prompt=x", "--segments=2"],
        &["--prompt=x", "--prompt=y", "--auto-extend", "--segments=2"],
        &["--segments=2"],
    ] {
        let (code, _, said) = Running::start(&server, wrong).end().await;
        assert_eq!(code, Some(2), "{wrong:?}: {said}");
    }
    let args = ["--prompt=x", "--auto-extend", "--segments=2"];
    let (code, _, said) = Running::start(&server, &args).end().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("--auto-extend: the server has no language model"),
        "{said}"
    );
}

#[tokio::test]
async fn has_its_prompts_written_out_and_continued() {
    let provider = Provider::shouting().await;
    let args = prompts::with(&provider, &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let server = Server::start(&args);
    let args = ["--prompt=a fox", "--enhance"];
    let (code, report, said) = Running::start(&server, &args).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(prompts_of(&report), ["A FOX"]);
    assert!(said.contains("enhanced: a fox -> A FOX"), "{said}");

    let args = ["--prompt=a fox", "--auto-extend", "--segments=2"];
    let (code, report, said) = Running::start(&server, &args).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(prompts_of(&report).len(), 2);
    assert_eq!(prompts_of(&report)[0], "a fox");
}
