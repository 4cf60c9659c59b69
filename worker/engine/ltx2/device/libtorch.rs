//! Functions of libtorch that `tch` does not expose: the allocator's counters, the stream, the choice of kernels.

use std::ffi::c_int;

unsafe extern "C" {
    fn ltx2_memory(
        device: c_int,
        allocated: *mut i64,
        allocated_peak: *mut i64,
        reserved_peak: *mut i64,
    ) -> c_int;
    fn ltx2_reset_peak_memory(device: c_int) -> c_int;
    fn ltx2_empty_cache() -> c_int;
    fn ltx2_current_stream(device: c_int, id: *mut i64) -> c_int;
    fn ltx2_allow_tf32(allow: bool) -> c_int;
    fn ltx2_attention_order(order: *const i64, count: usize) -> c_int;
}

/// A call that libtorch refused, because there is no CUDA backend or it is not initialised.
#[derive(Debug, thiserror::Error)]
#[error("libtorch refused to {0}")]
pub struct Refused(&'static str);

/// The memory of a device in libtorch's caching allocator, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocated {
    /// The size of all tensors now.
    pub now: u64,
    /// The peak size of all tensors since the last reset.
    pub peak: u64,
    /// The peak of memory taken from the driver since the last reset.
    pub reserved_peak: u64,
}

/// libtorch's own order of kernels, by number; the last kind is for devices that bring their own.
const DEFAULT_ORDER: [i64; 5] = [1, 2, 0, 3, 4];

/// Attention kernels, as libtorch numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    Math = 0,
    Flash = 1,
    Efficient = 2,
    Cudnn = 3,
}

pub(crate) fn allocated(device: usize) -> Result<Allocated, Refused> {
    let (mut now, mut peak, mut reserved_peak) = (0, 0, 0);
    // SAFETY: the three pointers are to live values of that type.
    let status = unsafe { ltx2_memory(index(device), &mut now, &mut peak, &mut reserved_peak) };
    check(status, "tell its memory")?;
    let [now, peak, reserved_peak] = [now, peak, reserved_peak].map(i64::unsigned_abs);
    Ok(Allocated {
        now,
        peak,
        reserved_peak,
    })
}

/// Resets the peak counters.
pub(crate) fn reset_peaks(device: usize) -> Result<(), Refused> {
    // SAFETY: no pointers; exceptions do not leave the function.
    check(
        unsafe { ltx2_reset_peak_memory(index(device)) },
        "reset its peak memory",
    )
}

/// Releases memory that no tensor uses to the driver.
pub(crate) fn empty_cache() -> Result<(), Refused> {
    // SAFETY: no pointers; exceptions do not leave the function.
    check(unsafe { ltx2_empty_cache() }, "empty its cache")
}

/// Returns whether this thread's operations go to the default stream.
pub(crate) fn on_default_stream(device: usize) -> Result<bool, Refused> {
    let mut id = 0;
    // SAFETY: the pointer is to a live value of that type.
    let status = unsafe { ltx2_current_stream(index(device), &mut id) };
    check(status, "tell its stream")?;
    Ok(id == 0)
}

/// Sets whether float32 matrices and convolutions may be rounded to TF32.
pub(crate) fn allow_tf32(allow: bool) -> Result<(), Refused> {
    // SAFETY: no pointers; exceptions do not leave the function.
    check(
        unsafe { ltx2_allow_tf32(allow) },
        "choose float32's precision",
    )
}

/// Sets which attention kernels are tried first, and in which order; the others follow in the default order.
pub(crate) fn attention_order(first: &[Attention]) -> Result<(), Refused> {
    // libtorch accepts only complete orders.
    let mut order: Vec<i64> = first.iter().map(|kind| *kind as i64).collect();
    let others = DEFAULT_ORDER
        .into_iter()
        .filter(|kind| !first.iter().any(|f| *f as i64 == *kind));
    order.extend(others);
    // SAFETY: the pointer and the length are those of a live vector, which the function copies.
    let status = unsafe { ltx2_attention_order(order.as_ptr(), order.len()) };
    check(status, "order attention kernels")
}

fn index(device: usize) -> c_int {
    c_int::try_from(device).expect("a device's index is small")
}

fn check(status: c_int, what: &'static str) -> Result<(), Refused> {
    if status == 0 {
        Ok(())
    } else {
        Err(Refused(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_takes_orders_of_attention_kernels() {
        attention_order(&[Attention::Cudnn, Attention::Flash]).unwrap();
        attention_order(&[]).unwrap();
    }

    #[test]
    fn without_a_backend_questions_are_refused() {
        if !tch::Cuda::is_available() {
            assert!(allocated(0).is_err());
            assert!(on_default_stream(0).is_err());
        }
    }
}
