//! Prompts that a language model writes, and those that the filter blocks.

use super::*;
use crate::harness::command;
use crate::prompts;
use crate::provider::{Provider, Reply};
use crate::safety::{self, Classifier, HARMFUL, HARMLESS};

const SECRET: &str = "sk-never-to-be-seen";

/// A server of one GPU with this language model, which wants a key.
fn serve(provider: &Provider, more: &[&str]) -> Server {
    let args = prompts::with(provider, more);
    let mut command = command();
    command.env("LLM_KEY", SECRET).args(crate::harness::SMALL);
    command.args([
        "--streaming.generation_segment_cap",
        "6",
        "--log-level=debug",
    ]);
    Server::spawn(
        command
            .args(args)
            .args(["--streaming.prompt.api_key_env", "LLM_KEY"]),
    )
}

fn rollout(prompts: &[&str]) -> String {
    json!({"id": "night", "label": "The night", "segment_prompts": prompts}).to_string()
}

/// Takes a rewrite up to the first message of its rollout. Returns `seed_prompts_updated` and `rewrite_seed_prompts_complete`.
async fn rewritten(client: &mut Client) -> (Value, Value) {
    let updated = client.until_type("seed_prompts_updated").await;
    let complete = client.until_type("rewrite_seed_prompts_complete").await;
    client.until_type("ltx2_stream_start").await;
    client.until_type("seed_prompts_reset_applied").await;
    (updated, complete)
}

#[tokio::test]
async fn a_model_writes_six_prompts_and_edits_them() {
    let six = ["a", "b", "c", "d", "e", "f"];
    let provider = Provider::start(move |before, _| match before {
        0 => Reply::Say(rollout(&six)),
        // Some models write around what they were asked for.
        _ => Reply::Say(format!(
            "Sure!\n```json\n{}\n```",
            json!({"rewritten_rollout": {"prompts": ["x", "y"]}})
        )),
    })
    .await;
    let server = serve(&provider, &[]);
    let mut client = open(
        &server,
        json!({"initial_rollout_prompt": "a fox at night", "enhancement_enabled": false}),
    )
    .await;
    let started = client.until_type("rewrite_seed_prompts_started").await;
    assert_eq!(started["model"], "test-model");
    let (updated, complete) = rewritten(&mut client).await;
    assert_eq!(updated["prompts"], json!(six));
    assert_eq!(
        (&updated["preset_id"], &updated["preset_label"]),
        (&json!("night"), &json!("The night"))
    );
    assert_eq!(
        (&updated["model"], &updated["raw_llm_output"]),
        (&json!("test-model"), &json!(rollout(&six)))
    );
    for message in [&updated, &complete] {
        assert_eq!(
            (&message["fallback_used"], &message["error"]),
            (&json!(false), &Value::Null),
            "{message}"
        );
        assert!(message["latency_ms"].as_f64().unwrap() > 0.0, "{message}");
    }
    let made = take_until(&mut client, "ltx2_stream_complete").await;
    assert_eq!(made.prompts, six);

    client
        .send(json!({"type": "rewrite_seed_prompts", "rewrite_instruction": "in rain", "prompt_window_prompts": ["a", "b"]}))
        .await;
    let (updated, _) = rewritten(&mut client).await;
    assert_eq!(updated["prompts"], json!(["x", "y"]));
    assert_eq!(updated["preset_id"], "night", "it keeps its name");
    let made = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(made.prompts, ["x", "y"]);

    let asked = provider.asked();
    let sent = |n: usize| -> Value {
        let mut message: Value = serde_json::from_str(asked[n].user()).unwrap();
        message.as_object_mut().unwrap().remove("request");
        message
    };
    let expected = json!({"mode": "new_rollout", "user_instruction": "a fox at night", "desired_segment_count": 6,
        "rollout_id_hint": "current_rollout", "rollout_label_hint": "Current rollout"});
    assert_eq!(sent(0), expected);
    let expected = json!({"mode": "edit_existing_rollout", "user_instruction": "in rain",
        "current_rollout": {"id": "night", "label": "The night", "segment_prompts": ["a", "b"]}});
    assert_eq!(sent(1), expected);
    assert_eq!(
        asked[0].body["response_format"],
        json!({"type": "json_object"})
    );
    assert_eq!(asked[0].key.as_deref(), Some(SECRET));
    assert_ne!(asked[0].system(), asked[1].system());
    assert!(!server.log().contains(SECRET), "the key is in the log");
}

