//! A worker process as an owned value. Its owner kills it *and* waits for it on every path, and no code keeps a bare
//! process id.

use std::collections::VecDeque;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastvideo_link::Invitation;
use fastvideo_proto::ids::WorkerId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::worker_log::{LogBudget, WorkerLine};

/// The variables of the supervisor's environment that a worker inherits. All others are withheld.
const INHERITED: &[&str] = &[
    "ALL_PROXY",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "LANG",
    "LD_LIBRARY_PATH",
    "NO_PROXY",
    "PATH",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "TMPDIR",
    "TZ",
    "XDG_CACHE_HOME",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];
/// The prefixes of further variables that a worker inherits.
const INHERITED_PREFIXES: &[&str] = &[
    "CUDA_", "HF_", "LC_", "NCCL_", "NVIDIA_", "OMP_", "PYTORCH_",
];
/// The longest line that is forwarded whole. The limit bounds the supervisor's memory when a worker prints without line
/// breaks.
const MAX_LINE_BYTES: u64 = 16 * 1024;
/// The number of lines that are kept to explain an exit.
const LAST_LINES: usize = 8;
/// How long the stderr of an exited process is still read. All that the process had printed is in the pipe already.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(200);

/// A running worker. Dropping it kills the process and leaves reaping to the runtime.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    child: Child,
    pid: Pid,
    /// The last lines of the process's stderr.
    last_lines: Arc<Mutex<VecDeque<String>>>,
    /// The task that reads the process's stderr.
    forwarding: Option<JoinHandle<()>>,
}

impl WorkerProcess {
    /// Starts the binary with one visible GPU, an allow-listed environment and what it needs to connect to its link. A
    /// task of `tracker` turns the lines that the process prints on stderr into log events.
    ///
    /// # Errors
    /// Returns an error when the process cannot be started.
    pub(super) fn spawn(
        binary: &Path,
        worker: &WorkerId,
        visible_device: &str,
        link: Invitation,
        tracker: &TaskTracker,
    ) -> io::Result<Self> {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that creates processes"
        )]
        let mut command = Command::new(binary);
        let inherited = std::env::vars_os().filter(|(name, _)| {
            name.to_str().is_some_and(|name| {
                INHERITED.contains(&name) || INHERITED_PREFIXES.iter().any(|p| name.starts_with(p))
            })
        });
        command
            .args([
                "run",
                "--worker-id",
                &worker.to_string(),
                "--link",
                &link.name,
            ])
            .env_clear()
            .envs(inherited)
            .env("CUDA_VISIBLE_DEVICES", visible_device)
            .stdin(link.descriptors)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let pid = child
            .id()
            .expect("a child that was not waited for has a pid");
        let pid = Pid::from_raw(pid.cast_signed());
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let forwarding = child.stderr.take().map(|stderr| {
            let span = tracing::info_span!(parent: None, "worker", worker_id = %worker);
            tracker.spawn(forward_lines(stderr, last_lines.clone()).instrument(span))
        });
        Ok(Self {
            child,
            pid,
            last_lines,
            forwarding,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Waits for the exit. It returns at once when the process has exited already.
    ///
    /// # Errors
    /// Returns an error when the process cannot be waited for.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Returns the exit status if the process has exited. A process whose status cannot be read counts as running.
    pub(super) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal. It does nothing when the process is gone already.
    pub(super) fn signal(&self, signal: Signal) {
        // `id` is `None` once the process was waited for; its number may then belong to another process.
        if self.child.id().is_some() {
            let _ = kill(self.pid, signal);
        }
    }

    /// Kills the process by SIGKILL and waits for it.
    ///
    /// # Errors
    /// Returns an error when the process cannot be waited for.
    pub(super) async fn kill(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGKILL);
        self.wait().await
    }

    /// Waits after the exit until all that the process had printed is forwarded, and ends the task that reads its
    /// stderr. The wait is bounded, since a child of the process may keep the pipe open.
    pub(super) async fn read_last_lines(&mut self) {
        if let Some(mut forwarding) = self.forwarding.take()
            && timeout(LAST_LINES_TIMEOUT, &mut forwarding).await.is_err()
        {
            forwarding.abort();
        }
    }

    /// Returns the last lines that the process has printed on stderr.
    pub(super) fn last_lines(&self) -> Vec<String> {
        copy_of(&self.last_lines)
    }
}

fn copy_of(lines: &Mutex<VecDeque<String>>) -> Vec<String> {
    let lines = lines.lock();
    let lines = lines.expect("the holders only copy and push strings");
    lines.iter().cloned().collect()
}

/// Describes an exit status, such as `exit status 3` or `signal SIGKILL`.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("signal {signal}"),
            Err(_) => format!("signal {number}"),
        },
        (None, None) => "unknown exit".to_owned(),
    }
}

async fn forward_lines(stderr: ChildStderr, last_lines: Arc<Mutex<VecDeque<String>>>) {
    let mut reader = BufReader::with_capacity(4096, stderr);
    let mut budget = LogBudget::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .await
        {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if text.is_empty() {
            continue;
        }
        let line = WorkerLine::parse(text);
        {
            let mut lines = (last_lines.lock()).expect("the holders only copy and push strings");
            if lines.len() == LAST_LINES {
                lines.pop_front();
            }
            lines.push_back(line.text().to_owned());
        }
        if budget.admits(text.len()) {
            budget.log_gap();
            line.log();
        }
    }
    // The last lines tell why the process has ended.
    if budget.log_gap() {
        for text in copy_of(&last_lines) {
            tracing::warn!("{text}");
        }
    }
}
