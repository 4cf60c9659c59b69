//! The continuation state of kind `ltx2.v1` in its internal form: a small versioned header, and one blob with the raw
//! bytes of the trailing frames followed by those of the audio latents.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::envelope::{Envelope, EnvelopeError};

#[cfg(test)]
mod tests;

/// The name of this kind in the public form.
pub const LTX2_V1: &str = "ltx2.v1";

const ENVELOPE: Envelope<MAX_HEADER_BYTES> = Envelope {
    magic: *b"FVST",
    kind: 0,
    version: 1,
};
/// The longest header that is read. It holds a few numbers and a metadata object.
const MAX_HEADER_BYTES: usize = 1 << 20;
/// The largest blob that is taken: 64 frames of 4096x2176 and their sound.
pub const MAX_BLOB_BYTES: u64 = 2 << 30;
/// The most trailing frames of a state. LTX-2 conditions on 9.
pub const MAX_FRAMES: u32 = 64;
/// The largest width and height of a frame, in pixels.
const MAX_SIDE: u32 = 16_384;
/// The most numbers in the audio latents: 32 MiB in bf16, where LTX-2 carries a few KiB.
pub const MAX_AUDIO_ELEMENTS: u64 = 16 << 20;
/// The rank of the audio latents, `[B, C, T, mel]`.
pub const AUDIO_RANK: usize = 4;
/// The longest metadata object, as JSON text. The end of the sound takes 22 KiB of it.
pub const MAX_METADATA_BYTES: usize = 256 << 10;
/// How deep objects and lists of the metadata may be nested, the metadata object included.
pub const MAX_METADATA_DEPTH: usize = 32;
/// The largest integer field. Other implementations of the public form use signed 32-bit numbers.
pub const MAX_INTEGER: u32 = i32::MAX as u32;
/// Valid sample rates of the sound, in Hz.
pub const SAMPLE_RATES: RangeInclusive<u32> = 8_000..=192_000;
/// Valid conditioning strengths.
pub const STRENGTHS: RangeInclusive<f64> = 0.0..=1.0;
/// Valid position offsets, in seconds. Positions are only ever shifted forward, by less than a segment.
pub const POSITION_OFFSETS: RangeInclusive<f64> = 0.0..=86_400.0;

/// Everything in a state except its large tensors. The fields have the meaning they have in FastVideo's
/// `LTX2ContinuationState`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateHeader {
    /// The index of the segment that the state comes from.
    pub segment_index: u32,
    /// The frame of the next segment that the trailing frames are aligned with.
    pub video_conditioning_frame_idx: u32,
    /// The strength with which the next segment follows the trailing frames, from 0 to 1.
    pub video_conditioning_strength: f64,
    pub audio_sample_rate: Option<u32>,
    /// The number of trailing audio frames that carry over as clean context.
    pub audio_conditioning_num_frames: u32,
    /// The degree to which the cached audio is renoised: 0 keeps it, 1 renoises it.
    pub audio_conditioning_strength: f64,
    /// Seconds by which video positions are shifted forward.
    pub video_position_offset_sec: f64,
    /// A JSON object as text, because bincode cannot carry free-form values.
    pub metadata: String,
    /// The layout of the trailing frames at the start of the blob: RGB uint8, `[count, height, width, 3]`.
    pub frames: Option<FramesLayout>,
    /// The layout of the audio latents after the frames: `[B, C, T, mel]`.
    pub audio_latents: Option<TensorLayout>,
    /// BLAKE3 hash of the blob, which is also its name in a store.
    pub blob_hash: [u8; 32],
}

/// The size of the trailing frames in the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FramesLayout {
    pub count: u32,
    pub height: u32,
    pub width: u32,
}

impl FramesLayout {
    /// Returns the size of one frame in bytes; saturates.
    pub fn frame_bytes(&self) -> u64 {
        (u64::from(self.height) * u64::from(self.width)).saturating_mul(3)
    }

    /// Returns the size of all frames in bytes; saturates.
    pub fn bytes(&self) -> u64 {
        self.frame_bytes().saturating_mul(u64::from(self.count))
    }
}

/// The type and the shape of a tensor in the blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorLayout {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
}

impl TensorLayout {
    /// Returns the size of the tensor in bytes; saturates.
    pub fn bytes(&self) -> u64 {
        self.shape
            .iter()
            .fold(self.dtype.bytes(), |n, &d| n.saturating_mul(d))
    }

    /// Returns the number of elements in the tensor; saturates.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n, &d| n.saturating_mul(d))
    }

    /// Checks that this can be the layout of audio latents.
    ///
    /// # Errors
    /// Returns an error when the rank is not [`AUDIO_RANK`], or when there is no element or more than
    /// [`MAX_AUDIO_ELEMENTS`].
    pub fn check_audio(&self) -> Result<(), StateError> {
        let sizes = 1..=MAX_AUDIO_ELEMENTS;
        // Each size is checked too, because a saturated product times zero would be zero and pass as small.
        let sized = self.shape.iter().all(|dim| sizes.contains(dim));
        if self.shape.len() == AUDIO_RANK && sized && sizes.contains(&self.elements()) {
            return Ok(());
        }
        let given = match self.shape.get(..2 * AUDIO_RANK) {
            Some(_) => format!("{} dimensions", self.shape.len()),
            None => format!("{:?}", self.shape),
        };
        Err(StateError::Field {
            field: "audio_latents.shape",
            expected: format!("[B, C, T, mel] of 1 to {MAX_AUDIO_ELEMENTS} elements"),
            given,
        })
    }
}

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    Bf16,
    F16,
    F32,
}

