//! What a router adds to the way of the media, beside what HAProxy adds.
//!
//! A source sends messages to each session at the pace of fragments; each message carries the time of its sending. The
//! source and the clients are threads of this process, so that both have one clock. Direct connections, HAProxy, a router
//! to which the source is a plain server, and one that has session links with it take turns.

use std::net::TcpListener as FreePort;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::{BufMut, BytesMut};
use fastvideo_proto::fleet::{FLEET_VERSION, Report, ServerMessage};
use futures_util::{SinkExt, StreamExt};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::client::PATIENCE;
use crate::cost::{MachineTime, cpu_time};
use crate::figures::Figures;
use crate::fleet::{Keys, with_room};
use crate::report::{Row, Target};
use crate::server::{ASK_AGAIN, Server};

const MESSAGE_BYTES: usize = 100 << 10;
const MESSAGES_PER_SECOND: u32 = 24;
/// How long each way is measured at a time.
const TURN: Duration = Duration::from_secs(5);
/// Before each turn's first message that counts.
const SETTLING: Duration = Duration::from_millis(500);
const BYTES_PER_GB: f64 = 1e9;

/// How the messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Haproxy,
    Plain,
    Linked,
}

const WAYS: [Way; 4] = [Way::Direct, Way::Haproxy, Way::Plain, Way::Linked];

/// What was seen on one way.
#[derive(Debug, Default)]
struct Seen {
    /// Number of messages.
    count: usize,
    /// Of each turn the 99th percentile of the time from the sending of a message to its end at the client, in
    /// milliseconds.
    p99s: Vec<f64>,
    bytes: f64,
    /// Processor time of what lies between, in seconds.
    cpu: f64,
    busy: f64,
}

impl Seen {
    /// Returns the median of all turns: in one of them, something else may have had the processor.
    fn p99(&self) -> anyhow::Result<f64> {
        Ok(Figures::of(self.p99s.iter().copied())?.p50)
    }

    fn cpu_per_gb(&self) -> f64 {
        self.cpu / (self.bytes / BYTES_PER_GB)
    }
}

pub(crate) async fn measure(turns: usize) -> anyhow::Result<Vec<Row>> {
    let source = Source::start()?;
    let haproxy = Haproxy::start(&source.address).await?;
    let replicas = json!([{"url": format!("http://{}", source.address)}]).to_string();
    let plain = Server::start_router(&["--replicas", &replicas])?;
    let keys = Keys::new()?;
    let key = keys.flag("router.key_file");
    let linked = Server::start_router(&["--replicas", &replicas, &key])?;
    with_room(&linked, 1).await?;
    let mut rows = Vec::new();
    for (sessions, names) in [(4, &NAMES[0]), (32, &NAMES[1])] {
        let mut seen: [Seen; 4] = Default::default();
        for _ in 0..turns {
            for (way, seen) in WAYS.into_iter().zip(&mut seen) {
                let (address, pid) = match way {
                    Way::Direct => (&source.address, None),
                    Way::Haproxy => (&haproxy.address, Some(haproxy.pid())),
                    Way::Plain => (&plain.address, Some(plain.pid())),
                    Way::Linked => (&linked.address, Some(linked.pid())),
                };
                turn(address, pid, sessions, seen).await?;
            }
        }
        let [direct, haproxy, plain, linked] = seen;
        let beside = [direct.p99()?, haproxy.p99()?];
        for (names, seen) in names.iter().zip([plain, linked]) {
            rows.extend(names.rows(beside, haproxy.cpu_per_gb(), &seen)?);
        }
    }
    Ok(rows)
}

/// The names of the rows of one kind of router with a number of sessions.
struct Names {
    latency: (&'static str, &'static str),
    cpu: (&'static str, &'static str),
}

