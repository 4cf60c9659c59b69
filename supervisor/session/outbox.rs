//! A session's events on their way to its client, with the backpressure that they exert.
//!
//! The session puts events in; the consumer, which is the writer of the client's connection or a job runner, takes them
//! out. Nothing here blocks the session: it looks at the cost of what is unsent, and asks for no more media while that
//! exceeds the client's window (flow control).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use fastvideo_proto::checkpoint::{Checkpoint, CuratedPrompt};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::event::SessionEvent;
use super::event_readers::EventReaders;
use super::persistence::Gate;
use crate::segment_run::{AttemptId, MediaCount};

/// The number of entries that an empty queue keeps memory for.
const KEPT_CAPACITY: usize = 4;

/// Both ends of a client's events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    queue: Mutex<Queue>,
    /// Wakes the consumer.
    filled: Notify,
    /// Wakes the session when there is room again.
    drained: Notify,
    /// The client's window.
    limit: u64,
    /// Whether the consumer is a link with a router.
    is_linked: bool,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    /// Cost of the events in the queue and of those whose receipts are held.
    cost: u64,
    full_since: Option<Instant>,
    closed: bool,
    /// Whether the client is told something whose turn has not ended.
    has_open_turn: bool,
}

#[derive(Debug)]
enum Entry {
    Event(SessionEvent),
    /// Holds back what comes after it until it is opened.
    Gate {
        /// Notified when everything before the gate was taken.
        reached: Option<oneshot::Sender<()>>,
        open: CancellationToken,
        /// Whether the link knows of it.
        is_told: bool,
    },
    /// Tells the readers that everything before it was taken.
    Mark(Mark),
    TurnEnd(Box<TurnEnd>),
}

/// The end of a turn of a session on a link: what holds once the client was told everything before.
#[derive(Debug)]
pub(crate) struct TurnEnd {
    /// Number of the client's messages that the session has dealt with.
    pub(crate) seq: u64,
    pub(crate) checkpoint: Checkpoint,
    /// Present when the curated prompts have changed.
    pub(crate) curated: Option<Vec<CuratedPrompt>>,
}

/// What a link with a router takes out.
#[derive(Debug)]
pub(crate) enum LinkItem {
    Event(SessionEvent, Receipt),
    TurnEnd(Box<TurnEnd>),
    /// What follows waits until the client has everything before: then [`Outbox::pass_gate`] is to be called.
    Gate,
}

/// A position in a segment's media, and the readers to tell when the consumer passes it.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) readers: EventReaders,
    pub(super) at: AttemptId,
    /// When the segment was requested.
    pub(super) requested: Instant,
    /// When its turn came: it was requested, and the segment before it had ended.
    pub(super) turn: Instant,
    /// The media of the whole segment; `None` for the mark behind its first media.
    pub(super) all: Option<MediaCount>,
}

impl Mark {
    fn passed(&self) {
        let (at, after) = (self.at, self.requested.elapsed());
        self.readers.read(&match self.all {
            None => SessionEvent::FirstMediaSent {
                at,
                after,
                waited: self.turn.elapsed(),
            },
            Some(media) => SessionEvent::AllMediaSent { at, after, media },
        });
    }
}

/// An event that the consumer has taken. Dropping the receipt makes room in the window.
#[derive(Debug)]
pub struct Receipt {
    cost: u64,
    inner: Arc<Inner>,
}

impl Outbox {
    /// Creates an outbox. `limit` is the client's window: the cost at which the session stops asking for more media.
    pub fn new(limit: u64) -> Self {
        Self::with(limit, false)
    }

    /// Creates the outbox of a session whose client is at a router.
    pub(crate) fn for_link(limit: u64) -> Self {
        Self::with(limit, true)
    }

    fn with(limit: u64, is_linked: bool) -> Self {
        Self {
            inner: Arc::new(Inner {
                queue: Mutex::default(),
                filled: Notify::new(),
                drained: Notify::new(),
                limit,
                is_linked,
            }),
        }
    }

    /// Returns whether the client is told something whose turn has not ended.
    pub(super) fn has_open_turn(&self) -> bool {
        self.inner.lock().has_open_turn
    }

    /// Ends a turn.
    pub(super) fn end_turn(&self, end: TurnEnd) {
        self.put(Entry::TurnEnd(Box::new(end)), false);
        self.inner.lock().has_open_turn = false;
    }

    pub(crate) fn push(&self, event: SessionEvent) {
        self.put(Entry::Event(event), false);
    }

    /// Adds the last event; everything that is pushed after it is dropped.
    pub(crate) fn push_last(&self, event: SessionEvent) {
        self.put(Entry::Event(event), true);
    }

    pub(super) fn mark(&self, mark: Mark) {
        self.put(Entry::Mark(mark), false);
    }

    /// Holds back what is put in from now on until the gate is opened.
    pub(super) fn gate(&self) -> Gate {
        let (reached, reached_seen) = oneshot::channel();
        let open = CancellationToken::new();
        let opened = open.clone().drop_guard();
        self.put(
            Entry::Gate {
                reached: Some(reached),
                open,
                is_told: false,
            },
            false,
        );
        Gate {
            reached: reached_seen,
            opened,
        }
    }

