//! The HTTP routes of FastVideo's web UI, in the shapes that it reads.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::http::Request;

use crate::auth::{Keys, key};
use crate::cli::run;
use crate::harness::{Server, command};
use crate::prompts;
use crate::provider::Provider;

const GPU: &str = "--gpus=1";

/// All routes, and how they are asked.
const ROUTES: &[(&str, &str)] = &[
    ("GET", "/curated-presets"),
    ("POST", "/curated-presets/append"),
    ("GET", "/lora/options"),
    ("POST", "/lora"),
    ("GET", "/router/replicas/sessions"),
    ("GET", "/internal/monitor/sessions"),
];

/// A file of presets.
struct Presets {
    folder: TempDir,
}

impl Presets {
    fn new(presets: &Value) -> Self {
        let file = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::write(file.path(), presets.to_string()).unwrap();
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("presets.json")
    }

    fn flag(&self) -> String {
        format!(
            "--streaming.dreamverse.presets_file={}",
            self.path().display()
        )
    }

    fn read(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path()).unwrap()).unwrap()
    }
}

fn fox() -> Value {
    json!({"id": "fox", "label": "Fox", "segment_prompts": ["a fox", "it runs"], "mood": "calm"})
}

/// A refusal has the reason in two places.
fn check_refusal((status, body): (u16, Value), expected: (u16, &str), words: &str) {
    let code = body["error"]["code"].as_str().unwrap_or_default();
    assert_eq!((status, code), expected, "{body}");
    assert_eq!(body["detail"], body["error"]["message"], "{body}");
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains(words), "{words} in {detail}");
}

#[tokio::test]
async fn without_a_file_there_are_three_stories() {
    let server = Server::start(&[GPU]);
    let (status, body) = server.get("/curated-presets").await;
    assert_eq!(status, 200);
    assert_eq!(body["count"], 3);
    assert_eq!(body["file_path"], Value::Null);
    assert_eq!(body["fallback_file_path"], Value::Null);
    let presets = body["presets"].as_array().unwrap();
    assert_eq!(presets.len(), 3);
    for preset in presets {
        for field in ["id", "label", "description"] {
            assert!(!preset[field].as_str().unwrap().is_empty(), "{preset}");
        }
        assert_eq!(preset["segment_prompts"].as_array().unwrap().len(), 6);
    }
    let new = json!({"id": "a", "label": "A", "segment_prompts": ["x", "y"]});
    let refused = server.call("POST", "/curated-presets/append", Some(new));
    check_refusal(refused.await, (403, "forbidden"), "presets_file");
}

#[tokio::test]
async fn the_operators_file_is_read_anew_with_each_request() {
    let file = Presets::new(&json!([fox()]));
    let server = Server::start(&[GPU, &file.flag()]);
    let path = file.path().display().to_string();
    let expected = json!({
        "presets": [{"id": "fox", "label": "Fox", "description": "", "segment_prompts": ["a fox", "it runs"]}],
        "count": 1, "file_path": path, "fallback_file_path": null,
    });
    assert_eq!(server.get("/curated-presets").await, (200, expected));
    fs::write(file.path(), "[]").unwrap();
    let (_, body) = server.get("/curated-presets").await;
    assert_eq!((&body["count"], &body["presets"]), (&json!(0), &json!([])));
    fs::write(file.path(), "{").unwrap();
    let broken = server.get("/curated-presets").await;
    check_refusal(broken, (500, "internal_error"), "JSON list");
    fs::remove_file(file.path()).unwrap();
    let gone = server.get("/curated-presets").await;
    check_refusal(gone, (500, "internal_error"), "cannot be read");
}

