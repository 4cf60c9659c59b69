//! Shared memory: written once by its maker, then sealed, and from then on only read.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// The seals of shared memory: neither its size nor its content can change, and no seal can be taken off.
const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// Memory that no other process can see yet, to be filled and then sealed.
#[derive(Debug)]
pub struct MemoryBuffer {
    file: File,
    map: MmapMut,
}

/// Sealed memory. It is immutable for all processes, and a clone shares everything.
#[derive(Clone)]
pub struct SharedMemory(Arc<Sealed>);

struct Sealed {
    fd: OwnedFd,
    map: Mmap,
}

/// The reason why received memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The sender could still change the memory, or take it away while it is read, which would kill the reader.
    #[error("the memory is not sealed")]
    NotSealed,
    #[error("the memory cannot be mapped")]
    Map(#[from] io::Error),
}

impl MemoryBuffer {
    /// Allocates zeroed memory of so many bytes.
    ///
    /// # Errors
    /// Returns an error when the host has no descriptor or no address space left.
    pub fn zeroed(bytes: usize) -> io::Result<Self> {
        let file = new_file()?;
        file.set_len(bytes as u64)?;
        let map = map_mut(&file)?;
        Ok(Self { file, map })
    }

    /// Seals the memory, which may be shared from here on.
    ///
    /// # Errors
    /// Returns an error when the memory cannot be sealed or mapped again.
    pub fn seal(self) -> io::Result<SharedMemory> {
        let Self { file, map } = self;
        // A file that is mapped for writing cannot be sealed against writing.
        drop(map);
        seal(file)
    }
}

impl Deref for MemoryBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl DerefMut for MemoryBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

impl SharedMemory {
    /// Copies bytes into sealed memory.
    ///
    /// # Errors
    /// Returns an error when the host has no descriptor or no memory left.
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let mut file = new_file()?;
        file.write_all(bytes)?;
        seal(file)
    }

    /// Takes memory that another process has sent.
    ///
    /// # Errors
    /// Returns an error when the descriptor is not that of sealed memory, or the memory cannot be mapped.
    pub(crate) fn from_received(fd: OwnedFd) -> Result<Self, MemoryError> {
        // The call fails for a descriptor of anything but a memory file.
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_| MemoryError::NotSealed)?;
        if !seals.contains(SEALS) {
            return Err(MemoryError::NotSealed);
        }
        Ok(Self::map(fd)?)
    }

    /// Maps a sealed file.
    fn map(fd: OwnedFd) -> io::Result<Self> {
        let map = map_sealed(&fd)?;
        Ok(Self(Arc::new(Sealed { fd, map })))
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Deref for SharedMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.map
    }
}

// Not derived: it would print every byte.
impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory")
            .field("bytes", &self.len())
            .finish_non_exhaustive()
    }
}

fn new_file() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(rustix::fs::memfd_create("fastvideo", flags)?.into())
}

/// How long the kernel may need the pages of new memory for itself.
const SEAL_TIMEOUT: Duration = Duration::from_secs(2);
const SEAL_PAUSE: Duration = Duration::from_millis(2);

#[expect(
    clippy::disallowed_methods,
    reason = "the kernel does not say when it has let go of the pages"
)]
fn seal(file: File) -> io::Result<SharedMemory> {
    let begun = Instant::now();
    loop {
        match rustix::fs::fcntl_add_seals(&file, SEALS) {
            Ok(()) => return SharedMemory::map(file.into()),
            // Nothing of ours maps it for writing. A busy kernel moves pages about and holds them for a moment.
            Err(Errno::BUSY) if begun.elapsed() < SEAL_TIMEOUT => thread::sleep(SEAL_PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}

#[expect(
    unsafe_code,
    reason = "a mapping is only sound if nobody else changes the file"
)]
fn map_mut(file: &File) -> io::Result<MmapMut> {
    // SAFETY: requires that nobody else changes or truncates the file while it is mapped. `file` is a new memory file
    // of this process without a name; its descriptor leaves this module only after the mapping is gone.
    unsafe { MmapMut::map_mut(file) }
}

#[expect(
    unsafe_code,
    reason = "a mapping is only sound if nobody else changes the file"
)]
fn map_sealed(fd: &OwnedFd) -> io::Result<Mmap> {
    // A private mapping, since kernels before 6.7 refuse a shared one of a file that is sealed against writing. Nobody
    // writes to it, so its pages are shared all the same.
    let options = MmapOptions::new();
    // SAFETY: requires that nobody changes or truncates the file while it is mapped. The callers have made sure that
    // it has all of `SEALS`, with which the kernel refuses both to everybody, for ever.
    unsafe { options.map_copy_read_only(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsealed(bytes: &[u8]) -> File {
        let mut file = new_file().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn memory_is_what_was_written_and_cannot_be_changed_any_more() {
        for bytes in [&b""[..], b"a", &[7; 100_000]] {
            let mut buffer = MemoryBuffer::zeroed(bytes.len()).unwrap();
            buffer.copy_from_slice(bytes);
            let memory = buffer.seal().unwrap();
            assert!(memory[..] == *bytes);
            assert!(SharedMemory::from_bytes(bytes).unwrap()[..] == *bytes);
            let mut file = File::from(memory.as_fd().try_clone_to_owned().unwrap());
            assert!(file.set_len(0).is_err() || bytes.is_empty());
            assert!(file.set_len(1 << 20).is_err());
            assert!(file.write_all(b"x").is_err());
            assert!(map_mut(&file).is_err() || bytes.is_empty());
            assert!(memory[..] == *bytes);
        }
    }

    #[test]
    fn a_clone_needs_no_further_descriptor() {
        let memory = SharedMemory::from_bytes(b"a state").unwrap();
        let clone = memory.clone();
        drop(memory);
        assert_eq!(&clone[..], b"a state");
    }

    #[test]
    fn received_memory_that_its_sender_could_still_change_is_refused() {
        let refused = |file: File| {
            let refused = SharedMemory::from_received(file.into()).unwrap_err();
            assert!(matches!(refused, MemoryError::NotSealed));
        };
        refused(unsealed(b"a state"));
        for seals in [
            SealFlags::SHRINK,
            SealFlags::SHRINK | SealFlags::GROW,
            SEALS.difference(SealFlags::SHRINK),
            SEALS.difference(SealFlags::WRITE),
        ] {
            let file = unsealed(b"a state");
            rustix::fs::fcntl_add_seals(&file, seals).unwrap();
            refused(file);
        }
        refused(tempfile::tempfile().unwrap());
        refused(File::open("/dev/null").unwrap());
        let (socket, _peer) = crate::descriptors::Descriptors::pair().unwrap();
        refused(socket.as_fd().try_clone_to_owned().unwrap().into());
        let sealed = SharedMemory::from_bytes(b"a state").unwrap();
        let received = sealed.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(
            &SharedMemory::from_received(received).unwrap()[..],
            b"a state"
        );
    }
}
