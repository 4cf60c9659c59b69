//! The error of encoding a segment.

use super::av;

/// The reason why a segment could not be encoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    /// A parameter is out of its range.
    #[error("{what} is {given}, expected {expected}")]
    Parameter {
        what: &'static str,
        given: String,
        expected: &'static str,
    },
    #[error("a frame is {actual} bytes, expected {expected}")]
    FrameSize { expected: usize, actual: usize },
    /// The sound does not match the frames. Samples are counted per channel, from the segment's start.
    #[error("{given} samples of sound came with {frames} frames, expected {expected}")]
    SoundSize {
        frames: u32,
        expected: u64,
        given: u64,
    },
    #[error("sound comes in pieces of {channels} samples, one for each channel; {given} came")]
    SoundPieces { channels: usize, given: usize },
    #[error("a frame came after the last of {num_frames}")]
    TooManyFrames { num_frames: u32 },
    #[error("a frame came before the segment was begun")]
    NotBegun,
    #[error("the segment was begun twice")]
    BegunTwice,
    #[error("the colours of a frame cannot be converted")]
    Colours(#[from] yuv::YuvError),
    #[error("a frame cannot be compressed")]
    Jpeg(#[from] jpeg_encoder::EncodingError),
    #[error("encoder {name:?} tells no profile: it has no sequence parameter set")]
    NoParameterSet { name: String },
    #[error(transparent)]
    Av(#[from] av::AvError),
}

impl EncodeError {
    /// Returns whether the encoder found no memory, on the host or on its device.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Av(error) if error.is_out_of_memory())
    }
}
