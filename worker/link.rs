//! The worker's end of its link. Apart from the shared memory of states, this is the only file here that knows
//! ipc-channel.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fastvideo_proto::ids::JobId;
use fastvideo_proto::job::MediaKind;
use fastvideo_proto::link::{Command, Event, Hello, LINK_VERSION};
use ipc_channel::ipc::{self, IpcReceiver, IpcSender, IpcSharedMemory};
use nix::time::{ClockId, clock_gettime};

/// A command and, beside [`Command::Generate`], the state's blob.
type CommandMessage = (Command, Option<IpcSharedMemory>);
/// An event and, beside [`Event::Finished`], the new state's blob.
type EventMessage = (Event, Option<IpcSharedMemory>);
/// This worker's first message: its identity, and the supervisor's ends of both channels.
type HelloMessage = (Hello, IpcSender<CommandMessage>, IpcReceiver<EventMessage>);

/// The reason why a link cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("cannot open the link")]
    Open(#[source] std::io::Error),
    #[error("the supervisor is gone")]
    Gone,
    #[error("the supervisor speaks link version {theirs}, this worker speaks {LINK_VERSION}")]
    Version { theirs: u32 },
    #[error("the supervisor sent {0} where it must not")]
    Unexpected(&'static str),
}

/// Receives the supervisor's commands.
#[derive(Debug)]
pub(crate) struct CommandReceiver(IpcReceiver<CommandMessage>);

impl CommandReceiver {
    /// Waits for the next command.
    ///
    /// # Errors
    /// Returns an error when the supervisor has closed the link or is gone.
    pub(crate) fn next(&self) -> Result<CommandMessage, LinkError> {
        self.0.recv().map_err(|_| LinkError::Gone)
    }
}

/// Sends events to the supervisor. It is cheap to clone. Events of two threads are never interleaved, whatever their
/// size.
#[derive(Clone, Debug)]
pub(crate) struct EventSender(Arc<Mutex<IpcSender<EventMessage>>>);

/// Connects to the supervisor that opened the link `name`, and sends the hello.
///
/// # Errors
/// Returns an error when the supervisor is not there.
pub(crate) fn connect(name: &str) -> Result<(CommandReceiver, EventSender), LinkError> {
    let (command_tx, commands) = ipc::channel().map_err(LinkError::Open)?;
    let (events, event_rx) = ipc::channel().map_err(LinkError::Open)?;
    let hello = Hello {
        version: LINK_VERSION,
        pid: std::process::id(),
    };
    IpcSender::<HelloMessage>::connect(name.to_owned())
        .map_err(LinkError::Open)?
        .send((hello, command_tx, event_rx))
        .map_err(|_| LinkError::Gone)?;
    Ok((
        CommandReceiver(commands),
        EventSender(Arc::new(Mutex::new(events))),
    ))
}

impl EventSender {
    /// Sends an event without a blob. An error is ignored: the thread that waits for commands notices that the
    /// supervisor is gone, and ends the process.
    pub(crate) fn send(&self, event: Event) {
        let _ = self.sender().send((event, None));
    }

    /// Sends an event with the blob of a state beside it.
    pub(crate) fn send_with_state(&self, event: Event, blob: IpcSharedMemory) {
        let _ = self.sender().send((event, Some(blob)));
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
        let opaque = self.sender().clone().to_opaque();
        let _ = opaque.to::<Vec<u8>>().send(vec![0xff; 100]);
    }

    fn sender(&self) -> std::sync::MutexGuard<'_, IpcSender<EventMessage>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// The events that were sent, for tests.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct SentEvents(IpcReceiver<EventMessage>);

#[cfg(test)]
impl SentEvents {
    /// Returns the events since the last call.
    pub(crate) fn take(&self) -> Vec<Event> {
        let next = || self.0.try_recv().ok();
        std::iter::from_fn(next).map(|(event, _)| event).collect()
    }
}

#[cfg(test)]
impl EventSender {
    /// A sender without a supervisor.
    pub(crate) fn to_nobody() -> (Self, SentEvents) {
        let (events, event_rx) = ipc::channel().unwrap();
        (Self(Arc::new(Mutex::new(events))), SentEvents(event_rx))
    }
}

/// Returns CLOCK_MONOTONIC in microseconds. All processes of a machine share this clock.
fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock is always there");
    (now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000).cast_unsigned()
}
