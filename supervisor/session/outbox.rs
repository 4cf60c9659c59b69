//! What waits to be sent to one client, and how much of it.
//!
//! The session puts in, the connection's writer takes out. Nothing here blocks the session: it looks at the cost and
//! stops asking for more.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use fastvideo_proto::stream_v1::ServerMessage;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::log::{Event, SessionLog};
use super::persistence::Gate;
use crate::pool::{Credit, Media};

/// Both ends of a client's outgoing messages. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    queue: Mutex<Queue>,
    /// Rings for the writer.
    filled: Notify,
    /// Rings for the session when there is room again.
    drained: Notify,
    limit: u64,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Outgoing>,
    /// Of the messages in the queue and the one that is being sent.
    cost: u64,
    full_since: Option<Instant>,
    closed: bool,
}

/// A message on its way to the client.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Text(String),
    Binary(Media),
    /// `ltx2_segment_complete`, whose latency is known only when all before it has been sent.
    SegmentComplete {
        segment_idx: u32,
        generation_time_ms: f64,
        requested: Instant,
    },
    /// Holds up what comes after it until it is opened.
    Gate {
        /// Rings when all before it was handed to the socket.
        reached: Option<oneshot::Sender<()>>,
        open: CancellationToken,
    },
    /// For the session's log, once all before it was handed to the socket.
    Note(Box<Note>),
    /// The last.
    Close {
        code: u16,
        reason: &'static str,
    },
}

/// What the log says of media on their way.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) log: SessionLog,
    pub(crate) segment_idx: u32,
    pub(crate) attempt: u32,
    /// When the segment was asked for.
    pub(crate) requested: Instant,
    pub(crate) sent: Sent,
}

/// What of a segment's media was handed to the socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sent {
    First,
    All { chunks: u32, bytes: u64 },
}

impl Note {
    fn record(&self) {
        let (segment_idx, attempt) = (self.segment_idx, self.attempt);
        let ms = self.requested.elapsed().as_secs_f64() * 1000.0;
        self.log.record(|| match self.sent {
            Sent::First => Event::FirstByte {
                segment_idx,
                attempt,
                ms,
            },
            Sent::All { chunks, bytes } => Event::LastByte {
                segment_idx,
                attempt,
                ms,
                chunks,
                bytes,
            },
        });
    }
}

impl Outgoing {
    fn cost(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Binary(media) => media.credit.cost(),
            Self::SegmentComplete { .. }
            | Self::Gate { .. }
            | Self::Note(_)
            | Self::Close { .. } => 0,
        }
    }
}

/// A message that was handed to the socket, or will never be: dropping it makes room.
#[derive(Debug)]
pub struct Receipt {
    cost: u64,
    /// Goes back to the job whose fragment it was.
    _credit: Option<Credit>,
    inner: Arc<Inner>,
}

/// What the writer sends.
#[derive(Debug)]
pub enum Wire {
    Text(String),
    Binary { bytes: Bytes, sent_at_us: u64 },
    Close { code: u16, reason: &'static str },
}

impl Outbox {
    /// `limit` is the cost at which the session stops asking for more.
    pub fn new(limit: u64) -> Self {
        Self {
            inner: Arc::new(Inner {
                queue: Mutex::default(),
                filled: Notify::new(),
                drained: Notify::new(),
                limit,
            }),
        }
    }

    pub(crate) fn send(&self, message: &ServerMessage) {
        let text =
            serde_json::to_string(message).expect("a message of strings and numbers is JSON");
        self.push(Outgoing::Text(text));
    }

    pub(crate) fn push(&self, message: Outgoing) {
        let mut queue = self.queue();
        if queue.closed {
            return;
        }
        queue.cost += message.cost();
        if queue.cost >= self.inner.limit && queue.full_since.is_none() {
            queue.full_since = Some(Instant::now());
        }
        queue.messages.push_back(message);
        drop(queue);
        self.inner.filled.notify_one();
    }

    /// What is put in from now on is held up until the gate is opened.
    pub(super) fn gate(&self) -> Gate {
        let (reached, reached_seen) = oneshot::channel();
        let open = CancellationToken::new();
        let opened = open.clone().drop_guard();
        self.push(Outgoing::Gate {
            reached: Some(reached),
            open,
        });
        Gate {
            reached: reached_seen,
            opened,
        }
    }

    /// Ends the connection after all that waits has been sent.
    pub(crate) fn close(&self, code: u16, reason: &'static str) {
        self.push(Outgoing::Close { code, reason });
        self.queue().closed = true;
    }

    /// Ends the connection after the message that is being sent; what waits is dropped.
    pub(crate) fn cut(&self, code: u16, reason: &'static str) {
        self.drop_waiting();
        self.close(code, reason);
    }

    /// Drops what waits.
    pub(crate) fn drop_waiting(&self) {
        let dropped = std::mem::take(&mut self.queue().messages);
        for message in &dropped {
            if let Outgoing::Gate { open, .. } = message {
                // The writer may stand before it.
                open.cancel();
            }
        }
    }

    /// Cost of what has not been handed to the socket yet.
    pub(crate) fn cost(&self) -> u64 {
        self.queue().cost
    }

    /// Since when the client has left the limit or more unread.
    pub(crate) fn full_since(&self) -> Option<Instant> {
        self.queue().full_since
    }

    /// Waits until a message has been sent that took the cost below the limit, or to nothing.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn drained(&self) {
        self.inner.drained.notified().await;
    }

    /// The next message to send, in order; the receipt is to be dropped once it was handed to the socket.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&self) -> (Wire, Receipt) {
        loop {
            let closed_gate = {
                let mut queue = self.queue();
                match queue.messages.front_mut() {
                    Some(Outgoing::Gate { reached, open }) if !open.is_cancelled() => {
                        if let Some(reached) = reached.take() {
                            // Err: nobody waits for it any more.
                            let _ = reached.send(());
                        }
                        Some(open.clone())
                    }
                    _ => None,
                }
            };
            if let Some(open) = closed_gate {
                open.cancelled().await;
                continue;
            }
            let message = self.queue().messages.pop_front();
            match message {
                Some(Outgoing::Gate { .. }) => {}
                Some(Outgoing::Note(note)) => note.record(),
                Some(message) => return self.take(message),
                None => self.inner.filled.notified().await,
            }
        }
    }

    fn take(&self, message: Outgoing) -> (Wire, Receipt) {
        let cost = message.cost();
        let (wire, credit) = match message {
            Outgoing::Text(text) => (Wire::Text(text), None),
            Outgoing::Binary(media) => {
                let wire = Wire::Binary {
                    bytes: media.bytes,
                    sent_at_us: media.sent_at_us,
                };
                (wire, Some(media.credit))
            }
            Outgoing::SegmentComplete {
                segment_idx,
                generation_time_ms,
                requested,
            } => {
                let message = ServerMessage::SegmentComplete {
                    segment_idx,
                    generation_time_ms,
                    e2e_latency_ms: requested.elapsed().as_secs_f64() * 1000.0,
                };
                let text = serde_json::to_string(&message).expect("three numbers are JSON");
                (Wire::Text(text), None)
            }
            Outgoing::Close { code, reason } => (Wire::Close { code, reason }, None),
            Outgoing::Gate { .. } | Outgoing::Note(_) => {
                unreachable!("gates and notes are not sent")
            }
        };
        let receipt = Receipt {
            cost,
            _credit: credit,
            inner: self.inner.clone(),
        };
        (wire, receipt)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.inner.lock()
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
