//! The past sessions that the browser keeps.

use super::access::{FAULTS, SCREENS, axe_in_both_themes};
use super::*;

/// Makes a segment, leaves the session, and shows the history. Returns the session's id.
async fn make_history(page: &Browser) -> Value {
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.until("there is a picture", "video.currentTime > 0.4")
        .await;
    let id = page.get("fastvideo.sessionId").await;
    page.click("#leave").await;
    page.until_says("#status", "Session ended").await;
    page.click("#history-tab").await;
    page.until_says("#past", FOX).await;
    id
}

#[tokio::test]
async fn a_session_is_watched_again_after_its_server_is_gone() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    make_history(&page).await;
    page.until(
        "it has a picture",
        "document.querySelector('#past img')?.naturalWidth",
    )
    .await;
    axe_in_both_themes(&page, "history").await;
    for (width, height) in SCREENS {
        page.resize(width, height).await;
        page.screenshot(&format!("history_{width}x{height}")).await;
        assert_eq!(page.get(FAULTS).await, json!([]), "{width}x{height}");
    }
    drop(server);
    page.click("#past .job-play").await;
    page.until(
        "it plays",
        "document.querySelector('#past video')?.currentTime > 0.2",
    )
    .await;
}

#[tokio::test]
async fn a_session_goes_on_from_the_history() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    let id = make_history(&page).await;
    page.click("#past [data-action=continue]").await;
    page.until_says("#status", "Ready for a prompt").await;
    assert_eq!(page.get("fastvideo.sessionId").await, id);
    page.prompt(LIGHTHOUSE).await;
    page.until_state("segment-1", "done").await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn a_session_is_taken_from_another_page_when_the_viewer_agrees() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    let id = page.get("fastvideo.sessionId").await;
    let resume = page
        .get("JSON.parse(sessionStorage.getItem('fastvideo.session'))")
        .await;
    let other = server.active(json!({"resume": resume})).await;
    page.until_says("#status", "The session is no longer here")
        .await;
    page.click("#history-tab").await;
    page.until_says("#past", FOX).await;
    page.click("#past [data-action=continue]").await;
    page.until_says("#ask", "may be open on another page").await;
    page.click("#ask-yes").await;
    page.until_says("#status", "Ready for a prompt").await;
    assert_eq!(page.get("fastvideo.sessionId").await, id);
    drop(other);
    page.has_no_complaints().await;
}

#[tokio::test]
async fn a_session_at_its_cap_goes_on_from_the_history() {
    let server = Server::start(&[
        "--streaming.generation_segment_cap=1",
        "--streaming.cap_extensions=1",
    ]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.until_says("#status", "the session has all its segments")
        .await;
    let id = page.get("fastvideo.sessionId").await;
    // Another page knows of it from the history alone.
    page.run("sessionStorage.clear(); window.isLeft = true; location.reload()")
        .await;
    page.until("the page is new", "!window.isLeft && window.fastvideo")
        .await;
    page.click("#history-tab").await;
    page.until_says("#past", FOX).await;
    page.click("#past [data-action=continue]").await;
    page.until_says("#status", "Ready for a prompt").await;
    page.prompt(LIGHTHOUSE).await;
    page.until(
        "it goes on",
        &format!("fastvideo.sessionId === {id} && fastvideo.segments[0]?.state === 'done'"),
    )
    .await;
}

#[tokio::test]
async fn a_session_at_its_cap_cannot_go_on_where_that_is_not_allowed() {
    let server = Server::start(&["--streaming.generation_segment_cap=1"]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_says("#status", "the session has all its segments")
        .await;
    page.click("#history-tab").await;
    page.until_says("#past", "It cannot go on: it has all its segments")
        .await;
    let button = "document.querySelector('#past [data-action=continue]').disabled";
    assert_eq!(page.get(button).await, true);
}

#[tokio::test]
async fn a_saved_state_goes_on_at_a_server_that_knows_nothing_of_the_session() {
    let mut server = Server::start(&[]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    let id = page.get("fastvideo.sessionId").await;
    page.click("#snapshot").await;
    page.downloaded("json").await;
    page.click("#leave").await;
    page.until_says("#status", "Session ended").await;
    server.kill().await;
    let server = Server::start_at(&server.address, &[]);
    server.ready(1).await;
    page.click("#history-tab").await;
    page.click("#past [data-action=continue]").await;
    page.until_says("#error", "goes on from the saved state")
        .await;
    page.prompt(LIGHTHOUSE).await;
    page.until(
        "another session goes on",
        &format!("fastvideo.sessionId !== {id} && fastvideo.segments[0]?.state === 'done'"),
    )
    .await;
}

#[tokio::test]
async fn a_session_is_deleted_and_a_history_can_be_refused() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    make_history(&page).await;
    page.click("#past [data-action=delete]").await;
    page.click("#past [data-action=delete-it]").await;
    page.until_says("#past-empty", "Nothing yet").await;
    page.click("label:has(#keep-history)").await;
    page.reload().await;
    page.click("#live-tab").await;
    page.prompt(LIGHTHOUSE).await;
    page.until_state("segment-0", "done").await;
    page.click("#history-tab").await;
    page.until_says("#past-empty", "Nothing yet").await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn a_browser_without_a_database_has_no_history_and_says_nothing() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    page.run(
        "Object.defineProperty(window, 'indexedDB', { get() { throw new Error('forbidden'); } })",
    )
    .await;
    // The page's own was opened before: what is tested is that such a page is complete.
    let begun = page.run(
        "const done = import('./history/tab.js').then(({ HistoryTab }) => new HistoryTab({ offered: () => { window.hasHistory = true; } }).begin())
            .then(() => { window.hasBegun = true; });",
    );
    begun.await;
    page.until("the history has begun", "window.hasBegun").await;
    assert_eq!(page.get("window.hasHistory ?? false").await, false);
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.has_no_complaints().await;
}
