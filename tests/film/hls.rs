//! The film as an HLS playlist: it keeps the rules, and players play it to its end.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::whole::LARGE;
use super::{Answer, Viewer};
use crate::harness::{PATIENCE, Server};
use playlist::{Playlist, check_update};

mod playlist;

async fn get(server: &Server, viewer: &Viewer) -> Playlist {
    let answer = viewer.get(server, "index.m3u8").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        "application/vnd.apple.mpegurl"
    );
    assert_eq!(answer.header("cache-control"), "no-store");
    Playlist::parse(&String::from_utf8(answer.body).unwrap())
}

/// Runs a program of FFmpeg on a playlist, and returns what it writes. Asserts that it complains about nothing.
#[expect(
    clippy::disallowed_methods,
    reason = "tests play what the server serves with other programs"
)]
async fn play(program: &str, url: &str, after: &[&str]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(["-v", "error", "-live_start_index", "0", "-i", url]);
    let playing = command
        .args(after)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, playing)
        .await
        .expect("it plays to the end");
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error} (make test installs it)"));
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && complaints.is_empty(),
        "{program}: {complaints}"
    );
    output.stdout
}

/// The number of pictures that a player gets, and the end of the last of them in seconds.
async fn pictures(url: &str) -> (usize, f64) {
    let wanted = ["-select_streams", "v", "-show_packets", "-of", "json"];
    let shown = play("ffprobe", url, &wanted).await;
    let shown: Value = serde_json::from_slice(&shown).unwrap();
    let packets = shown["packets"].as_array().unwrap();
    let seconds =
        |packet: &Value, field: &str| -> f64 { packet[field].as_str().unwrap().parse().unwrap() };
    let end = |packet: &Value| seconds(packet, "pts_time") + seconds(packet, "duration_time");
    (packets.len(), packets.last().map_or(0.0, end))
}

fn url(server: &Server, viewer: &Viewer) -> String {
    format!("http://{}{}", server.address, viewer.path("index.m3u8"))
}

#[tokio::test]
async fn a_playlist_grows_with_the_film_and_has_all_of_it() {
    let server = Server::start(&["--gpus=1"]);
    let mut viewer = Viewer::with_segments(&server, 0).await;
    let mut before = get(&server, &viewer).await;
    assert_eq!((before.segments.len(), before.has_ended), (0, false));
    for count in 1..4 {
        viewer.take(1).await;
        let list = get(&server, &viewer).await;
        assert_eq!((list.segments.len(), list.has_ended), (count, false));
        assert_eq!(list.kind.as_deref(), Some("EVENT"));
        check_update(&before, &list);
        before = list;
    }
    viewer.leave().await;
    viewer
        .document_when(&server, "the session has ended", |film| !film.live)
        .await;
    let list = get(&server, &viewer).await;
    assert_eq!(
        (list.segments.len(), list.has_ended, list.target),
        (3, true, 1)
    );
    check_update(&before, &list);

    let bytes = async |uri: &str, (length, offset): (u64, u64)| {
        assert!(uri.ends_with(&format!("?token={}", viewer.token)), "{uri}");
        let path = format!("/v1/sessions/{}/{uri}", viewer.id);
        let range = format!("bytes={offset}-{}", offset + length - 1);
        let answer = Answer::get(&server, &path, &[("range", &range)]).await;
        assert_eq!(answer.status, 206);
        answer.body
    };
    for (listed, segment) in list.segments.iter().zip(&viewer.segments) {
        assert_eq!(listed.duration, 0.5);
        let map = listed
            .map
            .as_ref()
            .expect("fragmented MP4 has an init segment");
        let (init, fragments) = segment.media.split_first().unwrap();
        assert!(bytes(&map.uri, map.range).await == *init);
        let range = listed.range.expect("the init segment is in the same file");
        assert!(bytes(&listed.uri, range).await == fragments.concat());
    }

    // Who sends the token as a header does so for everything.
    let bearer = format!("Bearer {}", viewer.watch_token);
    for query in ["", "?token=other"] {
        let path = format!("/v1/sessions/{}/index.m3u8{query}", viewer.id);
        let answer = Answer::get(&server, &path, &[("authorization", &bearer)]).await;
        let text = String::from_utf8(answer.body).unwrap();
        assert!(!text.contains("token"), "{text}");
        assert_eq!(Playlist::parse(&text).segments.len(), 3);
    }
}

#[tokio::test]
async fn players_play_a_film_that_has_ended() {
    let server = Server::start(&["--gpus=1"]);
    let mut viewer = Viewer::with_segments(&server, 5).await;
    viewer.leave().await;
    viewer
        .document_when(&server, "the session has ended", |film| !film.live)
        .await;
    let url = url(&server, &viewer);
    assert_eq!(pictures(&url).await, (60, 2.5));
    play("ffmpeg", &url, &["-f", "null", "-"]).await;
}

#[tokio::test]
async fn players_follow_a_film_to_its_end() {
    let server = Server::start(&["--gpus=1"]);
    let mut viewer = Viewer::with_segments(&server, 1).await;
    let url = url(&server, &viewer);
    let play = pictures(&url);
    let make = async {
        for _ in 0..4 {
            viewer.take(1).await;
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
        viewer.leave().await;
    };
    let (played, ()) = tokio::join!(play, make);
    assert_eq!(played, (60, 2.5));
}

#[tokio::test]
async fn a_playlist_forgets_the_media_that_are_gone() {
    let limit = "--streaming.recording.max_mib_per_session=1";
    let server = Server::start(&[LARGE, &[limit]].concat());
    let mut viewer = Viewer::with_segments(&server, 1).await;
    let mut before = get(&server, &viewer).await;
    assert_eq!(before.kind.as_deref(), Some("EVENT"));
    let size = viewer.segments[0].bytes().len();
    for _ in 0..(2 << 20) / size {
        viewer.take(1).await;
        let list = get(&server, &viewer).await;
        let whole = list.sequence == 0;
        assert_eq!(list.kind.is_some(), whole, "{}", list.sequence);
        if list.kind == before.kind {
            check_update(&before, &list);
        }
        before = list;
    }
    assert!(before.sequence > 0);
    let film = viewer.document(&server).await;
    let kept = film.segments.iter().filter(|segment| segment.kept).count();
    assert_eq!(before.segments.len(), kept);
}
