//! The command line: what it refuses, what it prints, and with which exit code.

use std::net::TcpListener;
use std::process::{Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::harness::{PATIENCE, Server, command};

pub(crate) async fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = tokio::process::Command::from(command());
    let running = command
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = timeout(PATIENCE, running).await.expect("the program ends");
    let Output {
        status,
        stdout,
        stderr,
    } = ended.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Runs with wrong arguments: nothing may be started.
async fn refused(args: &[&str], words: &[&str]) {
    let (code, stdout, stderr) = run(args).await;
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word} in {stderr}");
    }
}

#[tokio::test]
async fn version_and_help_are_printed() {
    let (code, stdout, _) = run(&["--version"]).await;
    let version = concat!("fastvideo-supervisor ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!((code, stdout.as_str()), (Some(0), version));
    let (code, stdout, _) = run(&["--help"]).await;
    assert_eq!(code, Some(0));
    for flag in [
        "--gpus",
        "--engine",
        "--model",
        "--config",
        "--host",
        "--port",
        "--max-sessions",
        "--sessions-per-gpu",
        "--grace-seconds",
        "--log-format",
        "--worker-bin",
        "--streaming.session_timeout_seconds",
        "--streaming.generation_segment_cap",
        "--default_request.sampling.num_inference_steps",
        "--generator.synthetic.step_ms",
        "--generator.synthetic.frame_ms",
    ] {
        assert!(stdout.contains(flag), "{flag}");
    }
}

#[tokio::test]
async fn configuration_is_checked_without_starting_anything() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("serve.yaml");
    std::fs::write(&file, "server:\n  port: 8123\n").unwrap();
    let file = file.to_str().unwrap();
    let args = [
        "check",
        "--config",
        file,
        "--gpus",
        "0,2",
        "--engine=synthetic",
        "--offline",
    ];
    let (code, stdout, stderr) = run(&args).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("port: 8123"), "{stdout}");
    assert!(stdout.ends_with("# ok; workers on GPU 0, 2\n"), "{stdout}");

    std::fs::write(file, "streaming:\n  sesion_timeout_seconds: 60\n").unwrap();
    let words = [
        "sesion_timeout_seconds",
        "session_timeout_seconds",
        "serve.yaml:2",
    ];
    refused(&["check", "--config", file], &words).await;
    refused(&["--config", file], &words).await;
}

#[tokio::test]
async fn wrong_values_are_refused_before_anything_starts() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().to_str().unwrap();
    let check = async |args: &[&str], words: &[&str]| {
        // The port would be printed if it had been bound.
        refused(&[&["--port", "0"], args].concat(), words).await;
    };
    let width = [
        "`default_request.sampling.width`",
        "even number from 64 to 4096",
        "129",
    ];
    check(&["--default_request.sampling.width", "129"], &width).await;
    check(&["--gpus", "0"], &["streaming.pool.gpus", "from 1 to", "0"]).await;
    check(&["--no-such-flag", "1"], &["--no-such-flag"]).await;
    check(&["--worker-bin", file], &[file, "--worker-bin"]).await;
    check(
        &["--worker-bin", "/no/such/file"],
        &["/no/such/file", "--worker-bin"],
    )
    .await;
    check(&["--engine", "ltx2"], &["ltx2"]).await;
    check(&["--log-level", "info,=,"], &["log_level"]).await;
    let levels = [
        "log_level",
        "error, warn, info, debug or trace",
        "did you mean `info`?",
    ];
    check(&["--log-level", "inof"], &levels).await;
    check(
        &["--log-level", "info,fastvideo=debgu"],
        &["log_level", "fastvideo=debgu"],
    )
    .await;
    let faults = ["generator.synthetic.faults", "exlt"];
    check(&["--generator.synthetic.faults", "exlt@end"], &faults).await;
    // All that is wrong is said at once.
    let both = ["default_request.sampling.height", "server.port"];
    check(
        &[
            "--default_request.sampling.height=65",
            "--server.port=99999",
        ],
        &both,
    )
    .await;
}

#[tokio::test]
async fn wrong_environment_is_refused_by_its_name() {
    let output = command()
        .env("FASTVIDEO_DEFAULT_REQUEST__SAMPLING__WIDTH", "63")
        .args(["--port", "0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("FASTVIDEO_DEFAULT_REQUEST__SAMPLING__WIDTH"),
        "{stderr}"
    );
}

#[tokio::test]
async fn port_that_is_in_use_is_an_error_with_its_name() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, stdout, stderr) = run(&["--host", "127.0.0.1", "--port", &port]).await;
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    let address = format!("cannot listen on 127.0.0.1:{port}");
    assert!(stderr.contains(&address), "{stderr}");
    assert!(stderr.contains("in use"), "{stderr}");
    // Workers are started after the port is bound.
    assert!(!stderr.contains("worker changed state"), "{stderr}");
}

