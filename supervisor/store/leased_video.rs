//! A video job that this server runs. Its lease, the upkeep and the pending cleanup share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fastvideo_proto::ids::VideoId;
use fastvideo_proto::stored_video::StoredVideo;
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::error::{DataLoss, StoreError};
use super::handle::{Deadline, SessionStore};
use super::ids::{Epoch, RecordKey, ServerId};
use super::records::{Record, StoredRecord};
use super::writer::{BlobContent, DraftBlob, RecordDraft, Replaces};

/// A video job that this server runs.
#[derive(Debug)]
pub(super) struct LeasedVideo {
    pub(super) id: VideoId,
    pub(super) key: RecordKey,
    /// What others have done to the record, as far as this server knows.
    change: watch::Sender<Option<VideoChange>>,
    /// The record as this server last wrote or read it, whose revision the next write names. Locked while the job is
    /// written.
    pub(super) record: AsyncMutex<StoredRecord>,
    /// The store's epoch in which `record` was last written or read. In a later one it may be lost.
    epoch: AtomicU64,
}

/// What others have done to the record of a job that this server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoChange {
    /// Somebody has asked for the job's end.
    Cancelled,
    /// The record is gone: the job was deleted, or its blobs were lost with the store's data.
    Gone,
    /// Another server runs the job, or may run it: this one was silent for too long.
    Taken,
}

impl VideoChange {
    /// Returns whether the job is still this server's.
    fn is_ours(self) -> bool {
        self == Self::Cancelled
    }
}

impl LeasedVideo {
    pub(super) fn new(id: VideoId, key: RecordKey, record: StoredRecord, epoch: Epoch) -> Self {
        Self {
            id,
            key,
            change: watch::Sender::new(None),
            record: AsyncMutex::new(record),
            epoch: AtomicU64::new(epoch.0),
        }
    }

    pub(super) fn change(&self) -> Option<VideoChange> {
        *self.change.borrow()
    }

    /// Waits until somebody has changed the record, and returns what was done.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn changed(&self) -> VideoChange {
        let mut change = self.change.subscribe();
        let changed = change.wait_for(Option::is_some).await;
        let change = changed.expect("this has the sender");
        change.expect("it was waited for")
    }

    /// Takes note of what somebody has done. A job that is not this server's any more never is again under this lease.
    pub(super) fn set_change(&self, change: VideoChange) {
        self.change.send_if_modified(|known| {
            let is_new = known.is_none_or(VideoChange::is_ours) && *known != Some(change);
            if is_new {
                *known = Some(change);
            }
            is_new
        });
    }

    /// Returns whether the job is still this server's, as far as it knows.
    pub(super) fn is_ours(&self) -> bool {
        self.change().is_none_or(VideoChange::is_ours)
    }

    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Relaxed))
    }
}

impl SessionStore {
    /// Writes a version of a job once. Returns false when the record has another revision than this server knew, or cannot
    /// be restored: then it is known what has become of it.
    ///
    /// # Errors
    /// Returns an error when the store does not answer or is full.
    pub(super) async fn swap_video(
        &self,
        leased: &Arc<LeasedVideo>,
        record: &mut StoredRecord,
        draft: &RecordDraft,
        deadline: Deadline,
    ) -> Result<bool, StoreError> {
        let epoch = self.0.records.epoch();
        let is_lost = leased.epoch() < epoch;
        let replaces = match is_lost {
            true => Replaces::Lost(record.revision),
            false => Replaces::Record(record),
        };
        let written = self.write_record(&leased.key, replaces, draft, deadline);
        match written.await {
            Ok(written) => {
                let before = std::mem::replace(record, written);
                leased.epoch.store(epoch.0, Ordering::Relaxed);
                if is_lost {
                    tracing::info!(video_id = %leased.id, "video job stored anew");
                    self.condemn_orphans(&before.record.blobs).await;
                }
                Ok(true)
            }
            Err(StoreError::Stale) => {
                let current = deadline.limit(self.0.records.read(&leased.key)).await?;
                if self.0.records.epoch() > epoch {
                    // It is to be restored.
                    return Ok(false);
                }
                if let Some(current) = &current
                    && draft.is(current)
                {
                    // The answer to this very write was lost.
                    *record = current.clone();
                    leased.epoch.store(epoch.0, Ordering::Relaxed);
                    return Ok(true);
                }
                self.see_video(leased, record, current);
                Ok(false)
            }
            Err(StoreError::Lost(DataLoss::MissingBlob(_))) if is_lost => {
                tracing::warn!(video_id = %leased.id, "video job lost with the store's data");
                leased.set_change(VideoChange::Gone);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Finds out what has become of a job whose record has another revision than this server knows.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub(super) async fn look_at_video(
        &self,
        leased: &Arc<LeasedVideo>,
        record: &mut StoredRecord,
    ) -> Result<(), StoreError> {
        let current = self.within(self.0.records.read(&leased.key)).await?;
        // One that the store may have lost is to be restored.
        if leased.epoch() == self.0.records.epoch() {
            self.see_video(leased, record, current);
        }
        Ok(())
    }

    /// Takes note of the record that a job has now. It is not the one that this server has written last.
    fn see_video(
        &self,
        leased: &Arc<LeasedVideo>,
        record: &mut StoredRecord,
        current: Option<StoredRecord>,
    ) {
        let change = match current {
            None => Some(VideoChange::Gone),
            Some(current)
                if self.0.videos.holds(&leased.id, leased)
                    && current.record.owner.as_ref() == Some(&self.0.server)
                    && leased.epoch() == self.0.records.epoch() =>
            {
                // What this build cannot read was written by a newer server, which only asks for the job's end.
                let body = StoredVideo::decode(&current.record.body);
                let is_cancelled = body.map_or(true, |video| video.is_cancelled);
                *record = current;
                is_cancelled.then_some(VideoChange::Cancelled)
            }
            Some(_) => Some(VideoChange::Taken),
        };
        if let Some(change) = change {
            leased.set_change(change);
        }
    }

    /// Writes a job anew of which the store may have lost the record.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub(super) async fn restore_video(&self, leased: &Arc<LeasedVideo>) -> Result<(), StoreError> {
        let mut record = leased.record.lock().await;
        while leased.is_ours() && leased.epoch() < self.0.records.epoch() {
            let draft = unchanged(&record.record, Some(self.0.server.clone()));
            let swapped = self.swap_video(leased, &mut record, &draft, self.deadline());
            swapped.await?;
        }
        Ok(())
    }

    /// Gives a lease back, unless the job is not this server's any more.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub(super) async fn release_video(&self, leased: &Arc<LeasedVideo>) -> Result<(), StoreError> {
        let mut record = leased.record.lock().await;
        while leased.is_ours() {
            let draft = unchanged(&record.record, None);
            let swapped = self.swap_video(leased, &mut record, &draft, self.deadline());
            if swapped.await? {
                break;
            }
        }
        Ok(())
    }
}

/// Returns a record with another owner. Its blobs are in the store.
fn unchanged(record: &Record, owner: Option<ServerId>) -> RecordDraft {
    let blobs = record.blobs.iter().map(|blob| DraftBlob {
        id: blob.key.id,
        kind: blob.kind,
        content: Some(BlobContent::Stored(*blob)),
    });
    RecordDraft {
        owner,
        body: record.body.clone(),
        blobs: blobs.collect(),
    }
}
