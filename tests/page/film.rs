//! What a user sees of the film that the server keeps: after a reload, after the end, and as a spectator.

use super::access::axe;
use super::*;

/// The prompts of all segments.
async fn script(page: &Browser) -> Value {
    page.get("fastvideo.segments.map((s) => s.prompt)").await
}

#[tokio::test]
async fn reload_brings_the_film_back() {
    let server = Server::start(PACED);
    let page = Browser::open(&server).await;
    for prompt in [FOX, LIGHTHOUSE, OWL] {
        page.prompt(prompt).await;
    }
    page.until_state("segment-0", "done").await;
    page.reload().await;
    page.until_says("#kept", "Go on with the session of this tab")
        .await;
    page.run("scrollTo(0, 0)").await;
    page.click("#kept-go").await;
    page.until(
        "what was requested before is made",
        "fastvideo.segments.filter((s) => s.state === 'done').length === 3",
    )
    .await;
    assert_eq!(script(&page).await, json!([FOX, LIGHTHOUSE, OWL]));
    page.until(
        "the first segment has its picture",
        "document.querySelector('.reel canvas').width === 240",
    )
    .await;
    page.screenshot("film_after_reload").await;
    page.click("[data-testid=segment-0] .num").await;
    page.until(
        "the first segment plays, and then the second",
        "!video.seeking && video.currentTime > 3.5 && video.currentTime < 6",
    )
    .await;
    page.play_out().await;
    let [from, to] = page.only_range().await;
    assert!(from == 0.0 && (9.0..9.06).contains(&to), "{from} to {to}");
    page.has_no_complaints().await;
}

#[tokio::test]
async fn prompt_goes_on_with_a_session_that_was_left() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    let before = page.get("fastvideo.sessionId").await;
    page.click("#leave").await;
    page.until_says("#status", "Session ended").await;
    page.until_says("#composer-note", "goes on with this session")
        .await;
    page.prompt(LIGHTHOUSE).await;
    page.until_state("segment-1", "done").await;
    assert_eq!(page.get("fastvideo.sessionId").await, before);
    assert_eq!(script(&page).await, json!([FOX, LIGHTHOUSE]));
    page.has_no_complaints().await;
}

#[tokio::test]
async fn film_of_a_session_at_its_cap_is_not_replaced_without_a_question() {
    let server = Server::start(&["--streaming.generation_segment_cap=1"]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_says("#status", "Finished").await;
    page.prompt(LIGHTHOUSE).await;
    page.until_says("#ask", "its film takes the place of this one")
        .await;
    page.screenshot("ask").await;
    page.click("#ask-no").await;
    assert_eq!(script(&page).await, json!([FOX]));
    assert_eq!(
        page.get("document.querySelector('#prompt').value").await,
        LIGHTHOUSE
    );
    page.click("#send").await;
    page.click("#ask-yes").await;
    page.until(
        "another session has a segment",
        &format!(
            "fastvideo.segments[0]?.prompt === {} && fastvideo.segments[0].state === 'done'",
            json!(LIGHTHOUSE)
        ),
    )
    .await;
    page.has_no_complaints().await;
}

/// Opens a session and returns its client with the path of the page for its spectators.
async fn watched(server: &Server) -> (Client, String) {
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let name = |field: &str| assigned[field].as_str().unwrap().to_owned();
    let path = format!(
        "watch#session={}&token={}",
        name("session_id"),
        name("watch_token")
    );
    (client, path)
}

#[tokio::test]
async fn spectator_sees_the_film_as_it_grows_and_after_its_end() {
    let server = Server::start(&["--default_request.sampling.num_frames=48"]);
    let (mut client, path) = watched(&server).await;
    client.segment(FOX).await;
    let page = Browser::open_at(&server, &path).await;
    page.until_says("#status", "Live").await;
    page.until("the first segment plays", "video.currentTime > 0.2")
        .await;
    client.segment(LIGHTHOUSE).await;
    page.until_state("segment-1", "done").await;
    page.until("the second segment plays", "video.currentTime > 2.2")
        .await;
    assert_eq!(script(&page).await, json!([FOX, LIGHTHOUSE]));
    for (width, height) in [(320, 568), (1280, 800)] {
        page.resize(width, height).await;
        page.screenshot(&format!("watch_{width}x{height}")).await;
        assert_eq!(axe(&page).await, json!([]), "{width}x{height}");
    }
    client.send(json!({"type": "leave"})).await;
    client.closed().await;
    page.until_says("#status", "The film has ended").await;
    page.until("the video has ended", "video.ended").await;
    page.click("[data-testid=segment-0] .num").await;
    page.until(
        "it plays again from its beginning",
        "!video.seeking && video.currentTime > 0.2 && video.currentTime < 2",
    )
    .await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn link_with_another_token_shows_nothing() {
    let server = Server::start(&[]);
    let (_client, path) = watched(&server).await;
    let page = Browser::open_at(&server, &format!("{path}x")).await;
    page.until_says("#status", "The link does not work").await;
    page.until_says("#empty-title", "This link does not work.")
        .await;
    page.screenshot("watch_refused").await;
}
