//! Connections that are slow and are cut at any byte: every client ends with the bytes of a session that nothing disturbs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::harness::{Client, Heard, Server, command, until};

/// Segments of about 10 kB that take no time.
const TINY: &[&str] = &[
    "--gpus=1",
    "--sessions-per-gpu=8",
    "--streaming.warmup.enabled=false",
    "--default_request.sampling.width=64",
    "--default_request.sampling.height=64",
    "--default_request.sampling.num_frames=24",
    "--default_request.sampling.num_inference_steps=1",
    // The sessions are complete with their last segment, which may not be with the client then.
    "--streaming.generation_segment_cap=4",
];
const SEGMENTS: usize = 4;
const BYTES_PER_SECOND: u64 = 60_000;
/// More than the answer that opens a WebSocket: the product's client gives up when it cannot open its first one.
const OPENING_BYTES: u64 = 400;

/// A network between client and server that is slow and cuts its connections.
pub(crate) struct Network {
    pub(crate) address: SocketAddr,
    server: Arc<Mutex<String>>,
    _accepting: JoinSet<()>,
}

impl Network {
    /// Cuts each connection after a random number of bytes to the client, at most `most`, `cuts` times in all.
    pub(crate) async fn start(server: &str, cuts: usize, most: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::new(Mutex::new(server.to_owned()));
        let to = server.clone();
        let accepting = async move {
            let (mut left, mut carried) = (cuts, JoinSet::new());
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let limit = match left {
                    0 => u64::MAX,
                    _ => rand::random_range(OPENING_BYTES..most),
                };
                left = left.saturating_sub(1);
                let to = to.lock().unwrap().clone();
                carried.spawn(carry(client, to, limit));
            }
        };
        Self {
            address,
            server,
            _accepting: JoinSet::from_iter([accepting]),
        }
    }

    fn lead_to(&self, server: &str) {
        *self.server.lock().unwrap() = server.to_owned();
    }
}

/// Carries a connection until that many bytes were sent to the client.
async fn carry(client: TcpStream, to: String, limit: u64) {
    let Ok(server) = TcpStream::connect(to).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await };
    let down = async {
        let begun = Instant::now();
        let (mut sent, mut buffer) = (0, vec![0; 4096]);
        while sent < limit {
            let room = usize::try_from(limit - sent).unwrap_or(usize::MAX);
            let room = room.min(buffer.len());
            let read = from_server.read(&mut buffer[..room]).await?;
            if read == 0 {
                break;
            }
            to_client.write_all(&buffer[..read]).await?;
            sent += read as u64;
            let due = Duration::from_millis(sent * 1000 / BYTES_PER_SECOND);
            sleep_until(begun + due).await;
        }
        Ok::<_, std::io::Error>(())
    };
    // Both sides are dropped, which is no close of the WebSocket.
    tokio::select! {
        _ = up => {}
        _ = down => {}
    }
}

/// The arguments of a server that keeps its sessions there.
fn server_args(store: &Path) -> Vec<String> {
    let store = format!("--store=file://{}", store.display());
    let args = TINY.iter().map(|arg| (*arg).to_owned());
    [store].into_iter().chain(args).collect()
}

fn start(store: &Path) -> Server {
    Server::spawn(command().args(server_args(store)))
}

fn index(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn prompt(n: usize) -> String {
    format!("a fox and {n} hens")
}

/// The film of the product's own client.
#[expect(
    clippy::disallowed_methods,
    reason = "the test starts the client under test"
)]
async fn film_of_client(address: SocketAddr, folder: &Path) -> Vec<u8> {
    let output = folder.join("film.mp4");
    let mut client = tokio::process::Command::new(env!("CARGO_BIN_EXE_fastvideo-supervisor"));
    client
        .args(["client", "--url", &format!("ws://{address}")])
        .args(["--retries", "100", "--output"])
        .arg(&output)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    for n in 0..SEGMENTS {
        client.args(["--prompt", &prompt(n)]);
    }
    let ended = client.output().await.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    std::fs::read(output).unwrap()
}

/// A client that knows of the protocol what `docs/protocol.md` says of resuming.
#[derive(Default)]
struct Viewer {
    resume: Option<Value>,
    film: Vec<u8>,
    finished: usize,
    messages: Vec<Vec<u8>>,
}

impl Viewer {
    async fn watch(mut self, address: SocketAddr) -> Vec<u8> {
        while self.finished < SEGMENTS {
            let url = format!("ws://{address}/v1/stream");
            if let Ok((socket, _)) = tokio_tungstenite::connect_async(url).await {
                self.connection(Client { socket }).await;
            }
        }
        self.film
    }

