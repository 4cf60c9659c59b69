//! The supervisor's end of a link: the only file here that knows ipc-channel.
//!
//! ipc-channel blocks without limit in `accept`, `recv` and `send`, so each runs on a thread of its own, and the death
//! of the process ends the wait.

use std::io;
use std::sync::mpsc as std_mpsc;
use std::thread;

use fastvideo_proto::link::{Command, Event, Hello, LINK_VERSION};
use ipc_channel::IpcError;
use ipc_channel::ipc::{IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory};
use tokio::sync::mpsc;

/// The worker's first message: who it is, and its end of both directions.
type Handshake = (
    Hello,
    IpcSender<LinkCommand>,
    IpcReceiver<(Event, Option<IpcSharedMemory>)>,
);
/// A command and, beside [`Command::Generate`], the state's blob.
pub(crate) type LinkCommand = (Command, Option<IpcSharedMemory>);

/// Events that may wait for the worker's task. It never blocks on anything but this channel, so few ever do.
const EVENT_BUFFER: usize = 256;
/// Commands that may wait for a worker that does not read. One that leaves so many unread is stuck.
const COMMAND_BUFFER: usize = 1024;

/// What comes up the link.
#[derive(Debug)]
pub(crate) enum LinkInput {
    /// The first: the worker has connected, with the right version.
    Connected,
    /// An event and, beside [`Event::Finished`], the new state's blob.
    Event(Event, Option<IpcSharedMemory>),
    /// The last: nothing comes any more.
    Closed(LinkEnd),
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkEnd {
    #[error("link closed by the worker")]
    Disconnected,
    #[error("worker speaks link version {theirs}, this supervisor speaks {LINK_VERSION}")]
    Version { theirs: u32 },
    #[error("worker sent bytes that are no event: {0}")]
    Garbage(String),
    #[error("link failed: {0}")]
    Io(String),
}

/// A link that waits for its worker.
#[derive(Debug)]
pub(crate) struct Link {
    name: String,
    pub(crate) events: mpsc::Receiver<LinkInput>,
    commands: std_mpsc::SyncSender<LinkCommand>,
}

impl Link {
    /// Opens the supervisor's end; the worker connects to [`Self::name`]. `promptly`: events are read by a thread that
    /// the kernel runs at once, see [`crate::thread_priority`].
    ///
    /// # Errors
    /// When the socket or a thread cannot be made.
    pub(crate) fn open(promptly: bool) -> io::Result<Self> {
        let (server, name) = IpcOneShotServer::<Handshake>::new()?;
        let (event_tx, events) = mpsc::channel(EVENT_BUFFER);
        let (commands, command_rx) = std_mpsc::sync_channel(COMMAND_BUFFER);
        thread::Builder::new()
            .name("link-events".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || {
                if promptly {
                    // Err: said at the start.
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

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Queues a command. False when the worker has stopped reading or the link is closed.
    pub(crate) fn send(&self, command: Command, blob: Option<IpcSharedMemory>) -> bool {
        self.commands.try_send((command, blob)).is_ok()
    }

    /// Ends the wait for a worker that died before it connected. Harmless when it had connected.
    pub(crate) fn give_up(&self) {
        // The one who waits gets a connection that says nothing, which is an error to it.
        drop(IpcSender::<()>::connect(self.name.clone()));
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
            // Ends when the worker is gone, or when `Link` is dropped.
            while let Ok(message) = command_rx.recv() {
                if down.send(message).is_err() {
                    return;
                }
            }
        });
    if let Err(error) = sender {
        return LinkEnd::Io(error.to_string());
    }
    if events.blocking_send(LinkInput::Connected).is_err() {
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
