//! Rollouts, and the system prompts that operators set.

use std::fmt;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber;
use tracing::span;
use tracing::{Event, Metadata, Subscriber};

use super::*;

fn request(current: &[&str], count: usize) -> RolloutRequest {
    let prompts = current.iter().map(|&prompt| prompt.to_owned()).collect();
    RolloutRequest {
        current: (!current.is_empty()).then(|| RolloutPrompts {
            id: "story".to_owned(),
            label: "A story".to_owned(),
            prompts,
        }),
        instruction: "a fox".to_owned(),
        count,
        model: None,
        temperature: None,
        system_prompt: None,
        id_hint: None,
        label_hint: None,
    }
}

fn prompts_of(played: &[&Provider], folder: Option<&Path>) -> Prompts {
    let names = ["first", "second"];
    let providers = (played.iter().zip(names)).map(|(p, name)| provider(name, &p.base_url));
    let mut enhancer = config(providers.collect());
    enhancer.system_prompt_dir = folder.map(Path::to_owned);
    Prompts::open(super::Config {
        enhancer: Some(enhancer),
        safety: None,
    })
    .unwrap()
}

/// An answer with so many prompts.
fn answer(count: usize) -> String {
    let prompts: Vec<String> = (1..=count).map(|n| format!("Shot {n}.")).collect();
    json!({"id": "fox", "label": "The Fox", "segment_prompts": prompts}).to_string()
}

#[tokio::test]
async fn a_rollout_is_asked_for_in_json() {
    let played = Provider::always(|| Reply::Say(answer(2))).await;
    let prompts = prompts_of(&[&played], None);
    let written = prompts.rollout(request(&[], 2)).await.unwrap();
    assert_eq!(written.prompts, ["Shot 1.", "Shot 2."]);
    assert_eq!(
        (written.id.as_deref(), written.label.as_deref()),
        (Some("fox"), Some("The Fox"))
    );
    assert_eq!(written.raw, answer(2));
    assert_eq!(
        (written.provider.as_str(), written.model.as_str()),
        ("first", "first-rollouts")
    );
    assert!(!written.fallback_used && written.latency > Duration::ZERO);
    let edited = prompts.rollout(request(&["a hare", "a wolf"], 2)).await;
    assert_eq!(edited.unwrap().prompts, written.prompts);
    let asked = played.asked();
    for asked in &asked {
        let body = &asked.body;
        assert_eq!(body["model"], "first-rollouts");
        assert_eq!(body["temperature"], 1.0);
        assert_eq!(body["max_tokens"], 3000);
        assert_eq!(body["response_format"], json!({"type": "json_object"}));
        assert!(asked.system().contains("JSON"));
    }
    assert_ne!(asked[0].system(), asked[1].system());
    let user = |n: usize| serde_json::from_str::<Value>(asked[n].user()).unwrap();
    let (new, edit) = (user(0), user(1));
    assert_eq!(
        (&new["mode"], &new["desired_segment_count"]),
        (&json!("new_rollout"), &json!(2))
    );
    assert_eq!(edit["mode"], "edit_existing_rollout");
    assert_eq!(
        edit["current_rollout"],
        json!({"id": "story", "label": "A story", "segment_prompts": ["a hare", "a wolf"]})
    );
    for user in [new, edit] {
        assert_eq!(user["user_instruction"], "a fox");
    }
}

#[tokio::test]
async fn a_client_chooses_a_known_model_a_temperature_and_a_system_prompt() {
    let played = Provider::always(|| Reply::Say(answer(1))).await;
    let prompts = prompts_of(&[&played], None);
    let asked = async |model: &str, temperature, system: &str| {
        let wanted = RolloutRequest {
            model: Some(model.to_owned()),
            temperature: Some(temperature),
            system_prompt: Some(system.to_owned()),
            ..request(&[], 1)
        };
        let model = prompts.rollout(wanted).await.unwrap().model;
        let asked = played.asked().pop().unwrap();
        assert_eq!(asked.body["model"], model.as_str());
        (
            model,
            asked.body["temperature"].as_f64(),
            asked.system().to_owned(),
        )
    };
    let (model, temperature, system) = asked("rewriter", 0.25, " Be brief.\n").await;
    assert_eq!(
        (model.as_str(), temperature, system.as_str()),
        ("rewriter", Some(0.25), "Be brief.")
    );
    let (model, temperature, system) = asked("unheard-of", 9.0, " ").await;
    assert_eq!((model.as_str(), temperature), ("first-rollouts", Some(2.0)));
    assert!(system.starts_with("You write the prompts"));
    let (_, temperature, _) = asked("", f64::NAN, "").await;
    assert_eq!(temperature, Some(1.0));
}

