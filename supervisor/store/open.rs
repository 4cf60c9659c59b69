//! Opens the store that an operator names by two URLs: one for the sessions' records, one for their blobs.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::blobs::BlobStore;
use super::error::StoreError;
use super::handle::{self, SessionStore};
use super::records::Records;
use super::records::file::{FileOpenError, FileRecords};
use super::records::ledger::Limits;
use super::records::memory::MemoryRecords;
use super::records::redis::{RedisAddress, RedisAddressError, RedisRecords};

/// The folder of the blobs in the folder of the records, unless the operator names another one.
const BLOBS_FOLDER: &str = "blobs";
/// A file in the folder of the blobs, which is locked by the servers that use the folder.
const LOCK_FILE: &str = ".lock";
/// Time limit on a bucket's answer at the start; without an answer the bucket counts as missing.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);
/// Limit on one request to a bucket.
const BUCKET_TIMEOUT: Duration = Duration::from_secs(30);
const BUCKET_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const BUCKET_RETRIES: usize = 3;
/// The age from which an unfinished file in a shared folder counts as left by a crash.
const UNFINISHED_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the store is, and how it behaves.
#[derive(Clone, Debug)]
pub struct Config {
    pub location: StoreLocation,
    pub sessions: handle::Config,
}

/// Where a store keeps its records and its blobs. Both outlive this process, or neither does.
#[derive(Clone, Debug)]
pub struct StoreLocation {
    records: RecordsLocation,
    blobs: BlobsLocation,
}

#[derive(Clone, Debug)]
enum RecordsLocation {
    Memory(Limits),
    Folder(PathBuf),
    Redis(Box<RedisAddress>),
}

#[derive(Clone, Debug)]
enum BlobsLocation {
    Memory,
    Folder(PathBuf),
    Bucket(Url),
}

/// Why two URLs name no store. Each text continues a sentence that begins with what it is about.
#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    #[error(transparent)]
    Records(RecordsUrlError),
    #[error(transparent)]
    Blobs(BlobsUrlError),
    /// Each URL is valid, but not in combination with the other.
    #[error("{0}")]
    Pair(&'static str),
}

/// Why a URL does not name a place for records: what it should be.
#[derive(Debug, thiserror::Error)]
pub enum RecordsUrlError {
    #[error("memory:, file:///folder, redis://host:port/database or rediss://…")]
    Form,
    #[error("a Redis, but it {0}")]
    Redis(#[from] RedisAddressError),
}

/// Why a URL does not name a place for blobs: what it should be.
#[derive(Debug, thiserror::Error)]
#[error("memory:, file:///folder or s3://bucket/prefix")]
pub struct BlobsUrlError;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    File(#[from] FileOpenError),
    #[error("Redis at {address} cannot be used: {source}")]
    Redis { address: String, source: StoreError },
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{} cannot be used: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{location} cannot be used: {source}")]
    Blobs {
        location: String,
        source: StoreError,
    },
}

impl StoreLocation {
    /// Returns the location of a store that is in this process's memory as a whole.
    pub fn memory(limits: Limits) -> Self {
        Self {
            records: RecordsLocation::Memory(limits),
            blobs: BlobsLocation::Memory,
        }
    }

    /// Parses the URL of the records and that of the blobs. `limits` are those of records in memory.
    ///
    /// # Errors
    /// See [`LocationError`].
    pub fn parse(
        records: &str,
        blobs: Option<&str>,
        limits: Limits,
    ) -> Result<Self, LocationError> {
        let records = RecordsLocation::parse(records, limits).map_err(LocationError::Records)?;
        let blobs = match (blobs, &records) {
            (Some(blobs), _) => BlobsLocation::parse(blobs).map_err(LocationError::Blobs)?,
            (None, RecordsLocation::Memory(_)) => BlobsLocation::Memory,
            (None, RecordsLocation::Folder(folder)) => {
                BlobsLocation::Folder(folder.join(BLOBS_FOLDER))
            }
            (None, RecordsLocation::Redis(_)) => {
                return Err(LocationError::Pair(
                    "sessions in Redis need a place for their blobs that all servers share: file:///… or s3://…",
                ));
            }
        };
        match (&records, &blobs) {
            (RecordsLocation::Folder(_) | RecordsLocation::Redis(_), BlobsLocation::Memory) => {
                Err(LocationError::Pair(
                    "sessions that outlive this process need blobs that do too, and not memory:",
                ))
            }
            (RecordsLocation::Memory(_), BlobsLocation::Bucket(_)) => Err(LocationError::Pair(
                "with sessions in memory: nobody could ever delete from a bucket what a crash has left there; blobs may be in memory: or file:///…",
            )),
            _ => Ok(Self { records, blobs }),
        }
    }

