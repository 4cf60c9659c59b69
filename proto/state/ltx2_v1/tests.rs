use super::*;

fn header() -> StateHeader {
    StateHeader {
        segment_index: 3,
        video_conditioning_frame_idx: 0,
        video_conditioning_strength: 1.0,
        audio_sample_rate: Some(24_000),
        audio_conditioning_num_frames: 51,
        audio_conditioning_strength: 1.0,
        video_position_offset_sec: 40.0 / 24.0,
        metadata: "{}".to_owned(),
        frames: Some(FramesLayout {
            count: 2,
            height: 2,
            width: 4,
        }),
        audio_latents: Some(TensorLayout {
            dtype: Dtype::Bf16,
            shape: vec![1, 2, 3, 4],
        }),
        blob_hash: blob_hash(&[7; 96]),
    }
}

#[test]
fn header_survives_its_bytes() {
    let header = header();
    assert_eq!(StateHeader::decode(&header.encode()).unwrap(), header);
    header.check_blob(&[7; 96]).unwrap();
}

/// Written by the first build that had this version: a store may hold such headers for longer than a program lives.
#[test]
fn header_of_another_build_is_read() {
    let golden = include_bytes!("../../../tests/data/state_header_v1");
    assert_eq!(StateHeader::decode(golden).unwrap(), header());
    assert_eq!(header().encode(), golden);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = header().encode();
    for n in 0..bytes.len() {
        assert!(
            StateHeader::decode(&bytes[..n]).is_err(),
            "{n} of {} bytes",
            bytes.len()
        );
    }
}

#[test]
fn damage_is_refused_and_named() {
    let mut longer = header().encode();
    longer.push(0);
    assert!(matches!(
        StateHeader::decode(&longer),
        Err(StateError::Header(EnvelopeError::Trailing(1)))
    ));
    let mut newer = header().encode();
    newer[4] = 9;
    assert!(matches!(
        StateHeader::decode(&newer),
        Err(StateError::Header(EnvelopeError::Version { actual: 9, .. }))
    ));
    assert!(matches!(
        header().check_blob(&[8; 96]),
        Err(StateError::Hash)
    ));
    assert!(matches!(
        header().check_blob(&[7; 95]),
        Err(StateError::BlobSize {
            expected: 96,
            actual: 95
        })
    ));
}

/// What is refused of a header once `change` was made to it.
#[track_caller]
fn check(change: impl FnOnce(&mut StateHeader), expected: &str) {
    let mut header = header();
    change(&mut header);
    let refused = StateHeader::decode(&header.encode()).unwrap_err();
    assert_eq!(refused.to_string(), expected);
}

/// A field of a header.
type Of<T> = fn(&mut StateHeader) -> &mut T;

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    let integers: [(&str, Of<u32>); 3] = [
        ("segment_index", |h| &mut h.segment_index),
        ("video_conditioning_frame_idx", |h| {
            &mut h.video_conditioning_frame_idx
        }),
        ("audio_conditioning_num_frames", |h| {
            &mut h.audio_conditioning_num_frames
        }),
    ];
    for (field, of) in integers {
        let expected = "expected a number from 0 to 2147483647, got 2147483648";
        check(
            |h| *of(h) = 1 << 31,
            &format!("state field `{field}`: {expected}"),
        );
    }
    for rate in [0, 7_999, 192_001, u32::MAX] {
        check(
            |h| h.audio_sample_rate = Some(rate),
            &format!(
                "state field `audio_sample_rate`: expected a number from 8000 to 192000, got {rate}"
            ),
        );
    }
    let numbers: [(&str, u32, Of<f64>); 3] = [
        ("video_conditioning_strength", 1, |h| {
            &mut h.video_conditioning_strength
        }),
        ("audio_conditioning_strength", 1, |h| {
            &mut h.audio_conditioning_strength
        }),
        ("video_position_offset_sec", 86_400, |h| {
            &mut h.video_position_offset_sec
        }),
    ];
    for (field, limit, of) in numbers {
        for bad in [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            -0.01,
            f64::from(limit) + 0.01,
        ] {
            check(
                |h| *of(h) = bad,
                &format!("state field `{field}`: expected a number from 0 to {limit}, got {bad}"),
            );
        }
        let mut fine = header();
        *of(&mut fine) = f64::from(limit);
        StateHeader::decode(&fine.encode()).unwrap();
    }
}

