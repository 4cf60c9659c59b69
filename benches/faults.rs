//! Random faults of workers under load: every segment must end with the bytes that it has when nothing happens, and go on
//! soon.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::future::try_join_all;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::client::{Client, Heard, PATIENCE};
use crate::figures::{Figures, milliseconds};
use crate::report::{Row, Target};
use crate::server::Server;

const WORKERS: u64 = 8;
/// Fewer than workers: some are free to take over, as in a server that is not full.
const SESSIONS: usize = 5;
const SEGMENTS_EACH: usize = 200;
/// One segment in so many has a fault.
const FAULT_EVERY: u32 = 3;
const STEPS: u64 = 8;
/// In the prompt of a segment whose first worker hangs in a step.
const HANGS: &str = "stuck";
/// The step that it hangs in is the one after this; it reports this one just before.
const LAST_STEP_BEFORE_HANG: u64 = 2;
const DETECTION_MS: u64 = 100;

const SIZE: &[&str] = &[
    "--default_request.sampling.width=64",
    "--default_request.sampling.height=64",
    "--default_request.sampling.num_frames=12",
    "--default_request.sampling.num_inference_steps=8",
    "--generator.synthetic.audio_latent_frames=4",
    "--streaming.warmup.enabled=false",
    "--streaming.pool.keep_up=false",
];

const WATCHFUL: &[&str] = &[
    "--generator.synthetic.step_ms=10",
    "--generator.synthetic.frame_ms=5",
    "--generator.synthetic.faults=spin@step3,prompt=stuck,max_attempt=1",
    "--streaming.pool.heartbeat_interval_ms=25",
    "--streaming.pool.heartbeat_timeout_ms=100",
    "--streaming.pool.min_step_timeout_ms=100",
    "--streaming.pool.min_backoff_ms=1",
    "--streaming.pool.max_backoff_ms=10",
    "--streaming.pool.quarantine_after=1000",
    "--max-attempts=100",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// SIGKILL.
    Killed,
    /// SIGABRT, which is what `abort` raises.
    Aborted,
    /// SIGSTOP: no heartbeats.
    Stopped,
    /// Heartbeats, and no progress.
    Hangs,
}

const FAULTS: [Fault; 4] = [Fault::Killed, Fault::Aborted, Fault::Stopped, Fault::Hangs];

/// The moment of a segment at which its worker gets a signal.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Step(u64),
    FirstMedia,
}

/// What befalls one segment.
#[derive(Clone, Copy, Debug)]
struct Plan {
    fault: Fault,
    moment: Moment,
}

impl Plan {
    fn draw() -> Option<Self> {
        if rand::random_range(0..FAULT_EVERY) > 0 {
            return None;
        }
        let fault = FAULTS[rand::random_range(0..FAULTS.len())];
        let moment = match rand::random_range(1..=STEPS + 2) {
            step @ 1..=STEPS => Moment::Step(step),
            _ => Moment::FirstMedia,
        };
        Some(Self { fault, moment })
    }

    /// What its worker gets when this is heard.
    fn signal_at(self, heard: &Heard) -> Option<Signal> {
        let signal = match self.fault {
            Fault::Killed => Signal::SIGKILL,
            Fault::Aborted => Signal::SIGABRT,
            Fault::Stopped => Signal::SIGSTOP,
            Fault::Hangs => return None,
        };
        let now = match (self.moment, heard) {
            (Moment::Step(step), Heard::Text(text)) => {
                text["type"] == "step_complete" && text["step"] == step
            }
            (Moment::FirstMedia, Heard::Media(_)) => true,
            _ => false,
        };
        now.then_some(signal)
    }
}

/// What one session saw.
#[derive(Debug, Default)]
struct Seen {
    /// The bytes of each segment, without those that the client was told to drop.
    media: Vec<Vec<u8>>,
    recovered: Vec<(Fault, Duration)>,
    /// Faults for which the segment had ended already.
    late: u32,
    /// Segments that began again and had no fault of ours.
    by_themselves: u32,
}

