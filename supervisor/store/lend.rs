//! Lends the blobs that exported states refer to. The store keeps them for as long as a state that no server runs.

use bytes::Bytes;
use fastvideo_proto::stored::StoredSession;

use super::error::StoreError;
use super::handle::SessionStore;
use super::ids::{BlobId, RecordKey};
use super::records::BlobKind;
use super::writer::{DraftBlob, RecordDraft, Replaces};

impl SessionStore {
    /// Keeps a blob for as long as the state of a session that no server runs, counted from the last time it was lent.
    ///
    /// Lending is idempotent: there is one record for each blob, named by its hash, however often the blob is lent. In
    /// a store with limits, loans are the first to be evicted, and a loan evicts no session.
    ///
    /// # Errors
    /// Returns an error when the store does not answer in time or has no room.
    pub async fn lend(&self, blob: Bytes) -> Result<BlobId, StoreError> {
        let hashed = blob.clone();
        let id = tokio::task::spawn_blocking(move || BlobId::of(&hashed))
            .await
            .map_err(StoreError::unavailable)?;
        let key = RecordKey::Loan(id);
        let draft = RecordDraft {
            owner: None,
            // It is no session.
            body: StoredSession::default().encode(),
            blobs: vec![DraftBlob {
                id,
                kind: BlobKind::State,
                content: Some(blob.into()),
            }],
        };
        loop {
            let lent = self.within(self.0.records.read(&key)).await?;
            // Writing the same record again restarts its time.
            let replaces = lent.as_ref().map_or(Replaces::Nothing, Replaces::Record);
            let written = self.write_record(&key, replaces, &draft, self.deadline());
            match written.await {
                Ok(_) => return Ok(id),
                // It was lent again or has expired just now.
                Err(StoreError::Stale) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the bytes of a blob that the store has.
    ///
    /// # Errors
    /// Returns [`super::error::DataLoss::MissingBlob`] when the store has no such blob, and another error when it does not answer.
    pub async fn blob(&self, id: BlobId) -> Result<Bytes, StoreError> {
        let key = self.locate(id).await?;
        Ok(self.within(self.0.blobs.get(key)).await?.join())
    }
}
