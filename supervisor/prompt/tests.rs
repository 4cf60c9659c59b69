//! Against a real HTTP server that plays the provider.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::enhancer::{BreakerConfig, CircuitState, Style};
use super::provider::{self, Key, Models};
use super::*;

#[path = "../../tests/provider.rs"]
#[expect(dead_code, reason = "the whole-program tests use the rest")]
mod played;

use played::{Provider, Reply};

mod rollout;

const KEY: &str = "sk-test-1234";

fn provider(name: &str, base_url: &str) -> provider::Config {
    let model = format!("{name}-model");
    provider::Config {
        name: name.to_owned(),
        base_url: Url::parse(base_url).unwrap(),
        key: Key::Given(KEY.to_owned()),
        models: Models {
            enhance: model.clone(),
            auto_extend: model.clone(),
            rewrite: "rewriter".to_owned(),
            rollout: format!("{name}-rollouts"),
        },
        timeout: Duration::from_secs(20),
    }
}

fn config(providers: Vec<provider::Config>) -> enhancer::Config {
    let style = Style {
        temperature: 0.7,
        max_tokens: 256,
    };
    enhancer::Config {
        providers,
        system_prompt_dir: None,
        timeout: Duration::from_secs(30),
        enhance: style,
        auto_extend: style,
        rewrite: Style {
            temperature: 1.5,
            max_tokens: 1024,
        },
        rollout: Style {
            temperature: 1.0,
            max_tokens: 3000,
        },
        cache_entries: 8,
        max_prompt_chars: 4000,
        breaker: BreakerConfig {
            failures: 3,
            rest: Duration::from_secs(300),
        },
        max_parallel: 4,
    }
}

fn open(played: &[&Provider]) -> Enhancer {
    let names = ["first", "second"];
    let providers = (played.iter().zip(names)).map(|(p, name)| provider(name, &p.base_url));
    Enhancer::open(config(providers.collect())).unwrap()
}

#[tokio::test]
async fn a_prompt_is_asked_for_as_chat_completions_are() {
    let played = Provider::shouting().await;
    let enhancer = open(&[&played]);
    let answer = enhancer.enhance("a fox").await.unwrap();
    assert_eq!(answer.content, "A FOX");
    assert_eq!(
        (answer.provider.as_str(), answer.model.as_str()),
        ("first", "first-model")
    );
    assert!(!answer.fallback_used);
    let asked = &played.asked()[0];
    assert_eq!(asked.path, "/v1/chat/completions");
    assert_eq!(asked.key.as_deref(), Some(KEY));
    assert_eq!(asked.body["model"], "first-model");
    assert_eq!(asked.body["temperature"], 0.7);
    assert_eq!(asked.body["max_tokens"], 256);
    assert_eq!(asked.body["stream"], false);
    assert!(asked.system().starts_with("You write prompts"));
}

#[tokio::test]
async fn each_operation_has_its_model_and_its_style() {
    let played = Provider::always(|| Reply::Say("1. a hare\n2. a wolf".to_owned())).await;
    let enhancer = open(&[&played]);
    let rewritten = enhancer.rewrite("a fox", 1).await.unwrap();
    assert_eq!(rewritten.alternatives, ["a hare"]);
    assert_eq!(rewritten.model, "rewriter");
    let story = ["a fox".to_owned(), "a hole".to_owned()];
    let answer = enhancer.extend(&story).await.unwrap();
    assert_eq!(answer.content, "1. a hare 2. a wolf");
    let asked = played.asked();
    assert_eq!(asked[0].body["temperature"], 1.5);
    assert_eq!(asked[0].body["max_tokens"], 1024);
    assert_eq!(asked[1].user(), "1. a fox\n2. a hole");
    assert_ne!(asked[0].system(), asked[1].system());
}

#[tokio::test]
async fn connections_are_used_again() {
    let played = Provider::shouting().await;
    let enhancer = open(&[&played]);
    for n in 0..5 {
        enhancer.enhance(&format!("fox {n}")).await.unwrap();
    }
    assert_eq!((played.asked().len(), played.connections()), (5, 1));
}