#[tokio::test]
async fn an_answer_that_is_none_leaves_the_users_own_words() {
    // Prompts of their own choose the answer.
    let provider = Provider::start(|_, asked| match asked.user() {
        user if user.contains("too few") => Reply::Say(rollout(&["only one"])),
        user if user.contains("prose") => Reply::Say("I would rather not.".to_owned()),
        user if user.contains("refused") => Reply::Status(401),
        user if user.contains("late") => Reply::After(
            Duration::from_secs(30),
            Box::new(Reply::Say(rollout(&["x"; 6]))),
        ),
        _ => Reply::Cut,
    })
    .await;
    let server = serve(
        &provider,
        &[
            "--streaming.prompt.timeout_ms=500",
            "--streaming.prompt.breaker_failures=1000",
        ],
    );
    for words in ["too few", "prose", "refused", "late", "cut off"] {
        let mut client = open(
            &server,
            json!({"initial_rollout_prompt": words, "enhancement_enabled": false}),
        )
        .await;
        let (updated, complete) = rewritten(&mut client).await;
        assert_eq!(updated["prompts"], json!([words; 6].to_vec()));
        for message in [&updated, &complete] {
            assert_eq!(message["fallback_used"], true, "{message}");
            assert!(!message["error"].as_str().unwrap().is_empty(), "{message}");
        }
        let first = client.until_type("ltx2_segment_start").await;
        assert_eq!(first["prompt"], words);
        client.send(json!({"type": "leave"})).await;
        client.closed().await;
    }
    assert!(!server.log().contains(SECRET), "the key is in the log");
}

#[tokio::test]
async fn a_project_that_ends_takes_its_rewrite_with_it() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let held = gate.clone();
    let provider = Provider::start(move |before, _| match before {
        0 => Reply::Held(held.clone(), Box::new(Reply::Say(rollout(&["late"; 6])))),
        _ => Reply::Say(rollout(&["x"; 6])),
    })
    .await;
    let server = serve(&provider, &[]);
    let mut client = open(
        &server,
        json!({"initial_rollout_prompt": "a fox", "enhancement_enabled": false}),
    )
    .await;
    client.until_type("rewrite_seed_prompts_started").await;
    provider.asked_times(1).await;
    client
        .send(json!({"type": "rewrite_seed_prompts", "rewrite_instruction": "twice"}))
        .await;
    client.until_type("error").await;
    client
        .send(json!({"type": "end_project_keep_session"}))
        .await;
    client.until_type("project_idle").await;
    gate.add_permits(1);
    client
        .send(json!({"type": "project_init_v1", "initial_rollout_prompt": "a hill"}))
        .await;
    let (updated, _) = rewritten(&mut client).await;
    assert_eq!(updated["prompts"], json!(["x"; 6].to_vec()));
    let made = take_until(&mut client, "ltx2_stream_complete").await;
    assert_eq!(made.prompts, ["x"; 6]);
}

