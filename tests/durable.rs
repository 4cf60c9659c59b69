//! States that outlive the server: it is killed at any moment, stopped past its lease, and cut off from its store.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::harness::{Client, Heard, Server, command, until};

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
pub(crate) struct Redis {
    child: Child,
    port: u16,
    pub(crate) url: String,
    dir: TempDir,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        Self::start_on(port).await
    }

    async fn start_on(port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            child: Self::spawn(port, dir.path()).await,
            port,
            url: format!("redis://127.0.0.1:{port}"),
            dir,
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a test's own server, not a worker"
    )]
    async fn spawn(port: u16, dir: &Path) -> Child {
        let log = File::create(dir.join("log")).unwrap();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(log)
            .spawn()
            .expect("redis-server is installed (make test does)");
        until("Redis listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .ok()
        })
        .await;
        child
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends without a word, and begins again with nothing.
    async fn forget(&mut self) {
        self.stop();
        self.start_again().await;
    }

    /// Ends without a word.
    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Keeps what it has now for when it starts again.
    pub(crate) async fn save(&self) {
        let address = ("127.0.0.1", self.port);
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        connection.write_all(b"SAVE\r\n").await.unwrap();
        let mut answer = [0; 5];
        connection.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+OK\r\n");
    }

    /// Begins with what was saved, or with nothing, after it was stopped.
    pub(crate) async fn start_again(&mut self) {
        self.child = Self::spawn(self.port, self.dir.path()).await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
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
pub(crate) fn folder(flag: &str, path: &Path) -> String {
    format!("{flag}=file://{}", path.display())
}

/// A server with the smallest segments that keeps its sessions there.
fn start(store: &[String], args: &[&str]) -> Server {
    let store = store.iter().map(String::as_str);
    let args: Vec<_> = store
        .chain(TINY.iter().copied())
        .chain(args.iter().copied())
        .collect();
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
    /// What the session is resumed with.
    resume: Option<Value>,
    /// Segments that are finished.
    finished: usize,
    /// The messages that it has of the next one.
    media: Vec<Vec<u8>>,
}

impl Viewer {
    fn new() -> Self {
        Self {
            resume: None,
            finished: 0,
            media: Vec::new(),
        }
    }

    fn session_id(&self) -> &str {
        let resume = self.resume.as_ref().expect("the session was opened");
        resume["session_id"].as_str().unwrap()
    }

    /// What resumes the session elsewhere.
    fn opening(&self) -> Value {
        json!({"resume": self.resume})
    }

    /// Opens the session or goes on with it, and takes what it has missed; none when the connection ends meanwhile.
    async fn open(&mut self, server: &Server, expected: &[Vec<u8>]) -> Option<Client> {
        let mut client = server.try_connect().await?;
        let mut opening = json!({"type": "session_init_v2"});
        if let Some(resume) = &self.resume {
            opening["resume"] = resume.clone();
            opening["resume"]["have"] =
                json!({"segments": self.finished, "messages": self.media.len()});
        }
        client.try_send(opening).await.ok()?;
        loop {
            match client.next().await {
                Heard::Text(text) if text["type"] == "gpu_assigned" => {
                    self.resume = Some(json!({
                        "session_id": text["session_id"], "token": text["resume_token"],
                    }));
                }
                Heard::Text(text) if text["type"] == "ltx2_stream_start" => {
                    let next = text["next_segment_idx"].as_u64().unwrap();
                    let next = usize::try_from(next).unwrap();
                    assert!(next >= self.finished, "segments are lost");
                    if next == self.finished {
                        // What it has of it is void.
                        self.media.clear();
                    }
                    while self.finished < next {
                        self.segment(&mut client, expected).await?;
                    }
                    return Some(client);
                }
                Heard::Text(text) if text["type"] == "error" => panic!("{text}"),
                Heard::Closed(_) => return None,
                _ => {}
            }
        }
    }

    /// Takes the next segment, which must have the bytes that it has when nothing disturbs it.
    async fn segment(&mut self, client: &mut Client, expected: &[Vec<u8>]) -> Option<()> {
        self.segment_and_count(client, expected, &watch::channel(0).0)
            .await
    }

    /// The same; counts the messages.
    async fn segment_and_count(
        &mut self,
        client: &mut Client,
        expected: &[Vec<u8>],
        heard: &watch::Sender<u32>,
    ) -> Option<()> {
        loop {
            let next = client.next().await;
            heard.send_modify(|heard| *heard += 1);
            match next {
                Heard::Closed(_) => return None,
                Heard::Media(bytes) => self.media.push(bytes),
                Heard::Text(text) if text["type"] == "ltx2_segment_complete" => {
                    assert_eq!(text["segment_idx"], self.finished);
                    let same = self.media.concat() == expected[self.finished];
                    assert!(same, "segment {} has other bytes", self.finished);
                    self.finished += 1;
                    self.media.clear();
                    return Some(());
                }
                Heard::Text(text) if text["type"] == "error" => panic!("{text}"),
                Heard::Text(_) => {}
            }
        }
    }

    /// Asks for segments until the connection ends, or so many are finished.
    async fn watch(&mut self, client: &mut Client, expected: &[Vec<u8>], until: usize) {
        let (heard, _) = watch::channel(0);
        self.watch_and_count(client, expected, until, &heard).await;
    }

    /// The same; counts the messages.
    async fn watch_and_count(
        &mut self,
        client: &mut Client,
        expected: &[Vec<u8>],
        until: usize,
        heard: &watch::Sender<u32>,
    ) {
        while self.finished < until {
            let request = json!({"type": "segment_prompt_source", "prompt": prompt(self.finished)});
            let asked = client.try_send(request).await.is_ok();
            let taken = self.segment_and_count(client, expected, heard).await;
            if !asked || taken.is_none() {
                return;
            }
        }
    }
}

/// Kills the server again and again, at any moment, and goes on with the session each time.
async fn killed_again_and_again(store: &[String], kills: usize) {
    const SEGMENTS: u16 = 400;
    /// The messages of about four segments.
    const MESSAGES: u32 = 36;
    let begun = Instant::now();
    let expected = undisturbed(SEGMENTS.into()).await;
    let segment = begun.elapsed() / u32::from(SEGMENTS);
    let mut viewer = Viewer::new();
    for _ in 0..kills {
        let server = start(store, &["--streaming.store.lease_seconds=1"]);
        let (heard, mut hearing) = watch::channel(0);
        let killed = async {
            // While it starts and opens the session, or at some message of the next segments and soon after it.
            let latest = if rand::random() {
                let count = rand::random_range(0..MESSAGES);
                // Err: the viewer hears nothing more.
                let _ = hearing.wait_for(|heard| *heard > count).await;
                segment / 4
            } else {
                4 * segment
            };
            sleep(latest.mul_f64(rand::random())).await;
            server.signal(Signal::SIGKILL);
        };
        // The viewer reads on to the end of its connection.
        let watched = async {
            let heard = heard;
            if let Some(mut client) = viewer.open(&server, &expected).await {
                let until = SEGMENTS.into();
                let watched = viewer.watch_and_count(&mut client, &expected, until, &heard);
                watched.await;
            }
        };
        tokio::join!(killed, watched);
    }
    let mut server = start(store, &[]);
    let mut client = viewer.open(&server, &expected).await.unwrap();
    let next = viewer.finished + 2;
    viewer.watch(&mut client, &expected, next).await;
    assert_eq!(viewer.finished, next);
    client.send(json!({"type": "leave"})).await;
    assert_eq!(client.closed().await, Some(1000));
    let path = format!("/v1/sessions/{}", viewer.session_id());
    assert_eq!(server.call("DELETE", &path, None).await.0, 204);
    server.signal(Signal::SIGTERM);
    server.exit().await;
    assert!(
        viewer.finished > kills / 5,
        "only {} segments",
        viewer.finished
    );
}

#[tokio::test]
async fn a_session_in_a_file_survives_any_number_of_kills_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let store = [folder("--store", dir.path())];
    killed_again_and_again(&store, 200).await;
    // It was dropped in the end, and nothing is left of it.
    assert_eq!(blobs_in(dir.path()), 0);
}