#[tokio::test]
async fn what_another_provider_may_do_better_is_tried_there() {
    let replies: [fn() -> Reply; 8] = [
        || Reply::Status(500),
        || Reply::Status(429),
        || Reply::Status(302),
        || Reply::Cut,
        || Reply::Body("<html>".to_owned()),
        || Reply::Body(r#"{"choices": []}"#.to_owned()),
        || Reply::Say("\u{0}\n".to_owned()),
        || Reply::Say("x".repeat(300_000)),
    ];
    for reply in replies {
        let (bad, good) = (Provider::always(reply).await, Provider::shouting().await);
        let answer = open(&[&bad, &good]).enhance("a fox").await.unwrap();
        assert_eq!(
            (answer.content.as_str(), answer.fallback_used),
            ("A FOX", true)
        );
        assert_eq!(answer.provider, "second");
        assert_eq!((bad.asked().len(), good.asked().len()), (1, 1));
    }
}

#[tokio::test]
async fn what_would_fail_elsewhere_too_is_not_tried_again() {
    for status in [400, 422] {
        let bad = Provider::always(move || Reply::Status(status)).await;
        let good = Provider::shouting().await;
        let failure = open(&[&bad, &good]).enhance("a fox").await.unwrap_err();
        assert_eq!(failure, LlmError::Refused(status));
        assert_eq!(good.asked().len(), 0);
    }
}

#[tokio::test]
async fn a_key_an_account_or_a_model_that_is_refused_is_the_providers_trouble() {
    let withdrawn = r#"{"error": {"message": "gone", "code": "model_decommissioned"}}"#;
    let missing = r#"{"error": "model 'x' not found"}"#;
    let cases = [
        (401, "", ""),
        (402, "", ""),
        (403, "", ""),
        (404, withdrawn, "model_decommissioned"),
        (400, withdrawn, "model_decommissioned"),
        (400, missing, ""),
        (408, "", ""),
        (410, "", ""),
        (413, "", ""),
    ];
    for (status, body, code) in cases {
        let reply = move || Reply::StatusBody(status, body.to_owned());
        let (bad, good) = (Provider::always(reply).await, Provider::shouting().await);
        let answer = open(&[&bad, &good]).enhance("a fox").await.unwrap();
        assert_eq!(answer.content, "A FOX", "{status} {body}");
        assert!(answer.fallback_used);
        let alone = open(&[&bad]).enhance("a fox").await;
        let code = code.to_owned();
        assert_eq!(alone, Err(LlmError::NotServed { status, code }));
    }
}

#[tokio::test]
async fn a_provider_without_a_key_is_passed_over() {
    let good = Provider::shouting().await;
    let mut keyless = provider("first", "http://127.0.0.1:1/v1");
    keyless.key = Key::Missing("PROVIDER_KEY".to_owned());
    let second = provider("second", &good.base_url);
    let enhancer = Enhancer::open(config(vec![keyless, second])).unwrap();
    for n in 0..5 {
        let answer = enhancer.enhance(&format!("fox {n}")).await.unwrap();
        assert_eq!(
            (answer.provider.as_str(), answer.fallback_used),
            ("second", true)
        );
    }
    let first = &enhancer.status().providers[0];
    assert_eq!((first.calls, first.circuit), (0, CircuitState::Closed));
    assert_eq!(first.last_failure.as_ref().unwrap().0, LlmError::NoKey);
}

#[tokio::test]
async fn thinking_and_text_that_was_cut_off_or_declined_are_no_prompts() {
    let choice = |choice: serde_json::Value| {
        Reply::Body(serde_json::json!({ "choices": [choice] }).to_string())
    };
    let thinking = || Reply::Say("<think>\nlight?\n</think>\n\n\"A fox.\"".to_owned());
    let played = Provider::always(thinking).await;
    let answer = open(&[&played]).enhance("a fox").await.unwrap();
    assert_eq!(answer.content, "A fox.");
    let bad = [
        serde_json::json!({"message": {"content": "A fox in the"}, "finish_reason": "length"}),
        serde_json::json!({"message": {"content": "<think>light?"}}),
        serde_json::json!({"message": {"content": null, "reasoning_content": "light?"}}),
        serde_json::json!({"message": {"content": null, "refusal": "no"}}),
        serde_json::json!({"message": {"content": "A"}, "finish_reason": "content_filter"}),
    ];
    for answer in bad {
        let (body, good) = (answer.clone(), Provider::shouting().await);
        let bad = Provider::always(move || choice(body.clone())).await;
        let used = open(&[&bad, &good]).enhance("a fox").await.unwrap();
        assert_eq!(used.provider, "second", "{answer}");
        open(&[&bad]).enhance("a fox").await.unwrap_err();
    }
}

#[tokio::test]
async fn a_declined_prompt_does_not_count_against_the_provider() {
    let declined =
        || Reply::Body(r#"{"choices": [{"finish_reason": "content_filter"}]}"#.to_owned());
    let played = Provider::always(declined).await;
    let enhancer = open(&[&played]);
    for n in 0..5 {
        let failure = enhancer.enhance(&format!("fox {n}")).await;
        assert_eq!(failure, Err(LlmError::Declined));
    }
    assert_eq!(played.asked().len(), 5);
}

#[tokio::test]
async fn a_parameter_that_a_server_refuses_is_left_out_from_then_on() {
    let refuse = |param: &str, message: &str| {
        let error = serde_json::json!({"error": {"message": message, "param": param}});
        Reply::StatusBody(400, error.to_string())
    };
    let played = Provider::start(move |_, asked| {
        if asked.body.get("reasoning_effort").is_some() {
            refuse("", "unknown field `reasoning_effort`")
        } else if asked.body.get("max_tokens").is_some() {
            refuse("max_tokens", "Use 'max_completion_tokens' instead.")
        } else if asked.body.get("temperature").is_some() {
            refuse("temperature", "Only the default (1) value is supported.")
        } else {
            Reply::Say(asked.user().to_uppercase())
        }
    })
    .await;
    let mut first = provider("first", &played.base_url);
    first.models.enhance = "gpt-oss-120b".to_owned();
    let enhancer = Enhancer::open(config(vec![first])).unwrap();
    assert_eq!(enhancer.enhance("a fox").await.unwrap().content, "A FOX");
    let asked = played.asked();
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[0].body["reasoning_effort"], "low");
    assert_eq!(asked[3].body["max_completion_tokens"], 256);
    enhancer.enhance("a hare").await.unwrap();
    assert_eq!(played.asked().len(), 5);
}

/// A connection that is kept open, and whose peer is silently gone, fails a call at most once.
#[tokio::test]
async fn a_connection_whose_peer_is_gone_is_given_up() {
    let never = Arc::new(Semaphore::new(0));
    let played = Provider::start(move |before, asked| match before {
        1 => Reply::Held(never.clone(), Box::new(Reply::Status(500))),
        _ => Reply::Say(asked.user().to_uppercase()),
    })
    .await;
    let mut first = provider("first", &played.base_url);
    first.timeout = Duration::from_millis(200);
    let enhancer = Enhancer::open(config(vec![first])).unwrap();
    enhancer.enhance("a fox").await.unwrap();
    assert_eq!(enhancer.enhance("a hare").await, Err(LlmError::Timeout));
    assert_eq!(enhancer.enhance("a wolf").await.unwrap().content, "A WOLF");
    assert_eq!(played.connections(), 2);
}

#[tokio::test]
async fn without_a_key_nobody_is_asked() {
    let played = Provider::shouting().await;
    let mut keyless = provider("first", &played.base_url);
    keyless.key = Key::Missing("PROVIDER_KEY".to_owned());
    let enhancer = Enhancer::open(config(vec![keyless])).unwrap();
    assert_eq!(enhancer.enhance("a fox").await, Err(LlmError::NoKey));
    assert_eq!(played.asked().len(), 0);
}

#[tokio::test]
async fn a_provider_that_nobody_answers_for_is_a_retryable_failure() {
    let good = Provider::shouting().await;
    let gone = provider("first", "http://127.0.0.1:1/v1");
    let providers = vec![gone, provider("second", &good.base_url)];
    let answer = Enhancer::open(config(providers))
        .unwrap()
        .enhance("a fox")
        .await;
    assert!(answer.unwrap().fallback_used);
}

#[tokio::test]
async fn each_call_and_the_whole_have_their_time() {
    let never = Arc::new(Semaphore::new(0));
    let held = move || Reply::Held(never.clone(), Box::new(Reply::Status(500)));
    let (slow, good) = (Provider::always(held).await, Provider::shouting().await);
    let mut first = provider("first", &slow.base_url);
    first.timeout = Duration::from_millis(50);
    let second = provider("second", &good.base_url);
    let enhancer = Enhancer::open(config(vec![first.clone(), second])).unwrap();
    assert!(enhancer.enhance("a fox").await.unwrap().fallback_used);

    first.timeout = Duration::from_secs(20);
    let mut hurried = config(vec![first]);
    hurried.timeout = Duration::from_millis(50);
    let began = Instant::now();
    let failure = Enhancer::open(hurried).unwrap().enhance("a fox").await;
    assert_eq!(failure, Err(LlmError::Timeout));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_provider_is_asked_again_when_it_said_and_not_before() {
    let busy = |after: &'static str| Reply::StatusWith(429, "retry-after", after.to_owned());
    let played = Provider::start(move |before, asked| match before {
        0 => busy("0.3"),
        _ => Reply::Say(asked.user().to_uppercase()),
    })
    .await;
    let enhancer = open(&[&played]);
    let began = Instant::now();
    assert_eq!(enhancer.enhance("a fox").await.unwrap().content, "A FOX");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(played.asked().len(), 2);

    let played = Provider::always(move || busy("60")).await;
    let enhancer = open(&[&played]);
    let failure = enhancer.enhance("a fox").await.unwrap_err();
    assert_eq!(failure, LlmError::Busy { retry_after: None });
    assert!(enhancer.enhance("a hare").await.is_err());
    assert_eq!(played.asked().len(), 1, "not before a minute has passed");
    assert_eq!(
        enhancer.status().providers[0].circuit,
        CircuitState::RateLimited
    );
}

#[tokio::test]
async fn a_provider_that_is_always_busy_is_asked_a_few_times_only() {
    let busy = || Reply::StatusWith(429, "retry-after", "0".to_owned());
    let played = Provider::always(busy).await;
    assert!(open(&[&played]).enhance("a fox").await.is_err());
    assert_eq!(played.asked().len(), 4);
}

#[tokio::test]
async fn a_provider_that_keeps_failing_is_skipped_and_tried_again_by_one() {
    let bad = Provider::start(|before, asked| match before {
        0..3 => Reply::Status(500),
        _ => Reply::Say(asked.user().to_lowercase()),
    })
    .await;
    let good = Provider::shouting().await;
    let providers = vec![
        provider("first", &bad.base_url),
        provider("second", &good.base_url),
    ];
    let mut config = config(providers);
    config.cache_entries = 0;
    config.breaker.rest = Duration::from_millis(400);
    let enhancer = Enhancer::open(config).unwrap();
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(enhancer.enhance("a Fox").await.unwrap().content, "A FOX");
    }
    if began.elapsed() < Duration::from_millis(400) {
        assert_eq!(bad.asked().len(), 3);
        let first = &enhancer.status().providers[0];
        assert_eq!((first.circuit, first.failures), (CircuitState::Open, 3));
    }
    while enhancer.enhance("a Fox").await.unwrap().fallback_used {}
    assert!(began.elapsed() >= Duration::from_millis(400));
    assert_eq!(bad.asked().len(), 4);
    let first = &enhancer.status().providers[0];
    assert_eq!((first.circuit, first.failures), (CircuitState::Closed, 0));
    assert_eq!((first.calls, first.failed), (4, 3));
}

#[tokio::test]
async fn when_all_rest_the_answer_comes_at_once() {
    let bad = Provider::always(|| Reply::Status(503)).await;
    let enhancer = open(&[&bad]);
    for _ in 0..3 {
        assert_eq!(enhancer.enhance("a fox").await, Err(LlmError::Server(503)));
    }
    assert_eq!(
        enhancer.enhance("a fox").await,
        Err(LlmError::AllCircuitsOpen)
    );
    assert_eq!(bad.asked().len(), 3);
}

#[tokio::test]
async fn whoever_goes_away_while_trying_lets_another_one_try() {
    let held = Arc::new(Semaphore::new(0));
    let permits = held.clone();
    let played = Provider::start(move |before, _| match before {
        0 => Reply::Status(500),
        _ => Reply::Held(permits.clone(), Box::new(Reply::Say("ok".to_owned()))),
    })
    .await;
    let mut config = config(vec![provider("first", &played.base_url)]);
    config.breaker = BreakerConfig {
        failures: 1,
        rest: Duration::ZERO,
    };
    let enhancer = Enhancer::open(config).unwrap();
    enhancer.enhance("a fox").await.unwrap_err();
    tokio::select! {
        _ = enhancer.enhance("a hare") => panic!("nobody answers"),
        () = played.asked_times(2) => {}
    }
    held.add_permits(2);
    assert_eq!(enhancer.enhance("a wolf").await.unwrap().content, "ok");
}

#[tokio::test]
async fn control_characters_of_an_answer_are_left_out() {
    let played = Provider::always(|| Reply::Say("a\u{0} \u{1b}fox\r\n".to_owned())).await;
    let answer = open(&[&played]).enhance("x").await.unwrap();
    assert_eq!(answer.content, "a fox");
}

#[tokio::test]
async fn an_answer_that_is_no_prompt_of_the_allowed_length_is_not_used() {
    let played = Provider::always(|| Reply::Say("x".repeat(4001))).await;
    let failure = open(&[&played]).enhance("x").await.unwrap_err();
    assert_eq!(failure, LlmError::Unusable("it is too long"));
}

#[tokio::test]
async fn identical_prompts_are_asked_for_once() {
    let played = Provider::shouting().await;
    let enhancer = open(&[&played]);
    let first = enhancer.enhance("a fox").await.unwrap();
    let second = enhancer.enhance("a fox").await.unwrap();
    assert_eq!(
        (second.content, second.latency),
        (first.content, Duration::ZERO)
    );
    enhancer.enhance("a Fox").await.unwrap();
    assert_eq!(played.asked().len(), 2);
    assert_eq!(enhancer.status().cache_hits, 1);
}

#[tokio::test]
async fn system_prompts_are_reloaded_all_or_none_while_requests_run() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("enhance.txt", b"old enhance");
    write("rewrite.txt", b" \n");
    let held = Arc::new(Semaphore::new(0));
    let permits = held.clone();
    let played = Provider::start(move |before, asked| match before {
        0 => Reply::Held(permits.clone(), Box::new(Reply::Say("held".to_owned()))),
        _ => Reply::Say(asked.system().to_owned()),
    })
    .await;
    let mut config = config(vec![provider("first", &played.base_url)]);
    config.system_prompt_dir = Some(folder.path().to_owned());
    let prompts = Prompts::open(super::Config {
        enhancer: Some(config),
        safety: None,
    })
    .unwrap();
    let enhancer = || prompts.enhancer().unwrap();
    let reload = || prompts.reload_instructions();

    let before = enhancer();
    let running = tokio::join!(before.enhance("a fox"), async {
        played.asked_times(1).await;
        write("enhance.txt", b"new enhance\n");
        write("auto_extend.txt", b"new extend");
        reload().unwrap();
        held.add_permits(1);
    })
    .0;
    assert_eq!(running.unwrap().content, "held");
    assert_eq!(played.asked()[0].system(), "old enhance");
    let story = ["a fox".to_owned()];
    let now = async || {
        [
            enhancer().enhance("a fox").await.unwrap().content,
            enhancer().extend(&story).await.unwrap().content,
        ]
    };
    assert_eq!(
        now().await,
        ["new enhance", "new extend"],
        "the cache is empty"
    );

    write("auto_extend.txt", b"newer extend");
    write("enhance.txt", b"\xff");
    let broken = reload().unwrap_err();
    assert!(broken.to_string().contains("enhance.txt"), "{broken}");
    assert_eq!(now().await, ["new enhance", "new extend"]);
    write("enhance.txt", &[b'x'; 70_000]);
    assert!(reload().is_err());
    std::fs::remove_file(folder.path().join("enhance.txt")).unwrap();
    reload().unwrap();
    let [enhance, extend] = now().await;
    assert!(enhance.starts_with("You write prompts"), "{enhance}");
    assert_eq!(extend, "newer extend");
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_an_error() {
    let mut config = config(vec![provider("first", "http://127.0.0.1:1")]);
    config.system_prompt_dir = Some(PathBuf::from("/nonexistent"));
    let error = Enhancer::open(config).unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}
