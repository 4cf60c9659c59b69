//! The worker's end of its link: typed messages over ipc-channel. The memory of states and step snapshots travels over the
//! socket that is the standard input.

use std::io::{self, stdin};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use fastvideo_link::{Receiver, Sender, SharedMemory};
use fastvideo_proto::ids::JobId;
use fastvideo_proto::job::MediaKind;
use fastvideo_proto::link::{Command, Event, Hello, LINK_VERSION};
use nix::time::{ClockId, clock_gettime};

/// A command and, beside [`Command::Generate`], the blobs of the state and of the step snapshot.
type CommandMessage = (Command, Vec<SharedMemory>);

/// The reason why a link cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("cannot connect to the link {name}; fastvideo-supervisor starts the workers")]
    Open { name: String, source: io::Error },
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
pub(crate) struct EventSender(Arc<Mutex<Sender<Event>>>);

/// Connects to the supervisor that listens on the link `name`, and sends the hello.
///
/// # Errors
/// Returns an error when there is no such link, or when no supervisor has started this process.
pub(crate) fn connect(name: &str) -> Result<(CommandReceiver, EventSender), LinkError> {
    let hello = Hello {
        version: LINK_VERSION,
        pid: std::process::id(),
    };
    let connected = fastvideo_link::connect(name.to_owned(), stdin().as_fd(), hello);
    let (commands, events) = connected.map_err(|source| LinkError::Open {
        name: name.to_owned(),
        source,
    })?;
    let events = EventSender(Arc::new(Mutex::new(events)));
    Ok((CommandReceiver(commands), events))
}

impl EventSender {
    /// Sends an event without a blob. An error is ignored: the thread that waits for commands notices that the
    /// supervisor is gone, and ends the process.
    pub(crate) fn send(&self, event: Event) {
        let _ = self.sender().send(event, &[]);
    }

    /// Sends an event with the blob of a state or of a step snapshot beside it.
    pub(crate) fn send_with_memory(&self, event: Event, blob: SharedMemory) {
        let _ = self.sender().send(event, &[blob]);
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
        let _ = self.sender().send_garbage(vec![0xff; 100]);
    }

    fn sender(&self) -> MutexGuard<'_, Sender<Event>> {
        self.0.lock().expect("no holder of this lock panics")
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
        let mut receiver = self.0.borrow_mut();
        let received = std::iter::from_fn(|| receiver.try_receive());
        received.map(|(event, _)| event).collect()
    }

    /// Returns the step snapshots since the last call; other events are dropped.
    pub(crate) fn take_snapshots(
        &self,
    ) -> Vec<(fastvideo_proto::step_snapshot::SnapshotHeader, SharedMemory)> {
        let mut receiver = self.0.borrow_mut();
        let received = std::iter::from_fn(|| receiver.try_receive());
        received
            .filter_map(|(event, mut memories)| match event {
                Event::StepSnapshot { header, .. } => Some((*header, memories.remove(0))),
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
impl EventSender {
    /// A sender without a supervisor.
    pub(crate) fn to_nobody() -> (Self, SentEvents) {
        let (sender, receiver) = fastvideo_link::pair().unwrap();
        let sender = Self(Arc::new(Mutex::new(sender)));
        (sender, SentEvents(receiver.into()))
    }
}

/// Returns CLOCK_MONOTONIC in microseconds. All processes of a machine share this clock.
fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock is always there");
    (now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000).cast_unsigned()
}
