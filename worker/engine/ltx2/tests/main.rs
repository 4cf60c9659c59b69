//! Every part against the reference implementation's tensors.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; clippy allows it in test functions only, not in what they call"
)]

mod adapters;
mod bench;
mod checkpoint;
mod cuda;
mod decoders;
mod float8;
mod kernels;
mod layout;
mod mel;
mod ops;
mod pipeline;
mod preview;
mod reference;
mod sampling;
mod text;
mod tiny_model;
mod transformer;
mod v2_3;
mod video_vae;
