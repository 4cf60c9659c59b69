//! Reads the public envelope. Nothing in it is trusted.

use std::ops::RangeInclusive;

use base64::Engine as _;
use fastvideo_proto::client::ContinuationState;
use fastvideo_proto::state::{
    Dtype, FramesLayout, LTX2_V1, MAX_BLOB_BYTES, StateHeader, TensorLayout, blob_checksum,
};
use ipc_channel::ipc::IpcSharedMemory;
use safetensors::SafeTensors;
use serde_json::{Map, Value};

use super::frame::{self, FrameError};
use super::{BASE64, SCHEMA_VERSION, TENSOR};
use crate::store::State;

/// Integers of the payload are signed 32 bit numbers elsewhere.
const MAX_INTEGER: u32 = i32::MAX as u32;
const SAMPLE_RATES: RangeInclusive<u32> = 8_000..=192_000;
/// LTX-2 conditions on 9; nothing sensible comes near this.
const MAX_FRAMES: usize = 64;
/// 32 MiB in bf16, where LTX-2 carries a few KiB.
const MAX_AUDIO_ELEMENTS: u64 = 16 << 20;
/// One tensor's entry takes about 80 bytes; the rest is room for free-form metadata.
const MAX_TENSOR_HEADER_BYTES: u64 = 64 << 10;
/// As JSON text; well within what a state's header may hold.
const MAX_METADATA_BYTES: usize = 256 << 10;
/// Raw bytes of frames and latents: 9 frames of 4096x2176 are 229 MiB.
const MAX_IMPORT_BYTES: u64 = 512 << 20;
const _: () = assert!(MAX_IMPORT_BYTES <= MAX_BLOB_BYTES);

/// What a state must be like for this server's model to continue from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Of each frame, in pixels; at least 1.
    pub width: u32,
    pub height: u32,
}

/// Why an envelope is refused. The text is safe to show to the client.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    #[error("`{field}`: expected {expected}, got {given}")]
    Field {
        field: String,
        expected: String,
        given: String,
    },
    /// The state is fine but not whole.
    #[error(
        "`{field}` names blob {blob_id}, that is not there: this server takes states with everything inline"
    )]
    BlobMissing {
        field: String,
        /// Quoted, and shortened when long.
        blob_id: String,
    },
}

impl ImportError {
    fn field(
        field: impl Into<String>,
        expected: impl Into<String>,
        given: impl Into<String>,
    ) -> Self {
        Self::Field {
            field: field.into(),
            expected: expected.into(),
            given: given.into(),
        }
    }
}

/// Reads a state in its public form.
///
/// Fields that are absent or null take the defaults of FastVideo's Python; unknown ones are ignored. Takes about as
/// much CPU time as one PNG decoding per frame, and twice the memory of the raw state for a moment.
///
/// # Errors
/// Names the first field that does not fit. Nothing is kept then.
///
/// # Panics
/// When the system has no shared memory or no file descriptor left.
pub fn import(state: &ContinuationState, expect: &Expectation) -> Result<State, ImportError> {
    if state.kind != LTX2_V1 {
        return Err(ImportError::field(
            "kind",
            quoted(LTX2_V1),
            quoted(&state.kind),
        ));
    }
    let payload = Fields::of("payload", &state.payload);
    schema_version(&payload)?;
    let any = 0..=MAX_INTEGER;
    let mut header = StateHeader {
        segment_index: payload.integer("segment_index", &any)?.unwrap_or(0),
        video_conditioning_frame_idx: payload
            .integer("video_conditioning_frame_idx", &any)?
            .unwrap_or(0),
        video_conditioning_strength: payload
            .strength("video_conditioning_strength")?
            .unwrap_or(1.0),
        audio_sample_rate: payload.integer("audio_sample_rate", &SAMPLE_RATES)?,
        audio_conditioning_num_frames: payload
            .integer("audio_conditioning_num_frames", &any)?
            .unwrap_or(0),
        audio_conditioning_strength: payload
            .strength("audio_conditioning_strength")?
            .unwrap_or(1.0),
        video_position_offset_sec: payload.number("video_position_offset_sec")?.unwrap_or(0.0),
        metadata: metadata(&payload)?,
        frames: None,
        audio_latents: None,
        blob_crc32: 0,
    };

    let audio_file = safetensors_file(&payload)?;
    let audio = match &audio_file {
        Some(bytes) => Some(audio_latents(bytes)?),
        None => None,
    };
    let (layout, mut blob) = frames(&payload, expect)?;
    header.frames = layout;
    if let Some((layout, data)) = audio {
        header.audio_latents = Some(layout);
        blob.extend_from_slice(data);
    }
    header.blob_crc32 = blob_checksum(&blob);
    let header_bytes = header.encode();
    Ok(State::new(
        header,
        header_bytes,
        IpcSharedMemory::from_bytes(&blob),
    ))
}

