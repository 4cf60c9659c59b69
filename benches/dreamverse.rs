//! Sessions of `/ws` against those of `/v1/stream`: how soon a segment's first media come, how soon a rollout begins again, and
//! how many segments many sessions get.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::timeout_at;

use crate::client::{Client, Heard};
use crate::figures::{Figures, milliseconds};
use crate::many::SHARED;
use crate::report::{Row, Target};
use crate::server::Server;

const PROMPT: &str = "a red fox in the snow";
/// A segment of 12 frames after 8 steps.
const SMALL: &[&str] = &[
    "--default_request.sampling.width=128",
    "--default_request.sampling.height=96",
    "--default_request.sampling.num_frames=12",
    "--default_request.sampling.num_inference_steps=8",
    "--generator.synthetic.step_ms=10",
    "--streaming.warmup.enabled=false",
    "--streaming.max_lead_seconds=0",
];
const WORKERS: u64 = 8;
const SESSIONS: usize = 32;
/// Segments that no session ever makes.
const NO_CAP: &str = "--streaming.generation_segment_cap=100000";
/// Before anything is counted.
const WARM_UP: Duration = Duration::from_secs(2);
const COUNTED: Duration = Duration::from_secs(10);

pub(crate) async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    Ok(vec![
        first_media(runs).await?,
        restart(runs).await?,
        throughput(runs.div_ceil(20)).await?,
    ])
}

/// Which protocol a session speaks.
#[derive(Clone, Copy)]
enum Spoken {
    Stream,
    Dreamverse,
}

/// Opens a session that makes segments without end.
async fn looping(server: &Server, spoken: Spoken) -> anyhow::Result<Client> {
    let opening = json!({
        "curated_prompts": [PROMPT, "it looks up"], "loop_generation_enabled": true, "enhancement_enabled": false,
    });
    match spoken {
        Spoken::Stream => Client::connect(&server.address, opening).await,
        Spoken::Dreamverse => Client::connect_to(&server.address, "/ws", opening).await,
    }
}

/// Waits for the next segment's start and its first binary message. Returns the time between.
async fn start_to_media(client: &mut Client) -> anyhow::Result<Duration> {
    let (started, _) = client.until("ltx2_segment_start").await?;
    loop {
        match client.next().await? {
            (at, Heard::Media(_)) => return Ok(at - started),
            (_, Heard::Text(text)) if text["type"] == "error" => bail!("{text}"),
            _ => {}
        }
    }
}

/// Compares the segments of two sessions that have a worker each, at the same time.
async fn first_media(segments: usize) -> anyhow::Result<Row> {
    let server = Server::start_ready(2, &[SMALL, &[NO_CAP]].concat()).await?;
    // Whoever does not read at once would see the start of a segment late.
    let times = async |spoken| {
        let mut client = looping(&server, spoken).await?;
        let mut times = Vec::new();
        for _ in 0..segments {
            times.push(milliseconds(start_to_media(&mut client).await?));
        }
        Figures::of(times)
    };
    let (stream, dreamverse) = tokio::try_join!(times(Spoken::Stream), times(Spoken::Dreamverse))?;
    Ok(Row {
        key: "dreamverse_first_media",
        what: "/ws: ltx2_segment_start to the first media, by that of /v1/stream, median",
        unit: "",
        python: "-",
        target: Target::AtMost(1.05),
        measured: dreamverse.p50 / stream.p50,
        note: format!(
            "{segments} segments each; {:.2} ms and {:.2} ms",
            dreamverse.p50, stream.p50
        ),
        figures: None,
    })
}

/// Rewrites a rollout that has run dry.
async fn restart(runs: usize) -> anyhow::Result<Row> {
    let server = Server::start_ready(1, SMALL).await?;
    let opening = json!({"curated_prompts": [PROMPT]});
    let mut client = Client::connect_to(&server.address, "/ws", opening).await?;
    client.until("prompt_sources_blocked").await?;
    let mut took = Vec::new();
    for _ in 0..runs {
        client
            .send(json!({"type": "rewrite_seed_prompts", "prompt_window_prompts": [PROMPT]}))
            .await?;
        let (answered, _) = client.until("seed_prompts_updated").await?;
        let (begun, _) = client.until("ltx2_segment_start").await?;
        took.push(milliseconds(begun - answered));
        client.until("prompt_sources_blocked").await?;
    }
    let figures = Figures::of(took)?;
    Ok(Row {
        key: "dreamverse_restart",
        what: "/ws: the answer to a rewrite to the start of the new rollout's first segment, the most",
        unit: "ms",
        python: "-",
        target: Target::AtMost(20.0),
        measured: figures.max,
        note: format!("{runs} rewrites"),
        figures: Some(figures),
    })
}

/// Counts the segments of many sessions, in turns.
async fn throughput(turns: usize) -> anyhow::Result<Row> {
    let (mut stream, mut dreamverse) = (0.0, 0.0);
    for _ in 0..turns {
        stream += per_second(Spoken::Stream).await?;
        dreamverse += per_second(Spoken::Dreamverse).await?;
    }
    let turns_made = turns as f64;
    Ok(Row {
        key: "dreamverse_throughput",
        what: "/ws: segments of 32 sessions on 8 workers, by those of /v1/stream",
        unit: "",
        python: "-",
        target: Target::AtLeast(0.95),
        measured: dreamverse / stream,
        note: format!(
            "{turns} turns of {} s each; {:.1} /s and {:.1} /s",
            COUNTED.as_secs(),
            dreamverse / turns_made,
            stream / turns_made,
        ),
        figures: None,
    })
}

async fn per_second(spoken: Spoken) -> anyhow::Result<f64> {
    let flags = [
        NO_CAP,
        "--streaming.max_lead_seconds=0",
        "--streaming.warmup.enabled=false",
    ];
    let server = Server::start_ready(WORKERS, &[&SHARED[..], &flags].concat()).await?;
    let clients = try_join_all((0..SESSIONS).map(|_| looping(&server, spoken))).await?;
    let begin = Instant::now() + WARM_UP;
    let end = begin + COUNTED;
    let counting = clients.into_iter().map(|mut client| async move {
        let mut segments = 0;
        loop {
            let segment = client.until("ltx2_segment_complete");
            let Ok(ended) = timeout_at(end.into(), segment).await else {
                return Ok::<u32, anyhow::Error>(segments);
            };
            let (at, _): (Instant, Value) = ended.context("a session has ended")?;
            segments += u32::from(at >= begin);
        }
    });
    let all: u32 = try_join_all(counting).await?.into_iter().sum();
    Ok(f64::from(all) / COUNTED.as_secs_f64())
}
