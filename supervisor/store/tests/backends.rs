//! What the tests run on: folders, a Redis and an S3 of their own, all gone when they are dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use object_store::aws::AmazonS3Builder;
use object_store::memory::InMemory;
use tempfile::TempDir;
use url::Url;

use crate::store::blobs::BlobStore;
use crate::store::open::bucket::in_bucket;
use crate::store::open::in_folder;
use crate::store::records::Records;
use crate::store::records::file::FileRecords;
use crate::store::records::ledger::Limits;
use crate::store::records::memory::MemoryRecords;
use crate::store::records::redis::{RedisAddress, RedisRecords};

pub(super) const LIMITS: Limits = Limits {
    max_sessions: 10_000,
    max_bytes: 1 << 40,
    max_media_bytes: 1 << 40,
};
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordsKind {
    Memory,
    File,
    Redis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlobsKind {
    Memory,
    Folder,
    S3,
}

pub(super) const RECORDS: [RecordsKind; 3] =
    [RecordsKind::Memory, RecordsKind::File, RecordsKind::Redis];
pub(super) const BLOBS: [BlobsKind; 3] = [BlobsKind::Memory, BlobsKind::Folder, BlobsKind::S3];

/// Records with what they live in.
pub(super) struct RecordsHome {
    pub(super) records: Arc<dyn Records>,
    pub(super) folder: TempDir,
    _redis: Option<Redis>,
}

impl RecordsHome {
    pub(super) async fn new(kind: RecordsKind) -> Self {
        Self::limited(kind, LIMITS).await
    }

    pub(super) async fn limited(kind: RecordsKind, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut redis = None;
        let records: Arc<dyn Records> = match kind {
            RecordsKind::Memory => Arc::new(MemoryRecords::new(limits)),
            RecordsKind::File => Arc::new(FileRecords::open(folder.path()).unwrap()),
            RecordsKind::Redis => {
                let server = redis.insert(Redis::start());
                Arc::new(server.records().await)
            }
        };
        Self {
            records,
            folder,
            _redis: redis,
        }
    }
}

/// Blobs of that kind for a store of that name. None, with the reason on stderr, where S3 cannot be had.
pub(super) fn blobs(kind: BlobsKind, folder: &Path, name: &str) -> Option<BlobStore> {
    Some(match kind {
        BlobsKind::Memory => BlobStore::new(Arc::new(InMemory::new()), name),
        BlobsKind::Folder => in_folder(&folder.join("blobs"), name, true).unwrap(),
        BlobsKind::S3 => {
            let bucket = S3::shared()?;
            let url = Url::parse("s3://bucket/some/prefix").unwrap();
            in_bucket(&url, bucket.builder(), name).unwrap()
        }
    })
}

/// A Redis on a socket in a folder of its own.
pub(super) struct Redis {
    child: Child,
    folder: TempDir,
}

impl Redis {
    pub(super) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Self::spawn(folder.path());
        Self { child, folder }
    }

    #[expect(clippy::disallowed_methods, reason = "a server for tests, no worker")]
    fn spawn(folder: &Path) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--unixsocket", "redis.sock"]);
        command.args(["--save", "", "--appendonly", "yes"]);
        let spawned = command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = spawned.expect("redis-server is installed; `make test` installs it");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut stdout = BufReader::new(stdout);
        wait_for_line(&mut stdout, |line| line.contains("eady to accept"));
        std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
        child
    }

    pub(super) fn url(&self) -> Url {
        let socket = self.folder.path().join("redis.sock");
        Url::parse(&format!("redis+unix://{}", socket.display())).unwrap()
    }

    pub(super) async fn records(&self) -> RedisRecords {
        let address = RedisAddress::parse(&self.url()).unwrap();
        RedisRecords::connect(&address, TIMEOUT).await.unwrap()
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    pub(super) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a command of plain words.
    pub(super) fn order(&self, command: &str) {
        self.send(&[command]);
    }

    /// Sends a command after the password.
    pub(super) fn order_as(&self, password: &str, command: &str) {
        self.send(&[&format!("AUTH {password}"), command]);
    }

    fn send(&self, commands: &[&str]) {
        let mut socket = BufReader::new(UnixStream::connect(self.socket()).unwrap());
        for command in commands {
            writeln!(socket.get_mut(), "{command}\r").unwrap();
            let mut answer = String::new();
            socket.read_line(&mut answer).unwrap();
            assert!(answer.starts_with('+'), "{command}: {answer}");
        }
    }

    /// Stops, and begins again with what it had on the disk at the moment of `kept`.
    pub(super) fn set_back(&mut self, kept: &TempDir) {
        self.stop();
        let data = self.folder.path().join(DATA);
        std::fs::remove_dir_all(&data).unwrap();
        copy_files(kept.path(), &data);
        self.child = Self::spawn(self.folder.path());
    }

    /// Copies what is on the disk.
    pub(super) fn keep(&mut self) -> TempDir {
        self.stop();
        let kept = tempfile::tempdir().unwrap();
        copy_files(&self.folder.path().join(DATA), kept.path());
        self.child = Self::spawn(self.folder.path());
        kept
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// Begins with what is on the disk.
    pub(super) fn start_again(&mut self) {
        self.stop();
        self.child = Self::spawn(self.folder.path());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where Redis keeps its log of changes.
const DATA: &str = "appendonlydir";

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// moto's S3, one for all tests of this process: it starts slowly.
pub(super) struct S3 {
    endpoint: String,
}

impl S3 {
    fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<S3>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    #[expect(clippy::disallowed_methods, reason = "a server for tests, no worker")]
    fn start() -> Option<Self> {
        let venv = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python");
        if !venv.exists() {
            eprintln!("skipped: no S3 to test with; `make python` installs moto");
            return None;
        }
        let mut command = Command::new(venv);
        // Ends with this process, however it ends: its stdin is closed then.
        let program = r#"
import os, sys, threading
from moto.server import ThreadedMotoServer
import boto3
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
endpoint = f"http://127.0.0.1:{port}"
boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="id",
             aws_secret_access_key="secret").create_bucket(Bucket="bucket")
print("endpoint", endpoint, flush=True)
sys.stdin.read()
os._exit(0)
"#;
        let mut child = command
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let line = wait_for_line(&mut stdout, |line| line.starts_with("endpoint "));
        let endpoint = line["endpoint ".len()..].trim().to_owned();
        // Its stdin is open until this process ends.
        std::mem::forget(child);
        Some(Self { endpoint })
    }

    fn builder(&self) -> AmazonS3Builder {
        AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_region("us-east-1")
            .with_access_key_id("id")
            .with_secret_access_key("secret")
    }
}

fn wait_for_line(lines: &mut impl BufRead, fits: impl Fn(&str) -> bool) -> String {
    let mut said = String::new();
    loop {
        let mut line = String::new();
        let read = lines.read_line(&mut line).unwrap();
        assert!(read > 0, "a server for tests did not start: {said}");
        if fits(&line) {
            return line;
        }
        said.push_str(&line);
    }
}
