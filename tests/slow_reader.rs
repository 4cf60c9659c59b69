//! A client that does not read holds up nobody but itself.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio_tungstenite::MaybeTlsStream;

use crate::harness::{Client, Server};

/// Pictures that are large for their size, so that what is not read piles up quickly.
const HEAVY: &[&str] = &[
    "--generator.synthetic.step_ms=0",
    "--generator.synthetic.frame_ms=0",
    "--default_request.sampling.width=640",
    "--default_request.sampling.height=352",
    "--default_request.sampling.num_frames=24",
    "--default_request.sampling.num_inference_steps=1",
    "--streaming.encoder.jpeg_quality=95",
];
const MAX_UNSENT: u64 = 1_000_000;

/// Connects with a receive buffer that is as small as the system lets it be.
async fn connect_narrow(server: &Server) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address: SocketAddr = server.address.parse().unwrap();
    let stream = socket.connect(address).await.unwrap();
    let url = format!("ws://{address}/v1/stream");
    let stream = MaybeTlsStream::Plain(stream);
    let (socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    Client { socket }
}

async fn gpu_of(client: &mut Client) -> Value {
    let gpu = client.until_type("gpu_assigned").await["gpu_id"].clone();
    client.until_type("ltx2_stream_start").await;
    gpu
}

fn resident_bytes(server: &Server) -> u64 {
    let path = format!("/proc/{}/status", server.pid());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[tokio::test]
async fn a_client_that_does_not_read_disturbs_nobody_and_is_closed() {
    let limit = format!("--streaming.limits.max_unsent_bytes={MAX_UNSENT}");
    let limits: &[&str] = &[
        "--gpus",
        "2",
        "--sessions-per-gpu",
        "2",
        "--streaming.limits.slow_client_timeout_seconds=2",
        &limit,
    ];
    let server = Server::start(&[HEAVY, limits].concat());
    server.ready(2).await;
    let mut slow = connect_narrow(&server).await;
    let opening = json!({
        "type": "session_init_v2", "stream_mode": "legacy_jpeg", "curated_prompts": ["a wood in the snow"],
        "loop_generation_enabled": true,
    });
    let mut calm_opening = opening.clone();
    calm_opening["curated_prompts"] = json!([]);
    slow.send(opening).await;
    let gpu = gpu_of(&mut slow).await;
    // From here on it reads nothing.
    let mut elsewhere = server.open(calm_opening.clone()).await;
    assert_ne!(gpu_of(&mut elsewhere).await, gpu);
    let mut beside = server.open(calm_opening).await;
    assert_eq!(gpu_of(&mut beside).await, gpu);

    let before = resident_bytes(&server);
    let mut most = before;
    let gpu = u32::try_from(gpu.as_u64().unwrap()).unwrap();
    let mut segments = 0;
    // Until the slow one is closed the others get segment after segment.
    loop {
        beside.segment("a beach").await;
        elsewhere.segment("a beach").await;
        segments += 1;
        most = most.max(resident_bytes(&server));
        if server.gpu(gpu).await["client_count"] == 1 {
            break;
        }
    }
    assert!(segments > 1, "the others went on: {segments}");
    let growth = most - before;
    assert!(growth < 16 << 20, "the supervisor grew by {growth} bytes");

    assert_eq!(slow.closed().await, Some(1008));
    server.sessions(2).await;
    beside.segment("a beach").await;
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[tokio::test]
async fn a_client_that_pauses_gets_everything_in_the_end() {
    let limit = format!("--streaming.limits.max_unsent_bytes={MAX_UNSENT}");
    let shared: &[&str] = &["--gpus", "1", "--sessions-per-gpu", "2", &limit];
    let server = Server::start(&[HEAVY, shared].concat());
    let mut reader = server.active(json!({"stream_mode": "legacy_jpeg"})).await;
    let expected = reader.segment("a wood in the snow").await;

    let mut slow = connect_narrow(&server).await;
    slow.send(json!({"type": "session_init_v2", "stream_mode": "legacy_jpeg"}))
        .await;
    slow.until_type("ltx2_stream_start").await;
    for _ in 0..4 {
        slow.prompt("a wood in the snow").await;
    }
    let start = slow.expect("ltx2_segment_start").await;
    assert_eq!(start["segment_idx"], 0);
    // Long enough for everything that may be under way to be under way.
    for _ in 0..4 {
        reader.segment("a wood in the snow").await;
    }
    for idx in 0..4 {
        let segment = slow.collect_until("ltx2_segment_complete").await;
        assert_eq!(segment.only("ltx2_segment_complete")["segment_idx"], idx);
        assert_eq!(segment.media.len(), 24);
        if idx == 0 {
            assert!(segment.media == expected.media);
        }
    }
}

#[tokio::test]
async fn a_client_that_talks_but_does_not_listen_is_closed_before_its_answers_pile_up() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;

    let server = Server::start(&["--gpus", "1", "--streaming.limits.max_unsent_bytes=100000"]);
    let slow = connect_narrow(&server).await;
    let (mut sink, mut stream) = slow.socket.split();
    sink.send(Message::text(r#"{"type":"session_init_v2"}"#))
        .await
        .unwrap();
    server.sessions(1).await;
    let before = resident_bytes(&server);
    // Each of these is answered by an error of the same size. Sending ends when the server has had enough.
    let nonsense = format!(
        r#"{{"type":"enhancement_updated","enabled":"{}"}}"#,
        "x".repeat(300)
    );
    while sink.feed(Message::text(nonsense.as_str())).await.is_ok() {
        let session_is_open = server.get("/health").await.1["sessions"] == 1;
        if !session_is_open {
            break;
        }
        for _ in 0..1000 {
            if sink.feed(Message::text(nonsense.as_str())).await.is_err() {
                break;
            }
        }
    }
    server.sessions(0).await;
    let growth = resident_bytes(&server).saturating_sub(before);
    assert!(growth < 16 << 20, "the supervisor grew by {growth} bytes");
    let mut code = None;
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Close(Some(frame)) = message {
            code = Some(u16::from(frame.code));
        }
    }
    assert_eq!(code, Some(1008));
}
