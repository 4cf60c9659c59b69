//! The supervisor's end of a link. Apart from the shared memory of a state, only this file knows ipc-channel.
//!
//! ipc-channel blocks without limit in `accept`, `recv` and `send`, so they run on threads of their own, and the death of
//! the process ends the wait.

use std::io;
use std::sync::mpsc as std_mpsc;
use std::thread;

use fastvideo_proto::link::{Command, Event, Hello, LINK_VERSION};
use ipc_channel::IpcError;
use ipc_channel::ipc::{IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory};
use tokio::sync::mpsc;

/// The worker's first message: its hello, and the supervisor's ends of both directions.
type Handshake = (
    Hello,
    IpcSender<LinkCommand>,
    IpcReceiver<(Event, Option<IpcSharedMemory>)>,
);
/// A command and, beside [`Command::Generate`], the state's blob.
pub(super) type LinkCommand = (Command, Option<IpcSharedMemory>);

/// The number of events that may wait for the worker's task. The task never blocks on anything else, so few ever wait.
const EVENT_BUFFER: usize = 256;
/// The number of commands that may wait for a worker. A worker that leaves more unread is stuck.
const COMMAND_BUFFER: usize = 1024;

/// An input from the link.
#[derive(Debug)]
pub(super) enum LinkInput {
    /// The first input: a worker has connected with the right protocol version. It reports that it is the process
    /// `pid`.
    Connected { pid: u32 },
    /// An event and, beside [`Event::Finished`], the new state's blob.
    Event(Event, Option<IpcSharedMemory>),
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
    #[error("link failed: {0}")]
    Io(String),
}

/// A link to one worker, which may not have connected yet.
#[derive(Debug)]
pub(super) struct Link {
    name: String,
    pub(super) events: mpsc::Receiver<LinkInput>,
    commands: std_mpsc::SyncSender<LinkCommand>,
}

impl Link {
    /// Opens the supervisor's end; the worker connects to [`Self::name`]. With `promptly`, the thread that reads events
    /// asks for real-time scheduling, see [`crate::thread_priority`].
    ///
    /// # Errors
    /// Returns an error when the socket or a thread cannot be made.
    pub(super) fn open(promptly: bool) -> io::Result<Self> {
        let (server, name) = IpcOneShotServer::<Handshake>::new()?;
        let (event_tx, events) = mpsc::channel(EVENT_BUFFER);
        let (commands, command_rx) = std_mpsc::sync_channel(COMMAND_BUFFER);
        thread::Builder::new()
            .name("link-events".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || {
                if promptly {
                    // The server logs at its start what the kernel grants.
                    let _ = crate::thread_priority::run_promptly();
                }
                let end = receive(server, command_rx, &event_tx);
                let _ = event_tx.blocking_send(LinkInput::Closed(end));
            })?;
        Ok(Self {
            name,
            events,
            commands,
        })
    }

    /// Returns the name that the worker connects to.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Queues a command and the blob that goes with it. Returns false when the worker does not read or the link is
    /// closed.
    pub(super) fn send(&self, command: Command, blob: Option<IpcSharedMemory>) -> bool {
        self.commands.try_send((command, blob)).is_ok()
    }

    /// Ends the wait for a worker that died before it connected. It does nothing when the worker had connected.
    pub(super) fn give_up(&self) {
        // The waiting thread accepts a connection that closes without a message, and reports it as an error.
        drop(IpcSender::<()>::connect(self.name.clone()));
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
            name: "/nowhere".to_owned(),
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

fn receive(
    server: IpcOneShotServer<Handshake>,
    command_rx: std_mpsc::Receiver<LinkCommand>,
    events: &mpsc::Sender<LinkInput>,
) -> LinkEnd {
    let (hello, down, up) = match server.accept() {
        Ok((_, handshake)) => handshake,
        Err(error) => return link_end(error),
    };
    if hello.version != LINK_VERSION {
        return LinkEnd::Version {
            theirs: hello.version,
        };
    }
    let sender = thread::Builder::new()
        .name("link-commands".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            // The loop ends when the worker is gone or when `Link` is dropped.
            while let Ok(message) = command_rx.recv() {
                if down.send(message).is_err() {
                    return;
                }
            }
        });
    if let Err(error) = sender {
        return LinkEnd::Io(error.to_string());
    }
    let connected = LinkInput::Connected { pid: hello.pid };
    if events.blocking_send(connected).is_err() {
        return LinkEnd::Disconnected;
    }
    loop {
        let (event, blob) = match up.recv() {
            Ok(message) => message,
            Err(error) => return link_end(error),
        };
        if events.blocking_send(LinkInput::Event(event, blob)).is_err() {
            return LinkEnd::Disconnected;
        }
    }
}

fn link_end(error: IpcError) -> LinkEnd {
    match error {
        IpcError::Disconnected => LinkEnd::Disconnected,
        IpcError::SerializationError(error) => LinkEnd::Garbage(error.to_string()),
        IpcError::Io(error) => LinkEnd::Io(error.to_string()),
    }
}