    async fn connection(&mut self, mut client: Client) -> Option<()> {
        let mut opening = json!({"type": "session_init_v2"});
        if let Some(resume) = &self.resume {
            opening["resume"] = resume.clone();
            opening["resume"]["have"] =
                json!({"segments": self.finished, "messages": self.messages.len()});
        }
        client.try_send(opening).await.ok()?;
        let mut resent_up_to = 0;
        while self.finished < SEGMENTS {
            let text = match client.next().await {
                Heard::Text(text) => text,
                Heard::Media(bytes) => {
                    self.messages.push(bytes);
                    continue;
                }
                Heard::Closed(_) => return None,
            };
            let mut asks = false;
            match text["type"].as_str().unwrap() {
                "gpu_assigned" => {
                    let (id, token) = (&text["session_id"], &text["resume_token"]);
                    self.resume = Some(json!({"session_id": id, "token": token}));
                }
                "ltx2_stream_start" => {
                    resent_up_to = index(&text["next_segment_idx"]);
                    if resent_up_to <= self.finished {
                        self.messages.clear();
                        asks = true;
                    }
                }
                "ltx2_segment_complete" => {
                    assert_eq!(text["segment_idx"], self.finished);
                    self.film.extend(self.messages.drain(..).flatten());
                    self.finished += 1;
                    asks = self.finished >= resent_up_to && self.finished < SEGMENTS;
                }
                // The connection before this one may not have ended yet.
                "error" if text["retryable"] == true => return None,
                "error" => panic!("{text}"),
                _ => {}
            }
            if asks {
                let prompt = prompt(self.finished);
                let request = json!({"type": "segment_prompt_source", "prompt": prompt});
                client.try_send(request).await.ok()?;
            }
        }
        Some(())
    }
}

/// The films of both clients when nothing disturbs them. They differ, since the first one leaves out init segments that
/// are the same.
async fn undisturbed(server: &Server) -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().unwrap();
    let address = server.address.parse().unwrap();
    [
        film_of_client(address, folder.path()).await,
        Viewer::default().watch(address).await,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_whose_connections_are_cut_at_any_byte_end_with_every_byte() {
    const CLIENTS: usize = 6;
    const CUTS: usize = 4;
    let store = tempfile::tempdir().unwrap();
    let server = start(store.path());
    let undisturbed = undisturbed(&server).await;
    let most = undisturbed[1].len() as u64 / 2;
    let mut watching = JoinSet::new();
    for n in 0..CLIENTS {
        let network = Network::start(&server.address, CUTS, most).await;
        watching.spawn(async move {
            let folder = tempfile::tempdir().unwrap();
            let film = match n % 2 {
                0 => film_of_client(network.address, folder.path()).await,
                _ => Viewer::default().watch(network.address).await,
            };
            drop(network);
            (n % 2, film)
        });
    }
    while let Some(film) = watching.join_next().await {
        let (kind, film) = film.unwrap();
        assert!(film == undisturbed[kind], "it has other bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_server_that_is_killed_end_with_every_byte() {
    const CLIENTS: usize = 4;
    const KILLS: usize = 3;
    let store = tempfile::tempdir().unwrap();
    let mut server = start(store.path());
    let undisturbed = undisturbed(&server).await;
    let most = undisturbed[1].len() as u64;
    let mut networks = Vec::new();
    let mut watching = JoinSet::new();
    for n in 0..CLIENTS {
        let network = Network::start(&server.address, 1, most).await;
        let address = network.address;
        networks.push(network);
        watching.spawn(async move {
            let folder = tempfile::tempdir().unwrap();
            let film = match n % 2 {
                0 => film_of_client(address, folder.path()).await,
                _ => Viewer::default().watch(address).await,
            };
            (n % 2, film)
        });
    }
    for _ in 0..KILLS {
        // Some segment is on its way by then.
        until("a segment is finished", async || {
            let (_, sessions) = server.get("/v1/sessions").await;
            let sessions = sessions["sessions"].as_array()?.clone();
            sessions.iter().any(|s| s["segment_idx"] != 0).then_some(())
        })
        .await;
        server.signal(Signal::SIGKILL);
        server.exit().await;
        server = start(store.path());
        for network in &networks {
            network.lead_to(&server.address);
        }
    }
    while let Some(film) = watching.join_next().await {
        let (kind, film) = film.unwrap();
        assert!(film == undisturbed[kind], "it has other bytes");
    }
}