#[tokio::test]
async fn a_story_is_added_to_the_file_at_once_or_not_at_all() {
    let file = Presets::new(&json!([fox()]));
    let mode = fs::Permissions::from_mode(0o640);
    fs::set_permissions(file.path(), mode).unwrap();
    let server = Server::start(&[GPU, &file.flag()]);
    let append = async |new: Value| {
        let path = "/curated-presets/append";
        server.call("POST", path, Some(new)).await
    };
    let new = json!({"id": " The Hare (2) ", "label": " Hare ", "segment_prompts": [" a hare ", " ", "it hops"]});
    let added = json!({"id": "the_hare_2", "label": "Hare", "description": "", "segment_prompts": ["a hare", "it hops"]});
    let expected = json!({
        "type": "curated_preset_appended", "preset": added, "count": 2,
        "file_path": file.path().display().to_string(), "fallback_file_path": null,
    });
    assert_eq!(append(new.clone()).await, (200, expected));
    // What the operator has written stays, and so does who may read it.
    let both = json!([fox(), added]);
    assert_eq!(file.read(), both);
    let mode = fs::metadata(file.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(server.get("/curated-presets").await.1["count"], 2);

    check_refusal(append(new).await, (409, "conflict"), "`the_hare_2`");
    let taken = json!({"id": "FOX", "label": "F", "segment_prompts": ["x", "y"]});
    check_refusal(append(taken).await, (409, "conflict"), "`fox`");
    for (wrong, words) in [
        (json!([]), "preset"),
        (json!({"label": "A", "segment_prompts": ["x", "y"]}), "id"),
        (
            json!({"id": "a", "label": " ", "segment_prompts": ["x", "y"]}),
            "`label`",
        ),
        (json!({"id": "a", "label": "A"}), "segment_prompts"),
        (
            json!({"id": "a", "label": "A", "segment_prompts": ["x", " "]}),
            "at least 2",
        ),
        (
            json!({"id": "a", "label": "A", "segment_prompts": "x"}),
            "`segment_prompts`",
        ),
        (
            json!({"id": "a", "label": "A", "segment_prompts": ["x", 1]}),
            "`segment_prompts[1]`",
        ),
        (
            json!({"id": 1, "label": "A", "segment_prompts": ["x", "y"]}),
            "`id`",
        ),
    ] {
        check_refusal(append(wrong).await, (400, "invalid_body"), words);
    }
    let large = json!({"id": "a", "label": "A", "segment_prompts": ["x".repeat(17 << 20), "y"]});
    check_refusal(append(large).await, (413, "invalid_body"), "16777216 bytes");
    let request = Request::post("/curated-presets/append").body("{".to_owned());
    let answer = server.send(request.unwrap()).await;
    let body = serde_json::from_str(answer.body()).unwrap();
    check_refusal(
        (answer.status().as_u16(), body),
        (400, "invalid_body"),
        "JSON",
    );
    assert_eq!(file.read(), both);
    let names = fs::read_dir(file.folder.path()).unwrap();
    assert_eq!(names.count(), 1, "a temporary file is left");
}

#[tokio::test]
async fn stories_that_are_added_at_the_same_time_are_all_kept() {
    let file = Presets::new(&json!([]));
    let server = Server::start(&[GPU, &file.flag()]);
    let append = async |n: usize| {
        let id = format!("story {n}");
        let new = json!({"id": id, "label": id, "segment_prompts": ["x", "y"]});
        let path = "/curated-presets/append";
        server.call("POST", path, Some(new)).await.0
    };
    let all = futures_util::future::join_all((0..16).map(append)).await;
    assert_eq!(all, [200; 16]);
    assert_eq!(file.read().as_array().unwrap().len(), 16);
}

#[tokio::test]
async fn a_file_that_is_none_stops_the_start() {
    let one = json!([{"id": "a", "label": "A", "segment_prompts": ["only one"]}]);
    let file = Presets::new(&one);
    let nowhere = "--streaming.dreamverse.presets_file=/nonexistent/presets.json";
    for (flag, words) in [(&*file.flag(), "preset 1"), (nowhere, "cannot be read")] {
        let (code, stdout, stderr) = run(&[GPU, "--port=0", flag]).await;
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        for word in ["streaming.dreamverse.presets_file", words] {
            assert!(stderr.contains(word), "{word} in {stderr}");
        }
    }
}

#[tokio::test]
async fn a_tenant_must_be_one_that_the_keys_name() {
    let (code, _, stderr) = run(&[GPU, "--port=0", "--streaming.dreamverse.tenant=acme"]).await;
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("server.auth.keys_file"), "{stderr}");
    let keys = Keys::new();
    let flag = keys.flag();
    let unknown = "--streaming.dreamverse.tenant=gamma";
    let (code, _, stderr) = run(&[GPU, "--port=0", &flag, unknown]).await;
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("acme, beta"), "{stderr}");
    keys.serve(&["--streaming.dreamverse.tenant=beta"]);
}

#[tokio::test]
async fn there_are_no_styles() {
    let server = Server::start(&[GPU]);
    let options = json!({"styles": ["none"], "labels": {"none": "None"}, "has_base_lora": false});
    assert_eq!(server.get("/lora/options").await, (200, options));
    let style = json!({"strength": 1.0, "styles": {"none": 1.0}});
    let refused = server.call("POST", "/lora", Some(style)).await;
    check_refusal(refused, (400, "invalid_body"), "nothing to apply");
    assert_eq!(server.get("/models").await.0, 404);
}

