use png::BitDepth;
use serde_json::json;

use super::*;

const EXPECT: Expectation = Expectation {
    width: 4,
    height: 2,
};

fn import_payload(payload: Value) -> Result<State, ImportError> {
    let Value::Object(payload) = payload else {
        panic!("not an object: {payload}");
    };
    let kind = LTX2_V1.to_owned();
    import(&ContinuationState { kind, payload }, &Blobs::new(), &EXPECT)
}

fn frame_b64(width: u32, height: u32) -> String {
    let rgb = vec![77; (width * height * 3) as usize];
    let mut png = Vec::new();
    frame::encode(&rgb, width, height, &mut png).unwrap();
    BASE64.encode(png)
}

fn safetensors_b64(header: &str, data: &[u8]) -> String {
    let length = (header.len() as u64).to_le_bytes();
    BASE64.encode([&length, header.as_bytes(), data].concat())
}

fn tensor_b64(dtype: &str, shape: &str, bytes: usize) -> String {
    let header =
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#);
    safetensors_b64(&header, &vec![0; bytes])
}

#[test]
fn absent_and_null_fields_take_the_defaults() {
    let check = |payload: Value| {
        let state = import_payload(payload.clone()).unwrap();
        let defaults = StateHeader {
            segment_index: 0,
            video_conditioning_frame_idx: 0,
            video_conditioning_strength: 1.0,
            audio_sample_rate: None,
            audio_conditioning_num_frames: 0,
            audio_conditioning_strength: 1.0,
            video_position_offset_sec: 0.0,
            metadata: "{}".to_owned(),
            frames: None,
            audio_latents: None,
            blob_hash: blob_hash(&[]),
        };
        assert_eq!(state.header(), &defaults, "{payload}");
        assert!(state.blob().is_empty());
    };
    check(json!({}));
    check(json!({ "schema_version": 1, "from_a_later_version": [1, 2] }));
    check(json!({ "video": {}, "audio": {} }));
    check(json!({
        "video": { "blob_id": null, "frames_b64": [] },
        "audio": { "blob_id": null, "safetensors_b64": null },
    }));
    check(json!({
        "schema_version": null, "segment_index": null, "video_conditioning_frame_idx": null,
        "video_conditioning_strength": null, "audio_sample_rate": null,
        "audio_conditioning_num_frames": null, "audio_conditioning_strength": null,
        "video_position_offset_sec": null, "metadata": null, "video": null, "audio": null,
    }));
}

#[test]
fn frames_and_latents_lie_one_after_another() {
    let state = import_payload(json!({
        "video": { "frames_b64": [frame_b64(4, 2), frame_b64(4, 2)] },
        "audio": { "safetensors_b64": tensor_b64("F32", "[1,2,3,1]", 24) },
    }))
    .unwrap();
    let header = state.header();
    let layout = header.audio_latents.as_ref().unwrap();
    assert_eq!(
        header.frames,
        Some(FramesLayout {
            count: 2,
            height: 2,
            width: 4
        })
    );
    assert_eq!(
        (layout.dtype, &layout.shape[..]),
        (Dtype::F32, &[1, 2, 3, 1][..])
    );
    assert_eq!(&state.blob()[..], [[77; 48].as_slice(), &[0; 24]].concat());
    header.check_blob(state.blob()).unwrap();
    State::from_worker(state.header_bytes().to_vec(), state.blob().clone()).unwrap();
}

#[test]
fn another_kind_is_refused() {
    let state = ContinuationState {
        kind: "wan.v1".to_owned(),
        payload: Map::new(),
    };
    assert_eq!(
        import(&state, &Blobs::new(), &EXPECT)
            .unwrap_err()
            .to_string(),
        r#"`kind`: expected "ltx2.v1", got "wan.v1""#
    );
}

/// The whole text of the refusal, as the client sees it.
#[track_caller]
fn check(payload: Value, expected: &str) {
    let refused = import_payload(payload).unwrap_err();
    assert_eq!(refused.to_string(), expected);
}

