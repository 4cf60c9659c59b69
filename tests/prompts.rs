//! Prompts that a language model enhances, extends and rewrites, with a real HTTP server in its place.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::harness::{Client, Heard, SMALL, Server, command, merge, until};
use crate::provider::{Provider, Reply};

/// Arguments for a supervisor with one GPU and this provider.
pub(crate) fn with(provider: &Provider, more: &[&str]) -> Vec<String> {
    let base_url = format!("--streaming.prompt.base_url={}", provider.base_url);
    let fixed = [
        "--gpus=1",
        "--streaming.prompt.enabled=true",
        "--streaming.prompt.provider=openai_compatible",
        "--streaming.prompt.model=test-model",
        &base_url,
    ];
    (fixed.iter().chain(more))
        .map(|&arg| arg.to_owned())
        .collect()
}

fn start(provider: &Provider, more: &[&str]) -> Server {
    let args = with(provider, more);
    Server::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn toggle(kind: &str, enabled: bool) -> Value {
    json!({"type": format!("{kind}_updated"), "enabled": enabled})
}

/// The `ltx2_segment_start` of the next segment, which is taken whole.
async fn next_start(client: &mut Client) -> Value {
    let segment = client.collect_until("ltx2_segment_complete").await;
    segment.only("ltx2_segment_start").clone()
}

#[tokio::test]
async fn a_users_prompt_is_enhanced_and_shown_with_the_original() {
    let provider = Provider::shouting().await;
    let server = start(&provider, &[]);
    let mut client = server.open(json!({"enhancement_enabled": true})).await;
    let features = client.until_type("ltx2_stream_start").await["features"].clone();
    for feature in ["enhancement", "auto_extension", "rewrite"] {
        assert_eq!(features[feature], true);
    }
    client.prompt("a fox").await;
    let enhanced = client.expect("prompt_enhanced").await;
    assert!(enhanced["latency_ms"].as_f64().unwrap() > 0.0);
    let mut expected = json!({
        "type": "prompt_enhanced", "original_prompt": "a fox", "prompt": "A FOX", "provider": "openai_compatible",
        "fallback_used": false,
    });
    merge(&mut expected, json!({"latency_ms": enhanced["latency_ms"]}));
    assert_eq!(enhanced, expected);
    let start = next_start(&mut client).await;
    assert_eq!(
        (
            &start["prompt"],
            &start["original_prompt"],
            &start["source"]
        ),
        (&json!("A FOX"), &json!("a fox"), &json!("user"))
    );
    // The next prompt is used as it is written.
    client.send(toggle("enhancement", false)).await;
    client.prompt("a hare").await;
    let start = next_start(&mut client).await;
    assert_eq!(
        (&start["prompt"], &start["original_prompt"]),
        (&json!("a hare"), &Value::Null)
    );
}

/// Holds its answer to each prompt until a test lets it go.
#[derive(Clone, Debug, Default)]
struct Holding(Arc<Mutex<HashMap<String, Arc<Semaphore>>>>);

impl Holding {
    async fn provider(&self) -> Provider {
        let holding = self.clone();
        Provider::start(move |_, asked| {
            let shouted = Reply::Say(asked.user().to_uppercase());
            Reply::Held(holding.gate(asked.user()), Box::new(shouted))
        })
        .await
    }

    fn let_go(&self, prompt: &str) {
        self.gate(prompt).add_permits(1);
    }

    fn gate(&self, prompt: &str) -> Arc<Semaphore> {
        let mut gates = self.0.lock().unwrap();
        let gate = gates.entry(prompt.to_owned());
        gate.or_insert_with(|| Arc::new(Semaphore::new(0))).clone()
    }
}

#[tokio::test]
async fn curated_prompts_are_enhanced_a_few_at_a_time_and_a_segment_waits_for_its_own_only() {
    let holding = Holding::default();
    let provider = holding.provider().await;
    let server = start(&provider, &["--streaming.prompt.max_parallel=2"]);
    let mut client = server
        .active(json!({
            "curated_prompts": ["a", "b", "c"], "enhancement_enabled": true, "loop_generation_enabled": true,
        }))
        .await;
    provider.asked_times(2).await;
    assert_eq!(client.so_far().await, [], "the first one waits");
    assert_eq!(provider.asked().len(), 2);

    holding.let_go("a");
    assert_eq!(client.expect("prompt_enhanced").await["prompt"], "A");
    let start = next_start(&mut client).await;
    assert_eq!(
        (
            &start["prompt"],
            &start["original_prompt"],
            &start["source"]
        ),
        (&json!("A"), &json!("a"), &json!("curated"))
    );
    provider.asked_times(3).await;
    holding.let_go("c");
    assert_eq!(client.expect("prompt_enhanced").await["prompt"], "C");
    assert_eq!(client.so_far().await, [], "the second one waits");
    holding.let_go("b");
    client.expect("prompt_enhanced").await;
    for prompt in ["B", "C", "A"] {
        assert_eq!(next_start(&mut client).await["prompt"], prompt);
    }
    assert_eq!(provider.asked().len(), 3, "each once");
}

#[tokio::test]
async fn requests_keep_their_order_while_their_prompts_are_written() {
    let holding = Holding::default();
    let provider = holding.provider().await;
    let server = start(&provider, &[]);
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    client.prompt("first").await;
    client.prompt("second").await;
    provider.asked_times(2).await;
    holding.let_go("second");
    client.expect("prompt_enhanced").await;
    assert_eq!(client.so_far().await, []);
    holding.let_go("first");
    client.expect("prompt_enhanced").await;
    for prompt in ["FIRST", "SECOND"] {
        assert_eq!(next_start(&mut client).await["prompt"], prompt);
    }
}

#[tokio::test]
async fn what_follows_a_segment_is_written_while_it_runs() {
    let provider = Provider::start(|before, _| Reply::Say(format!("part {before}"))).await;
    let slow = "--generator.synthetic.step_ms=200";
    let server = start(&provider, &[slow, "--streaming.generation_segment_cap=4"]);
    let mut client = server.active(json!({"auto_extension_enabled": true})).await;
    assert_eq!(client.so_far().await, [], "there is nothing to go on from");
    client.prompt("once").await;
    client.until_type("step_complete").await;
    provider.asked_times(1).await;
    client.until_type("step_complete").await;
    client.collect_until("ltx2_segment_complete").await;
    for part in ["part 0", "part 1"] {
        let start = next_start(&mut client).await;
        assert_eq!(
            (&start["prompt"], &start["source"]),
            (&json!(part), &json!("auto_extension"))
        );
    }
    assert_eq!(next_start(&mut client).await["prompt"], "part 2");
    client.expect("ltx2_stream_complete").await;
    assert_eq!(
        provider.asked().len(),
        3,
        "nothing follows the last segment"
    );
    assert_eq!(provider.asked()[2].user(), "1. once\n2. part 0\n3. part 1");
}

#[tokio::test]
async fn a_request_goes_before_what_was_written_and_a_pause_holds_it() {
    let provider = Provider::start(|before, _| Reply::Say(format!("part {before}"))).await;
    let server = start(&provider, &["--generator.synthetic.step_ms=100"]);
    let mut client = server.active(json!({"auto_extension_enabled": true})).await;
    client.prompt("once").await;
    client.until_type("step_complete").await;
    provider.asked_times(1).await;
    client.prompt("user").await;
    let pause = |paused| json!({"type": "generation_paused_updated", "paused": paused});
    assert_eq!(next_start_after(&mut client).await["prompt"], "user");
    provider.asked_times(2).await;
    assert_eq!(provider.asked()[1].user(), "1. once\n2. user");
    client.send(pause(true)).await;
    client.collect_until("ltx2_segment_complete").await;
    assert_eq!(client.so_far().await, []);
    client.send(pause(false)).await;
    let start = client.expect("ltx2_segment_start").await;
    assert_eq!(start["prompt"], "part 1");
    client.send(toggle("auto_extension", false)).await;
    client.collect_until("ltx2_segment_complete").await;
    assert_eq!(client.so_far().await, [], "it is switched off");
}

/// The start of the segment after the running one.
async fn next_start_after(client: &mut Client) -> Value {
    client.collect_until("ltx2_segment_complete").await;
    client.until_type("ltx2_segment_start").await
}

#[tokio::test]
async fn without_an_answer_prompts_are_used_as_they_are() {
    let provider = Provider::always(|| Reply::Status(500)).await;
    let server = start(&provider, &["--streaming.generation_segment_cap=2"]);
    let mut client = server
        .active(json!({"enhancement_enabled": true, "auto_extension_enabled": true}))
        .await;
    client.prompt("a fox").await;
    let expected = json!({
        "type": "prompt_fallback", "original_prompt": "a fox", "reason": "the language model failed (HTTP 500)",
    });
    assert_eq!(client.next().await, Heard::Text(expected));
    let first = client.collect_until("ltx2_segment_complete").await;
    let start = first.only("ltx2_segment_start");
    assert_eq!(
        (&start["prompt"], &start["original_prompt"]),
        (&json!("a fox"), &Value::Null)
    );
    assert_eq!(first.only("prompt_fallback")["original_prompt"], "a fox");
    let start = next_start(&mut client).await;
    assert_eq!(
        (&start["prompt"], &start["source"]),
        (&json!("a fox"), &json!("auto_extension"))
    );
}

#[tokio::test]
async fn a_session_does_not_time_out_while_its_prompt_is_written() {
    let provider = Provider::start(|_, asked| {
        let wait = std::time::Duration::from_millis(1500);
        Reply::After(wait, Box::new(Reply::Say(asked.user().to_uppercase())))
    })
    .await;
    let server = start(&provider, &["--streaming.session_timeout_seconds=1"]);
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    client.prompt("a fox").await;
    client.expect("prompt_enhanced").await;
    assert_eq!(next_start(&mut client).await["prompt"], "A FOX");
    client.expect("idle_warning").await;
    client.expect("session_timeout").await;
}

#[tokio::test]
async fn prompts_are_rewritten_on_request() {
    let holding = Arc::new(Semaphore::new(0));
    let gate = holding.clone();
    let provider = Provider::start(move |before, _| match before {
        0 => Reply::Say("1. a hare\n2. a wolf\n3. an owl".to_owned()),
        1 => Reply::Status(400),
        _ => Reply::Held(gate.clone(), Box::new(Reply::Say("a bear".to_owned()))),
    })
    .await;
    let server = start(&provider, &[]);
    let mut client = server.active(json!({})).await;
    let rewrite = |count: u32| json!({"type": "rewrite_seed_prompts", "seed_prompt": "a fox", "count": count});
    client.send(rewrite(2)).await;
    let rewritten = client.expect("seed_prompts_rewritten").await;
    assert_eq!(rewritten["seed_prompt"], "a fox");
    assert_eq!(rewritten["alternatives"], json!(["a hare", "a wolf"]));
    assert_eq!(rewritten["model"], "test-model");

    client.send(rewrite(3)).await;
    let error = client.expect("error").await;
    assert_eq!(error["code"], "upstream_timeout");
    for (message, expected) in [
        (rewrite(0), "`count` must be from 1 to 10, got 0"),
        (rewrite(11), "`count` must be from 1 to 10, got 11"),
        (
            json!({"type": "rewrite_seed_prompts", "seed_prompt": " "}),
            "`seed_prompt` is empty",
        ),
    ] {
        client.send(message).await;
        assert_eq!(client.expect("error").await["message"], expected);
    }
    for _ in 0..4 {
        client.send(rewrite(1)).await;
    }
    provider.asked_times(6).await;
    client.send(rewrite(1)).await;
    let error = client.expect("error").await;
    assert!(error["message"].as_str().unwrap().contains('4'), "{error}");
    client.segment("meanwhile").await;
    holding.add_permits(4);
    for _ in 0..4 {
        let rewritten = client.expect("seed_prompts_rewritten").await;
        assert_eq!(rewritten["alternatives"], json!(["a bear"]));
    }
}

#[tokio::test]
async fn a_session_hears_of_its_own_prompts_only() {
    let holding = Holding::default();
    let provider = holding.provider().await;
    let server = start(&provider, &["--sessions-per-gpu=2"]);
    let opening = json!({"enhancement_enabled": true});
    let mut mine = server.active(opening.clone()).await;
    let mut theirs = server.active(opening).await;
    mine.prompt("mine").await;
    theirs.prompt("theirs").await;
    provider.asked_times(2).await;
    holding.let_go("theirs");
    assert_eq!(theirs.expect("prompt_enhanced").await["prompt"], "THEIRS");
    theirs.collect_until("ltx2_segment_complete").await;
    assert_eq!(mine.so_far().await, []);
    holding.let_go("mine");
    assert_eq!(mine.expect("prompt_enhanced").await["prompt"], "MINE");
    assert_eq!(next_start(&mut mine).await["prompt"], "MINE");
    assert_eq!(theirs.so_far().await, []);
    for asked in provider.asked() {
        let body = asked.body.to_string();
        assert!(
            !(body.contains("mine") && body.contains("theirs")),
            "{body}"
        );
    }
}

#[tokio::test]
async fn providers_stand_in_for_each_other_and_status_shows_how_they_are() {
    let bad = Provider::always(|| Reply::Status(503)).await;
    let good = Provider::shouting().await;
    let list = json!([
        {"provider": "cerebras", "base_url": bad.base_url},
        {"provider": "groq", "base_url": good.base_url, "api_key_env": "OTHER_KEY"},
    ]);
    let mut command = command();
    command
        .args(SMALL)
        .args([
            "--gpus=1",
            "--log-level=info,fastvideo_supervisor_core=trace,reqwest=trace,hyper_util=trace",
            "--streaming.prompt.enabled=true",
        ])
        .args([
            "--streaming.prompt.breaker_failures=2",
            "--streaming.prompt.providers",
        ])
        .arg(list.to_string())
        .env("CEREBRAS_API_KEY", "sk-secret-1")
        .env("OTHER_KEY", "sk-secret-2");
    let server = Server::spawn(&mut command);
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    for prompt in ["one fox", "two foxes", "three foxes"] {
        client.prompt(prompt).await;
        let enhanced = client.expect("prompt_enhanced").await;
        assert_eq!(
            (&enhanced["provider"], &enhanced["fallback_used"]),
            (&json!("groq"), &json!(true))
        );
        client.collect_until("ltx2_segment_complete").await;
    }
    assert_eq!(bad.asked().len(), 2, "it is left alone");
    assert_eq!(bad.asked()[0].key.as_deref(), Some("sk-secret-1"));
    assert_eq!(good.asked()[0].key.as_deref(), Some("sk-secret-2"));
    let prompt = server.status().await["prompt"].clone();
    let [first, second] = [&prompt["providers"][0], &prompt["providers"][1]];
    assert_eq!(
        (&first["provider"], &first["state"]),
        (&json!("cerebras"), &json!("resting"))
    );
    assert_eq!(
        (&first["calls"], &first["failed_calls"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(
        first["last_failure"]["reason"],
        "the language model failed (HTTP 503)"
    );
    assert_eq!(
        (&second["state"], &second["calls"]),
        (&json!("ok"), &json!(3))
    );
    assert_eq!(prompt["cached"], 3);
    assert!(!server.status().await.to_string().contains("secret"));
    let log = server.log();
    assert!(log.contains("language model did not answer"), "{log}");
    assert!(!log.contains("secret") && !log.contains("foxes"), "{log}");
}

#[tokio::test]
async fn the_next_provider_is_asked_where_one_has_no_key_or_only_thinks() {
    let thinking = Provider::always(|| Reply::Say("<think>\nThe light?".to_owned())).await;
    let good = Provider::start(|_, asked| {
        Reply::Say(format!(
            "<think>light?</think>{}",
            asked.user().to_uppercase()
        ))
    })
    .await;
    let compatible = |provider: &Provider| json!({"provider": "openai_compatible", "base_url": provider.base_url, "model": "m"});
    let keyless = json!({"provider": "groq", "api_key_env": "NO_SUCH_KEY"});
    let list = json!([keyless, compatible(&thinking), compatible(&good)]);
    let providers = format!("--streaming.prompt.providers={list}");
    let server = Server::start(&["--gpus=1", "--streaming.prompt.enabled=true", &providers]);
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    client.prompt("a fox").await;
    assert_eq!(next_start(&mut client).await["prompt"], "A FOX");
    assert_eq!(thinking.asked()[0].body["max_tokens"], 2048);
    let status = server.status().await["prompt"]["providers"].clone();
    assert_eq!(
        status[0]["last_failure"]["reason"],
        "the server has no key for the language model"
    );
    assert_eq!(
        status[1]["last_failure"]["reason"],
        "the language model gave no usable answer: it is nothing but thinking"
    );
}

#[tokio::test]
async fn a_missing_key_is_said_at_the_start_and_prompts_are_used_as_they_are() {
    let mut command = command();
    command
        .args(SMALL)
        .args([
            "--gpus=1",
            "--streaming.prompt.enabled=true",
            "--streaming.prompt.provider=groq",
        ])
        .env_remove("GROQ_API_KEY");
    let server = Server::spawn(&mut command);
    until("it is said", async || {
        (server.log())
            .contains("`GROQ_API_KEY` holds no key")
            .then_some(())
    })
    .await;
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    client.prompt("a fox").await;
    let reason = client.expect("prompt_fallback").await["reason"].clone();
    assert_eq!(reason, "the server has no key for the language model");
    assert_eq!(next_start(&mut client).await["prompt"], "a fox");
}

#[tokio::test]
async fn system_prompts_are_reloaded_by_order_and_by_sighup_and_a_broken_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &[u8]| std::fs::write(folder.path().join("enhance.txt"), text).unwrap();
    write(b"first");
    let provider = Provider::start(|_, asked| Reply::Say(asked.system().to_owned())).await;
    let dir = format!(
        "--streaming.prompt.system_prompt_dir={}",
        folder.path().display()
    );
    let server = start(&provider, &[&dir]);
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    assert_eq!(written(&mut client).await, "first");
    write(b"second");
    let (status, body) = server.post("/v1/prompts/reload").await;
    let expected = json!({
        "enhance": "file", "auto_extend": "default", "rewrite": "default", "rollout_new": "default",
        "rollout_edit": "default",
    });
    assert_eq!((status, &body), (200, &expected));
    assert_eq!(server.status().await["prompt"]["system_prompts"], expected);
    assert_eq!(written(&mut client).await, "second");

    write(b"\xff\xfe");
    let (status, body) = server.post("/v1/prompts/reload").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (422, &json!("not_reloaded"))
    );
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("enhance.txt"),
        "{body}"
    );
    assert_eq!(written(&mut client).await, "second");

    write(b"third");
    server.signal(Signal::SIGHUP);
    until("SIGHUP has reloaded", async || {
        (written(&mut client).await == "third").then_some(())
    })
    .await;
    write(b"\xff");
    server.signal(Signal::SIGHUP);
    until("it is said", async || {
        server
            .log()
            .contains("everything stays as it was")
            .then_some(())
    })
    .await;
    assert_eq!(written(&mut client).await, "third");
}

/// What a prompt becomes, which is new each time.
async fn written(client: &mut Client) -> Value {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let n = COUNT.fetch_add(1, Ordering::SeqCst);
    let segment = client.segment(&format!("prompt {n}")).await;
    segment.only("ltx2_segment_start")["prompt"].clone()
}

#[tokio::test]
async fn without_an_enhancer_there_are_no_prompts_to_reload_and_sighup_ends_nothing() {
    let server = Server::start(&["--gpus=1"]);
    let (status, body) = server.post("/v1/prompts/reload").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (409, &json!("no_enhancer"))
    );
    server.signal(Signal::SIGHUP);
    until("it is said", async || {
        server.log().contains("reloaded").then_some(())
    })
    .await;
    assert_eq!(server.status().await.get("prompt"), None);
}

