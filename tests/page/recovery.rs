//! What a user sees of workers that die and servers that go away.

use nix::sys::signal::{Signal, kill};

use super::*;

/// Slow enough that a segment can be watched for a while before it is complete.
const SLOW: &[&str] = &[
    "--gpus=2",
    "--default_request.sampling.num_frames=72",
    "--generator.synthetic.step_ms=20",
    "--generator.synthetic.frame_ms=36",
];

/// The second segment's worker is killed once `moment` holds.
async fn check_worker_killed(moment: &str) {
    let server = Server::start(SLOW);
    server.ready(2).await;
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.prompt(LIGHTHOUSE).await;
    page.until(
        "the worker is to be killed",
        &format!("fastvideo.segments[1]?.state === 'streaming' && {moment}"),
    )
    .await;
    let gpu = page
        .get("document.querySelector('#f-gpu').textContent")
        .await;
    let gpu = gpu.as_str().unwrap().parse().unwrap();
    kill(server.worker_pid(gpu).await, Signal::SIGKILL).unwrap();

    page.until_state("segment-1", "done").await;
    page.play_out().await;
    let states = page.states("segment-1").await;
    assert_eq!(states, ["denoising", "streaming", "done"]);
    let errors = page.get("fastvideo.errors.map((e) => e.code)").await;
    assert_eq!(errors, json!([]));
    played_through(&page).await;
}

/// The video of two segments has no gap, and the page shows no error.
async fn played_through(page: &Browser) {
    assert_eq!(
        page.get("document.querySelector('#error').hidden").await,
        true
    );
    let [from, to] = page.only_range().await;
    assert!(from == 0.0 && (6.0..6.06).contains(&to), "{from} to {to}");
    page.has_no_complaints().await;
}

#[tokio::test]
async fn video_plays_through_when_another_worker_gives_other_media() {
    let faults = "--generator.synthetic.faults=blank@frame0,segment=1,max_attempt=1;exit@frame30,segment=1,max_attempt=1";
    let server = Server::start(&[SLOW, &[faults]].concat());
    server.ready(2).await;
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.prompt(LIGHTHOUSE).await;
    page.until_state("segment-1", "restarting").await;
    page.until_state("segment-1", "done").await;
    page.screenshot("restarted").await;
    page.play_out().await;
    assert_eq!(
        page.states("segment-1").await,
        [
            "denoising",
            "streaming",
            "restarting",
            "denoising",
            "streaming",
            "done"
        ]
    );
    assert_eq!(page.get("fastvideo.segments[1].attempt").await, 2);
    let errors = page.get("fastvideo.errors.map((e) => e.code)").await;
    assert_eq!(errors, json!(["worker_failed"]));
    played_through(&page).await;
}

#[tokio::test]
async fn video_plays_through_when_a_worker_dies_ahead_of_the_viewer() {
    check_worker_killed("fastvideo.buffered()[0][1] > 3.3").await;
}

#[tokio::test]
async fn video_plays_through_when_a_worker_dies_where_the_viewer_is() {
    check_worker_killed("video.currentTime > 3.3").await;
}

#[tokio::test]
async fn film_goes_on_after_the_session_was_idle_for_too_long() {
    let server = Server::start(&[SLOW, &["--streaming.session_timeout_seconds=1"]].concat());
    server.ready(2).await;
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.until_says("#error", "Send a prompt to go on with it.")
        .await;
    page.prompt(LIGHTHOUSE).await;
    page.until_state("segment-1", "done").await;
    page.play_out().await;
    played_through(&page).await;
}