#[tokio::test]
async fn client_writes_a_playable_video() {
    let server = Server::start(&[]);
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.mp4");
    let url = format!("ws://{}", server.address);
    let args = [
        "--prompt",
        "a red fox",
        "--prompt",
        "a quiet lake",
        "--json",
        "-o",
    ];
    let args = [
        &["client", "--url", &url],
        &args[..],
        &[out.to_str().unwrap()],
    ]
    .concat();
    let (code, stdout, stderr) = run(&args).await;
    assert_eq!(code, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["segments"].as_array().unwrap().len(), 2);
    let streams = probe(out.to_str().unwrap());
    let kinds: Vec<_> = streams
        .iter()
        .map(|s| s["codec_name"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["h264", "aac"]);
    assert_eq!(streams[0]["nb_read_packets"], "24");

    let (code, _, stderr) = run(&["client", "--url", &url]).await;
    assert_eq!(code, Some(2), "{stderr}");
    let (code, _, stderr) = run(&["client", "--url", "ftp://nowhere", "--prompt", "x"]).await;
    assert_eq!(code, Some(2), "{stderr}");
    drop(server);
    let (code, _, stderr) = run(&["client", "--url", &url, "--prompt", "x"]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&url["ws://".len()..]), "{stderr}");
}

#[tokio::test]
async fn client_takes_the_last_attempt_of_a_segment() {
    let faulty = Server::start(&["--generator.synthetic.faults=exit@frame9,max_attempt=1"]);
    let whole = Server::start(&[]);
    let dir = TempDir::new().unwrap();
    let video = async |server: &Server, name: &str| {
        let out = dir.path().join(name);
        let url = format!("http://{}", server.address);
        let args = ["--prompt=a red fox", "--prompt=a quiet lake", "-o"];
        let args = [
            &["client", "--url", &url],
            &args[..],
            &[out.to_str().unwrap()],
        ]
        .concat();
        let (code, _, stderr) = run(&args).await;
        assert_eq!(code, Some(0), "{stderr}");
        std::fs::read(out).unwrap()
    };
    assert!(video(&faulty, "faulty.mp4").await == video(&whole, "whole.mp4").await);
}

#[tokio::test]
async fn client_fails_when_a_segment_does() {
    let server = Server::start(&["--generator.synthetic.faults=error@step2,segment=1"]);
    let url = format!("ws://{}/v1/stream", server.address);
    let (code, _, stderr) = run(&["client", "--url", &url, "--prompt=one", "--prompt=two"]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("worker_failed"), "{stderr}");
}

#[tokio::test]
async fn json_log_is_one_object_a_line() {
    let mut server = Server::start(&["--log-format=json"]);
    server.active(json!({})).await.segment("a red fox").await;
    server.signal(Signal::SIGTERM);
    server.exit().await;
    let log = server.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}")))
        .collect();
    assert!(
        lines
            .iter()
            .all(|line| line["level"].is_string() && line["timestamp"].is_string())
    );
    let has = |message: &str| lines.iter().any(|line| line["message"] == message);
    assert!(
        has("worker changed state") && has("session bound") && has("stopped"),
        "{log}"
    );
}

#[tokio::test]
async fn sessions_of_a_log_are_listed_and_shown() {
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("log");
    let dir = log.to_str().unwrap();
    let config = folder.path().join("serve.yaml");
    std::fs::write(
        &config,
        format!("streaming: {{session_log: {{dir: {dir:?}}}}}"),
    )
    .unwrap();
    let config = config.to_str().unwrap();
    let mut server = Server::start(&["--config", config]);
    let mut client = server.active(json!({})).await;
    client.segment("a red\u{2028}\n\u{1b}fox").await;
    drop(client);
    server.signal(Signal::SIGTERM);
    server.exit().await;
    std::fs::write(log.join("session-broken.jsonl"), "no line of a log").unwrap();

    for args in [
        &["sessions", "list", dir][..],
        &["sessions", "list", "--config", config],
        &["--config", config, "sessions", "list"],
        &["sessions", "list", "--session-log-dir", dir],
    ] {
        let (code, stdout, stderr) = run(args).await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert_eq!(stdout.lines().count(), 1, "{stdout}");
        assert!(
            stdout.contains("   1 segments") && stdout.contains("a red"),
            "{stdout}"
        );
        assert!(!stdout.contains(['\u{1b}', '\u{2028}']), "{stdout:?}");
        let file = stdout
            .split_whitespace()
            .find(|word| word.ends_with(".jsonl"));
        let (code, shown, _) = run(&["sessions", "show", file.unwrap()]).await;
        assert_eq!(code, Some(0));
        assert!(shown.contains("finished: 12 frames"), "{shown}");
        assert!(!shown.contains(['\u{1b}', '\u{2028}']), "{shown:?}");
    }
    let (code, _, stderr) = run(&["sessions", "list"]).await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("--session-log-dir"), "{stderr}");
    let (code, _, stderr) = run(&["sessions", "list", "/nowhere"]).await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("cannot read /nowhere"), "{stderr}");
}

/// The streams of a file, as ffprobe sees them.
#[expect(clippy::disallowed_methods, reason = "an independent reader")]
fn probe(file: &str) -> Vec<Value> {
    let output = std::process::Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-count_packets",
            "-show_streams",
            "-of",
            "json",
            file,
        ])
        .output()
        .expect("ffprobe is installed");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let probed: Value = serde_json::from_slice(&output.stdout).unwrap();
    probed["streams"].as_array().unwrap().clone()
}
