//! A segment of 121 frames at 1920x1088 that were rendered beforehand, held against the encoder alone: each session is
//! measured directly after a run of the encoder in a process of its own, so that both see the same machine.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::time::sleep;

use crate::client::{Client, Heard};
use crate::cost::{cpu_time, memory};
use crate::figures::Figures;
use crate::report::{Row, Target};
use crate::server::{Server, command};

/// How long the processes have to settle before and after a segment: the next encoder is opened after its end.
const SETTLE: Duration = Duration::from_millis(200);
/// Of the encoder alone, in each of its processes.
const ENCODER_RUNS: &str = "3";
const KIB_PER_MB: f64 = 1e6 / 1024.0;

pub(crate) async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    let server = Server::start_ready(
        1,
        &[
            "--default_request.sampling.width=1920",
            "--default_request.sampling.height=1088",
            "--default_request.sampling.num_frames=121",
            "--generator.synthetic.prerender=true",
            "--generator.synthetic.step_ms=0",
            "--generator.synthetic.frame_ms=0",
        ],
    )
    .await?;
    let mut processes = server.worker_pids().await?;
    processes.push(server.pid());

    let mut alone = Vec::new();
    let mut firsts = Vec::new();
    let mut seconds = Vec::new();
    for _ in 0..runs {
        alone.push(encoder_alone().await?);
        let mut client = server.session().await?;
        firsts.push(Segment::measure(&mut client, &processes).await?);
        seconds.push(Segment::measure(&mut client, &processes).await?);
    }
    for (segment, alone) in firsts.iter().zip(&alone) {
        let ratio = segment.bytes as f64 / alone.bytes as f64;
        ensure!(
            (0.98..1.02).contains(&ratio),
            "{segment:?} is not what {alone:?} encoded"
        );
    }
    let peak = memory(server.pid())?.peak / KIB_PER_MB;

    let pairs = || firsts.iter().zip(&alone).chain(seconds.iter().zip(&alone));
    let first = Figures::of(firsts.iter().map(|s| s.first_fragment_ms))?;
    let second = Figures::of(seconds.iter().map(|s| s.first_fragment_ms))?;
    let time = Figures::of(pairs().map(|(segment, alone)| segment.total_ms / alone.total_ms))?;
    let cpu = Figures::of(pairs().map(|(segment, alone)| segment.cpu_s / alone.cpu_s))?;
    let p50 = |segments: &[Segment], value: fn(&Segment) -> f64| -> anyhow::Result<f64> {
        Ok(Figures::of(segments.iter().map(value))?.p50)
    };
    let alone_ms = Figures::of(alone.iter().map(|a| a.total_ms))?.p50;
    let alone_s = Figures::of(alone.iter().map(|a| a.cpu_s))?.p50;
    let alone_first = Figures::of(alone.iter().map(|a| a.first_fragment_ms))?.p50;
    Ok(vec![
        Row {
            key: "first_fragment",
            what: "first fragment after the first frame exists, 1920x1088",
            unit: "ms",
            python: "2407 ms",
            target: Target::AtMost(60.0),
            measured: first.p50,
            figures: Some(first),
            note: format!(
                "from the last step_complete at the client; encoder alone {alone_first:.1} ms"
            ),
        },
        Row {
            key: "first_fragment_second",
            what: "the same, second segment",
            unit: "ms",
            python: "-",
            target: Target::AtMost(30.0),
            measured: second.p50,
            figures: Some(second),
            note: String::new(),
        },
        Row {
            key: "segment_time",
            what: "121 frames 1920x1088, request to complete / encoder alone",
            unit: "x",
            python: "4990 / 2466 ms",
            target: Target::AtMost(1.15),
            measured: time.p50,
            figures: Some(time),
            note: format!(
                "first segment {:.0} ms, second {:.0} ms ({:.1} ms before its frames, {:.1} ms after its media), encoder alone {alone_ms:.0} ms",
                p50(&firsts, |s| s.total_ms)?,
                p50(&seconds, |s| s.total_ms)?,
                p50(&seconds, |s| s.before_ms)?,
                p50(&seconds, |s| s.after_ms)?,
            ),
        },
        Row {
            key: "segment_cpu",
            what: "processor time for it, supervisor and worker / encoder alone",
            unit: "x",
            python: "6.32 / 2.70 s",
            target: Target::AtMost(1.15),
            measured: cpu.p50,
            figures: Some(cpu),
            note: format!(
                "first segment {:.3} s, second {:.3} s, encoder alone {alone_s:.3} s",
                p50(&firsts, |s| s.cpu_s)?,
                p50(&seconds, |s| s.cpu_s)?,
            ),
        },
        Row {
            key: "supervisor_peak_memory",
            what: "peak memory of the supervisor while it runs",
            unit: "MB",
            python: "3990 / 1018 MB",
            target: Target::AtMost(40.0),
            measured: peak,
            figures: None,
            note: format!("VmHWM after {} segments", 2 * runs),
        },
    ])
}

/// What `fastvideo-worker bench-encode` says.
#[derive(Debug, Deserialize)]
struct EncoderAlone {
    first_fragment_ms: f64,
    total_ms: f64,
    cpu_s: f64,
    bytes: usize,
}

async fn encoder_alone() -> anyhow::Result<EncoderAlone> {
    let mut command = command("fastvideo-worker")?;
    command.args(["bench-encode", "--runs", ENCODER_RUNS]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "bench-encode: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// One segment as its client saw it.
#[derive(Debug)]
struct Segment {
    /// From the last denoise step to the first fragment: with frames rendered beforehand, the first exists then.
    first_fragment_ms: f64,
    /// From the request to `ltx2_segment_complete`.
    total_ms: f64,
    /// From the request to the last denoise step.
    before_ms: f64,
    /// From the last fragment to `ltx2_segment_complete`.
    after_ms: f64,
    /// Of all processes.
    cpu_s: f64,
    bytes: usize,
}

impl Segment {
    async fn measure(client: &mut Client, processes: &[Pid]) -> anyhow::Result<Self> {
        sleep(SETTLE).await;
        let cpu_before = cpu_of(processes)?;
        let requested = Instant::now();
        client.prompt("a lighthouse over a stormy sea").await?;
        let mut denoised = None;
        let mut media = Vec::new();
        let mut bytes = 0;
        let completed = loop {
            match client.next().await? {
                (at, Heard::Media(message)) => {
                    media.push(at);
                    bytes += message.len();
                }
                (at, heard) if heard.is("step_complete") => denoised = Some(at),
                (at, heard) if heard.is("ltx2_segment_complete") => break at,
                (_, heard) => ensure!(!heard.is("error"), "{heard:?}"),
            }
        };
        sleep(SETTLE).await;
        let cpu = cpu_of(processes)?.saturating_sub(cpu_before);
        let denoised = denoised.context("steps are reported")?;
        // The first binary message is the init segment.
        let first = *media.get(1).context("a segment has fragments")?;
        let last = *media.last().context("a segment has fragments")?;
        Ok(Self {
            first_fragment_ms: (first - denoised).as_secs_f64() * 1e3,
            total_ms: (completed - requested).as_secs_f64() * 1e3,
            before_ms: (denoised - requested).as_secs_f64() * 1e3,
            after_ms: (completed - last).as_secs_f64() * 1e3,
            cpu_s: cpu.as_secs_f64(),
            bytes,
        })
    }
}

fn cpu_of(processes: &[Pid]) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for &pid in processes {
        sum += cpu_time(pid)?;
    }
    Ok(sum)
}
