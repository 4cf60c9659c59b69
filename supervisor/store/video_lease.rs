//! The lease of a video job: the right of one server to run it and to write its record.
//!
//! As with sessions ([`Lease`](super::Lease)), the lease is the owner in the record, and the record's revision is the
//! fencing token. A server whose job was deleted, cancelled or taken finds out at its next write or its next beat,
//! whichever is first; then [`VideoLease::changed`] resolves.

use std::sync::Arc;

use fastvideo_proto::ids::VideoId;
use fastvideo_proto::stored_video::StoredVideo;

use super::error::StoreError;
use super::handle::SessionStore;
use super::ids::ServerId;
use super::leased_video::{LeasedVideo, VideoChange};
use super::pending_cleanup::CleanupTask;
use super::videos::{NewBlob, draft};

/// The right to run a video job and to write its record. Dropping it releases the job as it was last written: any server
/// may go on with it.
#[derive(Debug)]
pub struct VideoLease {
    leased: Arc<LeasedVideo>,
    store: SessionStore,
    /// Whether the job has ended.
    over: bool,
}

/// Why a job was not written by its lease.
#[derive(Debug, thiserror::Error)]
pub enum VideoError {
    /// Somebody else has changed the record.
    #[error("the video job must not go on: {0:?}")]
    Changed(VideoChange),
    /// The store does not answer or is full. The same write may be repeated, also when the first one was done and its
    /// answer was lost.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl VideoLease {
    pub fn id(&self) -> VideoId {
        self.leased.id
    }

    /// Resolves when somebody else has changed the record, as soon as this server knows. It goes on resolving at once then.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub async fn changed(&self) -> VideoChange {
        self.leased.changed().await
    }

    /// Writes the next version of the job in place of the one before, body and blobs in one step. Blobs that the body
    /// names are either in the record already or among `new`; those of the record that the body does not name are
    /// condemned. Takes no longer than the configured timeout.
    ///
    /// # Errors
    /// See [`VideoError`]. A job of which somebody has asked for the end takes no version that does not say so
    /// ([`StoredVideo::is_cancelled`]).
    pub async fn write(&mut self, video: &StoredVideo, new: &[NewBlob]) -> Result<(), VideoError> {
        let owner = Some(self.store.0.server.clone());
        self.write_as(owner, video, new).await
    }

    /// Writes the last version of the job, which no server runs from then on.
    ///
    /// # Errors
    /// Returns the errors of [`Self::write`].
    pub async fn finish(&mut self, video: &StoredVideo, new: &[NewBlob]) -> Result<(), VideoError> {
        self.write_as(None, video, new).await?;
        self.over = true;
        self.store.0.videos.remove(&self.leased.id, &self.leased);
        Ok(())
    }

    async fn write_as(
        &self,
        owner: Option<ServerId>,
        video: &StoredVideo,
        new: &[NewBlob],
    ) -> Result<(), VideoError> {
        let Self { leased, store, .. } = self;
        let deadline = store.deadline();
        let mut record = deadline
            .limit(async { Ok(leased.record.lock().await) })
            .await?;
        let draft = draft(&leased.key, owner, video, new, &record.record.blobs)?;
        loop {
            match leased.change() {
                Some(VideoChange::Cancelled) if video.is_cancelled => {}
                Some(change) => return Err(VideoError::Changed(change)),
                None => {}
            }
            let swapped = store.swap_video(leased, &mut record, &draft, deadline);
            if swapped.await? {
                return Ok(());
            }
        }
    }
}

impl Drop for VideoLease {
    fn drop(&mut self) {
        if self.over || !self.leased.is_ours() {
            self.store.0.videos.remove(&self.leased.id, &self.leased);
        } else {
            let task = CleanupTask::ReleaseVideo(self.leased.clone());
            self.store.0.cleanup.add(task);
        }
    }
}

impl SessionStore {
    /// Makes the lease of a job whose record names this server as its owner.
    pub(super) fn video_lease(&self, leased: LeasedVideo) -> VideoLease {
        let leased = Arc::new(leased);
        // An older lease of the job on this server is lost.
        if let Some(before) = self.0.videos.insert(&leased.id, leased.clone()) {
            before.set_change(VideoChange::Taken);
        }
        VideoLease {
            leased,
            store: self.clone(),
            over: false,
        }
    }
}
