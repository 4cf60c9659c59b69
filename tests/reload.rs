//! The configuration is read again while a server runs: what changes at once, what later, what takes a restart, and what
//! is refused.

use std::fs;
use std::path::PathBuf;

use fastvideo_supervisor_core::auth::key::KeyHash;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::http::Request;

use crate::harness::{Client, Server, command, until};
use crate::router::QUICK;
use crate::safety::{Classifier, HARMFUL, HARMLESS};

/// A server with a configuration file. It is small by its file and not by flags, which would win.
struct Configured {
    server: Server,
    folder: TempDir,
}

const SMALL_FORMAT: &str = "
default_request:
  sampling: {width: 128, height: 96, num_frames: 12, num_inference_steps: 4}
";

impl Configured {
    fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("serve.yaml");
        fs::write(&file, format!("{config}{SMALL_FORMAT}")).unwrap();
        let server = Server::start_exactly(&["--config", file.to_str().unwrap()]);
        Self { server, folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("serve.yaml")
    }

    /// Writes the file and has it read.
    async fn reload(&self, config: &str) -> (u16, Value) {
        fs::write(self.file(), format!("{config}{SMALL_FORMAT}")).unwrap();
        self.server.post("/v1/reload").await
    }

    /// Writes the file, and checks what has changed when it is read.
    async fn change(&self, config: &str, changed: &[&str]) {
        let (status, body) = self.reload(config).await;
        let expected = json!({"changed": changed, "pending_restart": []});
        assert_eq!((status, body), (200, expected));
    }
}