/// The route for the system prompts.
const SYSTEM_PROMPTS: &str = "/prompt-system-config";

#[tokio::test]
async fn system_prompts_are_shown_and_written_to_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("rollout_edit.txt"), "edit").unwrap();
    let provider = Provider::start(|_, asked| Reply::Say(asked.system().to_owned())).await;
    let dir = format!(
        "--streaming.prompt.system_prompt_dir={}",
        folder.path().display()
    );
    let server = start(&provider, &[&dir, "--streaming.prompt.rollout.model=story"]);
    let (status, shown) = server.get(SYSTEM_PROMPTS).await;
    assert_eq!(status, 200);
    let built_in = |field: &str| {
        assert!(
            shown[field].as_str().unwrap().starts_with("You "),
            "{shown}"
        );
        assert_eq!(shown[format!("{field}_path")], Value::Null);
    };
    built_in("next_segment_system_prompt");
    built_in("auto_extension_system_prompt");
    built_in("rewrite_user_system_prompt");
    assert_eq!(shown["rewrite_window_system_prompt"], "edit");
    assert_eq!(
        shown["rewrite_window_system_prompt_path"],
        file("rollout_edit.txt").to_str().unwrap()
    );
    assert_eq!(
        (&shown["rewrite_model"], &shown["rewrite_model_options"]),
        (&json!("story"), &json!([]))
    );
    assert_eq!(shown["rewrite_temperature"], 1.0);

    let change = json!({
        "next_segment_system_prompt": "enhance", "rewrite_user_system_prompt": " new\n", "rewrite_model": "test-model",
        "rewrite_temperature": 0.5, "auto_extension_system_prompt": null,
    });
    let (status, changed) = server.call("POST", SYSTEM_PROMPTS, Some(change)).await;
    let mut expected = shown.clone();
    let path = |name: &str| file(name).to_str().unwrap().to_owned();
    merge(
        &mut expected,
        json!({
            "next_segment_system_prompt": "enhance", "next_segment_system_prompt_path": path("enhance.txt"),
            "rewrite_user_system_prompt": "new", "rewrite_user_system_prompt_path": path("rollout_new.txt"),
            "rewrite_model": "test-model", "rewrite_temperature": 0.5,
        }),
    );
    assert_eq!((status, &changed), (200, &expected));
    assert_eq!(
        std::fs::read_to_string(file("rollout_new.txt")).unwrap(),
        "new\n"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    let mut client = server.active(json!({"enhancement_enabled": true})).await;
    assert_eq!(written(&mut client).await, "enhance");

    for (change, named) in [
        (json!({"next_segment_system_prompt": " \n"}), "enhance.txt"),
        (
            json!({"rewrite_user_system_prompt": "x".repeat(65_536)}),
            "65537",
        ),
        (json!({"rewrite_model": "unheard-of"}), "unheard-of"),
        (json!({"rewrite_temperature": "hot"}), "rewrite_temperature"),
        (json!({"rewrite_prompt": "x"}), "rewrite_prompt"),
        (json!(["x"]), "JSON"),
    ] {
        let (status, body) = server.call("POST", SYSTEM_PROMPTS, Some(change)).await;
        assert_eq!(
            (status, &body["error"]["code"]),
            (400, &json!("invalid_body"))
        );
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(named), "{message}");
        assert_eq!(body["detail"], message);
    }
    assert_eq!(server.get(SYSTEM_PROMPTS).await, (200, expected));
}

#[tokio::test]
async fn without_a_folder_or_an_enhancer_system_prompts_are_only_shown() {
    let provider = Provider::shouting().await;
    for (server, model) in [
        (start(&provider, &[]), "test-model"),
        (Server::start(&["--gpus=1"]), ""),
    ] {
        let (status, shown) = server.get(SYSTEM_PROMPTS).await;
        assert_eq!((status, &shown["rewrite_model"]), (200, &json!(model)));
        assert_eq!(shown["rewrite_temperature"], 1.0);
        assert_eq!(shown["next_segment_system_prompt_path"], Value::Null);
        let change = json!({"next_segment_system_prompt": "x"});
        let (status, body) = server.call("POST", SYSTEM_PROMPTS, Some(change)).await;
        assert_eq!(
            (status, &body["error"]["code"]),
            (403, &json!("no_system_prompt_dir"))
        );
        assert_eq!(body["detail"], body["error"]["message"]);
        let change = json!({"rewrite_temperature": 0.5});
        let (status, body) = server.call("POST", SYSTEM_PROMPTS, Some(change)).await;
        assert_eq!((status, &body["rewrite_temperature"]), (200, &json!(0.5)));
    }
}
