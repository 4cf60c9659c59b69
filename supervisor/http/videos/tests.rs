//! Requests for videos, from their bodies to what is made of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use fastvideo_proto::ids::VideoId;
use fastvideo_proto::stored_video::{StoredVideo, VideoStatus};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::ask::{Ask, Kind};
use super::check::{Rules, create, extend, remix};
use super::error::VideoError;
use super::form::{self, tests::fields};
use super::object::tests::stored;
use super::request::{self, idempotency_key};
use crate::video::NewVideo;

const ID: &str = "video_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b";
const MAX_IMAGE_BYTES: usize = 100;
/// The beginning of a PNG file.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
const DATA_URL: &str = "data:image/png;base64,iVBORw0KGgo=";

fn id() -> VideoId {
    VideoId::parse(ID).unwrap()
}

fn rules() -> Rules {
    Rules {
        model: "ltx-2".to_owned(),
        model_aliases: vec!["sora-2".to_owned()],
        size: (768, 512),
        fps: 24,
        num_inference_steps: 8,
        guidance_scale: 1.0,
        negative_prompt: Some("blur".to_owned()),
        max_length: Duration::from_secs(60),
        max_total_length: Duration::from_secs(600),
        max_pixels: 2_088_960,
        sizes: Vec::new(),
        max_prompt_chars: 100,
        max_inference_steps: 50,
    }
}

/// A completed video of 15 frames at 6 a second, with a state.
fn source() -> StoredVideo {
    StoredVideo {
        model: "ltx-2".to_owned(),
        state: Some(Vec::new()),
        ..stored(VideoStatus::Completed)
    }
}

fn ask(kind: Kind, object: &Value) -> Result<Ask, VideoError> {
    Ask::of_fields(kind, fields(object), MAX_IMAGE_BYTES)
}

fn created_by(rules: &Rules, object: &Value) -> Result<NewVideo, VideoError> {
    create(ask(Kind::Create, object)?, rules)
}

/// `given` with a prompt.
fn prompted(given: &Value) -> Value {
    let mut object = json!({"prompt": "a fox"});
    let given = given.as_object().unwrap().clone();
    object.as_object_mut().unwrap().extend(given);
    object
}

fn created(given: &Value) -> NewVideo {
    created_by(&rules(), &prompted(given)).unwrap()
}

fn remixed(given: &Value, source: &StoredVideo) -> Result<NewVideo, VideoError> {
    remix(ask(Kind::Remix(id()), &prompted(given))?, &rules(), source)
}

fn extended(given: &Value, source: &StoredVideo) -> Result<NewVideo, VideoError> {
    let mut object = prompted(given);
    let video = object.as_object_mut().unwrap().entry("video");
    video.or_insert(json!({ "id": ID }));
    extend(ask(Kind::Extend, &object)?, &rules(), source)
}

#[track_caller]
fn check_refused<T: std::fmt::Debug>(
    made: Result<T, VideoError>,
    (code, param): (&str, &str),
    expected: &str,
) {
    let error = made.unwrap_err();
    let (given_code, given_param, message) = error.parts();
    assert_eq!((given_code, given_param), (code, Some(param)), "{message}");
    assert!(message.contains(expected), "{message}");
}

#[test]
fn what_a_request_leaves_out_is_the_operators() {
    let expected = NewVideo {
        prompt: "a fox".to_owned(),
        negative_prompt: Some("blur".to_owned()),
        seed: None,
        num_inference_steps: 8,
        guidance_scale: 1.0,
        enhance_prompt: false,
        size: (768, 512),
        fps: 24,
        frames: 96,
        image: None,
        metadata: [].into(),
    };
    assert_eq!(created(&json!({})), expected);
    let short = Rules {
        max_length: Duration::from_millis(2500),
        ..rules()
    };
    assert_eq!(
        created_by(&short, &prompted(&json!({}))).unwrap().frames,
        60
    );
}

#[test]
fn numbers_may_be_texts() {
    let numbers = json!({
        "seed": u64::MAX, "num_inference_steps": 50, "guidance_scale": 1.5, "fps": 60, "num_frames": 3600, "width": 1920,
        "height": 1088, "enhance_prompt": true,
    });
    let texts: Map<_, _> = (numbers.as_object().unwrap().iter())
        .map(|(name, value)| (name.clone(), Value::String(value.to_string())))
        .collect();
    let video = created(&numbers);
    assert_eq!(video, created(&Value::Object(texts)));
    assert_eq!(
        (video.seed, video.size, video.fps),
        (Some(u64::MAX), (1920, 1088), 60)
    );
    assert_eq!((video.frames, video.num_inference_steps), (3600, 50));
    assert_eq!((video.guidance_scale, video.enhance_prompt), (1.5, true));
}

#[test]
fn seconds_become_the_nearest_number_of_frames() {
    let check = |seconds: Value, fps, expected| {
        let video = created(&json!({"seconds": seconds, "fps": fps}));
        assert_eq!(video.frames, expected, "{seconds}");
    };
    check(json!("4"), 24, 96);
    check(json!(4), 24, 96);
    check(json!(4.0), 24, 96);
    check(json!("2.5"), 24, 60);
    check(json!(2.5), 24, 60);
    check(json!("2.500"), 24, 60);
    check(json!("0.021"), 24, 1);
    check(json!("0.1"), 25, 3);
    check(json!("0.124"), 20, 2);
    check(json!("0.125"), 20, 3);
    check(json!("60"), 60, 3600);
    check(json!("0060"), 1, 60);
    check(json!(0.5), 1, 1);
}