#[test]
fn bad_numbers_are_refused_by_name() {
    check(
        json!({ "schema_version": 2 }),
        "`payload.schema_version`: expected 1, got 2",
    );
    check(
        json!({ "schema_version": "1" }),
        r#"`payload.schema_version`: expected 1, got "1""#,
    );
    for field in [
        "segment_index",
        "video_conditioning_frame_idx",
        "audio_conditioning_num_frames",
    ] {
        for bad in [
            json!(-1),
            json!(1.5),
            json!(2_147_483_648_u32),
            json!(true),
            json!("3"),
            json!([]),
        ] {
            let given = described(&bad);
            check(
                json!({ field: bad }),
                &format!(
                    "`payload.{field}`: expected an integer from 0 to 2147483647, got {given}"
                ),
            );
        }
    }
    for (field, limit) in [
        ("video_conditioning_strength", 1),
        ("audio_conditioning_strength", 1),
        ("video_position_offset_sec", 86_400),
    ] {
        for bad in [
            json!(-0.1),
            json!(86_400.001),
            json!(1e300),
            json!(u64::MAX),
            json!("1.0"),
            json!(false),
            json!({}),
        ] {
            let given = described(&bad);
            check(
                json!({ field: bad }),
                &format!("`payload.{field}`: expected a number from 0 to {limit}, got {given}"),
            );
        }
    }
    for bad in [7_999, 192_001] {
        check(
            json!({ "audio_sample_rate": bad }),
            &format!(
                "`payload.audio_sample_rate`: expected an integer from 8000 to 192000, got {bad}"
            ),
        );
    }
}

#[test]
fn bad_objects_are_refused_by_name() {
    for field in ["metadata", "video", "audio"] {
        check(
            json!({ field: [1] }),
            &format!("`payload.{field}`: expected an object, got a list of 1"),
        );
    }
    check(
        json!({ "metadata": { "a": "x".repeat(300_000) } }),
        "`payload.metadata`: expected at most 262144 bytes of JSON, got 300008 bytes",
    );
    let nested = format!("{}{}", "[".repeat(32), "]".repeat(32));
    let nested: Value = serde_json::from_str(&nested).unwrap();
    import_payload(json!({ "metadata": { "a": nested[0] } })).unwrap();
    check(
        json!({ "metadata": { "a": nested } }),
        "`payload.metadata`: expected at most 32 levels, got 33 levels",
    );
}

#[test]
fn bad_references_are_refused_by_name() {
    for (field, inline) in [("video", "frames_b64"), ("audio", "safetensors_b64")] {
        check(
            json!({ field: { "blob_id": "5f0c", "frame_count": 9 } }),
            &format!(
                "`payload.{field}.blob_id`: continuation state refers to blob \"5f0c\" which is not in the store"
            ),
        );
        for bad in [
            json!(5),
            json!(["5f0c"]),
            json!(""),
            json!("two words"),
            json!("line\n"),
            json!("caf\u{e9}"),
            json!("x".repeat(129)),
        ] {
            let given = described(&bad);
            check(
                json!({ field: { "blob_id": bad } }),
                &format!(
                    "`payload.{field}.blob_id`: expected 1 to 128 printable ASCII characters, got {given}"
                ),
            );
        }
        check(
            json!({ field: { "blob_id": "5f0c", inline: [] } }),
            &format!("`payload.{field}`: expected either `{inline}` or `blob_id`, got both"),
        );
    }
    for bad in [json!(0), json!(65), json!(-1), json!("9"), json!(1.5)] {
        let given = described(&bad);
        check(
            json!({ "video": { "blob_id": "5f0c", "frame_count": bad } }),
            &format!("`payload.video.frame_count`: expected an integer from 1 to 64, got {given}"),
        );
    }
}

#[test]
fn references_are_those_of_a_state_that_may_be_taken() {
    let of = |payload: Value| {
        references(&ContinuationState {
            kind: LTX2_V1.to_owned(),
            payload: payload.as_object().unwrap().clone(),
        })
    };
    let check = |payload: Value, expected: &[&str]| {
        assert_eq!(of(payload).unwrap(), expected);
    };
    let longest = "z".repeat(128);
    check(json!({}), &[]);
    check(json!({ "video": { "frames_b64": ["!"] } }), &[]);
    check(
        json!({ "video": { "blob_id": "a", "frame_count": null } }),
        &["a"],
    );
    check(json!({ "audio": { "blob_id": longest } }), &[&longest]);
    check(
        json!({ "video": { "blob_id": "b", "frame_count": 9 }, "audio": { "blob_id": "a" } }),
        &["b", "a"],
    );
    check(
        json!({ "video": { "blob_id": "a" }, "audio": { "blob_id": "a" } }),
        &["a"],
    );
    let refused = of(json!({ "video": { "blob_id": "a" }, "segment_index": -1 }));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "`payload.segment_index`: expected an integer from 0 to 2147483647, got -1"
    );
    let other = ContinuationState {
        kind: "wan.v1".to_owned(),
        payload: Map::new(),
    };
    let refused = references(&other).unwrap_err();
    assert!(refused.to_string().starts_with("`kind`: "));
}

