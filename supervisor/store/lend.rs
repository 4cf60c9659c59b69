//! Lends the blobs that exported states refer to. The store keeps them for as long as a state that no server runs.

use bytes::Bytes;
use fastvideo_proto::stored::StoredSession;

use super::error::{DataLoss, StoreError};
use super::handle::SessionStore;
use super::ids::{BlobId, BlobKey, RecordKey};
use super::records::BlobKind;
use super::saved_session::{stored_tenant, tenant_of};
use super::writer::{BlobContent, DraftBlob, RecordDraft, Replaces};
use crate::tenant::Tenant;

impl SessionStore {
    /// Keeps a blob for as long as the state of a session that no server runs, counted from the last time it was lent.
    ///
    /// Lending is idempotent: there is one record for each tenant and blob, named by a hash of both, however often the blob
    /// is lent. So the name of a blob tells no tenant whether another one has the same. In a store with limits, loans are
    /// the first to be evicted, and a loan evicts no session.
    ///
    /// Returns the name by which [`Self::blob`] finds it.
    ///
    /// # Errors
    /// Returns an error when the store does not answer in time or has no room.
    pub async fn lend(&self, blob: Bytes) -> Result<BlobId, StoreError> {
        let hashed = blob.clone();
        let id = tokio::task::spawn_blocking(move || BlobId::of(&hashed))
            .await
            .map_err(StoreError::unavailable)?;
        let tenant = stored_tenant(&self.1.tenant);
        let name = match &tenant {
            Some(tenant) => id.lent_to(tenant),
            None => id,
        };
        let key = RecordKey::Loan(name);
        let draft = RecordDraft {
            owner: None,
            // It is no session.
            body: StoredSession {
                tenant,
                ..StoredSession::default()
            }
            .encode(),
            blobs: vec![DraftBlob {
                id,
                kind: BlobKind::State,
                content: Some(BlobContent::Bytes(blob.into())),
            }],
        };
        loop {
            let lent = self.within(self.0.records.read(&key)).await?;
            // Writing the same record again restarts its time.
            let replaces = lent.as_ref().map_or(Replaces::Nothing, Replaces::Record);
            let written = self.write_record(&key, replaces, &draft, self.deadline());
            match written.await {
                Ok(_) => return Ok(name),
                // It was lent again or has expired just now.
                Err(StoreError::Stale) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the bytes of a blob that the store has, by the name by which it was lent, or by its hash where nobody is
    /// asked for a key.
    ///
    /// # Errors
    /// Returns [`DataLoss::MissingBlob`] when the store has no such blob, or has lent it to another tenant
    /// alone, and another error when it does not answer.
    pub async fn blob(&self, name: BlobId) -> Result<Bytes, StoreError> {
        let key = match self.1.scope.has(&Tenant::default()) {
            true => match self.locate(name).await {
                Err(StoreError::Lost(DataLoss::MissingBlob(_))) => self.lent(name).await?,
                found => found?,
            },
            false => self.lent(name).await?,
        };
        Ok(self.within(self.0.blobs.get(key)).await?.join())
    }

    /// Finds a blob that was lent to a tenant.
    async fn lent(&self, name: BlobId) -> Result<BlobKey, StoreError> {
        let missing = || StoreError::from(DataLoss::MissingBlob(name));
        let key = RecordKey::Loan(name);
        let lent = self.within(self.0.records.read(&key)).await?;
        let record = lent.ok_or_else(missing)?.record;
        let body = StoredSession::decode(&record.body).map_err(|_| missing())?;
        if !self.1.scope.has(&tenant_of(&body)) {
            return Err(missing());
        }
        let blob = record.blobs.first().ok_or_else(missing)?;
        Ok(blob.key)
    }
}