#[test]
fn the_more_direct_field_counts() {
    let nested = json!({"width": 640, "height": 384, "fps": 12, "num_frames": 5});
    let video = created(&json!({"video_params": nested, "seconds": "9"}));
    assert_eq!((video.size, video.fps, video.frames), ((640, 384), 12, 5));
    let video = created(
        &json!({"video_params": nested, "fps": 30, "num_frames": 7, "width": 320, "height": 256}),
    );
    assert_eq!((video.size, video.fps, video.frames), ((320, 256), 30, 7));
    let video = created(
        &json!({"video_params": nested.to_string(), "width": 320, "height": 256, "size": "64x64"}),
    );
    assert_eq!((video.size, video.fps), ((64, 64), 12));
    let video = created(&json!({"video_params": {"fps": 12, "width": null}}));
    assert_eq!((video.size, video.fps, video.frames), ((768, 512), 12, 48));
}

#[test]
fn fields_without_effect_are_accepted() {
    let ignored = json!({
        "user": "u-1", "n": 1, "quality": {"any": "thing"}, "generate_sound": true, "response_format": "url", "seed": null,
        "lora": null, "unknown": null, "extra_json": {"n": 2},
    });
    let rules = rules();
    let with = created_by(
        &rules,
        &prompted(&json!({"n": "1", "extra_params": ignored})),
    );
    assert_eq!(with.unwrap(), created(&json!({})));
    check_refused(
        created_by(&rules, &prompted(&json!({"extra_body": {"n": 2}}))),
        ("unsupported_parameter", "n"),
        "expected `1`, got \"2\"",
    );
}

#[test]
fn every_name_of_the_model_is_accepted() {
    for model in ["ltx-2", "sora-2"] {
        assert_eq!(created(&json!({"model": model})), created(&json!({})));
    }
}

#[test]
fn an_image_comes_in_many_ways() {
    let url = json!({"image_url": DATA_URL});
    for given in [
        json!({"input_reference": url}),
        json!({"input_reference": url.to_string()}),
        json!({"input_reference": DATA_URL}),
        json!({"image_reference": url}),
        json!({"image_reference": [url]}),
        json!({"image_reference": {"image_url": DATA_URL, "file_id": null}}),
        json!({"reference_url": DATA_URL}),
        json!({"reference_url": "DATA:;BASE64,iVBORw0KGgo="}),
        json!({"extra_body": {"input_reference": {"image_url": DATA_URL}}}),
    ] {
        assert_eq!(created(&given).image.unwrap(), PNG, "{given}");
    }
    let largest = format!("data:,;base64,{}", BASE64.encode([1; MAX_IMAGE_BYTES]));
    let largest = largest.replacen(',', "", 1);
    let image = created(&json!({"reference_url": largest})).image.unwrap();
    assert_eq!(image, [1; MAX_IMAGE_BYTES].as_slice());
}

