//! A site in a folder and the socket beside it, in a real browser. `tests/data/web_ui` does with the server what FastVideo's web
//! UI does.

use std::path::Path;

use nix::sys::signal::kill;

use super::*;
use crate::page::browser::Browser;
use crate::readback;

fn serve(args: &[&str]) -> Server {
    let site = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/web_ui");
    let ui_dir = format!("--ui-dir={}", site.display());
    let cap = "--streaming.generation_segment_cap=6";
    Server::start(&[&[&ui_dir, cap][..], args].concat())
}

/// Waits until so many rollouts are complete.
async fn complete(page: &Browser, rollouts: u32) {
    let all = format!("fastvideo.ui.rollouts === {rollouts}");
    page.until("the rollout is complete", &all).await;
}

/// Asserts that the browser has complained of nothing and that all it has comes from this server.
async fn is_clean(page: &Browser, server: &Server) {
    let hosts: Vec<String> = serde_json::from_value(page.get("fastvideo.fetched").await).unwrap();
    assert!(
        hosts.iter().all(|host| *host == server.address),
        "{hosts:?}"
    );
    page.has_no_complaints().await;
}

/// Asserts that a film has one picture of this length, in seconds, and one sound, which ends with the frame that covers it.
fn check_film(film: &[u8], seconds: f64) {
    readback::decode(film);
    let probe = readback::ffprobe(film, &[]);
    let streams = probe["streams"].as_array().unwrap();
    let codecs: Vec<&Value> = streams.iter().map(|stream| &stream["codec_name"]).collect();
    assert_eq!(codecs, ["h264", "aac"]);
    let [picture, sound] = [0, 1].map(|stream| -> f64 {
        let duration = streams[stream]["duration"].as_str();
        duration.unwrap().parse().unwrap()
    });
    assert!((picture - seconds).abs() < 0.001, "{picture} of {seconds}");
    let rate: f64 = streams[1]["sample_rate"].as_str().unwrap().parse().unwrap();
    let excess = sound - picture;
    assert!(
        (0.0..1024.0 / rate).contains(&excess),
        "{sound} beside {picture}"
    );
}

#[tokio::test]
async fn projects_are_made_edited_kept_and_watched_again() {
    let server = serve(ONE_GPU);
    server.ready(1).await;
    let page = Browser::open(&server).await;
    page.keys("#prompt", "a glass whale").await;
    page.click("#generate").await;
    complete(&page, 1).await;
    let [from, to] = page.only_range().await;
    assert!(from == 0.0 && (3.0..3.06).contains(&to), "{from} to {to}");
    page.until("it plays to its end", "video.ended").await;
    assert_eq!(
        page.get("document.getElementById('clock').textContent")
            .await,
        "300"
    );
    page.click("#download").await;
    check_film(&page.downloaded("mp4").await, 3.0);

    page.keys("#prompt", ", at night").await;
    page.click("#generate").await;
    complete(&page, 2).await;
    page.until_says(
        "#past li:nth-child(2)",
        "a glass whale. a glass whale, at night.",
    )
    .await;
    let [from, to] = page.only_range().await;
    assert!(from == 0.0 && (3.0..3.06).contains(&to), "{from} to {to}");

    page.click("#new-project").await;
    page.until("the project is over", "!fastvideo.ui.inProject")
        .await;
    page.click("#preset").await;
    let dry = "fastvideo.ui.texts.at(-1).type === 'prompt_sources_blocked'";
    page.until("both prompts are made", dry).await;
    page.click("#new-project").await;
    complete(&page, 3).await;
    page.click("#leave").await;
    server.sessions(0).await;

    page.reload().await;
    page.until_says("#past li:nth-child(3)", "a fox / a hill")
        .await;
    page.click("#past li:nth-child(3) button").await;
    let replay = "document.querySelector('#past li:nth-child(3) video')";
    page.until("it plays again", &format!("{replay}?.currentTime > 0.3"))
        .await;
    is_clean(&page, &server).await;
}