impl Dtype {
    /// Returns the size of one element in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// The reason why bytes are not a state of this kind.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state header cannot be read: {0}")]
    Header(#[from] EnvelopeError),
    #[error("state field `{field}`: expected {expected}, got {given}")]
    Field {
        field: &'static str,
        expected: String,
        given: String,
    },
    #[error("state blob is {actual} bytes, its header says {expected}")]
    BlobSize { expected: u64, actual: u64 },
    #[error("state blob would be {0} bytes, limit is {MAX_BLOB_BYTES}")]
    BlobLimit(u64),
    #[error("state blob is damaged: its hash is not the one in its header")]
    Hash,
}

impl StateHeader {
    /// Returns the size that the blob must have in bytes; saturates.
    pub fn blob_bytes(&self) -> u64 {
        let frames = self.frames.map_or(0, |f| f.bytes());
        let audio = self.audio_latents.as_ref().map_or(0, TensorLayout::bytes);
        frames.saturating_add(audio)
    }

    /// Returns the offset in the blob at which the frames end and the audio latents begin.
    pub fn frames_end(&self) -> u64 {
        self.frames.map_or(0, |f| f.bytes())
    }

    /// Encodes the header in its envelope.
    pub fn encode(&self) -> Vec<u8> {
        ENVELOPE.encode(self)
    }

    /// Decodes a header that [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Returns an error when the bytes are not a header of this kind and version, when they are longer or shorter than
    /// one, or when [`Self::check`] refuses a field.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let header: Self = ENVELOPE.decode(bytes)?;
        header.check()?;
        Ok(header)
    }

    /// Checks every field against its limits, so that a model can be given them and an export can carry them.
    ///
    /// # Errors
    /// Returns an error that names the first field that is out of range, or the blob's size if it exceeds
    /// [`MAX_BLOB_BYTES`].
    pub fn check(&self) -> Result<(), StateError> {
        for (field, value) in [
            ("segment_index", self.segment_index),
            (
                "video_conditioning_frame_idx",
                self.video_conditioning_frame_idx,
            ),
            (
                "audio_conditioning_num_frames",
                self.audio_conditioning_num_frames,
            ),
        ] {
            within(field, value, &(0..=MAX_INTEGER))?;
        }
        if let Some(rate) = self.audio_sample_rate {
            within("audio_sample_rate", rate, &SAMPLE_RATES)?;
        }
        // Ranges do not contain NaN, so this refuses it too.
        for (field, value, range) in [
            (
                "video_conditioning_strength",
                self.video_conditioning_strength,
                &STRENGTHS,
            ),
            (
                "audio_conditioning_strength",
                self.audio_conditioning_strength,
                &STRENGTHS,
            ),
            (
                "video_position_offset_sec",
                self.video_position_offset_sec,
                &POSITION_OFFSETS,
            ),
        ] {
            within(field, value, range)?;
        }
        if let Some(frames) = &self.frames {
            within("frames.count", frames.count, &(1..=MAX_FRAMES))?;
            within("frames.height", frames.height, &(1..=MAX_SIDE))?;
            within("frames.width", frames.width, &(1..=MAX_SIDE))?;
        }
        if let Some(latents) = &self.audio_latents {
            latents.check_audio()?;
        }
        let blob_bytes = self.blob_bytes();
        if blob_bytes > MAX_BLOB_BYTES {
            return Err(StateError::BlobLimit(blob_bytes));
        }
        check_metadata(&self.metadata)
    }

    /// Checks the size of the blob that came with this header, without reading it.
    ///
    /// # Errors
    /// Returns an error when the size differs from the one in the header.
    pub fn check_blob_size(&self, actual: usize) -> Result<(), StateError> {
        let (expected, actual) = (self.blob_bytes(), actual as u64);
        if expected == actual {
            Ok(())
        } else {
            Err(StateError::BlobSize { expected, actual })
        }
    }

    /// Checks size and hash of the blob that came with this header.
    ///
    /// # Errors
    /// Returns an error when the size or the hash differs from the one in the header.
    pub fn check_blob(&self, blob: &[u8]) -> Result<(), StateError> {
        self.check_blob_size(blob.len())?;
        if blob_hash(blob) == self.blob_hash {
            Ok(())
        } else {
            Err(StateError::Hash)
        }
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    field: &'static str,
    value: T,
    range: &RangeInclusive<T>,
) -> Result<(), StateError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(StateError::Field {
        field,
        expected: format!("a number from {} to {}", range.start(), range.end()),
        given: value.to_string(),
    })
}

fn check_metadata(text: &str) -> Result<(), StateError> {
    let wrong = |expected: String, given: String| StateError::Field {
        field: "metadata",
        expected,
        given,
    };
    if text.len() > MAX_METADATA_BYTES {
        return Err(wrong(
            format!("at most {MAX_METADATA_BYTES} bytes of JSON"),
            format!("{} bytes", text.len()),
        ));
    }
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| wrong("JSON".to_owned(), error.to_string()))?;
    if !value.is_object() {
        return Err(wrong(
            "an object".to_owned(),
            format!("{} bytes of other JSON", text.len()),
        ));
    }
    let depth = json_depth(&value);
    if depth > MAX_METADATA_DEPTH {
        return Err(wrong(
            format!("at most {MAX_METADATA_DEPTH} levels"),
            format!("{depth} levels"),
        ));
    }
    Ok(())
}

/// Returns how deeply objects and lists are nested. The recursion is as deep; parsed JSON has at most 128 levels.
pub fn json_depth(value: &serde_json::Value) -> usize {
    use serde_json::Value;

    match value {
        Value::Array(list) => 1 + list.iter().map(json_depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(json_depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// Returns the hash of a blob, as its header carries it.
pub fn blob_hash(blob: &[u8]) -> [u8; 32] {
    *blake3::hash(blob).as_bytes()
}
