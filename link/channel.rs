//! Messages in both directions, and how the two ends of a link find each other.
//!
//! The supervisor listens on a one-shot server of ipc-channel. The worker connects to its name, and sends a hello with
//! the supervisor's ends of both channels. Memory travels over the pair of sockets beside (`descriptors`): a message
//! says how many pieces follow.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ipc_channel::IpcError;
use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::descriptors::{Descriptors, NoDescriptor};
use crate::is_shortage;
use crate::memory::{MemoryError, SharedMemory};

#[derive(Debug, Serialize, Deserialize)]
struct Message<T> {
    body: T,
    /// The number of pieces of memory whose descriptors follow over the sockets.
    memories: u8,
}

/// The worker's first message: its hello, and the supervisor's ends of both channels.
type Handshake<H, C, E> = (H, IpcSender<Message<C>>, IpcReceiver<Message<E>>);

/// The number of descriptors that must be free for the sender to be blamed for a channel that is missing in a message. A
/// message has at most two, and a connection has one. The others allow for what other threads have closed meanwhile.
const FREE_DESCRIPTORS: usize = 16;

/// The most pieces of memory beside one message: a continuation state and a step snapshot.
const MAX_MEMORIES: u8 = 2;

/// Sends messages of one type.
#[derive(Debug)]
pub struct Sender<T> {
    channel: IpcSender<Message<T>>,
    descriptors: Descriptors,
}

/// Receives messages of one type.
#[derive(Debug)]
pub struct Receiver<T> {
    channel: IpcReceiver<Message<T>>,
    descriptors: Descriptors,
}

/// The supervisor's end of a link that no worker has connected to: it expects a hello `H`, sends commands `C` and receives
/// events `E`.
pub struct Listener<H, C, E> {
    server: IpcOneShotServer<Handshake<H, C, E>>,
    descriptors: Descriptors,
}

/// What a worker needs to connect.
#[derive(Debug)]
pub struct Invitation {
    /// The name of the server.
    pub name: String,
    /// The worker's end of the sockets for memory, which is to be its standard input.
    pub descriptors: OwnedFd,
}

/// Ends the wait of a [`Listener::accept`].
#[derive(Clone, Debug)]
pub struct Cancel {
    name: String,
}

/// The reason why no message can be received any more.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("link closed")]
    Closed,
    #[error("{0}")]
    Garbage(String),
    /// This host lacks something that would be needed to receive the message; the sender is not to blame.
    #[error("no room for what was sent: {0}")]
    Shortage(io::Error),
    #[error(transparent)]
    Io(io::Error),
}

// Not derived: ipc-channel's server does not implement it.
impl<H, C, E> fmt::Debug for Listener<H, C, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl<H, C, E> Listener<H, C, E>
where
    H: Serialize + DeserializeOwned,
    C: Serialize + DeserializeOwned,
    E: Serialize + DeserializeOwned,
{
    /// Opens the supervisor's end.
    ///
    /// # Errors
    /// Returns an error when the host has no descriptors left, or the folder of the sockets is gone; see
    /// [`crate::LinkFolder`].
    pub fn open() -> io::Result<(Self, Invitation)> {
        let (descriptors, theirs) = Descriptors::pair()?;
        let (server, name) = IpcOneShotServer::new()?;
        let listener = Self {
            server,
            descriptors,
        };
        let invitation = Invitation {
            name,
            descriptors: theirs,
        };
        Ok((listener, invitation))
    }

    /// Waits until a worker has connected; returns its hello. It waits without limit: see [`Invitation::cancel`].
    ///
    /// # Errors
    /// Returns an error when the wait is cancelled, when what has connected sends no hello, or when this process has no
    /// room for the descriptors of the link.
    pub fn accept(self) -> Result<(H, Sender<C>, Receiver<E>), ReceiveError> {
        let Self {
            server,
            descriptors,
        } = self;
        let accepted = with_its_channels(&descriptors, || server.accept());
        let (_, (hello, commands, events)) = accepted?;
        let (sender, receiver) = ends(commands, events, descriptors);
        Ok((hello, sender, receiver))
    }
}

impl Invitation {
    /// Returns a handle that ends the wait for the worker.
    pub fn cancel(&self) -> Cancel {
        Cancel {
            name: self.name.clone(),
        }
    }
}

impl Cancel {
    /// Ends the wait for a worker that has not connected. It does nothing when the worker has connected.
    ///
    /// A connection that closes without a message ends the wait. `IpcSender::connect` would do, too, but leaves a
    /// descriptor behind when there is no server any more.
    pub fn cancel(&self) {
        let connected = || {
            let address = SocketAddrUnix::new(self.name.as_str())?;
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )?;
            rustix::net::connect(&socket, &address)
        };
        // An error means that nobody waits.
        let _ = connected();
    }
}

