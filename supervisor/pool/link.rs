//! The supervisor's end of a link: typed messages, on threads of their own.
//!
//! ipc-channel blocks without limit in `accept`, `recv` and `send`. The death of the process ends the wait, and
//! [`Link::give_up`] the wait for a process that never connects.

use std::io;
use std::sync::mpsc as std_mpsc;
use std::thread;

use fastvideo_link::{Cancel, Invitation, ReceiveError, SharedMemory, is_shortage};
use fastvideo_proto::link::{Command, Event, Hello, LINK_VERSION};
use tokio::sync::mpsc;

use super::exit::ExitKind;

type Listener = fastvideo_link::Listener<Hello, Command, Event>;

/// A command and, beside [`Command::Generate`], the blobs of the state and of the step snapshot.
pub(super) type LinkCommand = (Command, Vec<SharedMemory>);

/// The number of events that may wait for the worker's task. The task never blocks on anything else, so few ever wait.
const EVENT_BUFFER: usize = 256;
/// The number of commands that may wait for a worker. A worker that leaves more unread is stuck.
const COMMAND_BUFFER: usize = 1024;
/// The stack of a thread of the link.
const STACK_BYTES: usize = 256 * 1024;

/// An input from the link.
#[derive(Debug)]
pub(super) enum LinkInput {
    /// The first input: a worker has connected with the right protocol version. It reports that it is the process
    /// `pid`.
    Connected { pid: u32 },
    /// An event and, beside [`Event::Finished`] and [`Event::StepSnapshot`], the blob of the new state or snapshot.
    Event(Event, Option<SharedMemory>),
    /// The last input: nothing comes after it.
    Closed(LinkEnd),
}

/// The reason why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkEnd {
    #[error("link closed by the worker")]
    Disconnected,
    #[error("worker speaks link version {theirs}, this supervisor speaks {LINK_VERSION}")]
    Version { theirs: u32 },
    #[error("worker sent bytes that are no event: {0}")]
    Garbage(String),
    /// The worker is not to blame.
    #[error("the host has no room for what a worker has sent: {0}")]
    Shortage(io::Error),
    #[error("link failed: {0}")]
    Io(io::Error),
}

impl LinkEnd {
    /// Returns the kind of exit that follows.
    pub(super) fn exit_kind(&self) -> ExitKind {
        match self {
            Self::Disconnected => ExitKind::Crashed,
            Self::Shortage(_) => ExitKind::Shortage,
            Self::Version { .. } | Self::Garbage(_) | Self::Io(_) => ExitKind::BadLink,
        }
    }
}

/// A link to one worker, which may not have connected yet.
#[derive(Debug)]
pub(super) struct Link {
    cancel: Cancel,
    pub(super) events: mpsc::Receiver<LinkInput>,
    commands: std_mpsc::SyncSender<LinkCommand>,
}

impl Link {
    /// Opens a link, and returns what the worker needs to connect. With `promptly`, the thread that reads events asks for
    /// real-time scheduling, see [`crate::thread_priority`].
    ///
    /// # Errors
    /// Returns an error when the sockets or a thread cannot be made.
    pub(super) fn open(promptly: bool) -> io::Result<(Self, Invitation)> {
        let (listener, invitation) = Listener::open()?;
        let (event_tx, events) = mpsc::channel(EVENT_BUFFER);
        let (commands, command_rx) = std_mpsc::sync_channel::<LinkCommand>(COMMAND_BUFFER);
        let link = Self {
            cancel: invitation.cancel(),
            events,
            commands,
        };
        spawn("link-events", move || {
            if promptly {
                // The server logs at its start what the kernel grants.
                let _ = crate::thread_priority::run_promptly();
            }
            let end = receive(listener, command_rx, &event_tx);
            let _ = event_tx.blocking_send(LinkInput::Closed(end));
        })?;
        Ok((link, invitation))
    }

    /// Queues a command and the blobs that go with it. Returns false when the worker does not read or the link is closed.
    pub(super) fn send(&self, command: Command, blobs: Vec<SharedMemory>) -> bool {
        self.commands.try_send((command, blobs)).is_ok()
    }

    /// Ends the wait for a worker that died before it connected. It does nothing when the worker had connected: then its
    /// death closes the link, and what it had sent before is still received.
    pub(super) fn give_up(&self) {
        self.cancel.cancel();
    }
}

/// The worker's end of a link without a process, which a test plays.
#[cfg(test)]
pub(super) struct TestWorker {
    pub(super) events: mpsc::Sender<LinkInput>,
    pub(super) commands: std_mpsc::Receiver<LinkCommand>,
}

