use std::fs;

use tokio::task::JoinSet;

use super::*;
use crate::prompt::fasttext::trained::Trained;

const HARMLESS: &str = "garden kitten picnic";
const HARMFUL: &str = "blood weapon explode";

fn model() -> Trained {
    Trained::new("-dim 10 -wordNgrams 2 -bucket 1000", 2)
}

fn config(path: &Path) -> Config {
    Config {
        classifier_path: Some(path.to_owned()),
        block_threshold: 0.5,
        required: false,
        log_prompts: false,
    }
}

fn reason(filter: &SafetyFilter) -> String {
    let status = filter.status();
    assert_eq!(status.state, SafetyState::Unavailable);
    status.reason.unwrap()
}

#[tokio::test]
async fn blocks_what_the_classifier_calls_unsafe() {
    let model = model();
    let filter = SafetyFilter::new(config(&model.model));
    assert_eq!(filter.status().state, SafetyState::NotLoaded);
    assert_eq!(filter.screen(HARMLESS).await, Ok(()));
    assert_eq!(filter.screen(HARMFUL).await, Err(Blocked));
    let status = filter.status();
    assert_eq!(status.state, SafetyState::Ready);
    assert_eq!((status.screened, status.blocked), (2, 1));
}

#[tokio::test]
async fn nothing_hides_behind_the_end_of_a_line() {
    let model = model();
    let filter = SafetyFilter::new(config(&model.model));
    let harmful = filter.screen(&format!("\n{HARMFUL}\n")).await;
    assert_eq!(harmful, Err(Blocked));
    for end in ["\n", "\r\n\n", " </s> ", "\n</s>\t</s>\0"] {
        let prompt = format!("kitten{end}{HARMFUL} {HARMFUL}");
        assert_eq!(filter.screen(&prompt).await, Err(Blocked), "{prompt:?}");
    }
}

#[tokio::test]
async fn a_score_at_the_threshold_blocks() {
    let model = model();
    let scorer = UnsafeScorer::load(Some(&model.model)).unwrap();
    let score = scorer.score(HARMLESS).unwrap();
    let with = |block_threshold| {
        SafetyFilter::new(Config {
            block_threshold,
            ..config(&model.model)
        })
    };
    assert_eq!(with(score.into()).screen(HARMLESS).await, Err(Blocked));
    assert_eq!(with(score.next_up().into()).screen(HARMLESS).await, Ok(()));
}

#[tokio::test]
async fn the_classifier_is_loaded_once() {
    let model = model();
    let filter = SafetyFilter::new(config(&model.model));
    let mut prompts = JoinSet::new();
    for _ in 0..32 {
        let filter = filter.clone();
        prompts.spawn(async move { filter.screen(HARMFUL).await });
    }
    assert!(prompts.join_all().await.iter().all(Result::is_err));
    fs::remove_file(&model.model).unwrap();
    assert_eq!(filter.screen(HARMFUL).await, Err(Blocked));
}

#[tokio::test]
async fn everything_passes_without_a_classifier_and_the_reason_is_shown() {
    let filter = SafetyFilter::new(Config {
        classifier_path: None,
        ..config(Path::new(""))
    });
    assert!(!filter.is_available());
    assert_eq!(filter.screen(HARMFUL).await, Ok(()));
    assert_eq!(
        reason(&filter),
        "`streaming.safety.classifier_path` is not set"
    );

    let filter = SafetyFilter::new(config(Path::new("/nowhere/model.bin")));
    assert!(filter.is_available());
    assert_eq!(filter.screen(HARMFUL).await, Ok(()));
    assert!(!filter.is_available());
    assert_eq!(
        reason(&filter),
        "the classifier /nowhere/model.bin cannot be loaded: cannot read it: No such file or directory (os error 2)"
    );
    assert_eq!(filter.status().screened, 0);
}

#[tokio::test]
async fn a_classifier_that_knows_nothing_of_safety_is_refused() {
    let model = model();
    let bytes = fs::read(&model.model).unwrap();
    let at = bytes
        .windows(UNSAFE.len())
        .position(|text| text == UNSAFE.as_bytes());
    let mut renamed = bytes.clone();
    renamed[at.unwrap() + UNSAFE.len() - 1] = b'f';
    fs::write(&model.model, renamed).unwrap();
    let filter = SafetyFilter::new(config(&model.model));
    assert_eq!(filter.screen(HARMFUL).await, Ok(()));
    assert!(reason(&filter).ends_with("model.bin has no label `__label__unsafe`"));
}

#[tokio::test]
async fn a_required_classifier_is_loaded_at_once() {
    let model = model();
    let required = |path: &Path| {
        SafetyFilter::new(Config {
            required: true,
            ..config(path)
        })
    };
    let filter = required(&model.model);
    filter.load_if_required().await.unwrap();
    assert_eq!(filter.status().state, SafetyState::Ready);
    let filter = required(Path::new("/nowhere"));
    assert!(filter.load_if_required().await.is_err());
    let filter = SafetyFilter::new(config(Path::new("/nowhere")));
    filter.load_if_required().await.unwrap();
}
