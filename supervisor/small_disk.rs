//! A disk that is soon full, for tests.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A file system of 2 MiB.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// None, with the reason on stderr, where this user may not mount anything.
    #[expect(clippy::disallowed_methods, reason = "mount has no other way in")]
    pub(crate) fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]);
        let mounted = mount.arg(folder.path()).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: only root may mount a small disk");
            return None;
        }
        Some(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    #[expect(clippy::disallowed_methods, reason = "umount has no other way in")]
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
