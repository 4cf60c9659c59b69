//! Jobs among viewers who ask again and again.

use super::*;
use crate::harness::Client;

/// How long a viewer looks at a segment before he asks for the next one.
const WATCHED: Duration = Duration::from_secs(1);

/// A viewer who never goes. Counts the segments that he got.
async fn watch(client: &mut Client, pause: Duration, served: &mut u32) {
    loop {
        client.segment("a quiet lake").await;
        *served += 1;
        sleep(pause).await;
    }
}

/// Waits until all jobs are made as if nobody else were there.
async fn all_completed(server: &Server, created: &[String]) {
    let expected = expected().await;
    for id in created {
        let (video, content) = completed(server, id).await;
        assert!(content == expected, "{video}");
    }
}

async fn create_jobs(server: &Server, count: usize) -> Vec<String> {
    let mut created = Vec::new();
    for _ in 0..count {
        created.push(create(server, request()).await);
    }
    created
}

#[tokio::test]
async fn jobs_get_on_among_viewers_on_every_gpu() {
    expected().await;
    let server = Server::start(&[PACE, &["--gpus=2"]].concat());
    let mut viewers = [
        server.active(json!({})).await,
        server.active(json!({})).await,
    ];
    let [first, second] = &mut viewers;
    let (mut one, mut two) = (0, 0);
    let created = create_jobs(&server, 5).await;
    tokio::select! {
        () = watch(first, WATCHED, &mut one) => {}
        () = watch(second, WATCHED, &mut two) => {}
        () = all_completed(&server, &created) => {}
    }
    // Nobody waited for the jobs to end.
    assert!(one > 1 && two > 1, "{one} and {two} segments");
    let videos = server.status().await["videos"].clone();
    println!("{one} and {two} segments of viewers, {videos}");
}

#[tokio::test]
async fn a_reserved_gpu_makes_jobs_beside_a_viewer_who_never_rests() {
    expected().await;
    let server =
        Server::start(&[PACE, &["--gpus=2", "--streaming.videos.reserved_gpus=1"]].concat());
    let created = create_jobs(&server, 4).await;
    let mut viewer = server.open(json!({})).await;
    assert_eq!(viewer.until_type("gpu_assigned").await["gpu_id"], 0);
    let mut served = 0;
    tokio::select! {
        () = watch(&mut viewer, Duration::ZERO, &mut served) => {}
        () = all_completed(&server, &created) => {}
    }
    assert!(served > 1, "{served} segments");
}

#[tokio::test]
async fn a_session_has_a_reserved_gpu_when_no_job_waits() {
    expected().await;
    let reserved = [
        "--gpus=2",
        "--sessions-per-gpu=1",
        "--streaming.videos.reserved_gpus=1",
    ];
    let server = Server::start(&[PACE, &reserved].concat());
    server.ready(2).await;
    let created = create_jobs(&server, 3).await;
    let mut first = server.open(json!({})).await;
    assert_eq!(first.until_type("gpu_assigned").await["gpu_id"], 0);
    // There would be room, but for the jobs.
    let mut second = server.open(json!({})).await;
    second.expect("queue_status").await;
    assert_eq!(second.until_type("gpu_assigned").await["gpu_id"], 1);
    let videos = list(&server, "").await;
    assert!(
        videos.iter().all(|it| it["status"] == "completed"),
        "{videos:#?}"
    );
    all_completed(&server, &created).await;
    // On it, later jobs come first again, and the session goes on after them.
    let (mut one, mut two) = (0, 0);
    let created = create_jobs(&server, 2).await;
    tokio::select! {
        () = watch(&mut first, Duration::ZERO, &mut one) => {}
        () = watch(&mut second, Duration::ZERO, &mut two) => {}
        () = all_completed(&server, &created) => {}
    }
    second.segment("a blue whale").await;
}
