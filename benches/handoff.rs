//! A session with a state of a full picture size goes on elsewhere: on another worker, and on another server.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::client::{Client, Heard};
use crate::cost::cpu_time;
use crate::figures::{Figures, milliseconds};
use crate::report::{Row, Target};
use crate::server::Server;
use crate::store::Store;

/// Trailing frames in RGB; the latents of the sound add 13 kB.
pub(crate) const STATE_BYTES: usize = 9 * 1920 * 1088 * 3;
/// All frames of a segment are in its state. The step is long enough for everything to be over that a move brings about.
pub(crate) const FULL_SIZE: &[&str] = &[
    "--default_request.sampling.width=1920",
    "--default_request.sampling.height=1088",
    "--default_request.sampling.num_frames=9",
    "--default_request.sampling.num_inference_steps=2",
    "--generator.synthetic.step_ms=100",
    "--generator.synthetic.prerender=true",
    "--streaming.warmup.width=1920",
    "--streaming.warmup.height=1088",
];
/// Between two segments, so that one does not pay for the other.
const SETTLE: Duration = Duration::from_millis(300);

pub(crate) async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    let mut rows = between_workers(runs).await?;
    rows.push(between_servers(runs).await?);
    Ok(rows)
}

/// A session's next segment up to its first step.
#[derive(Clone, Copy, Debug)]
struct Begun {
    time: Duration,
    cpu: Duration,
}

async fn between_workers(runs: usize) -> anyhow::Result<Vec<Row>> {
    let store = Store::memory()?;
    let server = Server::start_ready(2, &store.with(FULL_SIZE)).await?;
    let mut processes = server.worker_pids().await?;
    processes.push(server.pid());
    let (mut client, assigned) = Client::assigned(&server.address, json!({})).await?;
    let path = format!("/v1/sessions/{}/move", text(&assigned, "session_id")?);
    client.segment("a lighthouse over a stormy sea").await?;
    let (mut moved, mut stayed) = (Vec::new(), Vec::new());
    // What the first move opens and maps is there from then on.
    for run in 0..=runs {
        sleep(SETTLE).await;
        let went = begin(&server, &mut client, &processes, Some(&path)).await?;
        sleep(SETTLE).await;
        let was_there = begin(&server, &mut client, &processes, None).await?;
        if run > 0 {
            moved.push(went);
            stayed.push(was_there);
        }
    }
    let copies = (0..runs)
        .map(|_| copy())
        .collect::<anyhow::Result<Vec<_>>>()?;
    let copy = Figures::of(copies.into_iter().map(milliseconds))?;
    let p50 = |begun: &[Begun], value: fn(&Begun) -> Duration| -> anyhow::Result<f64> {
        Ok(Figures::of(begun.iter().map(value).map(milliseconds))?.p50)
    };
    let stays = p50(&stayed, |begun| begun.time)?;
    let added = Figures::of(moved.iter().map(|begun| milliseconds(begun.time) - stays))?;
    let stays_cpu = p50(&stayed, |begun| begun.cpu)?;
    let per_copy = |begun: &Begun| (milliseconds(begun.cpu) - stays_cpu) / copy.p50;
    let cpu = Figures::of(moved.iter().map(per_copy))?;
    Ok(vec![
        Row {
            key: "handoff",
            what: "session moved to another worker, 1920x1088, time added",
            unit: "ms",
            python: "-",
            target: Target::AtMost(60.0),
            measured: added.p50,
            note: format!(
                "from sending the move, with the request right after its answer, to the first step_complete, less the same of a request without a move ({stays:.1} ms, a step of 100 ms included)"
            ),
            figures: Some(added),
        },
        Row {
            key: "handoff_cpu",
            what: "processor time that it adds / copy of the state",
            unit: "x",
            python: "-",
            target: Target::AtMost(3.0),
            measured: cpu.p50,
            note: format!(
                "supervisor and workers in that time {:.1} ms, without a move {stays_cpu:.1} ms; copy of {:.1} MB into fresh memory {:.1} ms",
                p50(&moved, |begun| begun.cpu)?,
                STATE_BYTES as f64 / 1e6,
                copy.p50,
            ),
            figures: Some(cpu),
        },
    ])
}

