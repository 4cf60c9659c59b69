//! Videos that are deleted while somebody loads them.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;

/// Small buffers, so that most of a file is still to be read when its first bytes arrive.
const BUFFER: u32 = 4096;

/// A file that is being loaded.
struct Download {
    connection: TcpStream,
    length: usize,
    got: Vec<u8>,
}

impl Download {
    /// Asks for a video, and reads up to its first bytes.
    async fn begin(server: &Server, id: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(BUFFER).unwrap();
        let address = server.address.parse().unwrap();
        let mut connection = socket.connect(address).await.unwrap();
        let request = format!(
            "GET /v1/videos/{id}/content HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            server.address
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head
            .lines()
            .find_map(|it| it.strip_prefix("content-length: "));
        let got = vec![connection.read_u8().await.unwrap()];
        Self {
            connection,
            length: length.expect("it is told").parse().unwrap(),
            got,
        }
    }

    /// Reads on until the connection ends, and returns what has come and whether that is all.
    async fn rest(mut self) -> (Vec<u8>, bool) {
        // A connection that breaks is an end, too.
        let _ = self.connection.read_to_end(&mut self.got).await;
        let is_whole = self.got.len() == self.length;
        (self.got, is_whole)
    }
}

#[tokio::test]
async fn a_download_ends_whole_or_breaks_when_its_video_is_deleted() {
    let folder = TempDir::new().unwrap();
    let quick = ["step_ms", "frame_ms"].map(|key| format!("--generator.synthetic.{key}=0"));
    let fine = "--streaming.encoder.crf=1".to_owned();
    let args = [kept_in(&folder), quick.into(), vec![fine]].concat();
    let server = start(&args);
    // Some 4 MB in eight segments, of which the first ones fit in the buffers on the way.
    let request =
        json!({"prompt": "confetti and noise", "num_frames": 96, "size": "1280x704", "seed": 7});
    let id = create(&server, request).await;
    let (_, expected) = completed(&server, &id).await;
    let begun = Download::begin(&server, &id).await;
    let also = Download::begin(&server, &id).await;
    // Nothing happens to a slow reader while the video is there.
    let (got, is_whole) = also.rest().await;
    assert!(is_whole && got == expected);
    delete(&server, &id).await;
    let (got, is_whole) = begun.rest().await;
    println!(
        "{} of {} bytes, whole: {is_whole}",
        got.len(),
        expected.len()
    );
    assert!(expected.starts_with(&got));
    let after = content(&server, &id).await;
    assert_eq!((after.status, &*after.code()), (404, "video_not_found"));
}

#[tokio::test]
async fn a_download_that_races_with_a_deletion_gets_the_video_or_nothing() {
    let folder = TempDir::new().unwrap();
    let mut args = kept_in(&folder);
    args.push("--generator.synthetic.step_ms=0".to_owned());
    let server = start(&args);
    let mut videos = Vec::new();
    for _ in 0..12 {
        let request = json!({"prompt": "a red fox", "num_frames": 12, "seed": 7});
        videos.push(create(&server, request).await);
    }
    let (_, expected) = completed(&server, &videos[0]).await;
    for id in &videos {
        ended(&server, id).await;
        let path = format!("/v1/videos/{id}/content");
        let deleted = async {
            sleep(Duration::from_millis(4).mul_f64(rand::random())).await;
            delete(&server, id).await;
        };
        let (loaded, ()) = tokio::join!(try_fetch(&server, "GET", &path, &[], vec![]), deleted);
        // No answer: the connection broke.
        let Some(answer) = loaded else { continue };
        match answer.status {
            200 => assert!(answer.body == expected, "{} bytes", answer.body.len()),
            status => assert_eq!((status, &*answer.code()), (404, "video_not_found")),
        }
    }
}
