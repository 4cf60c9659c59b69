//! The files of the session log: their names and modes, their rotation and retention.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::tenant::Tenant;

/// Where the log is, and how much of it is kept (rotation and retention).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The folder. When it is missing, it is created with access for its owner only.
    pub dir: PathBuf,
    /// The size at which a session's file is rotated. One rotated file is kept, so a session takes at most twice as
    /// much.
    pub max_file_bytes: u64,
    /// The total size of all files above which the oldest are removed. Files of open sessions stay.
    pub max_total_bytes: u64,
    /// The time without a write after which a file is removed.
    pub max_age: Duration,
}

const PREFIX: &str = "session-";
const SUFFIX: &str = ".jsonl";
/// The suffix of a rotated file: `session-<id>.1.jsonl`. Names contain ids without dots, so no other file ends like
/// this.
const SET_ASIDE: &str = ".1.jsonl";
/// The most characters of an id in a file's name: file systems allow names of 255 bytes.
const MAX_ID_CHARS: usize = 200;

/// Returns the name of a session's file. Every character of the id but letters, digits, `-` and `_` is replaced.
fn file_name(session: &str, suffix: &str) -> String {
    let safe = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => c,
        _ => '_',
    };
    let id: String = session.chars().take(MAX_ID_CHARS).map(safe).collect();
    format!("{PREFIX}{id}{suffix}")
}

impl Config {
    pub(super) fn make_folder(&self) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
    }

    /// Returns where the sessions of a tenant are: in a folder of its name, or in the log's own where nobody was asked for a
    /// key.
    pub(super) fn of_tenant(&self, tenant: &Tenant) -> Self {
        let dir = match *tenant == Tenant::default() {
            true => self.dir.clone(),
            false => self.dir.join(tenant.as_str()),
        };
        Self {
            dir,
            ..self.clone()
        }
    }

    /// Returns the path of a session's file.
    pub fn file(&self, session: &str) -> PathBuf {
        self.dir.join(file_name(session, SUFFIX))
    }
}

/// A session's open file. Every write appends whole lines.
pub(super) struct LogFile {
    session: String,
    path: PathBuf,
    file: File,
    len: u64,
}

/// A write that failed.
#[derive(Debug)]
pub(super) struct Unwritten {
    /// Number of bytes that were written, all of them whole lines.
    pub(super) kept: usize,
    pub(super) error: io::Error,
}

impl Unwritten {
    pub(super) fn nothing_kept(error: io::Error) -> Self {
        Self { kept: 0, error }
    }
}

impl LogFile {
    /// Opens or creates the file.
    pub(super) fn open(session: &str, config: &Config) -> io::Result<Self> {
        let path = config.file(session);
        let file = match open(&path) {
            // The folder was removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                config.make_folder()?;
                open(&path)?
            }
            opened => opened?,
        };
        let mut log = Self {
            session: session.to_owned(),
            path,
            len: file.metadata()?.len(),
            file,
        };
        log.cut_torn_line()?;
        Ok(log)
    }

    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.path == path
    }

    /// Rotates the file when `more` bytes would make it too large.
    pub(super) fn turned(self, more: usize, config: &Config) -> io::Result<Self> {
        if self.len == 0 || self.len + more as u64 <= config.max_file_bytes {
            return Ok(self);
        }
        let aside = config.dir.join(file_name(&self.session, SET_ASIDE));
        fs::rename(&self.path, aside)?;
        Self::open(&self.session, config)
    }

    /// Appends whole lines.
    ///
    /// # Errors
    /// Returns an error when not all lines could be written; a line that was written in part is cut off again.
    pub(super) fn append(&mut self, lines: &[u8]) -> Result<(), Unwritten> {
        let mut written = 0;
        while written < lines.len() {
            match self.file.write(&lines[written..]) {
                Ok(0) => return Err(self.give_up(&lines[..written], io::ErrorKind::WriteZero)),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.give_up(&lines[..written], error)),
            }
        }
        self.len += lines.len() as u64;
        Ok(())
    }

    fn give_up(&mut self, written: &[u8], error: impl Into<io::Error>) -> Unwritten {
        let kept = whole_lines(written);
        self.len += kept as u64;
        if kept < written.len() {
            // Err: the line is cut off when the file is opened again.
            let _ = self.file.set_len(self.len);
        }
        Unwritten {
            kept,
            error: error.into(),
        }
    }

    /// Cuts off the partial last line that a killed server or a power loss may have left.
    fn cut_torn_line(&mut self) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let mut last = [0];
        self.file.seek(SeekFrom::End(-1))?;
        self.file.read_exact(&mut last)?;
        if last == *b"\n" {
            return Ok(());
        }
        self.len = whole_lines(&fs::read(&self.path)?) as u64;
        self.file.set_len(self.len)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).read(true).mode(0o600);
    options.open(path)
}

/// Returns the length of the whole lines in `bytes`.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |end| end + 1)
}

/// Returns the files of a log: those in its folder, and those in the folders of tenants. None are in a folder that is
/// missing, which the writer reports.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let is_log = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
    };
    let folders = entries(folder).filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
    let of_tenants = folders.flat_map(|folder| entries(&folder.path()));
    let paths = entries(folder).chain(of_tenants).map(|entry| entry.path());
    paths.filter(is_log).collect()
}

/// Removes files that are too old, then the oldest while all together are too large. Files in use stay, and so does
/// every file that is not the log's.
pub(super) fn tidy_up(config: &Config, in_use: impl Fn(&Path) -> bool) {
    let mut files: Vec<(SystemTime, u64, PathBuf)> = files(&config.dir)
        .into_iter()
        .filter_map(|path| {
            let data = fs::symlink_metadata(&path).ok()?;
            let modified = data.modified().ok()?;
            data.is_file().then_some((modified, data.len(), path))
        })
        .collect();
    files.sort();
    let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
    let now = SystemTime::now();
    for (modified, len, path) in files {
        let age = now.duration_since(modified).unwrap_or_default();
        if (age < config.max_age && total <= config.max_total_bytes) || in_use(&path) {
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => {
                total -= len;
                tracing::debug!(path = %path.display(), "old session log removed");
            }
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "old session log not removed");
            }
        }
    }
}
