//! Collectors that are away, never answer, or come back; one of them is a real one.

use std::net::TcpListener as StdListener;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::collector::counted;
use crate::harness::{Client, Server, python, until};

/// The line of the log when an outage begins.
const BEGINS: &str = "the collector of traces takes no spans";
/// The line when it is over.
const OVER: &str = "the collector of traces takes spans again";

/// A rotel, which takes spans over OTLP and forgets them.
struct Rotel {
    child: Child,
    address: String,
    _folder: TempDir,
}

impl Rotel {
    /// Starts one, and waits until it listens.
    async fn start(address: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut rotel = Self {
            child: spawn(address, &folder),
            address: address.to_owned(),
            _folder: folder,
        };
        until("rotel listens", async || {
            let ended = rotel.child.try_wait().unwrap();
            assert!(ended.is_none(), "rotel has ended: {ended:?}");
            TcpStream::connect(&rotel.address).await.ok()
        })
        .await;
        rotel
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).unwrap();
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "starts a collector, which is no worker"
)]
fn spawn(address: &str, folder: &TempDir) -> Child {
    let found = python()
        .args([
            "-c",
            "import rotel, os; print(os.path.dirname(rotel.__file__))",
        ])
        .output()
        .unwrap();
    assert!(found.status.success(), "make python installs rotel");
    let folder_of_package = String::from_utf8(found.stdout).unwrap();
    Command::new(format!("{}/rotel-agent", folder_of_package.trim()))
        .args(["start", "--exporter=blackhole"])
        .args(["--otlp-http-endpoint", address])
        .args(["--otlp-grpc-endpoint", "127.0.0.1:0"])
        .arg("--pid-file")
        .arg(folder.path().join("pid"))
        .arg("--log-file")
        .arg(folder.path().join("log"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// An address that nobody listens on.
fn free_address() -> String {
    let free = StdListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().to_string()
}

/// A session of one segment.
async fn session(server: &Server) {
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;
    leave(&mut client).await;
}

async fn leave(client: &mut Client) {
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;
}

/// Waits until more spans than so many have that outcome. Returns how many.
async fn more_than(server: &Server, count: f64, outcome: &str) -> f64 {
    until(
        &format!("more than {count} spans are {outcome}"),
        async || {
            let now = counted(server, outcome).await;
            (now > count).then_some(now)
        },
    )
    .await
}

async fn logged(server: &Server, line: &str) {
    until("it is logged", async || {
        server.log().contains(line).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_real_collector_takes_spans_goes_away_comes_back_and_stands_still() {
    let address = free_address();
    let rotel = Rotel::start(&address).await;
    let flag = format!("--otlp-endpoint=http://{address}");
    let mut server = Server::start(&["--gpus=1", &flag]);
    session(&server).await;
    let exported = more_than(&server, 10.0, "exported").await;
    assert_eq!(counted(&server, "failed").await, 0.0);

    drop(rotel);
    session(&server).await;
    more_than(&server, 0.0, "failed").await;
    logged(&server, BEGINS).await;
    assert_eq!(server.log().matches(BEGINS).count(), 1);

    let rotel = Rotel::start(&address).await;
    session(&server).await;
    more_than(&server, exported, "exported").await;
    logged(&server, OVER).await;
    assert_eq!(server.log().matches(OVER).count(), 1);

    // It takes connections, as the system does for it, and says nothing. Nobody waits for it.
    rotel.signal(Signal::SIGSTOP);
    session(&server).await;
    session(&server).await;
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());
    assert!(begun.elapsed().as_secs() < 15, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_never_answers() {
    // It takes connections, as the system does for it, and says nothing.
    let silent = StdListener::bind("127.0.0.1:0").unwrap();
    let flag = format!("--otlp-endpoint=http://{}", silent.local_addr().unwrap());
    let mut server = Server::start(&[&flag]);
    let mut client = server.active(json!({})).await;
    for prompt in ["a red fox", "a quiet lake"] {
        client.segment(prompt).await;
    }
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());
    // The worker has left, too.
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_outage_of_the_collector_is_counted_and_told() {
    let flag = format!("--otlp-endpoint=http://{}", free_address());
    let server = Server::start(&[&flag]);
    session(&server).await;
    more_than(&server, 9.0, "failed").await;
    logged(&server, BEGINS).await;
}

#[tokio::test]
async fn a_collector_that_is_no_address_stops_the_start() {
    let (code, _, said) = crate::cli::run(&["--gpus=1", "--otlp-endpoint=collector:4318"]).await;
    assert_eq!(code, Some(2));
    assert!(
        said.contains("server.tracing.endpoint") || said.contains("otlp-endpoint"),
        "{said}"
    );
}