#[tokio::test]
async fn a_session_in_redis_survives_any_number_of_kills_of_the_server() {
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
    ];
    killed_again_and_again(&store, 200).await;
}

/// Blobs in a folder and all below it.
fn blobs_in(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    let count = |entry: std::fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => blobs_in(&entry.path()),
        false => usize::from(entry.file_name().len() >= 64),
    };
    entries.map(count).sum()
}

#[tokio::test]
async fn two_servers_pass_sessions_back_and_forth() {
    const SEGMENTS: usize = 12;
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
    ];
    let servers = [start(&store, &["--gpus=2"]), start(&store, &["--gpus=2"])];
    let expected = undisturbed(SEGMENTS).await;
    let pass = async |offset: usize| {
        let mut viewer = Viewer::new();
        // The connection before stays open, and learns that its session is elsewhere.
        let mut before: Option<Client> = None;
        for n in 0..SEGMENTS {
            let server = &servers[(n + offset) % 2];
            let mut client = viewer.open(server, &expected).await.unwrap();
            assert_eq!(viewer.finished, n);
            viewer.watch(&mut client, &expected, n + 1).await;
            assert_eq!(viewer.finished, n + 1);
            if let Some(mut before) = before.replace(client) {
                assert_eq!(before.error().await["code"], "session_rejected");
                assert_eq!(before.closed().await, Some(1000));
            }
        }
    };
    tokio::join!(pass(0), pass(1), pass(0), pass(1));
}

