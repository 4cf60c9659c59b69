//! The worker's end of its link: typed messages over the socket that is its standard input.

use std::io::{self, stdin};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use fastvideo_link::{Receiver, Sender, SharedMemory, Socket};
use fastvideo_proto::ids::JobId;
use fastvideo_proto::job::MediaKind;
use fastvideo_proto::link::{Command, Event, Hello, LINK_VERSION};
use nix::time::{ClockId, clock_gettime};

/// A command and, beside [`Command::Generate`], the state's blob.
type CommandMessage = (Command, Option<SharedMemory>);

/// The reason why a link cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("standard input is not a link: fastvideo-supervisor starts the workers")]
    Open(#[source] io::Error),
    #[error("the supervisor is gone")]
    Gone,
    #[error("the supervisor speaks link version {theirs}, this worker speaks {LINK_VERSION}")]
    Version { theirs: u32 },
    #[error("the supervisor sent {0} where it must not")]
    Unexpected(&'static str),
}

/// Receives the supervisor's commands.
#[derive(Debug)]
pub(crate) struct CommandReceiver(Receiver<Command>);

impl CommandReceiver {
    /// Waits for the next command.
    ///
    /// # Errors
    /// Returns an error when the supervisor has closed the link or is gone.
    pub(crate) fn next(&mut self) -> Result<CommandMessage, LinkError> {
        self.0.receive().map_err(|_| LinkError::Gone)
    }
}

/// Sends events to the supervisor. It is cheap to clone. Events of two threads are never interleaved, whatever their
/// size.
#[derive(Clone, Debug)]
pub(crate) struct EventSender {
    socket: Socket,
    sender: Arc<Mutex<Sender<Event>>>,
}

/// Opens the link to the supervisor that has started this process, and sends the hello.
///
/// # Errors
/// Returns an error when no supervisor has started this process, or it is gone.
pub(crate) fn connect() -> Result<(CommandReceiver, EventSender), LinkError> {
    let socket = Socket::inherited(stdin().as_fd()).map_err(LinkError::Open)?;
    let hello = Hello {
        version: LINK_VERSION,
        pid: std::process::id(),
    };
    (socket.sender().send(&hello, None)).map_err(|_| LinkError::Gone)?;
    Ok((
        CommandReceiver(socket.receiver()),
        EventSender::over(socket),
    ))
}

impl EventSender {
    fn over(socket: Socket) -> Self {
        Self {
            sender: Arc::new(Mutex::new(socket.sender())),
            socket,
        }
    }

    /// Sends an event without a blob. An error is ignored: the thread that waits for commands notices that the
    /// supervisor is gone, and ends the process.
    pub(crate) fn send(&self, event: Event) {
        let _ = self.sender().send(&event, None);
    }

    /// Sends an event with the blob of a state beside it.
    pub(crate) fn send_with_state(&self, event: &Event, blob: &SharedMemory) {
        let _ = self.sender().send(event, Some(blob));
    }

    /// Sends one message of a job's media, with the current time.
    pub(crate) fn send_media(&self, job: JobId, kind: MediaKind, bytes: Bytes) {
        self.send(Event::Media {
            job,
            kind,
            bytes,
            sent_at_us: monotonic_us(),
        });
    }

    /// Sends bytes that are not an event, for fault injection.
    pub(crate) fn send_garbage(&self) {
        let _in_turn = self.sender();
        let _ = self.socket.sender().send(&vec![0xff_u8; 100], None);
    }

    fn sender(&self) -> MutexGuard<'_, Sender<Event>> {
        self.sender.lock().expect("no holder of this lock panics")
    }
}

/// The events that were sent, for tests.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct SentEvents(std::cell::RefCell<Receiver<Event>>);

#[cfg(test)]
impl SentEvents {
    /// Returns the events since the last call.
    pub(crate) fn take(&self) -> Vec<Event> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut receiver = self.0.borrow_mut();
        let mut events = Vec::new();
        let is_there = |receiver: &Receiver<Event>| {
            let mut fds = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
        };
        while is_there(&receiver)
            && let Ok((event, _)) = receiver.receive()
        {
            events.push(event);
        }
        events
    }
}

#[cfg(test)]
impl EventSender {
    /// A sender without a supervisor.
    pub(crate) fn to_nobody() -> (Self, SentEvents) {
        let (socket, nobody) = Socket::pair().unwrap();
        let nobody = Socket::inherited(nobody.as_fd()).unwrap();
        (Self::over(socket), SentEvents(nobody.receiver().into()))
    }
}

/// Returns CLOCK_MONOTONIC in microseconds. All processes of a machine share this clock.
fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock is always there");
    (now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000).cast_unsigned()
}
