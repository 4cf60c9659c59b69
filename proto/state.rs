//! The continuation state of kind `ltx2.v1` in the form that moves inside this system: a small versioned header, and
//! one blob with the raw bytes of the trailing frames followed by those of the audio latents.
//!
//! The header is the only place where bincode is used. The form that clients see (`{kind, payload}` with PNG and
//! base64) is made from this one in `supervisor/store`, within the same limits: what can be exported can come back.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The kind of every state of this form.
pub const LTX2_V1: &str = "ltx2.v1";

const MAGIC: [u8; 4] = *b"FVST";
const VERSION: u16 = 1;
/// A header holds a few numbers and a metadata object; more is damage.
const MAX_HEADER_BYTES: usize = 1 << 20;
/// 64 frames of 4096x2176 and their sound.
pub const MAX_BLOB_BYTES: u64 = 2 << 30;
/// LTX-2 conditions on 9; nothing sensible comes near this.
pub const MAX_FRAMES: u32 = 64;
/// Of a frame, in pixels.
const MAX_SIDE: u32 = 16_384;
/// 32 MiB in bf16, where LTX-2 carries a few KiB.
pub const MAX_AUDIO_ELEMENTS: u64 = 16 << 20;
/// `[B, C, T, mel]`.
pub const AUDIO_RANK: usize = 4;
/// As JSON text: the sound's end takes 22 KiB of it.
pub const MAX_METADATA_BYTES: usize = 256 << 10;
/// Objects and lists within one another, the metadata object included.
pub const MAX_METADATA_DEPTH: usize = 32;
/// Integers of the public form are signed 32 bit numbers elsewhere.
pub const MAX_INTEGER: u32 = i32::MAX as u32;
/// In Hz.
pub const SAMPLE_RATES: RangeInclusive<u32> = 8_000..=192_000;
pub const STRENGTHS: RangeInclusive<f64> = 0.0..=1.0;
/// In seconds. Positions are only ever shifted forward, by less than a segment.
pub const POSITION_OFFSETS: RangeInclusive<f64> = 0.0..=86_400.0;

/// The public envelope of a continuation state; `payload` is described by `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContinuationState {
    pub kind: String,
    pub payload: Map<String, Value>,
}

/// All of a state but its large tensors. Field meanings follow FastVideo's `LTX2ContinuationState`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateHeader {
    /// The segment just finished.
    pub segment_index: u32,
    /// Frame of the next segment with which the trailing frames align.
    pub video_conditioning_frame_idx: u32,
    /// 0 to 1.
    pub video_conditioning_strength: f64,
    pub audio_sample_rate: Option<u32>,
    /// Trailing audio frames that carry over as clean context.
    pub audio_conditioning_num_frames: u32,
    /// 0 keeps the cached audio, 1 renoises it.
    pub audio_conditioning_strength: f64,
    /// Seconds by which video positions are shifted forward.
    pub video_position_offset_sec: f64,
    /// A JSON object, as text: bincode cannot carry free-form values.
    pub metadata: String,
    /// RGB uint8, `[count, height, width, 3]`, at the start of the blob.
    pub frames: Option<FramesLayout>,
    /// `[B, C, T, mel]`, after the frames.
    pub audio_latents: Option<TensorLayout>,
    /// BLAKE3 hash of the blob, which is also its name in a store.
    pub blob_hash: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FramesLayout {
    pub count: u32,
    pub height: u32,
    pub width: u32,
}

impl FramesLayout {
    /// Bytes of one frame; saturates.
    pub fn frame_bytes(&self) -> u64 {
        (u64::from(self.height) * u64::from(self.width)).saturating_mul(3)
    }

