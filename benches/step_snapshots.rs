//! Step snapshots: how soon a segment goes on after SIGKILL of its worker within the denoise steps, and what it costs to
//! leave the latents after each step.

use std::convert::Infallible;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{sleep, timeout};

use crate::client::{Client, Heard, PATIENCE};
use crate::cost::{cpu_time, memory};
use crate::figures::{Figures, milliseconds};
use crate::report::{Row, Target};
use crate::server::{ASK_AGAIN, Server};

const WORKERS: u64 = 2;
const STEPS: u32 = 20;
const STEP_MS: u32 = 100;
/// The latents of LTX-2 for 121 frames of 1088x1920, rounded up: 8 MiB.
const LATENT_BYTES: u32 = 8 << 20;
const MIB: f64 = (1_u32 << 20) as f64;
/// Sessions that run at once where memory is measured.
const SESSIONS: usize = 4;
/// How often memory is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const PROMPT: &str = "a red balloon over rooftops";

const SIZE: &[&str] = &[
    "--default_request.sampling.width=128",
    "--default_request.sampling.height=96",
    "--default_request.sampling.num_frames=12",
    "--default_request.sampling.num_inference_steps=20",
    "--generator.synthetic.latent_bytes=8388608",
    "--streaming.warmup.enabled=false",
    "--streaming.pool.keep_up=false",
];
const EVERY_STEP: &[&str] = &[
    "--generator.synthetic.step_ms=100",
    "--streaming.pool.step_snapshot_min_ms=0",
];
const OFF: &[&str] = &[
    "--generator.synthetic.step_ms=100",
    "--streaming.pool.step_snapshots=false",
];

pub(crate) async fn measure(kills: usize, pairs: usize) -> anyhow::Result<Vec<Row>> {
    let mut rows = recovery(kills).await?;
    rows.extend(time(pairs).await?);
    rows.extend(held().await?);
    Ok(rows)
}

/// Kills the worker of a segment at a random moment of its denoise steps.
async fn recovery(kills: usize) -> anyhow::Result<Vec<Row>> {
    // What the segments are when nothing happens; steps do not change the film.
    let undisturbed = Server::start_ready(1, SIZE).await?;
    let mut client = undisturbed.session().await?;
    let mut expected = Vec::new();
    for _ in 0..kills {
        expected.push(whole_segment(&mut client).await?);
    }
    drop(undisturbed);

    let faulty = [
        "--streaming.pool.min_backoff_ms=10",
        "--streaming.pool.quarantine_after=1000",
        "--max-attempts=100",
    ];
    let server = Server::start_ready(WORKERS, &[SIZE, EVERY_STEP, &faulty].concat()).await?;
    let mut client = server.session().await?;
    let (mut took, mut same, mut most_repeated) = (Vec::new(), 0, 0.0_f64);
    for expected in &expected {
        server.ready(WORKERS).await?;
        let steps_before = steps_done(&server).await?;
        let recovering = kill_and_recover(&server, &mut client);
        let (recovered, media) = timeout(PATIENCE, recovering)
            .await
            .context("the segment does not go on")??;
        took.push(milliseconds(recovered));
        same += usize::from(media == *expected);
        let steps = steps_done(&server).await? - steps_before;
        most_repeated = most_repeated.max(steps - f64::from(STEPS));
    }
    let figures = Figures::of(took)?;
    Ok(vec![
        Row {
            key: "step_snapshot_recovery",
            what: "SIGKILL at a denoise step to the first new step, p99",
            unit: "ms",
            python: "never",
            target: Target::AtMost(400.0),
            measured: figures.p99,
            note: format!(
                "at the client, one step of {STEP_MS} ms included; {STEPS} steps, latents of {} MiB",
                LATENT_BYTES >> 20
            ),
            figures: Some(figures),
        },
        Row {
            key: "step_snapshot_repeated",
            what: "denoise steps that a kill has cost, the most",
            unit: "",
            python: "all",
            target: Target::AtMost(1.0),
            measured: most_repeated,
            figures: None,
            note: format!("{same} of {kills} segments have the bytes of an undisturbed session"),
        },
        Row {
            key: "step_snapshot_same",
            what: "segments with other bytes than without the kill",
            unit: "",
            python: "-",
            target: Target::AtMost(0.0),
            measured: (kills - same) as f64,
            figures: None,
            note: String::new(),
        },
    ])
}

