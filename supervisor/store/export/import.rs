//! Reads the public envelope. Nothing in it is trusted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::RangeInclusive;

use base64::Engine as _;
use bytes::Bytes;
use fastvideo_proto::state::ContinuationState;
use fastvideo_proto::state::{
    Dtype, FramesLayout, LTX2_V1, MAX_AUDIO_ELEMENTS, MAX_BLOB_BYTES, MAX_FRAMES, MAX_INTEGER,
    MAX_METADATA_BYTES, MAX_METADATA_DEPTH, POSITION_OFFSETS, SAMPLE_RATES, STRENGTHS, StateHeader,
    TensorLayout, blob_hash, json_depth,
};
use ipc_channel::ipc::IpcSharedMemory;
use safetensors::SafeTensors;
use serde_json::{Map, Value};

use super::frame::{self, FrameError};
use super::pack;
use super::{BASE64, SCHEMA_VERSION, TENSOR};
use crate::store::State;

/// One tensor's entry takes about 80 bytes; the rest is room for free-form metadata.
const MAX_TENSOR_HEADER_BYTES: u64 = 64 << 10;
/// The largest tensor that is taken, with its header.
const MAX_TENSOR_FILE_BYTES: u64 = 8 + MAX_TENSOR_HEADER_BYTES + 4 * MAX_AUDIO_ELEMENTS;
/// What a PNG may have beside its pixels.
const MAX_PNG_EXTRA_BYTES: u64 = 1 << 20;
/// Raw bytes of frames and latents: 9 frames of 4096x2176 are 229 MiB.
const MAX_IMPORT_BYTES: u64 = 512 << 20;
const _: () = assert!(MAX_IMPORT_BYTES + 4 * MAX_AUDIO_ELEMENTS <= MAX_BLOB_BYTES);
/// An id is a key in somebody's store: a hash, a UUID, a short path.
const MAX_BLOB_ID_CHARS: usize = 128;

/// Blobs by their ids, as far as the store has them.
pub type Blobs = HashMap<String, Bytes>;

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
    #[error("`{field}`: continuation state refers to blob {blob_id:?} which is not in the store")]
    BlobMissing { field: String, blob_id: String },
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

/// The ids of the blobs that a state refers to, each once; none when everything is inline.
///
/// Checks all of the state but its tensors, so that nothing is fetched for one that would be refused anyway.
///
/// # Errors
/// Names the first field that does not fit.
pub fn references(state: &ContinuationState) -> Result<Vec<String>, ImportError> {
    let envelope = Envelope::read(state)?;
    let mut ids = Vec::new();
    if let Some(Video::Blob { id, .. }) = envelope.video {
        ids.push(id.to_owned());
    }
    if let Some(Audio::Blob { id }) = envelope.audio
        && !ids.iter().any(|other| other == id)
    {
        ids.push(id.to_owned());
    }
    Ok(ids)
}

/// Reads a state in its public form. `blobs` holds what [`references()`] names.
///
/// Fields that are absent or null take the defaults of FastVideo's Python; unknown ones are ignored. Takes about as
/// much CPU time as one PNG decoding per frame, and twice the memory of the raw state for a moment.
///
/// # Errors
/// Names the first field that does not fit, or the blob that is not there. Nothing is kept then.
///
/// # Panics
/// When the system has no shared memory or no file descriptor left.
pub fn import(
    state: &ContinuationState,
    blobs: &Blobs,
    expect: &Expectation,
) -> Result<State, ImportError> {
    let Envelope {
        mut header,
        video,
        audio,
    } = Envelope::read(state)?;
    let audio_file = audio.map(|audio| audio.file(blobs)).transpose()?;
    let latents = match &audio_file {
        Some((field, file)) => Some(audio_latents(field, file)?),
        None => None,
    };
    let mut blob = Vec::new();
    if let Some(video) = video {
        let frames = video.decode(blobs, expect)?;
        header.frames = Some(frames.layout);
        blob = frames.raw;
    }
    if let Some((layout, data)) = latents {
        header.audio_latents = Some(layout);
        blob.extend_from_slice(data);
    }
    header.blob_hash = blob_hash(&blob);
    let header_bytes = header.encode();
    Ok(State::new(
        header,
        header_bytes,
        IpcSharedMemory::from_bytes(&blob),
    ))
}

/// A state in its public form, its tensors not read yet.
struct Envelope<'a> {
    /// Without layouts and hash.
    header: StateHeader,
    video: Option<Video<'a>>,
    audio: Option<Audio<'a>>,
}

enum Video<'a> {
    /// At least one and at most [`MAX_FRAMES`].
    Inline(&'a [Value]),
    Blob {
        id: &'a str,
        frame_count: Option<u32>,
    },
}

