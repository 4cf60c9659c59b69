//! What a server does when the store has lost data: it writes the records anew whose leases it holds, and removes again
//! what it has removed.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::Instant;

use super::error::StoreError;
use super::handle::SessionStore;
use super::ids::{RecordKey, Revision};
use super::leased_session::LeasedSession;
use super::leased_video::LeasedVideo;
use super::records::{BlobRef, RecordWrite};
use crate::causes::with_causes;

/// Number of records that are restored concurrently.
const RESTORED_AT_ONCE: usize = 8;
impl SessionStore {
    /// Returns whether the store has lost data so recently that other servers may not have restored their sessions yet.
    pub(super) fn is_restoring(&self) -> bool {
        let noticed = self.0.restoring.lock().at;
        noticed.is_some_and(|at| at.elapsed() < self.config().lease)
    }

    /// Increments this server's beat, in a new epoch when the store has lost data.
    pub(super) async fn beat_in_epoch(&self) -> Result<(), StoreError> {
        let records = &self.0.records;
        if let Err(error) = self.within(records.beat(&self.0.server)).await {
            let StoreError::Forgotten = error else {
                return Err(error);
            };
            self.within(records.adopt()).await?;
            self.within(records.beat(&self.0.server)).await?;
        }
        self.follow_epoch().await
    }

    /// Finds out whether the store has begun another epoch, and goes on in it.
    async fn follow_epoch(&self) -> Result<(), StoreError> {
        let epoch = self.0.records.epoch();
        let is_new = {
            let mut noticed = self.0.restoring.lock();
            let is_new = noticed.epoch < epoch;
            if is_new {
                (noticed.epoch, noticed.at) = (epoch, Some(Instant::now()));
            }
            is_new
        };
        if is_new {
            tracing::warn!(
                "the store has lost data; the sessions and running video jobs of this server are stored anew"
            );
            let name = self.0.records.name().await?;
            if self.0.blobs.rename(&name) {
                // They name blobs of a store that is no more.
                self.0.cleanup.forget_blobs();
            }
        }
        let is_outdated =
            |leased: &Arc<LeasedSession>| leased.epoch() < epoch && !leased.lost.is_cancelled();
        let is_outdated_video =
            |leased: &Arc<LeasedVideo>| leased.epoch() < epoch && leased.is_ours();
        if is_new
            || self.0.leased.all().iter().any(is_outdated)
            || self.0.videos.all().iter().any(is_outdated_video)
        {
            self.0.restoring.is_needed();
        }
        Ok(())
    }

    /// Restores everything that this server knows of a store that has lost data. Returns false when the store did not
    /// answer; then it is to be called again.
    pub(in crate::store) async fn restore(&self) -> bool {
        let epoch = self.0.records.epoch();
        let removed_in = self.0.restoring.lock().removed_in;
        let removed = if removed_in < epoch {
            self.0.removed.all()
        } else {
            Vec::new()
        };
        let removals = removed.into_iter().map(|(key, revision)| async move {
            self.within(self.remove_lost(&key, revision)).await
        });
        let mut failure = None;
        let mut removals = stream::iter(removals).buffer_unordered(RESTORED_AT_ONCE);
        while let Some(removed) = removals.next().await {
            failure = removed.err().or(failure);
        }
        if failure.is_none() {
            self.0.restoring.lock().removed_in = epoch;
        }
        let leased = self.0.leased.all().into_iter();
        let outdated = leased.filter(|leased| leased.epoch() < epoch);
        let restored = outdated.map(|leased| async move {
            let mut record = leased.record.lock().await;
            if leased.lost.is_cancelled() || leased.epoch() >= epoch {
                return Ok(());
            }
            let owner = Some(self.0.server.clone());
            let written = self.write_latest(&leased, &mut record, owner, self.deadline());
            match written.await {
                Ok(()) | Err(StoreError::Stale) => Ok(()),
                Err(error) => Err(error),
            }
        });
        let mut restored = stream::iter(restored).buffer_unordered(RESTORED_AT_ONCE);
        while let Some(restored) = restored.next().await {
            failure = restored.err().or(failure);
        }
        let videos = self.0.videos.all().into_iter();
        let restored = videos.map(|leased| async move { self.restore_video(&leased).await });
        let mut restored = stream::iter(restored).buffer_unordered(RESTORED_AT_ONCE);
        while let Some(restored) = restored.next().await {
            failure = restored.err().or(failure);
        }
        if let Some(error) = &failure {
            let error = with_causes(error);
            tracing::debug!(
                error,
                "the sessions and video jobs of this server are not stored anew yet"
            );
        }
        failure.is_none()
    }

    /// Removes a record that the store may have lost, unless the store has a later version.
    pub(super) async fn remove_lost(
        &self,
        key: &RecordKey,
        lost: Revision,
    ) -> Result<(), StoreError> {
        let write = RecordWrite {
            key,
            expected: Some(lost),
            record: None,
            server: &self.0.server,
            reservation: None,
        };
        match self.0.records.restore(write).await {
            Ok(outcome) => {
                self.0.cleanup.delete(outcome.condemned);
                Ok(())
            }
            Err(StoreError::Stale) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes those blobs of a record that was restored which nothing names any more. A failure only leaves them.
    pub(super) async fn condemn_orphans(&self, blobs: &[BlobRef]) {
        let keys: Vec<_> = blobs.iter().map(|blob| blob.key).collect();
        if keys.is_empty() {
            return;
        }
        let condemned = self.within(self.0.records.condemn_unknown(&keys)).await;
        self.0.cleanup.delete(condemned.unwrap_or_default());
    }
}
