//! The scheduling priority of the threads that relay media: real-time, or a short time slice.
//!
//! A fragment passes three threads on its way from a worker to a socket, and each of them has to be woken. On a machine
//! whose cores are busy, for example with encoders, a woken thread waits until another has used up its time slice of
//! several milliseconds. The threads on the media path need only microseconds each, so they ask to be run at once.

use std::io;

/// The lowest real-time priority: it is above all ordinary threads and below all other real-time ones.
const PRIORITY: u32 = 1;
/// The shortest time slice that Linux gives, in nanoseconds. A woken thread with a shorter slice than the running one
/// preempts it.
const SLICE_NS: u64 = 100_000;

/// The scheduling that the kernel has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Real-time scheduling (SCHED_RR), before every ordinary thread. It needs CAP_SYS_NICE or an `rtprio` limit of at
    /// least 1.
    Realtime,
    /// Ordinary scheduling with a short time slice. It needs no right, and has an effect on Linux 6.12 or newer.
    ShortSlice,
}

/// Asks the kernel to run the calling thread as soon as it has something to do. Threads and processes that it starts
/// have ordinary scheduling again.
///
/// # Errors
/// Returns an error when the kernel supports neither kind of scheduling.
pub fn run_promptly() -> io::Result<Grant> {
    let ordinary = libc::sched_attr {
        size: size_of::<libc::sched_attr>().try_into().unwrap_or(u32::MAX),
        sched_policy: libc::SCHED_OTHER.cast_unsigned(),
        sched_flags: u64::from(libc::SCHED_FLAG_RESET_ON_FORK.cast_unsigned()),
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: SLICE_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    let realtime = libc::sched_attr {
        sched_policy: libc::SCHED_RR.cast_unsigned(),
        sched_priority: PRIORITY,
        sched_runtime: 0,
        ..ordinary
    };
    match set(&realtime) {
        Ok(()) => Ok(Grant::Realtime),
        Err(_) => set(&ordinary).map(|()| Grant::ShortSlice),
    }
}

#[expect(unsafe_code, reason = "no safe wrapper of this system call exists")]
fn set(attributes: &libc::sched_attr) -> io::Result<()> {
    const THIS_THREAD: libc::pid_t = 0;
    const NO_FLAGS: libc::c_uint = 0;
    // SAFETY: the kernel reads `size` bytes of `attributes`, which are there, and writes nothing.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            THIS_THREAD,
            std::ptr::from_ref(attributes),
            NO_FLAGS,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Policy and flags of the calling thread, from field 41 of its `stat`.
    fn policy() -> u32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let after_name = stat.rsplit(')').next().unwrap();
        after_name
            .split_whitespace()
            .nth(38)
            .unwrap()
            .parse()
            .unwrap()
    }

    #[test]
    fn a_thread_that_runs_promptly_starts_ordinary_ones() {
        thread::spawn(|| {
            let granted = run_promptly().unwrap();
            let expected = match granted {
                Grant::Realtime => libc::SCHED_RR,
                Grant::ShortSlice => libc::SCHED_OTHER,
            };
            assert_eq!(policy(), expected.cast_unsigned());
            let child = thread::spawn(policy).join().unwrap();
            assert_eq!(child, libc::SCHED_OTHER.cast_unsigned());
        })
        .join()
        .unwrap();
    }
}
