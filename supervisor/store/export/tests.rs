use fastvideo_link::SharedMemory;
use fastvideo_proto::state::{StateHeader, blob_hash};

use super::*;

/// A state that Python wrote with the libraries that FastVideo uses: `tests/data/make_continuation.py`.
struct Golden {
    json: &'static str,
    latents: Option<Dtype>,
    blobs: &'static [(&'static str, &'static [u8])],
}

macro_rules! golden_file {
    ($include:ident, $name:literal) => {
        $include!(concat!("../../../tests/data/continuation/", $name))
    };
}

const GOLDEN: [Golden; 5] = [
    Golden {
        json: golden_file!(include_str, "bf16.json"),
        latents: Some(Dtype::Bf16),
        blobs: &[],
    },
    Golden {
        json: golden_file!(include_str, "f16.json"),
        latents: Some(Dtype::F16),
        blobs: &[],
    },
    Golden {
        json: golden_file!(include_str, "f32.json"),
        latents: Some(Dtype::F32),
        blobs: &[],
    },
    Golden {
        json: golden_file!(include_str, "silent.json"),
        latents: None,
        blobs: &[],
    },
    Golden {
        json: golden_file!(include_str, "blobs.json"),
        latents: Some(Dtype::Bf16),
        blobs: &[
            (
                "8a3f0e5d6c1b4f7e9a2d4c6b8e0f1a3c",
                golden_file!(include_bytes, "8a3f0e5d6c1b4f7e9a2d4c6b8e0f1a3c"),
            ),
            (
                "1c9e7b5a3d2f4e6c8b0a9f7d5e3c1b2a",
                golden_file!(include_bytes, "1c9e7b5a3d2f4e6c8b0a9f7d5e3c1b2a"),
            ),
        ],
    },
];

impl Golden {
    fn envelope(&self) -> ContinuationState {
        serde_json::from_str(self.json).unwrap()
    }

    fn blobs(&self) -> Blobs {
        let blobs = self.blobs.iter();
        blobs
            .map(|&(id, bytes)| (id.to_owned(), Bytes::from_static(bytes)))
            .collect()
    }

    /// What the same formula gives here.
    fn state(&self) -> (StateHeader, Vec<u8>) {
        let frames = FramesLayout {
            count: 2,
            height: EXPECT.height,
            width: EXPECT.width,
        };
        let mut blob = pictures(frames);
        let audio_latents = self.latents.map(|dtype| TensorLayout {
            dtype,
            shape: vec![1, 8, 6, 16],
        });
        for i in 0..audio_latents.as_ref().map_or(0, TensorLayout::elements) {
            let value = ((i % 256) as f32 - 128.0) / 64.0;
            match self.latents {
                // 8 significant bits: bf16 holds them, and they are the upper half of an f32.
                Some(Dtype::Bf16) => blob.extend_from_slice(&value.to_le_bytes()[2..]),
                Some(Dtype::F16) => blob.extend_from_slice(&f16_bits(value).to_le_bytes()),
                Some(Dtype::F32) => blob.extend_from_slice(&value.to_le_bytes()),
                None => unreachable!("there are no elements"),
            }
        }
        let header = StateHeader {
            segment_index: 3,
            video_conditioning_frame_idx: 0,
            video_conditioning_strength: 0.75,
            audio_sample_rate: self.latents.map(|_| 24_000),
            audio_conditioning_num_frames: 51,
            audio_conditioning_strength: 1.0,
            video_position_offset_sec: 40.0 / 24.0,
            metadata: r#"{"nested":{"list":[1,2.5,null,true]},"note":"café"}"#.to_owned(),
            frames: Some(frames),
            audio_latents,
            blob_hash: blob_hash(&blob),
        };
        (header, blob)
    }
}

fn pictures(layout: FramesLayout) -> Vec<u8> {
    let mut raw = Vec::new();
    for i in 0..u64::from(layout.count) {
        for y in 0..u64::from(layout.height) {
            for x in 0..u64::from(layout.width) {
                raw.extend([0, 1, 2].map(|c| {
                    let n = (x * 73_856_093) ^ (y * 19_349_663);
                    let n = n ^ (c * 83_492_791) ^ (i * 49_979_687);
                    n.wrapping_mul(2_654_435_761).to_le_bytes()[3]
                }));
            }
        }
    }
    raw
}