    /// Returns the folder of the records, which the store creates when it is missing; `None` where they are in none.
    pub fn records_folder(&self) -> Option<&Path> {
        match &self.records {
            RecordsLocation::Folder(path) => Some(path),
            RecordsLocation::Memory(_) | RecordsLocation::Redis(_) => None,
        }
    }

    /// Returns the folder of the blobs, which the store creates when it is missing; `None` where they are in none.
    pub fn blobs_folder(&self) -> Option<&Path> {
        match &self.blobs {
            BlobsLocation::Folder(path) => Some(path),
            BlobsLocation::Memory | BlobsLocation::Bucket(_) => None,
        }
    }

    /// Returns the same place for records with another folder for the blobs, so that the records can be tried alone.
    pub fn with_blobs_in(self, folder: PathBuf) -> Self {
        Self {
            blobs: BlobsLocation::Folder(folder),
            ..self
        }
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.records {
            RecordsLocation::Memory(_) => f.write_str("memory")?,
            RecordsLocation::Folder(path) => path.display().fmt(f)?,
            RecordsLocation::Redis(address) => address.fmt(f)?,
        }
        write!(f, " with {}", self.blobs)
    }
}

impl RecordsLocation {
    fn parse(text: &str, limits: Limits) -> Result<Self, RecordsUrlError> {
        if is_memory(text) {
            return Ok(Self::Memory(limits));
        }
        let url = Url::parse(text).map_err(|_| RecordsUrlError::Form)?;
        match url.scheme() {
            "file" => {
                let folder = folder(text, &url).ok_or(RecordsUrlError::Form)?;
                Ok(Self::Folder(folder))
            }
            "redis" | "rediss" | "valkey" | "valkeys" | "redis+unix" | "valkey+unix" => {
                Ok(Self::Redis(Box::new(RedisAddress::parse(&url)?)))
            }
            _ => Err(RecordsUrlError::Form),
        }
    }
}

impl BlobsLocation {
    fn parse(text: &str) -> Result<Self, BlobsUrlError> {
        if is_memory(text) {
            return Ok(Self::Memory);
        }
        let url = Url::parse(text).map_err(|_| BlobsUrlError)?;
        match url.scheme() {
            "file" => Ok(Self::Folder(folder(text, &url).ok_or(BlobsUrlError)?)),
            "s3" if is_bucket(&url) => Ok(Self::Bucket(url)),
            _ => Err(BlobsUrlError),
        }
    }
}

fn is_memory(text: &str) -> bool {
    text == "memory:" || text == "memory"
}

/// Returns the folder that `file:///…` names. A relative path would be taken for an absolute one, so it is refused.
fn folder(text: &str, url: &Url) -> Option<PathBuf> {
    let plain = url.query().is_none() && url.fragment().is_none();
    url.to_file_path()
        .ok()
        .filter(|_| plain && text.starts_with("file:///"))
}

fn is_bucket(url: &Url) -> bool {
    url.host_str().is_some_and(|bucket| !bucket.is_empty())
        && url.username().is_empty()
        && url.port().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
}

impl SessionStore {
    /// Opens a store and checks that it can be used.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let StoreLocation { records, blobs } = config.location;
        let timeout = config.sessions.timeout;
        let mends = matches!(records, RecordsLocation::Folder(_));
        let shared = matches!(records, RecordsLocation::Redis(_));
        let records: Arc<dyn Records> = match records {
            RecordsLocation::Memory(limits) => Arc::new(MemoryRecords::new(limits)),
            RecordsLocation::Folder(path) => {
                blocking(move || {
                    make_folder(&path)?;
                    Ok::<_, OpenError>(Arc::new(FileRecords::open(&path)?))
                })
                .await?
            }
            RecordsLocation::Redis(address) => match RedisRecords::connect(&address, timeout).await
            {
                Ok(records) => Arc::new(records),
                Err(source) => {
                    let address = address.to_string();
                    return Err(OpenError::Redis { address, source });
                }
            },
        };
        let location = blobs.to_string();
        let failed = |source| OpenError::Blobs {
            location: location.clone(),
            source,
        };
        let name = records.name().await.map_err(failed)?;
        let blobs = match blobs {
            BlobsLocation::Memory => BlobStore::new(Arc::new(InMemory::new()), &name),
            BlobsLocation::Folder(path) => {
                blocking(move || in_folder(&path, &name, shared)).await?
            }
            BlobsLocation::Bucket(url) => {
                in_bucket(&url, AmazonS3Builder::from_env(), &name).map_err(failed)?
            }
        };
        let probe = tokio::time::timeout(PROBE_TIMEOUT, blobs.probe());
        let probed = probe.await.map_err(StoreError::unavailable);
        probed.and_then(|done| done).map_err(failed)?;
        let store = Self::new(config.sessions, records, blobs);
        if mends {
            store.mend().await.map_err(failed)?;
        }
        Ok(store)
    }
}

