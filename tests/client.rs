//! The `client` subcommand when connections are lost and sessions are left and gone on with.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr};
use tokio::time::timeout;

use crate::harness::{PATIENCE, Server, command};
use crate::readback;

/// Slow enough that a segment can be interrupted.
const SLOW: &str = "--generator.synthetic.frame_ms=60";

/// A client that runs.
struct Running {
    child: Child,
    stderr: Lines<BufReader<ChildStderr>>,
    said: String,
}

impl Running {
    fn start(server: &Server, args: &[&str]) -> Self {
        let mut child = tokio::process::Command::from(command())
            .args(["client", "--json", "--url", &server.address])
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
    async fn says(&mut self, words: &str) {
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
    async fn end(mut self) -> (Option<i32>, Value, String) {
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
        let report = serde_json::from_str(&report).unwrap();
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

    // It has ended now.
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