#[test]
fn layouts_out_of_range_are_refused_by_name() {
    let frames = |count, height, width| {
        move |h: &mut StateHeader| {
            h.frames = Some(FramesLayout {
                count,
                height,
                width,
            });
        }
    };
    for count in [0, 65, u32::MAX] {
        check(
            frames(count, 2, 2),
            &format!("state field `frames.count`: expected a number from 1 to 64, got {count}"),
        );
    }
    for side in [0, 16_385, u32::MAX] {
        let expected = format!("expected a number from 1 to 16384, got {side}");
        check(
            frames(1, side, 2),
            &format!("state field `frames.height`: {expected}"),
        );
        check(
            frames(1, 2, side),
            &format!("state field `frames.width`: {expected}"),
        );
    }
    check(
        frames(64, 16_384, 16_384),
        "state blob would be 51539607600 bytes, limit is 2147483648",
    );
    let cases: [(&[u64], &str); 7] = [
        (&[], "[]"),
        (&[1, 2, 3], "[1, 2, 3]"),
        (&[1, 2, 3, 4, 5], "[1, 2, 3, 4, 5]"),
        (&[1; 9], "9 dimensions"),
        (&[1, 8, 0, 16], "[1, 8, 0, 16]"),
        (&[1, 8, 131_073, 16], "[1, 8, 131073, 16]"),
        (
            &[u64::MAX, u64::MAX, u64::MAX, 0],
            "[18446744073709551615, 18446744073709551615, 18446744073709551615, 0]",
        ),
    ];
    for (shape, given) in cases {
        let layout = TensorLayout {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        };
        check(
            |h| h.audio_latents = Some(layout),
            &format!(
                "state field `audio_latents.shape`: expected [B, C, T, mel] of 1 to 16777216 elements, \
                 got {given}"
            ),
        );
    }
}

#[test]
fn metadata_that_is_no_small_object_is_refused() {
    let metadata = |text: &str, expected: &str| {
        check(
            |h| h.metadata = text.to_owned(),
            &format!("state field `metadata`: expected {expected}"),
        );
    };
    metadata("", "JSON, got EOF while parsing a value at line 1 column 0");
    metadata(
        "{",
        "JSON, got EOF while parsing an object at line 1 column 1",
    );
    metadata("[1]", "an object, got 3 bytes of other JSON");
    metadata("null", "an object, got 4 bytes of other JSON");
    metadata(
        r#"{"x":NaN}"#,
        "JSON, got expected value at line 1 column 6",
    );
    metadata(
        r#"{"x":1e999}"#,
        "JSON, got number out of range at line 1 column 10",
    );
    metadata("{} {}", "JSON, got trailing characters at line 1 column 4");
    metadata(
        &format!(r#"{{"x":"{}"}}"#, "y".repeat(MAX_METADATA_BYTES)),
        "at most 262144 bytes of JSON, got 262152 bytes",
    );
    let nested = |levels: usize| {
        let lists = levels - 1;
        format!(r#"{{"x":{}{}}}"#, "[".repeat(lists), "]".repeat(lists))
    };
    metadata(&nested(33), "at most 32 levels, got 33 levels");
    metadata(
        &nested(100_000),
        "JSON, got recursion limit exceeded at line 1 column 132",
    );
    let mut fine = header();
    fine.metadata = nested(32);
    StateHeader::decode(&fine.encode()).unwrap();
}

#[test]
fn header_of_another_kind_of_bytes_is_refused() {
    let huge = vec![0; MAX_HEADER_BYTES + 1];
    assert!(matches!(
        StateHeader::decode(&huge),
        Err(StateError::Header(EnvelopeError::Size {
            actual: 1_048_577,
            ..
        }))
    ));
    assert!(matches!(
        StateHeader::decode(b"PK\x03\x04....."),
        Err(StateError::Header(EnvelopeError::Magic))
    ));
    // A length of 2^60 for the metadata: refused before it is allocated.
    let mut fields = header().encode();
    let at = fields.windows(3).position(|w| w == b"\x02{}").unwrap();
    fields.splice(at..=at, [&[253][..], &(1_u64 << 60).to_le_bytes()].concat());
    assert!(matches!(
        StateHeader::decode(&fields),
        Err(StateError::Header(EnvelopeError::Fields(_)))
    ));
}
