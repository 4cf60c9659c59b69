//! Video jobs over HTTP: made, fetched, cancelled, deleted, and finished whatever dies meanwhile.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use ureq::http::Request;

use crate::harness::{Server, WATCHFUL, until};

mod drain;
mod jobs;
mod queue;
mod reports;
mod survival;

/// Segments of 12 frames at 24 frames per second, and a sound.
pub(crate) const ONE_GPU: &[&str] = &["--gpus=1", "--streaming.warmup.enabled=false"];

/// An answer whose body is bytes.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// Sends a request with headers.
pub(crate) async fn fetch(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Answer {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", server.address));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body).unwrap();
    tokio::task::spawn_blocking(move || {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .build()
            .new_agent();
        let (parts, mut body) = agent.run(request).expect("the server answers").into_parts();
        let body = body.with_config().limit(1 << 30).read_to_vec().unwrap();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    })
    .await
    .unwrap()
}

/// Creates a job, whose id is returned.
pub(crate) async fn create(server: &Server, request: Value) -> String {
    let (status, video) = server.call("POST", "/v1/videos", Some(request)).await;
    assert_eq!(status, 200, "{video}");
    assert_eq!(video["status"], "queued", "{video}");
    video["id"].as_str().unwrap().to_owned()
}

pub(crate) async fn retrieve(server: &Server, id: &str) -> Value {
    let (status, video) = server.get(&format!("/v1/videos/{id}")).await;
    assert_eq!(status, 200, "{video}");
    video
}

/// Waits until a job fits.
pub(crate) async fn video_until(
    server: &Server,
    id: &str,
    what: &str,
    fits: impl Fn(&Value) -> bool,
) -> Value {
    let path = format!("/v1/videos/{id}?wait_seconds=5");
    until(what, async || {
        let (_, video) = server.get(&path).await;
        fits(&video).then_some(video)
    })
    .await
}

/// Waits until a job has ended.
pub(crate) async fn ended(server: &Server, id: &str) -> Value {
    let video = video_until(server, id, "the job ends", |video| {
        matches!(video["status"].as_str(), Some("completed" | "failed"))
    });
    video.await
}

/// Waits until a job is completed, and returns it with its content.
pub(crate) async fn completed(server: &Server, id: &str) -> (Value, Vec<u8>) {
    let video = ended(server, id).await;
    assert_eq!(video["status"], "completed", "{video}");
    let content = fetch(
        server,
        "GET",
        &format!("/v1/videos/{id}/content"),
        &[],
        vec![],
    )
    .await;
    assert_eq!(content.status, 200);
    assert_eq!(video["bytes"], content.body.len());
    (video, content.body)
}

/// What ffprobe says of a stream of a file.
#[expect(clippy::disallowed_methods, reason = "a test's own tool, not a worker")]
pub(crate) fn probe(file: &Path, stream: &str) -> Value {
    let probed = Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-count_frames",
            "-show_streams",
            "-of",
            "json",
        ])
        .args(["-select_streams", stream])
        .arg(file)
        .output()
        .expect("ffprobe is installed (make test does)");
    let text = String::from_utf8_lossy(&probed.stderr);
    assert!(probed.status.success() && text.is_empty(), "{text}");
    let found: Value = serde_json::from_slice(&probed.stdout).unwrap();
    found["streams"][0].clone()
}