async fn code_of_prompt(client: &mut Client, prompt: &str) -> String {
    client.prompt(prompt).await;
    let error = client.error().await;
    error["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn limits_change_at_once_and_what_a_session_was_told_with_the_next_one() {
    let it = Configured::start(
        "streaming: {generation_segment_cap: 2, limits: {max_prompt_chars: 100}}",
    );
    let mut before = it.server.active(json!({})).await;
    before.segment("a red fox").await;
    it.change(
        "streaming: {generation_segment_cap: 3, limits: {max_prompt_chars: 5}}",
        &[
            "streaming.generation_segment_cap",
            "streaming.limits.max_prompt_chars",
        ],
    )
    .await;
    assert_eq!(
        code_of_prompt(&mut before, "a red fox").await,
        "invalid_message"
    );
    before.segment("a fox").await;
    before.until_type("ltx2_stream_complete").await;
    let mut after = it.server.open(json!({})).await;
    let start = after.until_type("ltx2_stream_start").await;
    assert_eq!(start["generation_segment_cap"], json!(3));
    assert_eq!(start["limits"]["max_prompt_chars"], json!(5));
    // Nothing changes the second time.
    let (status, body) = it.server.post("/v1/reload").await;
    assert_eq!(
        (status, body),
        (200, json!({"changed": [], "pending_restart": []}))
    );
}

#[tokio::test]
async fn sessions_that_wait_come_in_when_a_gpu_takes_more_and_nobody_leaves_when_it_takes_fewer() {
    let it = Configured::start("streaming: {pool: {keep_up: false}}");
    let mut first = it.server.active(json!({})).await;
    let mut second = it.server.open(json!({})).await;
    second.until_type("queue_status").await;
    it.change(
        "streaming: {pool: {keep_up: false, sessions_per_gpu: 2}}",
        &["streaming.pool.sessions_per_gpu"],
    )
    .await;
    second.until_type("ltx2_stream_start").await;
    it.change(
        "streaming: {pool: {keep_up: false, sessions_per_gpu: 1}}",
        &["streaming.pool.sessions_per_gpu"],
    )
    .await;
    first.segment("a red fox").await;
    second.segment("a red fox").await;
    drop(first);
    it.server.sessions(1).await;
    second.segment("a red fox").await;
}

#[tokio::test]
async fn what_takes_a_restart_is_named_and_waits_for_it() {
    let it = Configured::start("server: {grace_seconds: 5}");
    let changed = "server: {grace_seconds: 6, realtime: false, service_name: other}";
    let (status, body) = it.reload(changed).await;
    let pending = json!(["server.service_name", "server.realtime"]);
    let expected = json!({"changed": ["server.grace_seconds"], "pending_restart": pending});
    assert_eq!((status, body), (200, expected));
    let (_, body) = it.server.get("/healthz").await;
    assert_eq!(body["service"], "ltx2-streaming-backend");
    let last = it.server.status().await["last_reload"].clone();
    assert_eq!(last["outcome"], "ok");
    assert_eq!(last["changed"], json!(["server.grace_seconds"]));
    assert_eq!(last["pending_restart"], pending);
    // They wait until they are taken back.
    let (_, body) = it.server.post("/v1/reload").await;
    assert_eq!(body, json!({"changed": [], "pending_restart": pending}));
    it.change("server: {grace_seconds: 6}", &[]).await;
}

#[tokio::test]
async fn a_file_that_is_wrong_changes_nothing_and_the_answer_says_where() {
    let it = Configured::start(
        "streaming: {limits: {max_prompt_chars: 100}, pool: {heartbeat_interval_ms: 1000, heartbeat_timeout_ms: 5000}}",
    );
    for (wrong, words) in [
        (
            "streaming: {limits: {max_prompt_chars: 0}}",
            "`streaming.limits.max_prompt_chars` must be",
        ),
        (
            "streaming: {limits: {max_promt_chars: 9}}",
            "max_prompt_chars",
        ),
        ("streaming: [", "serve.yaml:"),
        (
            "server: {auth: {keys_file: /nowhere}}\nstreaming: {limits: {max_prompt_chars: 9}}",
            "/nowhere",
        ),
        (
            "streaming: {limits: {max_prompt_chars: 9}, safety: {enabled: true, classifier_path: /nowhere}}",
            "/nowhere",
        ),
        // This contradicts a value that it does not change.
        (
            "streaming: {limits: {max_inference_steps: 2, max_prompt_chars: 9}}",
            "max_inference_steps",
        ),
        // This contradicts the old value of a key that takes a restart.
        (
            "streaming: {limits: {max_prompt_chars: 9}, pool: {heartbeat_interval_ms: 100, heartbeat_timeout_ms: 500}}",
            "before a restart, with the old values of streaming.pool.heartbeat_interval_ms",
        ),
    ] {
        let (status, body) = it.reload(wrong).await;
        let message = body["error"]["message"].as_str().unwrap();
        assert_eq!(
            (status, &body["error"]["code"]),
            (422, &json!("not_reloaded"))
        );
        assert!(message.contains(words), "{message}");
        let last = it.server.status().await["last_reload"].clone();
        assert_eq!(last["outcome"], "refused");
        assert_eq!(last["reason"].as_str(), Some(message));
    }
    fs::remove_file(it.file()).unwrap();
    assert_eq!(it.server.post("/v1/reload").await.0, 422);
    let mut client = it.server.active(json!({})).await;
    client.segment("longer than nine characters").await;
    it.change(
        "streaming: {limits: {max_prompt_chars: 9}, pool: {heartbeat_interval_ms: 1000, heartbeat_timeout_ms: 5000}}",
        &["streaming.limits.max_prompt_chars"],
    )
    .await;
    assert_eq!(
        code_of_prompt(&mut client, "longer than nine characters").await,
        "invalid_message"
    );
}

#[tokio::test]
async fn a_safety_filter_that_comes_screens_the_next_prompt_of_an_open_session() {
    let classifier = Classifier::train();
    let it = Configured::start("streaming: {limits: {max_prompt_chars: 100}}");
    let mut client = it.server.active(json!({})).await;
    client.segment(HARMFUL).await;
    let path = classifier.path.display();
    let on = format!(
        "streaming: {{limits: {{max_prompt_chars: 100}}, safety: {{enabled: true, classifier_path: {path}}}}}"
    );
    it.change(
        &on,
        &[
            "streaming.safety.classifier_path",
            "streaming.safety.enabled",
        ],
    )
    .await;
    assert_eq!(code_of_prompt(&mut client, HARMFUL).await, "prompt_blocked");
    client.segment(HARMLESS).await;
    // Another file at the same place is loaded, and what was counted stays counted.
    let bytes = fs::read(&classifier.path).unwrap();
    fs::remove_file(&classifier.path).unwrap();
    fs::write(&classifier.path, bytes).unwrap();
    it.change(&on, &["streaming.safety.classifier_path"]).await;
    assert_eq!(code_of_prompt(&mut client, HARMFUL).await, "prompt_blocked");
    assert_eq!(it.server.status().await["safety"]["blocked"], json!(2));
    it.change(
        "streaming: {limits: {max_prompt_chars: 100}}",
        &[
            "streaming.safety.classifier_path",
            "streaming.safety.enabled",
        ],
    )
    .await;
    client.segment(HARMFUL).await;
}

#[tokio::test]
async fn the_level_of_the_log_is_set_by_order_until_the_next_reload() {
    let it = Configured::start("server: {log_level: warn}");
    let said = |what: &str| it.server.log().contains(what);
    drop(it.server.active(json!({})).await);
    let (status, body) = it
        .server
        .put("/v1/log-level", "info,fastvideo_supervisor_core=debug")
        .await;
    let expected = json!({"log_level": "info,fastvideo_supervisor_core=debug"});
    assert_eq!((status, body), (200, expected));
    it.server.sessions(0).await;
    assert!(!said("session opened"), "{}", it.server.log());
    drop(it.server.active(json!({})).await);
    until("the session is logged", async || {
        said("session opened").then_some(())
    })
    .await;
    let (status, body) = it.server.put("/v1/log-level", "lound").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (422, &json!("bad_log_level"))
    );
    it.server.signal(Signal::SIGHUP);
    until("it is reloaded", async || {
        said("reloaded outcome=\"ok\"").then_some(())
    })
    .await;
    let before = it.server.log().matches("session opened").count();
    it.server.active(json!({})).await.segment("a red fox").await;
    assert_eq!(it.server.log().matches("session opened").count(), before);
}

