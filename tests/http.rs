//! What probes, operators and browsers get over HTTP.

use std::fmt::Debug;

use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::probes::{Health, Healthz, Readyz};
use fastvideo_proto::api::sessions::{Hydrated, SessionList, SessionState, StateBody};
use fastvideo_proto::api::status::{Status, WorkerState};
use fastvideo_proto::api::workers::WorkerOrderAccepted;
use fastvideo_proto::ids::GpuId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::http::{Request, Response};

use crate::harness::{Server, until};

/// Sends a request and returns the status code, the headers asked for, and the body.
async fn request(
    server: &Server,
    method: &'static str,
    path: &str,
    headers: &'static [&'static str],
) -> (u16, Vec<String>, String) {
    let response = server.request(method, path, None).await;
    let text = |name: &&str| match response.headers().get(*name) {
        Some(value) => value.to_str().unwrap().to_owned(),
        None => String::new(),
    };
    let headers = headers.iter().map(text).collect();
    (response.status().as_u16(), headers, response.into_body())
}

/// Takes the time out of an answer.
fn timeless(mut body: Value) -> Value {
    let ts = body.as_object_mut().unwrap().remove("ts").unwrap();
    let ts = ts.as_str().unwrap();
    assert!(ts.starts_with("20") && ts.ends_with('Z'), "{ts}");
    body
}

#[tokio::test]
async fn readiness_follows_the_workers() {
    let server = Server::start(&["--gpus", "1", "--generator.synthetic.load_ms", "400"]);
    let readyz = |status: &str, ready: u32| {
        let mut body = json!({
            "status": status, "service": "ltx2-streaming-backend", "ready_gpu_workers": ready, "total_gpus": 1,
            "available_gpus": ready, "warmup_successful_gpus": ready, "warmup_failed_gpus": 0, "queue_size": 0,
        });
        if ready == 0 {
            // FastVideo's web UI knows these words.
            body["detail"] = json!("No ready GPU worker processes.");
        }
        body
    };
    let (code, body) = server.get("/readyz").await;
    assert_eq!((code, timeless(body)), (503, readyz("warming", 0)));
    server
        .gpu_until(0, "loading is reported", |gpu| {
            gpu["state"] == "loading" && gpu["load_progress"]["fraction"].is_number()
        })
        .await;
    server.ready(1).await;
    let (code, body) = server.get("/readyz").await;
    assert_eq!((code, timeless(body)), (200, readyz("ready", 1)));
}

#[tokio::test]
async fn health_says_that_the_process_lives_and_how_many_sessions_it_has() {
    let server = Server::start(&["--gpus", "1"]);
    let health = |sessions: u32| {
        let body = json!({"status": "ok", "sessions": sessions, "stream_mode": "av_fmp4"});
        (200, body)
    };
    assert_eq!(server.get("/health").await, health(0));
    let _one = server.active(json!({})).await;
    let _waiting = server.open(json!({})).await;
    server.sessions(2).await;
    assert_eq!(server.get("/health").await, health(2));
    let (code, body) = server.get("/healthz").await;
    let expected = json!({"status": "ok", "service": "ltx2-streaming-backend"});
    assert_eq!((code, timeless(body)), (200, expected));
}

#[tokio::test]
async fn the_health_probes_name_the_service_as_the_operator_does() {
    let server = Server::start(&["--gpus", "1", "--server.service_name", "my-video"]);
    for probe in ["/healthz", "/readyz"] {
        assert_eq!(server.get(probe).await.1["service"], "my-video");
    }
}