/// Of a normal number that f16 holds exactly.
fn f16_bits(value: f32) -> u16 {
    if value == 0.0 {
        return 0;
    }
    let bits = value.to_bits();
    let exponent = (bits >> 23 & 0xff) - 112;
    u16::try_from(bits >> 16 & 0x8000 | exponent << 10 | bits >> 13 & 0x3ff).unwrap()
}

fn golden() -> (StateHeader, Vec<u8>) {
    GOLDEN[0].state()
}

fn state(header: &StateHeader, blob: &[u8]) -> State {
    State::from_worker(header.encode(), SharedMemory::from_bytes(blob).unwrap()).unwrap()
}

const EXPECT: Expectation = Expectation {
    width: 24,
    height: 16,
};

#[test]
fn states_from_python_are_read() {
    for golden in &GOLDEN {
        let (header, blob) = golden.state();
        let envelope = golden.envelope();
        let ids: Vec<&str> = golden.blobs.iter().map(|&(id, _)| id).collect();
        assert_eq!(references(&envelope).unwrap(), ids);
        let read = import(&envelope, &golden.blobs(), &EXPECT).unwrap();
        assert_eq!(read.header(), &header);
        assert_eq!(read.header_bytes(), header.encode());
        assert!(read.blob()[..] == blob[..]);
    }
}

#[test]
fn exported_states_differ_from_python_in_png_compression_only() {
    for golden in &GOLDEN[..4] {
        let (header, blob) = golden.state();
        let mut ours = export_inline(&state(&header, &blob)).unwrap();
        let mut theirs = golden.envelope();
        assert!(ours.payload.remove("video").is_some());
        assert!(theirs.payload.remove("video").is_some());
        assert_eq!(ours, theirs);
    }
}

#[test]
fn round_trip_over_json_is_exact() {
    let check = |header: &StateHeader, blob: &[u8]| {
        let sent = state(header, blob);
        let text = serde_json::to_string(&export_inline(&sent).unwrap()).unwrap();
        let envelope = serde_json::from_str(&text).unwrap();
        let read = import(&envelope, &Blobs::new(), &EXPECT).unwrap();
        assert_eq!(read.header_bytes(), sent.header_bytes());
        assert!(read.blob()[..] == sent.blob()[..]);
    };
    for golden in &GOLDEN {
        let (header, blob) = golden.state();
        check(&header, &blob);
    }
    let (header, blob) = golden();
    let frames_end = usize::try_from(header.frames_end()).unwrap();
    let sound_only = StateHeader {
        frames: None,
        blob_hash: blob_hash(&blob[frames_end..]),
        ..header.clone()
    };
    check(&sound_only, &blob[frames_end..]);
    let nothing = StateHeader {
        frames: None,
        audio_latents: None,
        blob_hash: blob_hash(&[]),
        ..header
    };
    check(&nothing, &[]);
}

#[test]
fn damaged_blob_is_not_exported() {
    let (header, mut blob) = golden();
    blob[100] ^= 1;
    let refused = export_inline(&state(&header, &blob));
    assert!(matches!(refused, Err(ExportError::State(StateError::Hash))));
}

#[test]
fn header_that_the_public_form_cannot_carry_is_not_exported() {
    let (golden, blob) = golden();
    let check = |header: StateHeader, field: &str| {
        let state = State::new(header, Vec::new(), SharedMemory::from_bytes(&blob).unwrap());
        let refused = export_inline(&state).unwrap_err().to_string();
        let start = format!("state field `{field}`: ");
        assert!(refused.starts_with(&start), "{refused}");
    };
    let mut header = golden.clone();
    header.metadata = "[1]".to_owned();
    check(header, "metadata");
    let mut header = golden.clone();
    header.video_position_offset_sec = f64::NAN;
    check(header, "video_position_offset_sec");
    let mut header = golden;
    header.frames = Some(FramesLayout {
        count: u32::MAX,
        height: 0,
        width: 64,
    });
    check(header, "frames.count");
}

