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
use super::records::Records;
use super::records::file::{self, FileRecords};
use super::records::memory::{Limits, MemoryRecords};
use super::records::redis::{self, RedisRecords};
use super::sessions;
use super::{SessionStore, StoreError};

/// Of a store of records in a folder, where its blobs are unless they are elsewhere.
const BLOBS_FOLDER: &str = "blobs";
/// In a folder of blobs: locked by those who use it.
const LOCK_FILE: &str = ".lock";
/// A bucket that does not answer within this time at the start is not there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);
/// Of one request to a bucket.
const BUCKET_TIMEOUT: Duration = Duration::from_secs(30);
const BUCKET_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const BUCKET_RETRIES: usize = 3;
/// In a folder that others use too, an unfinished file of this age is one that a crash has left.
const UNFINISHED_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The store and how it behaves.
#[derive(Clone, Debug)]
pub struct Config {
    pub place: Place,
    pub sessions: sessions::Config,
}

/// Where a store is. What outlives this process is not mixed with what does not.
#[derive(Clone, Debug)]
pub struct Place {
    records: RecordsPlace,
    blobs: BlobsPlace,
}

#[derive(Clone, Debug)]
enum RecordsPlace {
    Memory(Limits),
    Folder(PathBuf),
    Redis(Box<redis::Address>),
}

#[derive(Clone, Debug)]
enum BlobsPlace {
    Memory,
    Folder(PathBuf),
    Bucket(Url),
}