#[tokio::test]
async fn pages_of_a_site_may_read_from_the_reload_on_that_allows_it_to_the_one_that_does_not() {
    const SITE: &str = "https://video.example.org";
    const OTHER: &str = "https://other.example.org";
    let it = Configured::start("server: {allowed_origins: [\"https://first.example.org\"]}");
    let allowed = async |path: &str, origin: &str| {
        let asked = Request::get(path).header("origin", origin);
        let answer = it.server.send(asked.body(String::new()).unwrap()).await;
        let header = answer.headers().get("access-control-allow-origin");
        header.map(|origin| origin.to_str().unwrap().to_owned())
    };
    let (film, sessions) = ("/v1/sessions/a/film", "/v1/sessions");
    assert_eq!(allowed(film, SITE).await, None);
    let on = format!("server: {{allowed_origins: [\"{SITE}\"]}}");
    it.change(&on, &["server.allowed_origins"]).await;
    for path in [film, sessions] {
        assert_eq!(allowed(path, SITE).await.as_deref(), Some(SITE), "{path}");
        assert_eq!(allowed(path, OTHER).await, None, "{path}");
    }
    // Without the key, any page may stream and see films.
    it.change("server: {grace_seconds: 30}", &["server.allowed_origins"])
        .await;
    assert_eq!(allowed(film, OTHER).await.as_deref(), Some(OTHER));
    assert_eq!(allowed(sessions, SITE).await, None);
}

#[tokio::test]
async fn callers_are_asked_for_keys_from_the_reload_on_that_names_a_file_of_them() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    let hash = KeyHash::of("fvk_an-operators-key");
    let text = format!("keys:\n  - {{id: ops, role: admin, sha256: {hash}}}\n");
    fs::write(keys.path(), text).unwrap();
    let it = Configured::start("streaming: {limits: {max_prompt_chars: 100}}");
    let mut before = it.server.active(json!({})).await;
    assert_eq!(it.server.get("/v1/sessions").await.0, 200);
    let asks = format!(
        "streaming: {{limits: {{max_prompt_chars: 100}}}}\nserver: {{auth: {{keys_file: {}}}}}",
        keys.path().display()
    );
    it.change(&asks, &["server.auth.keys_file"]).await;
    assert_eq!(it.server.get("/v1/sessions").await.0, 401);
    // Whoever was let in without one stays.
    before.segment("a red fox").await;
    // Once the file is left out nobody is asked any more. Until then it takes a key to reload.
    let open = "streaming: {limits: {max_prompt_chars: 100}}";
    assert_eq!(it.reload(open).await.0, 401);
    let asked = Request::post("/v1/reload").header("authorization", "Bearer fvk_an-operators-key");
    let answer = it.server.send(asked.body(String::new()).unwrap()).await;
    assert_eq!(answer.status(), 200, "{}", answer.body());
    it.server.active(json!({})).await.segment("a red fox").await;
}