/// Frames that do not compress, then latents.
fn noisy(frames: FramesLayout, latents: TensorLayout) -> State {
    let bytes = usize::try_from(frames.bytes() + latents.bytes()).unwrap();
    let mut blob = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut blob);
    let header = StateHeader {
        frames: Some(frames),
        audio_latents: Some(latents),
        blob_hash: blob_hash(&blob),
        ..golden().0
    };
    state(&header, &blob)
}

const fn frames(count: u32, side: u32) -> FramesLayout {
    FramesLayout {
        count,
        height: side,
        width: side,
    }
}

fn latents(elements: u64) -> TensorLayout {
    TensorLayout {
        dtype: Dtype::Bf16,
        shape: vec![1, 1, elements, 1],
    }
}

fn by_id(blobs: Vec<ExportedBlob>) -> Blobs {
    blobs.into_iter().map(|b| (b.id, b.bytes)).collect()
}

#[test]
fn tensors_above_the_threshold_leave_the_payload() {
    let check = |layout: FramesLayout, elements: u64, expected: &[&str]| {
        let state = noisy(layout, latents(elements));
        let (exported, blobs) = export_by_reference(&state).unwrap();
        let types: Vec<&str> = blobs.iter().map(|blob| blob.content_type).collect();
        assert_eq!(types, expected);
        let ids: Vec<&str> = blobs.iter().map(|blob| &blob.id[..]).collect();
        assert_eq!(references(&exported).unwrap(), ids);
        for blob in &blobs {
            assert_eq!(blob.id, blake3::hash(&blob.bytes).to_hex().as_str());
        }
        assert!(serde_json::to_vec(&exported).unwrap().len() < 6 << 20);
        let inline = export_inline(&state).unwrap();
        if blobs.is_empty() {
            assert_eq!(exported, inline);
        }
        let expect = Expectation {
            width: layout.width,
            height: layout.height,
        };
        let read = import(&exported, &by_id(blobs), &expect).unwrap();
        assert_eq!(read.header_bytes(), state.header_bytes());
        assert!(read.blob()[..] == state.blob()[..]);
        assert!(export_inline(&read).unwrap() == inline);
    };
    check(frames(2, 64), 1000, &[]);
    check(frames(9, 320), 1000, &[FRAMES_CONTENT_TYPE]);
    check(frames(1, 64), 2 << 20, &[TENSOR_CONTENT_TYPE]);
    check(
        frames(9, 320),
        2 << 20,
        &[FRAMES_CONTENT_TYPE, TENSOR_CONTENT_TYPE],
    );

    // The file's size counts, its header included.
    let file = safetensors_file(&latents(1 << 20), &vec![0; 2 << 20]).unwrap();
    let fitting = (1 << 20) - (file.len() as u64 - (2 << 20)) / 2;
    check(frames(1, 64), fitting, &[]);
    check(frames(1, 64), fitting + 4, &[TENSOR_CONTENT_TYPE]);
}

#[test]
fn payload_says_what_its_blobs_are() {
    let state = noisy(frames(9, 320), latents(2 << 20));
    let (exported, blobs) = export_by_reference(&state).unwrap();
    let [video, audio] = &blobs[..] else {
        panic!("{} blobs", blobs.len());
    };
    assert_eq!(
        exported.payload["video"],
        json!({ "blob_id": video.id, "frame_count": 9 })
    );
    assert_eq!(exported.payload["audio"], json!({ "blob_id": audio.id }));
    assert_eq!(video.bytes[..4], [0, 0, 0, 9]);
    assert_eq!(export_by_reference(&state).unwrap(), (exported, blobs));
}

