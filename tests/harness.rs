//! Starts the real supervisor, speaks to it as clients and operators do, and leaves nothing behind.

use std::fmt::Debug;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fastvideo_proto::api::probes::{Health, Readyz};
use fastvideo_proto::api::status::Status;
use fastvideo_proto::ids::GpuId;
use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use ureq::http::{Request, Response};

/// Everything that is waited for must happen within this time, on a loaded machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Small and quick segments, so that tests spend their time on what they test. However slow the machine, a GPU has as
/// many sessions as a test asks for. A client that goes away leaves its GPU at once,
/// and a loop waits for no viewer.
pub(crate) const SMALL: &[&str] = &[
    "--default_request.sampling.width=128",
    "--default_request.sampling.height=96",
    "--default_request.sampling.num_frames=12",
    "--default_request.sampling.num_inference_steps=4",
    "--streaming.warmup.width=64",
    "--streaming.warmup.height=64",
    "--streaming.generation_segment_cap=1000",
    "--streaming.pool.keep_up=false",
    "--streaming.hold_seconds=0",
    "--streaming.max_lead_seconds=0",
];

/// Workers that hang are noticed soon, and those that die come back soon, any number of times.
pub(crate) const WATCHFUL: &[&str] = &[
    "--streaming.pool.heartbeat_interval_ms=100",
    "--streaming.pool.heartbeat_timeout_ms=2000",
    "--streaming.pool.min_step_timeout_ms=2000",
    "--streaming.pool.min_backoff_ms=20",
    "--streaming.pool.max_backoff_ms=40",
    "--streaming.pool.quarantine_after=1000",
];

/// A running supervisor. Killed with all its workers when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    log: Arc<Mutex<String>>,
    /// What follows the first line on stdout.
    said: Arc<Mutex<String>>,
}

