//! The whole film as one file.

use rand::RngExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{Answer, Viewer};
use crate::harness::{PATIENCE, Server};
use crate::readback;

/// Segments of a few hundred kilobytes.
pub(super) const LARGE: &[&str] = &[
    "--gpus=1",
    "--default_request.sampling.width=1280",
    "--default_request.sampling.height=704",
    "--default_request.sampling.num_frames=24",
    "--default_request.sampling.num_inference_steps=1",
    "--generator.synthetic.step_ms=0",
    "--generator.synthetic.frame_ms=0",
];

/// The samples of a file, track by track: the times of each in seconds, and its hash.
fn samples(file: &[u8]) -> Vec<Vec<(String, String, String)>> {
    let args = ["-show_packets", "-show_data_hash", "sha256"];
    let probe = readback::ffprobe(file, &args);
    let packets = probe["packets"].as_array().unwrap();
    let text = |packet: &Value, field: &str| packet[field].as_str().unwrap().to_owned();
    let of_track = |track: u64| {
        let packets = packets.iter().filter(|p| p["stream_index"] == track);
        packets
            .map(|p| {
                (
                    text(p, "pts_time"),
                    text(p, "dts_time"),
                    text(p, "data_hash"),
                )
            })
            .collect()
    };
    vec![of_track(0), of_track(1)]
}

#[tokio::test]
async fn a_film_is_one_file_with_the_samples_of_all_its_segments() {
    let server = Server::start(&["--gpus=1"]);
    let viewer = Viewer::with_segments(&server, 5).await;
    let answer = viewer.get(&server, "film.mp4").await;
    assert_eq!(answer.status, 200);
    for (name, expected) in [
        ("content-type", "video/mp4"),
        ("cache-control", "private, no-cache"),
        ("x-fastvideo-missing-segments", ""),
        ("content-disposition", ""),
    ] {
        assert_eq!(answer.header(name), expected, "{name}");
    }
    let film = answer.body;
    readback::decode(&film);
    let segments: Vec<u8> = viewer.segments.iter().flat_map(|s| s.bytes()).collect();
    let (given, expected) = (samples(&film), samples(&segments));
    assert_eq!(given[0].len(), 60);
    assert!(given[1].len() > 50, "{}", given[1].len());
    assert_eq!(given, expected);

    let size = film.len();
    let mut random = rand::rng();
    for _ in 0..100 {
        let first = random.random_range(0..size);
        let end = random.random_range(first..size) + 1;
        let range = format!("bytes={first}-{}", end - 1);
        let part = Answer::get(&server, &viewer.path("film.mp4"), &[("range", &range)]).await;
        assert_eq!(part.status, 206, "{range}");
        assert!(part.body == film[first..end], "{range}");
    }
}

#[tokio::test]
async fn a_browser_is_told_the_name_of_the_file() {
    let server = Server::start(&["--gpus=1"]);
    let viewer = Viewer::with_segments(&server, 1).await;
    let path = format!("{}&download=f%C3%BCchse%0d%0a.mp4", viewer.path("film.mp4"));
    let expected = "attachment; filename=\"f_chse.mp4\"; filename*=UTF-8''f%C3%BCchse.mp4";
    let answer = Answer::get(&server, &path, &[]).await;
    assert_eq!(answer.header("content-disposition"), expected);
}

