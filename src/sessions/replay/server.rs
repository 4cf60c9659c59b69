//! A server for one replay: this program, on a free port, with the engine and the format of the recorded session.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use fastvideo_proto::api::status::Status;
use fastvideo_proto::ids::GpuId;
use fastvideo_supervisor_core::engines::synthetic::NAME as SYNTHETIC;
use fastvideo_supervisor_core::session::log::{LogEvent as Event, signature};
use fastvideo_supervisor_core::tls;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::facts::Faults;
use super::plan::{Action, Loss, Plan};
use crate::config;
use crate::sessions::history::History;

/// How long the server may take to listen.
const START: Duration = Duration::from_secs(60);
/// How long the server may take to write the session's last lines, to move it, and to leave.
const PATIENCE: Duration = Duration::from_secs(30);
/// The interval at which the session's log is read while its faults are repeated.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The most of the server's own log that is kept for an error message.
const MAX_LOG_BYTES: u64 = 64 << 10;

/// Prefixes of environment variables that are meant for another server.
const OF_OTHERS: [&str; 6] = [
    "FASTVIDEO_",
    "LISTEN_",
    "NOTIFY_SOCKET",
    "OTEL_",
    "RUNTIME_DIRECTORY",
    "WATCHDOG_",
];

/// The server. It is killed, and its workers leave, when this is dropped.
#[derive(Debug)]
pub(super) struct OwnServer {
    child: Child,
    address: String,
    folder: TempDir,
    http: reqwest::Client,
    /// Reads what the server says, so that it never waits for a reader.
    _readers: JoinSet<()>,
}

impl OwnServer {
    /// Starts the server with the recorded settings, which the options of the command line override.
    ///
    /// # Errors
    /// Returns an error with what the server has said when it does not start.
    pub(super) async fn start(
        plan: &Plan,
        faults: Faults,
        options: &config::Options,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let program = std::env::current_exe().context("cannot find this program")?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the server of a replay is no worker; it is killed with its owner"
        )]
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if OF_OTHERS.iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(&*name);
            }
        }
        if let Some(file) = &options.file {
            command.arg("--config").arg(file);
        }
        command
            .args(arguments(plan, faults, folder.path()))
            .args((options.flags.iter()).map(|(key, value)| format!("--{}={value}", key.path)))
            .args(["--server.host=127.0.0.1", "--server.port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a server")?;
        let stdout = child.stdout.take().context("the server has no stdout")?;
        let mut stderr = child.stderr.take().context("the server has no stderr")?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let listening = timeout(START, stdout.read_line(&mut line)).await;
        let address = line.trim().strip_prefix("listening on ").map(str::to_owned);
        let Some(address) = address else {
            let _ = child.start_kill();
            let mut said = String::new();
            let mut said_last = stderr.take(MAX_LOG_BYTES);
            let _ = said_last.read_to_string(&mut said).await;
            ensure!(listening.is_ok(), "the server does not start: {said}");
            bail!("the server does not start: {}", said.trim_end());
        };
        let mut readers = JoinSet::new();
        readers.spawn(async move {
            // An error means that the server has ended.
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        });
        readers.spawn(async move {
            let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
        });
        let http = tls::http_client().no_proxy().build();
        Ok(Self {
            child,
            address,
            folder,
            http: http.context("cannot ask over HTTP")?,
            _readers: readers,
        })
    }

    /// Returns the address, as `http://HOST:PORT`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    fn log_file(&self, session: &str) -> PathBuf {
        log_folder(self.folder.path()).join(format!("session-{session}.jsonl"))
    }

    /// Returns what is in the session's log so far.
    fn log(&self, session: &str) -> Option<History> {
        let bytes = std::fs::read(self.log_file(session)).ok()?;
        History::read(&bytes)
    }

    /// Waits for the session's last line, and returns its log.
    ///
    /// # Errors
    /// Returns an error when the log is not written.
    pub(super) async fn whole_log(&self, session: &str) -> anyhow::Result<History> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let bytes = std::fs::read(self.log_file(session)).unwrap_or_default();
            let is_whole = matches!(signature::verify(&bytes), signature::Verdict::Signed { .. });
            if is_whole && let Some(history) = History::read(&bytes) {
                return Ok(history);
            }
            ensure!(
                Instant::now() < give_up,
                "the server of the replay has not written the session's log"
            );
            sleep(LOOK_EVERY).await;
        }
    }

    /// Kills a GPU's worker.
    ///
    /// # Errors
    /// Returns an error when the server does not say which process that is.
    pub(super) async fn kill_worker(&self, gpu: GpuId) -> anyhow::Result<()> {
        let url = format!("{}/status", self.address);
        let answer = self.http.get(url).send().await?.bytes().await?;
        let status: Status = serde_json::from_slice(&answer)?;
        let worker = status.gpu_status.get(&gpu);
        let pid = worker.and_then(|worker| worker.pid);
        let pid = pid.with_context(|| format!("GPU {gpu} has no worker"))?;
        // An error means that it has ended by itself.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        Ok(())
    }

    /// Moves the session to another worker, once there is one.
    ///
    /// # Errors
    /// Returns an error when there is none for long.
    pub(super) async fn move_session(&self, session: &str) -> anyhow::Result<()> {
        let url = format!("{}/v1/sessions/{session}/move", self.address);
        let give_up = Instant::now() + PATIENCE;
        loop {
            let answer = self.http.post(&url).send().await?;
            if answer.status().is_success() {
                return Ok(());
            }
            let said = answer.text().await.unwrap_or_default();
            ensure!(
                Instant::now() < give_up,
                "the session cannot be moved: {said}"
            );
            sleep(LOOK_EVERY).await;
        }
    }

    /// Ends the server.
    pub(super) async fn stop(mut self) {
        let pid = self.child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            let _ = kill(pid, Signal::SIGTERM);
        }
        let _ = timeout(PATIENCE, self.child.wait()).await;
    }
}

