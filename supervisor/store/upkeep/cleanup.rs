//! Executes the pending cleanup, and retries it until the store answers.

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::sleep;

use super::RETRY_PAUSE;
use crate::causes::with_causes;
use crate::store::error::StoreError;
use crate::store::handle::SessionStore;
use crate::store::pending_cleanup::CleanupTask;

/// Number of cleanup tasks that are executed concurrently.
const TASKS_AT_ONCE: usize = 16;

impl SessionStore {
    /// Executes all cleanup tasks. Returns false when the store did not answer; then the tasks that are left stay
    /// pending.
    ///
    /// # Cancel safety
    /// This method is cancel safe: a task is pending until it is done.
    pub(in crate::store) async fn clean_up(&self) -> bool {
        let _alone = self.0.cleanup.executing.lock().await;
        loop {
            let pending = self.0.cleanup.pending();
            if pending.is_empty() {
                return true;
            }
            let executions = pending.into_iter().map(|pending| async move {
                let done = self.execute(&pending.task).await;
                if done.is_ok() {
                    self.0.cleanup.done(&pending);
                }
                done.err()
            });
            let mut executions = stream::iter(executions).buffer_unordered(TASKS_AT_ONCE);
            let (mut left, mut last_error) = (0, None);
            while let Some(error) = executions.next().await {
                left += usize::from(error.is_some());
                last_error = error.or(last_error);
            }
            if let Some(error) = last_error {
                let error = with_causes(&error);
                tracing::debug!(error, left, "the store is not cleaned up yet");
                return false;
            }
        }
    }

    /// Executes cleanup tasks until none is left.
    ///
    /// # Cancel safety
    /// This method is cancel safe, like [`Self::clean_up`].
    pub(super) async fn clean_up_all(&self) {
        while !self.clean_up().await {
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn execute(&self, task: &CleanupTask) -> Result<(), StoreError> {
        match task {
            CleanupTask::Release(leased) => {
                let mut record = leased.record.lock().await;
                if leased.lost.is_cancelled() {
                    return Ok(());
                }
                match self
                    .write_latest(leased, &mut record, None, self.deadline())
                    .await
                {
                    Ok(()) | Err(StoreError::Stale) => {}
                    // Sessions that no server runs are evicted first.
                    Err(StoreError::Full { .. }) => {
                        tracing::info!(session_id = %leased.session, "stored state dropped: the store is full");
                        self.remove_leased(leased, &mut record).await?;
                    }
                    Err(error) => return Err(error),
                }
                self.0.leased.remove(&leased.session, leased);
            }
            CleanupTask::End(leased) => {
                let mut record = leased.record.lock().await;
                if !leased.lost.is_cancelled() {
                    self.remove_leased(leased, &mut record).await?;
                }
                self.0.leased.remove(&leased.session, leased);
            }
            CleanupTask::ReleaseVideo(leased) => {
                self.release_video(leased).await?;
                self.0.videos.remove(&leased.id, leased);
            }
            CleanupTask::Drop(session) => {
                self.remove_record(&session.clone().into()).await?;
            }
            CleanupTask::Unreserve(reservation, blobs) => {
                let blobs = blobs.as_deref().unwrap_or_default();
                let released = (self.0.records).release(&self.0.server, *reservation, blobs);
                let condemned = self.within(released).await?;
                self.0.cleanup.delete(condemned);
            }
            CleanupTask::Delete(blob) => {
                self.within(self.0.blobs.drop(*blob)).await?;
                self.within(self.0.records.forget(&[*blob])).await?;
            }
        }
        Ok(())
    }
}
