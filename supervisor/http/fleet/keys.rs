//! The keys by which a server knows its routers.

use std::io;
use std::path::{Path, PathBuf};

use fastvideo_proto::fleet::MIN_KEY_BYTES;

use crate::auth::key::KeyHash;

/// What a line begins with that has the hash of a key in place of the key.
const HASHED: &str = "sha256:";

/// The keys in a file, one in each line, or its hash behind `sha256:`, so that the file need not have what lets a router
/// in. Empty lines and lines that begin with `#` are no keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterKeys {
    /// The hash of each key, so that no comparison tells by its time how much of a key is right.
    hashes: Vec<KeyHash>,
}

/// Why a file of keys is not usable.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("{} cannot be read", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}:{line}: a key has at least {MIN_KEY_BYTES} printable characters", .path.display())]
    BadKey { path: PathBuf, line: usize },
    #[error("{}:{line}: behind `{HASHED}` stand 64 hexadecimal digits", .path.display())]
    BadHash { path: PathBuf, line: usize },
    #[error("{} has no key", .path.display())]
    Empty { path: PathBuf },
}

impl RouterKeys {
    /// Reads the keys of a file.
    ///
    /// # Errors
    /// Returns an error when there is no key in it, or one that is none.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        let hashes = hashes(path)?;
        Ok(Self { hashes })
    }

    /// Returns whether a text is one of the keys.
    pub(crate) fn admit(&self, given: &str) -> bool {
        let given = KeyHash::of(given);
        self.hashes.contains(&given)
    }
}

fn hashes(path: &Path) -> Result<Vec<KeyHash>, KeysError> {
    let text = std::fs::read_to_string(path).map_err(|source| KeysError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let mut hashes = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let key = line.trim();
        if key.is_empty() || key.starts_with('#') {
            continue;
        }
        if let Some(digits) = key.strip_prefix(HASHED) {
            let hash = KeyHash::parse(digits).ok_or_else(|| KeysError::BadHash {
                path: path.to_owned(),
                line: number + 1,
            })?;
            hashes.push(hash);
            continue;
        }
        if key.len() < MIN_KEY_BYTES || !key.chars().all(|c| c.is_ascii_graphic()) {
            return Err(KeysError::BadKey {
                path: path.to_owned(),
                line: number + 1,
            });
        }
        hashes.push(KeyHash::of(key));
    }
    match hashes.is_empty() {
        true => Err(KeysError::Empty {
            path: path.to_owned(),
        }),
        false => Ok(hashes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_file_are_admitted_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let (old, new) = ("o".repeat(32), "n".repeat(40));
        std::fs::write(&path, format!("# both are valid\n{old}\n\n  {new}  \n")).unwrap();
        let read = || RouterKeys::read(&path);
        let keys = read().unwrap();
        assert!(keys.admit(&old) && keys.admit(&new));
        for wrong in ["", "# both are valid", &"o".repeat(31), &"o".repeat(33)] {
            assert!(!keys.admit(wrong), "{wrong}");
        }
        std::fs::write(&path, format!("{HASHED}{}\n", KeyHash::of(&old))).unwrap();
        let keys = read().unwrap();
        assert!(keys.admit(&old) && !keys.admit(&new));
        assert!(!keys.admit(&format!("{HASHED}{}", KeyHash::of(&old))));
    }

    #[test]
    fn a_file_that_is_none_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let failed = RouterKeys::read(&path).unwrap_err().to_string();
            failed.rsplit_once('/').unwrap().1.to_owned()
        };
        assert_eq!(read("# nothing\n"), "keys has no key");
        let short = "keys:2: a key has at least 32 printable characters";
        assert_eq!(read("\nshort\n"), short);
        let hash = "keys:1: behind `sha256:` stand 64 hexadecimal digits";
        assert_eq!(read("sha256:abc\n"), hash);
        let failed = RouterKeys::read(&folder.path().join("absent")).unwrap_err();
        assert!(failed.to_string().ends_with("absent cannot be read"));
    }
}