/// By number of sessions: a plain bridge, and session links.
const NAMES: [[Names; 2]; 2] = [
    [
        Names {
            latency: (
                "router_latency_4",
                "router, 4 sessions: added p99 in times of HAProxy's",
            ),
            cpu: (
                "router_cpu_4",
                "the same, processor time per GB in times of HAProxy's",
            ),
        },
        Names {
            latency: (
                "router_link_latency_4",
                "router with session links, 4 sessions: added p99",
            ),
            cpu: (
                "router_link_cpu_4",
                "the same, processor time per GB in times of HAProxy's",
            ),
        },
    ],
    [
        Names {
            latency: (
                "router_latency_32",
                "router, 32 sessions: added p99 in times of HAProxy's",
            ),
            cpu: (
                "router_cpu_32",
                "the same, processor time per GB in times of HAProxy's",
            ),
        },
        Names {
            latency: (
                "router_link_latency_32",
                "router with session links, 32 sessions: added p99",
            ),
            cpu: (
                "router_link_cpu_32",
                "the same, processor time per GB in times of HAProxy's",
            ),
        },
    ],
];

impl Names {
    /// Makes the rows. `direct` and `haproxy` are 99th percentiles in milliseconds, `haproxy_cpu` are seconds per GB.
    fn rows(
        &self,
        [direct, haproxy]: [f64; 2],
        haproxy_cpu: f64,
        seen: &Seen,
    ) -> anyhow::Result<[Row; 2]> {
        let (p99, cpu) = (seen.p99()?, seen.cpu_per_gb());
        let row = |(key, what), measured, note| Row {
            key,
            what,
            unit: "x",
            python: "-",
            target: Target::AtMost(1.2),
            measured,
            figures: None,
            note,
        };
        let latency = format!(
            "p99 direct {direct:.2}, HAProxy {haproxy:.2}, router {p99:.2} ms of {} messages each; \
             cores {:.0} % busy with the router",
            seen.count,
            seen.busy * 100.0
        );
        let time = format!("HAProxy {haproxy_cpu:.2}, router {cpu:.2} s per GB");
        Ok([
            row(self.latency, (p99 - direct) / (haproxy - direct), latency),
            row(self.cpu, cpu / haproxy_cpu, time),
        ])
    }
}

/// Measures one way for a while.
async fn turn(
    address: &str,
    pid: Option<Pid>,
    sessions: usize,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    let time = |pid: Option<Pid>| pid.map(cpu_time).transpose();
    let counts = Arc::new(AtomicBool::new(false));
    let address = address.to_owned();
    let clients = {
        let counts = counts.clone();
        thread::spawn(move || clients(&address, sessions, &counts))
    };
    sleep(SETTLING).await;
    let (before, machine) = (time(pid)?, MachineTime::look()?);
    counts.store(true, Ordering::Relaxed);
    sleep(TURN).await;
    counts.store(false, Ordering::Relaxed);
    let (after, busy) = (time(pid)?, MachineTime::look()?.busy_since(&machine));
    let (latencies, bytes) = clients
        .join()
        .map_err(|_| anyhow::anyhow!("the clients panicked"))??;
    let latencies = Figures::of(latencies).context("no message came")?;
    seen.count += latencies.n;
    seen.p99s.push(latencies.p99);
    seen.bytes += bytes;
    if let (Some(before), Some(after)) = (before, after) {
        seen.cpu += (after - before).as_secs_f64();
    }
    seen.busy = busy;
    Ok(())
}

/// Receives what comes to so many sessions, for as long as it counts.
fn clients(address: &str, sessions: usize, counts: &AtomicBool) -> anyhow::Result<(Vec<f64>, f64)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let url = format!("ws://{address}/v1/stream");
        let mut sockets = Vec::new();
        for _ in 0..sessions {
            let connecting = tokio_tungstenite::connect_async(&url);
            let (mut socket, _) = timeout(PATIENCE, connecting).await??;
            let opening = json!({"type": "session_init_v2"});
            socket.send(Message::text(opening.to_string())).await?;
            sockets.push(socket);
        }
        let received = sockets.into_iter().map(async |mut socket| {
            let (mut latencies, mut bytes, mut has_begun) = (Vec::new(), 0.0, false);
            loop {
                let next = timeout(PATIENCE, socket.next()).await?;
                let Message::Binary(message) = next.context("it closed")?? else {
                    continue;
                };
                match counts.load(Ordering::Relaxed) {
                    true => has_begun = true,
                    false if has_begun => return anyhow::Ok((latencies, bytes)),
                    false => continue,
                }
                let sent = message.first_chunk().context("a time")?;
                let sent = Duration::from_nanos(u64::from_be_bytes(*sent));
                let took = now().saturating_sub(sent);
                latencies.push(took.as_secs_f64() * 1e3);
                bytes += message.len() as f64;
            }
        });
        let received = futures_util::future::try_join_all(received).await?;
        let mut all = (Vec::new(), 0.0);
        for (latencies, bytes) in received {
            all.0.extend(latencies);
            all.1 += bytes;
        }
        Ok(all)
    })
}