enum Audio<'a> {
    Inline(&'a str),
    Blob { id: &'a str },
}

impl<'a> Envelope<'a> {
    fn read(state: &'a ContinuationState) -> Result<Self, ImportError> {
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
        let header = StateHeader {
            segment_index: payload.integer("segment_index", &any)?.unwrap_or(0),
            video_conditioning_frame_idx: payload
                .integer("video_conditioning_frame_idx", &any)?
                .unwrap_or(0),
            video_conditioning_strength: payload
                .number("video_conditioning_strength", &STRENGTHS)?
                .unwrap_or(1.0),
            audio_sample_rate: payload.integer("audio_sample_rate", &SAMPLE_RATES)?,
            audio_conditioning_num_frames: payload
                .integer("audio_conditioning_num_frames", &any)?
                .unwrap_or(0),
            audio_conditioning_strength: payload
                .number("audio_conditioning_strength", &STRENGTHS)?
                .unwrap_or(1.0),
            video_position_offset_sec: payload
                .number("video_position_offset_sec", &POSITION_OFFSETS)?
                .unwrap_or(0.0),
            metadata: metadata(&payload)?,
            frames: None,
            audio_latents: None,
            blob_hash: [0; 32],
        };
        Ok(Self {
            header,
            video: video(&payload)?,
            audio: audio(&payload)?,
        })
    }
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
    let depth = 1 + metadata.map.values().map(json_depth).max().unwrap_or(0);
    if depth > MAX_METADATA_DEPTH {
        return Err(ImportError::field(
            metadata.path,
            format!("at most {MAX_METADATA_DEPTH} levels"),
            format!("{depth} levels"),
        ));
    }
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

fn video<'a>(payload: &Fields<'a>) -> Result<Option<Video<'a>>, ImportError> {
    let Some(video) = payload.object("video")? else {
        return Ok(None);
    };
    if let Some(id) = video.blob_id("frames_b64")? {
        let frame_count = video.integer("frame_count", &(1..=MAX_FRAMES))?;
        return Ok(Some(Video::Blob { id, frame_count }));
    }
    match video.get("frames_b64") {
        None => Ok(None),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        Some(Value::Array(list)) if list.len() > MAX_FRAMES as usize => Err(ImportError::field(
            format!("{}.frames_b64", video.path),
            format!("at most {MAX_FRAMES} frames"),
            list.len().to_string(),
        )),
        Some(Value::Array(list)) => Ok(Some(Video::Inline(list))),
        Some(other) => Err(video.wrong("frames_b64", "a list of base64 PNGs", other)),
    }
}

fn audio<'a>(payload: &Fields<'a>) -> Result<Option<Audio<'a>>, ImportError> {
    let Some(audio) = payload.object("audio")? else {
        return Ok(None);
    };
    if let Some(id) = audio.blob_id("safetensors_b64")? {
        return Ok(Some(Audio::Blob { id }));
    }
    match audio.get("safetensors_b64") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(Audio::Inline(text))),
        Some(other) => Err(audio.wrong("safetensors_b64", "a base64 safetensors file", other)),
    }
}

impl Video<'_> {
    fn decode(&self, blobs: &Blobs, expect: &Expectation) -> Result<Frames, ImportError> {
        match *self {
            Self::Inline(list) => {
                let field = "payload.video.frames_b64";
                let mut frames = Frames::of(field, list.len(), expect)?;
                for (i, value) in list.iter().enumerate() {
                    let field = format!("{field}[{i}]");
                    let Value::String(text) = value else {
                        return Err(ImportError::field(field, "a base64 PNG", described(value)));
                    };
                    let png = strict_base64(&field, text, frames.max_png_bytes())?;
                    frames.decode(field, &png)?;
                }
                Ok(frames)
            }
            Self::Blob { id, frame_count } => {
                let field = "payload.video.blob_id";
                let pngs = pack::unpack(blob(field, id, blobs)?).map_err(|error| {
                    ImportError::field(
                        field,
                        format!("a blob with {}", error.expected),
                        error.given,
                    )
                })?;
                if let Some(count) = frame_count
                    && count as usize != pngs.len()
                {
                    return Err(ImportError::field(
                        "payload.video.frame_count",
                        format!("the number of frames in the blob, {}", pngs.len()),
                        count.to_string(),
                    ));
                }
                let mut frames = Frames::of(field, pngs.len(), expect)?;
                for (i, png) in pngs.iter().enumerate() {
                    frames.decode(format!("{field}, frame {i}"), png)?;
                }
                Ok(frames)
            }
        }
    }
}

/// The raw frames, filled one by one.
struct Frames {
    layout: FramesLayout,
    raw: Vec<u8>,
    filled: usize,
}

impl Frames {
    fn of(field: &str, count: usize, expect: &Expectation) -> Result<Self, ImportError> {
        let &Expectation { width, height } = expect;
        let layout = FramesLayout {
            count: u32::try_from(count).expect("at most MAX_FRAMES"),
            height,
            width,
        };
        if layout.bytes() > MAX_IMPORT_BYTES {
            return Err(ImportError::field(
                field,
                format!("at most {MAX_IMPORT_BYTES} bytes of raw frames"),
                format!("{} bytes in {count} frames", layout.bytes()),
            ));
        }
        let bytes = usize::try_from(layout.bytes()).expect("below the limit on all frames");
        Ok(Self {
            layout,
            // Zeroed by the system as it is written to, so that what is refused early costs little.
            raw: vec![0; bytes],
            filled: 0,
        })
    }