#[tokio::test]
async fn another_provider_is_asked_where_an_answer_has_no_rollout() {
    let bad = [
        "I cannot help with that.".to_owned(),
        "<think>A fox?".to_owned(),
        answer(1),
        answer(3),
        "{\"segment_prompts\": [\"Shot 1.\", \"Shot".to_owned(),
    ];
    for text in bad {
        let said = text.clone();
        let bad = Provider::always(move || Reply::Say(said.clone())).await;
        let good = Provider::always(|| Reply::Say(format!("Sure:\n{}", answer(2)))).await;
        let written = prompts_of(&[&bad, &good], None)
            .rollout(request(&[], 2))
            .await
            .unwrap();
        assert_eq!((written.prompts.len(), written.fallback_used), (2, true));
        assert_eq!(written.model, "second-rollouts");
        let failed = prompts_of(&[&bad], None).rollout(request(&[], 2)).await;
        let Err(GenerateError::Failed(LlmError::NoRollout(_) | LlmError::Unusable(_))) = failed
        else {
            panic!("{failed:?} of {text}");
        };
    }
    let none = Prompts::open(super::Config::default()).unwrap();
    let failed = none.rollout(request(&[], 2)).await;
    let Err(GenerateError::Failed(LlmError::NoProvider)) = failed else {
        panic!("{failed:?}");
    };
}

#[tokio::test]
async fn a_rollout_that_comes_too_late_is_none() {
    let never = Arc::new(Semaphore::new(0));
    let held = move || Reply::Held(never.clone(), Box::new(Reply::Say(answer(1))));
    let late = Provider::always(held).await;
    let mut enhancer = config(vec![provider("first", &late.base_url)]);
    enhancer.timeout = Duration::from_millis(50);
    let prompts = Prompts::open(super::Config {
        enhancer: Some(enhancer),
        safety: None,
    })
    .unwrap();
    let failed = prompts.rollout(request(&[], 1)).await;
    let Err(GenerateError::Failed(LlmError::Timeout)) = failed else {
        panic!("{failed:?}");
    };
}

#[tokio::test]
async fn a_server_that_does_not_know_the_format_is_asked_without_it_from_then_on() {
    let named = r#"{"error": {"message": "model does not support 'response_format'"}}"#;
    for (status, body) in [(400, named), (400, "{}"), (422, "no")] {
        let played = Provider::start(move |_, asked| match asked.body.get("response_format") {
            Some(_) => Reply::StatusBody(status, body.to_owned()),
            None => Reply::Say(answer(1)),
        })
        .await;
        let prompts = prompts_of(&[&played], None);
        for _ in 0..2 {
            prompts.rollout(request(&[], 1)).await.unwrap();
        }
        assert_eq!(played.asked().len(), 3, "{body}");
    }
    let bad = Provider::always(|| Reply::Status(400)).await;
    let failed = prompts_of(&[&bad], None).rollout(request(&[], 1)).await;
    let Err(GenerateError::Failed(LlmError::Refused(400))) = failed else {
        panic!("{failed:?}");
    };
    assert_eq!(bad.asked().len(), 2);
    let prompt = open(&[&bad]).enhance("a fox").await;
    assert_eq!(prompt, Err(LlmError::Refused(400)));
    assert_eq!(bad.asked().len(), 3, "it was not asked for JSON");
}

/// Collects all that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        *self.0.lock().unwrap() += &format!("{field}={value:?} ");
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        attributes.record(&mut self.clone());
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn keys_and_prompts_are_not_logged() {
    let bad = Provider::always(|| Reply::Status(400)).await;
    let odd = Provider::always(|| Reply::Say("1. a secret fox".to_owned())).await;
    let log = Log::default();
    for played in [&bad, &odd] {
        let prompts = prompts_of(&[played], None);
        let mut wanted = request(&["a secret fox", "a hole"], 2);
        wanted.instruction = "a secret hare".to_owned();
        let failed = prompts.rollout(wanted).with_subscriber(log.clone()).await;
        failed.unwrap_err();
    }
    let log = log.0.lock().unwrap();
    assert!(log.contains("another number of prompts"), "{log}");
    assert!(!log.contains(KEY) && !log.contains("secret"), "{log}");
}

