//! Continuation states: what the next segment of a session needs from its last one.
//!
//! A state has two forms. [`ContinuationState`] is the public one, `{kind, payload}` in JSON. The internal one is a header
//! in an [`envelope`] of (magic, version, kind) and a blob of raw tensors; each kind has a module of its own, which is
//! [`ltx2_v1`] for the only kind there is. `supervisor/store/export` turns one form into the other, within the same
//! limits: what can be exported can come back.

mod continuation;
pub mod envelope;
pub mod ltx2_v1;

pub use continuation::ContinuationState;
pub use ltx2_v1::{
    AUDIO_RANK, Dtype, FramesLayout, LTX2_V1, MAX_AUDIO_ELEMENTS, MAX_BLOB_BYTES, MAX_FRAMES,
    MAX_INTEGER, MAX_METADATA_BYTES, MAX_METADATA_DEPTH, POSITION_OFFSETS, SAMPLE_RATES, STRENGTHS,
    StateError, StateHeader, TensorLayout, blob_hash, json_depth,
};
