//! Prompts that a language model writes, as the page shows them.

use super::*;
use crate::provider::{Provider, Reply};

fn start(provider: &Provider, more: &[&str]) -> Server {
    let base_url = format!("--streaming.prompt.base_url={}", provider.base_url);
    let fixed: &[&str] = &[
        "--gpus=1",
        "--streaming.prompt.enabled=true",
        "--streaming.prompt.provider=openai_compatible",
        "--streaming.prompt.model=test-model",
        &base_url,
    ];
    Server::start(&[fixed, more].concat())
}

#[tokio::test]
async fn an_enhanced_prompt_is_shown_with_what_it_was() {
    let provider = Provider::shouting().await;
    let server = start(&provider, &[]);
    let page = Browser::open(&server).await;
    page.click("label:has(#t-enhancement)").await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.until_says("[data-testid=segment-0]", &FOX.to_uppercase())
        .await;
    page.until_says("[data-testid=segment-0] .was", FOX).await;
    page.screenshot("enhanced").await;
    // Switched off while the session runs.
    page.click("label:has(#t-enhancement)").await;
    page.prompt(LIGHTHOUSE).await;
    page.until_state("segment-1", "done").await;
    assert_eq!(page.get("fastvideo.segments[1].prompt").await, LIGHTHOUSE);
    page.has_no_complaints().await;
}

#[tokio::test]
async fn the_session_extends_itself_until_it_is_told_not_to() {
    let provider = Provider::start(|before, _| Reply::Say(format!("part {before}"))).await;
    let server = start(&provider, &["--generator.synthetic.step_ms=50"]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.click("label:has(#t-auto)").await;
    page.until_state("segment-2", "denoising").await;
    page.click("label:has(#t-auto)").await;
    page.until_says("#status", "Ready for a prompt").await;
    let shown = page
        .get("fastvideo.segments.slice(0, 3).map((s) => [s.prompt, s.source])")
        .await;
    let expected = json!([
        [FOX, "user"],
        ["part 0", "auto_extension"],
        ["part 1", "auto_extension"]
    ]);
    assert_eq!(shown, expected);
    page.has_no_complaints().await;
}

#[tokio::test]
async fn variants_are_suggested_and_loop_when_applied() {
    let provider = Provider::always(|| Reply::Say("1. a hare\n2. a wolf".to_owned())).await;
    let server = start(&provider, &[]);
    let page = Browser::open(&server).await;
    page.keys("#curated", FOX).await;
    page.click("#connect").await;
    page.until_says("#status", "Ready for a prompt").await;
    page.click("#rewrite").await;
    page.until_says("#curated-note", "2 variants added").await;
    let list = page.get("document.querySelector('#curated').value").await;
    assert_eq!(list, format!("{FOX}\na hare\na wolf"));
    page.screenshot("variants").await;
    page.click("#curated-apply").await;
    page.click("label:has(#t-loop)").await;
    page.until_state("segment-2", "done").await;
    let prompts = page
        .get("fastvideo.segments.slice(0, 3).map((s) => s.prompt)")
        .await;
    assert_eq!(prompts, json!([FOX, "a hare", "a wolf"]));
    page.has_no_complaints().await;
}

#[tokio::test]
async fn a_model_that_fails_is_told_and_the_prompt_runs_as_it_was() {
    let provider = Provider::always(|| Reply::Status(500)).await;
    // The notice is there until the segment is done.
    let slow = "--generator.synthetic.step_ms=250";
    let server = start(&provider, &["--streaming.prompt.breaker_failures=1", slow]);
    let page = Browser::open(&server).await;
    page.click("label:has(#t-enhancement)").await;
    page.prompt(FOX).await;
    page.until_says("#error", "A prompt is used as it was.")
        .await;
    page.until_state("segment-0", "done").await;
    assert_eq!(page.get("fastvideo.segments[0].prompt").await, FOX);
    page.until_says("#models", "fails and is left alone").await;
    page.screenshot("model_fails").await;
    page.click("#rewrite").await;
    page.until_says("#error", "No language model has answered")
        .await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn an_operator_reloads_system_prompts_on_the_board() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("enhance.txt"), "be brief").unwrap();
    let provider = Provider::shouting().await;
    let dir = format!(
        "--streaming.prompt.system_prompt_dir={}",
        folder.path().display()
    );
    let server = start(&provider, &[&dir]);
    let page = Browser::open(&server).await;
    page.until_says("#models", "test-model answers").await;
    page.click("#models-reload").await;
    page.until_says("#models-note", "1 of 3 from files").await;
    std::fs::write(folder.path().join("enhance.txt"), [0xff]).unwrap();
    page.click("#models-reload").await;
    page.until_says("#error", "stay as they were").await;
}
