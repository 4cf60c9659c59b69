//! Settings that libav keeps once per process.

#[cfg(target_arch = "x86_64")]
use std::ffi::c_int;
use std::sync::Once;

use ffmpeg_sys_next as ffi;

/// The instruction sets that libav may use.
///
/// libav's floating-point code rounds differently with each instruction set, so a machine with more of them would give
/// other bytes for the same sound. Every machine with a GPU of the last ten years has all of these.
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

/// Sets the log level and the instruction sets, once per process. Every codec calls this before it is opened.
pub(super) fn set_up() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        // SAFETY: has no preconditions.
        unsafe { ffi::av_log_set_level(ffi::AV_LOG_ERROR) };
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: has no preconditions.
            let found = unsafe { ffi::av_get_cpu_flags() };
            // SAFETY: requires flags of instruction sets that the processor has, before a codec looks at them. These
            // are some of those found, and no codec has been opened yet.
            unsafe { ffi::av_force_cpu_flags(found & CPU_FLAGS) };
        }
    });
}
