//! A film outlives workers and servers, and other servers of the store have it too.

use nix::sys::signal::{Signal, kill};
use serde_json::json;

use super::{Viewer, sha256};
use crate::durable::{Redis, folder};
use crate::harness::{Server, WATCHFUL};

/// Checks that a server has the whole film that the viewer has seen.
async fn check(server: &Server, viewer: &Viewer) {
    let film = viewer.document(server).await;
    let known = film.segments.iter();
    let known: Vec<_> = known
        .map(|s| (s.kept, s.thumbnail, s.sha256.clone()))
        .collect();
    let seen = viewer.segments.iter();
    let seen: Vec<_> = seen.map(|s| (true, true, sha256(&s.bytes()))).collect();
    assert_eq!(known, seen);
    for (n, segment) in viewer.segments.iter().enumerate() {
        let answer = viewer.get(server, &format!("film/{n}.mp4")).await;
        assert!(
            answer.body == segment.bytes(),
            "segment {n} has other bytes"
        );
        assert_eq!(
            viewer.get(server, &format!("film/{n}.jpg")).await.status,
            200
        );
    }
    let answer = viewer.get(server, "film.mp4").await;
    assert_eq!(answer.status, 200);
    crate::readback::decode(&answer.body);
}

#[tokio::test]
async fn a_film_survives_the_death_of_a_worker() {
    let server = Server::start(&[&["--gpus=1"], WATCHFUL].concat());
    let mut viewer = Viewer::with_segments(&server, 1).await;
    viewer.client.prompt("a hare").await;
    viewer.client.until_type("ltx2_segment_start").await;
    kill(server.worker_pid(0).await, Signal::SIGKILL).unwrap();
    let segment = viewer.client.collect_until("ltx2_segment_complete").await;
    viewer.segments.push(segment);
    viewer.take(1).await;
    check(&server, &viewer).await;
}

#[tokio::test]
async fn a_film_survives_a_restart_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let store = folder("--store", dir.path());
    let args = ["--gpus=1", &store];
    let mut server = Server::start(&args);
    let viewer = Viewer::with_segments(&server, 3).await;
    check(&server, &viewer).await;
    let before = viewer.get(&server, "film.mp4").await;
    server.kill().await;
    let server = Server::start(&args);
    check(&server, &viewer).await;
    let after = viewer.get(&server, "film.mp4").await;
    assert_eq!(after.header("etag"), before.header("etag"));
    assert!(after.body == before.body, "the film is another one");
}

#[tokio::test]
async fn another_server_of_the_store_has_the_film() {
    let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = format!("--store={}", redis.url);
    let blobs = folder("--blobs", dir.path());
    let args = ["--gpus=1", &store, &blobs];
    let [server, other] = [Server::start(&args), Server::start(&args)];
    let mut viewer = Viewer::with_segments(&server, 2).await;
    check(&other, &viewer).await;
    assert!(viewer.document(&other).await.live);
    viewer.take(1).await;
    check(&other, &viewer).await;
    let watch = format!(
        "/v1/sessions/{}/film?token={}",
        viewer.id, viewer.watch_token
    );
    assert_eq!(other.get(&watch).await.0, 200);
    viewer.leave().await;
    let ended = viewer.document_when(&other, "the session has ended", |film| !film.live);
    assert!(ended.await.expires_at.is_some());
    let wrong = format!("/v1/sessions/{}/film?token=wrong", viewer.id);
    let (status, body) = other.get(&wrong).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (404, &json!("no_session"))
    );
}
