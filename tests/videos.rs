//! Video jobs over HTTP: made, fetched, cancelled, deleted, and finished whatever dies meanwhile.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};
use ureq::http::Request;

use crate::durable::folder;
use crate::harness::{Server, WATCHFUL, until};

mod blocked;
mod downloads;
mod drain;
mod faults;
mod fleet;
mod jobs;
mod kills;
mod pages;
mod queue;
mod reports;
mod stores;
mod survival;
mod tenants;
mod viewers;

/// Segments of 12 frames at 24 frames per second, and a sound.
pub(crate) const ONE_GPU: &[&str] = &["--gpus=1", "--streaming.warmup.enabled=false"];

/// Steps of 20 ms, so that there is something to interrupt.
const PACE: &[&str] = &[
    "--gpus=1",
    "--streaming.warmup.enabled=false",
    "--default_request.sampling.num_inference_steps=5",
    "--generator.synthetic.step_ms=20",
    "--generator.synthetic.frame_ms=5",
    "--max-attempts=100",
];

/// Steps that a test can watch.
const SLOW: &[&str] = &[
    "--gpus=1",
    "--streaming.warmup.enabled=false",
    "--default_request.sampling.num_inference_steps=20",
    "--generator.synthetic.step_ms=100",
];

/// A job of three segments.
fn request() -> Value {
    json!({"prompt": "a red fox", "num_frames": 36, "seed": 7})
}

/// The video of [`request`] in an undisturbed run.
async fn expected() -> &'static [u8] {
    static VIDEO: OnceCell<Vec<u8>> = OnceCell::const_new();
    VIDEO.get_or_init(|| undisturbed(request())).await
}

/// The video of a request that nothing disturbs.
async fn undisturbed(request: Value) -> Vec<u8> {
    let server = Server::start(PACE);
    let id = create(&server, request).await;
    completed(&server, &id).await.1
}

/// The arguments of a server that keeps its jobs in a folder.
fn kept_in(folder: &TempDir) -> Vec<String> {
    let path = folder.path().join("store");
    std::fs::create_dir_all(&path).unwrap();
    with(PACE, &[crate::durable::folder("--store", &path)])
}

fn with(args: &[&str], more: &[String]) -> Vec<String> {
    let args = args.iter().map(|arg| (*arg).to_owned());
    args.chain(more.iter().cloned()).collect()
}

fn start(args: &[String]) -> Server {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Server::start(&args)
}

/// Starts a server where another one was, which has ended.
fn start_at(address: &str, args: &[String]) -> Server {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Server::start_at(address, &args)
}

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
    let answer = try_fetch(server, method, path, headers, body).await;
    answer.expect("the server answers")
}

/// The same; `None` when no whole answer comes.
async fn try_fetch(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Option<Answer> {
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
        let (parts, mut body) = agent.run(request).ok()?.into_parts();
        let body = body.with_config().limit(1 << 30).read_to_vec().ok()?;
        Some(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        })
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

/// The jobs of a page.
async fn list(server: &Server, query: &str) -> Vec<Value> {
    let (status, list) = server.get(&format!("/v1/videos?{query}")).await;
    assert_eq!(status, 200, "{list}");
    list["data"].as_array().unwrap().clone()
}

fn ids(videos: &[Value]) -> Vec<&str> {
    let ids = videos.iter().map(|video| video["id"].as_str().unwrap());
    ids.collect()
}

/// Removes a job.
async fn delete(server: &Server, id: &str) {
    let path = format!("/v1/videos/{id}");
    let (status, answer) = server.call("DELETE", &path, None).await;
    assert_eq!(status, 200, "{answer}");
}

/// Waits until a job fits.
pub(crate) async fn video_until(
    server: &Server,
    id: &str,
    what: &str,
    mut fits: impl FnMut(&Value) -> bool,
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

/// Waits until a worker has a job in hand.
async fn in_progress(server: &Server, id: &str) -> Value {
    let is_running = |video: &Value| video["status"] == "in_progress";
    video_until(server, id, "the job runs", is_running).await
}

/// Waits until so much of a job is done, in percent.
async fn progress(server: &Server, id: &str, least: u64) -> Value {
    let is_there = |video: &Value| video["progress"].as_u64() >= Some(least);
    video_until(server, id, "the job goes on", is_there).await
}

/// Waits until a job has failed, and returns its code.
async fn failed(server: &Server, id: &str) -> String {
    let video = ended(server, id).await;
    assert_eq!(video["status"], "failed", "{video}");
    video["error"]["code"].as_str().unwrap().to_owned()
}

/// Waits until a job is completed, and returns it with its content.
pub(crate) async fn completed(server: &Server, id: &str) -> (Value, Vec<u8>) {
    let video = ended(server, id).await;
    assert_eq!(video["status"], "completed", "{video}");
    let content = content(server, id).await;
    assert_eq!(content.status, 200);
    assert_eq!(video["bytes"], content.body.len());
    (video, content.body)
}

async fn content(server: &Server, id: &str) -> Answer {
    let path = format!("/v1/videos/{id}/content");
    fetch(server, "GET", &path, &[], vec![]).await
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
