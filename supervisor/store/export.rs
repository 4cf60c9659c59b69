//! Turns a state into its public form, `ContinuationState`, and back.
//!
//! The payload is that of FastVideo's `LTX2ContinuationState`, so that states move between both servers: frames as PNG,
//! audio latents as a safetensors file with one tensor `t`; both are either inline in base64, or named by the id of a
//! blob in a store. This module does not access such a store: [`export_by_reference()`] returns the blobs that its
//! payload refers to, and the caller of [`import()`] first fetches what [`references()`] names. All functions except
//! the last one read whole blobs and belong on a blocking thread.

use base64::Engine as _;
use bytes::Bytes;
use fastvideo_proto::state::ContinuationState;
use fastvideo_proto::state::{Dtype, FramesLayout, LTX2_V1, StateError, StateHeader, TensorLayout};
use safetensors::SafeTensorError;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use self::format::{BASE64, SCHEMA_VERSION, TENSOR, rgb_frames};
use self::pack::PackedFrames;
use super::State;

mod format;
mod frame;
mod import;
mod pack;
#[cfg(test)]
mod tests;

pub use import::{Blobs, Expectation, ImportError, import, references};

/// The largest encoded form of a tensor that stays in the payload of an export by reference: for frames the sum of
/// their PNGs, for latents the safetensors file. This is FastVideo's threshold.
const MAX_INLINE_BYTES: usize = 2 << 20;
const FRAMES_CONTENT_TYPE: &str = "application/x-fastvideo-frames+png";
const TENSOR_CONTENT_TYPE: &str = "application/x-fastvideo-tensor+safetensors";

/// A large tensor of an exported state, to be put into the blob store under its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedBlob {
    /// The BLAKE3 hash of the bytes, in lower-case hexadecimal digits.
    pub id: String,
    pub content_type: &'static str,
    pub bytes: Bytes,
}

impl ExportedBlob {
    fn new(content_type: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            id: blake3::hash(&bytes).to_hex().to_string(),
            content_type,
            bytes: bytes.into(),
        }
    }
}