impl Server {
    /// Starts a supervisor on a free port, with small segments, and waits until it listens.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_exactly(&[SMALL, args].concat())
    }

    /// Starts a supervisor on a free port, and waits until it listens.
    pub(crate) fn start_exactly(args: &[&str]) -> Self {
        Self::spawn(command().args(args))
    }

    /// Starts a supervisor with small segments that keeps its temporary files in `dir`.
    pub(crate) fn start_in(dir: &Path, args: &[&str]) -> Self {
        let mut command = command();
        Self::spawn(command.env("RUNTIME_DIRECTORY", dir).args(SMALL).args(args))
    }

    /// Starts a supervisor with small segments where another one was, which has ended.
    pub(crate) fn start_at(address: &str, args: &[&str]) -> Self {
        let (_, port) = address.rsplit_once(':').expect("an address has a port");
        Self::spawn_on(port, command().args(SMALL).args(args))
    }

    /// Runs a command that starts a supervisor, on a free port, and waits until it listens.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self::spawn_on("0", command)
    }

    fn spawn_on(port: &str, command: &mut Command) -> Self {
        Self::spawn_as_it_is(command.args(["--host", "127.0.0.1", "--port", port]))
    }

    /// Runs a command that starts a supervisor, without a word about where it listens, and waits until it does.
    pub(crate) fn spawn_as_it_is(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the supervisor starts");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("stderr is piped");
        let seen = log.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut seen = seen.lock().unwrap();
                seen.push_str(&line);
                seen.push('\n');
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("stdout can be read");
        let address = line.trim().strip_prefix("listening on http");
        let address = address.and_then(|rest| rest.trim_start_matches('s').strip_prefix("://"));
        let Some(address) = address else {
            let _ = child.wait();
            panic!("the supervisor said {line:?} and\n{}", log.lock().unwrap());
        };
        let address = address.to_owned();
        let said = Arc::new(Mutex::new(String::new()));
        let rest = said.clone();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let mut rest = rest.lock().unwrap();
                rest.push_str(&line);
                rest.push('\n');
            }
        });
        Self {
            child,
            address,
            log,
            said,
        }
    }

    /// Runs a command that starts a supervisor whose stdout and stderr go where the command says, and waits until it
    /// accepts connections.
    pub(crate) async fn spawn_unheard(command: &mut Command) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let (host, port) = address.rsplit_once(':').expect("an address has a port");
        let child = command
            .args(["--host", host, "--port", port])
            .stdin(Stdio::null())
            .spawn()
            .expect("the supervisor starts");
        let mut server = Self {
            child,
            address,
            log: Arc::default(),
            said: Arc::default(),
        };
        until("the server accepts connections", async || {
            let ended = server.child.try_wait().unwrap();
            assert_eq!(ended, None, "the supervisor ended");
            TcpStream::connect(&server.address).await.ok()
        })
        .await;
        server
    }

    /// Waits until it is said where operators reach the supervisor, and returns the address.
    pub(crate) async fn admin(&self) -> String {
        until("the address of operators is printed", async || {
            let said = self.said.lock().unwrap().clone();
            let line = said.lines().next()?.to_owned();
            let address = line.strip_prefix("listening for operators on http");
            let address = address?.trim_start_matches('s').strip_prefix("://");
            address.map(str::to_owned)
        })
        .await
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The most memory that the supervisor has had so far, in bytes.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the supervisor runs");
    }

    /// Ends the supervisor without a word.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.exit().await;
    }

    /// Waits for the supervisor's own exit.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        until("the supervisor exits", async || {
            self.child.try_wait().unwrap()
        })
        .await
    }

    /// What the supervisor has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends a request whose URI is a path. The answer's body is text.
    pub(crate) async fn send(&self, mut request: Request<String>) -> Response<String> {
        let url = format!("http://{}{}", self.address, request.uri());
        *request.uri_mut() = url.parse().expect("a path makes a URL");
        tokio::task::spawn_blocking(move || {
            let agent = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .allow_non_standard_methods(true)
                .build()
                .new_agent();
            let (parts, body) = agent.run(request).expect("the server answers").into_parts();
            let mut body = body;
            let text = body.with_config().limit(1 << 30).read_to_string().unwrap();
            Response::from_parts(parts, text)
        })
        .await
        .unwrap()
    }

    /// Any method, with a JSON body if there is one. The answer's body is text.
    pub(crate) async fn request(
        &self,
        method: &'static str,
        path: &str,
        body: Option<Value>,
    ) -> Response<String> {
        let request = Request::builder().method(method).uri(path);
        let body = body.map_or(String::new(), |body| body.to_string());
        self.send(request.body(body).unwrap()).await
    }

    /// The same, with the status code and the body as JSON or, where it is none, as a string.
    pub(crate) async fn call(
        &self,
        method: &'static str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let response = self.request(method, path, body).await;
        let (status, text) = (response.status().as_u16(), response.into_body());
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (status, body)
    }

    /// GET, with the status code.
    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.call("GET", path, None).await
    }

    /// GET of an answer of that type, whatever its status code.
    pub(crate) async fn read<T: DeserializeOwned>(&self, path: &str) -> T {
        let text = self.request("GET", path, None).await.into_body();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error} in {text}"))
    }

    /// PUT of a text, with the status code.
    pub(crate) async fn put(&self, path: &str, text: &str) -> (u16, Value) {
        let request = Request::builder().method("PUT").uri(path);
        let response = self.send(request.body(text.to_owned()).unwrap()).await;
        let (status, text) = (response.status().as_u16(), response.into_body());
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (status, body)
    }

    /// POST without a body, with the status code.
    pub(crate) async fn post(&self, path: &str) -> (u16, Value) {
        self.call("POST", path, None).await
    }

    pub(crate) async fn status(&self) -> Value {
        self.get("/status").await.1
    }

    /// What `/status` says of one GPU.
    pub(crate) async fn gpu(&self, gpu: u32) -> Value {
        self.status().await["gpu_status"][gpu.to_string()].clone()
    }

    /// Waits until a GPU's `/status` fits, and returns it.
    pub(crate) async fn gpu_until(
        &self,
        gpu: u32,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Value {
        until(what, async || Some(self.gpu(gpu).await).filter(&fits)).await
    }

    /// Waits until so many workers serve.
    pub(crate) async fn ready(&self, workers: usize) {
        until("workers are ready", async || {
            let readiness: Readyz = self.read("/readyz").await;
            (readiness.ready_gpu_workers == workers).then_some(())
        })
        .await;
    }

    /// Waits until so many sessions are open.
    pub(crate) async fn sessions(&self, open: usize) {
        until("so many sessions are open", async || {
            let health: Health = self.read("/health").await;
            (health.sessions == open).then_some(())
        })
        .await;
    }

    /// The process of a GPU's worker.
    pub(crate) async fn worker_pid(&self, gpu: u32) -> Pid {
        let status: Status = self.read("/status").await;
        let pid = status.gpu_status[&GpuId(gpu)].pid;
        Pid::from_raw(pid.expect("the worker runs").cast_signed())
    }

    /// Connects without opening a session.
    pub(crate) async fn connect(&self) -> Client {
        self.connect_to("/v1/stream").await
    }

    /// Connects to a route.
    pub(crate) async fn connect_to(&self, route: &str) -> Client {
        let url = format!("ws://{}{route}", self.address);
        let connecting = tokio_tungstenite::connect_async(url);
        let (socket, _) = timeout(PATIENCE, connecting)
            .await
            .unwrap()
            .expect("the server accepts");
        Client { socket }
    }

    /// Connects to a server that may be gone any moment.
    pub(crate) async fn try_connect(&self) -> Option<Client> {
        let url = format!("ws://{}/v1/stream", self.address);
        let connecting = tokio_tungstenite::connect_async(url);
        let (socket, _) = timeout(PATIENCE, connecting).await.unwrap().ok()?;
        Some(Client { socket })
    }

    /// Connects and opens a session.
    pub(crate) async fn open(&self, init: Value) -> Client {
        let mut client = self.connect().await;
        let mut message = json!({"type": "session_init_v2"});
        merge(&mut message, init);
        client.send(message).await;
        client
    }

    /// Connects, opens a session and waits until it is active.
    pub(crate) async fn active(&self, init: Value) -> Client {
        let mut client = self.open(init).await;
        client.until_type("ltx2_stream_start").await;
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the supervisor's log:\n{}", self.log());
        }
    }
}