#[tokio::test]
async fn the_monitor_shows_this_server_and_its_sessions() {
    let server = Server::start(&[GPU]);
    let replica = async || {
        let (status, body) = server.get("/router/replicas/sessions").await;
        assert_eq!(status, 200);
        let replicas = body["replicas"].as_array().unwrap();
        assert_eq!(replicas.len(), 1);
        replicas[0].clone()
    };
    let expected = |active: u32, pending: u32| {
        json!({
            "url": format!("http://{}", server.address), "healthy": true, "active_sessions": active,
            "pending_sessions": pending, "max_available_sessions": 1, "prompt_provider_success_counts": {},
        })
    };
    server.ready(1).await;
    assert_eq!(replica().await, expected(0, 0));
    let _one = server.active(json!({})).await;
    let mut waiting = server.open(json!({})).await;
    waiting.until_type("queue_status").await;
    assert_eq!(replica().await, expected(1, 1));
    let (status, mut body) = server.get("/internal/monitor/sessions").await;
    assert_eq!(status, 200);
    let ts = body.as_object_mut().unwrap().remove("ts").unwrap();
    assert!(ts.as_str().unwrap().ends_with('Z'), "{ts}");
    let sessions = json!({
        "service": "ltx2-streaming-backend", "pending_sessions": 1, "max_available_sessions": 1,
        "prompt_provider_success_counts": {},
    });
    assert_eq!(body, sessions);
}

#[tokio::test]
async fn the_monitor_counts_the_answers_of_language_models() {
    let provider = Provider::shouting().await;
    let args = prompts::with(&provider, &[]);
    let server = Server::start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    client.prompt("a red fox").await;
    client.until_type("prompt_enhanced").await;
    for path in ["/router/replicas/sessions", "/internal/monitor/sessions"] {
        let (_, body) = server.get(path).await;
        let of = body.get("replicas").map_or(&body, |replicas| &replicas[0]);
        let expected = json!({"openai_compatible": 1});
        assert_eq!(of["prompt_provider_success_counts"], expected, "{path}");
    }
}

#[tokio::test]
async fn through_the_proxy_of_the_web_ui_the_routes_answer() {
    let server = Server::start(&[GPU]);
    server.ready(1).await;
    for path in [
        "/healthz",
        "/readyz",
        "/status",
        "/curated-presets",
        "/lora/options",
        "/router/replicas/sessions",
    ] {
        let request = Request::get(path)
            .header("origin", "http://localhost:3000")
            .header("x-forwarded-host", "localhost:3000")
            .body(String::new());
        let answer = server.send(request.unwrap()).await;
        assert_eq!(answer.status(), 200, "{path}: {}", answer.body());
    }
}

#[tokio::test]
async fn orders_of_other_sites_and_of_those_without_a_key_are_refused_with_the_reason() {
    let file = Presets::new(&json!([]));
    let server = Server::start(&[GPU, &file.flag()]);
    let post = async |server: &Server, headers: &[(&str, &str)]| {
        let mut request = Request::post("/curated-presets/append");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let new = json!({"id": "a", "label": "A", "segment_prompts": ["x", "y"]});
        let answer = server.send(request.body(new.to_string()).unwrap()).await;
        let body: Value = serde_json::from_str(answer.body()).unwrap();
        (answer.status().as_u16(), body)
    };
    let foreign = post(&server, &[("origin", "https://elsewhere.example")]).await;
    check_refusal(foreign, (403, "other_site"), "elsewhere.example");
    let passed_on = post(&server, &[("x-forwarded-for", "192.0.2.1")]).await;
    check_refusal(passed_on, (403, "local_only"), "keys_file");
    assert_eq!(file.read(), json!([]));
    let own = post(&server, &[("origin", "http://localhost:3000")]).await;
    assert_eq!(own.0, 200, "{}", own.1);

    let file = Presets::new(&json!([]));
    let server = Keys::new().serve(&[&file.flag()]);
    for (who, expected) in [
        (None, (401, "unauthorized")),
        (Some("acme"), (403, "forbidden")),
    ] {
        let bearer = who.map(|who| format!("Bearer {}", key(who)));
        let shown = bearer.as_ref().map(|it| ("authorization", it.as_str()));
        check_refusal(post(&server, shown.as_slice()).await, expected, "key");
    }
    let bearer = format!("Bearer {}", key("ops"));
    let added = post(&server, &[("authorization", &bearer)]).await;
    assert_eq!(added.0, 200, "{}", added.1);
    let asked = server.get("/curated-presets").await;
    check_refusal(asked, (401, "unauthorized"), "key");
}

#[tokio::test]
async fn turned_off_there_is_none_of_it() {
    let server = Server::start(&[GPU, "--streaming.dreamverse.enabled=false"]);
    for (method, path) in ROUTES {
        let (status, body) = server.call(method, path, None).await;
        assert_eq!(status, 404, "{method} {path}: {body}");
    }
}

#[tokio::test]
async fn a_router_says_that_it_does_not_carry_the_web_ui() {
    let server = Server::start(&[GPU]);
    let replicas = format!("--replicas=[{{\"url\": \"http://{}\"}}]", server.address);
    let router = Server::spawn(command().args(["router", &replicas]));
    let (status, body) = router.get("/ws").await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")));
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("router does not carry"), "{message}");
    for (method, path) in ROUTES {
        let (status, body) = router.call(method, path, None).await;
        assert_eq!(status, 404, "{method} {path}: {body}");
    }
}