#[test]
fn bad_requests_are_refused_with_code_and_field() {
    const INVALID: &str = "invalid_value";
    const UNSUPPORTED: &str = "unsupported_parameter";
    let long_text = "é".repeat(101);
    let pairs = |count: usize, key: usize, value: usize| {
        let pair = |n: usize| (format!("{n:0>key$}"), "é".repeat(value).into());
        Value::Object((0..count).map(pair).collect())
    };
    let image = |bytes: usize| format!("data:;base64,{}", BASE64.encode(vec![0; bytes]));
    let table = [
        (
            json!({"prompt": null}),
            "missing_required_parameter",
            "prompt",
            "is required",
        ),
        (json!({"prompt": ""}), INVALID, "prompt", "some text"),
        (
            json!({"prompt": " \n\u{3000}"}),
            INVALID,
            "prompt",
            "some text",
        ),
        (
            json!({"prompt": 5}),
            INVALID,
            "prompt",
            "expected a text, got 5",
        ),
        (json!({"prompt": ["a"]}), INVALID, "prompt", "got a list"),
        (
            json!({"prompt": long_text}),
            INVALID,
            "prompt",
            "at most 100 characters, got 101",
        ),
        (
            json!({"negative_prompt": long_text}),
            INVALID,
            "negative_prompt",
            "at most 100 characters",
        ),
        (
            json!({"negative_prompt": true}),
            INVALID,
            "negative_prompt",
            "got true",
        ),
        (
            json!({"model": "sora-3"}),
            "model_not_found",
            "model",
            "expected `ltx-2`, got \"sora-3\"",
        ),
        (json!({"model": ""}), "model_not_found", "model", "got \"\""),
        (json!({"model": {}}), INVALID, "model", "got an object"),
        (json!({"seconds": "0"}), INVALID, "seconds", "above 0"),
        (json!({"seconds": 0.0}), INVALID, "seconds", "above 0"),
        (json!({"seconds": "-4"}), INVALID, "seconds", "got \"-4\""),
        (json!({"seconds": "+4"}), INVALID, "seconds", "got \"+4\""),
        (json!({"seconds": "4."}), INVALID, "seconds", "got \"4.\""),
        (json!({"seconds": ".5"}), INVALID, "seconds", "got \".5\""),
        (json!({"seconds": " 4"}), INVALID, "seconds", "got \" 4\""),
        (json!({"seconds": ""}), INVALID, "seconds", "got \"\""),
        (json!({"seconds": "4s"}), INVALID, "seconds", "got \"4s\""),
        (json!({"seconds": "1e1"}), INVALID, "seconds", "got \"1e1\""),
        (
            json!({"seconds": "2.5001"}),
            INVALID,
            "seconds",
            "at most three decimals",
        ),
        (
            json!({"seconds": 0.1 + 0.2}),
            INVALID,
            "seconds",
            "at most three decimals",
        ),
        (
            json!({"seconds": "99999999999999999999"}),
            INVALID,
            "seconds",
            "above 0",
        ),
        (json!({"seconds": u64::MAX}), INVALID, "seconds", "above 0"),
        (json!({"seconds": true}), INVALID, "seconds", "got \"true\""),
        (
            json!({"seconds": "0.02"}),
            INVALID,
            "seconds",
            "half of a frame at 24",
        ),
        (
            json!({"seconds": "60.001"}),
            INVALID,
            "seconds",
            "at most 60, got 60.001",
        ),
        (
            json!({"seconds": "x", "num_frames": 5}),
            INVALID,
            "seconds",
            "got \"x\"",
        ),
        (
            json!({"num_frames": 0}),
            INVALID,
            "num_frames",
            "of at least 1",
        ),
        (
            json!({"num_frames": 1441}),
            INVALID,
            "num_frames",
            "from 1 to 1440 frames, which are 60 seconds",
        ),
        (
            json!({"num_frames": 2.5}),
            INVALID,
            "num_frames",
            "a whole number",
        ),
        (
            json!({"num_frames": -1}),
            INVALID,
            "num_frames",
            "a whole number",
        ),
        (
            json!({"num_frames": u64::MAX}),
            INVALID,
            "num_frames",
            "from 1 to 1440 frames",
        ),
        (
            json!({"video_params": {"num_frames": 1441}}),
            INVALID,
            "video_params.num_frames",
            "from 1 to 1440",
        ),
        (json!({"size": "1280"}), INVALID, "size", "as in `1280x720`"),
        (
            json!({"size": "1280X720"}),
            INVALID,
            "size",
            "got \"1280X720\"",
        ),
        (
            json!({"size": "1280x720x2"}),
            INVALID,
            "size",
            "even numbers",
        ),
        (json!({"size": "1281x720"}), INVALID, "size", "even numbers"),
        (json!({"size": "+64x64"}), INVALID, "size", "even numbers"),
        (
            json!({"size": "62x64"}),
            INVALID,
            "size",
            "from 64x64 to 4096x2176",
        ),
        (json!({"size": "64x62"}), INVALID, "size", "from 64x64"),
        (json!({"size": "4098x64"}), INVALID, "size", "from 64x64"),
        (json!({"size": "64x2178"}), INVALID, "size", "from 64x64"),
        (
            json!({"size": "1920x1090"}),
            INVALID,
            "size",
            "at most 2088960 pixels, got 1920x1090",
        ),
        (json!({"size": 720}), INVALID, "size", "a text"),
        (json!({"size": "auto"}), INVALID, "size", "got \"auto\""),
        (
            json!({"width": 640}),
            "missing_required_parameter",
            "height",
            "required",
        ),
        (
            json!({"height": 640, "size": "64x64"}),
            "missing_required_parameter",
            "width",
            "required",
        ),
        (
            json!({"width": 641, "height": 384}),
            INVALID,
            "width",
            "an even number, got 641",
        ),
        (
            json!({"width": 640, "height": 2178}),
            INVALID,
            "height",
            "from 64 to 2176",
        ),
        (
            json!({"width": 4096, "height": 2176}),
            INVALID,
            "width",
            "at most 2088960 pixels",
        ),
        (
            json!({"video_params": {"width": 640}}),
            "missing_required_parameter",
            "video_params.height",
            "required",
        ),
        (
            json!({"video_params": {"width": 1, "height": 2}}),
            INVALID,
            "video_params.width",
            "from 64",
        ),
        (
            json!({"video_params": {"fsp": 1}}),
            "unknown_parameter",
            "video_params.fsp",
            "is `video_params.fps` meant?",
        ),
        (
            json!({"video_params": {"lora": 1}}),
            UNSUPPORTED,
            "video_params.lora",
            "does not do",
        ),
        (
            json!({"video_params": "x"}),
            INVALID,
            "video_params",
            "the text of one, got \"x\"",
        ),
        (json!({"fps": 0}), INVALID, "fps", "from 1 to 60"),
        (
            json!({"fps": "61"}),
            INVALID,
            "fps",
            "from 1 to 60, got \"61\"",
        ),
        (json!({"fps": 23.976}), INVALID, "fps", "a whole number"),
        (
            json!({"seed": -1}),
            INVALID,
            "seed",
            "from 0 to 18446744073709551615",
        ),
        (
            json!({"seed": "18446744073709551616"}),
            INVALID,
            "seed",
            "a whole number",
        ),
        (json!({"seed": 1.5}), INVALID, "seed", "a whole number"),
        (json!({"seed": "0x5"}), INVALID, "seed", "got \"0x5\""),
        (
            json!({"num_inference_steps": 0}),
            INVALID,
            "num_inference_steps",
            "of at least 1",
        ),
        (
            json!({"num_inference_steps": 51}),
            INVALID,
            "num_inference_steps",
            "from 1 to 50, got 51",
        ),
        (
            json!({"num_inference_steps": 1001}),
            INVALID,
            "num_inference_steps",
            "from 1 to 50, got 1001",
        ),
        (
            json!({"guidance_scale": -0.1}),
            INVALID,
            "guidance_scale",
            "from 0 to 100",
        ),
        (
            json!({"guidance_scale": 100.1}),
            INVALID,
            "guidance_scale",
            "from 0 to 100",
        ),
        (
            json!({"guidance_scale": "NaN"}),
            INVALID,
            "guidance_scale",
            "from 0 to 100",
        ),
        (
            json!({"guidance_scale": "high"}),
            INVALID,
            "guidance_scale",
            "got \"high\"",
        ),
        (
            json!({"enhance_prompt": "yes"}),
            INVALID,
            "enhance_prompt",
            "`true` or `false`",
        ),
        (
            json!({"enhance_prompt": 1}),
            INVALID,
            "enhance_prompt",
            "got \"1\"",
        ),
        (
            json!({"metadata": pairs(17, 2, 1)}),
            INVALID,
            "metadata",
            "at most 16 pairs, got 17",
        ),
        (
            json!({"metadata": pairs(1, 1, 513)}),
            INVALID,
            "metadata",
            "values of at most 512 characters, got 513",
        ),
        (
            json!({"metadata": pairs(1, 65, 1).to_string()}),
            INVALID,
            "metadata",
            "keys of at most 64 characters",
        ),
        (
            json!({"metadata": {"a": 1}}),
            INVALID,
            "metadata",
            "expected texts, got 1",
        ),
        (
            json!({"metadata": {"a": {"b": "c"}}}),
            INVALID,
            "metadata",
            "got an object",
        ),
        (
            json!({"metadata": "a=b"}),
            INVALID,
            "metadata",
            "got \"a=b\"",
        ),
        (json!({"n": 2}), UNSUPPORTED, "n", "expected `1`"),
        (json!({"n": [1]}), UNSUPPORTED, "n", "a list"),
        (
            json!({"response_format": "b64_json"}),
            UNSUPPORTED,
            "response_format",
            "expected `url`",
        ),
        (
            json!({"guidance_scale_2": 1}),
            UNSUPPORTED,
            "guidance_scale_2",
            "does not do",
        ),
        (
            json!({"flow_shift": 5.0}),
            UNSUPPORTED,
            "flow_shift",
            "does not do",
        ),
        (
            json!({"lora": {"name": "a"}}),
            UNSUPPORTED,
            "lora",
            "does not do",
        ),
        (
            json!({"extra_params": {"boundary_ratio": 0.5}}),
            UNSUPPORTED,
            "boundary_ratio",
            "does not do",
        ),
        (
            json!({"video_reference": "x"}),
            UNSUPPORTED,
            "video_reference",
            "does not do",
        ),
        (
            json!({"video": {"id": ID}}),
            UNSUPPORTED,
            "video",
            "/v1/videos/edits",
        ),
        (
            json!({"promt": "a"}),
            "unknown_parameter",
            "promt",
            "is `prompt` meant?",
        ),
        (
            json!({"extra_body": {"negative": "x"}}),
            "unknown_parameter",
            "negative",
            "no field `negative`",
        ),
        (
            json!({"zzz": 1}),
            "unknown_parameter",
            "zzz",
            "there is no field `zzz`",
        ),
        (
            json!({"input_reference": "https://a.example/a.png"}),
            UNSUPPORTED,
            "input_reference",
            "nothing is fetched",
        ),
        (
            json!({"input_reference": {"image_url": "http://a.example"}}),
            UNSUPPORTED,
            "input_reference.image_url",
            "nothing is fetched",
        ),
        (
            json!({"input_reference": {"file_id": "file-1"}}),
            UNSUPPORTED,
            "input_reference.file_id",
            "does not do",
        ),
        (
            json!({"image_reference": {"file_id": "file-1", "image_url": DATA_URL}}),
            UNSUPPORTED,
            "image_reference.file_id",
            "does not do",
        ),
        (
            json!({"image_reference": [DATA_URL, DATA_URL]}),
            UNSUPPORTED,
            "image_reference",
            "expected one image, got 2",
        ),
        (
            json!({"reference_url": "file:///etc/passwd"}),
            UNSUPPORTED,
            "reference_url",
            "nothing is fetched",
        ),
        (
            json!({"reference_url": "/etc/passwd"}),
            UNSUPPORTED,
            "reference_url",
            "nothing is fetched",
        ),
        (
            json!({"input_reference": {"image_url": 5}}),
            INVALID,
            "input_reference.image_url",
            "a text",
        ),
        (
            json!({"input_reference": {"url": DATA_URL}}),
            "unknown_parameter",
            "input_reference.url",
            "no field",
        ),
        (
            json!({"input_reference": {}}),
            INVALID,
            "input_reference",
            "an `image_url`",
        ),
        (
            json!({"input_reference": []}),
            INVALID,
            "input_reference",
            "got a list",
        ),
        (
            json!({"input_reference": [[DATA_URL]]}),
            INVALID,
            "input_reference",
            "got a list",
        ),
        (
            json!({"input_reference": 5}),
            INVALID,
            "input_reference",
            "got 5",
        ),
        (
            json!({"input_reference": "{"}),
            INVALID,
            "input_reference",
            "got \"{\"",
        ),
        (
            json!({"input_reference": DATA_URL, "reference_url": DATA_URL}),
            INVALID,
            "reference_url",
            "`input_reference` too",
        ),
        (
            json!({"reference_url": "data:image/png,%89PNG"}),
            "invalid_image",
            "reference_url",
            "base64",
        ),
        (
            json!({"reference_url": "data:"}),
            "invalid_image",
            "reference_url",
            "base64",
        ),
        (
            json!({"reference_url": "data:;base64"}),
            "invalid_image",
            "reference_url",
            "an image, got 0 bytes",
        ),
        (
            json!({"reference_url": "data:;base64,"}),
            "invalid_image",
            "reference_url",
            "an image, got 0 bytes",
        ),
        (
            json!({"reference_url": "data:;base64,QUI"}),
            "invalid_image",
            "reference_url",
            "strict base64",
        ),
        (
            json!({"reference_url": "data:;base64,QU JD"}),
            "invalid_image",
            "reference_url",
            "strict base64",
        ),
        (
            json!({"reference_url": "data:;base64,QUJ_"}),
            "invalid_image",
            "reference_url",
            "strict base64",
        ),
        (
            json!({"reference_url": image(101)}),
            "invalid_image",
            "reference_url",
            "at most 100 bytes, got 101 bytes",
        ),
    ];
    for (given, code, param, expected) in table {
        let made = created_by(&rules(), &prompted(&given));
        check_refused(made, (code, param), expected);
    }
}

