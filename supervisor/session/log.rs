//! The session log: a file for each session and each video job with a line for each event, which shows afterwards where the
//! time went.
//!
//! A session puts whole lines into a bounded buffer of its own, in memory; one thread writes all buffers to their
//! files, several times a second. A disk that is slow, full or gone therefore costs lines, which are counted, and never
//! delays a session. `event` has the lines, `recorder` makes them from a session's events, `writer` is the thread,
//! `files` manages the folder, `signature` signs files and
//! checks signatures.

use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastvideo_proto::ids::{SessionId, VideoId};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::tenant::Tenant;
use event::LineRef;
pub use event::{Encoder, Line, Llm, LogEvent, LoggedStep, Setup};
pub use files::{Config, files};
pub(super) use recorder::record;
use writer::Writer;

use crate::metrics::{Gauges, number};

mod event;
mod files;
mod recorder;
pub mod signature;
#[cfg(test)]
mod tests;
mod writer;

/// Limit on the bytes of one session that wait to be written; more is dropped.
const MAX_WAITING: usize = 256 << 10;

/// The logs of all sessions. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Logs(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    queue: Queue,
    /// Number of events that were never written.
    lost: AtomicU64,
    setup: Setup,
    /// Notified when the thread has written everything; closed without a message when the thread panicked.
    done: Mutex<Option<oneshot::Receiver<()>>>,
}

/// The queue of buffers with something to write.
#[derive(Debug, Default)]
struct Queue {
    queued: Mutex<Queued>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct Queued {
    buffers: Vec<Arc<Buffer>>,
    /// Whether a buffer is half full, so that the writer should not wait for more.
    hurry: bool,
    closing: bool,
}

/// One session's lines on their way to its file.
struct Buffer {
    /// The id of the session or of the video job.
    session: Box<str>,
    /// In whose folder the file is.
    tenant: Tenant,
    clock: Clock,
    content: Mutex<Content>,
}

#[derive(Default)]
struct Content {
    /// Whole lines that wait to be written.
    lines: Vec<u8>,
    /// Number of events that were dropped because the buffer was full.
    dropped: u64,
    /// Whether the buffer is in the queue.
    is_queued: bool,
    /// Whether no more lines will be added.
    closed: bool,
}

/// The content that the writer takes out of a buffer.
struct Taken {
    /// The session's events, then a line that reports missing ones, if any.
    lines: Vec<u8>,
    /// Length of the events in `lines`, in bytes.
    events: usize,
    /// Number of events that were dropped since the buffer was last taken.
    dropped: u64,
    /// Number of events that are missing in the file so far.
    missing: u64,
    closed: bool,
}

/// A clock of Unix time that never goes back.
struct Clock {
    begun: Instant,
    begun_unix: f64,
}

/// One session's log; it discards everything where no log is kept. Cheap to clone: the file is closed after the last
/// clone.
#[derive(Clone, Debug, Default)]
pub struct SessionLog(Option<Arc<Handle>>);

#[derive(Debug)]
struct Handle {
    buffer: Arc<Buffer>,
    shared: Arc<Shared>,
}

impl Logs {
    /// Starts the writer. Without a configuration nothing is ever written. The writer reports a folder that cannot be
    /// used; the server goes on.
    pub fn open(config: Option<Config>) -> Self {
        let Some(config) = config else {
            return Self(None);
        };
        let (done_tx, done) = oneshot::channel();
        let shared = Arc::new(Shared {
            queue: Queue::default(),
            lost: AtomicU64::new(0),
            setup: config.setup.clone(),
            done: Mutex::new(Some(done)),
        });
        let thread = std::thread::Builder::new().name("session-log".to_owned());
        let writer = Writer::new(config, shared.clone());
        let started = thread.spawn(move || {
            writer.run();
            let _ = done_tx.send(());
        });
        match started {
            Ok(_) => Self(Some(shared)),
            Err(error) => {
                tracing::error!(%error, "no session log: its thread cannot be started");
                Self(None)
            }
        }
    }

    /// Registers how many events were lost.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(LostEvents(self.clone())));
    }

    /// Returns the log of a session that begins or is resumed.
    pub fn session(&self, session: &SessionId, tenant: &Tenant) -> SessionLog {
        self.log_of(session.as_str(), tenant)
    }

    /// Returns the log of a video job that this server runs from now on.
    pub(crate) fn video(&self, video: VideoId, tenant: &Tenant) -> SessionLog {
        self.log_of(&video.to_string(), tenant)
    }

    fn log_of(&self, id: &str, tenant: &Tenant) -> SessionLog {
        let handle = self.0.as_ref().map(|shared| {
            Arc::new(Handle {
                buffer: Arc::new(Buffer::new(id, tenant)),
                shared: shared.clone(),
            })
        });
        SessionLog(handle)
    }

    /// Returns the number of events that were never written since the start; `None` where no log is kept.
    pub fn events_lost(&self) -> Option<u64> {
        let shared = self.0.as_ref()?;
        Some(shared.lost.load(Ordering::Relaxed))
    }