#[tokio::test]
async fn a_server_that_was_stopped_past_its_lease_writes_nothing_any_more() {
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
        "--streaming.store.lease_seconds=1".to_owned(),
    ];
    let expected = undisturbed(6).await;
    let (old, new) = (start(&store, &[]), start(&store, &[]));
    let mut viewer = Viewer::new();
    let mut client = viewer.open(&old, &expected).await.unwrap();
    viewer.watch(&mut client, &expected, 2).await;
    // A segment is under way when the server is stopped.
    client.prompt(&prompt(2)).await;
    client.until_type("ltx2_segment_start").await;
    old.signal(Signal::SIGSTOP);
    until("the other server takes it for dead", async || {
        new.log().contains("silent").then_some(())
    })
    .await;
    let mut taken = viewer.open(&new, &expected).await.unwrap();
    let next = viewer.finished + 1;
    viewer.watch(&mut taken, &expected, next).await;
    old.signal(Signal::SIGCONT);
    assert_eq!(client.error().await["code"], "session_rejected");
    assert_eq!(client.closed().await, Some(1000));
    viewer.watch(&mut taken, &expected, next + 1).await;
    // The old one serves others.
    let mut other = Viewer::new();
    let mut client = other.open(&old, &expected).await.unwrap();
    other.watch(&mut client, &expected, 1).await;
}

#[tokio::test]
async fn without_its_redis_a_server_goes_on_with_the_sessions_that_it_has() {
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
        "--streaming.store.timeout_ms=500".to_owned(),
    ];
    let expected = undisturbed(30).await;
    let server = start(&store, &["--gpus=2"]);
    let mut viewer = Viewer::new();
    let mut client = viewer.open(&server, &expected).await.unwrap();
    viewer.watch(&mut client, &expected, 2).await;
    redis.signal(Signal::SIGSTOP);
    let away = Instant::now();
    let mut refused = server.open(json!({})).await;
    let error = refused.error().await;
    assert_eq!(error["code"], "session_rejected");
    assert_eq!(error["retryable"], true);
    assert_eq!(refused.closed().await, Some(1013));
    while away.elapsed() < Duration::from_secs(10) && viewer.finished < 28 {
        let next = viewer.finished + 1;
        viewer.watch(&mut client, &expected, next).await;
        assert_eq!(viewer.finished, next);
    }
    redis.signal(Signal::SIGCONT);
    let next = viewer.finished + 1;
    viewer.watch(&mut client, &expected, next).await;
    assert_eq!(viewer.finished, next);
    drop(client);
    // New ones are served again, and nothing of the old one is lost.
    let other = start(&store, &[]);
    let mut client = until("the session can be resumed", async || {
        viewer.open(&other, &expected).await
    })
    .await;
    assert_eq!(viewer.finished, next);
    viewer.watch(&mut client, &expected, next + 1).await;
    assert_eq!(viewer.finished, next + 1);
}