#[test]
fn a_file_is_no_text() {
    let part = |name: &str, file: &str| {
        let head = format!("Content-Disposition: form-data; name=\"{name}\"; filename=\"a\"");
        let prompt = "--x\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\na fox\r\n";
        let prompt = if name == "prompt" { "" } else { prompt };
        let body = format!("{prompt}--x\r\n{head}\r\n\r\n{file}\r\n--x--\r\n");
        form::read(Some("multipart/form-data; boundary=x"), &body.into()).unwrap()
    };
    let made = |kind, name, file| Ask::of_fields(kind, part(name, file), MAX_IMAGE_BYTES);
    for name in [
        "prompt",
        "model",
        "size",
        "seconds",
        "fps",
        "guidance_scale",
        "metadata",
        "enhance_prompt",
    ] {
        let made = made(Kind::Create, name, "4");
        check_refused(
            made,
            ("invalid_value", name),
            "a file, or what is not UTF-8",
        );
    }
    let unsupported = ("unsupported_parameter", "video");
    check_refused(made(Kind::Edit, "video", ID), unsupported, "by its id");
    check_refused(made(Kind::Extend, "video", ID), unsupported, "by its id");
    check_refused(
        made(Kind::Create, "video", ID),
        unsupported,
        "/v1/videos/edits",
    );
    let image = ("invalid_image", "input_reference");
    check_refused(
        made(Kind::Create, "input_reference", ""),
        image,
        "got 0 bytes",
    );
    let large = "x".repeat(MAX_IMAGE_BYTES + 1);
    check_refused(
        made(Kind::Create, "input_reference", &large),
        image,
        "at most 100 bytes",
    );
    assert!(made(Kind::Create, "input_reference", &large[1..]).is_ok());
}

