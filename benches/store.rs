//! Stores of a scenario's own: folders that go away with it, and a Redis on a free port.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::client::PATIENCE;
use crate::server::ASK_AGAIN;

/// What the server calls its hash of blobs when the address names neither database nor prefix.
const BLOB_COUNTS: &str = "fastvideo:{0}:counts";

/// Where the servers of a scenario keep sessions and blobs.
#[derive(Debug)]
pub(crate) struct Store {
    args: Vec<String>,
    folder: TempDir,
    redis: Option<Redis>,
}

impl Store {
    /// In the server's memory.
    pub(crate) fn memory() -> anyhow::Result<Self> {
        Ok(Self {
            args: vec!["--store=memory:".to_owned()],
            folder: tempfile::tempdir()?,
            redis: None,
        })
    }

    /// In a folder.
    pub(crate) fn file() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self {
            args: vec![format!("--store=file://{}", folder.path().display())],
            folder,
            redis: None,
        })
    }

    /// Sessions in Redis, blobs in a folder.
    pub(crate) async fn redis() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let redis = Redis::start().await?;
        Ok(Self {
            args: vec![
                format!("--store=redis://127.0.0.1:{}", redis.port),
                format!("--blobs=file://{}", folder.path().display()),
            ],
            folder,
            redis: Some(redis),
        })
    }

    /// These flags, and those of the store.
    pub(crate) fn with<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let own = self.args.iter().map(String::as_str);
        own.chain(args.iter().copied()).collect()
    }

    /// The address of the Redis, if there is one.
    pub(crate) fn redis_url(&self) -> Option<String> {
        let redis = self.redis.as_ref()?;
        Some(format!("redis://127.0.0.1:{}", redis.port))
    }

    /// Blobs that a folder or Redis knows of.
    pub(crate) async fn blobs(&self) -> anyhow::Result<usize> {
        let known = match &self.redis {
            Some(redis) => redis.hash_len(BLOB_COUNTS).await?,
            None => 0,
        };
        Ok(blobs_in(self.folder.path())? + known)
    }
}

/// A blob's file is named by the hash of its content.
fn blobs_in(folder: &Path) -> anyhow::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        count += match entry.file_type()?.is_dir() {
            true => blobs_in(&entry.path())?,
            false => usize::from(entry.file_name().len() >= 64),
        };
    }
    Ok(count)
}

#[derive(Debug)]
struct Redis {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Redis {
    #[expect(
        clippy::disallowed_methods,
        reason = "a benchmark's own server, not a worker"
    )]
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("redis-server is not installed (make bench does that)")?;
        let redis = Self {
            child,
            port,
            _folder: folder,
        };
        let listens = async {
            while redis.connect().await.is_err() {
                sleep(ASK_AGAIN).await;
            }
        };
        timeout(PATIENCE, listens)
            .await
            .context("Redis does not listen")?;
        Ok(redis)
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", self.port)).await
    }

    async fn hash_len(&self, key: &str) -> anyhow::Result<usize> {
        let mut connection = BufReader::new(self.connect().await?);
        let command = format!("HLEN {key}\r\n");
        connection.write_all(command.as_bytes()).await?;
        let mut answer = String::new();
        connection.read_line(&mut answer).await?;
        let number = answer.trim_end().strip_prefix(':');
        ensure!(number.is_some(), "Redis says {answer:?}");
        Ok(number.unwrap_or_default().parse()?)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Err: it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
