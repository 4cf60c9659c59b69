//! The page before a server that asks for a key: it asks its viewer, keeps the key for the tab, and opens its socket with a
//! ticket.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::cli::run;

/// Makes a key, and a file that has it. Returns the key.
pub(super) async fn new_key(file: &std::path::Path) -> String {
    let args = [
        "keys", "new", "--id", "web", "--tenant", "acme", "--role", "user",
    ];
    let (code, said, _) = run(&args).await;
    assert_eq!(code, Some(0), "{said}");
    let mut lines = said.lines();
    let key = lines.next().unwrap().to_owned();
    let line = lines.next_back().unwrap();
    fs::write(file, format!("tenants: {{acme: {{}}}}\nkeys:\n{line}\n")).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    key
}

#[tokio::test]
async fn a_viewer_types_the_key_once_and_the_socket_is_opened_with_a_ticket() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let key = new_key(&file).await;
    let keys_file = format!("--server.auth.keys_file={}", file.display());
    let server = Server::start(&["--log-level=debug", &keys_file]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until(
        "the page asks for a key",
        "!document.getElementById('key-form').hidden",
    )
    .await;
    page.screenshot("asks_for_a_key").await;
    assert_eq!(access::axe(&page).await, json!([]));
    // A wrong one is asked for again.
    page.keys("#key", "fvk_wrong").await;
    page.keys("#key", browser::ENTER).await;
    page.until(
        "the page asks again",
        "!document.getElementById('key-form').hidden",
    )
    .await;
    page.run("performance.clearResourceTimings()").await;
    page.keys("#key", &key).await;
    page.keys("#key", browser::ENTER).await;
    page.until("the page is connected", "fastvideo.phase === 'active'")
        .await;
    let tickets = "performance.getEntriesByType('resource').filter((it) => it.name.endsWith('/v1/tickets')).length";
    assert_eq!(page.get(tickets).await, 1);
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    // The tab has the key, and nothing else shows it.
    page.reload().await;
    let kept = page.get("sessionStorage.getItem('fastvideo.key')").await;
    assert_eq!(kept, json!(key));
    let log = server.log();
    assert!(!log.contains(&key) && !log.contains("fvk_wrong"), "{log}");
}

#[tokio::test]
async fn shots_are_written_once_the_viewer_has_typed_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let key = new_key(&file).await;
    let server = Server::start(&[&format!("--server.auth.keys_file={}", file.display())]);
    let page = Browser::open(&server).await;
    page.keys("#prompt", FOX).await;
    page.click("#write-shots").await;
    page.until(
        "the page asks for a key",
        "!document.getElementById('key-form').hidden",
    )
    .await;
    page.keys("#key", &key).await;
    page.keys("#key", browser::ENTER).await;
    page.until_says("#shots-count", "6 shots").await;
    assert_eq!(
        page.get("fastvideo.phase").await,
        "idle",
        "nobody asked for a session"
    );
}

#[tokio::test]
async fn a_story_plays_once_the_viewer_has_typed_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let key = new_key(&file).await;
    let keys_file = format!("--server.auth.keys_file={}", file.display());
    let server = Server::start(&[&keys_file, "--default_request.sampling.num_frames=9"]);
    let page = Browser::open(&server).await;
    page.click("#stories li:first-child button").await;
    page.until(
        "the page asks for a key",
        "document.activeElement.id === 'key' && fastvideo.phase === 'closed'",
    )
    .await;
    page.keys("#key", &key).await;
    page.keys("#key", browser::ENTER).await;
    page.until_state("segment-5", "done").await;
}