#[test]
fn only_the_sizes_of_the_operator_are_accepted_where_there_are_some() {
    let rules = Rules {
        sizes: vec![(1280, 720), (720, 1280)],
        ..rules()
    };
    let made = |size| created_by(&rules, &prompted(&json!({ "size": size })));
    assert_eq!(made("720x1280").unwrap().size, (720, 1280));
    check_refused(
        made("768x512"),
        ("invalid_value", "size"),
        "one of `1280x720`, `720x1280`",
    );
    // What a request leaves out is within the limits, too.
    check_refused(
        created_by(&rules, &prompted(&json!({}))),
        ("invalid_value", "size"),
        "one of `1280x720`",
    );
}

#[test]
fn a_remix_is_like_its_source_where_the_request_says_nothing() {
    let mut source = source();
    source.request.negative_prompt = Some("rain".to_owned());
    source.metadata.clear();
    let expected = NewVideo {
        prompt: "a fox".to_owned(),
        negative_prompt: Some("rain".to_owned()),
        seed: Some(u64::MAX),
        num_inference_steps: 8,
        guidance_scale: 1.5,
        enhance_prompt: false,
        size: (1280, 720),
        fps: 6,
        frames: 15,
        image: None,
        metadata: [].into(),
    };
    assert_eq!(remixed(&json!({}), &source).unwrap(), expected);
    let anew = NewVideo {
        negative_prompt: Some(String::new()),
        seed: Some(0),
        size: (64, 64),
        frames: 6,
        metadata: [("a".to_owned(), "b".to_owned())].into(),
        ..expected
    };
    let given = json!({"seed": 0, "size": "64x64", "seconds": 1, "negative_prompt": "", "metadata": {"a": "b"}});
    assert_eq!(remixed(&given, &source).unwrap(), anew);
    // 15 frames at 6 a second are 2.5 seconds.
    assert_eq!(remixed(&json!({"fps": 24}), &source).unwrap().frames, 60);
    // What was added to the source counts, even where it is more than a new video may have.
    source.plan.extended_frames = 1000;
    assert_eq!(remixed(&json!({}), &source).unwrap().frames, 1015);
}