#[tokio::test]
async fn an_outage_of_the_store_delays_all_segments_by_its_time_limit_in_sum() {
    const SEGMENTS: usize = 14;
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
    ];
    let expected = undisturbed(SEGMENTS).await;
    let server = start(&store, &[]);
    let mut viewer = Viewer::new();
    let mut client = viewer.open(&server, &expected).await.unwrap();
    viewer.watch(&mut client, &expected, 2).await;
    redis.signal(Signal::SIGSTOP);
    let begun = Instant::now();
    viewer.watch(&mut client, &expected, SEGMENTS).await;
    assert_eq!(viewer.finished, SEGMENTS);
    // The time limit is 2 s; twelve segments take less than the rest.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    redis.signal(Signal::SIGCONT);
}

#[tokio::test]
async fn an_outage_of_the_store_is_shown_and_logged_once() {
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
        "--streaming.store.lease_seconds=1".to_owned(),
        "--streaming.store.timeout_ms=300".to_owned(),
    ];
    let careless = start(&store, &[]);
    let server = start(&store, &["--streaming.store.required_for_readiness=true"]);
    server.ready(1).await;
    careless.ready(1).await;
    let working = json!({"state": "ok", "since": null, "last_failure": null, "lost_segments": 0});
    assert_eq!(server.status().await["store"], working);
    let mut client = server.active(json!({})).await;
    redis.signal(Signal::SIGSTOP);
    let failing = until("the failure is shown", async || {
        let store = server.status().await["store"].clone();
        (store["state"] == "failing").then_some(store)
    })
    .await;
    assert!(failing["since"].is_string(), "{failing}");
    let reason = failing["last_failure"]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("the store cannot be used now: "),
        "{reason}"
    );
    let (code, readyz) = server.get("/readyz").await;
    assert_eq!((code, &readyz["status"]), (503, &json!("store_failing")));
    assert_eq!(careless.get("/readyz").await.0, 200);
    for n in 0..10 {
        client.segment(&prompt(n)).await;
        let mut refused = server.open(json!({})).await;
        assert_eq!(refused.error().await["retryable"], true);
    }
    redis.signal(Signal::SIGCONT);
    until("it works again", async || {
        (server.status().await["store"]["state"] == "ok").then_some(())
    })
    .await;
    assert_eq!(server.get("/readyz").await.0, 200);
    let log = server.log();
    for line in ["the store does not work", "the store works again"] {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
    let noisy = (log.lines()).filter(|line| line.contains("WARN") || line.contains("ERROR"));
    let noisy: Vec<&str> = noisy.filter(|line| line.contains("stor")).collect();
    assert_eq!(noisy.len(), 1, "{noisy:#?}");
}