#[test]
fn damaged_or_swapped_blobs_are_refused() {
    let layout = frames(9, 320);
    let expect = Expectation {
        width: 320,
        height: 320,
    };
    let (exported, blobs) = export_by_reference(&noisy(layout, latents(2 << 20))).unwrap();
    let [video, audio] = [0, 1].map(|i| (blobs[i].id.clone(), blobs[i].bytes.clone()));
    let check = |pairs: [(&str, &Bytes); 2], expected: &str| {
        let blobs = pairs.map(|(id, bytes)| (id.to_owned(), bytes.clone()));
        let refused = import(&exported, &blobs.into(), &expect).unwrap_err();
        let refused = refused.to_string();
        assert!(refused.starts_with(expected), "{refused}");
    };
    check(
        [(&video.0, &audio.1), (&audio.0, &audio.1)],
        "`payload.video.blob_id`: expected a blob with 1 to 64 frames, got ",
    );
    check(
        [(&video.0, &video.1), (&audio.0, &video.1)],
        "`payload.audio.blob_id`: expected a safetensors header of at most 65536 bytes, got ",
    );
    check(
        [("other", &video.1), (&audio.0, &audio.1)],
        &format!(
            "`payload.video.blob_id`: continuation state refers to blob {:?} which is not in the store",
            video.0
        ),
    );
    check(
        [(&video.0, &video.1), ("other", &audio.1)],
        &format!(
            "`payload.audio.blob_id`: continuation state refers to blob {:?} which is not in the store",
            audio.0
        ),
    );
    for cut in [0, 3, 4, 8, 1000, video.1.len() - 1] {
        check(
            [(&video.0, &video.1.slice(..cut)), (&audio.0, &audio.1)],
            "`payload.video.blob_id`: expected a blob with ",
        );
    }
    for cut in [0, 7, 8, 20, audio.1.len() - 1] {
        check(
            [(&video.0, &video.1), (&audio.0, &audio.1.slice(..cut))],
            "`payload.audio.blob_id`: expected a safetensors file, got ",
        );
    }
    let mut damaged = video.1.to_vec();
    damaged[100] ^= 1;
    check(
        [(&video.0, &damaged.into()), (&audio.0, &audio.1)],
        "`payload.video.blob_id, frame 0`: expected a whole PNG, got a damaged PNG (",
    );
    let short = PackedFrames::encode(&frames(1, 2), &[7; 12]).unwrap();
    check(
        [(&video.0, &short.into_bytes().into()), (&audio.0, &audio.1)],
        "`payload.video.frame_count`: expected the number of frames in the blob, 1, got 9",
    );
}

/// `cargo test --release -p fastvideo-supervisor-core -- --ignored --nocapture take_to_export`
#[test]
#[ignore = "a measurement"]
fn time_that_9_frames_of_1080p_take_to_export() {
    // A soft picture with noise in its lowest bits, as cameras and decoders of latents make it.
    let (count, height, width) = (9, 1088, 1920);
    let mut blob = vec![0; count as usize * height * width * 3];
    blake3::Hasher::new().finalize_xof().fill(&mut blob);
    for (i, byte) in blob.iter_mut().enumerate() {
        let (c, x, y) = (i % 3, i / 3 % width, i / 3 / width);
        let soft = x * x / 8000 + y * y / 100_000 + 60 * c;
        *byte = soft.to_le_bytes()[0].wrapping_add(*byte % 4);
    }
    let layout = FramesLayout {
        count,
        height: u32::try_from(height).unwrap(),
        width: u32::try_from(width).unwrap(),
    };
    let audio_latents = TensorLayout {
        dtype: Dtype::Bf16,
        shape: vec![1, 8, 51, 16],
    };
    blob.extend(vec![0; usize::try_from(audio_latents.bytes()).unwrap()]);
    let header = StateHeader {
        frames: Some(layout),
        audio_latents: Some(audio_latents),
        blob_hash: blob_hash(&blob),
        ..golden().0
    };
    let state = state(&header, &blob);
    let expect = Expectation {
        width: layout.width,
        height: layout.height,
    };
    for _ in 0..5 {
        let started = std::time::Instant::now();
        let inline = export_inline(&state).unwrap();
        let inline_ms = started.elapsed().as_millis();
        let started = std::time::Instant::now();
        let (exported, blobs) = export_by_reference(&state).unwrap();
        let reference_ms = started.elapsed().as_millis();
        let bytes: usize = blobs.iter().map(|blob| blob.bytes.len()).sum();
        let blobs = by_id(blobs);
        let started = std::time::Instant::now();
        import(&exported, &blobs, &expect).unwrap();
        let import_ms = started.elapsed().as_millis();
        let started = std::time::Instant::now();
        import(&inline, &Blobs::new(), &expect).unwrap();
        println!(
            "inline {inline_ms} ms, by reference {reference_ms} ms ({bytes} bytes), import {import_ms} ms, \
             import inline {} ms",
            started.elapsed().as_millis()
        );
    }
}
