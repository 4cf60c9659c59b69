//! What the codec gets of a client's frames, and which ones are not read.

use std::net::Ipv4Addr;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::byte_budget;
use crate::ingress::frame::MASKED;

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> MessageLimits {
    MessageLimits {
        max_bytes: 1 << 20,
        timeout: 60 * SECOND,
        client: ClientAddress::of(Ipv4Addr::LOCALHOST.into()),
        budget: ByteBudget::new(byte_budget::Limits {
            total: 1 << 20,
            per_address: 1 << 20,
        }),
    }
}

fn message_io<T: AsyncRead + Unpin>(io: T, before: &'static [u8]) -> MessageIo<T> {
    MessageIo::new(io, Bytes::from_static(before), limits(), || {})
}

/// Reads to the end, or to an error.
async fn read(bytes: &[u8]) -> Result<Vec<u8>, Interrupted> {
    let mut passed = Vec::new();
    match message_io(bytes, b"").read_to_end(&mut passed).await {
        Ok(_) => Ok(passed),
        Err(error) => Err(interrupted(&error)),
    }
}

fn interrupted(error: &io::Error) -> Interrupted {
    *error.get_ref().unwrap().downcast_ref().unwrap()
}

/// The head of a masked frame.
fn head(first_byte: u8, length: u64) -> Vec<u8> {
    let length = length.to_be_bytes();
    [&[first_byte, MASKED | 127][..], &length, &[1, 2, 3, 4]].concat()
}

#[tokio::test]
async fn the_codec_gets_the_messages_that_were_sent() {
    let (client, server) = duplex(4096);
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    let mut server = message_io(server, b"");
    let complete = server.complete_share();
    let mut server = WebSocketStream::from_raw_socket(&mut server, Role::Server, None).await;
    let lengths = [
        0, 1, 125, 126, 16_385, 32_767, 32_768, 32_769, 65_535, 65_536, 300_001,
    ];
    let messages: Vec<_> = lengths
        .into_iter()
        .flat_map(|length| {
            let text: String = "añb".chars().cycle().take(length).collect();
            let binary: Vec<u8> = (0..=250).cycle().take(length).collect();
            [
                Message::text(text),
                Message::Ping(vec![7; length.min(125)].into()),
                Message::binary(binary),
            ]
        })
        .collect();
    let sent = messages.clone();
    let sending = async {
        for message in sent {
            client.send(message).await.unwrap();
        }
        // Takes the answers to the pings, so that there is room for more.
        loop {
            client.next().await;
        }
    };
    let receiving = async {
        for message in messages {
            let received = server.next().await.unwrap().unwrap();
            assert!(received == message, "{} bytes", message.len());
            let share = complete.take().bytes();
            let is_large = !message.is_ping() && message.len() > 16 << 10;
            let expected = if is_large { message.len() as u64 } else { 0 };
            assert_eq!(share, expected);
        }
    };
    tokio::select! {
        () = sending => unreachable!(),
        () = receiving => {}
    }
}

#[tokio::test]
async fn what_follows_a_message_and_what_came_before_is_passed_on() {
    let frames = b"\x01\x81\0\0\0\0a\x89\x80\0\0\0\0\x80\x81\0\0\0\0b\x88\x80\0\0\0\0";
    assert_eq!(read(frames).await.unwrap(), frames);
    for cut in 0..frames.len() {
        let mut passed = Vec::new();
        let mut io = message_io(&frames[cut..], &[]);
        io.frames
            .read_before(Bytes::copy_from_slice(&frames[..cut]));
        io.read_to_end(&mut passed).await.unwrap();
        assert_eq!(passed, frames, "cut at {cut}");
    }
    let truncated = &frames[..9];
    assert_eq!(read(truncated).await.unwrap(), truncated);
}

#[tokio::test]
async fn frames_that_nothing_allows_are_not_read() {
    let limit = 1 << 20;
    assert!(read(&head(FIN | 1, limit)).await.is_ok());
    let refused = read(&head(FIN | 1, limit + 1)).await;
    assert_eq!(refused, Err(Interrupted::TooLarge));
    let small = [&head(1, 4)[..], &[0; 4]].concat();
    let refused = read(&[&small[..], &head(FIN, limit - 3)].concat()).await;
    assert_eq!(refused, Err(Interrupted::TooLarge));
    for first_byte in [FIN | 9, FIN | 0x41, FIN | 3] {
        let refused = read(&head(first_byte, 126)).await;
        assert_eq!(refused, Err(Interrupted::Protocol), "{first_byte:x}");
    }
    let unmasked = [FIN | 1, 126, 1, 0];
    assert_eq!(read(&unmasked).await, Err(Interrupted::Protocol));
}

#[tokio::test(start_paused = true)]
async fn a_message_without_its_share_waits_and_is_given_up() {
    let (mut client, server) = duplex(1 << 20);
    let mut server = message_io(server, b"");
    let limits = server.limits.clone();
    let all = (limits.budget).take(limits.client, 1 << 20, SECOND).await;
    client.write_all(&head(FIN | 1, 20_000)).await.unwrap();
    client.write_all(&[0; 20_000]).await.unwrap();
    let begun = Instant::now();
    let error = server.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(interrupted(&error), Interrupted::NoShare(Exhausted));
    assert_eq!(begun.elapsed(), SHARE_WAIT);
    drop(all);

    // A small one needs none.
    let (mut client, server) = duplex(1 << 20);
    let mut server = message_io(server, b"");
    let limits = server.limits.clone();
    let _all = (limits.budget).take(limits.client, 1 << 20, SECOND).await;
    client.write_all(&head(FIN | 1, 10_000)).await.unwrap();
    client.write_all(&[0; 10_000]).await.unwrap();
    let mut passed = [0; 10_008];
    server.read_exact(&mut passed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_that_does_not_end_is_given_up_and_a_silent_client_is_not() {
    let (mut client, server) = duplex(1 << 20);
    let mut server = message_io(server, b"");
    let mut passed = Vec::new();
    let silent = server.read_buf(&mut passed);
    assert!(timeout(3600 * SECOND, silent).await.is_err());
    client.write_all(&head(FIN | 1, 20_000)).await.unwrap();
    let begun = Instant::now();
    let trickle = async {
        loop {
            client.write_all(b"x").await.unwrap();
            tokio::time::sleep(SECOND).await;
        }
    };
    let error = tokio::select! {
        () = trickle => unreachable!(),
        ended = server.read_to_end(&mut passed) => ended.unwrap_err(),
    };
    assert_eq!(interrupted(&error), Interrupted::TooSlow);
    assert_eq!(begun.elapsed(), 60 * SECOND);
}