#[test]
fn bad_frames_are_refused_by_name() {
    let frames = |list: Value| json!({ "video": { "frames_b64": list } });
    check(
        frames(json!("iVBORw0")),
        r#"`payload.video.frames_b64`: expected a list of base64 PNGs, got "iVBORw0""#,
    );
    check(
        frames(json!(vec![""; 65])),
        "`payload.video.frames_b64`: expected at most 64 frames, got 65",
    );
    check(
        frames(json!([frame_b64(4, 2), null])),
        "`payload.video.frames_b64[1]`: expected a base64 PNG, got null",
    );
    check(
        frames(json!(["iVBOR\nw0KGgo="])),
        "`payload.video.frames_b64[0]`: expected strict base64, got Invalid symbol 10, offset 5.",
    );
    check(
        frames(json!([frame_b64(4, 2), frame_b64(2, 4)])),
        "`payload.video.frames_b64[1]`: expected a picture of 4x2, got a picture of 2x4",
    );
    let whole = BASE64.decode(frame_b64(4, 2)).unwrap();
    for cut in [0, 7, 30, whole.len() - 1] {
        let payload = frames(json!([BASE64.encode(&whole[..cut])]));
        let refused = import_payload(payload).unwrap_err().to_string();
        let start = "`payload.video.frames_b64[0]`: expected a whole PNG, got a damaged PNG (";
        assert!(refused.starts_with(start), "{cut} bytes: {refused}");
    }
}

#[test]
fn what_is_too_long_is_refused_before_it_is_decoded() {
    // 4x2 pixels: 72 bytes and what a PNG may have beside them. What is refused is not even base64.
    check(
        json!({ "video": { "frames_b64": ["!".repeat(1_398_204)] } }),
        "`payload.video.frames_b64[0]`: expected at most 1048648 bytes, got 1048651 bytes",
    );
    check(
        json!({ "audio": { "safetensors_b64": "!".repeat(89_565_888) } }),
        "`payload.audio.safetensors_b64`: expected at most 67174408 bytes, got 67174414 bytes",
    );
}

#[test]
fn picture_that_would_be_huge_is_refused_before_it_is_decoded() {
    let mut bomb = Vec::new();
    let mut encoder = png::Encoder::new(&mut bomb, 60_000, 60_000);
    encoder.set_depth(BitDepth::One);
    drop(encoder.write_header().unwrap());
    check(
        json!({ "video": { "frames_b64": [BASE64.encode(bomb)] } }),
        "`payload.video.frames_b64[0]`: expected a picture of 4x2, got a picture of 60000x60000",
    );
    let payload = json!({ "video": { "frames_b64": vec![""; 64] } });
    let state = ContinuationState {
        kind: LTX2_V1.to_owned(),
        payload: payload.as_object().unwrap().clone(),
    };
    let expect = Expectation {
        width: 4096,
        height: 2176,
    };
    assert_eq!(
        import(&state, &Blobs::new(), &expect)
            .unwrap_err()
            .to_string(),
        "`payload.video.frames_b64`: expected at most 536870912 bytes of raw frames, \
         got 1711276032 bytes in 64 frames"
    );
}

#[test]
fn bad_audio_latents_are_refused_by_name() {
    let check = |text: String, expected: &str| {
        check(
            json!({ "audio": { "safetensors_b64": text } }),
            &format!("`payload.audio.safetensors_b64`: expected {expected}"),
        );
    };
    check(
        "AA=A".to_owned(),
        "strict base64, got Invalid symbol 61, offset 2.",
    );
    check(String::new(), "a safetensors file, got header too small");
    check(
        BASE64.encode(1_000_000_u64.to_le_bytes()),
        "a safetensors header of at most 65536 bytes, got 1000000 bytes",
    );
    check(safetensors_b64("{}", b""), "exactly one tensor `t`, got []");
    check(
        safetensors_b64(
            r#"{"u":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            &[0; 4],
        ),
        r#"exactly one tensor `t`, got ["u"]"#,
    );
    check(
        tensor_b64("F64", "[1,1,1,1]", 8),
        "BF16, F16 or F32 numbers, got F64",
    );
    check(
        tensor_b64("BF16", "[1,1,1,2]", 2),
        "a safetensors file, got invalid shape, data type, or offset for tensor",
    );
    let shape = "a shape [B, C, T, mel] of 1 to 16777216 elements, got";
    check(tensor_b64("BF16", "[2,3]", 12), &format!("{shape} [2, 3]"));
    check(
        tensor_b64("F16", "[1,8,0,16]", 0),
        &format!("{shape} [1, 8, 0, 16]"),
    );
    check(
        tensor_b64("BF16", "[1,8,131073,16]", 33_554_688),
        &format!("{shape} [1, 8, 131073, 16]"),
    );
    let whole = BASE64.decode(tensor_b64("BF16", "[1,1,1,2]", 4)).unwrap();
    check(
        BASE64.encode(&whole[..whole.len() - 1]),
        "a safetensors file, got incomplete metadata, file not fully covered",
    );
}