#[tokio::test]
async fn states_of_the_gpus_are_shown() {
    // Each state lasts for longer than a look of the board, which comes every second.
    let server = Server::start(&[
        "--generator.synthetic.step_ms=2500",
        "--generator.synthetic.load_ms=2500",
        "--streaming.pool.min_backoff_ms=5000",
        "--streaming.warmup.enabled=false",
    ]);
    let page = Browser::open(&server).await;
    page.until_state("gpu-0", "ready").await;
    page.until_says("#board-brief", "1 of 1 free, nobody waiting")
        .await;
    page.until_says("#board-synthetic", "Synthetic engine")
        .await;
    page.prompt(FOX).await;
    page.until_state("gpu-0", "busy").await;
    kill(server.worker_pid(0).await, Signal::SIGKILL).unwrap();
    page.until_state("gpu-0", "backing_off").await;
    page.until_says("[data-testid=gpu-0]", "Last exit: crashed")
        .await;
    page.until_state("gpu-0", "loading").await;
    page.until_says("[data-testid=gpu-0]", "restarts 1").await;
    page.click("#cancel").await;
    page.until(
        "the GPU is ready again",
        "states['gpu-0'].at(-1) === 'ready'",
    )
    .await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn lost_server_is_named() {
    let mut server = Server::start(&[]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    server.kill().await;
    page.until_says("#lost", "Connection lost; trying again")
        .await;
    page.until_says("#status", "Reconnecting").await;
    page.until_says("#board-brief", "The server does not answer")
        .await;
    page.prompt(LIGHTHOUSE).await;
    page.until_says("#waiting-list", LIGHTHOUSE).await;
    page.screenshot("lost").await;
    page.click("#lost-end").await;
    page.until_says("#error", "The connection is lost.").await;
    page.until_says("#status", "Disconnected").await;
    page.until("the video has ended", "video.ended").await;
    assert_eq!(
        page.get("document.querySelector('#prompt').value").await,
        LIGHTHOUSE
    );
}

/// Where a server's sessions outlive it.
fn store(folder: &tempfile::TempDir) -> String {
    format!("--store=file://{}", folder.path().display())
}

#[tokio::test]
async fn page_goes_on_by_itself_with_a_server_that_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let args = [SLOW, &[store.as_str()]].concat();
    let mut server = Server::start(&args);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.prompt(LIGHTHOUSE).await;
    page.prompt(OWL).await;
    page.until(
        "the second segment plays",
        "fastvideo.segments[1]?.state === 'streaming' && video.currentTime > 3.2",
    )
    .await;
    server.kill().await;
    page.until_state("segment-1", "interrupted").await;
    page.until_says("#lost", "trying again").await;
    page.screenshot("reconnecting").await;
    let _server = Server::start_at(&server.address, &args);
    page.until_state("segment-2", "done").await;
    assert_eq!(
        page.get("document.querySelector('#lost').hidden").await,
        true
    );
    page.play_out().await;
    assert_eq!(
        page.states("segment-1").await,
        [
            "denoising",
            "streaming",
            "interrupted",
            "denoising",
            "streaming",
            "done"
        ]
    );
    let prompts = page.get("fastvideo.segments.map((s) => s.prompt)").await;
    assert_eq!(prompts, json!([FOX, LIGHTHOUSE, OWL]));
    assert_eq!(page.get("video.error").await, Value::Null);
    assert_eq!(page.get("fastvideo.errors").await, json!([]));
    let [from, to] = page.only_range().await;
    assert!(from == 0.0 && (9.0..9.06).contains(&to), "{from} to {to}");
}

#[tokio::test]
async fn session_that_the_server_does_not_know_is_named_and_another_one_opens() {
    let mut server = Server::start(&[]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    let before = page.get("fastvideo.sessionId").await;
    server.kill().await;
    page.until_says("#lost", "trying again").await;
    let _server = Server::start_at(&server.address, &[]);
    page.until_says("#error", "The session cannot be continued.")
        .await;
    page.until_says("#reconnect", "New session").await;
    assert_eq!(page.get("sessionStorage.length").await, 0);
    page.screenshot("refused").await;
    page.resize(500, 900).await;
    page.screenshot("refused_narrow").await;
    page.click("#reconnect").await;
    let other = format!("fastvideo.phase === 'active' && fastvideo.sessionId !== {before}");
    page.until("another session is open", &other).await;
}

#[tokio::test]
async fn session_goes_on_after_a_reload_when_the_viewer_wants() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    let before = page.get("fastvideo.sessionId").await;
    page.reload().await;
    page.until_says("#kept", "Go on with the session of this tab")
        .await;
    page.screenshot("kept").await;
    // The browser has scrolled to where it was.
    page.run("scrollTo(0, 0)").await;
    page.click("#kept-go").await;
    page.until_says("#status", "Ready for a prompt").await;
    assert_eq!(page.get("fastvideo.sessionId").await, before);
    page.prompt(LIGHTHOUSE).await;
    page.until_state("segment-1", "done").await;
    page.play_out().await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn session_that_was_taken_over_is_left_alone() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    let resume = page
        .get("JSON.parse(sessionStorage.getItem('fastvideo.session'))")
        .await;
    let other = server.active(json!({"resume": resume})).await;
    page.until_says("#error", "The session is no longer on this page.")
        .await;
    page.until_says("#connect", "New session").await;
    assert_eq!(
        page.get("document.querySelector('#lost').hidden").await,
        true
    );
    assert_eq!(page.get("sessionStorage.length").await, 0);
    drop(other);
    page.has_no_complaints().await;
}

#[tokio::test]
async fn operator_takes_a_gpu_away_and_brings_it_back() {
    let server = Server::start(&["--gpus=2"]);
    server.ready(2).await;
    let page = Browser::open(&server).await;
    let press = async |order: &str| {
        page.click(&format!("[data-testid=gpu-1] [data-order={order}]"))
            .await;
    };
    press("drain").await;
    page.screenshot("confirm").await;
    press("keep").await;
    press("drain").await;
    press("confirm").await;
    page.until_state("gpu-1", "drained").await;
    page.until_says("#board-brief", "1 drained").await;
    page.until_says("[data-testid=gpu-1]", "An operator has taken it away.")
        .await;
    page.until(
        "the order is carried out",
        "!document.querySelector('[data-testid=gpu-1] [data-order=confirm]')",
    )
    .await;
    page.screenshot("drained").await;
    press("restart").await;
    press("confirm").await;
    page.until("it serves again", "states['gpu-1'].at(-1) === 'ready'")
        .await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn drain_is_announced_and_the_running_segment_finishes() {
    let mut server = Server::start(PACED);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "streaming").await;
    server.signal(Signal::SIGTERM);
    page.until_says("#drain", "The server is shutting down.")
        .await;
    page.until_state("segment-0", "done").await;
    page.until_says("#lost", "trying again").await;
    assert!(server.exit().await.success());
    page.click("#lost-end").await;
    page.until("the video has ended", "video.ended").await;
}
