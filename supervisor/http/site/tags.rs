//! The entity tags of a site's files. A tag is a hash of the file's bytes: several servers with the same site give the same
//! ones, and an image whose files all have one time still gives new ones to new files.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::file_stamp::Stamp;
use crate::http::file::conditions::EntityTag;

/// The number of files whose tags are remembered. An exported site has about a hundred.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not 0");

/// Knows the tags of files, and computes those of new and changed ones. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Tags(Arc<Mutex<LruCache<PathBuf, (Stamp, EntityTag)>>>);

impl Default for Tags {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(REMEMBERED))))
    }
}

impl Tags {
    /// Returns the tag of a file. Reads the file where it has changed, and blocks meanwhile.
    ///
    /// # Errors
    /// Returns an error when the file cannot be read.
    pub(super) fn of(&self, path: &Path) -> io::Result<EntityTag> {
        // Taken before the file is read: what changes while it is read has another stamp afterwards.
        let stamp = Stamp::of(path).ok_or(io::ErrorKind::NotFound)?;
        if let Some((of, tag)) = self.remembered().get(path)
            && *of == stamp
        {
            return Ok(tag.clone());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        let tag = EntityTag::of(hasher.finalize().into());
        self.remembered().put(path.to_owned(), (stamp, tag.clone()));
        Ok(tag)
    }

    fn remembered(&self) -> MutexGuard<'_, LruCache<PathBuf, (Stamp, EntityTag)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_tag_is_that_of_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let tags = Tags::default();
        fs::write(place("a"), "one").unwrap();
        fs::write(place("b"), "one").unwrap();
        let one = tags.of(&place("a")).unwrap();
        assert_eq!(tags.of(&place("b")).unwrap(), one);
        assert_eq!(tags.of(&place("a")).unwrap(), one);
        // Of the same length and, where files have whole seconds, of the same time.
        fs::write(place("new"), "two").unwrap();
        fs::rename(place("new"), place("a")).unwrap();
        assert_ne!(tags.of(&place("a")).unwrap(), one);
        assert!(tags.of(&place("none")).is_err());
    }
}