#[tokio::test]
async fn sessions_that_run_outlive_the_memory_of_their_redis() {
    let (mut redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
        "--streaming.store.lease_seconds=1".to_owned(),
    ];
    let expected = undisturbed(8).await;
    let server = start(&store, &["--gpus=2"]);
    let (mut busy, mut idle) = (Viewer::new(), Viewer::new());
    let mut client = busy.open(&server, &expected).await.unwrap();
    busy.watch(&mut client, &expected, 2).await;
    let mut other = idle.open(&server, &expected).await.unwrap();
    idle.watch(&mut other, &expected, 1).await;
    redis.forget().await;
    busy.watch(&mut client, &expected, 5).await;
    until("both are stored anew", async || {
        (server.log().matches("session stored anew").count() == 2).then_some(())
    })
    .await;
    busy.watch(&mut client, &expected, 6).await;
    idle.watch(&mut other, &expected, 2).await;
    assert_eq!((busy.finished, idle.finished), (6, 2));
    // Another server finds both.
    drop((client, other));
    let new = start(&store, &["--gpus=2"]);
    for viewer in [&mut busy, &mut idle] {
        let mut client = viewer.open(&new, &expected).await.unwrap();
        let next = viewer.finished + 1;
        viewer.watch(&mut client, &expected, next).await;
        assert_eq!(viewer.finished, next);
    }
}

#[tokio::test]
async fn a_session_that_an_operator_ended_does_not_come_back_with_an_empty_redis() {
    let (mut redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
    ];
    let (old, other) = (start(&store, &[]), start(&store, &[]));
    let mut client = old.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let path = format!("/v1/sessions/{}", assigned["session_id"].as_str().unwrap());
    // Its server learns neither of its end nor of the loss.
    old.signal(Signal::SIGSTOP);
    assert_eq!(other.call("DELETE", &path, None).await.0, 204);
    redis.forget().await;
    until("the other server has noticed", async || {
        (other.log().contains("the store has lost data")).then_some(())
    })
    .await;
    old.signal(Signal::SIGCONT);
    assert_eq!(client.error().await["code"], "session_rejected");
    assert_eq!(client.closed().await, Some(1000));
}

#[tokio::test]
async fn a_server_waits_for_a_redis_that_starts_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let early = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = early.local_addr().unwrap().port();
    let store = [
        format!("--store=redis://127.0.0.1:{port}"),
        folder("--blobs", dir.path()),
    ];
    let starting = tokio::task::spawn_blocking(move || start(&store, &[]));
    // It has tried.
    drop(early.accept().await.unwrap());
    drop(early);
    let _redis = Redis::start_on(port).await;
    let server = starting.await.unwrap();
    let mut client = server.active(json!({})).await;
    client.segment("a fox").await;
    let log = server.log();
    assert_eq!(log.matches("waiting for Redis at").count(), 1, "{log}");
}

#[tokio::test]
async fn a_resume_that_is_refused_leaves_the_session_where_it_runs() {
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
        "--streaming.store.lease_seconds=1".to_owned(),
    ];
    let expected = undisturbed(3).await;
    let server = start(&store, &[]);
    let wider = start(&store, &["--default_request.sampling.width=128"]);
    let mut viewer = Viewer::new();
    let mut client = viewer.open(&server, &expected).await.unwrap();
    viewer.watch(&mut client, &expected, 1).await;
    let mut refused = wider.open(viewer.opening()).await;
    let error = refused.error().await;
    assert_eq!(error["code"], "state_incompatible");
    assert_eq!(error["retryable"], false);
    assert_eq!(refused.closed().await, Some(1003));
    // The session goes on where it was, also beyond the next beats of its server.
    viewer.watch(&mut client, &expected, 3).await;
    assert_eq!(viewer.finished, 3);
    let next = viewer.opening();
    drop(client);
    server.sessions(0).await;
    let mut client = server.open(next).await;
    client.until_type("ltx2_stream_start").await;
}

#[tokio::test]
async fn a_session_whose_state_is_lost_is_refused_for_good() {
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
    ];
    let expected = undisturbed(1).await;
    let server = start(&store, &[]);
    let mut viewer = Viewer::new();
    let mut client = viewer.open(&server, &expected).await.unwrap();
    viewer.watch(&mut client, &expected, 1).await;
    drop(client);
    server.sessions(0).await;
    let other = start(&store, &[]);
    delete_blobs_in(dir.path());
    let mut refused = other.open(viewer.opening()).await;
    let error = refused.error().await;
    assert_eq!(error["code"], "session_rejected");
    assert_eq!(error["retryable"], false);
    assert_eq!(refused.closed().await, Some(1003));
}

