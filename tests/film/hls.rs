//! The film as an HLS playlist: it keeps the rules, and players play it to its end.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use super::whole::LARGE;
use super::{Answer, Viewer};
use crate::harness::{PATIENCE, Server, until};
use playlist::{Playlist, check_update};

mod playlist;

/// Whose film is played.
struct Film {
    id: String,
    token: String,
}

impl Film {
    fn of(viewer: &Viewer) -> Self {
        Self {
            id: viewer.id.clone(),
            token: viewer.token.clone(),
        }
    }

    /// The path of its playlist.
    fn path(&self) -> String {
        format!("/v1/sessions/{}/index.m3u8?token={}", self.id, self.token)
    }
}

async fn get(server: &Server, film: &Film) -> Playlist {
    get_when(server, film, "").await
}

/// The playlist as soon as it has what the Delivery Directives name.
async fn get_when(server: &Server, film: &Film, directives: &str) -> Playlist {
    let path = film.path() + directives;
    let answer = Answer::get(server, &path, &[]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        "application/vnd.apple.mpegurl"
    );
    assert_eq!(answer.header("cache-control"), "no-store");
    Playlist::parse(&String::from_utf8(answer.body).unwrap())
}

/// Loads what a playlist refers to.
async fn load(server: &Server, film: &Film, uri: &str, headers: &[(&str, &str)]) -> Answer {
    assert!(uri.ends_with(&format!("?token={}", film.token)), "{uri}");
    let path = format!("/v1/sessions/{}/{uri}", film.id);
    Answer::get(server, &path, headers).await
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

fn url(server: &Server, film: &Film) -> String {
    format!("http://{}{}", server.address, film.path())
}

#[tokio::test]
async fn a_playlist_grows_with_the_film_and_has_all_of_it() {
    let server = Server::start(&["--gpus=1"]);
    let mut viewer = Viewer::with_segments(&server, 0).await;
    let film = Film::of(&viewer);
    // Players give up on a list without a segment, so the first one is waited for.
    let (mut before, ()) = tokio::join!(get(&server, &film), viewer.take(1));
    assert_eq!((before.segments.len(), before.has_ended), (1, false));
    for count in 2..4 {
        viewer.take(1).await;
        let list = get(&server, &film).await;
        assert_eq!((list.segments.len(), list.has_ended), (count, false));
        assert_eq!(list.kind.as_deref(), Some("EVENT"));
        check_update(&before, &list);
        before = list;
    }
    viewer.leave().await;
    viewer
        .document_when(&server, "the session has ended", |film| !film.live)
        .await;
    let list = get(&server, &film).await;
    assert_eq!(
        (list.segments.len(), list.has_ended, list.target),
        (3, true, 1)
    );
    check_update(&before, &list);

    let bytes = async |uri: &str, (length, offset): (u64, u64)| {
        let range = format!("bytes={offset}-{}", offset + length - 1);
        let answer = load(&server, &film, uri, &[("range", &range)]).await;
        assert_eq!(answer.status, 206);
        answer.body
    };
    for (listed, segment) in list.segments.iter().zip(&viewer.segments) {
        assert_eq!(listed.duration, 0.5);
        let map = listed.map.as_ref();
        let map = map.expect("fragmented MP4 has an init segment");
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
async fn a_playlist_ends_when_its_session_cannot_be_resumed_any_more() {
    let server = Server::start(&["--gpus=1", "--streaming.resume_ttl_seconds=2"]);
    let Viewer {
        client, id, token, ..
    } = Viewer::with_segments(&server, 1).await;
    let ticket = json!({"resume": {"session_id": id, "token": token}});
    let film = Film { id, token };
    drop(client);
    server.sessions(0).await;
    assert!(!get(&server, &film).await.has_ended);
    let mut client = server.active(ticket).await;
    client.segment("a blue hare").await;
    let before = get(&server, &film).await;
    assert_eq!((before.segments.len(), before.has_ended), (2, false));
    drop(client);
    let ended = until("the list has ended", async || {
        Some(get(&server, &film).await).filter(|list| list.has_ended)
    })
    .await;
    check_update(&before, &ended);
}

#[tokio::test]
async fn players_play_a_film_that_has_ended() {
    let server = Server::start(&["--gpus=1"]);
    let mut viewer = Viewer::with_segments(&server, 5).await;
    viewer.leave().await;
    viewer
        .document_when(&server, "the session has ended", |film| !film.live)
        .await;
    let url = url(&server, &Film::of(&viewer));
    assert_eq!(pictures(&url).await, (60, 2.5));
    play("ffmpeg", &url, &["-f", "null", "-"]).await;
}

#[tokio::test]
async fn players_follow_a_film_to_its_end() {
    let server = Server::start(&["--gpus=1"]);
    let mut viewer = Viewer::with_segments(&server, 1).await;
    let url = url(&server, &Film::of(&viewer));
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

/// Follows segments of a session part by part, as a player of low-latency HLS does, and returns the bytes of each: the
/// init segment and what comes in the answers for its parts.
async fn follow(server: &Server, film: &Film, segments: u64) -> Vec<Vec<Vec<u8>>> {
    let mut before: Option<Playlist> = None;
    let mut followed: Vec<Vec<Vec<u8>>> = Vec::new();
    for segment in 0..segments {
        let mut messages = Vec::new();
        loop {
            // The next part, or the first one of the next segment when there are no more.
            let next = messages.len().saturating_sub(1);
            let directives = format!("&_HLS_msn={segment}&_HLS_part={next}");
            let list = get_when(server, film, &directives).await;
            assert!(list.can_block && list.part_target == Some(0.25));
            if let Some(before) = &before {
                check_update(before, &list);
            }
            before = Some(list.clone());
            let finished = usize::try_from(segment - list.sequence).unwrap();
            let finished = list.segments.get(finished);
            let parts = finished.map_or(&list.parts, |finished| &finished.parts);
            if messages.is_empty() {
                messages.push(load(server, film, &parts[0].map.uri, &[]).await.body);
            }
            for part in &parts[messages.len() - 1..] {
                let answer = load(server, film, &part.uri, &[]).await;
                assert_eq!(
                    (answer.status, answer.header("content-type")),
                    (200, "video/mp4")
                );
                messages.push(answer.body);
            }
            if finished.is_some() {
                break;
            }
            if let Some(hint) = &list.hint {
                // It comes as soon as it is made, if it comes.
                let answer = load(server, film, hint, &[]).await;
                match answer.status {
                    200 => messages.push(answer.body),
                    status => assert_eq!((status, answer.error()), (404, json!("no_part"))),
                }
            }
        }
        followed.push(messages);
    }
    followed
}

#[tokio::test]
async fn a_player_gets_each_part_while_its_segment_is_made() {
    let server = Server::start(&["--gpus=1", "--generator.synthetic.frame_ms=30"]);
    let mut viewer = Viewer::with_segments(&server, 0).await;
    let film = Film::of(&viewer);
    let (followed, ()) = tokio::join!(follow(&server, &film, 3), viewer.take(3));
    for (followed, made) in followed.iter().zip(&viewer.segments) {
        assert!(*followed == made.media);
    }
    // The parts of a finished segment stay where they were, and are files like others.
    let list = get(&server, &film).await;
    for (listed, made) in list.segments.iter().zip(&viewer.segments) {
        for (part, message) in listed.parts.iter().zip(&made.media[1..]) {
            let answer = load(&server, &film, &part.uri, &[]).await;
            assert!(answer.body == *message);
            let tag = answer.header("etag");
            let known = load(&server, &film, &part.uri, &[("if-none-match", tag)]).await;
            assert_eq!(known.status, 304);
            let begin = load(&server, &film, &part.uri, &[("range", "bytes=0-3")]).await;
            assert_eq!((begin.status, &begin.body[..]), (206, &message[..4]));
        }
    }
    viewer.leave().await;
    viewer
        .document_when(&server, "the session has ended", |film| !film.live)
        .await;
    let ended = get(&server, &film).await;
    check_update(&list, &ended);
    assert!(!ended.can_block && ended.has_ended);
}

#[tokio::test]
async fn a_request_for_a_playlist_waits_only_for_what_can_come() {
    let server = Server::start(&["--gpus=1"]);
    let mut viewer = Viewer::with_segments(&server, 2).await;
    let film = Film::of(&viewer);
    for (directives, message) in [
        ("&_HLS_part=0", "`_HLS_part` needs `_HLS_msn`"),
        (
            "&_HLS_msn=4",
            "`_HLS_msn` is 4, and the next segment of the playlist is 2",
        ),
        (
            "&_HLS_msn=18446744073709551615",
            "the next segment of the playlist is 2",
        ),
        ("&_HLS_msn=-1", "_HLS_msn"),
        ("&_HLS_msn=1&_HLS_msn=2", "_HLS_msn"),
    ] {
        let path = film.path() + directives;
        let answer = Answer::get(&server, &path, &[]).await;
        assert_eq!(
            (answer.status, answer.error()),
            (400, json!("invalid_request")),
            "{directives}"
        );
        let text = String::from_utf8(answer.body).unwrap();
        assert!(text.contains(message), "{text}");
    }
    for part in ["1-99.m4s", "2-1.m4s", "1-1.mp4", "1-1"] {
        let answer = viewer.get(&server, &format!("film/1/{part}")).await;
        assert_eq!(
            (answer.status, answer.error()),
            (404, json!("no_part")),
            "{part}"
        );
    }
    let other = Answer::get(&server, "/v1/sessions/x/film/1/1-1.m4s?token=y", &[]).await;
    assert_eq!((other.status, other.error()), (404, json!("no_session")));

    // Nothing comes while nobody asks for a segment: the answer is the list as it is, and not an error.
    let before = get(&server, &film).await;
    let same = get_when(&server, &film, "&_HLS_msn=2").await;
    assert_eq!(same.next(), before.next());
    // A session that ends has nothing more.
    let path = film.path() + "&_HLS_msn=2&_HLS_part=0";
    let (answer, ()) = tokio::join!(Answer::get(&server, &path, &[]), viewer.leave());
    assert!(Playlist::parse(&String::from_utf8(answer.body).unwrap()).has_ended);
}

#[tokio::test]
async fn a_segment_that_starts_again_is_listed_whole() {
    let faults = "blank@frame0,max_attempt=1;exit@frame9,max_attempt=1";
    let args = [
        "--gpus=2",
        "--generator.synthetic.frame_ms=30",
        "--generator.synthetic.faults",
        faults,
    ];
    let server = Server::start(&args);
    let mut viewer = Viewer::with_segments(&server, 0).await;
    let film = Film::of(&viewer);
    let follow = async {
        let void = get_when(&server, &film, "&_HLS_msn=0&_HLS_part=0").await;
        assert!(void.parts[0].uri.starts_with("film/0/1-1.m4s"), "{void:?}");
        let whole = get_when(&server, &film, "&_HLS_msn=0").await;
        assert_eq!(whole.next(), 1);
        (void, whole)
    };
    let ((void, whole), ()) = tokio::join!(follow, viewer.take(1));
    let segment = &whole.segments[0];
    let map = segment.map.as_ref().unwrap();
    assert!(
        map.uri.starts_with("film/0/2-0.m4s") && segment.parts.is_empty(),
        "{segment:?}"
    );
    let old = load(&server, &film, &void.parts[0].uri, &[]).await;
    assert_eq!((old.status, old.error()), (404, json!("no_part")));
}

#[tokio::test]
async fn a_playlist_forgets_the_media_that_are_gone() {
    let limit = "--streaming.recording.max_mib_per_session=1";
    let server = Server::start(&[LARGE, &[limit]].concat());
    let mut viewer = Viewer::with_segments(&server, 1).await;
    let film = Film::of(&viewer);
    let mut before = get(&server, &film).await;
    assert_eq!(before.kind.as_deref(), Some("EVENT"));
    let size = viewer.segments[0].bytes().len();
    for _ in 0..(2 << 20) / size {
        viewer.take(1).await;
        let list = get(&server, &film).await;
        let whole = list.sequence == 0;
        assert_eq!(list.kind.is_some(), whole, "{}", list.sequence);
        if list.kind == before.kind {
            check_update(&before, &list);
        }
        before = list;
    }
    assert!(before.sequence > 0);
    let document = viewer.document(&server).await;
    let kept = document
        .segments
        .iter()
        .filter(|segment| segment.kept)
        .count();
    assert_eq!(before.segments.len(), kept);
}
