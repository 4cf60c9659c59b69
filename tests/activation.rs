//! Sockets that were opened by whoever starts the server, as systemd does.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;

use crate::harness::{SMALL, Server, command, until};

/// Listens on a free port.
fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Duplicates a file so that child processes inherit it, to a number that nothing else uses in the shell.
fn inherited(file: &impl AsFd) -> RawFd {
    fcntl(file, FcntlArg::F_DUPFD(100)).unwrap()
}

/// A command that passes descriptors of this process to the supervisor, under these names, as those of process `pid`.
#[expect(
    clippy::disallowed_methods,
    reason = "a shell passes descriptors as whoever starts services does"
)]
fn passing_to(pid: &str, descriptors: &[RawFd], names: Option<&str>, args: &[&str]) -> Command {
    let supervisor = command();
    let mut shell = Command::new("bash");
    let redirection = |(from, to): (&RawFd, i32)| format!(" {to}<&{from} {from}<&-");
    let redirections: String = descriptors.iter().zip(3..).map(redirection).collect();
    // The shell becomes the supervisor, so that its process id is that of both.
    let script = format!("export LISTEN_PID={pid}; exec \"$@\" {redirections}");
    shell
        .args(["-c", &script, "bash"])
        .arg(supervisor.get_program())
        .args(args)
        .env("LISTEN_FDS", descriptors.len().to_string());
    match names {
        Some(names) => shell.env("LISTEN_FDNAMES", names),
        None => shell.env_remove("LISTEN_FDNAMES"),
    };
    shell
}

fn passing(descriptors: &[RawFd], names: Option<&str>, args: &[&str]) -> Command {
    passing_to("$$", descriptors, names, args)
}

#[tokio::test]
async fn a_socket_that_is_passed_replaces_the_address() {
    // systemd calls one without a name by its unit.
    for names in [None, Some("http"), Some("fastvideo-supervisor.socket")] {
        let listener = listener();
        let address = listener.local_addr().unwrap().to_string();
        let passed = [inherited(&listener)];
        let args = [SMALL, &["--gpus=1", "--host=256.0.0.1"]].concat();
        let mut server = Server::spawn_as_it_is(&mut passing(&passed, names, &args));
        assert_eq!(server.address, address);
        server.ready(1).await;
        let worker = server.worker_pid(0).await;
        let held = std::fs::read_link(format!("/proc/{}/fd/3", server.pid())).unwrap();
        assert!(held.to_string_lossy().starts_with("socket:"), "{held:?}");
        for entry in std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap() {
            let target = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
            assert_ne!(target, held, "the worker has the socket");
        }
        server
            .active(serde_json::json!({}))
            .await
            .segment("a red fox")
            .await;

        // What connects while no server runs waits for the next one.
        server.signal(Signal::SIGTERM);
        assert!(server.exit().await.success());
        let waiting = TcpStream::connect(&address).unwrap();
        let next = Server::spawn_as_it_is(&mut passing(&passed, names, &args));
        drop(waiting);
        assert_eq!(next.get("/healthz").await.0, 200);
    }
}

#[tokio::test]
async fn operators_have_a_socket_of_their_own_where_one_is_passed() {
    let (http, admin) = (listener(), listener());
    let descriptors = [inherited(&admin), inherited(&http)];
    let args = [SMALL, &["--gpus=1"]].concat();
    let server = Server::spawn_as_it_is(&mut passing(&descriptors, Some("admin:http"), &args));
    assert_eq!(server.address, http.local_addr().unwrap().to_string());
    assert_eq!(
        server.admin().await,
        admin.local_addr().unwrap().to_string()
    );
    assert_eq!(server.get("/status").await.0, 404);
}

#[tokio::test]
async fn what_is_no_listening_tcp_socket_is_refused_by_its_descriptor() {
    let listener = listener();
    let folder = tempfile::tempdir().unwrap();
    let unix = inherited(&UnixListener::bind(folder.path().join("socket")).unwrap());
    let udp = inherited(&UdpSocket::bind("127.0.0.1:0").unwrap());
    let connected = inherited(&TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    let file = inherited(&tempfile::tempfile().unwrap());
    let (good, second) = (inherited(&listener), inherited(&listener));
    let tcp = "must be a listening TCP socket";
    for (descriptors, names, words) in [
        (
            &[good, unix][..],
            Some("http:admin"),
            &["descriptor 4 (`admin`)", tcp][..],
        ),
        (&[udp], None, &["descriptor 3 (``)", tcp]),
        (
            &[connected],
            Some("http"),
            &["descriptor 3 (`http`)", tcp, "it does not listen"],
        ),
        (&[file], Some("http"), &["descriptor 3 (`http`)", tcp]),
        (
            &[good, second],
            Some("http:web"),
            &["descriptor 4", "named `http` or `admin`, given `web`"],
        ),
        (
            &[good, second],
            Some("http:http"),
            &["two sockets", "`http`"],
        ),
        (
            &[good, second],
            Some("http"),
            &["`LISTEN_FDNAMES`", "2 sockets"],
        ),
    ] {
        let args = [SMALL, &["--gpus=1", "--port=0"]].concat();
        let mut passing = tokio::process::Command::from(passing(descriptors, names, &args));
        let output = passing.kill_on_drop(true).output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(output.stdout, b"", "no port was bound");
        for words in words {
            assert!(said.contains(words), "{words} in {said}");
        }
    }
    // Sockets of another process are not taken.
    let args = [SMALL, &["--gpus=1", "--host=127.0.0.1", "--port=0"]].concat();
    let server = Server::spawn_as_it_is(&mut passing_to("1", &[good], Some("http"), &args));
    assert_ne!(server.address, listener.local_addr().unwrap().to_string());
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the tool passes the socket")]
async fn systemds_own_tool_passes_a_socket() {
    let tool = "/usr/bin/systemd-socket-activate";
    if !std::path::Path::new(tool).exists() {
        eprintln!("not tried: {tool} is not installed");
        return;
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let supervisor = command();
    let mut activate = Command::new(tool);
    activate
        .args(["--listen", &address, "--fdname=http"])
        .arg(supervisor.get_program())
        .args(SMALL)
        .args(["--gpus=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut running = activate.spawn().unwrap();
    // The first connection starts the server.
    let answer = until("the server answers", async || {
        let address = address.clone();
        let asked = tokio::task::spawn_blocking(move || {
            ureq::get(format!("http://{address}/healthz"))
                .call()
                .map(|answer| answer.status())
        });
        asked.await.unwrap().ok()
    })
    .await;
    assert_eq!(answer.as_u16(), 200);
    let pid = nix::unistd::Pid::from_raw(running.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert!(running.wait().unwrap().success());
}