#[tokio::test]
async fn a_session_is_ended_by_an_operator_while_its_store_is_away() {
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", dir.path()),
        "--streaming.store.timeout_ms=500".to_owned(),
    ];
    let server = start(&store, &[]);
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let path = format!("/v1/sessions/{}", assigned["session_id"].as_str().unwrap());
    redis.signal(Signal::SIGSTOP);
    assert_eq!(server.call("DELETE", &path, None).await.0, 204);
    assert_eq!(client.error().await["code"], "session_rejected");
    assert_eq!(client.closed().await, Some(1000));
    redis.signal(Signal::SIGCONT);
    until("the session is removed from the store", async || {
        (server.get(&format!("{path}/state")).await.0 == 404).then_some(())
    })
    .await;
    assert_eq!(server.call("DELETE", &path, None).await.0, 404);
}

/// Deletes the blobs in a folder and all below it.
fn delete_blobs_in(path: &Path) {
    for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            delete_blobs_in(&entry.path());
        } else if entry.file_name().len() >= 64 {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// Where Debian's package `faketime` keeps its library, whatever the processor.
fn faketime() -> String {
    let lib = std::fs::read_dir("/usr/lib").unwrap().map(Result::unwrap);
    let found = lib
        .map(|entry| entry.path().join("faketime/libfaketime.so.1"))
        .find(|path| path.exists());
    let found = found.expect("faketime is installed (make test does)");
    found.display().to_string()
}

/// A clock that a test sets. Servers that have it read no other one, except to measure how long something takes.
pub(crate) struct Clock(PathBuf);

impl Clock {
    /// A clock that is right.
    pub(crate) fn new(folder: &Path) -> Self {
        let clock = Self(folder.join("clock"));
        clock.set("+0");
        clock
    }

    /// Starts what has this clock.
    pub(crate) fn command(&self) -> Command {
        let mut command = command();
        command
            .env("LD_PRELOAD", faketime())
            .env("FAKETIME_TIMESTAMP_FILE", &self.0)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    }

    /// Says how far it is off, such as `-3650d`.
    pub(crate) fn set(&self, offset: &str) {
        std::fs::write(&self.0, offset).unwrap();
    }
}

#[tokio::test]
async fn a_clock_that_jumps_expires_nothing() {
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let clock = Clock::new(dir.path());
    let expected = undisturbed(4).await;
    let blobs = folder("--blobs", dir.path());
    let server = Server::spawn(
        (clock.command())
            .args(TINY)
            .args([&format!("--store={}", redis.url), &blobs])
            .args(["--gpus=2", "--streaming.store.lease_seconds=1"]),
    );
    let mut running = Viewer::new();
    let mut stays = running.open(&server, &expected).await.unwrap();
    running.watch(&mut stays, &expected, 1).await;
    let mut left = Viewer::new();
    let mut client = left.open(&server, &expected).await.unwrap();
    left.watch(&mut client, &expected, 1).await;
    drop(client);
    server.sessions(1).await;
    for jump in ["+3650d", "-3650d"] {
        clock.set(jump);
        let year = if jump == "+3650d" { "\"203" } else { "\"201" };
        until("the server's clock has jumped", async || {
            let ts = server.get("/healthz").await.1["ts"].to_string();
            ts.starts_with(year).then_some(())
        })
        .await;
        // A beat and a sweep after the jump at least: another server counts both.
        let other = start(
            &[format!("--store={}", redis.url), blobs.clone()],
            &["--streaming.store.lease_seconds=1"],
        );
        let mut client = left.open(&other, &expected).await.unwrap();
        let next = left.finished + 1;
        left.watch(&mut client, &expected, next).await;
        assert_eq!(left.finished, next);
        running.watch(&mut stays, &expected, next).await;
        assert_eq!(running.finished, next);
        assert!(!other.log().contains("silent"), "{}", other.log());
    }
}
