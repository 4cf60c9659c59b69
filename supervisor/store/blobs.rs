//! Blobs: bytes that are named by the hash of their content, in memory, in a folder or in a bucket.
//!
//! The reference counts in `records` decide when a blob may be deleted; this module only handles bytes.

use std::fs::File;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::TryStreamExt;
use nix::fcntl::Flock;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::error::{DataLoss, StoreError};
use super::ids::{BlobId, BlobKey};

/// Blobs of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BlobStore {
    objects: Arc<dyn ObjectStore>,
    /// Named like the store. All clones share it.
    folder: Arc<RwLock<Path>>,
    /// The lock of the folder, held for as long as the blobs are used.
    _lock: Option<Arc<Flock<File>>>,
}

impl BlobStore {
    /// Creates a store of blobs that keeps the blobs of the store `name` in a folder of that name.
    pub fn new(objects: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self {
            objects,
            folder: Arc::new(RwLock::new(Path::from(name))),
            _lock: None,
        }
    }

    /// Keeps the blobs of the store `name` from now on. Returns false when that was its name before.
    pub(super) fn rename(&self, name: &str) -> bool {
        let mut folder = self.folder.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *folder, Path::from(name));
        before != *folder
    }

    /// Holds a lock until the last clone is dropped.
    pub(super) fn locked(self, lock: Flock<File>) -> Self {
        Self {
            _lock: Some(Arc::new(lock)),
            ..self
        }
    }

    /// Checks that blobs can be put, listed and deleted.
    ///
    /// # Errors
    /// Returns an error when any of that fails.
    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        let folder = self.folder();
        let name = format!("probe-{:032x}", rand::random::<u128>());
        let path = folder.clone().join(name);
        let tried = async {
            self.objects
                .put(&path, Bytes::from_static(b"probe").into())
                .await?;
            self.objects.list(Some(&folder)).try_next().await?;
            self.objects.delete(&path).await
        };
        tried.await.map_err(StoreError::unavailable)
    }

    /// Stores a blob. A blob that is there already is replaced by the same bytes, so putting is idempotent. It is
    /// atomic: either the whole blob is there or nothing.
    ///
    /// # Errors
    /// Returns an error when the backend does not answer or has no room.
    pub async fn put(&self, key: BlobKey, bytes: Bytes) -> Result<(), StoreError> {
        self.objects
            .put(&self.path(key), bytes.into())
            .await
            .map_err(StoreError::unavailable)?;
        Ok(())
    }

    /// Returns a blob's bytes, after comparing their hash with the blob's id.
    ///
    /// # Errors
    /// Returns [`DataLoss::MissingBlob`] when the blob is not there, [`DataLoss::DamagedBlob`] when it has other bytes,
    /// and another error when the backend does not answer.
    pub async fn get(&self, key: BlobKey) -> Result<Bytes, StoreError> {
        let got = match self.objects.get(&self.path(key)).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(DataLoss::MissingBlob(key.id).into());
            }
            Err(error) => return Err(StoreError::unavailable(error)),
        };
        let bytes = got.bytes().await.map_err(StoreError::unavailable)?;
        let hashed = bytes.clone();
        let actual = tokio::task::spawn_blocking(move || BlobId::of(&hashed));
        match actual.await {
            Ok(actual) if actual == key.id => Ok(bytes),
            Ok(_) => Err(DataLoss::DamagedBlob(key).into()),
            Err(error) => Err(StoreError::unavailable(error)),
        }
    }

    /// Deletes a blob, if it is there.
    ///
    /// # Errors
    /// Returns an error when the backend does not answer.
    pub async fn drop(&self, key: BlobKey) -> Result<(), StoreError> {
        match self.objects.delete(&self.path(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::unavailable(error)),
        }
    }

    /// Lists the names of all blobs of the store.
    ///
    /// # Errors
    /// Returns an error when the backend does not answer.
    pub async fn list(&self) -> Result<Vec<BlobKey>, StoreError> {
        let folder = self.folder();
        let objects = self.objects.list(Some(&folder));
        let keys = objects
            .try_filter_map(async |object| Ok(object.location.filename().and_then(BlobKey::parse)));
        keys.try_collect().await.map_err(StoreError::unavailable)
    }

    fn path(&self, key: BlobKey) -> Path {
        self.folder().join(key.to_string())
    }

    fn folder(&self) -> Path {
        let folder = self.folder.read();
        folder.unwrap_or_else(PoisonError::into_inner).clone()
    }
}
