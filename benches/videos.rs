//! Video jobs: how soon one is taken in, how soon they go on after SIGKILL of the server, how fast they are against the same
//! segments in a session, what they cost a viewer, and what a long one costs the supervisor.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::client::PATIENCE;
use crate::cost::memory;
use crate::figures::{Figures, milliseconds};
use crate::film::{SEGMENT_ARGS, drain};
use crate::report::{Row, Target};
use crate::server::{ASK_AGAIN, Server};
use crate::store::Store;

const SMALL: &[&str] = &[
    "--default_request.sampling.width=128",
    "--default_request.sampling.height=96",
    "--default_request.sampling.num_frames=12",
    "--streaming.warmup.enabled=false",
];
/// A segment takes three seconds.
const SLOW: &[&str] = &[
    "--default_request.sampling.num_inference_steps=30",
    "--generator.synthetic.step_ms=100",
];
const STEP: Duration = Duration::from_millis(100);
const PROMPT: &str = "a red fox in the snow";

const CREATED: usize = 500;
/// Segments of a job and of a session that are compared.
const COMPARED: u64 = 20;
/// Workers that are full of jobs.
const FULL: u64 = 8;
/// What a job may cost a viewer beyond one step.
const MARGIN: Duration = Duration::from_millis(100);
/// A video of ten minutes.
const LONG_SECONDS: u64 = 600;

pub(crate) async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    let mut rows = vec![
        creation().await?,
        restart(runs).await?,
        throughput(runs).await?,
    ];
    rows.push(viewer(runs * 10).await?);
    rows.extend(long_video().await?);
    Ok(rows)
}

/// Creates jobs, one after the other, while a GPU makes the first one.
async fn creation() -> anyhow::Result<Row> {
    let store = Store::file()?;
    let server = Server::start_ready(1, &store.with(&[SMALL, SLOW].concat())).await?;
    let mut took = Vec::new();
    for n in 0..CREATED {
        let request = json!({"prompt": format!("{PROMPT}, {n}"), "seconds": "10"});
        let asked = Instant::now();
        create(&server, request).await?;
        took.push(milliseconds(asked.elapsed()));
    }
    let figures = Figures::of(took)?;
    Ok(Row {
        key: "video_creation",
        what: "POST /v1/videos to its answer, with a store in a folder, p99",
        unit: "ms",
        python: "-",
        target: Target::AtMost(10.0),
        measured: figures.p99,
        note: format!("{CREATED} jobs, one after the other"),
        figures: Some(figures),
    })
}

/// Kills the server in the middle of a job, and starts it again.
async fn restart(runs: usize) -> anyhow::Result<Row> {
    let store = Store::file()?;
    let args = store.with(&[SMALL, SLOW].concat());
    let mut server = Server::start_ready(1, &args).await?;
    let request = json!({"prompt": PROMPT, "num_frames": 12 * runs});
    let id = create(&server, request).await?;
    let mut took = Vec::new();
    for done in 0..runs {
        // At most five servers in a row end within one segment.
        until(&server, &id, |video| {
            video["segments"]["done"].as_u64() >= Some(done as u64)
                && video["phase"] == "generating"
        })
        .await?;
        drop(server);
        server = Server::start_ready(1, &args).await?;
        let ready = Instant::now();
        let before = progress(&server, &id).await?;
        until(&server, &id, |video| {
            video["progress"].as_u64() > Some(before)
        })
        .await?;
        took.push(milliseconds(ready.elapsed()));
    }
    let figures = Figures::of(took)?;
    Ok(Row {
        key: "video_restart",
        what: "SIGKILL of the server: its worker ready to the job's first step, the most",
        unit: "ms",
        python: "never",
        target: Target::AtMost(500.0),
        measured: figures.max,
        note: format!("a step of {} ms included", STEP.as_millis()),
        figures: Some(figures),
    })
}

/// Makes the same segments as a session and as a job, in turns.
async fn throughput(runs: usize) -> anyhow::Result<Row> {
    let paced = [
        "--default_request.sampling.num_inference_steps=8",
        "--generator.synthetic.step_ms=20",
        "--generator.synthetic.frame_ms=5",
        "--streaming.limits.max_waiting_requests=100",
    ];
    let server = Server::start_ready(1, &[SMALL, &paced].concat()).await?;
    let mut shares = Vec::new();
    for _ in 0..runs {
        let mut client = server.session().await?;
        let began = Instant::now();
        for _ in 0..COMPARED {
            client.prompt(PROMPT).await?;
        }
        for _ in 0..COMPARED {
            client.until("ltx2_segment_complete").await?;
        }
        let session = began.elapsed();
        drop(client);
        let began = Instant::now();
        let id = create(
            &server,
            json!({"prompt": PROMPT, "num_frames": 12 * COMPARED}),
        )
        .await?;
        until(&server, &id, |video| video["status"] == "completed").await?;
        shares.push(session.as_secs_f64() / began.elapsed().as_secs_f64());
    }
    let figures = Figures::of(shares)?;
    Ok(Row {
        key: "video_throughput",
        what: "speed of a job, by that of the same segments in a session, median",
        unit: "",
        python: "-",
        target: Target::AtLeast(0.97),
        measured: figures.p50,
        note: format!("{COMPARED} segments, from the request to the end"),
        figures: Some(figures),
    })
}