#[tokio::test]
async fn status_tells_what_each_gpu_does() {
    let server = Server::start(&["--gpus", "2", "--generator.synthetic.step_ms", "10"]);
    server.ready(2).await;
    let idle = server.status().await;
    for field in ["total_gpus", "available_gpus", "warmup_successful_gpus"] {
        assert_eq!(idle[field], 2, "{field}");
    }
    for field in ["warmup_failed_gpus", "queue_size", "sessions"] {
        assert_eq!(idle[field], 0, "{field}");
    }
    let gpu = &idle["gpu_status"]["0"];
    let facts = [
        ("ready", json!(true)),
        ("available", json!(true)),
        ("client_count", json!(0)),
        ("current_model_id", json!("synthetic")),
        ("process_alive", json!(true)),
        ("warmup_enabled", json!(true)),
        ("warmup_success", json!(true)),
        ("warmup_error", json!(null)),
        ("state", json!("ready")),
        ("restarts", json!(0)),
        ("last_exit", json!(null)),
        ("segments_finished", json!(0)),
    ];
    for (field, fact) in facts {
        assert_eq!(gpu[field], fact, "{field}");
    }
    for field in ["load_ms", "first_segment_ms", "second_segment_ms"] {
        assert!(gpu["warmup_timings"][field].is_number(), "{field}");
    }
    assert_ne!(gpu["pid"], idle["gpu_status"]["1"]["pid"]);

    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    let id = u32::try_from(assigned["gpu_id"].as_u64().unwrap()).unwrap();
    client.until_type("ltx2_stream_start").await;
    let bound = server.gpu(id).await;
    let facts = (&bound["client_count"], &bound["available"], &bound["state"]);
    assert_eq!(facts, (&json!(1), &json!(false), &json!("ready")));
    assert_eq!(bound["worker_id"], assigned["worker_id"]);
    assert_eq!(server.status().await["available_gpus"], 1);

    let request =
        json!({"type": "segment_prompt_source", "prompt": "a fox", "num_inference_steps": 200});
    client.send(request).await;
    client.until_type("step_complete").await;
    assert_eq!(server.gpu(id).await["state"], "busy");
    client.send(json!({"type": "cancel_segment"})).await;
    client.until_type("segment_cancelled").await;
    server
        .gpu_until(id, "the job is over", |gpu| gpu["state"] == "ready")
        .await;
    assert_eq!(server.gpu(id).await["segments_finished"], 0);
    client.segment("a hare").await;
    assert_eq!(server.gpu(id).await["segments_finished"], 1);

    drop(client);
    server
        .gpu_until(id, "the place is free", |gpu| {
            gpu["client_count"] == 0 && gpu["available"] == true
        })
        .await;
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let server = Server::start(&["--gpus", "1"]);
    for (method, path, status, code) in [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/nowhere", 404, "not_found"),
        ("GET", "/../Cargo.toml", 404, "not_found"),
        ("POST", "/status", 405, "method_not_allowed"),
        ("DELETE", "/v1/stream", 405, "method_not_allowed"),
        ("POST", "/", 405, "method_not_allowed"),
        ("GET", "/v1/stream", 426, "upgrade_required"),
    ] {
        let (given, headers, body) = request(&server, method, path, &["content-type"]).await;
        assert_eq!(given, status, "{method} {path}");
        assert_eq!(headers, ["application/json"], "{method} {path}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["error"]["code"], code, "{method} {path}");
        assert!(body["error"]["message"].is_string(), "{method} {path}");
    }
}

/// Requests of one method for one path that differ in all that a server reads of them.
fn odd_requests(method: &str, path: &str, takes_body: bool) -> Vec<Request<String>> {
    let filled = |id: &str, gpu: &str| {
        let path = path.replace("{id}", id).replace("{gpu}", gpu);
        let path = path.replace("{name}", gpu).replace("{path}", "status");
        path.replace("{n}", "0")
    };
    let unknown = filled(&"0".repeat(32), "99");
    let request = |path: &str| Request::builder().method(method).uri(path);
    let queries = [
        "inline=bogus",
        "deadline_seconds=soon",
        "unknown=1",
        "%ff",
        "token=a&token=b",
    ];
    let mut requests = vec![
        request(&unknown).body(String::new()),
        request(&filled("%ff", "%ff")).body(String::new()),
        request(&filled("nobody", "first")).body(String::new()),
        request(&unknown)
            .header("origin", "https://elsewhere.example")
            .body(String::new()),
    ];
    for query in queries {
        let path = format!("{unknown}?{query}");
        requests.push(request(&path).body(String::new()));
    }
    if takes_body {
        let (garbage, large) = ("{".to_owned(), " ".repeat(100_001));
        requests.push(request(&unknown).body(garbage));
        requests.push(request(&unknown).body(large));
    }
    requests.into_iter().map(Result::unwrap).collect()
}

/// The error that a refusal says.
fn refusal(response: &Response<String>, what: &str) -> ErrorBody {
    let mime = response.headers().get("content-type");
    assert_eq!(mime.unwrap(), "application/json", "{what}");
    let body = serde_json::from_str(response.body());
    body.unwrap_or_else(|error| panic!("{what}: {error} in {}", response.body()))
}

/// The type of a route's refusals.
fn error_form(path: &str) -> &'static str {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| path.starts_with(prefix));
    if begins(&["/v1/videos", "/v1/models"]) {
        "OpenAiErrorBody"
    } else if begins(&["/curated-presets", "/lora", "/router/", "/internal/"]) {
        "DetailErrorBody"
    } else {
        "ErrorBody"
    }
}

