//! The video on disk. It is written to a temporary file as it arrives and moved to its place when it is complete.

use std::ffi::OsString;
use std::fs::Permissions;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;
use tempfile::NamedTempFile;

/// A fragmented MP4 of many segments: the init segment of the first one, followed by all fragments. Or a whole video as it comes
/// from a server, which counts as one segment without an init segment.
#[derive(Debug)]
pub(super) struct Output {
    file: NamedTempFile,
    target: PathBuf,
    /// The size of the complete segments in bytes.
    committed: u64,
    /// The size of the file in bytes.
    len: u64,
    /// The init segment that the file begins with.
    init_segment: Option<Bytes>,
}

/// Whether an init segment fits the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InitSegment {
    /// It equals the one that the file begins with.
    Fits,
    /// It differs and was written too. Not every player can handle that.
    Changed,
}

impl Output {
    /// Creates the temporary file, so that a path that cannot be written is noticed before anything is generated.
    ///
    /// # Errors
    /// Returns an error when the folder of `target` cannot be written.
    pub(super) fn create(target: &Path) -> anyhow::Result<Self> {
        let file = beside(target).with_context(|| format!("cannot write {}", target.display()))?;
        Ok(Self {
            file,
            target: target.to_owned(),
            committed: 0,
            len: 0,
            init_segment: None,
        })
    }

    /// Begins a segment, and drops what an earlier attempt at it has written.
    ///
    /// # Errors
    /// Returns an error when the file cannot be truncated.
    pub(super) fn begin_segment(&mut self) -> anyhow::Result<()> {
        if self.len > self.committed {
            let file = self.file.as_file_mut();
            file.set_len(self.committed)
                .and_then(|()| file.seek(SeekFrom::Start(self.committed)))
                .context("cannot drop an unfinished segment")?;
            self.len = self.committed;
        }
        if self.committed == 0 {
            self.init_segment = None;
        }
        Ok(())
    }

    /// Writes an init segment, unless it equals that of the file.
    ///
    /// # Errors
    /// Returns an error when the file cannot be written.
    pub(super) fn init_segment(&mut self, bytes: Bytes) -> anyhow::Result<InitSegment> {
        match &self.init_segment {
            Some(first) if *first == bytes => Ok(InitSegment::Fits),
            Some(_) => {
                self.write(&bytes)?;
                Ok(InitSegment::Changed)
            }
            None => {
                self.write(&bytes)?;
                self.init_segment = Some(bytes);
                Ok(InitSegment::Fits)
            }
        }
    }

    /// Writes a fragment.
    ///
    /// # Errors
    /// Returns an error when the file cannot be written.
    pub(super) fn fragment(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.write(bytes)
    }

    /// Returns the number of bytes that the file has.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Ends a segment, which stays in the file from now on.
    pub(super) fn commit_segment(&mut self) {
        self.committed = self.len;
    }

    /// Moves the video to its place, and returns its path.
    ///
    /// # Errors
    /// Returns an error when the file cannot be moved.
    pub(super) fn keep(self) -> anyhow::Result<PathBuf> {
        let target = self.target.clone();
        self.persist(target)
    }

    /// Keeps the complete segments of an unfinished video, if there are any, and returns the path, which ends in `.partial`.
    ///
    /// # Errors
    /// Returns an error when the file cannot be truncated or moved.
    pub(super) fn keep_partial(mut self) -> anyhow::Result<Option<PathBuf>> {
        if self.committed == 0 {
            return Ok(None);
        }
        self.begin_segment()?;
        let mut name = OsString::from(&self.target);
        name.push(".partial");
        self.persist(PathBuf::from(name)).map(Some)
    }

    fn persist(self, path: PathBuf) -> anyhow::Result<PathBuf> {
        self.file
            .persist(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file
            .write_all(bytes)
            .with_context(|| format!("cannot write {}", self.target.display()))?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// Creates a temporary file in the folder of `path`, with the usual permissions of a new file.
///
/// # Errors
/// Returns an error when the folder cannot be written.
pub(super) fn beside(path: &Path) -> std::io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    tempfile::Builder::new()
        .prefix(".fastvideo-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        Begin,
        Init(&'static [u8]),
        Fragment(&'static [u8]),
        Commit,
    }
    use Step::*;

    fn after(steps: &[Step]) -> (tempfile::TempDir, Output) {
        let folder = tempfile::tempdir().unwrap();
        let mut output = Output::create(&folder.path().join("out.mp4")).unwrap();
        for step in steps {
            match step {
                Begin => output.begin_segment().unwrap(),
                Init(bytes) => drop(output.init_segment(Bytes::from_static(bytes)).unwrap()),
                Fragment(bytes) => output.fragment(bytes).unwrap(),
                Commit => output.commit_segment(),
            }
        }
        (folder, output)
    }

    #[test]
    fn video_has_one_init_segment_and_every_fragment_once() {
        let check = |steps: &[Step], expected: &str| {
            let (_folder, output) = after(steps);
            let path = output.keep().unwrap();
            assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
        };
        check(&[], "");
        check(
            &[
                Begin,
                Init(b"i"),
                Fragment(b"1"),
                Fragment(b"2"),
                Commit,
                Begin,
                Init(b"i"),
                Fragment(b"3"),
                Commit,
            ],
            "i123",
        );
        // The first segment starts again.
        check(
            &[
                Begin,
                Init(b"i"),
                Fragment(b"1"),
                Begin,
                Init(b"j"),
                Fragment(b"2"),
                Commit,
            ],
            "j2",
        );
        // A later one does.
        check(
            &[
                Begin,
                Init(b"i"),
                Fragment(b"1"),
                Commit,
                Begin,
                Init(b"i"),
                Fragment(b"2"),
                Begin,
                Init(b"i"),
                Fragment(b"3"),
                Commit,
            ],
            "i13",
        );
        check(
            &[Begin, Init(b"i"), Commit, Begin, Init(b"j"), Commit],
            "ij",
        );
    }

    #[test]
    fn unfinished_video_keeps_its_complete_segments_under_another_name() {
        let (folder, output) = after(&[
            Begin,
            Init(b"i"),
            Fragment(b"1"),
            Commit,
            Begin,
            Fragment(b"2"),
        ]);
        let path = output.keep_partial().unwrap().unwrap();
        assert_eq!(path, folder.path().join("out.mp4.partial"));
        assert_eq!(std::fs::read_to_string(path).unwrap(), "i1");

        let (folder, output) = after(&[Begin, Init(b"i"), Fragment(b"1")]);
        assert_eq!(output.keep_partial().unwrap(), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
