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
    assert_eq!(
        page.get("document.querySelector('#error').hidden").await,
        true
    );
    let [from, to] = page.only_range().await;
    assert!(from == 0.0 && (6.0..6.06).contains(&to), "{from} to {to}");
    page.has_no_complaints().await;
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
    server.signal(Signal::SIGKILL);
    server.exit().await;
    page.until_says("#error", "The connection broke off.").await;
    page.until_says("#status", "Disconnected").await;
    page.until_says("#board-brief", "The server does not answer")
        .await;
    page.screenshot("lost").await;
    page.prompt(LIGHTHOUSE).await;
    page.until_says("#error", "The server cannot be reached.")
        .await;
    assert_eq!(
        page.get("document.querySelector('#prompt').value").await,
        LIGHTHOUSE
    );
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
    page.until_says("#error", "The server is going away.").await;
    assert!(server.exit().await.success());
    page.until("the video has ended", "video.ended").await;
}