/// The supervisor's binary. The worker's lies beside it once the workspace is built.
#[expect(
    clippy::disallowed_methods,
    reason = "tests start the program under test"
)]
pub(crate) fn command() -> Command {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_fastvideo-supervisor"));
    let worker = binary.with_file_name("fastvideo-worker");
    assert!(
        worker.exists(),
        "{} is missing: build the workspace first (make test does)",
        worker.display()
    );
    Command::new(binary)
}

/// Python with the packages of `tests/data/requirements.txt`.
#[expect(
    clippy::disallowed_methods,
    reason = "tests start what reads the program's output"
)]
pub(crate) fn python() -> Command {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python");
    assert!(
        python.exists(),
        "{} is missing: make python puts it there (make test does)",
        python.display()
    );
    Command::new(python)
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// What a client hears.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    Text(Value),
    Media(Vec<u8>),
    /// The close code; none when the connection ended without one.
    Closed(Option<u16>),
}

/// A segment as a client got it.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// All text messages from `ltx2_segment_start` to `ltx2_segment_complete`.
    pub(crate) texts: Vec<Value>,
    /// The binary messages.
    pub(crate) media: Vec<Vec<u8>>,
}

impl Segment {
    /// The messages of one type.
    pub(crate) fn of(&self, kind: &str) -> Vec<&Value> {
        self.texts.iter().filter(|m| m["type"] == kind).collect()
    }

    /// The only message of one type.
    pub(crate) fn only(&self, kind: &str) -> &Value {
        let all = self.of(kind);
        assert_eq!(all.len(), 1, "{kind} in {:?}", self.texts);
        all[0]
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.media.concat()
    }
}

impl Client {
    pub(crate) async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends to a server that may be gone any moment.
    pub(crate) async fn try_send(&mut self, message: Value) -> Result<(), WsError> {
        let message = Message::text(message.to_string());
        self.socket.send(message).await
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.socket
            .send(Message::text(text))
            .await
            .expect("the connection is open");
    }

    pub(crate) async fn send_binary(&mut self, bytes: &[u8]) {
        self.socket
            .send(Message::binary(bytes.to_vec()))
            .await
            .expect("the connection is open");
    }

    /// Asks for a segment.
    pub(crate) async fn prompt(&mut self, prompt: &str) {
        self.send(json!({"type": "segment_prompt_source", "prompt": prompt}))
            .await;
    }

