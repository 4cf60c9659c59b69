//! Writes the log on a thread of its own.
//!
//! Whoever logs puts whole lines into bounded memory and goes on; one thread writes them. A reader of the log that is
//! slow, stands still or is gone, and a disk that is full, cost lines and nothing else. Lost lines are counted, and the
//! count is logged once lines can be written again.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use fastvideo_supervisor_core::turns::{Turning, Turns};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::fmt::MakeWriter;

/// Limit on the bytes of lines that wait to be written.
const MAX_WAITING: usize = 1 << 20;

/// Writes lines without blocking and without errors. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LogWriter(Arc<Shared>);

/// The queue of lines between those who log and the thread.
#[derive(Debug, Default)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// Notified when lines are put into the queue.
    filled: Condvar,
    /// Notified when all lines were written or lost.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whole lines that wait to be written.
    lines: Vec<u8>,
    /// The number of lines that were lost and not reported yet.
    lost: u64,
    /// Whether the thread is writing lines that it took out of the queue.
    is_writing: bool,
}

impl LogWriter {
    /// Starts the thread that writes to this file, which it duplicates. It is one of the loops that have to turn, except
    /// while it waits for the file's reader.
    ///
    /// # Errors
    /// Returns an error when the file cannot be duplicated or the thread cannot be started.
    pub(super) fn start(file: impl AsFd, turns: &Turns) -> io::Result<Self> {
        let file = File::from(file.as_fd().try_clone_to_owned()?);
        let shared = Arc::<Shared>::default();
        let writing = shared.clone();
        let (turning, period) = (turns.add("log"), turns.period());
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writing.write_to(&file, &turning, period))?;
        Ok(Self(shared))
    }

    /// Waits until all lines are written, but not longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let queue = self.0.lock();
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        // The lock is poisoned only when a holder has panicked, and none does.
        let _ = self.0.emptied.wait_timeout_while(queue, patience, is_busy);
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = &'a Shared;

    fn make_writer(&'a self) -> &'a Shared {
        &self.0
    }
}

/// Takes one line with each call.
impl Write for &Shared {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of this lock panics")
    }

    fn put(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.lines.len() + line.len() > MAX_WAITING {
            queue.lost += 1;
            return;
        }
        let first = queue.lines.is_empty();
        queue.lines.extend_from_slice(line);
        drop(queue);
        if first {
            self.filled.notify_one();
        }
    }

    /// The thread: writes lines as long as the process lives.
    fn write_to(&self, mut file: &File, turning: &Turning, period: Duration) {
        // Whether the last line in the file lacks its end.
        let mut is_torn = false;
        loop {
            turning.turn();
            let Some(lines) = self.take(period) else {
                continue;
            };
            let written = turning.wait_for_others(|| write_lines(&mut file, &lines, &mut is_torn));
            match written {
                Ok(()) => self.written(),
                Err(Unwritten { lost }) => self.lost(lost),
            }
        }
    }

    /// Waits for lines and takes them. Returns `None` when there were none for this time.
    fn take(&self, patience: Duration) -> Option<Vec<u8>> {
        let queue = self.lock();
        let is_empty = |queue: &mut Queue| queue.lines.is_empty();
        let (mut queue, _) = (self.filled)
            .wait_timeout_while(queue, patience, is_empty)
            .expect("no holder of this lock panics");
        if queue.lines.is_empty() {
            return None;
        }
        queue.is_writing = true;
        Some(mem::take(&mut queue.lines))
    }

    fn lost(&self, lines: u64) {
        let mut queue = self.lock();
        queue.lost += lines;
        self.done(queue);
    }

    /// Reports lines that were lost before, in a line of its own, for which the queue has room.
    fn written(&self) {
        let mut queue = self.lock();
        let lost = match queue.lines.len() <= MAX_WAITING / 2 {
            true => mem::take(&mut queue.lost),
            false => 0,
        };
        if lost > 0 {
            drop(queue);
            tracing::warn!(
                lines = lost,
                "log lines were lost: nobody took them, or the disk was full"
            );
            queue = self.lock();
        }
        self.done(queue);
    }

    fn done(&self, mut queue: MutexGuard<'_, Queue>) {
        queue.is_writing = false;
        if queue.lines.is_empty() {
            self.emptied.notify_all();
        }
    }
}