/// Asks for a segment, after a move if there is one, and takes it whole.
async fn begin(
    server: &Server,
    client: &mut Client,
    processes: &[Pid],
    moved: Option<&str>,
) -> anyhow::Result<Begun> {
    let cpu_before = cpu_of(processes)?;
    let asked = Instant::now();
    if let Some(path) = moved {
        let code = server.post(path).await?;
        ensure!(code == 202, "the move was answered with {code}");
    }
    client.prompt("a lighthouse over a stormy sea").await?;
    let mut assigned = false;
    let stepped = loop {
        let (at, heard) = client.next().await?;
        ensure!(!heard.is("error"), "{heard:?}");
        assigned |= heard.is("gpu_assigned");
        if heard.is("step_complete") {
            break at;
        }
    };
    let cpu = cpu_of(processes)?.saturating_sub(cpu_before);
    ensure!(assigned == moved.is_some(), "moved: {assigned}");
    client.until("ltx2_segment_complete").await?;
    Ok(Begun {
        time: stepped - asked,
        cpu,
    })
}

async fn between_servers(runs: usize) -> anyhow::Result<Row> {
    let store = Store::redis().await?;
    let args = store.with(FULL_SIZE);
    let servers = [
        Server::start_ready(1, &args).await?,
        Server::start_ready(1, &args).await?,
    ];
    let (mut fresh, mut resumed, mut stored) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=runs {
        let [from, to] = match run % 2 {
            0 => [&servers[0], &servers[1]],
            _ => [&servers[1], &servers[0]],
        };
        sleep(SETTLE).await;
        let (mut client, assigned, new) = open(&from.address, json!({})).await?;
        let storing = finish(&mut client).await?;
        drop(client);
        let resume = json!({"resume": {
            "session_id": assigned["session_id"], "token": assigned["resume_token"],
        }});
        sleep(SETTLE).await;
        let (mut client, _, again) = open(&to.address, resume).await?;
        finish(&mut client).await?;
        client.send(json!({"type": "leave"})).await?;
        client.until("ltx2_stream_complete").await?;
        if run > 0 {
            fresh.push(milliseconds(new));
            resumed.push(milliseconds(again));
            stored.push(milliseconds(storing));
        }
    }
    let fresh = Figures::of(fresh)?.p50;
    let stored = Figures::of(stored)?;
    let added = Figures::of(resumed.into_iter().map(|took| took - fresh))?;
    Ok(Row {
        key: "handoff_servers",
        what: "the same to another server, Redis and blobs on disk",
        unit: "ms",
        python: "-",
        target: Target::AtMost(250.0),
        measured: added.p50 + stored.p50,
        note: format!(
            "from the opening message that resumes to the first step_complete {:.1} ms more than for a new session ({fresh:.1} ms), and from the last media of the segment before to its ltx2_segment_complete {:.1} ms (p99 {:.1}), encoding's end included",
            added.p50, stored.p50, stored.p99,
        ),
        figures: Some(added),
    })
}

/// Opens a session and asks for a segment at once; the time up to its first step.
async fn open(address: &str, opening: Value) -> anyhow::Result<(Client, Value, Duration)> {
    let asked = Instant::now();
    let mut client = Client::connect(address, opening).await?;
    client.prompt("a lighthouse over a stormy sea").await?;
    let (_, assigned) = client.until("gpu_assigned").await?;
    let (stepped, _) = client.until("step_complete").await?;
    Ok((client, assigned, stepped - asked))
}

/// Takes the rest of a segment; the time from its last media to its end, which is when its state is stored.
async fn finish(client: &mut Client) -> anyhow::Result<Duration> {
    let mut last_media = None;
    loop {
        match client.next().await? {
            (at, Heard::Media(_)) => last_media = Some(at),
            (at, heard) if heard.is("ltx2_segment_complete") => {
                return Ok(at - last_media.context("a segment has media")?);
            }
            (_, heard) => ensure!(!heard.is("error"), "{heard:?}"),
        }
    }
}

/// Processor time of copying as many bytes as a state has into fresh memory.
fn copy() -> anyhow::Result<Duration> {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    let source = vec![7_u8; STATE_BYTES];
    let before = clock_gettime(clock)?;
    let copied = black_box(black_box(&source).clone());
    let took = clock_gettime(clock)? - before;
    drop(copied);
    Ok(Duration::from_nanos(took.num_nanoseconds().unsigned_abs()))
}

fn cpu_of(processes: &[Pid]) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for &pid in processes {
        sum += cpu_time(pid)?;
    }
    Ok(sum)
}

fn text<'a>(message: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    message[field].as_str().context("it has that field")
}