/// Connects a worker to its supervisor. `stdin` is the worker's end of the sockets for memory.
///
/// # Errors
/// Returns an error when there is no such server, or `stdin` is no such socket.
pub fn connect<H, C, E>(
    name: String,
    stdin: BorrowedFd<'_>,
    hello: H,
) -> io::Result<(Receiver<C>, Sender<E>)>
where
    H: Serialize,
    C: Serialize + DeserializeOwned,
    E: Serialize + DeserializeOwned,
{
    let descriptors = Descriptors::inherited(stdin)?;
    let server: IpcSender<Handshake<H, C, E>> = IpcSender::connect(name)?;
    let (commands, command_receiver) = ipc::channel()?;
    let (event_sender, events) = ipc::channel()?;
    server
        .send((hello, commands, events))
        .map_err(io::Error::other)?;
    let (sender, receiver) = ends(event_sender, command_receiver, descriptors);
    Ok((receiver, sender))
}

/// Returns what one side of a link sends and receives with.
fn ends<S, R>(
    sender: IpcSender<Message<S>>,
    receiver: IpcReceiver<Message<R>>,
    descriptors: Descriptors,
) -> (Sender<S>, Receiver<R>) {
    let sender = Sender {
        channel: sender,
        descriptors: descriptors.clone(),
    };
    let receiver = Receiver {
        channel: receiver,
        descriptors,
    };
    (sender, receiver)
}

/// Creates both ends of a channel within one process.
///
/// # Errors
/// Returns an error when the host has no descriptors left.
pub fn pair<T: Serialize + DeserializeOwned>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let (ours, theirs) = Descriptors::pair()?;
    let (sender, receiver) = ipc::channel()?;
    let sender = Sender {
        channel: sender,
        descriptors: ours,
    };
    let receiver = Receiver {
        channel: receiver,
        descriptors: Descriptors::inherited(theirs.as_fd())?,
    };
    Ok((sender, receiver))
}

impl<T: Serialize> Sender<T> {
    /// Sends a message and the pieces of memory beside it, at most two. It blocks while the other end does not read. Two
    /// threads must not call it at once.
    ///
    /// # Errors
    /// Returns an error when the link is closed.
    pub fn send(&mut self, body: T, memories: &[SharedMemory]) -> io::Result<()> {
        let message = Message {
            body,
            memories: u8::try_from(memories.len()).unwrap_or(u8::MAX),
        };
        self.channel.send(message).map_err(io::Error::other)?;
        for memory in memories {
            self.descriptors.send(memory.as_fd())?;
        }
        Ok(())
    }

    /// Sends bytes that are no message, for fault injection.
    ///
    /// # Errors
    /// Returns an error when the link is closed.
    pub fn send_garbage(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let garbage: IpcSender<Vec<u8>> = self.channel.clone().to_opaque().to();
        garbage.send(bytes).map_err(io::Error::other)
    }
}

impl<T: Serialize + DeserializeOwned> Receiver<T> {
    /// Waits for the next message and the pieces of memory beside it. Nothing of what the other end sends is trusted.
    ///
    /// # Errors
    /// Returns an error when the link is closed, when what was received is no message, or when this process has no room
    /// for it. After that the link is unusable: a message is lost.
    pub fn receive(&mut self) -> Result<(T, Vec<SharedMemory>), ReceiveError> {
        let message = with_its_channels(&self.descriptors, || self.channel.recv())?;
        self.with_memories(message)
    }

    /// Returns the next message if there is one already.
    pub fn try_receive(&mut self) -> Option<(T, Vec<SharedMemory>)> {
        let message = self.channel.try_recv().ok()?;
        self.with_memories(message).ok()
    }

    fn with_memories(&self, message: Message<T>) -> Result<(T, Vec<SharedMemory>), ReceiveError> {
        if message.memories > MAX_MEMORIES {
            let said = format!(
                "a message with {} pieces of memory came, {MAX_MEMORIES} are allowed",
                message.memories
            );
            return Err(ReceiveError::Garbage(said));
        }
        let memories = (0..message.memories).map(|_| self.receive_memory());
        Ok((message.body, memories.collect::<Result<_, _>>()?))
    }

    fn receive_memory(&self) -> Result<SharedMemory, ReceiveError> {
        let fd = self.descriptors.receive()?;
        SharedMemory::from_received(fd).map_err(|error| match error {
            MemoryError::Map(error) if is_shortage(&error) => ReceiveError::Shortage(error),
            error => ReceiveError::Garbage(error.to_string()),
        })
    }
}

/// Receives a message. ipc-channel panics when a channel is missing in it: the sender has left it out, or this process had
/// no room for its descriptor, which the kernel then drops. Long messages have a channel, too, over which their rest comes.
fn with_its_channels<T>(
    descriptors: &Descriptors,
    receive: impl FnOnce() -> Result<T, IpcError>,
) -> Result<T, ReceiveError> {
    let Ok(received) = catch_unwind(AssertUnwindSafe(receive)) else {
        let free: io::Result<Vec<OwnedFd>> = (0..FREE_DESCRIPTORS)
            .map(|_| descriptors.as_fd().try_clone_to_owned())
            .collect();
        return Err(match free {
            Ok(_) => ReceiveError::Garbage("a message came without its channels".to_owned()),
            Err(error) => ReceiveError::Shortage(error),
        });
    };
    Ok(received?)
}

