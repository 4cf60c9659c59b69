//! Delivers what happens in a session to everything that reads its events.

use super::event::SessionEvent;
use super::event_readers::EventReaders;
use super::outbox::Outbox;

/// Delivers a session's events to their readers and to the client.
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

    /// Delivers an event to the readers and the client.
    pub(super) fn emit(&self, event: SessionEvent) {
        self.readers.read(&event);
        // The client knows what it has sent. If these events were queued for it, a client that reads nothing and sends
        // much would fill the server's memory.
        if !matches!(event, SessionEvent::MessageReceived(_)) {
            self.outbox.push(event);
        }
    }

    /// Delivers an event to the readers alone: the client knows the fact better than the server.
    pub(super) fn note(&self, event: &SessionEvent) {
        self.readers.read(event);
    }

    /// Delivers an event to the readers, and to the client as its last one.
    pub(super) fn emit_last(&self, event: SessionEvent) {
        self.readers.read(&event);
        self.outbox.push_last(event);
    }

    /// Delivers an event to the client alone, once the gate before it is open. The readers learn the fact from another
    /// event.
    pub(super) fn push(&self, event: SessionEvent) {
        self.outbox.push(event);
    }
}