/// Lines that could not be written.
#[derive(Debug, PartialEq, Eq)]
struct Unwritten {
    /// Their number, including one that was written in part.
    lost: u64,
}

/// Writes whole lines. `is_torn` says whether the file ends within a line, before and after.
fn write_lines(
    file: &mut (impl Write + AsFd),
    lines: &[u8],
    is_torn: &mut bool,
) -> Result<(), Unwritten> {
    if *is_torn && write_all(file, b"\n") == 1 {
        *is_torn = false;
    }
    let written = match *is_torn {
        true => 0,
        false => write_all(file, lines),
    };
    if written == lines.len() {
        return Ok(());
    }
    let (done, rest) = lines.split_at(written);
    *is_torn |= done.last().is_some_and(|&byte| byte != b'\n');
    let lost = rest.iter().filter(|&&byte| byte == b'\n').count() as u64;
    Err(Unwritten { lost })
}

/// Writes as many of the bytes as the file takes, and returns their number.
fn write_all(file: &mut (impl Write + AsFd), bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(n) => written += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process may have made the file non-blocking, which holds for all that share it.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut files = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut files, PollTimeout::NONE).is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::BorrowedFd;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    /// A file that takes a number of bytes and then fails, until it gets more room.
    struct SmallDisk {
        content: Vec<u8>,
        room: usize,
    }

    impl Write for SmallDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            self.content.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for SmallDisk {
        fn as_fd(&self) -> BorrowedFd<'_> {
            unreachable!("it never blocks")
        }
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_swallow_the_next_one() {
        let mut disk = SmallDisk {
            content: Vec::new(),
            room: 6,
        };
        let mut is_torn = false;
        let mut write =
            |disk: &mut SmallDisk, lines: &str| write_lines(disk, lines.as_bytes(), &mut is_torn);
        assert_eq!(
            write(&mut disk, "one\ntwo\nthree\n"),
            Err(Unwritten { lost: 2 })
        );
        assert_eq!(write(&mut disk, "four\n"), Err(Unwritten { lost: 1 }));
        disk.room = 100;
        assert_eq!(write(&mut disk, "five\n"), Ok(()));
        assert_eq!(write(&mut disk, "six\n"), Ok(()));
        assert_eq!(disk.content, b"one\ntw\nfive\nsix\n");
    }

    #[test]
    fn whoever_logs_never_waits_and_lost_lines_are_counted() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let log = LogWriter::start(&pipe, &Turns::new(None)).unwrap();
        drop(pipe);
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        // The thread may hold as much as the queue; the pipe holds far less.
        let lines = 4 * MAX_WAITING / line.len();
        for _ in 0..lines {
            log.make_writer().write_all(&line).unwrap();
        }
        log.flush(Duration::from_millis(1));
        let lost = log.0.lock().lost;
        assert!(lost >= 1900, "{lost}");
        let mut read = vec![0; (lines - usize::try_from(lost).unwrap()) * line.len()];
        reader.read_exact(&mut read).unwrap();
        log.flush(Duration::from_secs(60));
        assert!(log.0.lock().lines.is_empty());

        // Nobody will ever read the next line.
        drop(reader);
        let before = log.0.lock().lost;
        log.make_writer().write_all(&line).unwrap();
        log.flush(Duration::from_secs(60));
        assert_eq!(log.0.lock().lost, before + 1);
    }

    #[test]
    fn a_pipe_that_another_process_made_non_blocking_loses_nothing() {
        let (mut reader, pipe) = io::pipe().unwrap();
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let log = LogWriter::start(&pipe, &Turns::new(None)).unwrap();
        drop(pipe);
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let lines = MAX_WAITING / line.len() / 2;
        for _ in 0..lines {
            log.make_writer().write_all(&line).unwrap();
        }
        let mut read = vec![0; lines * line.len()];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(log.0.lock().lost, 0);
    }
}
