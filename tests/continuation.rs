//! Continuation states: out of a session, into another one, and back out again when they do not fit.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fastvideo_proto::state::ContinuationState;
use fastvideo_supervisor_core::store::export::{self, Blobs, Expectation};
use serde_json::{Value, json};

use crate::harness::{Client, Heard, Segment, Server, python};

const FAST: &[&str] = &[
    "--gpus",
    "1",
    "--default_request.sampling.width=64",
    "--default_request.sampling.height=64",
];

async fn snapshot(client: &mut Client) -> Value {
    client.send(json!({"type": "snapshot_state"})).await;
    let message = client.expect("continuation_state_snapshot").await;
    message["state"].clone()
}

async fn leave(mut client: Client) {
    client.send(json!({"type": "leave"})).await;
    assert_eq!(client.closed().await, Some(1000));
}

/// A state after one segment.
async fn some_state(server: &Server) -> Value {
    let mut client = server.active(json!({})).await;
    client.segment("a red desert").await;
    let state = snapshot(&mut client).await;
    leave(client).await;
    state
}

#[tokio::test]
async fn there_is_a_state_once_a_segment_is_finished() {
    let server = Server::start(FAST);
    let mut client = server.active(json!({})).await;
    client.send(json!({"type": "snapshot_state"})).await;
    let error = client.expect("error").await;
    assert_eq!(error["retryable"], false);
    assert!(error["message"].as_str().unwrap().contains("no segment"));

    for idx in 0..2 {
        client.segment("a fox").await;
        let state = snapshot(&mut client).await;
        assert_eq!(state["kind"], "ltx2.v1");
        let payload = &state["payload"];
        assert_eq!(payload["schema_version"], 1);
        assert_eq!(payload["segment_index"], idx);
        let frames = payload["video"]["frames_b64"].as_array().unwrap();
        assert_eq!(frames.len(), 9);
        for frame in frames {
            let png = BASE64.decode(frame.as_str().unwrap()).unwrap();
            let frame = image::load_from_memory(&png).unwrap();
            assert_eq!((frame.width(), frame.height()), (64, 64));
        }
        assert!(payload["audio"]["safetensors_b64"].is_string());
    }
}

#[tokio::test]
async fn a_snapshot_while_a_segment_runs_is_that_of_the_last_one_and_disturbs_nothing() {
    let server = Server::start(&[FAST, &["--generator.synthetic.step_ms", "20"]].concat());
    let mut media = Vec::new();
    for disturbed in [false, true] {
        let mut client = server.active(json!({})).await;
        client.segment("a fox").await;
        let before = snapshot(&mut client).await;
        let request =
            json!({"type": "segment_prompt_source", "prompt": "a hare", "num_inference_steps": 25});
        client.send(request).await;
        client.until_type("step_complete").await;
        if disturbed {
            for _ in 0..3 {
                client.send(json!({"type": "snapshot_state"})).await;
            }
            for _ in 0..3 {
                let during = client.until_type("continuation_state_snapshot").await;
                assert!(during["state"] == before);
            }
        }
        let segment = client.collect_until("ltx2_segment_complete").await;
        assert_eq!(segment.only("ltx2_segment_complete")["segment_idx"], 1);
        media.push(segment.media);
        leave(client).await;
    }
    assert!(media[0] == media[1]);
}

/// The pictures of a segment.
fn pictures(segment: &Segment) -> Vec<image::RgbImage> {
    let decode = |bytes: &Vec<u8>| image::load_from_memory(bytes).unwrap().into_rgb8();
    segment.media.iter().map(decode).collect()
}

/// Mean difference of two pictures, 0 to 255.
fn difference(one: &image::RgbImage, other: &image::RgbImage) -> f64 {
    let pairs = one.as_raw().iter().zip(other.as_raw());
    let sum: f64 = pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / one.as_raw().len() as f64
}