    /// The next message; pings and pongs are answered and skipped.
    pub(crate) async fn next(&mut self) -> Heard {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let message = timeout_at(give_up, self.socket.next())
                .await
                .expect("the server says something in time");
            return match message {
                Some(Ok(Message::Text(text))) => {
                    Heard::Text(serde_json::from_str(&text).expect("texts are JSON"))
                }
                Some(Ok(Message::Binary(bytes))) => Heard::Media(bytes.to_vec()),
                Some(Ok(Message::Close(frame))) => Heard::Closed(frame.map(|f| f.code.into())),
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => Heard::Closed(None),
            };
        }
    }

    /// The next message, which must be text of this type.
    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        match self.next().await {
            Heard::Text(text) if text["type"] == kind => text,
            other => panic!("expected {kind}, got {}", short(&other)),
        }
    }

    /// The next message, which must be text of this type and say until when the session can be resumed; returns the
    /// other fields.
    pub(crate) async fn resumable(&mut self, kind: &str) -> Value {
        let mut text = self.expect(kind).await;
        let until = text.as_object_mut().unwrap().remove("resumable_until");
        let until = until.expect("the time is told");
        let until = humantime::parse_rfc3339(until.as_str().unwrap()).unwrap();
        assert!(until > std::time::SystemTime::now());
        text
    }

    /// Skips messages up to a text of this type.
    pub(crate) async fn until_type(&mut self, kind: &str) -> Value {
        loop {
            match self.next().await {
                Heard::Text(text) if text["type"] == kind => return text,
                Heard::Closed(code) => panic!("closed with {code:?} before {kind}"),
                _ => {}
            }
        }
    }

    /// The next messages up to a text of this type, that one included.
    pub(crate) async fn collect_until(&mut self, kind: &str) -> Segment {
        let mut segment = Segment {
            texts: Vec::new(),
            media: Vec::new(),
        };
        loop {
            match self.next().await {
                Heard::Text(text) => {
                    let last = text["type"] == kind;
                    segment.texts.push(text);
                    if last {
                        return segment;
                    }
                }
                Heard::Media(bytes) => segment.media.push(bytes),
                Heard::Closed(code) => panic!(
                    "closed with {code:?} before {kind}, after {:?}",
                    segment.texts
                ),
            }
        }
    }

    /// Asks for a segment and takes it whole.
    pub(crate) async fn segment(&mut self, prompt: &str) -> Segment {
        self.prompt(prompt).await;
        self.collect_until("ltx2_segment_complete").await
    }

    /// The `error` that follows, skipping everything else.
    pub(crate) async fn error(&mut self) -> Value {
        self.until_type("error").await
    }

    /// What the server has said by the time at which it answers now.
    pub(crate) async fn so_far(&mut self) -> Vec<Heard> {
        self.send(json!({"type": "are-you-there"})).await;
        let mut heard = Vec::new();
        loop {
            match self.next().await {
                Heard::Text(text) if text["message"] == "unknown message type `are-you-there`" => {
                    return heard;
                }
                Heard::Closed(code) => panic!("closed with {code:?} after {heard:?}"),
                other => heard.push(other),
            }
        }
    }

    /// Closes the connection, with this status code or without one, and waits for the server's answer.
    pub(crate) async fn close(&mut self, code: Option<u16>) {
        let frame = code.map(|code| CloseFrame {
            code: code.into(),
            reason: "".into(),
        });
        let sent = self.socket.send(Message::Close(frame)).await;
        sent.expect("the connection is open");
        self.closed().await;
    }

    /// Skips everything up to the close, and returns its code.
    pub(crate) async fn closed(&mut self) -> Option<u16> {
        loop {
            if let Heard::Closed(code) = self.next().await {
                return code;
            }
        }
    }
}

/// A message for a panic's text: media are only counted.
pub(crate) fn short(heard: &Heard) -> String {
    match heard {
        Heard::Media(bytes) => format!("{} bytes of media", bytes.len()),
        other => format!("{other:?}"),
    }
}

/// Waits until `look` sees something. Looks again and again, since HTTP has no events.
pub(crate) async fn until<T: Debug>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < give_up, "waited in vain until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Adds the fields of one object to another.
pub(crate) fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// True while the process or what is left of it exists; an exited one does until its parent has waited for it.
pub(crate) fn exists(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
