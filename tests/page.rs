//! The built-in page in a real browser.

use serde_json::{Value, json};

use crate::harness::{Client, Server, merge};
use crate::readback;
use browser::Browser;

mod access;
pub(crate) mod browser;
mod film;
mod history;
mod keys;
mod prompts;
mod recovery;
mod session;
mod stories;
mod videos;

/// Segments of three seconds that come out faster than they play.
const PACED: &[&str] = &[
    "--default_request.sampling.num_frames=72",
    "--generator.synthetic.step_ms=20",
    "--generator.synthetic.frame_ms=28",
];

const FOX: &str = "a red fox in the snow";
const LIGHTHOUSE: &str = "a lighthouse at night";
const OWL: &str = "an owl over the sea";

#[tokio::test]
async fn two_prompts_play_to_their_ends_without_a_stall() {
    let server = Server::start(PACED);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until(
        "the first segment plays while it is being made",
        "fastvideo.segments[0]?.state === 'streaming' && video.currentTime > 0.3",
    )
    .await;
    page.keys("#prompt", LIGHTHOUSE).await;
    page.keys("#prompt", browser::ENTER).await;
    page.until_state("segment-1", "done").await;
    page.screenshot("two_prompts").await;
    page.play_out().await;

    assert_eq!(page.get("fastvideo.stalls").await, 0);
    assert_eq!(page.get("fastvideo.errors").await, json!([]));
    assert_eq!(
        page.get("[video.videoWidth, video.videoHeight]").await,
        json!([128, 96])
    );
    assert_eq!(
        page.get("video.getVideoPlaybackQuality().totalVideoFrames")
            .await,
        144
    );
    let [from, to] = page.only_range().await;
    assert!(from == 0.0 && (6.0..6.06).contains(&to), "{from} to {to}");
    let end = page.get("video.currentTime").await.as_f64().unwrap();
    assert!((end - to).abs() < 0.001, "{end} of {to}");
    for part in ["segment-0", "segment-1"] {
        assert_eq!(page.states(part).await, ["denoising", "streaming", "done"]);
    }
    page.has_no_complaints().await;
}

#[tokio::test]
async fn video_that_ran_dry_goes_on_with_the_next_prompt() {
    let server = Server::start(PACED);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_says("#hint", "Send a prompt to go on from here")
        .await;
    page.prompt(LIGHTHOUSE).await;
    page.until(
        "the second segment plays while it is being made",
        "fastvideo.segments[1]?.state === 'streaming' && video.currentTime > 3.2",
    )
    .await;
    page.until_state("segment-1", "done").await;
    page.play_out().await;
    assert_eq!(page.get("fastvideo.stalls").await, 0);
    let end = page.get("video.currentTime").await.as_f64().unwrap();
    assert!((6.0..6.06).contains(&end), "{end}");
    page.has_no_complaints().await;
}

#[tokio::test]
async fn download_is_one_playable_file() {
    let server = Server::start(&["--gpus=2"]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.prompt(LIGHTHOUSE).await;
    page.until_state("segment-1", "done").await;
    page.click("#download").await;
    let file = page.downloaded("mp4").await;

    readback::decode(&file);
    let probe = readback::ffprobe(&file, &["-count_frames"]);
    let streams = probe["streams"].as_array().unwrap();
    let kinds: Vec<&Value> = streams.iter().map(|s| &s["codec_type"]).collect();
    assert_eq!(kinds, ["video", "audio"]);
    assert_eq!(streams[0]["nb_read_frames"], "24");
    let seconds: f64 = probe["format"]["duration"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1.0..1.06).contains(&seconds), "{seconds}");

    // It shows what any client gets for these prompts.
    let mut client = server.active(json!({})).await;
    let mut expected = client.segment(FOX).await.bytes();
    let second = client.segment(LIGHTHOUSE).await;
    expected.extend(second.media[1..].concat());
    let pictures = |file: &[u8]| readback::pictures(file, 128, 96);
    assert!(pictures(&file) == pictures(&expected));
    page.has_no_complaints().await;
}

#[tokio::test]
async fn viewer_goes_back_pauses_and_hears() {
    let server = Server::start(&["--default_request.sampling.num_frames=48"]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.prompt(LIGHTHOUSE).await;
    page.until("the second segment plays", "video.currentTime > 2.1")
        .await;

    page.click("[data-testid=segment-0] .num").await;
    page.until(
        "the first segment plays",
        "!video.seeking && video.currentTime < 2",
    )
    .await;
    // The viewer has done something on the page, so that the browser allows sound.
    assert_eq!(page.get("video.muted").await, false);
    page.until(
        "it plays with sound",
        "!video.paused && video.currentTime > 0.5",
    )
    .await;
    page.click("#play").await;
    page.until("the video is paused", "video.paused").await;
    page.click("#play").await;
    page.play_out().await;
    assert_eq!(page.get("fastvideo.stalls").await, 0);
    page.has_no_complaints().await;
}

#[tokio::test]
async fn jpeg_frames_are_shown() {
    let server = Server::start(&["--default_request.sampling.num_frames=36"]);
    let page = Browser::open(&server).await;
    page.click("label:has(#t-jpeg)").await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.until_says("#clock", "0:01").await;
    let size = page.get("[jpeg.width, jpeg.height]").await;
    assert_eq!(size, json!([128, 96]));
    page.has_no_complaints().await;
}

#[tokio::test]
async fn beside_a_site_the_page_does_all_in_its_folder() {
    let site = tempfile::tempdir().unwrap();
    std::fs::write(site.path().join("index.html"), "a site").unwrap();
    let ui_dir = format!("--ui-dir={}", site.path().display());
    let server = Server::start(&["--gpus=1", &ui_dir]);
    let page = Browser::open_at(&server, "operator/").await;
    page.until_says("#board-brief", "1 of 1 free, nobody waiting")
        .await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.play_out().await;
    let link = page
        .get("document.getElementById('watch-link').value")
        .await;
    let folder = format!("http://{}/operator/watch#session=", server.address);
    assert!(link.as_str().unwrap().starts_with(&folder), "{link}");
    page.click("#videos-tab").await;
    page.until_says("#jobs-empty", "Nothing yet").await;
    page.has_no_complaints().await;
}

/// Saves `target/page/readme.png`: three segments, the third of them in the making.
#[tokio::test]
#[ignore = "makes the picture of the README"]
async fn picture_for_the_readme() {
    let server = Server::start_exactly(&[
        "--gpus=2",
        "--generator.synthetic.step_ms=150",
        "--generator.synthetic.frame_ms=20",
    ]);
    let page = Browser::open(&server).await;
    for prompt in [
        "A sailing boat on a calm sea at sunrise, gulls",
        "A red fox trots through fresh snow at dawn, pine trees",
        "Night falls, fireflies over a lake, full moon",
    ] {
        page.prompt(prompt).await;
    }
    page.until("the second segment plays", "video.currentTime > 2")
        .await;
    page.until(
        "its middle is seen and the third one comes",
        "video.currentTime > 8.5 && fastvideo.segments[2]?.state === 'streaming'",
    )
    .await;
    page.screenshot("readme").await;
}