#[tokio::test]
async fn a_blocked_text_leaves_the_project_and_the_next_one_begins_it() {
    let classifier = Classifier::train();
    let flags = safety::with(&classifier.path);
    let server = Server::start(&[ONE_GPU, &flags.each_ref().map(String::as_str)].concat());
    let mut client = open(&server, json!({"initial_rollout_prompt": HARMFUL})).await;
    let kinds = kinds_until(&mut client, "error").await;
    let ends = [
        "rewrite_seed_prompts_complete",
        "ltx2_stream_complete",
        "error",
    ]
    .map(str::to_owned);
    assert!(kinds.ends_with(&ends), "{kinds:?}");
    silent(&mut client).await;
    client
        .send(json!({"type": "rewrite_seed_prompts", "rewrite_instruction": HARMLESS, "prompt_window_prompts": []}))
        .await;
    let (updated, _) = rewritten(&mut client).await;
    assert_eq!(updated["prompts"], json!([HARMLESS; 6].to_vec()));
    let made = take_until(&mut client, "ltx2_stream_complete").await;
    assert_eq!(made.prompts, [HARMLESS; 6]);

    // An edit that is blocked changes nothing.
    client
        .send(json!({"type": "rewrite_seed_prompts", "rewrite_instruction": HARMFUL}))
        .await;
    let kinds = kinds_until(&mut client, "error").await;
    assert_eq!(
        kinds,
        [
            "rewrite_seed_prompts_started",
            "rewrite_seed_prompts_complete",
            "error"
        ]
    );
    client.send(json!({"type": "rewrite_seed_prompts"})).await;
    assert_eq!(
        rewritten(&mut client).await.0["prompts"],
        json!([HARMLESS; 6].to_vec())
    );

    // Seed prompts are screened before there is a session.
    let mut blocked = open(&server, json!({"curated_prompts": [HARMLESS, HARMFUL]})).await;
    blocked.until_type("error").await;
    assert_eq!(blocked.next().await, Heard::Closed(Some(1008)));
    assert!(
        !server.log().contains(HARMFUL),
        "blocked prompts are not logged"
    );
}

#[tokio::test]
async fn prompts_of_a_later_project_and_of_a_single_clip_are_screened_too() {
    let classifier = Classifier::train();
    let flags = safety::with(&classifier.path);
    let server = Server::start(&[ONE_GPU, &flags.each_ref().map(String::as_str)].concat());
    let mut clip = open(
        &server,
        json!({"single_clip_mode": true, "initial_rollout_prompt": HARMFUL}),
    )
    .await;
    clip.until_type("error").await;
    assert_eq!(clip.next().await, Heard::Closed(Some(1008)));

    let mut client = live(&server, &[HARMLESS]).await;
    take_until(&mut client, "prompt_sources_blocked").await;
    for project in [
        json!({"curated_prompts": [HARMLESS, HARMFUL]}),
        json!({"single_clip_mode": true, "initial_rollout_prompt": HARMFUL}),
    ] {
        client
            .send(json!({"type": "end_project_keep_session"}))
            .await;
        client.until_type("project_idle").await;
        let mut opening = json!({"type": "project_init_v1"});
        crate::harness::merge(&mut opening, project);
        client.send(opening).await;
        let kinds = kinds_until(&mut client, "error").await;
        assert_eq!(
            kinds,
            [
                "ltx2_stream_start",
                "seed_prompts_reset_applied",
                "ltx2_stream_complete",
                "error"
            ]
        );
    }
    client
        .send(json!({"type": "rewrite_seed_prompts", "rewrite_instruction": HARMLESS, "prompt_window_prompts": [HARMLESS]}))
        .await;
    client.until_type("ltx2_segment_start").await;
    assert!(
        !server.log().contains(HARMFUL),
        "blocked prompts are not logged"
    );
}

#[tokio::test]
async fn answers_that_a_client_has_spoilt_do_not_make_the_model_rest() {
    let provider = Provider::start(|before, _| match before {
        0..8 => Reply::Say("no".to_owned()),
        _ => Reply::Say(rollout(&["x"; 6])),
    })
    .await;
    let server = serve(&provider, &[]);
    let mut client = open(
        &server,
        json!({"curated_prompts": vec!["a"; 6], "enhancement_enabled": false}),
    )
    .await;
    client.until_type("ltx2_stream_complete").await;
    for _ in 0..8 {
        client.send(json!({"type": "rewrite_seed_prompts", "rewrite_instruction": "b", "rewrite_window_system_prompt": "Say no."})).await;
        assert_eq!(rewritten(&mut client).await.1["fallback_used"], true);
        client.until_type("ltx2_stream_complete").await;
    }
    client
        .send(json!({"type": "rewrite_seed_prompts", "rewrite_instruction": "c"}))
        .await;
    assert_eq!(rewritten(&mut client).await.1["fallback_used"], false);
}
