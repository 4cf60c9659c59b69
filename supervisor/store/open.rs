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
use tokio::time::{Instant, sleep};
use url::Url;

use super::blobs::BlobStore;
use super::error::StoreError;
use super::handle::{self, SessionStore};
use super::records::Records;
use super::records::file::{FileOpenError, FileRecords};
use super::records::ledger::Limits;
use super::records::memory::MemoryRecords;
use super::records::redis::{self, RedisAddress, RedisAddressError, RedisRecords};
use crate::causes::with_causes;

pub(super) mod bucket;

use bucket::in_bucket;

/// The folder of the blobs in the folder of the records, unless the operator names another one.
const BLOBS_FOLDER: &str = "blobs";
/// A file in the folder of the blobs, which is locked by the servers that use the folder.
const LOCK_FILE: &str = ".lock";
/// Pause between two attempts to reach a store that is not there yet.
const WAIT_PAUSE: Duration = Duration::from_millis(500);
/// The age from which an unfinished file in a shared folder counts as left by a crash.
const UNFINISHED_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the store is, and how it behaves.
#[derive(Clone, Debug)]
pub struct Config {
    pub location: StoreLocation,
    /// How long a store that cannot be reached at the start is waited for.
    pub wait: Duration,
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
    #[error("Redis at {address} cannot be used: {problem}")]
    Redis { address: String, problem: String },
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{} cannot be used: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{location} cannot be used: {problem}")]
    Blobs { location: String, problem: String },
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

    /// Returns the Redis of the records; `None` where they are in none.
    pub fn redis(&self) -> Option<&RedisAddress> {
        match &self.records {
            RecordsLocation::Redis(address) => Some(address),
            RecordsLocation::Memory(_) | RecordsLocation::Folder(_) => None,
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
    /// Opens a store and checks that it can be used. A Redis or a bucket that cannot be reached is waited for.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let StoreLocation { records, blobs } = config.location;
        let timeout = config.sessions.timeout;
        let until = Instant::now() + config.wait;
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
            RecordsLocation::Redis(address) => {
                let place = format!("Redis at {address}");
                let connect = async || RedisRecords::connect(&address, timeout).await;
                let connected = wait_for(&place, until, connect, redis::may_come).await;
                Arc::new(connected.map_err(|error| OpenError::Redis {
                    address: address.to_string(),
                    problem: problem(&error),
                })?)
            }
        };
        let location = blobs.to_string();
        let failed = |error: StoreError| OpenError::Blobs {
            location: location.clone(),
            problem: problem(&error),
        };
        let name = records.name().await.map_err(failed)?;
        let blobs = match blobs {
            BlobsLocation::Memory => BlobStore::memory(),
            BlobsLocation::Folder(path) => {
                let folder = name.clone();
                let blobs = blocking(move || in_folder(&path, &folder, shared)).await?;
                blobs.probe().await.map_err(failed)?;
                blobs
            }
            BlobsLocation::Bucket(url) => {
                let builder = AmazonS3Builder::from_env();
                let blobs = in_bucket(&url, builder.clone(), &name).map_err(failed)?;
                let probe = async || bucket::probe(&blobs, &builder).await;
                let probed = wait_for(&location, until, probe, bucket::may_come).await;
                probed.map_err(failed)?;
                blobs
            }
        };
        let store = Self::new(config.sessions, name, records, blobs);
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

/// Repeats an attempt to reach a store until it succeeds, fails in another way than a store that is still to come, or
/// the wait is over.
async fn wait_for<T>(
    place: &str,
    until: Instant,
    attempt: impl AsyncFn() -> Result<T, StoreError>,
    may_come: impl Fn(&StoreError) -> bool,
) -> Result<T, StoreError> {
    let mut is_waiting = false;
    loop {
        let reached = attempt().await;
        match &reached {
            Err(error) if may_come(error) && Instant::now() + WAIT_PAUSE < until => {
                if !is_waiting {
                    let seconds = (until - Instant::now()).as_secs();
                    tracing::warn!(error = problem(error), seconds, "waiting for {place}");
                }
                is_waiting = true;
                sleep(WAIT_PAUSE).await;
            }
            _ => {
                if is_waiting && reached.is_ok() {
                    tracing::info!("{place} is there");
                }
                return reached;
            }
        }
    }
}

/// Describes why a store cannot be used, for a message that says so already.
fn problem(error: &StoreError) -> String {
    match error {
        StoreError::Unavailable(source) => with_causes(&**source),
        error => with_causes(error),
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
        max_media_bytes: 1 << 40,
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