#[tokio::test]
async fn a_state_goes_on_in_a_new_session_of_another_server() {
    let jpeg = json!({"stream_mode": "legacy_jpeg"});
    let origin = Server::start(FAST);
    let mut client = origin.active(jpeg.clone()).await;
    let last = client.segment("a red desert").await;
    let last = pictures(&last).pop().unwrap();
    let state = snapshot(&mut client).await;
    drop(origin);

    let server = Server::start(FAST);
    let prompt = "a blue ocean at night";
    let mut opening = jpeg.clone();
    opening["continuation_state"] = state.clone();
    let mut continued = Vec::new();
    for _ in 0..2 {
        let mut client = server.active(opening.clone()).await;
        assert!(snapshot(&mut client).await == state, "what came in");
        let segment = client.segment(prompt).await;
        assert_eq!(segment.only("ltx2_segment_start")["segment_idx"], 0);
        assert_eq!(segment.only("media_segment_complete")["pts_base_ms"], 0.0);
        let after = snapshot(&mut client).await;
        assert_eq!(after["payload"]["segment_index"], 1);
        continued.push((segment, after));
        leave(client).await;
    }
    let (segment, after) = &continued[0];
    assert!(segment.media == continued[1].0.media, "twice the same");
    assert!(*after == continued[1].1);

    let mut client = server.active(jpeg).await;
    let fresh = client.segment(prompt).await;
    assert!(fresh.media != segment.media);
    let [continued, fresh] = [segment, &fresh].map(|s| difference(&last, &pictures(s)[0]));
    assert!(
        continued * 3.0 < fresh,
        "the picture goes on: it changes by {continued}, from the start by {fresh}"
    );
}

fn png_b64(width: u32, height: u32) -> String {
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(width, height)
        .write_to(&mut png, image::ImageFormat::Png)
        .unwrap();
    BASE64.encode(png.into_inner())
}

