//! The film of a session over HTTP: what a client gets of it with a token, and that nobody gets it without.

use fastvideo_proto::api::film::FilmDocument;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Request};

use crate::harness::{Client, Segment, Server, until};

mod hls;
mod kept;
mod whole;

/// A viewer with its session's film.
struct Viewer {
    client: Client,
    id: String,
    /// The resume token.
    token: String,
    watch_token: String,
    segments: Vec<Segment>,
}

impl Viewer {
    async fn open(server: &Server, init: Value) -> Self {
        let mut client = server.open(init).await;
        let assigned = client.until_type("gpu_assigned").await;
        client.until_type("ltx2_stream_start").await;
        let text = |field: &str| assigned[field].as_str().unwrap().to_owned();
        Self {
            client,
            id: text("session_id"),
            token: text("resume_token"),
            watch_token: text("watch_token"),
            segments: Vec::new(),
        }
    }

    /// Opens a session and takes segments.
    async fn with_segments(server: &Server, count: usize) -> Self {
        let mut viewer = Self::open(server, json!({})).await;
        viewer.take(count).await;
        viewer
    }

    async fn take(&mut self, count: usize) {
        for _ in 0..count {
            let prompt = format!("a red fox in the snow, {}", self.segments.len());
            self.segments.push(self.client.segment(&prompt).await);
        }
    }

    /// Ends the session.
    async fn leave(&mut self) {
        self.client.send(json!({"type": "leave"})).await;
        assert_eq!(self.client.closed().await, Some(1000));
    }

    /// The path of something of the film, with the token in the query.
    fn path(&self, what: &str) -> String {
        format!("/v1/sessions/{}/{what}?token={}", self.id, self.token)
    }

    async fn get(&self, server: &Server, what: &str) -> Answer {
        Answer::get(server, &self.path(what), &[]).await
    }

    async fn document(&self, server: &Server) -> FilmDocument {
        let answer = self.get(server, "film").await;
        assert_eq!(answer.status, 200);
        serde_json::from_slice(&answer.body).unwrap()
    }

    async fn document_when(
        &self,
        server: &Server,
        what: &str,
        fits: impl Fn(&FilmDocument) -> bool,
    ) -> FilmDocument {
        until(what, async || {
            Some(self.document(server).await).filter(&fits)
        })
        .await
    }
}

/// An answer with a binary body.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    async fn get(server: &Server, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::of("GET", server, path, headers).await
    }

    async fn of(method: &str, server: &Server, path: &str, headers: &[(&str, &str)]) -> Self {
        let url = format!("http://{}{path}", server.address);
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        tokio::task::spawn_blocking(move || {
            let config = ureq::Agent::config_builder().http_status_as_error(false);
            let answer = config.build().new_agent().run(request);
            let (parts, mut body) = answer.expect("the server answers").into_parts();
            Self {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: body.with_config().limit(1 << 30).read_to_vec().unwrap(),
            }
        })
        .await
        .unwrap()
    }

    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    /// The code of an error.
    fn error(&self) -> Value {
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        body["error"]["code"].clone()
    }
}

fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn the_document_tells_what_is_known_of_each_segment() {
    let server = Server::start(&["--gpus=1"]);
    let mut viewer = Viewer::open(&server, json!({})).await;
    let empty = viewer.document(&server).await;
    assert_eq!((empty.mime, empty.segments.len()), (None, 0));
    assert_eq!((empty.live, empty.duration_ms, empty.bytes), (true, 0.0, 0));
    viewer.take(2).await;
    let film = viewer.document(&server).await;
    let mime = viewer.segments[0].only("media_init")["mime"].as_str();
    assert_eq!(film.mime.as_deref(), mime);
    assert_eq!(film.session_id.as_str(), viewer.id);
    assert_eq!((film.width, film.height, film.fps), (128, 96, 24));
    assert_eq!((film.live, film.resumable), (true, true));
    assert_eq!((film.duration_ms, film.spectators), (1000.0, 0));
    assert_eq!(film.expires_at, None);
    let sizes = viewer.segments.iter().map(|s| s.bytes().len() as u64);
    assert_eq!(film.bytes, sizes.sum::<u64>());
    for (n, (known, segment)) in film.segments.iter().zip(&viewer.segments).enumerate() {
        assert_eq!(json!(known.segment_idx), n);
        assert_eq!(
            (known.start_ms, known.duration_ms),
            (n as f64 * 500.0, 500.0)
        );
        let bytes = segment.bytes();
        assert_eq!(
            (known.bytes, &known.sha256),
            (bytes.len() as u64, &sha256(&bytes))
        );
        assert_eq!(known.messages, segment.media.len() as u64);
        assert_eq!(
            (known.kept, known.thumbnail, known.attempt),
            (true, true, 1)
        );
        assert_eq!(known.prompt, format!("a red fox in the snow, {n}"));
        assert_eq!(known.original_prompt, None);
        assert_eq!(json!(known.prompt_source), "user");
        assert_eq!(known.num_inference_steps, 4);
        let complete = segment.only("ltx2_segment_complete");
        assert_eq!(complete["generation_time_ms"], known.generation_time_ms);
    }
    assert_eq!(film.segments.len(), 2);

    let path = format!("/v1/sessions/{}/film", viewer.id);
    let with_token = viewer.get(&server, "film").await.body;
    for token in [&viewer.token, &viewer.watch_token] {
        let bearer = format!("Bearer {token}");
        let answer = Answer::get(&server, &path, &[("authorization", &bearer)]).await;
        assert_eq!((answer.status, &answer.body), (200, &with_token));
        assert_eq!(answer.header("cache-control"), "no-store");
    }

    viewer.leave().await;
    let ended = |film: &FilmDocument| !film.live;
    let ended = viewer
        .document_when(&server, "the session has ended", ended)
        .await;
    let expires = ended.expires_at.expect("the time is known");
    let left = humantime::parse_rfc3339(&expires).unwrap();
    let left = left.duration_since(std::time::SystemTime::now()).unwrap();
    assert!((3000..=3600).contains(&left.as_secs()), "{left:?}");
    assert_eq!((ended.segments, ended.resumable), (film.segments, true));
}

#[tokio::test]
async fn a_segment_is_the_bytes_of_its_messages() {
    let server = Server::start(&["--gpus=1"]);
    let viewer = Viewer::with_segments(&server, 3).await;
    for (n, segment) in viewer.segments.iter().enumerate() {
        let answer = viewer.get(&server, &format!("film/{n}.mp4")).await;
        assert_eq!(answer.status, 200);
        assert!(
            answer.body == segment.bytes(),
            "segment {n} has other bytes"
        );
        for (name, expected) in [
            ("content-type", "video/mp4"),
            ("cache-control", "private, max-age=31536000, immutable"),
            ("accept-ranges", "bytes"),
            ("x-content-type-options", "nosniff"),
            ("content-length", &answer.body.len().to_string()),
            ("etag", &format!("\"{}\"", sha256(&answer.body))),
        ] {
            assert_eq!(answer.header(name), expected, "{name}");
        }
    }
    for (what, code) in [
        ("film/3.mp4", "no_segment"),
        ("film/3.jpg", "no_segment"),
        ("film/99999999999.mp4", "no_segment"),
        ("film/+1.mp4", "no_segment"),
        ("film/.mp4", "no_segment"),
        ("film/one.mp4", "no_segment"),
        ("film/0.webm", "not_found"),
        ("film/0", "not_found"),
    ] {
        let answer = viewer.get(&server, what).await;
        assert_eq!(
            (answer.status, answer.error()),
            (404, json!(code)),
            "{what}"
        );
    }
}

#[tokio::test]
async fn each_segment_has_a_thumbnail() {
    let server = Server::start(&["--gpus=1"]);
    let viewer = Viewer::with_segments(&server, 2).await;
    for n in 0..2 {
        let answer = viewer.get(&server, &format!("film/{n}.jpg")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "image/jpeg");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let jpeg = image::ImageFormat::Jpeg;
        let picture = image::load_from_memory_with_format(&answer.body, jpeg).unwrap();
        assert!(picture.width() >= picture.height());
    }
}

