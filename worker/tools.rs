//! The tools that a person runs without a supervisor: inspect or measure a model, or generate a video.

pub(crate) mod bench;
pub(crate) mod generate;
pub(crate) mod inspect;
