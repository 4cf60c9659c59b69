//! Requests that wait while the server goes away.

use super::*;

#[tokio::test]
async fn who_waits_is_answered_when_the_server_leaves() {
    let folder = TempDir::new().unwrap();
    let store = crate::durable::folder("--store", folder.path());
    let slow = ["--generator.synthetic.step_ms=300", &store];
    let args = [ONE_GPU, &slow].concat();
    let mut server = Server::start(&args);
    let request = json!({"prompt": "a red fox", "num_frames": 24});
    let id = create(&server, request.clone()).await;
    let path = format!("/v1/videos/{id}?wait_seconds=60");
    let body = request.to_string().into_bytes();
    let waiting = async {
        tokio::join!(
            async {
                loop {
                    let answer = fetch(&server, "GET", &path, &[], vec![]).await;
                    let video = answer.json();
                    // The last answer that the server gives.
                    if server.log().contains("draining") {
                        return (answer.status, video);
                    }
                }
            },
            fetch(&server, "POST", "/v1/videos/sync", &[], body),
            async {
                until("both jobs are there", async || {
                    let (_, list) = server.get("/v1/videos").await;
                    (list["data"].as_array().unwrap().len() == 2).then_some(())
                })
                .await;
                server.signal(Signal::SIGTERM);
            }
        )
    };
    let ((status, video), made, ()) = waiting.await;
    assert_eq!(status, 200, "{video}");
    assert_eq!(
        (made.status, made.code()),
        (503, "server_draining".to_owned())
    );
    assert!(server.exit().await.success());
    // Nobody knows of the job that its client had no answer about.
    let server = Server::start(&args);
    let (_, list) = server.get("/v1/videos").await;
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().collect();
    assert_eq!(ids.len(), 1, "{list}");
    assert_eq!(ids[0]["id"], id.as_str());
    completed(&server, &id).await;
}
