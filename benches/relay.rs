//! What the supervisor adds to a fragment's way, on a machine that has other work: both cores are kept half busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde::Deserialize;
use tokio::time::{sleep, timeout_at};

use crate::client::Client;
use crate::cost::MachineTime;
use crate::figures::Figures;
use crate::report::{Row, Target};
use crate::server::Server;

const SESSIONS: u64 = 4;
const STREAMED: Duration = Duration::from_secs(30);
/// A frame every 1/24 s, so that each session streams as fast as it is watched.
const FRAME_MS: &str = "41.67";
/// Viewers do not all ask in the same moment: each begins this much after the one before, out of step with the frames.
const STAGGER: Duration = Duration::from_millis(73);
/// A core is busy for this long, and then free for as long.
const HALF_TURN: Duration = Duration::from_millis(5);

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    let quiet = stream().await?;
    let work = HalfBusy::start()?;
    let busy = stream().await?;
    drop(work);
    let row = |key, what, target, streamed: Streamed| Row {
        key,
        what,
        unit: "ms",
        python: "-",
        target,
        measured: streamed.latency.p99_ms,
        figures: None,
        note: format!(
            "by /status: p50 {:.2} ms, {} messages of {SESSIONS} sessions; cores busy for {:.0} % of the time; a thread that only sleeps woke up late by {:.2} ms, p99",
            streamed.latency.p50_ms,
            streamed.latency.count,
            streamed.busy * 100.0,
            streamed.lateness.p99,
        ),
    };
    Ok(vec![
        row(
            "relay_latency_busy",
            "worker's fragment to socket, p99, both cores half busy",
            Target::AtMost(2.0),
            busy,
        ),
        row(
            "relay_latency_quiet",
            "the same without other work",
            Target::None,
            quiet,
        ),
    ])
}

#[derive(Debug)]
struct Streamed {
    latency: Latency,
    /// Share of the cores' time that somebody used, this benchmark included.
    busy: f64,
    lateness: Figures,
}

/// `relay_latency` in `/status`.
#[derive(Debug, Deserialize)]
struct Latency {
    count: u64,
    p50_ms: f64,
    p99_ms: f64,
}

async fn stream() -> anyhow::Result<Streamed> {
    let server = Server::start_ready(
        SESSIONS,
        &[
            "--default_request.sampling.width=512",
            "--default_request.sampling.height=320",
            "--default_request.sampling.num_frames=121",
            "--default_request.sampling.fps=24",
            "--generator.synthetic.prerender=true",
            "--generator.synthetic.step_ms=0",
            "--generator.synthetic.frame_ms",
            FRAME_MS,
        ],
    )
    .await?;
    let clients = try_join_all((0..SESSIONS).map(|_| server.session())).await?;
    let before = MachineTime::look()?;
    let probe = Probe::start();
    let end = Instant::now() + STREAMED;
    let watching = clients
        .into_iter()
        .zip(0..)
        .map(|(client, place)| async move {
            sleep(STAGGER * place).await;
            watch(client, end).await
        });
    try_join_all(watching).await?;
    let busy = MachineTime::look()?.busy_since(&before);
    let lateness = Figures::of(probe.stop())?;
    let status = server.get("/status").await?;
    Ok(Streamed {
        latency: Latency::deserialize(&status["relay_latency"])?,
        busy,
        lateness,
    })
}

/// Asks for segment after segment.
async fn watch(mut client: Client, end: Instant) -> anyhow::Result<()> {
    loop {
        let segment = client.segment("a train through snowy mountains");
        match timeout_at(end.into(), segment).await {
            Err(_) => return Ok(()),
            Ok(ended) => ended?,
        }
    }
}

/// How late the machine wakes a thread that has nothing to do but to sleep: what nobody's program can be better than.
#[derive(Debug)]
struct Probe {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<f64>>,
}

impl Probe {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = thread::spawn(move || {
            let mut late_ms = Vec::new();
            while !seen.load(Ordering::Relaxed) {
                let due = Instant::now() + HALF_TURN;
                thread::park_timeout(HALF_TURN);
                late_ms.push(due.elapsed().as_secs_f64() * 1e3);
            }
            late_ms
        });
        Self { over, thread }
    }

    /// Milliseconds, one for each time that it woke up.
    fn stop(self) -> Vec<f64> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// One thread for each core, which has work half of the time.
#[derive(Debug)]
struct HalfBusy {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl HalfBusy {
    fn start() -> anyhow::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let cores = thread::available_parallelism()?.get();
        let threads = (0..cores).map(|_| {
            let over = over.clone();
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let until = Instant::now() + HALF_TURN;
                    while Instant::now() < until {
                        std::hint::spin_loop();
                    }
                    thread::park_timeout(HALF_TURN);
                }
            })
        });
        Ok(Self {
            threads: threads.collect(),
            over,
        })
    }
}

impl Drop for HalfBusy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
