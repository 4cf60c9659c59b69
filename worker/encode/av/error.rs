//! Errors of libav.

use std::ffi::{CStr, c_char, c_int};

use ffmpeg_sys_next as ffi;

/// The reason why a call of libav failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AvError {
    #[error("libavcodec has no encoder {name:?}")]
    UnknownCodec { name: String },
    #[error("encoder {name:?} does not make H.264")]
    NotH264 { name: String },
    /// The codec cannot be opened. A hardware encoder also returns this when its hardware or driver is missing.
    #[error("encoder {name:?} cannot be opened: {}", describe(*.status))]
    OpenCodec { name: String, status: c_int },
    #[error("{name:?} does not know the option {option:?}")]
    UnknownOption { name: String, option: String },
    #[error("{call} failed: {}", describe(*.status))]
    Call { call: &'static str, status: c_int },
}

impl AvError {
    /// Returns the error of a call that returned no memory.
    pub(super) fn out_of_memory(call: &'static str) -> Self {
        let status = ffi::AVERROR(ffi::ENOMEM);
        Self::Call { call, status }
    }

    /// Returns whether there was no memory, on the host or on the device of a hardware encoder.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OpenCodec { status, .. } | Self::Call { status, .. } => {
                *status == ffi::AVERROR(ffi::ENOMEM)
            }
            Self::UnknownCodec { .. } | Self::NotH264 { .. } | Self::UnknownOption { .. } => false,
        }
    }
}

/// Turns a negative status, which is an error code of libav, into an error.
///
/// # Errors
/// Returns an error when the status is negative.
pub(super) fn check(call: &'static str, status: c_int) -> Result<c_int, AvError> {
    if status < 0 {
        Err(AvError::Call { call, status })
    } else {
        Ok(status)
    }
}

/// Returns libav's description of a status.
fn describe(status: c_int) -> String {
    let mut text: [c_char; 128] = [0; 128];
    // SAFETY: requires a buffer of as many bytes as given. `text` is one. An unknown status still leaves a text.
    unsafe { ffi::av_strerror(status, text.as_mut_ptr(), text.len()) };
    // `c_char` has a sign on some machines only.
    let bytes = text.map(|character| character.to_ne_bytes()[0]);
    CStr::from_bytes_until_nul(&bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_else(|_| format!("status {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_memory_is_told_from_other_errors() {
        assert!(AvError::out_of_memory("av_frame_alloc").is_out_of_memory());
        let status = ffi::AVERROR(ffi::EINVAL);
        let name = "libx264".to_owned();
        assert!(!AvError::OpenCodec { name, status }.is_out_of_memory());
    }
}
