//! Writes a job's record, one version after the other, on behalf of the lease that this server has of it.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::VideoId;
use fastvideo_proto::stored_video::StoredVideo;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::backoff::Backoff;
use crate::causes::with_causes;
use crate::store::{NewBlob, StoreError, VideoChange, VideoError, VideoLease};

/// The pauses before a write is repeated that the store did not answer.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Number of versions that may wait. A job has two on their way at most: that a segment was begun, and that one is finished.
const MAX_WAITING: usize = 4;

/// What others have done to the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Somebody has asked for the job's end at another server.
    Cancelled,
    /// The record was removed, or another server has taken it.
    Gone,
}

/// A version of a job's record, with those of its blobs that may not be in the store.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) video: StoredVideo,
    pub(super) blobs: Vec<NewBlob>,
}

/// Writes a job's record. Dropping it gives the lease back once all versions are written.
#[derive(Debug)]
pub(super) struct RecordWriter {
    versions: mpsc::Sender<(Version, oneshot::Sender<()>)>,
    standing: watch::Receiver<Option<Standing>>,
    stored: watch::Receiver<Arc<StoredVideo>>,
}

impl RecordWriter {
    /// Begins to write on a task of its own, which `tasks` tracks. `video` is what the lease's record says now.
    pub(super) fn begin(
        id: VideoId,
        lease: VideoLease,
        video: Arc<StoredVideo>,
        tasks: &TaskTracker,
    ) -> Self {
        let (versions, receiver) = mpsc::channel(MAX_WAITING);
        let (standing, standing_seen) = watch::channel(None);
        let (stored, stored_seen) = watch::channel(video);
        let writing = Writing {
            id,
            lease,
            versions: receiver,
            standing,
            stored,
        };
        tasks.spawn(writing.run().in_current_span());
        Self {
            versions,
            standing: standing_seen,
            stored: stored_seen,
        }
    }

    /// Writes a version after those before it, for as long as the store does not answer. The answer comes when it is stored,
    /// and never when the job is not this server's any more.
    pub(super) fn write(&self, version: Version) -> oneshot::Receiver<()> {
        let (done, is_done) = oneshot::channel();
        if self.versions.try_send((version, done)).is_err() {
            tracing::debug!("a version of a job is not written: its record is gone");
        }
        is_done
    }

    /// Returns the version that is stored.
    pub(super) fn stored(&self) -> Arc<StoredVideo> {
        self.stored.borrow().clone()
    }

    /// Waits until others have changed the record, and returns what they did. What was returned once is not returned again.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn changed(&mut self) -> Standing {
        let changed = self.standing.wait_for(Option::is_some).await;
        // The task ends early only when the record is gone.
        changed
            .ok()
            .and_then(|standing| *standing)
            .unwrap_or(Standing::Gone)
    }
}

/// The task that writes.
struct Writing {
    id: VideoId,
    lease: VideoLease,
    versions: mpsc::Receiver<(Version, oneshot::Sender<()>)>,
    standing: watch::Sender<Option<Standing>>,
    stored: watch::Sender<Arc<StoredVideo>>,
}

impl Writing {
    async fn run(mut self) {
        loop {
            let is_told = self.standing.borrow().is_some();
            let next = tokio::select! {
                next = self.versions.recv() => next,
                change = self.lease.changed(), if !is_told => {
                    self.tell(change);
                    continue;
                }
            };
            let Some((version, done)) = next else {
                return;
            };
            if let Err(change) = self.write(version).await {
                return self.tell(change);
            }
            let _ = done.send(());
        }
    }

    /// Writes a version until it is stored.
    ///
    /// # Errors
    /// Returns an error when the record is not this server's any more.
    async fn write(&mut self, version: Version) -> Result<(), VideoChange> {
        let Version { mut video, blobs } = version;
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE).with_jitter();
        loop {
            // What others have asked for stays in the record.
            video.is_cancelled |= *self.standing.borrow() == Some(Standing::Cancelled);
            let written = match video.status.is_end() {
                true => self.lease.finish(&video, &blobs).await,
                false => self.lease.write(&video, &blobs).await,
            };
            match written {
                Ok(()) => {
                    self.stored.send_replace(Arc::new(video));
                    return Ok(());
                }
                Err(VideoError::Changed(VideoChange::Cancelled)) => {
                    self.tell(VideoChange::Cancelled);
                }
                Err(VideoError::Changed(change)) => return Err(change),
                Err(VideoError::Store(StoreError::Lost(loss))) => {
                    let error = with_causes(&loss);
                    tracing::error!(video_id = %self.id, error, "a job cannot be stored");
                    return Err(VideoChange::Gone);
                }
                Err(VideoError::Store(error)) => {
                    let error = with_causes(&error);
                    let pause = backoff.next_pause();
                    tracing::warn!(video_id = %self.id, error, pause_ms = pause.as_millis(), "a job is not stored; trying again");
                    sleep(pause).await;
                }
            }
        }
    }

    fn tell(&self, change: VideoChange) {
        let standing = match change {
            VideoChange::Cancelled => Standing::Cancelled,
            VideoChange::Gone | VideoChange::Taken => Standing::Gone,
        };
        self.standing.send_replace(Some(standing));
    }
}
