//! What the service manager is told, by whom this service is started and watched.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::harness::{PATIENCE, SMALL, Server, WATCHFUL, command, until};

/// A service manager: it listens to one service.
struct Manager {
    socket: UnixDatagram,
    /// What `NOTIFY_SOCKET` says.
    address: String,
    _folder: Option<tempfile::TempDir>,
}

impl Manager {
    fn at_path() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self::new(socket, path.display().to_string(), Some(folder))
    }

    fn with_abstract_name() -> Self {
        let name = format!("fastvideo-test-{:032x}", rand::random::<u128>());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Self::new(socket, format!("@{name}"), None)
    }

    fn new(socket: UnixDatagram, address: String, folder: Option<tempfile::TempDir>) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            address,
            _folder: folder,
        }
    }

    /// Starts a server that tells this one how it is.
    fn start(&self, watchdog: &str, args: &[&str]) -> Server {
        Server::spawn(self.command(watchdog).args(SMALL).args(args))
    }

    fn command(&self, watchdog: &str) -> Command {
        let mut command = command();
        command
            .env("NOTIFY_SOCKET", &self.address)
            .env("WATCHDOG_USEC", watchdog);
        command
    }

    /// The next message.
    async fn next(&self) -> String {
        let socket = self.socket.try_clone().unwrap();
        let heard = spawn_blocking(move || {
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).expect("a message comes in time");
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        });
        heard.await.unwrap()
    }

    /// Skips messages up to one with this line, and returns those that were skipped.
    async fn until(&self, line: &str) -> Vec<String> {
        let mut skipped = Vec::new();
        loop {
            let message = self.next().await;
            if message.lines().any(|given| given == line) {
                return skipped;
            }
            skipped.push(message);
        }
    }

    /// All that has come until now.
    fn pending(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let mut messages = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            messages.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        self.socket.set_nonblocking(false).unwrap();
        messages
    }
}

#[tokio::test]
async fn a_service_manager_hears_of_start_reload_and_end() {
    for manager in [Manager::at_path(), Manager::with_abstract_name()] {
        let mut server = manager.start("", &["--gpus=1", "--grace-seconds=30"]);
        // The time that it would wait for a store, and 20 s more.
        let before = manager.until("READY=1").await;
        assert_eq!(before, ["EXTEND_TIMEOUT_USEC=50000000"]);
        manager.until("STATUS=ready").await;
        server.signal(Signal::SIGHUP);
        let reloading = manager.next().await;
        let (word, time) = reloading.split_once('\n').unwrap();
        assert_eq!(word, "RELOADING=1");
        let micros = time.strip_prefix("MONOTONIC_USEC=").unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0);
        assert_eq!(manager.next().await, "READY=1");

        // A segment that takes long, so that the drain does.
        let mut client = server.active(json!({})).await;
        client.send(json!({"type": "segment_prompt_source", "prompt": "a red fox", "num_inference_steps": 200})).await;
        client.until_type("ltx2_segment_start").await;
        server.signal(Signal::SIGTERM);
        manager.until("STOPPING=1").await;
        manager.until("STATUS=draining").await;
        manager.until("EXTEND_TIMEOUT_USEC=20000000").await;
        server.signal(Signal::SIGTERM);
        assert!(server.exit().await.success());
    }
}

#[tokio::test]
async fn the_watchdog_is_fed_while_a_worker_hangs_and_workers_know_nothing_of_it() {
    let manager = Manager::at_path();
    let server = manager.start(
        "1500000",
        &[
            &["--gpus=1"],
            WATCHFUL,
            &["--streaming.pool.heartbeat_timeout_ms=60000"],
        ]
        .concat(),
    );
    server.ready(1).await;
    let worker = server.worker_pid(0).await;
    let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_"] {
        assert!(!environment.contains(variable), "{environment}");
    }
    let score = std::fs::read_to_string(format!("/proc/{worker}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "500", "the kernel ends workers first");
    kill(worker, Signal::SIGSTOP).unwrap();
    manager.pending();
    let begun = Instant::now();
    for _ in 0..8 {
        manager.until("WATCHDOG=1").await;
    }
    // On a busy machine one may be late.
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(3), "{took:?}");
    kill(worker, Signal::SIGCONT).unwrap();
    // A supervisor that is stopped does not feed it.
    server.signal(Signal::SIGSTOP);
    manager.pending();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(manager.pending(), [""; 0]);
    server.signal(Signal::SIGCONT);
    manager.until("WATCHDOG=1").await;
}

#[tokio::test]
async fn a_log_that_nobody_reads_does_not_stop_the_watchdog() {
    let manager = Manager::at_path();
    let (reader, pipe) = std::io::pipe().unwrap();
    let mut command = manager.command("1500000");
    command
        .args(SMALL)
        .args(["--gpus=1", "--log-level=trace"])
        .stdout(std::process::Stdio::null())
        .stderr(pipe);
    let server = Server::spawn_unheard(&mut command).await;
    server.ready(1).await;
    let mut client = server.active(json!({})).await;
    for _ in 0..10 {
        client.segment("a red fox").await;
    }
    manager.pending();
    for _ in 0..6 {
        manager.until("WATCHDOG=1").await;
    }
    drop(reader);
}

#[tokio::test]
async fn a_service_manager_that_is_gone_or_full_is_not_waited_for() {
    // Nobody listens, and nobody reads.
    let gone = Manager::at_path();
    let server = {
        let server = gone.start("1500000", &["--gpus=1"]);
        std::fs::remove_file(&gone.address).unwrap();
        server
    };
    let full = Manager::at_path();
    // A sender has a limit of its own, so there are several.
    let fillers: Vec<UnixDatagram> = (0..)
        .map(|_| {
            let filler = UnixDatagram::unbound().unwrap();
            filler.set_nonblocking(true).unwrap();
            filler
        })
        .take_while(|filler| {
            let sent = (0..).take_while(|_| filler.send_to(b"x", &full.address).is_ok());
            sent.count() > 0
        })
        .collect();
    assert!(!fillers.is_empty());
    let mut unheard = full.start("1500000", &["--gpus=1"]);
    for server in [&server, &unheard] {
        server.active(json!({})).await.segment("a red fox").await;
        until("the log tells of it", async || {
            let log = server.log();
            log.contains("the service manager takes no messages")
                .then_some(())
        })
        .await;
    }
    unheard.signal(Signal::SIGTERM);
    assert!(unheard.exit().await.success());
    // What it could not take in time is told when it reads.
    let heard = full.pending();
    assert!(heard.iter().all(|message| message == "x"));
}

#[tokio::test]
async fn a_router_tells_its_service_manager_how_it_is() {
    let server = Server::start(&["--gpus=1"]);
    let manager = Manager::with_abstract_name();
    let replicas = json!([{"url": format!("http://{}", server.address)}]).to_string();
    let mut command = manager.command("1500000");
    let mut router = Server::spawn(command.args(["router", "--replicas", &replicas]));
    manager.until("READY=1").await;
    manager.until("STATUS=ok").await;
    manager.until("WATCHDOG=1").await;
    router.signal(Signal::SIGHUP);
    manager.until("READY=1").await;
    router.signal(Signal::SIGTERM);
    manager.until("STOPPING=1").await;
    assert!(router.exit().await.success());
}
