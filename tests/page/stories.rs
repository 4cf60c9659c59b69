//! Stories of several shots, and the storyboard in which they are written.

use super::access::{FAULTS, SCREENS, axe_in_both_themes};
use super::*;

/// Short segments, so that a story is soon made.
const SHORT: &[&str] = &["--gpus=2", "--default_request.sampling.num_frames=9"];

/// The shots in the storyboard.
const SHOTS: &str = "[...document.querySelectorAll('#shots textarea')].map((field) => field.value)";

/// The prompts of the segments that are finished.
const MADE: &str = "fastvideo.segments.filter((s) => s.state === 'done').map((s) => s.prompt)";

/// Waits until a version with this title is shown.
async fn until_version(page: &Browser, title: &str) {
    let shown = format!(
        "document.querySelector('#versions [aria-pressed=true]')?.title === {}",
        json!(title)
    );
    page.until(&format!("the version {title} is shown"), &shown)
        .await;
}

#[tokio::test]
async fn a_story_plays_with_one_click() {
    let server = Server::start(SHORT);
    let page = Browser::open(&server).await;
    page.click("#stories li:first-child button").await;
    page.until_says("#storyboard", "6 shots").await;
    page.until_state("segment-5", "done").await;
    let [shots, made] = [page.get(SHOTS).await, page.get(MADE).await];
    assert_eq!(shots, made);
    page.until(
        "all shots are made",
        "[...document.querySelectorAll('.shot-state')].every((node) => node.textContent === 'made')",
    )
    .await;
    page.screenshot("story").await;
    axe_in_both_themes(&page, "story").await;
    for (width, height) in SCREENS {
        page.resize(width, height).await;
        assert_eq!(page.get(FAULTS).await, json!([]), "{width}x{height}");
    }
    page.has_no_complaints().await;
}

#[tokio::test]
async fn a_story_is_sent_as_places_in_the_queue_get_free() {
    let more = ["--streaming.limits.max_waiting_requests=2"];
    let server = Server::start(&[SHORT, &more].concat());
    let page = Browser::open(&server).await;
    page.click("#stories li:nth-child(2) button").await;
    page.until_state("segment-5", "done").await;
    assert_eq!(page.get(SHOTS).await, page.get(MADE).await);
    assert_eq!(page.get("fastvideo.errors").await, json!([]));
    page.has_no_complaints().await;
}

#[tokio::test]
async fn a_prompt_is_written_out_changed_and_played() {
    let server = Server::start(SHORT);
    let page = Browser::open(&server).await;
    page.keys("#prompt", FOX).await;
    page.click("#write-shots").await;
    page.until(
        "there are six shots",
        &format!(
            "JSON.stringify({SHOTS}) === JSON.stringify(Array(6).fill({}))",
            json!(FOX)
        ),
    )
    .await;
    page.until_says("#story-note", "Each shot has your prompt")
        .await;
    page.keys("#edit-words", "make it night").await;
    page.keys("#edit-words", browser::ENTER).await;
    until_version(&page, "make it night").await;
    page.until_says("#versions", "1. First version").await;
    let shots: Vec<String> = serde_json::from_value(page.get(SHOTS).await).unwrap();
    assert!(
        shots.iter().all(|shot| shot.contains("make it night")),
        "{shots:?}"
    );
    page.screenshot("storyboard").await;

    page.click("#versions li:first-child button").await;
    for _ in 0..4 {
        page.click("[data-testid=shot-1] [aria-label^=Remove]")
            .await;
    }
    until_version(&page, "Edited by hand").await;
    page.keys("[data-testid=shot-1] textarea", " runs").await;
    page.reload().await;
    let kept = page.get(SHOTS).await;
    assert_eq!(kept[0], FOX);
    page.click("#story-play").await;
    page.until_state("segment-1", "done").await;
    assert_eq!(page.get(MADE).await, page.get(SHOTS).await);
    page.has_no_complaints().await;
}

#[tokio::test]
async fn a_story_that_does_not_fit_begins_a_session_when_the_viewer_agrees() {
    let more = ["--streaming.generation_segment_cap=6"];
    let server = Server::start(&[SHORT, &more].concat());
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    let before = page.get("fastvideo.sessionId").await;
    page.keys("#prompt", LIGHTHOUSE).await;
    page.click("#write-shots").await;
    page.until_says("#shots-count", "6 shots").await;
    page.click("#story-play").await;
    page.until_says("#ask", "The session has no room for all shots.")
        .await;
    page.click("#ask-yes").await;
    page.until(
        "another session has made the story",
        &format!("fastvideo.sessionId !== {before} && {MADE}.length === 6"),
    )
    .await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn what_was_written_by_hand_is_not_thrown_away_without_a_question() {
    let server = Server::start(SHORT);
    let page = Browser::open(&server).await;
    page.keys("#prompt", FOX).await;
    page.click("#write-shots").await;
    page.until_says("#shots-count", "6 shots").await;
    page.keys("[data-testid=shot-0] textarea", " runs").await;
    page.click("[data-testid=shot-0] [aria-label^='Move down']")
        .await;
    let focused = page.get("document.activeElement.ariaLabel").await;
    assert_eq!(focused, "Move down shot 2");
    page.click("#story-close").await;
    page.until_says("#story-sure", "goes away").await;
    page.click("#story-sure-no").await;
    assert_eq!(page.get(SHOTS).await[1], format!("{FOX} runs"));
    page.click("#story-close").await;
    page.click("#story-sure-yes").await;
    page.until(
        "the storyboard is closed",
        "document.querySelector('#storyboard').hidden",
    )
    .await;
    page.has_no_complaints().await;
}
