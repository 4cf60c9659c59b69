//! The media of running segments for readers beside the client, any number of them (fan-out).
//!
//! A session hands each message over once. Readers share it: each keeps its own place, and one that reads slowly delays
//! nobody. What a reader has passed is freed with the last reader that holds it.
//!
//! A thousand readers that are woken at once would stand before the session's own client in the runtime's queue. So they
//! are woken a few at a time, and everybody else has a turn in between.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::job::{MediaKind, MediaMode, PromptSource};
use fastvideo_proto::stored::StoredSegment;
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};

use crate::segment_run::AttemptId;

/// Number of readers that are woken at a time.
const GROUP: usize = 4;

/// The broadcasts of all sessions that run on this server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broadcasts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: Mutex<SpectatorLimits>,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    by_session: HashMap<SessionId, Broadcast>,
    /// Number of spectators of all sessions.
    spectators: usize,
}

/// The limits on the number of spectators.
#[derive(Clone, Copy, Debug)]
pub struct SpectatorLimits {
    pub per_session: usize,
    pub total: usize,
}

/// There is no room for another spectator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooManySpectators {
    #[error("the session has {0} spectators, which is its limit")]
    OfSession(usize),
    #[error("the server has {0} spectators, which is its limit")]
    OfServer(usize),
}

/// What one session broadcasts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broadcast(Arc<Channel>);

#[derive(Debug)]
struct Channel {
    mode: MediaMode,
    on_air: watch::Sender<OnAir>,
    spectators: watch::Sender<usize>,
    readers: Arc<Readers>,
    /// Tells the readers what is on air. It begins with the first of them.
    herald: Mutex<JoinSet<()>>,
}

/// The readers in groups, each of which is told in its turn.
#[derive(Debug, Default)]
struct Readers(Mutex<Vec<watch::Sender<OnAir>>>);

/// What is on air. Each change wakes all readers.
#[derive(Clone, Debug, Default)]
pub struct OnAir {
    /// The segment that is being made and has media.
    pub segment: Option<Arc<LiveSegment>>,
    /// The index of the next segment that is not finished.
    pub next_idx: u32,
    /// The segment whose media were void last. Another attempt at it may follow.
    pub void_idx: Option<u32>,
    /// Whether nothing follows.
    pub is_over: bool,
    /// How often the token for spectators was renewed. Those who have an older one are to leave.
    pub renewals: u32,
}

/// A segment from its first media on.
#[derive(Debug)]
pub struct LiveSegment {
    pub at: AttemptId,
    pub script: Script,
    media: Mutex<LiveMedia>,
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Script {
    pub prompt: String,
    /// The text that `prompt` was made from, when that is another one.
    pub original_prompt: Option<String>,
    pub source: PromptSource,
    pub total_steps: u32,
}

#[derive(Debug, Default)]
struct LiveMedia {
    mime: Option<String>,
    messages: Vec<Bytes>,
    end: Option<SegmentEnd>,
}

/// How a segment on air ended.
#[derive(Clone, Debug)]
pub enum SegmentEnd {
    Finished(Arc<StoredSegment>),
    /// Its media are void: another attempt follows, or nothing does.
    Void,
}

/// What a reader has not read yet of a segment.
#[derive(Debug)]
pub struct Unread {
    /// The MIME type; `None` for pictures.
    pub mime: Option<String>,
    pub messages: Vec<Bytes>,
    /// Present when the messages are the last ones.
    pub end: Option<SegmentEnd>,
}

/// The session's side of its broadcast, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Broadcaster {
    session: SessionId,
    broadcasts: Broadcasts,
    channel: Arc<Channel>,
    spectators: watch::Receiver<usize>,
}

/// A spectator counts until this is dropped.
#[derive(Debug)]
pub struct Spectator {
    broadcasts: Broadcasts,
    channel: Arc<Channel>,
}