/// A limit on the body of a request, which one of the odd requests exceeds.
pub(crate) const SMALL_BODIES: &str = "--streaming.limits.max_message_bytes=100000";

/// Sends odd requests to all routes of a server's or router's document, and to some that are in none. Each refusal must be an
/// error in JSON that the document describes. Returns their statuses and codes.
pub(crate) async fn described_refusals(server: &Server) -> Vec<(u16, String)> {
    let (_, document) = server.get("/openapi.json").await;
    let mut paths = document["paths"].as_object().unwrap().clone();
    for page in ["/", "/operator/", "/page.js", "/nowhere"] {
        paths.insert(page.to_owned(), json!({}));
    }
    let mut refused = Vec::new();
    for (path, operations) in &paths {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let operation = &operations[method.to_lowercase()];
            let takes_body = operation["requestBody"].is_object();
            for request in odd_requests(method, path, takes_body) {
                if (method, path.as_str()) == ("POST", "/v1/drain")
                    && !request.headers().contains_key("origin")
                {
                    // It would drain the server.
                    continue;
                }
                let what = format!("{method} {}", request.uri());
                let response = server.send(request).await;
                let status = response.status().as_u16();
                if status < 400 {
                    continue;
                }
                let code = refusal(&response, &what).error.code.into_owned();
                if operation.is_object() {
                    let described = &operation["responses"][status.to_string()];
                    let schema = &described["content"]["application/json"]["schema"]["$ref"];
                    let form = error_form(path);
                    let expected = format!("#/components/schemas/{form}");
                    assert_eq!(*schema, expected, "{what}: {status}");
                    if form == "DetailErrorBody" {
                        let body: Value = serde_json::from_str(response.body()).unwrap();
                        assert_eq!(body["detail"], body["error"]["message"], "{what}");
                    }
                } else {
                    let expected = match path.as_str() {
                        "/nowhere" => (404, "not_found"),
                        _ if code == "other_site" => (403, "other_site"),
                        // None of the ids is one of a video.
                        "/v1/videos/{id}" => (404, "video_not_found"),
                        _ => (405, "method_not_allowed"),
                    };
                    assert_eq!((status, code.as_str()), expected, "{what}");
                }
                refused.push((status, code));
            }
        }
    }
    refused
}

