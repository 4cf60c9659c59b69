//! The files of the session log: their names and modes, their rotation and retention.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::event::Setup;
use super::signature::{PublicKey, Signature, Signer, signed_from};
use crate::tenant::Tenant;

/// Where the log is, and how much of it is kept (rotation and retention).
#[derive(Clone, Debug, PartialEq)]
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
    /// The key that signs the files; without it the server makes one in the folder.
    pub signing_key: Option<PathBuf>,
    /// What is the same for all sessions, and logged with each.
    pub setup: Setup,
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
    /// The hash of what is to be signed; present where the server has a key.
    unsigned: Option<Unsigned>,
}

/// The bytes of a file that the next signature covers.
struct Unsigned {
    from: u64,
    sha256: Sha256,
    /// Whether anything follows the last signature.
    is_new: bool,
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

    /// Reports the error for other bytes, of which none were written.
    pub(super) fn of_nothing(self) -> Self {
        Self::nothing_kept(self.error)
    }
}

impl LogFile {
    /// Opens or creates the file. The server whose key this is will sign it.
    pub(super) fn open(session: &str, config: &Config, key: Option<PublicKey>) -> io::Result<Self> {
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
            unsigned: None,
        };
        log.cut_torn_line()?;
        if let Some(key) = key {
            log.unsigned = Some(log.unsigned(key)?);
        }
        Ok(log)
    }

    pub(super) fn session(&self) -> &str {
        &self.session
    }

    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.path == path
    }

    /// Returns what the next signature has to cover. What is there already is covered if its last line shows that this
    /// server, or one with the same key, has signed it.
    fn unsigned(&self, key: PublicKey) -> io::Result<Unsigned> {
        let there = match self.len {
            0 => Vec::new(),
            _ => fs::read(&self.path)?,
        };
        let from = match there.is_empty() {
            true => 0,
            false => signed_from(&there, key).unwrap_or(self.len),
        };
        let covered = usize::try_from(from)
            .ok()
            .and_then(|from| there.get(from..));
        Ok(Unsigned {
            from,
            sha256: Sha256::new_with_prefix(covered.unwrap_or_default()),
            is_new: false,
        })
    }

    /// Returns the signature over what is not signed yet; `None` when all is signed, or the server has no key.
    pub(super) fn signature(&self, signer: &Signer) -> Option<Signature> {
        let unsigned = self.unsigned.as_ref().filter(|unsigned| unsigned.is_new)?;
        let sha256 = unsigned.sha256.clone().finalize();
        Some(signer.sign(unsigned.from, sha256.into()))
    }

    /// Appends the line with the signature.
    ///
    /// # Errors
    /// Returns an error when it could not be written.
    pub(super) fn append_signature(&mut self, line: &[u8]) -> Result<(), Unwritten> {
        self.append(line)?;
        if let Some(unsigned) = &mut self.unsigned {
            unsigned.is_new = false;
        }
        Ok(())
    }

    /// Returns whether `more` bytes would make the file too large.
    pub(super) fn is_full(&self, more: usize, config: &Config) -> bool {
        self.len > 0 && self.len + more as u64 > config.max_file_bytes
    }

    /// Rotates the file.
    pub(super) fn turned(self, config: &Config, key: Option<PublicKey>) -> io::Result<Self> {
        let aside = config.dir.join(file_name(&self.session, SET_ASIDE));
        fs::rename(&self.path, aside)?;
        Self::open(&self.session, config, key)
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
        self.appended(lines);
        Ok(())
    }

    /// Records that these bytes are in the file.
    fn appended(&mut self, lines: &[u8]) {
        self.len += lines.len() as u64;
        if let Some(unsigned) = &mut self.unsigned {
            unsigned.sha256.update(lines);
            unsigned.is_new |= !lines.is_empty();
        }
    }

    fn give_up(&mut self, written: &[u8], error: impl Into<io::Error>) -> Unwritten {
        let kept = whole_lines(written);
        self.appended(written.get(..kept).unwrap_or_default());
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
