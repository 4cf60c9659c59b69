//! Sends again what a client that resumes its session says it has not received.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::job::MediaKind;
use fastvideo_proto::stored::{JPEG, StoredMedia, StoredSegment};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;

use super::command::Have;
use super::event::SessionEvent;
use super::live::LiveSession;
use crate::causes::with_causes;
use crate::pool::Media;
use crate::segment_run::AttemptId;
use crate::store::{Chunks, DataLoss, Film, SessionStore, StoreError};

/// How often a segment is read from a store that does not answer before it is left out.
const TRIES: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a reading of a segment's media gives.
pub(super) type MediaRead = Result<Result<Chunks, StoreError>, JoinError>;

/// The finished segments that the client lacks. New ones wait until all of them are sent.
#[derive(Debug)]
pub(super) struct Redelivery {
    film: Film,
    have: Have,
    /// The next segment that the client lacks.
    next: u32,
    /// The segment that is still to be made.
    end: u32,
    /// Reads the media of the next segment.
    reading: JoinSet<Result<Chunks, StoreError>>,
}

impl Redelivery {
    /// Returns what is to be sent again when `finished` segments exist; `None` when the client has them all.
    pub(super) fn of(film: Film, have: Have, finished: u32) -> Option<Self> {
        (have.segments < finished).then_some(Self {
            film,
            have,
            next: have.segments,
            end: finished,
            reading: JoinSet::new(),
        })
    }

    /// Returns the next segment that is to be sent, and the number of its messages that the client has.
    pub(super) fn next_and_skipped(&self) -> Have {
        let is_first = self.next == self.have.segments;
        Have {
            segments: self.next,
            messages: if is_first { self.have.messages } else { 0 },
        }
    }

    /// Starts to read the next segment, unless it is being read.
    fn read_next(&mut self, store: &SessionStore) {
        if self.reading.is_empty() {
            let segment = self.film.segment(self.next).cloned();
            self.reading.spawn(read(store.clone(), segment));
        }
    }

    /// Waits until the next segment was read.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn media_read(&mut self) -> MediaRead {
        match self.reading.join_next().await {
            Some(read) => read,
            None => pending().await,
        }
    }
}

async fn read(
    store: SessionStore,
    segment: Option<Arc<StoredSegment>>,
) -> Result<Chunks, StoreError> {
    let segment = segment.ok_or(DataLoss::MediaNotKept)?;
    let mut tries = 1;
    loop {
        match store.media(&segment).await {
            Err(StoreError::Unavailable(_)) if tries < TRIES => tries += 1,
            read => return read,
        }
        sleep(RETRY_PAUSE).await;
    }
}

impl LiveSession {
    /// Begins to read the next segment that is to be sent again, once the client has room for it.
    pub(super) fn redeliver(&mut self) {
        if self.announced.is_none() || self.client_is_full() {
            return;
        }
        if let Some(redelivery) = &mut self.redelivery {
            redelivery.read_next(&self.context.store);
        }
    }

    /// Sends a segment again that was read. The client is told of one that cannot be read.
    pub(super) fn media_read(&mut self, read: MediaRead) {
        let Some(redelivery) = &mut self.redelivery else {
            return;
        };
        let (idx, have) = (redelivery.next, redelivery.have);
        let segment = redelivery.film.segment(idx).cloned();
        redelivery.next += 1;
        if redelivery.next == redelivery.end {
            self.redelivery = None;
        }
        let skipped = match idx == have.segments {
            true => have.messages as usize,
            false => 0,
        };
        let media = segment.as_ref().and_then(|segment| segment.media.as_ref());
        let error = match (read, &segment, media) {
            (Ok(Ok(chunks)), Some(segment), Some(media)) => {
                match messages(&chunks, media, &segment.mime) {
                    Some(messages) => return self.send_again(segment.clone(), messages, skipped),
                    None => "it has other messages than were stored".to_owned(),
                }
            }
            (Ok(Ok(_)), ..) => "nothing is known of it".to_owned(),
            (Ok(Err(error)), ..) => with_causes(&error),
            (Err(panic), ..) => panic.to_string(),
        };
        tracing::warn!(segment_idx = idx, error, "segment not sent again");
        self.emit(SessionEvent::ResendFailed { segment_idx: idx });
    }

    fn send_again(&mut self, segment: Arc<StoredSegment>, messages: Vec<Media>, skipped: usize) {
        let at = AttemptId {
            segment_idx: segment.segment_idx,
            attempt: segment.attempt,
        };
        self.emit(SessionEvent::ResendStarted(segment.clone()));
        for media in messages.into_iter().skip(skipped) {
            self.emit(SessionEvent::Media { at, media });
        }
        self.emit(SessionEvent::ResendCompleted(segment));
    }
}

/// Cuts a segment's media into its messages.
fn messages(chunks: &Chunks, stored: &StoredMedia, mime: &str) -> Option<Vec<Media>> {
    let messages = chunks.split(stored.messages.iter().copied())?;
    let has_init = mime != JPEG;
    let media = messages.into_iter().enumerate().map(|(n, bytes)| {
        let kind = match has_init && n == 0 {
            true => MediaKind::InitSegment {
                mime: mime.to_owned(),
            },
            false => MediaKind::Fragment,
        };
        Media::stored(kind, bytes)
    });
    Some(media.collect())
}
