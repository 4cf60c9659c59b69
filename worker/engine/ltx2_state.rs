//! Converts continuation states of kind `ltx2.v1` to the model's tensors and back.
//!
//! Frames are RGB uint8 `[n, H, W, 3]`, audio latents `[1, C, T, M]` in bfloat16.

use fastvideo_ltx2::generation::Generation;
use fastvideo_ltx2::pipeline::Continuation;
use fastvideo_proto::state::{Dtype, FramesLayout, StateHeader, TensorLayout};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::{EngineError, NewState, State, state_memory};

/// The key of the generation in a state's metadata.
const GENERATION: &str = "generation";

/// Reads a state into tensors on the CPU.
///
/// # Errors
/// Returns an error when the blob is not as long as the header says, or when the header asks for something that this
/// engine does not support. The model checks whether the state fits it and the request.
pub(super) fn read(state: &State<'_>) -> Result<Continuation, EngineError> {
    let header = state.header;
    if header.blob_bytes() != state.blob.len() as u64 {
        let (expected, given) = (header.blob_bytes(), state.blob.len());
        let message = format!("state's size: expected {expected} bytes, given {given} bytes");
        return Err(EngineError::StateIncompatible(message));
    }
    only_whole(header)?;
    let frames_end = header.frames.map_or(0, |frames| frames.bytes());
    let frames_end = usize::try_from(frames_end).unwrap_or(usize::MAX);
    let (frames, latents) = state.blob.split_at(frames_end.min(state.blob.len()));
    let frames = header.frames.map(|layout| {
        let FramesLayout {
            count,
            height,
            width,
        } = layout;
        let shape = [count.into(), height.into(), width.into(), 3];
        Tensor::from_data_size(frames, &shape, Kind::Uint8)
    });
    let audio_latents = header.audio_latents.as_ref().map(|layout| {
        let shape: Vec<i64> = layout.shape.iter().map(|size| size.cast_signed()).collect();
        let kind = match layout.dtype {
            Dtype::Bf16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            Dtype::F32 => Kind::Float,
        };
        Tensor::from_data_size(latents, &shape, kind).to_kind(Kind::Float)
    });
    Ok(Continuation {
        frames,
        audio_latents,
        audio_num_frames: header.audio_conditioning_num_frames.into(),
        video_position_offset_sec: header.video_position_offset_sec,
        generation: generation(header)?,
    })
}

/// Returns the generation of the model that made the state; `None` where the state does not say, as those of FastVideo.
fn generation(header: &StateHeader) -> Result<Option<Generation>, EngineError> {
    let metadata: Value = serde_json::from_str(&header.metadata).unwrap_or_default();
    match &metadata[GENERATION] {
        Value::String(name) => match Generation::named(name) {
            None => Err(EngineError::StateIncompatible(format!(
                "state's model: expected LTX-2.0 or LTX-2.3, given `{name}`"
            ))),
            known => Ok(known),
        },
        _ => Ok(None),
    }
}

/// Checks that the conditioning frames stand at the segment's start and keep their full strength, since this engine
/// supports nothing else.
fn only_whole(header: &StateHeader) -> Result<(), EngineError> {
    let refused = |field: &str, expected: &str, given: String| {
        let message = format!("state's {field}: expected {expected}, given {given}");
        Err(EngineError::StateIncompatible(message))
    };
    let index = header.video_conditioning_frame_idx;
    if index != 0 {
        return refused("video_conditioning_frame_idx", "0", index.to_string());
    }
    for (field, strength) in [
        (
            "video_conditioning_strength",
            header.video_conditioning_strength,
        ),
        (
            "audio_conditioning_strength",
            header.audio_conditioning_strength,
        ),
    ] {
        if strength != 1.0 {
            return refused(field, "1", strength.to_string());
        }
    }
    Ok(())
}