impl Broadcasts {
    pub fn new(limits: SpectatorLimits) -> Self {
        let all = Mutex::default();
        let limits = Mutex::new(limits);
        Self(Arc::new(Shared { limits, all }))
    }

    /// Changes the limits. Who watches already stays.
    pub(crate) fn set_limits(&self, limits: SpectatorLimits) {
        *self.0.limits.lock().expect("no holder of this lock panics") = limits;
    }

    /// Begins the broadcast of a session, whose next segment has that index. One of an older connection ends.
    pub(super) fn begin(&self, session: SessionId, next_idx: u32, mode: MediaMode) -> Broadcaster {
        let channel = Arc::new(Channel {
            mode,
            on_air: watch::Sender::new(OnAir {
                next_idx,
                ..OnAir::default()
            }),
            spectators: watch::Sender::default(),
            readers: Arc::default(),
            herald: Mutex::default(),
        });
        let broadcast = Broadcast(channel.clone());
        self.lock().by_session.insert(session.clone(), broadcast);
        Broadcaster {
            session,
            broadcasts: self.clone(),
            spectators: channel.spectators.subscribe(),
            channel,
        }
    }

    /// Returns the broadcast of a session that runs on this server.
    pub fn get(&self, session: &SessionId) -> Option<Broadcast> {
        self.lock().by_session.get(session).cloned()
    }

    /// Returns the number of spectators of all sessions.
    pub fn spectators(&self) -> usize {
        self.lock().spectators
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        (self.0.all.lock()).expect("no holder of this lock panics")
    }
}

impl Broadcast {
    /// Adds a spectator.
    ///
    /// # Errors
    /// Returns an error when there are as many as the limits allow.
    pub fn join(&self, broadcasts: &Broadcasts) -> Result<Spectator, TooManySpectators> {
        let limits = *(broadcasts.0.limits.lock()).expect("no holder of this lock panics");
        let mut all = broadcasts.lock();
        if all.spectators >= limits.total {
            return Err(TooManySpectators::OfServer(limits.total));
        }
        if self.spectators() >= limits.per_session {
            return Err(TooManySpectators::OfSession(limits.per_session));
        }
        all.spectators += 1;
        self.0.spectators.send_modify(|count| *count += 1);
        Ok(Spectator {
            broadcasts: broadcasts.clone(),
            channel: self.0.clone(),
        })
    }

    pub fn mode(&self) -> MediaMode {
        self.0.mode
    }

    /// Returns the number of spectators.
    pub fn spectators(&self) -> usize {
        *self.0.spectators.borrow()
    }

    /// Returns a receiver of what is on air, which is told of every change in its turn, for as long as the broadcast or a
    /// spectator of it is held.
    pub fn listen(&self) -> watch::Receiver<OnAir> {
        let channel = &self.0;
        let mut herald = (channel.herald.lock()).expect("no holder of this lock panics");
        if herald.is_empty() {
            let (on_air, readers) = (channel.on_air.subscribe(), channel.readers.clone());
            herald.spawn(tell(on_air, readers));
        }
        channel.readers.add(channel.on_air.borrow().clone())
    }
}

/// Tells all readers what is on air, group by group, for as long as anything can be.
async fn tell(mut on_air: watch::Receiver<OnAir>, readers: Arc<Readers>) {
    loop {
        // A change from here on is told in another round.
        let news = on_air.borrow_and_update().clone();
        let mut group = 0;
        while readers.tell(group, news.clone()) {
            group += 1;
            yield_now().await;
        }
        if on_air.changed().await.is_err() {
            return;
        }
    }
}

impl Readers {
    /// Adds a reader who knows what is on air now.
    fn add(&self, on_air: OnAir) -> watch::Receiver<OnAir> {
        let mut groups = self.lock();
        let group = groups.iter().find(|group| group.receiver_count() < GROUP);
        if let Some(group) = group {
            let mut reader = group.subscribe();
            // The group may not have been told yet.
            reader.mark_changed();
            return reader;
        }
        let (group, reader) = watch::channel(on_air);
        groups.push(group);
        reader
    }