/// Lets a viewer ask for segments without jobs and with workers that are full of them, in turns.
async fn viewer(segments: usize) -> anyhow::Result<Row> {
    let alone = Server::start_ready(FULL, &[SMALL, SLOW].concat()).await?;
    let shared = Server::start_ready(FULL, &[SMALL, SLOW].concat()).await?;
    for n in 0..2 * FULL {
        create(
            &shared,
            json!({"prompt": format!("{PROMPT}, {n}"), "seconds": "60"}),
        )
        .await?;
    }
    let mut viewers = (alone.session().await?, shared.session().await?);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for n in 0..segments {
        without.push(viewers.0.timed_segment(PROMPT).await?);
        with.push(viewers.1.timed_segment(PROMPT).await?);
        // Longer than the pause after which the worker takes a job again, and at another moment of a step each time.
        sleep(Duration::from_millis(400 + (n as u64 * 37) % 100)).await;
    }
    let preempted = shared.get("/status").await?["videos"]["preemptions"].clone();
    let (without, with) = (p95(&mut without), p95(&mut with));
    Ok(Row {
        key: "video_viewer",
        what: "a viewer's first media with 8 workers full of jobs, p95, beyond that without jobs",
        unit: "ms",
        python: "-",
        target: Target::AtMost(milliseconds(STEP + MARGIN)),
        measured: milliseconds(with) - milliseconds(without),
        figures: None,
        note: format!(
            "{segments} segments each, with {:.0} ms and without {:.0} ms; {preempted} segments of jobs were stopped",
            milliseconds(with),
            milliseconds(without),
        ),
    })
}

fn p95(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[(times.len() * 95).div_ceil(100) - 1]
}

/// Makes and fetches a video of ten minutes.
async fn long_video() -> anyhow::Result<Vec<Row>> {
    let long = LONG_SECONDS.to_string();
    let max_seconds = format!("--streaming.videos.max_seconds={long}");
    let store = Store::file()?;
    let args = [SEGMENT_ARGS, &[&max_seconds]].concat();
    let server = Server::start_ready(1, &store.with(&args)).await?;
    let id = create(&server, json!({"prompt": PROMPT, "seconds": long})).await?;
    // What the first segments need is needed by every video.
    until(&server, &id, |video| {
        video["segments"]["done"].as_u64() >= Some(12)
    })
    .await?;
    let clear = || fs::write(format!("/proc/{}/clear_refs", server.pid()), "5");
    clear()?;
    let early = memory(server.pid())?.resident;
    until(&server, &id, |video| video["status"] == "completed").await?;
    let made = memory(server.pid())?.peak - early;

    clear()?;
    let before = memory(server.pid())?.resident;
    let url = format!("http://{}/v1/videos/{id}/content", server.address);
    let (bytes, speed) = spawn_blocking(move || download(&url)).await??;
    let fetched = memory(server.pid())?.peak - before;
    Ok(vec![
        Row {
            key: "video_memory_made",
            what: "video of 600 s while it is made: growth of the supervisor",
            unit: "MiB",
            python: "-",
            target: Target::AtMost(32.0),
            measured: made / 1024.0,
            figures: None,
            note: format!(
                "from the twelfth of 120 segments on; {:.1} MiB then",
                early / 1024.0
            ),
        },
        Row {
            key: "video_memory_fetched",
            what: "the same while it is fetched",
            unit: "MiB",
            python: "-",
            target: Target::AtMost(8.0),
            measured: fetched / 1024.0,
            figures: None,
            note: format!("{:.1} MB with {speed:.0} MB/s", bytes as f64 / 1e6),
        },
    ])
}

/// Reads a video. Returns its size in bytes, and how many MB came in a second.
fn download(url: &str) -> anyhow::Result<(u64, f64)> {
    let began = Instant::now();
    let mut answer = ureq::get(url).call()?;
    let bytes = drain(answer.body_mut().with_config().limit(u64::MAX).reader())?;
    Ok((bytes, bytes as f64 / 1e6 / began.elapsed().as_secs_f64()))
}

/// Creates a job, and returns its id.
async fn create(server: &Server, request: Value) -> anyhow::Result<String> {
    let url = format!("http://{}/v1/videos", server.address);
    let answer = spawn_blocking(move || {
        let post = ureq::post(&url).header("content-type", "application/json");
        post.send(request.to_string())
    });
    let text = answer.await??.body_mut().read_to_string()?;
    let video: Value = serde_json::from_str(&text)?;
    let id = video["id"].as_str().context("a job has an id")?;
    Ok(id.to_owned())
}

async fn progress(server: &Server, id: &str) -> anyhow::Result<u64> {
    let video = server.get(&format!("/v1/videos/{id}")).await?;
    video["progress"].as_u64().context("a job has a progress")
}

/// Waits until a job fits.
async fn until(server: &Server, id: &str, fits: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
    let path = format!("/v1/videos/{id}");
    // A video of ten minutes takes its time.
    let fitting = timeout(10 * PATIENCE, async {
        loop {
            let video = server.get(&path).await?;
            ensure!(video["status"] != "failed", "{video}");
            if fits(&video) {
                return Ok(());
            }
            sleep(ASK_AGAIN).await;
        }
    });
    fitting.await.context("the job does not get there")?
}
