//! Reads the public form of a state, which is untrusted input.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::RangeInclusive;

use base64::Engine as _;
use bytes::Bytes;
use fastvideo_link::SharedMemory;
use fastvideo_proto::state::ContinuationState;
use fastvideo_proto::state::{
    Dtype, FramesLayout, LTX2_V1, MAX_AUDIO_ELEMENTS, MAX_BLOB_BYTES, MAX_FRAMES, MAX_INTEGER,
    MAX_METADATA_BYTES, MAX_METADATA_DEPTH, POSITION_OFFSETS, SAMPLE_RATES, STRENGTHS, StateHeader,
    TensorLayout, blob_hash, json_depth,
};
use safetensors::SafeTensors;
use serde_json::{Map, Value};

use super::format::{BASE64, SCHEMA_VERSION, TENSOR};
use super::frame::{self, FrameError};
use super::pack;
use crate::store::State;

#[cfg(test)]
mod tests;

/// The longest safetensors header that is accepted. One tensor's entry takes about 80 bytes; the rest is room for
/// free-form metadata.
const MAX_TENSOR_HEADER_BYTES: u64 = 64 << 10;
/// The largest safetensors file that is accepted.
const MAX_TENSOR_FILE_BYTES: u64 = 8 + MAX_TENSOR_HEADER_BYTES + 4 * MAX_AUDIO_ELEMENTS;
/// How many bytes a PNG may have besides its pixels.
const MAX_PNG_EXTRA_BYTES: u64 = 1 << 20;
/// Limit on the raw bytes of frames and latents: 9 frames of 4096x2176 are 229 MiB.
const MAX_IMPORT_BYTES: u64 = 512 << 20;
const _: () = assert!(MAX_IMPORT_BYTES + 4 * MAX_AUDIO_ELEMENTS <= MAX_BLOB_BYTES);
/// The longest id of a blob that is accepted. An id is a key in a store: a hash, a UUID, a short path.
const MAX_BLOB_ID_CHARS: usize = 128;

/// Those of the referenced blobs that the store has, by their ids.
pub type Blobs = HashMap<String, Bytes>;

/// The properties that a state must have for this server's model to continue from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// The width of each frame, in pixels; at least 1.
    pub width: u32,
    /// The height of each frame, in pixels; at least 1.
    pub height: u32,
}

/// Why a state is refused. The text is safe to show to the client.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    #[error("`{field}`: expected {expected}, got {given}")]
    Field {
        field: String,
        expected: String,
        given: String,
    },
    /// The state is valid, but one of its blobs is missing.
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

/// Returns the ids of the blobs that a state refers to, each once; none when everything is inline.
///
/// Checks everything in the state except its tensors, so that nothing is fetched for one that would be refused anyway.
///
/// # Errors
/// Returns an error that names the first field that does not fit.
pub fn references(state: &ContinuationState) -> Result<Vec<String>, ImportError> {
    let envelope = ParsedState::read(state)?;
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
/// Returns an error that names the first field that does not fit, or the blob that is missing. Nothing is kept then.
///
/// # Panics
/// Panics when the system has no shared memory or no file descriptor left.
pub fn import(
    state: &ContinuationState,
    blobs: &Blobs,
    expect: &Expectation,
) -> Result<State, ImportError> {
    let ParsedState {
        mut header,
        video,
        audio,
    } = ParsedState::read(state)?;
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
    let blob = SharedMemory::from_bytes(&blob).expect("a descriptor and memory are left");
    Ok(State::new(header, header_bytes, blob))
}

/// A state whose tensors are not read yet.
struct ParsedState<'a> {
    /// The header without layouts and hash.
    header: StateHeader,
    video: Option<Video<'a>>,
    audio: Option<Audio<'a>>,
}

enum Video<'a> {
    /// At least one frame, and at most [`MAX_FRAMES`].
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

impl<'a> ParsedState<'a> {
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

/// The raw frames, which are filled one by one.
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
            // The system zeroes the pages as they are written to, so a state that is refused early costs little.
            raw: vec![0; bytes],
            filled: 0,
        })
    }

    /// Returns a limit above the 8 bytes per pixel of the largest kind of PNG without any compression.
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
    /// Returns the safetensors file, and the field in which it came.
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

/// Returns the layout and the raw data of the one tensor in a safetensors file.
fn audio_latents<'a>(field: &str, file: &'a [u8]) -> Result<(TensorLayout, &'a [u8]), ImportError> {
    let wrong =
        |expected: String, given: String| ImportError::field(field, expected, shortened(&given));
    // The length is read here since the library takes headers up to 100 MB.
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
    // This is checked before anything is decoded. The last 2 bytes may be padding.
    at_most(field, (text.len() / 4 * 3).saturating_sub(2), max_bytes)?;
    BASE64
        .decode(text)
        .map_err(|error| ImportError::field(field, "strict base64", error.to_string()))
}

/// A JSON object of the state, and its path for error messages.
struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn of(path: impl Into<String>, map: &'a Map<String, Value>) -> Self {
        let path = path.into();
        Self { path, map }
    }

    /// Returns the field's value unless it is absent or null.
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

    /// Returns the id of the blob that this object names in place of the field `inline`.
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

/// Describes a value in a few words, for an error message.
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