/// Why a state cannot be exported: it is not what its header says, which is a fault of the worker that made it.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("state frames cannot be written as PNG")]
    Frame(#[source] png::EncodingError),
    #[error("state audio latents cannot be written as safetensors")]
    AudioLatents(#[source] SafeTensorError),
}

/// Writes a state in its public form, with everything inline.
///
/// Takes about as much CPU time as one PNG encoding per frame. Beside the result it holds one PNG at a time.
///
/// # Errors
/// Returns an error when the blob's hash does not match, or the header holds what the public form cannot.
pub fn export_inline(state: &State) -> Result<ContinuationState, ExportError> {
    let source = Source::of(state)?;
    let mut payload = fields(source.header);
    if let Some((layout, raw)) = source.frames {
        let mut png = Vec::new();
        let mut frames_b64 = Vec::with_capacity(layout.count as usize);
        for rgb in rgb_frames(&layout, raw) {
            png.clear();
            frame::encode(rgb, layout.width, layout.height, &mut png)
                .map_err(ExportError::Frame)?;
            frames_b64.push(Value::String(BASE64.encode(&png)));
        }
        payload.insert("video".to_owned(), inline_frames(frames_b64));
    }
    if let Some((layout, data)) = source.audio_latents {
        let file = safetensors_file(layout, data).map_err(ExportError::AudioLatents)?;
        payload.insert("audio".to_owned(), inline_tensor(&file));
    }
    Ok(envelope(payload))
}

/// Writes a state in its public form, with the ids of blobs in place of the tensors above 2 MiB.
///
/// Takes as long as [`export_inline()`]. The payload can only be used together with all of the blobs.
///
/// # Errors
/// Returns the errors of [`export_inline()`].
pub fn export_by_reference(
    state: &State,
) -> Result<(ContinuationState, Vec<ExportedBlob>), ExportError> {
    let source = Source::of(state)?;
    let mut payload = fields(source.header);
    let mut blobs = Vec::new();
    if let Some((layout, raw)) = source.frames {
        let packed = PackedFrames::encode(&layout, raw).map_err(ExportError::Frame)?;
        let video = if packed.png_bytes() > MAX_INLINE_BYTES {
            let blob = ExportedBlob::new(FRAMES_CONTENT_TYPE, packed.into_bytes());
            let video = json!({ "blob_id": blob.id, "frame_count": layout.count });
            blobs.push(blob);
            video
        } else {
            let encode = |png: &[u8]| Value::String(BASE64.encode(png));
            inline_frames(packed.pngs().map(encode).collect())
        };
        payload.insert("video".to_owned(), video);
    }
    if let Some((layout, data)) = source.audio_latents {
        let file = safetensors_file(layout, data).map_err(ExportError::AudioLatents)?;
        let audio = if file.len() > MAX_INLINE_BYTES {
            let blob = ExportedBlob::new(TENSOR_CONTENT_TYPE, file);
            let audio = json!({ "blob_id": blob.id });
            blobs.push(blob);
            audio
        } else {
            inline_tensor(&file)
        };
        payload.insert("audio".to_owned(), audio);
    }
    Ok((envelope(payload), blobs))
}

/// The parts of a state whose header and hash were checked.
struct Source<'a> {
    header: &'a StateHeader,
    frames: Option<(FramesLayout, &'a [u8])>,
    audio_latents: Option<(&'a TensorLayout, &'a [u8])>,
}

impl<'a> Source<'a> {
    fn of(state: &'a State) -> Result<Self, StateError> {
        let header = state.header();
        header.check()?;
        header.check_blob(state.blob())?;
        let frames_end =
            usize::try_from(header.frames_end()).expect("part of a size that was checked");
        let (frames, audio_latents) = state.blob().split_at(frames_end);
        Ok(Self {
            header,
            frames: header.frames.map(|layout| (layout, frames)),
            audio_latents: header.audio_latents.as_ref().map(|l| (l, audio_latents)),
        })
    }
}

fn envelope(payload: Map<String, Value>) -> ContinuationState {
    ContinuationState {
        kind: LTX2_V1.to_owned(),
        payload,
    }
}

/// Returns all fields of the payload except its tensors.
fn fields(header: &StateHeader) -> Map<String, Value> {
    let metadata: Value =
        serde_json::from_str(&header.metadata).expect("a checked header's metadata is JSON");
    let mut payload = Map::new();
    let mut put = |name: &str, value: Value| payload.insert(name.to_owned(), value);
    put("schema_version", SCHEMA_VERSION.into());
    put("segment_index", header.segment_index.into());
    put(
        "video_conditioning_frame_idx",
        header.video_conditioning_frame_idx.into(),
    );
    put(
        "video_conditioning_strength",
        header.video_conditioning_strength.into(),
    );
    put(
        "audio_conditioning_num_frames",
        header.audio_conditioning_num_frames.into(),
    );
    put(
        "audio_conditioning_strength",
        header.audio_conditioning_strength.into(),
    );
    put(
        "video_position_offset_sec",
        header.video_position_offset_sec.into(),
    );
    put("metadata", metadata);
    if let Some(rate) = header.audio_sample_rate {
        put("audio_sample_rate", rate.into());
    }
    payload
}

// `json!` would copy the frames.
fn inline_frames(frames_b64: Vec<Value>) -> Value {
    Map::from_iter([("frames_b64".to_owned(), Value::Array(frames_b64))]).into()
}

fn inline_tensor(file: &[u8]) -> Value {
    json!({ "safetensors_b64": BASE64.encode(file) })
}

fn safetensors_file(layout: &TensorLayout, data: &[u8]) -> Result<Vec<u8>, SafeTensorError> {
    let mut shape = Vec::with_capacity(layout.shape.len());
    for &dim in &layout.shape {
        shape.push(usize::try_from(dim).map_err(|_| SafeTensorError::ValidationOverflow)?);
    }
    let dtype = match layout.dtype {
        Dtype::Bf16 => safetensors::Dtype::BF16,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::F32 => safetensors::Dtype::F32,
    };
    let tensor = TensorView::new(dtype, shape, data)?;
    safetensors::serialize([(TENSOR, tensor)], None)
}
