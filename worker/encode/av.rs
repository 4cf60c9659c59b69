//! The part of libav that encoding needs, as owned types: codecs, frames, packets and the MP4 muxer.
//!
//! Nothing outside this module sees a pointer. Raw declarations come from `ffmpeg-sys-next`; [`check`] turns a status
//! into a `Result`; each type frees what it owns when it is dropped, also half-way through a segment.
#![expect(unsafe_code, reason = "libav is a C library")]

use std::ffi::{CStr, c_char, c_int};
use std::sync::Once;

use ffmpeg_sys_next as ffi;

mod codec;
mod frame;
mod muxer;
mod options;
mod packet;

pub(crate) use codec::{Codec, SoundSettings, VideoSettings};
pub(crate) use frame::{PictureFrame, Plane, SoundFrame};
pub(crate) use muxer::Muxer;
pub(crate) use options::Options;
pub(crate) use packet::Packet;

/// Why libav did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AvError {
    #[error("libavcodec has no encoder {name:?}")]
    UnknownCodec { name: String },
    #[error("encoder {name:?} does not make H.264")]
    NotH264 { name: String },
    /// A hardware encoder without its hardware or driver ends here.
    #[error("encoder {name:?} cannot be opened: {}", describe(*.status))]
    OpenCodec { name: String, status: c_int },
    #[error("{name:?} does not know the option {option:?}")]
    UnknownOption { name: String, option: String },
    #[error("{call} failed: {}", describe(*.status))]
    Call { call: &'static str, status: c_int },
}

impl AvError {
    fn out_of_memory(call: &'static str) -> Self {
        let status = ffi::AVERROR(ffi::ENOMEM);
        Self::Call { call, status }
    }
}

/// Passes on what is not negative; a negative status is an error code of libav's.
fn check(call: &'static str, status: c_int) -> Result<c_int, AvError> {
    if status < 0 {
        Err(AvError::Call { call, status })
    } else {
        Ok(status)
    }
}

fn describe(status: c_int) -> String {
    let mut text: [c_char; 128] = [0; 128];
    // SAFETY: wants a buffer of as many bytes as given. `text` is one. An unknown status still leaves a text.
    unsafe { ffi::av_strerror(status, text.as_mut_ptr(), text.len()) };
    // `c_char` has a sign on some machines only.
    let bytes = text.map(|character| character.to_ne_bytes()[0]);
    CStr::from_bytes_until_nul(&bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_else(|_| format!("status {status}"))
}

/// Instruction sets that libav may use. Its float code rounds differently with each, so that a machine with more of
/// them would give other bytes for the same sound; every machine with a GPU of the last ten years has all of these.
#[cfg(target_arch = "x86_64")]
const CPU_FLAGS: c_int = ffi::AV_CPU_FLAG_MMX
    | ffi::AV_CPU_FLAG_MMXEXT
    | ffi::AV_CPU_FLAG_CMOV
    | ffi::AV_CPU_FLAG_SSE
    | ffi::AV_CPU_FLAG_SSE2
    | ffi::AV_CPU_FLAG_SSE3
    | ffi::AV_CPU_FLAG_SSSE3
    | ffi::AV_CPU_FLAG_SSE4
    | ffi::AV_CPU_FLAG_SSE42
    | ffi::AV_CPU_FLAG_AVX
    | ffi::AV_CPU_FLAG_AVX2
    | ffi::AV_CPU_FLAG_FMA3;

/// Sets what libav keeps once per process. Every codec does this before it is opened.
fn set_up() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        // SAFETY: has no preconditions.
        unsafe { ffi::av_log_set_level(ffi::AV_LOG_ERROR) };
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: has no preconditions.
            let found = unsafe { ffi::av_get_cpu_flags() };
            // SAFETY: wants flags of instruction sets that the processor has, before a codec looks at them. These are
            // some of those found, and no codec has been opened yet.
            unsafe { ffi::av_force_cpu_flags(found & CPU_FLAGS) };
        }
    });
}
