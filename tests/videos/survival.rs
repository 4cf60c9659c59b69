//! Jobs whose workers die and whose servers leave, and the end of their time.

use super::*;

#[tokio::test]
async fn a_worker_that_is_killed_changes_nothing() {
    let expected = expected().await;
    let server = Server::start(&[PACE, WATCHFUL].concat());
    let id = create(&server, request()).await;
    for kills in 1..=3 {
        progress(&server, &id, kills * 20).await;
        kill(server.worker_pid(0).await, Signal::SIGKILL).unwrap();
    }
    assert_eq!(completed(&server, &id).await.1, expected);
}

#[tokio::test]
async fn a_server_that_leaves_keeps_its_jobs_for_the_next_one() {
    let expected = expected().await;
    let folder = TempDir::new().unwrap();
    let args = kept_in(&folder);
    let mut server = start(&args);
    let first = create(&server, request()).await;
    let second = create(&server, request()).await;
    in_progress(&server, &first).await;
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());
    let server = start(&args);
    for id in [first, second] {
        assert_eq!(completed(&server, &id).await.1, expected);
    }
}

#[tokio::test]
async fn a_video_whose_time_is_over_is_gone() {
    // A hundredth of an hour is 36 s; this is 1.8 s.
    let server = Server::start(&[ONE_GPU, &["--streaming.videos.retention_hours=0.0005"]].concat());
    let id = create(&server, json!({"prompt": "a red fox", "num_frames": 12})).await;
    ended(&server, &id).await;
    until("the video is gone", async || {
        let (status, _) = server.get(&format!("/v1/videos/{id}")).await;
        (status == 404).then_some(())
    })
    .await;
}
