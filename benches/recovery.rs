//! SIGKILL of a worker in the middle of a job: how long until the job runs again on another.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tokio::time::timeout;

use crate::client::{Client, Heard, PATIENCE};
use crate::figures::{Figures, milliseconds};
use crate::report::{Row, Target};
use crate::server::Server;

const WORKERS: u64 = 2;
const STEP_MS: &str = "20";
const FRAME_MS: &str = "20";

/// What the job is doing when its worker dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No media were sent: the client sees nothing but a pause.
    Denoise,
    /// The client is told that the segment begins again.
    Media,
}

pub(crate) async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    let server = Server::start_ready(
        WORKERS,
        &[
            "--default_request.sampling.width=512",
            "--default_request.sampling.height=320",
            "--default_request.sampling.num_frames=24",
            "--generator.synthetic.step_ms",
            STEP_MS,
            "--generator.synthetic.frame_ms",
            FRAME_MS,
            "--streaming.pool.min_backoff_ms=10",
            "--streaming.pool.quarantine_after=1000",
            // A process that takes up its work within milliseconds is busy when it is killed again.
            "--max-attempts=100",
        ],
    )
    .await?;
    let mut client = server.session().await?;
    let mut took = Vec::new();
    for run in 0..runs {
        let phase = match run % 2 {
            0 => Phase::Denoise,
            _ => Phase::Media,
        };
        server.ready(WORKERS).await?;
        let recovering = recover(&server, &mut client, phase);
        let recovered = timeout(PATIENCE, recovering).await;
        took.push((phase, recovered.context("the job does not run again")??));
    }
    let of = |phase| -> anyhow::Result<f64> {
        let took = took.iter().filter(|(p, _)| *p == phase);
        Ok(Figures::of(took.map(|(_, took)| milliseconds(*took)))?.p50)
    };
    let figures = Figures::of(took.iter().map(|(_, took)| milliseconds(*took)))?;
    Ok(vec![Row {
        key: "recovery",
        what: "SIGKILL of a worker to its job running again, p99",
        unit: "ms",
        python: "never",
        target: Target::AtMost(500.0),
        measured: figures.p99,
        note: format!(
            "to the first new step at the client, one of {STEP_MS} ms included; killed in denoising p50 {:.1} ms, in media {:.1} ms",
            of(Phase::Denoise)?,
            of(Phase::Media).unwrap_or_default(),
        ),
        figures: Some(figures),
    }])
}

/// Asks for a segment, kills its worker in that phase, and takes the segment whole.
async fn recover(server: &Server, client: &mut Client, phase: Phase) -> anyhow::Result<Duration> {
    client.prompt("a red balloon over rooftops").await?;
    loop {
        let (_, heard) = client.next().await?;
        ensure!(!heard.is("error"), "{heard:?}");
        match phase {
            Phase::Denoise if heard.is("step_complete") => break,
            Phase::Media if matches!(heard, Heard::Media(_)) => break,
            _ => {}
        }
    }
    let busy = server.busy_worker().await?;
    kill(busy.pid, Signal::SIGKILL)?;
    let killed = Instant::now();
    let mut elsewhere = false;
    let running = loop {
        let (at, heard) = client.next().await?;
        match heard {
            Heard::Text(text) if text["type"] == "gpu_assigned" => {
                ensure!(
                    text["worker_id"] != json!(busy.id),
                    "bound to the dead worker"
                );
                elsewhere = true;
            }
            // Those before were on their way already.
            heard if elsewhere && heard.is("step_complete") => break at,
            _ => {}
        }
    };
    client.until("ltx2_segment_complete").await?;
    Ok(running - killed)
}