impl fmt::Display for BlobsLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Folder(path) => path.display().fmt(f),
            Self::Bucket(url) => url.fmt(f),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// Opens a folder of blobs and locks it: shared with other servers that use the same records, or else for this process
/// alone, which then deletes what earlier processes have left.
pub(super) fn in_folder(path: &Path, name: &str, shared: bool) -> Result<BlobStore, OpenError> {
    make_folder(path)?;
    let failed = |source| OpenError::Folder {
        path: path.to_path_buf(),
        source,
    };
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(LOCK_FILE))
        .map_err(failed)?;
    let how = match shared {
        true => FlockArg::LockSharedNonblock,
        false => FlockArg::LockExclusiveNonblock,
    };
    let lock = Flock::lock(lock, how).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => OpenError::InUse(path.to_path_buf()),
        errno => failed(errno.into()),
    })?;
    if !shared {
        delete_forgotten_stores(path, name).map_err(failed)?;
    }
    let oldest = if shared {
        UNFINISHED_AGE
    } else {
        Duration::ZERO
    };
    delete_unfinished(&path.join(name), oldest).map_err(failed)?;
    let objects = LocalFileSystem::new_with_prefix(path);
    let objects = objects.map_err(|error| failed(io::Error::other(error)))?;
    Ok(BlobStore::new(Arc::new(objects), name).locked(lock))
}

/// Opens a bucket of blobs. The builder provides endpoint, region and credentials.
pub(super) fn in_bucket(
    url: &Url,
    builder: AmazonS3Builder,
    name: &str,
) -> Result<BlobStore, StoreError> {
    let client = ClientOptions::new()
        .with_timeout(BUCKET_TIMEOUT)
        .with_connect_timeout(BUCKET_CONNECT_TIMEOUT)
        // This concerns only an endpoint that was named as `http://…`.
        .with_allow_http(true);
    let retry = RetryConfig {
        max_retries: BUCKET_RETRIES,
        retry_timeout: BUCKET_TIMEOUT,
        ..RetryConfig::default()
    };
    let bucket = builder
        .with_bucket_name(url.host_str().unwrap_or_default())
        .with_client_options(client)
        .with_retry(retry)
        .build()
        .map_err(StoreError::unavailable)?;
    let objects: Arc<dyn ObjectStore> = match url.path().trim_matches('/') {
        "" => Arc::new(bucket),
        prefix => Arc::new(PrefixStore::new(bucket, prefix)),
    };
    Ok(BlobStore::new(objects, name))
}

