//! A pair of connected sockets, and messages over them.
//!
//! A message is a header, then the value in postcard's encoding. It travels as one packet where it fits, so that a
//! reader on a busy machine is woken once, and as several where it does not. Memory follows in a packet of its own,
//! which carries a descriptor. A reader thus knows that a descriptor comes before it takes the packet, and leaves the
//! packet in the socket for as long as it has no room for the descriptor; the kernel would drop the descriptor otherwise.

use std::convert::Infallible;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::sockopt::{socket_send_buffer_size, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::is_shortage;
use crate::memory::{MemoryError, SharedMemory};

/// The longest message. The largest real ones are some megabytes of media.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// The longest packet. It is below the usual size of a socket's send buffer, which limits a packet too.
const MAX_PACKET_BYTES: usize = 192 << 10;
/// The part of a socket's send buffer that the kernel may need for its own bookkeeping.
const SEND_BUFFER_RESERVE: usize = 1024;
/// The shortest packet that is tried when the kernel has no memory for longer ones.
const MIN_PACKET_BYTES: usize = 2048;
/// The capacity that the buffer of a sender may keep after a long message.
const KEPT_CAPACITY: usize = 1 << 20;

/// How often, and how many times, a reader tries to receive a descriptor for which its process has no room.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);
const SHORTAGE_TRIES: u32 = 40;

/// What a message begins with.
#[derive(Clone, Copy, Debug)]
struct Header {
    /// The length of the encoded value.
    bytes: u32,
    /// Whether a packet with the descriptor of memory follows the message.
    has_memory: bool,
}

/// One end of a link. It is cheap to clone, and the link closes when the last clone, sender and receiver of one end are
/// dropped.
#[derive(Clone, Debug)]
pub struct Socket(Arc<OwnedFd>);

/// Sends messages of one type.
#[derive(Debug)]
pub struct Sender<T> {
    socket: Socket,
    buffer: Vec<u8>,
    packet_bytes: usize,
    message: PhantomData<fn(T)>,
}

/// Receives messages of one type.
#[derive(Debug)]
pub struct Receiver<T> {
    socket: Socket,
    packet: Box<[u8]>,
    message: PhantomData<fn() -> T>,
}

/// The reason why no message can be received any more.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("link closed")]
    Closed,
    #[error("{0}")]
    Garbage(String),
    /// This host lacks something that would be needed to receive the memory; the sender is not to blame.
    #[error("no room for the memory beside a message: {0}")]
    Shortage(io::Error),
    #[error(transparent)]
    Io(io::Error),
}

impl Header {
    const BYTES: usize = 5;

    fn encode(self) -> [u8; Self::BYTES] {
        let [a, b, c, d] = self.bytes.to_le_bytes();
        [a, b, c, d, u8::from(self.has_memory)]
    }

    fn decode(packet: &[u8]) -> Option<(Self, &[u8])> {
        let (&[a, b, c, d, has_memory], rest) = packet.split_first_chunk()?;
        let header = Self {
            bytes: u32::from_le_bytes([a, b, c, d]),
            has_memory: has_memory != 0,
        };
        Some((header, rest))
    }
}

