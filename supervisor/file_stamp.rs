//! What tells that a file has changed, without reading it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What tells that a file was replaced or written: its place behind links, its inode, its times and its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    target: PathBuf,
    inode: (u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
    length: u64,
}

impl Stamp {
    /// Returns what a file is now; `None` when there is none.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let target = fs::canonicalize(path).ok()?;
        let found = fs::metadata(&target).ok()?;
        Some(Self {
            target,
            inode: (found.dev(), found.ino()),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
            length: found.len(),
        })
    }
}