    /// Tells a group. Returns false when there is no such group.
    fn tell(&self, group: usize, on_air: OnAir) -> bool {
        match self.lock().get(group) {
            Some(group) => {
                group.send_replace(on_air);
                true
            }
            None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<watch::Sender<OnAir>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Spectator {
    fn drop(&mut self) {
        self.broadcasts.lock().spectators -= 1;
        self.channel.spectators.send_modify(|count| *count -= 1);
    }
}

impl LiveSegment {
    /// Returns what follows the first `read` messages.
    pub fn unread(&self, read: usize) -> Unread {
        let media = self.lock();
        Unread {
            mime: media.mime.clone(),
            messages: media.messages.get(read..).unwrap_or_default().to_vec(),
            end: media.end.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, LiveMedia> {
        (self.media.lock()).expect("no holder of this lock panics")
    }
}

impl Broadcaster {
    /// Hands a message over. `script` says what was asked for, and is called for the first message of an attempt.
    pub(super) fn media(
        &self,
        at: AttemptId,
        kind: &MediaKind,
        bytes: Bytes,
        script: impl FnOnce() -> Script,
    ) {
        self.channel.on_air.send_modify(|on_air| {
            // What a later attempt continues belongs to the first one.
            let segment = on_air.segment.get_or_insert_with(|| {
                Arc::new(LiveSegment {
                    at,
                    script: script(),
                    media: Mutex::default(),
                })
            });
            let mut live = segment.lock();
            if let MediaKind::InitSegment { mime } = kind {
                live.mime.get_or_insert_with(|| mime.clone());
            }
            live.messages.push(bytes);
        });
    }

    /// Ends the segment on air.
    pub(super) fn end_segment(&self, end: SegmentEnd) {
        self.channel.on_air.send_modify(|on_air| {
            if let SegmentEnd::Finished(finished) = &end {
                on_air.next_idx = finished.segment_idx + 1;
            }
            // Those who read it hold it.
            if let Some(segment) = on_air.segment.take() {
                if let SegmentEnd::Void = end {
                    on_air.void_idx = Some(segment.at.segment_idx);
                }
                segment.lock().end = Some(end);
            }
        });
    }

    /// Tells the spectators that their token may not be valid any more.
    pub(super) fn token_renewed(&self) {
        self.channel
            .on_air
            .send_modify(|on_air| on_air.renewals += 1);
    }

    /// Waits until the number of spectators has changed, and returns it.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn spectators_changed(&mut self) -> usize {
        match self.spectators.changed().await {
            Ok(()) => *self.spectators.borrow_and_update(),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Broadcaster {
    fn drop(&mut self) {
        self.end_segment(SegmentEnd::Void);
        self.channel
            .on_air
            .send_modify(|on_air| on_air.is_over = true);
        let mut all = self.broadcasts.lock();
        let is_own = |broadcast: &Broadcast| Arc::ptr_eq(&broadcast.0, &self.channel);
        if all.by_session.get(&self.session).is_some_and(is_own) {
            all.by_session.remove(&self.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SpectatorLimits = SpectatorLimits {
        per_session: 2,
        total: 3,
    };

    fn script() -> Script {
        Script {
            prompt: "a fox".to_owned(),
            original_prompt: None,
            source: PromptSource::User,
            total_steps: 4,
        }
    }

    fn at(segment_idx: u32, attempt: u32) -> AttemptId {
        AttemptId {
            segment_idx,
            attempt,
        }
    }

    fn send(broadcaster: &Broadcaster, at: AttemptId, byte: u8) {
        let bytes = Bytes::copy_from_slice(&[byte]);
        broadcaster.media(at, &MediaKind::Fragment, bytes, script);
    }

    #[tokio::test]
    async fn a_reader_gets_every_message_once_whenever_it_reads() {
        let broadcasts = Broadcasts::new(LIMITS);
        let session = SessionId::random();
        let broadcaster = broadcasts.begin(session.clone(), 0, MediaMode::AvFmp4);
        let broadcast = broadcasts.get(&session).unwrap();
        let mut early = broadcast.listen();
        send(&broadcaster, at(0, 1), 1);
        send(&broadcaster, at(0, 1), 2);
        early.changed().await.unwrap();
        let segment = early.borrow_and_update().segment.clone().unwrap();
        assert_eq!(segment.unread(0).messages.concat(), [1, 2]);
        // A later attempt goes on where the one before was lost.
        send(&broadcaster, at(0, 2), 3);
        let unread = segment.unread(2);
        assert_eq!(unread.messages.concat(), [3]);
        assert!(unread.end.is_none());
        broadcaster.end_segment(SegmentEnd::Void);
        send(&broadcaster, at(0, 3), 4);
        early.changed().await.unwrap();
        assert!(matches!(segment.unread(3).end, Some(SegmentEnd::Void)));
        assert_eq!(early.borrow().void_idx, Some(0));
        let again = early.borrow_and_update().segment.clone().unwrap();
        assert_eq!(
            (again.at.attempt, again.unread(0).messages.concat()),
            (3, vec![4])
        );
        drop(broadcaster);
        early.wait_for(|on_air| on_air.is_over).await.unwrap();
        assert!(broadcasts.get(&session).is_none());
    }

    #[tokio::test]
    async fn every_reader_is_told_however_many_there_are() {
        let broadcasts = Broadcasts::new(LIMITS);
        let session = SessionId::random();
        let broadcaster = broadcasts.begin(session.clone(), 0, MediaMode::AvFmp4);
        let broadcast = broadcasts.get(&session).unwrap();
        let mut readers: Vec<_> = (0..3 * GROUP + 1).map(|_| broadcast.listen()).collect();
        send(&broadcaster, at(0, 1), 1);
        for reader in &mut readers {
            let has_segment = |on_air: &OnAir| on_air.segment.is_some();
            reader.wait_for(has_segment).await.unwrap();
        }
        // Those who leave make room in their groups.
        readers.truncate(1);
        readers.extend((0..3 * GROUP).map(|_| broadcast.listen()));
        assert_eq!(broadcast.0.readers.lock().len(), 4);
    }

    #[test]
    fn a_session_that_is_resumed_broadcasts_anew() {
        let broadcasts = Broadcasts::new(LIMITS);
        let session = SessionId::random();
        let old = broadcasts.begin(session.clone(), 0, MediaMode::AvFmp4);
        let new = broadcasts.begin(session.clone(), 0, MediaMode::AvFmp4);
        drop(old);
        assert!(broadcasts.get(&session).is_some());
        drop(new);
        assert!(broadcasts.get(&session).is_none());
    }

    #[tokio::test]
    async fn spectators_are_counted_and_limited() {
        let broadcasts = Broadcasts::new(LIMITS);
        let (a, b) = (SessionId::random(), SessionId::random());
        let mut broadcasters = [
            broadcasts.begin(a.clone(), 0, MediaMode::AvFmp4),
            broadcasts.begin(b.clone(), 0, MediaMode::AvFmp4),
        ];
        let [a, b] = [a, b].map(|id| broadcasts.get(&id).unwrap());
        let first = a.join(&broadcasts).unwrap();
        let _second = a.join(&broadcasts).unwrap();
        assert_eq!(broadcasters[0].spectators_changed().await, 2);
        let full = a.join(&broadcasts).unwrap_err();
        assert_eq!(full, TooManySpectators::OfSession(2));
        let _third = b.join(&broadcasts).unwrap();
        let full = b.join(&broadcasts).unwrap_err();
        assert_eq!(full, TooManySpectators::OfServer(3));
        assert_eq!(broadcasts.spectators(), 3);
        drop(first);
        assert_eq!(broadcasts.spectators(), 2);
        assert_eq!(broadcasters[0].spectators_changed().await, 1);
        b.join(&broadcasts).unwrap();
    }
}
