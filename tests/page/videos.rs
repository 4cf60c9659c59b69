//! The tab for whole videos: what a viewer makes there, follows, watches and deletes.

use super::access::{FAULTS, SCREENS, axe};
use super::keys::new_key;
use super::*;

/// A GPU that takes a while, so that its progress is seen.
const SLOW: &[&str] = &["--gpus=1", "--generator.synthetic.step_ms=100"];

/// The video that is watched in the tab.
const WATCHED: &str = "document.querySelector('#jobs video')";

/// Opens the tab.
async fn show_videos(page: &Browser) {
    page.until(
        "the page knows that there are videos",
        "!document.querySelector('#videos-tab').hidden",
    )
    .await;
    page.click("#videos-tab").await;
    page.until_says("#jobs-empty", "Nothing yet").await;
}

/// Types a prompt and a length, and has the video made. Returns its id.
async fn make(page: &Browser, prompt: &str, seconds: &str) -> String {
    page.run("document.querySelector('#make-seconds').value = ''")
        .await;
    page.keys("#make-seconds", seconds).await;
    page.keys("#make-prompt", prompt).await;
    page.click("#make-send").await;
    until_listed(page, prompt).await
}

/// Waits until the newest job has a prompt, and returns the job's id.
async fn until_listed(page: &Browser, prompt: &str) -> String {
    let id = format!(
        "document.querySelector('#jobs .job-prompt')?.textContent === {}
            && document.querySelector('#jobs li').dataset.testid",
        json!(prompt)
    );
    let id = page.until(&format!("{prompt} is listed"), &id).await;
    id.as_str().unwrap().to_owned()
}

/// The selector of a part of a job.
fn part(id: &str, css: &str) -> String {
    format!("[data-testid={id}] {css}")
}

/// Clicks what can be done with a job.
async fn act(page: &Browser, id: &str, action: &str) {
    page.click(&part(id, &format!("[data-action={action}]")))
        .await;
}

#[tokio::test]
async fn a_video_is_made_watched_and_deleted() {
    let server = Server::start(SLOW);
    let page = Browser::open(&server).await;
    show_videos(&page).await;
    let id = make(&page, FOX, "2").await;
    page.until(
        "its progress is seen",
        "(() => {
            const bar = document.querySelector('#jobs [role=progressbar]');
            const done = Number(bar.getAttribute('aria-valuenow'));
            return done > 0 && done < 100 && bar.getAttribute('aria-valuetext') === `Generating, ${done}%`;
        })()",
    )
    .await;
    page.screenshot("videos_progress").await;
    page.until_state(&id, "completed").await;
    page.until_says("#jobs-note", &format!("Finished: “{FOX}”"))
        .await;
    page.until(
        "it has its picture",
        "document.querySelector('#jobs img')?.naturalWidth === 128",
    )
    .await;
    act(&page, &id, "play").await;
    page.until(
        "it plays",
        &format!("{WATCHED}?.readyState >= 2 && {WATCHED}.currentTime > 0.2"),
    )
    .await;
    let length = page.get(&format!("{WATCHED}.duration")).await;
    let length = length.as_f64().unwrap();
    assert!((2.0..2.06).contains(&length), "{length}");
    page.screenshot("videos_watched").await;
    act(&page, &id, "download").await;
    readback::decode(&page.downloaded("mp4").await);

    act(&page, &id, "delete").await;
    act(&page, &id, "confirm").await;
    page.until_says("#jobs-empty", "Nothing yet").await;
    page.until_says("#jobs-note", "Deleted").await;
    let (_, listed) = server.get("/v1/videos").await;
    assert_eq!(listed["data"], json!([]));
    page.has_no_complaints().await;
}