/// Why two URLs name no store; the sentences go on after the names of what they are about.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("{0}")]
    Records(String),
    #[error("{0}")]
    Blobs(String),
    /// Each is fine, but not with the other.
    #[error("{0}")]
    Pair(&'static str),
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    File(#[from] file::OpenError),
    #[error("Redis at {address} cannot be used: {source}")]
    Redis { address: String, source: StoreError },
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{} cannot be used: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{place} cannot be used: {source}")]
    Blobs { place: String, source: StoreError },
}

impl Place {
    /// All of it in this process.
    pub fn memory(limits: Limits) -> Self {
        Self {
            records: RecordsPlace::Memory(limits),
            blobs: BlobsPlace::Memory,
        }
    }

    /// Reads the two URLs. `limits` are those of a store in memory.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn parse(records: &str, blobs: Option<&str>, limits: Limits) -> Result<Self, PlaceError> {
        let records = RecordsPlace::parse(records, limits).map_err(PlaceError::Records)?;
        let blobs = match (blobs, &records) {
            (Some(blobs), _) => BlobsPlace::parse(blobs).map_err(PlaceError::Blobs)?,
            (None, RecordsPlace::Memory(_)) => BlobsPlace::Memory,
            (None, RecordsPlace::Folder(folder)) => BlobsPlace::Folder(folder.join(BLOBS_FOLDER)),
            (None, RecordsPlace::Redis(_)) => {
                return Err(PlaceError::Pair(
                    "sessions in Redis need a place for their blobs that all servers share: file:///… or s3://…",
                ));
            }
        };
        match (&records, &blobs) {
            (RecordsPlace::Folder(_) | RecordsPlace::Redis(_), BlobsPlace::Memory) => {
                Err(PlaceError::Pair(
                    "sessions that outlive this process need blobs that do too, and not memory:",
                ))
            }
            (RecordsPlace::Memory(_), BlobsPlace::Bucket(_)) => Err(PlaceError::Pair(
                "with sessions in memory: nobody could ever delete from a bucket what a crash has left there; blobs may be in memory: or file:///…",
            )),
            _ => Ok(Self { records, blobs }),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.records {
            RecordsPlace::Memory(_) => f.write_str("memory")?,
            RecordsPlace::Folder(path) => path.display().fmt(f)?,
            RecordsPlace::Redis(address) => address.fmt(f)?,
        }
        write!(f, " with {}", self.blobs)
    }
}

impl RecordsPlace {
    fn parse(text: &str, limits: Limits) -> Result<Self, String> {
        let form =
            || "memory:, file:///folder, redis://host:port/database or rediss://…".to_owned();
        if is_memory(text) {
            return Ok(Self::Memory(limits));
        }
        let url = Url::parse(text).map_err(|_| form())?;
        match url.scheme() {
            "file" => Ok(Self::Folder(folder(text, &url).ok_or_else(form)?)),
            "redis" | "rediss" | "valkey" | "valkeys" | "redis+unix" | "valkey+unix" => {
                let address = redis::Address::parse(&url);
                let address = address.map_err(|problem| format!("a Redis, but it {problem}"))?;
                Ok(Self::Redis(Box::new(address)))
            }
            _ => Err(form()),
        }
    }
}

impl BlobsPlace {
    fn parse(text: &str) -> Result<Self, String> {
        let form = || "memory:, file:///folder or s3://bucket/prefix".to_owned();
        if is_memory(text) {
            return Ok(Self::Memory);
        }
        let url = Url::parse(text).map_err(|_| form())?;
        match url.scheme() {
            "file" => Ok(Self::Folder(folder(text, &url).ok_or_else(form)?)),
            "s3" if is_bucket(&url) => Ok(Self::Bucket(url)),
            _ => Err(form()),
        }
    }
}

fn is_memory(text: &str) -> bool {
    text == "memory:" || text == "memory"
}

/// Of `file:///…`; a relative one would be taken for absolute.
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
    /// Opens a store and tries whether it can be used.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let Place { records, blobs } = config.place;
        let timeout = config.sessions.timeout;
        let mends = matches!(records, RecordsPlace::Folder(_));
        let shared = matches!(records, RecordsPlace::Redis(_));
        let records: Arc<dyn Records> = match records {
            RecordsPlace::Memory(limits) => Arc::new(MemoryRecords::new(limits)),
            RecordsPlace::Folder(path) => {
                blocking(move || {
                    make_folder(&path)?;
                    Ok::<_, OpenError>(Arc::new(FileRecords::open(&path)?))
                })
                .await?
            }
            RecordsPlace::Redis(address) => match RedisRecords::connect(&address, timeout).await {
                Ok(records) => Arc::new(records),
                Err(source) => {
                    let address = address.to_string();
                    return Err(OpenError::Redis { address, source });
                }
            },
        };
        let place = blobs.to_string();
        let failed = |source| OpenError::Blobs {
            place: place.clone(),
            source,
        };
        let name = records.name().await.map_err(failed)?;
        let blobs = match blobs {
            BlobsPlace::Memory => BlobStore::new(Arc::new(InMemory::new()), &name),
            BlobsPlace::Folder(path) => blocking(move || in_folder(&path, &name, shared)).await?,
            BlobsPlace::Bucket(url) => {
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

impl fmt::Display for BlobsPlace {
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

/// Blobs in a folder, which is locked: shared with other servers that use the same records, else for this process alone,
/// which then deletes what earlier ones have left.
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

/// Blobs in a bucket; the builder brings endpoint, region and credentials.
pub(super) fn in_bucket(
    url: &Url,
    builder: AmazonS3Builder,
    name: &str,
) -> Result<BlobStore, StoreError> {
    let client = ClientOptions::new()
        .with_timeout(BUCKET_TIMEOUT)
        .with_connect_timeout(BUCKET_CONNECT_TIMEOUT)
        // Only an endpoint that was named as `http://…` is spoken to like that.
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

/// Only for this program's user: what clients have seen is nobody else's business.
fn make_folder(path: &Path) -> Result<(), OpenError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| OpenError::Folder {
        path: path.to_path_buf(),
        source,
    })
}

/// Deletes the blobs of stores that were gone with their process.
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

/// Deletes files that were being written when their writer ended.
fn delete_unfinished(path: &Path, min_age: Duration) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        // So object_store names a file that is not whole yet.
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
            let place = Place::parse(records, blobs, LIMITS);
            let actual = place.map(|place| place.blobs.to_string());
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
        let place = Place::parse("redis://u:hunter2@host/1", Some("file:///a"), LIMITS).unwrap();
        assert!(!format!("{place:?}").contains("hunter2"));
        let bad = Place::parse("redis://u:hunter2@host/x", Some("file:///a"), LIMITS);
        assert!(!format!("{:?}", bad.unwrap_err()).contains("hunter2"));
    }
}