#[tokio::test]
async fn every_refusal_of_every_route_is_an_error_in_json_that_openapi_describes() {
    let server = Server::start(&["--gpus", "1", SMALL_BODIES]);
    // Until then /readyz answers 503, which is no refusal.
    server.ready(1).await;
    let refused = described_refusals(&server).await;
    for expected in [
        (400, "invalid_request"),
        (400, "invalid_body"),
        (403, "other_site"),
        (404, "no_session"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (409, "no_enhancer"),
        (413, "invalid_body"),
        (426, "upgrade_required"),
    ] {
        let expected = (expected.0, expected.1.to_owned());
        assert!(refused.contains(&expected), "{expected:?} in {refused:?}");
    }
}

#[tokio::test]
async fn a_query_that_is_wrong_is_refused_with_the_field() {
    let server = Server::start(&["--gpus", "1"]);
    let path = format!("/v1/sessions/{}/state", "0".repeat(32));
    for (query, named) in [("inline=bogus", "inline"), ("in_line=true", "in_line")] {
        let path = format!("{path}?{query}");
        let response = server.request("GET", &path, None).await;
        assert_eq!(response.status(), 400, "{query}");
        let error = refusal(&response, query).error;
        assert_eq!(error.code, "invalid_request", "{query}");
        assert!(error.message.contains(named), "{}", error.message);
    }
}

/// The answer as its type, which must say all that the answer says.
fn typed<T: DeserializeOwned + Serialize + Debug>(answer: &Response<String>) -> T {
    let body: T = serde_json::from_str(answer.body()).unwrap();
    let again = serde_json::to_string(&body).unwrap();
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(json(&again), json(answer.body()), "{body:?}");
    body
}

#[tokio::test]
async fn every_answer_is_read_back_whole_by_its_type() {
    let server = Server::start(&["--gpus", "2"]);
    let get = async |path: &str| server.request("GET", path, None).await;
    typed::<Status>(&get("/status").await);
    server.ready(2).await;
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;

    assert_eq!(typed::<Health>(&get("/health").await).sessions, 1);
    typed::<Healthz>(&get("/healthz").await);
    assert_eq!(typed::<Readyz>(&get("/readyz").await).ready_gpu_workers, 2);
    let status = typed::<Status>(&get("/status").await);
    let finished: u64 = status
        .gpu_status
        .values()
        .map(|g| g.segments_finished)
        .sum();
    assert_eq!(finished, 1);
    assert_eq!(status.gpu_status[&GpuId(0)].state, WorkerState::Ready);
    assert!(status.relay_latency.count > 0, "{status:?}");

    let sessions = typed::<SessionList>(&get("/v1/sessions").await).sessions;
    assert_eq!(sessions[0].state, SessionState::Active);
    let path = format!("/v1/sessions/{}/state", sessions[0].session_id);
    let state = typed::<StateBody>(&get(&format!("{path}?inline=true")).await);
    let state = serde_json::to_value(state).unwrap();
    let hydrated = server.request("POST", "/v1/sessions", Some(state)).await;
    assert_ne!(
        typed::<Hydrated>(&hydrated).session_id,
        sessions[0].session_id
    );
    let restart = "/v1/workers/1/restart?deadline_seconds=1";
    let accepted = server.request("POST", restart, None).await;
    assert_eq!(typed::<WorkerOrderAccepted>(&accepted).gpu_id, GpuId(1));
    let refused = get("/nowhere").await;
    assert_eq!(typed::<ErrorBody>(&refused).error.code, "not_found");
}

/// The paths in the document of a server or router, sorted.
pub(crate) async fn described_paths(server: &Server) -> Vec<String> {
    let (code, document) = server.get("/openapi.json").await;
    assert_eq!(code, 200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    // Each reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = &reference[..reference.find('"').unwrap()];
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    let paths = document["paths"].as_object().unwrap();
    let mut paths: Vec<_> = paths.keys().cloned().collect();
    paths.sort_unstable();
    paths
}

#[tokio::test]
async fn the_openapi_document_describes_every_route() {
    let server = Server::start(&["--gpus", "1"]);
    let expected = [
        "/curated-presets",
        "/curated-presets/append",
        "/health",
        "/healthz",
        "/internal/monitor/sessions",
        "/lora",
        "/lora/options",
        "/metrics",
        "/openapi.json",
        "/prompt-system-config",
        "/readyz",
        "/router/replicas/sessions",
        "/status",
        "/v1/drain",
        "/v1/log-level",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/prompts/reload",
        "/v1/prompts/rollout",
        "/v1/reload",
        "/v1/sessions",
        "/v1/sessions/{id}",
        "/v1/sessions/{id}/film",
        "/v1/sessions/{id}/film.mp4",
        "/v1/sessions/{id}/film/{n}.jpg",
        "/v1/sessions/{id}/film/{n}.mp4",
        "/v1/sessions/{id}/film/{n}/{attempt}-{message}.m4s",
        "/v1/sessions/{id}/index.m3u8",
        "/v1/sessions/{id}/move",
        "/v1/sessions/{id}/state",
        "/v1/stream",
        "/v1/tickets",
        "/v1/videos",
        "/v1/videos/edits",
        "/v1/videos/extensions",
        "/v1/videos/sync",
        "/v1/videos/{id}",
        "/v1/videos/{id}/cancel",
        "/v1/videos/{id}/content",
        "/v1/videos/{id}/remix",
        "/v1/watch",
        "/v1/workers/loras",
        "/v1/workers/loras/{name}",
        "/v1/workers/{gpu}/drain",
        "/v1/workers/{gpu}/restart",
    ];
    assert_eq!(described_paths(&server).await, expected);
}

#[tokio::test]
async fn the_page_and_all_its_parts_come_from_this_server_alone() {
    let server = Server::start(&["--gpus", "1"]);
    let wanted = &[
        "content-type",
        "content-security-policy",
        "x-content-type-options",
    ];
    for place in ["/", "/operator/", "/operator/watch"] {
        comes_whole(&server, place, wanted).await;
    }
    let (code, headers, _) = request(&server, "GET", "/operator", &["location"]).await;
    // ureq has followed it.
    assert_eq!((code, headers[0].as_str()), (200, ""));
}

/// A document and all that it names come from the server, with the headers that are asked for.
async fn comes_whole(server: &Server, place: &str, wanted: &'static [&'static str]) {
    let (code, headers, page) = request(server, "GET", place, wanted).await;
    assert_eq!(code, 200, "{place}");
    assert!(headers[0].starts_with("text/html"), "{}", headers[0]);
    assert!(headers[1].contains("default-src 'self'"), "{}", headers[1]);
    assert!(!headers[1].contains("unsafe"), "{}", headers[1]);
    assert_eq!(headers[2], "nosniff");
    let mut parts = 0;
    for attribute in ["src=\"", "href=\""] {
        for part in page.split(attribute).skip(1) {
            let path = &part[..part.find('"').unwrap()];
            if path.starts_with('#') {
                continue;
            }
            let (folder, _) = place.rsplit_once('/').unwrap();
            let path = format!("{folder}/{}", path.trim_start_matches('/'));
            let (code, headers, body) = request(server, "GET", &path, wanted).await;
            assert_eq!((code, headers[2].as_str()), (200, "nosniff"), "{path}");
            assert!(!body.is_empty(), "{path}");
            parts += 1;
        }
    }
    assert!(parts >= 3, "a style, a script and an icon: {parts}");
}

#[tokio::test]
async fn a_draining_server_is_not_ready() {
    let mut server = Server::start(&["--gpus", "1", "--generator.synthetic.step_ms", "20"]);
    let mut client = server.active(json!({})).await;
    let request =
        json!({"type": "segment_prompt_source", "prompt": "a fox", "num_inference_steps": 30});
    client.send(request).await;
    client.until_type("step_complete").await;
    server.signal(nix::sys::signal::Signal::SIGTERM);
    client.until_type("server_draining").await;
    let (code, body) = server.get("/readyz").await;
    assert_eq!((code, &body["status"]), (503, &json!("draining")));
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains("shutting down"), "{detail}");
    assert_eq!(server.status().await["draining"], true);
    client.until_type("ltx2_segment_complete").await;
    client.send(json!({"type": "leave"})).await;
    assert_eq!(client.closed().await, Some(1000));
    until("the server is gone", async || server.exit().await.code()).await;
}