/// Creates a folder that only this program's user can read, since it holds clients' content.
fn make_folder(path: &Path) -> Result<(), OpenError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| OpenError::Folder {
        path: path.to_path_buf(),
        source,
    })
}

/// Deletes the blobs of stores whose records were in the memory of a process that has ended.
fn delete_forgotten_stores(path: &Path, name: &str) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let found = entry.file_name();
        let found = found.to_string_lossy();
        if found != name && MemoryRecords::is_name(&found) && entry.file_type()?.is_dir() {
            tracing::info!(folder = %entry.path().display(), "blobs deleted of a server that is gone");
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Deletes files of at least `min_age` that were being written when their writer ended.
fn delete_unfinished(path: &Path, min_age: Duration) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        // object_store gives a file such a name until it is complete.
        if !entry.file_name().to_string_lossy().contains('#') {
            continue;
        }
        let removed = entry.metadata().and_then(|file| {
            let age = file.modified()?.elapsed().unwrap_or_default();
            match age >= min_age {
                true => fs::remove_file(entry.path()),
                false => Ok(()),
            }
        });
        match removed {
            // Another server has just finished it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_sessions: 1,
        max_bytes: 1,
    };

    #[test]
    fn urls_name_stores_that_fit_together() {
        let check = |records: &str, blobs: Option<&str>, expected: Result<&str, &str>| {
            let location = StoreLocation::parse(records, blobs, LIMITS);
            let actual = location.map(|location| location.blobs.to_string());
            match (actual, expected) {
                (Ok(blobs), Ok(expected)) => assert_eq!(blobs, expected, "{records} {blobs:?}"),
                (Err(error), Err(part)) => {
                    let error = format!("{error:?}");
                    assert!(error.contains(part), "{records} {blobs:?}: {error}");
                }
                (actual, _) => panic!("{records} {blobs:?} is {actual:?}"),
            }
        };
        check("memory:", None, Ok("memory"));
        check("memory", Some("memory:"), Ok("memory"));
        check("memory:", Some("file:///var/blobs"), Ok("/var/blobs"));
        check("memory:", Some("s3://bucket"), Err("Pair"));
        check("file:///var/lib/fv", None, Ok("/var/lib/fv/blobs"));
        check("file:///a%20b", Some("file:///c"), Ok("/c"));
        check("file:///a", Some("s3://bucket/p"), Ok("s3://bucket/p"));
        check("file:///a", Some("memory:"), Err("Pair"));
        check("redis://host", None, Err("Pair"));
        check("redis://host", Some("memory:"), Err("Pair"));
        check("redis://host/3", Some("file:///a"), Ok("/a"));
        check("rediss://u:p@host:1/3", Some("s3://b/p"), Ok("s3://b/p"));
        check("redis+unix:///s?db=1&prefix=x", Some("file:///a"), Ok("/a"));
        for bad in [
            "",
            "disk",
            "file:data",
            "file://host/a",
            "file:///a?b",
            "http://h",
            "s3://b",
        ] {
            check(bad, None, Err("Records"));
        }
        for bad in [
            "redis://host/x",
            "redis://host?prefix=%7B",
            "redis://host?prefix=",
            "redis://h?x=1",
        ] {
            check(bad, Some("file:///a"), Err("Records"));
        }
        for bad in [
            "",
            "disk",
            "redis://host",
            "s3://",
            "s3:bucket",
            "s3://b?x",
            "s3://u@b",
        ] {
            check("file:///a", Some(bad), Err("Blobs"));
        }
    }

    #[test]
    fn no_message_tells_a_password() {
        let location =
            StoreLocation::parse("redis://u:hunter2@host/1", Some("file:///a"), LIMITS).unwrap();
        assert!(!format!("{location:?}").contains("hunter2"));
        let bad = StoreLocation::parse("redis://u:hunter2@host/x", Some("file:///a"), LIMITS);
        assert!(!format!("{:?}", bad.unwrap_err()).contains("hunter2"));
    }
}
