//! Thousands of sessions come, take one tiny segment each, and leave: nothing of them is left.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::client::{Client, PATIENCE};
use crate::cost::memory;
use crate::report::{Row, Target};
use crate::server::Server;
use crate::store::Store;

const WORKERS: u64 = 2;
/// At once.
const SESSIONS: usize = 32;
const IN_MEMORY: usize = 10_000;
/// As many as in memory would take minutes with each of these stores.
const IN_STORES: usize = 1_000;
/// After which memory is looked at first: everything that grows with use has grown.
const WARM_UP: usize = 500;
/// Before memory is looked at, so that sessions that have left are gone, and what was kept of them.
const SETTLE: Duration = Duration::from_secs(8);
/// How often a store is asked for what is left in it.
const ASK_AGAIN: Duration = Duration::from_millis(100);

const TINY: &[&str] = &[
    "--sessions-per-gpu=32",
    "--streaming.pool.keep_up=false",
    "--streaming.warmup.enabled=false",
    "--default_request.sampling.width=64",
    "--default_request.sampling.height=64",
    "--default_request.sampling.num_frames=2",
    "--default_request.sampling.num_inference_steps=1",
    "--generator.synthetic.audio_latent_frames=4",
    "--max-sessions=1000",
    "--streaming.resume_ttl_seconds=2",
    "--streaming.recording.ttl_seconds=2",
    // What is said of ten thousand sessions would be measured too.
    "--log-level=warn",
];

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    let memory = churn(&Store::memory()?, IN_MEMORY).await?;
    let file = churn(&Store::file()?, IN_STORES).await?;
    let redis = churn(&Store::redis().await?, IN_STORES).await?;
    Ok(vec![
        Row {
            key: "churn_memory",
            what: "10,000 sessions come and go, memory of the supervisor grows",
            unit: "%",
            python: "-",
            target: Target::AtMost(5.0),
            measured: memory.grown_percent(),
            figures: None,
            note: format!(
                "resident {:.1} MB after {WARM_UP}, {:.1} MB in the end, in {:.0} s; store in memory",
                memory.before_mb,
                memory.after_mb,
                memory.took.as_secs_f64()
            ),
        },
        Row {
            key: "churn_blobs",
            what: "blobs left of sessions that came and went",
            unit: "",
            python: "-",
            target: Target::AtMost(0.0),
            measured: (file.blobs + redis.blobs) as f64,
            figures: None,
            note: format!(
                "{IN_STORES} sessions each: in a folder {} blobs ({:+.1} % memory, {:.0} s); Redis and a folder {} ({:+.1} %, {:.0} s)",
                file.blobs,
                file.grown_percent(),
                file.took.as_secs_f64(),
                redis.blobs,
                redis.grown_percent(),
                redis.took.as_secs_f64(),
            ),
        },
    ])
}

#[derive(Debug)]
struct Churned {
    before_mb: f64,
    after_mb: f64,
    blobs: usize,
    took: Duration,
}

impl Churned {
    fn grown_percent(&self) -> f64 {
        (self.after_mb / self.before_mb - 1.0) * 100.0
    }
}

async fn churn(store: &Store, sessions: usize) -> anyhow::Result<Churned> {
    let server = Server::start_ready(WORKERS, &store.with(TINY)).await?;
    let begun = Instant::now();
    come_and_go(&server, WARM_UP).await?;
    let before_mb = resident_mb(&server).await?;
    come_and_go(&server, sessions - WARM_UP).await?;
    let after_mb = resident_mb(&server).await?;
    let took = begun.elapsed();
    // What a session leaves behind is removed once it has expired.
    let none_left = async {
        while store.blobs().await? > 0 {
            sleep(ASK_AGAIN).await;
        }
        anyhow::Ok(())
    };
    if let Ok(failed) = timeout(PATIENCE / 4, none_left).await {
        failed?;
    }
    Ok(Churned {
        before_mb,
        after_mb,
        blobs: store.blobs().await?,
        took,
    })
}

async fn come_and_go(server: &Server, sessions: usize) -> anyhow::Result<()> {
    stream::iter(0..sessions)
        .map(|n| one(server, n))
        .buffer_unordered(SESSIONS)
        .try_collect()
        .await
}

async fn one(server: &Server, n: usize) -> anyhow::Result<()> {
    let mut client = Client::open(&server.address).await?;
    // Each state is another blob.
    client.segment(&format!("a red fox, {n}")).await?;
    client.send(json!({"type": "leave"})).await?;
    client.until("ltx2_stream_complete").await?;
    Ok(())
}

async fn resident_mb(server: &Server) -> anyhow::Result<f64> {
    let gone = async {
        while server.get("/health").await?["sessions"] != 0 {
            sleep(ASK_AGAIN).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, gone)
        .await
        .context("sessions do not end")??;
    sleep(SETTLE).await;
    Ok(memory(server.pid())?.resident * 1.024 / 1e3)
}
