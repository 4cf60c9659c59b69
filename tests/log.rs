//! The log: what is in it, and that the server serves whatever becomes of it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::harness::{PATIENCE, SMALL, Server, WATCHFUL, command, until};

/// Where an output of the server goes.
#[derive(Clone, Copy, Debug)]
enum Output {
    /// Somewhere where it is taken.
    Null,
    /// A pipe whose reader is gone.
    Closed,
    /// A pipe that is full, and whose reader stays and reads nothing.
    Full,
    /// A disk without room.
    FullDisk,
}

impl Output {
    fn open(self) -> (Stdio, Option<PipeReader>) {
        match self {
            Self::Null => (Stdio::null(), None),
            Self::Closed => (pipe().unwrap().1.into(), None),
            Self::Full => {
                let (reader, writer) = pipe().unwrap();
                (fill(writer).into(), Some(reader))
            }
            Self::FullDisk => {
                let disk = OpenOptions::new().write(true).open("/dev/full").unwrap();
                (disk.into(), None)
            }
        }
    }
}

/// Writes to a pipe until it takes no more.
fn fill(mut pipe: PipeWriter) -> PipeWriter {
    let flags = OFlag::from_bits_retain(fcntl(&pipe, FcntlArg::F_GETFL).unwrap());
    fcntl(&pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    // A pipe has no room for less than a page as soon as all its pages are in use.
    for bytes in [4096, 1] {
        while pipe.write(&vec![b'x'; bytes]).is_ok() {}
    }
    fcntl(&pipe, FcntlArg::F_SETFL(flags)).unwrap();
    pipe
}

#[tokio::test]
async fn a_server_that_nobody_hears_serves_and_ends_well() {
    use Output::{Closed, Full, FullDisk, Null};
    for (stdout, stderr) in [
        (Null, Closed),
        (Null, Full),
        (Null, FullDisk),
        (Closed, Null),
        (Full, Null),
        (FullDisk, Null),
        (Closed, Closed),
        (Full, Full),
    ] {
        let (out, _out_reader) = stdout.open();
        let (err, _err_reader) = stderr.open();
        // Workers that die have a lot to say.
        let faults = "--generator.synthetic.faults=panic@step1,max_attempt=1";
        let mut command = command();
        command.args(SMALL).args(WATCHFUL);
        command.args(["--log-level=trace", faults]);
        let mut server = Server::spawn_unheard(command.stdout(out).stderr(err)).await;
        let mut client = server.active(json!({})).await;
        for _ in 0..3 {
            client.segment("a red fox").await;
        }
        assert_eq!(server.get("/healthz").await.0, 200, "{stdout:?} {stderr:?}");
        drop(client);
        server.signal(Signal::SIGTERM);
        let status = server.exit().await;
        assert_eq!(status.code(), Some(0), "{stdout:?} {stderr:?}: {status}");
    }
}

#[tokio::test]
async fn lost_lines_are_counted_in_the_log_once_somebody_reads_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let open = |options: &mut OpenOptions| options.open(&path).unwrap();
    // Only a reader that does not wait can open it before a writer does.
    let reader = open(
        OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits()),
    );
    let log = open(OpenOptions::new().write(true));
    let mut command = command();
    command.args(SMALL).stdout(Stdio::null()).stderr(log);
    drop(reader);
    let server = Server::spawn_unheard(&mut command).await;
    // It has the other copy of the server's end.
    drop(command);
    server.active(json!({})).await.segment("a red fox").await;

    let reader = File::open(&path).unwrap();
    server.active(json!({})).await.segment("a red fox").await;
    let told = spawn_blocking(move || {
        let lines = BufReader::new(reader).lines().map_while(Result::ok);
        lines
            .into_iter()
            .find(|line| line.contains("log lines were lost"))
    });
    let told = timeout(PATIENCE, told)
        .await
        .expect("the loss is told")
        .unwrap();
    let told = told.expect("the loss is told before the server ends");
    assert!(told.contains("WARN") && told.contains("lines="), "{told}");
    drop(server);
}

#[tokio::test]
async fn no_client_can_write_a_line_of_the_log() {
    let forged: String = [
        "\n",
        "\r",
        "\r\n",
        "\u{1b}[2K\u{1b}[1A",
        "\u{85}",
        "\u{2028}",
        "\u{9b}2K",
        "\u{b}",
    ]
    .map(|separator| format!("{separator}2026-11-29T00:00:00Z  INFO operator: all is well"))
    .concat();
    for format in ["text", "json"] {
        let server = Server::start(&["--log-level=trace", "--log-format", format]);
        for message in [
            json!({"type": forged}),
            json!({"type": "session_init_v2", "stream_mode": forged}),
            json!({"type": "session_init_v2", "client_id": forged, "preset": forged, "preset_label": forged}),
            json!({"type": "session_init_v2", "initial_image": {"mime": forged, "data": ""}}),
            json!({"type": "session_init_v2", "resume": {"session_id": forged, "token": forged}}),
            json!({"type": "session_init_v2", "continuation_state": {"kind": forged, "payload": {}}}),
        ] {
            let mut client = server.connect().await;
            client.send(message).await;
            client.next().await;
        }
        let mut client = server.active(json!({"client_id": forged})).await;
        client.send(json!({"type": forged})).await;
        client.error().await;
        client.segment(&forged).await;
        let log = server.log();
        let begins = match format {
            "json" => "{\"timestamp\":",
            _ => "20",
        };
        let ends = |c| {
            matches!(
                c,
                '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}'
            )
        };
        for line in log.trim_end().split(ends) {
            assert!(
                line.starts_with(begins) && !line.starts_with("2026-11-29T00:00:00Z"),
                "{line:?}"
            );
        }
        assert!(!log.contains(['\u{1b}', '\u{9b}']));
        assert!(
            log.contains("operator: all is well"),
            "no text of a client is in the log"
        );
    }
}

