//! States that outlive the server: it is killed at any moment, stopped past its lease, and cut off from its store.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::harness::{Client, Heard, PATIENCE, Server, command, until};

/// The smallest segments, and a server that is there at once.
const TINY: &[&str] = &[
    "--gpus=1",
    "--streaming.warmup.enabled=false",
    "--default_request.sampling.width=64",
    "--default_request.sampling.height=64",
    "--default_request.sampling.num_frames=4",
    "--default_request.sampling.num_inference_steps=2",
    "--generator.synthetic.audio_latent_frames=4",
    "--streaming.generation_segment_cap=100000",
];

/// A Redis of this test's own, on a free port.
struct Redis {
    child: Child,
    url: String,
    _dir: TempDir,
}

impl Redis {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's own server, not a worker"
    )]
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(log)
            .spawn()
            .expect("redis-server is installed (make test does)");
        until("Redis listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        Self {
            child,
            url: format!("redis://127.0.0.1:{port}"),
            _dir: dir,
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder as a URL, with what comes before it.
fn folder(flag: &str, path: &Path) -> String {
    format!("{flag}=file://{}", path.display())
}

/// A server with the smallest segments that keeps its sessions there.
fn start(store: &[String], args: &[&str]) -> Server {
    let store = store.iter().map(String::as_str);
    let args: Vec<_> = store.chain(TINY.iter().copied()).chain(args.iter().copied()).collect();
    Server::spawn(command().args(args))
}

fn prompt(n: usize) -> String {
    const PLACES: [&str; 5] = ["a red desert", "a blue ocean", "snow", "a forest", "a city"];
    format!("{} {n}", PLACES[n % PLACES.len()])
}

/// The media of the first segments of a session that nothing disturbs.
async fn undisturbed(segments: usize) -> Vec<Vec<u8>> {
    let server = start(&[], &[]);
    let mut client = server.active(json!({})).await;
    let mut media = Vec::new();
    for n in 0..segments {
        media.push(client.segment(&prompt(n)).await.bytes());
    }
    media
}

/// A client that goes on with its session on whichever server.
struct Viewer {
    ticket: Value,
    /// Segments that it was told are finished.
    finished: usize,
}

impl Viewer {
    fn new() -> Self {
        Self {
            ticket: json!({}),
            finished: 0,
        }
    }

    /// Opens the session or goes on with it. None when the connection ends meanwhile.
    async fn open(&mut self, server: &Server) -> Option<Client> {
        let url = format!("ws://{}/v1/stream", server.address);
        let (socket, _) = timeout(PATIENCE, tokio_tungstenite::connect_async(url))
            .await
            .unwrap()
            .ok()?;
        let mut client = Client { socket };
        let mut init = json!({"type": "session_init_v2"});
        crate::harness::merge(&mut init, self.ticket.clone());
        let text = tokio_tungstenite::tungstenite::Message::text(init.to_string());
        futures_util::SinkExt::send(&mut client.socket, text).await.ok()?;
        loop {
            match client.next().await {
                Heard::Closed(_) => return None,
                Heard::Text(text) if text["type"] == "error" => panic!("{text}"),
                Heard::Text(text) if text["type"] == "gpu_assigned" => {
                    self.ticket = json!({
                        "resume": {"session_id": text["session_id"], "token": text["resume_token"]},
                    });
                }
                Heard::Text(text) if text["type"] == "ltx2_stream_start" => return Some(client),
                _ => {}
            }
        }
    }

    /// Asks for segments until the connection ends, or `limit` are finished, and compares each with what it must be.
    async fn watch(&mut self, client: &mut Client, expected: &[Vec<u8>], limit: usize) {
        let mut asked = None;
        let mut media = Vec::new();
        while self.finished < limit {
            if asked.is_none() {
                let n = self.finished;
                let text = json!({"type": "segment_prompt_source", "prompt": prompt(n)});
                let text = tokio_tungstenite::tungstenite::Message::text(text.to_string());
                if futures_util::SinkExt::send(&mut client.socket, text).await.is_err() {
                    return;
                }
                asked = Some(n);
                media.clear();
            }
            match client.next().await {
                Heard::Closed(_) => return,
                Heard::Media(bytes) => media.extend(bytes),
                Heard::Text(text) if text["type"] == "ltx2_segment_start" => {
                    // One more may be finished than the client was told of before the server died.
                    let idx = usize::try_from(text["segment_idx"].as_u64().unwrap()).unwrap();
                    if Some(idx) != asked {
                        assert_eq!(idx, self.finished + 1, "{text}");
                        self.finished = idx;
                        client.send(json!({"type": "cancel_segment"})).await;
                        loop {
                            match client.next().await {
                                Heard::Text(text) if text["type"] == "segment_cancelled" => break,
                                Heard::Text(text) if text["type"] == "ltx2_segment_complete" => {
                                    // It was faster, with the prompt of the segment before: start again elsewhere.
                                    panic!("a segment was finished that was cancelled at once")
                                }
                                Heard::Closed(_) => return,
                                _ => {}
                            }
                        }
                        asked = None;
                    }
                }
                Heard::Text(text) if text["type"] == "ltx2_segment_complete" => {
                    assert_eq!(text["segment_idx"], self.finished);
                    let same = media == expected[self.finished];
                    assert!(same, "segment {} has other bytes", self.finished);
                    self.finished += 1;
                    asked = None;
                }
                Heard::Text(text) if text["type"] == "error" => panic!("{text}"),
                Heard::Text(_) => {}
            }
        }
    }
}