    /// Bytes of all frames; saturates.
    pub fn bytes(&self) -> u64 {
        self.frame_bytes().saturating_mul(u64::from(self.count))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorLayout {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
}

impl TensorLayout {
    /// Bytes of the tensor; saturates.
    pub fn bytes(&self) -> u64 {
        self.shape
            .iter()
            .fold(self.dtype.bytes(), |n, &d| n.saturating_mul(d))
    }

    /// Numbers in the tensor; saturates.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n, &d| n.saturating_mul(d))
    }

    /// Checks that this can be the layout of audio latents.
    ///
    /// # Errors
    /// When the rank is not [`AUDIO_RANK`], or there is no element or more than [`MAX_AUDIO_ELEMENTS`].
    pub fn check_audio(&self) -> Result<(), StateError> {
        let sizes = 1..=MAX_AUDIO_ELEMENTS;
        // Each size too: a product that saturates times a zero would be zero, not too large.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    Bf16,
    F16,
    F32,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Why bytes are not a state of this form.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state header is {0} bytes, limit is {MAX_HEADER_BYTES}")]
    HeaderSize(usize),
    #[error("state header does not begin with the state's magic")]
    Magic,
    #[error("state version is {0}, this build reads {VERSION}")]
    Version(u16),
    #[error("state header is damaged: {0}")]
    Header(#[from] bincode::error::DecodeError),
    #[error("state header has {0} bytes after its end")]
    Trailing(usize),
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
    #[error("state blob is damaged: its bytes are others")]
    Hash,
}

impl StateHeader {
    /// Bytes that the blob must have; saturates.
    pub fn blob_bytes(&self) -> u64 {
        let frames = self.frames.map_or(0, |f| f.bytes());
        let audio = self.audio_latents.as_ref().map_or(0, TensorLayout::bytes);
        frames.saturating_add(audio)
    }

    /// Where the frames end and the audio latents begin in the blob.
    pub fn frames_end(&self) -> u64 {
        self.frames.map_or(0, |f| f.bytes())
    }

    /// Magic, version, fields.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let fields = bincode::serde::encode_to_vec(self, bincode::config::standard())
            .expect("plain fields written to memory cannot fail");
        bytes.extend_from_slice(&fields);
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are not a header of this version, or are longer or shorter than one, or hold a field that
    /// [`Self::check`] refuses.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.len() > MAX_HEADER_BYTES {
            return Err(StateError::HeaderSize(bytes.len()));
        }
        let rest = bytes.strip_prefix(&MAGIC).ok_or(StateError::Magic)?;
        let (version, rest) = rest.split_first_chunk().ok_or(StateError::Magic)?;
        let version = u16::from_le_bytes(*version);
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        let config = bincode::config::standard().with_limit::<MAX_HEADER_BYTES>();
        let (header, read): (Self, usize) = bincode::serde::decode_from_slice(rest, config)?;
        if read != rest.len() {
            return Err(StateError::Trailing(rest.len() - read));
        }
        header.check()?;
        Ok(header)
    }

    /// Checks every field against its limits, so that a model can be given them and an export can carry them.
    ///
    /// # Errors
    /// Names the first field that is out of range, or the blob's size when it would be above [`MAX_BLOB_BYTES`].
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
        // No range holds NaN.
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
    /// When it is not what the header says.
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
    /// When either is not what the header says.
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

/// How many objects and lists lie within one another. Recurses as deep; JSON that was parsed has at most 128 levels.
pub fn json_depth(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::Array(list) => 1 + list.iter().map(json_depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(json_depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// The hash that a header carries of its blob.
pub fn blob_hash(blob: &[u8]) -> [u8; 32] {
    *blake3::hash(blob).as_bytes()
}

#[cfg(test)]
mod tests {
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
        let golden = include_bytes!("../tests/data/state_header_v1");
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
            Err(StateError::Trailing(1))
        ));
        let mut newer = header().encode();
        newer[4] = 9;
        assert!(matches!(
            StateHeader::decode(&newer),
            Err(StateError::Version(9))
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
                    &format!(
                        "state field `{field}`: expected a number from 0 to {limit}, got {bad}"
                    ),
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
            Err(StateError::HeaderSize(1_048_577))
        ));
        assert!(matches!(
            StateHeader::decode(b"PK\x03\x04....."),
            Err(StateError::Magic)
        ));
        // A length of 2^60 for the metadata: refused before it is allocated.
        let mut fields = header().encode();
        let at = fields.windows(3).position(|w| w == b"\x02{}").unwrap();
        fields.splice(at..=at, [&[253][..], &(1_u64 << 60).to_le_bytes()].concat());
        assert!(matches!(
            StateHeader::decode(&fields),
            Err(StateError::Header(_))
        ));
    }
}
