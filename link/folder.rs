//! The private folder of a server: of the sockets through which workers connect, and of its other temporary files.
//!
//! ipc-channel makes each socket in a folder of its own below the process's folder for temporary files. A path that is
//! longer than a socket's address would be cut without a word, and a missing folder ends in a panic, so the folder is
//! chosen and tried once, at the start.

use std::env;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The longest path of a socket: the kernel's field has 108 bytes, the last of which is zero.
const MAX_SOCKET_PATH: usize = 107;
/// What ipc-channel adds to the folder's path.
const IN_FOLDER: &str = "/.tmpXXXXXX/socket";
/// What the names of the folders begin with.
const PREFIX: &str = "fastvideo-link-";
/// The file that a server keeps locked while it uses its folder.
const LOCK: &str = "lock";

/// A folder that only this user can read. Dropping it removes the folder.
#[derive(Debug)]
pub struct LinkFolder {
    // Dropped before the lock is released.
    folder: TempDir,
    _lock: File,
}

/// No folder can be used.
#[derive(Debug)]
pub struct FolderError(Vec<(PathBuf, Unusable)>);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(
        "the path of a socket in it would have {0} bytes, at most {MAX_SOCKET_PATH} are allowed"
    )]
    TooLong(usize),
    #[error("its path is not UTF-8")]
    NotUtf8,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl LinkFolder {
    /// Makes the folder in the first place that can be used: `$RUNTIME_DIRECTORY`, which systemd sets,
    /// `$XDG_RUNTIME_DIR`, the folder for temporary files, `/tmp`. Folders that servers have left behind are removed.
    ///
    /// # Errors
    /// Returns an error that names each place and what is wrong with it.
    pub fn prepare() -> Result<Self, FolderError> {
        let runtime = env::var_os("RUNTIME_DIRECTORY").and_then(|folders| {
            // With several folders they are separated by colons.
            Some(folders.to_str()?.split(':').next()?.into())
        });
        let user: Option<PathBuf> = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let places = [runtime, user, Some(env::temp_dir()), Some("/tmp".into())];
        Self::in_first(places.into_iter().flatten())
    }

    /// Makes all sockets and temporary files of this process in the folder from now on, unless they are given another. The
    /// first call counts.
    pub fn take_effect(&self) {
        // ipc-channel asks `tempfile` for the place, too. An error means that there was a call before.
        let _ = tempfile::env::override_temp_dir(self.folder.path());
    }

    fn in_first(places: impl Iterator<Item = PathBuf>) -> Result<Self, FolderError> {
        let mut unusable = Vec::new();
        for place in places {
            match Self::below(&place) {
                Ok(folder) => return Ok(folder),
                Err(why) => unusable.push((place, why)),
            }
        }
        unusable.dedup_by(|a, b| a.0 == b.0);
        Err(FolderError(unusable))
    }

    fn below(place: &Path) -> Result<Self, Unusable> {
        let place = std::path::absolute(place)?;
        remove_left_behind(&place);
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&place)?;
        let path = folder.path().to_str().ok_or(Unusable::NotUtf8)?;
        let bytes = path.len() + IN_FOLDER.len();
        if bytes > MAX_SOCKET_PATH {
            return Err(Unusable::TooLong(bytes));
        }
        let lock = File::create(folder.path().join(LOCK))?;
        lock.lock()?;
        let probe = folder.path().join("probe");
        drop(UnixListener::bind(&probe)?);
        fs::remove_file(probe)?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folders of servers that were killed: nobody holds their locks.
fn remove_left_behind(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // A folder without a lock is just being made.
        if is_ours
            && let Ok(lock) = File::open(entry.path().join(LOCK))
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl fmt::Display for FolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut places = String::new();
        for (place, why) in &self.0 {
            let separator = if places.is_empty() { "" } else { "; " };
            write!(places, "{separator}{}: {why}", place.display())?;
        }
        write!(
            f,
            "no folder can hold the workers' sockets ({places}); set TMPDIR or RUNTIME_DIRECTORY to a folder with a short path that can be written"
        )
    }
}

impl std::error::Error for FolderError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(places: &[&Path]) -> Result<LinkFolder, FolderError> {
        LinkFolder::in_first(places.iter().map(|&place| place.to_owned()))
    }

    #[test]
    fn the_first_place_that_can_be_used_is_taken() {
        let base = tempfile::tempdir().unwrap();
        let long = base.path().join("x".repeat(100));
        fs::create_dir(&long).unwrap();
        let missing = base.path().join("missing");
        let folder = prepare(&[&missing, &long, base.path()]).unwrap();
        assert_eq!(folder.path().parent(), Some(base.path()));
        let mode = folder.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn every_place_that_cannot_be_used_is_named_with_its_reason() {
        let base = tempfile::tempdir().unwrap();
        let missing = base.path().join("missing");
        let long = base.path().join("x".repeat(100));
        fs::create_dir(&long).unwrap();
        let error = prepare(&[&missing, &long]).unwrap_err().to_string();
        assert!(error.contains("missing: No such file"), "{error}");
        assert!(error.contains("at most 107 are allowed"), "{error}");
        assert!(fs::read_dir(&long).unwrap().next().is_none());
    }

    #[test]
    fn folders_that_nobody_uses_any_more_are_removed() {
        let base = tempfile::tempdir().unwrap();
        let used = prepare(&[base.path()]).unwrap();
        let left = base.path().join(format!("{PREFIX}dead"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        let next = prepare(&[base.path()]).unwrap();
        assert!(!left.exists());
        assert!(used.path().exists() && next.path().exists());
    }
}