#[tokio::test]
async fn frames_of_libraries_are_in_the_log_only_when_their_library_is_named() {
    let log_of = async |filter: &str| {
        let server = Server::start(&["--log-level", filter]);
        let mut client = server.open(json!({})).await;
        let assigned = client.until_type("gpu_assigned").await;
        client.until_type("ltx2_stream_start").await;
        client.segment("a red fox in the snow").await;
        let token = assigned["resume_token"].as_str().unwrap().to_owned();
        (server.log(), token)
    };
    let (log, token) = log_of("trace").await;
    assert!(log.contains("DEBUG"), "{log}");
    assert!(!log.contains(&token), "{log}");
    assert!(!log.contains("a red fox in the snow"), "{log}");
    let (log, _) = log_of("trace,tungstenite=trace").await;
    assert!(log.contains("a red fox in the snow"), "{log}");
}

#[tokio::test]
async fn the_log_begins_with_what_the_server_is() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("serve.yaml");
    std::fs::write(&file, "server: {grace_seconds: 1}").unwrap();
    let mut server = Server::start(&["--config", file.to_str().unwrap(), "--gpus=0,3"]);
    server.signal(Signal::SIGTERM);
    server.exit().await;
    let log = server.log();
    for (level, expected) in [
        (
            "INFO",
            concat!("starting version=\"", env!("CARGO_PKG_VERSION"), "\""),
        ),
        ("INFO", &format!("configuration file={}", file.display())),
        ("INFO", "engine name=\"synthetic\""),
        ("INFO", "workers gpus=\"0,3\""),
        ("INFO", "store location=memory with memory"),
        (
            "WARN",
            "test pictures are served, since `generator.model_path` names no model",
        ),
        ("INFO", &format!("listening address={}", server.address)),
    ] {
        let lines: Vec<_> = log.lines().filter(|l| l.contains(expected)).collect();
        assert_eq!(lines.len(), 1, "{expected} in {log}");
        // After the time.
        let said = lines[0].split_whitespace().nth(1);
        assert_eq!(said, Some(level), "{}", lines[0]);
    }
    let server = Server::start(&["--engine=synthetic", "--model=owner/name"]);
    server.ready(1).await;
    let log = server.log();
    assert!(!log.contains("test pictures"), "{log}");
    let engine = "engine name=\"synthetic\" model=\"owner/name\"";
    assert!(log.contains(engine), "{log}");
}

#[tokio::test]
async fn no_password_is_in_the_log() {
    let blobs = TempDir::new().unwrap();
    let mut server = command()
        .args(SMALL)
        .args([
            "--port=0",
            "--store=redis://someone:hunter2@127.0.0.1:1/2",
            "--log-level=trace",
        ])
        .arg(format!("--blobs=file://{}", blobs.path().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = server.stderr.take().unwrap();
    // Whether the server ends or waits for its store, it has said where it is.
    let lines = spawn_blocking(move || {
        let mut seen = Vec::new();
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            seen.push(line);
            if seen
                .iter()
                .filter(|line| line.contains("127.0.0.1:1"))
                .count()
                == 2
            {
                break;
            }
        }
        seen.join("\n")
    });
    let log = timeout(PATIENCE, lines).await;
    server.kill().unwrap();
    server.wait().unwrap();
    let log = log.expect("the store is named").unwrap();
    assert!(log.contains("store location=127.0.0.1:1"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

#[tokio::test]
async fn a_line_of_a_session_has_its_identity_beside_its_fields_in_json() {
    let args = ["--gpus=2", "--log-format=json", "--log-level=debug"];
    let server = Server::start(&[WATCHFUL, &args].concat());
    server.ready(2).await;
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    client.segment("a red fox").await;
    let log = until("the log tells of the job's end", async || {
        Some(server.log()).filter(|log| log.contains("job finished"))
    })
    .await;
    let lines: Vec<Value> = (log.lines())
        .map(|line| serde_json::from_str(line).expect("each line is an object"))
        .collect();
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "{field} in {line}");
        }
        assert!(
            line.get("spans").is_none() && line.get("span").is_none(),
            "{line}"
        );
    }
    let find = |message: &str| {
        let found = lines.iter().find(|line| line["message"] == message);
        found.unwrap_or_else(|| panic!("{message} in {log}"))
    };
    let finished = find("job finished");
    assert_eq!(finished["session_id"], assigned["session_id"]);
    assert_eq!(finished["segment_idx"], 0);
    assert_eq!(finished["worker_id"], assigned["worker_id"]);
    assert!(finished["generation_ms"].is_number(), "{finished}");
    assert_eq!(find("session bound")["session_id"], assigned["session_id"]);
}