#[tokio::test]
async fn a_worker_that_is_killed_is_not_seen_in_the_film() {
    let args = [WATCHFUL, SLOW].concat();
    let args: Vec<&str> = args
        .into_iter()
        .map(|arg| if arg == "1" { "2" } else { arg })
        .collect();
    let mut films = Vec::new();
    for is_disturbed in [false, true] {
        let server = serve(&args);
        server.ready(2).await;
        let page = Browser::open(&server).await;
        page.keys("#prompt", "a glass whale").await;
        page.click("#generate").await;
        if is_disturbed {
            let third = "fastvideo.ui.segments.length === 3 && fastvideo.ui.segments[2].length > 3";
            page.until("the third segment is under way", third).await;
            let gpu =
                page.get("fastvideo.ui.texts.find((text) => text.type === 'gpu_assigned').gpu_id");
            let gpu = u32::try_from(gpu.await.as_u64().unwrap()).unwrap();
            kill(server.worker_pid(gpu).await, Signal::SIGKILL).unwrap();
        }
        complete(&page, 1).await;
        let [from, to] = page.only_range().await;
        assert!(from == 0.0 && (3.0..3.06).contains(&to), "{from} to {to}");
        page.until("it plays to its end", "video.ended").await;
        page.click("#download").await;
        films.push(page.downloaded("mp4").await);
        is_clean(&page, &server).await;
        assert_eq!(server.log().contains("SIGKILL"), is_disturbed);
    }
    check_film(&films[1], 3.0);
    assert!(
        films[0] == films[1],
        "the film of a killed worker is another one"
    );
}

#[tokio::test]
async fn who_waits_sees_the_place_and_goes_on_when_it_is_free() {
    let server = serve(&[SLOW, &["--streaming.pool.sessions_per_gpu", "1"]].concat());
    server.ready(1).await;
    let page = Browser::open(&server).await;
    page.keys("#prompt", "a glass whale").await;
    let first = live(&server, &["one"; 6]).await;
    page.click("#generate").await;
    page.until_says("#place", "In Queue 1").await;
    drop(first);
    complete(&page, 1).await;
    assert_eq!(
        page.get("document.getElementById('place').textContent")
            .await,
        ""
    );
    is_clean(&page, &server).await;
}

#[tokio::test]
async fn a_full_server_and_one_that_warms_up_say_so_and_the_text_stays() {
    let server = serve(&["--gpus", "1", "--streaming.limits.max_sessions", "1"]);
    server.ready(1).await;
    let page = Browser::open(&server).await;
    let first = live(&server, &["one"]).await;
    page.keys("#prompt", "a glass whale").await;
    page.click("#generate").await;
    page.until_says("#notice", "replica unavailable").await;
    assert_eq!(
        page.get("document.getElementById('prompt').value").await,
        "a glass whale"
    );
    drop(first);
    server.sessions(0).await;
    page.click("#generate").await;
    complete(&page, 1).await;
    is_clean(&page, &server).await;
    drop(page);

    let server = serve(&["--gpus", "1", "--generator.synthetic.load_ms", "60000"]);
    let page = Browser::open(&server).await;
    page.keys("#prompt", "a glass whale").await;
    page.click("#generate").await;
    page.until_says("#notice", "No ready GPU worker processes.")
        .await;
    assert_eq!(page.get("fastvideo.ui.socket").await, Value::Null);
}

#[tokio::test]
async fn a_server_that_leaves_lets_the_segment_finish_and_the_film_stays() {
    let mut server = serve(SLOW);
    server.ready(1).await;
    let page = Browser::open(&server).await;
    page.keys("#prompt", "a glass whale").await;
    page.click("#generate").await;
    page.until(
        "the second segment is under way",
        "fastvideo.ui.segments[1]?.length > 3",
    )
    .await;
    server.signal(Signal::SIGTERM);
    page.until_says("#notice", "Session ended").await;
    complete(&page, 1).await;
    assert_eq!(page.get("fastvideo.ui.code").await, 1001);
    page.click("#download").await;
    let segments = page.get("fastvideo.ui.segments.length").await;
    let seconds = segments.as_f64().unwrap() * 0.5;
    check_film(&page.downloaded("mp4").await, seconds);
    page.until("it plays to its end", "video.ended").await;
    page.has_no_complaints().await;
    assert!(server.exit().await.success());
}