    /// Writes everything that waits to be written, and gives up after `patience`.
    pub async fn close(&self, patience: Duration) {
        let Some(shared) = &self.0 else { return };
        shared.queue.close();
        let done = lock(&shared.done).take();
        if let Some(done) = done
            && !matches!(timeout(patience, done).await, Ok(Ok(())))
        {
            tracing::warn!("not all of the session log could be written");
        }
    }
}

/// Reads how many events were lost when it is scraped.
#[derive(Debug)]
struct LostEvents(Logs);

impl Collector for LostEvents {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        Gauges(encoder).counter(
            "session_log_events_lost",
            "Events that the session log lacks, since the disk was slow, full or gone",
            number(self.0.events_lost().unwrap_or(0)),
        )
    }
}

impl SessionLog {
    /// Returns whether a log is kept.
    pub(super) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Returns what all sessions have in common; `None` where no log is kept.
    fn setup(&self) -> Option<&Setup> {
        self.0.as_ref().map(|handle| &handle.shared.setup)
    }

    /// Adds a line. The event is built only where a log is kept.
    pub fn record(&self, event: impl FnOnce() -> LogEvent) {
        if let Some(handle) = &self.0 {
            handle.write(&event());
        }
    }
}

impl Handle {
    fn write(&self, event: &LogEvent) {
        let mut content = lock(&self.buffer.content);
        if content.lines.len() >= MAX_WAITING {
            content.dropped += 1;
            drop(content);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = content.lines.len();
        self.buffer.line(event, &mut content.lines);
        let hurry = before < MAX_WAITING / 2 && content.lines.len() >= MAX_WAITING / 2;
        self.enqueue(content, hurry);
    }

    fn enqueue(&self, mut content: MutexGuard<'_, Content>, hurry: bool) {
        let first = !mem::replace(&mut content.is_queued, true);
        drop(content);
        if first || hurry {
            self.shared.queue.put(first.then_some(&self.buffer), hurry);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut content = lock(&self.buffer.content);
        content.closed = true;
        self.enqueue(content, false);
    }
}

impl Buffer {
    fn new(session: &str, tenant: &Tenant) -> Self {
        Self {
            session: session.into(),
            tenant: tenant.clone(),
            clock: Clock::now(),
            content: Mutex::default(),
        }
    }

    /// Adds a line. The time is read under the content's lock, so that lines are in order.
    fn line(&self, event: &LogEvent, lines: &mut Vec<u8>) {
        write_line(&self.session, self.clock.unix(), event, lines);
    }

    /// Takes what waits to be written. `missing` is the number of events that could not be written before.
    fn take(&self, missing: u64) -> Taken {
        let mut content = lock(&self.content);
        let closed = content.closed;
        let Content {
            mut lines, dropped, ..
        } = mem::take(&mut *content);
        let events = lines.len();
        let missing = missing + dropped;
        if missing > 0 {
            self.line(&LogEvent::Dropped { events: missing }, &mut lines);
        }
        content.closed = closed;
        Taken {
            lines,
            events,
            dropped,
            missing,
            closed,
        }
    }
}

/// Adds a line.
fn write_line(session_id: &str, ts: f64, event: &LogEvent, lines: &mut Vec<u8>) {
    let line = LineRef {
        session_id,
        ts,
        event,
    };
    serde_json::to_writer(&mut *lines, &line).expect("strings and numbers are JSON");
    lines.push(b'\n');
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Buffer").field(&self.session).finish()
    }
}

impl Clock {
    fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            begun: Instant::now(),
            begun_unix: unix.unwrap_or_default().as_secs_f64(),
        }
    }

    fn unix(&self) -> f64 {
        self.begun_unix + self.begun.elapsed().as_secs_f64()
    }
}

impl Queue {
    fn put(&self, buffer: Option<&Arc<Buffer>>, hurry: bool) {
        let mut queued = lock(&self.queued);
        let wake = queued.buffers.is_empty() || hurry;
        queued.buffers.extend(buffer.cloned());
        queued.hurry |= hurry;
        drop(queued);
        if wake {
            self.filled.notify_one();
        }
    }

    fn close(&self) {
        lock(&self.queued).closing = true;
        self.filled.notify_one();
    }

    /// Waits until something is queued, and a while longer for more. Returns the buffers and whether they are the last;
    /// there are no buffers when nothing was queued within `patience`.
    fn take(&self, gather: Duration, patience: Duration) -> (Vec<Arc<Buffer>>, bool) {
        let queued = lock(&self.queued);
        let empty = |queued: &mut Queued| queued.buffers.is_empty() && !queued.closing;
        let (queued, _) = (self.filled)
            .wait_timeout_while(queued, patience, empty)
            .expect("no holder of this lock panics");
        let calm =
            |queued: &mut Queued| !queued.buffers.is_empty() && !queued.hurry && !queued.closing;
        let (mut queued, _) = (self.filled)
            .wait_timeout_while(queued, gather, calm)
            .expect("no holder of this lock panics");
        queued.hurry = false;
        (mem::take(&mut queued.buffers), queued.closing)
    }
}

/// Returns a time as lines have it.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}
