//! The transport between the supervisor and a worker. It knows neither's messages: those are in `fastvideo-proto`.
//!
//! - `channel`: messages in both directions over ipc-channel, each with memory beside it where it has some.
//! - `memory`: shared memory. It is sealed before it is shared, so a receiver that does not trust the sender can read it.
//! - `descriptors`: a pair of sockets over which the descriptors of memory travel. The worker inherits its end as its
//!   standard input.
//! - `folder`: the private folder of the sockets through which workers connect, and of the server's temporary files.

mod channel;
mod descriptors;
mod folder;
mod memory;

pub use channel::{Cancel, Invitation, Listener, ReceiveError, Receiver, Sender, connect, pair};
pub use folder::{FolderError, LinkFolder};
pub use memory::{MemoryBuffer, MemoryError, SharedMemory};

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
        Errno::NOSPC,
        Errno::TOOMANYREFS,
    ];
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| shortages.contains(&errno))
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::is_shortage;

    #[test]
    fn shortages_are_known_by_their_number() {
        for errno in [Errno::AGAIN, Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert!(is_shortage(&errno.into()), "{errno}");
        }
        for errno in [Errno::NOENT, Errno::PIPE, Errno::ACCESS, Errno::CONNREFUSED] {
            assert!(!is_shortage(&errno.into()), "{errno}");
        }
        assert!(!is_shortage(&io::Error::other("no number")));
        assert!(!is_shortage(&io::ErrorKind::OutOfMemory.into()));
    }
}