fn log_folder(folder: &Path) -> PathBuf {
    folder.join("log")
}

/// Returns the options of a server that makes the same segments.
fn arguments(plan: &Plan, faults: Faults, folder: &Path) -> Vec<String> {
    let Plan {
        engine,
        format,
        encoder,
        segment_cap,
        ..
    } = plan;
    let sampling = "--default_request.sampling";
    let codec = "--streaming.encoder";
    let mut arguments = vec![
        format!("--generator.engine.name={engine}"),
        format!("{sampling}.width={}", format.width),
        format!("{sampling}.height={}", format.height),
        format!("{sampling}.num_frames={}", format.num_frames),
        format!("{sampling}.fps={}", format.fps),
        format!("{codec}.video_codec={}", encoder.video_codec),
        format!("{codec}.crf={}", encoder.crf),
        format!("{codec}.fragment_ms={}", encoder.fragment_ms),
        format!("{codec}.audio_bit_rate={}", encoder.audio_bit_rate),
        format!("{codec}.jpeg_quality={}", encoder.jpeg_quality),
        format!("--streaming.generation_segment_cap={segment_cap}"),
        format!(
            "--streaming.session_log.dir={}",
            log_folder(folder).display()
        ),
        "--streaming.session_log.max_file_mib=1024".to_owned(),
        "--streaming.pool.keep_up=false".to_owned(),
        "--streaming.hold_seconds=0".to_owned(),
        "--server.realtime=false".to_owned(),
    ];
    if engine == SYNTHETIC {
        arguments.push("--streaming.warmup.enabled=false".to_owned());
        if plan
            .actions
            .iter()
            .any(|(_, action)| *action == Action::Cancel)
        {
            // Else a segment might have ended before its cancellation comes.
            arguments.push("--generator.synthetic.step_ms=250".to_owned());
        }
    }
    if faults == Faults::Repeated {
        // A session whose worker is gone finds another one at once, and no GPU is given up.
        arguments.extend(
            [
                "--streaming.pool.gpus=2",
                "--streaming.pool.min_backoff_ms=20",
                "--streaming.pool.max_backoff_ms=100",
                "--streaming.pool.quarantine_after=1000",
                // Each attempt has all of its steps, so that it is killed as far on as the recorded one was.
                "--streaming.pool.step_snapshots=false",
            ]
            .map(str::to_owned),
        );
        if engine == SYNTHETIC {
            let stops: Vec<String> = plan.losses.iter().map(stop).collect();
            arguments.push(format!("--generator.synthetic.faults={}", stops.join(";")));
        }
    }
    arguments
}

/// Returns the fault that stops the workers of these attempts, so that none has finished when it is killed.
fn stop(loss: &Loss) -> String {
    let attempts = loss.after_steps.len();
    let stop = format!("stop@step1,segment={},max_attempt={attempts}", loss.segment);
    let is_plain = !loss.prompt.contains([',', ';', '=']);
    match loss.shares_segment && is_plain {
        true => format!("{stop},prompt={}", loss.prompt.trim()),
        false => stop,
    }
}

/// Kills the workers that were lost in the recorded session, as the log of the replay comes to those attempts.
#[derive(Debug, Default)]
pub(super) struct Killer {
    /// The runs, and the attempts in them, whose workers were killed.
    killed: Vec<(usize, usize)>,
    /// How much of the log was looked at.
    seen_bytes: u64,
}

impl Killer {
    /// Looks at what is new in the session's log, and returns the GPU whose worker is to be killed now.
    pub(super) fn look(&mut self, plan: &Plan, server: &OwnServer, session: &str) -> Option<GpuId> {
        let all: usize = plan.losses.iter().map(|loss| loss.after_steps.len()).sum();
        let bytes = std::fs::metadata(server.log_file(session)).ok()?.len();
        if self.killed.len() == all || bytes == self.seen_bytes {
            return None;
        }
        self.seen_bytes = bytes;
        self.due(plan, &server.log(session)?)
    }

    fn due(&mut self, plan: &Plan, history: &History) -> Option<GpuId> {
        let is_stopped = plan.engine == SYNTHETIC;
        let (mut run, mut attempt, mut steps, mut runs) = (0, 0, None, 0);
        let mut is_open = false;
        let mut gpu = None;
        for (_, event) in history.known() {
            match event {
                Event::Assigned { gpu_id, .. } => gpu = Some(*gpu_id),
                Event::SegmentQueued { .. } => {
                    if !is_open {
                        (run, attempt, is_open) = (runs, 0, true);
                        runs += 1;
                    }
                    steps = None;
                }
                Event::SegmentStarted { .. } => steps = Some(0),
                Event::Step { .. } => steps = steps.map(|steps| steps + 1),
                Event::Fault { started, .. } => {
                    attempt += usize::from(*started);
                    steps = None;
                }
                Event::SegmentTakenBack { .. } => steps = None,
                Event::SegmentFinished { .. }
                | Event::SegmentCancelled { .. }
                | Event::SegmentFailed { .. } => (is_open, steps) = (false, None),
                _ => {}
            }
        }
        let loss = plan.losses.iter().find(|loss| loss.run == run)?;
        let after = loss.after_steps.get(attempt).filter(|_| is_open)?;
        let is_due = is_stopped || steps? >= *after;
        if steps.is_none() || !is_due || self.killed.contains(&(run, attempt)) {
            return None;
        }
        self.killed.push((run, attempt));
        gpu
    }
}
