//! Between the state that moves inside this system and the public envelope `ContinuationState`.
//!
//! The payload is that of FastVideo's `LTX2ContinuationState`, so that states move between both servers: frames as
//! PNG, audio latents as a safetensors file with one tensor `t`, both in base64. The session calls [`export()`] for a
//! snapshot and [`import()`] for what a client brings along; both read whole blobs and belong on a blocking thread.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fastvideo_proto::client::ContinuationState;
use fastvideo_proto::state::{Dtype, FramesLayout, LTX2_V1, StateError, TensorLayout};
use safetensors::SafeTensorError;
use safetensors::tensor::TensorView;
use serde_json::{Map, Number, Value, json};

use super::State;

mod frame;
mod import;

pub use import::{Expectation, ImportError, import};

/// The payload's layout; the only one there is.
const SCHEMA_VERSION: u64 = 1;
/// The tensor's name in the safetensors file.
const TENSOR: &str = "t";

/// Why a state cannot be exported: it is not what its header says, which is a fault of the worker that made it.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("state metadata is not a JSON object")]
    Metadata(#[source] serde_json::Error),
    #[error("state field `{field}` is {value}, which JSON cannot carry")]
    NotFinite { field: &'static str, value: f64 },
    #[error("state frames cannot be written as PNG")]
    Frame(#[source] png::EncodingError),
    #[error("state audio latents cannot be written as safetensors")]
    AudioLatents(#[source] SafeTensorError),
}

/// Writes a state in its public form, with everything inline.
///
/// Takes about as much CPU time as one PNG encoding per frame.
///
/// # Errors
/// When the blob's checksum does not match, or the header holds what the public form cannot.
pub fn export(state: &State) -> Result<ContinuationState, ExportError> {
    let header = state.header();
    header.check_blob(state.blob())?;
    let frames_end = usize::try_from(header.frames_end()).expect("part of a size that was checked");
    let (frames, audio_latents) = state.blob().split_at(frames_end);

    let metadata: Map<String, Value> =
        serde_json::from_str(&header.metadata).map_err(ExportError::Metadata)?;
    let mut payload = Map::new();
    let mut put = |name: &str, value: Value| payload.insert(name.to_owned(), value);
    put("schema_version", SCHEMA_VERSION.into());
    put("segment_index", header.segment_index.into());
    put(
        "video_conditioning_frame_idx",
        header.video_conditioning_frame_idx.into(),
    );
    put(
        "audio_conditioning_num_frames",
        header.audio_conditioning_num_frames.into(),
    );
    for (field, value) in [
        (
            "video_conditioning_strength",
            header.video_conditioning_strength,
        ),
        (
            "audio_conditioning_strength",
            header.audio_conditioning_strength,
        ),
        (
            "video_position_offset_sec",
            header.video_position_offset_sec,
        ),
    ] {
        let number = Number::from_f64(value).ok_or(ExportError::NotFinite { field, value })?;
        put(field, number.into());
    }
    put("metadata", metadata.into());
    if let Some(rate) = header.audio_sample_rate {
        put("audio_sample_rate", rate.into());
    }
    if let Some(layout) = header.frames.filter(|layout| layout.count > 0) {
        let frames = frames_b64(&layout, frames).map_err(ExportError::Frame)?;
        put("video", json!({ "frames_b64": frames }));
    }
    if let Some(layout) = &header.audio_latents {
        let file = safetensors_file(layout, audio_latents).map_err(ExportError::AudioLatents)?;
        put("audio", json!({ "safetensors_b64": BASE64.encode(file) }));
    }
    Ok(ContinuationState {
        kind: LTX2_V1.to_owned(),
        payload,
    })
}

fn frames_b64(layout: &FramesLayout, frames: &[u8]) -> Result<Vec<String>, png::EncodingError> {
    let count = layout.count as usize;
    let frame_bytes = frames.len() / count;
    let mut encoded = Vec::new();
    for i in 0..count {
        let rgb = &frames[i * frame_bytes..][..frame_bytes];
        encoded.push(BASE64.encode(frame::encode(rgb, layout.width, layout.height)?));
    }
    Ok(encoded)
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

#[cfg(test)]
mod tests {
    use fastvideo_proto::state::{StateHeader, blob_checksum};
    use ipc_channel::ipc::IpcSharedMemory;

    use super::*;

    /// Written with the libraries that FastVideo uses; see `make_state_golden.py` beside it.
    const GOLDEN: &str = include_str!("../../tests/data/state_ltx2_v1.json");

    fn golden() -> (StateHeader, Vec<u8>) {
        let mut blob = Vec::new();
        for i in 0..2 {
            for y in 0..64 {
                for x in 0..64 {
                    let pixel = [0, 1, 2].map(|c| 3 * x + 5 * y + 7 * c + 11 * i);
                    blob.extend(pixel.map(|n: u32| n.to_le_bytes()[0]));
                }
            }
        }
        for i in 0..768_u16 {
            // 8 significant bits: bf16 holds them, and they are the upper half of an f32.
            let value = (f32::from(i % 256) - 128.0) / 64.0;
            blob.extend_from_slice(&value.to_le_bytes()[2..]);
        }
        let header = StateHeader {
            segment_index: 3,
            video_conditioning_frame_idx: 0,
            video_conditioning_strength: 0.75,
            audio_sample_rate: Some(24_000),
            audio_conditioning_num_frames: 51,
            audio_conditioning_strength: 1.0,
            video_position_offset_sec: 40.0 / 24.0,
            metadata: r#"{"nested":{"list":[1,2.5,null,true]},"note":"café"}"#.to_owned(),
            frames: Some(FramesLayout {
                count: 2,
                height: 64,
                width: 64,
            }),
            audio_latents: Some(TensorLayout {
                dtype: Dtype::Bf16,
                shape: vec![1, 8, 6, 16],
            }),
            blob_crc32: blob_checksum(&blob),
        };
        (header, blob)
    }

    fn state(header: &StateHeader, blob: &[u8]) -> State {
        State::from_worker(header.encode(), IpcSharedMemory::from_bytes(blob)).unwrap()
    }

    const EXPECT: Expectation = Expectation {
        width: 64,
        height: 64,
    };

    #[test]
    fn state_from_python_is_read() {
        let (header, blob) = golden();
        let envelope = serde_json::from_str(GOLDEN).unwrap();
        let read = import(&envelope, &EXPECT).unwrap();
        assert_eq!(read.header(), &header);
        assert_eq!(read.header_bytes(), header.encode());
        assert!(read.blob()[..] == blob[..]);
    }

    #[test]
    fn exported_state_differs_from_python_in_png_compression_only() {
        let (header, blob) = golden();
        let mut ours = export(&state(&header, &blob)).unwrap();
        let mut theirs: ContinuationState = serde_json::from_str(GOLDEN).unwrap();
        assert!(ours.payload.remove("video").is_some());
        assert!(theirs.payload.remove("video").is_some());
        assert_eq!(ours, theirs);
    }

    #[test]
    fn round_trip_over_json_is_exact() {
        let check = |header: &StateHeader, blob: &[u8]| {
            let sent = state(header, blob);
            let text = serde_json::to_string(&export(&sent).unwrap()).unwrap();
            let read = import(&serde_json::from_str(&text).unwrap(), &EXPECT).unwrap();
            assert_eq!(read.header_bytes(), sent.header_bytes());
            assert!(read.blob()[..] == sent.blob()[..]);
        };
        let (header, blob) = golden();
        check(&header, &blob);

        let (frames, audio) = blob.split_at(2 * 64 * 64 * 3);
        let silent = StateHeader {
            audio_latents: None,
            audio_sample_rate: None,
            blob_crc32: blob_checksum(frames),
            ..header.clone()
        };
        check(&silent, frames);
        let sound_only = StateHeader {
            frames: None,
            blob_crc32: blob_checksum(audio),
            ..header
        };
        check(&sound_only, audio);
    }

    #[test]
    fn damaged_blob_is_not_exported() {
        let (header, mut blob) = golden();
        blob[100] ^= 1;
        let refused = export(&state(&header, &blob));
        assert!(matches!(
            refused,
            Err(ExportError::State(StateError::Checksum))
        ));
    }

    #[test]
    fn header_that_the_public_form_cannot_carry_is_not_exported() {
        let (golden, blob) = golden();
        let mut header = golden.clone();
        header.metadata = "[1]".to_owned();
        let refused = export(&state(&header, &blob));
        assert!(matches!(refused, Err(ExportError::Metadata(_))));

        let mut header = golden.clone();
        header.video_position_offset_sec = f64::NAN;
        let refused = export(&state(&header, &blob));
        assert!(matches!(
            refused,
            Err(ExportError::NotFinite {
                field: "video_position_offset_sec",
                ..
            })
        ));

        let mut header = golden;
        header.audio_latents = None;
        header.frames = Some(FramesLayout {
            count: u32::MAX,
            height: 0,
            width: 64,
        });
        header.blob_crc32 = blob_checksum(&[]);
        let refused = export(&state(&header, &[]));
        assert!(matches!(refused, Err(ExportError::Frame(_))));
    }
}