#[tokio::test]
async fn reloads_that_are_asked_for_at_once_are_done_one_after_the_other() {
    let it = Configured::start("streaming: {limits: {max_prompt_chars: 100}}");
    let config = |chars| format!("streaming: {{limits: {{max_prompt_chars: {chars}}}}}");
    it.change(&config(200), &["streaming.limits.max_prompt_chars"])
        .await;
    fs::write(it.file(), format!("{}{SMALL_FORMAT}", config(300))).unwrap();
    let outcomes = join_all((0..20).map(|_| it.server.post("/v1/reload"))).await;
    let named = |(status, body): &(u16, Value)| {
        assert_eq!(*status, 200, "{body}");
        body["changed"].as_array().unwrap().len()
    };
    assert_eq!(outcomes.iter().map(named).sum::<usize>(), 1, "{outcomes:?}");
    let mut client = it.server.open(json!({})).await;
    let start = client.until_type("ltx2_stream_start").await;
    assert_eq!(start["limits"]["max_prompt_chars"], json!(300));
}

#[tokio::test]
async fn a_router_reads_its_file_again_at_sighup() {
    const SITE: &str = "https://video.example.org";
    let server = Server::start(&["--gpus=1"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("router.yaml");
    fs::write(&file, "server: {allowed_origins: []}\n").unwrap();
    let replicas = json!([{"url": format!("http://{}", server.address)}]).to_string();
    let own = ["router", "--config", file.to_str().unwrap(), "--replicas"];
    let router = Server::spawn(command().args([&own[..], &[&replicas], QUICK].concat()));
    let allowed = async || {
        let asked = Request::get("/v1/sessions").header("origin", SITE);
        let answer = router.send(asked.body(String::new()).unwrap()).await;
        answer.headers().contains_key("access-control-allow-origin")
    };
    assert!(!allowed().await);
    let said = |what: &str| router.log().contains(what);
    fs::write(&file, "server: {allowed_origins: nonsense}\n").unwrap();
    router.signal(Signal::SIGHUP);
    until("it is refused", async || {
        said("everything stays as it was").then_some(())
    })
    .await;
    assert!(said("server.allowed_origins"), "{}", router.log());
    fs::write(
        &file,
        format!("server: {{allowed_origins: [\"{SITE}\"]}}\n"),
    )
    .unwrap();
    router.signal(Signal::SIGHUP);
    until("the site is allowed", async || {
        allowed().await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_router_reads_its_file_again_and_sets_its_log_by_order() {
    let server = Server::start(&["--gpus=1"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("router.yaml");
    let write = |config: &str| fs::write(&file, config).unwrap();
    write("server: {log_level: info}\n");
    let replicas = json!([{"url": format!("http://{}", server.address)}]).to_string();
    let own = ["router", "--config", file.to_str().unwrap(), "--replicas"];
    let args = [&own[..], &[&replicas, "--server.allowed_hosts=*"], QUICK].concat();
    let router = Server::spawn(command().args(args));
    assert_eq!(router.status().await.get("last_reload"), None);

    write("server: {log_level: info, allowed_origins: nonsense}\n");
    let (status, body) = router.post("/v1/reload").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (422, &json!("not_reloaded"))
    );
    assert_eq!(
        router.status().await["last_reload"]["outcome"],
        json!("refused")
    );

    write(
        "server: {log_level: info, allowed_origins: [\"https://video.example.org\"]}\nrouter: {zone: a}\n",
    );
    let (status, body) = router.post("/v1/reload").await;
    let expected =
        json!({"changed": ["server.allowed_origins"], "pending_restart": ["router.zone"]});
    assert_eq!((status, &body), (200, &expected));
    let last = router.status().await["last_reload"].clone();
    assert_eq!(last["outcome"], json!("ok"));
    assert_eq!(last["changed"], expected["changed"]);
    assert_eq!(last["pending_restart"], expected["pending_restart"]);

    let logged = |path: &str| router.log().contains(&format!("route=\"{path}\""));
    router.get("/healthz").await;
    assert!(!logged("/healthz"), "{}", router.log());
    let (status, body) = router.put("/v1/log-level", "info,access=debug").await;
    assert_eq!(
        (status, body),
        (200, json!({"log_level": "info,access=debug"}))
    );
    until("requests are logged", async || {
        router.get("/healthz").await;
        logged("/healthz").then_some(())
    })
    .await;
    let (status, body) = router.put("/v1/log-level", "lound").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (422, &json!("bad_log_level"))
    );

    // Without keys, orders are taken from this machine alone.
    for (method, path) in [("POST", "/v1/reload"), ("PUT", "/v1/log-level")] {
        let order = Request::builder().method(method).uri(path);
        let order = order.header("host", "video.example.org");
        let answer = router.send(order.body(String::new()).unwrap()).await;
        assert_eq!(answer.status(), 403, "{path}: {}", answer.body());
        assert!(answer.body().contains("local_only"), "{}", answer.body());
    }
}
