//! What strangers do with connections: nothing for long, half of something, too much at once, or in the name of another
//! site. It costs nobody else anything.

use std::process::Command;
use std::time::Duration;

use fastvideo_proto::api::error::ErrorBody;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::{MaybeTlsStream, client_async};
use ureq::http::Request;

use crate::harness::{Client, Heard, PATIENCE, Server, command, until};

const GPU: &[&str] = &[
    "--gpus=1",
    "--sessions-per-gpu=4",
    "--generator.synthetic.step_ms=0",
    "--generator.synthetic.frame_ms=0",
];

fn serve(args: &[&str]) -> Server {
    Server::start(&[GPU, args].concat())
}

/// Connects and sends bytes.
async fn connect(server: &Server, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    // A server that has no room may be gone already.
    let _ = stream.write_all(bytes).await;
    stream
}

/// Everything that the server sends until it closes the connection.
async fn to_the_end(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset ends a connection, too.
    let reading = stream.read_to_end(&mut answer);
    let _ = timeout(PATIENCE, reading)
        .await
        .expect("the connection is closed in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The error in an answer to a request.
fn error_of(answer: &str) -> ErrorBody {
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {answer}"))
}

#[tokio::test]
async fn what_is_not_finished_in_time_is_closed() {
    let server = serve(&[
        "--server.limits.head_timeout_seconds=1",
        "--server.limits.idle_timeout_seconds=1",
        "--server.limits.body_timeout_seconds=2",
        "--server.limits.body_idle_timeout_seconds=1",
    ]);
    let mut bystander = server.active(json!({})).await;
    let upload =
        "POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{";
    let cases = [
        ("nothing", "", None),
        (
            "half a head",
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: ",
            None,
        ),
        (
            "half a handshake",
            "GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n",
            None,
        ),
        ("half a body", upload, Some("body_timeout")),
    ];
    for (what, bytes, code) in cases {
        // Each once in silence, and once with a byte now and then.
        let silent = to_the_end(connect(&server, bytes.as_bytes()).await).await;
        let (reader, mut writer) = connect(&server, bytes.as_bytes()).await.into_split();
        let trickle = async {
            while what != "nothing" && writer.write_all(b"a").await.is_ok() {
                sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<()>().await;
        };
        let mut reader = reader;
        let mut answer = Vec::new();
        tokio::select! {
            () = trickle => unreachable!(),
            read = timeout(PATIENCE, reader.read_to_end(&mut answer)) => {
                let _ = read.unwrap_or_else(|_| panic!("{what} is not closed"));
            }
        }
        if let Some(code) = code {
            assert_eq!(error_of(&silent).error.code, code, "{what}");
        } else {
            assert_eq!((silent.as_str(), answer.len()), ("", 0), "{what}");
        }
    }
    // After an answer the connection is kept for a while.
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = to_the_end(connect(&server, request).await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    bystander.segment("a calm lake").await;
}

#[tokio::test]
async fn who_takes_no_answer_is_closed() {
    const DAY: &str = "86400";
    for (idle, whole) in [("0.5", DAY), (DAY, "0.5")] {
        let limits = [
            format!("--server.limits.answer_idle_timeout_seconds={idle}"),
            format!("--server.limits.answer_timeout_seconds={whole}"),
            format!("--server.limits.idle_timeout_seconds={DAY}"),
            // The session's state is an answer that fits into no buffer.
            "--default_request.sampling.width=1280".to_owned(),
            "--default_request.sampling.height=704".to_owned(),
        ];
        let server = serve(&limits.each_ref().map(String::as_str));
        let mut bystander = server.open(json!({})).await;
        let assigned = bystander.until_type("gpu_assigned").await;
        bystander.segment("a calm lake").await;
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let address = server.address.parse().unwrap();
        let mut stranger = socket.connect(address).await.unwrap();
        let path = format!(
            "/v1/sessions/{}/state?inline=true",
            assigned["session_id"].as_str().unwrap()
        );
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stranger.write_all(request.as_bytes()).await.unwrap();
        // Who reads nothing learns of the end by writing.
        until("the connection is closed", async || {
            stranger.write_all(b"G").await.is_err().then_some(())
        })
        .await;
        bystander.segment("a calm lake").await;
        // Who takes the answer gets all of it.
        let (status, state) = server.get(&path).await;
        assert_eq!(status, 200);
        assert!(state.to_string().len() > 1 << 20);
    }
}

#[tokio::test]
async fn connections_that_say_nothing_make_room_for_those_that_do() {
    let server = serve(&[
        "--server.limits.max_connections=8",
        "--server.limits.max_connections_per_client=8",
    ]);
    let mut viewer = server.active(json!({})).await;
    let mut strangers = Vec::new();
    for n in 0..50 {
        let bytes: &[u8] = if n % 2 == 0 { b"" } else { b"GET /" };
        strangers.push(connect(&server, bytes).await);
    }
    assert_eq!(server.get("/healthz").await.0, 200);
    let mut another = server.active(json!({})).await;
    another.segment("a fox").await;
    viewer.segment("a calm lake").await;
    // The first ones are closed.
    for stranger in strangers.drain(..20) {
        to_the_end(stranger).await;
    }
}

#[tokio::test]
async fn a_connection_without_room_is_refused_in_words_and_sessions_go_on() {
    let server = serve(&[
        "--server.limits.max_connections=6",
        "--server.limits.max_connections_per_client=3",
    ]);
    server.ready(1).await;
    until("kept connections are gone or idle", async || {
        Some(server.get("/healthz").await.0)
    })
    .await;
    let mut viewers = Vec::new();
    for _ in 0..3 {
        viewers.push(server.active(json!({})).await);
    }
    let answer = to_the_end(connect(&server, b"").await).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let error = error_of(&answer).error;
    assert_eq!(error.code, "too_many_connections");
    assert!(error.message.contains("3 connections"), "{}", error.message);
    // Another address has room.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket
        .connect(server.address.parse().unwrap())
        .await
        .unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    other.write_all(request).await.unwrap();
    assert!(to_the_end(other).await.starts_with("HTTP/1.1 200"));
    for viewer in &mut viewers {
        viewer.segment("a calm lake").await;
    }
    assert_eq!(server.log().matches("connection refused").count(), 1);
}

/// A supervisor that may open so many files.
#[expect(
    clippy::disallowed_methods,
    reason = "a shell sets the limit for the program under test"
)]
fn with_files(files: u32) -> Command {
    let supervisor = command();
    let mut shell = Command::new("sh");
    let script = format!("ulimit -n {files}; exec \"$@\"");
    shell
        .args(["-c", &script, "sh"])
        .arg(supervisor.get_program());
    shell.args(crate::harness::SMALL).args(GPU);
    shell
}

#[tokio::test]
async fn a_shortage_of_descriptors_harms_neither_sessions_nor_workers() {
    // The second one has more connections than files.
    for limit in ["", "--server.limits.max_connections=100000"] {
        let mut supervisor = with_files(200);
        supervisor.args(Some(limit).filter(|limit| !limit.is_empty()));
        let server = Server::spawn(&mut supervisor);
        server.ready(1).await;
        let worker = server.worker_pid(0).await;
        let mut viewer = server.active(json!({})).await;
        let mut strangers = Vec::new();
        for _ in 0..300 {
            strangers.push(connect(&server, b"").await);
        }
        for _ in 0..3 {
            viewer.segment("a calm lake").await;
        }
        assert_eq!(server.get("/healthz").await.0, 200, "{limit}");
        drop(strangers);
        viewer.segment("a calm lake").await;
        assert_eq!(server.worker_pid(0).await, worker, "{limit}");
        let log = server.log();
        assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
        assert!(log.matches("WARN").count() < 5, "{log}");
    }
}

#[tokio::test]
async fn websockets_that_say_nothing_are_no_sessions() {
    let server = serve(&[
        "--max-sessions=1",
        "--streaming.limits.max_unopened=4",
        "--streaming.limits.max_unopened_per_client=4",
    ]);
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(server.connect().await);
    }
    assert_eq!(server.get("/health").await.1["sessions"], 0);
    let mut viewer = server.active(json!({})).await;
    viewer.segment("a calm lake").await;
    // The oldest ones have made room.
    for mut client in silent.drain(..5) {
        let error = client.expect("error").await;
        assert_eq!(
            (&error["code"], &error["retryable"]),
            (&json!("session_rejected"), &json!(true))
        );
        assert_eq!(client.next().await, Heard::Closed(Some(1013)));
    }
    // Who has connected earlier and speaks now is told that there is no room for a session any more.
    let mut late = silent.pop().unwrap();
    late.send(json!({"type": "session_init_v2"})).await;
    assert_eq!(late.expect("error").await["code"], "session_rejected");
    assert_eq!(late.next().await, Heard::Closed(Some(1013)));
}

#[tokio::test]
async fn a_message_that_does_not_end_is_closed() {
    let server = serve(&["--streaming.limits.message_timeout_seconds=0.5"]);
    let mut viewer = server.active(json!({})).await;
    let MaybeTlsStream::Plain(stream) = viewer.socket.get_mut() else {
        panic!("no TLS here");
    };
    // A frame of 1000 bytes, of which one comes.
    stream
        .write_all(&[0x81, 0x80 | 126, 3, 232, 0, 0, 0, 0, b'{'])
        .await
        .unwrap();
    assert_eq!(viewer.closed().await, Some(1008));
    server.sessions(0).await;
}

#[tokio::test]
async fn a_message_costs_a_few_times_its_size_whatever_it_holds() {
    let server = serve(&[]);
    server.ready(1).await;
    let size = 24 << 20;
    let object = r#"{"":0},"#;
    let opening = |field: &str, part: &str| {
        let list = part.repeat(size / part.len());
        let field = field.replace("…", list.trim_end_matches(','));
        format!(r#"{{"type":"session_init_v2",{field}}}"#)
    };
    for message in [
        opening(r#""nobody":{"x":[…]}"#, object),
        opening(r#""initial_image":[…]"#, object),
        opening(r#""initial_image":{"x":[…]}"#, object),
        opening(r#""initial_image":{"data":[…]}"#, object),
        opening(
            r#""continuation_state":{"kind":"ltx2.v1","payload":{"x":[…]}}"#,
            object,
        ),
        opening(r#""curated_prompts":[…]"#, r#""","#),
    ] {
        let before = server.peak_bytes();
        let mut client = server.connect().await;
        client.send_text(&message).await;
        client.next().await;
        let taken = server.peak_bytes() - before;
        assert!(taken < 8 * size as u64, "{taken} bytes for {message:.80}");
    }
    // The same over HTTP.
    let list = object.repeat(size / object.len());
    let body = format!(r#"{{"kind":"ltx2.v1","payload":{{"x":[{list}0]}}}}"#);
    let before = server.peak_bytes();
    let request = Request::builder().method("POST").uri("/v1/sessions");
    let refused = server.send(request.body(body).unwrap()).await;
    assert_eq!(refused.status(), 400);
    assert!(
        refused.body().contains("more than 262144 values"),
        "{}",
        refused.body()
    );
    let taken = server.peak_bytes() - before;
    assert!(taken < 8 * size as u64, "{taken} bytes");
}

#[tokio::test]
async fn uploads_have_a_common_bound_and_give_back_what_they_took() {
    let server = serve(&[
        "--streaming.limits.max_message_bytes=1000000",
        "--server.limits.max_receiving_bytes=1500000",
        "--server.limits.max_receiving_bytes_per_client=1500000",
    ]);
    let mut viewer = server.active(json!({})).await;
    let half = |length: usize| {
        format!(
            "POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{}",
            "{".repeat(length / 2)
        )
    };
    let first = connect(&server, half(1_000_000).as_bytes()).await;
    let second = connect(&server, half(1_000_000).as_bytes()).await;
    // One of them is put off, the other goes on.
    let refused = tokio::select! {
        answer = to_the_end(first) => answer,
        answer = to_the_end(second) => answer,
    };
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert_eq!(error_of(&refused).error.code, "too_busy");
    // Small requests and sessions need none of it.
    let other = connect(&server, half(1_000_000).as_bytes()).await;
    viewer.segment("a calm lake").await;
    let path = format!("/v1/sessions/{}/move", "0".repeat(32));
    let small = server.call("POST", &path, Some(json!({"gpu_id": 0}))).await;
    assert_eq!(small.0, 404);
    drop(other);
    // A message of a WebSocket needs its share, too, and gets it when the others are gone.
    let large = json!({"type": "session_init_v2", "preset": "x".repeat(900_000)});
    let mut client = server.connect().await;
    client.send(large).await;
    client.until_type("ltx2_stream_start").await;
}

#[tokio::test]
async fn a_large_message_is_put_off_while_others_are_received() {
    let server = serve(&[
        "--streaming.limits.max_message_bytes=1000000",
        "--server.limits.max_receiving_bytes=1000000",
        "--server.limits.max_receiving_bytes_per_client=1000000",
    ]);
    server.ready(1).await;
    let upload = "POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n{";
    let _upload = connect(&server, upload.as_bytes()).await;
    // A moment later at most it holds its share: the messages before that are refused as no openings.
    let large = json!({"type": "session_init_v2", "preset": "x".repeat(900_000)});
    until("a message is put off", async || {
        let mut client = server.connect().await;
        client.send(large.clone()).await;
        let heard = client.next().await;
        let is_put_off = matches!(&heard, Heard::Text(text) if text["code"] == "session_rejected");
        is_put_off.then_some(())?;
        assert_eq!(client.next().await, Heard::Closed(Some(1013)));
        Some(())
    })
    .await;
}

#[tokio::test]
async fn the_sender_of_an_upload_that_is_refused_gets_the_answer() {
    let server = serve(&[]);
    let head =
        "POST /v1/sessions HTTP/1.1\r\nHost: attacker.example\r\nContent-Length: 20000000\r\n\r\n";
    let mut stream = connect(&server, head.as_bytes()).await;
    // More than fits into the buffers of the connection.
    let half = vec![b'{'; 10_000_000];
    stream
        .write_all(&half)
        .await
        .expect("the server reads for a while");
    let answer = to_the_end(stream).await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    // Another request may follow on the same connection when all of a body has come.
    let small = "POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n";
    let body = "{".repeat(100_000);
    let last = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let requests = format!("{small}{body}{last}");
    let answers = to_the_end(connect(&server, requests.as_bytes()).await).await;
    assert!(answers.starts_with("HTTP/1.1 405 "), "{answers}");
    assert!(answers.contains("HTTP/1.1 200 "), "{answers}");
}

/// The status of an answer to a request with these headers.
async fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server
        .send(request.body(String::new()).unwrap())
        .await
        .status()
        .as_u16()
}

/// The status of the answer to a WebSocket handshake.
async fn shake_hands(server: &Server, headers: &str) -> String {
    let handshake = format!(
        "GET /v1/stream HTTP/1.1\r\n{headers}Connection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let mut stream = connect(server, handshake.as_bytes()).await;
    let mut status = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut status))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8_lossy(&status[9..]).into_owned()
}

#[tokio::test]
async fn a_server_on_a_loopback_address_answers_to_its_own_names_only() {
    let server = serve(&[]);
    let (_, port) = server.address.rsplit_once(':').unwrap();
    let foreign = format!("attacker.example:{port}");
    let origin = format!("http://{foreign}");
    let headers = [("host", foreign.as_str()), ("origin", origin.as_str())];
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/status"),
        ("GET", "/v1/sessions"),
        ("GET", "/nowhere"),
        ("POST", "/v1/workers/0/restart"),
        ("POST", "/v1/drain"),
        ("POST", "/status"),
    ] {
        assert_eq!(
            ask(&server, method, path, &headers).await,
            421,
            "{method} {path}"
        );
    }
    assert_eq!(
        shake_hands(&server, &format!("Host: {foreign}\r\n")).await,
        "421"
    );
    for own in [
        "localhost",
        "127.0.0.1",
        "[::1]:8000",
        &format!("LocalHost:{port}"),
    ] {
        assert_eq!(
            ask(&server, "GET", "/healthz", &[("host", own)]).await,
            200,
            "{own}"
        );
        assert_eq!(
            shake_hands(&server, &format!("Host: {own}\r\n")).await,
            "101",
            "{own}"
        );
    }
    let named = serve(&["--server.allowed_hosts=video.example.org"]);
    let host = [("host", "video.example.org")];
    assert_eq!(ask(&named, "GET", "/healthz", &host).await, 200);
    let host = [("host", "attacker.example")];
    assert_eq!(ask(&named, "GET", "/healthz", &host).await, 421);
}

#[tokio::test]
async fn orders_of_the_own_page_pass_a_proxy_and_those_of_other_sites_do_not() {
    let page = ("origin", "https://video.example.org");
    let evil = ("origin", "https://evil.example.net");
    let server = serve(&[]);
    server.ready(1).await;
    let order = async |server: &Server, headers: &[(&str, &str)]| {
        ask(server, "POST", "/v1/workers/0/drain", headers).await
    };
    assert_eq!(
        order(&server, &[page, ("sec-fetch-site", "same-origin")]).await,
        202
    );
    assert_eq!(
        order(&server, &[evil, ("sec-fetch-site", "cross-site")]).await,
        403
    );
    assert_eq!(order(&server, &[page]).await, 403);
    assert_eq!(order(&server, &[("origin", "null")]).await, 403);
    assert_eq!(order(&server, &[]).await, 202);
    let evil_page = "Host: localhost\r\nOrigin: https://evil.example.net\r\n";
    assert_eq!(shake_hands(&server, evil_page).await, "101");

    let server = serve(&["--server.allowed_origins=https://video.example.org"]);
    server.ready(1).await;
    assert_eq!(order(&server, &[page]).await, 202);
    assert_eq!(order(&server, &[evil]).await, 403);
    assert_eq!(shake_hands(&server, evil_page).await, "403");
    let own_page = "Host: localhost\r\nOrigin: https://video.example.org\r\n";
    assert_eq!(shake_hands(&server, own_page).await, "101");
    assert_eq!(shake_hands(&server, "Host: localhost\r\n").await, "101");
}

/// Forwards one connection; what the server sends passes at so many bytes a second.
async fn forward_slowly(listener: TcpListener, server: &Server, rate: u32) {
    let (down, _) = listener.accept().await.unwrap();
    let up = TcpStream::connect(&server.address).await.unwrap();
    let (mut up_read, mut up_write) = up.into_split();
    let (mut down_read, mut down_write) = down.into_split();
    let answers = async {
        let mut bytes = [0; 8192];
        while let Ok(count @ 1..) = up_read.read(&mut bytes).await {
            down_write.write_all(&bytes[..count]).await.unwrap();
            sleep(Duration::from_secs(1) * u32::try_from(count).unwrap() / rate).await;
        }
    };
    let requests = tokio::io::copy(&mut down_read, &mut up_write);
    let _ = tokio::join!(answers, requests);
}

#[tokio::test]
async fn a_viewer_on_a_slow_line_who_takes_all_the_time_is_not_taken_for_gone() {
    let server = serve(&[
        "--streaming.limits.ping_interval_seconds=1",
        "--default_request.sampling.width=640",
        "--default_request.sampling.height=352",
        "--default_request.sampling.num_frames=24",
        "--streaming.encoder.jpeg_quality=95",
    ]);
    server.ready(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let viewer = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let stream = MaybeTlsStream::Plain(stream);
        let url = format!("ws://{address}/v1/stream");
        let (socket, _) = client_async(url, stream).await.unwrap();
        let mut viewer = Client { socket };
        viewer
            .send(json!({"type": "session_init_v2", "stream_mode": "legacy_jpeg"}))
            .await;
        let begun = Instant::now();
        let mut bytes = 0;
        // Much longer than a peer may be silent, at the rate of the line.
        while begun.elapsed() < Duration::from_secs(8) {
            bytes += viewer.segment("a wood in the snow").await.bytes().len();
        }
        assert!(bytes > 1_000_000, "{bytes} bytes");
    };
    tokio::select! {
        () = forward_slowly(listener, &server, 250_000) => panic!("the connection has ended"),
        () = viewer => {}
    }
}
