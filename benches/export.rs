//! The export of a state of a full picture size with all its tensors in one JSON document, and who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::client::Client;
use crate::figures::{Figures, milliseconds};
use crate::handoff::{FULL_SIZE, STATE_BYTES};
use crate::report::{Row, Target};
use crate::server::Server;
use crate::store::Store;

/// Before the first export, so that the segment's end is over.
const SETTLE: Duration = Duration::from_millis(500);
/// Between two requests of those who ask meanwhile.
const PAUSE: Duration = Duration::from_millis(1);
/// What a test's own client takes in.
const BODY_LIMIT: u64 = 1 << 30;

pub(crate) async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    let store = Store::memory()?;
    let server = Server::start_ready(1, &store.with(FULL_SIZE)).await?;
    let (mut client, assigned) = Client::assigned(&server.address, json!({})).await?;
    client.segment("a lighthouse over a stormy sea").await?;
    let id = assigned["session_id"].as_str().context("it has an id")?;
    let url = format!(
        "http://{}/v1/sessions/{id}/state?inline=true",
        server.address
    );
    sleep(SETTLE).await;
    let alone = others_while(&server, sleep(SETTLE)).await?.1;
    let (mut took, mut others, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..runs {
        let url = url.clone();
        let exporting = spawn_blocking(move || export(&url));
        let (exported, waited) = others_while(&server, exporting).await?;
        let (time, size) = exported??;
        took.push(milliseconds(time));
        others.extend(waited);
        bytes = size;
    }
    let took = Figures::of(took)?;
    let others = Figures::of(others)?;
    Ok(vec![Row {
        key: "export",
        what: "state of 1920x1088 as JSON with all in it, request to last byte",
        unit: "ms",
        python: "-",
        target: Target::AtMost(400.0),
        measured: took.p50,
        note: format!(
            "{:.1} MB of {:.1} MB of tensors; /healthz meanwhile p50 {:.1} ms, p99 {:.1} ms of {}, otherwise p99 {:.1} ms",
            bytes as f64 / 1e6,
            STATE_BYTES as f64 / 1e6,
            others.p50,
            others.p99,
            others.n,
            Figures::of(alone)?.p99,
        ),
        figures: Some(took),
    }])
}

/// The time to the last byte, and how many there were.
fn export(url: &str) -> anyhow::Result<(Duration, usize)> {
    let asked = Instant::now();
    let mut answer = ureq::get(url).call()?;
    let body = answer.body_mut().with_config().limit(BODY_LIMIT);
    let bytes = body.read_to_vec()?.len();
    let took = asked.elapsed();
    ensure!(bytes > 1000, "the state has only {bytes} bytes");
    Ok((took, bytes))
}

/// How long other requests take, in milliseconds, while something goes on.
async fn others_while<T>(
    server: &Server,
    going_on: impl Future<Output = T>,
) -> anyhow::Result<(T, Vec<f64>)> {
    let over = Arc::new(AtomicBool::new(false));
    let url = format!("http://{}/healthz", server.address);
    let asking = spawn_blocking({
        let over = over.clone();
        move || {
            let agent = ureq::Agent::new_with_defaults();
            let mut took = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                agent.get(&url).call()?.body_mut().read_to_vec()?;
                took.push(milliseconds(asked.elapsed()));
                std::thread::park_timeout(PAUSE);
            }
            anyhow::Ok(took)
        }
    });
    let result = going_on.await;
    over.store(true, Ordering::Relaxed);
    Ok((result, asking.await??))
}