impl Socket {
    /// Creates a link; returns both of its ends. The second is for another process, as its standard input.
    ///
    /// # Errors
    /// Returns an error when the host has no descriptors left.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(Arc::new(ours)), theirs))
    }

    /// Takes the end of a link that this process has inherited.
    ///
    /// # Errors
    /// Returns an error when the descriptor is not an end of a link.
    pub fn inherited(fd: BorrowedFd<'_>) -> io::Result<Self> {
        match socket_type(fd) {
            Ok(SocketType::SEQPACKET) => Ok(Self(Arc::new(fd.try_clone_to_owned()?))),
            _ => Err(io::Error::other("this process was not given a link")),
        }
    }

    pub fn sender<T>(&self) -> Sender<T> {
        let send_buffer = socket_send_buffer_size(&self.0).unwrap_or(MAX_PACKET_BYTES);
        let packet_bytes = send_buffer.saturating_sub(SEND_BUFFER_RESERVE);
        Sender {
            socket: self.clone(),
            buffer: Vec::new(),
            packet_bytes: packet_bytes.clamp(MIN_PACKET_BYTES, MAX_PACKET_BYTES),
            message: PhantomData,
        }
    }

    pub fn receiver<T>(&self) -> Receiver<T> {
        Receiver {
            socket: self.clone(),
            packet: vec![0; MAX_PACKET_BYTES].into(),
            message: PhantomData,
        }
    }

    /// Closes the link for both ends. What was sent before can still be received.
    pub fn close(&self) {
        // An error means that the link is closed already.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends a message and the memory beside it. It blocks while the other end does not read.
    ///
    /// # Errors
    /// Returns an error when the link is closed, or the message is longer than 64 MiB.
    pub fn send(&mut self, message: &T, memory: Option<&SharedMemory>) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&[0; Header::BYTES]);
        let mut buffer = postcard::to_extend(message, buffer).map_err(io::Error::other)?;
        let bytes = buffer.len() - Header::BYTES;
        if bytes > MAX_MESSAGE_BYTES {
            let limit = MAX_MESSAGE_BYTES;
            let error = format!("the message is {bytes} bytes, the limit is {limit}");
            return Err(io::Error::other(error));
        }
        let header = Header {
            bytes: u32::try_from(bytes).expect("the limit is below 4 GiB"),
            has_memory: memory.is_some(),
        };
        buffer[..Header::BYTES].copy_from_slice(&header.encode());
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let packet = &rest[..rest.len().min(self.packet_bytes)];
            rest = &rest[self.send_packet(packet)?..];
        }
        buffer.shrink_to(KEPT_CAPACITY);
        self.buffer = buffer;
        match memory {
            Some(memory) => self.send_descriptor(memory.as_fd()),
            None => Ok(()),
        }
    }

    /// Sends one packet; returns how much of it was sent, which is nothing when the kernel had no memory for it.
    fn send_packet(&mut self, packet: &[u8]) -> io::Result<usize> {
        match rustix::net::send(&self.socket, packet, SendFlags::NOSIGNAL) {
            Ok(sent) => Ok(sent),
            Err(Errno::INTR) => Ok(0),
            Err(Errno::NOBUFS | Errno::MSGSIZE) if self.packet_bytes > MIN_PACKET_BYTES => {
                self.packet_bytes /= 2;
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn send_descriptor(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let packet = [IoSlice::new(&[0])];
        loop {
            match rustix::net::sendmsg(&self.socket, &packet, &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Waits for the next message and the memory beside it. Nothing of what the other end sends is trusted.
    ///
    /// # Errors
    /// Returns an error when the link is closed, or when what was received is no message, which leaves the link
    /// unusable.
    pub fn receive(&mut self) -> Result<(T, Option<SharedMemory>), ReceiveError> {
        let len = self.receive_packet()?;
        let (header, start) = Header::decode(&self.packet[..len])
            .ok_or_else(|| garbage("a packet is too short for a message"))?;
        let bytes = header.bytes as usize;
        if bytes > MAX_MESSAGE_BYTES {
            return Err(ReceiveError::Garbage(format!(
                "a message claims to be {bytes} bytes, the limit is {MAX_MESSAGE_BYTES}"
            )));
        }
        let message = if start.len() == bytes {
            decode(start)?
        } else {
            // It grows with what arrives and not with what was claimed.
            let mut message = start.to_vec();
            while message.len() < bytes {
                let len = self.receive_packet()?;
                message.extend_from_slice(&self.packet[..len]);
            }
            if message.len() > bytes {
                return Err(garbage("a message is longer than its header says"));
            }
            decode(&message)?
        };
        let memory = match header.has_memory {
            true => Some(self.receive_memory()?),
            false => None,
        };
        Ok((message, memory))
    }

    /// Waits for the next packet; returns its length. A descriptor in it is dropped by the kernel.
    fn receive_packet(&mut self) -> Result<usize, ReceiveError> {
        loop {
            match rustix::net::recv(&self.socket, &mut self.packet[..], RecvFlags::empty()) {
                Ok((0, _)) => return Err(ReceiveError::Closed),
                Ok((len, _)) => return Ok(len),
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(ReceiveError::Closed),
                Err(error) => return Err(ReceiveError::Io(error.into())),
            }
        }
    }

    fn receive_memory(&mut self) -> Result<SharedMemory, ReceiveError> {
        let (_never, pause) = channel::<Infallible>();
        for _ in 0..SHORTAGE_TRIES {
            if let Some(fd) = self.peek_descriptor()? {
                // The packet is taken without the descriptor, of which there is a copy now.
                self.receive_packet()?;
                return SharedMemory::from_received(fd).map_err(|error| match error {
                    MemoryError::Map(error) if is_shortage(&error) => ReceiveError::Shortage(error),
                    error => garbage(&error.to_string()),
                });
            }
            let _ = pause.recv_timeout(SHORTAGE_PAUSE);
        }
        Err(ReceiveError::Shortage(Errno::MFILE.into()))
    }

    /// Waits for a packet with a descriptor and leaves it in the socket; returns a copy of the descriptor, or `None`
    /// when this process has no room for it.
    fn peek_descriptor(&self) -> Result<Option<OwnedFd>, ReceiveError> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            let mut packet = [IoSliceMut::new(&mut byte)];
            match rustix::net::recvmsg(&self.socket, &mut packet, &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(ReceiveError::Closed),
                Err(error) => return Err(ReceiveError::Io(error.into())),
            }
        };
        if received.bytes == 0 {
            return Err(ReceiveError::Closed);
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message
                && let Some(fd) = fds.next()
            {
                return Ok(Some(fd));
            }
        }
        match received.flags.contains(ReturnFlags::CTRUNC) {
            true => Ok(None),
            false => Err(garbage("a message came without its memory")),
        }
    }
}

impl<T> AsFd for Receiver<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ReceiveError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(ReceiveError::Garbage(format!(
            "a message has {} bytes after its end",
            rest.len()
        ))),
        Err(error) => Err(garbage(&error.to_string())),
    }
}

fn garbage(what: &str) -> ReceiveError {
    ReceiveError::Garbage(what.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::{File, read_dir};
    use std::thread;

    use super::*;

    /// Both ends of a link in this process.
    fn link() -> (Socket, Socket) {
        let (ours, theirs) = Socket::pair().unwrap();
        (ours, Socket::inherited(theirs.as_fd()).unwrap())
    }

    /// What the other end receives of these packets.
    fn received(packets: &[&[u8]]) -> Result<(String, Option<SharedMemory>), ReceiveError> {
        let (ours, theirs) = link();
        for packet in packets {
            rustix::net::send(&ours, packet, SendFlags::empty()).unwrap();
        }
        ours.close();
        theirs.receiver().receive()
    }

    #[test]
    fn messages_of_any_length_arrive_whole_and_in_order() {
        let (ours, theirs) = link();
        let lengths = [
            0,
            1,
            1000,
            MAX_PACKET_BYTES - 20,
            MAX_PACKET_BYTES,
            5 << 20,
            3,
        ];
        let sending = thread::spawn(move || {
            let mut sender = ours.sender();
            for length in lengths {
                sender.send(&"x".repeat(length), None).unwrap();
            }
        });
        let mut receiver = theirs.receiver::<String>();
        for length in lengths {
            let (message, memory) = receiver.receive().unwrap();
            assert!(message.len() == length && memory.is_none());
        }
        sending.join().unwrap();
        assert!(matches!(receiver.receive(), Err(ReceiveError::Closed)));
    }

    #[test]
    fn memory_travels_beside_its_message() {
        let (ours, theirs) = link();
        let mut sender = ours.sender();
        for bytes in [&b""[..], b"a state", &[1; 70_000]] {
            let memory = SharedMemory::from_bytes(bytes).unwrap();
            sender.send(&"with memory", Some(&memory)).unwrap();
            sender.send(&"without", None).unwrap();
        }
        let mut receiver = theirs.receiver::<String>();
        for bytes in [&b""[..], b"a state", &[1; 70_000]] {
            let (message, memory) = receiver.receive().unwrap();
            assert_eq!(message, "with memory");
            assert!(memory.unwrap()[..] == *bytes);
            let (message, memory) = receiver.receive().unwrap();
            assert!(message == "without" && memory.is_none());
        }
    }

    #[test]
    fn both_ends_may_send_at_once() {
        let (ours, theirs) = link();
        ours.sender().send(&1_u32, None).unwrap();
        theirs.sender().send(&2_u32, None).unwrap();
        assert_eq!(ours.receiver::<u32>().receive().unwrap().0, 2);
        assert_eq!(theirs.receiver::<u32>().receive().unwrap().0, 1);
    }

    #[test]
    fn what_was_sent_before_the_link_closed_is_received() {
        let (ours, theirs) = link();
        ours.sender().send(&1_u32, None).unwrap();
        // Either end may close it.
        theirs.close();
        drop(ours);
        let mut receiver = theirs.receiver::<u32>();
        assert_eq!(receiver.receive().unwrap().0, 1);
        assert!(matches!(receiver.receive(), Err(ReceiveError::Closed)));
        assert!(theirs.sender().send(&1_u32, None).is_err());
    }

    #[test]
    fn a_reader_and_a_writer_that_wait_notice_the_end() {
        let (ours, _theirs) = link();
        let mut receiver = ours.receiver::<u32>();
        let reading = thread::spawn(move || receiver.receive().is_err());
        let mut sender = ours.sender::<Vec<u8>>();
        let writing = thread::spawn(move || while sender.send(&vec![0; 1000], None).is_ok() {});
        ours.close();
        assert!(reading.join().unwrap());
        writing.join().unwrap();
    }

    #[test]
    fn bytes_that_are_no_message_are_refused_and_allocate_nothing() {
        let refused = |packets: &[&[u8]], what: &str| match received(packets) {
            Err(ReceiveError::Garbage(said)) => assert!(said.contains(what), "{said}"),
            other => panic!("{other:?}"),
        };
        let header = |bytes: u32, has_memory| Header { bytes, has_memory }.encode();
        refused(&[b"abc"], "too short");
        refused(&[&header(u32::MAX, false)], "claims to be 4294967295 bytes");
        refused(
            &[&header(1, false), b"toolong"],
            "longer than its header says",
        );
        refused(&[&[&header(1, false)[..], b"\x09"].concat()], "");
        refused(
            &[&[&header(3, false)[..], b"\x01aa"].concat()],
            "1 bytes after its end",
        );
        refused(
            &[&[&header(1, true)[..], b"\x00"].concat(), b"x"],
            "without its memory",
        );
        let cut = received(&[&header(60 << 20, false), b"a part of it"]);
        assert!(matches!(cut, Err(ReceiveError::Closed)));
        let cut = received(&[&[&header(1, true)[..], b"\x00"].concat()]);
        assert!(matches!(cut, Err(ReceiveError::Closed)));
    }

    #[test]
    fn memory_that_is_not_sealed_is_refused() {
        let (ours, theirs) = link();
        let header = Header {
            bytes: 1,
            has_memory: true,
        };
        let message = [&header.encode()[..], b"\x00"].concat();
        rustix::net::send(&ours, &message, SendFlags::empty()).unwrap();
        let file = File::open("/dev/null").unwrap();
        ours.sender::<()>().send_descriptor(file.as_fd()).unwrap();
        match theirs.receiver::<String>().receive() {
            Err(ReceiveError::Garbage(said)) => assert_eq!(said, "the memory is not sealed"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_descriptor_that_nobody_asked_for_is_closed() {
        let (ours, theirs) = link();
        let open = || {
            let links = read_dir("/proc/self/fd").unwrap();
            let targets = links.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
            targets.filter(|target| target.ends_with("unasked")).count()
        };
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("unasked")).unwrap();
        let sender = ours.sender::<()>();
        for _ in 0..3 {
            sender.send_descriptor(file.as_fd()).unwrap();
        }
        ours.close();
        let mut receiver = theirs.receiver::<u32>();
        // Each packet is too short for a message.
        for _ in 0..3 {
            assert!(matches!(receiver.receive(), Err(ReceiveError::Garbage(_))));
        }
        assert_eq!(open(), 1);
    }

    #[test]
    fn only_a_link_is_taken_for_a_link() {
        let null = File::open("/dev/null").unwrap();
        assert!(Socket::inherited(null.as_fd()).is_err());
    }
}
