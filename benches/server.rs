//! A supervisor in a process of its own, and the worker's binary beside it.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::client::{Client, PATIENCE};

/// What the last supervisor said on stderr.
pub(crate) const LOG: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench-supervisor.log");
/// How often a server is asked for news.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(2);

/// A running supervisor. Killed when dropped, and its workers with it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    /// Just before the process was started.
    pub(crate) started: Instant,
    /// When it said that it listens.
    pub(crate) listening: Instant,
}

/// One of its workers.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: String,
    pub(crate) pid: Pid,
}

impl Server {
    /// Starts a supervisor on a free port, and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn start(args: &[&str]) -> anyhow::Result<Self> {
        let mut command = command("fastvideo-supervisor")?;
        command
            .args(["--streaming.generation_segment_cap", "1000000"])
            // Whoever comes next has the worker of a client that has gone.
            .args(["--streaming.hold_seconds", "0"])
            .args(["--streaming.max_lead_seconds", "0"])
            .args(args);
        Self::launch(command)
    }

    /// Starts a router on a free port, and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn start_router(args: &[&str]) -> anyhow::Result<Self> {
        let mut command = command("fastvideo-supervisor")?;
        command.arg("router").args(args);
        Self::launch(command)
    }

    fn launch(mut command: Command) -> anyhow::Result<Self> {
        command
            .args(["--host", "127.0.0.1", "--port", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log()?);
        let started = Instant::now();
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let listening = Instant::now();
        let address = line.trim().strip_prefix("listening on http://");
        let mut server = Self {
            child,
            address: address.unwrap_or_default().to_owned(),
            started,
            listening,
        };
        if server.address.is_empty() {
            let status = server.child.wait()?;
            anyhow::bail!("the supervisor did not start: {status}");
        }
        Ok(server)
    }

    /// Starts a supervisor, and waits until so many workers serve.
    ///
    /// # Errors
    /// When they do not.
    pub(crate) async fn start_ready(workers: u64, args: &[&str]) -> anyhow::Result<Self> {
        let gpus = workers.to_string();
        let server = Self::start(&[&["--gpus", &gpus], args].concat())?;
        server.ready(workers).await?;
        Ok(server)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The workers' processes, in the order of their GPUs.
    pub(crate) async fn worker_pids(&self) -> anyhow::Result<Vec<Pid>> {
        let status = self.get("/status").await?;
        let gpus = status["gpu_status"]
            .as_object()
            .context("gpu_status is an object")?;
        let pids = gpus.values().map(pid_of);
        pids.collect()
    }

    /// The worker that runs a job.
    pub(crate) async fn busy_worker(&self) -> anyhow::Result<Worker> {
        let status = self.get("/status").await?;
        let gpus = status["gpu_status"]
            .as_object()
            .context("gpu_status is an object")?;
        let mut busy = gpus.values().filter(|gpu| gpu["state"] == "busy");
        let gpu = busy.next().context("no worker is busy")?;
        Ok(Worker {
            id: gpu["worker_id"].as_str().unwrap_or_default().to_owned(),
            pid: pid_of(gpu)?,
        })
    }

    /// The process of that worker; none when it has been replaced.
    pub(crate) async fn pid_of_worker(&self, id: &str) -> anyhow::Result<Option<Pid>> {
        let status = self.get("/status").await?;
        let mut gpus = (status["gpu_status"].as_object())
            .context("gpu_status is an object")?
            .values();
        let gpu = gpus.find(|gpu| gpu["worker_id"] == id && gpu["pid"].is_number());
        gpu.map(pid_of).transpose()
    }

    /// GET, whatever the status code.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("http://{}{path}", self.address);
        let answer = tokio::task::spawn_blocking(move || {
            let request = ureq::get(&url).config().http_status_as_error(false).build();
            request.call()?.body_mut().read_to_string()
        });
        Ok(serde_json::from_str(&answer.await??)?)
    }

    /// A metric's value over all series whose name begins like this.
    pub(crate) async fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let url = format!("http://{}/metrics", self.address);
        let answer = tokio::task::spawn_blocking(move || {
            ureq::get(&url).call()?.body_mut().read_to_string()
        });
        let text = answer.await??;
        let values = text.lines().filter(|line| line.starts_with(series));
        let values = values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// POST without a body; the status code.
    pub(crate) async fn post(&self, path: &str) -> anyhow::Result<u16> {
        let url = format!("http://{}{path}", self.address);
        let answer = tokio::task::spawn_blocking(move || {
            let request = ureq::post(&url).config().http_status_as_error(false);
            request.build().send_empty()
        });
        Ok(answer.await??.status().as_u16())
    }

    /// Waits until so many workers serve.
    pub(crate) async fn ready(&self, workers: u64) -> anyhow::Result<()> {
        let ready = async {
            while self.get("/readyz").await?["ready_gpu_workers"] != workers {
                sleep(ASK_AGAIN).await;
            }
            Ok(())
        };
        timeout(PATIENCE, ready)
            .await
            .context("the workers are not ready in time")?
    }

    /// Opens a session and waits until it is active.
    pub(crate) async fn session(&self) -> anyhow::Result<Client> {
        Client::open(&self.address).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Err: it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Empty, and written at its end: of two supervisors that run at once, none writes over the other's lines.
fn log() -> io::Result<File> {
    File::create(LOG)?;
    File::options().append(true).open(LOG)
}

/// A program of this workspace, as cargo has built it for this benchmark.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark starts the programs that it measures"
)]
pub(crate) fn command(program: &str) -> anyhow::Result<Command> {
    let supervisor = PathBuf::from(env!("CARGO_BIN_EXE_fastvideo-supervisor"));
    let binary = supervisor.with_file_name(program);
    ensure!(
        binary.exists(),
        "{program} is missing: build the workspace for release first (make bench does)"
    );
    Ok(Command::new(binary))
}

fn pid_of(gpu: &Value) -> anyhow::Result<Pid> {
    let pid = gpu["pid"].as_i64().context("the worker runs")?;
    Ok(Pid::from_raw(i32::try_from(pid)?))
}
