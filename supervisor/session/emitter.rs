//! Tells what happens in a session to all that read it.

use super::event::SessionEvent;
use super::event_readers::EventReaders;
use super::outbox::Outbox;

/// Where a session puts its events.
#[derive(Debug)]
pub(super) struct Emitter {
    readers: EventReaders,
    outbox: Outbox,
}

impl Emitter {
    pub(super) fn new(readers: EventReaders, outbox: Outbox) -> Self {
        Self { readers, outbox }
    }

    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    pub(super) fn readers(&self) -> &EventReaders {
        &self.readers
    }

    /// Tells the readers and the client.
    pub(super) fn emit(&self, event: SessionEvent) {
        self.readers.read(&event);
        // The client knows what it has sent. Were that queued for it, a client that reads nothing and sends much would
        // fill the server's memory.
        if !matches!(event, SessionEvent::MessageReceived(_)) {
            self.outbox.push(event);
        }
    }

    /// Tells the readers, and the client as the last that it gets.
    pub(super) fn emit_last(&self, event: SessionEvent) {
        self.readers.read(&event);
        self.outbox.push_last(event);
    }

    /// Tells only the client, once the gate in front is open: the readers know of the fact by another event.
    pub(super) fn push(&self, event: SessionEvent) {
        self.outbox.push(event);
    }
}
