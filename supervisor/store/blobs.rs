//! Blobs: bytes by the hash of their content, in memory, in a folder or in a bucket.
//!
//! When a blob may be deleted is decided by `records`; here are only bytes.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::StoreError;
use super::records::BlobId;

/// Blobs of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BlobStore {
    objects: Arc<dyn ObjectStore>,
    folder: Path,
}

impl BlobStore {
    /// Keeps the blobs of the store `name` in a folder of that name.
    pub fn new(objects: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self {
            objects,
            folder: Path::from(name),
        }
    }

    /// Keeps a blob; one that is there already is replaced by the same bytes.
    pub async fn put(&self, id: BlobId, bytes: Bytes) -> Result<(), StoreError> {
        self.objects
            .put(&self.path(id), bytes.into())
            .await
            .map_err(StoreError::unavailable)?;
        Ok(())
    }

    /// A blob's bytes, whose hash is its id.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there, [`StoreError::Corrupt`] when the bytes are others.
    pub async fn get(&self, id: BlobId) -> Result<Bytes, StoreError> {
        let got = match self.objects.get(&self.path(id)).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Err(StoreError::Missing(id)),
            Err(error) => return Err(StoreError::unavailable(error)),
        };
        let bytes = got.bytes().await.map_err(StoreError::unavailable)?;
        let hashed = bytes.clone();
        let actual = tokio::task::spawn_blocking(move || BlobId::of(&hashed));
        match actual.await {
            Ok(actual) if actual == id => Ok(bytes),
            Ok(_) => Err(StoreError::Corrupt(format!("blob {id} has other bytes"))),
            Err(error) => Err(StoreError::unavailable(error)),
        }
    }

    /// Deletes a blob, if it is there.
    pub async fn drop(&self, id: BlobId) -> Result<(), StoreError> {
        match self.objects.delete(&self.path(id)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::unavailable(error)),
        }
    }

    /// The ids of all blobs.
    pub async fn list(&self) -> Result<Vec<BlobId>, StoreError> {
        let objects = self.objects.list(Some(&self.folder));
        let ids = objects
            .try_filter_map(async |object| Ok(object.location.filename().and_then(BlobId::parse)));
        ids.try_collect().await.map_err(StoreError::unavailable)
    }

    fn path(&self, id: BlobId) -> Path {
        self.folder.clone().join(id.to_string())
    }
}
