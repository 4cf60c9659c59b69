//! Previews: pictures of a segment before its media, for those who ask.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::harness::{Client, Heard, Segment, Server};
use crate::router::router;
use crate::watch;

/// A server whose engine makes previews, of two frames of each segment.
fn server(args: &[&str]) -> Server {
    let preview = "--generator.synthetic.preview=true";
    Server::start(&[&["--gpus=1", preview], args].concat())
}

/// Opens a session, and says whether the server makes previews.
async fn open(server: &Server, init: Value) -> (Client, bool) {
    let mut client = server.open(init).await;
    let start = client.until_type("ltx2_stream_start").await;
    (client, start["features"]["preview"].as_bool().unwrap())
}

/// A segment, and its previews, which must all come before its media.
pub(crate) async fn segment(client: &mut Client, prompt: &str) -> (Segment, Vec<Value>) {
    client.prompt(prompt).await;
    let mut segment = Segment {
        texts: Vec::new(),
        media: Vec::new(),
    };
    let mut previews = Vec::new();
    loop {
        match client.next().await {
            Heard::Text(text) if text["type"] == "ltx2_preview" => {
                let has_begun = |text: &Value| text["type"] == "ltx2_segment_start";
                assert!(segment.texts.iter().any(has_begun) && segment.media.is_empty());
                previews.push(text);
            }
            Heard::Text(text) => {
                let is_last = text["type"] == "ltx2_segment_complete";
                segment.texts.push(text);
                if is_last {
                    return (segment, previews);
                }
            }
            Heard::Media(bytes) => segment.media.push(bytes),
            Heard::Closed(code) => panic!("closed with {code:?}"),
        }
    }
}

/// The picture of a preview, which has the size that is told.
pub(crate) fn picture(preview: &Value) -> image::RgbImage {
    let jpeg = STANDARD.decode(preview["jpeg"].as_str().unwrap()).unwrap();
    let format = image::ImageFormat::Jpeg;
    let picture = image::load_from_memory_with_format(&jpeg, format);
    let picture = picture.unwrap().into_rgb8();
    let (width, height) = picture.dimensions();
    assert_eq!(
        (&preview["width"], &preview["height"]),
        (&json!(width), &json!(height))
    );
    picture
}

#[tokio::test]
async fn previews_come_to_those_who_ask_and_change_no_byte() {
    let plain = Server::start(&["--gpus=1"]);
    let (mut client, makes) = open(&plain, json!({"preview": true})).await;
    assert!(!makes);
    let mut expected = Vec::new();
    for prompt in ["a red fox", "a blue hare"] {
        let (segment, previews) = segment(&mut client, prompt).await;
        assert!(previews.is_empty());
        expected.push(segment.media);
    }

    let server = server(&[]);
    for init in [
        json!({}),
        json!({"preview": false}),
        json!({"preview": true}),
    ] {
        let (mut client, makes) = open(&server, init.clone()).await;
        assert!(makes);
        for (idx, (prompt, media)) in ["a red fox", "a blue hare"]
            .iter()
            .zip(&expected)
            .enumerate()
        {
            let (segment, previews) = segment(&mut client, prompt).await;
            assert!(&segment.media == media, "other media with {init}");
            let frames: Vec<_> = previews.iter().map(|preview| &preview["frame"]).collect();
            if init["preview"] != true {
                assert!(frames.is_empty(), "{init}");
                continue;
            }
            // Twelve frames: the middle one, and the last.
            assert_eq!(frames, [6, 11]);
            for preview in &previews {
                assert_eq!(preview["segment_idx"], idx);
                assert_eq!(
                    (&preview["attempt"], &preview["num_frames"]),
                    (&json!(1), &json!(12))
                );
                assert_eq!(picture(preview).dimensions(), (128, 96));
            }
        }
    }
}

/// A large frame is made smaller.
#[tokio::test]
async fn previews_are_small_pictures_of_the_frames() {
    let server = server(&[
        "--default_request.sampling.width=960",
        "--default_request.sampling.height=544",
        "--default_request.sampling.num_frames=2",
    ]);
    let init = json!({"preview": true, "stream_mode": "legacy_jpeg"});
    let (mut client, _) = open(&server, init).await;
    let (segment, previews) = segment(&mut client, "a red fox").await;
    let preview = picture(previews.last().unwrap());
    assert_eq!(preview.dimensions(), (640, 362));
    let frame = image::load_from_memory(segment.media.last().unwrap()).unwrap();
    let filter = image::imageops::FilterType::Triangle;
    let frame = frame.resize_exact(640, 362, filter).into_rgb8();
    let differences = frame
        .iter()
        .zip(preview.iter())
        .map(|(a, b)| f64::from(a.abs_diff(*b)));
    let mean = differences.sum::<f64>() / f64::from(640 * 362 * 3);
    assert!(mean < 6.0, "{mean}");
}

#[tokio::test]
async fn previews_go_through_a_router_and_to_no_spectator() {
    let server = server(&[]);
    let router = router(&[&server.address]);
    let mut client = router.open(json!({"preview": true})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let (session, token) = (&assigned["session_id"], &assigned["watch_token"]);
    let (session, token) = (session.as_str().unwrap(), token.as_str().unwrap());
    let query = format!("session={session}&token={token}");
    let (mut spectator, _) = watch::watch(&server, &query).await;
    let (segment, previews) = segment(&mut client, "a red fox").await;
    let frames: Vec<_> = previews.iter().map(|preview| &preview["frame"]).collect();
    assert_eq!(frames, [6, 11]);
    let seen = spectator.collect_until("film_segment").await;
    assert!(seen.of("ltx2_preview").is_empty());
    assert!(seen.media == segment.media);
}