fn schema_version(payload: &Fields<'_>) -> Result<(), ImportError> {
    match payload.get("schema_version") {
        None => Ok(()),
        Some(version) if version.as_u64() == Some(SCHEMA_VERSION) => Ok(()),
        Some(other) => Err(payload.wrong("schema_version", SCHEMA_VERSION.to_string(), other)),
    }
}

fn metadata(payload: &Fields<'_>) -> Result<String, ImportError> {
    let Some(metadata) = payload.object("metadata")? else {
        return Ok("{}".to_owned());
    };
    let text = serde_json::to_string(metadata.map).expect("what was read as JSON can be written");
    if text.len() > MAX_METADATA_BYTES {
        return Err(ImportError::field(
            metadata.path,
            format!("at most {MAX_METADATA_BYTES} bytes of JSON"),
            format!("{} bytes", text.len()),
        ));
    }
    Ok(text)
}

/// Decodes the frames, one after another into one buffer.
fn frames(
    payload: &Fields<'_>,
    expect: &Expectation,
) -> Result<(Option<FramesLayout>, Vec<u8>), ImportError> {
    let none = (None, Vec::new());
    let Some(video) = payload.object("video")? else {
        return Ok(none);
    };
    video.no_blob()?;
    let list = match video.get("frames_b64") {
        None => return Ok(none),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(video.wrong("frames_b64", "a list of base64 PNGs", other)),
    };
    let field = format!("{}.frames_b64", video.path);
    let count = match u32::try_from(list.len()) {
        Ok(0) => return Ok(none),
        Ok(count) if list.len() <= MAX_FRAMES => count,
        _ => {
            let expected = format!("at most {MAX_FRAMES} frames");
            return Err(ImportError::field(field, expected, list.len().to_string()));
        }
    };
    let &Expectation { width, height } = expect;
    let frames = FramesLayout {
        count,
        height,
        width,
    };
    if frames.bytes() > MAX_IMPORT_BYTES {
        return Err(ImportError::field(
            field,
            format!("at most {MAX_IMPORT_BYTES} bytes of raw frames"),
            format!("{} bytes in {count} frames", frames.bytes()),
        ));
    }
    let frame_bytes = usize::try_from(frames.frame_bytes()).expect("below the limit on all frames");
    let mut raw = vec![0; frame_bytes * list.len()];
    for (i, (value, rgb)) in list
        .iter()
        .zip(raw.chunks_exact_mut(frame_bytes))
        .enumerate()
    {
        let field = format!("{field}[{i}]");
        let Value::String(text) = value else {
            return Err(ImportError::field(field, "a base64 PNG", described(value)));
        };
        let png = strict_base64(&field, text)?;
        frame::decode(&png, width, height, rgb).map_err(|error| {
            let expected = match error {
                FrameError::Size { .. } => format!("a picture of {width}x{height}"),
                FrameError::Damaged(_) => "a whole PNG".to_owned(),
            };
            ImportError::field(field, expected, error.to_string())
        })?;
    }
    Ok((Some(frames), raw))
}

fn safetensors_file(payload: &Fields<'_>) -> Result<Option<Vec<u8>>, ImportError> {
    let Some(audio) = payload.object("audio")? else {
        return Ok(None);
    };
    audio.no_blob()?;
    match audio.get("safetensors_b64") {
        None => Ok(None),
        Some(Value::String(text)) => strict_base64("payload.audio.safetensors_b64", text).map(Some),
        Some(other) => Err(audio.wrong("safetensors_b64", "a base64 safetensors file", other)),
    }
}