#[test]
fn a_remix_needs_a_completed_video() {
    for status in [VideoStatus::Queued, VideoStatus::InProgress] {
        let source = stored(status);
        check_refused(
            remixed(&json!({}), &source),
            ("video_not_ready", "video"),
            "not completed",
        );
        check_refused(
            extended(&json!({}), &source),
            ("video_not_ready", "video"),
            "not completed",
        );
    }
    let made = remixed(&json!({"video": {"id": ID}}), &source());
    check_refused(made, ("unsupported_parameter", "video"), "/v1/videos/edits");
}

#[test]
fn an_extension_adds_frames_of_the_same_kind() {
    let video = extended(&json!({"seconds": "2"}), &source()).unwrap();
    assert_eq!((video.size, video.fps, video.frames), ((1280, 720), 6, 12));
    assert_eq!((video.seed, video.num_inference_steps), (Some(u64::MAX), 8));
    assert_eq!(extended(&json!({}), &source()).unwrap().frames, 24);
    let video = extended(
        &json!({"num_frames": 7, "seed": 5, "guidance_scale": 2}),
        &source(),
    );
    let video = video.unwrap();
    assert_eq!(
        (video.frames, video.seed, video.guidance_scale),
        (7, Some(5), 2.0)
    );
    // Up to 600 seconds of 6 frames.
    let mut long = source();
    long.plan.extended_frames = 3600 - 15 - 6;
    assert_eq!(extended(&json!({"seconds": 1}), &long).unwrap().frames, 6);
    let made = extended(&json!({"num_frames": 7}), &long);
    check_refused(made, ("invalid_value", "num_frames"), "at most 600 seconds");
    let made = extended(&json!({}), &long);
    check_refused(made, ("invalid_value", "seconds"), "got 3618 frames");
}

#[test]
fn an_extension_needs_a_state_of_the_model_and_keeps_the_format() {
    for (given, param) in [
        (json!({"size": "1280x720"}), "size"),
        (json!({"width": 64, "height": 64}), "width"),
        (json!({"fps": 6}), "fps"),
        (json!({"num_inference_steps": 8}), "num_inference_steps"),
        (json!({"input_reference": DATA_URL}), "input_reference"),
        (json!({"video_params": {"fps": 6}}), "video_params.fps"),
    ] {
        let made = extended(&given, &source());
        check_refused(
            made,
            ("unsupported_parameter", param),
            "goes on as the video is",
        );
    }
    let made = extended(&json!({"seconds": "60.5"}), &source());
    check_refused(made, ("invalid_value", "seconds"), "at most 60");
    let other = StoredVideo {
        model: "ltx-1".to_owned(),
        ..source()
    };
    let not_extendable = ("video_not_extendable", "video");
    check_refused(
        extended(&json!({}), &other),
        not_extendable,
        "another model",
    );
    let stateless = StoredVideo {
        state: None,
        ..source()
    };
    check_refused(
        extended(&json!({}), &stateless),
        not_extendable,
        "was not kept",
    );
}

#[test]
fn a_source_is_named_by_its_id() {
    for kind in [Kind::Edit, Kind::Extend] {
        let made = |video: Value| ask(kind, &prompted(&json!({ "video": video })));
        assert_eq!(made(json!({"id": ID})).unwrap().source(), Some(id()));
        let text = json!({"id": ID}).to_string();
        assert_eq!(made(text.into()).unwrap().source(), Some(id()));
        let missing = "missing_required_parameter";
        check_refused(
            ask(kind, &prompted(&json!({}))),
            (missing, "video"),
            "required",
        );
        check_refused(made(json!({})), (missing, "video.id"), "required");
        check_refused(made(json!({"id": null})), (missing, "video.id"), "required");
        check_refused(
            made(json!({"id": 5})),
            ("invalid_value", "video.id"),
            "an id, got 5",
        );
        check_refused(
            made(json!(ID)),
            ("invalid_value", "video"),
            "an object with an `id`",
        );
        check_refused(
            made(json!({"id": "video_1"})),
            ("video_not_found", "video"),
            "no such video",
        );
        let more = json!({"id": ID, "url": "x"});
        check_refused(made(more), ("unknown_parameter", "video.url"), "no field");
    }
    let remix = ask(Kind::Remix(id()), &prompted(&json!({}))).unwrap();
    assert_eq!(remix.source(), Some(id()));
    assert_eq!(
        ask(Kind::Create, &prompted(&json!({}))).unwrap().source(),
        None
    );
}

