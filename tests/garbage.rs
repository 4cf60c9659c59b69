//! What clients send that no client should: always answered, never at the cost of another session.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Client, Heard, PATIENCE, Server};

const ARGS: &[&str] = &[
    "--gpus",
    "1",
    "--sessions-per-gpu",
    "2",
    "--generator.synthetic.step_ms=0",
    "--generator.synthetic.frame_ms=0",
    "--streaming.limits.max_message_bytes=100000",
];

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;

/// A server with a session that must not notice anything.
struct Scene {
    server: Server,
    bystander: Client,
}

impl Scene {
    async fn begin() -> Self {
        let server = Server::start(ARGS);
        let bystander = server.active(json!({})).await;
        Self { server, bystander }
    }

    /// Only the bystander is left, and it gets what it asks for.
    async fn end(mut self) {
        self.server.sessions(1).await;
        assert_eq!(self.bystander.so_far().await, []);
        self.bystander.segment("a calm lake").await;
        let gpu = self.server.gpu(0).await;
        assert_eq!(
            (&gpu["client_count"], &gpu["restarts"]),
            (&json!(1), &json!(0))
        );
        let log = self.server.log();
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    }
}

/// A connection on which every byte is ours.
struct Raw {
    stream: TcpStream,
}

impl Raw {
    async fn connect(server: &Server) -> Self {
        Self::connect_to(server, "/v1/stream").await
    }

    async fn connect_to(server: &Server, route: &str) -> Self {
        let stream = TcpStream::connect(&server.address).await.unwrap();
        let mut raw = Self { stream };
        let handshake = format!(
            "GET {route} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        raw.write(handshake.as_bytes()).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(raw.read(1).await.expect("the handshake is answered")[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"));
        raw
    }

    /// Connects and opens a session.
    async fn open(server: &Server) -> Self {
        let mut raw = Self::connect(server).await;
        raw.send(FIN | TEXT, br#"{"type":"session_init_v2"}"#).await;
        raw.until("ltx2_stream_start").await;
        raw
    }

    async fn write(&mut self, bytes: &[u8]) {
        // The server may have closed already.
        let _ = self.stream.write_all(bytes).await;
    }

    /// Sends a frame as a client should: masked, with a key of zeros.
    async fn send(&mut self, first_byte: u8, payload: &[u8]) {
        self.write(&header(first_byte, payload.len() as u64, true))
            .await;
        self.write(payload).await;
    }

    /// The next bytes; none at the end of the connection.
    async fn read(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        let read = timeout(PATIENCE, self.stream.read_exact(&mut bytes));
        read.await.expect("the server answers in time").ok()?;
        Some(bytes)
    }

    /// Opcode and payload of the next frame; none at the end of the connection.
    async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let head = self.read(2).await?;
        assert_eq!(head[0] & 0x70, 0, "no reserved bits");
        let length = match head[1] {
            126 => {
                let bytes = self.read(2).await?;
                u64::from(u16::from_be_bytes([bytes[0], bytes[1]]))
            }
            127 => u64::from_be_bytes(self.read(8).await?.try_into().unwrap()),
            short => u64::from(short),
        };
        let payload = self.read(usize::try_from(length).unwrap()).await?;
        Some((head[0] & 0x0f, payload))
    }

    /// Skips frames up to a text of this type.
    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let (opcode, payload) = self.frame().await.expect("the connection is open");
            assert_ne!(opcode, CLOSE, "closed before {kind}: {payload:?}");
            if opcode == TEXT {
                let text: Value = serde_json::from_slice(&payload).unwrap();
                if text["type"] == kind {
                    return text;
                }
            }
        }
    }

    /// Skips frames up to the close, and returns its code.
    async fn closed(&mut self) -> Option<u16> {
        loop {
            let (opcode, payload) = self.frame().await?;
            if opcode == CLOSE {
                return payload.first_chunk().map(|code| u16::from_be_bytes(*code));
            }
        }
    }
}

/// The head of a frame from a client.
fn header(first_byte: u8, length: u64, masked: bool) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut head = vec![first_byte];
    match u16::try_from(length) {
        Ok(short @ 0..126) => head.push(mask | short.to_le_bytes()[0]),
        Ok(medium) => {
            head.push(mask | 126);
            head.extend(medium.to_be_bytes());
        }
        Err(_) => {
            head.push(mask | 127);
            head.extend(length.to_be_bytes());
        }
    }
    if masked {
        head.extend([0; 4]);
    }
    head
}

