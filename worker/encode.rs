//! The encoder: it turns a segment's frames and sound into an init segment and fragments, or into one JPEG per frame.
//!
//! The encoder's thread opens an [`Encoder`] ahead of time, begins a segment with it and passes in frames with their
//! sound. It gets each piece of media as soon as that is complete. A segment's bytes depend only on its frames, its
//! sound and its place on the time line, so that a replay gives the same bytes.
//!
//! - `encoder`: the [`Encoder`] itself, over both containers.
//! - `params`, `media`, `error`: the input, the output, the errors.
//! - `sound_meter`: checks that the sound keeps pace with the frames.
//! - `fmp4`: one segment as fragmented MP4, with `h264` for the frames and `aac` for the sound.
//! - `jpeg`: one segment as JPEG pictures.
//! - `crop`: the middle of a frame.
//! - `thumbnail`: one frame of a segment as a small JPEG picture, and previews; `sheet`: many frames in one picture.
//! - `av`: libav as safe types; the only unsafe code here.
//! - `bench`: measures the cost of encoding on this machine.
//!
//! This module does not know about links, jobs, engines or clients.

mod aac;
mod av;
pub(crate) mod bench;
mod crop;
mod encoder;
mod error;
mod fmp4;
mod h264;
mod jpeg;
mod media;
mod params;
mod sheet;
mod sound_meter;
#[cfg(test)]
mod tests;
mod thumbnail;

pub(crate) use crop::Crop;
pub(crate) use encoder::Encoder;
pub(crate) use error::EncodeError;
pub(crate) use media::Media;
pub(crate) use params::EncodeParams;
pub(crate) use sheet::{sheet, tile};
pub(crate) use thumbnail::{preview, thumbnail, thumbnail_frame, video_thumbnail};