async fn whole_segment(client: &mut Client) -> anyhow::Result<Vec<u8>> {
    client.prompt(PROMPT).await?;
    rest_of_segment(client, Vec::new()).await
}

async fn rest_of_segment(client: &mut Client, mut media: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    loop {
        match client.next().await?.1 {
            Heard::Media(bytes) => media.extend_from_slice(&bytes),
            heard if heard.is("ltx2_segment_complete") => return Ok(media),
            heard => ensure!(!heard.is("error"), "{heard:?}"),
        }
    }
}

/// Asks for a segment, kills its worker within a random step, and takes the segment whole.
async fn kill_and_recover(
    server: &Server,
    client: &mut Client,
) -> anyhow::Result<(Duration, Vec<u8>)> {
    // A step is left whenever the worker dies.
    let after = u64::from(rand::random_range(0..STEPS - 1));
    let delay = Duration::from_millis(u64::from(STEP_MS)).mul_f64(rand::random());
    client.prompt(PROMPT).await?;
    let begun = match after {
        0 => client.until("ltx2_segment_start").await?.0,
        _ => loop {
            let (at, text) = client.until("step_complete").await?;
            if text["step"] == after {
                break at;
            }
        },
    };
    sleep(delay.saturating_sub(begun.elapsed())).await;
    let busy = loop {
        // At the start the job may not have reached its worker.
        match server.busy_worker().await {
            Ok(busy) => break busy,
            Err(_) => sleep(ASK_AGAIN).await,
        }
    };
    kill(busy.pid, Signal::SIGKILL)?;
    let killed = Instant::now();
    let mut elsewhere = false;
    loop {
        let (at, heard) = client.next().await?;
        ensure!(!heard.is("error"), "{heard:?}");
        // Steps before the next worker's were on their way already.
        elsewhere |= heard.is("gpu_assigned");
        let is_over = heard.is("ltx2_segment_complete");
        ensure!(!is_over, "no step was left after step {after}");
        if elsewhere && heard.is("step_complete") {
            let media = rest_of_segment(client, Vec::new()).await?;
            return Ok((at - killed, media));
        }
    }
}

/// Compares servers with and without snapshots, in turns: A B, B A, A B …
async fn time(pairs: usize) -> anyhow::Result<Vec<Row>> {
    let with = Server::start_ready(1, &[SIZE, EVERY_STEP].concat()).await?;
    let without = Server::start_ready(1, &[SIZE, OFF].concat()).await?;
    let (mut with, mut without) = (Turns::of(&with).await?, Turns::of(&without).await?);
    let (mut longer, mut cpu) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        let (with, without) = if pair % 2 == 0 {
            let with = with.turn().await?;
            (with, without.turn().await?)
        } else {
            let without = without.turn().await?;
            (with.turn().await?, without)
        };
        longer.push((with.generation_ms - without.generation_ms) / f64::from(STEPS));
        cpu.push((with.cpu_ms - without.cpu_ms) / f64::from(STEPS));
    }
    let row = |key, what, values: Vec<f64>| -> anyhow::Result<Row> {
        let figures = Figures::of(values)?;
        Ok(Row {
            key,
            what,
            unit: "ms",
            python: "-",
            target: Target::None,
            measured: figures.p50,
            note: format!(
                "median of {pairs} pairs of segments, {STEPS} steps of {STEP_MS} ms: {:.2} % of a step",
                figures.p50 / f64::from(STEP_MS) * 100.0
            ),
            figures: Some(figures),
        })
    };
    Ok(vec![
        row(
            "step_snapshot_time",
            "8 MiB of latents after a step: time that each step takes longer",
            longer,
        )?,
        row(
            "step_snapshot_cpu",
            "the same: processor time, supervisor and worker",
            cpu,
        )?,
    ])
}