#[tokio::test]
async fn a_later_message_that_makes_no_sense_is_refused_and_the_session_goes_on() {
    let scene = Scene::begin().await;
    let mut client = scene.server.active(json!({})).await;
    let nested = format!("{}{}", "[".repeat(40_000), "]".repeat(40_000));
    for (text, expected) in [
        ("", "not a JSON object"),
        ("}{", "not a JSON object"),
        ("{\"type\":\"leave\"", "EOF"),
        ("[\"leave\"]", "not a JSON object"),
        ("\"leave\"", "not a JSON object"),
        ("{\"type\":[\"leave\"]}", "expected a string"),
        ("{\"kind\":\"leave\"}", "missing field `type`"),
        ("{\"type\":\"Leave\"}", "unknown message type `Leave`"),
        ("{\"type\":\"session_init_v2\"}", "open already"),
        (
            "{\"type\":\"generation_paused_updated\"}",
            "missing field `paused`",
        ),
        (
            "{\"type\":\"generation_paused_updated\",\"paused\":\"yes\"}",
            "paused: invalid type",
        ),
        (
            "{\"type\":\"seed_prompts_updated\",\"seed_prompts\":{}}",
            "seed_prompts: invalid type",
        ),
        (
            "{\"type\":\"segment_prompt_source\",\"prompt\":[\"a\"]}",
            "prompt: invalid type",
        ),
        (&"[".repeat(50_000), "not a JSON object"),
        (
            &format!("{{\"type\":\"leave\",\"a\":{}", "[".repeat(50_000)),
            "EOF",
        ),
        (
            &format!(
                "{{\"type\":\"session_init_v2\",\"initial_image\":{{\"a\":{}}}}}",
                nested
            ),
            "open already",
        ),
    ] {
        client.send_text(text).await;
        let error = client.expect("error").await;
        assert_eq!(
            (&error["code"], &error["retryable"]),
            (&json!("invalid_message"), &json!(false)),
            "{text:.60}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(expected), "{text:.60}: {message}");
    }
    client.segment("a fox").await;
    client.send(json!({"type": "leave"})).await;
    assert_eq!(client.closed().await, Some(1000));
    scene.end().await;
}

#[tokio::test]
async fn binary_from_a_client_ends_its_session() {
    let scene = Scene::begin().await;
    let mut client = scene.server.active(json!({})).await;
    client.send_binary(&[0; 1000]).await;
    let error = client.expect("error").await;
    assert_eq!(error["code"], "invalid_message");
    assert_eq!(client.next().await, Heard::Closed(Some(1008)));
    scene.end().await;
}

#[tokio::test]
async fn a_message_above_the_limit_ends_its_session() {
    let scene = Scene::begin().await;
    let within = json!({"type": "are-you-there", "padding": "x".repeat(99_900)});
    for bytes in [100_001, 200_000, 20_000_000] {
        let mut raw = Raw::open(&scene.server).await;
        raw.send(FIN | TEXT, within.to_string().as_bytes()).await;
        raw.until("error").await;
        raw.send(FIN | TEXT, &vec![b' '; bytes]).await;
        assert_eq!(raw.closed().await, Some(1009), "{bytes}");
    }
    // In pieces.
    let mut raw = Raw::open(&scene.server).await;
    raw.send(TEXT, &[b' '; 60_000]).await;
    raw.send(FIN, &[b' '; 60_000]).await;
    assert_eq!(raw.closed().await, Some(1009));
    // Only announced.
    for length in [1 << 32, u64::MAX >> 1] {
        let mut raw = Raw::open(&scene.server).await;
        raw.write(&header(FIN | TEXT, length, true)).await;
        assert_eq!(raw.closed().await, Some(1009), "{length}");
    }
    // As the opening.
    let mut raw = Raw::connect(&scene.server).await;
    raw.send(FIN | TEXT, &[b' '; 200_000]).await;
    assert_eq!(raw.closed().await, Some(1009));
    scene.end().await;
}

#[tokio::test]
async fn text_that_is_not_utf8_ends_its_session() {
    let scene = Scene::begin().await;
    for text in [
        &b"\xff\xfe"[..],
        b"{\"type\":\"le\xc3\x28ve\"}",
        b"\xed\xa0\x80",
    ] {
        let mut raw = Raw::open(&scene.server).await;
        raw.send(FIN | TEXT, text).await;
        assert_eq!(raw.closed().await, Some(1007));
    }
    scene.end().await;
}

#[tokio::test]
async fn a_message_may_come_in_pieces() {
    let scene = Scene::begin().await;
    let mut raw = Raw::connect(&scene.server).await;
    let opening = "{\"type\":\"session_init_v2\",\"preset\":\"caf\u{e9}\"}".as_bytes();
    raw.send(TEXT, &opening[..4]).await;
    // The next cut goes through the é.
    let cut = opening.len() - 3;
    for byte in &opening[4..cut] {
        raw.send(0, &[*byte]).await;
    }
    raw.send(FIN | PING, b"between").await;
    raw.send(0, b"").await;
    raw.send(FIN, &opening[cut..]).await;
    assert_eq!(raw.frame().await, Some((PONG, b"between".to_vec())));
    let start = raw.until("ltx2_stream_start").await;
    assert_eq!(start["preset"], "caf\u{e9}");
    raw.send(
        FIN | TEXT,
        br#"{"type":"segment_prompt_source","prompt":"a fox"}"#,
    )
    .await;
    raw.until("ltx2_segment_complete").await;
    raw.send(FIN | CLOSE, &1000_u16.to_be_bytes()).await;
    assert_eq!(raw.closed().await, Some(1000), "a close is answered");
    scene.end().await;
}

#[tokio::test]
async fn a_connection_that_breaks_the_websocket_protocol_is_closed() {
    let scene = Scene::begin().await;
    let leave = br#"{"type":"leave"}"#;
    let unmasked = [&header(FIN | TEXT, leave.len() as u64, false)[..], leave].concat();
    let masked = |first_byte, payload: &[u8]| {
        [&header(first_byte, payload.len() as u64, true)[..], payload].concat()
    };
    for (what, bytes) in [
        ("a frame without a mask", unmasked),
        ("a reserved bit", masked(FIN | 0x40 | TEXT, leave)),
        ("another reserved bit", masked(FIN | 0x10 | TEXT, leave)),
        ("an unknown opcode", masked(FIN | 3, leave)),
        ("an unknown control opcode", masked(FIN | 11, b"")),
        ("a long ping", masked(FIN | PING, &[0; 126])),
        ("a ping in pieces", masked(PING, b"")),
        ("a piece of nothing", masked(FIN, leave)),
        (
            "a message within another",
            [masked(TEXT, b"{"), masked(FIN | TEXT, leave)].concat(),
        ),
        (
            "binary within text",
            [masked(TEXT, b"{"), masked(FIN | BINARY, leave)].concat(),
        ),
    ] {
        let mut raw = Raw::open(&scene.server).await;
        raw.write(&bytes).await;
        assert_eq!(raw.closed().await, Some(1002), "{what}");
        assert_eq!(raw.frame().await, None, "{what}: nothing follows");
    }
    scene.end().await;
}

#[tokio::test]
async fn what_is_no_http_does_not_matter() {
    let scene = Scene::begin().await;
    // Some of these stay open all along.
    let mut open = Vec::new();
    for bytes in [
        &b""[..],
        b"GET /v1/stream HTTP/1.1\r\nHost: te",
        b"POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(&scene.server.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        open.push(stream);
        // And one that goes away at once.
        let mut stream = TcpStream::connect(&scene.server.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
    }
    // An upgrade that is none.
    for (header, expected) in [
        ("Sec-WebSocket-Version: 12", "HTTP/1.1 426"),
        ("Sec-WebSocket-Version: 13", "HTTP/1.1 426"),
    ] {
        let mut stream = TcpStream::connect(&scene.server.address).await.unwrap();
        let request = format!(
            "GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n{header}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(std::str::from_utf8(&answer).unwrap(), expected);
    }
    let (code, _) = scene.server.get("/healthz").await;
    assert_eq!(code, 200);
    scene.end().await;
    drop(open);
}

#[tokio::test]
async fn a_connection_that_stops_halfway_is_forgotten() {
    let scene = Scene::begin().await;
    // In the middle of a frame's head, of its payload, of a message; before and after the opening.
    let request = br#"{"type":"segment_prompt_source","prompt":"a fox"}"#;
    let whole = [&header(FIN | TEXT, request.len() as u64, true)[..], request].concat();
    for cut in [1, 5, 20] {
        let mut raw = Raw::connect(&scene.server).await;
        raw.write(&whole[..cut]).await;
        drop(raw);
        let mut raw = Raw::open(&scene.server).await;
        raw.write(&whole[..cut]).await;
        drop(raw);
        scene.server.sessions(1).await;
    }
    let mut raw = Raw::open(&scene.server).await;
    raw.send(TEXT, request).await;
    drop(raw);
    scene.end().await;
}

#[tokio::test]
async fn a_client_that_answers_no_pings_is_gone() {
    let server = Server::start(&[
        "--gpus",
        "1",
        "--streaming.limits.ping_interval_seconds=0.5",
    ]);
    server.ready(1).await;
    let mut raw = Raw::open(&server).await;
    assert_eq!(raw.frame().await, Some((PING, Vec::new())));
    raw.send(FIN | PONG, b"").await;
    while let Some((opcode, _)) = raw.frame().await {
        assert_eq!(opcode, PING, "nothing but pings and the end");
    }
    server.sessions(0).await;
}

#[tokio::test]
async fn an_opening_of_the_web_ui_on_a_slow_line_is_waited_for() {
    let server = Server::start(ARGS);
    let mut raw = Raw::connect_to(&server, "/ws").await;
    assert_eq!(raw.frame().await.unwrap().0, TEXT, "queue_status");
    let opening = br#"{"type":"session_init_v2","curated_prompts":["a fox"]}"#;
    let (first, rest) = opening.split_at(10);
    raw.write(&header(FIN | TEXT, opening.len() as u64, true))
        .await;
    raw.write(first).await;
    // Who says nothing for ten seconds would have a session.
    let nothing = timeout(Duration::from_secs(11), raw.stream.peek(&mut [0])).await;
    assert!(nothing.is_err(), "{nothing:?}");
    raw.write(rest).await;
    let start = raw.until("ltx2_segment_start").await;
    assert_eq!(start["prompt"], "a fox");
}
