//! A pair of connected sockets over which the descriptors of memory travel, each in a packet of its own.
//!
//! ipc-channel's own shared memory hides its descriptor, so nobody could seal it, and a receiver that has no room for a
//! descriptor would lose it. Here the receiver leaves the packet in the socket until there is room.

use std::convert::Infallible;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// How often, and how many times, a reader tries to receive a descriptor for which its process has no room.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);
const SHORTAGE_TRIES: u32 = 40;

/// One end of the pair. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Descriptors(Arc<OwnedFd>);

/// The reason why no descriptor was received.
#[derive(Debug)]
pub(crate) enum NoDescriptor {
    /// The other end is closed.
    Closed,
    /// The packet has no descriptor.
    Missing,
    /// This process has no room for the descriptor.
    Shortage,
    Io(io::Error),
}

impl Descriptors {
    /// Creates both ends. The second is for another process, as its standard input.
    ///
    /// # Errors
    /// Returns an error when the host has no descriptors left.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(Arc::new(ours)), theirs))
    }

    /// Takes the end that this process has inherited.
    ///
    /// # Errors
    /// Returns an error when the descriptor is not an end of such a pair.
    pub(crate) fn inherited(fd: BorrowedFd<'_>) -> io::Result<Self> {
        match socket_type(fd) {
            Ok(SocketType::SEQPACKET) => Ok(Self(Arc::new(fd.try_clone_to_owned()?))),
            _ => Err(io::Error::other("this process was not given a link")),
        }
    }

    pub(crate) fn send(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let packet = [IoSlice::new(&[0])];
        loop {
            match rustix::net::sendmsg(&self.0, &packet, &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the next descriptor.
    pub(crate) fn receive(&self) -> Result<OwnedFd, NoDescriptor> {
        let (_never, pause) = channel::<Infallible>();
        for _ in 0..SHORTAGE_TRIES {
            match self.peek() {
                // The packet is taken without the descriptor, of which there is a copy now.
                Ok(fd) => {
                    self.take_packet()?;
                    return Ok(fd);
                }
                Err(NoDescriptor::Shortage) => {}
                Err(error) => {
                    if let NoDescriptor::Missing = error {
                        self.take_packet()?;
                    }
                    return Err(error);
                }
            }
            let _ = pause.recv_timeout(SHORTAGE_PAUSE);
        }
        Err(NoDescriptor::Shortage)
    }

    /// Waits for a packet and leaves it in the socket; returns a copy of its descriptor.
    fn peek(&self) -> Result<OwnedFd, NoDescriptor> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            let mut packet = [IoSliceMut::new(&mut byte)];
            match rustix::net::recvmsg(&self.0, &mut packet, &mut control, flags) {
                Ok(received) => break received,
                Err(error) => interrupted(error)?,
            }
        };
        if received.bytes == 0 {
            return Err(NoDescriptor::Closed);
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message
                && let Some(fd) = fds.next()
            {
                return Ok(fd);
            }
        }
        match received.flags.contains(ReturnFlags::CTRUNC) {
            true => Err(NoDescriptor::Shortage),
            false => Err(NoDescriptor::Missing),
        }
    }

    /// Takes a packet out of the socket. The kernel drops a descriptor in it.
    fn take_packet(&self) -> Result<(), NoDescriptor> {
        let mut byte = [0];
        loop {
            match rustix::net::recv(&self.0, &mut byte[..], RecvFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(error) => interrupted(error)?,
            }
        }
    }
}

/// Passes over the interruption of a system call.
fn interrupted(error: Errno) -> Result<(), NoDescriptor> {
    match error {
        Errno::INTR => Ok(()),
        Errno::CONNRESET => Err(NoDescriptor::Closed),
        error => Err(NoDescriptor::Io(error.into())),
    }
}

impl AsFd for Descriptors {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, read_dir};

    use super::*;

    fn pair() -> (Descriptors, Descriptors) {
        let (ours, theirs) = Descriptors::pair().unwrap();
        (ours, Descriptors::inherited(theirs.as_fd()).unwrap())
    }

    #[test]
    fn a_descriptor_arrives_once_and_is_closed_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("travels")).unwrap();
        let open = || {
            let links = read_dir("/proc/self/fd").unwrap();
            let targets = links.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
            targets.filter(|target| target.ends_with("travels")).count()
        };
        let (ours, theirs) = pair();
        for _ in 0..3 {
            ours.send(file.as_fd()).unwrap();
        }
        let first = theirs.receive().unwrap();
        assert_eq!(open(), 2);
        drop(first);
        drop(theirs.receive().unwrap());
        drop(ours);
        drop(theirs);
        assert_eq!(open(), 1);
    }

    #[test]
    fn a_packet_without_a_descriptor_and_a_closed_end_are_told() {
        let (ours, theirs) = pair();
        rustix::net::send(&ours, b"x", SendFlags::empty()).unwrap();
        ours.send(File::open("/dev/null").unwrap().as_fd()).unwrap();
        drop(ours);
        assert!(matches!(theirs.receive(), Err(NoDescriptor::Missing)));
        assert!(theirs.receive().is_ok());
        assert!(matches!(theirs.receive(), Err(NoDescriptor::Closed)));
    }

    #[test]
    fn only_an_end_of_a_pair_is_taken_for_one() {
        let null = File::open("/dev/null").unwrap();
        assert!(Descriptors::inherited(null.as_fd()).is_err());
    }
}