#[tokio::test]
async fn other_videos_are_made_of_one_and_the_last_is_cancelled() {
    let server = Server::start(SLOW);
    let page = Browser::open(&server).await;
    show_videos(&page).await;
    page.keys("#make-seed", "18446744073709551615").await;
    let first = make(&page, FOX, "0.5").await;
    page.until_state(&first, "completed").await;

    act(&page, &first, "remix").await;
    page.run("document.activeElement.select()").await;
    page.keys("#jobs form textarea", LIGHTHOUSE).await;
    act(&page, &first, "send").await;
    let remixed = until_listed(&page, LIGHTHOUSE).await;
    page.until_state(&remixed, "completed").await;
    page.until_says(&part(&remixed, ".facts-line"), "seed 18446744073709551615")
        .await;

    act(&page, &remixed, "extend").await;
    page.run("document.activeElement.select()").await;
    page.keys("#jobs form textarea", OWL).await;
    page.keys("#jobs form input", "60").await;
    act(&page, &remixed, "send").await;
    let extended = until_listed(&page, OWL).await;
    page.until_says(&part(&extended, ".facts-line"), "plays 60.5 s")
        .await;
    page.until_state(&extended, "in_progress").await;
    act(&page, &extended, "cancel").await;
    page.until_state(&extended, "cancelled").await;
    page.until_says("#jobs-note", &format!("Cancelled: “{OWL}”"))
        .await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn what_the_server_refuses_is_said_at_its_field() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    show_videos(&page).await;
    page.keys("#make-prompt", FOX).await;
    for (field, value, words) in [
        ("size", "huge", "Expected even numbers"),
        ("seconds", "61", "Expected at most 60, got 61"),
        ("seed", "-1", "Expected a whole number"),
    ] {
        page.keys(&format!("#make-{field}"), value).await;
        page.click("#make-send").await;
        page.until_says(&format!("#make-{field}-note"), words).await;
        let focused = page.get("document.activeElement.id").await;
        assert_eq!(focused, format!("make-{field}"));
        assert_eq!(axe(&page).await, json!([]), "{field}");
        page.screenshot(&format!("videos_refused_{field}")).await;
        page.run("document.activeElement.value = ''").await;
    }
    // The words of before are back.
    page.click("#make-send").await;
    until_listed(&page, FOX).await;
    page.until_says("#make-size-note", "Such as 1280x720.")
        .await;
}

#[tokio::test]
async fn the_tab_has_no_barriers() {
    let server = Server::start(SLOW);
    let page = Browser::open(&server).await;
    show_videos(&page).await;
    for (width, height) in SCREENS {
        page.resize(width, height).await;
        assert_eq!(axe(&page).await, json!([]), "empty, {width}x{height}");
    }
    let done = make(&page, FOX, "0.5").await;
    page.until_state(&done, "completed").await;
    act(&page, &done, "extend").await;
    let deleted = make(&page, LIGHTHOUSE, "60").await;
    act(&page, &deleted, "delete").await;
    let waiting = make(&page, OWL, "60").await;
    for (width, height) in SCREENS {
        page.resize(width, height).await;
        page.run("scrollTo(0, 0)").await;
        page.screenshot(&format!("videos_{width}x{height}")).await;
        assert_eq!(axe(&page).await, json!([]), "jobs, {width}x{height}");
        assert_eq!(page.get(FAULTS).await, json!([]), "{width}x{height}");
    }
    act(&page, &waiting, "cancel").await;
    page.until_state(&waiting, "cancelled").await;

    // The arrows go from tab to tab, and a reload comes back to the one that was shown.
    page.keys("#videos-tab", browser::ARROW_LEFT).await;
    let shown = "[live.hidden, videos.hidden, document.activeElement.id]";
    assert_eq!(page.get(shown).await, json!([false, true, "live-tab"]));
    page.keys("#live-tab", browser::ARROW_RIGHT).await;
    assert_eq!(page.get(shown).await, json!([true, false, "videos-tab"]));
    page.reload().await;
    page.until_says(&part(&waiting, ".job-state"), "Cancelled")
        .await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn a_video_is_watched_where_a_key_has_to_be_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let key = new_key(&file).await;
    let keys_file = format!("--server.auth.keys_file={}", file.display());
    let server = Server::start(&["--log-level=debug", &keys_file]);
    let page = Browser::open(&server).await;
    page.until(
        "there are videos",
        "!document.querySelector('#videos-tab').hidden",
    )
    .await;
    page.click("#videos-tab").await;
    page.until("the page asks for a key", "!key.form.hidden")
        .await;
    page.keys("#key", &key).await;
    page.keys("#key", browser::ENTER).await;
    page.until_says("#jobs-empty", "Nothing yet").await;
    let id = make(&page, FOX, "0.5").await;
    page.until_state(&id, "completed").await;
    page.until(
        "it has its picture",
        "document.querySelector('#jobs img')?.naturalWidth === 128",
    )
    .await;
    act(&page, &id, "play").await;
    page.until("it plays", &format!("{WATCHED}?.currentTime > 0.2"))
        .await;
    act(&page, &id, "download").await;
    readback::decode(&page.downloaded("mp4").await);
    let log = server.log();
    assert!(!log.contains(&key), "{log}");
}

#[tokio::test]
async fn there_is_no_tab_where_no_videos_are_made() {
    let server = Server::start(&["--streaming.videos.enabled=false"]);
    let page = Browser::open_at(&server, "#tab=videos").await;
    page.until(
        "the page has only one part",
        "!live.hidden && videos.hidden",
    )
    .await;
    let is_hidden = page.get("document.querySelector('#videos-tab').hidden");
    assert_eq!(is_hidden.await, true);
    assert_eq!(axe(&page).await, json!([]));
}