/// A stranger learns nothing: not even which sessions there are.
#[tokio::test]
async fn without_a_token_of_the_session_there_is_no_session() {
    let server = Server::start(&["--gpus=2"]);
    let viewer = Viewer::with_segments(&server, 1).await;
    let other = Viewer::open(&server, json!({})).await;
    let nobody = "0".repeat(32);
    let unknown = format!("/v1/sessions/{nobody}/film");
    let expected = Answer::get(&server, &unknown, &[]).await;
    assert_eq!(
        (expected.status, expected.error()),
        (404, json!("no_session"))
    );
    for what in [
        "film",
        "film/0.mp4",
        "film/0.jpg",
        "film.mp4",
        "index.m3u8",
        "film/x",
    ] {
        let bearer = format!("Bearer {}", viewer.token);
        let basic = format!("Basic {}", viewer.token);
        let foreign = format!("Bearer {}", other.token);
        for (id, query, header) in [
            (nobody.as_str(), "", bearer.as_str()),
            ("nobody", "", &bearer),
            ("%ff", "", &bearer),
            (&viewer.id, "", ""),
            (&viewer.id, "?token=", ""),
            (&viewer.id, "?token=wrong", ""),
            (&viewer.id, "", &basic),
            (&viewer.id, "", &foreign),
            // The header is the one that counts.
            (&viewer.id, &format!("?token={}", viewer.token), &foreign),
            (
                &viewer.id,
                &format!("?token={}", viewer.token.to_uppercase()),
                "",
            ),
        ] {
            let path = format!("/v1/sessions/{id}/{what}{query}");
            let header = [("authorization", header)];
            let headers = if header[0].1.is_empty() {
                &[][..]
            } else {
                &header
            };
            let answer = Answer::get(&server, &path, headers).await;
            assert_eq!(
                (answer.status, &answer.body),
                (404, &expected.body),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn tokens_in_addresses_are_not_logged() {
    let server = Server::start(&["--gpus=1", "--log-level=trace"]);
    let viewer = Viewer::with_segments(&server, 1).await;
    for what in ["film", "film/0.mp4", "film.mp4", "index.m3u8", "film/7.mp4"] {
        viewer.get(&server, what).await;
    }
    let twice = format!("{}&token=again", viewer.path("film"));
    assert_eq!(Answer::get(&server, &twice, &[]).await.status, 400);
    for token in [&viewer.token, &viewer.watch_token] {
        assert!(!server.log().contains(token.as_str()), "{}", server.log());
    }
}

#[tokio::test]
async fn a_file_is_sent_as_far_as_the_client_wants_it() {
    let server = Server::start(&["--gpus=1"]);
    let viewer = Viewer::with_segments(&server, 2).await;
    for what in ["film/1.mp4", "film/1.jpg", "film.mp4"] {
        let path = viewer.path(what);
        let whole = Answer::get(&server, &path, &[]).await;
        let (size, tag) = (whole.body.len(), whole.header("etag").to_owned());
        for (request, status, bytes) in [
            ("GET", 200, 0..size),
            ("GET range: bytes=3-9", 206, 3..10),
            ("GET range: bytes=-7", 206, size - 7..size),
            ("GET range: bytes=1-2,5-6", 200, 0..size),
            ("GET range: bytes=99999999-", 416, 0..0),
            ("GET range: bytes=2-1", 200, 0..size),
            ("GET range: bytes=0-0 if-range: TAG", 206, 0..1),
            ("GET range: bytes=0-0 if-range: \"x\"", 200, 0..size),
            ("GET range: bytes=0-0 if-range: W/TAG", 200, 0..size),
            ("GET if-none-match: TAG", 304, 0..0),
            ("GET if-none-match: W/TAG range: bytes=0-0", 304, 0..0),
            ("GET if-none-match: \"x\"", 200, 0..size),
            ("HEAD", 200, 0..0),
            ("HEAD range: bytes=3-9", 200, 0..0),
            ("HEAD if-none-match: TAG", 304, 0..0),
        ] {
            let request = request.replace("TAG", &tag);
            let mut words = request.split(' ');
            let method = words.next().unwrap();
            let words: Vec<_> = words.map(|word| word.trim_end_matches(':')).collect();
            let headers = words.chunks(2).map(|pair| (pair[0], pair[1]));
            let headers: Vec<_> = headers.collect();
            let answer = Answer::of(method, &server, &path, &headers).await;
            assert_eq!(answer.status, status, "{what} {request}");
            let range = match status {
                206 => format!("bytes {}-{}/{size}", bytes.start, bytes.end - 1),
                416 => format!("bytes */{size}"),
                _ => String::new(),
            };
            assert_eq!(answer.header("content-range"), range, "{what} {request}");
            if status == 416 {
                assert_eq!(answer.error(), "range_not_satisfiable");
                continue;
            }
            assert!(answer.body == whole.body[bytes], "{what} {request}");
            assert_eq!(answer.header("etag"), tag, "{what} {request}");
            assert_eq!(answer.header("accept-ranges"), "bytes", "{what} {request}");
            let caching = whole.header("cache-control");
            assert_eq!(answer.header("cache-control"), caching, "{what} {request}");
            if (method, status) == ("HEAD", 200) {
                assert_eq!(answer.header("content-length"), size.to_string());
            }
        }
    }
}

#[tokio::test]
async fn pictures_make_no_video() {
    let server = Server::start(&["--gpus=1"]);
    let mut viewer = Viewer::open(&server, json!({"stream_mode": "legacy_jpeg"})).await;
    viewer.take(1).await;
    let film = viewer.document(&server).await;
    assert_eq!(film.mime.as_deref(), Some("image/jpeg"));
    assert_eq!(film.segments[0].messages, 12);
    for what in ["film/0.mp4", "film.mp4", "index.m3u8"] {
        let answer = viewer.get(&server, what).await;
        assert_eq!(
            (answer.status, answer.error()),
            (404, json!("no_video")),
            "{what}"
        );
    }
}

#[tokio::test]
async fn reading_a_film_is_no_activity_of_its_session() {
    let timeout = "--streaming.session_timeout_seconds=2";
    let server = Server::start(&["--gpus=1", timeout]);
    let mut viewer = Viewer::with_segments(&server, 1).await;
    let path = viewer.path("film.mp4");
    let read = async {
        loop {
            assert_eq!(Answer::get(&server, &path, &[]).await.status, 200);
        }
    };
    tokio::select! {
        () = read => {}
        _ = viewer.client.until_type("session_timeout") => {}
    }
    let ended = |film: &FilmDocument| !film.live;
    viewer
        .document_when(&server, "the session has ended", ended)
        .await;
    assert_eq!(Answer::get(&server, &path, &[]).await.status, 200);
}

#[tokio::test]
async fn pages_of_the_sites_that_may_open_sessions_may_read_films() {
    const SITE: &str = "https://video.example.org";
    let preflight = [
        ("origin", SITE),
        ("access-control-request-method", "GET"),
        ("access-control-request-headers", "authorization,range"),
    ];
    let allowed = async |server: &Server, path: &str, origin: &str| {
        let asked = Answer::get(server, path, &[("origin", origin)]).await;
        asked.header("access-control-allow-origin").to_owned()
    };
    let any = Server::start(&["--gpus=1"]);
    let viewer = Viewer::with_segments(&any, 1).await;
    for what in [
        "film",
        "film.mp4",
        "index.m3u8",
        "film/0.mp4",
        "film/0/1-1.m4s",
        "film/9.mp4",
    ] {
        assert_eq!(
            allowed(&any, &viewer.path(what), SITE).await,
            SITE,
            "{what}"
        );
    }
    let path = format!("/v1/sessions/{}/film.mp4", viewer.id);
    let answer = Answer::of("OPTIONS", &any, &path, &preflight).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-methods"), "GET,HEAD");
    let headers = answer.header("access-control-allow-headers");
    assert!(
        headers.contains("authorization") && headers.contains("range"),
        "{headers}"
    );
    // Nothing else of the server is for other sites.
    assert_eq!(allowed(&any, "/status", SITE).await, "");

    let some = Server::start(&["--gpus=1", "--server.allowed_origins", SITE]);
    let viewer = Viewer::with_segments(&some, 1).await;
    let path = viewer.path("film");
    assert_eq!(allowed(&some, &path, SITE).await, SITE);
    assert_eq!(allowed(&some, &path, "https://other.example.org").await, "");
}
