//! Blobs: bytes that are named by the hash of their content, in memory, in a folder or in a bucket.
//!
//! The reference counts in `records` decide when a blob may be deleted; this module only handles bytes.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::TryStreamExt;
use nix::fcntl::Flock;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::chunks::Chunks;
use super::error::{DataLoss, StoreError};
use super::ids::{BlobId, BlobKey};
use super::metrics::StoreMetrics;

/// Blobs of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BlobStore {
    backend: Backend,
    metrics: StoreMetrics,
}

#[derive(Clone, Debug)]
enum Backend {
    Memory(Arc<Memory>),
    Objects(Objects),
}

/// Blobs in this process. Each stays in the pieces in which it came: nothing is copied.
#[derive(Debug, Default)]
struct Memory(Mutex<HashMap<BlobKey, Chunks>>);

/// Blobs in a folder or in a bucket.
#[derive(Clone, Debug)]
struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Named like the store. All clones share it.
    folder: Arc<RwLock<Path>>,
    /// The lock of the folder, held for as long as the blobs are used.
    _lock: Option<Arc<Flock<File>>>,
}

impl BlobStore {
    fn of(backend: Backend) -> Self {
        Self {
            backend,
            metrics: StoreMetrics::default(),
        }
    }

    /// Measures the operations for these metrics from now on.
    pub(super) fn measured(self, metrics: StoreMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// Creates a store of blobs in this process's memory.
    pub fn memory() -> Self {
        Self::of(Backend::Memory(Arc::default()))
    }

    /// Creates a store of blobs that keeps the blobs of the store `name` in a folder of that name.
    pub fn new(store: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self::of(Backend::Objects(Objects {
            store,
            folder: Arc::new(RwLock::new(Path::from(name))),
            _lock: None,
        }))
    }

    /// Keeps the blobs of the store `name` from now on. Returns false when that was its name before.
    pub(super) fn rename(&self, name: &str) -> bool {
        match &self.backend {
            Backend::Memory(_) => false,
            Backend::Objects(objects) => objects.rename(name),
        }
    }

    /// Holds a lock until the last clone is dropped.
    pub(super) fn locked(self, lock: Flock<File>) -> Self {
        match self.backend {
            Backend::Memory(_) => self,
            Backend::Objects(objects) => Self {
                backend: Backend::Objects(Objects {
                    _lock: Some(Arc::new(lock)),
                    ..objects
                }),
                ..self
            },
        }
    }

    /// Checks that blobs can be put, listed and deleted.
    ///
    /// # Errors
    /// Returns an error when any of that fails.
    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Objects(objects) => objects.probe().await,
        }
    }

    /// Stores a blob. A blob that is there already is replaced by the same bytes, so putting is idempotent. It is
    /// atomic: either the whole blob is there or nothing.
    ///
    /// # Errors
    /// Returns an error when the backend does not answer or has no room.
    pub async fn put(&self, key: BlobKey, blob: Chunks) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.lock().insert(key, blob);
                Ok(())
            }
            Backend::Objects(objects) => {
                let putting = objects.put(key, blob);
                self.metrics.measure("blobs", "put", putting).await
            }
        }
    }

    /// Returns a blob, after comparing its hash with the blob's id.
    ///
    /// # Errors
    /// Returns [`DataLoss::MissingBlob`] when the blob is not there, [`DataLoss::DamagedBlob`] when it has other bytes,
    /// and another error when the backend does not answer.
    pub async fn get(&self, key: BlobKey) -> Result<Chunks, StoreError> {
        let blob = match &self.backend {
            Backend::Memory(memory) => memory.get(key)?,
            Backend::Objects(objects) => {
                let getting = objects.get(key);
                self.metrics.measure("blobs", "get", getting).await?.into()
            }
        };
        let hashed = blob.clone();
        let actual = tokio::task::spawn_blocking(move || BlobId::of_chunks(&hashed));
        match actual.await {
            Ok(actual) if actual == key.id => Ok(blob),
            Ok(_) => Err(DataLoss::DamagedBlob(key).into()),
            Err(error) => Err(StoreError::unavailable(error)),
        }
    }

    /// Returns a part of a blob, whose hash cannot be compared.
    ///
    /// # Errors
    /// Returns [`DataLoss::MissingBlob`] when the blob is not there or is shorter, and another error when the backend
    /// does not answer.
    pub async fn get_range(&self, key: BlobKey, range: Range<u64>) -> Result<Chunks, StoreError> {
        let part = match &self.backend {
            Backend::Memory(memory) => memory.get(key)?.slice(range.clone()),
            Backend::Objects(objects) => {
                let getting = objects.get_range(key, range.clone());
                self.metrics.measure("blobs", "get", getting).await?.into()
            }
        };
        match part.len() == range.end - range.start {
            true => Ok(part),
            false => Err(DataLoss::MissingBlob(key.id).into()),
        }
    }

    /// Stores the bytes of a blob as another edition of it, too. That one may be there already, and the first one gone.
    ///
    /// # Errors
    /// Returns [`DataLoss::MissingBlob`] when the blob is not there, and another error when the backend does not answer or
    /// has no room.
    pub async fn copy(&self, from: BlobKey, to: BlobKey) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(memory) => {
                let blob = memory.get(from).or_else(|_| memory.get(to))?;
                memory.lock().insert(to, blob);
                Ok(())
            }
            Backend::Objects(objects) => {
                let copying = objects.copy(from, to);
                self.metrics.measure("blobs", "put", copying).await
            }
        }
    }

    /// Deletes a blob, if it is there.
    ///
    /// # Errors
    /// Returns an error when the backend does not answer.
    pub async fn drop(&self, key: BlobKey) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.lock().remove(&key);
                Ok(())
            }
            Backend::Objects(objects) => {
                let deleting = objects.drop(key);
                self.metrics.measure("blobs", "delete", deleting).await
            }
        }
    }

    /// Lists the names of all blobs of the store.
    ///
    /// # Errors
    /// Returns an error when the backend does not answer.
    pub async fn list(&self) -> Result<Vec<BlobKey>, StoreError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.lock().keys().copied().collect()),
            Backend::Objects(objects) => objects.list().await,
        }
    }
}