impl From<IpcError> for ReceiveError {
    fn from(error: IpcError) -> Self {
        match error {
            IpcError::Disconnected => Self::Closed,
            IpcError::SerializationError(error) => Self::Garbage(error.to_string()),
            IpcError::Io(error) if is_shortage(&error) => Self::Shortage(error),
            IpcError::Io(error) => Self::Io(error),
        }
    }
}

impl From<NoDescriptor> for ReceiveError {
    fn from(error: NoDescriptor) -> Self {
        match error {
            NoDescriptor::Closed => Self::Closed,
            NoDescriptor::Missing => Self::Garbage("a message came without its memory".to_owned()),
            NoDescriptor::Shortage => Self::Shortage(rustix::io::Errno::MFILE.into()),
            NoDescriptor::Io(error) => Self::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, read_dir};
    use std::thread;

    use super::*;

    type TestListener = Listener<u32, String, String>;

    #[test]
    fn both_ends_find_each_other_and_messages_of_any_length_arrive_in_order() {
        let (listener, invitation) = TestListener::open().unwrap();
        let lengths = [0, 1, 1000, 200_000, 5 << 20, 3];
        let worker = thread::spawn(move || {
            let (mut commands, mut events) =
                connect::<u32, String, String>(invitation.name, invitation.descriptors.as_fd(), 7)
                    .unwrap();
            for length in lengths {
                events.send("x".repeat(length), &[]).unwrap();
            }
            assert_eq!(commands.receive().unwrap().0, "a command");
            assert!(matches!(commands.receive(), Err(ReceiveError::Closed)));
        });
        let (hello, mut commands, mut events) = listener.accept().unwrap();
        assert_eq!(hello, 7);
        for length in lengths {
            let (message, memories) = events.receive().unwrap();
            assert!(message.len() == length && memories.is_empty());
        }
        commands.send("a command".to_owned(), &[]).unwrap();
        drop(commands);
        worker.join().unwrap();
        assert!(matches!(events.receive(), Err(ReceiveError::Closed)));
    }

    #[test]
    fn memory_travels_beside_its_message() {
        let (mut sender, mut receiver) = pair::<String>().unwrap();
        for bytes in [&b""[..], b"a state", &[1; 70_000]] {
            let memory = SharedMemory::from_bytes(bytes).unwrap();
            let second = SharedMemory::from_bytes(b"the second").unwrap();
            sender
                .send("with two".to_owned(), &[memory, second])
                .unwrap();
            sender.send("without".to_owned(), &[]).unwrap();
        }
        for bytes in [&b""[..], b"a state", &[1; 70_000]] {
            let (message, memories) = receiver.receive().unwrap();
            let memories: Vec<&[u8]> = memories.iter().map(|memory| &memory[..]).collect();
            assert!(message == "with two" && memories == [bytes, b"the second"]);
            let (message, memories) = receiver.receive().unwrap();
            assert!(message == "without" && memories.is_empty());
        }
    }

    #[test]
    fn what_is_no_message_and_memory_that_is_not_sealed_are_refused() {
        let (mut sender, mut receiver) = pair::<String>().unwrap();
        sender.send_garbage(vec![0xff; 100]).unwrap();
        assert!(matches!(receiver.receive(), Err(ReceiveError::Garbage(_))));
        let unsealed = Message {
            body: "unsealed".to_owned(),
            memories: 1,
        };
        sender.channel.send(unsealed).unwrap();
        let file = File::open("/dev/null").unwrap();
        sender.descriptors.send(file.as_fd()).unwrap();
        match receiver.receive() {
            Err(ReceiveError::Garbage(said)) => assert_eq!(said, "the memory is not sealed"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_with_too_much_memory_is_refused() {
        let (sender, mut receiver) = pair::<String>().unwrap();
        let body = "three".to_owned();
        sender.channel.send(Message { body, memories: 3 }).unwrap();
        assert!(matches!(receiver.receive(), Err(ReceiveError::Garbage(_))));
    }

    #[test]
    fn a_message_without_its_channel_is_refused() {
        let (sender, mut receiver) = pair::<IpcSender<u8>>().unwrap();
        // The first of no channels, and no memory.
        let forged: IpcSender<(usize, u8)> = sender.channel.to_opaque().to();
        forged.send((0, 0)).unwrap();
        match receiver.receive() {
            Err(ReceiveError::Garbage(said)) => assert!(said.contains("channel"), "{said}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_wait_that_is_cancelled_ends_and_leaves_nothing_behind() {
        let sockets = || {
            let links = read_dir("/proc/self/fd").unwrap();
            let targets = links.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
            targets
                .filter(|target| target.to_string_lossy().starts_with("socket:"))
                .count()
        };
        let (listener, invitation) = TestListener::open().unwrap();
        let cancel = invitation.cancel();
        let waiting = thread::spawn(move || listener.accept().err());
        cancel.cancel();
        let error = waiting.join().unwrap();
        assert!(matches!(error, Some(ReceiveError::Closed)), "{error:?}");
        drop(invitation);
        let before = sockets();
        for _ in 0..50 {
            cancel.cancel();
        }
        assert!(sockets() < before + 50);
    }
}
