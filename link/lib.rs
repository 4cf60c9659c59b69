//! The transport between the supervisor and a worker. It knows neither's messages: those are in `fastvideo-proto`.
//!
//! - `socket`: a pair of connected sockets, over which messages travel in both directions. The worker inherits its end
//!   as its standard input, so a link needs no name, no folder and no rights in the file system.
//! - `memory`: shared memory that can travel beside a message. It is sealed before it is shared, so a receiver that
//!   does not trust the sender can still read it.

mod memory;
mod socket;

pub use memory::{MemoryBuffer, MemoryError, SharedMemory};
pub use socket::{ReceiveError, Receiver, Sender, Socket};

/// Returns whether an error says that the host lacks descriptors, memory, processes or threads at the moment, so that
/// the same call may succeed later.
pub fn is_shortage(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [
        Errno::AGAIN,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::TOOMANYREFS,
    ];
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| shortages.contains(&errno))
}
