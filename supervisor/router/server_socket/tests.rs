//! What a server sends comes as it was sent, however the bytes arrive.

use futures_util::future::join;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::*;

const MAX: usize = 70_000;

fn request() -> Request {
    "ws://server/v1/stream".into_client_request().unwrap()
}

fn binary(length: usize) -> Message {
    let bytes: Vec<_> = (0..length)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    Message::Binary(bytes.into())
}

fn piece(opcode: Data, is_last: bool) -> Message {
    let payload = Bytes::from_static(&[7; 5000]);
    Message::Frame(Frame::message(payload, OpCode::Data(opcode), is_last))
}

#[tokio::test]
async fn messages_come_in_their_order_in_pieces_of_any_size() {
    let sent = [
        Message::text("a"),
        binary(4096),
        binary(0),
        binary(20_000),
        Message::Ping("p".into()),
        binary(4095),
        Message::text("b".repeat(10_000)),
        binary(125),
        binary(MAX),
    ];
    for size in [1, 13, 14, 15, 4097, 1 << 20] {
        let (ours, theirs) = duplex(size);
        let server = async {
            let mut socket = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
            for message in sent.clone() {
                socket.send(message).await.unwrap();
            }
            socket.send(piece(Data::Binary, false)).await.unwrap();
            socket.send(Message::Ping("q".into())).await.unwrap();
            socket.send(piece(Data::Continue, true)).await.unwrap();
            socket.send(binary(5000)).await.unwrap();
            let frame = CloseFrame {
                code: CloseCode::Normal,
                reason: "over".into(),
            };
            socket.close(Some(frame)).await.unwrap();
            while let Some(Ok(_)) = socket.next().await {}
        };
        let client = async {
            let mut io = MediaIo::new(ours, MAX);
            io.answered = HEAD_END.len();
            let codec = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
            let mut socket = ServerSocket(codec);
            for message in &sent {
                assert_eq!(socket.next().await.unwrap().unwrap(), *message, "{size}");
            }
            let ping = socket.next().await.unwrap().unwrap();
            assert_eq!(ping, Message::Ping("q".into()));
            let whole = socket.next().await.unwrap().unwrap();
            assert_eq!(whole.into_data(), [7; 10_000].as_slice());
            assert_eq!(socket.next().await.unwrap().unwrap(), binary(5000));
            let close = socket.next().await.unwrap().unwrap();
            assert!(close.is_close());
            assert!(socket.next().await.is_none());
        };
        join(server, client).await;
    }
}

/// A WebSocket of which the server has sent these bytes after its answer, all at once, and then has gone.
async fn after_answer(frames: &[u8]) -> ServerSocket<DuplexStream> {
    let (ours, mut theirs) = duplex(1 << 21);
    let server = async {
        let mut head = vec![0; 1024];
        let count = theirs.read(&mut head).await.unwrap();
        let head = String::from_utf8_lossy(&head[..count]).into_owned();
        let key = head
            .lines()
            .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
        let accept = derive_accept_key(key.unwrap().as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        let all = [answer.as_bytes(), frames].concat();
        theirs.write_all(&all).await.unwrap();
        theirs.shutdown().await.unwrap();
        theirs
    };
    let (socket, _) = join(begin(request(), ours, MAX), server).await;
    socket.unwrap()
}

fn frame(first_byte: u8, length: usize) -> Vec<u8> {
    let head = Head {
        first_byte,
        length: length as u64,
        mask: None,
        bytes: 0,
    };
    [head.encode().bytes(), &vec![1; length]].concat()
}

#[tokio::test]
async fn what_comes_with_the_answer_is_read() {
    let frames = [frame(FIN | BINARY, 5000), frame(FIN | 1, 3)].concat();
    let mut socket = after_answer(&frames).await;
    assert_eq!(socket.next().await.unwrap().unwrap().len(), 5000);
    let text = socket.next().await.unwrap().unwrap();
    assert_eq!(text.into_text().unwrap(), "\u{1}\u{1}\u{1}");
    assert!(
        socket.next().await.unwrap().is_err(),
        "it ends without a close"
    );
    assert!(socket.next().await.is_none());
}

#[tokio::test]
async fn what_breaks_the_protocol_is_an_error() {
    let whole = frame(FIN | BINARY, 5000);
    let mut masked = whole.clone();
    masked[1] |= 0x80;
    let bad = [
        ("cut in a message", whole[..4000].to_vec()),
        ("cut in a head", whole[..3].to_vec()),
        ("too large", frame(FIN | BINARY, MAX + 1)),
        ("reserved bits", frame(FIN | 0x40 | BINARY, 5000)),
        ("unknown opcode", frame(FIN | 5, 5000)),
        ("masked", masked),
        ("a long ping", frame(FIN | 9, 5000)),
        ("no beginning", frame(FIN, 5000)),
        ("no end", [frame(BINARY, 10), whole].concat()),
    ];
    for (what, frames) in bad {
        let mut socket = after_answer(&frames).await;
        let next = socket.next().await;
        assert!(matches!(next, Some(Err(_))), "{what}: {next:?}");
        assert!(socket.next().await.is_none(), "{what}");
    }
}