/// The layout and the raw data of the one tensor in a safetensors file.
fn audio_latents(file: &[u8]) -> Result<(TensorLayout, &[u8]), ImportError> {
    let wrong = |expected: String, given: String| {
        ImportError::field("payload.audio.safetensors_b64", expected, given)
    };
    // Read ahead of the library, which would take a header of 100 MB.
    let header_bytes = file.first_chunk().map_or(0, |n| u64::from_le_bytes(*n));
    if header_bytes > MAX_TENSOR_HEADER_BYTES {
        return Err(wrong(
            format!("a safetensors header of at most {MAX_TENSOR_HEADER_BYTES} bytes"),
            format!("{header_bytes} bytes"),
        ));
    }
    let tensors = SafeTensors::deserialize(file)
        .map_err(|error| wrong("a safetensors file".to_owned(), error.to_string()))?;
    let tensor = match tensors.tensor(TENSOR) {
        Ok(tensor) if tensors.len() == 1 => tensor,
        _ => {
            return Err(wrong(
                format!("exactly one tensor `{TENSOR}`"),
                shortened(&format!("{:?}", tensors.names())),
            ));
        }
    };
    let dtype = match tensor.dtype() {
        safetensors::Dtype::BF16 => Dtype::Bf16,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::F32 => Dtype::F32,
        other => {
            return Err(wrong(
                "BF16, F16 or F32 numbers".to_owned(),
                other.to_string(),
            ));
        }
    };
    let shape: Vec<u64> = tensor.shape().iter().map(|&dim| dim as u64).collect();
    let elements = shape.iter().fold(1, |n: u64, &dim| n.saturating_mul(dim));
    if shape.len() != 4 || elements == 0 || elements > MAX_AUDIO_ELEMENTS {
        return Err(wrong(
            format!("a shape [B, C, T, mel] of 1 to {MAX_AUDIO_ELEMENTS} elements"),
            shortened(&format!("{shape:?}")),
        ));
    }
    Ok((TensorLayout { dtype, shape }, tensor.data()))
}

fn strict_base64(field: &str, text: &str) -> Result<Vec<u8>, ImportError> {
    BASE64
        .decode(text)
        .map_err(|error| ImportError::field(field, "strict base64", error.to_string()))
}

/// An object within the envelope, and where it lies.
struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn of(path: impl Into<String>, map: &'a Map<String, Value>) -> Self {
        let path = path.into();
        Self { path, map }
    }

    /// The field's value unless it is absent or null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ImportError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self::of(format!("{}.{name}", self.path), map))),
            Some(other) => Err(self.wrong(name, "an object", other)),
        }
    }

    fn integer(&self, name: &str, range: &RangeInclusive<u32>) -> Result<Option<u32>, ImportError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            _ => {
                let expected = format!("an integer from {} to {}", range.start(), range.end());
                Err(self.wrong(name, expected, value))
            }
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>, ImportError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|n| n.is_finite()) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(name, "a finite number", value)),
        }
    }

    fn strength(&self, name: &str) -> Result<Option<f64>, ImportError> {
        match self.number(name)? {
            Some(n) if !(0.0..=1.0).contains(&n) => Err(ImportError::field(
                format!("{}.{name}", self.path),
                "a number from 0 to 1",
                n.to_string(),
            )),
            fine => Ok(fine),
        }
    }

    /// Refuses an object that names a blob elsewhere.
    fn no_blob(&self) -> Result<(), ImportError> {
        match self.get("blob_id") {
            None => Ok(()),
            Some(Value::String(blob_id)) => Err(ImportError::BlobMissing {
                field: format!("{}.blob_id", self.path),
                blob_id: quoted(blob_id),
            }),
            Some(other) => Err(self.wrong("blob_id", "a text", other)),
        }
    }

    fn wrong(&self, name: &str, expected: impl Into<String>, given: &Value) -> ImportError {
        ImportError::field(format!("{}.{name}", self.path), expected, described(given))
    }
}

/// A value in a few words, for an error.
fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn quoted(text: &str) -> String {
    shortened(&format!("{text:?}"))
}

fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
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
        import(&ContinuationState { kind, payload }, &EXPECT)
    }

    fn frame_b64(width: u32, height: u32) -> String {
        let rgb = vec![77; (width * height * 3) as usize];
        BASE64.encode(frame::encode(&rgb, width, height).unwrap())
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
                blob_crc32: 0,
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
            import(&state, &EXPECT).unwrap_err().to_string(),
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
        for field in ["video_conditioning_strength", "audio_conditioning_strength"] {
            for bad in [-0.1, 1.001, 1e300] {
                check(
                    json!({ field: bad }),
                    &format!("`payload.{field}`: expected a number from 0 to 1, got {bad}"),
                );
            }
            check(
                json!({ field: "1.0" }),
                &format!(r#"`payload.{field}`: expected a finite number, got "1.0""#),
            );
        }
        check(
            json!({ "video_position_offset_sec": {} }),
            "`payload.video_position_offset_sec`: expected a finite number, got an object",
        );
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
        for field in ["video", "audio"] {
            check(
                json!({ field: { "blob_id": "5f0c", "frame_count": 9 } }),
                &format!(
                    "`payload.{field}.blob_id` names blob \"5f0c\", that is not there: this server takes states \
                     with everything inline"
                ),
            );
            check(
                json!({ field: { "blob_id": 5 } }),
                &format!("`payload.{field}.blob_id`: expected a text, got 5"),
            );
        }
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
            import(&state, &expect).unwrap_err().to_string(),
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
}