/// Writes the state after segment `index`. The caller fills in the blob's hash.
///
/// # Errors
/// Returns an error when there is no memory for it.
pub(super) fn write(
    made: &Continuation,
    index: u32,
    sample_rate: u32,
) -> Result<NewState, EngineError> {
    let frames = made
        .frames
        .as_ref()
        .and_then(|frames| match sizes(frames)[..] {
            [count, height, width, 3] => Some(FramesLayout {
                count,
                height,
                width,
            }),
            _ => None,
        });
    let audio_latents = made.audio_latents.as_ref().map(|latents| TensorLayout {
        dtype: Dtype::Bf16,
        shape: sizes(latents).into_iter().map(u64::from).collect(),
    });
    let header = StateHeader {
        segment_index: index,
        video_conditioning_frame_idx: 0,
        video_conditioning_strength: 1.0,
        audio_sample_rate: Some(sample_rate),
        audio_conditioning_num_frames: u32::try_from(made.audio_num_frames).unwrap_or(0),
        audio_conditioning_strength: 1.0,
        video_position_offset_sec: made.video_position_offset_sec,
        metadata: metadata(made.generation),
        frames,
        audio_latents,
        blob_hash: [0; 32],
    };
    let bytes =
        usize::try_from(header.blob_bytes()).expect("it fits into memory, as its tensors do");
    let mut blob = state_memory(bytes)?;
    let frames_end = frames.map_or(0, |frames| frames.bytes());
    let frames_end = usize::try_from(frames_end).unwrap_or(bytes).min(bytes);
    let (frames_bytes, latents_bytes) = blob.split_at_mut(frames_end);
    if let Some(frames) = &made.frames {
        frames
            .contiguous()
            .copy_data_u8(frames_bytes, frames.numel());
    }
    if let Some(latents) = &made.audio_latents {
        let latents = latents.to_kind(Kind::BFloat16).contiguous();
        latents.copy_data_u8(latents_bytes, latents.numel());
    }
    Ok(NewState { header, blob })
}

fn metadata(generation: Option<Generation>) -> String {
    let mut metadata = json!({ "engine": "ltx2" });
    if let Some(generation) = generation {
        metadata[GENERATION] = json!(generation.to_string());
    }
    metadata.to_string()
}

fn sizes(tensor: &Tensor) -> Vec<u32> {
    let size = |size| u32::try_from(size).unwrap_or(0);
    tensor.size().into_iter().map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_read_again_is_what_was_written() {
        let frames = Tensor::arange(2 * 4 * 6 * 3, (Kind::Int64, tch::Device::Cpu));
        let frames = frames.to_kind(Kind::Uint8).view([2, 4, 6, 3]);
        let latents = Tensor::arange(24, (Kind::Float, tch::Device::Cpu)).view([1, 2, 3, 4]) / 8.0;
        let made = Continuation {
            frames: Some(frames.copy()),
            audio_latents: Some(latents.copy()),
            audio_num_frames: 17,
            video_position_offset_sec: 0.25,
            generation: Some(Generation::V2_3),
        };
        let NewState { header, blob } = write(&made, 3, 24_000).unwrap();
        assert_eq!(header.segment_index, 3);
        let state = State {
            header: &header,
            blob: &blob,
        };
        let again = read(&state).unwrap();
        assert_eq!(again.frames.unwrap(), frames);
        assert_eq!(again.audio_latents.unwrap(), latents);
        assert_eq!(
            (again.audio_num_frames, again.video_position_offset_sec),
            (17, 0.25)
        );
        assert_eq!(again.generation, Some(Generation::V2_3));
        let mut other = header.clone();
        other.metadata = r#"{"generation": "LTX-9"}"#.to_owned();
        let other = State {
            header: &other,
            blob: &blob,
        };
        assert_eq!(
            read(&other).unwrap_err().to_string(),
            "state's model: expected LTX-2.0 or LTX-2.3, given `LTX-9`"
        );
        let mut weaker = header.clone();
        weaker.audio_conditioning_strength = 0.5;
        let weaker = State {
            header: &weaker,
            blob: &blob,
        };
        assert_eq!(
            read(&weaker).unwrap_err().to_string(),
            "state's audio_conditioning_strength: expected 1, given 0.5"
        );
        let short = State {
            header: &header,
            blob: &blob[1..],
        };
        assert!(matches!(
            read(&short),
            Err(EngineError::StateIncompatible(_))
        ));
    }
}