#[tokio::test]
async fn a_state_that_does_not_fit_is_refused_by_field_and_leaves_nothing_behind() {
    let server = Server::start(FAST);
    let good = some_state(&server).await;
    let audio = good["payload"]["audio"]["safetensors_b64"]
        .as_str()
        .unwrap();
    let frames = good["payload"]["video"]["frames_b64"].as_array().unwrap();
    let frame = frames[0].as_str().unwrap();
    let damaged = |at: usize| {
        let mut frames = frames.clone();
        frames[at] = json!(&frame[..frame.len() / 8 * 4]);
        json!({ "frames_b64": frames })
    };
    for (pointer, value, expected) in [
        ("/kind", json!("ltx3.v1"), "`kind`"),
        ("/payload/schema_version", json!(2), "schema_version"),
        ("/payload/segment_index", json!(-1), "segment_index"),
        (
            "/payload/video_conditioning_strength",
            json!(1.5),
            "video_conditioning_strength",
        ),
        (
            "/payload/video_conditioning_strength",
            json!("NaN"),
            "video_conditioning_strength",
        ),
        (
            "/payload/video_position_offset_sec",
            json!("soon"),
            "video_position_offset_sec",
        ),
        ("/payload/metadata", json!([]), "metadata"),
        ("/payload/video", damaged(0), "frames_b64[0]"),
        ("/payload/video", damaged(8), "frames_b64[8]"),
        (
            "/payload/video",
            json!({"frames_b64": [png_b64(64, 32)]}),
            "frames_b64[0]",
        ),
        (
            "/payload/video",
            json!({"blob_id": "sha256:1234", "frame_count": 9}),
            "payload.video.blob_id",
        ),
        (
            "/payload/audio",
            json!({"blob_id": "sha256:1234"}),
            "payload.audio.blob_id",
        ),
        (
            "/payload/audio",
            json!({"safetensors_b64": "!"}),
            "safetensors_b64",
        ),
        (
            "/payload/audio",
            json!({"safetensors_b64": &audio[..audio.len() / 8 * 4]}),
            "safetensors_b64",
        ),
    ] {
        let mut state = good.clone();
        *state.pointer_mut(pointer).unwrap() = value;
        let mut client = server.open(json!({"continuation_state": state})).await;
        let error = client.expect("error").await;
        assert_eq!(
            (&error["code"], &error["retryable"]),
            (&json!("state_incompatible"), &json!(false)),
            "{pointer}: {error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(expected), "{pointer}: {message}");
        assert_eq!(client.next().await, Heard::Closed(Some(1003)), "{pointer}");
    }
    server.sessions(0).await;
    assert_eq!(server.gpu(0).await["client_count"], 0);

    // JSON has no NaN: the message does not parse.
    let mut client = server.connect().await;
    client
        .send_text(r#"{"type":"session_init_v2","continuation_state":{"kind":"ltx2.v1","payload":{"x":NaN}}}"#)
        .await;
    assert_eq!(client.expect("error").await["code"], "invalid_message");
    assert_eq!(client.closed().await, Some(1003));
}

#[tokio::test]
async fn a_state_that_only_the_model_can_refuse_ends_the_session_too() {
    let server = Server::start(FAST);
    let mut state = some_state(&server).await;
    // Well-formed, but without the frames that this model continues from.
    state["payload"]["video"] = json!(null);
    let mut client = server.active(json!({"continuation_state": state})).await;
    client.prompt("a fox").await;
    client.expect("ltx2_segment_start").await;
    let error = client.expect("error").await;
    assert_eq!(
        (&error["code"], &error["retryable"], &error["segment_idx"]),
        (&json!("state_incompatible"), &json!(false), &json!(0))
    );
    let complete = json!({"type": "ltx2_stream_complete", "reason": "error"});
    assert_eq!(client.next().await, Heard::Text(complete));
    assert_eq!(client.next().await, Heard::Closed(Some(1003)));
    server.sessions(0).await;
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/continuation");

/// What the script that wrote the golden states says to this one.
fn read_by_python(state: &ContinuationState, blobs: &[export::ExportedBlob]) -> String {
    let dir = tempfile::tempdir().unwrap();
    for blob in blobs {
        std::fs::write(dir.path().join(&blob.id), &blob.bytes).unwrap();
    }
    let file = dir.path().join("state.json");
    std::fs::write(&file, serde_json::to_vec(state).unwrap()).unwrap();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/make_continuation.py"
    );
    let ran = python().arg(script).arg("--check").arg(&file).output();
    let ran = ran.unwrap();
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{errors}");
    String::from_utf8(ran.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn what_python_wrote_is_read_by_python_again_after_we_had_it() {
    let expect = Expectation {
        width: 24,
        height: 16,
    };
    for (name, expected) in [
        ("bf16", "latents [1, 8, 6, 16] bfloat16"),
        ("f16", "latents [1, 8, 6, 16] float16"),
        ("f32", "latents [1, 8, 6, 16] float32"),
        ("silent", "no sound"),
        ("blobs", "latents [1, 8, 6, 16] bfloat16"),
    ] {
        let text = std::fs::read(format!("{GOLDEN}/{name}.json")).unwrap();
        let envelope = serde_json::from_slice(&text).unwrap();
        let ids = export::references(&envelope).unwrap();
        let read = |id: String| {
            let bytes = std::fs::read(format!("{GOLDEN}/{id}")).unwrap();
            (id, bytes.into())
        };
        let blobs: Blobs = ids.into_iter().map(read).collect();
        let state = export::import(&envelope, &blobs, &expect).unwrap();
        let expected = format!("2 frames of 24x16, {expected}");
        let exported = export::export_inline(&state).unwrap();
        assert_eq!(read_by_python(&exported, &[]), expected);
        let (exported, blobs) = export::export_by_reference(&state).unwrap();
        assert!(blobs.is_empty());
        assert_eq!(read_by_python(&exported, &blobs), expected);
    }
}

/// The formula of the script that wrote the golden states.
fn picture(index: u64, side: u32) -> String {
    let picture = image::RgbImage::from_fn(side, side, |x, y| {
        image::Rgb([0, 1, 2].map(|c| {
            let n = (u64::from(x) * 73_856_093) ^ (u64::from(y) * 19_349_663);
            let n = n ^ (c * 83_492_791) ^ (index * 49_979_687);
            n.wrapping_mul(2_654_435_761).to_le_bytes()[3]
        }))
    });
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    BASE64.encode(png.into_inner())
}

#[test]
fn python_reads_the_large_tensors_that_we_put_into_blobs() {
    let side = 320;
    let frames: Vec<String> = (0..9).map(|i| picture(i, side)).collect();
    let header = r#"{"t":{"dtype":"F32","shape":[1,8,8192,16],"data_offsets":[0,4194304]}}  "#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    for i in 0..8_u32 * 8192 * 16 {
        file.extend_from_slice(&(((i % 256) as f32 - 128.0) / 64.0).to_le_bytes());
    }
    let golden = std::fs::read(format!("{GOLDEN}/f32.json")).unwrap();
    let mut envelope: ContinuationState = serde_json::from_slice(&golden).unwrap();
    envelope.payload["video"] = json!({ "frames_b64": frames });
    envelope.payload["audio"] = json!({ "safetensors_b64": BASE64.encode(&file) });
    let expect = Expectation {
        width: side,
        height: side,
    };
    let state = export::import(&envelope, &Blobs::new(), &expect).unwrap();
    let (exported, blobs) = export::export_by_reference(&state).unwrap();
    assert_eq!(blobs.len(), 2);
    assert!(serde_json::to_vec(&exported).unwrap().len() < 1000);
    assert_eq!(
        read_by_python(&exported, &blobs),
        "9 frames of 320x320, latents [1, 8, 8192, 16] float32"
    );
}
