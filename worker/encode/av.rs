//! The part of libav that encoding needs, as owned types: codecs, frames, packets and the MP4 muxer.
//!
//! Pointers do not leave this module. The raw declarations come from `ffmpeg-sys-next`; `error` turns a status into a
//! `Result`; each type frees what it owns when it is dropped, even in the middle of a segment. `global` holds the
//! settings that libav keeps once per process.
#![expect(unsafe_code, reason = "libav is a C library")]

mod codec;
mod error;
mod frame;
mod global;
mod muxer;
mod options;
mod packet;

pub(crate) use codec::{Codec, SoundSettings, VideoSettings};
pub(crate) use error::AvError;
pub(crate) use frame::{PictureFrame, Plane, SoundFrame};
pub(crate) use muxer::Muxer;
pub(crate) use options::Options;
pub(crate) use packet::PacketSink;