#[tokio::test]
async fn system_prompts_are_shown_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("enhance.txt"), "old enhance").unwrap();
    let played = Provider::always(|| Reply::Say(answer(1))).await;
    let prompts = prompts_of(&[&played], Some(folder.path()));
    let shown = prompts.system_prompts();
    let expected = SystemPrompt {
        text: "old enhance".to_owned(),
        path: Some(file("enhance.txt")),
    };
    assert_eq!(shown.enhance, expected);
    assert_eq!(shown.rollout_new.path, None);
    assert!(shown.rollout_new.text.starts_with("You write the prompts"));
    assert!(shown.rollout_edit.text.starts_with("You edit the prompts"));
    assert_eq!(
        (shown.rollout_model.as_str(), shown.rollout_temperature),
        ("first-rollouts", 1.0)
    );

    let new = NewSystemPrompts {
        enhance: Some("new enhance\n".to_owned()),
        rollout_new: Some(" new rollout".to_owned()),
        rollout_model: Some("rewriter".to_owned()),
        rollout_temperature: Some(2.5),
        ..NewSystemPrompts::default()
    };
    prompts.set_system_prompts(new).unwrap();
    let shown = prompts.system_prompts();
    assert_eq!(
        (shown.enhance.text.as_str(), shown.rollout_new.text.as_str()),
        ("new enhance", "new rollout")
    );
    assert_eq!(shown.rollout_new.path, Some(file("rollout_new.txt")));
    assert_eq!(shown.auto_extend.path, None);
    let written = std::fs::read_to_string(file("rollout_new.txt")).unwrap();
    assert_eq!(written, "new rollout\n");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    assert_eq!(
        (shown.rollout_model.as_str(), shown.rollout_temperature),
        ("rewriter", 2.0)
    );
    prompts.rollout(request(&[], 1)).await.unwrap();
    let asked = played.asked().pop().unwrap();
    assert_eq!(asked.system(), "new rollout");
    assert_eq!(
        (&asked.body["model"], &asked.body["temperature"]),
        (&json!("rewriter"), &json!(2.0))
    );
    // A client's wish goes before.
    let wanted = RolloutRequest {
        model: Some("first-model".to_owned()),
        temperature: Some(0.5),
        ..request(&[], 1)
    };
    assert_eq!(prompts.rollout(wanted).await.unwrap().model, "first-model");
    assert_eq!(prompts.rollout_model(Some("first-model")), "first-model");
    assert_eq!(prompts.rollout_model(Some("unheard-of")), "rewriter");
}

#[tokio::test]
async fn system_prompts_that_cannot_be_used_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let played = Provider::shouting().await;
    let prompts = prompts_of(&[&played], Some(folder.path()));
    let before = prompts.system_prompts();
    let fails = |new: NewSystemPrompts, expected: &str| {
        let wanted = NewSystemPrompts {
            auto_extend: Some("new".to_owned()),
            rollout_temperature: Some(0.1),
            ..new
        };
        let error = prompts.set_system_prompts(wanted).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(prompts.system_prompts(), before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    };
    let text = |text: &str| Some(text.to_owned());
    let new = NewSystemPrompts::default;
    fails(
        NewSystemPrompts {
            enhance: text(" \n"),
            ..new()
        },
        "enhance.txt is blank",
    );
    fails(
        NewSystemPrompts {
            rollout_edit: text(&"x".repeat(65_536)),
            ..new()
        },
        "65537 bytes",
    );
    fails(
        NewSystemPrompts {
            rollout_model: text("unheard-of"),
            ..new()
        },
        "no model `unheard-of`",
    );
    std::fs::remove_dir(folder.path()).unwrap();
    let gone = NewSystemPrompts {
        enhance: text("new"),
        ..new()
    };
    let error = prompts.set_system_prompts(gone.clone()).unwrap_err();
    assert!(
        matches!(error, SystemPromptError::NotWritten { .. }),
        "{error}"
    );

    let none = Prompts::open(super::Config::default()).unwrap();
    for prompts in [prompts_of(&[&played], None), none] {
        let error = prompts.set_system_prompts(gone.clone()).unwrap_err();
        assert!(matches!(error, SystemPromptError::NoFolder), "{error}");
    }
    let none = Prompts::open(super::Config::default())
        .unwrap()
        .system_prompts();
    assert_eq!(
        (none.rollout_model.as_str(), none.rollout_temperature),
        ("", 1.0)
    );
    assert!(none.enhance.text.starts_with("You write prompts"));
}
