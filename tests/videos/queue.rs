//! Jobs among others, and among viewers.

use super::*;

#[tokio::test]
async fn a_job_that_waits_is_over_at_once_and_one_that_runs_at_its_next_step() {
    let server = Server::start(SLOW);
    let running = create(&server, json!({"prompt": "a red fox", "num_frames": 24})).await;
    let waiting = create(&server, json!({"prompt": "a blue whale", "num_frames": 12})).await;
    let next = create(&server, json!({"prompt": "a green hill", "num_frames": 12})).await;
    in_progress(&server, &running).await;
    assert_eq!(retrieve(&server, &next).await["queue_position"], 1);
    let (status, video) = server.post(&format!("/v1/videos/{waiting}/cancel")).await;
    assert_eq!(status, 200);
    assert_eq!(
        (&video["status"], &video["error"]["code"]),
        (&json!("failed"), &json!("cancelled"))
    );
    assert_eq!(retrieve(&server, &next).await["queue_position"], 0);
    server.post(&format!("/v1/videos/{running}/cancel")).await;
    let video = ended(&server, &running).await;
    assert_eq!(video["error"]["code"], "cancelled");
    let path = format!("/v1/videos/{running}/content");
    let (status, body) = server.get(&path).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (404, &json!("video_failed"))
    );
    completed(&server, &next).await;
}

#[tokio::test]
async fn a_deleted_job_is_gone_and_the_next_one_runs() {
    let server = Server::start(SLOW);
    let running = create(&server, json!({"prompt": "a red fox", "num_frames": 24})).await;
    let next = create(&server, json!({"prompt": "a green hill", "num_frames": 12})).await;
    in_progress(&server, &running).await;
    let path = format!("/v1/videos/{running}");
    let (status, deleted) = server.call("DELETE", &path, None).await;
    assert_eq!(status, 200);
    assert_eq!(
        deleted,
        json!({"id": running, "object": "video.deleted", "deleted": true})
    );
    assert_eq!(server.get(&path).await.0, 404);
    completed(&server, &next).await;
    assert_eq!(server.get(&path).await.0, 404);
    assert_eq!(server.call("DELETE", &path, None).await.0, 404);
}

#[tokio::test]
async fn a_viewer_comes_first_and_the_job_loses_nothing() {
    let request = json!({"prompt": "a red fox", "num_frames": 24, "seed": 7});
    let alone = Server::start(&[
        "--gpus=1",
        "--default_request.sampling.num_inference_steps=20",
    ]);
    let id = create(&alone, request.clone()).await;
    let (_, expected) = completed(&alone, &id).await;
    let server = Server::start(SLOW);
    let id = create(&server, request).await;
    progress(&server, &id, 6).await;
    let mut viewer = server.active(json!({})).await;
    let before = Instant::now();
    viewer.segment("a blue whale").await;
    // A segment takes two seconds, and the job had four to go.
    assert!(
        before.elapsed() < Duration::from_millis(3500),
        "{:?}",
        before.elapsed()
    );
    let (_, content) = completed(&server, &id).await;
    assert_eq!(content, expected);
    let status = server.status().await;
    assert_eq!(status["videos"]["preemptions"], 1, "{}", status["videos"]);
}

#[tokio::test]
async fn sync_answers_with_the_video_and_a_client_that_goes_away_leaves_nothing() {
    let server = Server::start(SLOW);
    let body = json!({"prompt": "a red fox", "num_frames": 12}).to_string();
    let answer = fetch(&server, "POST", "/v1/videos/sync", &[], body.into_bytes()).await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, "video/mp4")
    );
    let id = answer.header("x-video-id").to_owned();
    assert_eq!(completed(&server, &id).await.1, answer.body);
    let gone = tokio::net::TcpStream::connect(&server.address)
        .await
        .unwrap();
    let body = json!({"prompt": "a red fox", "num_frames": 12}).to_string();
    let request = format!(
        "POST /v1/videos/sync HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n{body}",
        server.address,
        body.len()
    );
    gone.writable().await.unwrap();
    assert_eq!(gone.try_write(request.as_bytes()).unwrap(), request.len());
    until("the job is there", async || {
        let (_, list) = server.get("/v1/videos").await;
        (list["data"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    drop(gone);
    until("the job is gone", async || {
        let (_, list) = server.get("/v1/videos").await;
        (list["data"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
}