impl Memory {
    fn get(&self, key: BlobKey) -> Result<Chunks, StoreError> {
        let blob = self.lock().get(&key).cloned();
        blob.ok_or_else(|| DataLoss::MissingBlob(key.id).into())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlobKey, Chunks>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Objects {
    fn rename(&self, name: &str) -> bool {
        let mut folder = self.folder.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *folder, Path::from(name));
        before != *folder
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let folder = self.folder();
        let name = format!("probe-{:032x}", rand::random::<u128>());
        let path = folder.clone().join(name);
        let tried = async {
            self.store
                .put(&path, Bytes::from_static(b"probe").into())
                .await?;
            self.store.list(Some(&folder)).try_next().await?;
            self.store.delete(&path).await
        };
        tried.await.map_err(StoreError::unavailable)
    }

    async fn put(&self, key: BlobKey, blob: Chunks) -> Result<(), StoreError> {
        let (path, bytes) = (self.path(key), blob.into_iter().collect());
        let put = self.store.put(&path, bytes);
        put.await.map_err(StoreError::unavailable)?;
        Ok(())
    }

    async fn get(&self, key: BlobKey) -> Result<Bytes, StoreError> {
        let got = self.store.get(&self.path(key)).await;
        let got = got.map_err(|error| not_got(key, error))?;
        got.bytes().await.map_err(StoreError::unavailable)
    }

    async fn get_range(&self, key: BlobKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let got = self.store.get_range(&self.path(key), range).await;
        got.map_err(|error| not_got(key, error))
    }

    async fn copy(&self, from: BlobKey, to: BlobKey) -> Result<(), StoreError> {
        let to = self.path(to);
        let Err(error) = self.store.copy(&self.path(from), &to).await else {
            return Ok(());
        };
        match not_got(from, error) {
            StoreError::Lost(_) if self.store.head(&to).await.is_ok() => Ok(()),
            error => Err(error),
        }
    }

    async fn drop(&self, key: BlobKey) -> Result<(), StoreError> {
        match self.store.delete(&self.path(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::unavailable(error)),
        }
    }

    async fn list(&self) -> Result<Vec<BlobKey>, StoreError> {
        let folder = self.folder();
        let objects = self.store.list(Some(&folder));
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

fn not_got(key: BlobKey, error: object_store::Error) -> StoreError {
    match error {
        object_store::Error::NotFound { .. } => DataLoss::MissingBlob(key.id).into(),
        error => StoreError::unavailable(error),
    }
}