    /// Above the 8 bytes per pixel of the largest kind of PNG, were it not compressed at all.
    fn max_png_bytes(&self) -> u64 {
        self.layout.frame_bytes() * 3 + MAX_PNG_EXTRA_BYTES
    }

    fn decode(&mut self, field: String, png: &[u8]) -> Result<(), ImportError> {
        at_most(&field, png.len(), self.max_png_bytes())?;
        let FramesLayout { width, height, .. } = self.layout;
        let frame_bytes = self.raw.len() / self.layout.count as usize;
        let rgb = &mut self.raw[self.filled..][..frame_bytes];
        self.filled += frame_bytes;
        frame::decode(png, width, height, rgb).map_err(|error| {
            let expected = match error {
                FrameError::Size { .. } => format!("a picture of {width}x{height}"),
                FrameError::Damaged(_) | FrameError::Trailing(_) => "a whole PNG".to_owned(),
            };
            ImportError::field(field, expected, error.to_string())
        })
    }
}

impl<'a> Audio<'a> {
    /// The safetensors file, and the field in which it came.
    fn file<'b>(&self, blobs: &'b Blobs) -> Result<(&'static str, Cow<'b, [u8]>), ImportError> {
        match *self {
            Self::Inline(text) => {
                let field = "payload.audio.safetensors_b64";
                let file = strict_base64(field, text, MAX_TENSOR_FILE_BYTES)?;
                Ok((field, Cow::Owned(file)))
            }
            Self::Blob { id } => {
                let field = "payload.audio.blob_id";
                let file = blob(field, id, blobs)?;
                at_most(field, file.len(), MAX_TENSOR_FILE_BYTES)?;
                Ok((field, Cow::Borrowed(file)))
            }
        }
    }
}

/// The layout and the raw data of the one tensor in a safetensors file.
fn audio_latents<'a>(field: &str, file: &'a [u8]) -> Result<(TensorLayout, &'a [u8]), ImportError> {
    let wrong =
        |expected: String, given: String| ImportError::field(field, expected, shortened(&given));
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
                format!("{:?}", tensors.names()),
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
    let layout = TensorLayout { dtype, shape };
    if layout.check_audio().is_err() {
        return Err(wrong(
            format!("a shape [B, C, T, mel] of 1 to {MAX_AUDIO_ELEMENTS} elements"),
            format!("{:?}", layout.shape),
        ));
    }
    Ok((layout, tensor.data()))
}

fn blob<'a>(field: &str, id: &str, blobs: &'a Blobs) -> Result<&'a Bytes, ImportError> {
    blobs.get(id).ok_or_else(|| ImportError::BlobMissing {
        field: field.to_owned(),
        blob_id: id.to_owned(),
    })
}

fn at_most(field: &str, bytes: usize, limit: u64) -> Result<(), ImportError> {
    if bytes as u64 <= limit {
        return Ok(());
    }
    Err(ImportError::field(
        field,
        format!("at most {limit} bytes"),
        format!("{bytes} bytes"),
    ))
}

fn strict_base64(field: &str, text: &str, max_bytes: u64) -> Result<Vec<u8>, ImportError> {
    // Before any of it is decoded. The last 2 bytes may be padding.
    at_most(field, (text.len() / 4 * 3).saturating_sub(2), max_bytes)?;
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

    fn number(&self, name: &str, range: &RangeInclusive<f64>) -> Result<Option<f64>, ImportError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            _ => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(self.wrong(name, expected, value))
            }
        }
    }

    /// The id of the blob that this object names instead of what `inline` would hold.
    fn blob_id(&self, inline: &str) -> Result<Option<&'a str>, ImportError> {
        let Some(value) = self.get("blob_id") else {
            return Ok(None);
        };
        let Some(id) = value.as_str().filter(|id| is_blob_id(id)) else {
            let expected = format!("1 to {MAX_BLOB_ID_CHARS} printable ASCII characters");
            return Err(self.wrong("blob_id", expected, value));
        };
        if self.get(inline).is_some() {
            return Err(ImportError::field(
                self.path.clone(),
                format!("either `{inline}` or `blob_id`"),
                "both",
            ));
        }
        Ok(Some(id))
    }

    fn wrong(&self, name: &str, expected: impl Into<String>, given: &Value) -> ImportError {
        ImportError::field(format!("{}.{name}", self.path), expected, described(given))
    }
}

fn is_blob_id(id: &str) -> bool {
    (1..=MAX_BLOB_ID_CHARS).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
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
                &format!(
                    "`payload.video.frame_count`: expected an integer from 1 to 64, got {given}"
                ),
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
}
