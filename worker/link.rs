//! The worker's end of its link: the only file here that knows ipc-channel, but for the memory of a state.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fastvideo_proto::ids::JobId;
use fastvideo_proto::job::MediaKind;
use fastvideo_proto::link::{Command, Event, Hello, LINK_VERSION};
use ipc_channel::ipc::{self, IpcReceiver, IpcSender, IpcSharedMemory};
use nix::time::{ClockId, clock_gettime};

/// A command and, beside [`Command::Generate`], the state's blob.
type Down = (Command, Option<IpcSharedMemory>);
/// An event and, beside [`Event::Finished`], the new state's blob.
type Up = (Event, Option<IpcSharedMemory>);
/// This worker's first message: who it is, and the supervisor's end of both directions.
type Opening = (Hello, IpcSender<Down>, IpcReceiver<Up>);

/// Why a link cannot be opened or used.
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

/// Commands that come down.
#[derive(Debug)]
pub(crate) struct Commands(IpcReceiver<Down>);

impl Commands {
    /// Waits for the next command.
    ///
    /// # Errors
    /// When the supervisor is gone; there is nobody left to work for.
    pub(crate) fn next(&self) -> Result<Down, LinkError> {
        self.0.recv().map_err(|_| LinkError::Gone)
    }
}

/// Sends events up. Cheap to clone; events of two threads never mix, however long they are.
#[derive(Clone, Debug)]
pub(crate) struct Events(Arc<Mutex<IpcSender<Up>>>);

/// Connects to the supervisor that opened `name`.
///
/// # Errors
/// When it is not there.
pub(crate) fn connect(name: &str) -> Result<(Commands, Events), LinkError> {
    let (command_tx, commands) = ipc::channel().map_err(LinkError::Open)?;
    let (events, event_rx) = ipc::channel().map_err(LinkError::Open)?;
    let hello = Hello {
        version: LINK_VERSION,
        pid: std::process::id(),
    };
    IpcSender::<Opening>::connect(name.to_owned())
        .map_err(LinkError::Open)?
        .send((hello, command_tx, event_rx))
        .map_err(|_| LinkError::Gone)?;
    Ok((Commands(commands), Events(Arc::new(Mutex::new(events)))))
}

impl Events {
    /// Sends an event that nothing goes with. A supervisor that is gone is noticed by whoever waits for commands.
    pub(crate) fn send(&self, event: Event) {
        let _ = self.sender().send((event, None));
    }

    pub(crate) fn send_with_state(&self, event: Event, blob: IpcSharedMemory) {
        let _ = self.sender().send((event, Some(blob)));
    }

    pub(crate) fn send_media(&self, job: JobId, kind: MediaKind, bytes: Bytes) {
        self.send(Event::Media {
            job,
            kind,
            bytes,
            sent_at_us: monotonic_us(),
        });
    }

    /// Sends bytes that are no event. For fault injection.
    pub(crate) fn send_garbage(&self) {
        let opaque = self.sender().clone().to_opaque();
        let _ = opaque.to::<Vec<u8>>().send(vec![0xff; 100]);
    }

    fn sender(&self) -> std::sync::MutexGuard<'_, IpcSender<Up>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// What was sent, for tests.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Sent(IpcReceiver<Up>);

#[cfg(test)]
impl Sent {
    /// The events since the last look.
    pub(crate) fn look(&self) -> Vec<Event> {
        let next = || self.0.try_recv().ok();
        std::iter::from_fn(next).map(|(event, _)| event).collect()
    }
}

#[cfg(test)]
impl Events {
    /// A link without a supervisor.
    pub(crate) fn to_nobody() -> (Self, Sent) {
        let (events, event_rx) = ipc::channel().unwrap();
        (Self(Arc::new(Mutex::new(events))), Sent(event_rx))
    }
}

/// CLOCK_MONOTONIC in microseconds: the same for all processes of a machine.
fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock is always there");
    (now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000).cast_unsigned()
}
