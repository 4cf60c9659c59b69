//! Names, versions and helpers of the public form that export and import share.

pub(super) use base64::engine::general_purpose::STANDARD as BASE64;
use fastvideo_proto::state::FramesLayout;

/// The version of the payload's layout. There is only one.
pub(super) const SCHEMA_VERSION: u64 = 1;
/// The tensor's name in the safetensors file.
pub(super) const TENSOR: &str = "t";

/// Splits the raw bytes of all frames into frames.
pub(super) fn rgb_frames<'a>(
    layout: &FramesLayout,
    raw: &'a [u8],
) -> std::slice::ChunksExact<'a, u8> {
    raw.chunks_exact(raw.len() / layout.count as usize)
}