    fn put(&self, entry: Entry, is_last: bool) {
        let mut queue = self.inner.lock();
        if queue.closed {
            return;
        }
        if let Entry::Event(event) = &entry {
            queue.has_open_turn |= !event.is_part_of_a_turn();
        }
        queue.cost += entry.cost();
        if queue.cost >= self.inner.limit && queue.full_since.is_none() {
            queue.full_since = Some(Instant::now());
        }
        queue.entries.push_back(entry);
        queue.closed = is_last;
        drop(queue);
        self.inner.filled.notify_one();
    }

    /// Drops what the consumer has not taken yet.
    pub(super) fn drop_unsent(&self) {
        let dropped = std::mem::take(&mut self.inner.lock().entries);
        for entry in &dropped {
            if let Entry::Gate { open, .. } = entry {
                // The consumer may be waiting for it.
                open.cancel();
            }
        }
    }

    /// Lets those who wait for a gate go on as if the consumer had taken everything before it.
    pub(super) fn reach_gates(&self) {
        for entry in &mut self.inner.lock().entries {
            if let Entry::Gate { reached, .. } = entry
                && let Some(reached) = reached.take()
            {
                let _ = reached.send(());
            }
        }
    }

    /// Says that the client has everything before the gate that was taken out.
    pub(crate) fn pass_gate(&self) {
        if let Some(Entry::Gate { reached, .. }) = self.inner.lock().entries.front_mut()
            && let Some(reached) = reached.take()
        {
            // Err: the session no longer waits for the gate.
            let _ = reached.send(());
        }
    }

    /// Waits for the next thing to send over a link, in order. Receipts are as in [`Self::next`].
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(crate) async fn next_for_link(&self) -> LinkItem {
        loop {
            match self.take() {
                Taken::Event(event, receipt) => return LinkItem::Event(event, receipt),
                Taken::TurnEnd(end) => return LinkItem::TurnEnd(end),
                Taken::Gate => return LinkItem::Gate,
                Taken::ClosedGate(open) => open.cancelled().await,
                Taken::Mark(mark) => mark.passed(),
                Taken::Nothing => self.inner.filled.notified().await,
            }
        }
    }

    /// Returns the cost of the events that the consumer has not taken, or holds receipts of.
    pub(crate) fn cost(&self) -> u64 {
        self.inner.lock().cost
    }

    /// Returns the client's window.
    pub(super) fn limit(&self) -> u64 {
        self.inner.limit
    }

    /// Returns when the cost of the unsent events reached the limit; `None` while it is below the limit.
    pub(crate) fn full_since(&self) -> Option<Instant> {
        self.inner.lock().full_since
    }

    /// Makes a limit that was reached count as reached only now.
    pub(crate) fn restart_full_since(&self, now: Instant) {
        if let Some(since) = &mut self.inner.lock().full_since {
            *since = now;
        }
    }

    /// Waits until the drop of a receipt takes the cost below the limit, or to zero.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(crate) async fn drained(&self) {
        self.inner.drained.notified().await;
    }

    /// Waits for the next event, in order. The consumer has to drop the receipt once it has handed the event to the
    /// client.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub async fn next(&self) -> (SessionEvent, Receipt) {
        loop {
            if let LinkItem::Event(event, receipt) = self.next_for_link().await {
                return (event, receipt);
            }
        }
    }

    fn take(&self) -> Taken {
        let mut queue = self.inner.lock();
        loop {
            if let Some(Entry::Gate {
                reached,
                open,
                is_told,
            }) = queue.entries.front_mut()
                && !open.is_cancelled()
            {
                if self.inner.is_linked {
                    return match std::mem::replace(is_told, true) {
                        false => Taken::Gate,
                        true => Taken::ClosedGate(open.clone()),
                    };
                }
                if let Some(reached) = reached.take() {
                    // Err: the session no longer waits for the gate.
                    let _ = reached.send(());
                }
                return Taken::ClosedGate(open.clone());
            }
            return match queue.entries.pop_front() {
                Some(Entry::Gate { .. }) => continue,
                Some(Entry::Mark(mark)) => Taken::Mark(mark),
                Some(Entry::TurnEnd(end)) => Taken::TurnEnd(end),
                Some(Entry::Event(event)) => {
                    let receipt = Receipt {
                        cost: event.cost(),
                        inner: self.inner.clone(),
                    };
                    Taken::Event(event, receipt)
                }
                None => {
                    // The memory of a burst, such as that of the opening, is not kept while nothing happens. Media that
                    // are taken as they come need less.
                    if queue.entries.capacity() > KEPT_CAPACITY {
                        queue.entries = VecDeque::new();
                    }
                    Taken::Nothing
                }
            };
        }
    }
}

enum Taken {
    Event(SessionEvent, Receipt),
    /// A gate that a link was not told of yet.
    Gate,
    ClosedGate(CancellationToken),
    TurnEnd(Box<TurnEnd>),
    Mark(Mark),
    Nothing,
}

impl Entry {
    fn cost(&self) -> u64 {
        match self {
            Self::Event(event) => event.cost(),
            Self::Gate { .. } | Self::Mark(_) | Self::TurnEnd(_) => 0,
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let mut queue = self.inner.lock();
        queue.cost = queue.cost.saturating_sub(self.cost);
        let was_full = queue.full_since.is_some();
        if queue.cost < self.inner.limit {
            queue.full_since = None;
        }
        if (was_full && queue.full_since.is_none()) || queue.cost == 0 {
            drop(queue);
            self.inner.drained.notify_one();
        }
    }
}