/// A fault that was done to the segment in hand.
#[derive(Debug)]
struct Done {
    fault: Fault,
    at: Instant,
    worker: Value,
}

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    let plans: Vec<Vec<Option<Plan>>> = (0..SESSIONS)
        .map(|_| (0..SEGMENTS_EACH).map(|_| Plan::draw()).collect())
        .collect();
    let expected = watch(&[], &plans, false).await?;
    let begun = Instant::now();
    let seen = watch(WATCHFUL, &plans, true).await?;
    let took = begun.elapsed();

    let pairs = || {
        let expected = expected.iter().flat_map(|seen| &seen.media);
        expected.zip(seen.iter().flat_map(|seen| &seen.media))
    };
    let same = pairs()
        .filter(|(expected, media)| expected == media)
        .count();
    let all = pairs().count();
    ensure!(all == SESSIONS * SEGMENTS_EACH, "only {all} segments");
    let recovered = || seen.iter().flat_map(|seen| seen.recovered.iter().copied());
    let figures = Figures::of(recovered().map(|(_, took)| milliseconds(took)))?;
    let mut by_fault: BTreeMap<Fault, Vec<f64>> = BTreeMap::new();
    for (fault, took) in recovered() {
        by_fault.entry(fault).or_default().push(milliseconds(took));
    }
    let mut kinds = Vec::new();
    for (fault, took) in by_fault {
        let Figures { n, p50, p99, .. } = Figures::of(took)?;
        kinds.push(format!("{fault:?} {n} ({p50:.0} / {p99:.0} ms)"));
    }
    let late: u32 = seen.iter().map(|seen| seen.late).sum();
    let by_themselves: u32 = seen.iter().map(|seen| seen.by_themselves).sum();
    let row = |key, what, target, measured| Row {
        key,
        what,
        unit: "ms",
        python: "never",
        target,
        measured,
        figures: Some(figures.clone()),
        note: String::new(),
    };
    Ok(vec![
        Row {
            key: "faults_same_bytes",
            what: "segments with the bytes of a run without faults",
            unit: "%",
            python: "-",
            target: Target::AtLeast(100.0),
            measured: same as f64 * 100.0 / all as f64,
            figures: None,
            note: format!(
                "{same} of {all} in {:.0} s, {SESSIONS} sessions on {WORKERS} workers; {} faults, {late} more came when the segment had ended; {by_themselves} segments began again without one",
                took.as_secs_f64(),
                figures.n,
            ),
        },
        Row {
            note: format!(
                "to the first step_complete of the next attempt, a step of 10 ms included; a silent or hanging worker is noticed after {DETECTION_MS} ms, as configured"
            ),
            ..row(
                "faults_recovery_p50",
                "fault of a worker to its segment running again, p50",
                Target::AtMost(150.0),
                figures.p50,
            )
        },
        Row {
            note: format!("p50 / p99 of each: {}", kinds.join(", ")),
            ..row(
                "faults_recovery_p99",
                "the same, p99",
                Target::AtMost(500.0),
                figures.p99,
            )
        },
    ])
}

/// Runs all sessions on a server, with the faults or without.
async fn watch(
    args: &[&str],
    plans: &[Vec<Option<Plan>>],
    with_faults: bool,
) -> anyhow::Result<Vec<Seen>> {
    let server = Server::start_ready(WORKERS, &[SIZE, args].concat()).await?;
    let sessions = plans.iter().enumerate().map(async |(session, plans)| {
        let (mut client, assigned) = Client::assigned(&server.address, json!({})).await?;
        let mut worker = assigned["worker_id"].clone();
        let mut seen = Seen::default();
        for (n, plan) in plans.iter().enumerate() {
            let hangs = plan.is_some_and(|plan| plan.fault == Fault::Hangs);
            let prompt = match hangs {
                true => format!("a red fox {HANGS} in the snow, {session} {n}"),
                false => format!("a red fox in the snow, {session} {n}"),
            };
            client.prompt(&prompt).await?;
            let plan = plan.filter(|_| with_faults);
            let segment = segment(&server, &mut client, &mut worker, plan, &mut seen);
            (timeout(PATIENCE, segment).await)
                .with_context(|| format!("segment {n} of session {session} does not end"))?
                .with_context(|| format!("segment {n} of session {session}"))?;
        }
        client.send(json!({"type": "leave"})).await?;
        anyhow::Ok(seen)
    });
    try_join_all(sessions).await
}

/// Takes a segment whole, and does to its worker what is planned.
async fn segment(
    server: &Server,
    client: &mut Client,
    worker: &mut Value,
    mut plan: Option<Plan>,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    let planned = plan.is_some();
    let mut media = Vec::new();
    let mut done: Option<Done> = None;
    loop {
        let (at, heard) = client.next().await?;
        if let Some(signal) = plan.and_then(|plan| plan.signal_at(&heard)) {
            let fault = plan.take().map(|plan| plan.fault);
            let pid = server
                .pid_of_worker(worker.as_str().unwrap_or_default())
                .await?;
            if let (Some(pid), Some(fault)) = (pid, fault) {
                kill(pid, signal)?;
                done = Some(Done {
                    fault,
                    at: Instant::now(),
                    worker: worker.clone(),
                });
            }
        }
        let text = match heard {
            Heard::Media(bytes) => {
                media.extend_from_slice(&bytes);
                continue;
            }
            Heard::Text(text) => text,
        };
        match text["type"].as_str().unwrap_or_default() {
            "gpu_assigned" => *worker = text["worker_id"].clone(),
            "error" if text["restarting"] == true => media.clear(),
            "error" => bail!("{text}"),
            "ltx2_segment_start" if text["attempt"] != 1 && !planned => seen.by_themselves += 1,
            "step_complete" => {
                let again = done.take_if(|done| done.worker != *worker);
                if let Some(Done { fault, at: was, .. }) = again {
                    seen.recovered.push((fault, at - was));
                }
                let hangs = plan.is_some_and(|plan| plan.fault == Fault::Hangs);
                if hangs && text["step"] == LAST_STEP_BEFORE_HANG {
                    plan = None;
                    done = Some(Done {
                        fault: Fault::Hangs,
                        at,
                        worker: worker.clone(),
                    });
                }
            }
            "ltx2_segment_complete" => {
                seen.late += u32::from(done.is_some());
                seen.media.push(media);
                return Ok(());
            }
            _ => {}
        }
    }
}
