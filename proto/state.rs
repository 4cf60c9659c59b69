//! The continuation state of kind `ltx2.v1` in the form that moves inside this system: a small versioned header, and
//! one blob with the raw bytes of the trailing frames followed by those of the audio latents.
//!
//! The header is the only place where bincode is used. The form that clients see (`{kind, payload}` with PNG and
//! base64) is made from this one in `supervisor/store`.

use serde::{Deserialize, Serialize};

/// The kind of every state of this form.
pub const LTX2_V1: &str = "ltx2.v1";

const MAGIC: [u8; 4] = *b"FVST";
const VERSION: u16 = 1;
/// A header holds a few numbers and a metadata object; more is damage.
const MAX_HEADER_BYTES: usize = 1 << 20;
/// 64 frames of 4096x2176 and their sound.
pub const MAX_BLOB_BYTES: u64 = 2 << 30;

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
    /// CRC-32 of the blob.
    pub blob_crc32: u32,
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
    #[error("state blob is {actual} bytes, its header says {expected}")]
    BlobSize { expected: u64, actual: u64 },
    #[error("state blob would be {0} bytes, limit is {MAX_BLOB_BYTES}")]
    BlobLimit(u64),
    #[error("state blob is damaged: its checksum does not match")]
    Checksum,
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
    /// When the bytes are not a header of this version, or are longer or shorter than one, or describe a blob above
    /// [`MAX_BLOB_BYTES`].
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
        match header.blob_bytes() {
            n if n > MAX_BLOB_BYTES => Err(StateError::BlobLimit(n)),
            _ => Ok(header),
        }
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

    /// Checks size and checksum of the blob that came with this header.
    ///
    /// # Errors
    /// When either is not what the header says.
    pub fn check_blob(&self, blob: &[u8]) -> Result<(), StateError> {
        self.check_blob_size(blob.len())?;
        if blob_checksum(blob) == self.blob_crc32 {
            Ok(())
        } else {
            Err(StateError::Checksum)
        }
    }
}

/// The checksum that a header carries of its blob.
pub fn blob_checksum(blob: &[u8]) -> u32 {
    crc32fast::hash(blob)
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
            blob_crc32: blob_checksum(&[7; 96]),
        }
    }

    #[test]
    fn header_survives_its_bytes() {
        let header = header();
        assert_eq!(StateHeader::decode(&header.encode()).unwrap(), header);
        header.check_blob(&[7; 96]).unwrap();
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
            Err(StateError::Checksum)
        ));
        assert!(matches!(
            header().check_blob(&[7; 95]),
            Err(StateError::BlobSize {
                expected: 96,
                actual: 95
            })
        ));
        let mut huge = header();
        huge.frames = Some(FramesLayout {
            count: u32::MAX,
            height: u32::MAX,
            width: u32::MAX,
        });
        assert!(matches!(
            StateHeader::decode(&huge.encode()),
            Err(StateError::BlobLimit(_))
        ));
    }
}