/// The time since this process began to measure.
fn now() -> Duration {
    static BEGUN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    BEGUN.elapsed()
}

/// A server that sends messages to whoever connects, and answers probes.
struct Source {
    address: String,
}

impl Source {
    fn start() -> anyhow::Result<Self> {
        let listener = FreePort::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        // It ends with the process.
        thread::spawn(move || runtime.block_on(accept(listener)));
        Ok(Self { address })
    }
}

async fn accept(listener: FreePort) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut served = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        served.spawn(serve(stream));
        while served.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut head = [0; 32];
    let peeked = stream.peek(&mut head).await?;
    let head = &head[..peeked];
    if head.starts_with(b"GET /v1/router/session ") {
        let opened = json!({"session": "a-session", "resume_token": "a-token"});
        let turn = json!({"turn": {"opened": opened}});
        return send_media(stream, Some(turn.to_string())).await;
    }
    if head.starts_with(b"GET /v1/router ") {
        return report(stream).await;
    }
    if head.starts_with(b"GET /v1/stream ") {
        return send_media(stream, None).await;
    }
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await?;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    Ok(stream.write_all(answer).await?)
}

/// Tells a router that there is room.
async fn report(stream: TcpStream) -> anyhow::Result<()> {
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    let report = Report {
        server_id: "source".to_owned(),
        fleet: vec![FLEET_VERSION],
        ready: true,
        places: 1000,
        free: 1000,
        ..Report::default()
    };
    let text = serde_json::to_string(&ServerMessage::Report(Box::new(report)))?;
    loop {
        socket.send(Message::text(&text)).await?;
        sleep(Duration::from_secs(1)).await;
    }
}

/// Sends messages for as long as the peer takes them, after its first message and an answer to that.
async fn send_media(stream: TcpStream, answer: Option<String>) -> anyhow::Result<()> {
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    socket.next().await.context("an opening message")??;
    if let Some(answer) = answer {
        socket.send(Message::text(answer)).await?;
    }
    let pause = Duration::from_secs(1) / MESSAGES_PER_SECOND;
    // So that the sessions do not send all at once.
    let first = tokio::time::Instant::now() + pause.mul_f64(rand::random());
    let mut ticks = interval_at(first, pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let mut message = BytesMut::zeroed(MESSAGE_BYTES);
        let sent = u64::try_from(now().as_nanos())?;
        (&mut message[..8]).put_u64(sent);
        socket.send(Message::Binary(message.freeze())).await?;
    }
}

/// Debian's HAProxy before the source. Killed when dropped.
struct Haproxy {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Haproxy {
    #[expect(
        clippy::disallowed_methods,
        reason = "the router is measured beside another program"
    )]
    async fn start(source: &str) -> anyhow::Result<Self> {
        let free = FreePort::bind("127.0.0.1:0")?;
        let address = free.local_addr()?.to_string();
        drop(free);
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("haproxy.cfg");
        let config = format!(
            "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n \
             timeout tunnel 1h\nfrontend f\n bind {address}\n default_backend b\nbackend b\n server s {source}\n"
        );
        std::fs::write(&path, config)?;
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&path);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("haproxy does not start (make bench installs it)")?;
        let begun = Instant::now();
        while TcpStream::connect(&address).await.is_err() {
            ensure!(begun.elapsed() < PATIENCE, "haproxy does not listen");
            sleep(ASK_AGAIN).await;
        }
        Ok(Self {
            child,
            address,
            _folder: folder,
        })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