#[tokio::test]
async fn segments_whose_media_are_gone_are_left_out() {
    let limit = "--streaming.recording.max_mib_per_session=1";
    let server = Server::start(&[LARGE, &[limit]].concat());
    let mut viewer = Viewer::with_segments(&server, 1).await;
    let size = viewer.segments[0].bytes().len();
    assert!(
        size < 1 << 20,
        "a segment of {size} bytes is too large for this test"
    );
    viewer.take((2 << 20) / size).await;
    let film = viewer.document(&server).await;
    let gone = film.segments.iter().take_while(|segment| !segment.kept);
    let gone: Vec<_> = gone
        .map(|segment| segment.segment_idx.to_string())
        .collect();
    assert!(
        gone.len() > 1 && gone.len() < film.segments.len(),
        "{gone:?}"
    );
    assert!(film.bytes <= 1 << 20);

    for what in ["film/0.mp4", "film/0.jpg"] {
        let answer = viewer.get(&server, what).await;
        assert_eq!((answer.status, answer.error()), (404, "not_kept".into()));
    }
    let answer = viewer.get(&server, "film.mp4").await;
    let missing = format!("0-{}", gone.len() - 1);
    assert_eq!(answer.header("x-fastvideo-missing-segments"), missing);
    readback::decode(&answer.body);
    let kept = &viewer.segments[gone.len()..];
    let kept: Vec<u8> = kept.iter().flat_map(|segment| segment.bytes()).collect();
    let hashes = |file: &[u8]| {
        let tracks = samples(file).into_iter().flatten();
        tracks.map(|(_, _, hash)| hash).collect::<Vec<_>>()
    };
    assert_eq!(hashes(&answer.body), hashes(&kept));

    let none = Server::start(&["--gpus=1", "--streaming.recording.enabled=false"]);
    let viewer = Viewer::with_segments(&none, 1).await;
    let answer = viewer.get(&none, "film.mp4").await;
    assert_eq!((answer.status, answer.error()), (404, "not_kept".into()));
}

/// An answer whose body is read slowly, over a socket with little room.
struct Slow {
    socket: TcpStream,
    /// What its head says.
    length: usize,
    /// What has come of its body.
    body: Vec<u8>,
}

impl Slow {
    async fn get(server: &Server, path: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut socket = socket
            .connect(server.address.parse().unwrap())
            .await
            .unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let head = loop {
            assert_ne!(socket.read_buf(&mut bytes).await.unwrap(), 0);
            if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                break end;
            }
        };
        let text = std::str::from_utf8(&bytes[..head]).unwrap().to_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        Self {
            socket,
            length: length.unwrap().parse().unwrap(),
            body: bytes.split_off(head + 4),
        }
    }

    /// Reads to the end of the connection, and returns the body.
    async fn rest(mut self) -> Vec<u8> {
        let mut part = vec![0; 1 << 16];
        loop {
            let read = timeout(PATIENCE, self.socket.read(&mut part))
                .await
                .unwrap();
            match read {
                Ok(0) | Err(_) => return self.body,
                Ok(bytes) => self.body.extend_from_slice(&part[..bytes]),
            }
        }
    }
}

#[tokio::test]
async fn a_film_that_grows_changes_no_answer_that_is_under_way() {
    let server = Server::start(LARGE);
    let mut viewer = Viewer::with_segments(&server, 6).await;
    let path = viewer.path("film.mp4");
    let before = Answer::get(&server, &path, &[]).await;
    let slow = Slow::get(&server, &path).await;
    assert_eq!(slow.length, before.body.len());
    viewer.take(1).await;
    assert!(slow.rest().await == before.body, "the answer has changed");

    let tag = before.header("etag");
    let rest = [("range", "bytes=1000-"), ("if-range", tag)];
    let after = Answer::get(&server, &path, &rest).await;
    assert_eq!(after.status, 200, "it is another file now");
    assert!(after.body.len() > before.body.len());
    assert_ne!(after.header("etag"), tag);
}

#[tokio::test]
async fn an_answer_whose_media_vanish_is_cut() {
    let server = Server::start(LARGE);
    let viewer = Viewer::with_segments(&server, 12).await;
    let slow = Slow::get(&server, &viewer.path("film.mp4")).await;
    let length = slow.length;
    let session = format!("/v1/sessions/{}", viewer.id);
    assert_eq!(server.call("DELETE", &session, None).await.0, 204);
    assert_eq!(viewer.get(&server, "film").await.status, 404);
    let body = slow.rest().await;
    assert!(body.len() < length, "all {length} bytes came");
}