#[test]
fn a_fingerprint_tells_requests_apart_by_what_they_ask_for() {
    let of = |kind, given: Value| ask(kind, &prompted(&given)).unwrap().fingerprint();
    let create = |given| of(Kind::Create, given);
    let same = [
        (
            json!({"seconds": "4", "seed": 5}),
            json!({"seconds": 4.0, "seed": "5", "user": "a"}),
        ),
        (
            json!({"size": "640x384"}),
            json!({"video_params": {"width": 640, "height": "384"}}),
        ),
        (
            json!({"reference_url": DATA_URL}),
            json!({"input_reference": {"image_url": DATA_URL}}),
        ),
        (
            json!({"metadata": {"a": "1", "b": "2"}}),
            json!({"metadata": "{\"b\": \"2\", \"a\": \"1\"}"}),
        ),
    ];
    for (one, other) in same {
        assert_eq!(create(one.clone()), create(other), "{one}");
    }
    let other_image = "data:;base64,iVBORw0KGgp=".replace("gp=", "gpB");
    let different = [
        json!({}),
        json!({"seconds": "4"}),
        json!({"num_frames": 96}),
        json!({"seed": 0}),
        json!({"seed": 1}),
        json!({"fps": 24}),
        json!({"size": "768x512"}),
        json!({"negative_prompt": ""}),
        json!({"enhance_prompt": false}),
        json!({"guidance_scale": 1}),
        json!({"num_inference_steps": 8}),
        json!({"metadata": {}}),
        json!({"metadata": {"a": "b"}}),
        json!({"reference_url": DATA_URL}),
        json!({"reference_url": other_image}),
        json!({"prompt": "a fox "}),
        json!({"model": "sora-2"}),
    ];
    let mut all: Vec<_> = different.into_iter().map(create).collect();
    let other = VideoId::parse(&ID.replace('b', "c")).unwrap();
    all.push(of(Kind::Remix(id()), json!({})));
    all.push(of(Kind::Remix(other), json!({})));
    all.push(of(Kind::Edit, json!({"video": {"id": ID}})));
    all.push(of(Kind::Extend, json!({"video": {"id": ID}})));
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[test]
fn an_idempotency_key_is_visible_ascii() {
    let check = |keys: &[&[u8]], expected: Option<&str>| {
        let mut headers = HeaderMap::new();
        for key in keys {
            headers.append("idempotency-key", HeaderValue::from_bytes(key).unwrap());
        }
        match expected {
            Some(key) => assert_eq!(idempotency_key(&headers), Ok(Some(key))),
            None => check_refused(
                idempotency_key(&headers),
                ("invalid_value", "Idempotency-Key"),
                "from 1 to 255 visible ASCII characters",
            ),
        }
    };
    assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
    let longest = "~".repeat(255);
    check(&[b"shot-7!"], Some("shot-7!"));
    check(&[longest.as_bytes()], Some(&longest));
    check(&[format!("{longest}~").as_bytes()], None);
    check(&[b""], None);
    check(&[b"a b"], None);
    check(&[b"a\tb"], None);
    check(&["é".as_bytes()], None);
    check(&[b"a", b"a"], None);
}

/// A request that one of OpenAI's clients has sent.
struct Recorded {
    method: String,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// Reads what `tests/data/openai/record.py` has written.
fn recorded(client: &str, name: &str) -> Recorded {
    let file = recordings(client).join(format!("{name}.http"));
    let file = fs::read(file).unwrap();
    let end = file
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8(file[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let mut asked = lines.next().unwrap().split(' ').map(str::to_owned);
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())
    });
    Recorded {
        method: asked.next().unwrap(),
        path: asked.next().unwrap(),
        headers: headers.collect(),
        body: file[end + 4..].to_vec().into(),
    }
}

fn recordings(client: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("../tests/data/openai").join(client)
}

const CLIENTS: [&str; 2] = ["python", "node"];

async fn received(kind: Kind, client: &str, name: &str) -> Result<Ask, VideoError> {
    let Recorded {
        method,
        headers,
        body,
        ..
    } = recorded(client, name);
    assert_eq!(method, "POST");
    request::read(kind, &headers, body, MAX_IMAGE_BYTES).await
}

#[tokio::test]
async fn what_openais_clients_send_is_understood() {
    let png = fs::read(recordings("..").join("openai/python/create_with_file.http")).unwrap();
    let begin = png.windows(PNG.len()).position(|it| it == PNG).unwrap();
    let png = &png[begin..][..69];
    let extras = json!({
        "prompt": "ein Fuchs läuft\nüber „Schnee“",
        "seed": u64::MAX,
        "fps": 24,
        "guidance_scale": 1.5,
        "enhance_prompt": true,
        "metadata": {"project": "winter", "shot": "7"},
        "video_params": {"width": 640, "height": 384},
    });
    let plain = json!({"prompt": "a fox", "model": "sora-2", "seconds": "4", "size": "1280x720"});
    let (edit, extend) = ("it stops", json!({"id": ID}));
    let image = |url: &str| json!({"prompt": "a fox", "input_reference": {"image_url": url}});
    let file = format!("data:;base64,{}", BASE64.encode(png));
    let table = [
        ("create", Kind::Create, plain),
        ("create_with_file", Kind::Create, image(&file)),
        ("create_with_data_url", Kind::Create, image(DATA_URL)),
        ("create_with_extras", Kind::Create, extras),
        ("remix", Kind::Remix(id()), json!({"prompt": "a wolf"})),
        (
            "edit",
            Kind::Edit,
            json!({"prompt": "a wolf", "video": {"id": ID}}),
        ),
        (
            "extend",
            Kind::Extend,
            json!({"prompt": edit, "seconds": "4", "video": extend}),
        ),
    ];
    for client in CLIENTS {
        for (name, kind, expected) in &table {
            let asked = received(*kind, client, name).await;
            assert_eq!(asked, ask(*kind, expected), "{client} {name}");
        }
        let headers = recorded(client, "create_with_extras").headers;
        assert_eq!(idempotency_key(&headers), Ok(Some("shot-7")));
    }
    let bytes = received(Kind::Create, "python", "create_with_bytes").await;
    assert_eq!(bytes, ask(Kind::Create, &image(&file)));
    let file = received(Kind::Extend, "python", "extend_file").await;
    check_refused(file, ("unsupported_parameter", "video"), "by its id");
}

#[test]
fn what_openais_clients_ask_without_a_body_is_understood() {
    use super::query::{self, Variant, wait};
    use crate::store::records::{Order, VideoPage};
    let video = format!("/v1/videos/{ID}");
    for client in CLIENTS {
        let query = |name, method: &str, path: &str| {
            let recorded = recorded(client, name);
            let (given, query) = match recorded.path.split_once('?') {
                Some((path, query)) => (path, Some(query.to_owned())),
                None => (recorded.path.as_str(), None),
            };
            assert_eq!(
                (recorded.method.as_str(), given),
                (method, path),
                "{client} {name}"
            );
            assert!(recorded.body.is_empty());
            query
        };
        let page = VideoPage {
            limit: 2,
            order: Order::Ascending,
            after: Some(id()),
        };
        let list = query("list", "GET", "/v1/videos");
        assert_eq!(query::page(list.as_deref()), Ok(page));
        let content = query("download_content", "GET", &format!("{video}/content"));
        assert_eq!(Variant::read(content.as_deref()), Ok(Variant::Thumbnail));
        let retrieve = query("retrieve", "GET", &video);
        assert_eq!(wait(retrieve.as_deref()), Ok(Duration::ZERO));
        assert_eq!(query("delete", "DELETE", &video), None);
    }
}

/// Values that fields may have, good and bad.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0_u64..5000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "[0-9]{1,5}(\\.[0-9]{0,4})?".prop_map(Value::from),
        "[0-9]{1,4}x[0-9]{1,4}".prop_map(Value::from),
        Just(Value::from(DATA_URL)),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        let key = prop_oneof![
            Just("id".to_owned()),
            Just("width".to_owned()),
            Just("image_url".to_owned()),
            ".{0,5}"
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_accepted_is_within_all_limits(
        given in proptest::collection::btree_map(proptest::sample::select(super::names::READ), any_value(), 0..4),
        seconds in proptest::option::of(0_u32..70_000),
        (width, height) in (0_u32..5000, 0_u32..5000),
        fps in proptest::option::of(0_u32..70),
    ) {
        let mut object = json!({"prompt": "a fox", "size": format!("{width}x{height}"), "seconds": seconds.map(|ms| f64::from(ms) / 1000.0), "fps": fps});
        object.as_object_mut().unwrap().extend(given.into_iter().map(|(name, value)| (name.to_owned(), value)));
        if object["size"].is_string() && width % 3 == 0 {
            object.as_object_mut().unwrap().remove("size");
        }
        let rules = rules();
        for kind in [Kind::Create, Kind::Remix(id()), Kind::Edit, Kind::Extend] {
            let Ok(fields) = form::read(Some("application/json"), &object.to_string().into()) else {
                continue;
            };
            let Ok(ask) = Ask::of_fields(kind, fields, MAX_IMAGE_BYTES) else {
                continue;
            };
            let made = match kind {
                Kind::Create => create(ask, &rules),
                Kind::Extend => extend(ask, &rules, &source()),
                _ => remix(ask, &rules, &source()),
            };
            let Ok(video) = made else {
                continue;
            };
            let (width, height) = video.size;
            prop_assert!(width % 2 == 0 && height % 2 == 0);
            prop_assert!((64..=4096).contains(&width) && (64..=2176).contains(&height));
            prop_assert!(u64::from(width) * u64::from(height) <= rules.max_pixels);
            prop_assert!((1..=60).contains(&video.fps));
            prop_assert!(video.frames >= 1 && video.frames <= 60 * u64::from(video.fps));
            prop_assert!((1..=50).contains(&video.num_inference_steps));
            prop_assert!((0.0..=100.0).contains(&video.guidance_scale));
            prop_assert!(!video.prompt.trim().is_empty());
            prop_assert!(video.prompt.chars().count() <= rules.max_prompt_chars);
            prop_assert!(video.metadata.len() <= 16);
            let bytes = video.image.map_or(1, |image| image.len());
            prop_assert!((1..=MAX_IMAGE_BYTES).contains(&bytes));
        }
    }
}