#[cfg(test)]
impl Link {
    pub(super) fn to_test_worker() -> (Self, TestWorker) {
        let (event_tx, events) = mpsc::channel(EVENT_BUFFER);
        let (command_tx, commands) = std_mpsc::sync_channel(COMMAND_BUFFER);
        let link = Self {
            cancel: Listener::open().unwrap().1.cancel(),
            events,
            commands: command_tx,
        };
        let worker = TestWorker {
            events: event_tx,
            commands,
        };
        (link, worker)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.give_up();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.stack_size(STACK_BYTES).spawn(run).map(|_| ())
}

/// Passes on what the worker sends, until the link ends.
fn receive(
    listener: Listener,
    command_rx: std_mpsc::Receiver<LinkCommand>,
    events: &mpsc::Sender<LinkInput>,
) -> LinkEnd {
    let (hello, mut sender, mut receiver) = match listener.accept() {
        Ok(accepted) => accepted,
        Err(error) => return link_end(error),
    };
    if hello.version != LINK_VERSION {
        return LinkEnd::Version {
            theirs: hello.version,
        };
    }
    let sending = spawn("link-commands", move || {
        // The loop ends when the worker is gone or when `Link` is dropped.
        while let Ok((command, blobs)) = command_rx.recv() {
            if sender.send(command, &blobs).is_err() {
                return;
            }
        }
    });
    match sending {
        Err(error) if is_shortage(&error) => return LinkEnd::Shortage(error),
        Err(error) => return LinkEnd::Io(error),
        Ok(()) => {}
    }
    let connected = LinkInput::Connected { pid: hello.pid };
    if events.blocking_send(connected).is_err() {
        return LinkEnd::Disconnected;
    }
    loop {
        let (event, mut blobs) = match receiver.receive() {
            Ok(message) => message,
            Err(error) => return link_end(error),
        };
        let blob = blobs.pop();
        if !blobs.is_empty() {
            return LinkEnd::Garbage("an event has one blob at most".to_owned());
        }
        if events.blocking_send(LinkInput::Event(event, blob)).is_err() {
            return LinkEnd::Disconnected;
        }
    }
}

fn link_end(error: ReceiveError) -> LinkEnd {
    match error {
        ReceiveError::Closed => LinkEnd::Disconnected,
        ReceiveError::Garbage(what) => LinkEnd::Garbage(what),
        ReceiveError::Shortage(error) => LinkEnd::Shortage(error),
        ReceiveError::Io(error) => LinkEnd::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use fastvideo_link::{Receiver, Sender, connect};

    use super::*;

    fn hello(version: u32) -> Hello {
        Hello { version, pid: 7 }
    }

    /// What the supervisor receives of a worker that connects with this version, does this and then exits.
    async fn received(
        version: u32,
        work: impl FnOnce(&mut Sender<Event>) + Send + 'static,
    ) -> Vec<String> {
        let (mut link, invitation) = Link::open(false).unwrap();
        let working = thread::spawn(move || {
            let stdin = invitation.descriptors.as_fd();
            let connected = connect(invitation.name, stdin, hello(version));
            let (_commands, mut events): (Receiver<Command>, _) = connected.unwrap();
            work(&mut events);
        });
        let mut all = Vec::new();
        while let Some(input) = link.events.recv().await {
            all.push(format!("{input:?}"));
        }
        working.join().unwrap();
        all
    }

    #[tokio::test]
    async fn a_link_begins_with_a_hello_of_the_right_version() {
        let inputs = received(LINK_VERSION, |_| ()).await;
        assert_eq!(inputs, ["Connected { pid: 7 }", "Closed(Disconnected)"]);
        let inputs = received(LINK_VERSION + 1, |_| ()).await;
        assert_eq!(inputs.len(), 1);
        assert!(inputs[0].starts_with("Closed(Version"), "{inputs:?}");
    }

    #[tokio::test]
    async fn what_is_no_event_ends_the_link() {
        let inputs = received(LINK_VERSION, |events| {
            let beat = Event::Heartbeat {
                resident_bytes: 1,
                gpu_bytes: None,
            };
            events.send(beat, &[]).unwrap();
            events.send_garbage(vec![0xff; 100]).unwrap();
        })
        .await;
        assert_eq!(inputs.len(), 3);
        assert!(inputs[2].starts_with("Closed(Garbage"), "{inputs:?}");
    }

    #[tokio::test]
    async fn nobody_waits_for_a_worker_any_more_when_the_link_is_given_up() {
        let (mut link, _invitation) = Link::open(false).unwrap();
        link.give_up();
        let input = link.events.recv().await;
        assert!(matches!(
            input,
            Some(LinkInput::Closed(LinkEnd::Disconnected))
        ));
    }
}