/// One session that makes segment after segment.
struct Turns {
    client: Client,
    processes: Vec<Pid>,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    generation_ms: f64,
    cpu_ms: f64,
}

impl Turns {
    async fn of(server: &Server) -> anyhow::Result<Self> {
        let mut processes = server.worker_pids().await?;
        processes.push(server.pid());
        let mut client = server.session().await?;
        client.segment(PROMPT).await?;
        Ok(Self { client, processes })
    }

    async fn turn(&mut self) -> anyhow::Result<Turn> {
        let before = self.cpu()?;
        self.client.prompt(PROMPT).await?;
        let (_, done) = self.client.until("ltx2_segment_complete").await?;
        let generation_ms = done["generation_time_ms"].as_f64();
        Ok(Turn {
            generation_ms: generation_ms.context("the time is told")?,
            cpu_ms: milliseconds(self.cpu()?.saturating_sub(before)),
        })
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        let times = self.processes.iter().map(|&pid| cpu_time(pid));
        times.sum()
    }
}

/// Looks at the memory while sessions run.
async fn held() -> anyhow::Result<Vec<Row>> {
    let mut most = Vec::new();
    for args in [EVERY_STEP, OFF] {
        let server = Server::start_ready(SESSIONS as u64, &[SIZE, args].concat()).await?;
        let mut clients = Vec::new();
        for _ in 0..SESSIONS {
            clients.push(server.session().await?);
        }
        let segments = try_join_all(clients.iter_mut().map(|client| client.segment(PROMPT)));
        let mut seen = Held::default();
        tokio::select! {
            made = segments => { made?; }
            looked = seen.watch(&server) => match looked? {},
        }
        most.push(seen);
    }
    let (with, without) = (most[0], most[1]);
    let each = |bytes: f64| bytes / MIB / SESSIONS as f64;
    let row = |key, what, measured, note| Row {
        key,
        what,
        unit: "MiB",
        python: "-",
        target: Target::None,
        measured,
        figures: None,
        note,
    };
    Ok(vec![
        row(
            "step_snapshot_memory",
            "memory of snapshots for each running session, the most",
            each(with.gauge),
            format!(
                "of {SESSIONS} sessions, latents of 8 MiB; shared memory of the machine {:.1} MiB for each, while a worker writes the next one, too",
                each(with.shared - without.shared)
            ),
        ),
        row(
            "step_snapshot_resident",
            "resident memory of the supervisor beyond that without snapshots, for each",
            each(with.resident - without.resident),
            format!("{:.1} MiB in all", with.resident / MIB),
        ),
    ])
}

/// The most memory that was seen, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// What the supervisor says that it holds in snapshots.
    gauge: f64,
    /// Shared memory of the whole machine.
    shared: f64,
    /// Resident memory of the supervisor.
    resident: f64,
}

impl Held {
    /// Looks again and again.
    async fn watch(&mut self, server: &Server) -> anyhow::Result<Infallible> {
        loop {
            sleep(LOOK_AGAIN).await;
            self.look(server).await?;
        }
    }

    async fn look(&mut self, server: &Server) -> anyhow::Result<()> {
        let gauge = server.metric("fastvideo_step_snapshot_bytes").await?;
        self.gauge = self.gauge.max(gauge);
        let text = fs::read_to_string("/proc/meminfo")?;
        let shared = text.lines().find_map(|line| line.strip_prefix("Shmem:"));
        let shared = shared.context("the kernel tells shared memory")?;
        let kib: f64 = shared.trim_end_matches("kB").trim().parse()?;
        self.shared = self.shared.max(kib * 1024.0);
        let resident = memory(server.pid())?.resident * 1024.0;
        self.resident = self.resident.max(resident);
        Ok(())
    }
}

/// Denoise steps that the workers of a server have done.
async fn steps_done(server: &Server) -> anyhow::Result<f64> {
    let series = "fastvideo_step_seconds_count{stage=\"denoise\"}";
    server.metric(series).await
}
